"""Each back end passes the contract; what only one of them promises follows in its own file."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from onebeat.locks import DatabaseLocks, FileLocks, RedisLocks
from onebeat.testing.lock_contract import LockContract, MakeLocks


class TestDatabaseLocks(LockContract):
    @pytest.fixture
    def make_locks(self, database_url: str) -> MakeLocks:
        return lambda: DatabaseLocks(database_url)


class TestFileLocks(LockContract):
    leased = False

    @pytest.fixture
    def make_locks(self, tmp_path: Path) -> MakeLocks:
        return lambda: FileLocks(tmp_path / "locks")


class TestRedisLocks(LockContract):
    @pytest.fixture
    def make_locks(self, redis_url: str) -> MakeLocks:
        prefix = f"onebeat-test-{secrets.token_hex(6)}"
        return lambda: RedisLocks(redis_url, prefix=prefix)
