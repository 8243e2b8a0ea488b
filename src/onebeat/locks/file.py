"""FileLocks: kernel locks on files of one host; the kernel frees them with their process, so no lease runs out."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from onebeat.errors import ConfigurationError, DatabaseUnavailable
from onebeat.locks.backend import LockInfo
from onebeat.locks.base import LocksOn
from onebeat.locks.descriptors import Descriptors, is_named, try_lock
from onebeat.locks.hold import Hold
from onebeat.model.protocols import Clock
from onebeat.timing.clock import SECOND, SystemClock, from_us

R = TypeVar("R")

PATIENCE = SECOND  # microseconds to wait for a record's own mutex, which is held for milliseconds
STEP = 0.002  # seconds between looks at it
PROBES = 5  # tries at a file that is locked by nobody in particular
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRecord:
    """What is kept beside a lock: its name, its last fence, and who has it."""

    name: str
    fence: int = 0
    owner: str | None = None  # None: released
    holder: str | None = None
    acquired_us: int | None = None


class FileBackend:
    """Three files a lock, named by a hash: `.lock` is what the kernel locks, `.json` is the record, and `.mutex` is
    locked while the record changes. Twins share the open descriptors."""

    leased = False

    def __init__(self, directory: Path, *, clock: Clock, descriptors: Descriptors | None = None) -> None:
        self.directory = directory
        self.where = str(directory)
        self._clock = clock
        self._descriptors = descriptors or Descriptors()

    def twin(self) -> Self:
        """The same directory."""
        return type(self)(self.directory, clock=self._clock, descriptors=self._descriptors)

    async def open(self, timeout: float) -> None:
        """Make the directory, for this user alone; `ConfigurationError` when others could write into it."""
        await self._run(self._prepare)

    async def close(self) -> None:
        """Nothing is open but what is held, and that is given back before."""

    async def acquire(self, name: str, owner: str, ttl: int, holder: str) -> int | None:
        """Lock the file if nobody has; `ttl` is not needed for it."""
        return await self._run(self._acquire, name, owner, holder)

    async def renew(self, name: str, owner: str, ttl: int) -> bool:
        """Whether the file that is locked is still the one others would lock."""
        return await self._run(self.still_ours, name, owner)

    async def release(self, name: str, owner: str) -> bool:
        """Note the release, then close the descriptor, which frees the kernel's lock."""
        return await self._run(self._release, name, owner)

    async def holds(self, name: str, owner: str) -> bool:
        """As `renew`."""
        return await self._run(self.still_ours, name, owner)

    async def held(self) -> list[LockInfo]:
        """What the records say and the kernel confirms."""
        return await self._run(self._held)

    async def force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        """Take the locked file away, so that others lock a new one; a line in `audit.log` says so."""
        return await self._run(self._force_release, name, reason, who)

    async def _run(self, call: Callable[..., R], *args: Any) -> R:
        try:
            return await asyncio.to_thread(call, *args)
        except OSError as error:
            raise DatabaseUnavailable(
                f"the lock directory {self.directory} cannot be used ({error.strerror or error}); "
                "it must be a local directory that belongs to this user"
            ) from error

    # ── blocking, on a thread ─────────────────────────────────────────────────────────────────────────────────────────
    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(self.directory)
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"{self.directory} is not a directory itself (a link?); name the real one")
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigurationError(
                f"others may enter {self.directory} (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}); "
                "give FileLocks a directory of its own with mode 0700"
            )

    def _acquire(self, name: str, owner: str, holder: str) -> int | None:
        path = self._path(name, "lock")
        descriptor = os.open(path, _OPEN, 0o600)
        try:
            if not self._lock_unless_probed(descriptor, name) or not is_named(descriptor, path):
                return None
            with self._record(name) as record:
                if not is_named(descriptor, path):  # taken away by force in between
                    return None
                fence = max(record.fence + 1, self._clock.now())
                self._write(
                    LockRecord(name=name, fence=fence, owner=owner, holder=holder, acquired_us=self._clock.now()),
                    sync=True,
                )
            self._descriptors.add(owner, descriptor)
            descriptor = -1
            return fence
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _lock_unless_probed(self, descriptor: int, name: str) -> bool:
        """Lock the file; where it is locked and its record knows no owner, somebody only looks or is just leaving."""
        for _ in range(PROBES):
            if try_lock(descriptor):
                return True
            if _read(self._path(name, "json")).owner is not None:
                return False
            time.sleep(STEP)
        return False

    def still_ours(self, name: str, owner: str) -> bool:
        """Whether this owner's file is the one that counts."""
        descriptor = self._descriptors.get(owner)
        return descriptor is not None and is_named(descriptor, self._path(name, "lock"))

    def _release(self, name: str, owner: str) -> bool:
        ours = self.still_ours(name, owner)
        if ours:
            with self._record(name) as record:
                if record.owner == owner:
                    self._write(LockRecord(name=name, fence=record.fence), sync=False)
        self._descriptors.close(owner)
        return ours

    def drop(self, owner: str) -> None:
        """Close the descriptor of a lock that is lost; from any thread."""
        self._descriptors.close(owner)

    def _held(self) -> list[LockInfo]:
        found = []
        for path in sorted(self.directory.glob("*.json")):
            record = _read(path)
            if record.owner is not None and self._is_locked(record):
                found.append(_info(record))
        return sorted(found, key=lambda each: each.name)

    def _force_release(self, name: str, reason: str, who: str) -> LockInfo | None:
        with self._record(name) as record:
            if record.owner is None or not self._is_locked(record):
                return None
            line = {"at": self._clock.now(), "who": who, "what": "lock.force_release", "name": name}
            line |= {"fence": record.fence, "holder": record.holder, "reason": reason[:2000]}
            self._append("audit.log", json.dumps(line))
            self._path(name, "lock").unlink(missing_ok=True)
            self._write(LockRecord(name=name, fence=record.fence), sync=True)
            return _info(record)

    def _is_locked(self, record: LockRecord) -> bool:
        """Ask the kernel, for a moment; who tries to acquire in that moment and finds no owner tries again."""
        if record.owner is not None and self._descriptors.get(record.owner) is not None:
            return True
        try:
            descriptor = os.open(self._path(record.name, "lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _path(self, name: str, kind: str) -> Path:
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:40]}.{kind}"

    @contextmanager
    def _record(self, name: str) -> Iterator[LockRecord]:
        """The record of a lock, which nobody else changes meanwhile."""
        descriptor = os.open(self._path(name, "mutex"), _OPEN, 0o600)
        try:
            until = self._clock.boot() + PATIENCE
            while not try_lock(descriptor):
                if self._clock.boot() >= until:
                    raise OSError(
                        errno.EBUSY, f"the record of lock {name!r} has been changing for {PATIENCE / SECOND:g} s"
                    )
                time.sleep(STEP)
            found = _read(self._path(name, "json"))
            yield found if found.name else LockRecord(name=name)
        finally:
            os.close(descriptor)

    def _write(self, record: LockRecord, *, sync: bool) -> None:
        """Replace the record as a whole; with `sync` it survives a power cut before anybody acts on its fence."""
        target = self._path(record.name, "json")
        temporary = target.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, _OPEN | os.O_EXCL, 0o600)
        try:
            fields = {field: getattr(record, field) for field in LockRecord.__slots__}
            os.write(descriptor, json.dumps(fields).encode())
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
        if sync:
            self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _append(self, file: str, line: str) -> None:
        descriptor = os.open(self.directory / file, _OPEN | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> LockRecord:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return LockRecord(name="")
    with os.fdopen(descriptor, "rb") as file:
        try:
            return LockRecord(**json.loads(file.read()))
        except (ValueError, TypeError):  # cut short with the power: as if it were not there
            return LockRecord(name="")


def _info(record: LockRecord) -> LockInfo:
    return LockInfo(
        name=record.name,
        fence=record.fence,
        holder=record.holder,
        acquired_at=None if record.acquired_us is None else from_us(record.acquired_us),
        expires_at=None,
    )


class FileLocks(LocksOn[FileBackend]):
    """Locks among the processes of one host, in a directory of this user's own on a local file system.

    The kernel frees a lock when its process ends, however it ends, and keeps it while the process is only stopped: so
    no lease can run out, and `ttl` only says how soon a forced release is noticed. Not for network file systems.
    `clock` replaces the machine's for tests.

    >>> import asyncio, tempfile
    >>> async def rebuild(directory):
    ...     async with FileLocks(directory) as locks, locks.lock("rebuild-index") as lease:
    ...         return lease.fence > 0
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     asyncio.run(rebuild(directory))
    True
    """

    def __init__(self, directory: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        super().__init__(FileBackend(Path(directory).absolute(), clock=clock), clock=clock)

    def _keep(self, hold: Hold) -> None:
        """No lease would end what is lost here, so the descriptor is closed when it is."""
        hold.on_loss(lambda: self._backend.drop(hold.owner))
        super()._keep(hold)
