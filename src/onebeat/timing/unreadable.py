"""A stored trigger that this code cannot read: it never fires here, and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onebeat.errors import InvalidTrigger
from onebeat.timing.rule import DueFire, Rule


@dataclass(frozen=True)
class Unread(Rule):
    """What stands in for a rule of a newer version, or of a damaged row, where schedules are shown.

    >>> Unread("kind 'moon' is unknown here").describe()
    "cannot be read: kind 'moon' is unknown here"
    """

    problem: str

    def next_fire(self, after: int) -> DueFire | None:
        """None: nothing is known of its instants."""
        return None

    def previous_fire(self, before: int) -> DueFire | None:
        """None, for the same reason."""
        return None

    def words(self) -> str:
        """The problem."""
        return f"cannot be read: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Raises `InvalidTrigger`: it cannot be stored again."""
        raise InvalidTrigger(f"this trigger {self.words()}; give another")
