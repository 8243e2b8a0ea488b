"""Hooks on events: a failing one stops no other."""

from __future__ import annotations

import logging

import pytest

from onebeat.logs.events import is_logged, word
from onebeat.model.events import Event, JobEvent, JobSettled, JobStarted
from onebeat.scheduler.hooks import EventHooks


def test_a_word_that_cannot_be_said_ends_no_part_of_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def mute(event: Event) -> None:
        raise OSError("a filter of someone else")

    announce = EventHooks(mute)
    announce.on(Event, heard.append)
    announce(Event())
    assert len(heard) == 1
    assert "a filter of someone else" in caplog.text


def test_an_event_need_not_be_made_when_neither_a_hook_nor_the_log_hears_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    announce = EventHooks(word, is_logged)
    with caplog.at_level(logging.WARNING, "onebeat.jobs"):
        assert not announce.hears(JobStarted)
        assert not announce.hears(JobSettled)
        announce.on(JobEvent, lambda _: None)
        assert announce.hears(JobStarted)
        assert announce.hears(JobSettled)
    with caplog.at_level(logging.INFO, "onebeat.jobs"):
        assert EventHooks(word, is_logged).hears(JobSettled)
