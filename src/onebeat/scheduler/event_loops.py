"""The event loop that everything here needs: asyncio's."""

from __future__ import annotations

import asyncio

from onebeat.errors import ConfigurationError


def require_asyncio(what: str) -> None:
    """Raise `ConfigurationError` when this coroutine runs on another kind of event loop, such as trio's.

    `what` begins the message: "install(app)".
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            f"{what} needs an asyncio event loop, and this server runs the app on another one, such as trio: "
            "start it with asyncio or uvloop (`hypercorn -k asyncio`, `hypercorn -k uvloop`, or uvicorn)"
        ) from None
