"""What a fire stores with its job is read back, whatever the arguments hold."""

from __future__ import annotations

from datetime import timedelta

import pytest

from onebeat.model import payload
from onebeat.model.fired import fire_time, packed
from onebeat.tasks.signature import Signature


@pytest.mark.parametrize("text", ['"z"', ',"z":"Asia/Tokyo"}', "}}", '"}', ""])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_arguments_that_look_like_a_zone_change_nothing(text: str, zone: str) -> None:
    def work(first: str, **more: str) -> None: ...

    signature = Signature(work, "work")
    stored = payload.decode(signature.pack((text,), {"z": text}))
    made = packed(payload.canonical(stored["a"]), payload.canonical(stored["k"]), zone)
    assert str(fire_time(0, made).tzinfo) == zone
    assert signature.unpack(made) == ((), {"first": text, "z": text})


def test_a_zone_that_this_machine_does_not_know_is_told_in_utc() -> None:
    assert fire_time(0, packed("[]", "{}", "Mars/Olympus")).utcoffset() == timedelta()
