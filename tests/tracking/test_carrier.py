"""From the enqueuing code to the job and back, and what a hostile row cannot do."""

from __future__ import annotations

import json
from contextvars import ContextVar

import pytest

from onebeat.errors import ConfigurationError, InvalidArguments
from onebeat.model.protocols import Carrier, Unit
from onebeat.tracking import bind, current, propagate, tracking, tracking_id
from onebeat.tracking.carrier import ContextCarrier
from onebeat.tracking.ids import is_valid
from onebeat.tracking.payload import LIMIT, read_payload

TENANT = propagate(ContextVar[str]("tests_tenant"))
BIG = propagate(ContextVar[str]("tests_big"))
HIDDEN = ContextVar("tests_hidden", default="default")
carrier: Carrier = ContextCarrier()


def job(number: int = 1, attempt: int = 1) -> Unit:
    return Unit(kind="job", id=f"job-{number}", task="greet", attempt=attempt, queue="mail")


def test_a_job_has_the_requests_id_its_own_unit_id_and_the_attempt() -> None:
    with tracking("order-7", customer=7) as request:
        bind(step="pay")
        id, carried = carrier.capture()
    assert id == "order-7"
    for attempt in (1, 2, 3):
        with carrier.restore(id, carried, job(attempt=attempt)):
            unit = current()
            assert unit is not None
            assert unit.identity() == {
                "tracking_id": "order-7", "unit": "job", "unit_id": "job-1", "parent_id": request.unit_id,
                "job_id": "job-1", "task": "greet", "attempt": attempt, "queue": "mail",
            }  # fmt: skip  # one field a line would be longer, not clearer
            assert dict(unit.fields) == {"customer": 7, "step": "pay"}
        assert current() is None


def test_a_job_enqueued_by_a_job_has_the_same_id_and_the_job_as_parent() -> None:
    with tracking("order-7"):
        first = carrier.capture()
    with carrier.restore(*first, job(1)):
        second = carrier.capture()
    with carrier.restore(*second, job(2)):
        unit = current()
        assert unit is not None
        assert (unit.tracking_id, unit.parent_id, unit.unit_id) == ("order-7", "job-1", "job-2")


def test_outside_any_unit_the_id_is_made_at_enqueue() -> None:
    first, second = carrier.capture(), carrier.capture()
    assert is_valid(first[0])
    assert first[0] != second[0]
    with carrier.restore(*first, job()):
        assert tracking_id() == first[0]


def test_each_fire_has_an_id_of_its_own_and_what_it_enqueues_inherits_it() -> None:
    fires = [carrier.new_id() for _ in range(2)]
    assert fires[0] != fires[1]
    for fire in fires:
        unit = Unit(kind="job", id="job-9", task="clean", schedule_id="nightly", fire_time="2026-01-02T03:00:00+00:00")
        with carrier.restore(fire, None, unit):
            present = current()
            assert present is not None
            assert present.identity()["schedule_id"] == "nightly"
            assert present.identity()["fire_time"] == "2026-01-02T03:00:00+00:00"
            assert carrier.capture()[0] == fire


@pytest.mark.parametrize("stored", ["a\x1b[2Jb", "x" * 129, "", "a\nb", "é", "\ud800", 'a"b', None, 7])
def test_a_hostile_stored_id_is_replaced_when_the_row_is_read(stored: str) -> None:
    with carrier.restore(stored, None, job()):
        present = tracking_id()
        assert present != stored
        assert is_valid(present)


@pytest.mark.parametrize(
    "carried",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        "[" * 8000,
        '{"fields":7,"vars":8,"parent":9,"traceparent":10,"own":1}',
        '{"fields":{"a\\nb":1,"ok":2}}',
        '{"traceparent":"00-0-0-01"}',
        '{"vars":{"unknown":1}}',
        "x" * (LIMIT + 1),
        json.dumps({"parent": "a b\x1b"}),
        json.dumps({"traceparent": "é"}),
        '{"parent":NaN}',
        '{"own":{"id":"\\u001b"}}',
    ],
)
def test_a_hostile_carried_text_harms_nothing(carried: str) -> None:
    with carrier.restore("order-7", carried, job()):
        unit = current()
        assert unit is not None
        assert unit.tracking_id == "order-7"
        assert unit.parent_id is None
        assert unit.trace is None
        assert set(unit.fields) <= {"ok"}


def test_a_registered_variable_arrives_and_leaves_again_and_another_does_not_travel() -> None:
    reset, other = TENANT.set("blue"), HIDDEN.set("changed")
    id, carried = carrier.capture()
    TENANT.reset(reset)
    HIDDEN.reset(other)
    with carrier.restore(id, carried, job()):
        assert TENANT.get() == "blue"
        assert HIDDEN.get() == "default"
    with pytest.raises(LookupError):
        TENANT.get()


def test_more_than_8_kib_is_refused_and_the_message_names_the_variable() -> None:
    reset = BIG.set("x" * 9 * 1024)
    try:
        with pytest.raises(InvalidArguments, match="tests_big"):
            carrier.capture()
    finally:
        BIG.reset(reset)


def test_large_log_fields_never_stop_an_enqueue() -> None:
    with tracking(small=1, large="x" * 20_000, odd=object(), cycle=None) as unit:
        loop: list[object] = []
        loop.append(loop)
        bind(cycle=loop, number=float("nan"))
        _, carried = carrier.capture()
    assert carried is not None
    assert len(carried) < LIMIT
    fields = read_payload(carried).fields
    assert fields["small"] == 1
    assert "large" not in fields
    assert fields["number"] == "nan"
    assert unit.closed


def test_a_variable_that_cannot_be_restored_does_not_stop_the_job(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: object) -> str:
        raise RuntimeError("no")

    broken = propagate(ContextVar("tests_broken", default="here"), decode=refuse)
    id, carried = carrier.capture()
    with carrier.restore(id, carried, job()):
        assert broken.get() == "here"
    assert "tests_broken" in caplog.text


def test_two_variables_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tests_tenant"):
        propagate(ContextVar[str]("tests_tenant"))


def test_a_variable_that_is_no_json_is_refused_with_its_name() -> None:
    odd = propagate(ContextVar[object]("tests_odd"))
    reset = odd.set(object())
    try:
        with pytest.raises(InvalidArguments, match="tests_odd"):
            carrier.capture()
    finally:
        odd.reset(reset)


def test_a_unit_inside_a_job_is_still_of_that_job() -> None:
    with (
        ContextCarrier().restore("order-7", None, Unit(kind="job", id="j1", task="greet", attempt=2)),
        tracking(step="load") as unit,
    ):
        shown = unit.identity()
    assert {key: shown.get(key) for key in ("tracking_id", "job_id", "task", "attempt")} == {
        "tracking_id": "order-7",
        "job_id": "j1",
        "task": "greet",
        "attempt": 2,
    }
