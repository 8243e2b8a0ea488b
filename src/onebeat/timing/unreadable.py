"""The placeholder for a stored trigger that this version cannot read; it never fires and describes the problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onebeat.errors import InvalidTrigger
from onebeat.timing.rule import DueFire, Rule


@dataclass(frozen=True)
class UnreadableTrigger(Rule):
    """A trigger of a newer version or of a damaged row, where schedules are shown.

    >>> UnreadableTrigger("kind 'moon' is unknown here").describe()
    "cannot be read: kind 'moon' is unknown here"
    """

    problem: str

    def next_fire(self, after: int) -> DueFire | None:
        """Return None: its instants are unknown."""
        return None

    def previous_fire(self, before: int) -> DueFire | None:
        """Return None: its instants are unknown."""
        return None

    def summary(self) -> str:
        """Return the problem."""
        return f"cannot be read: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Raise `InvalidTrigger`, because it cannot be stored again."""
        raise InvalidTrigger(f"this trigger {self.summary()}; give another")
