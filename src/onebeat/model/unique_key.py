"""Unique keys of jobs: what is stored of them, and the slot that one unfinished job may hold."""

from __future__ import annotations

import json
from hashlib import sha256

from onebeat.model import payload

SHOWN = 200  # characters of a key that are stored as they are; of a longer one only its slot is complete
_CLIPPED = "... sha256:"


def slot_and_text(task: str, key: str) -> tuple[str, str]:
    """Return the slot of a task's key, and the ASCII text of the key for people.

    >>> slot, text = slot_and_text("charge", "größe")
    >>> len(slot), text
    (64, 'gr\\\\u00f6\\\\u00dfe')
    """
    slot = sha256(f"{task}\0{key}".encode()).hexdigest()
    text = payload.canonical(key[:SHOWN])[1:-1]
    return slot, text if len(key) <= SHOWN else f"{text}{_CLIPPED}{slot}"


def slot_of_text(task: str, text: str) -> str:
    """Return the slot of the key whose stored text this is.

    >>> keys = "k" * 200, "é" * 201
    >>> all(slot_of_text("a", text) == slot for slot, text in (slot_and_text("a", key) for key in keys))
    True
    """
    key = json.loads(f'"{text}"')
    return str(text[-64:]) if len(key) > SHOWN else slot_and_text(task, key)[0]
