"""Reading and showing addresses of databases and Redis, whatever characters their passwords have."""

from __future__ import annotations

import re

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from onebeat.errors import ConfigurationError
from onebeat.store.connection.sqlite_file import file_of
from onebeat.store.dialects.by_url import dialect_for

UNREADABLE = "an address that cannot be read"
_USER_INFO = re.compile(r"[\w+]+://[^:/]*:[^@]*@(?P<rest>.*)", re.DOTALL)  # as SQLAlchemy reads it


def parse_address(address: str | URL) -> URL | None:
    """Return the parts of an address, or None where it is unclear which part belongs to the password.

    An `@` after the one that ends the password means that the password itself has an unescaped `@`: all between
    the two would be taken for a host, a database or a parameter, and shown.

    >>> parse_address("postgresql://shop:p@ss@db/shop") is None
    True
    >>> parse_address("postgresql://shop:p/s?s#@db/shop").password
    'p/s?s#'
    """
    if isinstance(address, str) and (found := _USER_INFO.match(address)) and "@" in found["rest"]:
        return None
    try:
        return make_url(address)
    except (ArgumentError, ValueError):
        return None


def show_address(address: str | URL) -> str:
    """Return an address as text for people: without password and query, with a SQLite file's whole path.

    Every message, `repr` and log line gets the text of an address from here. It never raises; what cannot be read is a
    fixed text.

    >>> show_address("postgresql://shop:secret@db/shop?sslpassword=secret")
    'postgresql://shop:***@db/shop'
    >>> show_address("redis://:secret@cache:6379/0")
    'redis://:***@cache:6379/0'
    >>> show_address("sqlite://")
    'sqlite:///:memory:'
    >>> show_address("redis://:sec@ret@cache")
    'an address that cannot be read'
    """
    url = parse_address(address)
    if url is None:
        return UNREADABLE
    if _is_file(url):
        return f"{url.set(database='', query={})}{file_of(url) or ':memory:'}"
    return url.set(query={}).render_as_string(hide_password=True)


def _is_file(url: URL) -> bool:
    try:
        return dialect_for(url).one_writer
    except ConfigurationError:  # no database that onebeat knows
        return False
