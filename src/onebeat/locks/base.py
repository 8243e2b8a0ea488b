"""Locks on a back end: acquiring, waiting, giving back, and what is done when a caller goes away in between."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any, Generic, Protocol, Self, TypeVar

from onebeat.concurrency.forks import ForkSafeLock
from onebeat.errors import ConfigurationError, LockTimeout, NotStarted, OnebeatError
from onebeat.locks.backend import Backend, LockInfo, RenewsTogether
from onebeat.locks.heartbeat import LockHeartbeat
from onebeat.locks.hold import Hold
from onebeat.locks.lease import HeldLease
from onebeat.locks.lock import BackendLock
from onebeat.locks.locked import Locked, LockedDecorator
from onebeat.locks.request import LockRequest, Seconds, holder, lock_name, lock_request
from onebeat.locks.sync_backend import START_TIMEOUT, SyncBackend, refuse_on_loop
from onebeat.locks.sync_lease import HeldSyncLease
from onebeat.locks.waiting import Waiters, pause
from onebeat.model.protocols import Clock
from onebeat.offload.threads import run_on_own_thread
from onebeat.timing.clock import SECOND, SystemClock

log = logging.getLogger("onebeat.locks")

B = TypeVar("B", bound=Backend)


class Beat(Protocol):
    """The heartbeat thread as locks use it: a `LockHeartbeat`, or a scheduler's `engine.heartbeat.Heartbeat`."""

    def add(self, held: Hold, /) -> None:
        """Renew this lease from now on."""

    def remove(self, held: Hold, /) -> None:
        """Stop renewing it."""

    def stop(self) -> None:
        """End the thread."""


class LocksOn(Generic[B]):
    """Locks that live on a back end; `DatabaseLocks`, `FileLocks` and `RedisLocks` are this with a constructor.

    For a back end of your own, write a `Backend`, pass it to this class, and run `onebeat.testing.lock_contract` on it.
    """

    def __init__(self, backend: B, *, clock: Clock | None = None, random: Random | None = None) -> None:
        self._backend = backend
        self._clock: Clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311 - jitter and fairness, not a secret
        self._waiters = Waiters(self._random)
        self._mutex = ForkSafeLock()
        self._held: set[Hold] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sync: SyncBackend[B] = SyncBackend(self._twin)
        self._opened_sync = False
        self._beat: Beat | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_release: Callable[[], None] = _nothing  # tells other processes that it is worth a look

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._backend.where}>"

    # ── the public verbs ──────────────────────────────────────────────────────────────────────────────────────────────
    def lock(self, name: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> BackendLock:
        """The lock of that name; no I/O.

        `ttl`: seconds (0.5 s to a day) for which it outlives a process that died; it is renewed while held.
        `wait`: seconds to wait for it, 0 tries once, None waits without limit; then `LockTimeout`.
        Raises `ConfigurationError` for a name, `ttl` or `wait` that cannot work.
        """
        return BackendLock(self, lock_request(name, ttl, wait))

    def locked(self, template: str, *, ttl: Seconds = 30, wait: Seconds | None = None) -> LockedDecorator:
        """Hold a lock while the decorated function runs; `{user_id}` in the template is the parameter of that name.

        Plain parameter names only; coroutine functions and plain ones (which then belong in threads).
        Raises `ConfigurationError` at once for a template that does not fit the function.
        """
        return Locked(self, template, ttl, wait)

    async def list(self) -> list[LockInfo]:
        """The locks that are held now, by name."""
        return await self._usable().held()

    async def force_release(self, name: str, *, reason: str) -> bool:
        """Take a lock from whoever holds it; False: nobody held it.

        Its holder learns of it with its next renewal or `check()`; until then two may believe that they hold it, and
        only the fence tells them apart. Who did it and why is kept where the lock lives.
        Raises `ConfigurationError` for an empty reason.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigurationError(f"force_release needs a reason in words, for its record; this is {reason!r:.80}")
        found = await self._usable().force_release(lock_name(name), reason, holder())
        if found is not None:
            log.warning("lock %r was taken by force from %s: %s", name, found.holder, reason)
            self.look(name)
        return found is not None

    def look(self, name: str | None = None) -> None:
        """Let those who wait in this process try now; None: for any lock (a hint came). From any thread."""
        if name is None:
            self._waiters.wake_all()
        else:
            self._waiters.wake_one(name)
            self.on_release()

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def open(self, timeout: float = START_TIMEOUT) -> None:
        """Connect; raises `DatabaseUnavailable` when nothing answers within `timeout` seconds."""
        if self._loop is not None:
            raise ConfigurationError("these locks are open already")
        await self._backend.open(timeout)
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Give back what is still held, and close what was opened; harmless when nothing is open."""
        try:
            await self._give_back_all(self._backend)
            await self._settle()
        except asyncio.CancelledError:  # its caller has no more time
            threading.Thread(target=self._end_threads, name="onebeat-locks-closing", daemon=True).start()
            raise
        await run_on_own_thread(self._end_threads)  # a thread that nobody has to wait for when this is cancelled
        if self._loop is not None:
            self._loop = None
            await self._backend.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        self._sync.backend()
        self._opened_sync = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened_sync = False
        if self._sync.running:  # not in a forked child, which has nothing to give back
            self._sync.run(self._give_back_all(self._sync.backend()))
        self._end_threads()

    def _end_threads(self) -> None:
        if self._sync.running:
            self._sync.run(self._settle())
        self._sync.close()
        beat, self._beat = self._beat, None
        if beat is not None:
            self._end_beat(beat)

    async def _settle(self) -> None:
        """Wait for what this loop still does in the background."""
        loop = asyncio.get_running_loop()
        while mine := [task for task in list(self._tasks) if task.get_loop() is loop]:
            await asyncio.wait(mine)

    async def _give_back_all(self, backend: B) -> None:
        with self._mutex:
            held = [hold for hold in self._held if hold.ours]
        for hold in held:
            hold.lost("its locks were closed while it was held")
            try:
                await self._give_back(backend, hold)
            except OnebeatError as trouble:
                log.warning("lock %r could not be released and ends with its lease: %s", hold.name, trouble)

    # ── what back ends may do differently ─────────────────────────────────────────────────────────────────────────────
    def _twin(self) -> B:
        return self._backend.twin()

    def _make_beat(self) -> Beat:
        """The thread that renews; a scheduler lends its own."""
        together = isinstance(self._backend, RenewsTogether)
        return LockHeartbeat(self._twin, together=together, clock=self._clock, random=self._random)

    def _end_beat(self, beat: Beat) -> None:
        beat.stop()

    def _renew(self, tx: Any, holds: Sequence[Hold]) -> Collection[Hold]:
        """Renew once, on a scheduler's heartbeat thread; all have one `ttl`. Return those that are still held."""
        raise NotImplementedError

    def _ready(self) -> None:
        """Raise `NotStarted` where the back end is not open in this event loop."""
        if self._loop is None:
            state = "opened with `with`, so use `with` on its locks" if self._opened_sync else "not open"
            raise NotStarted(f"these locks are {state}; `async with locks:` opens them in an event loop")
        if asyncio.get_running_loop() is not self._loop:
            raise NotStarted(
                "these locks were opened in another event loop; open others here, or use `with` on a lock in a thread"
            )

    def _ready_sync(self) -> None:
        """Raise `NotStarted` where the locks were not opened, for the blocking form."""
        if self._loop is None and not self._opened_sync:
            raise NotStarted(
                "these locks are not open; `with locks:` opens them in a script, `async with locks:` in a loop"
            )

    # ── for the lock objects ──────────────────────────────────────────────────────────────────────────────────────────
    async def acquire(self, asked: LockRequest) -> HeldLease | None:
        """Wait as asked; None: the time is over."""
        task = asyncio.current_task()
        assert task is not None
        backend = self._usable()
        hold = await self._wait(backend, asked, task, lambda: not task.done())
        return None if hold is None else HeldLease(backend, hold, give_back=self._give_back, abandon=self._abandon)

    def acquire_sync(self, asked: LockRequest) -> HeldSyncLease | None:
        """As `acquire`, blocking."""
        thread = threading.current_thread()
        refuse_on_loop()
        self._ready_sync()
        backend = self._sync.backend()
        hold = self._sync.run(self._wait(backend, asked, thread, thread.is_alive))
        return None if hold is None else HeldSyncLease(self._sync, hold, self._give_back)

    def _usable(self) -> B:
        self._ready()
        return self._backend

    async def _wait(self, backend: B, asked: LockRequest, who: object, alive: Callable[[], bool]) -> Hold | None:
        self._refuse_nested(asked.name, who)
        until = None if asked.wait is None else self._clock.boot() + asked.wait
        tries = 0
        with self._waiters.waiting(asked.name) as alarm:
            while True:
                hold = await self._try(backend, asked, who, alive)
                if hold is not None:
                    return hold
                tries += 1
                nap = pause(tries, self._random.random())
                if until is not None:
                    left = (until - self._clock.boot()) / SECOND
                    if left <= 0:
                        return None
                    nap = min(nap, left)
                await alarm.wait(nap)

    async def _try(self, backend: B, asked: LockRequest, who: object, alive: Callable[[], bool]) -> Hold | None:
        """One attempt; when the caller goes away in mid-call, what it may still be granted is given back."""
        owner = secrets.token_hex(16)
        sent = self._clock.boot()
        attempt = asyncio.ensure_future(backend.acquire(asked.name, owner, asked.ttl, holder()))
        try:
            fence = await asyncio.shield(attempt)
        except BaseException:
            self._in_background(self._undo(backend, attempt, asked.name, owner))
            raise
        if fence is None:
            return None
        hold = Hold(
            name=asked.name, owner=owner, fence=fence, ttl=asked.ttl, sent=sent, leased=backend.leased,
            clock=self._clock, alive=alive, renewal=self._renew, holder=who,
        )  # fmt: skip
        if not hold.trusted:  # the answer took longer than the lease is trusted
            await self._release(backend, asked.name, owner)
            return None
        self._keep(hold)
        return hold

    def _keep(self, hold: Hold) -> None:
        hold.on_loss(lambda: self._forget(hold))
        with self._mutex:
            self._held.add(hold)
            if self._beat is None:
                self._beat = self._make_beat()
            beat = self._beat
        beat.add(hold)

    def _forget(self, hold: Hold) -> None:
        with self._mutex:
            self._held.discard(hold)
            beat = self._beat
        if beat is not None:
            beat.remove(hold)

    async def _give_back(self, backend: Backend, hold: Hold) -> bool:
        """Release at the back end, whatever becomes of the caller."""
        self._forget(hold)
        return await asyncio.shield(self._in_background(self._release(backend, hold.name, hold.owner)))

    def _abandon(self, backend: Backend, hold: Hold) -> None:
        """A lost lease may still lie there until it ends: try to free it, expect nothing."""
        self._forget(hold)
        self._in_background(self._release(backend, hold.name, hold.owner))

    async def _release(self, backend: Backend, name: str, owner: str) -> bool:
        kept = await backend.release(name, owner)
        self.look(name)
        return kept

    async def _undo(self, backend: B, attempt: asyncio.Future[int | None], name: str, owner: str) -> None:
        await asyncio.wait([attempt])
        if attempt.cancelled() or attempt.exception() is not None or attempt.result() is not None:
            await self._release(backend, name, owner)

    def _in_background(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), OnebeatError):
            log.debug("a lock could not be given back and ends with its lease: %s", task.exception())

    def _refuse_nested(self, name: str, who: object) -> None:
        with self._mutex:
            mine = [
                hold for hold in self._held if hold.name == name and hold.holder is who and hold.ours and hold.trusted
            ]
        if mine:
            raise LockTimeout(
                f"lock {name!r} is held by this very {'task' if isinstance(who, asyncio.Task) else 'thread'} "
                f"(fence {mine[0].fence}), so waiting for it would never end; locks are not re-entrant"
            )


def _nothing() -> None:
    return
