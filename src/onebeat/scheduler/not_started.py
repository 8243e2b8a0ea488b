"""Why a scheduler that is asked to work has not been started, in the words of `NotStarted`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum


class Life(Enum):
    """How far a scheduler that does not run has come, as the process that holds it knows."""

    NEW = "it has not been started"
    STOPPED = "it was started and has been stopped since"
    INSTALLED = "install(app, scheduler) was called, but the lifespan of that app has not run"
    SERVED = "install(app, scheduler) was called and the app answers requests, but its lifespan has not run"
    MOUNTED = "install() was called for an app that is mounted in another one, and only the outer app's lifespan runs"


_THREE_WAYS = "`install(app, scheduler)` and serve the app, `async with scheduler:`, or `with scheduler:` in a script"
_WITHOUT_A_SERVER = "Without a server: `async with scheduler:`, or `with scheduler:` in a script"

_REMEDIES = {
    Life.NEW: f"Start it: {_THREE_WAYS}",
    Life.STOPPED: f"Start it again: {_THREE_WAYS}",
    Life.INSTALLED: (
        "It runs when a server starts the app, and in `with TestClient(app) as client:`. An app that is mounted in "
        f"another one gets none: call install(outer_app, scheduler). {_WITHOUT_A_SERVER}"
    ),
    Life.SERVED: (
        "Start the server without `--lifespan off`; in a test write `with TestClient(app) as client:` (httpx's "
        f"ASGITransport runs no lifespan: put `async with scheduler:` around it). {_WITHOUT_A_SERVER}"
    ),
    Life.MOUNTED: f"Call install(outer_app, scheduler) in place of it. {_WITHOUT_A_SERVER}",
}


def why_not_started(who: str, life: Life, running: Sequence[str] = ()) -> str:
    """Return what happened to the scheduler `who` and what to do; `running` names the schedulers that do run here.

    >>> why_not_started("<Scheduler on sqlite:///app.db, 0 tasks>", Life.MOUNTED)[:60]
    '<Scheduler on sqlite:///app.db, 0 tasks> is not running: ins'
    """
    words = f"{who} is not running: {life.value}. {_REMEDIES[life]}"
    if running:
        words += (
            f". Another scheduler runs in this process: {', '.join(running)}. Two are often made by a circular import, "
            "or by a module that is imported under two names (`__main__` and its own): make the scheduler in a module "
            "of its own and import it from there"
        )
    return words
