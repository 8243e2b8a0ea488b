"""Over 60 types and 10,000 random values: the value that arrives equals the value given, or the enqueue is refused."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import pathlib
import random
import re
import string
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from pydantic import BaseModel, Field, PrivateAttr, RootModel, SecretStr
from typing_extensions import TypedDict

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.tasks.signature import Signature

EACH = 170  # values for each of over 60 types: 10,000 in total
T = TypeVar("T")
Make = Callable[[random.Random], Any]


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    A = "a"
    B = "b"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Options(TypedDict):
    name: str
    size: NotRequired[int]


@dataclasses.dataclass
class Item:
    name: str
    count: int = 0
    seen: int = dataclasses.field(default=0, init=False)
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    when: datetime
    parts: tuple[int, ...] = ()


@pydantic.dataclasses.dataclass
class Checked:
    value: int
    label: str = Field(default="", alias="Label")


class User(BaseModel):
    name: str
    born: date | None = None
    tags: list[str] = []


class Admin(User):
    level: int = 0


class Private(BaseModel):
    x: int
    _y: int = PrivateAttr(default=0)


class Hidden(BaseModel):
    x: int
    y: int = Field(default=0, exclude=True)


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")
    note: str = Field(default="", validation_alias="memo")


class Login(BaseModel):
    name: str
    password: SecretStr | None = None


class Open(BaseModel, extra="allow"):
    x: int = 0


class Rounded(BaseModel):
    price: float

    @pydantic.field_serializer("price")
    def shorten(self, price: float) -> float:
        return round(price, 1)


class Box(BaseModel, Generic[T]):
    item: T


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Names(RootModel[list[str]]):
    pass


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: float = 1.0


class Area(BaseModel):
    side: int

    @pydantic.computed_field  # type: ignore[prop-decorator]  # pydantic's documented order
    @property
    def size(self) -> int:
        return self.side**2


def number(rng: random.Random) -> int:
    return rng.choice((0, 1, -1, rng.randint(-(10**30), 10**30), rng.randint(-9, 9)))


def real(rng: random.Random) -> float:
    return rng.choice((0.0, -0.0, 1.0, rng.random(), rng.uniform(-1e300, 1e300), float("nan"), float("inf"), 5e-324))


def text(rng: random.Random) -> str:
    alphabet = string.ascii_letters + "0123456789 .-:äß日\n\x00\"'"
    return rng.choice(("", "7", "true", "2026-01-01", "".join(rng.choices(alphabet, k=rng.randint(0, 12)))))


def flag(rng: random.Random) -> bool:
    return rng.random() < 0.5


def day(rng: random.Random) -> date:
    return date.fromordinal(rng.randint(1, 3_652_059))


def moment(rng: random.Random) -> datetime:
    zones = (None, UTC, timezone(timedelta(hours=5, minutes=45)), ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo"))
    plain = datetime.combine(day(rng), clock(rng), tzinfo=rng.choice(zones))
    around_change = datetime(2026, 10, 25, 2, rng.randint(0, 59), tzinfo=rng.choice(zones), fold=rng.choice((0, 1)))
    midnight = datetime(2026, 1, rng.randint(1, 28))
    return rng.choice((plain, around_change, midnight))


def clock(rng: random.Random) -> time:
    return time(rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59), rng.choice((0, rng.randint(0, 999_999))))


def span(rng: random.Random) -> timedelta:
    return timedelta(days=rng.randint(-9_999, 9_999), microseconds=rng.randint(-(10**12), 10**12))


def exact(rng: random.Random) -> Decimal:
    return rng.choice(
        (Decimal("1.00"), Decimal("-0"), Decimal(number(rng)).scaleb(rng.randint(-20, 20)), Decimal("1E+9"))
    )


def octets(rng: random.Random) -> bytes:
    return rng.choice((rng.randbytes(rng.randint(0, 8)), text(rng).encode()))


def many(make: Make, into: Callable[[Any], Any] = list) -> Make:
    return lambda rng: into([make(rng) for _ in range(rng.randint(0, 4))])


def table(key: Make, value: Make, into: Callable[[Any], Any] = dict) -> Make:
    return lambda rng: into({key(rng): value(rng) for _ in range(rng.randint(0, 4))})


def one_of(*makes: Make) -> Make:
    return lambda rng: rng.choice(makes)(rng)


def none(_: random.Random) -> None:
    return None


def data(rng: random.Random, depth: int = 3) -> Any:
    deeper = [lambda r: data(r, depth - 1)] if depth else [none]
    return one_of(none, number, text, flag, real, many(deeper[0]), table(text, deeper[0]))(rng)


def item(rng: random.Random) -> Item:
    made = Item(text(rng), number(rng), text(rng))
    made.seen = rng.choice((0, 0, 1))
    return made


def user(rng: random.Random) -> User:
    return User(name=text(rng), born=rng.choice((None, day(rng))), tags=many(text)(rng))


def admin(rng: random.Random) -> Admin:
    return Admin(name=text(rng), level=number(rng))


def private(rng: random.Random) -> Private:
    made = Private(x=number(rng))
    made._y = rng.choice((0, 1))
    return made


def login(rng: random.Random) -> Login:
    return Login(name=text(rng), password=rng.choice((None, SecretStr(text(rng)))))


def tree(rng: random.Random, depth: int = 3) -> Tree:
    return Tree(value=number(rng), children=[tree(rng, depth - 1) for _ in range(rng.randint(0, depth))])


def cat_or_dog(rng: random.Random) -> Any:
    return rng.choice((Cat(lives=number(rng)), Dog(lives=rng.random())))


CASES: list[tuple[Any, Make]] = [
    (int, one_of(number, flag, lambda r: Level.LOW)),
    (float, one_of(real, number)),
    (str, one_of(text, lambda r: Word.A)),
    (bool, flag),
    (bytes, octets),
    (None, none),
    (Any, one_of(data, moment, lambda r: (1, 2), lambda r: Word.B)),
    (Decimal, exact),
    (Fraction, lambda r: Fraction(r.randint(-99, 99), r.randint(1, 99))),
    (complex, lambda r: complex(r.random(), r.random())),
    (date, day),
    (datetime, moment),
    (time, clock),
    (timedelta, span),
    (UUID, lambda r: UUID(int=r.getrandbits(128))),
    (pathlib.Path, lambda r: pathlib.Path(text(r).replace("\x00", "") or ".")),
    (ipaddress.IPv4Address, lambda r: ipaddress.IPv4Address(r.getrandbits(32))),
    (ipaddress.IPv6Network, lambda r: ipaddress.IPv6Network(r.getrandbits(128))),
    (typing.Pattern[str], lambda r: re.compile("a+", r.choice((0, re.IGNORECASE)))),
    (ZoneInfo, lambda r: ZoneInfo(r.choice(("UTC", "Asia/Tokyo")))),
    (pydantic.HttpUrl, lambda r: pydantic.HttpUrl(f"https://example.com/{r.randint(0, 99)}")),
    (pydantic.PostgresDsn, lambda r: pydantic.PostgresDsn("postgresql://a:b@localhost/c")),
    (pydantic.ByteSize, lambda r: pydantic.ByteSize(r.randint(0, 10**9))),
    (Colour, lambda r: r.choice(list(Colour))),
    (Level, lambda r: r.choice(list(Level))),
    (Word, lambda r: r.choice(list(Word))),
    (Rights, lambda r: r.choice((Rights.READ, Rights.READ | Rights.WRITE))),
    (Literal["a", 1, True, None], lambda r: r.choice(("a", 1, True, None))),
    (int | str, one_of(number, text)),
    (int | float | bool | None, one_of(number, real, flag, none)),
    (str | Decimal, one_of(text, exact)),
    (date | datetime, one_of(day, moment)),
    (str | datetime | UUID, one_of(text, moment, lambda r: UUID(int=r.getrandbits(128)))),
    (Colour | str, one_of(lambda r: Colour.RED, text)),
    (bytes | str, one_of(octets, text)),
    (list[int] | list[str], one_of(many(number), many(text))),
    (list, many(data)),
    (list[float], many(real)),
    (list[datetime], many(moment)),
    (dict, table(one_of(text, number), data)),
    (dict[str, Any], table(text, one_of(data, moment))),
    (dict[int, list[date]], table(number, many(day))),
    (dict[int | str, int], table(one_of(number, text), number)),
    (dict[float, int], table(real, number)),
    (dict[UUID, date], table(lambda r: UUID(int=r.getrandbits(128)), day)),
    (dict[Colour, int], table(lambda r: r.choice(list(Colour)), number)),
    (tuple[int, str], lambda r: (number(r), text(r))),
    (tuple[float, ...], many(real, tuple)),
    (set[str], many(text, set)),
    (set[int | str], many(one_of(number, text), set)),
    (frozenset[date], many(day, frozenset)),
    (deque[int], many(number, lambda items: deque(items, maxlen=9 if len(items) == 4 else None))),
    (Sequence[int], one_of(many(number), many(number, tuple))),
    (Mapping[str, int], table(text, number)),
    (OrderedDict[str, int], table(text, number, OrderedDict)),
    (defaultdict[str, int], table(text, number, lambda items: defaultdict(int, items))),
    (Counter[str], many(text, Counter)),
    (Annotated[int, Field(ge=-9)], number),
    (Annotated[str, pydantic.StringConstraints(to_lower=True)], text),
    (Point, lambda r: Point(number(r), real(r))),
    (Options, lambda r: r.choice(({"name": text(r)}, {"name": text(r), "size": number(r)}))),
    (Item, item),
    (Frozen, lambda r: Frozen(moment(r), many(number, tuple)(r))),
    (Checked, lambda r: Checked(value=number(r), Label=text(r))),
    (User, one_of(user, admin)),
    (User | None, one_of(user, none)),
    (list[User], many(one_of(user, user, admin))),
    (Private, private),
    (Hidden, lambda r: Hidden(x=number(r), y=r.choice((0, 1)))),
    (Aliased, lambda r: Aliased.model_validate({"userId": number(r), "memo": text(r)})),
    (Login, login),
    (Open, lambda r: Open.model_validate({"x": number(r), "more": data(r), "when": r.choice((1, moment(r)))})),
    (Rounded, lambda r: Rounded(price=r.choice((1.5, r.random())))),
    (Box[datetime], lambda r: Box[datetime](item=moment(r))),
    (Tree, tree),
    (Names, lambda r: Names(many(text)(r))),
    (Annotated[Cat | Dog, Field(discriminator="kind")], cat_or_dog),
    (Cat | Dog, cat_or_dog),
    (Area, lambda r: Area(side=number(r))),
]
CHANGED: list[tuple[Any, Make]] = [
    (Literal[Colour.RED], lambda r: Colour.RED),  # pydantic reads a literal of an enum from the member only
    (pydantic.Json[list[int]], lambda r: "[1, 2]"),
    (Annotated[str, pydantic.AfterValidator(lambda one: one.strip() + "!")], text),
    (Annotated[float, pydantic.PlainSerializer(lambda one: one + 1)], lambda r: r.random()),
]
NEVER = (SecretStr, pydantic.Secret[int], dict[tuple[int, int], int], Callable[[], int], typing.Iterator[int])


def content(value: Any) -> Any:
    """Return everything that pickle would keep of a value: an answer to "equal?" that onebeat's own does not share."""
    kind = type(value)
    if kind in (type(None), bool, int, str, bytes, float, complex, Decimal) or isinstance(value, enum.Enum):
        return kind, repr(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        offset = value.utcoffset()
        assert offset is not None
        return kind, (value.replace(tzinfo=None) - datetime(1970, 1, 1)) - offset
    if kind in (dict, set, frozenset, defaultdict, Counter):
        assert kind is not defaultdict or value.default_factory is int
        pairs = value.items() if isinstance(value, dict) else ((one, None) for one in value)
        return kind, sorted((repr(content(key)), repr(content(one))) for key, one in pairs)
    if isinstance(value, re.Pattern):
        return value.pattern, value.flags
    if isinstance(value, type) or callable(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return kind, [content(one) for one in value]
    if isinstance(value, date | time | timedelta | pathlib.PurePath | ZoneInfo | UUID):
        return kind, repr(value), getattr(value, "fold", 0)
    parts = list(value.__reduce_ex__(4))
    parts[3:] = [list(part) if part is not None else None for part in parts[3:5]]
    if isinstance(value, BaseModel):
        state = dict(parts[2])
        state.pop("__pydantic_fields_set__")  # documented: which fields were set is not stored
        parts[2] = state
    if dataclasses.is_dataclass(value):
        parts = [kind, [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]]
    return [content(part) for part in parts]


def signature_of(hint: Any) -> Signature:
    def task(value: Any) -> None: ...

    task.__annotations__ = {"value": hint}
    return Signature(task, "task")


def test_there_are_sixty_types_and_ten_thousand_values() -> None:
    assert len(CASES) >= 60
    assert len(CASES) * EACH >= 10_000


@pytest.mark.parametrize(("hint", "make"), CASES)
def test_the_value_that_arrives_equals_the_value_given_or_is_refused(hint: Any, make: Make) -> None:
    signature, rng = signature_of(hint), random.Random(str(hint).partition(" at ")[0])
    validate = pydantic.TypeAdapter(hint).validate_python
    arrived = 0
    for _ in range(EACH):
        given = make(rng)
        try:
            packed = signature.pack((given,), {})
        except InvalidArguments:
            continue
        received = signature.unpack(packed)[1]["value"]
        assert content(received) == content(validate(given)), (given, received, packed)
        assert signature.pack((received,), {}) == packed or "set" in str(hint), (given, received)
        arrived += 1
    assert arrived, f"no value of {hint} arrived"


@pytest.mark.parametrize(("hint", "make"), CHANGED)
def test_a_type_that_changes_each_value_is_refused_at_each_enqueue(hint: Any, make: Make) -> None:
    signature, rng = signature_of(hint), random.Random(1)
    for _ in range(EACH):
        with pytest.raises(InvalidArguments, match="'value'"):
            signature.pack((make(rng),), {})


@pytest.mark.parametrize("hint", NEVER)
def test_a_type_of_which_no_value_arrives_is_refused_at_the_declaration(hint: Any) -> None:
    with pytest.raises(ConfigurationError):
        signature_of(hint).check()
