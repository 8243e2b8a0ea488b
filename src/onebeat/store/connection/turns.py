"""Turns: who gets the next free connection of a pool, by rank and then in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Gives out a fixed number of places on one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[tuple[int, int], deque[asyncio.Future[None]]] = {}  # by rank and spare

    def take_free(self, *, spare: int = 0) -> bool:
        """Take a place that is free, and return whether there was one. This call leaves `spare` places to others."""
        if self._free <= spare:
            return False
        self._free -= 1
        return True

    async def take(self, rank: int, *, spare: int = 0) -> None:
        """Wait for a place; a lower rank goes first. Give the place back with `give_back`.

        A cancelled call has no place.
        """
        if self.take_free(spare=spare):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((rank, spare), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given to this call as it was cancelled
                self.give_back()
            raise

    def give_back(self) -> None:
        """Free a place, and give it to the next call that may have it."""
        self._free += 1
        for key in sorted(self._waiting):
            waiting = self._waiting[key]
            while waiting and self._free > key[1]:
                turn = waiting.popleft()
                if not turn.done():  # a cancelled one stays in its queue until it is found here
                    self._free -= 1
                    turn.set_result(None)
