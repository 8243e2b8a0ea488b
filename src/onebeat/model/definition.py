"""A schedule as it is declared, in code or at run time: everything but its state."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from onebeat.model import payload


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What people say about a schedule. Texts are canonical JSON, so that equal definitions have equal hashes."""

    id: str
    task: str
    trigger: str
    timezone: str
    policies: str
    options: str = "{}"  # queue, priority, retry, timeout (µs), max_attempts, at_most_once of the jobs it makes
    args: str = "[]"
    kwargs: str = "{}"
    tags: str = "[]"
    note: str | None = None

    @cached_property
    def hash(self) -> str:
        """32 hex digits that name this definition among those of other code versions."""
        return hashlib.blake2b(self.body.encode(), digest_size=16).hexdigest()

    @property
    def body(self) -> str:
        """The whole as canonical JSON text, from which `load` makes an equal one."""
        return payload.canonical(asdict(self))

    @classmethod
    def load(cls, body: str) -> Definition:
        """The definition of a stored body; fields of a newer version are left out."""
        stored: dict[str, Any] = payload.decode(body)
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})
