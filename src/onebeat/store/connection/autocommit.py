"""Whether each statement on a connection of the caller commits by itself."""

from __future__ import annotations

from sqlalchemy import Connection


def is_autocommit(connection: Connection) -> bool:
    """Return whether `connection` is in driver autocommit, so that each statement commits by itself.

    SQLAlchemy decides by the option of the connection, else by that of its engine. `get_isolation_level()` does not
    tell: it answers the level that the server would use in a transaction.
    """
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(connection.engine.dialect, "_on_connect_isolation_level", None)
    return level == "AUTOCOMMIT"
