"""What is dropped when a queue is full, in which order, and that it is counted."""

from __future__ import annotations

import logging
import random

import pytest

from onebeat.logs.failure import captured
from onebeat.logs.queue import SPAN, BoundedQueue, lines_in

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def lines(queue: BoundedQueue) -> list[bytes]:
    return [line for bucket in queue.take(1 << 40) for line in bucket.lines]


def test_lines_leave_in_the_order_in_which_they_came() -> None:
    queue = BoundedQueue()
    sent = [b"%d" % number for number in range(3_000)]
    for number, line in enumerate(sent):
        assert queue.put((number * 10.0, INFO, line, None))
    assert queue.waiting == queue.accepted == 3_000
    assert lines(queue) == sent
    assert queue.waiting == 0


def test_a_bucket_never_holds_lines_of_two_quarters_of_an_hour() -> None:
    queue = BoundedQueue()
    for moment in (SPAN - 0.001, SPAN, SPAN * 2 - 0.001, SPAN * 2, 0.0):
        queue.put((moment, INFO, b"x", None))
    assert [(bucket.span, len(bucket.lines)) for bucket in queue.take(1 << 40)] == [(0, 1), (1, 2), (2, 1), (0, 1)]


def test_no_warning_is_lost_while_an_info_waits() -> None:
    """Overload of every mix: what is lost is first what is under WARNING, whenever it came."""
    for seed in range(20):
        chance = random.Random(seed)
        queue = BoundedQueue(records=100)
        sent = [chance.choice([DEBUG, INFO, INFO, WARNING, ERROR]) for _ in range(400)]
        for level in sent:
            queue.put((0.0, level, str(level).encode(), None))
        important = sum(level >= WARNING for level in sent)
        kept = [int(line) for line in lines(queue)]
        assert sum(level >= WARNING for level in kept) == min(important, 100)
        lost = queue.report_lost()
        for level in (DEBUG, INFO, WARNING, ERROR):
            assert kept.count(level) + lost.get(level, 0) == sent.count(level)
        assert queue.report_lost() == {}


def test_the_last_fifth_is_kept_for_warnings() -> None:
    queue = BoundedQueue(records=100)
    assert sum(queue.put((0.0, INFO, b"x", None)) for _ in range(200)) == 80
    assert sum(queue.put((0.0, WARNING, b"x", None)) for _ in range(20)) == 20
    assert queue.lost() == {INFO: 120}


def test_bytes_are_bounded_as_records_are_and_exceptions_count() -> None:
    queue = BoundedQueue(records=1_000_000, max_bytes=1_000_000)
    while queue.put((0.0, ERROR, b"x" * 1_000, captured(ValueError("y" * 500)))):
        pass
    assert 500 < queue.waiting < 700
    assert not queue.put((0.0, INFO, b"x" * 1_000, None))


def test_lines_and_their_exceptions_stay_together_when_others_make_room() -> None:
    queue = BoundedQueue(records=4)
    failure = captured(ValueError("kept"))
    for entry in ((0.0, INFO, b'{"n":0}\n', None), (0.0, INFO, b'{"exc":null}\n', captured(ValueError("gone")))):
        queue.put(entry)
    queue.put((0.0, ERROR, b'{"n":2,"exc":null}\n', failure))
    for _ in range(3):
        queue.put((0.0, ERROR, b'{"n":3}\n', None))
    bucket, *rest = queue.take(1 << 40)
    assert lines_in([bucket, *rest]) == 4
    assert b'"msg":"kept"' in bucket.render()[0]
    assert queue.settled == 2


def test_flushing_knows_when_what_was_accepted_is_settled() -> None:
    queue = BoundedQueue(records=10)
    for level in (INFO, ERROR, INFO):
        queue.put((0.0, level, b"x", None))
    for _ in range(10):
        queue.put((0.0, ERROR, b"x", None))  # the two at INFO make room
    assert (queue.accepted, queue.settled) == (12, 2)
    queue.settle(lines_in(queue.take(1 << 40)))
    assert queue.accepted == queue.settled == 12


def test_ctrl_c_in_the_middle_of_a_call_leaves_the_queue_bounded_and_delivering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = BoundedQueue(records=10)

    def interrupted(queue: BoundedQueue) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BoundedQueue, "_measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.put((0.0, INFO, b"x", None))
        with pytest.raises(KeyboardInterrupt):
            queue.take(0)
    assert sum(queue.put((0.0, INFO, b"x", None)) for _ in range(20)) == 7
    assert len(lines(queue)) == 8
