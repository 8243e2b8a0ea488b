"""Registry: tasks by name and alias."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from onebeat.errors import DuplicateTask, UnknownTask
from onebeat.tasks.task import Task


class Registry:
    """Tasks by name and alias. The database stores these names."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._aliases: dict[str, Task[Any, Any]] = {}

    def add(self, task: Task[Any, Any]) -> None:
        """Register a task; raises `DuplicateTask` when another function has its name or one of its aliases."""
        for name in (task.name, *task.aliases):
            other = self._tasks.get(name) or self._aliases.get(name)
            if other is not None and other is not task:
                raise DuplicateTask(
                    f"two tasks are named {name!r}: {_location(other)} and {_location(task)}; give one of them name="
                )
        self._tasks[task.name] = task
        self._aliases.update(dict.fromkeys(task.aliases, task))

    def get(self, name: str) -> Task[Any, Any]:
        """Return the task of that name or alias; raises `UnknownTask`."""
        task = self._tasks.get(name) or self._aliases.get(name)
        if task is None:
            raise UnknownTask(
                f"no task named {name!r} is registered here; known: {', '.join(sorted(self._tasks)) or 'none'}"
            )
        return task

    def names(self) -> tuple[str, ...]:
        """Return every name and alias that a job of this process's tasks may carry, sorted."""
        return tuple(sorted({*self._tasks, *self._aliases}))

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: object) -> bool:
        """Return whether the function of this task, or of a bound copy of it, is registered under its name."""
        return (
            isinstance(task, Task)
            and (known := self._tasks.get(task.name)) is not None
            and (known.function is task.function)
        )


def _location(task: Task[Any, Any]) -> str:
    function = inspect.unwrap(task.function)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
