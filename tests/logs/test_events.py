"""Every event of the engine has words, a level and the ids of its job."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any, get_type_hints
from uuid import UUID

import pytest

from onebeat.logs.events import _WORDS, word
from onebeat.logs.record import RecordEncoder
from onebeat.model import events

SILENT = {
    events.Event,
    events.JobEvent,
    events.JobStarted,
}  # base classes; and the end of an attempt is told, not its start
KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and kind not in SILENT]
KINDS = [kind for kind in KINDS if issubclass(kind, events.Event)]
SAMPLES: dict[Any, Any] = {str: "x", int: 7, float: 1.5, UUID: UUID(int=7), tuple[str, ...]: ("a", "b")}


def sample(kind: type[events.Event], **given: Any) -> events.Event:
    hints = get_type_hints(kind)
    values = {field.name: SAMPLES.get(hints[field.name]) for field in dataclasses.fields(kind)}
    return kind(**{**values, **given})


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    encoder = RecordEncoder()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(encoder.encode(record)[2]))

    handler = Keep()
    root = logging.getLogger("onebeat")
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_has_words(kind: type[events.Event], said: list[dict[str, Any]]) -> None:
    assert kind in _WORDS
    word(sample(kind))
    assert len(said) == 1
    assert said[0]["msg"]
    assert "None" not in said[0]["msg"]
    if issubclass(kind, events.JobEvent):
        assert said[0]["tracking_id"] == "x"
        assert said[0]["job_id"] == str(UUID(int=7))
        assert (said[0]["task"], said[0]["attempt"], said[0]["queue"]) == ("x", 7, "x")
        assert not [key for key in said[0] if key.endswith("_")]


@pytest.mark.parametrize(
    ("given", "level", "words"),
    [
        ({"state": "succeeded", "ending": "succeeded"}, "INFO", "job mail succeeded after 1.500 s"),
        (
            {"state": "scheduled", "ending": "error", "error": "ValueError: no", "retry_in": 10.0},
            "WARNING",
            "job mail error after 1.500 s, now scheduled, again in 10.0 s: ValueError: no",
        ),
        (
            {"state": "failed", "ending": "timeout", "reason": "exhausted"},
            "ERROR",
            "job mail timeout after 1.500 s, now failed (exhausted)",
        ),
    ],
)
def test_the_end_of_an_attempt_is_told_by_what_becomes_of_the_job(
    given: dict[str, Any], level: str, words: str, said: list[dict[str, Any]]
) -> None:
    word(sample(events.JobSettled, task="mail", attempt=2, **given))
    assert (said[0]["level"], said[0]["msg"]) == (level, words)
    assert said[0]["logger"] == "onebeat.jobs"
    assert (said[0]["state"], said[0]["duration_ms"]) == (given["state"], 1500.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_text_of_an_event_shows_a_secret_or_begins_a_line(
    kind: type[events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Plain handlers write the message as it is: they have neither onebeat's redaction nor its escapes."""
    hostile = "cannot reach postgresql://shop:s3cret@db/shop\n2026-01-02 03:04:05 ERROR forged"
    hints = get_type_hints(kind)
    texts = {field.name: hostile for field in dataclasses.fields(kind) if hints[field.name] in (str, str | None)}
    with caplog.at_level(logging.DEBUG, "onebeat"):
        word(sample(kind, **texts))
    message = caplog.records[-1].getMessage()
    assert "s3cret" not in message
    assert not [line for line in message.splitlines()[1:] if not line.startswith("  | ")]


def test_a_fire_carries_its_own_tracking_id(said: list[dict[str, Any]]) -> None:
    word(sample(events.ScheduleFired, schedule_id="nightly", decision="started", late_us=2_500, tracking_id="t9"))
    assert (said[0]["tracking_id"], said[0]["unit"], said[0]["schedule_id"]) == ("t9", "fire", "nightly")
    assert said[0]["decision"] == "started"


@pytest.mark.parametrize("hostile", ["a" * 129, "\x1b[2J", 'order"7', ""])
def test_a_stored_tracking_id_that_breaks_the_rule_is_not_shown(hostile: str, said: list[dict[str, Any]]) -> None:
    word(sample(events.JobSettled, tracking_id=hostile, state="succeeded", ending="succeeded"))
    word(sample(events.ScheduleFired, tracking_id=hostile, decision="started", fire_us=0))
    assert [line["tracking_id"] for line in said] == ["unreadable", "unreadable"]
    assert not [line for line in said if hostile and hostile in str(line)]


@pytest.mark.parametrize(("follows", "level"), [(True, "INFO"), (False, "WARNING")])
def test_a_fire_that_was_due_together_with_a_started_one_is_no_warning(
    follows: bool, level: str, said: list[dict[str, Any]]
) -> None:
    """As the fires of a one-second schedule after each restart."""
    word(sample(events.ScheduleFired, decision="skipped_overlap", fire_us=0, follows=follows))
    assert said[0]["level"] == level
