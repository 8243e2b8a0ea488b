"""Callbacks after the commit of a transaction that the caller begins and ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Transaction, event

from onebeat.store.connection.autocommit import is_autocommit

Callback = Callable[[], object]

FIRST_LOOK = 0.001  # seconds after the COMMIT was sent; each later look waits twice as long as the one before
LAST_LOOK = 60.0  # seconds; a COMMIT that takes longer is left to the polling that every callback only shortens

log = logging.getLogger("onebeat.store")

# Callbacks of the transaction that is open on a connection, each with the savepoints it was registered in, and with
# the event loop that it runs on.
_Registered = dict[tuple[Callback, tuple[str, ...]], asyncio.AbstractEventLoop]
_callbacks: WeakKeyDictionary[Connection, _Registered] = WeakKeyDictionary()


def run_after_commit(connection: Connection, callback: Callback, loop: asyncio.AbstractEventLoop) -> None:
    """Run `callback` on `loop` once the transaction that is open on `connection` was committed.

    Other connections see the committed rows when it runs. A transaction that is rolled back runs nothing, and neither
    does a savepoint. The same callback given twice in one transaction runs once. On a connection in driver autocommit
    it runs at once, so register it after the statement that it reports. Any thread may call this, with or without an
    event loop.

    The callback is a hint: it also runs when the COMMIT failed, and when a savepoint was rolled back by a statement in
    text; it does not run when `loop` is closed or the transaction is committed by a statement in text.
    """
    if is_autocommit(connection):
        _schedule(loop, callback)
        return
    _listen(connection.engine)
    _callbacks.setdefault(connection, {})[callback, _open_savepoints(connection)] = loop


def _open_savepoints(connection: Connection) -> tuple[str, ...]:
    """Return the names of the open savepoints; SQLAlchemy tells them to nobody before the rollback of one."""
    names = []
    nested = connection.get_nested_transaction()
    while nested is not None:
        names.append(str(getattr(nested, "_savepoint", None)))
        nested = getattr(nested, "_previous_nested", None)
    return tuple(names)


def _listen(engine: Engine) -> None:
    if event.contains(engine, "rollback_twophase", _on_rollback_twophase):
        return
    event.listen(engine, "commit", _on_commit)
    event.listen(engine, "rollback", _on_rollback)
    event.listen(engine, "rollback_savepoint", _on_rollback_savepoint)
    event.listen(engine, "commit_twophase", _on_commit_twophase)
    event.listen(engine, "rollback_twophase", _on_rollback_twophase)  # the last one, as the first line looks for it


# ── handlers of the caller's engine; an exception in one of them could leave a prepared transaction behind ────────────
def _on_commit(connection: Connection) -> None:
    """Start to look for the end of the transaction: SQLAlchemy calls this before it sends the COMMIT."""
    try:
        registered = _callbacks.pop(connection, None)
        if registered:
            transaction = connection.get_transaction()
            for callback, loop in {callback: loop for (callback, _), loop in registered.items()}.items():
                _schedule(loop, _look, loop, transaction, callback, FIRST_LOOK)
    except Exception:
        log.exception("The callbacks after a commit could not be scheduled; polling finds what they would have told.")


def _on_rollback(connection: Connection) -> None:
    _callbacks.pop(connection, None)


def _on_rollback_savepoint(connection: Connection, name: str, _context: None) -> None:
    registered = _callbacks.get(connection)
    if registered:
        _callbacks[connection] = {key: loop for key, loop in registered.items() if name not in key[1]}


def _on_commit_twophase(connection: Connection, xid: object, is_prepared: bool) -> None:
    _on_commit(connection)


def _on_rollback_twophase(connection: Connection, xid: object, is_prepared: bool) -> None:
    _on_rollback(connection)


# ── on the event loop ─────────────────────────────────────────────────────────────────────────────────────────────────
def _schedule(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed: its scheduler has stopped, and the next one to start reads the database
        log.debug("A callback after a commit was dropped, because its event loop is closed.")


def _look(loop: asyncio.AbstractEventLoop, transaction: Transaction | None, callback: Callback, pause: float) -> None:
    if transaction is None or not transaction.is_active:
        callback()  # what it raises goes to the loop's exception handler
    elif pause <= LAST_LOOK:
        loop.call_later(pause, _look, loop, transaction, callback, pause * 2)
