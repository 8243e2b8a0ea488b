"""How a database plans the statements that a store function sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from onebeat.store.tx import Tx

EXPLAINED = ("SELECT", "UPDATE", "DELETE")


def plans_of(tx: Tx, call: Callable[[Tx], Any], verb: str | None = None) -> list[tuple[str, str]]:
    """Run `call` in this transaction; each statement of it and its plan, a line for each step."""
    found: list[tuple[str, str]] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, __: Any, many: bool) -> None:
        if statement.startswith(EXPLAINED):
            cursor.execute(f"{verb or tx.dialect.explain_verb} {statement}", parameters[0] if many else parameters)
            rows = [" ".join(str(value) for value in row) for row in cursor.fetchall()]
            found.append((statement, "\n".join(rows)))

    event.listen(tx.connection, "before_cursor_execute", explain)
    try:
        call(tx)
    finally:
        event.remove(tx.connection, "before_cursor_execute", explain)
    return found
