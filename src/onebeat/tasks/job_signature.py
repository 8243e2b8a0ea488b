"""The signature of a job class: one argument, the instance, stored as its fields."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.model import payload
from onebeat.tasks.argument import Argument
from onebeat.tasks.signature import Signature


class JobSignature(Signature):
    """Packs an instance of a job class as its fields, and restores the instance as the `self` of `run`."""

    def __init__(self, model: type[BaseModel], run: Callable[..., Any], name: str) -> None:
        super().__init__(run, name)
        self._model = model

    @cached_property
    def _fields(self) -> Argument:
        return Argument(self._name, self._model.__name__, self._model)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hex digits that change when names, annotations or defaults of the fields change."""
        fields = [f"{name} {field!r}" for name, field in self._model.model_fields.items()]
        return hashlib.sha256("\n".join(fields).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Do what `Signature.check` does, and refuse a parameter of `run` that onebeat does not pass."""
        self._check_injected()
        others = list(self._callable.parameters)[1:]
        if others:
            raise ConfigurationError(
                f"task {self._name!r}: run() takes the parameter {others[0]!r}, which nobody passes; make it a field "
                "of the class, or annotate it with JobContext or Annotated[…, Depends(…)]"
            )
        _ = self._fields

    def pack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the fields of an instance, or those that are given by name, as canonical JSON text."""
        if args and (kwargs or len(args) > 1 or not isinstance(args[0], self._model)):
            raise InvalidArguments(f"{self._name} takes its fields by name, or one instance of {self._model.__name__}")
        stored = self._fields.store(args[0] if args else self._model(**kwargs))
        return payload.encode({"a": [], "k": stored}, what=f"the fields of {self._name}", exact=True)

    def unpack(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the instance, with the annotated types, as the first argument of `run`.

        Raises `InvalidArguments` when the stored fields no longer fit the class.
        """
        stored = payload.decode(text)
        if stored["a"]:
            raise InvalidArguments(f"{self._name}: the stored arguments have no names, and a class takes its fields")
        return (self._fields.restore(stored["k"]),), {}
