"""From what the user gave (URL, engine or function) to an engine of onebeat's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from onebeat.errors import ConfigurationError
from onebeat.store.dialects import Dialect, dialect_for


@dataclass(frozen=True, slots=True)
class Target:
    """Where the database is and how to open it; it makes no connection."""

    url: URL
    dialect: Dialect
    engine: Callable[[dict[str, Any]], AsyncEngine]  # from connect arguments to a new engine

    @property
    def where(self) -> str:
        """For people: the URL with the password hidden."""
        return self.url.render_as_string(hide_password=True)


def aim(target: str | URL | AsyncEngine | Callable[[], AsyncEngine]) -> Target:
    """Read what the user gave; no I/O.

    Raises `ConfigurationError` for a URL that cannot be read, an unknown scheme or a driver that is not installed.

    >>> aim("sqlite+aiosqlite:///app.db").where
    'sqlite+pysqlite:///app.db'
    """
    if isinstance(target, AsyncEngine):
        return _from_engine(lambda: target, target.url)
    if callable(target):
        return _from_engine(target, _made_by(target).url)
    return _from_url(_read(target))


def _read(text: str | URL) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "the database URL cannot be read; it looks like sqlite:///app.db or "
            "postgresql://user:password@host:5432/name, with special characters written as %40, %2F, …"
        ) from None
    dialect_for(url)
    return url


def _from_url(given: URL) -> Target:
    dialect = dialect_for(given)
    url, own = dialect.adapt(given)
    dialect.require_driver()

    def engine(connect_args: dict[str, Any]) -> AsyncEngine:
        return create_async_engine(url, connect_args={**own, **connect_args}, **_OPTIONS)

    return Target(url, dialect, engine)


def _from_engine(make: Callable[[], AsyncEngine], url: URL) -> Target:
    dialect = dialect_for(url)
    if dialect.one_writer:
        return _from_url(url)

    def engine(connect_args: dict[str, Any]) -> AsyncEngine:
        source = make()
        # The pool's creator knows the engine's URL, connect_args, creator and `do_connect` listeners.
        return create_async_engine(source.url, creator=source.sync_engine.pool._creator, **_OPTIONS)

    return Target(url, dialect, engine)


_OPTIONS: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True, "isolation_level": "AUTOCOMMIT"}


def _made_by(function: Callable[[], AsyncEngine]) -> AsyncEngine:
    engine = function()
    if not isinstance(engine, AsyncEngine):
        raise ConfigurationError(
            f"the function given as database returned {type(engine).__name__}; it must return a new AsyncEngine"
        )
    return engine
