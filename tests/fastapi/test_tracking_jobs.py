"""From a request in one process to jobs in another, with real databases, servers and signals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fastapi.served import WITHIN, serving


def test_a_request_and_the_jobs_it_caused_in_another_process_share_one_id(tmp_path: Path) -> None:
    environment = {**os.environ, "ONEBEAT_TEST_LOGS": str(tmp_path), "PYTHONPATH": f"src{os.pathsep}."}
    with serving(tmp_path, app="tests.fastapi.mail:web") as web:
        answer = web.exchange(b"PUT /send_email?user_id=7 HTTP/1.1\r\nHost: shop\r\nX-Request-ID: order-7\r\n\r\n")[0]
        assert answer.status == 200
        assert answer.json()["tracking_id"] == answer.id == "order-7"
        worker = subprocess.Popen([sys.executable, "-m", "tests.fastapi.mail"], env=environment)
        try:
            mail = web.wait_for_line(msg="mail to 7")
            archived = web.wait_for_line(msg="archived in a thread")
            ticks = web.wait_for_lines(2, msg="tick")
        finally:
            worker.terminate()
            worker.wait(WITHIN)
        asked = web.wait_for_line(msg="asked")

    assert {asked["tracking_id"], mail["tracking_id"], archived["tracking_id"]} == {"order-7"}
    assert mail["pid"] == archived["pid"] == worker.pid != asked["pid"]
    assert (asked["unit"], mail["unit"], archived["unit"]) == ("request", "job", "job")
    assert mail["parent_id"] == asked["unit_id"]
    assert mail["unit_id"] == answer.json()["job_id"]
    assert archived["parent_id"] == mail["unit_id"]
    assert (mail["task"], mail["attempt"], mail["customer"], archived["customer"]) == ("send_email", 1, 7, 7)

    story = web.lines(tracking_id="order-7")
    assert {line["logger"] for line in story} >= {"shop.mail", "onebeat.access", "onebeat.jobs"}

    assert len({tick["tracking_id"] for tick in ticks}) == len(ticks)  # each fire is a story of its own
    assert {tick["schedule_id"] for tick in ticks} == {"tick"}
    assert "order-7" not in {tick["tracking_id"] for tick in ticks}
