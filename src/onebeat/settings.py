"""Every setting: default, unit, check, environment name."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onebeat.errors import ConfigurationError
from onebeat.model.checks import check_name


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


Seconds = Annotated[float, BeforeValidator(_seconds)]


class Retention(BaseSettings):
    """How long ended things are kept, in days; None keeps them for ever."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix="ONEBEAT_RETENTION_")

    succeeded: float | None = Field(7, gt=0)
    failed: float | None = Field(30, gt=0)
    fires: float | None = Field(30, gt=0)
    workers: float | None = Field(7, gt=0)


class Settings(BaseSettings):
    """What a scheduler can be told. Keyword before `settings` before environment `ONEBEAT_…` before default.

    Durations are seconds, as numbers or timedeltas.

    >>> Settings(slots=20).slots
    20
    """

    model_config = SettingsConfigDict(env_prefix="ONEBEAT_", extra="forbid", frozen=True)

    database_url: str | None = None  # used when the scheduler is given no database
    app: str | None = None  # one name for all processes of this application on these tables
    slots: int = Field(100, ge=1, le=10_000)  # jobs at once in this process
    queues: tuple[str, ...] | dict[str, int] | None = None  # None: all; a mapping gives queues slots of their own
    timezone: str = "UTC"
    lease: Seconds = Field(60, ge=1, le=3600)
    heartbeat: Seconds = Field(15, ge=0.1)
    drain: Seconds = Field(25, ge=0)
    default_timeout: Seconds = Field(3600, gt=0)
    poll: Seconds = Field(1, ge=0.01, le=60)
    start_timeout: Seconds = Field(30, ge=0)
    retention: Retention = Field(default_factory=lambda: Retention.model_validate({}))
    table_prefix: str = "onebeat_"
    schema_: str | None = Field(None, alias="schema")
    migrate: bool = True
    role: Literal["all", "client"] = "all"
    pool_size: int = Field(3, ge=1, le=50)
    sqlite_synchronous: Literal["FULL", "NORMAL", "EXTRA"] = "FULL"
    sqlite_allow_network: bool = False
    hints: bool = True

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone {value[:64]!r}; take a name such as 'UTC' or 'Europe/Berlin'") from None
        return value

    @field_validator("queues")
    @classmethod
    def _queues(cls, value: tuple[str, ...] | dict[str, int] | None) -> tuple[str, ...] | dict[str, int] | None:
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


def resolve(given: Settings | None, app: str | None, overrides: dict[str, Any]) -> Settings:
    """The settings in force: keywords before `settings` before the environment before defaults.

    Raises `ConfigurationError`, naming each setting that cannot work, never its value.
    """
    chosen = dict(overrides)
    if app is not None:
        chosen["app"] = app
    try:
        if given is None:
            return Settings(**chosen)
        told = {name: getattr(given, name) for name in given.model_fields_set}
        if "schema_" in told:
            told["schema"] = told.pop("schema_")
        return Settings(**{**told, **chosen})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        )
        known = ", ".join(sorted(Settings.model_fields)).replace("schema_", "schema")
        raise ConfigurationError(f"settings cannot be used: {problems}. Settings are {known}") from None
