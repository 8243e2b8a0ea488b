"""EventHooks: hands each event of the engine to the log and to the functions registered with `scheduler.on`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from onebeat.model.events import Event, is_heard
from onebeat.scheduler.hook_tasks import HookTasks

E = TypeVar("E", bound=Event)
log = logging.getLogger("onebeat")


class EventHooks:
    """Calls the hooks of an event's class and of its base classes; a hook that raises is logged and stops nothing.

    `write_log` is called with every event, before the hooks; `is_logged` says of a class whether that may write. What
    asynchronous hooks return is awaited by `tasks`.
    """

    def __init__(self, write_log: Callable[[Event], None], is_logged: Callable[[type[Event]], bool] = is_heard) -> None:
        self.tasks = HookTasks()
        self._write_log = write_log
        self._is_logged = is_logged
        self._hooks: dict[type[Event], list[Callable[[Any], object]]] = {}
        self._by_class: dict[type[Event], tuple[Callable[[Any], object], ...]] = {}  # base classes included; a cache

    def on(self, kind: type[E], hook: Callable[[E], object]) -> None:
        """Call `hook` with each event of this class or a subclass, in the thread that announces the event."""
        self._hooks[kind] = [*self._hooks.get(kind, ()), hook]
        self._by_class.clear()

    def off(self, kind: type[E], hook: Callable[[E], object]) -> None:
        """Call this hook no more."""
        self._hooks[kind] = [other for other in self._hooks.get(kind, ()) if other != hook]
        self._by_class.clear()

    def hears(self, kind: type[Event]) -> bool:
        """Return whether an event of this class reaches a hook or the log; where not, it need not be made."""
        return bool(self._hooks_of(kind)) or self._is_logged(kind)

    def __call__(self, event: Event) -> None:
        """Announce the event."""
        kind = type(event)
        for hook in (self._write_log, *self._hooks_of(kind)):
            try:
                result = hook(event)
                if result is not None and inspect.isawaitable(result):
                    self.tasks.start(kind.__name__, result)
            except KeyboardInterrupt:
                raise
            except BaseException:  # `SystemExit` and `CancelledError` too would end a part of the engine
                log.exception("a hook for %s raised", kind.__name__)

    def _hooks_of(self, kind: type[Event]) -> tuple[Callable[[Any], object], ...]:
        hooks = self._by_class.get(kind)
        if hooks is None:
            hooks = tuple(hook for base in kind.__mro__ for hook in self._hooks.get(base, ()))
            self._by_class[kind] = hooks
        return hooks
