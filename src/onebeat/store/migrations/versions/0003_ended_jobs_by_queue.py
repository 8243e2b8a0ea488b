"""Indexes ended jobs by queue and task before their age, so that lists and counts of few jobs read no others."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import inspect
from sqlalchemy.schema import CreateIndex

from onebeat.store.tables import Tables
from onebeat.store.tables.columns import indexes

revision = "0003"
down_revision = "0002"


def upgrade(operations: Operations, tables: Tables) -> None:
    """Create the new index before the old one goes, so that workers of the old code are served while it is built."""
    old, new = f"{tables.jobs.name}_ended", f"{tables.jobs.name}_kinds"
    jobs, context = tables.jobs, operations.get_context()
    partial = [index for index in indexes(jobs, context.dialect) if index.name == new]
    there = {old} if partial else set()
    if not context.as_sql:
        there = {str(index["name"]) for index in inspect(context.bind).get_indexes(jobs.name, schema=jobs.schema)}
    for index in partial:
        if index.name not in there:
            operations.execute(CreateIndex(index))
    if old in there:
        operations.drop_index(old, table_name=jobs.name, schema=jobs.schema)
