"""Empty databases: the workers of these tests make the tables themselves, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def url(fresh_database_url: str) -> str:
    """On each kind of database that can be reached."""
    return fresh_database_url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """For what does not depend on the kind of database."""
    return f"sqlite:///{tmp_path / 'app.db'}"
