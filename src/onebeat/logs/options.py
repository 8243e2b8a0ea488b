"""The options of `setup_logging`, which are checked before anything is changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onebeat.errors import ConfigurationError
from onebeat.logs.record import SCHEMA

_DAYS = 100_000  # before today; beyond that the calendar of Python soon begins


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for what cannot work."""
    console, stream, keep = options.get("console", "auto"), options.get("stream", "stderr"), options.get("keep_days", 7)
    if console not in ("auto", "json", "text", None):
        raise ConfigurationError(f'console={console!r} is unknown; use "auto", "json", "text" or None')
    if stream not in ("stderr", "stdout"):
        raise ConfigurationError(f'stream={stream!r} is unknown; use "stderr" or "stdout"')
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or not 0 <= keep <= _DAYS):
        raise ConfigurationError(
            f"keep_days={keep!r} cannot work; use a number of days from 0 to {_DAYS}, or None to keep all"
        )
    directory = options.get("directory")
    if directory is not None and not isinstance(directory, (str, os.PathLike)):
        raise ConfigurationError(f"directory={directory!r} is no path; give a text or a Path, or None for no files")
    name = options.get("name", "app")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ConfigurationError(f"name={name!r} cannot begin a file name; use letters, digits, '-' and '_'")
    for key, least in (("queue_records", 10), ("queue_bytes", 128 * 1024)):
        bound = options.get(key, least)
        if not isinstance(bound, int) or isinstance(bound, bool):
            raise ConfigurationError(f"{key}={bound!r} is no number; give a whole number, at least {least}")
        if bound < least:
            raise ConfigurationError(f"{key}={options[key]!r} is too small to be of use; at least {least}")
    if options.get("write_through") is not None:
        level_number(options["write_through"])
    for key, example in (("redact", "password"), ("access_exclude", "/health")):
        texts = options.get(key, ())
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable) or not all(map(_is_text, texts)):
            raise ConfigurationError(f'{key}={texts!r} is no list of texts; give a list, as {key}=["{example}"]')
    _check_fields(options.get("fields"))
    _check_constants(options.get("constants"), options.get("fields") or {})


def _check_constants(constants: object, fields: Mapping[str, str | None]) -> None:
    if constants is None:
        return
    if not isinstance(constants, Mapping):
        raise ConfigurationError(
            f'constants={constants!r} is no mapping; give values by names, as constants={{"service": "shop"}}'
        )
    taken = {fields.get(field, field) for field in SCHEMA}
    for name, value in constants.items():
        if not isinstance(name, str) or not name or name in taken:
            raise ConfigurationError(
                f"constants: {name!r} cannot be a name; give a text that is no field of the schema"
            )
        if not isinstance(value, str | int | float | bool):
            raise ConfigurationError(
                f"constants: {name!r} is a {type(value).__name__}; give a text, a number, True or False"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_fields(fields: object) -> None:
    if fields is None:
        return
    if not isinstance(fields, Mapping):
        raise ConfigurationError(
            f'fields={fields!r} is no mapping; give new names by old ones, as fields={{"ts": "@timestamp"}}'
        )
    for field in ("ts", "msg"):
        if fields.get(field, field) is None:
            raise ConfigurationError(
                f"fields: {field!r} cannot be left out; give it another name, or leave it as it is"
            )
    _check_names(fields)


def level_number(level: int | str) -> int:
    """The number of a level given by name or number.

    >>> level_number("warning"), level_number(15)
    (30, 15)
    """
    number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int):
        known = ", ".join(logging.getLevelNamesMapping())
        raise ConfigurationError(f"unknown log level {level!r}; known are {known}, or a number")
    return number


def _check_names(fields: Mapping[str, str | None]) -> None:
    """Two fields of one name would make a line that readers take differently."""
    for field, name in fields.items():
        if name is not None and (not isinstance(name, str) or not name):
            raise ConfigurationError(
                f"fields: {field!r} cannot be named {name!r}; give a text, or None to leave it out"
            )
    names: dict[str, str] = {}
    for field in (*SCHEMA, *(fields.keys() - SCHEMA)):
        name = fields.get(field, field)
        if name is not None and (other := names.setdefault(name, field)) != field:
            raise ConfigurationError(
                f"fields={dict(fields)!r} gives two fields one name: {other!r} and {field!r} would both be {name!r}"
            )
