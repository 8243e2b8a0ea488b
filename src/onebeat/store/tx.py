"""One transaction: what a store function receives, and how it is begun, ended and tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable

from onebeat.errors import DatabaseUnavailable, OnebeatError, SchemaOutOfDate
from onebeat.store.dialects.base import Dialect, bound_clock, select_clock
from onebeat.store.faults import Fault, causes
from onebeat.store.tables import Tables

R = TypeVar("R")
S = TypeVar("S")

PATIENCE = 10.0  # seconds of trying again while others hold locks


class Points(Protocol):
    """Where a test can stop, count or break a transaction.

    Names reached by themselves: `begin`, `statement` (before each, with `tx.statement` set), `executed` (after each),
    `commit` (before), `committed` (after, before anybody is told). An exception raised here happens as if the
    database had raised it at that place.
    """

    def reach(self, name: str, tx: Tx) -> None:
        """Called on the thread, or in the greenlet, that runs the transaction."""


class CommitUnknown(DatabaseUnavailable):
    """A COMMIT was sent, no answer came, and no later try got one either: it happened or it did not."""


class CommitLost(Exception):
    """The answer to a COMMIT was lost; a signal between `transact` and its retry loop, seen by nobody else."""


class Moment:
    """The deciding now of one transaction, read once; calls committed together share it."""

    __slots__ = ("now_us",)

    def __init__(self) -> None:
        self.now_us: int | None = None


class Tx:
    """One transaction. Every store function takes it as its first argument and sends every statement through it."""

    __slots__ = ("_cache", "_clock", "_moment", "_points", "connection", "dialect", "statement", "tables")

    def __init__(
        self,
        connection: Connection,
        tables: Tables,
        dialect: Dialect,
        *,
        clock: Callable[[], int] | None = None,
        points: Points | None = None,
        moment: Moment | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> None:
        self._cache: dict[Any, Any] = {} if cache is None else cache
        self.connection = connection
        self.tables = tables
        self.dialect = dialect
        self.statement: Executable | None = None  # the one at hand, for points
        self._clock = clock
        self._points = points
        self._moment = moment or Moment()

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement; `parameters` is a dict, or a list of dicts to run it for each."""
        if self._points is None:
            return self.connection.execute(statement, parameters)
        self.statement = statement
        self._points.reach("statement", self)
        result = self.connection.execute(statement, parameters)
        self._points.reach("executed", self)
        return result

    def prepared(self, build: Callable[..., S], *shape: Any) -> S:
        """The statement of `build(tx, *shape)`, built once for each shape: building costs more than running it.

        `build` reads nothing but the transaction's `tables`, `dialect` and `clock`; every value is a bind parameter.
        """
        key = (build, *shape)
        statement: S | None = self._cache.get(key)
        if statement is None:
            statement = self._cache[key] = build(self, *shape)
        return statement

    def now(self) -> int:
        """The first reading of the database's clock in this transaction, UTC microseconds: the now that decides."""
        if self._moment.now_us is None:
            if self._clock is not None:
                self._moment.now_us = self._clock()
            else:
                self._moment.now_us = int(self.execute(select_clock(self.dialect.clock_expression())).scalar_one())
        return self._moment.now_us

    @property
    def clock(self) -> ColumnElement[int]:
        """The database's now in UTC microseconds, for use inside a statement; a bound value under a virtual clock."""
        return self.dialect.clock_expression() if self._clock is None else bound_clock(self._clock)

    def point(self, name: str) -> None:
        """Where a test may stop this transaction; nothing in production."""
        if self._points is not None:
            self._points.reach(name, self)


@dataclass(frozen=True, slots=True)
class Ground:
    """What all transactions of one database stand on."""

    tables: Tables
    dialect: Dialect
    clock: Callable[[], int] | None = None
    points: Points | None = None
    cache: dict[Any, Any] = field(default_factory=dict)  # statements built once, for all transactions

    def tx(self, connection: Connection, moment: Moment | None = None) -> Tx:
        """A transaction's face over an open connection."""
        return Tx(
            connection, self.tables, self.dialect, clock=self.clock, points=self.points, moment=moment, cache=self.cache
        )

    def transact(self, connection: Connection, call: Callable[[Tx], R], *, write: bool = True) -> R:
        """Begin, run `call`, commit a write or end a read; whatever fails is rolled back and raised."""
        tx = self.tx(connection)
        tx.point("begin")
        self.dialect.begin(connection, write=write)
        try:
            result = call(tx)
            if write:
                self.commit(tx)
            else:
                self.dialect.rollback(connection)
        except CommitLost:
            raise
        except BaseException as error:
            if isinstance(error, Exception) or self.dialect.one_writer:
                self.undo(connection)
            raise  # a cancelled greenlet's connection is thrown away by its pool
        return result

    def plain(self, connection: Connection, call: Callable[[Tx], R], *, write: bool = True) -> R:
        """Run `call` without a transaction around it: each statement commits by itself."""
        tx = self.tx(connection)
        try:
            return call(tx)
        except Exception as error:
            if write and self.dialect.classify(error) in (Fault.DISCONNECT, Fault.TIMEOUT):
                raise CommitLost from error  # the statement may have gone through
            raise

    def commit(self, tx: Tx) -> None:
        """Commit, and tell a COMMIT that failed from one whose answer was lost."""
        tx.point("commit")
        try:
            self.dialect.commit(tx.connection)
            tx.point("committed")
        except Exception as error:
            if not self.dialect.one_writer and self.dialect.classify(error) in (Fault.DISCONNECT, Fault.TIMEOUT):
                raise CommitLost from error
            raise

    def undo(self, connection: Connection) -> None:
        """Roll back as far as there is something to roll back; a dead connection has done it already."""
        try:
            if not connection.invalidated:
                self.dialect.rollback(connection)
        except Exception as error:
            connection.invalidate()  # nobody knows what is open on it; it must not serve another transaction
            if self.dialect.classify(error) is Fault.UNKNOWN:
                raise


@dataclass(slots=True)
class Retries:
    """How often one transaction is tried again, and after which pause.

    Busy, deadlock and serialisation: full jitter up to half a second, for `patience`. A lost connection: at once on a
    new one, then with pauses, for two seconds, because somebody waits.
    """

    dialect: Dialect
    patience: float = PATIENCE  # since the first error
    lost_for: float = 2.0  # seconds since the first error
    tries: int = 0
    unknown: bool = False  # a COMMIT's answer was lost in one of the tries
    _since: float = 0.0
    _random: random.Random = field(default_factory=random.Random)

    def pause(self, error: Exception) -> float | None:
        """Seconds to wait before the next try; None when this error is final."""
        if self.tries == 0:
            self._since = time.monotonic()
        self.tries += 1
        if isinstance(error, CommitLost):
            self.unknown = True
        fault = self.fault(error)
        if fault is Fault.RETRY:
            pause, limit = self._random.uniform(0, min(0.5, 0.004 * 2**self.tries)), self.patience
        elif fault in (Fault.DISCONNECT, Fault.UNREACHABLE, Fault.READ_ONLY):
            pause, limit = self._random.uniform(0.05, 0.5) if self.tries > 1 else 0.0, self.lost_for
        else:
            return None
        return pause if time.monotonic() - self._since + pause <= limit else None

    def fault(self, error: Exception) -> Fault:
        """The meaning of an error of one try."""
        if isinstance(error, OnebeatError):
            return Fault.UNKNOWN  # a store function's own word
        if isinstance(error, CommitLost):
            return Fault.DISCONNECT
        return self.dialect.classify(error)

    def final(self, error: Exception, where: str) -> Exception:
        """What to raise when there is no further try: a typed error where a caller can act on it, else `error`."""
        if self.unknown:
            return CommitUnknown(
                f"the connection to {where} was lost while a COMMIT was under way and none could be made since; "
                "whether it happened is unknown. Ask again when the database answers: ids and tokens made before tell"
            )
        return explain_fault(self.fault(error), error, where)


_WORDS = {
    Fault.RETRY: "is held by another transaction all the time (busy or deadlock); shorten transactions that write",
    Fault.DISCONNECT: "closed the connection or answers no more; onebeat goes on when it is back",
    Fault.UNREACHABLE: "cannot be reached; is it running, and are host, port or path right?",
    Fault.READ_ONLY: "can only be read; give write permission, or name the primary server",
    Fault.FULL: "has no room left; free some, nothing was written",
    Fault.CORRUPT: "is damaged or is no database; stop every process that uses it and restore a copy",
    Fault.LOGIN: "refused the login; check user and password in the database URL",
    Fault.MISSING_DATABASE: "does not exist; create the database first",
    Fault.PERMISSION: "does not allow this to the URL's user; grant it, or run `onebeat migrate --sql` as one who may",
    Fault.TIMEOUT: "took longer over a statement than its limit",
}


def explain_fault(fault: Fault, error: Exception, where: str) -> Exception:
    """A typed error with what was found, what was expected and the next step; else `error` itself."""
    if fault is Fault.MISSING_TABLE:
        return SchemaOutOfDate(f"onebeat's tables are missing in {where}; run `onebeat migrate`")
    if fault in _WORDS:
        unavailable = DatabaseUnavailable(f"{where} {_WORDS[fault]} ({said(error)})", reason=str(fault))
        unavailable.__cause__ = error
        return unavailable
    return error


def said(error: BaseException) -> str:
    """The database's own words, on one line, without statement and parameters."""
    innermost = [cause for cause in causes(error) if isinstance(cause, Exception)][-1]
    if isinstance(innermost, TimeoutError) and not innermost.args:
        return "no answer in time"
    words = " ".join(str(argument) for argument in innermost.args) or type(innermost).__name__
    return " ".join(words.split())[:300]
