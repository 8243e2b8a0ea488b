"""The inbound rules: whose id is accepted, under which name, in which form, and what happens to any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final, Literal

from onebeat.errors import ConfigurationError
from onebeat.tracking import notices
from onebeat.tracking.context import Origin
from onebeat.tracking.ids import STANDARD, STRICT, is_valid, new_id
from onebeat.tracking.traceparent import Trace, read

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_REASON: Final = "breaks the rule"
_KEPT: Final = "the id stayed as it was"

Scope = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingRules:
    """How the tracking layer takes ids in and gives them out.

    - `header`: the response header, also written into the request for the application to see.
    - `accept_headers`: names of request headers that may hold an id, the first one present decides. Without it these
      are `header` itself, `X-Request-ID` and `X-Tracking-ID`.
    - `traceparent`: whether the trace id of a valid W3C `traceparent` is taken where no header gave an id.
    - `accept`: whose ids count: `"always"`, `"never"`, networks (`["10.0.0.0/8", "unix"]`; `"unix"` are clients without
      an address), or a function of the ASGI scope. The id of anybody else is kept as the log field `client_id` only.
    - `check`: `"standard"` (1 to 128 visible ASCII characters, none of them `"`, `,` or a backslash), `"strict"`
      (letters, digits, `.`, `_`, `-`), or a function that says which of the ids that meet the standard it wants.
    - `on_invalid`: `"replace"` by a new id, or `"reject"` with 400.
    - `generate`: makes new ids. One that raises or gives an unusable id is not asked twice for the same request.
    - `transform`: changes each id that was taken or made, before anything sees it, for example `lambda id: id[:8]`. One
      that raises or gives an unusable id leaves the id as it was.
    - `unit_header`: a second response header with the unit id, which no client can choose; None is none.
    - `expose`: whether browsers of other origins may read the header, on responses with CORS headers.
    - `rewrite`: whether the request's headers show the effective id to the application.

    Raises `ConfigurationError` for values that cannot work.

    >>> TrackingRules(header="X-Correlation-ID", accept=["10.0.0.0/8"]).accept_headers
    ('X-Correlation-ID', 'X-Request-ID', 'X-Tracking-ID')
    """

    header: str = "X-Request-ID"
    accept_headers: Sequence[str] | None = None
    traceparent: bool = True
    accept: Literal["always", "never"] | Sequence[str] | Callable[[Scope], bool] = "always"
    check: Literal["standard", "strict"] | Callable[[str], bool] = "standard"
    on_invalid: Literal["replace", "reject"] = "replace"
    generate: Callable[[], str] = new_id
    transform: Callable[[str], str] | None = None
    unit_header: str | None = None
    expose: bool = True
    rewrite: bool = True

    def __post_init__(self) -> None:
        if self.accept_headers is None:
            usual = [name for name in ("X-Request-ID", "X-Tracking-ID") if name.lower() != str(self.header).lower()]
            object.__setattr__(self, "accept_headers", (self.header, *usual))
        for name in (self.header, *self.inbound, *([self.unit_header] if self.unit_header else [])):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigurationError(f"{name!r} is not the name of an HTTP header, such as 'X-Request-ID'")
        if self.unit_header and self.unit_header.lower() == self.header.lower():
            raise ConfigurationError(f"header and unit_header are both {self.header!r}; give the unit id another name")
        if isinstance(self.accept_headers, str):
            raise ConfigurationError('accept_headers is one text; give a tuple: ("X-Request-ID",)')
        if self.on_invalid not in ("replace", "reject"):
            raise ConfigurationError(f"on_invalid is {self.on_invalid!r}; it is 'replace' or 'reject'")
        if not callable(self.check) and self.check not in ("standard", "strict"):
            raise ConfigurationError(f"check is {self.check!r}; it is 'standard', 'strict' or a function of the id")
        if not callable(self.generate):
            raise ConfigurationError(f"generate is {self.generate!r}; it is a function without arguments")
        if self.transform is not None and not callable(self.transform):
            raise ConfigurationError(f"transform is {self.transform!r}; it is a function of the id, or None")
        trust(self.accept)

    @property
    def inbound(self) -> Sequence[str]:
        """Return the names of the request headers that may hold an id, in the order in which they are looked at."""
        return self.accept_headers or ()


Verdict = tuple[str, Origin, Trace | None, str | None, bool]
"""What became of the ids a request offered: the tracking id, where it is from, the trace, the id of a client that is
not trusted, and whether something invalid was offered. A plain tuple, since every request makes one."""


class Inbound:
    """The rules made ready for one look at each request's headers."""

    def __init__(self, rules: TrackingRules) -> None:
        self.names = tuple(dict.fromkeys(name.lower().encode("ascii") for name in rules.inbound))
        trace = (b"traceparent", b"tracestate") if rules.traceparent else ()
        self.wanted = frozenset(self.names + trace)
        self._trusted = trust(rules.accept)
        self._form = STRICT if rules.check == "strict" else STANDARD
        self._check = rules.check if callable(rules.check) else None
        self._transform = rules.transform
        self._then = "the request was rejected" if rules.on_invalid == "reject" else "was replaced by a new one"
        plain = self._trusted is None and self._check is None and self._transform is None
        self.simple = frozenset(self.names if plain else ())
        self.allowed = bytes(byte for byte in range(256) if self._form.fullmatch(bytes([byte])))
        # one header of `simple`, of 1 to 128 of these bytes, is the id, with nothing more to judge
        self._generate = rules.generate
        self.make = new_id if rules.generate is new_id and self._transform is None else self._made

    def judge(self, scope: Scope, offered: Sequence[tuple[bytes, bytes]]) -> Verdict:
        """Decide on the headers of `wanted` that a request came with."""
        values, invalid = self._value(offered)
        id = None if values is None or invalid else self._accepted(values)
        if values is not None and id is None:
            reason = "differs from another one" if invalid else _REASON
            notices.refused("an inbound tracking id", values, reason, self._then)
            invalid = True
        if self._trusted is not None and not self._trusted(scope):
            return self.make(), "generated", None, id, invalid
        trace = self._trace(offered)
        if id is not None:
            return self._transformed(id), "header", trace, None, invalid
        if trace is not None:
            return self._transformed(trace.trace_id), "traceparent", trace, None, invalid
        return self.make(), "generated", None, None, invalid

    def _value(self, offered: Sequence[tuple[bytes, bytes]]) -> tuple[bytes | None, bool]:
        """The value of the first name present, without spaces around it, and whether it came twice and differed."""
        for name in self.names:
            values = {bytes(value).strip(b" \t") for key, value in offered if key == name} - {b""}
            if values:
                return min(values), len(values) > 1
        return None, False

    def _accepted(self, value: bytes) -> str | None:
        if self._form.fullmatch(value) is None:  # bytes first: nothing is decoded that is not plain ASCII
            return None
        text = value.decode("ascii")
        if self._check is not None:
            try:
                if not self._check(text):
                    return None
            except Exception as error:  # noqa: BLE001 - a user's check that raises accepts nothing
                notices.refused(f"an inbound id whose check raised {type(error).__name__}", text, _REASON, self._then)
                return None
        return text

    def _trace(self, offered: Sequence[tuple[bytes, bytes]]) -> Trace | None:
        parents = [value for key, value in offered if key == b"traceparent"]
        if not parents or b"traceparent" not in self.wanted:
            return None
        return read(parents, [value for key, value in offered if key == b"tracestate"])

    def _made(self) -> str:
        return self._transformed(self._generated())

    def _generated(self) -> str:
        try:
            made = self._generate()
        except Exception as error:  # noqa: BLE001 - a user's generator that raises must not fail the request
            notices.refused(f"a generator that raised {type(error).__name__}", "", "made no id")
            return new_id()
        if is_valid(made):
            return made
        notices.refused("an id of the configured generator", made if isinstance(made, str) else repr(type(made)))
        return new_id()

    def _transformed(self, id: str) -> str:
        """Return the id as the user's function wants it, or as it is when the function fails."""
        if self._transform is None:
            return id
        try:
            made = self._transform(id)
        except Exception as error:  # noqa: BLE001 - a user's function that raises must not fail the request
            notices.refused(f"an id whose transform raised {type(error).__name__}", id, "was not changed", _KEPT)
            return id
        if is_valid(made):
            return made
        shown = made if isinstance(made, str) else repr(type(made))
        notices.refused("an id that transform returned", shown, then=_KEPT)
        return id


def trust(accept: str | Sequence[str] | Callable[[Scope], bool]) -> Callable[[Scope], bool] | None:
    """The question whether a client's id counts; None where everybody's does."""
    if accept == "always":
        return None
    if accept == "never":
        return lambda _: False
    if callable(accept):
        return _guarded(accept)
    if isinstance(accept, str):
        raise ConfigurationError(f"accept is {accept!r}; it is 'always', 'never', a list of networks, or a function")
    try:
        networks = [ip_network(network) for network in accept if network != "unix"]
    except ValueError as error:
        raise ConfigurationError(f"accept names a network that cannot be read: {error}") from None
    return _from(networks, "unix" in accept)


def _from(networks: Sequence[IPv4Network | IPv6Network], unix: bool) -> Callable[[Scope], bool]:
    def trusted(scope: Scope) -> bool:
        client = scope.get("client")
        if not client or not client[0]:
            return unix
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 client on a dual-stack socket
        return any((mapped or address) in network for network in networks)

    return trusted


def _guarded(predicate: Callable[[Scope], bool]) -> Callable[[Scope], bool]:
    def trusted(scope: Scope) -> bool:
        try:
            return bool(predicate(scope))
        except Exception as error:  # noqa: BLE001 - a predicate that raises trusts nobody, and the request goes on
            notices.refused(f"an inbound id, since accept raised {type(error).__name__},", "", "was not trusted")
            return False

    return trusted
