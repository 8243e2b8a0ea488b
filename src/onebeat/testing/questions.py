"""What a test asks of a simulated scheduler: the time, the fires, the jobs; and how it breaks a worker."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from onebeat.model.info import Fire, JobInfo
from onebeat.model.protocols import Clock
from onebeat.store import reports
from onebeat.store.schedules import read
from onebeat.tasks.task import Task
from onebeat.testing.expectations import describe_call, expected_arguments, fits, stored_arguments
from onebeat.testing.simulation import Simulation
from onebeat.timing.clock import from_us

SHOWN = 10  # jobs that a failed assertion lists


class Questions:
    """The methods that need no event loop; `TestScheduler` and `SyncTestScheduler` have them all."""

    __test__ = False  # not a class of tests, whatever pytest makes of its subclasses' names

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._scheduler = simulation.scheduler
        self._zone = ZoneInfo(self._scheduler.settings.timezone)

    # ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def now(self) -> datetime:
        """Return the virtual time, aware, in the time zone of the scheduler's settings."""
        return from_us(self.clock.now(), self._zone)

    @property
    def clock(self) -> Clock:
        """Return the clock of the simulation, for code of yours that takes a clock."""
        return self._simulation.time

    @property
    def workers(self) -> tuple[int, ...]:
        """Return the numbers of the workers that are left; the first one was 0."""
        return tuple(self._simulation.runtime.workers)

    def fired(self, id: str, *, decision: str | None = None) -> list[Fire]:
        """Return what became of each due instant of a schedule, in order of time; `decision` keeps one kind.

        Most are `started`. Others made no job, such as `skipped_overlap`, `coalesced`, `misfired` and `gap`.
        Raises `ScheduleNotFound` where there is neither a fire nor such a schedule.
        """
        fires = self._simulation.read(reports.fires_in_order, id, decision)
        if not fires:
            self._simulation.read(read.get, id)
        return fires

    def enqueued(self, task: Task[Any, Any] | str, /, *args: Any, **kwargs: Any) -> list[JobInfo]:
        """Return the jobs of a task, oldest first, whatever became of them: those with these arguments, or all.

        Arguments that are not given may have any value. The jobs of schedules are among them.
        Raises `UnknownTask`, and `InvalidArguments` for a parameter that the task does not have.
        """
        known, expected = self._expected(task, args, kwargs)
        stored = self._simulation.read(reports.jobs_with_arguments, known.name)
        jobs = [info for info, text in stored if fits(stored_arguments(known, text), expected)]
        return [info.bound(self._scheduler.jobs) for info in jobs]

    def assert_enqueued(self, task: Task[Any, Any] | str, /, *args: Any, **kwargs: Any) -> JobInfo:
        """Return the newest job of the task with these arguments; raise `AssertionError` when there is none."""
        __tracebackhide__ = True
        found = self.enqueued(task, *args, **kwargs)
        if not found:
            known, expected = self._expected(task, args, kwargs)
            raise AssertionError(f"{describe_call(known.name, expected)} was not enqueued; {self._what_was(known)}")
        return found[-1]

    def refute_enqueued(self, task: Task[Any, Any] | str, /, *args: Any, **kwargs: Any) -> None:
        """Raise `AssertionError` when the task has a job with these arguments."""
        __tracebackhide__ = True
        if self.enqueued(task, *args, **kwargs):
            known, expected = self._expected(task, args, kwargs)
            raise AssertionError(f"{describe_call(known.name, expected)} was enqueued; {self._what_was(known)}")

    def _expected(self, task: Task[Any, Any] | str, args: Any, kwargs: Any) -> tuple[Task[Any, Any], dict[str, Any]]:
        known = self._scheduler.registry.get(task if isinstance(task, str) else task.name)
        return known, expected_arguments(known, args, kwargs)

    def _what_was(self, task: Task[Any, Any]) -> str:
        stored = self._simulation.read(reports.jobs_with_arguments, task.name)
        if not stored:
            return f"{task.name} has no jobs"
        calls = [f"{describe_call(task.name, stored_arguments(task, text))} ({info.state})" for info, text in stored]
        return f"the jobs of {task.name}: " + ", ".join(calls[-SHOWN:])

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def crash(self, worker: int | None = None) -> int:
        """Let a worker vanish without a word, as a killed process does, and return its number.

        None: the worker whose job calls this, else one that runs a job, else the first. Its leases run out as time
        passes; then another worker runs its jobs again. A job that crashes its own worker goes no further. Other jobs
        of the worker are cancelled: unlike in a killed process, their `finally` blocks run.
        Raises `ConfigurationError` for a worker that is not there.
        """
        return self._simulation.crash(worker)
