"""From a schedule as it is declared to what the database stores of it."""

from __future__ import annotations

from onebeat.model import payload
from onebeat.model.definition import Definition
from onebeat.tasks.declared_schedule import DeclaredSchedule


def definition_of(item: DeclaredSchedule, default_zone: str) -> Definition:
    """Return what is stored of a schedule: its time zone filled in, its arguments checked.

    Raises `InvalidArguments` when the arguments do not fit the task's function.
    """
    trigger = item.trigger.with_timezone(default_zone).bind(item.id)
    zone = trigger.timezone or default_zone
    task = item.task
    settings = task.settings
    options = {
        "queue": item.queue or settings.queue,
        "priority": settings.priority if item.priority is None else item.priority,
        "max_attempts": settings.retry.attempts,
        "timeout": settings.timeout,
        "at_most_once": settings.at_most_once,
        "own_queue": item.queue,
        "own_priority": item.priority,
    }
    kwargs = dict(item.kwargs or {})
    arguments = payload.decode(task.signature.pack(item.args, kwargs))
    return Definition(
        id=item.id,
        task=task.name,
        trigger=payload.canonical(trigger.to_json()),
        timezone=str(zone),
        policies=payload.canonical(item.policies.to_json()),
        options=payload.canonical(options),
        args=payload.canonical(arguments["a"]),
        kwargs=payload.canonical(arguments["k"]),
        tags=payload.canonical(list(item.tags)),
        note=item.note,
    )
