"""Configure the offload pools of this process, and close them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.offload.child.messages import initializer_bytes
from onebeat.offload.pool.calls import Held, deferred_kind, log, name_of
from onebeat.offload.pool.lanes import all_lanes
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.pool.process_quota import PROCESSORS
from onebeat.offload.processes import close_processes, default_lane, default_settings, set_process_settings
from onebeat.offload.threads import DEFAULT_LANE, run_on_own_thread


def setup_offload(
    *,
    threads: int = 16,
    processes: int | None = None,
    queue: int = 256,
    recycle: int | None = None,
    preload: Sequence[str] = (),
    warm: bool = False,
    start: Literal["auto", "spawn"] = "auto",
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> None:
    """Set what `to_thread` and `to_process` use in this process.

    Call it before the first `to_process` and before the scheduler starts.

    `threads`: width of the default lane. `processes`: how many children this process may have for `to_process`, and
    as many again for jobs with ``run_in="process"``. None: one for each of both; all further ones, as many as
    processors less one, are shared with the other workers of the server. `queue`: calls that may wait for `to_thread`
    or `to_process`. `recycle`: a child is replaced after so many calls. `preload`: modules that are imported once,
    before children are forked; they must not start threads. `warm=True`: start the children now instead of on first
    use; call it in the application's lifespan then. `start="spawn"`: start each child as a new interpreter instead
    of a fork of the fork server; outside Linux that is always so. `initializer`: a function that each child calls with
    `initargs` before its first call, for example to open a connection or to load a model; it is found by name, as a
    call's function is. While it fails, calls in that child fail with `RemoteError`, and each of them tries it again.

    Raises `ConfigurationError` when it is called too late, a number is below 1, or a child cannot receive the
    initializer.

    >>> setup_offload(threads=32, processes=2, recycle=1000)
    >>> setup_offload()
    """
    for name, value in (("threads", threads), ("processes", processes), ("recycle", recycle)):
        if value is not None and value < 1:
            raise ConfigurationError(f"setup_offload({name}={value}): {name} must be at least 1")
    if queue < 0:
        raise ConfigurationError(f"setup_offload(queue={queue}): queue must be at least 0")
    settings = default_settings(processes)
    settings |= {"queue": queue, "recycle": recycle, "preload": tuple(preload)}
    if initializer is not None:
        settings["initializer"] = _checked_initializer(initializer, initargs)
    elif initargs:
        raise ConfigurationError("setup_offload(initargs=…) are the arguments of initializer=, which is missing")
    if start == "spawn":
        settings["spawn"] = True
    set_process_settings(settings)
    DEFAULT_LANE.width, DEFAULT_LANE.queue = threads, queue
    log.info("threads: at most %d here; child processes: %s", threads, describe_processes(processes))
    if warm:
        default_lane().start_children()


def _checked_initializer(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> bytes:
    if not callable(initializer):
        raise ConfigurationError(f"setup_offload(initializer={initializer!r:.80}) takes a function of a module")
    if (kind := deferred_kind(initializer)) is not None:
        raise ConfigurationError(f"setup_offload(initializer={name_of(initializer)}): it is {kind}, give a plain one")
    return initializer_bytes(initializer, tuple(initargs))


def describe_processes(processes: int | None) -> str:
    """Return a text for the log that says how many children there can be over all workers of a server.

    >>> describe_processes(3)
    'at most 3 for to_process and 3 for jobs, in each worker of this server'
    """
    if processes is not None:
        return f"at most {processes} for to_process and {processes} for jobs, in each worker of this server"
    return (
        f"one for to_process and one for jobs, in each worker of this server, and {PROCESSORS - 1} more for all of them"
    )


async def close_offload(timeout: float | timedelta = 5.0) -> list[Held]:
    """Wait at most `timeout` for the calls on open lanes, then end the child processes of `to_process`.

    Calls that do not end are logged and returned; their threads are daemons and delay nothing. A later call starts
    new threads and children.

    >>> asyncio.run(close_offload())
    []
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + (timeout.total_seconds() if isinstance(timeout, timedelta) else timeout)
    left: list[Held] = []
    for lane in all_lanes():
        if not isinstance(lane, ProcessLane) and not lane.closed:
            left += await lane.drain(max(0.0, until - loop.time()))
    for held in left:
        log.warning("%s still runs after %.1f s and is abandoned, now at:\n%s", held.function, held.seconds, held.stack)
    await run_on_own_thread(close_processes)
    return left
