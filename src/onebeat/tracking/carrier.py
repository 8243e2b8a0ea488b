"""Carries the tracking context from the enqueuing code to the job's row and back: ContextCarrier."""

from __future__ import annotations

from types import TracebackType

from onebeat.model.protocols import Unit
from onebeat.tracking import notices, payload
from onebeat.tracking.context import VARIABLE, Cell, Origin, Tracking, leave
from onebeat.tracking.ids import is_valid, new_id


class ContextCarrier:
    """The `Carrier` of the engine: same tracking id in request and job, each with a unit id of its own.

    >>> carrier = ContextCarrier()
    >>> id, carried = carrier.capture()  # outside any unit: a new id, made now, so that the enqueue record has it
    >>> with carrier.restore(id, carried, Unit(kind="job", id="j1", task="greet", attempt=1)):
    ...     VARIABLE.get().identity()["tracking_id"] == id
    True
    """

    def capture(self) -> tuple[str, str | None]:
        """The tracking id to store, made anew outside any unit, and at most 8 KiB of JSON text carried along.

        Raises `InvalidArguments` when the propagated context variables do not fit.
        """
        unit = VARIABLE.get()
        return new_id() if unit is None else unit.tracking_id, payload.write(unit)

    def new_id(self) -> str:
        """A fresh tracking id, for a scheduled fire."""
        return new_id()

    def restore(self, tracking_id: str, carried: str | None, unit: Unit) -> Restored:
        """Enter the job's own context; both texts come from a database and are checked again."""
        return Restored(tracking_id, carried, unit)


class Restored:
    """The context of a job, in force for as long as the `with` block runs."""

    __slots__ = ("_carried", "_id", "_token", "_tokens", "_tracking", "_unit")

    def __init__(self, tracking_id: str, carried: str | None, unit: Unit) -> None:
        self._id = tracking_id
        self._carried = carried
        self._unit = unit

    def __enter__(self) -> None:
        id, unit = self._id, self._unit
        origin: Origin = "job"
        if not is_valid(id):
            notices.refused("the stored tracking id of a job", str(id))
            id, origin = new_id(), "generated"
        arrived = payload.read_payload(self._carried)
        self._tracking = Tracking(
            tracking_id=id,
            kind=unit.kind,
            unit_id=unit.id,
            cell=Cell.holding(arrived.fields),
            parent_id=arrived.parent_id,
            origin=origin,
            trace=arrived.trace,
            job=unit,
        )
        self._tokens = payload.set_variables(arrived.variables)
        self._token = VARIABLE.set(self._tracking)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            leave(self._tracking, self._token, error)
        finally:
            payload.reset_variables(self._tokens)
