"""The event loop on a thread: results, errors, interrupts, the end, and forks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from onebeat.concurrency.portal import Portal

WITHIN = 20.0  # seconds


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal("test-portal")
    portal.start()
    yield portal
    portal.stop()


async def name_of_thread() -> str:
    return threading.current_thread().name


def test_a_coroutine_runs_on_the_portals_thread_and_its_value_is_returned(portal: Portal) -> None:
    assert portal.run(name_of_thread()) == "test-portal"


def test_what_a_coroutine_raises_is_raised_to_the_caller(portal: Portal) -> None:
    async def fails() -> None:
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        portal.run(fails())
    assert portal.run(asyncio.sleep(0, "still usable")) == "still usable"


def test_a_portal_that_runs_is_not_started_twice(portal: Portal) -> None:
    thread = portal.run(current_thread())
    portal.start()
    assert portal.run(current_thread()) is thread


async def current_thread() -> threading.Thread:
    return threading.current_thread()


def test_a_portal_that_does_not_run_refuses_and_can_be_started_again() -> None:
    portal = Portal("test-portal")
    portal.stop()
    with pytest.raises(RuntimeError, match=r"does not run in this process\. Call start\(\) first"):
        portal.run(name_of_thread())
    for _ in range(2):
        portal.start()
        assert portal.running
        portal.run(name_of_thread())
        portal.stop()
        assert not portal.running


def test_the_portals_own_thread_may_not_wait_for_itself(portal: Portal) -> None:
    async def nested() -> None:
        portal.run(name_of_thread())

    with pytest.raises(RuntimeError, match="for its own thread"):
        portal.run(nested())


INTERRUPTED = """
import asyncio, os, signal, threading
from onebeat.concurrency.portal import Portal

begun, cancelled = threading.Event(), threading.Event()


async def hangs():
    begun.set()
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()


def interrupt():
    begun.wait()
    os.kill(os.getpid(), signal.SIGINT)


portal = Portal("test-portal")
portal.start()
threading.Thread(target=interrupt).start()
try:
    portal.run(hangs())
except KeyboardInterrupt:
    print("interrupted", cancelled.wait(20))
portal.stop()
"""


def test_an_interrupt_of_the_caller_cancels_the_coroutine() -> None:
    """In a process of its own: the signal reaches the main thread, which may be another one than the test's."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN * 2, check=True)
    assert done.stdout.split() == ["interrupted", "True"]


def test_stopping_cancels_what_still_runs_and_frees_its_caller() -> None:
    portal, begun, raised = Portal("test-portal"), threading.Event(), []
    portal.start()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            portal.run(hangs())
        except BaseException as error:
            raised.append(type(error).__name__)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(WITHIN)
    portal.stop()
    thread.join(WITHIN)
    assert raised == ["CancelledError"]


CHILD = """
import asyncio, os
from onebeat.concurrency.portal import Portal

portal = Portal("parent")
portal.start()
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert portal.run(asyncio.sleep(0, "parent")) == "parent"  # the child's stop and start left it alone
    portal.stop()
else:
    assert not portal.running
    work = asyncio.sleep(0)
    try:
        portal.run(work)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the parent's thread does not run here")
    portal.stop()
    portal.start()
    assert portal.run(asyncio.sleep(0, "child")) == "child"
    portal.stop()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_does_not_use_its_parents_portal_and_may_start_its_own() -> None:
    ran = subprocess.run([sys.executable, "-c", CHILD], timeout=WITHIN * 3, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
