"""The trigger `AnyOf`: fires whenever one of several triggers does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import tzinfo
from heapq import merge
from itertools import groupby
from typing import Any

from onebeat.errors import InvalidTrigger
from onebeat.timing.describe import Note
from onebeat.timing.rule import DueFire, Rule

_MAX_PARTS = 64  # each is asked for each fire


@dataclass(frozen=True, init=False)
class AnyOf(Rule):
    """Fires whenever one of `triggers` does, once where several name the same instant.

    Each part keeps its zone and its `dst`; moments are told in the parts' zone, in UTC where these differ. A fire has
    the key of the part that names it, the smallest of several. Raises `InvalidTrigger`.

    >>> from onebeat.timing.triggers import Cron
    >>> AnyOf(Cron("0 9 * * *", "Europe/Berlin"), Cron("0 9 * * *", "America/New_York")).summary()
    'any of (at 09:00 every day, in Europe/Berlin; at 09:00 every day, in America/New_York)'
    """

    parts: tuple[Rule, ...]

    def __init__(self, *triggers: Rule) -> None:
        parts: list[Rule] = []
        for each in triggers:
            if not isinstance(each, Rule):
                raise InvalidTrigger(f"AnyOf(…) takes triggers: Cron(…), Every(…), At(…), Days(…), not {each!r:.60}")
            parts += [part for part in (each.parts if isinstance(each, AnyOf) else (each,)) if part not in parts]
        if not 1 <= len(parts) <= _MAX_PARTS:
            raise InvalidTrigger(f"AnyOf(…) takes 1 to {_MAX_PARTS} triggers, not {len(parts)}")
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def timezone(self) -> str | None:
        names = self.zones
        return names[0] if len(names) == 1 else None

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(sorted({name for part in self.parts for name in part.zones}))

    def next_fire(self, after: int) -> DueFire | None:
        fires = [fire for part in self.parts if (fire := part.next_fire(after)) is not None]
        return min(fires, key=_by_time_and_key, default=None)

    def previous_fire(self, before: int) -> DueFire | None:
        fires = [fire for part in self.parts if (fire := part.previous_fire(before)) is not None]
        last = max((fire.at for fire in fires), default=None)
        return min((fire for fire in fires if fire.at == last), key=_by_time_and_key, default=None)

    def fires_after(self, after: int, until: int) -> Iterator[DueFire]:
        fires = merge(*(part.fires_after(after, until) for part in self.parts), key=_by_time_and_key)
        for _, same in groupby(fires, key=lambda fire: fire.at):
            yield next(same)

    def with_timezone(self, name: str | tzinfo) -> AnyOf:
        return AnyOf(*(part.with_timezone(name) for part in self.parts))

    def bind(self, seed: str) -> AnyOf:
        return AnyOf(*(part.bind(seed) for part in self.parts))

    def summary(self) -> str:
        return f"any of ({'; '.join(part.summary() for part in self.parts)})"

    def notes(self, after: int | None = None) -> Iterable[Note]:
        for part in self.parts:
            for note in part.notes(after):
                yield Note(f"{part.summary()}: {note.text}", note.at)

    def over(self, now: int) -> str:
        return "; ".join(part.over(now) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "any_of", "parts": [part.to_json() for part in self.parts]}


def _by_time_and_key(fire: DueFire) -> tuple[int, str]:
    return fire.at, fire.key
