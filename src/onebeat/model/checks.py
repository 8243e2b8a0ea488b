"""Names, numbers, durations and instants of tasks, jobs and schedules: refused where they are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.timing.backoff import Retry
from onebeat.timing.clock import SECOND, kept_us, seconds_us

Seconds = float | timedelta

NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,200}")
HIGHEST = 1_000_000_000  # priority; every database has room for it
LONGEST = 100 * 365 * 86_400 * SECOND  # of a delay or a timeout; what is longer is a mistake of units, and no date


def check_name(name: str, what: str, longest: int = 200) -> str:
    """`name`, when it is 1 to `longest` of letters, digits and `_ . : -`; else `ConfigurationError`.

    No blanks: MySQL and MariaDB would take "a" and "a " for one key.

    >>> check_name("billing.charge", "task name")
    'billing.charge'
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > longest:
        shown = repr(name if len(str(name)) <= 60 else f"{str(name)[:60]}…")
        raise ConfigurationError(f"{what} {shown} cannot be used; take 1 to {longest} of A-Z a-z 0-9 _ . : -")
    return name


def check_tag(tag: str) -> str:
    """`tag`, when it is a name of at most 100 characters: it shares an index with the job's id."""
    return check_name(tag, "tag", longest=100)


def check_names(names: Iterable[str], what: str, check: Callable[[str], str] | None = None) -> tuple[str, ...]:
    """Each of `names` checked and none of them twice; one text is refused, for it would be taken letter by letter.

    >>> check_names(["old", "older", "old"], "alias")
    ('old', 'older')
    """
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise ConfigurationError(f"{what}={names!r:.60} is not a list of names; write [{names!r:.60}]")
    return tuple(dict.fromkeys(check(name) if check else check_name(name, what) for name in names))


def check_priority(value: int) -> int:
    """`value`, when it is a whole number that every database can hold; else `ConfigurationError`.

    >>> check_priority(10)
    10
    """
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > HIGHEST:
        raise ConfigurationError(
            f"priority={value!r:.40} cannot be used; take a whole number from {-HIGHEST} to {HIGHEST}, larger first"
        )
    return value


def check_retry(value: Retry) -> Retry:
    """`value`, when it is a `Retry`; else `ConfigurationError` with what to write."""
    if not isinstance(value, Retry):
        raise ConfigurationError(f"retry={value!r:.40} cannot be used; write retry=Retry(attempts=…)")
    return value


def check_filters(*, tag: str | None = None, **names: str | None) -> None:
    """Refuse what no row can hold, as every database would have it: with `ConfigurationError`, not with a near miss."""
    if tag is not None:
        check_tag(tag)
    for what, name in names.items():
        if name is not None:
            check_name(name, what)


def check_text(text: str, what: str, longest: int = 10_000) -> str:
    """`text`, when every database can hold it as it is: no NUL, no half of a surrogate pair; else `ConfigurationError`.

    >>> check_text("until the audit – ß", "note")
    'until the audit – ß'
    """
    if not isinstance(text, str) or len(text) > longest or "\x00" in text or not _is_whole(text):
        raise ConfigurationError(
            f"{what}={text!r:.60} cannot be stored; take a text of at most {longest:,} characters, without NUL"
        )
    return text


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_limit(limit: int, what: str = "limit", most: int = 1_000) -> int:
    """`limit`, brought into 1 to `most`, when it is a whole number; else `ConfigurationError`.

    >>> check_limit(5000)
    1000
    """
    if not isinstance(limit, int):
        raise ConfigurationError(f"{what}={limit!r:.40} is no whole number; give one from 1 to {most:,}")
    return max(1, min(limit, most))


def aware_us(moment: datetime, what: str) -> int:
    """UTC microseconds of an aware datetime; a naive one, or one outside of 2 to 9998, raises `InvalidArguments`."""
    if not isinstance(moment, datetime):
        raise InvalidArguments(f"{what} is a {type(moment).__name__}; give an aware datetime")
    if moment.utcoffset() is None:
        raise InvalidArguments(
            f"{what}={moment.isoformat()} has no time zone; "
            'write datetime.now(UTC), or add tzinfo=ZoneInfo("Europe/Berlin")'
        )
    try:
        return kept_us(moment)
    except ValueError as error:
        raise InvalidArguments(f"{what}: {error}") from error


def duration(value: Seconds, what: str, *, least: int = 0) -> int:
    """Microseconds of `value`, at least `least`; else `InvalidArguments`, naming `what`.

    >>> duration(0.5, "delay")
    500000
    """
    try:
        us = seconds_us(value)
    except ValueError as error:
        raise InvalidArguments(f"{what}: {error}") from None
    if us < least:
        raise InvalidArguments(f"{what} is {us / SECOND:g} s; it must be over 0")
    if us > LONGEST:
        raise InvalidArguments(f"{what} is over a hundred years; numbers are seconds")
    return us
