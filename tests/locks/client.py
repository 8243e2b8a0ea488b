"""A client of the campaign: a process whose tasks take locks, use a guarded register and write down what they saw.

Run as a program it is the parent: it has imported everything, and forks a client for each line it reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from onebeat.concurrency.renewal import margin
from onebeat.errors import DatabaseUnavailable, LeaseLost, LockTimeout
from onebeat.locks.base import LocksOn
from onebeat.locks.database import DatabaseLocks
from onebeat.locks.file import FileLocks
from onebeat.locks.guard import fence_guard
from onebeat.locks.lease import HeldLease
from onebeat.locks.redis import RedisLocks

CARELESS = 0.2  # of the leases are written under once more when they are over
PATIENCE = 10_000_000  # microseconds for which that waits for another's write


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a campaign asks of its clients."""

    kind: str  # sqlite, postgresql, mariadb, file, redis
    url: str
    folder: str  # for what they write down
    names: int
    at_once: int  # names in use at one time, each by one task of every client
    window: int  # microseconds for which a name is used before the next one's turn
    ttl: float  # seconds
    guarded: bool = True  # whether the register refuses a smaller fence; False shows that the checker would notice


def boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


# ── the register ──────────────────────────────────────────────────────────────────────────────────────────────────────
class Register(Protocol):
    """A value for each name; a write names a fence, and is refused when a larger one has been here."""

    async def read(self, name: str) -> str | None: ...

    async def write(self, name: str, fence: int, value: str) -> bool: ...


class ServerRegister:
    """On the database of the locks, guarded by `fence_guard`."""

    def __init__(self, url: str, *, guarded: bool = True) -> None:
        self.guarded = guarded
        driver = {"postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy"}[make_url(url).get_backend_name()]
        self.engine = create_async_engine(make_url(url).set(drivername=driver), pool_size=4, max_overflow=0)

    async def read(self, name: str) -> str | None:
        async with self.engine.connect() as connection:
            found = await connection.execute(text("SELECT value FROM register WHERE name = :n"), {"n": name})
            value: str | None = found.scalar_one()
            return value

    async def write(self, name: str, fence: int, value: str) -> bool:
        try:
            async with self.engine.begin() as connection:
                if self.guarded:
                    await fence_guard(connection, name, fence)
                await connection.execute(
                    text("UPDATE register SET value = :v WHERE name = :n"), {"v": value, "n": name}
                )
        except LeaseLost:
            return False
        return True


class FileRegister:
    """A SQLite file, guarded by a column of its own."""

    def __init__(self, path: str, *, guarded: bool = True) -> None:
        self.path = path
        self.guarded = guarded

    async def read(self, name: str) -> str | None:
        return await asyncio.to_thread(self._run, "SELECT value FROM register WHERE name = :n", {"n": name})

    async def write(self, name: str, fence: int, value: str) -> bool:
        condition = "AND fence <= :f" if self.guarded else ""
        statement = f"UPDATE register SET fence = :f, value = :v WHERE name = :n {condition} RETURNING 1"
        return await asyncio.to_thread(self._run, statement, {"n": name, "f": fence, "v": value}) is not None

    def _run(self, statement: str, values: dict[str, Any]) -> Any:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            found = connection.execute(statement, values).fetchall()
        finally:
            connection.close()
        return found[0][0] if found else None


def make(orders: Orders) -> tuple[LocksOn[Any], Register]:
    beside = FileRegister(str(Path(orders.folder) / "register.db"), guarded=orders.guarded)
    if orders.kind == "file":
        return FileLocks(orders.url), beside
    if orders.kind == "redis":
        url, _, prefix = orders.url.partition(" ")
        return RedisLocks(url, prefix=prefix), beside
    locks = DatabaseLocks(orders.url, migrate=False)
    return locks, beside if orders.kind == "sqlite" else ServerRegister(orders.url, guarded=orders.guarded)


# ── the client ────────────────────────────────────────────────────────────────────────────────────────────────────────
class Client:
    """One process's tasks."""

    def __init__(self, orders: Orders, locks: LocksOn[Any], register: Register) -> None:
        self.orders = orders
        self.locks = locks
        self.register = register
        self.ids = count(1)
        self.stop = asyncio.Event()
        self.careless: set[asyncio.Task[None]] = set()
        self.file = os.open(Path(orders.folder) / f"{os.getpid()}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def note(self, id: int, name: str, event: str, **more: Any) -> None:
        os.write(self.file, (json.dumps({"id": id, "n": name, "e": event, **more}) + "\n").encode())

    async def task(self, slot: int) -> None:
        """Take the name of this slot and this moment, together with the other clients' tasks, until told to stop."""
        orders = self.orders
        names = orders.names // orders.at_once
        while not self.stop.is_set():
            window, rest = divmod(boot(), orders.window)
            name = f"n{window % names * orders.at_once + slot}"
            asked = boot()
            try:
                lease = await self.locks.lock(name, ttl=orders.ttl, wait=(orders.window - rest) / 1e6).acquire()
            except LockTimeout:
                continue
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)
                continue
            await self.use(lease, asked)

    async def use(self, lease: HeldLease, asked: int) -> None:
        """Work under the lease; some are careless and write once more when it is over."""
        id = next(self.ids)
        self.note(id, lease.name, "held", f=lease.fence, a=asked, t=boot())
        self.note_trust(id, lease)
        try:
            async with lease:
                await self.read(lease.name)
                for _ in range(random.choice((1, 1, 2))):
                    await self.write(lease)
                if random.random() < 0.05:
                    await asyncio.sleep(self.orders.ttl * 1.5)
                    await self.write(lease)
                await self.read(lease.name)
                self.note(id, lease.name, "freeing", t=self.believed(lease))
        except (LeaseLost, DatabaseUnavailable):
            self.note(id, lease.name, "lost", t=self.believed(lease))
        if random.random() < CARELESS:
            self.careless.add(asyncio.create_task(self.write_late(lease)))

    async def write_late(self, lease: HeldLease) -> None:
        """Write under a lease that is over, once somebody else has written: as one who was never told."""
        before = await self.register.read(lease.name)
        last = boot() + PATIENCE
        while await self.register.read(lease.name) == before and boot() < last and not self.stop.is_set():
            await asyncio.sleep(0.2)
        await self.write(lease)

    def note_trust(self, id: int, lease: HeldLease) -> None:
        """Write down until when the lease is trusted, and each renewal's word before the lease hears of it."""
        if self.orders.kind == "file":
            return
        hold, granted = lease._hold, lease._hold.granted

        def noted(sent: int) -> None:
            self.note(id, lease.name, "trusts", until=sent + hold.ttl - margin(hold.ttl))
            granted(sent)

        hold.granted = noted  # type: ignore[method-assign]  # a listener, which the product has no use for
        self.note(id, lease.name, "trusts", until=hold.deadline)

    def believed(self, lease: HeldLease) -> int:
        """Until when the client believed in its lease: now, unless its deadline had come before."""
        now = boot()
        return now if self.orders.kind == "file" else min(now, lease._hold.deadline)

    async def read(self, name: str) -> None:
        id = next(self.ids)
        self.note(id, name, "read", t=boot())
        value = await self.register.read(name)
        self.note(id, name, "answer", v=value, t=boot())

    async def write(self, lease: HeldLease) -> None:
        id = next(self.ids)
        value = f"{os.getpid()}.{id}"
        self.note(id, lease.name, "write", f=lease.fence, v=value, t=boot())
        accepted = await self.register.write(lease.name, lease.fence, value)
        self.note(id, lease.name, "answer", ok=accepted, t=boot())


async def work(orders: Orders) -> None:
    locks, register = make(orders)
    async with locks:
        client = Client(orders, locks, register)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, client.stop.set)
        await asyncio.gather(*(client.task(slot) for slot in range(orders.at_once)))
        await asyncio.gather(*client.careless)


def main() -> None:
    """Fork a client for each line of orders; at the end of the input wait for all of them."""
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                asyncio.run(work(Orders(**json.loads(line))))
                sys.stdout.flush()
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        print(pid, flush=True)
    codes = []
    while True:
        try:
            codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
        except ChildProcessError:
            break
    print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
