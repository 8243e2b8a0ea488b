"""MySQL and MariaDB URLs: the parameters of hosters and other drivers, translated for asyncmy."""

from __future__ import annotations

import json
import ssl
from typing import Any

from sqlalchemy.engine import URL

from onebeat.errors import ConfigurationError
from onebeat.store.dialects.url_query import FALSE, IGNORED, TRUE, Adapted, UrlQuery

# How much TLS is asked for, in the words of MySQL's own client.
SSL_MODES = ("disabled", "preferred", "required", "verify-ca", "verify-identity")
_SYNONYMS = {
    "disable": "disabled", "prefer": "preferred", "require": "required", "verify-full": "verify-identity",
    "skip-verify": "required", "no-verify": "required", "accept-invalid-certs": "required", "strict": "verify-identity",
    "trust": "required",
}  # fmt: skip
_FILES = ("ssl_ca", "ssl_cert", "ssl_key")
_IGNORED = (
    *IGNORED, "charset", "use_unicode", "character_encoding", "collation", "connection_collation", "parse_time", "loc",
    "multi_statements", "interpolate_params", "allow_native_passwords", "allow_cleartext_passwords", "column_names",
    "check_conn_liveness", "client_found_rows", "server_timezone", "connection_time_zone", "use_legacy_datetime_code",
    "zero_date_time_behavior", "allow_public_key_retrieval", "cache_prep_stmts", "prep_stmt_cache_size",
    "prep_stmt_cache_sql_limit", "use_server_prep_stmts", "rewrite_batched_statements", "tcp_keep_alive", "sql_mode",
    "allow_multi_queries", "allow_public_key", "binary_prefix", "local_infile", "write_timeout", "debug", "compress",
    "support_big_numbers", "big_number_strings", "date_strings", "maxallowedpacket", "sslfactory", "auth_plugin",
    "strict", "wait_timeout", "connect_attributes", "allow_load_local_infile",
)  # fmt: skip


def adapt_mysql(url: URL) -> Adapted:
    """Return the URL for asyncmy; raise `ConfigurationError`, which names the parameter, for one that cannot work."""
    query = UrlQuery(url)
    arguments = _driver_arguments(query)
    password = arguments.get("password", url.password)
    if password is not None and not str(password).isascii():
        arguments["password"] = str(password).encode()  # asyncmy would encode it in Latin-1, the server has UTF-8
    files = {name: value for name in _FILES if (value := _file(query, name)) is not None}
    if "ssl_cert" in files and "ssl_ca" not in files and "ssl_key" not in files:
        files["ssl_ca"] = files.pop("ssl_cert")  # Prisma's `sslcert` is the file of root certificates
    mode, wanted = _ssl_mode(query)
    details = _ssl_details(query, files)
    cautions = query.finish(_IGNORED)
    if mode == "preferred":
        cautions = (*cautions, f"{wanted}=preferred in the database URL is taken as no TLS; write required to have it")
    tls = _tls(mode, files, details)
    if tls is not None:
        arguments["ssl"] = tls
    return Adapted(
        url=url.set(drivername="mysql+asyncmy", query={}), arguments=arguments, files=files, cautions=cautions
    )


def _driver_arguments(query: UrlQuery) -> dict[str, Any]:
    found: dict[str, Any] = {
        "user": query.text("user", "username"),
        "password": query.text("password", "passwd"),
        "db": query.text("database", "db"),
        "host": query.text("host"),
        "unix_socket": query.text("unix_socket", "socket"),
        "init_command": query.text("init_command"),
        "program_name": query.text("program_name"),
        "read_default_file": query.text("read_default_file"),
        "read_default_group": query.text("read_default_group"),
    }
    for name, names in {
        "port": ("port",),
        "connect_timeout": ("connect_timeout", "timeout"),
        "read_timeout": ("read_timeout",),
        "max_allowed_packet": ("max_allowed_packet",),
        "client_flag": ("client_flag",),
    }.items():
        number = query.number(*names)
        found[name] = int(number) or None if number is not None else None  # 0 means the driver's default
    return {name: value for name, value in found.items() if value is not None}


def _file(query: UrlQuery, name: str) -> str | None:
    """Take the path of a certificate or key."""
    if name == "ssl_ca":
        return query.text("ssl_ca", "sslrootcert", "ssl_root_cert")
    return query.text(name)


def _ssl_mode(query: UrlQuery) -> tuple[str | None, str]:
    """Return how much TLS is asked for, and the name of the parameter that said so."""
    words = (*SSL_MODES, *_SYNONYMS, *TRUE, *FALSE)
    found: str | None = None
    said = "ssl-mode"
    for names, when_true in (
        (("ssl-mode", "tls-mode"), "required"),
        (("sslaccept",), "verify-identity"),
        (("tls",), "verify-identity"),  # Go's driver verifies
        (("useSSL",), "required"),
        (("requireSSL",), "required"),
    ):
        value = query.choice(words, *names)
        if value is not None and found is None:
            said = names[0]
            found = when_true if value in TRUE else "disabled" if value in FALSE else _SYNONYMS.get(value, value)
    plain = query.text("ssl")
    if plain is not None and found is None:
        found = _mode_of_ssl(plain)
    if query.flag("ssl_disabled"):
        found = "disabled"
    return found, said


def _mode_of_ssl(value: str) -> str:
    """Read `ssl=true`, and the JSON that node's drivers take: `ssl={"rejectUnauthorized":true}`."""
    lower = value.lower().replace("_", "-")
    if lower in TRUE:
        return "required"
    if lower in FALSE:
        return "disabled"
    if _SYNONYMS.get(lower, lower) in SSL_MODES:
        return _SYNONYMS.get(lower, lower)
    try:
        options = json.loads(value)
    except ValueError:
        options = None
    if not isinstance(options, dict) or set(options) - {"rejectUnauthorized", "minVersion"}:
        raise ConfigurationError(
            'ssl in the database URL must be true, false, or {"rejectUnauthorized":true}; name certificates with ssl_ca'
        )
    return "verify-identity" if options.get("rejectUnauthorized", True) else "required"


def _ssl_details(query: UrlQuery, files: dict[str, str]) -> dict[str, Any]:
    details: dict[str, Any] = {name.removeprefix("ssl_"): value for name, value in files.items()}
    for name in ("ssl_capath", "ssl_cipher"):
        value = query.text(name)
        if value is not None:
            details[name.removeprefix("ssl_")] = value
    checks_name = query.flag("ssl_check_hostname", "ssl_verify_identity")
    verifies = query.flag("ssl_verify_cert", "verifyServerCertificate")
    if checks_name is not None:
        details["check_hostname"] = checks_name
    if verifies is not None:
        details["verify_mode"] = "required" if verifies else "none"
    return details


def _tls(mode: str | None, files: dict[str, str], details: dict[str, Any]) -> dict[str, Any] | ssl.SSLContext | None:
    """Return asyncmy's `ssl` argument; None for no TLS. Roots without a mode are checked with the host's name."""
    if mode in ("disabled", "preferred") or (mode is None and not details):
        return None
    has_roots = "ssl_ca" in files or "capath" in details
    checks_name = details.pop("check_hostname", mode == "verify-identity" or (mode is None and has_roots))
    verifies = checks_name or has_roots or mode == "verify-ca"
    verify_mode = details.pop("verify_mode", "required" if verifies else "none")
    checks_name = checks_name and verify_mode == "required"
    if not checks_name or has_roots:
        return {"verify_mode": verify_mode, "check_hostname": checks_name, **details}
    if details:  # with a dict asyncmy checks no host name unless a file of roots is named
        raise ConfigurationError("the database URL asks for TLS that checks the server's name; add ssl_ca to it")
    return ssl.create_default_context()
