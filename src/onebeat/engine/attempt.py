"""One attempt at work: the function, its limits of time, and how it was asked to stop."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from types import CoroutineType
from typing import Any, Literal, Protocol, TypeVar, cast

from onebeat.engine.dependencies import DependencyResolver
from onebeat.engine.time_limit import Limited
from onebeat.errors import Busy, InvalidArguments, JobCancelled, LeaseLost, RemoteError, Stopped
from onebeat.logs.redact import without_secrets
from onebeat.model import payload
from onebeat.model.job import SUCCESS, Claimed, Ending, JobState, Outcome, Settlement, stored_retry
from onebeat.model.protocols import Runner, Running
from onebeat.offload.limits import within
from onebeat.offload.pool.calls import RaisedInThread
from onebeat.store.jobs.settle import Ended
from onebeat.tasks.context import JobContext, current
from onebeat.tasks.task import Task
from onebeat.timing.backoff import Cancel, Retry, Snooze

R = TypeVar("R")
NO_TASK_RETRY = Retry()
StopReason = Literal["cancel", "drain", "lost"]
StopCause = Literal["timeout", "cancel"]
CLEAN_UP = 10.0  # seconds that the dependencies of a run have for their own clean-up
CLEAN_UP_LATE = f"the clean-up of its dependencies took longer than {CLEAN_UP:g} s"
PATIENCE = 5.0  # seconds for the clean-up of a run that was told to end, as at the end of a drain
MAX_ERROR = 2_000  # characters of an error's text kept on the row
MAX_READ = 1_000_000  # characters of a text that are searched for secrets
MAX_TRACEBACK = 16_384  # characters of a traceback kept with the attempt


class RunObserver(Protocol):
    """What a run tells while it goes on: the executor."""

    def overran(self, run: Run) -> None:
        """A thread runs past its timeout."""

    def stop_ignored(self, run: Run, cause: StopCause, seconds: float) -> None:
        """The run was told to end `seconds` ago and goes on."""

    def dropped(self, run: Run, problem: str) -> None:
        """What the function returned cannot be stored."""


class Run:
    """One attempt of one claimed job, in an asyncio task of its own."""

    __slots__ = (
        "_awaiting",
        "_observer",
        "_patience",
        "_resolver",
        "_runner",
        "_running",
        "_timed_out",
        "context",
        "job",
        "replaced",
        "retry",
        "started",
        "stop_reason",
        "task",
        "timeout",
        "unstoppable",
    )

    def __init__(
        self,
        job: Claimed,
        task: Task[Any, Any] | None,
        context: JobContext,
        *,
        retry: Retry,
        started: float,
        timeout: float,
        runner: Runner | None,
        observer: RunObserver,
        resolver: DependencyResolver,
    ) -> None:
        self.job = job
        self.task = task
        self.context = context
        self.retry = retry
        self.timeout = timeout
        self.started = started  # monotonic seconds
        self.stop_reason: StopReason | None = None
        self.unstoppable = False  # a thread that was asked and goes on
        self._runner = runner
        self._running: Running | None = None
        self._awaiting: asyncio.Task[Any] | None = None
        self._timed_out = False
        self.replaced = False  # its job has ended without it
        self._patience: asyncio.TimerHandle | None = None  # until a run that was told to end is said to go on
        self._observer = observer
        self._resolver = resolver

    def stop(self, reason: StopReason) -> None:
        """Ask the attempt to end. Once is enough; a lost lease outranks the other reasons."""
        if self.stop_reason is None or reason == "lost":
            self.stop_reason = reason
        self.context._ask_to_stop(lost=reason == "lost")
        if self._running is not None:
            self.unstoppable = not self._running.stop(reason)
        elif self._awaiting is not None:
            self._awaiting.cancel()
        if reason == "cancel":
            self._expect_end("cancel")

    def _expect_end(self, cause: StopCause) -> None:
        """Say so if this run still goes on a while after it was told to end."""
        if self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(PATIENCE, self._observer.stop_ignored, self, cause, PATIENCE)

    def over(self) -> None:
        """It has ended: nothing more is to be said about it."""
        if self._patience is not None:
            self._patience.cancel()

    async def outcome(self) -> Outcome:
        """Run the function to its end and return how it ended, whatever it raises."""
        current.set(self.context)
        if self.task is None:
            return Outcome(ending=Ending.RETURNED)
        try:
            args, kwargs = self.task.signature.unpack(self.job.args)
        except InvalidArguments as error:
            return Outcome(ending=Ending.UNDECODABLE, error=shown(str(error)), exception=error)
        except BaseException as error:  # noqa: BLE001 - a validator of the task's own may raise anything
            words = f"the stored arguments cannot be read: {type(error).__name__}: {error}"
            return Outcome(ending=Ending.UNDECODABLE, error=shown(words), exception=error)
        name = self.task.signature.context_parameter
        if name is not None:
            kwargs[name] = self.context
        try:
            if self.task.signature.dependencies:
                return await self._with_dependencies(self.task, args, kwargs)
            if self._runner is None:
                value = await self._on_the_loop(self.task.function, args, kwargs)
            else:
                value = await self._off_the_loop(self._runner, self.task.function, args, kwargs, self.timeout)
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt too: raised here it would end the event loop
            return self._from(error)
        return self._success(value)

    async def _with_dependencies(self, task: Task[Any, Any], args: Any, kwargs: Any) -> Outcome:
        """Run the function with what it depends on, and close that also when the run fails or is told to end.

        Nothing that tells a run to end reaches the clean-up, which has `CLEAN_UP` seconds of its own.
        """
        loop, me = asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())
        failure: BaseException | None = None
        broken_off: asyncio.TimerHandle | None = None
        outcome = SUCCESS
        try:
            async with AsyncExitStack() as outer, AsyncExitStack() as inner:
                resolve = partial(self._resolver.resolve, task.signature.dependencies, self.context, (outer, inner))
                try:
                    if self._runner is None:
                        value = await self._on_the_loop(_resolve_and_call, (resolve, task.function, args, kwargs), {})
                    else:
                        kwargs |= await self._on_the_loop(resolve, (), {})
                        left = max(0.0, self.context.remaining or 0.0)
                        value = await self._off_the_loop(self._runner, task.function, args, kwargs, left)
                    outcome = self._success(value)  # now: what it returned may need an open session
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    broken_off = loop.call_later(CLEAN_UP, me.cancel, CLEAN_UP_LATE)
        except asyncio.CancelledError as error:
            if error.args == (CLEAN_UP_LATE,):
                raise TimeoutError(CLEAN_UP_LATE) from failure
            raise
        finally:
            if broken_off is not None:
                broken_off.cancel()
        if failure is not None:  # a dependency kept the error to itself, and yet nothing was done
            raise failure
        return outcome

    async def _on_the_loop(self, function: Any, args: Any, kwargs: Any) -> Any:
        self._awaiting = asyncio.current_task()
        if self.stop_reason is not None:
            raise asyncio.CancelledError
        try:
            value = function(*args, **kwargs)
            if not hasattr(value, "__await__"):
                return value
            return await Limited(_coroutine(value), self._start_timer)
        finally:
            self._awaiting = None

    def _start_timer(self) -> asyncio.TimerHandle:
        left = self.context.remaining
        return asyncio.get_running_loop().call_later(self.timeout if left is None else left, self._expire)

    def _expire(self) -> None:
        if self._awaiting is not None:
            self._timed_out = True
            self.context._ask_to_stop()
            self._awaiting.cancel()
            self._expect_end("timeout")

    async def _off_the_loop(self, runner: Runner, function: Any, args: Any, kwargs: Any, seconds: float) -> Any:
        with within(seconds) as limit:  # what `remaining()` and `checkpoint()` of `onebeat.offload` know
            self._running = runner.start(function, *args, **kwargs)
        future = self._running.future
        if self.stop_reason is not None:
            self.stop(self.stop_reason)
        await asyncio.wait({future}, timeout=seconds)
        if not future.done():
            self.context._ask_to_stop()
            if not self._running.stop("timeout"):
                self.unstoppable = True
                self._observer.overran(self)
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # it came too late to count, and must not be reported as never retrieved
        elif self.stop_reason is not None or not limit.expired or not isinstance(future.exception(), Stopped):
            return future.result()  # else it left at a `checkpoint()` just before this loop's own timer
        self._timed_out = True
        raise TimeoutError

    def _success(self, value: Any) -> Outcome:
        text = stored_value(value, partial(self._observer.dropped, self))
        return SUCCESS if text is None else Outcome(ending=Ending.SUCCEEDED, value=text)

    def _from(self, error: BaseException) -> Outcome:
        """The outcome of an attempt that raised."""
        error = _raised(error)
        if self.stop_reason is not None and not isinstance(error, Exception):
            return self._stopped()
        if self.stop_reason == "lost" or (isinstance(error, LeaseLost) and self.context._left):
            return Outcome(ending=Ending.LOST)
        if self.stop_reason == "drain" and self._runner is None:
            return self._stopped()  # what its clean-up raised is not the job's error
        if isinstance(error, JobCancelled | Stopped) and self.stop_reason is not None:
            return self._stopped()
        if self.stop_reason is not None and self._running is not None and not self.unstoppable:
            return self._stopped()  # a process that was ended
        if isinstance(error, Busy) and self._runner is not None and self._running is None:
            return Outcome(ending=Ending.RETURNED)  # the last free process went to another worker of this server
        if isinstance(error, Snooze):
            words = "Snooze: a task that starts at most once cannot be tried again" if self.job.at_most_once else None
            return Outcome(ending=Ending.SNOOZED, delay=error.delay_us, error=words)
        if isinstance(error, Cancel):
            return Outcome(ending=Ending.CANCELLED, reason=shown(str(error.reason or "by the task"), 64))
        words = shown(_words(error))
        trace = shown("".join(traceback.format_exception(error)), MAX_TRACEBACK)
        if self._timed_out:
            late = TimeoutError(f"ran longer than its timeout of {self.timeout:g} s")
            return Outcome(
                ending=Ending.TIMEOUT,
                error=f"TimeoutError: {late}",
                traceback=trace,
                retryable=self.retry.wants(late),
                exception=late.with_traceback(error.__traceback__),
            )
        return Outcome(
            ending=Ending.ERROR, error=words, traceback=trace, retryable=self.retry.wants(error), exception=error
        )

    def _stopped(self) -> Outcome:
        if self.stop_reason == "drain":
            return Outcome(ending=Ending.DRAINED)
        if self.stop_reason == "lost":
            return Outcome(ending=Ending.LOST)
        return Outcome(ending=Ending.CANCELLED, reason="requested")


def _coroutine(value: Awaitable[R]) -> Coroutine[Any, Any, R]:
    return value if isinstance(value, CoroutineType) else _awaited(value)


async def _awaited(value: Awaitable[R]) -> R:
    return await value


def stored_value(value: Any, dropped: Callable[[str], None]) -> str | None:
    """Return the text of a job's value; one that cannot be stored is None, and `dropped` hears why."""
    if value is None:
        return None
    try:
        return payload.encode(payload.plain(value), what="the value")
    except InvalidArguments as error:
        dropped(shown(str(error)))
    except BaseException as error:  # noqa: BLE001 - a model's own property or serializer may raise anything
        dropped(shown(f"{type(error).__name__}: {error}"))
    return None


async def _resolve_and_call(resolve: Any, function: Any, args: Any, kwargs: Any) -> Any:
    value = function(*args, **kwargs, **await resolve())
    return await value if hasattr(value, "__await__") else value


def _raised(error: BaseException) -> BaseException:
    """The exception that the function raised, where a thread or a coroutine had to wrap it in a `RuntimeError`."""
    cause = error.__cause__
    if cause is None:
        return error
    if isinstance(error, RaisedInThread):
        return cause
    if isinstance(cause, StopIteration) and error.args == ("coroutine raised StopIteration",):
        return cause
    return error


def _words(error: BaseException) -> str:
    """The class and the message of an error, also of one that a child process could only describe."""
    if isinstance(error, RemoteError) and error.type_name:
        return str(error).removeprefix(error.type_name.rpartition(".")[0] + ".").removesuffix(": ")
    if isinstance(error, asyncio.CancelledError) and not str(error):
        return "CancelledError: the function's own await was cancelled"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def replacement(run: Run, cause: StopCause) -> Ended:
    """The end of a job whose run was told to end and goes on: it fails, or is cancelled as somebody asked."""
    job = run.job
    if cause == "cancel":
        settlement = Settlement(
            state=JobState.CANCELLED, reason="requested", errors=job.errors, crashes=job.crashes
        )  # fmt: skip
        return Ended(job, Outcome(ending=Ending.CANCELLED), settlement)
    error = f"TimeoutError: ran longer than its timeout of {run.timeout:g} s and goes on; replaced"
    settlement = Settlement(state=JobState.FAILED, reason="replaced", errors=job.errors + 1, crashes=job.crashes)
    return Ended(job, Outcome(ending=Ending.TIMEOUT, error=error), settlement)


def retry_in_force(task: Task[Any, Any] | None, job: Claimed) -> Retry:
    """The row's numbers with the code's exception classes; the code's own where the row has none that can be read."""
    own = task.settings.retry if task is not None else NO_TASK_RETRY
    if job.retry is None:
        return own
    return replace(stored_retry(job.retry, own), on=own.on, give_up_on=own.give_up_on)


def shown(text: str, length: int = MAX_ERROR) -> str:
    """`text` as it may be stored and logged: without secrets, its middle left out when it is longer than `length`.

    Lone surrogates are made visible. Of a text beyond `MAX_READ` characters the end is left out before.
    """
    text = without_secrets(text[:MAX_READ])
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
    if len(text) <= length:
        return text
    half = (length - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
