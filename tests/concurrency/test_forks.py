"""What a forked child does first: callbacks of functions and of living objects, and locks that it finds free."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

BEGIN = """
import gc, os, sys, threading
from onebeat.concurrency.forks import ForkSafeLock, after_fork_in_child

class Counter:
    def __init__(self):
        self.calls = 0
        after_fork_in_child(self.count)
    def count(self):
        self.calls += 1

def in_child(check):
    child = os.fork()
    if not child:
        check()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEGIN + script]
    ran = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_a_function_and_a_method_are_called_in_the_child_alone() -> None:
    ran = run(
        """
called = []
after_fork_in_child(lambda: called.append("function"))
counter = Counter()
in_child(lambda: print(called, counter.calls))
print(called, counter.calls)
"""
    )
    assert ran.stdout.split("\n")[:2] == ["['function'] 1", "[] 0"]


def test_a_registered_method_does_not_keep_its_object_alive() -> None:
    run(
        """
import weakref
from onebeat.concurrency import forks
counter = Counter()
gone, known = weakref.ref(counter), len(forks._methods)
del counter
gc.collect()
assert gone() is None
assert len(forks._methods) == known - 1
in_child(lambda: None)
"""
    )


def test_a_method_that_raises_is_shown_and_does_not_stop_the_others() -> None:
    ran = run(
        """
class Fails(Counter):
    def count(self):
        raise ZeroDivisionError("a mistake")
fails, counter = Fails(), Counter()
in_child(lambda: print(counter.calls))
"""
    )
    assert ran.stdout == "1\n"
    assert "ZeroDivisionError: a mistake" in ran.stderr


def test_a_lock_that_another_thread_held_is_free_in_the_child() -> None:
    run(
        """
lock, held, over = ForkSafeLock(), threading.Event(), threading.Event()
def hold():
    with lock:
        held.set()
        over.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
def check():
    with lock:
        pass
in_child(check)
over.set()
thread.join()
"""
    )
