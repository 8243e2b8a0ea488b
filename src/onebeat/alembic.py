"""Keeps the application's own Alembic away from onebeat's tables."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Literal

from onebeat.store.tables import build

Kind = Literal["schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint", "check_constraint"]
Parents = MutableMapping[
    Literal["schema_name", "table_name", "schema_qualified_table_name"], str | None
]  # as Alembic names them
IncludeName = Callable[[str | None, Kind, Parents], bool]


def excluding(prefix: str) -> IncludeName:
    """An `include_name` for tables made with another `table_prefix`.

    >>> excluding("shop_")("shop_jobs", "table", {})
    False
    """
    tables = build(prefix)
    own = {table.name for table in tables.metadata.sorted_tables} | {tables.version_table}

    def include_name(name: str | None, type_: Kind, parent_names: Parents) -> bool:
        return not (type_ == "table" and name in own)

    return include_name


def include_name(name: str | None, type_: Kind, parent_names: Parents) -> bool:
    """Say no to onebeat's tables, so that `alembic revision --autogenerate` does not propose to drop them.

    In the application's `env.py`, online and offline:

        from onebeat.alembic import include_name
        context.configure(connection=connection, target_metadata=metadata, include_name=include_name)

    With another prefix use `excluding("my_prefix_")`; with an `include_name` of your own, call this one in it.

    >>> include_name("onebeat_jobs", "table", {}), include_name("users", "table", {})
    (False, True)
    """
    return _default(name, type_, parent_names)


_default = excluding("onebeat_")
