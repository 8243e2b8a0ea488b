"""The tables of workers, and of what bounds their work: pauses, limits and token buckets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table

from onebeat.store.tables.columns import (
    PRINCIPAL,
    JobId,
    name_type,
    new_table,
    pause_columns,
    text_type,
    words_type,
)


def workers(metadata: MetaData, p: str) -> Table:
    """Describe each start of each process; its lease stands for all jobs it runs, and `dead` is for good."""
    return new_table(
        metadata,
        f"{p}workers",
        Column("id", name_type(32), primary_key=True),  # random for each start, never host and pid
        Column("host", String(255), nullable=False),
        Column("boot_id", name_type(64)),
        Column("pid", BigInteger, nullable=False),
        Column("started_us", BigInteger, nullable=False),
        Column("heartbeat_us", BigInteger, nullable=False),
        Column("lease_until_us", BigInteger, nullable=False),
        # alive, leaving (a drain left work behind: a short lease, and its jobs count as drained; SEMANTICS 8), dead,
        # stopped
        Column("state", name_type(12), nullable=False),
        Column("stopped_us", BigInteger),
        Column("quiet_us", BigInteger),  # since when an operator keeps it from claiming (API 11, `quiet`)
        Column("quiet_by", words_type(PRINCIPAL)),
        Column("tasks", text_type(), nullable=False),  # canonical JSON list of task names
        Column("signatures", text_type()),  # canonical JSON object: task → fingerprint of its signature
        Column("definitions", text_type(), nullable=False),  # canonical JSON object: schedule id → definition hash
        Column("limits", text_type()),  # canonical JSON object: name in `limits` → what its code declares (53)
        Column("queues", text_type()),  # canonical JSON list, None: all
        Column("slots", Integer, nullable=False),
        Column("version", name_type(64), nullable=False),  # of onebeat
        Column("code_version", name_type(64)),  # of the application, where it says one: `doctor` names a mixture
        Column("zone_data", name_type(32)),  # version of its time zone data, for the same reason
        Column("clock_offset_us", BigInteger),  # its clock minus the database's, at the last beat (alert ClockSkew)
        Column("wake_address", String(255)),  # where it hears hints
        Index(f"{p}workers_lease", "state", "lease_until_us"),
    )


def queues(metadata: MetaData, p: str) -> Table:
    """Describe what operators decided about a queue; one that nobody touched has no row."""
    return new_table(
        metadata,
        f"{p}queues",
        Column("name", name_type(), primary_key=True),
        *pause_columns(),
        Column("max_queued", Integer),  # beyond it an enqueue raises `Busy` (SEMANTICS 55); None: no bound
    )


def tasks(metadata: MetaData, p: str) -> Table:
    """Describe what operators decided about a task; one that nobody touched has no row."""
    return new_table(metadata, f"{p}tasks", Column("name", name_type(), primary_key=True), *pause_columns())


def limits(metadata: MetaData, p: str) -> Table:
    """Describe the limits in force; the row is the lock under which a job gets a place or a token (SEMANTICS 51, 52).

    It has no count of its holders: they are counted from `holders` and `jobs`, so that no crash can leave it wrong.
    """
    return new_table(
        metadata,
        f"{p}limits",
        Column("name", name_type(240), primary_key=True),  # `task:…`, `queue:…`, or `key:` and a SHA-256
        Column("kind", name_type(8), nullable=False),  # task, queue or key
        Column("key_text", text_type()),  # kind `key`: its task and clipped key, for people
        Column("max_running", Integer),  # None: any number
        Column("rate_limit", Integer),  # tokens that flow in each `rate_per_us`; None: no rate
        Column("rate_per_us", BigInteger),
        Column("rate_burst", Integer),
        Column("tokens", BigInteger, nullable=False, server_default="0"),  # millionths of a token, at `refilled_us`
        Column("refilled_us", BigInteger),
        # A value set at run time wins over the code's until it is cleared (SEMANTICS 53).
        Column("declared", text_type()),  # canonical JSON: what the newest live code says
        Column("set_us", BigInteger),  # None: the values in force are the code's
        Column("set_by", words_type(PRINCIPAL)),
        Column("set_reason", text_type()),
    )


def holders(metadata: MetaData, p: str) -> Table:
    """Describe which jobs have a place under which limits: a job can be under those of its task, key and queue at once.

    A row counts while its job is queued or running. So a job without limits costs nothing, and a row that a crash left
    behind is not counted; the sweeper deletes it.
    """
    return new_table(
        metadata,
        f"{p}holders",
        Column("limit_name", name_type(240), primary_key=True),
        Column("job_id", JobId, primary_key=True),
        Column("taken_us", BigInteger, nullable=False),
    )
