"""settle() decides what becomes of an attempt."""

from __future__ import annotations

from typing import Any

import pytest

from onebeat.model.job import Ending, JobState, Outcome, Settlement, settle
from onebeat.timing.backoff import Retry

SECOND = 1_000_000


def decide(ending: Ending, **facts: Any) -> Settlement:
    outcome = Outcome(ending=ending, retryable=facts.pop("retryable", True), delay=facts.pop("delay", 0))
    known: dict[str, Any] = {"errors": 0, "crashes": 0, "max_attempts": 3, "at_most_once": False} | facts
    return settle(outcome=outcome, retry=Retry(base=4, jitter=False), random=0.5, **known)


CASES: list[tuple[str, Settlement, Settlement]] = [
    ("a success", decide(Ending.SUCCEEDED), Settlement(state=JobState.SUCCEEDED)),
    (
        "a first error waits for its delay",
        decide(Ending.ERROR),
        Settlement(state=JobState.SCHEDULED, reason="error", delay=4 * SECOND, errors=1),
    ),
    (
        "a second error waits twice as long",
        decide(Ending.ERROR, errors=1),
        Settlement(state=JobState.SCHEDULED, reason="error", delay=8 * SECOND, errors=2),
    ),
    (
        "the last error is the end",
        decide(Ending.ERROR, errors=2),
        Settlement(state=JobState.FAILED, reason="exhausted", errors=3),
    ),
    (
        "an error nobody wants to retry",
        decide(Ending.ERROR, retryable=False),
        Settlement(state=JobState.FAILED, reason="gave up", errors=1),
    ),
    (
        "a timeout counts as an error",
        decide(Ending.TIMEOUT),
        Settlement(state=JobState.SCHEDULED, reason="timeout", delay=4 * SECOND, errors=1),
    ),
    (
        "a snooze uses no budget",
        decide(Ending.SNOOZED, errors=2, delay=7),
        Settlement(state=JobState.SCHEDULED, reason="snoozed", delay=7, errors=2),
    ),
    (
        "a drain uses no budget",
        decide(Ending.DRAINED, errors=2, crashes=2),
        Settlement(state=JobState.QUEUED, errors=2, crashes=2),
    ),
    (
        "a drained at-most-once job is lost",
        decide(Ending.DRAINED, at_most_once=True),
        Settlement(state=JobState.FAILED, reason="lost"),
    ),
    ("the first loss goes back at once", decide(Ending.LOST), Settlement(state=JobState.QUEUED, crashes=1)),
    (
        "the second loss waits",
        decide(Ending.LOST, crashes=1),
        Settlement(state=JobState.SCHEDULED, reason="lost", delay=8 * SECOND, crashes=2),
    ),
    (
        "the third loss quarantines",
        decide(Ending.LOST, crashes=2),
        Settlement(state=JobState.FAILED, reason="quarantined", crashes=3),
    ),
    (
        "a lost at-most-once job never starts again",
        decide(Ending.LOST, at_most_once=True),
        Settlement(state=JobState.FAILED, reason="lost", crashes=1),
    ),
    (
        "a lost job that was to be cancelled is cancelled",
        decide(Ending.LOST, cancel_requested=True),
        Settlement(state=JobState.CANCELLED, reason="requested", crashes=1),
    ),
    ("an unstarted job is refunded", decide(Ending.RETURNED), Settlement(state=JobState.QUEUED, refund=True)),
    (
        "an unstarted job that was to be cancelled is",
        decide(Ending.RETURNED, cancel_requested=True),
        Settlement(state=JobState.CANCELLED, reason="requested", refund=True),
    ),
    (
        "a snooze is no second start of what starts once",
        decide(Ending.SNOOZED, at_most_once=True),
        Settlement(state=JobState.FAILED, reason="snoozed"),
    ),
    (
        "arguments that do not fit fail at once",
        decide(Ending.UNDECODABLE),
        Settlement(state=JobState.FAILED, reason="undecodable", errors=1),
    ),
    (
        "a success in spite of a cancel",
        decide(Ending.SUCCEEDED, cancel_requested=True),
        Settlement(state=JobState.SUCCEEDED, reason="cancel ignored"),
    ),
    (
        "an error after a cancel is no retry",
        decide(Ending.ERROR, cancel_requested=True),
        Settlement(state=JobState.CANCELLED, reason="requested"),
    ),
]


@pytest.mark.parametrize(("got", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_becomes_of_an_attempt(got: Settlement, wanted: Settlement) -> None:
    assert got == wanted
