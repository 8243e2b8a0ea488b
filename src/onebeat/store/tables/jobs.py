"""The tables of jobs, of their attempts and of the workflows they belong to.

Every index on `jobs` costs each job three times, because PostgreSQL writes them all anew at each change of state. So an
index stands here only where a frequent question needs it, and it is partial where most jobs do not take part in it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, text

from onebeat.store.tables.columns import (
    PRINCIPAL,
    JobId,
    name_type,
    new_table,
    partial_only,
    plain_only,
    text_type,
    where,
    words_type,
)


def jobs(metadata: MetaData, p: str) -> Table:
    """Describe the live queue and its recent history; the state of a row says which part of it counts."""
    return new_table(
        metadata,
        f"{p}jobs",
        Column("id", JobId, primary_key=True),
        *_what(),
        *_when(),
        *_claim(),
        *_keys(),
        *_origin(),
        *_steps(),
        *_outcome(),
        *_indexes(f"{p}jobs"),
    )


def _what() -> list[Column[Any]]:
    """What is to be run, and where."""
    return [
        Column("task", name_type(), nullable=False),
        Column("signature", name_type(64)),  # fingerprint: a worker with another one leaves the row alone
        Column("args", text_type(), nullable=False),  # canonical JSON: {"a": [...], "k": {...}}
        Column("encryption_key", name_type(16)),  # fingerprint of the key of `args`; None: clear text (SEMANTICS 48)
        Column("queue", name_type(), nullable=False),
        Column("rank", BigInteger, nullable=False),  # minus the priority, so that every index ascends
    ]


def _when() -> list[Column[Any]]:
    """Where the job stands, and what may still be spent on it."""
    return [
        Column("state", name_type(12), nullable=False),
        Column("reason", words_type(64)),  # onebeat's own, or the task's: Cancel("…")
        Column("run_at_us", BigInteger, nullable=False),
        Column("waits_for", name_type(240)),  # state `waiting`: `schedule:…`, `limit:…`, `job:…` or `operation:…`
        Column("attempt", Integer, nullable=False, server_default="0"),
        Column("errors", Integer, nullable=False, server_default="0"),
        Column("max_attempts", Integer, nullable=False),
        Column("crashes", Integer, nullable=False, server_default="0"),
        Column("retry", text_type()),  # canonical JSON of the Retry in force, None: the task's own
        Column("timeout_us", BigInteger),
        Column("expires_at_us", BigInteger),  # a job that has not started by then fails (SEMANTICS 55)
        Column("at_most_once", Boolean, nullable=False, server_default=text("false")),
    ]


def _claim() -> list[Column[Any]]:
    """Who has it."""
    return [
        Column("worker_id", name_type(32)),
        Column("lease_token", name_type(32)),  # kept on the finished row: "succeeded and my token" means it was me
        Column("fence", BigInteger, nullable=False, server_default="0"),
    ]


def _keys() -> list[Column[Any]]:
    """Keys of the user. They are free text, so each is a SHA-256 beside a clipped text for people (SEMANTICS 32)."""
    return [
        Column("unique_slot", name_type(64)),  # None as soon as the key is free again
        Column("unique_text", text_type()),
        Column("unique_until_us", BigInteger),  # `unique_for`: the end of the job leaves the key taken until then (54)
        Column("concurrency_key", name_type(64)),  # the places taken stand in `holders` (SEMANTICS 51)
        Column("concurrency_text", text_type()),
        Column("max_running", Integer),  # None: no limit of the task or its key
        Column("rate_key", name_type(64)),  # whose token bucket in `limits` the claim draws on, None: no rate (52)
    ]


def _origin() -> list[Column[Any]]:
    """Where it came from."""
    return [
        Column("schedule_id", name_type()),
        Column("fire_us", BigInteger),
        # The zone of the schedule when it fired, in which the fire time is told (SEMANTICS 21); None: UTC. It stays as
        # it was, whatever becomes of the schedule.
        Column("fire_zone", name_type(64)),
        Column("tracking_id", name_type(128), nullable=False),
        Column("carried", text_type()),
        Column("tags", text_type()),
        Column("created_us", BigInteger, nullable=False),
    ]


def _steps() -> list[Column[Any]]:
    """What it belongs to: a workflow (SEMANTICS 56, 57) and a bulk operation (58). Most jobs have neither."""
    return [
        Column("workflow_id", JobId),  # `workflows.jobs` lists its members, so no index is needed here
        Column("step", Integer),
        Column("parents", text_type()),  # JSON list of the jobs whose values are its first argument
        Column("on_failed", name_type(8)),  # of this step: `stop` or `continue`
        Column("on_success_job", JobId),  # callbacks are jobs that wait; the one that is not needed is cancelled
        Column("on_failure_job", JobId),
        Column("operation_id", JobId),  # of the operation that holds or hides it until its undo window closes
        Column("hidden_us", BigInteger),  # since when a bulk delete hides it from every list
    ]


def _outcome() -> list[Column[Any]]:
    """What became of it."""
    return [
        Column("progress", text_type()),
        Column("value", text_type()),
        Column("error", text_type()),
        Column("error_fingerprint", name_type(32)),  # errors of one kind, for lists and for alerts on new kinds
        Column("cancel_requested_us", BigInteger),
        Column("claimed_us", BigInteger),
        Column("started_us", BigInteger),
        Column("finished_us", BigInteger),  # None: it has not ended
    ]


def _indexes(p: str) -> list[Index]:
    return [
        Index(f"{p}_unique", "unique_slot", unique=True, **where("unique_slot IS NOT NULL")),
        # The jobs of each queue and task in their order: a claim takes the first ones and passes no others.
        # No partial index begins with the column of its condition: PostgreSQL leaves that out of the search.
        Index(
            f"{p}_queue", "queue", "task", "rank", "run_at_us", "id", info=partial_only(), **where("state = 'queued'")
        ),
        Index(f"{p}_queued", "state", "queue", "task", "rank", "run_at_us", "id", info=plain_only()),
        Index(f"{p}_due", "state", "run_at_us", **where("state = 'scheduled'")),
        Index(f"{p}_worker", "worker_id", "state", **where("state = 'running'")),
        # Jobs that were running when a worker died, twice: few, to be found beside any backlog.
        Index(f"{p}_suspects", "crashes", **where("state = 'queued' AND crashes >= 2")),
        Index(
            f"{p}_expiry",
            "expires_at_us",
            info=partial_only(),
            **where("expires_at_us IS NOT NULL AND finished_us IS NULL"),
        ),
        # A schedule's jobs, those that have not ended apart: a fire reads only these, beside any history.
        Index(f"{p}_schedule", "schedule_id", "finished_us", "fire_us", **where("schedule_id IS NOT NULL")),
        # The oldest that waits for something is the first entry, however many wait.
        Index(f"{p}_waits", "waits_for", "id", **where("state = 'waiting'")),
        Index(f"{p}_tracking", "tracking_id"),
        # Pruning reads each final state by age, because failed jobs are kept longer. Queue and task stand before the
        # age, so that lists and counts find which of them have jobs in a state, and few jobs beside very many, without
        # one more index: see `store/jobs/find.py`. Elsewhere `queued` tells the same.
        Index(
            f"{p}_kinds",
            "state",
            "queue",
            "task",
            "finished_us",
            info=partial_only(),
            **where("finished_us IS NOT NULL"),
        ),
        # On MySQL and MariaDB the state would move each job twice more in that index: 20 % of a drain. This one serves
        # pruning by age alone, and, among jobs that have not ended, expiry.
        Index(f"{p}_finished", "finished_us", "expires_at_us", info=plain_only()),
    ]


def job_tags(metadata: MetaData, p: str) -> Table:
    """Describe the tags of jobs as rows, for filters."""
    return new_table(
        metadata,
        f"{p}job_tags",
        Column("job_id", JobId, primary_key=True),
        Column("tag", name_type(100), primary_key=True),
        Index(f"{p}job_tags_tag", "tag", "job_id"),
    )


def attempts(metadata: MetaData, p: str) -> Table:
    """Describe attempts as rows; a job that succeeds at its first keeps the facts on its own row."""
    return new_table(
        metadata,
        f"{p}attempts",
        Column("job_id", JobId, primary_key=True),
        Column("attempt", Integer, primary_key=True),
        Column("worker_id", name_type(32)),
        Column("started_us", BigInteger),
        Column("finished_us", BigInteger),
        Column("outcome", name_type(24), nullable=False),
        Column("error", text_type()),
        Column("error_fingerprint", name_type(32)),
        Column("traceback", text_type()),
    )


def attempt_logs(metadata: MetaData, p: str) -> Table:
    """Describe the log records of an attempt (SEMANTICS 61): one row for each write, so at most one in two seconds."""
    return new_table(
        metadata,
        f"{p}attempt_logs",
        Column("job_id", JobId, primary_key=True),
        Column("attempt", Integer, primary_key=True),
        Column("part", Integer, primary_key=True),
        Column("written_us", BigInteger, nullable=False),
        Column("records", text_type(), nullable=False),  # one JSON object a line, redacted before it is written
        Column("dropped", Integer, nullable=False, server_default="0"),  # records beyond the bound
    )


def workflows(metadata: MetaData, p: str) -> Table:
    """Describe chains and groups; whoever ends a step locks this row to see whether it was the last (SEMANTICS 56)."""
    return new_table(
        metadata,
        f"{p}workflows",
        Column("id", JobId, primary_key=True),
        Column("state", name_type(12), nullable=False),  # running, then one of a job's final states
        Column("on_failed", name_type(8), nullable=False),
        Column("jobs", text_type(), nullable=False),  # JSON: for each step the ids of its jobs, made with the workflow
        Column("step", Integer, nullable=False, server_default="0"),  # the one that is going on
        Column("step_left", Integer, nullable=False),  # jobs of it that have not ended: no search at each end
        Column("failed", Integer, nullable=False, server_default="0"),
        Column("tracking_id", name_type(128), nullable=False),
        Column("created_by", words_type(PRINCIPAL)),
        Column("cancel_requested_us", BigInteger),
        Column("created_us", BigInteger, nullable=False),
        Column("finished_us", BigInteger),
        Index(f"{p}workflows_finished", "finished_us"),  # pruning, and the sweeper's look at unfinished ones
    )
