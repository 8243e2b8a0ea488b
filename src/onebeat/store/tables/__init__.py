"""onebeat's tables under one prefix and schema, and the revision that this code knows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import MetaData, Table

from onebeat.errors import ConfigurationError
from onebeat.store.tables import jobs, locks, operations, schedules, workers

SCHEMA_VERSION = "0003"  # the newest Alembic revision this code knows
SCHEMA_MAJOR = 1  # a higher major number in the database is refused

_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,30}")


@dataclass(frozen=True, slots=True)
class Tables:
    """onebeat's tables; `build` makes them."""

    metadata: MetaData
    prefix: str
    schema: str | None
    schedules: Table
    definitions: Table
    fires: Table
    jobs: Table
    job_tags: Table
    attempts: Table
    attempt_logs: Table
    workflows: Table
    workers: Table
    queues: Table
    tasks: Table
    limits: Table
    holders: Table
    operations: Table
    operation_jobs: Table
    idempotency: Table
    alerts: Table
    audit: Table
    locks: Table
    fences: Table
    meta: Table

    @property
    def version_table(self) -> str:
        """Where Alembic keeps the revision: never the application's own `alembic_version`."""
        return f"{self.prefix}schema_version"


def build(prefix: str = "onebeat_", schema: str | None = None) -> Tables:
    """Describe the tables; no I/O. A change here needs a revision in `store/migrations/versions`.

    Raises `ConfigurationError` when the prefix is not a plain lower-case identifier.

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
        schedules=schedules.schedules(metadata, prefix),
        definitions=schedules.definitions(metadata, prefix),
        fires=schedules.fires(metadata, prefix),
        jobs=jobs.jobs(metadata, prefix),
        job_tags=jobs.job_tags(metadata, prefix),
        attempts=jobs.attempts(metadata, prefix),
        attempt_logs=jobs.attempt_logs(metadata, prefix),
        workflows=jobs.workflows(metadata, prefix),
        workers=workers.workers(metadata, prefix),
        queues=workers.queues(metadata, prefix),
        tasks=workers.tasks(metadata, prefix),
        limits=workers.limits(metadata, prefix),
        holders=workers.holders(metadata, prefix),
        operations=operations.operations(metadata, prefix),
        operation_jobs=operations.operation_jobs(metadata, prefix),
        idempotency=operations.idempotency(metadata, prefix),
        alerts=operations.alerts(metadata, prefix),
        audit=operations.audit(metadata, prefix),
        locks=locks.locks(metadata, prefix),
        fences=locks.fences(metadata, prefix),
        meta=locks.meta(metadata, prefix),
    )
