"""The moments by which the steps of a stop end: one bound over all of them, whatever the database does."""

from __future__ import annotations

from dataclasses import dataclass

AFTER_DRAIN = 5.0  # seconds that a stop takes at most beyond `drain`; with 20 it stays below the 30 s of Kubernetes


@dataclass(frozen=True, slots=True, kw_only=True)
class StopPlan:
    """When each step of a stop ends at the latest, in monotonic seconds; what is done earlier is not waited for."""

    runs: float  # running jobs may go on until then; the rest is cancelled
    cancelled: float  # until then the clean-up of what was cancelled may take
    written: float  # the outcomes are in the database, and the loops of the engine have ended
    left: float  # child processes have ended, and the worker is marked stopped or leaving
    released: float  # locks are given back, and the heartbeat has ended
    closed: float  # the database is closed


def plan_stop(now: float, drain: float) -> StopPlan:
    """Return the plan of a stop that begins at `now` and gives running jobs `drain` seconds.

    >>> plan_stop(100.0, 20.0).closed
    125.0
    """
    runs = now + drain
    return StopPlan(
        runs=runs,
        cancelled=runs + 0.5 * AFTER_DRAIN,
        written=runs + 0.7 * AFTER_DRAIN,
        left=runs + 0.8 * AFTER_DRAIN,
        released=runs + 0.9 * AFTER_DRAIN,
        closed=runs + AFTER_DRAIN,
    )
