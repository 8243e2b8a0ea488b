"""Redaction of secrets: values under certain keys, credentials inside addresses, the parameters of SQL statements."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable
from typing import Final

from onebeat.logs.assignments import may_assign, without_assigned

REDACTED: Final = "[redacted]"

SECRET_WORDS: Final = (
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "jwt",
    "authorization",
    "cookie",
    "sessionid",
    "apikey",
    "privatekey",
    "accesskey",
    "credential",
    "connectionstring",
    "signature",
    "otp",
    "totp",
    "pin",
    "pw",
)
"""What makes a key secret; case, `-`, `_`, `.` and blanks in the key do not matter.

A short one, of up to six letters, must end a word of the key: `accessToken`, `csrftoken`, `TOKEN2`, not `tokenizer`.
`otp`, `totp`, `pin` and `pw` must be a whole word of it: `user_pin`, `pins`, not `spin`.
"""

SAFE_LENGTH: Final = 6
"""Characters; a text shorter than that holds no address with a password, no parameter and no credentials."""

_HARMLESS: Final = frozenset((
    "age", "algorithm", "at", "consent", "count", "enabled", "expires", "expiry", "in", "length", "limit", "name",
    "policy", "required", "ttl", "type", "types", "usage", "version",
))  # fmt: skip  # one word a line would be longer, not clearer
"""A key that ends with one of these tells something about a secret: `token_type`, `password_changed_at`."""

_WHOLE: Final = frozenset(("otp", "totp", "pin", "pw"))  # they end too many other words
_SHORT: Final = 6  # letters
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|\d+")
_ADDRESS_END = re.compile(r'[\s"<>]|\Z')
_AUTHORITY_END = re.compile(r"[/?#]|\Z")
_PORT = re.compile(r"\d{1,5}(?:[/?#,]|\Z)")
_CREDENTIALS = re.compile(r"\b(bearer|basic)(\s+)([\w.~+/=-]{8,})", re.IGNORECASE)
_QUERY = re.compile(r"([?&]([\w.-]{1,64})=)([^&\s\"#<>]+)")
_PARAMETERS = "[parameters: "
_LINK = "\n(Background on this error at"
_REMEMBERED = 2_000  # keys; beyond it hostile keys could make the memory grow


class Redactor:
    """Says whether a key holds a secret; remembers its answers, since keys repeat.

    >>> secret = Redactor(SECRET_WORDS)
    >>> secret("X-Api-Key", "abc"), secret("user", "abc"), secret("tokenizer", "abc"), secret("token_type", "abc")
    (True, False, False, False)

    A number under a "token" key is a count, not a secret:

    >>> secret("prompt_tokens", 512), secret("max_tokens", "512"), secret("token", "512")
    (False, False, True)
    """

    __slots__ = ("_known", "_words")

    def __init__(self, words: Iterable[str] = SECRET_WORDS) -> None:
        self._words = tuple("".join(_words_of(word)) for word in words)
        self._known: dict[str, str | None] = {}

    def __call__(self, key: str, value: object) -> bool:
        try:
            word = self._known[key]
        except KeyError:
            word = self._look(key)
        if word is None or value is None or isinstance(value, bool):
            return False
        if word == "tokens" and isinstance(value, str):
            return not value.isdecimal()
        return not (word in ("token", "tokens") and isinstance(value, (int, float)))

    def _look(self, key: str) -> str | None:
        word = self._word_in(_words_of(key))
        if len(self._known) < _REMEMBERED and len(key) <= 256:
            self._known[key] = word
        return word

    def _word_in(self, words: list[str]) -> str | None:
        if words and words[-1] in _HARMLESS and words[-1] not in self._words:
            return None
        whole = "".join(words)
        ends: set[int] = set()
        for word in words:
            ends.add(len(word) + max(ends, default=0))
        for word in filter(None, self._words):
            start = whole.find(word)
            while start >= 0:
                end = start + len(word)
                begins = word not in _WHOLE or start == 0 or start in ends
                if begins and (end in ends or len(word) > _SHORT):
                    return word
                if begins and whole.startswith("s", end) and end + 1 in ends:
                    return word + "s"
                start = whole.find(word, start + 1)
        return None


def _words_of(key: str) -> list[str]:
    """The words of a name in lower case: of `X-Api-Key`, `x_api_key` and `xApiKey` the same three."""
    return [word.lower() for word in _WORD.findall(key[:256])]


_secret = Redactor()


def suspicious(text: str) -> bool:
    """Whether a text may hold a secret that `without_secrets` would cut out; a quick look, in each log call."""
    return "://" in text or "?" in text or "earer" in text or "asic " in text or _PARAMETERS in text or may_assign(text)


def without_secrets(text: str) -> str:
    """The text without passwords in addresses, secret parameters of queries, credentials, and secrets under a name.

    Nor does it have the parameters that SQLAlchemy shows with the statement of an error.

    >>> without_secrets("cannot reach postgresql://shop:s3cret@db/shop")
    'cannot reach postgresql://shop:[redacted]@db/shop'
    >>> without_secrets("GET /reset?user=7&token=abc, Authorization: Basic YWRhOmxvdmVsYWNl")
    'GET /reset?user=7&token=[redacted] Authorization: Basic [redacted]'
    >>> without_secrets("host=db password=s3cret, headers {'X-Api-Key': 'abc'}")
    "host=db password=[redacted] headers {'X-Api-Key': '[redacted]'}"
    >>> without_secrets("[SQL: SELECT ?] [parameters: ('Ada',)]")
    '[SQL: SELECT ?] [parameters: [redacted]]'
    """
    if _PARAMETERS in text:
        text = _without_parameters(text)
    if "://" in text:
        text = _without_passwords(text)
    if "?" in text:
        text = _QUERY.sub(_without_value, text)
    if "earer" in text or "asic " in text or "EARER" in text or "ASIC " in text:
        text = _CREDENTIALS.sub(_without_credential, text)
    if may_assign(text):
        text = without_assigned(text, _secret, REDACTED)
    return text


def _without_parameters(text: str) -> str:
    """Without the parameters, which reach to the line with SQLAlchemy's link, else to the end of their own line."""
    parts: list[str] = []
    done = link = 0
    at = text.find(_PARAMETERS)
    while at >= 0:
        start = at + len(_PARAMETERS)
        following = text.find(_PARAMETERS, start)
        if 0 <= link < start:
            link = text.find(_LINK, start)
        end = link if start <= link and (following < 0 or link < following) else text.find("\n", start)
        end = len(text) if end < 0 else end
        parts += (text[done:start], REDACTED, "]")
        done = end
        at = text.find(_PARAMETERS, end)
    return "".join((*parts, text[done:]))


def _without_passwords(text: str) -> str:
    """Each address once, from the left: the work grows with the text's length and not faster."""
    parts: list[str] = []
    done = 0
    at = text.find("://")
    while at >= 0:
        start = at + len("://")
        end = _end(_ADDRESS_END, text, start)
        secret = _userinfo(text, at, start, end)
        if secret is not None:
            first, last = secret
            parts += (text[done:first], REDACTED)
            done = last
        at = text.find("://", end)
    return "".join((*parts, text[done:])) if parts else text


def _userinfo(text: str, at: int, start: int, end: int) -> tuple[int, int] | None:
    """Where the secret before the `@` of an address stands.

    A password reaches to the last `@`, since it may hold `@` and `/` itself; a number behind the colon is a port.
    """
    last = text.rfind("@", start, end)
    if last < 0:
        return None
    authority = _end(_AUTHORITY_END, text, start, end)
    colon = text.find(":", start, authority)
    first_at = text.find("@", start, authority)
    if colon >= 0 and (first_at < 0 or colon < first_at):
        is_port = first_at < 0 and _PORT.match(text, colon + 1, end) is not None
        return None if is_port or text.startswith("[", start) else (colon + 1, last)
    if first_at > start and text.endswith(("http", "https"), 0, at):  # a name alone is a token there
        return start, first_at
    return None


def _end(pattern: re.Pattern[str], text: str, start: int, end: int | None = None) -> int:
    found = pattern.search(text, start, len(text) if end is None else end)
    return len(text) if found is None else found.start()


def _without_value(match: re.Match[str]) -> str:
    return match[1] + REDACTED if _secret(match[2], match[3]) else match[0]


def _without_credential(match: re.Match[str]) -> str:
    """A word behind "basic" is a credential if it reads as one: `user:password` in base64."""
    scheme, blanks, value = match.groups()
    if scheme.lower() == "basic":
        try:
            if b":" not in b64decode(value + "=" * (-len(value) % 4), validate=True):
                return match[0]
        except (NotBase64, ValueError):
            return match[0]
    return f"{scheme}{blanks}{REDACTED}"
