"""Snapshots of exceptions at the log call; the writer looks up the source lines and formats the traceback."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from onebeat.logs.encoder import encode
from onebeat.logs.plain import clean, clip, described, kind

FRAME_LIMIT: Final = 50  # of one traceback: the first ten and the last forty
CHAIN_LIMIT: Final = 8  # causes, contexts and members of groups, together with the first
TEXT_LIMIT: Final = 24 * 1024  # characters of the rendered text
_FIRST = 10


@dataclass(slots=True)
class Failure:
    """One exception with its chain; values only, so that no object of the application is kept alive."""

    type: str
    message: str
    frames: list[tuple[str, int, str]]  # file, line number, function; innermost last
    skipped: int = 0  # frames left out in the middle
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
    failure = Failure(_type_name(error), clean(described(error)), frames, skipped, _notes(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen and left[0] > 0:
        failure.link = "cause" if error.__cause__ is not None else "context"
        failure.earlier = _captured(earlier, earlier.__traceback__, seen, left)
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            if id(member) not in seen and left[0] > 0:
                failure.members.append(_captured(member, member.__traceback__, seen, left))
    return failure


def _walk(traceback: TracebackType | None) -> tuple[list[tuple[str, int, str]], int]:
    frames: list[tuple[str, int, str]] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append((code.co_filename, traceback.tb_lineno or 0, code.co_qualname))
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
    value["frames"] = [{"file": f, "line": n, "func": name} for f, n, name in failure.frames]
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
    for position, (file, number, name) in enumerate(failure.frames):
        if failure.skipped and position == _FIRST:
            yield f"{indent}  … {failure.skipped} frames left out …"
        yield f'{indent}  File "{file}", line {number}, in {name}'
        source = _source(file, number)
        if source:
            yield f"{indent}    {clean(source, 200)}"
    yield f"{indent}{failure.type}: {failure.message}" if failure.message else f"{indent}{failure.type}"
    for note in failure.notes:
        yield f"{indent}{note}"
    for member in failure.members:
        yield from _lines(member, indent + "  | ")


def _source(file: str, number: int) -> str:
    """The line of source, or nothing where it cannot be looked up: no path, or a loader of the application's fails."""
    try:
        return linecache.getline(file, number).strip() if os.path.isabs(file) else ""
    except Exception:  # noqa: BLE001 - one exception that cannot be shown whole must not hold up every line behind it
        return ""


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
