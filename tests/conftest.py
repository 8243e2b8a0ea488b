"""Fixtures that all tests share: a database of each kind that can be reached, and the order and marks of tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from onebeat.store import tables as tables_module
from onebeat.store.connection.database import Database
from onebeat.store.tables import Tables, build
from onebeat.tasks.job import UNBOUND
from onebeat.tasks.registry import Registry
from tests.support.databases import KINDS, RAN, SQL, Shelf, create_database, drop_database, find_servers

SERVERS = find_servers()  # kind → version
HERE = Path(__file__).parent
LAST = ("store", "engine", "guarantees", "cli", "examples", "cluster", "locks")  # other directories come before them

# Campaigns by the name of the test: each has a smaller one beside it, named in the comment, that `make test` runs.
CAMPAIGNS = (
    "test_a_back_end_without_one_of_its_rules_does_not_pass",  # the contract suite itself; its own rules are tested
    "test_a_forked_child_neither_releases_nor_renews_its_parents_lock[postgresql]",  # [file]
    "test_a_forked_child_neither_releases_nor_renews_its_parents_lock[redis]",  # [file]
    "test_no_history_of_eight_processes_is_wrong[file]",  # [sqlite]
    "test_no_history_of_eight_processes_is_wrong[mariadb]",
    "test_no_history_of_eight_processes_is_wrong[postgresql]",
    "test_no_history_of_eight_processes_is_wrong[redis]",
    "test_a_blocked_event_loop_keeps_its_lease_and_others_go_on[sqlite]",  # [postgresql]
    "test_four_processes_migrate_at_once_and_one_does_it[mariadb]",  # [postgresql]
    "test_four_processes_migrate_at_once_and_one_does_it[sqlite]",
    "test_each_due_instant_has_one_verdict_and_each_start_one_finished_job[mariadb]",  # [sqlite]
    "test_each_due_instant_has_one_verdict_and_each_start_one_finished_job[postgresql]",
    "test_a_worker_runs_jobs_inside_the_apps_lifespan_and_drains_at_the_first_signal[2]",  # [15]
    "test_many_jobs_each_run_once[postgresql]",  # [sqlite]
    "test_another_project_runs_the_contract_as_documented",  # the contract suite itself runs on every back end
    # a command, a server or an installation with processes of its own
    "test_a_draining_worker_outlives_the_sigterm_after_its_sibling_s_end",  # test_sigterm_to_uvicorn_with_two_workers_…
    "test_a_hook_gets_the_exception",  # test_each_failure_is_reported_once_with_its_exception[logs]
    "test_each_failure_is_reported_once_with_its_exception[no logs]",  # [logs]
    "test_a_request_and_the_jobs_it_caused_in_another_process_share_one_id",  # test_grep_for_the_id_tells_…
    "test_two_workers_keep_their_ids_apart",  # test_two_thousand_concurrent_requests_never_cross
    "test_a_second_signal_stops_a_worker_at_once_and_its_job_is_not_lost",  # test_a_worker_runs_jobs_inside_…[15]
    "test_a_worker_of_an_app_that_only_enqueues_runs_its_jobs",  # the same
    "test_a_signal_ends_a_start_that_waits_for_the_database[onebeat worker-SIGINT]",  # [onebeat worker-SIGTERM]
    "test_a_signal_ends_a_start_that_waits_for_the_database[uvicorn-",
    "test_the_thirty_second_example_serves_schedules_and_ends_cleanly",  # test_sigterm_to_uvicorn_with_two_workers_…
    "test_a_process_opens_no_more_connections_than_the_readme_says[mariadb]",  # [postgresql]
    "test_four_workers_lose_nothing_at_sigterm",  # test_one_process_writes_every_line_down_to_the_server_s_last
    "test_four_processes_write_a_hundred_thousand_lines_across_midnight",  # test_seven_days_are_kept_by_…[spring]
    "test_seven_days_are_kept_by_several_processes_across_a_clock_change[autumn]",  # [spring]
    "test_jobs_of_all_workers_share_the_number_of_children_too",  # test_all_workers_of_a_server_share_…
    "test_large_buffers_do_not_hold_up_the_event_loop",  # test_five_megabytes_there_and_back_hold_up_the_event_loop_…
    "test_c_code_on_another_thread_that_keeps_the_lock_is_named_by_its_function",  # test_c_code_that_keeps_the_…
    # the same search without each mechanism: test_no_order_of_steps_breaks_the_lock
    "test_each_mechanism_is_needed",
    # long ways of one algorithm, which the stores under it do not change
    "test_without_bounds_an_outage_ends_in_a_flood[mariadb]",  # [sqlite]
    "test_without_bounds_an_outage_ends_in_a_flood[postgresql]",
    "test_g10_an_outage_of_three_days_is_caught_up_within_bounds[mariadb]",  # [postgresql]
    # the tables are made by every test session on every server; a server takes seconds to make them again
    "test_alembic_says_nothing_of_our_revisions_and_all_of_the_applications[mariadb]",  # [sqlite]
    "test_alembic_says_nothing_of_our_revisions_and_all_of_the_applications[postgresql]",
    "test_a_second_start_makes_one_select_and_loads_no_alembic[mariadb]",  # [postgresql]
    "test_old_tables_are_refused_without_leave[mariadb]",  # [sqlite]
    "test_old_tables_are_refused_without_leave[postgresql]",
    "test_a_newer_revision_of_the_same_major_number_is_served[mariadb]",  # [sqlite]
    "test_a_newer_revision_of_the_same_major_number_is_served[postgresql]",
    "test_a_newer_major_number_is_refused[mariadb]",  # [sqlite]
    "test_a_newer_major_number_is_refused[postgresql]",
    "test_who_looked_before_the_other_migrated_finds_nothing_left_to_do[mariadb]",  # [sqlite]
    "test_who_looked_before_the_other_migrated_finds_nothing_left_to_do[postgresql]",
    "test_two_apps_cannot_share_tables_by_mistake[mariadb]",  # [sqlite]
    "test_two_apps_cannot_share_tables_by_mistake[postgresql]",
    "test_two_prefixes_live_side_by_side[mariadb]",  # [sqlite]
    "test_two_prefixes_live_side_by_side[postgresql]",
    "test_a_table_of_other_origin_under_our_name_is_said_and_left_alone[mariadb]",  # [sqlite]
    "test_a_table_of_other_origin_under_our_name_is_said_and_left_alone[postgresql]",
)

# The parts above the store send a server what tests/store, tests/guarantees and the tests named here send it. A file or
# a directory whose tests on this server are campaigns → what of it is none.
TWINS: dict[str, dict[str, tuple[str, ...]]] = {
    "mariadb": {
        "engine": (),
        "scheduler": (),
        "locks/test_contract.py": (),  # its statements: locks/test_orders.py and locks/test_faults.py
        "locks/test_scheduler.py": (),
    },
    "postgresql": {
        "engine": ("test_blocked_loop.py", "test_life_of_a_job.py", "test_life_of_a_schedule.py"),
        "locks/test_scheduler.py": (),
    },
}

MakeDatabase = Callable[..., Awaitable[Database]]


def pytest_sessionstart(session: pytest.Session) -> None:
    """A database that is required and missing is a failure of the whole run, never a skip."""
    required = {name.strip() for name in os.environ.get("ONEBEAT_TEST_REQUIRE", "").split(",")} - {""}
    unknown, missing = required - set(KINDS), required & set(KINDS) - set(SERVERS)
    if unknown:
        raise pytest.UsageError(f"ONEBEAT_TEST_REQUIRE names {sorted(unknown)}; known are {', '.join(KINDS)}")
    if missing:
        raise pytest.UsageError(
            f"required and not reached: {', '.join(sorted(missing))}; start them with `make databases`"
        )


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark campaigns by name, and put quick tests first, so that a mistake shows early."""
    items.sort(key=lambda item: LAST.index(part) + 1 if (part := _directory(item)) in LAST else 0)
    for item in items:
        if _is_a_twin(item) or item.name.startswith(CAMPAIGNS):
            item.add_marker("campaign")


def _is_a_twin(item: pytest.Item) -> bool:
    """Whether the test does on one server what the same test does on another database."""
    path = item.path.relative_to(HERE).as_posix()
    return any(
        path.startswith(place) and not path.endswith(kept)
        for kind, places in TWINS.items()
        if kind in item.name.partition("[")[2]
        for place, kept in places.items()
    )


def _directory(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).parts[0]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the first what its tests used."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ran"] = sorted(RAN)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The first process hears of it."""
    RAN.update(getattr(node, "workeroutput", {}).get("ran", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The last words say on what the tests ran."""
    ran = [f"{kind} {SERVERS[kind]}" for kind in KINDS if kind in RAN]
    absent = [kind for kind in KINDS if kind not in SERVERS]
    terminalreporter.write_line(
        f"databases that ran: {', '.join(ran) or 'none'}; not reached: {', '.join(absent) or 'none'}"
    )


@pytest.fixture(autouse=True)
def _own_job_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test derives from `Job` is known to the schedulers of that test alone."""
    monkeypatch.setattr(UNBOUND, "registry", Registry())
    monkeypatch.setattr(UNBOUND, "_including", WeakSet())


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """The session's migrated databases."""
    shelf = Shelf(tmp_path_factory.mktemp("databases"))
    yield shelf
    shelf.close()


@pytest.fixture(params=[kind for kind in SQL if kind in SERVERS])
def database_kind(request: pytest.FixtureRequest) -> str:
    """sqlite, postgresql and mariadb in turn, as far as they can be reached."""
    return str(request.param)


@pytest.fixture
def database_url(database_kind: str, shelf: Shelf, tmp_path: Path) -> str:
    """A database with onebeat's tables and no rows."""
    return shelf.take(database_kind, tmp_path)


@pytest.fixture
def fresh_database_url(database_kind: str, tmp_path: Path) -> Iterator[str]:
    """A database with nothing in it."""
    url = create_database(database_kind, tmp_path)
    yield url
    drop_database(url)


@pytest.fixture(scope="session")  # nothing changes them, and building them takes milliseconds
def tables() -> Tables:
    """onebeat's tables under the default prefix."""
    return build()


@pytest.fixture(scope="session", autouse=True)
def _schedulers_share_their_tables() -> Iterator[None]:
    """Building the tables costs a test more than most of what it does; schedulers and locks of tests share them.

    A test that changes tables calls `build` itself, which makes new ones.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_module, "build", cache(build))
        yield


@pytest.fixture
async def make_database(tables: Tables) -> AsyncIterator[MakeDatabase]:
    """Opens databases, with any options of `Database`, and closes them at the end: `await make_database(url)`."""
    made: list[Database] = []

    async def make(target: Any, **options: Any) -> Database:
        timeout = options.pop("timeout", 10)
        database = Database(target, **{"tables": tables, **options})
        made.append(database)
        await database.open(timeout)
        return database

    yield make
    for database in reversed(made):
        await database.close()


@pytest.fixture
async def database(database_url: str, make_database: MakeDatabase) -> Database:
    """An opened database with onebeat's tables and no rows."""
    return await make_database(database_url)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """Redis, for the tests that need it; they are left out together where it cannot be reached."""
    from tests.support.databases import ADDRESSES

    if "redis" not in SERVERS:
        pytest.skip("redis cannot be reached (ONEBEAT_TEST_REQUIRE makes that a failure)")
    RAN.add("redis")
    return ADDRESSES["redis"]
