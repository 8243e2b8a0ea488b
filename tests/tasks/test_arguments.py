"""Arguments arrive as they were given, or the enqueue is refused with the argument and the path."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from enum import Enum, StrEnum
from functools import cached_property
from typing import Annotated, Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    field_serializer,
)
from typing_extensions import TypedDict

from onebeat import ConfigurationError, InvalidArguments, Scheduler
from onebeat.tasks.signature import Signature


class Colour(StrEnum):
    RED = "red"


class Size(Enum):
    SMALL = 1


class Sized(BaseModel):
    size: Size = Size.SMALL


class Base(BaseModel):
    x: int = 0


class Sub(Base):
    y: int = 0


class Excluded(BaseModel):
    shown: int
    hidden: int = Field(default=1, exclude=True)


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")
    note: str = Field(default="", validation_alias=AliasChoices("n", "memo"))
    size: int = Field(default=1, serialization_alias="bytes")


class Rounded(BaseModel):
    price: float

    @field_serializer("price")
    def round_price(self, value: float) -> float:
        return round(value, 1)


class Private(BaseModel):
    x: int = 0
    _seen: int = PrivateAttr(default=0)


class Login(BaseModel):
    name: str
    password: SecretStr | None = None


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


class Area(BaseModel):
    side: int

    @cached_property
    def size(self) -> int:
        return self.side**2


@dataclasses.dataclass
class Counted:
    x: int
    calls: int = dataclasses.field(default=0, init=False)
    note: str = dataclasses.field(default="", compare=False)


def signature_of(hint: Any) -> Signature:
    def task(value: Any) -> None: ...

    task.__annotations__ = {"value": hint, "return": None}
    return Signature(task, "task")


def arrived(hint: Any, value: Any) -> Any:
    """Return what the task receives when it is enqueued with this value."""
    signature = signature_of(hint)
    (received,) = signature.unpack(signature.pack((), {"value": value}))[1].values()
    return received


def changed(value: Any, **attributes: Any) -> Any:
    for name, one in attributes.items():
        setattr(value, name, one)
    return value


def plus_one(value: int) -> int:
    return value + 1


@pytest.mark.parametrize(
    ("hint", "value", "place"),
    [
        (SecretStr | int, SecretStr("abc"), "'value' "),
        (Login, Login(name="ada", password=SecretStr("abc")), "'value'.password "),
        (Excluded, Excluded(shown=1, hidden=7), "'value'.hidden "),
        (Base, Sub(x=1, y=5), "'value' "),
        (dict[str, list[Base]], {"a": [Base(), Sub()]}, "'value'['a'][1] "),
        (Rounded, Rounded(price=1.25), "'value'.price "),
        (Annotated[int, AfterValidator(plus_one)], 1, "'value' "),
        (Counted, changed(Counted(1), calls=3), "'value'.calls "),
        (Counted | dict[str, int], changed(Counted(1), calls=3), "'value'"),
        (Private, changed(Private(), _seen=3), "'value'._seen "),
        (date | datetime, datetime(2026, 1, 1), "'value' "),
        (Any, (1, 2), ""),
        (Any, {"a": Colour.RED}, ""),
        (dict[str, Any], {"a": datetime(2026, 1, 1)}, ""),
        (dict[int | str, int], {1: 1, "1": 2}, "'value'"),
        (typing.Sequence[int], (1, 2), "'value' "),
        (OrderedDict[str, int], OrderedDict(b=1, a=2), "'value' "),
        (bytes, b"\xff", "'value' "),
        (datetime, datetime(2026, 10, 25, 2, 30, fold=1), "'value' "),
        (Annotated[str, PlainSerializer(str.lower)], "Ada", "'value' "),
    ],
)
def test_a_value_that_would_arrive_changed_is_refused_by_argument_and_path(hint: Any, value: Any, place: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        signature_of(hint).pack((), {"value": value})
    assert place in str(caught.value), str(caught.value)
    assert "abc" not in str(caught.value), "a message shows no secret"


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Aliased, Aliased.model_validate({"userId": 7, "n": "x", "size": 3})),
        (Excluded, Excluded(shown=1)),
        (Sub, Sub(x=1, y=5)),
        (Login, Login(name="ada")),
        (Extra, Extra(a=1)),  # type: ignore[call-arg]  # allowed by the model
        (Counted, Counted(1, note="n")),
        (date | datetime, date(2026, 1, 1)),
        (date | datetime, datetime(2026, 1, 1, 12)),
        (set[str], {"a", "b", "c", "d"}),
        (frozenset[date], frozenset({date(2026, 1, 1)})),
        (dict[int, str], {1: "a"}),
        (tuple[int, str], (1, "a")),
        (dict[str, Any], {"a": [1, None, 2.0, {"b": True}]}),
        (Annotated[SecretStr, PlainSerializer(lambda one: one.get_secret_value())], SecretStr("shown")),
        (Size, Size.SMALL),
        (list[Size], [Size.SMALL]),
        (Sized, Sized()),
        (ZoneInfo, ZoneInfo("Europe/Berlin")),
    ],
)
def test_a_value_that_can_be_restored_arrives_equal(hint: Any, value: Any) -> None:
    received = arrived(hint, value)
    assert received == value
    assert type(received) is type(value)


def test_an_instant_arrives_equal_by_utc_in_the_hour_that_clocks_show_twice() -> None:
    for fold in (0, 1):
        given = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
        assert arrived(datetime, given).astimezone(UTC) == given.astimezone(UTC)


def test_values_of_a_model_with_a_used_cached_property_arrive() -> None:
    area = Area(side=3)
    assert area.size == 9
    assert arrived(Area, area).side == 3


def test_an_error_of_a_validator_names_the_argument() -> None:
    def refuse(value: object) -> object:
        raise LookupError("no such user")

    with pytest.raises(InvalidArguments, match="'value' cannot be stored as JSON: LookupError"):
        signature_of(Annotated[int, AfterValidator(refuse)]).pack((1,), {})


class Needy(BaseModel):
    password: SecretStr


class NeverStored(BaseModel):
    hidden: int = Field(exclude=True)


class Keyed(TypedDict):
    names: dict[tuple[int, int], str]


if typing.TYPE_CHECKING:
    OldDict = dict[str, int]
else:
    OldDict = typing.TypedDict("OldDict", {"x": int})  # noqa: UP013 - the class that pydantic refuses before 3.12


@pytest.mark.parametrize(
    ("hint", "advice"),
    [
        (SecretStr, "pass a reference"),
        (SecretBytes | None, "pass a reference"),
        (list[SecretStr], "pass a reference"),
        (Secret[int], "pass a reference"),
        (Needy, r"'value'\.password: .*pass a reference"),
        (list[Needy], "pass a reference"),
        (dict[tuple[int, int], int], "list of pairs"),
        (Keyed, r"'value'\.names: .*list of pairs"),
        (NeverStored, "excluded"),
        (Callable[[], int], "its name"),
        (Iterator[int], "list"),
        (object(), "cannot be stored|not JSON|cannot be read"),
    ],
)
def test_a_type_that_never_arrives_is_refused_at_the_declaration(hint: Any, advice: str) -> None:
    async def task(value: Any) -> None: ...

    task.__annotations__ = {"value": hint}
    with pytest.raises(ConfigurationError, match=advice) as caught:
        Scheduler("sqlite:///never-opened.db").task(name="task")(task)
    assert "'task'" in str(caught.value)


def test_a_typed_dict_that_pydantic_cannot_read_is_refused_with_what_to_import() -> None:
    if sys.version_info >= (3, 12):
        assert arrived(OldDict, {"x": 1}) == {"x": 1}
        return
    with pytest.raises(ConfigurationError, match="typing_extensions"):
        signature_of(OldDict).check()


def test_an_annotation_that_the_module_defines_further_down_is_no_error_at_the_declaration() -> None:
    scheduler = Scheduler("sqlite:///never-opened.db")

    async def task(value: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - defined below

    declared = scheduler.task(name="task")(task)
    globals()["Later"] = Base
    try:
        assert declared.signature.pack((Base(x=2),), {}) == '{"a":[],"k":{"value":{"x":2}}}'
    finally:
        del globals()["Later"]


def test_simple_values_are_stored_without_a_second_look() -> None:
    identity = uuid4()
    assert arrived(list[int | None], ["7", None]) == [7, None]
    assert arrived(type(identity), identity) == identity
    assert arrived(timedelta, timedelta(days=1)) == timedelta(days=1)
