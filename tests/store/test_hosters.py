"""Addresses as hosters, frameworks and other drivers write them: what reaches the driver, and what is refused."""

from __future__ import annotations

import ssl
import traceback
from typing import Any

import pytest
from asyncpg import connect_utils
from sqlalchemy import text

from onebeat.errors import ConfigurationError, DatabaseUnavailable
from onebeat.store import migrations
from onebeat.store.connection.database import Database
from onebeat.store.connection.targets import read_target
from onebeat.store.tables import Tables
from tests.conftest import MakeDatabase
from tests.store.test_database import add, names
from tests.support.servers import MariaDBServer

VERIFIED = "a context that verifies the certificate and the host name"
ENCRYPTED = {"verify_mode": "none", "check_hostname": False}
DEFAULTS = {"client_flag", "charset"}  # SQLAlchemy's own


def pg(*, sslmode: str | None = None, dsn: str | None = None, **expected: Any) -> dict[str, Any]:
    query = "&".join(part for part in (dsn, sslmode and f"sslmode={sslmode}") if part)
    return {**expected, **({"dsn": f"postgresql:///?{query}"} if query else {})}


def setting(**settings: str) -> dict[str, Any]:
    return {"server_settings": settings}


P = "u:s3cret@h:6543"  # user, password, host and port of each address below, where it is not the point
# What is written, the driver's arguments beside user, password, host, port and database, and what is ignored.
POSTGRESQL: list[tuple[str, dict[str, Any], set[str]]] = [
    (f"postgresql://{P}/neondb?sslmode=require&channel_binding=require", pg(sslmode="require"), {"channel_binding"}),
    (f"postgresql://{P}/neondb?sslmode=require&options=endpoint%3Dep-cool-1", pg(
        sslmode="require", **setting(options="endpoint=ep-cool-1")), set()),
    (f"postgresql://{P}/neondb?connect_timeout=10&pool_timeout=10&sslmode=require&channel_binding=require", pg(
        sslmode="require", timeout=10.0), {"channel_binding", "pool_timeout"}),
    (f"postgresql://{P}/neondb?sslmode=verify-full&sslrootcert=system", {"ssl": VERIFIED}, set()),
    (f"postgresql://{P}/postgres?pgbouncer=true", {}, {"pgbouncer"}),
    (f"postgresql://{P}/postgres?pgbouncer=true&connection_limit=1", {}, {"pgbouncer", "connection_limit"}),
    (f"postgres://{P}/postgres?sslmode=require&supa=base-pooler.x", pg(sslmode="require"), {"supa"}),
    (f"postgres://{P}/postgres?sslmode=require&pgbouncer=true&workaround=supabase-pooler.vercel", pg(
        sslmode="require"), {"pgbouncer", "workaround"}),
    (f"postgres://{P}/d1abc", {}, set()),  # Heroku
    (f"postgresql://{P}/app_db", {}, set()),  # Render
    (f"postgres://{P}/defaultdb?sslmode=require", pg(sslmode="require"), set()),  # Aiven, DigitalOcean
    (f"postgres://{P}/app?sslmode=disable", pg(sslmode="disable"), set()),  # Fly
    (f"postgres://{P}/app?sslmode=prefer", pg(sslmode="prefer"), set()),  # Scalingo
    (f"postgresql://{P}/postgres?sslmode=verify-full&sslnegotiation=direct&sslrootcert=system", {
        **pg(dsn="sslnegotiation=direct"), "ssl": VERIFIED}, set()),  # PlanetScale
    (f"postgresql://{P}/app?schema=public", {}, set()),  # Prisma
    (f"postgresql://{P}/app?schema=shop&connection_limit=5&pool_timeout=2&socket_timeout=3", setting(
        search_path="shop"), {"connection_limit", "pool_timeout", "socket_timeout"}),
    (f"postgresql://{P}/app?sslmode=require&sslaccept=strict", {"ssl": VERIFIED}, set()),
    (f"postgresql://{P}/app?sslmode=require&sslaccept=accept_invalid_certs", pg(sslmode="require"), set()),
    (f"postgresql://{P}/app?sslmode=require&sslcert=rds-ca.pem", pg(
        dsn="sslrootcert=rds-ca.pem", sslmode="require"), set()),  # RDS with Prisma
    (f"postgresql://{P}/app?sslmode=verify-full&sslrootcert=rds.pem", pg(
        dsn="sslrootcert=rds.pem", sslmode="verify-full"), set()),
    (f"postgresql://{P}/app?sslcert=c.pem&sslkey=k.pem&sslrootcert=r.pem&sslmode=verify-ca", pg(
        dsn="sslcert=c.pem&sslkey=k.pem&sslrootcert=r.pem", sslmode="verify-ca"), set()),
    (f"postgresql://{P}/app?ssl=true&currentSchema=shop&ApplicationName=x", pg(
        sslmode="require", **setting(application_name="x", search_path="shop")), set()),  # JDBC
    (f"postgresql://{P}/app?ssl=no-verify&uselibpqcompat=true", pg(sslmode="require"), {"uselibpqcompat"}),  # node
    (f"postgresql://{P}/app?ssl_require=True&conn_max_age=600", pg(sslmode="require"), {"conn_max_age"}),  # Django
    (f"pgsql://{P}/app?encoding=unicode&pool=5&prepared_statements=false", {}, {
        "encoding", "pool", "prepared_statements"}),  # Rails
    (f"postgresql://{P}/app?pool_max_conns=10&default_query_exec_mode=simple_protocol", {}, {
        "pool_max_conns", "default_query_exec_mode"}),  # pgx
    (f"postgresql+asyncpg://{P}/app?prepared_statement_cache_size=0&statement_cache_size=0&command_timeout=9", {
        "statement_cache_size": 0, "command_timeout": 9.0}, set()),  # SQLAlchemy takes the first one
    (f"postgresql+psycopg://{P}/app?gssencmode=disable&keepalives=1&keepalives_idle=30&connect_timeout=0", {}, {
        "keepalives", "keepalives_idle"}),
    (f"postgresql+psycopg2://{P}/app?client_encoding=utf8&fallback_application_name=x", setting(
        application_name="x"), {"client_encoding"}),
    (f"postgresql://{P}/app?target_session_attrs=read-write&application_name=a%20b", pg(
        dsn="target_session_attrs=read-write", **setting(application_name="a b")), set()),
    (f"postgresql://{P}/app?options=-c%20search_path%3Dshop&statement_timeout=5000", setting(
        options="-c search_path=shop", statement_timeout="5000"), set()),
    (f"postgresql://{P}/app?app.tenant=7", {"server_settings": {"app.tenant": "7"}}, set()),
]  # fmt: skip
MYSQL: list[tuple[str, dict[str, Any], set[str]]] = [
    (f"mysql://{P}/app?sslaccept=strict", {"ssl": VERIFIED}, set()),  # PlanetScale, Prisma
    (f'mysql://{P}/app?ssl={{"rejectUnauthorized":true}}', {"ssl": VERIFIED}, set()),
    (f"mysql://{P}/app?ssl=%7B%22rejectUnauthorized%22%3Afalse%7D", {"ssl": ENCRYPTED}, set()),
    (f"mysql://{P}/defaultdb?ssl-mode=REQUIRED", {"ssl": ENCRYPTED}, set()),  # Aiven, DigitalOcean
    (f"mysql+pymysql://{P}/app?ssl_ca=/etc/ssl/cert.pem&ssl_verify_cert=true&ssl_verify_identity=true", {
        "ssl": {"ca": "/etc/ssl/cert.pem", "check_hostname": True, "verify_mode": "required"}}, set()),  # TiDB
    (f"mysql://{P}/heroku_1?reconnect=true", {}, {"reconnect"}),  # ClearDB
    (f"mysql2://{P}/app?pool=5&encoding=utf8mb4&reconnect=true", {}, {"pool", "encoding", "reconnect"}),  # Rails
    (f"mysql://{P}/app?connection_limit=5&pool_timeout=10&connect_timeout=10&socket_timeout=30", {
        "connect_timeout": 10}, {"connection_limit", "pool_timeout", "socket_timeout"}),
    (f"mysql://{P}/app?sslcert=rds-ca.pem&sslaccept=strict", {
        "ssl": {"ca": "rds-ca.pem", "check_hostname": True, "verify_mode": "required"}}, set()),  # RDS with Prisma
    (f"mysql://{P}/app?tls=true&parseTime=true&loc=UTC", {"ssl": VERIFIED}, {"parseTime", "loc"}),  # Go
    (f"mysql://{P}/app?tls=skip-verify", {"ssl": ENCRYPTED}, set()),
    (f"mysql://{P}/app?ssl=true", {"ssl": ENCRYPTED}, set()),
    (f"mysql://{P}/app?ssl=false", {}, set()),
    (f"mysql://{P}/app?useSSL=true&requireSSL=true&serverTimezone=UTC&allowPublicKeyRetrieval=true", {
        "ssl": ENCRYPTED}, {"serverTimezone", "allowPublicKeyRetrieval"}),  # JDBC
    (f"mysql://{P}/app?ssl-mode=VERIFY_IDENTITY", {"ssl": VERIFIED}, set()),
    (f"mysql://{P}/app?ssl_mode=VERIFY_CA&ssl_ca=ca.pem", {
        "ssl": {"ca": "ca.pem", "check_hostname": False, "verify_mode": "required"}}, set()),
    (f"mysql://{P}/app?sslMode=DISABLED", {}, set()),
    (f"mysql+mysqlconnector://{P}/app?ssl_disabled=true&collation=utf8mb4_general_ci", {}, {"collation"}),
    (f"mysql+pymysql://{P}/app?charset=utf8mb4", {}, {"charset"}),
    (f"mysql+aiomysql://{P}/app?charset=utf8&autocommit=true", {}, {"charset", "autocommit"}),
    (f"mariadb+pymysql://{P}/app?ssl_ca=ca.pem&ssl_cert=c.pem&ssl_key=k.pem", {"ssl": {
        "ca": "ca.pem", "cert": "c.pem", "key": "k.pem", "check_hostname": True, "verify_mode": "required"}}, set()),
    (f"mysql://{P}/app?ssl-mode=PREFERRED", {}, {"ssl-mode=preferred"}),
    (f"mysql://{P}/app?sql_mode=ANSI_QUOTES&init_command=SET%20time_zone%3D%27%2B00%3A00%27", {
        "init_command": "SET time_zone='+00:00'"}, {"sql_mode"}),
    (f"mysql://{P}/app?unix_socket=/run/mysqld/mysqld.sock&read_timeout=20", {
        "unix_socket": "/run/mysqld/mysqld.sock", "read_timeout": 20}, set()),
]  # fmt: skip
OTHER_PLACES: list[tuple[str, dict[str, Any]]] = [  # all of what the driver is given
    ("postgresql:///app?host=/run/postgresql&user=u&password=s3cret", {
        "host": "/run/postgresql", "database": "app", "user": "u", "password": "s3cret"}),
    ("postgresql://u:s3cret@/app?host=/cloudsql/project:region:name", {
        "host": "/cloudsql/project:region:name", "database": "app", "user": "u", "password": "s3cret"}),
    ("postgresql://u:s3cret@/app?host=a:1&host=b:2", {
        "host": ["a", "b"], "port": [1, 2], "database": "app", "user": "u", "password": "s3cret"}),
    ("mysql://h/app?user=u&password=s%C3%A4", {
        "host": "h", "db": "app", "user": "u", "password": "sä".encode()}),
]  # fmt: skip


async def reaching_the_driver(url: str) -> dict[str, Any]:
    """Return what the driver's connect function is called with."""
    found: dict[str, Any] = {}

    class Enough(Exception):
        pass

    async def connect(*_: Any, **arguments: Any) -> None:
        found.update(arguments)
        raise Enough

    engine = read_target(url).engine({"async_creator_fn": connect})
    with pytest.raises(Enough):
        await engine.connect()
    return {name: _comparable(value) for name, value in found.items() if name not in DEFAULTS}


def _comparable(value: Any) -> Any:
    if isinstance(value, ssl.SSLContext):
        assert value.check_hostname
        assert value.verify_mode is ssl.CERT_REQUIRED
        return VERIFIED
    return value


@pytest.fixture(autouse=True)
def readable_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses name files that are not here; that they must be is a test of its own."""
    monkeypatch.setattr("onebeat.store.connection.targets._require_files", lambda _files: None)
    monkeypatch.setenv("HOME", "/nonexistent")


@pytest.mark.parametrize(("url", "expected", "ignored"), [*POSTGRESQL, *MYSQL])
async def test_a_hosters_address_works_as_it_is_copied(url: str, expected: dict[str, Any], ignored: set[str]) -> None:
    given = await reaching_the_driver(url)
    where = [given.pop(name) for name in ("user", "password", "host", "port")]
    assert where == ["u", "s3cret", "h", 6543]
    name = given.pop("database" if "database" in given else "db")
    assert name == url.partition("@h:6543/")[2].partition("?")[0]
    assert given == expected
    cautions = read_target(url).cautions
    assert len(cautions) == bool(ignored)
    assert all(name in cautions[0] for name in ignored)


@pytest.mark.parametrize(("url", "expected"), OTHER_PLACES)
async def test_user_password_host_and_port_may_stand_in_the_query(url: str, expected: dict[str, Any]) -> None:
    assert await reaching_the_driver(url) == expected
    assert "s3cret" not in read_target(url).where


@pytest.mark.parametrize("url", [url for url, expected, _ in POSTGRESQL if "pem" not in url])
async def test_the_driver_accepts_what_it_is_given(url: str) -> None:
    given = await reaching_the_driver(url)
    parts = (
        "dsn", "host", "port", "user", "password", "passfile", "database", "ssl", "service", "servicefile",
        "direct_tls", "server_settings", "target_session_attrs", "krbsrvname", "gsslib",
    )  # fmt: skip
    arguments = {name: given.get(name) for name in parts}
    if arguments["ssl"] == VERIFIED:
        arguments["ssl"] = ssl.create_default_context()
    addresses, _ = connect_utils._parse_connect_dsn_and_args(**arguments)
    assert addresses == [("h", 6543)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u@h/d?sslmode=s3cret", "sslmode in the database URL must be one of disable, allow"),
        ("postgresql://u@h/d?connect_timeout=s3cret", "connect_timeout in the database URL must be a number"),
        ("postgresql://u@h/d?statement_cache_size=s3cret", "statement_cache_size in the database URL must be a number"),
        ("postgresql://u@h/d?gssencmode=require", "gssencmode=require"),
        ("postgresql://u@h/d?colour=s3cret&shape=s3cret", "does not know: colour, shape"),
        ("postgresql://u@h/d?replication=database", "does not know: replication"),
        ("mysql://u@h/d?ssl-mode=s3cret", "ssl-mode in the database URL must be one of disabled"),
        ("mysql://u@h/d?ssl=Amazon+RDS", "ssl in the database URL must be true, false"),
        ("mysql://u@h/d?tls=s3cret", "tls in the database URL must be one of"),
        ("mysql://u@h/d?connect_timeout=s3cret", "connect_timeout in the database URL must be a number"),
        ("mysql://u@h/d?schema=s3cret", "does not know: schema"),
        ("sqlite:///app.db?key=s3cret", "does not know: key"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused_by_name_and_never_by_value(
    url: str, said: str, tables: Tables
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        Database(url, tables=tables)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("postgresql", "schema=public&pgbouncer=true&connection_limit=1&channel_binding=prefer&sslmode=prefer"),
        ("postgresql", "ssl=false&conn_max_age=60&application_name=shop&connect_timeout=3"),
        ("mariadb", "ssl-mode=PREFERRED&reconnect=true&connection_limit=5&charset=utf8mb4"),
        ("mariadb", "useSSL=false&parseTime=true&connect_timeout=3&sql_mode=ANSI"),
    ],
)
async def test_a_server_is_reached_with_them(
    kind: str, query: str, database_kind: str, database_url: str, make_database: MakeDatabase
) -> None:
    if kind != database_kind:
        return
    database = await make_database(f"{database_url}?{query}")
    assert await database.write(add, "a") == "a"
    assert any("ignores" in caution or "no TLS" in caution for caution in database.cautions)


@pytest.mark.parametrize("query", ["search_path=x&statement_timeout=soon", "options=-c%20nonsense%3D1"])
async def test_what_the_server_refuses_is_an_onebeat_error_too(
    query: str, database_kind: str, database_url: str, tables: Tables
) -> None:
    if database_kind != "postgresql":
        return
    with pytest.raises(DatabaseUnavailable, match=r"cannot be opened .*check the database URL"):
        await Database(f"{database_url}?{query}", tables=tables).open(timeout=5)


async def test_an_address_without_a_database_is_said(database_kind: str, database_url: str, tables: Tables) -> None:
    if database_kind != "mariadb":
        return
    database = Database(database_url.rpartition("/")[0], tables=tables)
    await database.open(timeout=5)
    with pytest.raises(DatabaseUnavailable, match="create the database first"):
        await database.read(names)
    await database.close()


def test_a_certificate_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for url in ("postgresql://h/d?sslmode=require&sslrootcert=/no/ca.pem", "mysql://h/d?ssl_ca=/no/ca.pem"):
        with pytest.raises(ConfigurationError, match=r"/no/ca\.pem, which is no readable file"):
            read_target(url).engine({})


async def test_server_defaults_that_change_statements_and_commits_do_not_reach_onebeat(
    tables: Tables,
) -> None:
    """`ANSI_QUOTES` and `ORACLE` change how names are quoted, and CHAIN begins a transaction after each COMMIT."""
    server = MariaDBServer("--sql-mode=ORACLE", "--completion-type=CHAIN")
    server.start()
    try:
        database = Database(server.url, tables=tables)
        await database.open(timeout=30)
        await migrations.migrate(database)
        assert await database.write(add, "a") == "a"
        assert await database.read(names) == ["a"]
        mode = await database.read(
            lambda tx: tx.execute(text("SELECT concat_ws(' ', @@sql_mode, @@completion_type)")).scalar_one()
        )
        assert "ANSI_QUOTES" not in mode
        assert mode.endswith(" NO_CHAIN")
        await database.close()
        server.sql("CREATE OR REPLACE USER shop@'%' IDENTIFIED BY 'pässwörd-€'; GRANT ALL ON app.* TO shop@'%'")
        async with Database(f"mysql://shop:pässwörd-€@127.0.0.1:{server.port}/app", tables=tables) as other:
            assert await other.read(names) == ["a"]
    finally:
        server.close()


async def test_statement_based_replication_is_refused_by_name(tables: Tables) -> None:
    server = MariaDBServer("--log-bin", "--server-id=1", "--binlog-format=STATEMENT")
    server.start()
    try:
        with pytest.raises(ConfigurationError, match=r"binlog_format is STATEMENT.*ROW or MIXED"):
            await Database(server.url, tables=tables).open(timeout=30)
    finally:
        server.close()
