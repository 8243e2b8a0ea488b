"""The soak command keeps its promises for twenty seconds, and says so when a job is lost or runs twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from bench.charts import Panel, draw
from bench.soak import LINE, Book, Soak


def a_row(id: UUID, **changes: Any) -> Any:
    values = {"state": "succeeded", "reason": None, "attempt": 1, "run_at_us": 0, "started_us": 1, "finished_us": 2}
    return SimpleNamespace(id=id, **(values | changes))


def compared(book: Book, path: Path, *starts: tuple[UUID, int]) -> list[str]:
    path.write_bytes(b"".join(id.bytes + attempt.to_bytes(LINE - 16, "big") for id, attempt in starts))
    book.compare(path)
    return book.wrong


def test_a_load_without_fault_is_right(tmp_path: Path) -> None:
    once, again = uuid4(), uuid4()
    book = Book(open={once, again}, stored=2)
    for row in (a_row(once), a_row(once), a_row(again, attempt=2)):  # each look reads the newest ends once more
        book.end(row)
    assert compared(book, tmp_path / "starts", (once, 1), (again, 1), (again, 2)) == []


@pytest.mark.parametrize(
    ("rows", "starts", "found"),
    [
        ([{}], [1, 1], "attempt 1 of job"),
        ([{}], [1, 2], "started 2 times and succeeded at attempt 1"),
        ([], [1], "have not ended"),
        ([{}], [], "1 jobs succeeded and 0 started"),
        ([{}, {"finished_us": 3}], [1], "ended twice"),
        ([{"state": "failed", "reason": "lost"}], [1], "is failed: lost"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, rows: list[dict[str, Any]], starts: list[int], found: str) -> None:
    job = uuid4()
    book = Book(open={job}, stored=1)
    for changes in rows:
        book.end(a_row(job, **changes))
    assert any(found in wrong for wrong in compared(book, tmp_path / "starts", *((job, n) for n in starts)))


def test_a_chart_has_a_line_for_each_series_and_kill() -> None:
    chart = draw("t < 1", [Panel(title="jobs", lines={"a": [(0, 0), (10, 5)], "b": [(0, 1)]})], [3.0])
    assert (chart.count("<polyline"), chart.count("<line"), "t &lt; 1" in chart) == (2, 1, True)


@pytest.mark.campaign
@pytest.mark.cluster
@pytest.mark.timeout(180)
async def test_each_job_succeeds_once_while_workers_are_killed(url: str, tmp_path: Path) -> None:
    run = Soak(url, tmp_path, rate=100, kill_each=5)
    await run.run(20)
    assert run.book.wrong == []
    assert (run.book.ended, len(run.kills)) == (run.book.stored, 2)
    assert run.book.stored > 1_500
