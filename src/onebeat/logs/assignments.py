"""Secrets that a text gives to a name: `password=…` of libpq, `'token': '…'` of a dict, `Authorization: …`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_STEMS: Final = (
    "pass", "pw", "secret", "token", "key", "auth", "cookie", "session", "cred", "pin", "otp", "jwt", "signature",
    "connection",
)  # fmt: skip
"""A part of each name whose value may be a secret; a text with none of them needs no closer look."""

_NAME: Final = re.compile(r"""(?<![\w.-])([\w.-]{1,64})(['"]?)\s?(=>|=(?![=~])|[:,])\s{0,2}""")
_HEADER: Final = re.compile(r"(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]+", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"pass|pwd|secret|(?:pw|pin|otp)\Z", re.IGNORECASE)
_QUOTED: Final = re.compile(
    r"""b?(?:'(?P<single>[^'\\]*(?:\\.[^'\\]*)*)|"(?P<double>[^"\\]*(?:\\.[^"\\]*)*))""", re.DOTALL
)
_NESTED: Final = re.compile(r"[\[({](?P<text>[^\])}]{1,4096})")
_BARE: Final = re.compile(r"""(?P<text>[^\s,;'"(){}\[\]<>]+)""")
_TO_BLANK: Final = re.compile(r"""(?P<text>[^\s"<>]+)""")  # libpq's passwords may hold a comma
_PARAMETERS: Final = r"""[^\s,;'"=]+(?:="[^"\n]*"?|=[^\s,;'"]*)*(?:[,;]\s?[\w-]+(?:="[^"\n]*"?|=[^\s,;'"]*))*"""
_SCHEMES: Final = r"basic|bearer|token|digest|negotiate|ntlm|api-?key|hawk|oauth|dpop|jwt|key|(?:hmac|aws4)[\w-]*"
_OF_HEADER: Final = re.compile(  # the first word may be the credentials, unless it is a known scheme
    rf"(?:{_SCHEMES})[ ]+(?P<known>{_PARAMETERS})|(?P<text>{_PARAMETERS}(?:[ ]{_PARAMETERS})?)", re.IGNORECASE
)
_NOTHING: Final = frozenset(("None", "null", "True", "False", "true", "false"))
_LONG: Final = 8  # characters; what is shorter and no password is rather a count or a name


def may_assign(text: str) -> bool:
    """Return whether the text may give a secret to a name; a quick look."""
    if "=" in text or "'" in text or '"' in text or ": " in text:
        lowered = text.lower()
        for stem in _STEMS:
            if stem in lowered:
                return True
    return False


def without_assigned(text: str, secret: Callable[[str, object], bool], redacted: str) -> str:
    """The text with `redacted` in place of each value whose name is `secret`; the work grows with its length.

    >>> from onebeat.logs.redact import Redactor
    >>> without_assigned("host=db password=s3cret; {'token': 'abc', 'user': 7}", Redactor(), "…")
    "host=db password=… {'token': '…', 'user': 7}"
    """
    parts: list[str] = []
    done = at = 0
    while (name := _NAME.search(text, at)) is not None:
        at = name.end()
        place = _value(text, name)
        if place is None:
            continue
        first, last = place
        value = text[first:last]
        if value.rstrip(",;)") in _NOTHING or value.startswith(redacted) or not value.strip("*•…"):
            continue
        if secret(name[1], int(value) if value.isdecimal() and len(value) < 19 else value):
            parts += (text[done:first], redacted)
            done = at = last
    return "".join((*parts, text[done:])) if parts else text


def _value(text: str, name: re.Match[str]) -> tuple[int, int] | None:
    """Where the value stands that this name is given; None where the text gives it none."""
    key, quote, sign = name.groups()
    at = name.end()
    if sign == ":" and not quote:
        return _span(_OF_HEADER.match(text, at)) if _HEADER.fullmatch(key) else None
    if sign == "," and not (quote and text[max(0, name.start() - 3) : name.start()].rstrip("b'\"")[-1:] in ("(", "[")):
        return None
    if (quoted := _QUOTED.match(text, at)) is not None:
        return _span(quoted)
    if sign == ",":
        return None
    if (nested := _NESTED.match(text, at)) is not None:
        return _span(nested) if quote else None
    if quote:
        return _span(_BARE.match(text, at))
    bare = _TO_BLANK.match(text, at)
    long_enough = bare is not None and (len(bare["text"]) >= _LONG or _PASSWORD.search(key) is not None)
    return _span(bare) if long_enough else None


def _span(match: re.Match[str] | None) -> tuple[int, int] | None:
    return None if match is None or match.lastgroup is None else match.span(match.lastgroup)
