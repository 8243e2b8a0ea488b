"""What a database error means, whatever database and driver it came from."""

from __future__ import annotations

import asyncio
import sqlite3
import ssl
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, DisconnectionError


class Fault(StrEnum):
    """The few meanings that decide what happens next.

    >>> Fault.RETRY.passing, Fault.CORRUPT.passing
    (True, False)
    """

    RETRY = "retry"  # busy, deadlock, serialisation, lock wait over: the same transaction again
    DISCONNECT = "disconnect"  # the connection is gone or answers no more; a COMMIT under way is unknown
    UNREACHABLE = "unreachable"  # no connection could be made
    READ_ONLY = "read-only"  # a standby after a failover, a file without write permission
    FULL = "full"  # disk, quota or page limit
    CORRUPT = "corrupt"  # the file is damaged or no database; stop, do not write on
    LOGIN = "login"  # user, password or host rule refused
    MISSING_DATABASE = "missing-database"
    MISSING_TABLE = "missing-table"
    PERMISSION = "permission"  # logged in, but not allowed to do this
    DUPLICATE = "duplicate"  # a unique index said no
    TIMEOUT = "timeout"  # the statement ran longer than its limit
    UNKNOWN = "unknown"

    @property
    def passing(self) -> bool:
        """Whether waiting and trying again may help without anybody doing something."""
        return self in (Fault.RETRY, Fault.DISCONNECT, Fault.UNREACHABLE, Fault.READ_ONLY, Fault.FULL)


# Result codes: https://www.sqlite.org/rescode.html (the low byte is the primary code).
_SQLITE = {
    3: Fault.PERMISSION,
    5: Fault.RETRY,  # BUSY, and BUSY_SNAPSHOT as its extension
    6: Fault.RETRY,  # LOCKED
    8: Fault.READ_ONLY,
    10: Fault.DISCONNECT,  # IOERR: the connection is opened anew
    11: Fault.CORRUPT,
    13: Fault.FULL,
    14: Fault.UNREACHABLE,  # CANTOPEN
    15: Fault.RETRY,  # PROTOCOL: the race to lock a WAL was lost
    23: Fault.PERMISSION,
    26: Fault.CORRUPT,  # NOTADB
}
_SQLITE_UNIQUE = (1555, 2067)  # CONSTRAINT_PRIMARYKEY, CONSTRAINT_UNIQUE

# SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html; five characters, else their class of two.
_POSTGRESQL = {
    "40001": Fault.RETRY,  # serialisation
    "40P01": Fault.RETRY,  # deadlock
    "55P03": Fault.RETRY,  # lock_timeout
    "26000": Fault.RETRY,  # a pooler gave us another server connection than the one that prepared
    "42P05": Fault.RETRY,
    "25006": Fault.READ_ONLY,
    "25P03": Fault.DISCONNECT,  # idle_in_transaction_session_timeout
    "57014": Fault.TIMEOUT,
    "57P01": Fault.DISCONNECT,
    "57P02": Fault.DISCONNECT,
    "57P03": Fault.UNREACHABLE,  # starting up
    "57P05": Fault.DISCONNECT,
    "53100": Fault.FULL,
    "53300": Fault.UNREACHABLE,  # too many connections
    "53": Fault.UNREACHABLE,
    "08": Fault.DISCONNECT,
    "28": Fault.LOGIN,
    "3D000": Fault.MISSING_DATABASE,
    "3F000": Fault.MISSING_TABLE,  # no such schema
    "42P01": Fault.MISSING_TABLE,
    "42501": Fault.PERMISSION,
    "23505": Fault.DUPLICATE,
    "XX001": Fault.CORRUPT,
    "XX002": Fault.CORRUPT,
}

# https://mariadb.com/kb/en/mariadb-error-codes/ ; 2xxx are the client's own.
_MYSQL = {
    1205: Fault.RETRY,  # lock wait timeout
    1213: Fault.RETRY,  # deadlock
    1020: Fault.RETRY,  # record changed (innodb_snapshot_isolation)
    1615: Fault.RETRY,  # a prepared statement needs to be prepared anew
    1637: Fault.RETRY,  # too many transactions at once
    3101: Fault.RETRY,  # Group Replication rolled back a transaction that conflicts with another member's
    1290: Fault.READ_ONLY,
    1792: Fault.READ_ONLY,
    1836: Fault.READ_ONLY,
    1021: Fault.FULL,
    1114: Fault.FULL,
    1045: Fault.LOGIN,
    1698: Fault.LOGIN,
    1251: Fault.LOGIN,
    1130: Fault.LOGIN,
    1044: Fault.PERMISSION,
    1142: Fault.PERMISSION,
    1143: Fault.PERMISSION,
    1227: Fault.PERMISSION,
    1046: Fault.MISSING_DATABASE,  # the address names none
    1049: Fault.MISSING_DATABASE,
    1146: Fault.MISSING_TABLE,
    1062: Fault.DUPLICATE,
    1040: Fault.UNREACHABLE,  # too many connections
    1041: Fault.UNREACHABLE,  # out of memory
    1047: Fault.UNREACHABLE,  # Galera: this node is no part of the cluster, or not yet
    1135: Fault.UNREACHABLE,  # no thread for another connection
    1203: Fault.UNREACHABLE,
    1226: Fault.UNREACHABLE,  # the user's limit of connections or queries
    3032: Fault.UNREACHABLE,  # offline mode
    3168: Fault.UNREACHABLE,  # starting up or shutting down
    1053: Fault.DISCONNECT,  # server shutdown
    1077: Fault.DISCONNECT,
    1317: Fault.DISCONNECT,  # query interrupted: KILL, shutdown
    1079: Fault.DISCONNECT,  # shutdown complete
    1080: Fault.DISCONNECT,  # shutdown closes the connection
    1184: Fault.DISCONNECT,
    1927: Fault.DISCONNECT,  # connection was killed
    3169: Fault.DISCONNECT,  # session was killed
    4031: Fault.DISCONNECT,  # the server closed a connection that was idle for `wait_timeout`
    1152: Fault.DISCONNECT,
    1153: Fault.UNKNOWN,  # packet too large
    1158: Fault.DISCONNECT,
    1159: Fault.DISCONNECT,
    1160: Fault.DISCONNECT,
    1161: Fault.DISCONNECT,
    1969: Fault.TIMEOUT,  # max_statement_time
    3024: Fault.TIMEOUT,
    2002: Fault.UNREACHABLE,
    2003: Fault.UNREACHABLE,
    2005: Fault.UNREACHABLE,
    2006: Fault.DISCONNECT,
    2013: Fault.DISCONNECT,
    2014: Fault.DISCONNECT,
    2055: Fault.DISCONNECT,
    1034: Fault.CORRUPT,
    1194: Fault.CORRUPT,
}


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, nearest first, without loops."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain and len(chain) < 10:
        chain.append(at)
        inner = getattr(at, "orig", None)
        at = inner if isinstance(inner, BaseException) else at.__cause__ or at.__context__
    return chain


def sqlite_fault(error: BaseException) -> Fault:
    """Read `sqlite_errorcode`, which the standard driver sets since Python 3.11."""
    for cause in causes(error):
        if not isinstance(cause, sqlite3.Error):
            continue
        code = getattr(cause, "sqlite_errorcode", None)
        if code in _SQLITE_UNIQUE:
            return Fault.DUPLICATE
        if code is not None and code & 0xFF in _SQLITE:
            return _SQLITE[code & 0xFF]
        if "no such table" in str(cause):
            return Fault.MISSING_TABLE
    return _transport(error)


def postgresql_fault(error: BaseException) -> Fault:
    """Read the SQLSTATE, from asyncpg's own exception, psycopg's, or SQLAlchemy's copy of it."""
    for cause in causes(error):
        if type(cause).__name__ == "InvalidCachedStatementError":
            return Fault.RETRY  # a table changed under a prepared statement, which is prepared anew
        state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if isinstance(state, str):
            return _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]) or Fault.UNKNOWN
        name = type(cause).__name__
        if name in ("ConnectionDoesNotExistError", "ConnectionFailureError", "InternalClientError"):
            return Fault.DISCONNECT
        if name == "InterfaceError" and "clos" in str(cause):  # "connection is closed", "… was closed in the middle"
            return Fault.DISCONNECT
    return _transport(error)


def mysql_fault(error: BaseException) -> Fault:
    """Read the number, the first argument of every error of the driver."""
    for cause in causes(error):
        number = cause.args[0] if cause.args else None
        if isinstance(number, int) and not isinstance(cause, OSError) and number in _MYSQL:
            return _MYSQL[number]
        if type(cause).__name__ == "InterfaceError":  # (0, 'Not connected')
            return Fault.DISCONNECT
    return _transport(error)


def _transport(error: BaseException) -> Fault:
    """What the network said, when the database said nothing."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):  # an OSError, which no waiting mends
            return Fault.UNKNOWN
        if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
            return Fault.UNREACHABLE
        if isinstance(cause, DisconnectionError | ConnectionError | EOFError | asyncio.IncompleteReadError):
            return Fault.DISCONNECT
        if isinstance(cause, TimeoutError | OSError):
            return Fault.UNREACHABLE
        if isinstance(cause, DBAPIError) and cause.connection_invalidated:
            return Fault.DISCONNECT
    return Fault.UNKNOWN
