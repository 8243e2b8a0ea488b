"""The query of a database URL: each parameter is translated, ignored with a caution, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import URL

from onebeat.errors import ConfigurationError

TRUE = ("true", "1", "yes", "on")
FALSE = ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A URL as onebeat opens it; what its query said stands in `arguments`."""

    url: URL
    arguments: dict[str, Any] = field(default_factory=dict, repr=False)  # for the driver; may hold a password
    files: Mapping[str, str] = field(default_factory=dict)  # parameter → file that must be readable when it connects
    cautions: tuple[str, ...] = ()


class UrlQuery:
    """The parameters of one URL that nobody has taken yet.

    Names are compared without regard to case, `-` and `_`, so `ssl-mode`, `ssl_mode` and `sslMode` are one parameter.
    Of a parameter given twice the last value counts. No error shows a value, which may be a secret.

    >>> from sqlalchemy import make_url
    >>> query = UrlQuery(make_url("postgresql://h/d?sslmode=require&connection_limit=5"))
    >>> query.choice(("require", "disable"), "sslmode")
    'require'
    >>> query.finish(ignored=("connection_limit",))
    ('the database URL has connection_limit, which onebeat ignores: it is for another driver or connection pool',)
    """

    def __init__(self, url: URL) -> None:
        self._left: dict[str, tuple[str, str]] = {}  # compared name → name as written, value
        for name, value in url.query.items():
            self._left[_compared(name)] = (name, value if isinstance(value, str) else value[-1])

    def text(self, *names: str) -> str | None:
        """Take the first of `names` that is given and not empty; the others of them are taken too."""
        found = [self._left.pop(_compared(name)) for name in names if _compared(name) in self._left]
        return next((value for _, value in found if value), None)

    def number(self, *names: str, least: float = 0) -> float | None:
        """Take a parameter that is a number of at least `least`; raise `ConfigurationError` for another value."""
        value = self.text(*names)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not least <= number < 1e9:
            raise ConfigurationError(f"{names[0]} in the database URL must be a number of at least {least:g}")
        return number

    def choice(self, allowed: Iterable[str], *names: str) -> str | None:
        """Take a parameter that is one of `allowed`, in lower case with `-`; raise `ConfigurationError` for another."""
        value = self.text(*names)
        if value is None:
            return None
        found = value.lower().replace("_", "-")
        if found not in allowed:
            raise ConfigurationError(f"{names[0]} in the database URL must be one of {', '.join(allowed)}")
        return found

    def flag(self, *names: str) -> bool | None:
        """Take a parameter that is true or false; raise `ConfigurationError` for another value."""
        value = self.choice((*TRUE, *FALSE), *names)
        return None if value is None else value in TRUE

    def rest(self, accept: Iterable[str] = (), *, dotted: bool = False) -> dict[str, str]:
        """Take what is left of `accept`, under the names there; with `dotted` also names that contain a dot."""
        taken = {name: value for name in accept if (value := self.text(name)) is not None}
        if dotted:
            for compared, (name, value) in list(self._left.items()):
                if "." in name:
                    del self._left[compared]
                    taken[name] = value
        return taken

    def finish(self, ignored: Iterable[str]) -> tuple[str, ...]:
        """Return the caution about the parameters left over; raise `ConfigurationError` for one not in `ignored`."""
        known = {_compared(name) for name in ignored}
        unknown = sorted(name for compared, (name, _) in self._left.items() if compared not in known)
        if unknown:
            shown = ", ".join(name[:40] for name in unknown[:5])
            raise ConfigurationError(
                f"the database URL has a parameter that onebeat does not know: {shown}. Remove it, or give an "
                "AsyncEngine that connects as you need"
            )
        if not self._left:
            return ()
        names = ", ".join(sorted(name for name, _ in self._left.values()))
        plural = len(self._left) > 1
        return (
            f"the database URL has {names}, which onebeat ignores: "
            f"{'they are' if plural else 'it is'} for another driver or connection pool",
        )


def _compared(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


# Parameters of other drivers, connection pools and frameworks that change nothing for onebeat.
IGNORED = (
    # Prisma, Vercel and Supabase
    "connection_limit", "pool_timeout", "socket_timeout", "max_idle_connection_lifetime", "statement_cache_size",
    "pgbouncer", "supa", "workaround", "single_use_connections",
    # Rails, Django, Ecto, SQLAlchemy, node and Go pools
    "pool", "pool_size", "max_overflow", "pool_recycle", "pool_pre_ping", "pool_max_conns", "pool_min_conns",
    "pool_max_conn_lifetime", "pool_max_conn_idle_time", "pool_health_check_period", "min_pool_size", "max_pool_size",
    "max_connections", "idle_timeout", "max_lifetime", "checkout_timeout", "reaping_frequency", "conn_max_age",
    "conn_health_checks", "disable_server_side_cursors", "adapter", "encoding", "prepared_statements", "async_fallback",
    "echo", "timezone", "autocommit", "reconnect", "auto_reconnect", "server_version", "schema_search_path",
)  # fmt: skip
