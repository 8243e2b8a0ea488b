"""What a fire stores with its job, the schedule's arguments and zone; and an instant told in a schedule's zone."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import lru_cache

from onebeat.errors import InvalidTrigger
from onebeat.timing.clock import from_us
from onebeat.timing.zones import zone


def arguments(args: str, kwargs: str) -> str:
    """Return the text of a job's arguments, made of the canonical JSON of both kinds.

    >>> arguments("[]", '{"n":1}')
    '{"a":[],"k":{"n":1}}'
    """
    return f'{{"a":{args},"k":{kwargs}}}'


def stored_zone(zone_name: str) -> str | None:
    """Return the zone as a job's row names it: None for UTC, so that most rows hold nothing.

    The zone goes with the job. A job that was fired keeps its fire time whatever becomes of the schedule.

    >>> stored_zone("Europe/Berlin"), stored_zone("UTC")
    ('Europe/Berlin', None)
    """
    return None if zone_name == "UTC" else zone_name


def fire_time(fire_us: int, zone_name: str | None) -> datetime:
    """Return the instant in the zone that a row names; in UTC where it names none or this machine does not know it.

    In a repeated hour Python compares such a value by its wall time alone with one of the same zone, and finds it
    unequal to every other; compute in UTC and call this last.

    >>> fire_time(0, "Europe/Berlin").isoformat()
    '1970-01-01T01:00:00+01:00'
    """
    return from_us(fire_us, UTC if zone_name is None else _told_in(zone_name))


@lru_cache(maxsize=1_024)
def _told_in(name: str) -> tzinfo:
    try:
        return zone(name).tz
    except InvalidTrigger:
        return UTC  # the same instant; the job matters more than the zone it is told in
