"""The tracking id goes along: into threads, into child processes, and into what those log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from onebeat.errors import InvalidArguments, WorkerProcessDied
from onebeat.offload import to_process, to_thread
from onebeat.offload.processes import close_processes
from onebeat.tracking import current, tracking
from onebeat.tracking.context import tracking_of
from tests.offload import work


@pytest.fixture(autouse=True, scope="module")
def _children_end_with_the_module() -> Iterator[None]:
    yield
    close_processes()


class Seen(logging.Handler):
    """Notes each message with the unit it is handled in."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, tuple[str | None, dict[str, Any]]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        unit = current()
        self.records[record.getMessage()] = (
            None if unit is None else unit.tracking_id,
            {} if unit is None else dict(unit.fields),
        )


@pytest.fixture
def seen() -> Iterator[Seen]:
    handler = Seen()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


async def test_a_thread_and_a_child_see_the_id_and_the_registered_variables_for_this_call_only() -> None:
    with tracking("order-7") as unit:
        work.tenant.set("acme")
        work.unregistered.set("local")
        assert await to_thread(work.surroundings) == ("order-7", unit.unit_id, "acme", "local")
        assert await to_process(work.surroundings) == ("order-7", unit.unit_id, "acme", "unset")
    work.tenant.set("other")
    assert await to_process(work.surroundings) == (None, None, "other", "unset")


async def test_the_first_call_of_a_child_has_the_variables_its_module_registers() -> None:
    await asyncio.to_thread(close_processes)
    work.tenant.set("first")
    assert (await to_process(work.surroundings))[2] == "first"


async def test_more_than_eight_kib_are_refused_by_name() -> None:
    work.tenant.set("x" * 9 * 1024)
    with pytest.raises(InvalidArguments, match="offload_tenant"):
        await to_process(work.surroundings)
    work.tenant.set("small")
    assert (await to_process(work.surroundings))[2] == "small"


async def test_a_childs_records_carry_the_callers_unit_or_the_one_they_were_made_in(seen: Seen) -> None:
    with tracking("order-8", customer=5):
        await to_process(work.logs_in_units)
    assert seen.records["plain"] == ("order-8", {"customer": 5})
    assert seen.records["bound"] == ("order-8", {"customer": 5, "bound": "in the child"})
    assert seen.records["own"][0] == "own-id"
    assert seen.records["after"] == ("order-8", {"customer": 5, "bound": "in the child"})


async def test_a_child_that_dies_is_told_with_the_tracking_id(seen: Seen) -> None:
    with tracking("order-9"), pytest.raises(WorkerProcessDied, match="tracking id order-9"):
        await to_process(work.exit_with, 4)
    assert [id for message, (id, _) in seen.records.items() if "exit code 4" in message] == ["order-9"]


async def test_an_exception_that_left_a_unit_in_the_child_still_comes_back_as_itself() -> None:
    with tracking("order-10"), pytest.raises(ValueError, match="tagged") as caught:
        await to_process(work.fails_in_a_unit)
    left = tracking_of(caught.value)
    assert left is not None
    assert left.tracking_id == "inner", "it remembers the innermost unit, as everywhere"
