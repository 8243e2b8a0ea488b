"""What a fire stores with its job: the schedule's arguments, and the zone in which the fire time is told."""

from __future__ import annotations

from datetime import datetime

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
    """Return the instant in the zone that a job's row names; in UTC where this machine does not know that zone.

    >>> fire_time(0, "Europe/Berlin").isoformat()
    '1970-01-01T01:00:00+01:00'
    """
    moment = from_us(fire_us)
    if zone_name is None:
        return moment
    try:
        return moment.astimezone(zone(zone_name).tz)
    except InvalidTrigger:
        return moment  # the same instant; the job matters more than the zone it is told in
