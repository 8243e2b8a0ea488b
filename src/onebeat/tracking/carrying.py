"""Carrying the context by hand: to threads of other libraries, to process pools, to child processes."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, update_wrapper
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from onebeat.errors import ConfigurationError
from onebeat.model.protocols import Unit
from onebeat.tracking import payload
from onebeat.tracking.context import VARIABLE, Cell, Tracking, leave
from onebeat.tracking.ids import is_valid

P = ParamSpec("P")
R = TypeVar("R")


class Carried(Generic[P, R]):
    """A function bound to the context in which `carry` was called; it can be called often, anywhere, also at once.

    Pickled for a process pool it takes the tracking id and the propagated variables along, at most 8 KiB.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        update_wrapper(self, function)  # first: it takes over the attributes of a callable object, whatever their names
        self._function = function
        self._context = contextvars.copy_context()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._context.copy().run(self._function, *args, **kwargs)  # one context runs one call at a time

    def __reduce__(self) -> tuple[Any, ...]:
        return Arrived, (self._function, self._context.copy().run(pack))


class Arrived:
    """What a `Carried` function is in another process."""

    def __init__(self, function: Callable[..., Any], packed: str | None) -> None:
        self._function = function
        self._packed = packed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with unpacked(self._packed):
            return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Arrived, (self._function, self._packed)


def carry(function: Callable[P, R], /) -> Callable[P, R]:
    """The function, bound to the present context: every context variable in threads, the tracking id in processes.

    A coroutine function stays one, so that whoever is given it awaits it. asyncio tasks, `asyncio.to_thread`,
    `onebeat.offload` and sync routes need no help; `run_in_executor`, `threading.Thread`, `Timer`, and pools of other
    libraries do. Raises `ConfigurationError` for a generator function, whose body runs where it is iterated.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from onebeat.tracking import tracking, tracking_id
    >>> with ThreadPoolExecutor() as pool, tracking("order-7"):
    ...     pool.submit(tracking_id).result(), pool.submit(carry(tracking_id)).result()
    (None, 'order-7')
    """
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return cast(Callable[P, R], _carried_coroutine(function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"carry() cannot carry the generator function {function.__name__}: its body runs where it is iterated; "
            "carry the function that iterates it"
        )
    return Carried(function)


class ContextThreadPoolExecutor(ThreadPoolExecutor):
    """A `ThreadPoolExecutor` whose calls run in the context of their `submit`.

    >>> from onebeat.tracking import tracking, tracking_id
    >>> with ContextThreadPoolExecutor() as pool, tracking("order-7"):
    ...     pool.submit(tracking_id).result()
    'order-7'
    """

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return super().submit(contextvars.copy_context().run, partial(function, *args, **kwargs))


def pack() -> str | None:
    """The present context's share of what a child process needs, as JSON text of at most 8 KiB; None if there is none.

    Raises `InvalidArguments` when the propagated variables do not fit.
    """
    unit = VARIABLE.get()
    if unit is None:
        return payload.write(None)
    job = unit.job
    own: dict[str, Any] = {"id": unit.tracking_id, "kind": unit.kind, "unit": unit.unit_id, "above": unit.parent_id}
    if job is not None:
        own["job"] = [job.id, job.task, job.attempt, job.queue, job.schedule_id, job.fire_time]
    return payload.write(unit, own=own)


class unpacked:
    """Set in a child process what `pack` gave in the parent: the same unit, for the duration of one call.

    >>> from onebeat.tracking import tracking, tracking_id
    >>> with tracking("order-7"):
    ...     packed = pack()
    >>> with unpacked(packed):
    ...     tracking_id()
    'order-7'

    A class, because a context manager made of a generator sets `__traceback__` on the exception, which may refuse that.
    """

    def __init__(self, packed: str | None) -> None:
        self._packed = packed

    def __enter__(self) -> None:
        if self._packed is None:
            return
        arrived = payload.read_payload(self._packed)
        self._variables = payload.set_variables(arrived.variables)
        self._unit = _same_unit(arrived)
        self._token = VARIABLE.set(self._unit)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._packed is None:
            return
        try:
            if self._unit is not None:
                leave(self._unit, self._token, error)
        finally:
            payload.reset_variables(self._variables)


def _same_unit(arrived: payload.Payload) -> Tracking | None:
    own = arrived.own
    if not is_valid(own.get("id")) or not is_valid(own.get("unit")):
        return None
    job = own.get("job")
    return Tracking(
        tracking_id=own["id"],
        kind=str(own.get("kind")),
        unit_id=own["unit"],
        cell=Cell.holding(arrived.fields),
        parent_id=own["above"] if is_valid(own.get("above")) else None,
        origin="parent",
        trace=arrived.trace,
        job=_job(str(own.get("kind")), *job) if isinstance(job, list) and len(job) == 6 else None,
    )


def _job(
    kind: str,
    id: str,
    task: str | None,
    attempt: int | None,
    queue: str | None,
    schedule_id: str | None,
    fire_time: str | None,
) -> Unit:
    return Unit(kind=kind, id=id, task=task, attempt=attempt, queue=queue, schedule_id=schedule_id, fire_time=fire_time)


def _carried_coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    context = contextvars.copy_context()

    async def carried(*args: Any, **kwargs: Any) -> Any:
        own = context.copy()
        return await asyncio.get_running_loop().create_task(own.run(function, *args, **kwargs), context=own)

    return cast(Callable[..., Any], update_wrapper(carried, function))
