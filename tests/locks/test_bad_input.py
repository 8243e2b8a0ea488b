"""What people get wrong with locks, through a scheduler as they would write it; the contract has it for each place."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from onebeat import ConfigurationError, LeaseLost, LockTimeout, NotStarted, Scheduler

LIMITS = r"0\.5 to 86400 s"
NOT_A_NUMBER, ENDLESS = float("nan"), float("inf")


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ttl": 0}, rf"ttl=0 cannot be used; it must be {LIMITS}"),
        ({"ttl": -1}, "ttl=-1 cannot be used: .* negative"),
        ({"ttl": NOT_A_NUMBER}, "ttl=nan cannot be used: .* finite"),
        ({"ttl": ENDLESS}, "ttl=inf cannot be used: .* finite"),
        ({"wait": -1}, "wait=-1 cannot be used: .* negative.*None waits without limit"),
        ({"wait": NOT_A_NUMBER}, "wait=nan cannot be used: .* finite"),
        ({"wait": "soon"}, "wait='soon' cannot be used: .*seconds as a number"),
        ({"name": "a b"}, "'a b' cannot be a lock's name; use 1 to 200 of"),
    ],
    ids=repr,
)
async def test_what_cannot_work_is_refused_with_the_limits(database_url: str, asked: Any, words: str) -> None:
    scheduler = Scheduler(database_url, role="client")  # not started: it is said where it is written
    with pytest.raises(ConfigurationError, match=words):
        scheduler.lock(**{"name": "a", **asked})


async def test_a_nested_acquire_names_the_fence_that_is_held(database_url: str) -> None:
    async with Scheduler(database_url, role="client") as scheduler, scheduler.lock("a") as lease:
        with pytest.raises(LockTimeout, match=rf"very task \(fence {lease.fence}\).*not re-entrant"):
            await scheduler.lock("a").acquire()


async def test_a_second_release_says_that_it_is_the_second(database_url: str) -> None:
    async with Scheduler(database_url, role="client") as scheduler:
        lease = await scheduler.lock("a").acquire()
        await lease.release()
        with pytest.raises(LeaseLost, match="'a' was released already; a lease is released once"):
            await lease.release()


async def test_another_event_loop_is_told_what_to_do(database_url: str) -> None:
    async with Scheduler(database_url, role="client") as scheduler:
        lease = await scheduler.lock("a").acquire()

        async def elsewhere() -> None:
            with pytest.raises(NotStarted, match="another event loop"):
                await scheduler.lock("b").acquire()
            with pytest.raises(NotStarted, match="use it there, or acquire it here"):
                await lease.release()

        await asyncio.to_thread(asyncio.run, elsewhere())
        await lease.check()


async def test_with_in_a_running_loop_is_refused(database_url: str) -> None:
    async with Scheduler(database_url, role="client") as scheduler:
        with pytest.raises(ConfigurationError, match="use `async with`"), scheduler.lock("a"):
            pytest.fail("the event loop was blocked")


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("template", ["mail {user}", "mail-{{{user}}}", "ä{user}", "x" * 200 + "{user}"])
async def test_a_template_whose_own_words_cannot_be_a_name_is_refused_where_it_is_written(
    database_url: str, template: str
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a lock's name"):
        Scheduler(database_url, role="client").locked(template)


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_a_partial_can_be_locked_and_a_mistake_in_it_is_named(database_url: str) -> None:
    async def mail(user: int, words: str) -> str:
        return f"{user}: {words}"

    async with Scheduler(database_url, role="client") as scheduler:
        assert await scheduler.locked("mail-{user}")(partial(mail, words="hi"))(7) == "7: hi"
        with pytest.raises(ConfigurationError, match="has no such parameter"):
            scheduler.locked("mail-{nobody}")(partial(mail, words="hi"))
