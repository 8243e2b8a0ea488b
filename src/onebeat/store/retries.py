"""When a failed transaction is tried again, after which pause, and what is raised when no try is left."""

from __future__ import annotations

from random import Random

from onebeat.errors import DatabaseUnavailable, OnebeatError
from onebeat.model.protocols import Clock
from onebeat.store.dialects.base import Dialect
from onebeat.store.explain import explain_fault
from onebeat.store.faults import Fault

PATIENCE = 10.0  # seconds, since a call was submitted, of waiting for a connection and for locks of others
RECONNECT_WITHIN = 2.0  # seconds of trying again without a connection; the caller of a request waits meanwhile


class CommitUnknown(DatabaseUnavailable):
    """A COMMIT was sent, no answer came, and no later try got one either: it happened or it did not."""


class CommitLost(Exception):
    """The answer to a COMMIT was lost; raised by `TransactionRunner`, caught by the loop that tries again."""


class Retries:
    """Decides for one call whether it is tried again, and after which pause.

    All times count from the making of this object, when the call was submitted: a call that has waited for its turn
    behind others must not wait as long again. The first failure is followed by one more try in any case. Busy, deadlock
    and serialisation: full jitter up to half a second, for `patience` seconds. A lost connection: at once on a new one,
    then with pauses, for `RECONNECT_WITHIN`; after a COMMIT whose answer was lost, for as long since that loss.
    """

    __slots__ = ("_clock", "_commit_unknown", "_dialect", "_random", "_since", "_tries", "patience")

    def __init__(self, dialect: Dialect, *, clock: Clock, random: Random, patience: float = PATIENCE) -> None:
        self.patience = patience  # seconds
        self._clock = clock
        self._random = random
        self._dialect = dialect
        self._tries = 0
        self._since = clock.monotonic()
        self._commit_unknown = False  # one of the tries lost the answer to its COMMIT

    def is_out_of_patience(self) -> bool:
        """Return whether the call has waited for locks as long as it may."""
        return self._clock.monotonic() - self._since > self.patience

    def pause(self, error: Exception) -> float | None:
        """Count a failed try; return the seconds to wait before the next one, or None when `error` is final."""
        now = self._clock.monotonic()
        self._tries += 1
        if isinstance(error, CommitLost) and not self._commit_unknown:
            self._commit_unknown = True
            self._since = now  # what became of it can be asked from now on
        fault = self.fault(error)
        if fault is Fault.RETRY:
            pause, limit = self._random.uniform(0, min(0.5, 0.004 * 2**self._tries)), self.patience
        elif fault in (Fault.DISCONNECT, Fault.UNREACHABLE, Fault.READ_ONLY):
            pause, limit = self._random.uniform(0.05, 0.5) if self._tries > 1 else 0.0, RECONNECT_WITHIN
        else:
            return None
        return pause if self._tries == 1 or now - self._since + pause <= limit else None

    def fault(self, error: Exception) -> Fault:
        """Return what the error of one try means."""
        if isinstance(error, OnebeatError):
            return Fault.UNKNOWN  # a store function raised it on purpose
        if isinstance(error, CommitLost):
            return Fault.DISCONNECT
        return self._dialect.classify(error)

    def final(self, error: Exception, where: str) -> Exception:
        """Return what to raise when no try is left: a typed error where a caller can act on it, else `error`."""
        if self._commit_unknown:
            return CommitUnknown(
                f"the connection to {where} was lost during a COMMIT and could not be restored since; whether it "
                "happened is unknown. Ask again when the database answers: the ids that you made "
                "before the call tell whether it was written"
            )
        return explain_fault(self.fault(error), error, where)
