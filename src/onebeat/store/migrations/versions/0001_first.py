"""Creates the tables of a new database, as they are today; every change since the first is a revision of its own.

A new database runs this one alone and is marked as up to date. A database of revision 0001 runs those that follow, so
they describe each change in full, and each may run again after an interruption. `tests/store/schema/` holds the tables
of revision 0001 as they were, and a test upgrades them.
"""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy.schema import CreateIndex, CreateTable

from onebeat.store.tables import Tables
from onebeat.store.tables.columns import indexes

revision = "0001"
down_revision = None


def upgrade(operations: Operations, tables: Tables) -> None:
    """Create what is not there yet: where each statement commits by itself, an interrupted run is repeated."""
    context = operations.get_context()
    for table in tables.metadata.sorted_tables:
        operations.execute(CreateTable(table, if_not_exists=not context.as_sql))
        for index in indexes(table, context.dialect):
            if context.as_sql:
                operations.execute(CreateIndex(index))
            else:
                index.create(operations.get_bind(), checkfirst=True)
