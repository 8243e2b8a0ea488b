"""Set up, flush and shut down the logs of a process."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onebeat.errors import ConfigurationError
from onebeat.logs import access as access_log, exits, factory
from onebeat.logs.console import Console, is_terminal
from onebeat.logs.files import DatedFiles
from onebeat.logs.handler import LogHandler
from onebeat.logs.options import check_options, level_number
from onebeat.logs.queue import BYTES, RECORDS
from onebeat.logs.record import RecordEncoder
from onebeat.logs.redact import SECRET_WORDS
from onebeat.logs.text import TextView
from onebeat.logs.writer import Sink, Writer, WriterStats

ConsoleKind = Literal["auto", "json", "text"]
SERVER_LOGGERS = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "uvicorn.asgi",
    "gunicorn.error",
    "gunicorn.access",
    "hypercorn.error",
    "hypercorn.access",
)


@dataclass(frozen=True, slots=True)
class _Active:
    """The handler in use and what it was made from."""

    handler: LogHandler
    options: dict[str, Any]
    words: str  # for the start line


_active: _Active | None = None
_open = 0  # lifespans that are running
_silenced: dict[str, tuple[list[logging.Handler], bool]] = {}  # access logs of servers, while ours replaces them
_layered = False  # whether one of them has our access log in its application


def setup_logging(
    *,
    level: int | str = "INFO",
    console: ConsoleKind | None = "auto",
    directory: str | os.PathLike[str] | None = None,
    keep_days: int | None = 7,
    per_process: bool = False,
    fields: Mapping[str, str | None] | None = None,
    constants: Mapping[str, str | int | float | bool] | None = None,
    name: str = "app",
    stream: Literal["stderr", "stdout"] = "stderr",
    utc: bool = True,
    access: bool = True,
    access_exclude: Sequence[str] = (),
    redact: Sequence[str] = SECRET_WORDS,
    write_through: int | str | None = None,
    queue_records: int = RECORDS,
    queue_bytes: int = BYTES,
    finish_at_sigterm: bool = False,
) -> None:
    """Send everything logged through `logging` to JSON lines, written by a thread, so that no log call does I/O.

    Calling it again replaces the former setup. Handlers for the terminal that others put on the root logger and on the
    loggers of uvicorn and gunicorn are removed, so that each record appears once; other handlers stay.

    - `console`: `"auto"` is text on a terminal and JSON elsewhere; `None` is no console. `stream` says which.
    - `directory`: files `<name>-<date>.log`, made if missing; `None` is no files. No sink at all is no error.
    - `keep_days`: full days kept before today; `None` keeps all. Dates are UTC, or local with `utc=False`.
    - `per_process`: a file of its own for each process, also chosen where the disk is not known to be local.
    - `fields`: other names for fields of the schema, `None` leaves one out: `{"ts": "@timestamp", "msg": "message"}`.
    - `constants`: fields that every record has, such as `{"service": "shop", "environment": "production"}`.
    - `access`: onebeat's access log takes the place of the server's, once `install(app)` is used; successful requests
      of the paths in `access_exclude` are left out.
    - `redact`: words that make a key secret.
    - `write_through`: records of this level and above are written before the log call returns.
    - `queue_records`, `queue_bytes`: the bounds of what may wait for each sink.
    - `finish_at_sigterm`: write what waits before SIGTERM ends a script; under `install(app)` this is not needed.

    Raises `ConfigurationError` for values that cannot work.

    >>> setup_logging(console=None)  # valid: nothing is written anywhere
    >>> logging.getLogger("shop").info("nobody hears this")
    >>> reset_logging()
    """
    options = dict(locals())
    number = level_number(options.pop("level"))
    active, former = _built(options), _active and _active.handler
    root = logging.getLogger()
    stay = [one for one in root.handlers if one is not former and not _is_terminal_handler(one)]
    root.handlers = [*stay, active.handler]  # in one step: what other threads log meanwhile goes to one of the two
    root.setLevel(number)
    _use(active)
    adopt_server_loggers()
    if _open:
        _take_over()


def configured_handler(
    *,
    console: ConsoleKind | None = "auto",
    directory: str | os.PathLike[str] | None = None,
    keep_days: int | None = 7,
    per_process: bool = False,
    fields: Mapping[str, str | None] | None = None,
    constants: Mapping[str, str | int | float | bool] | None = None,
    name: str = "app",
    stream: Literal["stderr", "stdout"] = "stderr",
    utc: bool = True,
    access: bool = True,
    access_exclude: Sequence[str] = (),
    redact: Sequence[str] = SECRET_WORDS,
    write_through: int | str | None = None,
    queue_records: int = RECORDS,
    queue_bytes: int = BYTES,
    finish_at_sigterm: bool = False,
) -> LogHandler:
    """The handler of `setup_logging` for use in `logging.config.dictConfig`, as `uvicorn_log_config` does."""
    active = _built(dict(locals()))
    _use(active)
    return active.handler


def _built(options: dict[str, Any]) -> _Active:
    """The handler for these options; nothing is changed yet."""
    check_options(options)
    if options["constants"] is not None:
        options["constants"] = dict(options["constants"])  # as it is now
    if options["directory"] is not None:
        options["directory"] = os.fspath(options["directory"])
    stream, console, directory = options["stream"], options["console"], options["directory"]
    encoder = RecordEncoder(fields=options["fields"], redact=options["redact"], constants=options["constants"])
    sinks: list[Sink] = []
    words: list[str] = []
    if console is not None:
        text = console == "text" or (console == "auto" and is_terminal(stream))
        view = TextView(encoder.names, colour=_wants_colour(stream)) if text else None
        sinks.append(Console(stream, render=view.render if view else None))
        words.append(f"{'text' if text else 'JSON'} on {stream}")
    if directory is not None:
        name, keep = options["name"], options["keep_days"]
        files = DatedFiles(directory, name=name, keep_days=keep, per_process=options["per_process"], utc=options["utc"])
        sinks.append(files)
        kept = "all kept" if keep is None else f"{keep} days kept"
        own = ", a file a process" if files.per_process else ""
        words.append(f"files {files.directory / name}-<date>.log ({kept}{own})")
    bounds = {"records": options["queue_records"], "max_bytes": options["queue_bytes"]}
    writers = [Writer(sink, report=encoder.losses, started=exits.watch_child, **bounds) for sink in sinks]
    through = None if options["write_through"] is None else level_number(options["write_through"])
    handler = LogHandler(encoder, writers, write_through=through)
    return _Active(handler, options, " and ".join(words) or "nowhere")


def _use(active: _Active) -> None:
    """Put the handler in use away and take this one."""
    global _active
    exits.watch(active.handler)
    _put_away()
    _active = active
    access_log.want(active.options["access"], active.options["access_exclude"])
    factory.use()
    if active.options["finish_at_sigterm"]:
        exits.finish_at_sigterm()


def uvicorn_log_config(*, level: int | str = "INFO", **options: Any) -> dict[str, Any]:
    """The options of `setup_logging` as a configuration for uvicorn: its own lines are JSON too, from the first on.

    A plain mapping: give it to `uvicorn.run(log_config=…)`, or write it to a file for `uvicorn --log-config log.json`.
    What waits is written before SIGTERM ends a process, the supervisor of `--workers` included.

    >>> import json
    >>> config = json.loads(json.dumps(uvicorn_log_config(console="json", directory="logs")))
    >>> config["handlers"]["onebeat"]["directory"]
    'logs'
    """
    if unknown := options.keys() - inspect.signature(configured_handler).parameters.keys():
        raise ConfigurationError(
            f"uvicorn_log_config has no option {min(unknown)!r}; it takes those of setup_logging, see docs/logging.md"
        )
    options.setdefault("finish_at_sigterm", True)
    check_options(options)
    if options.get("directory") is not None:
        options["directory"] = os.fspath(options["directory"])
    follow: dict[str, Any] = {"handlers": [], "level": "INFO", "propagate": True}
    itself: dict[str, Any] = {"handlers": ["onebeat"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "default": {"format": "%(message)s"},
            "access": {"format": "%(message)s"},
        },  # uvicorn sets colours in them
        "handlers": {"onebeat": {"()": "onebeat.logs.setup.configured_handler", **options}},
        "root": {"handlers": ["onebeat"], "level": level_number(level)},
        "loggers": {name: dict(follow) for name in SERVER_LOGGERS}
        | {"gunicorn.error": itself},  # uvicorn-worker gives its handlers to `uvicorn.error`, which speaks to no other
    }


def flush_logs(timeout: float = 5.0) -> bool:
    """Wait until everything logged so far is written; False when `timeout` seconds did not suffice.

    >>> flush_logs(timeout=1)
    True
    """
    return _active is None or _active.handler.flush(timeout)


def log_stats() -> list[WriterStats]:
    """For each sink: lines waiting, written and lost, and errors, since the process started.

    >>> log_stats()  # before setup_logging
    []
    """
    return [] if _active is None else _active.handler.stats()


def log_options() -> dict[str, Any] | None:
    """The options of the present setup, to repeat it in a child process; None before `setup_logging`."""
    return None if _active is None else {"level": logging.getLogger().level, **_active.options}


def reset_logging() -> None:
    """Write what waits and take onebeat's handler away again; for tests and embeddings."""
    global _active
    if _active is not None:
        _put_away()
        _active = None
        access_log.want(False)
        _unsilence_servers()
        factory.leave()


# ── with the server ───────────────────────────────────────────────────────────────────────────────────────────────────
def open_logs(*, access_layer: bool = False) -> None:
    """At the start of a lifespan: take over the server's loggers, and its access log if our layer is in place."""
    global _open, _layered
    _layered = access_layer or (_layered and _open > 0)
    _open += 1
    _take_over()


def _take_over() -> None:
    """In a lifespan that has begun, whether logs were set up before it or within it."""
    if _active is None:
        return
    _active.handler.resume()
    access_log.leave_to_sentry()
    adopt_server_loggers()
    ours = _layered and access_log.is_wanted()
    _silence_servers() if ours else _unsilence_servers()
    access = "by onebeat, the server's is off" if ours else "the server's own"
    logging.getLogger("onebeat.logs").info("logs go to %s; access log: %s", _active.words, access)


def _silence_servers() -> None:
    """Take the access logs of servers away; a file that gunicorn was told to write is written still."""
    for name in access_log.OF_SERVERS:
        uvicorns = name == access_log.UVICORNS
        if not (uvicorns or isinstance(logging.root.manager.loggerDict.get(name), logging.Logger)):
            continue
        server = logging.getLogger(name)
        _silenced.setdefault(name, (server.handlers, uvicorns or server.propagate))
        # Not cleared: the list may be another logger's as well.
        server.handlers = [] if uvicorns else [one for one in server.handlers if not _is_replaced(one)]
        server.propagate = False


def _unsilence_servers() -> None:
    for name, (handlers, propagate) in _silenced.items():
        server = logging.getLogger(name)
        server.handlers, server.propagate = handlers, propagate
    _silenced.clear()


def close_logs(timeout: float = exits.DEADLINE) -> None:
    """At the end of the last lifespan: write what waits; later records are written by their callers.

    Blocks up to `timeout` seconds for each sink: call it in a thread.
    """
    global _open
    _open = max(0, _open - 1)
    if _open == 0 and _active is not None:
        exits.finish(timeout)


def adopt_server_loggers() -> None:
    """Let what uvicorn, gunicorn and hypercorn log reach the root logger, once, instead of handlers of their own."""
    known = logging.root.manager.loggerDict
    present = [logger for name in SERVER_LOGGERS if isinstance(logger := known.get(name), logging.Logger)]
    chosen = list(filter(_needs_root, present))  # before any is changed: uvicorn-worker lets loggers share a list
    for logger in chosen:
        logger.handlers = [handler for handler in logger.handlers if not _is_replaced(handler)]
        logger.propagate = True


def _needs_root(logger: logging.Logger) -> bool:
    """Whether it speaks to the terminal or to us by itself or, of errors, to nobody: uvicorn-worker can leave it so."""
    if not logger.handlers:
        return not logger.propagate and logger.name.endswith(".error")
    return any(map(_is_replaced, logger.handlers))


# ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _put_away() -> None:
    """Write out and remove the handler in use."""
    if _active is None:
        return
    old = _active.handler
    root = logging.getLogger()
    if old in root.handlers:
        root.removeHandler(old)
    exits.end([old], exits.DEADLINE, "before the logs were set up anew")
    exits.unwatch(old)
    for writer in old.writers:
        writer.close_sink()


def _is_replaced(handler: logging.Handler) -> bool:
    """Whether what it gets comes to us by the root logger: a terminal's, or one of ours, perhaps of a former setup."""
    return isinstance(handler, LogHandler) or _is_terminal_handler(handler)


def _is_terminal_handler(handler: logging.Handler) -> bool:
    """Whether it is a plain handler for standard output or standard error; one for any other stream stays."""
    if type(handler) is not logging.StreamHandler:
        return False
    stream = handler.stream
    try:
        return stream in (sys.stderr, sys.stdout) or stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False


def _wants_colour(stream: str) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")
