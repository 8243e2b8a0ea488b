"""What a schedule does with late, missed and overlapping fires: Policies, CatchUp, and the words for verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.timing.clock import DAY, SECOND, seconds_us

MAX_CATCH_UP = 1_000  # as many as one plan decides one by one
_NEVER = 100 * 366 * DAY


class ScheduleState(StrEnum):
    """What a schedule is doing. `orphaned`: declared in code that no live worker runs any more."""

    ACTIVE = "active"
    PAUSED = "paused"
    FINISHED = "finished"
    ORPHANED = "orphaned"


class Decision(StrEnum):
    """What became of a fire. Only `started` has a job; `gap` stands for several fires at once."""

    STARTED = "started"
    SKIPPED_OVERLAP = "skipped_overlap"
    COALESCED = "coalesced"
    MISFIRED = "misfired"
    GAP = "gap"


class Origin(StrEnum):
    """Who asked for a fire."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


class Overlap(StrEnum):
    """What a fire does while an earlier job of its schedule has not ended."""

    SKIP = "skip"
    ALLOW = "allow"
    QUEUE_ONE = "queue_one"
    QUEUE_ALL = "queue_all"
    CANCEL_PREVIOUS = "cancel_previous"


@dataclass(frozen=True, slots=True, init=False)
class CatchUp:
    """Run missed fires one by one: the newest `max` within `window`, `spacing` apart; older ones become one gap row.

    `window` and `spacing` are seconds or `timedelta`. Raises `ConfigurationError` when a number cannot work.

    >>> CatchUp(max=10, window=3600).window_us
    3600000000
    """

    max: int
    window_us: int
    spacing_us: int

    def __init__(
        self,
        max: int = 100,
        window: float | timedelta = 86_400,
        spacing: float | timedelta = 0,
    ) -> None:
        if isinstance(max, bool) or not isinstance(max, int) or not 1 <= max <= MAX_CATCH_UP:
            raise ConfigurationError(f"CatchUp(max={max!r:.40}) must be a whole number, 1 to {MAX_CATCH_UP}")
        object.__setattr__(self, "max", max)
        object.__setattr__(self, "window_us", _duration("CatchUp(window=…)", window))
        object.__setattr__(self, "spacing_us", _duration("CatchUp(spacing=…)", spacing))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"max": self.max, "window_us": self.window_us, "spacing_us": self.spacing_us}


Missed = Literal["latest", "skip"] | CatchUp


@dataclass(frozen=True, slots=True, init=False)
class Policies:
    """A schedule's answers for bad days; frozen, with a JSON round trip.

    `misfire_grace`: a fire later than this is not run (seconds, `timedelta`, None: no limit). `catch_up`: "latest" runs
    the newest missed fire, "all" each (`CatchUp()`), "skip" none. `overlap`: see `Overlap`. `jitter`: seconds over
    which schedules spread their jobs. `max_fires`: started fires after which the schedule is finished.

    >>> Policies(catch_up="all").catch_up == CatchUp()
    True
    >>> Policies.from_json(Policies(jitter=5).to_json()) == Policies(jitter=5)
    True
    """

    misfire_grace_us: int | None
    catch_up: Missed
    overlap: Overlap
    jitter_us: int
    max_fires: int | None

    def __init__(
        self,
        misfire_grace: float | timedelta | None = None,
        catch_up: str | CatchUp = "latest",
        overlap: str = "skip",
        jitter: float | timedelta = 0,
        max_fires: int | None = None,
    ) -> None:
        if max_fires is not None and (isinstance(max_fires, bool) or not isinstance(max_fires, int) or max_fires < 1):
            raise ConfigurationError(f"max_fires={max_fires!r:.40} must be a whole number from 1, or None")
        grace = None if misfire_grace is None else _duration("misfire_grace", misfire_grace)
        if grace is not None and grace < SECOND:
            raise ConfigurationError("misfire_grace under 1 s would drop fires that are on time; None means no limit")
        put = object.__setattr__
        put(self, "misfire_grace_us", grace)
        put(self, "catch_up", _missed(catch_up))
        put(self, "overlap", _overlap(overlap))
        put(self, "jitter_us", _duration("jitter", jitter))
        put(self, "max_fires", max_fires)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` makes an equal value."""
        return {
            "misfire_grace_us": self.misfire_grace_us,
            "catch_up": self.catch_up.to_json() if isinstance(self.catch_up, CatchUp) else self.catch_up,
            "overlap": str(self.overlap),
            "jitter_us": self.jitter_us,
            "max_fires": self.max_fires,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Policies:
        """The policies of a stored JSON object; raises `ConfigurationError` when it is none."""
        try:
            catch_up = value["catch_up"]
            if isinstance(catch_up, dict):
                catch_up = CatchUp(catch_up["max"], _of(catch_up["window_us"]), _of(catch_up["spacing_us"]))
            grace = value["misfire_grace_us"]
            return cls(
                misfire_grace=None if grace is None else _of(grace),
                catch_up=catch_up,
                overlap=value["overlap"],
                jitter=_of(value["jitter_us"]),
                max_fires=value["max_fires"],
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ConfigurationError(f"stored policies {value!r:.120} cannot be read: {error!r:.60}") from None


def _of(us: int) -> timedelta:
    return timedelta(microseconds=us)


def _duration(name: str, value: float | timedelta) -> int:
    try:
        us = seconds_us(value)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    if us > _NEVER:
        raise ConfigurationError(f"{name}: {us / SECOND:g} s is over a hundred years; durations are seconds")
    return us


def _missed(value: str | CatchUp) -> Missed:
    if isinstance(value, CatchUp):
        return value
    if value == "all":
        return CatchUp()
    if value == "latest":
        return "latest"
    if value == "skip":
        return "skip"
    raise ConfigurationError(f"catch_up={value!r:.60} is none of 'latest', 'all', 'skip' or CatchUp(…)")


def _overlap(value: str) -> Overlap:
    try:
        return Overlap(value)
    except ValueError:
        known = ", ".join(repr(str(each)) for each in Overlap)
        raise ConfigurationError(f"overlap={value!r:.60} is none of {known}") from None


DEFAULT = Policies()
