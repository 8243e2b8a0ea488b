"""Retry policies: the delay before the next attempt, and the exceptions `Snooze` and `Cancel`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from onebeat.errors import ConfigurationError, RemoteError, qualified_names
from onebeat.timing.clock import SECOND, seconds_us

MAX_ATTEMPTS = 10_000  # more is a loop, not a retry
MAX_DELAY = 366 * 86_400  # seconds; a delay beyond a year is a mistake of units


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """When and how often a failed job is tried again.

    `attempts` counts the first try. After error n the next try comes after `base * factor ** (n - 1)` seconds, at most
    `cap`; with `jitter` after a random part, between half and all, of that. Exceptions of `on` are retried unless they
    are of `give_up_on`. The class that the function raised decides, wherever it runs: `SystemExit` is no `Exception`,
    and one that a child process cannot send back is known by its name and those of its bases. An
    `asyncio.CancelledError` that nobody asked for counts as an `Exception`. Durations are seconds or `timedelta`.
    Raises `ConfigurationError` when a number cannot work.

    >>> Retry(attempts=5, base=2).delay_us(3, 1.0) / SECOND
    8.0
    >>> Retry(give_up_on=(KeyError,)).wants(KeyError("gone"))
    False
    """

    attempts: int
    base: float
    factor: float
    cap: float
    jitter: bool
    on: tuple[type[BaseException], ...]
    give_up_on: tuple[type[BaseException], ...]

    def __init__(
        self,
        attempts: int = 3,
        *,
        base: float | timedelta = 5,
        factor: float = 2.0,
        cap: float | timedelta = 3600,
        jitter: bool = True,
        on: tuple[type[BaseException], ...] = (Exception,),
        give_up_on: tuple[type[BaseException], ...] = (),
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= MAX_ATTEMPTS:
            raise ConfigurationError(
                f"Retry(attempts={attempts!r:.40}) counts the first try; it must be a whole number, 1 to {MAX_ATTEMPTS}"
            )
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= 1000:
            raise ConfigurationError(f"Retry(factor={factor!r:.40}) multiplies the delay; it must be from 1 to 1000")
        if not isinstance(jitter, bool):
            raise ConfigurationError(f"Retry(jitter={jitter!r:.40}) is True or False")
        for name, value in (
            ("attempts", attempts),
            ("base", _seconds("base", base)),
            ("factor", float(factor)),
            ("cap", _seconds("cap", cap)),
            ("jitter", jitter),
            ("on", _exceptions("on", on)),
            ("give_up_on", _exceptions("give_up_on", give_up_on)),
        ):
            object.__setattr__(self, name, value)

    def delay_us(self, error_number: int, random: float) -> int:
        """Microseconds to wait after the `error_number`-th error (from 1); `random`, from 0 to 1, is the jitter."""
        cap = seconds_us(self.cap)
        delay = seconds_us(self.base)
        if self.factor > 1 and delay:
            for _ in range(1, error_number):
                delay = int(delay * self.factor)
                if delay >= cap:
                    break
        delay = min(delay, cap)
        return delay // 2 + int((delay - delay // 2) * random) if self.jitter else delay

    def wants(self, exception: BaseException) -> bool:
        """Whether this kind of exception is tried again at all."""
        retried = any(_is_a(exception, kind) for kind in self.on)
        return retried and not any(_is_a(exception, kind) for kind in self.give_up_on)

    def to_json(self) -> dict[str, Any]:
        """The numbers as a JSON object; exception classes stay in the code."""
        return {
            "attempts": self.attempts,
            "base": self.base,
            "factor": self.factor,
            "cap": self.cap,
            "jitter": self.jitter,
        }

    @classmethod
    def from_json(
        cls,
        value: dict[str, Any],
        *,
        on: tuple[type[BaseException], ...] = (Exception,),
        give_up_on: tuple[type[BaseException], ...] = (),
    ) -> Retry:
        """The `Retry` of these numbers, with the exception classes the code names, without what a newer version added.

        Raises `ConfigurationError` for what is no object, or holds a number that cannot work.
        """
        if not isinstance(value, dict):
            raise ConfigurationError(f"{value!r:.120} is no stored Retry")
        known = {name: value[name] for name in ("attempts", "base", "factor", "cap", "jitter") if name in value}
        return cls(**known, on=on, give_up_on=give_up_on)


class Snooze(Exception):
    """Raise inside a task to be tried again after `delay` (seconds or `timedelta`) without using an attempt.

    >>> Snooze(90).delay_us
    90000000
    """

    def __init__(self, delay: float | timedelta) -> None:
        self.delay_us = seconds_us(delay)
        if self.delay_us > MAX_DELAY * SECOND:
            raise ConfigurationError(f"Snooze({delay!r:.40}) is over a year; durations are seconds")
        super().__init__(f"again in {self.delay_us / SECOND:g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay_us / SECOND,)  # a child process sends it back to the worker


class Cancel(Exception):
    """Raise inside a task to stop for good: the job ends `cancelled` with this reason.

    >>> Cancel("the user is gone").reason
    'the user is gone'
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


def _is_a(exception: BaseException, kind: type[BaseException]) -> bool:
    """Whether the exception, or the one of a child process that it stands for, is of this class."""
    if not isinstance(exception, RemoteError) or not exception.type_names:
        is_cancelled = kind is Exception and isinstance(exception, asyncio.CancelledError)
        return is_cancelled or isinstance(exception, kind)
    names = exception.type_names
    if qualified_names(kind)[0] in names or (kind is Exception and _CANCELLED in names):
        return True
    return kind not in (Exception, BaseException) and isinstance(exception, kind)


_CANCELLED = qualified_names(asyncio.CancelledError)[0]


def _seconds(name: str, value: float | timedelta) -> float:
    try:
        us = seconds_us(value)
    except ValueError as error:
        raise ConfigurationError(f"Retry({name}=…): {error}") from None
    if us > MAX_DELAY * SECOND:
        raise ConfigurationError(f"Retry({name}=…): {us / SECOND:g} s is over a year; durations are seconds")
    return us / SECOND


def _exceptions(name: str, value: object) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ConfigurationError(f"Retry({name}=…) takes a tuple of exception classes, not {item!r:.80}")
    return classes
