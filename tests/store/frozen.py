"""The schema of each revision as SQL text, kept in `schema/`: what a database of that revision was created with.

`python -m tests.store.frozen` writes the files of the newest revision. Run it once, when a revision is added.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from onebeat.store.tables import SCHEMA_VERSION, Tables, build
from onebeat.store.tables.columns import indexes

FOLDER = Path(__file__).parent / "schema"
DIALECTS: dict[str, Dialect] = {
    kind: make_url(f"{kind}://").get_dialect()() for kind in ("sqlite", "postgresql", "mariadb")
}


def statements(tables: Tables, kind: str) -> list[str]:
    """Return what creates the tables on this kind of database, one statement a line, always in the same order."""
    made: list[CreateTable | CreateIndex] = []
    for table in sorted(tables.metadata.sorted_tables, key=lambda table: table.name):
        made.append(CreateTable(table))
        made.extend(CreateIndex(index) for index in indexes(table, DIALECTS[kind]))
    return [re.sub(r"\s+", " ", str(item.compile(dialect=DIALECTS[kind]))).strip() for item in made]


def file_of(version: str, kind: str) -> Path:
    """Return where the schema of a revision stands for this kind of database."""
    return FOLDER / f"{version}.{kind}.sql"


def versions() -> list[str]:
    """Return the revisions whose schema is kept, oldest first."""
    return sorted({path.name.partition(".")[0] for path in FOLDER.glob("*.sql")})


def read(version: str, kind: str) -> list[str]:
    """Return the statements that created a database of this revision."""
    text = file_of(version, kind).read_text("utf-8")
    return [statement for statement in text.split(";\n") if statement]


def write(version: str) -> None:
    """Keep the schema that this code describes as the one of this revision."""
    for kind in DIALECTS:
        file_of(version, kind).write_text("".join(f"{item};\n" for item in statements(build(), kind)), "utf-8")


if __name__ == "__main__":
    write(SCHEMA_VERSION)
