"""Snapshots of exceptions at the log call; the writer looks up the source lines and formats the traceback."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from traceback import FrameSummary, StackSummary, format_exception_only
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple

from onebeat.logs.encoder import encode
from onebeat.logs.plain import clean, clip, described, kind

FRAME_LIMIT: Final = 50  # of one traceback: the first ten and the last forty
CHAIN_LIMIT: Final = 8  # causes, contexts and members of groups, together with the first
TEXT_LIMIT: Final = 24 * 1024  # characters of the rendered text
_FIRST = 10
_SOURCE: Final = 200  # characters of a line of source


class TracedFrame(NamedTuple):
    """One frame: file, line number and function, and the instruction, by which the writer finds the columns."""

    file: str
    line: int
    function: str
    code: CodeType
    instruction: int


@dataclass(slots=True)
class Failure:
    """One exception with its chain; values only, so that no object of the application is kept alive."""

    type: str
    message: str
    frames: list[TracedFrame]  # innermost last
    skipped: int = 0  # frames left out in the middle
    syntax: tuple[str, ...] = ()  # of a `SyntaxError`: the place that it names, as Python prints it
    notes: tuple[str, ...] = ()
    link: str | None = None  # how `earlier` led here: "cause" or "context"
    earlier: Failure | None = None
    members: list[Failure] = field(default_factory=list)  # of an exception group

    def size(self) -> int:
        """Bytes this will roughly take when rendered; the queue counts them."""
        own = 256 + len(self.message) + 200 * len(self.frames)
        return own + (self.earlier.size() if self.earlier else 0) + sum(member.size() for member in self.members)


def captured(error: BaseException, traceback: TracebackType | None = None) -> Failure:
    """What the log keeps of an exception; costs a walk over its frames and reads no file."""
    return _captured(error, traceback or error.__traceback__, set(), [CHAIN_LIMIT])


def _captured(error: BaseException, traceback: TracebackType | None, seen: set[int], left: list[int]) -> Failure:
    seen.add(id(error))
    left[0] -= 1
    frames, skipped = _walk(traceback)
    failure = Failure(_type_name(error), clean(described(error)), frames, skipped, notes=_notes(error))
    if isinstance(error, SyntaxError):
        failure.syntax = _syntax(error)
    earlier = error.__cause__
    if earlier is None and not error.__suppress_context__:  # compared with None: an exception may be falsy
        earlier = error.__context__
    if earlier is not None and id(earlier) not in seen and left[0] > 0:
        failure.link = "cause" if error.__cause__ is not None else "context"
        failure.earlier = _captured(earlier, earlier.__traceback__, seen, left)
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            if id(member) not in seen and left[0] > 0:
                failure.members.append(_captured(member, member.__traceback__, seen, left))
    return failure


def _syntax(error: SyntaxError) -> tuple[str, ...]:
    """Return the lines in which Python shows where the error is; nothing where its attributes are nonsense."""
    try:
        lines = format_exception_only(SyntaxError, error)[:-1]
    except Exception:  # noqa: BLE001 - attributes that an application set
        return ()
    return tuple(clean(line.rstrip("\n"), 256) for line in lines[:4])


def _walk(traceback: TracebackType | None) -> tuple[list[TracedFrame], int]:
    frames: list[TracedFrame] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(
            TracedFrame(code.co_filename, traceback.tb_lineno or 0, code.co_qualname, code, traceback.tb_lasti)
        )
        traceback = traceback.tb_next
    skipped = len(frames) - FRAME_LIMIT
    if skipped <= 0:
        return frames, 0
    return frames[:_FIRST] + frames[_FIRST + skipped :], skipped


def _type_name(error: BaseException) -> str:
    module = type.__getattribute__(type(error), "__module__")
    name = clip(kind(error), 256)
    return name if module in ("builtins", "__main__") else f"{clip(described(module), 256)}.{name}"


def _notes(error: BaseException) -> tuple[str, ...]:
    try:
        notes = getattr(error, "__notes__", ())
    except Exception:  # noqa: BLE001 - a __getattr__ that raises
        return ()
    if not isinstance(notes, (list, tuple)):
        return ()
    return tuple(clean(described(note), 1024) for note in notes[:8])


def rendered(failure: Failure) -> dict[str, Any]:
    """The value of the field `exc`: type, msg, frames (innermost last, with their source line) and text."""
    return {**_structured(failure), "text": clean("\n".join(_lines(failure)), TEXT_LIMIT)}


def _structured(failure: Failure) -> dict[str, Any]:
    value: dict[str, Any] = {"type": failure.type, "msg": failure.message}
    if failure.notes:
        value["notes"] = list(failure.notes)
    value["frames"] = [{"file": f, "line": n, "func": name} for f, n, name, _, _ in failure.frames]
    if failure.earlier is not None and failure.link is not None:
        value[failure.link] = _structured(failure.earlier)
    if failure.members:
        value["members"] = [_structured(member) for member in failure.members]
    return value


_LINKS = {
    "cause": "The above exception was the direct cause of the following exception:",
    "context": "During handling of the above exception, another exception occurred:",
}


def _lines(failure: Failure, indent: str = "") -> Iterator[str]:
    """The traceback as Python prints it, nearly: groups are indented instead of boxed."""
    if failure.earlier is not None and failure.link is not None:
        yield from _lines(failure.earlier, indent)
        yield f"\n{indent}{_LINKS[failure.link]}\n"
    if failure.frames:
        yield f"{indent}Traceback (most recent call last):"
    for position, frame in enumerate(failure.frames):
        if failure.skipped and position == _FIRST:
            yield f"{indent}  … {failure.skipped} frames left out …"
        yield f'{indent}  File "{frame.file}", line {frame.line}, in {frame.function}'
        for line in _source(frame):
            yield f"{indent}    {line}"
    for line in failure.syntax:
        yield f"{indent}{line}"
    yield f"{indent}{failure.type}: {failure.message}" if failure.message else f"{indent}{failure.type}"
    for note in failure.notes:
        yield f"{indent}{note}"
    for member in failure.members:
        yield from _lines(member, indent + "  | ")


def _source(frame: TracedFrame) -> list[str]:
    """Return the line of source, and under it what Python 3.11 marks with `^`.

    Nothing where it cannot be looked up: no path, or a loader of the application's fails.
    """
    try:
        line = linecache.getline(frame.file, frame.line) if os.path.isabs(frame.file) else ""
        shown = clean(line.strip(), _SOURCE)
        if not shown:
            return []
        mark = _mark(frame, line)
        return [shown, mark] if mark and shown == line.strip() else [shown]
    except Exception:  # noqa: BLE001 - one exception that cannot be shown whole must not hold up every line behind it
        return []


def _mark(frame: TracedFrame, line: str) -> str:
    """Return the marks under the part of the line that raised, as Python chooses and draws them.

    `line` ends with its line break, for Python measures the indentation by the length of the whole line.
    """
    positions = next(islice(frame.code.co_positions(), frame.instruction // 2, None), (None,) * 4)
    _, end_line, column, end_column = positions
    if column is None or end_column is None or end_line != frame.line:
        return ""
    whole = FrameSummary(
        frame.file, frame.line, frame.function, lookup_line=False, line=line,
        end_lineno=end_line, colno=column, end_colno=end_column,
    )  # fmt: skip  # one argument a line says no more
    drawn = StackSummary().format_frame_summary(whole).splitlines()  # the place, the line, the marks
    return drawn[2][4:] if len(drawn) == 3 else ""


RECORD_LIMIT: Final = 64 * 1024  # bytes of one line
PLACE: Final = b"null}\n"  # how a line ends whose exception is still to be rendered


def finished(line: bytes, failure: Failure | None) -> bytes:
    """The line with its rendered exception in the place left for it; never longer than `RECORD_LIMIT`."""
    if failure is None:
        return line
    head = line[: -len(PLACE)]
    value = rendered(failure)
    for limit in (TEXT_LIMIT, 8 * 1024, 1024):
        whole = head + encode(value)[:-1] + b"}\n"
        if len(whole) <= RECORD_LIMIT:
            break
        value = {
            "type": failure.type,
            "msg": clip(failure.message, limit // 8),
            "text": clip(value["text"], limit // 2),
        }
    return whole
