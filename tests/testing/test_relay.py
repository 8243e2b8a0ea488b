"""Each wake-up of the application reaches the simulated engine, from its own event loop and from other threads."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from onebeat.engine.wakeups import AT_ONCE, Wakeups
from onebeat.testing.relay import Relay

SENT = {
    "jobs_queued": (),
    "jobs_delayed": (5,),
    "schedules_changed": (),
    "job_ended": (uuid4(),),
    "cancel_requested": (uuid4(),),
    "lock_released": ("rebuild",),
}


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("name", SENT)
async def test_a_wake_up_reaches_the_subscribers_of_the_engine(name: str, in_thread: bool) -> None:
    app, engine, heard = Wakeups(), Wakeups(), asyncio.Queue[tuple[object, ...]]()

    def hear(*args: object) -> None:
        heard.put_nowait(args)

    app.attach(Relay(engine, asyncio.get_running_loop()))
    getattr(engine, name).subscribe(hear)
    if in_thread:
        await asyncio.to_thread(getattr(app, name), *SENT[name])
    else:
        getattr(app, name)(*SENT[name])
    expected = (AT_ONCE,) if name == "jobs_delayed" else SENT[name]
    assert await asyncio.wait_for(heard.get(), 5) == expected
