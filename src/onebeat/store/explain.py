"""Errors of a database as messages: what happened, what was expected and what to do."""

from __future__ import annotations

from onebeat.errors import DatabaseUnavailable, OnebeatError, SchemaOutOfDate
from onebeat.store.faults import Fault, causes

_ADVICE = {
    Fault.RETRY: "is held by another transaction all the time (busy or deadlock); shorten transactions that write",
    Fault.DISCONNECT: "closed the connection or answers no more; onebeat goes on when it is back",
    Fault.UNREACHABLE: "cannot be reached; is it running, and are host, port or path right?",
    Fault.READ_ONLY: "can only be read; give write permission, or name the primary server",
    Fault.FULL: "has no room left; free some, nothing was written",
    Fault.CORRUPT: "is damaged or is no database; stop every process that uses it and restore a copy",
    Fault.LOGIN: "refused the login; check user and password in the database URL",
    Fault.MISSING_DATABASE: "does not exist; create the database first",
    Fault.PERMISSION: "does not allow this to the URL's user; grant it, or run `onebeat migrate --sql` as one who may",
    Fault.TIMEOUT: "took longer over a statement than its limit",
}


def explain_fault(fault: Fault, error: Exception, where: str) -> Exception:
    """Return a typed error that names the database and the way out, or `error` itself where there is none."""
    if fault is Fault.MISSING_TABLE:
        return SchemaOutOfDate(f"onebeat's tables are missing in {where}; run `onebeat migrate`")
    if fault in _ADVICE:
        unavailable = DatabaseUnavailable(f"{where} {_ADVICE[fault]} ({database_message(error)})", reason=str(fault))
        unavailable.__cause__ = error
        return unavailable
    return error


def explain_failed_open(fault: Fault, error: Exception, where: str) -> OnebeatError:
    """Return what to raise when a database cannot be opened: an `OnebeatError` for every error."""
    final = explain_fault(fault, error, where)
    if isinstance(final, OnebeatError):
        return final
    message = f"{where} cannot be opened ({type(error).__name__}: {database_message(error)}); check the database URL"
    unavailable = DatabaseUnavailable(message, reason=str(fault))
    unavailable.__cause__ = error
    return unavailable


def database_message(error: BaseException) -> str:
    """Return the database's own message on one line, without statement and parameters."""
    innermost = [cause for cause in causes(error) if isinstance(cause, Exception)][-1]
    if isinstance(innermost, TimeoutError) and not innermost.args:
        return "no answer in time"
    message = " ".join(str(argument) for argument in innermost.args) or type(innermost).__name__
    return " ".join(message.split())[:300]
