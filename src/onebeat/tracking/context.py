"""The tracking context: one context variable with one immutable value, whose id follows a request everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple

from onebeat.concurrency.forks import ForkSafeLock
from onebeat.model.protocols import Unit
from onebeat.tracking import notices
from onebeat.tracking.ids import is_valid, new_id, new_unit_id
from onebeat.tracking.otel import active_span
from onebeat.tracking.traceparent import Trace

Origin = Literal["generated", "header", "traceparent", "job", "given", "parent"]
_TAG = "__onebeat_tracking__"
_NONE: Mapping[str, Any] = MappingProxyType({})
_binding = ForkSafeLock()


class Cell:
    """What changes while a unit runs, shared by all who hold its value: the user's fields, and whether it has ended.

    The class holds what a new one begins with, so that a request makes one without running any code.
    """

    fields: Mapping[str, Any] = _NONE  # replaced as a whole, never changed in place
    closed: bool = False
    span: Trace | None = None  # the OpenTelemetry span of a request, for records written after it ended
    memo: Any = None  # for who renders the fields; emptied whenever they change

    @classmethod
    def holding(cls, fields: Mapping[str, Any]) -> Cell:
        """A new one that begins with these fields."""
        cell = cls()
        cell.fields = fields
        return cell

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, ()  # an exception that remembers its unit may go to another process; the user's objects do not


class Tracking(NamedTuple):
    """What is being run and under which id: the one value in the context variable.

    `tracking_id` may come from a client or an enqueuing request. `unit_id` is always made here (16 hex digits; a job's
    is the job id), `parent_id` is the unit that caused this one. `kind`: `request`, `websocket`, `job`, `task`, …
    `origin` says where the tracking id came from. `client_id` is the id of a client that is not trusted with ours.
    """

    tracking_id: str
    kind: str
    unit_id: str
    cell: Cell
    parent_id: str | None = None
    origin: Origin = "generated"
    trace: Trace | None = None
    client_id: str | None = None
    job: Unit | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """What `bind` and `tracking(**fields)` said about this unit."""
        return self.cell.fields

    @property
    def closed(self) -> bool:
        """Whether the unit has ended; tasks it left behind still see it."""
        return self.cell.closed

    def identity(self) -> dict[str, str | int | bool]:
        """The library's own fields of a log record; what is not known is absent. The user's are in `fields`.

        The active OpenTelemetry span, if there is one, gives `trace_id` and `span_id`.
        """
        span = active_span() or self.cell.span
        known = span or self.trace
        found: dict[str, str | int | bool | None] = {
            "tracking_id": self.tracking_id,
            "unit": self.kind,
            "unit_id": self.unit_id,
            "parent_id": self.parent_id,
            "client_id": self.client_id,
            "trace_id": None if known is None else known.trace_id,
            "span_id": None if span is None else span.span_id,
        }
        if (job := self.job) is not None:
            found["job_id"] = job.id if job.kind == "job" else None
            found.update(task=job.task, attempt=job.attempt, queue=job.queue)
            found.update(schedule_id=job.schedule_id, fire_time=job.fire_time)
        if self.cell.closed:
            found["unit_closed"] = True
        return {name: value for name, value in found.items() if value is not None}


VARIABLE: ContextVar[Tracking | None] = ContextVar("onebeat_tracking", default=None)
"""The context variable. Read it with `current()`; only this package writes it."""


def current() -> Tracking | None:
    """What is running here, or None outside any unit.

    >>> with tracking("import-2026"):
    ...     current().identity()["tracking_id"]
    'import-2026'
    """
    return VARIABLE.get()


def tracking_id() -> str | None:
    """The tracking id in force, or None outside any unit.

    >>> with tracking("import-2026"):
    ...     tracking_id()
    'import-2026'
    >>> tracking_id() is None
    True
    """
    found = VARIABLE.get()
    return None if found is None else found.tracking_id


def trace() -> Trace | None:
    """The trace in force: of the active OpenTelemetry span, else of the request or job; None if there is none."""
    found = VARIABLE.get()
    return active_span() or (None if found is None else found.cell.span or found.trace)


def bind(**fields: Any) -> None:
    """Add fields to every record of the rest of this unit, seen by everything that runs in it, outer layers included.

    Outside any unit it does nothing.

    >>> with tracking(step="load") as unit:
    ...     bind(rows=3)
    ...     dict(unit.fields)
    {'step': 'load', 'rows': 3}
    """
    found = VARIABLE.get()
    if found is None:
        return
    with _binding:  # two threads of one unit may bind at once
        found.cell.fields = MappingProxyType({**found.cell.fields, **fields})
        found.cell.memo = None


class tracking:
    """Open a unit by hand, in scripts, consumers and tests: `with tracking(id) as unit:`, also `async with`.

    Without `id` it keeps the tracking id in force, or makes a new one outside any unit. An id that breaks the rule (see
    `ids.is_valid`) is replaced by a new one and counted, since it may come from a message. Fields go on every record.
    One object opens one unit at a time, once.

    >>> with tracking(customer=7) as unit:
    ...     unit.kind, tracking_id() == unit.tracking_id, dict(unit.fields)
    ('task', True, {'customer': 7})
    """

    __slots__ = ("_fields", "_id", "_token", "_unit")

    def __init__(self, id: str | None = None, **fields: Any) -> None:
        self._id = id
        self._fields = fields
        self._token: Token[Tracking | None] | None = None
        self._unit: Tracking | None = None

    def __enter__(self) -> Tracking:
        outer = VARIABLE.get()
        fields = {**outer.fields, **self._fields} if outer is not None else dict(self._fields)
        id, origin = self._chosen(outer)
        self._unit = Tracking(
            tracking_id=id,
            kind="task",
            unit_id=new_unit_id(),
            parent_id=None if outer is None else outer.unit_id,
            origin=origin,
            trace=None if outer is None or outer.tracking_id != id else outer.trace,
            cell=Cell.holding(MappingProxyType(fields)),
            job=None if outer is None else outer.job,
        )
        self._token = VARIABLE.set(self._unit)
        return self._unit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        unit, token = self._unit, self._token
        if unit is None or token is None:
            return
        self._unit = self._token = None
        leave(unit, token, error)

    async def __aenter__(self) -> Tracking:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, at)

    def _chosen(self, outer: Tracking | None) -> tuple[str, Origin]:
        if self._id is not None:
            if is_valid(self._id):
                return self._id, "given"
            notices.refused("an id given to tracking()", self._id)
            return new_id(), "generated"
        return (new_id(), "generated") if outer is None else (outer.tracking_id, "parent")


def leave(unit: Tracking, token: Token[Tracking | None], error: BaseException | None = None) -> None:
    """End a unit: its error keeps the id, the context gets back what it had, and the unit is closed."""
    if error is not None:
        tag(error, unit)
    try:
        VARIABLE.reset(token)
    except ValueError:  # left in another context than it was entered in: that one keeps nothing of ours
        pass
    unit.cell.closed = True
    unit.cell.memo = None


def tag(error: BaseException, unit: Tracking) -> None:
    """Let an exception remember the unit it left, for records written after that unit; the innermost one stays.

    Beside it stands the outermost so far: an exception that comes out of an unrelated unit has been raised again, such
    as the outcome of a future that several requests await, and belongs to that one.
    """
    try:
        left = getattr(error, _TAG, None)
        inner = unit
        if left is not None and (left[1].tracking_id == unit.tracking_id or left[1].parent_id == unit.unit_id):
            inner = left[0]
        setattr(error, _TAG, (inner, unit))
    except Exception:  # noqa: BLE001 - a class that forbids attributes, or a property that raises: it stays untagged
        return


def tracking_of(error: BaseException | None) -> Tracking | None:
    """The unit an exception left, if it left one.

    >>> try:
    ...     with tracking("order-7"):
    ...         raise ValueError
    ... except ValueError as error:
    ...     tracking_of(error).tracking_id
    'order-7'
    """
    try:
        found = getattr(error, _TAG, None)
    except Exception:  # noqa: BLE001 - a __getattr__ that raises
        return None
    return found[0] if isinstance(found, tuple) and found and isinstance(found[0], Tracking) else None
