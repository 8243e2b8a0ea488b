"""Which of them a database URL names."""

from __future__ import annotations

from sqlalchemy.engine import URL

from onebeat.errors import ConfigurationError
from onebeat.store.dialects.base import Dialect
from onebeat.store.dialects.mysql import MySQL
from onebeat.store.dialects.postgresql import PostgreSQL
from onebeat.store.dialects.sqlite import SQLite

_DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL(), "mysql": MySQL(), "mariadb": MySQL()}
_ALIASES = {"postgres": "postgresql", "pgsql": "postgresql", "mysql2": "mysql"}


def dialect_for(url: URL) -> Dialect:
    """The answers for the database a URL names.

    Raises `ConfigurationError` for a scheme onebeat does not know.

    >>> from sqlalchemy import make_url
    >>> dialect_for(make_url("mariadb+pymysql://host/app")).name
    'mysql'
    """
    scheme = url.drivername.partition("+")[0].lower()
    try:
        return _DIALECTS[_ALIASES.get(scheme, scheme)]
    except KeyError:
        raise ConfigurationError(
            f"the database URL starts with {scheme!r}; onebeat works with sqlite, postgresql, mysql and mariadb "
            "(for example sqlite:///app.db or postgresql://user@host/name)"
        ) from None
