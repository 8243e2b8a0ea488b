"""Hooks on events: a failing one stops no other."""

from __future__ import annotations

import pytest

from onebeat.model.events import Event
from onebeat.scheduler.hooks import Announcer


def test_a_word_that_cannot_be_said_ends_no_part_of_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def mute(event: Event) -> None:
        raise OSError("a filter of someone else")

    announce = Announcer(mute)
    announce.on(Event, heard.append)
    announce(Event())
    assert len(heard) == 1
    assert "a filter of someone else" in caplog.text
