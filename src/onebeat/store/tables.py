"""The tables and their indexes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from onebeat.errors import ConfigurationError

SCHEMA_VERSION = "0001"  # the newest Alembic revision this code knows
SCHEMA_MAJOR = 1  # a higher major number in the database is refused

_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,30}")


def name_type(length: int = 200) -> TypeEngine[str]:
    """A key or word: compared byte by byte on every database."""
    return (
        String(length)
        .with_variant(String(length, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def words_type(length: int) -> TypeEngine[str]:
    """Short free text, in any script; never a key."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


def text_type() -> TypeEngine[str]:
    """Free text and canonical JSON, up to 16 MiB; never a key."""
    return Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")


class JobId(TypeDecorator[UUID]):
    """A UUIDv7, stored so that byte order is time order on every database."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Native on PostgreSQL, 32 hex digits elsewhere (MariaDB's own UUID type reorders the bytes)."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.CHAR(32, charset="ascii", collation="ascii_bin"))
        return dialect.type_descriptor(String(32))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> object:
        """To what the column holds."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.hex

    def process_result_value(self, value: object, dialect: Dialect) -> UUID | None:
        """Back to a UUID."""
        if value is None or isinstance(value, UUID):
            return value
        return UUID(hex=str(value))


@dataclass(frozen=True, slots=True)
class Tables:
    """onebeat's tables under one prefix and schema; `build` makes them."""

    metadata: MetaData
    prefix: str
    schema: str | None
    schedules: Table
    definitions: Table
    fires: Table
    jobs: Table
    job_tags: Table
    attempts: Table
    workers: Table
    locks: Table
    fences: Table
    queues: Table
    limits: Table
    audit: Table
    meta: Table

    @property
    def version_table(self) -> str:
        """Where Alembic keeps the revision: never the application's own `alembic_version`."""
        return f"{self.prefix}schema_version"


def build(prefix: str = "onebeat_", schema: str | None = None) -> Tables:
    """Describe the tables; no I/O.

    Raises `ConfigurationError` when the prefix is no plain lower-case identifier.

    >>> build("shop_").jobs.name
    'shop_jobs'
    """
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"table_prefix {prefix[:40]!r} cannot be used; use 1 to 31 of a-z, 0-9 and _, no digit first"
        )
    if schema is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", schema):
        raise ConfigurationError(f"schema {schema[:80]!r} cannot be used; use a plain identifier")
    metadata = MetaData(schema=schema)
    return Tables(
        metadata=metadata,
        prefix=prefix,
        schema=schema,
        schedules=_schedules(metadata, prefix),
        definitions=_definitions(metadata, prefix),
        fires=_fires(metadata, prefix),
        jobs=_jobs(metadata, prefix),
        job_tags=_job_tags(metadata, prefix),
        attempts=_attempts(metadata, prefix),
        workers=_workers(metadata, prefix),
        locks=_locks(metadata, prefix),
        fences=_fences(metadata, prefix),
        queues=_queues(metadata, prefix),
        limits=_limits(metadata, prefix),
        audit=_audit(metadata, prefix),
        meta=_meta(metadata, prefix),
    )


def _table(metadata: MetaData, name: str, *items: Column[Any] | Index) -> Table:
    return Table(name, metadata, *items, mysql_engine="InnoDB", mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")


def _where(condition: str) -> dict[str, Any]:
    """A partial index where the database has them; a plain one on MySQL and MariaDB."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


def _schedules(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}schedules",
        Column("id", name_type(), primary_key=True),
        Column("task", name_type(), nullable=False),
        Column("args", text_type(), nullable=False),
        Column("kwargs", text_type(), nullable=False),
        Column("trigger_json", text_type(), nullable=False),
        Column("dialect", Integer, nullable=False, server_default="1"),  # of the cron rule
        Column("timezone", name_type(64), nullable=False),
        Column("zone_fingerprint", name_type(64)),
        Column("policies", text_type(), nullable=False),  # JSON: misfire_grace, catch_up, overlap, …
        Column("options", text_type(), nullable=False),  # JSON: queue, priority, retry, … of its jobs
        Column("state", name_type(16), nullable=False),
        Column("next_fire_us", BigInteger),
        Column("last_fire_us", BigInteger),
        Column("fire_seq", BigInteger, nullable=False, server_default="0"),
        Column("fire_token", name_type(32)),  # of the transaction that moved it last: so the winner recognises itself
        Column("rev", BigInteger, nullable=False, server_default="1"),
        Column("fires_count", BigInteger, nullable=False, server_default="0"),
        Column("consecutive_skips", Integer, nullable=False, server_default="0"),
        Column("source", name_type(8), nullable=False),
        Column("definition_hash", name_type(64)),
        Column("overridden", Boolean, nullable=False, server_default=text("false")),
        Column("tags", text_type(), nullable=False),
        Column("note", text_type()),
        Column("paused_reason", text_type()),
        Column("paused_us", BigInteger),
        Column("created_us", BigInteger, nullable=False),
        Column("updated_us", BigInteger, nullable=False),
        Index(f"{p}schedules_due", "state", "next_fire_us"),
    )


def _definitions(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}definitions",
        Column("schedule_id", name_type(), primary_key=True),
        Column("hash", name_type(64), primary_key=True),
        Column("first_seen_us", BigInteger, nullable=False),
        Column("body", text_type(), nullable=False),
    )


def _fires(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}fires",
        Column("schedule_id", name_type(), primary_key=True),
        Column("fire_key", name_type(), primary_key=True),
        Column("fire_us", BigInteger, nullable=False),
        Column("origin", name_type(16), nullable=False),  # schedule, manual, backfill
        Column("decision", name_type(20), nullable=False),
        Column("reason", text_type()),
        Column("until_us", BigInteger),  # gap rows: the last instant left out
        Column("instants", BigInteger),  # gap rows: how many
        Column("job_id", JobId),
        Column("decided_by", name_type(32), nullable=False),
        Column("decided_us", BigInteger, nullable=False),
        Index(f"{p}fires_time", "schedule_id", "fire_us"),
        Index(f"{p}fires_decided", "decided_us"),
    )


def _jobs(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}jobs",
        Column("id", JobId, primary_key=True),
        Column("task", name_type(), nullable=False),
        Column("signature", name_type(64)),
        Column("args", text_type(), nullable=False),  # canonical JSON: {"a": [...], "k": {...}}
        Column("queue", name_type(), nullable=False),
        Column("rank", BigInteger, nullable=False),  # minus the priority, so that every index ascends
        Column("state", name_type(12), nullable=False),
        Column("reason", words_type(64)),  # onebeat's own word, or the task's own words: Cancel("…")
        Column("run_at_us", BigInteger, nullable=False),
        Column("waits_for", name_type(240)),
        Column("attempt", Integer, nullable=False, server_default="0"),
        Column("errors", Integer, nullable=False, server_default="0"),
        Column("max_attempts", Integer, nullable=False),
        Column("crashes", Integer, nullable=False, server_default="0"),
        Column("retry", text_type()),  # canonical JSON of the Retry in force, None: the task's own
        Column("timeout_us", BigInteger),
        Column("expires_at_us", BigInteger),
        Column("at_most_once", Boolean, nullable=False, server_default=text("false")),
        Column("worker_id", name_type(32)),
        Column("lease_token", name_type(32)),  # kept on the finished row: "succeeded and my token" means it was me
        Column("fence", BigInteger, nullable=False, server_default="0"),
        Column("unique_slot", name_type(64)),
        Column("unique_text", text_type()),
        Column("idempotency_slot", name_type(64)),
        Column("concurrency_key", name_type(64)),
        Column("max_running", Integer),
        Column("schedule_id", name_type()),
        Column("fire_us", BigInteger),
        Column("tracking_id", name_type(128), nullable=False),
        Column("carried", text_type()),
        Column("progress", text_type()),
        Column("value", text_type()),
        Column("error", text_type()),
        Column("cancel_requested_us", BigInteger),
        Column("tags", text_type()),
        Column("created_us", BigInteger, nullable=False),
        Column("claimed_us", BigInteger),
        Column("started_us", BigInteger),
        Column("finished_us", BigInteger),
        Index(f"{p}jobs_unique", "unique_slot", unique=True, **_where("unique_slot IS NOT NULL")),
        Index(f"{p}jobs_idempotent", "idempotency_slot", unique=True, **_where("idempotency_slot IS NOT NULL")),
        Index(f"{p}jobs_claim", "state", "rank", "run_at_us", "id", **_where("state = 'queued'")),
        Index(f"{p}jobs_due", "state", "run_at_us", **_where("state = 'scheduled'")),
        Index(f"{p}jobs_worker", "worker_id", "state", **_where("state = 'running'")),
        Index(f"{p}jobs_schedule", "schedule_id", "fire_us", **_where("schedule_id IS NOT NULL")),
        Index(f"{p}jobs_waits", "waits_for", **_where("state = 'waiting'")),
        Index(f"{p}jobs_tracking", "tracking_id"),
        Index(f"{p}jobs_finished", "finished_us", **_where("finished_us IS NOT NULL")),
    )


def _job_tags(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}job_tags",
        Column("job_id", JobId, primary_key=True),
        Column("tag", name_type(100), primary_key=True),
        Index(f"{p}job_tags_tag", "tag", "job_id"),
    )


def _attempts(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}attempts",
        Column("job_id", JobId, primary_key=True),
        Column("attempt", Integer, primary_key=True),
        Column("worker_id", name_type(32)),
        Column("started_us", BigInteger),
        Column("finished_us", BigInteger),
        Column("outcome", name_type(24), nullable=False),
        Column("error", text_type()),
        Column("traceback", text_type()),
    )


def _workers(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}workers",
        Column("id", name_type(32), primary_key=True),  # random for each start, never host and pid
        Column("host", String(255), nullable=False),
        Column("boot_id", name_type(64)),
        Column("pid", BigInteger, nullable=False),
        Column("started_us", BigInteger, nullable=False),
        Column("heartbeat_us", BigInteger, nullable=False),
        Column("lease_until_us", BigInteger, nullable=False),
        Column("state", name_type(12), nullable=False),
        Column("stopped_us", BigInteger),
        Column("tasks", text_type(), nullable=False),  # canonical JSON list of task names
        Column("definitions", text_type(), nullable=False),  # canonical JSON object: schedule id → definition hash
        Column("queues", text_type()),  # canonical JSON list, None: all
        Column("slots", Integer, nullable=False),
        Column("version", name_type(64), nullable=False),
        Column("wake_address", String(255)),
        Index(f"{p}workers_lease", "state", "lease_until_us"),
    )


def _locks(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}locks",
        Column("name", name_type(), primary_key=True),
        Column("owner", name_type(32)),  # random for each acquisition
        Column("fence", BigInteger, nullable=False),
        Column("expires_us", BigInteger, nullable=False),
        Column("acquired_us", BigInteger),
        Column("holder", String(255)),  # host and pid, for people only
    )


def _fences(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}fences",
        Column("resource", name_type(), primary_key=True),
        Column("fence", BigInteger, nullable=False),  # the largest that a guarded write has named
    )


def _queues(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}queues",
        Column("name", name_type(), primary_key=True),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        Column("paused_us", BigInteger),
        Column("paused_reason", text_type()),
    )


def _limits(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}limits",
        Column("name", name_type(), primary_key=True),
        Column("width", Integer, nullable=False),
        Column("used", Integer, nullable=False, server_default="0"),
    )


def _audit(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}audit",
        Column("id", JobId, primary_key=True),
        Column("at_us", BigInteger, nullable=False),
        Column("who", String(255)),
        Column("what", name_type(64), nullable=False),
        Column("subject", name_type(240), nullable=False),
        Column("before_json", text_type()),
        Column("after_json", text_type()),
        Column("reason", text_type()),
        Index(f"{p}audit_time", "at_us"),
    )


def _meta(metadata: MetaData, p: str) -> Table:
    return _table(
        metadata,
        f"{p}meta",
        Column("key", name_type(64), primary_key=True),
        Column("value", text_type(), nullable=False),
    )
