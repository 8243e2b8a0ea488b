"""Which values are secrets: by the key they stand under, and inside an address in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

REDACTED: Final = "[redacted]"

SECRET_WORDS: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "apikey",
    "privatekey",
    "accesskey",
    "credential",
)
"""A key that contains one of these is secret; case, `-`, `_`, `.` and blanks in the key do not matter."""

_SEPARATORS = str.maketrans("", "", "-_. ")
_IN_ADDRESS = re.compile(r"(://[^\s:/@]*:)[^\s/@]+(?=@)|(\b[Bb]earer\s+)[\w.~+/=-]{8,}")
_REMEMBERED = 2_000  # keys; beyond it hostile keys could make the memory grow


class Redactor:
    """Says whether a key holds a secret; remembers its answers, since keys repeat.

    >>> secret = Redactor(SECRET_WORDS)
    >>> secret("X-Api-Key", "abc"), secret("user", "abc")
    (True, False)

    A number under a "token" key is a count, not a secret:

    >>> secret("prompt_tokens", 512), secret("token", "512")
    (False, True)
    """

    __slots__ = ("_known", "_words")

    def __init__(self, words: Iterable[str] = SECRET_WORDS) -> None:
        self._words = tuple(word.lower().translate(_SEPARATORS) for word in words)
        self._known: dict[str, str | None] = {}

    def __call__(self, key: str, value: object) -> bool:
        try:
            word = self._known[key]
        except KeyError:
            word = self._look(key)
        if word is None or value is None or isinstance(value, bool):
            return False
        return not (word == "token" and isinstance(value, (int, float)))

    def _look(self, key: str) -> str | None:
        plain = key.lower().translate(_SEPARATORS)
        word = next((word for word in self._words if word in plain), None)
        if len(self._known) < _REMEMBERED and len(key) <= 256:
            self._known[key] = word
        return word


def without_secrets(text: str) -> str:
    """The text without passwords in addresses and without bearer credentials.

    >>> without_secrets("cannot reach postgresql://shop:s3cret@db/shop")
    'cannot reach postgresql://shop:[redacted]@db/shop'
    """
    if "://" not in text and "earer" not in text:
        return text
    return _IN_ADDRESS.sub(lambda match: (match[1] or match[2]) + REDACTED, text)
