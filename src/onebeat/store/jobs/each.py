"""One change of many jobs, each with values of its own, in few round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Update, bindparam, case

from onebeat.store.sql import padded
from onebeat.store.tx import Tx

Value = Callable[[str], ColumnElement[Any]]  # the value that a job is given, by its name in the rows
Build = Callable[[Tx, Value], Update]

AT_ONCE = 128  # jobs in one statement; a job finds its values by comparing its id with those before it
LONGEST = 1 << 20  # characters of one statement's values: servers refuse a statement of 16 MiB and more
COLUMNS = {"delay": "run_at_us", "refund": "attempt"}  # values that are no column's own: their type is this column's


def update_each(tx: Tx, build: Build, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run the UPDATE that `build(tx, value)` returns for the job `id` of each row, with the other values of that row.

    `build` leaves the condition on the id to this function. All rows have the same names, and each another id.
    """
    if tx.dialect.pipelines:
        tx.execute(tx.prepared(_for_one, build), [_named(row) for row in rows])
        return
    for part in _parts(rows):
        part = padded(part)
        same = {name: value for name, value in part[0].items() if all(row[name] == value for row in part)}
        own = tuple(name for name in part[0] if name not in same and name != "id")
        values = _named(same) | {"b_ids": [row["id"] for row in part]}
        for place, row in enumerate(part):
            values |= {f"b_{name}_{place}": row[name] for name in ("id", *own)}
        tx.execute(tx.prepared(_for_all, build, own, len(part)), values)


def _parts(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    part: list[Mapping[str, Any]] = []
    length = 0
    for row in rows:
        size = sum(len(value) for value in row.values() if isinstance(value, str))
        if part and (len(part) == AT_ONCE or length + size > LONGEST):
            yield part
            part, length = [], 0
        part.append(row)
        length += size
    if part:
        yield part


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"b_{name}": value for name, value in row.items()}


def _for_one(tx: Tx, build: Build) -> Update:
    return build(tx, partial(_bound, tx)).where(tx.tables.jobs.c.id == _bound(tx, "id"))


def _for_all(tx: Tx, build: Build, own: tuple[str, ...], size: int) -> Update:
    id = tx.tables.jobs.c.id

    def value(name: str) -> ColumnElement[Any]:
        if name not in own:
            return _bound(tx, name)
        return case(*((id == _bound(tx, "id", place), _bound(tx, name, place)) for place in range(size)))

    return build(tx, value).where(tx.dialect.among(id, "b_ids"))


def _bound(tx: Tx, name: str, place: int | None = None) -> BindParameter[Any]:
    c = tx.tables.jobs.c
    return bindparam(f"b_{name}" if place is None else f"b_{name}_{place}", type_=c[COLUMNS.get(name, name)].type)
