"""Eight real processes, killed and stopped at any moment, on each back end; every history is checked."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tests.conftest import SERVERS
from tests.locks.client import Orders, boot
from tests.locks.history import NEVER, History, collect
from tests.support.databases import ADDRESSES, BACKGROUND, KINDS, RAN, Shelf

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 8
AT_ONCE = 10  # names in use at one time
WINDOW = 0.5  # seconds for which a name is used before the next one's turn
TTL = 1.5  # seconds
LONGEST = 200.0  # seconds for one campaign, on a machine that does much else; a quiet one needs about ten
REACHED = [kind for kind in ("file", *KINDS) if kind == "file" or kind in SERVERS]


@dataclass
class Campaign:
    """Clients, what is done to them, and what they wrote down."""

    orders: Orders
    folder: Path
    rng: random.Random
    running: list[int] = field(default_factory=list)
    killed: dict[int, int] = field(default_factory=dict)
    stops: int = 0
    stopped: dict[int, int] = field(default_factory=dict)  # until when

    def run(self) -> tuple[dict[str, History], list[int]]:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.locks.client"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        try:
            assert parent.stdout is not None
            assert parent.stdin is not None
            assert parent.stdout.readline() == "ready\n"
            self.spawn(parent, CLIENTS)
            last = time.monotonic() + LONGEST
            while not self.enough() and time.monotonic() < last:
                time.sleep(self.rng.uniform(0.05, 0.3))
                self.strike(parent)
            self.go_on(NEVER)
            for pid in self.running:
                os.kill(pid, signal.SIGTERM)
            parent.stdin.close()
            codes: list[int] = json.loads(parent.stdout.readline())
            parent.wait(20)
        finally:
            try:
                os.killpg(parent.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            parent.wait(20)
        return collect(self.folder, self.killed), codes

    def spawn(self, parent: subprocess.Popen[str], count: int) -> None:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(count):
            parent.stdin.write(json.dumps(asdict(self.orders)) + "\n")
            parent.stdin.flush()
            self.running.append(int(parent.stdout.readline()))

    def strike(self, parent: subprocess.Popen[str]) -> None:
        """Kill one and start another, or stop one for about as long as its leases last."""
        self.go_on(boot())
        free = [pid for pid in self.running if pid not in self.stopped]
        if len(free) <= CLIENTS // 2:
            return
        pid = self.rng.choice(free)
        if self.rng.random() < 0.4:
            self.running.remove(pid)
            self.killed[pid] = boot()
            os.kill(pid, signal.SIGKILL)
            self.spawn(parent, 1)
        else:
            self.stops += 1
            self.stopped[pid] = boot() + round(TTL * self.rng.uniform(0.3, 1.6) * 1e6)
            os.kill(pid, signal.SIGSTOP)

    def go_on(self, now: int) -> None:
        for pid in [pid for pid, until in self.stopped.items() if until <= now]:
            del self.stopped[pid]
            os.kill(pid, signal.SIGCONT)

    def enough(self) -> bool:
        """Whether every history is worth checking, and enough was done to the clients."""
        if len(self.killed) < 3 or self.stops < 3:
            return False
        held: Counter[str] = Counter()
        for path in self.folder.glob("*.jsonl"):
            held.update(re.findall(r'"n": "(n\d+)", "e": "held"', path.read_text()))
        return len(held) == self.orders.names and sum(held.values()) >= 3 * self.orders.names


@pytest.fixture
def place(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> Iterator[str]:
    """Where the locks of one kind live: a URL or a directory, with the register's table beside it."""
    kind = str(request.param)
    with sqlite3.connect(tmp_path / "register.db") as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE register (name TEXT PRIMARY KEY, fence INTEGER DEFAULT 0, value TEXT)")
        db.executemany("INSERT INTO register (name) VALUES (?)", [(f"n{n}",) for n in range(520)])
    db.close()
    if kind == "file":
        yield str(tmp_path / "locks")
    elif kind == "redis":
        RAN.add(kind)
        yield f"{ADDRESSES['redis']} onebeat-test-{secrets.token_hex(6)}"
    elif kind == "sqlite":
        yield shelf.take(kind, tmp_path)
    else:
        url = shelf.take(kind, tmp_path)
        BACKGROUND.run(server_register(url))
        yield url
        BACKGROUND.run(server_register(url, only_drop=True))


async def server_register(url: str, *, only_drop: bool = False) -> None:
    from sqlalchemy import text

    from tests.locks.client import ServerRegister

    engine = ServerRegister(url).engine
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE IF EXISTS register"))
        if not only_drop:
            await connection.execute(text("CREATE TABLE register (name VARCHAR(40) PRIMARY KEY, value VARCHAR(60))"))
            await connection.execute(
                text("INSERT INTO register (name) VALUES (:n)"), [{"n": f"n{n}"} for n in range(520)]
            )
    await engine.dispose()


def campaign(kind: str, place: str, folder: Path, names: int, *, guarded: bool = True) -> list[str]:
    """Run one; what its histories show to be wrong."""
    orders = Orders(
        kind=kind, url=place, folder=str(folder), names=names, at_once=AT_ONCE, window=round(WINDOW * 1e6), ttl=TTL,
        guarded=guarded,
    )  # fmt: skip
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    campaign = Campaign(orders, folder, random.Random(seed))
    histories, codes = campaign.run()
    holds = sum(len(history.holds) for history in histories.values())
    calls = sum(len(history.ops) for history in histories.values())
    stale = sum(op.accepted is False for history in histories.values() for op in history.ops)
    print(
        f"{kind}: {len(histories)} histories, {holds} holds, {calls} register calls ({stale} stale ones refused), "
        f"{len(campaign.killed)} kills, {campaign.stops} stops"
    )
    assert set(codes) <= {0, -signal.SIGKILL, -signal.SIGTERM}, codes  # SIGTERM: before it had begun
    assert codes.count(0) > 0
    assert len(histories) == names
    assert campaign.enough()
    assert stale > 0 or not guarded, "no client tried a stale write"
    return [each for history in histories.values() for each in history.violations()]


EACH = pytest.mark.parametrize(("kind", "place"), [(kind, kind) for kind in REACHED], indirect=["place"], ids=REACHED)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@EACH
def test_no_history_of_eight_processes_is_wrong(kind: str, place: str, tmp_path: Path) -> None:
    assert campaign(kind, place, tmp_path, 60) == []


@pytest.mark.soak
@pytest.mark.timeout(600)
@EACH
def test_no_history_of_a_long_campaign_is_wrong(kind: str, place: str, tmp_path: Path) -> None:
    assert campaign(kind, place, tmp_path, 500) == []


@pytest.mark.soak
@pytest.mark.timeout(300)
@EACH
def test_a_register_without_its_guard_is_seen_to_take_stale_writes(kind: str, place: str, tmp_path: Path) -> None:
    wrong = campaign(kind, place, tmp_path, 60, guarded=False)
    print(wrong)
    assert wrong
    assert all("register calls" in each for each in wrong), "the locks themselves were right"
