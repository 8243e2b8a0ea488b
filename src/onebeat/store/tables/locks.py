"""The tables of locks, of the fences that guard resources, and of what identifies these tables."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, String, Table

from onebeat.store.tables.columns import name_type, new_table, text_type


def locks(metadata: MetaData, p: str) -> Table:
    """Describe named locks; the row and its fence survive release."""
    return new_table(
        metadata,
        f"{p}locks",
        Column("name", name_type(), primary_key=True),
        Column("owner", name_type(32)),  # random for each acquisition
        Column("fence", BigInteger, nullable=False),
        Column("expires_us", BigInteger, nullable=False),
        Column("acquired_us", BigInteger),
        Column("holder", String(255)),  # host and pid, for people only
    )


def fences(metadata: MetaData, p: str) -> Table:
    """Describe the newest fence that wrote to each guarded resource."""
    return new_table(
        metadata,
        f"{p}fences",
        Column("resource", name_type(), primary_key=True),
        Column("fence", BigInteger, nullable=False),  # the largest that a guarded write has named
    )


def meta(metadata: MetaData, p: str) -> Table:
    """Describe what a foreign session recognises this database by: instance id, major number, app."""
    return new_table(
        metadata,
        f"{p}meta",
        Column("key", name_type(64), primary_key=True),
        Column("value", text_type(), nullable=False),
    )
