"""A Redis server of one's own, which tests may flush, kill and give users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import RedisServer


@pytest.fixture
def redis_server(redis_url: str) -> Iterator[RedisServer]:
    """Where a Redis can be reached, its program is there too."""
    server = RedisServer()
    server.start()
    yield server
    server.close()
