"""Two transactions, statement by statement, in an order that the test chooses."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from sqlalchemy.util import await_only

from onebeat.store.tx import Tx

BLOCKED = 0.04  # seconds after which an actor is taken to wait for the other one's lock
STEPS = ("statement", "commit")


class Turnstile:
    """Points of one actor's database: each statement and each commit waits until it is let through."""

    def __init__(self) -> None:
        self.steps = 0
        self.open = True
        self._arrived = asyncio.Event()
        self._permits = asyncio.Semaphore(0)

    def reach(self, name: str, tx: Tx) -> None:
        """Called in the greenlet that runs the transaction."""
        if name in STEPS:
            self.steps += 1
            if not self.open:
                await_only(self._wait())

    async def _wait(self) -> None:
        self._arrived.set()
        await self._permits.acquire()

    def close(self) -> None:
        """Stop the actor at its next step."""
        self.open = False
        self.steps = 0
        self._arrived.clear()
        self._permits = asyncio.Semaphore(0)

    def let_go(self) -> None:
        """Stop it no more."""
        self.open = True
        self._permits.release()

    async def step(self, task: asyncio.Task[Any]) -> None:
        """Let one step through and return when it is done, or is blocked by the other actor, or all is over."""
        if await self._stands(task):
            self._arrived.clear()
            self._permits.release()
            await self._stands(task)

    async def _stands(self, task: asyncio.Task[Any]) -> bool:
        """Whether the actor waits at the turnstile; False when it has ended or is blocked."""
        arrived = asyncio.ensure_future(self._arrived.wait())
        await asyncio.wait({arrived, task}, timeout=BLOCKED, return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel()
        return self._arrived.is_set()


async def in_order(
    order: Sequence[int], turnstiles: Sequence[Turnstile], actors: Sequence[Callable[[], Awaitable[Any]]]
) -> list[Any]:
    """Run both actors, the next step always by the one that `order` names; their results, or the errors they raised."""
    for turnstile in turnstiles:
        turnstile.close()
    tasks = [asyncio.ensure_future(actor()) for actor in actors]
    for who in order:
        await turnstiles[who].step(tasks[who])
    for turnstile in turnstiles:
        turnstile.let_go()
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks, return_exceptions=True)


def orders(first: int, second: int, most: int | None, chance: random.Random) -> Iterator[tuple[int, ...]]:
    """The ways to merge so many steps of two actors: all, or `most` drawn by chance, the serial ones among them."""
    places = list(itertools.combinations(range(first + second), first))
    if most is not None and len(places) > most:
        places = [places[0], places[-1], *chance.sample(places[1:-1], most - 2)]
    for chosen in places:
        yield tuple(0 if at in chosen else 1 for at in range(first + second))
