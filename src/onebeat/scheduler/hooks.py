"""Carries the engine's events to the hooks of `scheduler.on` and to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from onebeat.model.events import Event

E = TypeVar("E", bound=Event)
log = logging.getLogger("onebeat")


class Announcer:
    """Calls every hook of the event's class and its bases; a hook that raises is logged and harms nobody."""

    def __init__(self, word: Callable[[Event], None]) -> None:
        self._word = word
        self._hooks: dict[type[Event], list[Callable[[Any], None]]] = {}
        self._found: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}

    def on(self, kind: type[E], hook: Callable[[E], None]) -> None:
        """Call `hook` with each event of this class or a subclass, in the thread that announces it."""
        self._hooks.setdefault(kind, []).append(hook)
        self._found.clear()

    def __call__(self, event: Event) -> None:
        kind = type(event)
        hooks = self._found.get(kind)
        if hooks is None:
            hooks = tuple(hook for base in kind.__mro__ for hook in self._hooks.get(base, ()))
            self._found[kind] = hooks
        for hook in (self._word, *hooks):
            try:
                hook(event)
            except Exception:
                log.exception("a hook for %s raised", kind.__name__)
