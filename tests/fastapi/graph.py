"""One graph of dependencies of every kind, run once in a route and once in a job; as a program it prints both.

Left out is what differs between versions of FastAPI. 0.115 cannot read annotations of a class that are text, tells a
scope twice, and makes a dependency anew where other security scopes are asked for, also when it takes none.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import httpx
from fastapi.security import SecurityScopes

import fastapi
from fastapi import Depends, FastAPI, HTTPException, Security
from onebeat import JobFailed, Retry, Scheduler, install

log: list[str] = []
HAS_SCOPES = "scope" in inspect.signature(Depends).parameters
FUNCTION: Any = {"scope": "function"} if HAS_SCOPES else {}


def note(word: str) -> str:
    log.append(word)
    return word


async def base() -> str:
    return note("base")


def in_thread(base: Annotated[str, Depends(base)]) -> str:
    return note("thread") + "+" + base


class Settings:
    def __init__(self, base: Annotated[str, Depends(base)], size: int = 3) -> None:
        self.text = note("class") + "+" + base * size


class Callable_:
    async def __call__(self, base: Annotated[str, Depends(base)]) -> str:
        return note("object") + "+" + base


class Yielding:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> Iterator[str]:
        yield note(self.name)
        note(f"close {self.name}")


class Session:
    def __init__(self) -> None:
        self.is_open = True


async def session(text: Annotated[str, Depends(in_thread)]) -> AsyncIterator[Session]:
    note("open session")
    opened = Session()
    try:
        yield opened
    except Exception as error:
        note(f"session sees {type(error).__name__}")
        raise
    finally:
        await asyncio.sleep(0)
        opened.is_open = False
        note("close session")


def connection(session: Session = Depends(session)) -> Iterator[bool]:
    note("open connection")
    try:
        yield session.is_open
    finally:
        note(f"close connection, session open: {session.is_open}")


async def transaction(session: Annotated[Session, Depends(session)]) -> AsyncIterator[str]:
    yield note("begin")
    note(f"end transaction, session open: {session.is_open}")


async def user(scopes: SecurityScopes) -> list[str]:
    note("user")
    return list(dict.fromkeys(scopes.scopes))


async def admin(user: Annotated[list[str], Security(user, scopes=["admin"])]) -> list[str]:
    return user


async def counted() -> str:
    return note("counted")


def twice(
    a: Annotated[str, Depends(counted, use_cache=False)],
    again: Annotated[str, Depends(counted, use_cache=False)],
    b: str = Depends(counted),
) -> str:
    return a + again + b


def original() -> str:
    return note("original")


def replacement(base: Annotated[str, Depends(base)]) -> str:
    return note("replacement") + base


def of_the_original(value: Annotated[str, Depends(original)]) -> str:
    return f"[{value}]"


def repeat(text: str, times: int) -> str:
    return text * times


def swallow() -> Iterator[None]:
    with contextlib.suppress(LookupError):
        yield


async def everything(
    base: Annotated[str, Depends(base)],
    thread: Annotated[str, Depends(in_thread)],
    settings: Annotated[Settings, Depends()],
    called: Annotated[str, Depends(Callable_())],
    yielded: Annotated[str, Depends(Yielding("yielding object"))],
    session: Annotated[Session, Depends(session)],
    connected: Annotated[bool, Depends(connection)],
    begun: Annotated[str, Depends(transaction, **FUNCTION)],
    scopes: Annotated[list[str], Security(user, scopes=["read"])],
    admins: Annotated[list[str], Security(admin, scopes=["write", "read"])],
    twice: Annotated[str, Depends(twice)],
    overridden: Annotated[str, Depends(of_the_original)],
    partial: Annotated[str, Depends(functools.partial(repeat, "ab", times=2))],
    default: str = Depends(counted),
) -> dict[str, Any]:
    note("function")
    return {
        "values": [base, thread, settings.text, called, yielded, connected, begun, twice, overridden, partial, default],
        "scopes": [scopes, admins],
        "open": session.is_open,
    }


async def failing(
    session: Annotated[Session, Depends(session)], connected: Annotated[bool, Depends(connection)]
) -> None:
    raise LookupError("no such customer")


async def refused(session: Annotated[Session, Depends(session)]) -> None:
    raise HTTPException(418, "not now")


async def swallowed(nothing: Annotated[None, Depends(swallow)]) -> str:
    raise LookupError("the dependency keeps this to itself")


def threaded(session: Annotated[Session, Depends(session)], begun: Annotated[str, Depends(transaction)]) -> bool:
    note("function in a thread")
    return session.is_open


FUNCTIONS: tuple[Callable[..., Any], ...] = (everything, failing, refused, swallowed, threaded)


async def both(database: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what each function answered and what was logged meanwhile, from routes and from jobs."""
    scheduler = Scheduler(database, poll=0.1)
    app = FastAPI()
    install(app, scheduler, watchdog=False)
    app.dependency_overrides[original] = replacement
    for function in FUNCTIONS:
        app.get(f"/{function.__name__}", response_model=None)(function)
    tasks = [scheduler.task(retry=Retry(attempts=1))(function) for function in FUNCTIONS]
    of_routes: dict[str, Any] = {}
    of_jobs: dict[str, Any] = {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with scheduler, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for function, task in zip(FUNCTIONS, tasks, strict=True):
            log.clear()
            answer = await client.get(f"/{function.__name__}")
            of_routes[task.name] = (answer.json() if answer.status_code == 200 else "failed", list(log))
            log.clear()
            job = await task.enqueue()
            try:
                value = await job.result(10)
            except JobFailed:
                value = "failed"
            of_jobs[task.name] = (value, list(log))
    return of_routes, of_jobs


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        routes, jobs = asyncio.run(both(f"sqlite:///{folder}/app.db"))
    print(json.dumps({"fastapi": fastapi.__version__, "scopes": HAS_SCOPES, "routes": routes, "jobs": jobs}))
    sys.exit(0 if routes == jobs else 1)


if __name__ == "__main__":
    main()
