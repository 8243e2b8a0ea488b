"""What counts as a secret: keys by their words, whatever object holds them, and what stands inside a text."""

from __future__ import annotations

import time
import traceback
from collections import UserList, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from onebeat.logs.plain import TEXT_BUDGET, plain
from onebeat.logs.redact import Redactor, suspicious, without_secrets

SECRET_KEYS = (
    "password db_password userpassword passwordHash PASSWORD pwd user_pwd jwt session_id sessionId X-Api-Key "
    "apiKey APIKey api.key set-cookie Cookie accessToken csrftoken csrfmiddlewaretoken TOKEN2 refreshTokens "
    "client-secret secretKey privateKey aws_credentials AUTHORIZATION proxy-authorization "
    "aws_secret_access_key DBPassword otp otpCode totp_secret pin user_pin pins PIN pw dbPw connection_string "
    "AZURE_CONNECTION_STRING signature X-Amz-Signature"
)
HARMLESS_KEYS = (
    "tokenizer token_type secretary cookie_policy password_changed_at token_expires_in user passport author session "
    "spin shipping mapping opinion pwned pinned hotpot signature_version signatureAlgorithm pin_count connection"
)


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_a_key_with_a_secret_word_is_secret(key: str) -> None:
    assert Redactor()(key, "abc")


@pytest.mark.parametrize("key", HARMLESS_KEYS.split())
def test_a_key_that_only_resembles_one_is_not(key: str) -> None:
    assert not Redactor()(key, "abc")


def test_a_word_of_ones_own_is_found_as_the_others_are() -> None:
    secret = Redactor(("iban", "Tax-Number"))
    assert [secret(key, "x") for key in ("customer_iban", "ibanOfAda", "taxNumber", "urban", "password")] == [
        True,
        True,
        True,
        False,
        False,
    ]


class Login(BaseModel):
    model_config = ConfigDict(extra="allow")
    user: str
    password: str


@dataclass(slots=True)
class Key:
    owner: str
    secret: str


Pair = namedtuple("Pair", "user password")
HIDDEN = "[redacted]"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Login(user="ada", password="x", token="y"), {"user": "ada", "password": HIDDEN, "token": HIDDEN}),  # type: ignore[call-arg]  # an extra of the model
        (Key("ada", "x"), {"owner": "ada", "secret": HIDDEN}),
        (Pair("ada", "x"), {"user": "ada", "password": HIDDEN}),
        (SimpleNamespace(user="ada", password="x"), {"user": "ada", "password": HIDDEN}),
        (deque([{"token": "x"}]), [{"token": HIDDEN}]),
        (UserList([{"token": "x"}]), [{"token": HIDDEN}]),
        ({"a": {"token": "x"}}.values(), [{"token": HIDDEN}]),
        ({"token": "x", "a": 1}.items(), [["token", HIDDEN], ["a", 1]]),
        ([["authorization", "Basic x"], ["accept", "*/*"]], [["authorization", HIDDEN], ["accept", "*/*"]]),
        ([(b"Cookie", b"x"), (b"host", b"h")], [["Cookie", HIDDEN], ["host", "h"]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_holds_named_values_is_looked_into(value: Any, shown: Any) -> None:
    assert plain({"at": value}, Redactor()) == {"at": shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@ss/w@rd@host/db", "postgresql://u:[redacted]@host/db"),
        ("mysql+pymysql://root:1234@h/db", "mysql+pymysql://root:[redacted]@h/db"),
        ("redis://:s3@h:1/0 and amqp://a:b@c", "redis://:[redacted]@h:1/0 and amqp://a:[redacted]@c"),
        ("clone https://ghp_x@github.com/a/b", "clone https://[redacted]@github.com/a/b"),
        ("ssh://git@github.com/x", None),
        ("https://example.com:8080/p?email=a@b.c", None),
        ("http://[::1]:80/a@b", None),
        ("GET /x?api_key=zz&page=1#top", "GET /x?api_key=[redacted]&page=1#top"),
        ("why? token=1 is said", None),
        ("Authorization: BEARER abcdefgh.ij?", "Authorization: BEARER [redacted]?"),
        ("bearer abcdefgh12", "bearer [redacted]"),
        ("sent Basic YWRhOmxvdmVsYWNl", "sent Basic [redacted]"),
        ("Basic information is here, basic authentication failed", None),
        ("host=db user=u password=s3cret dbname=x", "host=db user=u password=[redacted] dbname=x"),
        ("password='it\\'s a b' port=1", "password='[redacted]' port=1"),
        ("PGPASSWORD=a,b;c", "PGPASSWORD=[redacted]"),
        ("Server=h;Uid=u;Pwd=x", "Server=h;Uid=u;Pwd=[redacted]"),
        ("password='never closed", "password='[redacted]"),
        ("connect(pw=1, user='u')", "connect(pw=[redacted] user='u')"),
        ("api_key=abcdefgh, token=12", "api_key=[redacted] token=12"),
        ("Login(user='ada', password='x', pin=1234)", "Login(user='ada', password='[redacted]', pin=[redacted]"),
        ("got {'user': 'ada', 'password': 'x', 'n': 1}", "got {'user': 'ada', 'password': '[redacted]', 'n': 1}"),
        ('{"a":{"token":"x y","pin":1234}}', '{"a":{"token":"[redacted]","pin":[redacted]}}'),
        ("{'tokens': ['a', 'b'], 'token': None}", "{'tokens': [[redacted]], 'token': None}"),
        ("{b'authorization': b'Token abc'}", "{b'authorization': b'[redacted]'}"),
        ("[(b'cookie', b'a=b; c=d'), (b'host', b'h')]", "[(b'cookie', b'[redacted]'), (b'host', b'h')]"),
        ("[('Authorization', 'Token x')]", "[('Authorization', '[redacted]')]"),
        ("Authorization: Token abcdef was refused", "Authorization: Token [redacted] was refused"),
        ("authorization: abcdef was refused", "authorization: [redacted] refused"),
        ('Authorization: Digest username="u", response="r"', "Authorization: Digest [redacted]"),
        ("X-Api-Key: abc\nHost: h", "X-Api-Key: [redacted]\nHost: h"),
        ("Cookie: a=b; c=d\nHost: h", "Cookie: [redacted]\nHost: h"),
        ("the password: at least 8 characters, 'token', 'pin'", None),
        ("password=None, token==abcdefgh, max_tokens=51200000", None),
        ("host=db password=[redacted] user=u", None),
        ("{'prompt_tokens': 512, 'token_type': 'x', 'key': 'y'}", None),
    ],
)
def test_secrets_inside_a_text_are_cut_out(text: str, shown: str | None) -> None:
    assert suspicious(text) or shown is None
    assert without_secrets(text) == (shown or text)


HOSTILE = [
    "://:", "?a=", "&", "bearer ", "basic aaaaaaaa", "://a:@", "http://a@", "?token", "bearer" + " " * 500, "password=",
    "password='", "'token': ", "('pin', ", "{'pw': [", "pin-", "authorization: a=", "cookie: a;", "pass\\'", "x-: b=",
]  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_texts_take_no_longer_than_their_length(part: str) -> None:
    text = part * (256_000 // len(part)) + "?://"
    begun = time.thread_time()
    without_secrets(text)
    assert (
        time.thread_time() - begun < 5
    )  # seconds; some hundredths do, and work that grew with the square took minutes


def test_one_field_holds_a_bounded_number_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand texts of 8 KB cost a log call 146 ms, for a line that has room for six of them."""
    seen: list[int] = []

    def counted(text: str) -> str:
        seen.append(len(text))
        return text

    monkeypatch.setattr("onebeat.logs.plain.without_secrets", counted)
    texts = [["a" * 8_000] * 100 for _ in range(20)] + [{"password": "x"}]
    value = plain(texts, Redactor())
    assert sum(seen) <= TEXT_BUDGET + 2 * 8_000
    assert value[0][0] == "a" * 8_000
    assert value[1][0] == "…[8000 characters left out]"
    monkeypatch.undo()
    cut = ["x" * 8_192] * 7 + ["y" * (8_192 - 20) + " a://b:hunter2@c"]  # the budget ends within the password
    assert "hunter" not in str(plain(cut, Redactor()))


@pytest.mark.parametrize("many", [False, True], ids=["one set", "many sets"])
def test_the_parameters_of_an_sqlalchemy_error_are_blanked(many: bool) -> None:
    """Also in a traceback, in a repr and in a text that was cut."""
    engine, table = create_engine("sqlite://"), text("INSERT INTO cards VALUES (:number, :owner)")
    rows = [{"number": "4242 4242]", "owner": "Ada\n[parameters: ("}]
    with engine.connect() as connection, pytest.raises(OperationalError) as caught:
        connection.execute(table, rows * 3 if many else rows[0])
    engine.dispose()
    whole = "".join(traceback.format_exception(caught.value))
    for shown in (str(caught.value), whole, repr(str(caught.value)), str(caught.value).partition("Ada")[0]):
        assert "4242" in shown
        assert suspicious(shown)
        hidden = without_secrets(shown)
        assert "4242" not in hidden
        assert "Ada" not in hidden
        assert "INSERT INTO cards" in hidden
        assert "[parameters: [redacted]" in hidden
    assert "Background on this error" in without_secrets(whole)


def test_parameters_whose_repr_has_lines_of_its_own_are_blanked_whole() -> None:
    error = "(x) no\n[SQL: SELECT ?]\n[parameters: (<A\nsecret>,)]\n(Background on this error at: https://e)"
    assert without_secrets(error) == (
        "(x) no\n[SQL: SELECT ?]\n[parameters: [redacted]]\n(Background on this error at: https://e)"
    )


def test_the_time_for_parameters_grows_with_the_length_alone() -> None:
    before = time.process_time()
    without_secrets("[parameters: " * 100_000)
    without_secrets("[parameters: x\n" * 100_000)
    without_secrets("[parameters: x]\n(Background on this error at" * 100_000)
    assert time.process_time() - before < 5
