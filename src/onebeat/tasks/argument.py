"""Argument: one parameter's annotation; stores a value as JSON and proves that it will be restored as it was given."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.model import payload
from onebeat.tasks.annotations import is_plain, never_restored
from onebeat.tasks.difference import difference


class Argument:
    """One parameter of a task. `Any` takes JSON data as it is; other annotations are checked by pydantic.

    Raises `ConfigurationError` when no value of the annotation can be stored and restored.
    """

    __slots__ = ("_adapter", "_is_plain", "_name", "_task")

    def __init__(self, task: str, name: str, hint: Any) -> None:
        self._task = task
        self._name = name
        self._is_plain = is_plain(hint)
        self._adapter = None if hint is Any else self._new_adapter(hint)

    def _new_adapter(self, hint: Any) -> TypeAdapter[Any]:
        refused = never_restored(hint)
        if refused is not None:
            raise ConfigurationError(f"task {self._task!r}: parameter {self._name!r}{refused.path}: {refused.reason}")
        try:
            return TypeAdapter(hint)
        except (PydanticUserError, NameError) as error:
            if getattr(error, "code", None) == "typed-dict-version":
                advice = "import TypedDict from typing_extensions; pydantic needs it before Python 3.12"
            elif is_unresolved(error):
                advice = "define every name in it before the scheduler starts"
            else:
                advice = "pass a key and load the object inside the task"
            raise ConfigurationError(
                f"task {self._task!r}: parameter {self._name!r} is annotated {hint!r}, which cannot be stored as JSON; "
                f"{advice}"
            ) from error

    def store(self, value: Any) -> Any:
        """Return the JSON data of a value; raises `InvalidArguments` when it would not arrive as it was given."""
        adapter = self._adapter
        if adapter is None:
            return value
        try:
            checked = adapter.validator.validate_python(value)
            return checked if self._is_plain else self._proven(adapter, checked)
        except ValidationError as error:
            raise InvalidArguments(f"{self._place()}: {problem(error)}") from None
        except InvalidArguments:
            raise
        except Exception as error:  # a validator or serializer of the user's own may raise anything
            raise InvalidArguments(
                f"{self._place()} cannot be stored as JSON: {type(error).__name__}: {error}"
            ) from error

    def _proven(self, adapter: TypeAdapter[Any], checked: Any) -> Any:
        """Return the JSON data of a validated value after restoring it once."""
        stored = _dumped(adapter, checked)
        try:
            restored = _restored(adapter, stored)
        except ValidationError as error:
            raise InvalidArguments(f"{self._place()} cannot be restored: {problem(error)}") from None
        found = difference(checked, restored)
        if found is not None:
            self._refuse(found.path, found.reason)
        again = _dumped(adapter, restored)
        if again != stored and _unordered(again) != _unordered(stored):
            self._refuse("", "its stored form changes each time it is restored")
        return stored

    def _refuse(self, path: str, reason: str) -> NoReturn:
        raise InvalidArguments(f"{self._place()}{path} would not arrive as it was given: {reason}")

    def _place(self) -> str:
        return f"{self._task}: argument {self._name!r}"

    def restore(self, stored: Any) -> Any:
        """Return the value of stored JSON data; raises `InvalidArguments` when it no longer fits the annotation."""
        adapter = self._adapter
        if adapter is None:
            return stored
        try:
            return adapter.validator.validate_python(stored) if self._is_plain else _restored(adapter, stored)
        except ValidationError as error:
            raise InvalidArguments(f"{self._task}: stored argument {self._name!r}: {problem(error)}") from None


def is_unresolved(error: BaseException | None) -> bool:
    """Return whether an annotation failed because it names something that is not defined yet."""
    return isinstance(error, NameError) or getattr(error, "code", None) == "class-not-fully-defined"


def _dumped(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return a value as the JSON data that the database will give back. Fields have their names, not their aliases."""
    return _sorted(adapter.dump_python(value, mode="json", by_alias=False, warnings=False))


def _sorted(data: Any) -> Any:
    """Return JSON data with sorted keys, as canonical JSON has them."""
    if type(data) is dict:
        return {key: _sorted(data[key]) for key in sorted(data)}
    return [_sorted(item) for item in data] if type(data) is list else data


def _restored(adapter: TypeAdapter[Any], stored: Any) -> Any:
    return adapter.validator.validate_python(stored, by_alias=False, by_name=True)


def _unordered(stored: Any) -> Any:
    """Return JSON data with its lists sorted, as sets are stored in any order."""
    if type(stored) is dict:
        return {key: _unordered(value) for key, value in stored.items()}
    if type(stored) is list:
        return sorted((_unordered(item) for item in stored), key=payload.canonical)
    return stored


def problem(error: ValidationError) -> str:
    """Describe what is wrong without the value, which may be a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = "".join(f"[{part!r}]" for part in first["loc"])
    return f"{place} {first['msg']}".strip()
