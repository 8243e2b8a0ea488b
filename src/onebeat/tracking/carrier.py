"""Carries the tracking context from the enqueuing code to the job's row and back: ContextCarrier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

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

    @contextmanager
    def restore(self, tracking_id: str, carried: str | None, unit: Unit) -> Iterator[None]:
        """Enter the job's own context; both texts come from a database and are checked again."""
        origin: Origin = "job"
        if not is_valid(tracking_id):
            notices.refused("the stored tracking id of a job", str(tracking_id))
            tracking_id, origin = new_id(), "generated"
        arrived = payload.read_payload(carried)
        value = Tracking(
            tracking_id=tracking_id,
            kind=unit.kind,
            unit_id=unit.id,
            cell=Cell.holding(MappingProxyType(dict(arrived.fields))),
            parent_id=arrived.parent_id,
            origin=origin,
            trace=arrived.trace,
            job=unit,
        )
        tokens = payload.set_variables(arrived.variables)
        token = VARIABLE.set(value)
        try:
            yield
        except BaseException as error:
            leave(value, token, error)
            raise
        else:
            leave(value, token)
        finally:
            payload.reset_variables(tokens)
