"""Small pieces of SQL that several store modules share: literal states, conditions, padded lists, index hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Integer, Select, String, Table, func, literal_column

from onebeat.model.job import JobState

T = TypeVar("T")


def word(state: str) -> ColumnElement[str]:
    """One of onebeat's own words, written into the statement so that partial indexes on it can be used."""
    if not str(state).isalpha():
        raise ValueError(f"{state!r} is no state; only onebeat's own words are written into statements")
    return literal_column(f"'{state}'", String)


def number(value: int) -> ColumnElement[int]:
    """One of onebeat's own numbers, written into the statement so that partial indexes on it can be used."""
    return literal_column(str(int(value)), Integer)


def use_index(query: Select[Any], table: Table, name: str | None) -> Select[Any]:
    """Make MySQL and MariaDB use this index of the table, None: its primary key; the others choose it by its condition.

    They guess from counted samples, and take another one where most rows have one state.
    """
    hint = "FORCE INDEX (PRIMARY)" if name is None else f"FORCE INDEX ({table.name}_{name})"
    return query.with_hint(table, hint, "mysql").with_hint(table, hint, "mariadb")


QUEUED = word(JobState.QUEUED)
SCHEDULED = word(JobState.SCHEDULED)
WAITING = word(JobState.WAITING)
RUNNING = word(JobState.RUNNING)


def unindexed(column: ColumnElement[T]) -> ColumnElement[T]:
    """The column's value, for which no index is used: a condition on rows that their primary key finds.

    PostgreSQL would read an index on a state instead while its statistics say that few rows are in that state.
    """
    return func.coalesce(column, column, type_=column.type)


def padded(values: Sequence[T]) -> list[T]:
    """`values` with its last one repeated up to a power of two, so that few statement texts serve every length.

    >>> padded([1, 2, 3])
    [1, 2, 3, 3]
    """
    size = 1 << max(0, len(values) - 1).bit_length()
    return [*values, *[values[-1]] * (size - len(values))]
