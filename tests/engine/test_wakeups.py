"""Wake-ups reach the parts of this process, and what happens here reaches those that tell other processes."""

from __future__ import annotations

from uuid import UUID

import pytest

from onebeat.engine.wakeups import Signal, WakeupListener, Wakeups
from tests.support.builders import a_job

ID = a_job().id


class Sender:
    """A listener that notes what it would send to other processes."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []

    def jobs_queued(self) -> None:
        self.sent.append(("jobs_queued", None))

    def jobs_delayed(self) -> None:
        self.sent.append(("jobs_delayed", None))

    def schedules_changed(self) -> None:
        self.sent.append(("schedules_changed", None))

    def job_ended(self, id: UUID, /) -> None:
        self.sent.append(("job_ended", id))

    def cancel_requested(self, id: UUID, /) -> None:
        self.sent.append(("cancel_requested", id))

    def lock_released(self, name: str, /) -> None:
        self.sent.append(("lock_released", name))


def announce_everything(wakeups: Wakeups) -> None:
    wakeups.jobs_queued()
    wakeups.jobs_delayed(1)
    wakeups.schedules_changed()
    wakeups.job_ended(ID)
    wakeups.cancel_requested(ID)
    wakeups.lock_released("rebuild")
    wakeups.run_started()
    wakeups.run_ended()
    wakeups.slots_freed()


EVERYTHING = [
    ("jobs_queued", None),
    ("jobs_delayed", None),
    ("schedules_changed", None),
    ("job_ended", ID),
    ("cancel_requested", ID),
    ("lock_released", "rebuild"),
]


def test_each_subscriber_is_called_in_order_with_what_was_announced() -> None:
    signal: Signal[UUID] = Signal()
    heard: list[tuple[str, UUID]] = []
    signal.subscribe(lambda id: heard.append(("first", id)))
    signal.subscribe(lambda id: heard.append(("second", id)))
    signal(ID)
    assert heard == [("first", ID), ("second", ID)]


def test_an_ended_subscription_is_called_no_more_and_leaves_the_others() -> None:
    signal: Signal[()] = Signal()
    heard: list[str] = []
    unsubscribe = signal.subscribe(lambda: heard.append("first"))
    signal.subscribe(lambda: heard.append("second"))
    unsubscribe()
    unsubscribe()  # harmless
    signal()
    assert heard == ["second"]


def test_a_subscriber_may_end_its_subscription_while_it_is_called() -> None:
    signal: Signal[()] = Signal()
    heard: list[str] = []

    def once() -> None:
        heard.append("once")
        unsubscribe()

    unsubscribe = signal.subscribe(once)
    signal.subscribe(lambda: heard.append("always"))
    signal()
    signal()
    assert heard == ["once", "always", "always"]


def test_an_attached_listener_hears_what_other_processes_may_want_to_know() -> None:
    wakeups, sender = Wakeups(), Sender()
    detach = wakeups.attach(sender)
    announce_everything(wakeups)
    assert sender.sent == EVERYTHING, "neither runs nor slots concern other processes"
    detach()
    announce_everything(wakeups)
    assert len(sender.sent) == len(EVERYTHING)


def test_a_hint_of_another_process_wakes_the_parts_here_and_is_not_sent_on() -> None:
    wakeups, sender, woken = Wakeups(), Sender(), list[str]()
    wakeups.attach(sender)
    wakeups.jobs_queued.subscribe(lambda: woken.append("claimer"))
    wakeups.jobs_queued.wake()
    assert (woken, sender.sent) == (["claimer"], [])


def test_two_processes_that_hint_each_other_do_not_echo() -> None:
    here, there, woken = Wakeups(), Wakeups(), list[str]()

    class To(Sender):
        def __init__(self, other: Wakeups) -> None:
            super().__init__()
            self.other = other

        def jobs_queued(self) -> None:
            super().jobs_queued()
            self.other.jobs_queued.wake()

    to_there, to_here = To(there), To(here)
    here.attach(to_there)
    there.attach(to_here)
    here.jobs_queued.subscribe(lambda: woken.append("here"))
    there.jobs_queued.subscribe(lambda: woken.append("there"))
    here.jobs_queued()
    assert woken == ["here", "there"]
    assert (len(to_there.sent), len(to_here.sent)) == (1, 0)


@pytest.mark.parametrize("name", [name for name in vars(WakeupListener) if not name.startswith("_")])
def test_every_wake_up_of_the_protocol_is_a_signal(name: str) -> None:
    assert isinstance(getattr(Wakeups(), name), Signal)
