"""Registry: tasks by name and alias."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from onebeat.errors import DuplicateTask, UnknownTask
from onebeat.tasks.task import Task


class Registry:
    """Tasks by name and alias. The database stores these names.

    `in_use` is True while a scheduler runs with these tasks; then none of them is replaced.
    """

    def __init__(self) -> None:
        self.in_use = False
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._aliases: dict[str, Task[Any, Any]] = {}

    def check(self, task: Task[Any, Any]) -> None:
        """Raise `DuplicateTask` when another function has the task's name or one of its aliases.

        A task of the same function may be declared again, as each call of `create_app()` does in a test suite.
        """
        for name in (task.name, *task.aliases):
            other = self._tasks.get(name) or self._aliases.get(name)
            if other is None or other is task:
                continue
            if other.name != task.name or not same_function(other, task):
                raise DuplicateTask(
                    f"two tasks are named {name!r}: {_location(other)} and {_location(task)}; give one of them name="
                )
            if self.in_use:
                raise DuplicateTask(
                    f"task {name!r} ({_location(task)}) is declared again while a scheduler with it is running; "
                    "stop the scheduler first, or make another Scheduler where the function is made"
                )

    def add(self, task: Task[Any, Any]) -> None:
        """Register a task in place of an earlier one of the same function; raises `DuplicateTask` as `check` does."""
        self.check(task)
        former = self._tasks.get(task.name)
        self._aliases = {alias: other for alias, other in self._aliases.items() if other is not former}
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
            and (known.function is task.function or same_function(known, task))
        )


def same_function(one: Task[Any, Any], other: Task[Any, Any]) -> bool:
    """Return whether two tasks have functions of equal module, qualified name and code.

    Bound methods are equal only where they belong to one object. What a function closes over may differ.
    """
    a, b = inspect.unwrap(one.function), inspect.unwrap(other.function)
    if a is b:
        return True
    return (
        getattr(a, "__code__", a) == getattr(b, "__code__", b)
        and all(getattr(a, name, None) == getattr(b, name, None) for name in ("__module__", "__qualname__"))
        and getattr(a, "__self__", None) is getattr(b, "__self__", None)
    )


def _location(task: Task[Any, Any]) -> str:
    function = inspect.unwrap(task.function)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"
