"""Indexes queued jobs by queue and task, so that a claim passes no jobs of others."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import inspect
from sqlalchemy.schema import CreateIndex

from onebeat.store.tables import Tables
from onebeat.store.tables.columns import indexes

revision = "0002"
down_revision = "0001"


def upgrade(operations: Operations, tables: Tables) -> None:
    """Create the new index before the old one goes, so that workers of the old code are served while it is built."""
    old, new = f"{tables.jobs.name}_claim", {f"{tables.jobs.name}_queue", f"{tables.jobs.name}_queued"}
    jobs, context = tables.jobs, operations.get_context()
    there = {old}
    if not context.as_sql:
        there = {str(index["name"]) for index in inspect(context.bind).get_indexes(jobs.name, schema=jobs.schema)}
    for index in indexes(jobs, context.dialect):
        if index.name in new - there:
            operations.execute(CreateIndex(index))
    if old in there:
        operations.drop_index(old, table_name=jobs.name, schema=jobs.schema)
