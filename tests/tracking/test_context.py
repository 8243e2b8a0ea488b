"""The context variable, its value and the ways to open a unit by hand."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading

import pytest

from onebeat.tracking import bind, current, tracking, tracking_id
from onebeat.tracking.context import tracking_of
from onebeat.tracking.ids import is_valid, new_id, new_unit_id


def test_ids_made_here_are_32_hex_digits_that_sort_by_time_and_never_repeat() -> None:
    ids = [new_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 32 and int(one, 16) >> 76 & 0xF == 7 and int(one, 16) >> 62 & 3 == 2 for one in ids)
    assert [one[:12] for one in ids] == sorted(one[:12] for one in ids)


def test_a_forked_child_never_repeats_the_ids_of_its_parent() -> None:
    new_unit_id()  # numbers are drawn ahead: those that wait are not the child's
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "".join(new_unit_id() for _ in range(100)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 1600).decode()
    os.close(reader)
    os.close(writer)
    ours = {new_unit_id() for _ in range(2000)}
    assert len(theirs) == 1600
    assert ours.isdisjoint(theirs[start : start + 16] for start in range(0, 1600, 16))


@pytest.mark.parametrize(
    "text", ["x", "A" * 128, "Root=1-67891233-abcdef;Self=1", "YWJj+/==", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]
)
def test_ids_of_the_field_are_valid(text: str) -> None:
    assert is_valid(text)


@pytest.mark.parametrize("text", ["", "A" * 129, "a b", 'a"b', "a\\b", "a,b", "a\n", "a\x7f", "é", "\u202e", None, 7])
def test_anything_else_is_not(text: object) -> None:
    assert not is_valid(text)


def test_outside_any_unit_there_is_no_id_and_bind_does_nothing() -> None:
    bind(nothing=1)
    assert tracking_id() is None
    assert current() is None


def test_a_unit_inside_a_unit_keeps_the_id_and_knows_its_parent() -> None:
    with tracking("outer", a=1) as outer:
        with tracking(b=2) as inner:
            assert tracking_id() == "outer"
            assert inner.parent_id == outer.unit_id
            assert inner.unit_id != outer.unit_id
            assert dict(inner.fields) == {"a": 1, "b": 2}
        assert current() is outer
        assert dict(outer.fields) == {"a": 1}
        assert inner.closed
        assert not outer.closed
    assert outer.identity()["unit_closed"] is True


async def test_async_units_of_concurrent_tasks_do_not_meet() -> None:
    meet = asyncio.Barrier(50)

    async def one(number: int) -> bool:
        async with tracking(f"id-{number}"):
            await meet.wait()
            return tracking_id() == f"id-{number}"

    assert all(await asyncio.gather(*map(one, range(50))))
    assert tracking_id() is None


def test_an_id_that_breaks_the_rule_is_replaced() -> None:
    with tracking("evil\x1b[2J") as unit:
        assert is_valid(unit.tracking_id)
        assert unit.origin == "generated"


def test_fields_bound_in_a_thread_are_seen_outside_of_it() -> None:
    with tracking() as unit:
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(lambda n: bind(**{f"f{n}": n}), n))
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert unit.fields == {f"f{n}": n for n in range(20)}


def test_the_value_cannot_be_changed() -> None:
    with tracking() as unit, pytest.raises(AttributeError):
        unit.tracking_id = "other"  # type: ignore[misc]  # that it is refused is what is tested


def test_an_exception_remembers_the_innermost_unit_it_left() -> None:
    with pytest.raises(KeyError) as caught, tracking("outer"), tracking("middle"), tracking("inner"):
        raise KeyError
    left = tracking_of(caught.value)
    assert left is not None
    assert left.tracking_id == "inner"
    assert caught.value.args == ()


def test_an_exception_raised_again_belongs_to_the_unit_it_left_last() -> None:
    """Several requests await one future that failed: each raises the same exception."""
    shared = ValueError("the connection is gone")
    for id in ("first", "second"):
        with pytest.raises(ValueError, match="gone"), tracking(id):
            raise shared
        left = tracking_of(shared)
        assert left is not None
        assert left.tracking_id == id


def test_the_tracking_room_loads_no_database_and_no_web_framework() -> None:
    code = (
        "import sys, onebeat.tracking; from onebeat.tracking import *\n"
        "heavy = 'sqlalchemy fastapi starlette pydantic alembic httpx opentelemetry'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_id_given_by_its_name_is_the_id() -> None:
    with tracking(id="order-7", customer=7) as unit:
        assert (unit.tracking_id, dict(unit.fields)) == ("order-7", {"customer": 7})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_holds_a_lock_does_not_wait_for_it() -> None:
    script = """
import os, signal, threading
from contextvars import ContextVar
from onebeat.tracking import bind, context, notices, payload, propagate, tracking

held, done = threading.Event(), threading.Event()

def hold():
    with context._binding, notices._lock, payload._lock:
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)  # instead of for ever
    with tracking("order-7"):
        bind(rows=3)
    notices.refusals()
    propagate(ContextVar("forked"))
    os._exit(0)
done.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "0\n", ran.stderr
