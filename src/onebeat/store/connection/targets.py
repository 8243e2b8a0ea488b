"""From what the user gave (URL, engine or function) to an engine of onebeat's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from onebeat.errors import ConfigurationError
from onebeat.store.connection.addresses import parse_address, show_address
from onebeat.store.dialects.base import Dialect
from onebeat.store.dialects.by_url import dialect_for


@dataclass(frozen=True, slots=True)
class Target:
    """Where the database is and how to open it; it makes no connection."""

    url: URL
    dialect: Dialect
    engine: Callable[..., AsyncEngine]  # from connect arguments, and options of an engine, to a new engine
    cautions: tuple[str, ...] = ()  # what the URL says in vain

    @property
    def where(self) -> str:
        """The URL for people; see `show_address`."""
        return show_address(self.url)


def read_target(target: str | URL | AsyncEngine | Callable[[], AsyncEngine]) -> Target:
    """Return the target that the user gave, without any I/O.

    Raises `ConfigurationError` for a URL that cannot be read, an unknown scheme or a driver that is not installed.

    >>> read_target("sqlite+aiosqlite:////srv/app.db").where
    'sqlite+pysqlite:////srv/app.db'
    """
    if isinstance(target, AsyncEngine):
        return _from_engine(lambda: target, target.url)
    if callable(target):
        return _from_engine(lambda: _made_by(target), _made_by(target).url)
    if not isinstance(target, str | URL):
        raise ConfigurationError(
            f"database is a {type(target).__name__}; give a URL, an AsyncEngine, or a function that returns a new one"
        )
    return _from_url(_parse_url(target))


def describe_target(target: str | URL | AsyncEngine | Callable[[], AsyncEngine]) -> str:
    """Return what the user gave as text for people; it calls no function and never raises.

    >>> describe_target("postgresql://shop:secret@db/shop?sslpassword=secret")
    'postgresql://shop:***@db/shop'
    """
    if isinstance(target, AsyncEngine):
        return show_address(target.url)
    if callable(target):
        return f"the engine of {getattr(target, '__qualname__', type(target).__name__)}()"
    return show_address(target)


def _parse_url(text: str | URL) -> URL:
    url = parse_address(text)
    if url is None:
        raise ConfigurationError(
            "the database URL cannot be read; it looks like sqlite:///app.db or postgresql://user:password@host:5432/"
            "name, with special characters of user and password written as %40 for @, %2F for /, %3F for ?, %23 for #"
        )
    dialect_for(url)
    return url


def _from_url(given: URL) -> Target:
    dialect = dialect_for(given)
    adapted = dialect.adapt(given)
    dialect.require_driver()

    def engine(connect_args: dict[str, Any], **options: Any) -> AsyncEngine:
        _require_files(adapted.files)
        arguments = {**adapted.arguments, **connect_args}
        made = create_async_engine(adapted.url, connect_args=arguments, **{**_OPTIONS, **options})
        return _prepared(made, dialect)

    return Target(adapted.url, dialect, engine, adapted.cautions)


def _require_files(files: Mapping[str, str]) -> None:
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise ConfigurationError(f"{name} in the database URL names {path}, which is no readable file")


def _prepared(engine: AsyncEngine, dialect: Dialect) -> AsyncEngine:
    """Let the dialect prepare each new connection, ahead of SQLAlchemy's own look at the server."""
    event.listen(engine.sync_engine, "connect", lambda connection, _record: dialect.on_connect(connection), insert=True)
    return engine


def _from_engine(make: Callable[[], AsyncEngine], url: URL) -> Target:
    dialect = dialect_for(url)
    if dialect.one_writer:
        return _from_url(url)
    shown = url.set(query={})  # the creator knows the query, which may hold a secret

    def engine(connect_args: dict[str, Any], **options: Any) -> AsyncEngine:
        def connect() -> Any:
            # The pool's creator knows the engine's URL, connect_args, creator and `do_connect` listeners. A function is
            # called for each connection: a token it put into its engine may be too old for the next one.
            return make().sync_engine.pool._creator()  # type: ignore[call-arg]  # the record it may take is for pools

        return _prepared(create_async_engine(shown, creator=connect, **{**_OPTIONS, **options}), dialect)

    return Target(shown, dialect, engine)


_OPTIONS: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True, "isolation_level": "AUTOCOMMIT"}


def _made_by(function: Callable[[], AsyncEngine]) -> AsyncEngine:
    engine = function()
    if not isinstance(engine, AsyncEngine):
        raise ConfigurationError(
            f"the function given as database returned {type(engine).__name__}; it must return a new AsyncEngine"
        )
    return engine
