"""PostgreSQL URLs: the parameters of libpq, hosters and other drivers, translated for asyncpg."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import URL

from onebeat.errors import ConfigurationError
from onebeat.store.dialects.url_query import IGNORED, Adapted, UrlQuery

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify")
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "passfile")
_DSN = (  # asyncpg reads these from a DSN alone
    *_FILES, "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version", "sslnegotiation",
    "target_session_attrs", "krbsrvname", "gsslib", "service",
)  # fmt: skip
_NUMBERS = (
    "statement_cache_size", "prepared_statement_cache_size", "max_cached_statement_lifetime",
    "max_cacheable_statement_size",
)  # fmt: skip
_SETTINGS = (  # settings of the server session that addresses commonly carry
    "application_name", "options", "search_path", "statement_timeout", "lock_timeout", "DateStyle", "IntervalStyle",
    "idle_in_transaction_session_timeout", "idle_session_timeout", "role", "work_mem", "jit", "plan_cache_mode",
    "extra_float_digits", "synchronous_commit", "default_transaction_isolation", "default_transaction_read_only",
    "transaction_timeout",
)  # fmt: skip
_IGNORED = (
    *IGNORED, "channel_binding", "sslsni", "sslcompression", "keepalives", "keepalives_idle", "keepalives_interval",
    "keepalives_count", "tcp_user_timeout", "tcp_keep_alive", "client_encoding", "load_balance_hosts", "gssdelegation",
    "uselibpqcompat", "binary_parameters", "default_query_exec_mode", "statement_cache_capacity", "prepare_threshold",
    "description_cache_capacity", "rewrite_batched_inserts", "query_timeout", "sslfactory", "statement_limit",
    "min_messages", "variables", "insert_returning", "template", "executemany_mode",
)  # fmt: skip


def adapt_postgresql(url: URL) -> Adapted:
    """Return the URL for asyncpg; raise `ConfigurationError`, which names the parameter, for one that cannot work.

    `host` and `port` stay in the query, where SQLAlchemy reads several hosts and socket directories from.
    """
    query = UrlQuery(url)
    kept = {name: url.query[name] for name in ("host", "port") if name in url.query}
    query.rest(("host", "port"))
    arguments = _driver_arguments(query)
    dsn = query.rest(_DSN)
    if "sslcert" in dsn and not {"sslkey", "sslrootcert"} & set(dsn) and not _has_client_key():
        dsn["sslrootcert"] = dsn.pop("sslcert")  # Prisma's `sslcert` is the file of root certificates
    mode = _ssl_mode(query)
    if mode == "verify-full" and _uses_system_certificates(dsn):
        dsn.pop("sslrootcert", None)
        arguments["ssl"] = ssl.create_default_context()
    elif mode is not None:
        dsn["sslmode"] = mode
    if query.choice(("disable", "prefer", "require"), "gssencmode") == "require":
        raise ConfigurationError("gssencmode=require in the database URL cannot work: the driver asyncpg has no GSS")
    settings = _settings(query)
    cautions = query.finish(_IGNORED)
    if settings:
        arguments["server_settings"] = settings
    if dsn:
        arguments["dsn"] = f"postgresql:///?{urlencode(dsn)}"
    return Adapted(
        url=url.set(drivername="postgresql+asyncpg", query=kept),
        arguments=arguments,
        files={name: dsn[name] for name in _FILES if name in dsn},
        cautions=cautions,
    )


def _driver_arguments(query: UrlQuery) -> dict[str, Any]:
    found: dict[str, Any] = {
        "user": query.text("user", "username"),
        "password": query.text("password"),
        "database": query.text("dbname", "database"),
        "command_timeout": query.number("command_timeout", least=0.001),
    }
    found["timeout"] = query.number("connect_timeout", "timeout", "login_timeout") or None  # 0 means no limit
    for name in _NUMBERS:
        number = query.number(name)
        found[name] = None if number is None else int(number)
    if query.flag("direct_tls"):
        found["direct_tls"] = True
    return {name: value for name, value in found.items() if value is not None}


def _ssl_mode(query: UrlQuery) -> str | None:
    """Return libpq's `sslmode`, also from the words of Prisma, node, JDBC and Django."""
    mode = query.choice(SSL_MODES, "sslmode")
    plain = query.choice(("true", "false", "1", "0", *SSL_MODES), "ssl")
    strict = query.choice(("strict", "accept-invalid-certs"), "sslaccept")
    required = query.flag("ssl_require", "requiressl")
    if mode is None and plain is not None:
        mode = {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(plain, plain)
    if mode is None and required:
        mode = "require"
    if strict == "strict" and mode != "disable":
        return "verify-full"
    if mode == "no-verify" or (strict is not None and mode is None):
        return "require"
    return mode


def _uses_system_certificates(dsn: dict[str, str]) -> bool:
    """Return whether `verify-full` has no file of root certificates; the system's are used then."""
    root = dsn.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if root is not None:
        return root == "system"
    return not Path("~/.postgresql/root.crt").expanduser().exists() and "sslcert" not in dsn


def _has_client_key() -> bool:
    return "PGSSLKEY" in os.environ or Path("~/.postgresql/postgresql.key").expanduser().exists()


def _settings(query: UrlQuery) -> dict[str, str]:
    settings = query.rest(_SETTINGS, dotted=True)
    name = query.text("fallback_application_name")
    if name is not None:
        settings.setdefault("application_name", name)
    schema = query.text("schema", "currentSchema")  # Prisma and JDBC
    if schema is not None and schema != "public":
        settings.setdefault("search_path", schema)
    return settings
