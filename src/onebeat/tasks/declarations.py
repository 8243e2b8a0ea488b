"""Declarations: tasks and schedules under a prefix, and the schedulers that include them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack
from weakref import WeakSet

from onebeat.errors import ScheduleExists
from onebeat.model.checks import check_name
from onebeat.tasks.declared_schedule import DeclaredSchedule
from onebeat.tasks.registry import Registry, same_function
from onebeat.tasks.signature import Signature
from onebeat.tasks.task import Task
from onebeat.tasks.task_settings import TaskOptions, make_settings, refuse_unknown


class Declarations:
    """What routers and schedulers have in common, and the job classes that belong to none of them."""

    def __init__(self, prefix: str = "", **task_options: Unpack[TaskOptions]) -> None:
        self.prefix = prefix and check_name(prefix, "prefix")
        refuse_unknown(task_options)
        self._defaults = task_options
        self.registry = Registry()
        self.declared: dict[str, DeclaredSchedule] = {}
        self._including: WeakSet[Declarations] = WeakSet()  # a router may outlive the schedulers that include it

    def _declare_task(
        self, function: Callable[..., Any], name: str, options: TaskOptions, signature: Signature | None = None
    ) -> Task[Any, Any]:
        merged: TaskOptions = {**self._defaults, **options}
        refuse_unknown(merged)
        full = f"{self.prefix}.{name}" if self.prefix else name
        settings = make_settings(function, full, merged)
        task: Task[Any, Any] = Task(
            function, name=full, settings=settings, aliases=merged.get("aliases", ()), signature=signature
        )
        task.check_at_declaration()
        self._add_task(task)
        return task

    def _include(self, router: Declarations) -> None:
        """Take over a router's tasks and schedules, those that it has and those that it declares later."""
        for task in router.registry:
            self._add_task(task)
        for item in router.declared.values():
            self._add_schedule(item)
        router._including.add(self)

    def _add_task(self, task: Task[Any, Any]) -> None:
        """Register a task here and wherever this router is included; an error changes nothing anywhere."""
        homes = self._homes()
        for home in homes:
            home.registry.check(task)
        for home in homes:
            home.registry.add(task)

    def _add_schedule(self, item: DeclaredSchedule) -> None:
        homes = self._homes()
        for home in homes:
            former = home.declared.get(item.id)
            if former is not None and former != item and not _redeclared(former.task, item.task):
                raise ScheduleExists(f"two schedules are declared with the id {item.id!r}; give one of them id=")
        for home in homes:
            home.declared[item.id] = item

    def _homes(self) -> list[Declarations]:
        """Return this router and every one that includes it, directly or through another."""
        homes = [self]
        for home in homes:  # grows while it is read
            homes.extend(router for router in list(home._including) if router not in homes)
        return homes


def _redeclared(former: Task[Any, Any], task: Task[Any, Any]) -> bool:
    """Return whether the former task is an earlier declaration of the same function under the same name."""
    return former is not task and former.name == task.name and same_function(former, task)
