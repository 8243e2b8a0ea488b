"""fence_guard: refuse a stale writer inside the user's own transaction."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, overload

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from onebeat.errors import ConfigurationError, LeaseLost, SchemaOutOfDate
from onebeat.locks.request import lock_name
from onebeat.store.connection.callers_session import connection_of, is_async, run_on_connection
from onebeat.store.dialects.by_url import dialect_for
from onebeat.store.faults import Fault
from onebeat.store.locks import guard
from onebeat.store.tables import Tables, build
from onebeat.store.tx import Tx

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

_tables = lru_cache(maxsize=16)(build)


@overload
def fence_guard(
    session: AsyncSession | AsyncConnection,
    resource: str,
    fence: int,
    *,
    table_prefix: str = ...,
    schema: str | None = ...,
) -> Awaitable[None]: ...


@overload
def fence_guard(
    session: Session | Connection, resource: str, fence: int, *, table_prefix: str = ..., schema: str | None = ...
) -> None: ...


def fence_guard(
    session: AsyncSession | AsyncConnection | Session | Connection,
    resource: str,
    fence: int,
    *,
    table_prefix: str = "onebeat_",
    schema: str | None = None,
) -> Awaitable[None] | None:
    """Refuse a stale writer: raises `LeaseLost` when a larger fence has been here before.

    Call it in the transaction that does the writing, before or after the writes: ``await fence_guard(session, "report",
    lease.fence)`` with an `AsyncSession` or `AsyncConnection`, without ``await`` with a `Session` or `Connection`.
    It remembers the largest fence of each resource in onebeat's tables of that database (`table_prefix`, `schema`) and
    keeps the row locked until the transaction ends, so guarded writers follow each other. When it raises, let the
    transaction roll back. `SchemaOutOfDate` where that table is missing. Fences of different locks must not guard one
    resource: they are not comparable.
    """
    if isinstance(fence, bool) or not isinstance(fence, int) or not 0 <= fence < 1 << 63:
        raise ConfigurationError(f"a fence is the number `lease.fence`, and this is {fence!r:.80}")
    work = partial(_guard, tables=_tables(table_prefix, schema), resource=lock_name(resource), fence=fence)
    if is_async(session):
        return run_on_connection(session, work)
    work(connection_of(session))  # type: ignore[arg-type]  # the asynchronous kinds returned above
    return None


def _guard(connection: Connection, *, tables: Tables, resource: str, fence: int) -> None:
    tx = Tx(connection, tables, dialect_for(connection.engine.url))
    try:
        largest = guard(tx, resource, fence)
    except DBAPIError as error:
        if tx.dialect.classify(error) is Fault.MISSING_TABLE:
            raise SchemaOutOfDate(
                f"fence_guard keeps fences in {tables.fences.fullname}, which is missing in this session's database; "
                "run `onebeat migrate` on it, or name its table_prefix and schema"
            ) from error
        raise
    if largest > fence:
        raise LeaseLost(
            f"{resource!r} was written under fence {largest}, and this writer holds fence {fence}: "
            "its lease was lost and somebody else has been here since; let this transaction roll back"
        )
