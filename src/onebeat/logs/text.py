"""The text format of a log line: one line, colours only on a terminal, control characters escaped."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Final

from onebeat.logs.encoder import decode, escaped

CONTINUATION: Final = "\n  | "
"""What every further line of a record begins with, so that no text of an exception can forge a record."""

_CONTROL = re.compile(r"[\x00-\x1f]")
_PLAIN_WORD = re.compile(r"[\w.:/@+#-]{1,200}", re.ASCII)
_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_QUIET = ("ts", "level", "logger", "msg", "src", "func", "pid", "process", "thread", "exc", "stack")


class TextView:
    """Renders lines for people; `names` is the schema: what each field is called in the line.

    >>> view = TextView({"msg": "message"}, colour=False)
    >>> view.render(b'{"level":"INFO","logger":"shop","message":"sent\\\\u001b[2J","user":7}').partition(" INFO")[2]
    '     shop: sent\\\\x1b[2J user=7\\n'
    """

    def __init__(self, names: dict[str, str | None], *, colour: bool) -> None:
        self._names = names
        self._colour = colour
        self._quiet = frozenset(names.get(field, field) for field in _QUIET)

    def render(self, line: bytes) -> str:
        """The line as text, with its newline; a traceback follows on lines of its own, which begin with a bar."""
        try:
            record = decode(line)
        except ValueError:  # not ours to lose
            return line.decode("utf-8", "backslashreplace")
        level = self._shown(record, "level")
        moment = _moment(self._of(record, "ts"))
        shown = self._paint(f"{level:<8}", _COLOURS.get(level))
        text = f"{moment} {shown} {self._shown(record, 'logger')}: {self._shown(record, 'msg')}"
        fields = " ".join(f"{one_line(key)}={_value(value)}" for key, value in record.items() if self._loud(key, value))
        if fields:
            text += " " + self._paint(fields, "2")
        for block in (self._of(record, "stack"), self._traceback(record)):
            if block:
                text += CONTINUATION + CONTINUATION.join(one_line(row) for row in str(block).split("\n"))
        return text + "\n"

    def _of(self, record: dict[str, Any], field: str) -> Any:
        return record.get(self._names.get(field, field) or "")

    def _shown(self, record: dict[str, Any], field: str) -> str:
        value = self._of(record, field)
        return one_line(value if isinstance(value, str) else str(value))

    def _loud(self, key: str, value: object) -> bool:
        return key not in self._quiet and value is not None

    def _traceback(self, record: dict[str, Any]) -> str | None:
        failure = self._of(record, "exc")
        return failure.get("text") if isinstance(failure, dict) else None

    def _paint(self, text: str, colour: str | None) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour else text


def _moment(stamp: object) -> str:
    """The local time of the person who reads."""
    try:
        moment = datetime.fromisoformat(str(stamp)).astimezone()
    except (ValueError, OverflowError, OSError):  # no moment in the line, or an impossible one
        return "????-??-?? ??:??:??.???"
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _value(value: object) -> str:
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value):
        return value
    return one_line(json.dumps(value, ensure_ascii=False))


def one_line(text: str) -> str:
    r"""The text with its control characters escaped, newlines too.

    >>> print(one_line("a" + chr(10) + "b"))
    a\x0ab
    """
    return escaped(_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if _CONTROL.search(text) else text)
