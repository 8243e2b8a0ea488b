"""The tables of schedules, of their definitions in code, and of what became of each fire."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, text

from onebeat.store.tables.columns import PRINCIPAL, JobId, name_type, new_table, text_type, where, words_type


def schedules(metadata: MetaData, p: str) -> Table:
    """Describe the rules that produce fires; whoever moves `next_fire_us` owns the fire."""
    return new_table(
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
        Column("on_overrun", name_type(8)),  # `replace` fences the old run; None: wait (SEMANTICS 64)
        Column("state", name_type(16), nullable=False),
        Column("next_fire_us", BigInteger),
        Column("last_fire_us", BigInteger),
        Column("fire_seq", BigInteger, nullable=False, server_default="0"),
        Column("fire_token", name_type(32)),  # of the transaction that moved it last: so the winner recognises itself
        Column("rev", BigInteger, nullable=False, server_default="1"),
        Column("fires_count", BigInteger, nullable=False, server_default="0"),
        Column("consecutive_skips", Integer, nullable=False, server_default="0"),
        # How its jobs ended, written with their last state, so that nobody searches the job history for it (issue of
        # scale, item 1; alerts, SEMANTICS 62). The fire that ended last may be an older one: its instant decides.
        Column("last_status", name_type(12)),
        Column("last_error", text_type()),
        Column("last_ended_fire_us", BigInteger),
        Column("last_success_us", BigInteger),
        Column("consecutive_failures", Integer, nullable=False, server_default="0"),
        Column("source", name_type(8), nullable=False),
        Column("definition_hash", name_type(64)),
        Column("overridden", Boolean, nullable=False, server_default=text("false")),
        Column("tags", text_type(), nullable=False),
        Column("note", text_type()),
        Column("paused_reason", text_type()),
        Column("paused_us", BigInteger),
        Column("paused_by", words_type(PRINCIPAL)),  # with the reason, what `why` answers
        Column("pause_until_us", BigInteger),  # None: until somebody resumes (API 11, `until`)
        Column("created_us", BigInteger, nullable=False),
        Column("updated_us", BigInteger, nullable=False),
        # `due` reads in this order. The id makes it as exact as the primary key for the update that moves one schedule,
        # which PostgreSQL may plan over it while its statistics are old and thousands share one `next_fire_us`.
        Index(f"{p}schedules_due", "state", "next_fire_us", "id"),
        # The arbitration of code versions looks at declared schedules only, beside any number of added ones.
        Index(f"{p}schedules_code", "source", "id", **where("source = 'code'")),
    )


def definitions(metadata: MetaData, p: str) -> Table:
    """Describe which versions of a declared schedule the code of this fleet has had (SEMANTICS 20)."""
    return new_table(
        metadata,
        f"{p}definitions",
        Column("schedule_id", name_type(), primary_key=True),
        Column("hash", name_type(64), primary_key=True),
        Column("first_seen_us", BigInteger, nullable=False),
        Column("last_seen_us", BigInteger),  # when a live worker last had it, exact to a day; old ones are deleted
        Column("body", text_type(), nullable=False),
    )


def fires(metadata: MetaData, p: str) -> Table:
    """Describe one verdict for every due instant, so that "why did it not run?" has an answer."""
    return new_table(
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
        Index(f"{p}fires_decided", "decided_us"),  # pruning by age
        # Which gap holds an instant is asked without reading every older fire of the schedule.
        Index(f"{p}fires_gaps", "schedule_id", "until_us", **where("until_us IS NOT NULL")),
    )
