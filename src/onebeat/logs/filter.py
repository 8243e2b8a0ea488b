"""`TrackingFilter`: it puts the tracking id on every record, for handlers and formatters of other libraries."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from onebeat.tracking.context import Tracking, current, tracking_of
from onebeat.tracking.ids import is_valid

SERVERS = ("uvicorn", "gunicorn", "hypercorn")


class Noted(str):
    """A record's tracking id that knows its unit; a plain text for everyone else, also when copied or pickled.

    An attribute of the record would be a field to other people's JSON handlers, and one that is no JSON.
    """

    __slots__ = ("unit",)
    unit: Tracking | None

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def noted(unit: Tracking | None, missing: str = "-") -> Noted:
    """What a record has as `tracking_id`, so that onebeat's own handler knows the unit, also behind another's queue."""
    note = Noted(missing if unit is None else unit.tracking_id)
    note.unit = unit
    return note


class TrackingFilter(logging.Filter):
    """Gives each record `tracking_id`, for formats such as `"%(tracking_id)s %(message)s"`; `missing` outside any unit.

    >>> record = logging.makeLogRecord({})
    >>> TrackingFilter().filter(record), record.tracking_id
    (True, '-')
    """

    def __init__(self, missing: str = "-") -> None:
        super().__init__()
        self._missing = missing

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: it adds, and drops nothing."""
        record.tracking_id = noted(unit_of(record), self._missing)
        return True


def unit_of(record: logging.LogRecord) -> Tracking | None:
    """The unit a record belongs to.

    An exception remembers the unit it left, so a server's traceback belongs to its request. Without an exception, what
    a server says after a request has ended is not about that request, even where its context still holds it.
    """
    note = record.__dict__.get("tracking_id")
    if type(note) is Noted:
        return note.unit
    unit = current()
    if unit is not None and not unit.cell.closed:
        return unit
    return _after_the_unit(record, unit)


def arrived_id(record: logging.LogRecord) -> str | None:
    """The tracking id of a record that a `TrackingFilter` marked in another process; there it has become plain text."""
    attributes = record.__dict__
    note = attributes.get("tracking_id")
    if type(note) is str and attributes.get("process") not in (None, os.getpid()) and note != "-" and is_valid(note):
        return note
    return None


def _after_the_unit(record: logging.LogRecord, unit: Tracking | None) -> Tracking | None:
    info = record.exc_info
    if info:
        error = info[1] if isinstance(info, tuple) and len(info) == 3 else sys.exc_info()[1]
        return tracking_of(error) or unit
    if unit is not None and str(record.name).startswith(SERVERS):
        return None
    return unit
