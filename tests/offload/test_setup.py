"""Settings, the number of children over all workers of a server, and the end."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from onebeat.concurrency.private_folder import private_folder
from onebeat.errors import Busy, ConfigurationError, RemoteError, Stopped
from onebeat.offload import Lane, close_offload, processes, setup_offload, to_process, to_thread
from onebeat.offload.limits import Limit
from onebeat.offload.pool import lanes, process_quota
from onebeat.offload.pool.calls import AwaitedCall
from onebeat.offload.pool.process_lane import ProcessLane
from onebeat.offload.pool.process_quota import ProcessQuota
from onebeat.offload.processes import close_processes, default_lane
from onebeat.offload.runners import ProcessRunner, RunningProcess
from tests.offload import work

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(autouse=True)
def _as_at_first() -> Iterator[None]:
    close_processes()
    yield
    close_processes()
    setup_offload()


async def test_settings_come_before_the_first_use_or_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onebeat.offload"):
        setup_offload(processes=1, recycle=2, threads=3)
        assert "at most 1 for to_process and 1 for jobs, in each worker of this server" in caplog.text, "said at start"
        pids = [await to_process(work.pid) for _ in range(6)]
    assert len(set(pids)) == 3, "a new child after every second call"
    assert "at most 1 child processes" in caplog.text
    with pytest.raises(ConfigurationError, match="before the first"):
        setup_offload(processes=2)
    for wrong in ({"threads": 0}, {"processes": 0}, {"recycle": 0}, {"queue": -1}):
        with pytest.raises(ConfigurationError, match="at least"):
            setup_offload(**wrong)  # type: ignore[arg-type]  # each value is an integer


async def test_children_start_with_the_first_call_or_with_warm() -> None:
    setup_offload(processes=2)
    lane = default_lane()
    assert lane.threads() == []
    await asyncio.to_thread(close_processes)
    setup_offload(processes=2, warm=True)
    lane = default_lane()
    async with asyncio.timeout(30):
        while lane.running:
            await asyncio.sleep(0.005)
    assert len(lane.threads()) == 2
    assert await to_process(work.pid) > 0


async def test_preloaded_modules_are_there_before_the_call() -> None:
    setup_offload(processes=1, preload=["tests.offload.work"])
    assert await to_process(loaded, "tests.offload.work")
    await asyncio.to_thread(close_processes)
    setup_offload(processes=1, preload=["no.such.module"])
    assert await to_process(loaded, "os"), "a module that cannot be preloaded is said on stderr and does no harm"


def loaded(name: str) -> bool:
    return name in sys.modules


async def test_all_workers_of_a_server_share_the_number_of_children() -> None:
    """Four workers on the same quota of two: one child each, and two more together, whoever comes first."""
    quota = ProcessQuota(2, server=f"test-{os.getpid()}")
    lanes = [ProcessLane(f"worker {number}", 4, quota=quota) for number in range(4)]
    for lane in lanes:
        lane.start_children()
    counts = sorted(len(lane.threads()) for lane in lanes)
    assert counts == [1, 1, 1, 3]
    await asyncio.gather(*(to_thread(lane.close) for lane in lanes))
    again = ProcessLane("later", 4, quota=quota)
    again.start_children()
    assert len(again.threads()) == 3, "what was given back can be taken again"
    await to_thread(again.close)


async def test_jobs_of_all_workers_share_the_number_of_children_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four workers with jobs: each has one process, two more go to whoever asks first; `free` is never too much."""
    monkeypatch.setattr(processes, "PROCESSORS", 3)
    monkeypatch.setattr(process_quota, "_server_key", lambda: f"test-{os.getpid()}-jobs")
    setup_offload()
    runners = [ProcessRunner() for _ in range(4)]
    started: list[int] = []
    futures: list[asyncio.Future[object]] = []
    with caplog.at_level(logging.INFO, "onebeat.offload"):
        for runner in runners:
            started.append(0)
            await runner.start(work.pid).future  # a process being started has every descriptor, and so a token
            while runner.free:
                assert runner.free == 1, "one more child at a time, while there is a token"
                futures.append(runner.start(work.polite).future)
                started[-1] += 1
            with pytest.raises(Busy):
                runner.start(work.pid)
    assert started == [3, 1, 1, 1]
    await asyncio.gather(*(runner.close() for runner in runners))
    said = "job processes: one child process here, as in each other worker of this server, and 2 more that all workers"
    assert caplog.text.count(said) == 4, "once a worker"
    again = ProcessRunner()
    futures += [again.start(work.polite).future for _ in range(3)]
    assert again.free == 0, "as wide as there are processors, and what was given back was taken again"
    await again.close()
    assert {type(end) for end in await asyncio.gather(*futures, return_exceptions=True)} == {Stopped}


async def test_jobs_take_the_number_and_the_start_of_children_from_the_settings() -> None:
    setup_offload(processes=2, preload=["tests.offload.work"])
    runner = ProcessRunner()
    assert runner.free == 2
    assert await runner.start(loaded, "tests.offload.work").future
    await runner.close()


def test_a_token_ends_with_its_holder_however_that_ends() -> None:
    server = f"test-{os.getpid()}-killed"
    code = (
        "import sys, time\n"
        "from onebeat.offload.pool.process_quota import ProcessQuota\n"
        f"token = ProcessQuota(1, server={server!r}).acquire()\n"
        "print(token is not None, flush=True)\n"
        "time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert ProcessQuota(1, server=server).acquire() is None
    holder.kill()
    holder.communicate()
    token = ProcessQuota(1, server=server).acquire()
    assert token is not None
    token.close()


def took(output: IO[str] | None) -> str:
    assert output is not None
    return output.readline()


def test_two_servers_started_by_one_parent_have_their_own_number() -> None:
    """Who starts a server puts it into a group of its own; the workers of one server are in one."""
    code = (
        "import sys\n"
        "from onebeat.offload.pool.process_quota import ProcessQuota\n"
        "token = ProcessQuota(1).acquire()\n"
        "print(token is not None, flush=True)\n"
        "sys.stdin.read()\n"
    )

    def worker(group: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            process_group=group,
        )

    workers = [worker(0)]
    try:
        assert took(workers[0].stdout) == "True\n"
        workers += [worker(workers[0].pid), worker(0)]
        assert [took(other.stdout) for other in workers[1:]] == ["False\n", "True\n"]
    finally:
        for other in workers:
            other.kill()
            other.communicate()


@pytest.mark.skipif("sys.platform != 'linux'", reason="there are abstract sockets on Linux alone")
def test_another_user_cannot_take_the_tokens() -> None:
    """Whoever knows user, parent and process group, which `ps` shows to all, still does not know the names."""
    server = process_quota._server_key()
    with ExitStack() as squatted:
        for number in range(3):
            squatter = squatted.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            squatter.bind(f"\0onebeat-processes-{server}-{number}")
        token = ProcessQuota(3).acquire()
        assert token is not None
        name = token.getsockname()
        token.close()
    assert str(name).startswith("b'\\x00onebeat-processes-")
    assert server not in str(name)
    folder = private_folder()
    assert folder is not None
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600


async def test_without_a_folder_for_the_secret_a_process_has_a_quarter_of_the_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_quota, "user_secret", lambda: None)
    quota = ProcessQuota(8)
    tokens = [quota.acquire() for _ in range(3)]
    assert [token is not None for token in tokens] == [True, True, False]
    assert (len(quota), quota.is_shared) == (2, False)
    for token in tokens[:2]:
        assert token is not None
        token.close()


async def test_a_fork_of_a_worker_does_not_keep_the_tokens_of_its_parent() -> None:
    quota = ProcessQuota(1, server=f"test-{os.getpid()}-forked")
    lane = ProcessLane("forking", 2, quota=quota)
    lane.start_children()
    assert quota.acquire() is None
    reader, writer = os.pipe()
    forked = os.fork()
    if forked == 0:  # pragma: no cover - another process
        os.close(writer)
        os.read(reader, 1)  # until the parent has looked
        os._exit(0)
    os.close(reader)
    await to_thread(lane.close)
    token = quota.acquire()
    assert token is not None, "given back, although the fork lives"
    token.close()
    os.close(writer)
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, forked, 0))[1]) == 0


async def test_calls_that_wait_for_a_token_start_in_their_order_when_there_is_one_again(tmp_path: Path) -> None:
    quota = ProcessQuota(1, server=f"test-{os.getpid()}-order")
    elsewhere = quota.acquire()
    assert elsewhere is not None
    lane = ProcessLane("waiting", 4, quota=quota)
    await submit(lane, work.pid).future  # a process being started has every descriptor, and so the token, for a moment
    calls = [submit(lane, work.wait_for, str(tmp_path / name)) for name in ("first", "second", "third")]
    assert (lane.running, lane.waiting) == (1, 2), "no token: they wait for the one child"
    elsewhere.close()
    calls.append(submit(lane, work.wait_for, str(tmp_path / "fourth")))
    assert (lane.running, lane.waiting) == (2, 2)
    for name, call in zip(("second", "third", "fourth"), calls[1:], strict=True):
        (tmp_path / name).touch()
        assert await call.future == str(tmp_path / name)
    assert not calls[0].future.done(), "it holds the one child all the while"
    (tmp_path / "first").touch()
    await calls[0].future
    await to_thread(lane.close)


async def test_a_call_that_waited_does_not_wait_for_the_next_call_to_use_a_token(tmp_path: Path) -> None:
    """A thread that takes the next waiting call looks whether a second one can start beside it."""
    quota = ProcessQuota(1, server=f"test-{os.getpid()}-later")
    elsewhere = quota.acquire()
    assert elsewhere is not None
    lane = ProcessLane("later", 4, quota=quota)
    await submit(lane, work.pid).future
    calls = [submit(lane, work.wait_for, str(tmp_path / name)) for name in ("first", "second", "third")]
    elsewhere.close()
    (tmp_path / "first").touch()
    await calls[0].future
    assert (lane.running, lane.waiting) == (2, 0)
    (tmp_path / "second").touch()
    (tmp_path / "third").touch()
    await asyncio.gather(*(call.future for call in calls))
    await to_thread(lane.close)


async def test_the_child_that_stays_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two children that have nothing to do one ends, whichever it is; the token is free for another worker."""
    monkeypatch.setattr(lanes, "IDLE_TIMEOUT", 0.05)
    quota = ProcessQuota(1, server=f"test-{os.getpid()}-stays")
    lane = ProcessLane("stays", 2, quota=quota)
    lane.start_children()
    async with asyncio.timeout(30):
        while len(lane.threads()) > 1:
            await asyncio.sleep(0.01)
    token = quota.acquire()
    assert token is not None
    token.close()
    assert await submit(lane, work.identity, 1).future == 1
    await to_thread(lane.close)


def submit(lane: ProcessLane, function: Callable[..., Any], *args: Any) -> RunningProcess:
    call = AwaitedCall(function, args, {}, Limit())
    lane.submit(call)
    return RunningProcess(call)


async def test_closing_waits_for_what_runs_and_names_what_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    opened = threading.Event()
    lane = Lane("closing test", width=2, queue=0)

    def stuck() -> None:
        opened.wait(60)

    task = asyncio.create_task(to_thread(stuck, lane=lane))
    while lane.running == 0:
        await asyncio.sleep(0)
    child = await to_process(work.pid)
    left = await close_offload(timeout=0.05)
    assert [held.function.rpartition(".")[2] for held in left] == ["stuck"]
    assert "stuck still runs" in caplog.text
    assert "opened.wait(60)" in caplog.text
    assert not Path(f"/proc/{child}").exists()
    opened.set()
    await task
    assert await close_offload() == []


def test_closing_leaves_no_thread_of_its_own() -> None:
    """Each lifespan of a test client ends with it; twenty of them once left twenty threads."""

    def closing() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if re.fullmatch(r"onebeat-closing-\d+", thread.name)]

    for _ in range(3):
        asyncio.run(close_offload())
        asyncio.run(ProcessRunner(1).close())
    for thread in closing():
        thread.join(5)
    assert closing() == []


def test_an_idle_program_with_children_ends_at_once_and_without_noise(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, os, time\n"
        "from onebeat.offload import to_process, to_thread\n"
        "async def main():\n"
        "    print(await to_process(os.getpid), flush=True)\n"
        "    try:\n"
        "        await to_thread(time.sleep, 600, timeout=0.05)\n"
        "    except TimeoutError:\n"
        "        print('abandoned', flush=True)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    child, second = done.stdout.split("\n")[:2]
    assert second == "abandoned", "the stuck thread does not hold up the end"
    assert not Path(f"/proc/{child}").exists()
    assert done.stderr.startswith("abandoned time.sleep") or done.stderr == "", done.stderr


@pytest.mark.parametrize("function", [work.moves_away, work.moves_away_and_fails])
async def test_a_call_starts_where_the_child_started_whatever_the_one_before_left(
    function: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBEAT_KEPT", "as it was")
    monkeypatch.setenv("ONEBEAT_GONE", "here")
    setup_offload(processes=1)
    pid = await to_process(work.pid)
    before = await to_process(work.stands)
    assert before["environment"] == [None, "as it was", "here"]
    with suppress(ValueError):
        await to_process(function, str(tmp_path))
    assert await to_process(work.stands) == before
    assert await to_process(work.pid) == pid, "by the same child"


@pytest.mark.parametrize("start", ["auto", "spawn"])
async def test_each_child_is_initialized_once_before_its_first_call(start: Any) -> None:
    setup_offload(processes=1, start=start, recycle=3, initializer=work.initialize, initargs=("model", "ready"))
    told = [await to_process(work.how_initialized) for _ in range(4)]
    assert told == [(["model", "ready"], "model ready")] * 4, "and the one that replaced it"


async def test_while_the_initializer_fails_calls_name_it_and_try_again(tmp_path: Path) -> None:
    setup_offload(processes=1, initializer=work.fails_until_there_is, initargs=(str(tmp_path / "model"),))
    for _ in range(2):
        with pytest.raises(RemoteError, match=r"fails_until_there_is failed in a child process.*model is missing"):
            await to_process(work.pid)
    (tmp_path / "model").touch()
    assert await to_process(work.pid) > 0


def test_an_initializer_that_no_child_can_receive_is_refused() -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"initializer": lambda: None}, "Define it at the top of a module"),
        ({"initializer": "work.initialize"}, "takes a function of a module"),
        ({"initializer": asyncio.sleep}, "is a coroutine function"),
        ({"initializer": work.initialize, "initargs": (lambda: None,)}, "argument 1 is a lambda"),
        ({"initargs": (1,)}, "initializer=, which is missing"),
    ]
    for options, words in refusals:
        with pytest.raises(ConfigurationError, match=words):
            setup_offload(**options)


def test_an_initializer_of_the_main_program_is_found(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n"
        "from onebeat.offload import setup_offload, to_process\n"
        "ready = []\n"
        "def initialize(word): ready.append(word)\n"
        "def told(): return ready\n"
        "async def main():\n"
        "    setup_offload(processes=1, initializer=initialize, initargs=('here',))\n"
        "    print(await to_process(told))\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=env, check=False)
    assert done.stdout == "['here']\n", done.stderr
