"""The protocol behind `Database`: how one kind of database opens, runs a call in a transaction, and closes."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, TypeVar

from onebeat.store.tx import Tx

R = TypeVar("R")


class Rank(IntEnum):
    """Whose call goes first while calls wait; a lower rank goes first."""

    HEARTBEAT = 0  # a lease that is not renewed costs every job of its process
    ENGINE = 1
    USER = 2


class ConnectionBackend(Protocol):
    """Runs store functions on the connections it owns.

    `ServerPool` serves PostgreSQL, MySQL and MariaDB; `SQLiteThreads` serves a file. `Database` uses these three
    methods and nothing else, so a simulation can be a third one.
    """

    async def open(self) -> list[str]:
        """Connect once; return what an operator should know about this server.

        Raises the driver's error when there is no connection, and `ConfigurationError` for a server or library that is
        too old. `Database` tries again with a new backend; it closes this one first, also after a failure.
        """

    async def run(
        self,
        call: Callable[[Tx], R],
        *,
        write: bool,
        single: bool,
        patience: float | None = None,
        limit: float | None = None,
        flushed: bool = True,
        rank: Rank = Rank.ENGINE,
    ) -> R:
        """Run `call` in a transaction of its own, again after a passing fault; return its value after the commit.

        Args:
            call: a function without effects but its SQL; it may run more than once.
            write: whether to commit; a read is rolled back.
            single: whether the call writes with one statement at most, which may then commit by itself.
            patience: seconds from now of waiting for a connection and for locks; None means the backend's own.
            limit: seconds from now for all tries; None means the backend's own limit.
            flushed: whether the commit survives a power cut; a backend may always answer as if it were True.
            rank: which calls this one goes ahead of.

        Raises what `call` raised, `DatabaseUnavailable` when no try is left, `NotStarted` when closed.
        """

    async def close(self, within: float | None = None) -> None:
        """Finish the calls under way and close every connection; harmless when nothing is open.

        After `within` seconds (None: without limit) the calls that are left end with `DatabaseUnavailable`, and their
        connections are cut: whether their COMMIT happened is then unknown.
        """
