"""Column types that every database stores and compares alike, and what all tables share."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Column, Index, MetaData, String, Table, Text, Uuid, text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

PRINCIPAL = 255  # characters of the name of a person or of `cli:user@host`


def name_type(length: int = 200) -> TypeEngine[str]:
    """Return the type of a key, a state or an id: ASCII, compared byte by byte on every database."""
    return (
        String(length)
        .with_variant(String(length, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def words_type(length: int) -> TypeEngine[str]:
    """Return the type of short free text in any script; it is never a key."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


def text_type() -> TypeEngine[str]:
    """Return the type of free text and of canonical JSON, up to 16 MiB; it is never a key."""
    return Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


class JobId(TypeDecorator[UUID]):
    """A UUIDv7, stored so that byte order is time order on every database."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Native on PostgreSQL, 32 hex digits elsewhere (MariaDB's own UUID type reorders the bytes)."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.CHAR(32, charset="ascii", collation="ascii_bin"))
        return dialect.type_descriptor(String(32))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> object:
        """Return what the column holds for this id."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.hex

    def process_result_value(self, value: object, dialect: Dialect) -> UUID | None:
        """Return the id that the column's value stands for."""
        if value is None or isinstance(value, UUID):
            return value
        return UUID(hex=str(value))


def new_table(metadata: MetaData, name: str, *items: Column[Any] | Index) -> Table:
    """Describe a table; on MySQL and MariaDB it is transactional and compares text byte by byte."""
    return Table(name, metadata, *items, mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")


def where(condition: str) -> dict[str, Any]:
    """Return the options of a partial index; MySQL and MariaDB have none and make a plain index of it."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


_ONLY = "dialects"  # key of an index's `info`: the dialects on which it exists


def partial_only() -> dict[str, Any]:
    """Return the `info` of an index that exists only where indexes can be partial."""
    return {_ONLY: ("postgresql", "sqlite")}


def plain_only() -> dict[str, Any]:
    """Return the `info` of an index that stands in for partial ones on MySQL and MariaDB."""
    return {_ONLY: ("mysql", "mariadb")}


def indexes(table: Table, dialect: Dialect) -> list[Index]:
    """Return the indexes that the table has on this database, by name."""
    found = [index for index in table.indexes if dialect.name in index.info.get(_ONLY, (dialect.name,))]
    return sorted(found, key=lambda index: str(index.name))


def pause_columns() -> list[Column[Any]]:
    """Describe a pause of a queue or task: since when, until when, by whom and why (SEMANTICS 53)."""
    return [
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        Column("paused_us", BigInteger),
        Column("paused_reason", text_type()),
        Column("paused_by", words_type(PRINCIPAL)),
        Column("pause_until_us", BigInteger),  # None: until somebody resumes
    ]
