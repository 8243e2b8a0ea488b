"""A store function that waits for its transaction on a thread, and the future of its caller on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from onebeat.store.connection.backend import Rank
from onebeat.store.retries import Retries
from onebeat.store.tx import Tx


class QueuedCall:
    """One store function that waits for its transaction, with the future that its caller awaits."""

    __slots__ = ("alone", "error", "flushed", "rank", "result", "retries", "run", "waiter")

    def __init__(
        self,
        run: Callable[[Tx], Any],
        waiter: asyncio.Future[Any],
        *,
        retries: Retries,
        flushed: bool = True,
        rank: Rank = Rank.ENGINE,
    ) -> None:
        self.run = run
        self.waiter = waiter
        self.retries = retries  # counts its patience since it was submitted
        self.flushed = flushed  # whether its commit is to survive a power cut
        self.rank = rank  # calls of a lower rank run first
        self.alone = False  # it failed beside others, so it runs in a transaction of its own
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller was cancelled; a call that has not begun is then left out."""
        return self.waiter.cancelled()

    def complete(self) -> None:
        """Give the outcome to the caller; to be called on the caller's event loop."""
        if self.waiter.done():
            return
        if self.error is None:
            self.waiter.set_result(self.result)
        else:
            self.waiter.set_exception(self.error)


def complete_all(calls: list[QueuedCall]) -> None:
    """Complete calls from another thread. Each event loop is woken once, as a wake-up costs as much as a call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[QueuedCall]] = {}
    for call in calls:
        by_loop.setdefault(call.waiter.get_loop(), []).append(call)
    for loop, completed in by_loop.items():
        try:
            loop.call_soon_threadsafe(_complete_here, completed)
        except RuntimeError:  # the loop was closed while its calls ran; no caller is left
            continue


def _complete_here(calls: list[QueuedCall]) -> None:
    for call in calls:
        call.complete()
