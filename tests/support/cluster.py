"""A cluster of real worker processes on one database, and what is done to them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support import rows
from tests.support.checker import SECOND, Due, Facts, Fault, JobRow, Violation, check, every
from tests.support.ledger import Ledger, Line, boot_us, wall_us

ROOT = Path(__file__).resolve().parents[2]
LEASE = 3.0  # seconds
HEARTBEAT = 0.5
BARE = ("-m", "onebeat", "worker", "--app", "tests.cluster.app:scheduler")
SETTINGS = {"lease": LEASE, "heartbeat": HEARTBEAT, "poll": 0.2, "drain": 10, "slots": 8}


def uvicorn(workers: int) -> tuple[str, ...]:
    """Return the command of a uvicorn server with so many worker processes, on a free port."""
    return (
        *("-m", "uvicorn", "tests.cluster.app:app", "--workers", str(workers)),
        *("--port", "0", "--log-level", "warning"),
    )


@dataclass
class Worker:
    """One process, with what was done to it."""

    process: subprocess.Popen[bytes]
    seen: int = field(default_factory=boot_us)  # when it was last known to run, boot clock

    @property
    def pid(self) -> int:
        """Of the process started here (uvicorn's children have their own)."""
        return self.process.pid


class Cluster:
    """`count` processes; each restarted one takes the place of the one that ended."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        count: int = 4,
        settings: Mapping[str, object] | None = None,
        schedules: Sequence[Mapping[str, object]] = (),
        command: Sequence[str] = BARE,
        mute: bool = False,
    ) -> None:
        self.url = url
        self.folder = folder
        self.settings = {**SETTINGS, **(settings or {})}
        self.command = command
        self.count = count
        self.ledger = Ledger(folder / "ledger")  # clusters that follow each other in one folder share it
        self.log = folder / "workers.log"
        self.faults: list[Fault] = []
        self.workers: list[Worker] = []
        self._before = self.ledger.size()
        self._schedules = list(schedules)
        self._mute = mute

    def __enter__(self) -> Cluster:
        self.workers = [self._start() for _ in range(self.count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            self._end_group(worker)
        if kind is not None:
            print(f"\n--- the end of {self.log}\n{self.tail()}")

    def _start(self) -> Worker:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "ONEBEAT_DATABASE_URL": self.url,
            "PROOF_LEDGER": str(self.ledger.path),
            "PROOF_RUNNER": str(os.getpid()),
            "PROOF_SETTINGS": json.dumps(self.settings),
            "PROOF_SCHEDULES": json.dumps(self._schedules),
        }
        if self._mute:
            environment["PROOF_MUTE"] = "1"
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Worker(process)

    def _end_group(self, worker: Worker) -> None:
        """End what still runs; the pid of a process that has ended may belong to somebody else by now."""
        if worker.process.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.process.wait(10)

    def tail(self, size: int = 6000) -> str:
        """The end of what the workers printed."""
        return self.log.read_text("utf-8", "replace")[-size:] if self.log.exists() else ""

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def ready(self, children: int = 0, timeout: float = 60) -> None:
        """Return when every process started here has registered a worker; with `children`, so many of its children."""
        deadline = time.monotonic() + timeout
        while not self._registered(children):
            for worker in self.workers:
                assert worker.process.poll() is None, f"a worker ended at start:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not every worker registered within {timeout} s:\n{self.tail()}"
            await asyncio.sleep(0.1)

    def _registered(self, children: int) -> bool:
        known = {line.pid for line in self.ledger.lines()[self._before :] if line.event == "worker"}
        return len(known) >= children if children else {worker.pid for worker in self.workers} <= known

    async def quiet(self, timeout: float) -> None:
        """Return when every job has ended; processes that ended by themselves are started again."""
        deadline = time.monotonic() + timeout
        self.replace_the_dead()
        while left := await rows.unfinished(self.url):
            self.replace_the_dead()
            assert time.monotonic() < deadline, f"{left} jobs have not ended within {timeout} s:\n{self.tail()}"
            await asyncio.sleep(0.3)
        self.replace_the_dead()

    def replace_the_dead(self) -> None:
        """Write down which processes ended by themselves, and start others."""
        for at, worker in enumerate(self.workers):
            now = boot_us()
            if worker.process.poll() is None:
                worker.seen = now
            else:
                self.faults.append(Fault(kind="kill", pid=worker.pid, begin=worker.seen))
                self.workers[at] = self._start()

    # ── what is done to them ──────────────────────────────────────────────────────────────────────────────────────────
    def kill(self, at: int) -> None:
        """SIGKILL, and wait until the kernel has taken the process away."""
        worker = self.workers[at]
        begin = boot_us()
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(10)
        self.faults.append(Fault(kind="kill", pid=worker.pid, begin=begin))

    def restart(self, at: int) -> None:
        """Start a process in the place of the one that ended."""
        assert self.workers[at].process.poll() is not None, "it still runs"
        self.workers[at] = self._start()

    async def pause(self, at: int, seconds: float, *, between_writes: bool = False) -> None:
        """SIGSTOP, and SIGCONT after so many seconds; `between_writes`: not while it keeps the others from writing."""
        while not await self._pause(at, seconds, between_writes=between_writes):
            await asyncio.sleep(0.05)

    async def _pause(self, at: int, seconds: float, *, between_writes: bool) -> bool:
        """One pause; False: cut short, because the process held the write lock."""
        worker = self.workers[at]
        begin = boot_us()
        worker.process.send_signal(signal.SIGSTOP)
        blocked = False
        try:
            blocked = await self._nobody_can_write()
            if blocked and between_writes:
                blocked = False  # it ends here
                return False
            await asyncio.sleep(seconds)
            blocked = blocked and await self._nobody_can_write()
        finally:
            worker.process.send_signal(signal.SIGCONT)
            self.faults.append(Fault(kind="stop", pid=worker.pid, begin=begin, end=boot_us()))
            if blocked:
                self.faults.append(Fault(kind="outage", begin=begin, end=boot_us()))
        return True

    async def _nobody_can_write(self) -> bool:
        """Whether SQLite's one write lock is held by a process that does not move: an outage for all the others."""
        return self.url.startswith("sqlite") and not await rows.writable(self.url, within=HEARTBEAT)

    async def kill_again_and_again(self, chance: random.Random, between: tuple[float, float] = (1.5, 3.0)) -> int:
        """Kill one worker every 1.5 to 3 s and start another, until no job is left; how many were killed."""
        kills = 0
        while True:
            await asyncio.sleep(chance.uniform(*between))
            if not await rows.unfinished(self.url):
                return kills
            at = chance.randrange(len(self.workers))
            self.kill(at)
            self.restart(at)
            kills += 1

    async def terminate(self, number: int = signal.SIGTERM, timeout: float = 40) -> list[int]:
        """Send the signal to every process and wait for their ends; the exit codes."""
        begin = boot_us()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)
        await self.ended(timeout)
        self.faults.append(Fault(kind="term", begin=begin, end=boot_us()))
        return [worker.process.returncode for worker in self.workers]

    async def ended(self, timeout: float) -> None:
        """Return when every process has ended."""
        deadline = time.monotonic() + timeout
        while any(worker.process.poll() is None for worker in self.workers):
            assert time.monotonic() < deadline, f"not ended within {timeout} s:\n{self.tail()}"
            await asyncio.sleep(0.05)

    # ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def facts(self, *, due: list[Due] | None = None, poison: frozenset[str] = frozenset()) -> Facts:
        """What this scenario left behind, for the checker."""
        found = await rows.read(self.url)
        lines = self.ledger.lines()
        pids = {**found.pids, **{line.worker: line.pid for line in lines if line.event == "worker" and line.worker}}
        return Facts(
            lines=lines,
            jobs=found.jobs,
            fires=found.fires,
            attempts=found.attempts,
            due=due,
            faults=[*self.faults, *starvation(lines)],
            leftovers=await rows.leftovers(self.url),
            poison=poison,
            lease=int(float(str(self.settings["lease"])) * SECOND),
            sweep=int(float(str(self.settings["heartbeat"])) * SECOND),  # every worker sweeps as often as it beats
            boot_to_wall=wall_us() - boot_us(),
            pids=pids,
        )

    async def jobs(self) -> list[JobRow]:
        """The jobs as they are now."""
        return (await rows.read(self.url)).jobs

    async def due(self) -> list[Due]:
        """What the oracle says was due for the one-second schedules, from their creation to their watermark."""
        instants: list[Due] = []
        for id, (created, next_fire) in (await rows.read(self.url)).schedules.items():
            assert next_fire is not None, "an interval without an end has a next fire"
            instants += every(id, SECOND, created, next_fire)
        return instants


def starvation(lines: Sequence[Line]) -> list[Fault]:
    """Pauses the machine itself made: a sleeping thread of the process was woken that late."""
    found = []
    for line in lines:
        if line.event == "mark" and line.note and line.note.startswith("starved "):
            found.append(Fault(kind="stop", pid=line.pid, begin=line.boot - int(line.note.split()[1]), end=line.boot))
    return found


def judge(facts: Facts) -> None:
    """Fail with every violation there is, the first twenty in words."""
    found: list[Violation] = check(facts)
    assert not found, f"{len(found)} violations:\n" + "\n".join(str(violation) for violation in found[:20])
