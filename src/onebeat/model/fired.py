"""What a fire stores with its job: the schedule's arguments, and the zone in which the fire time is told."""

from __future__ import annotations

from datetime import datetime

from onebeat.errors import InvalidTrigger
from onebeat.timing.clock import from_us
from onebeat.timing.zones import zone

_MARK = ',"z":"'  # the last member of the text; without it the text ends with the `}}` of the named arguments


def packed(args: str, kwargs: str, zone_name: str) -> str:
    """The text of a fired job's arguments, from the canonical JSON of both kinds; UTC is not written.

    The zone goes with the job: an edit of the schedule, or a process that does not know it, changes nothing for a job
    that was fired before.

    >>> packed("[]", '{"n":1}', "Europe/Berlin")
    '{"a":[],"k":{"n":1},"z":"Europe/Berlin"}'
    """
    told = "" if zone_name == "UTC" else f'{_MARK}{zone_name}"'
    return f'{{"a":{args},"k":{kwargs}{told}}}'


def fire_time(fire_us: int, text: str) -> datetime:
    """The instant in the zone that `packed` wrote; in UTC where this machine does not know that zone.

    >>> fire_time(0, packed("[]", "{}", "Europe/Berlin")).isoformat()
    '1970-01-01T01:00:00+01:00'
    """
    moment = from_us(fire_us)
    if text.endswith("}}"):
        return moment
    try:
        return moment.astimezone(zone(text.rpartition(_MARK)[2][:-2]).tz)
    except InvalidTrigger:
        return moment  # the same instant; the job matters more than the zone it is told in
