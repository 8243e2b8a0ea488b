"""Everything of the first release; edited in place until 0.1.0 is out, never after."""

from __future__ import annotations

from alembic.operations import Operations

from onebeat.store.tables import Tables

revision = "0001"
down_revision = None


def upgrade(operations: Operations, tables: Tables) -> None:
    """Create what is not there yet: where a statement of the definition commits by itself, this may run again."""
    context = operations.get_context()
    for table in tables.metadata.sorted_tables:
        if context.as_sql:
            context.impl.create_table(table)
        else:
            connection = operations.get_bind()
            table.create(connection, checkfirst=True)
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                index.create(connection, checkfirst=True)
