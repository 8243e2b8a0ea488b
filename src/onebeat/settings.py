"""Settings: every setting with its default, unit, check and environment name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any, Literal, TypedDict, Unpack
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from onebeat.errors import ConfigurationError
from onebeat.model.checks import check_name, check_text

DAY = 86_400  # seconds
CENTURY = 36_525 * DAY


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _kept(value: Any) -> Any:
    return None if value in ("none", "None", "null") else _seconds(value)


def _names(value: Any) -> Any:
    """Split a text of names at its commas, as an environment variable has them; an empty text is None."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip()) if value.strip() else None


Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]
Kept = Annotated[Annotated[float, Field(gt=0, le=CENTURY, allow_inf_nan=False)] | None, BeforeValidator(_kept)]


Duration = float | timedelta


class RetentionOptions(TypedDict, total=False):
    """The keywords of `Retention`."""

    succeeded: Duration | None
    failed: Duration | None
    fires: Duration | None
    workers: Duration | None


class Overrides(TypedDict, total=False):
    """The keywords of `Scheduler`, apart from its database and `app`."""

    database_url: str | None
    slots: int
    queues: Sequence[str] | Mapping[str, int] | str | None
    timezone: str
    lease: Duration
    heartbeat: Duration
    drain: Duration
    default_timeout: Duration
    poll: Duration
    start_timeout: Duration
    retention: Retention | RetentionOptions | None
    table_prefix: str
    schema: str | None
    migrate: bool
    role: Literal["all", "client"]
    pool_size: int
    transaction_pool_size: int
    sqlite_synchronous: Literal["FULL", "NORMAL", "EXTRA"]
    sqlite_allow_network: bool
    hints: bool


class Options(Overrides, total=False):
    """The keywords of `Settings`."""

    app: str | None


class Retention(BaseSettings):
    """How long records are kept: seconds or timedeltas; None (in the environment `none`) keeps them for ever.

    `succeeded` counts for cancelled jobs too. `fires` are the decisions on fires, of which each schedule keeps at most
    50,000. `workers` are those that stopped or died.

    >>> from datetime import timedelta
    >>> Retention(succeeded=timedelta(days=1), failed=None).succeeded
    86400.0
    """

    model_config = SettingsConfigDict(extra="forbid", env_prefix="ONEBEAT_RETENTION_", frozen=True)

    succeeded: Kept = 7 * DAY
    failed: Kept = 30 * DAY
    fires: Kept = 30 * DAY
    workers: Kept = 7 * DAY

    def __init__(self, **values: Unpack[RetentionOptions]) -> None:
        with _explained("retention"):
            super().__init__(**values)


class Settings(BaseSettings):
    """The settings of a scheduler. A keyword comes before `settings`, the environment `ONEBEAT_…` and the default.

    Durations are seconds or timedeltas. Raises `ConfigurationError`, which names each setting that cannot be used.

    >>> Settings(slots=20).slots
    20
    >>> Settings(database_url="postgresql://shop:secret@db/shop", slots=20)  # the URL is not shown
    Settings(app=None, slots=20, ...)
    """

    model_config = SettingsConfigDict(env_prefix="ONEBEAT_", extra="forbid", frozen=True, hide_input_in_errors=True)

    database_url: str | None = Field(None, repr=False)  # used when the scheduler is given no database
    app: str | None = None  # one name for all processes of this application
    slots: int = Field(100, ge=1, le=10_000)  # jobs at once in this process
    # None serves all; a mapping gives queues slots of their own; the environment has `mail,reports` or JSON
    queues: Annotated[tuple[str, ...] | dict[str, int] | None, BeforeValidator(_names)] = None
    timezone: str = "UTC"
    lease: Seconds = Field(60, ge=1, le=3600)
    heartbeat: Seconds = Field(15, ge=0.1)
    drain: Seconds = Field(20, ge=0)
    default_timeout: Seconds = Field(3600, gt=0)
    poll: Seconds = Field(1, ge=0.01, le=60)
    start_timeout: Seconds = Field(30, ge=0)
    retention: Retention = Field(default_factory=lambda: Retention.model_validate({}))
    table_prefix: str = "onebeat_"
    schema_: str | None = Field(None, alias="schema")
    migrate: bool = True
    role: Literal["all", "client"] = "all"
    pool_size: int = Field(3, ge=1, le=50)
    transaction_pool_size: int = Field(5, ge=1, le=100)
    sqlite_synchronous: Literal["FULL", "NORMAL", "EXTRA"] = "FULL"
    sqlite_allow_network: bool = False
    hints: bool = True  # for wake-ups between processes, which do not exist yet: all processes poll

    def __init__(self, **values: Unpack[Options]) -> None:
        with _explained("settings"):
            super().__init__(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the keywords, then the environment."""
        return init_settings, _Environment(settings_cls)

    @field_validator("retention", mode="before")
    @classmethod
    def _keep_all(cls, value: Any) -> Any:
        return Retention(succeeded=None, failed=None, fires=None, workers=None) if value is None else value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {value[:64]!r}; give a name such as 'UTC' or 'Europe/Berlin'") from None
        return value

    @field_validator("app")
    @classmethod
    def _app(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("app is empty; leave it out or give a name")
        return None if value is None else check_text(value, "app", 200)

    @field_validator("queues")
    @classmethod
    def _queues(cls, value: tuple[str, ...] | dict[str, int] | None) -> tuple[str, ...] | dict[str, int] | None:
        if value is not None and not value:
            raise ValueError("no queue is named; None serves all of them")
        for name in value or ():
            check_name(name, "queue")
        if isinstance(value, dict) and any(width < 1 for width in value.values()):
            raise ValueError("a queue's own slots are 1 or more")
        return value

    @model_validator(mode="after")
    def _beats(self) -> Settings:
        if self.heartbeat * 3 > self.lease:
            raise ValueError(
                f"heartbeat={self.heartbeat:g} is too slow for lease={self.lease:g}; a lease holds three beats or more"
            )
        return self


def resolve(given: Settings | None, app: str | None, overrides: Overrides) -> Settings:
    """Return the settings that apply: keywords come before `given`, the environment and the defaults.

    Raises `ConfigurationError`, which names each setting that cannot be used and never its value.
    """
    chosen: dict[str, Any] = dict(overrides)
    if app is not None:
        chosen["app"] = app
    if given is None:
        return Settings(**chosen)
    if not isinstance(given, Settings):
        raise ConfigurationError(f"settings= takes onebeat.Settings(…), not {type(given).__name__}")
    explicit = {name: getattr(given, name) for name in given.model_fields_set}
    if "schema_" in explicit:
        explicit["schema"] = explicit.pop("schema_")
    return Settings(**{**explicit, **chosen})


class _Environment(EnvSettingsSource):
    """Reads `schema` from `ONEBEAT_SCHEMA`; because of the field's alias, pydantic would read it from `SCHEMA`."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        found.pop("schema", None)
        if (schema := self.env_vars.get("onebeat_schema")) is not None:
            found["schema"] = schema
        return found


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn a failed validation into a `ConfigurationError` that names the settings and never shows their values."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or what}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        )
        fields = Retention.model_fields if what == "retention" else Settings.model_fields
        known = ", ".join(sorted(fields)).replace("schema_", "schema")
        raise ConfigurationError(f"{what} cannot be used: {problems}. There are {known}") from None
    except ValueError as error:  # pydantic-settings could not parse JSON
        raise ConfigurationError(f"{what} cannot be read from the environment: {error}") from None
