"""Exceptions of a child: sent back as themselves if they can be rebuilt, always with the remote traceback."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable

from onebeat.errors import RemoteError, qualified_names

PackedError = tuple[bytes | None, tuple[str, ...], str, str]
"""The pickle or None, the qualified names of the class and its bases, the message, and the text of the traceback."""


class RemoteTraceback(Exception):
    """The child's traceback as text; it is the cause of the exception that came back."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}\n"


def pack(error: BaseException, skip: int) -> PackedError:
    """Return the exception in a form that can be sent.

    It is rebuilt here once: one that cannot be rebuilt must not harm the process that awaits it. `skip` is the number
    of outermost frames of the traceback that belong to onebeat itself.
    """
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace.tb_next if trace is not None else None
    text = _text_or_reason(lambda: "".join(traceback.format_exception(type(error), error, trace)))
    pickled = None
    if isinstance(error, Exception):
        try:
            pickled = pickle.dumps(error, 5)
            if type(pickle.loads(pickled)) is not type(error):  # noqa: S301 - just pickled here
                pickled = None
        except Exception:  # noqa: BLE001 - whatever its __reduce__ or constructor raises: it cannot be rebuilt
            pickled = None
    return pickled, qualified_names(type(error)), _text_or_reason(lambda: str(error)), text


def unpack(packed: PackedError) -> Exception:
    """Return the exception itself, or a `RemoteError` that describes it; its cause is the remote traceback."""
    pickled, names, message, text = packed
    error: Exception | None = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)  # noqa: S301 - from our own child
        except Exception:  # noqa: BLE001 - it was rebuilt there, but not here: a RemoteError describes it
            error = None
    if error is None:
        error = RemoteError(f"{names[0].removeprefix('builtins.')}: {message}", type_names=names, traceback=text)
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))  # its own may refuse: a frozen dataclass
    return error


def _text_or_reason(make_text: Callable[[], str]) -> str:
    try:
        return make_text()
    except Exception as failure:  # noqa: BLE001 - a __str__ may raise
        return f"<its text cannot be made: {type(failure).__name__}>"
