"""An exception on its way from a child: rebuilt only after a proved round trip, always with the remote traceback."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable

from onebeat.errors import RemoteError

Parcel = tuple[bytes | None, str, str, str]
"""Pickle or None, module and name of the class, message, traceback text."""


class RemoteTraceback(Exception):
    """The child's traceback as text; it stands as the cause of the exception that came back."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}\n"


def pack(error: BaseException, skip: int) -> Parcel:
    """Ready to send. Rebuilt here once first: an exception that cannot must not hurt the process that awaits it.

    `skip` is the number of innermost-last frames at the top of the traceback that belong to onebeat itself.
    """
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace.tb_next if trace is not None else None
    text = _words(lambda: "".join(traceback.format_exception(type(error), error, trace)))
    pickled = None
    if isinstance(error, Exception):
        try:
            pickled = pickle.dumps(error, 5)
            if type(pickle.loads(pickled)) is not type(error):  # noqa: S301 - just pickled here
                pickled = None
        except Exception:  # noqa: BLE001 - whatever its __reduce__ or constructor raises: it cannot be rebuilt
            pickled = None
    module = type(error).__module__.replace("__mp_main__", "__main__")  # as its parent knows it
    return pickled, f"{module}.{type(error).__qualname__}", _words(lambda: str(error)), text


def unpack(parcel: Parcel) -> Exception:
    """The exception itself, else a `RemoteError` that says the same; its cause is the remote traceback."""
    pickled, name, message, text = parcel
    error: Exception | None = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)  # noqa: S301 - from our own child
        except Exception:  # noqa: BLE001 - rebuilt there, but not here: the surrogate says it all
            error = None
    if error is None:
        error = RemoteError(f"{name.removeprefix('builtins.')}: {message}", type_name=name, traceback=text)
    error.__cause__ = RemoteTraceback(text)
    return error


def _words(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as worse:  # noqa: BLE001 - a __str__ may raise
        return f"<its text cannot be made: {type(worse).__name__}>"
