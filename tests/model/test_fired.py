"""What a fire stores with its job is read back, whatever the arguments hold."""

from __future__ import annotations

from datetime import timedelta

import pytest

from onebeat.model import payload
from onebeat.model.fired import arguments, fire_time, stored_zone
from onebeat.tasks.signature import Signature


@pytest.mark.parametrize("text", ['"z"', ',"z":"Asia/Tokyo"}', "}}", '"}', ""])
def test_arguments_of_a_fire_are_read_back_as_they_were_declared(text: str) -> None:
    def work(first: str, **more: str) -> None: ...

    signature = Signature(work, "work")
    stored = payload.decode(signature.pack((text,), {"z": text}))
    made = arguments(payload.canonical(stored["a"]), payload.canonical(stored["k"]))
    assert signature.unpack(made) == ((), {"first": text, "z": text})


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin"])
def test_a_fire_time_is_told_in_the_stored_zone(name: str) -> None:
    assert str(fire_time(0, stored_zone(name)).tzinfo) == name


def test_a_zone_that_this_machine_does_not_know_is_told_in_utc() -> None:
    assert fire_time(0, "Mars/Olympus").utcoffset() == timedelta()
