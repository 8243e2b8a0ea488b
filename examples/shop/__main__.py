"""`make demo`: a mail server, the shop with four uvicorn workers on SQLite, and words about what to look at."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import NoReturn

from examples.shop import mailserver

START_LIMIT = 60  # seconds until every worker must serve
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, a closed terminal
STOP_LIMIT = 60  # seconds a drain may take: 3 for requests, 25 for jobs and their clean-up, the rest for a slow machine


class Stopped(Exception):
    """Ctrl-C or SIGTERM."""


def main() -> int:
    """Run the demo until Ctrl-C, SIGTERM or `--seconds`; 0 when everything ended cleanly."""
    options = _options()
    for number in ENDINGS:
        signal.signal(number, _stop)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="onebeat-shop-"))
    port = options.port or free_port(prefer=8000)
    _check_that_it_imports(folder)
    mails = mailserver.serve(folder / "mails", free_port(prefer=8025))
    server = _uvicorn(folder, port, mails.port, options)
    try:
        _wait_until_it_serves(server, port)
        _say(_guide(folder, port))
        if not options.quiet:
            _first_requests(folder, port)
        server.wait(timeout=options.seconds)
        _say("uvicorn ended by itself")
    except (Stopped, subprocess.TimeoutExpired):
        _say("\nStopping: running jobs are awaited, the others stay in the database …")
    finally:
        code = _end(server)
        mails.stop()
    _say(f"Ended with code {code}. Everything is still in {folder}")
    return code


def free_port(prefer: int = 0) -> int:
    """A port on 127.0.0.1 that nobody listens on: `prefer` when it is free, else any."""
    for port in (prefer, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="where mails, reports, logs and database go (a new temporary folder)"
    )
    parser.add_argument("--port", type=int, help="HTTP port (8000, or a free one)")
    parser.add_argument("--workers", type=int, default=4, help="uvicorn's processes (4)")
    parser.add_argument("--seconds", type=float, help="end by itself after so many seconds")
    parser.add_argument("--quiet", action="store_true", help="make no first requests")
    return parser.parse_args()


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # the drain is under way; uvicorn has a hard end of its own
    raise Stopped


def _check_that_it_imports(folder: Path) -> None:
    """One message instead of the same traceback from each of uvicorn's processes."""
    command = [sys.executable, "-c", "import examples.shop.app"]
    environment = {**os.environ, "SHOP_FOLDER": str(folder)}
    tried = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if tried.returncode != 0:
        words = tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"]
        raise SystemExit(
            f"The shop cannot be imported, so it was not started: {words[-1]}\n"
            "For the whole traceback: .venv/bin/python -c 'import examples.shop.app'"
        )


def _uvicorn(folder: Path, port: int, smtp_port: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "SHOP_FOLDER": str(folder),
        "SHOP_SMTP_PORT": str(smtp_port),
    }
    command = [sys.executable, "-m", "uvicorn", "examples.shop.app:app", "--workers", str(options.workers)]
    command += ["--port", str(port), "--timeout-graceful-shutdown", "3", "--log-level", "warning"]
    # A session of its own: Ctrl-C reaches this process alone, which then ends uvicorn once.
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait_until_it_serves(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"uvicorn ended with code {server.returncode} before it served; its words are above")
        try:
            _ask(port, "GET", "/health")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"the shop did not answer within {START_LIMIT} s")


def _ask(port: int, method: str, path: str) -> tuple[str, str]:
    """The answer and its tracking id."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode()), str(response.headers["X-Request-ID"])


def _first_requests(folder: Path, port: int) -> None:
    for method, path in (
        ("PUT", "/send_email?user_id=1&message=hello"),
        ("POST", "/charge?order_id=7&luck=0.5"),
        ("POST", "/charge?order_id=8&luck=0"),
    ):
        answer, id = _ask(port, method, path)
        _say(f"  {method} {path}\n    -> {answer}\n    its whole story: grep -h {id} {folder}/logs/*.log")


def _end(server: subprocess.Popen[bytes]) -> int:
    """Ask uvicorn to drain and wait for it; its exit code, 1 when it had to be killed."""
    if server.poll() is None:
        server.terminate()
    try:
        return server.wait(timeout=STOP_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        return 1


def _guide(folder: Path, port: int) -> str:
    url = f"http://127.0.0.1:{port}"
    return f"""
The shop is open at {url} with four processes on one SQLite file. Ctrl-C ends it.

  a mail, ten seconds from now   curl -i -X PUT '{url}/send_email?user_id=1&message=hello'
  a job that fails at random     curl -X POST '{url}/charge?order_id=7&luck=0.5'
  what became of them            curl '{url}/jobs?limit=5'
  what failed                    curl '{url}/jobs?state=failed'

  mails     {folder}/mails            one file a mail, one ledger line a mail
  reports   {folder}/reports          one each 5 s, whichever process writes it; a minutely cron removes the old ones
  logs      {folder}/logs             JSON lines; grep the X-Request-ID of an answer and read the whole story
  database  {folder}/shop.db          sqlite3 … 'select task, state, reason, attempt from onebeat_jobs'
"""


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stopped:
        sys.exit("Stopped before the shop was open.")
