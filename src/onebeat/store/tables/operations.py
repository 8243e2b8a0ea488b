"""The tables of people's actions: bulk operations, answers to repeated requests, alerts and the audit."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table

from onebeat.store.tables.columns import PRINCIPAL, JobId, name_type, new_table, text_type, words_type


def operations(metadata: MetaData, p: str) -> Table:
    """Describe bulk operations from their dry run to the end of their undo window (SEMANTICS 58)."""
    return new_table(
        metadata,
        f"{p}operations",
        Column("id", JobId, primary_key=True),
        Column("action", name_type(32), nullable=False),  # retry, cancel or delete
        Column("filter", text_type(), nullable=False),  # canonical JSON, the principal's scope included
        Column("principal", words_type(PRINCIPAL), nullable=False),
        Column("reason", text_type()),
        Column("request_id", name_type(128)),
        # previewed, running, undoable (done, the window is open), undoing, undone, stopped, done, failed
        Column("state", name_type(12), nullable=False),
        Column("token_hash", name_type(64)),  # SHA-256 of the token that confirms it
        Column("token_until_us", BigInteger),
        Column("expected", BigInteger, nullable=False),  # jobs that the dry run counted: another count is refused
        Column("sample", text_type(), nullable=False),  # JSON: five of them
        Column("position", JobId),  # the last job of the last batch; the next one goes on from here
        Column("matched", BigInteger, nullable=False, server_default="0"),  # progress
        Column("changed", BigInteger, nullable=False, server_default="0"),
        Column("skipped", BigInteger, nullable=False, server_default="0"),
        Column("running", BigInteger, nullable=False, server_default="0"),  # cannot be undone, so counted apart
        Column("error", text_type()),
        Column("undo_until_us", BigInteger),
        Column("created_us", BigInteger, nullable=False),
        Column("started_us", BigInteger),
        Column("finished_us", BigInteger),
        # What has work to do now: the few that run, and those whose undo window closes.
        Index(f"{p}operations_state", "state", "undo_until_us"),
    )


def operation_jobs(metadata: MetaData, p: str) -> Table:
    """Describe what an operation changed, with what an undo restores; deleted when its undo window has closed."""
    return new_table(
        metadata,
        f"{p}operation_jobs",
        Column("operation_id", JobId, primary_key=True),
        Column("job_id", JobId, primary_key=True),
        Column("state_before", name_type(12), nullable=False),
        Column("waits_for_before", name_type(240)),
    )


def idempotency(metadata: MetaData, p: str) -> Table:
    """Describe answers to requests with an `Idempotency-Key`, committed with their effect, kept 24 h (SEMANTICS 59).

    The primary key makes two equal requests at once one effect. It is a table of its own because not every answer is
    a job, and because an answer outlives the job that is deleted.
    """
    return new_table(
        metadata,
        f"{p}idempotency",
        Column("scope_key", name_type(64), primary_key=True),  # SHA-256 of route, principal and key
        Column("body_hash", name_type(64), nullable=False),  # the same key with another body is refused
        Column("status", Integer, nullable=False),
        Column("headers", text_type()),  # JSON
        Column("answer", text_type()),
        Column("job_id", JobId),
        Column("created_us", BigInteger, nullable=False),
        Index(f"{p}idempotency_age", "created_us"),  # pruning
    )


def alerts(metadata: MetaData, p: str) -> Table:
    """Describe what each alert rule found last, so that the fleet tells it once (SEMANTICS 62)."""
    return new_table(
        metadata,
        f"{p}alerts",
        Column("id", name_type(64), primary_key=True),  # SHA-256 of rule and subject
        Column("rule", name_type(64), nullable=False),
        Column("subject", words_type(240), nullable=False),  # a schedule, a queue, a kind of error, or empty: the fleet
        Column("state", name_type(8), nullable=False),  # ok or firing
        Column("since_us", BigInteger, nullable=False),
        Column("evaluated_us", BigInteger, nullable=False),
        Column("fired_us", BigInteger),  # the last time it was told
        Column("details", text_type()),  # JSON: the figures behind it
        Column("muted_until_us", BigInteger),
        Column("muted_by", words_type(PRINCIPAL)),
        Column("muted_reason", text_type()),
    )


def audit(metadata: MetaData, p: str) -> Table:
    """Describe what people changed, each row in the transaction of its effect."""
    return new_table(
        metadata,
        f"{p}audit",
        Column("id", JobId, primary_key=True),
        Column("at_us", BigInteger, nullable=False),
        Column("principal", words_type(PRINCIPAL)),
        Column("action", name_type(64), nullable=False),
        Column("subject", name_type(240), nullable=False),
        Column("before_json", text_type()),
        Column("after_json", text_type()),
        Column("reason", text_type()),
        Column("request_id", name_type(128)),  # the tracking id of the request or command
        Index(f"{p}audit_time", "at_us"),
        Index(f"{p}audit_subject", "subject", "at_us"),  # "who paused this?"
    )
