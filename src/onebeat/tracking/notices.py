"""What was refused: counted always, logged at most once a minute, never with the raw value."""

from __future__ import annotations

import logging
import time
from collections import Counter

from onebeat.concurrency.forks import ForkSafeLock

INTERVAL = 60.0  # seconds between two warnings
_SHOWN = 32  # characters of a refused value, escaped

_log = logging.getLogger("onebeat.tracking")
_lock = ForkSafeLock()
_counts: Counter[str] = Counter()
_quiet_until = 0.0
_unsaid = 0


def refused(
    what: str,
    value: str | bytes,
    reason: str = "is not 1 to 128 visible ASCII characters",
    then: str = "was replaced by a new one",
) -> None:
    """Count an id that was not accepted; warn if the last warning is a minute old. `then`: what was done instead."""
    global _quiet_until, _unsaid
    now = time.monotonic()
    with _lock:
        _counts[what] += 1
        if now < _quiet_until:
            _unsaid += 1
            return
        _quiet_until = now + INTERVAL
        more, _unsaid = _unsaid, 0
    _log.warning(
        "%s %s and %s; it has %d characters and begins with %s; %d more since the last warning",
        what,
        reason,
        then,
        len(value),
        ascii(value[:_SHOWN]),
        more,
    )


def refusals() -> dict[str, int]:
    """How many ids were not accepted in this process, by where they came from.

    >>> isinstance(refusals(), dict)
    True
    """
    with _lock:
        return dict(_counts)
