"""A websocket refused with a response is no error: keeps one server from logging each one as such."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Final

DENIED: ContextVar[bool] = ContextVar("onebeat_denied", default=False)
"""Set in the context of a connection once its handshake was answered with a response; the server's task ends there."""

FALSE_ALARM: Final = "ASGI callable returned without completing handshake."
_LOGGER: Final = "uvicorn.error"


class _Filter(logging.Filter):
    """uvicorn's `websockets-sansio` says so of every denial response, also of those an application makes itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.msg == FALSE_ALARM and DENIED.get())


def silence_false_alarms() -> None:
    """Let uvicorn's logger leave that line out where it is not true. Calling it again changes nothing.

    >>> silence_false_alarms()
    >>> silence_false_alarms()
    >>> sum(isinstance(one, _Filter) for one in logging.getLogger("uvicorn.error").filters)
    1
    """
    logger = logging.getLogger(_LOGGER)
    if not any(isinstance(present, _Filter) for present in logger.filters):
        logger.addFilter(_Filter())
