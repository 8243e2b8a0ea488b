"""Integration: what `install` and the command line need of a scheduler beyond its public methods."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from onebeat.store.connection.database import Database


class Integration(Protocol):
    """The part of a scheduler that serves applications and commands, not users."""

    @property
    def started(self) -> bool:
        """Return whether the scheduler runs in this process."""

    def bind_app(self, app: Any) -> None:
        """Remember the application that the scheduler serves, and leave the scheduler in `app.state.onebeat`."""

    def served_idle(self, *, mounted: bool) -> None:
        """Hear that the application answers a request while the scheduler does not run; `mounted` in another app."""

    def activate(self) -> AbstractContextManager[None]:
        """Make this the scheduler that enqueues in the current context."""

    def new_database(self) -> Database:
        """Return a closed `Database` with the scheduler's settings; raises `ConfigurationError`."""


@runtime_checkable
class Integrable(Protocol):
    """A scheduler, as `install` sees it."""

    async def start(self) -> None:
        """Run the engine in this event loop."""

    async def stop(self) -> None:
        """Drain and close."""

    def lifespan(self, app: Any) -> AbstractAsyncContextManager[None]:
        """Run the engine while the application runs."""

    def __onebeat_integration__(self) -> Integration:
        """Return the part that serves applications and commands."""


def integration_of(scheduler: Integrable) -> Integration:
    """Return the part of a scheduler that serves applications and commands."""
    return scheduler.__onebeat_integration__()
