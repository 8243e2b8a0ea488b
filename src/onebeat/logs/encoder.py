"""The JSON encoder: it uses orjson when that is installed, and the standard library otherwise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, Final

# DEL, C1 controls (CSI, NEL), line separators, bidirectional and interlinear controls, byte order mark, tag characters,
# surrogates: whatever can drive a terminal, hide text or break a reader of lines, though JSON itself would allow it.
_HOSTILE = re.compile(
    "[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_STANDARD = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)

quote: Callable[[str], str] = encode_basestring
"""A text as JSON writes it, in quotes; what lies beyond ASCII stays as it is."""


def _standard(value: Any) -> str:
    return _STANDARD.encode(value)


to_json: Callable[[Any], str] = _standard
"""The JSON of plain values."""
_read: Callable[[bytes], Any] = json.loads

try:
    import orjson
except ImportError:  # the `fast` extra is optional
    pass
else:
    _OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS
    _read = orjson.loads

    def _fast(value: Any) -> str:
        try:
            return orjson.dumps(value, option=_OPTIONS).decode()
        except TypeError:
            return _STANDARD.encode(value)  # what orjson refuses: lone surrogates, subclasses of text

    to_json = _fast


def to_line(text: str) -> bytes:
    r"""The bytes of one line from the JSON of a record with its newline: hostile characters escaped, UTF-8.

    >>> to_line('{"msg":"caf\u00e9 \u202e"}\n')
    b'{"msg":"caf\xc3\xa9 \\u202e"}\n'
    """
    if text.isascii() and "\x7f" not in text:
        return text.encode()
    return escaped(text).encode()


def encode(record: dict[str, Any]) -> bytes:
    """One line from plain values."""
    return to_line(to_json(record) + "\n")


def decode(line: bytes) -> dict[str, Any]:
    """The record of a line made here."""
    record: dict[str, Any] = _read(line)
    return record


def escaped(text: str) -> str:
    r"""The text with hostile characters as JSON writes them: `\u009b`.

    >>> escaped("a\x9b\u202eb") == r"a\u009b\u202eb"
    True
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return _HOSTILE.sub(_unicode_escape, text)


def _unicode_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xD800 <= code < 0xE000:
        return f"\\\\u{code:04x}"  # half a character is no text: strict readers refuse even its escape
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
