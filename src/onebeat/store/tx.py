"""One transaction: what a store function receives, and how it begins, commits and rolls back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult, Insert, Table
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable

from onebeat.model.protocols import Clock
from onebeat.store.dialects.base import Dialect, bound_clock, select_clock
from onebeat.store.faults import Fault
from onebeat.store.retries import PATIENCE, CommitLost, Retries
from onebeat.store.tables import Tables
from onebeat.timing.clock import SystemClock

R = TypeVar("R")
S = TypeVar("S")


class Points(Protocol):
    """Where a test can stop, count or break a transaction.

    `TransactionRunner` and `Tx` reach these names: `begin`, `statement` (before each, with `tx.statement` set),
    `executed` (after each), `commit` (before), `committed` (after, before the caller gets its value). An exception
    raised here happens as if the database had raised it at that place.
    """

    def reach(self, name: str, tx: Tx) -> None:
        """Do what the test wants here; called on the thread, or in the greenlet, that runs the transaction."""


class Moment:
    """The time at which one transaction decides; it is read once, and calls that commit together share it."""

    __slots__ = ("now_us",)

    def __init__(self) -> None:
        self.now_us: int | None = None  # UTC microseconds; None until the first reading


class Tx:
    """One transaction. Every store function takes it as its first argument and sends every statement through it."""

    __slots__ = (
        "_cache",
        "_database_clock",
        "_moment",
        "_points",
        "connection",
        "dialect",
        "is_callers",
        "statement",
        "tables",
        "unanswered",
    )

    def __init__(
        self,
        connection: Connection,
        tables: Tables,
        dialect: Dialect,
        *,
        database_clock: Callable[[], int] | None = None,
        points: Points | None = None,
        moment: Moment | None = None,
        cache: dict[Any, Any] | None = None,
        unanswered: Sequence[Any] = (),
        is_callers: bool = False,
    ) -> None:
        self._cache: dict[Any, Any] = {} if cache is None else cache
        self.connection = connection
        self.tables = tables
        self.dialect = dialect
        # What earlier tries of this call returned whose COMMIT got no answer: each of them happened or it did not.
        self.unanswered = unanswered
        self.is_callers = is_callers  # the caller begins and ends it, at an isolation level of the caller's choice
        self.statement: Executable | None = None  # the statement that runs now, for `Points`
        self._database_clock = database_clock
        self._points = points
        self._moment = moment or Moment()

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement; `parameters` is a dict, or a list of dicts to run it for each."""
        self._reach("statement", statement)
        result = self.connection.execute(statement, parameters)
        self._reach("executed", statement)
        return result

    def execute_given(self, statement: Executable, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Run a prepared statement that was built with `Dialect.given_rows`, for each of these rows.

        `shared` are the statement's other bound values.
        """
        parameters = self.dialect.given(rows, **shared)
        self._reach("statement", statement)
        self.dialect.execute_given(self.connection, statement, parameters, self._cache)
        self._reach("executed", statement)

    def insert(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows, each the values of `columns` in this order: many cost little more than one."""
        names = [f"b_{name}" for name in columns]
        self.execute_given(
            self.prepared(_insert_given, table, columns), [dict(zip(names, row, strict=True)) for row in rows]
        )

    def _reach(self, name: str, statement: Executable) -> None:
        if self._points is not None:
            self.statement = statement
            self._points.reach(name, self)

    def prepared(self, build: Callable[..., S], *shape: Any) -> S:
        """Return the statement of `build(tx, *shape)`, built once for each shape: building costs more than running.

        `build` reads nothing but the transaction's `tables`, `dialect` and `clock`; every value is a bind parameter.
        """
        key = (build, *shape)
        statement: S | None = self._cache.get(key)
        if statement is None:
            statement = self._cache[key] = build(self, *shape)
        return statement

    def now(self) -> int:
        """Return the first reading of the database's clock in this transaction, in UTC microseconds.

        Every decision of the transaction uses this value.
        """
        if self._moment.now_us is None:
            if self._database_clock is not None:
                self._moment.now_us = self._database_clock()
            else:
                self._moment.now_us = int(self.execute(select_clock(self.dialect.clock_expression())).scalar_one())
        return self._moment.now_us

    @property
    def clock(self) -> ColumnElement[int]:
        """The database's now in UTC microseconds, for use inside a statement; a bound value under a virtual clock."""
        return self.dialect.clock_expression() if self._database_clock is None else bound_clock(self._database_clock)

    def point(self, name: str) -> None:
        """Let a test stop this transaction here; does nothing in production."""
        if self._points is not None:
            self._points.reach(name, self)


def _insert_given(tx: Tx, table: Table, columns: tuple[str, ...]) -> Insert:
    return tx.dialect.insert_given(table, columns)


@dataclass(frozen=True, slots=True)
class TransactionRunner:
    """Begins, runs and ends the transactions of one database; it holds what all of them share."""

    tables: Tables
    dialect: Dialect
    database_clock: Callable[[], int] | None = None  # replaces the database's own clock; UTC microseconds
    points: Points | None = None
    clock: Clock = field(default_factory=SystemClock)
    random: Random = field(default_factory=Random)
    cache: dict[Any, Any] = field(default_factory=dict)  # statements built once, for all transactions

    def tx(
        self,
        connection: Connection,
        moment: Moment | None = None,
        *,
        unanswered: Sequence[Any] = (),
        is_callers: bool = False,
    ) -> Tx:
        """Return a `Tx` on an open connection; it neither begins nor ends anything."""
        return Tx(
            connection,
            self.tables,
            self.dialect,
            database_clock=self.database_clock,
            points=self.points,
            moment=moment,
            cache=self.cache,
            unanswered=unanswered,
            is_callers=is_callers,
        )

    def retries(self, patience: float = PATIENCE) -> Retries:
        """Return a new count of tries for one call; `patience` is in seconds."""
        return Retries(self.dialect, clock=self.clock, random=self.random, patience=patience)

    def run_transaction(
        self,
        connection: Connection,
        call: Callable[[Tx], R],
        *,
        write: bool = True,
        unanswered: list[R] | None = None,
    ) -> R:
        """Begin, run `call`, commit a write or end a read; whatever fails is rolled back and raised.

        `unanswered` is the memory of one call over all its tries: it keeps what a try returned whose COMMIT got no
        answer, for the next try to find in `Tx.unanswered`.
        """
        unanswered = [] if unanswered is None else unanswered
        tx = self.tx(connection, unanswered=tuple(unanswered))
        tx.point("begin")
        self.dialect.begin(connection, write=write)
        try:
            result = call(tx)
            if write:
                unanswered.append(result)
                self.commit(tx)
                unanswered.pop()
            else:
                self.dialect.rollback(connection)
        except CommitLost:
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                del unanswered[len(tx.unanswered) :]  # the database answered that this COMMIT has not happened
            if isinstance(error, Exception) or self.dialect.one_writer:
                self.roll_back(connection)
            raise  # the server pool throws away the connection of a cancelled greenlet
        return result

    def run_autocommit(self, connection: Connection, call: Callable[[Tx], R], *, write: bool = True) -> R:
        """Run `call` without a transaction around it: each statement commits by itself."""
        tx = self.tx(connection)
        try:
            return call(tx)
        except Exception as error:
            if write and self.dialect.classify(error) in (Fault.DISCONNECT, Fault.TIMEOUT):
                raise CommitLost from error  # the statement may have been committed
            raise

    def commit(self, tx: Tx) -> None:
        """Commit; raise `CommitLost` when the answer was lost, and the database's error when the COMMIT failed."""
        tx.point("commit")
        try:
            self.dialect.commit(tx.connection)
            tx.point("committed")
        except Exception as error:
            if not self.dialect.one_writer and self.dialect.classify(error) in (Fault.DISCONNECT, Fault.TIMEOUT):
                raise CommitLost from error
            raise

    def roll_back(self, connection: Connection) -> None:
        """Roll back what is open; on a dead connection the database has done so already."""
        try:
            if not connection.invalidated:
                self.dialect.rollback(connection)
        except Exception as error:
            connection.invalidate()  # its state is unknown; it must not serve another transaction
            if self.dialect.classify(error) is Fault.UNKNOWN:
                raise
