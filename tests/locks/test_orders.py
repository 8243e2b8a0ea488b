"""Two actors at one lock, in every order of their statements: never two holders, and fences that grow."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onebeat.store import locks
from onebeat.store.connection.database import Database
from tests.conftest import SERVERS, MakeDatabase
from tests.locks.history import Hold, fences_grow, holds_apart
from tests.support.databases import RAN
from tests.support.orders import Turnstile, in_order, orders
from tests.support.virtual import VirtualClock

SECOND = 1_000_000
TTL = 10 * SECOND


@pytest.fixture(params=[kind for kind in ("postgresql", "mariadb") if kind in SERVERS])
def database_kind(request: pytest.FixtureRequest) -> str:
    """SQLite has one writer: there, statements have no order but one after the other."""
    RAN.add(request.param)
    return str(request.param)


class Actors:
    """Two actors on databases whose statements wait for their turn, and a third that looks."""

    def __init__(self, clock: VirtualClock, turnstiles: list[Turnstile], databases: list[Database]) -> None:
        self.clock = clock
        self.turnstiles = turnstiles
        self.databases = databases
        self.third = databases[2]
        self.moments = itertools.count(1)
        self.held: list[Hold] = []

    async def hold(self, who: int, name: str, turn: int, release: bool) -> int | None:
        """Take the lock, believe in it from the answer until the release is sent, and write both down."""
        owner, asked = f"{who}{turn}".rjust(32, "0"), next(self.moments)
        fence = await self.databases[who].write_one(locks.acquire, name, owner, TTL, f"actor {who}")
        begin = next(self.moments)
        if fence is not None:
            end = next(self.moments) if release else 1 << 40
            self.held.append(Hold(fence=fence, asked=asked, begin=begin, end=end, pid=who))
            if release:
                assert await self.databases[who].write_one(locks.release, name, owner)
        return fence

    async def run(self, steps: int, arrange: Callable[[str], Awaitable[list[Any]]], look: Callable[..., Any]) -> int:
        """Both actors' `arrange`d work on a fresh name, in each order; how many there were."""
        for count, order in enumerate(orders(steps, steps, None, random.Random()), 1):
            self.held.clear()
            name = f"lock-{count}"
            results = await in_order(order, self.turnstiles, await arrange(name))
            errors = [result for result in results if isinstance(result, BaseException)]
            assert errors == [], f"in the order {order}: {errors}"
            wrong = [*fences_grow(self.held), *holds_apart(self.held)]
            assert wrong == [], f"in the order {order}: {wrong}"
            await look(name, order, results)
        return count


@pytest.fixture
async def actors(database_url: str, make_database: MakeDatabase) -> Actors:
    clock = VirtualClock()
    turnstiles = [Turnstile(), Turnstile()]
    databases = [await make_database(database_url, database_clock=clock, points=points) for points in turnstiles]
    return Actors(clock, turnstiles, [*databases, await make_database(database_url, database_clock=clock)])


async def acquire_release_acquire(actors: Actors, kind: str) -> int:
    """Three statements each on PostgreSQL (20 orders), five on MariaDB (252)."""

    async def work(who: int, name: str) -> None:
        await actors.hold(who, name, 1, release=True)
        await actors.hold(who, name, 2, release=False)

    async def look(name: str, order: Any, results: Any) -> None:
        assert actors.held, f"in the order {order} nobody got the lock"
        in_force = [row for row in await actors.third.read(locks.held) if row.name == name]
        assert [row.fence for row in in_force] == [hold.fence for hold in actors.held if hold.end == 1 << 40]

    async def arrange(name: str) -> list[Any]:
        return [lambda who=who: work(who, name) for who in (0, 1)]

    return await actors.run(3 if kind == "postgresql" else 5, arrange, look)


async def renew_expire_steal(actors: Actors, kind: str) -> int:
    """One renews twice and releases; the other tries, lets the lease run out, and steals."""
    fences: dict[str, int] = {}
    ended: dict[str, bool] = {}  # whether the first lease's time is over

    async def arrange(name: str) -> list[Any]:
        mine, theirs = "a" * 32, "b" * 32
        fence = await actors.third.write_one(locks.acquire, name, mine, TTL, "first")
        assert fence is not None
        fences[name], ended[name] = fence, False

        async def renews() -> bool:
            kept = await actors.databases[0].write_one(locks.renew, name, mine, TTL)
            assert not (kept and ended[name]), "a lease whose time was over was renewed"
            return kept

        async def keeps() -> list[bool]:
            return [await renews(), await renews(), await actors.databases[0].write_one(locks.release, name, mine)]

        async def steals() -> list[int | None]:
            early = await actors.databases[1].write_one(locks.acquire, name, theirs, TTL, "second")
            actors.clock.advance(11)
            ended[name] = True
            late = await actors.databases[1].write_one(locks.acquire, name, "c" * 32, TTL, "third")
            return [early, late]

        return [keeps, steals]

    async def look(name: str, order: Any, results: Any) -> None:
        (first, second, released), (early, late) = results
        holds = [await actors.third.read(locks.holds, name, letter * 32) for letter in "abc"]
        assert sum(holds) <= 1, f"in the order {order} {holds}"
        for fence in (early, late):
            assert fence is None or fence != fences[name], f"in the order {order} a fence came twice"
        if late is not None:
            assert late > fences[name]
            assert late > (early or 0)
            assert holds[2] or not (first or second or released), (
                f"in the order {order}: the thief's lock was taken back"
            )

    return await actors.run(3 if kind == "postgresql" else 4, arrange, look)


async def two_thieves(actors: Actors, kind: str) -> int:
    """The lease of one who died has run out, and both take it: two statements each on PostgreSQL (6 orders), three on
    MariaDB (20)."""
    fences: dict[str, int] = {}

    async def arrange(name: str) -> list[Any]:
        fence = await actors.third.write_one(locks.acquire, name, "d" * 32, TTL, "dead")
        assert fence is not None
        fences[name] = fence
        actors.clock.advance(11)
        return [lambda who=who: actors.hold(who, name, 1, release=True) for who in (0, 1)]

    async def look(name: str, order: Any, results: Any) -> None:
        assert actors.held, f"in the order {order} nobody got the lock"
        assert all(hold.fence > fences[name] for hold in actors.held), f"in the order {order} a fence did not grow"

    return await actors.run(2 if kind == "postgresql" else 3, arrange, look)


PAIRS = {acquire_release_acquire: (20, 252), renew_expire_steal: (20, 70), two_thieves: (6, 20)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
async def test_no_order_of_two_actors_statements_breaks_the_lock(actors: Actors, database_kind: str, pair: Any) -> None:
    count = await pair(actors, database_kind)
    print(f"{pair.__name__} on {database_kind}: {count} orders")
    assert count == PAIRS[pair][database_kind == "mariadb"], "every order, not a sample"
