"""CPU-bound functions in processes: ended in time, alone in their failures, told apart in the log."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from onebeat.errors import Busy, ConfigurationError, RemoteError, Stopped, WorkerProcessDied
from onebeat.offload import to_process, to_process_sync, to_thread
from onebeat.offload.child.launch import ForkLauncher, Launcher, SpawnLauncher
from onebeat.offload.child.pipes import Pipes
from onebeat.offload.child.process_tree import Process, descendants
from onebeat.offload.limits import Limit
from onebeat.offload.pool.breaker import CircuitBreaker
from onebeat.offload.pool.calls import AwaitedCall
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.processes import close_processes, default_lane
from onebeat.offload.runners import ProcessRunner, RunningProcess
from tests.offload import witness, work


@pytest.fixture(autouse=True)
def _children_end_with_the_test() -> Any:
    yield
    close_processes()
    assert not {process.pid for process in descendants(Process.of(os.getpid())) if "onebeat" in command(process.pid)}


@pytest.fixture
async def runner() -> AsyncIterator[ProcessRunner]:
    runner = ProcessRunner(2)
    yield runner
    await runner.close()


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def submit(lane: ProcessLane, function: Callable[..., Any], *args: Any) -> RunningProcess:
    """A call on a lane of the test's own."""
    call = AwaitedCall(function, args, {}, Limit())
    lane.submit(call)
    return RunningProcess(call)


async def test_a_function_runs_in_a_child_and_the_child_is_kept() -> None:
    first = await to_process(work.pid)
    assert first != os.getpid()
    assert await to_process(work.pid) == first, "the second call starts nothing"
    assert await to_process(functools.partial(sorted, reverse=True), [1, 2]) == [2, 1]
    with pytest.raises(TypeError, match=r"to_process\(functools\.partial\(builtins\.sorted, reverse=…\), …\)"):
        await to_process(sorted, [1, 2], reverse=True)  # type: ignore[arg-type]  # what the test is about


async def test_a_call_that_spins_for_ever_is_ended_and_its_neighbour_finishes(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    warm = [runner.start(work.pid), runner.start(work.pid)]
    await asyncio.gather(*(call.future for call in warm))
    neighbour = runner.start(work.wait_for, str(tmp_path / "go"))
    spinning = runner.start(work.spin)
    assert runner.free == 0
    await asyncio.sleep(1)  # the timeout of the job
    stopped = time.monotonic()
    assert spinning.stop("timeout") is True
    with pytest.raises(Stopped, match="timeout"):
        await spinning.future
    assert runner.free == 1, "its place is back when its end is known"
    assert time.monotonic() - stopped < 0.5
    assert await runner.start(work.identity, "the place works").future == "the place works"
    (tmp_path / "go").touch()
    assert await neighbour.future == str(tmp_path / "go")


@pytest.mark.parametrize("function", [work.spin_noting, work.sleep_noting, work.with_grandchildren])
async def test_a_timeout_ends_the_child_and_its_place_is_back_within_a_second(
    function: Callable[[str], None], tmp_path: Path
) -> None:
    lane = default_lane()
    lane.width, lane.queue = 1, 0  # the next call starts in the same place or not at all
    await to_process(work.pid)
    noted = tmp_path / "pid"
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"{function.__name__} took longer than its 1 s \(its process was ended\)"):
        await to_process(function, str(noted), timeout=1)
    assert await to_process(work.pid) > 0
    print(f"{function.__name__}: the next call had its answer {time.monotonic() - before:.2f} s after this one's start")
    assert time.monotonic() - before < 1 + 1
    assert not any(alive(int(number)) for number in noted.read_text().split())


async def test_a_child_that_ignores_the_polite_signal_is_ended_after_the_grace(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    task = asyncio.create_task(to_process(work.stubborn, str(noted)))
    await until(lambda: noted.exists() and noted.read_text() != "")
    task.cancel()
    before = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0.4 < time.monotonic() - before < 5
    assert not alive(int(noted.read_text()))


async def test_what_the_child_started_ends_with_it_also_in_a_session_of_its_own(tmp_path: Path) -> None:
    noted = tmp_path / "tree"
    task = asyncio.create_task(to_process(work.with_grandchildren, str(noted)))
    await until(noted.exists)
    tree = [int(number) for number in noted.read_text().split()]
    assert len(tree) == 4
    assert all(alive(number) for number in tree)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(alive(number) for number in tree)


async def test_cancelling_with_wait_lets_the_function_finish(tmp_path: Path) -> None:
    task = asyncio.create_task(to_process(work.wait_for, str(tmp_path / "go"), cancel="wait"))
    first = await to_process(work.pid)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    assert not task.done()
    (tmp_path / "go").touch()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await to_process(work.pid) > 0
    assert alive(first)


@pytest.mark.parametrize(
    ("function", "exit_code", "number"),
    [
        (functools.partial(work.exit_with, 7), 7, None),
        (work.segfault, None, signal.SIGSEGV),
        (work.kill_self, None, signal.SIGKILL),
    ],
)
async def test_a_child_that_dies_fails_its_own_call_alone(
    function: Callable[[], None], exit_code: int | None, number: int | None, runner: ProcessRunner, tmp_path: Path
) -> None:
    neighbour = runner.start(work.wait_for, str(tmp_path / "go"))
    with pytest.raises(WorkerProcessDied) as died:
        await runner.start(function).future
    assert (died.value.exit_code, died.value.signal) == (exit_code, number)
    expected = f"exit code {exit_code}" if number is None else f"signal {signal.Signals(number).name} ({int(number)})"
    assert expected in str(died.value)
    assert "MiB used" in str(died.value)
    (tmp_path / "go").touch()
    assert await neighbour.future
    assert runner.free == 2
    assert await runner.start(work.identity, 1).future == 1


async def test_a_death_is_noticed_although_a_forked_process_lives_on(tmp_path: Path) -> None:
    noted = tmp_path / "forked"
    with pytest.raises(WorkerProcessDied, match="exit code 7"):
        await to_process(work.forks_and_dies, str(noted), timeout=30)
    assert not alive(int(noted.read_text()))


@pytest.mark.parametrize("spawn", [False, True], ids=["forked", "spawned"])
async def test_a_group_is_ended_before_its_leaders_number_is_given_back(
    spawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a process was waited for, its number may be another's. Who waits signals first: it finds its zombie."""
    notes = tmp_path / "notes"
    monkeypatch.setenv("ONEBEAT_WITNESS", str(notes))
    monkeypatch.setattr(os, "killpg", witness.noting)
    lane = ProcessLane("witnessed", 1, spawn=spawn, preload=("tests.offload.witness",))
    noted = tmp_path / "pid"
    with pytest.raises(WorkerProcessDied, match="exit code 7"):
        await submit(lane, work.note_and_exit, str(noted), 7).future
    died = int(noted.read_text())
    noted.unlink()
    spinning = submit(lane, work.spin_noting, str(noted))
    await until(lambda: noted.exists() and noted.read_text() != "")
    await asyncio.to_thread(lane.close)
    with pytest.raises(Stopped):
        await spinning.future
    states = [(int(leader), state) for leader, state in (line.split() for line in notes.read_text().splitlines())]
    assert "gone" not in {state for _, state in states}, states
    ended = {leader for leader, state in states if state == "Z"}
    assert ended >= {died, int(noted.read_text())}, states
    assert len(ended) == (2 if spawn else 3), "the children, and the fork server"


@pytest.mark.parametrize("launcher", [ForkLauncher(), SpawnLauncher()], ids=["forked", "spawned"])
def test_a_number_that_is_anothers_by_now_is_left_alone(launcher: Launcher, tmp_path: Path) -> None:
    """What ends a child asks for its time of birth too: a process that got the same number later lives on."""
    child = launcher.start()
    child.close_input()
    assert child.wait(30) is not None
    code = "import subprocess; subprocess.run(['sleep', '600'])"
    other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        own = Process.of(other.pid)
        while not (started := descendants(own)):
            time.sleep(0.01)
        child.process = Process(other.pid, own.start_time - 1)  # as if the number had come round
        assert descendants(child.process) == set()
        child.terminate(0)
        assert own.is_alive
        assert all(process.is_alive for process in started)
        own.signal(signal.SIGTERM)
        assert other.wait(30) == -signal.SIGTERM, "the same signal reaches the one that is meant"
        assert descendants(own) == started, "and what it left in its session is still found"
    finally:
        os.killpg(other.pid, signal.SIGKILL)  # what it started is in the group, so the number is still its own
        other.wait()
        child.close()
        launcher.close()


async def test_a_child_killed_between_calls_is_replaced_before_the_next(caplog: pytest.LogCaptureFixture) -> None:
    lane = ProcessLane("single", 1)
    first = await submit(lane, work.pid).future
    os.kill(first, signal.SIGKILL)
    await until(lambda: not alive(first))
    second = await submit(lane, work.pid).future
    assert second != first
    assert "ended between calls: signal SIGKILL" in caplog.text
    await asyncio.to_thread(lane.close)


async def test_exceptions_come_back_with_the_remote_traceback() -> None:
    with pytest.raises(ValueError, match="from far away") as plain:
        await to_process(work.fail, "value")
    assert 'raise ValueError("from far away")' in str(plain.value.__cause__)
    assert "onebeat/offload/child/main.py" not in str(plain.value.__cause__), (
        "the traceback begins with the user's code"
    )
    with pytest.raises(work.Kept) as kept:
        await to_process(work.fail, "kept")
    assert kept.value.__notes__ == ["written in the child"]


class Argument:
    """What pickle refuses, and a weak reference can watch."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


async def test_a_refused_argument_is_freed_with_its_exception_and_without_a_garbage_collection() -> None:
    async def refused(call: Callable[[Argument], Coroutine[Any, Any, object]]) -> weakref.ref[Argument]:
        argument = Argument()
        try:
            await call(argument)
        except TypeError:
            return weakref.ref(argument)
        raise AssertionError("it was sent")

    async def awaited(argument: Argument) -> object:
        return await to_process(work.identity, argument)

    async def from_a_thread(argument: Argument) -> object:
        return await to_thread(to_process_sync, work.identity, argument)

    gc.disable()
    try:
        for call in (awaited, from_a_thread):
            left = await refused(call)
            await until(lambda left=left: left() is None, 5)  # type: ignore[misc]  # the thread lets go a moment later
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("two", "tests.offload.work.TwoArguments", "corner shop has no bread"),
        ("unpicklable", "tests.offload.work.Unpicklable", "holds a lock"),
        ("disguised", "tests.offload.work.Disguised", "a wolf"),
        ("vicious", "tests.offload.work.Vicious", "<its text cannot be made: ValueError>"),
        ("exit", "builtins.SystemExit", "3"),
        ("interrupt", "builtins.KeyboardInterrupt", ""),
    ],
)
async def test_an_exception_that_cannot_be_rebuilt_is_described_and_hurts_nothing(
    kind: str, name: str, words: str
) -> None:
    before = await to_process(work.pid)
    with pytest.raises(RemoteError) as caught:
        await to_process(work.fail, kind)
    assert caught.value.type_name == name
    assert words in str(caught.value)
    assert "in fail" in caught.value.traceback
    assert await to_process(work.pid) == before, "the child lives on"


async def test_arguments_and_values_that_cannot_be_sent_name_the_culprit(tmp_path: Path) -> None:
    before = await to_process(work.pid)
    with pytest.raises(TypeError, match=r"argument 1\['rows'\]\[1\] is a lambda"):
        await to_process(work.identity, {"rows": [1, lambda: 2]})
    with pytest.raises(TypeError, match="the function is a lambda"):
        await to_process(lambda: 1)
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(TypeError, match=r"argument 2 is of type _io.TextIOWrapper"),
    ):
        await to_process(print, 1, file)

    def local() -> None: ...

    with pytest.raises(TypeError, match="local, defined inside a function"):
        await to_process(local)
    with pytest.raises(TypeError, match="the value that the function returned cannot be sent: its value is a lambda"):
        await to_process(work.returns_lambda)
    with pytest.raises(RuntimeError, match="while rebuilding") as there:
        await to_process(work.identity, work.Bomb())
    assert "while the child process rebuilt" in there.value.__notes__[0]
    with pytest.raises(RuntimeError, match="while rebuilding"):
        await to_process(work.identity, [work.Bomb(), os.urandom(300_000)])
    with pytest.raises(RemoteError, match="returned cannot be rebuilt here: while rebuilding"):
        await to_process(work.bomb)
    assert await to_process(work.pid) == before, "none of this hurts the child"


async def test_a_decorated_function_is_sent_by_name() -> None:
    assert await to_process(work.decorated, 3) == 12, "the decorated function"
    assert await to_process(work.decorated.__wrapped__, 3) == 6, "what one decorator wraps"  # type: ignore[attr-defined]  # functools.wraps sets it
    assert await to_process(work.decorated.__wrapped__.__wrapped__, 3) == 3, "the plain function"  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("size", [0, 60_000, 65_536, 70_000, 5_000_000])
async def test_arguments_and_values_of_any_size_arrive_whole(size: int) -> None:
    data = os.urandom(size)
    assert await to_process(work.identity, data) == data
    assert await to_process(work.identity, [data, data.hex()]) == [data, data.hex()]
    assert await to_process(work.identity, bytearray(data)) == data


async def test_five_megabytes_there_and_back_hold_up_the_event_loop_for_less_than_five_milliseconds() -> None:
    """The least of the worst waits of fifty calls: what others do to the processors is no part of it."""
    data = bytes(5_000_000)
    await to_process(work.identity, data)
    worst = [await longest_wait(to_process(work.identity, data)) for _ in range(50)]
    print(f"the loop waited at most {min(worst) * 1e3:.2f} ms; in the median call {statistics.median(worst) * 1e3:.2f}")
    assert min(worst) < 0.005, worst


async def longest_wait(call: Coroutine[Any, Any, object]) -> float:
    """How long the loop did not come round to a task that is always ready, while this call was under way."""
    task, worst, last = asyncio.ensure_future(call), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    await task
    return worst


async def test_large_buffers_do_not_hold_up_the_event_loop() -> None:
    """A hundred megabytes there and back; the same copy made with the interpreter lock held is the yardstick."""
    data = bytes(100_000_000)
    await to_process(work.length, b"")
    sent = min([await longest_wait(to_process(work.length, data)) for _ in range(3)])
    returned = min([await longest_wait(to_process(work.buffer, len(data))) for _ in range(3)])
    print(f"the loop waited at most {sent:.4f} s while it was sent, {returned:.4f} s while it came back")
    assert max(sent, returned) < 0.1


async def test_what_a_child_logs_goes_through_the_parents_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await to_process(work.logs, "hello")
    said, traced = (record for record in caplog.records if record.name == "tests.offload.child")
    assert said.getMessage() == "said hello"
    assert said.__dict__["shelf"] == 7
    assert said.process != os.getpid()
    assert said.filename == "work.py"
    assert 'raise ValueError("inside")' in (traced.exc_text or "")


async def test_a_record_that_cannot_be_rebuilt_here_harms_no_call(caplog: pytest.LogCaptureFixture) -> None:
    """Such a record once left its call's value in the pipe, and the next call got it."""
    assert await to_process(work.logs_an_exception, "mine") == "mine"
    assert await to_process(work.identity, "another's") == "another's"
    [record] = [record for record in caplog.records if record.name == "tests.offload.child"]
    assert "TwoArguments('corner shop has no bread')" in record.__dict__["shelf"], "as its repr"
    assert await to_process(work.logs_what_only_it_can_rebuild, "mine") == "mine"
    assert "a log record of a child process was lost" in caplog.text
    assert await to_process(work.identity, "another's") == "another's"


async def test_a_child_that_owes_an_answer_gives_it_to_nobody_else() -> None:
    """Rebuilding the value ends the thread's work in the midst of the frame: the rest of it must not be read."""
    before = await to_process(work.pid)
    with pytest.raises(RuntimeError, match="SystemExit"):
        await to_process(work.poison, os.getpid())
    assert await to_process(work.identity, "mine") == "mine"
    assert await to_process(work.pid) != before


async def test_children_start_from_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.to_thread(close_processes)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert await to_process(work.identity, 1) == 1


def test_a_fork_of_the_parent_holds_no_end_of_a_pipe() -> None:
    """Not even one that another thread is about to hand to a child: its end would hide the child's end."""
    pipes = Pipes()
    ends = [*pipes.child_ends, pipes.reader, pipes.writer, pipes.status]
    forked = os.fork()
    if forked == 0:  # pragma: no cover - another process
        os._exit(sum(Path(f"/proc/self/fd/{end}").exists() for end in ends))
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert all(end in pipes for end in ends), "and the parent still has them"
    pipes.close()


@pytest.mark.parametrize("launcher", [ForkLauncher(), SpawnLauncher()], ids=["forked", "spawned"])
def test_children_that_come_and_go_leave_no_descriptor_open(launcher: Launcher) -> None:
    def one() -> None:
        child = launcher.start()
        child.terminate(0)
        child.close()

    one()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        one()
        if isinstance(launcher, ForkLauncher):
            assert launcher._popen is not None
            os.kill(launcher._popen.pid, signal.SIGKILL)
            os.waitid(os.P_PID, launcher._popen.pid, os.WEXITED | os.WNOWAIT)
    one()
    assert os.listdir("/proc/self/fd") == before
    launcher.close()


async def test_the_function_knows_its_remaining_time() -> None:
    assert await to_process(work.left) is None
    assert 20 < (await to_process(work.left, timeout=30) or 0) < 30


async def test_a_function_that_leaves_at_a_checkpoint_has_timed_out() -> None:
    """The child leaves by itself, often before it is ended; its caller once saw a `RemoteError` then."""
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"work\.polite took longer than its 0\.2 s"):
            await to_process(work.polite, timeout=timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match="was not started"):
        await to_process(work.spin, timeout=0)


async def test_a_timer_that_comes_early_is_a_timeout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop counts milliseconds, so its timer may come before the deadline; the caller once saw `Stopped` then."""
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def early(delay: float, *rest: Any) -> asyncio.TimerHandle:
        return call_later(0.1 if delay == 60 else delay, *rest)

    monkeypatch.setattr(loop, "call_later", early)
    with pytest.raises(TimeoutError):
        await to_process(work.spin, timeout=60)
    with pytest.raises(TimeoutError):
        await to_thread(work.polite, timeout=60, on_timeout="wait")


async def test_modes_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="cancel='kill' is not one of 'end', 'wait'"):
        await to_process(work.pid, cancel="kill")  # type: ignore[arg-type]  # what the test is about


async def test_the_child_sees_the_environment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    await to_process(work.pid)
    await asyncio.to_thread(close_processes)
    monkeypatch.setenv("ONEBEAT_TEST", "late")
    assert await to_process(work.environment, "ONEBEAT_TEST") == "late"


async def test_it_can_be_called_from_a_thread_and_from_a_sync_function_but_not_from_a_child() -> None:
    assert await to_thread(to_process_sync, work.identity, 5) == 5
    with pytest.raises(TimeoutError):
        await to_thread(functools.partial(to_process_sync, work.spin, timeout=0.3))
    with pytest.raises(ValueError, match="from far away"):
        await to_thread(to_process_sync, work.fail, "value")
    with pytest.raises(ConfigurationError, match="starts no further ones"):
        await to_process(work.again)
    with pytest.raises(ConfigurationError, match="block this event loop"):
        to_process_sync(work.pid)


async def test_a_process_called_from_a_thread_ends_when_the_thread_is_told_to_stop(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    task = asyncio.create_task(to_thread(to_process_sync, work.spin_noting, str(noted)))
    await until(lambda: noted.exists() and noted.read_text() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not alive(int(noted.read_text())), 5)


async def test_children_are_replaced_after_their_number_of_calls_with_a_backlog() -> None:
    lane = ProcessLane("recycling", 2, recycle=5)
    pids = [await call.future for call in [submit(lane, work.pid) for _ in range(60)]]
    assert all(pids.count(pid) <= 5 for pid in pids)
    assert len(set(pids)) >= 12
    await asyncio.to_thread(lane.close)


async def test_a_runner_counts_its_free_places_exactly() -> None:
    runner = ProcessRunner(1)
    call = runner.start(work.identity, 0)
    assert runner.free == 0
    with pytest.raises(Busy):
        runner.start(work.pid)
    await call.future
    for number in range(100):
        assert await runner.start(work.identity, number).future == number
    await runner.close()
    with pytest.raises(Busy):
        runner.start(work.pid)


async def test_closing_a_runner_ends_busy_children_too(tmp_path: Path) -> None:
    runner = ProcessRunner(1)
    noted = tmp_path / "pid"
    call = runner.start(work.spin_noting, str(noted))
    await until(lambda: noted.exists() and noted.read_text() != "")
    await runner.close()
    with pytest.raises(Stopped, match="closing"):
        await call.future
    assert not alive(int(noted.read_text()))


async def test_a_call_told_to_stop_before_its_child_is_there_never_runs(tmp_path: Path) -> None:
    runner = ProcessRunner(1)
    call = runner.start(work.spin_noting, str(tmp_path / "pid"))
    call.stop("never mind")
    with pytest.raises(Stopped, match="never mind"):
        await call.future
    assert not (tmp_path / "pid").exists()
    assert await runner.start(work.identity, 1).future == 1
    await runner.close()


def test_the_breaker_opens_after_five_deaths_in_a_minute_and_closes_again() -> None:
    now = 0.0
    breaker = CircuitBreaker(clock=lambda: now)
    for second in (0.0, 10.0, 20.0, 30.0):
        now = second
        breaker.check(work.segfault)
        breaker.record_death(work.segfault)
    now = 40.0
    breaker.check(work.segfault)
    breaker.record_death(work.segfault)
    with pytest.raises(Busy, match=r"work.segfault ended 5 processes within 60 s and is not started for another 20 s"):
        breaker.check(work.segfault)
    breaker.check(work.spin)
    now = 60.0
    breaker.check(work.segfault)
    breaker.record_death(work.segfault)
    with pytest.raises(Busy, match="another 10 s"):
        breaker.check(work.segfault)


async def test_a_function_that_keeps_ending_its_process_is_refused_and_others_go_on() -> None:
    for _ in range(5):
        with pytest.raises(WorkerProcessDied):
            await to_process(work.dies_always)
    with pytest.raises(Busy, match=r"work\.dies_always ended 5 processes"):
        await to_process(work.dies_always)
    assert await to_process(work.identity, 1) == 1


@pytest.mark.parametrize("start", ["auto", "spawn"])
def test_no_orphan_outlives_a_killed_parent(start: str, tmp_path: Path) -> None:
    """Nor what the child forked, nor what it started in a group or a session of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys\n"
        "from onebeat.offload import setup_offload, to_process\n"
        "from tests.offload import work\n"
        f"setup_offload(start={start!r})\n"
        "asyncio.run(to_process(work.with_grandchildren, sys.argv[1]))\n"
    )
    noted = tmp_path / "tree"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    parent = subprocess.Popen([sys.executable, str(program), str(noted)], env=environment)
    deadline = time.monotonic() + 30
    while not noted.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tree = {process.pid for process in descendants(Process.of(parent.pid))}
    assert {int(number) for number in noted.read_text().split()} <= tree
    assert len(tree) == (4 if start == "spawn" else 5), "the child, the three it started, and the fork server"
    parent.kill()
    parent.wait()
    killed = time.monotonic()
    while left := [number for number in tree if alive(number)]:
        assert time.monotonic() - killed < 2 + 3, f"2 s are promised; 3 more for a loaded machine: {left}"
        time.sleep(0.01)
    print(f"ended {time.monotonic() - killed:.2f} s after their parent")


@pytest.mark.parametrize("start", ["auto", "spawn"])
def test_functions_of_the_main_program_are_found_although_a_child_has_imported_multiprocessing(
    start: str, tmp_path: Path
) -> None:
    """multiprocessing gives `__main__` its second name `__mp_main__` at import, which once looked like an import."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n"
        "from onebeat.offload import setup_offload, to_process\n"
        "def triple(n):\n"
        "    return 3 * n\n"
        "if __name__ == '__main__':\n"
        f"    setup_offload(preload=['multiprocessing'], start={start!r})\n"
        "    print(asyncio.run(to_process(triple, 14)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "42\n", done.stderr


@pytest.mark.parametrize("spawn", [False, True], ids=["forked", "spawned"])
async def test_a_preloaded_module_that_calls_exit_is_left_out_and_one_that_ends_its_process_is_reported(
    spawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "calls_exit.py").write_text("import sys\nsys.exit('no')\n")
    (tmp_path / "ends_the_process.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    lane = ProcessLane("preloading", 1, spawn=spawn, preload=("calls_exit",))
    assert await submit(lane, work.identity, 1).future == 1
    await asyncio.to_thread(lane.close)
    assert "preloading calls_exit failed: SystemExit: no" in capfd.readouterr().err
    lane = ProcessLane("preloading", 1, spawn=spawn, preload=("ends_the_process",))
    with pytest.raises(WorkerProcessDied, match="exit code 3") as died:
        await submit(lane, work.identity, 1).future
    assert died.value.exit_code == 3
    await asyncio.to_thread(lane.close)


def test_a_script_may_send_what_is_its_own_and_ctrl_c_prints_no_child_traceback(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, signal, time\n"
        "from onebeat.offload import to_process\n"
        "class Shop:\n"
        "    def __init__(self, name):\n"
        "        self.name = name\n"
        "class Closed(Exception): ...\n"
        "def triple(n):\n"
        "    return 3 * n\n"
        "def renamed(shop):\n"
        "    return Shop(shop.name.upper())\n"
        "def closed():\n"
        "    raise Closed('on Sundays')\n"
        "def forever():\n"
        "    print('working', flush=True)\n"
        "    time.sleep(600)\n"
        "async def main():\n"
        "    print(await to_process(triple, 14), flush=True)\n"
        "    print((await to_process(renamed, Shop('corner'))).name, flush=True)\n"
        "    try:\n"
        "        await to_process(closed)\n"
        "    except Closed as error:\n"
        "        print(error, flush=True)\n"
        "    await to_process(forever)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us behind it\n"
        "    asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(root / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "42\n"
    assert process.stdout.readline() == "CORNER\n", "its own classes too, there and back"
    assert process.stdout.readline() == "on Sundays\n"
    assert process.stdout.readline() == "working\n"
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does to everything in front of it
    _, complaints = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in complaints, "the program's own"
    assert "time.sleep" not in complaints, "the child's"


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ("stdin", "the main program is not a file"),
        ("if True:", "importing the main program raised ConfigurationError. Protect what starts the program"),
    ],
    ids=["a prompt's", "unguarded"],
)
def test_a_function_of_a_main_program_that_no_child_can_import_says_what_to_do(
    guard: str, words: str, tmp_path: Path
) -> None:
    """As in a notebook, at a prompt, or in a script without `if __name__ == "__main__"`."""
    source = (
        "import asyncio\n"
        "from onebeat.offload import to_process\n"
        "class Order: ...\n"
        "def price(order):\n"
        "    return 3\n"
        "async def main():\n"
        "    for call in (lambda: to_process(price, 1), lambda: to_process(len, [Order()])):\n"
        "        try:\n"
        "            await call()\n"
        "        except Exception as error:\n"
        "            print(type(error).__name__, error, *getattr(error, '__notes__', []))\n"
        "    print(await to_process(len, 'what __main__ sends'))\n"
        f"{'if True:' if guard == 'stdin' else guard}\n"
        "    asyncio.run(main())\n"
    )
    if guard == "stdin":
        command, given = [sys.executable, "-"], source
    else:
        (tmp_path / "program.py").write_text(source.replace("except Exception", "except TypeError", 1))
        command, given = [sys.executable, str(tmp_path / "program.py")], ""
    done = subprocess.run(
        command,
        input=given,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, *rest = done.stdout.splitlines()
    assert first.startswith("TypeError __main__.price cannot be found in a child process"), done
    assert words in first
    if guard == "stdin":
        assert words in rest[0], "an argument's class is missing there too"
        assert rest[1] == "19", "what only mentions it is sent"


async def test_children_also_start_by_spawning() -> None:
    lane = ProcessLane("spawned", 1, spawn=True)
    assert await submit(lane, work.identity, 3).future == 3
    with pytest.raises(WorkerProcessDied, match="exit code 5"):
        await submit(lane, work.exit_with, 5).future
    spinning = submit(lane, work.spin)
    while spinning._call.terminator is None:
        await asyncio.sleep(0.001)
    spinning.stop("enough")
    with pytest.raises(Stopped):
        await spinning.future
    await asyncio.to_thread(lane.close)


async def test_a_fork_of_the_parent_starts_its_own_children() -> None:
    first = await to_process(work.pid)
    reader, writer = os.pipe()
    forked = os.fork()
    if forked == 0:  # pragma: no cover - another process
        code = 1
        try:
            result: list[int] = []
            thread = threading.Thread(target=lambda: result.append(to_process_sync(work.pid, timeout=30)))
            thread.start()
            thread.join(30)
            os.write(writer, str(result[0]).encode())
            close_processes()
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    told = await asyncio.to_thread(os.read, reader, 100)
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, forked, 0))[1]) == 0
    os.close(reader)
    assert int(told) not in (first, os.getpid())
    assert await to_process(work.pid) == first, "and leaves the parent's alone"
