"""The dependencies of a task: the tree that its `Depends` parameters describe, read by FastAPI's own rules."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from onebeat.errors import ConfigurationError
from onebeat.tasks.context import JobContext

if sys.version_info >= (3, 13):
    from inspect import iscoroutinefunction
else:  # FastAPI asks this one there, which also knows the coroutines that older libraries mark
    from asyncio import iscoroutinefunction

Kind = Literal["async", "sync", "async generator", "generator"]


class Concurrency(Protocol):
    """How many jobs and requests may use a dependency at once: `Depends(f, max_concurrency=…)` of newer FastAPI."""

    def get_semaphore(self) -> AbstractAsyncContextManager[Any]:
        """Return the semaphore of the running event loop."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dependency:
    """One parameter that a dependency provides; `needs` are the dependencies of that dependency.

    `call` makes the value. For a generator function, `manager` wraps it as a context manager. `contexts` names the
    parameters that receive the `JobContext`, and `security_scopes` makes the value of each parameter of that kind.
    """

    name: str
    call: Callable[..., Any]
    kind: Kind
    manager: Callable[..., Any] | None
    needs: tuple[Dependency, ...]
    contexts: tuple[str, ...]
    security_scopes: tuple[tuple[str, Callable[[], Any]], ...]
    key: Hashable
    use_cache: bool
    closes_first: bool  # scope="function": before those that live as long as a request
    concurrency: Concurrency | None
    task: str
    path: str  # of parameters and functions, for messages
    scopes: tuple[str, ...]

    def replaced(self, call: Callable[..., Any]) -> Dependency:
        """Return the dependency with an override in its place; raises `ConfigurationError` as `read` does."""
        place = f"{self.path}, overridden with {_name(call)}"
        return _read(self.task, self.name, call, place, self.scopes, like=self)


def depends_of(annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    """Return the `Depends` of a parameter, in its annotation or its default; None without one. Imports nothing."""
    params = sys.modules.get("fastapi.params")
    if params is None:  # then nobody can have written one
        return None
    annotation = getattr(annotation, "__value__", annotation)  # what a `type` alias stands for
    if typing.get_origin(annotation) is Annotated:
        found = [one for one in typing.get_args(annotation)[1:] if isinstance(one, params.Depends)]
        if found:
            return found[-1]
    return default if isinstance(default, params.Depends) else None


def read(task: str, name: str, depends: Any, annotation: Any) -> Dependency:
    """Return the tree of one parameter of a task.

    Raises `ConfigurationError`, naming the task and the parameters, for a dependency that only a request can provide.
    """
    call = _called(depends, annotation)
    path = f"task {task!r}: its parameter {name!r} depends on {_name(call)}"
    return _read(task, name, call, path, _scopes((), depends), depends=depends)


def _read(
    task: str,
    name: str,
    call: Callable[..., Any],
    path: str,
    scopes: tuple[str, ...],
    *,
    depends: Any = None,
    like: Dependency | None = None,
) -> Dependency:
    """Read what `call` needs; its options come from its own `depends`, or from the dependency that it overrides."""
    from fastapi.dependencies.utils import get_typed_signature

    if not callable(call):
        raise ConfigurationError(f"{path}, which cannot be called; pass a function or a class to Depends()")
    kind = kind_of(call)
    is_generator = kind in ("generator", "async generator")
    scope = getattr(depends, "scope", None)
    needs: list[Dependency] = []
    contexts: list[str] = []
    others: list[inspect.Parameter] = []
    for parameter in get_typed_signature(call).parameters.values():
        inner = depends_of(parameter.annotation, parameter.default)
        if parameter.annotation is JobContext:
            contexts.append(parameter.name)
        elif inner is not None:
            if is_generator and scope != "function" and getattr(inner, "scope", None) == "function":
                raise ConfigurationError(
                    f"{path}, which lives as long as a request and cannot depend on {_name(inner.dependency)} with "
                    'scope="function"; give both the same scope'
                )
            below = _called(inner, parameter.annotation)
            place = f"{path}, whose parameter {parameter.name!r} depends on {_name(below)}"
            needs.append(_read(task, parameter.name, below, place, _scopes(scopes, inner), depends=inner))
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            others.append(parameter)
    names = [one.name for one in others if _is_security_scopes(path, one)]
    return Dependency(
        name=name,
        call=call,
        kind=kind,
        manager=(asynccontextmanager if kind == "async generator" else contextmanager)(call) if is_generator else None,
        needs=tuple(needs),
        contexts=tuple(contexts),
        security_scopes=tuple((one, _maker(scopes)) for one in names),
        key=like.key if like is not None else _key(path, call, scopes, depends, needs, is_generator, bool(names)),
        use_cache=like.use_cache if like is not None else bool(depends.use_cache),
        closes_first=like.closes_first if like is not None else scope == "function",
        concurrency=like.concurrency if like is not None else getattr(depends, "_concurrency", None),
        task=task,
        path=path,
        scopes=scopes,
    )


def _called(depends: Any, annotation: Any) -> Callable[..., Any]:
    """Return what a `Depends` calls; `Depends()` calls the class that the parameter is annotated with."""
    if depends.dependency is not None:
        return depends.dependency  # type: ignore[no-any-return]  # FastAPI checks what it is where it is declared
    annotation = getattr(annotation, "__value__", annotation)
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation  # type: ignore[no-any-return]  # a class, or `_read` refuses it


def _scopes(outer: tuple[str, ...], depends: Any) -> tuple[str, ...]:
    """Return the security scopes that are asked for on the way to a dependency, in order and once each."""
    return tuple(dict.fromkeys((*outer, *(getattr(depends, "scopes", None) or ()))))


def _maker(scopes: Sequence[str]) -> Callable[[], Any]:
    from fastapi.security import SecurityScopes

    return lambda: SecurityScopes(scopes=list(scopes))


def _key(
    path: str,
    call: Callable[..., Any],
    scopes: tuple[str, ...],
    depends: Any,
    needs: Iterable[Dependency],
    is_generator: bool,
    takes_scopes: bool,
) -> Hashable:
    """Return what tells this dependency from others within a run, as FastAPI tells them apart within a request."""
    from fastapi.security.base import SecurityBase

    uses_scopes = (
        bool(getattr(depends, "scopes", None))
        or takes_scopes
        or isinstance(_unwrapped(call), SecurityBase)
        or any(one.key[1] is not None for one in needs)  # type: ignore[index]  # made below
    )
    own_scope = getattr(depends, "scope", None) or ("request" if is_generator else None)
    key = (call, tuple(sorted(scopes)) if uses_scopes else None, own_scope)
    try:
        hash(key)
    except TypeError:
        raise ConfigurationError(f"{path}, which has no hash; FastAPI cannot tell it from others either") from None
    return key


# ── what only a request has ───────────────────────────────────────────────────────────────────────────────────────────
_FIELDS = (
    ("query_params", "a query parameter"),
    ("path_params", "a path parameter"),
    ("header_params", "a header"),
    ("cookie_params", "a cookie"),
    ("body_params", "the body"),
    ("request_param_name", "the Request"),
    ("websocket_param_name", "the WebSocket"),
    ("http_connection_param_name", "the HTTPConnection"),
    ("response_param_name", "the Response"),
    ("background_tasks_param_name", "BackgroundTasks"),
)


def _is_security_scopes(path: str, parameter: inspect.Parameter) -> bool:
    """Return whether a parameter asks for the `SecurityScopes`; one with a plain default keeps its default.

    Raises `ConfigurationError` for a parameter that FastAPI fills from a request.
    """
    if parameter.default is not inspect.Parameter.empty and not _is_marked(parameter):
        return False
    from fastapi.dependencies.utils import get_dependant

    def shell(**_: Any) -> None: ...

    alone = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    shell.__signature__ = inspect.Signature([alone])  # type: ignore[attr-defined]  # functions may have one
    try:
        dependant = get_dependant(path="/", call=shell)
    except Exception as error:  # FastAPI says in many ways that it knows no source for a parameter
        raise ConfigurationError(
            f"{path}, whose parameter {parameter.name!r} no dependency provides; annotate it with "
            f"Annotated[…, Depends(…)] or give it a default ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if dependant.security_scopes_param_name is not None:
        return True
    source = next((words for field, words in _FIELDS if getattr(dependant, field, None)), "something of a request")
    raise ConfigurationError(
        f"{path}, whose parameter {parameter.name!r} is {source}, and a job has no request. "
        "Pass what it needs as an argument of the task, or depend on a function that needs no request"
    )


def _is_marked(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is declared with `Query()`, `Header()`, `Body()` and the like."""
    from fastapi import params

    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(isinstance(one, params.Param | params.Body) for one in (*metadata, parameter.default))


# ── how a dependency is called ────────────────────────────────────────────────────────────────────────────────────────
def kind_of(call: Callable[..., Any]) -> Kind:
    """Return how FastAPI calls a dependency: a function, a class, a partial or an object with `__call__`.

    >>> kind_of(dict), kind_of(functools.partial(asynccontextmanager, None))
    ('sync', 'sync')
    """
    for function in _functions(call):
        if inspect.isgeneratorfunction(function):
            return "generator"
        if inspect.isasyncgenfunction(function):
            return "async generator"
    return "async" if any(iscoroutinefunction(function) for function in _functions(call)) else "sync"


def _functions(call: Callable[..., Any]) -> Iterator[Any]:
    """Yield the functions that a call leads to: itself, what it wraps, and the `__call__` of an object."""
    yield from (_impartial(call), _unwrapped(call))
    if not inspect.isclass(_unwrapped(call)):
        for one in (_impartial(call), _unwrapped(call)):
            method = getattr(one, "__call__", None)  # noqa: B004 - the function itself is looked at
            if method is not None:
                yield from (_impartial(method), _unwrapped(method))


def _impartial(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return call


def _unwrapped(call: Any) -> Any:
    return inspect.unwrap(_impartial(call))


def _name(call: Any) -> str:
    """Return the name of a dependency for messages."""
    plain = _impartial(call)
    return str(getattr(plain, "__name__", None) or type(plain).__name__)


Overrides = Callable[[], Mapping[Callable[..., Any], Callable[..., Any]]]
"""Returns the overrides of the application as they are now: dependency → what is called in its place."""
