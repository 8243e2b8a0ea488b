"""An explicit-state model of a lock: every order of requests, answers, crashes, pauses, expiries and clock steps.

A request is sent, executed and answered in three steps with anything in between, so a pause is any other step that
comes first, and a lost answer is a crash before it arrives. Time is counted in ticks; a lease lasts `LEASE` of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)

LEASE = 2  # ticks
STEP = 3  # ticks by which a clock steps
FINE = 100  # fences in one tick: a clock has microseconds, an acquisition takes more than one

Steps = Callable[[S], Iterator[tuple[str, S]]]
Flaw = Callable[[S, S], str | None]


@dataclass
class Found:
    """The shortest way to a violation, or none."""

    states: int
    flaw: str | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.flaw is None:
            return f"{self.states} states, no violation"
        lines = [f"{n:2}. {step}" for n, step in enumerate(self.trace, 1)]
        return "\n".join([f"{self.states} states; {self.flaw}:", *lines])


def search(start: S, steps: Steps[S], flaw: Flaw[S], limit: int = 2_000_000) -> Found:
    """Breadth first through all states; `flaw(before, after)` names what is wrong with a step."""
    came: dict[S, tuple[S, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for name, after in steps(state):
            if after in came:
                continue
            came[after] = (state, name)
            if (wrong := flaw(state, after)) is not None:
                return Found(len(came), wrong, _trace(came, after))
            assert len(came) < limit, "the model is too large"
            queue.append(after)
    return Found(len(came))


def _trace(came: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    trace = []
    while (before := came[state]) is not None:
        state, name = before
        trace.append(name)
    return trace[::-1]


# ── the lock of this project ──────────────────────────────────────────────────────────────────────────────────────────
class Row(NamedTuple):
    """The lock's row."""

    owner: int
    fence: int
    expires: int


class Client(NamedTuple):
    """One process: what it believes, and what it has sent that was not answered yet."""

    does: str = "idle"  # idle, asking, holding, releasing
    owner: int = 0
    fence: int = 0
    deadline: int = 0  # of its trust, on the clock that never steps
    sent: int = -1  # when the request under way was sent
    answer: int | None = None  # None: not executed yet; else the fence, 1 or 0
    renewing: bool = False


class World(NamedTuple):
    """Everything at one moment."""

    clients: tuple[Client, ...]
    row: Row | None = None
    strays: frozenset[int] = frozenset()  # owners whose acquire is still on its way although its process died
    tick: int = 0  # real time
    offset: int = 0  # of the database's clock
    owners: int = 0  # made so far
    granted: int = -1  # the largest fence given out
    steps_left: int = 0  # clock steps still allowed
    empties_left: int = 0

    @property
    def now(self) -> int:
        """The database's clock."""
        return self.tick + self.offset


@dataclass(frozen=True)
class Faults:
    """What may happen besides crashes and pauses."""

    clock: int = 0  # ticks of one clock step, if any
    empty: bool = False  # the table is emptied once


class Lock:
    """acquire, renew and release as store/locks.py writes them; `fault` takes one mechanism out."""

    def __init__(self, faults: Faults, *, clients: int = 2, ticks: int = 4, owners: int = 3, without: str = "") -> None:
        self.faults = faults
        self.ticks = ticks
        self.owners = owners
        self.without = without
        self.start = World(
            clients=tuple(Client() for _ in range(clients)),
            steps_left=1 if faults.clock else 0,
            empties_left=1 if faults.empty else 0,
        )

    def search(self) -> Found:
        return search(self.start, self.steps, self.flaw)

    # ── what is promised ──────────────────────────────────────────────────────────────────────────────────────────────
    def trusting(self, world: World) -> list[int]:
        return [n for n, c in enumerate(world.clients) if c.does == "holding" and world.tick < c.deadline]

    def flaw(self, before: World, after: World) -> str | None:
        if before.granted >= 0 and after.granted != before.granted and after.granted <= before.granted:
            return f"fence {after.granted} was given out after {before.granted}"
        stepped = after.steps_left < self.start.steps_left and self.faults.clock > 0
        emptied = after.empties_left < self.start.empties_left
        if len(self.trusting(after)) > 1 and not stepped and not emptied:
            return "two processes trust their leases at once"
        return None

    # ── what may happen ───────────────────────────────────────────────────────────────────────────────────────────────
    def steps(self, w: World) -> Iterator[tuple[str, World]]:
        if w.tick < self.ticks:
            yield "a tick passes", w._replace(tick=w.tick + 1)
        if w.steps_left:
            step = self.faults.clock
            yield f"the clock steps by {step:+}", w._replace(offset=w.offset + step, steps_left=w.steps_left - 1)
        if w.empties_left and w.tick < self.ticks:
            yield "the table is emptied, which takes a tick", w._replace(row=None, empties_left=0, tick=w.tick + 1)
        for owner in w.strays:
            row, fence = self.acquire(w, owner)
            after = w._replace(row=row, strays=w.strays - {owner}, granted=w.granted if fence is None else fence)
            yield f"a dead process's acquire (owner {owner}) arrives", after
        for n in range(len(w.clients)):
            if n and w.clients[n] == w.clients[n - 1]:
                continue  # the same process under another name
            for name, after in self.client(w, n):
                yield f"{'ABC'[n]} {name}", after

    def client(self, w: World, n: int) -> Iterator[tuple[str, World]]:
        c = w.clients[n]

        def put(client: Client, **more: Any) -> World:
            return w._replace(clients=(*w.clients[:n], client, *w.clients[n + 1 :]), **more)

        if c.does == "idle":
            if w.owners < self.owners:
                asking = Client(does="asking", owner=w.owners + 1, sent=w.tick)
                yield f"asks for the lock as owner {asking.owner}", put(asking, owners=w.owners + 1)
            return
        stray = w.strays | {c.owner} if c.does == "asking" and c.answer is None else w.strays
        yield "crashes", put(Client(), strays=stray)
        if c.does == "asking":
            yield from self.asking(w, c, put)
        elif c.does == "holding":
            yield from self.holding(w, c, put)
        elif c.answer is None:
            held = w.row is not None and (w.row.owner == c.owner or self.without == "owner in release")
            row = w.row._replace(expires=-99) if held and w.row is not None else w.row
            yield "has its release executed", put(Client(), row=row)

    def asking(self, w: World, c: Client, put: Callable[..., World]) -> Iterator[tuple[str, World]]:
        if c.answer is None:
            row, fence = self.acquire(w, c.owner)
            granted = w.granted if fence is None else fence
            yield (
                f"has its acquire executed: {'taken' if fence is None else f'fence {fence}'}",
                put(c._replace(answer=-1 if fence is None else fence), row=row, granted=granted),
            )
        elif c.answer < 0:
            yield "hears that it is taken", put(Client())
        else:
            deadline = (w.tick if self.without == "trust from before sending" else c.sent) + LEASE
            holding = Client(does="holding", owner=c.owner, fence=c.answer, deadline=deadline)
            yield f"hears that it holds fence {c.answer}", put(holding if w.tick < deadline else Client())

    def holding(self, w: World, c: Client, put: Callable[..., World]) -> Iterator[tuple[str, World]]:
        if w.tick >= c.deadline:
            yield "sees that its deadline has passed", put(Client())
        else:
            yield "releases", put(c._replace(does="releasing", renewing=False, sent=-1, answer=None))
        if not c.renewing:
            if w.tick >= c.deadline:
                return
            yield "sends a renewal", put(c._replace(renewing=True, sent=w.tick, answer=None))
        elif c.answer is None:
            row, kept = self.renew(w, c.owner)
            yield f"has its renewal executed: {'kept' if kept else 'lost'}", put(c._replace(answer=int(kept)), row=row)
        elif c.answer == 0:
            yield "hears that it is lost", put(Client())
        else:
            renewed = c._replace(renewing=False, sent=-1, answer=None, deadline=max(c.deadline, c.sent + LEASE))
            yield "hears that it is renewed", put(renewed)

    # ── the statements ────────────────────────────────────────────────────────────────────────────────────────────────
    def acquire(self, w: World, owner: int) -> tuple[Row | None, int | None]:
        if w.row is None:
            fence = 0 if self.without == "clock in the fence" else w.now * FINE
            return Row(owner, fence, w.now + LEASE), fence
        if w.row.expires > w.now:
            return w.row, None
        last = w.row.fence + 1
        fence = last if self.without == "clock in the fence" else max(last, w.now * FINE)
        if self.without == "last fence":
            fence = w.now * FINE
        return Row(owner, fence, w.now + LEASE), fence

    def renew(self, w: World, owner: int) -> tuple[Row | None, bool]:
        row = w.row
        if row is None or (row.owner != owner and self.without != "owner in renew"):
            return row, False
        if row.expires <= w.now:
            return row, False
        return row._replace(owner=owner, expires=max(row.expires, w.now + LEASE)), True


# ── the design this project began with ────────────────────────────────────────────────────────────────────────────────
class Naive(NamedTuple):
    """INSERT; if that fails SELECT; if expired UPDATE by name. Release is DELETE by name. No owner, no fence."""

    tick: int = 0
    expires: int | None = None  # of the row; None: no row
    does: tuple[str, ...] = ("idle", "idle")
    until: tuple[int, ...] = (0, 0)  # when each process's own lease ends


def naive_steps(w: Naive, ticks: int = 4) -> Iterator[tuple[str, Naive]]:
    if w.tick < ticks:
        yield "a tick passes", w._replace(tick=w.tick + 1)
    for n, does in enumerate(w.does):
        who = "AB"[n]

        def now(what: str, *, n: int = n, expires: int | None = w.expires, until: int | None = None) -> Naive:
            return w._replace(
                does=(*w.does[:n], what, *w.does[n + 1 :]),
                until=w.until if until is None else (*w.until[:n], until, *w.until[n + 1 :]),
                expires=expires,
            )

        end = w.tick + LEASE
        if does == "idle":
            if w.expires is None:
                yield f"{who} inserts the row and holds the lock", now("holds", expires=end, until=end)
            else:
                yield f"{who}'s INSERT fails", now("looks")
        elif does == "looks":
            expired = w.expires is not None and w.expires <= w.tick
            yield (
                f"{who} reads that the row {'has expired' if expired else 'is in force'}",
                now("steals" if expired else "idle"),
            )
        elif does == "steals":
            row = None if w.expires is None else end
            yield f"{who} updates the row by its name and holds the lock", now("holds", expires=row, until=end)
        else:
            yield f"{who} deletes the row by its name", now("idle", expires=None)


def naive_flaw(before: Naive, after: Naive) -> str | None:
    holders = [n for n, does in enumerate(after.does) if does == "holds" and after.tick < after.until[n]]
    return "two processes hold unexpired leases at once" if len(holders) > 1 else None


if __name__ == "__main__":
    print("The design this project began with:", search(Naive(), naive_steps, naive_flaw), sep="\n")
    for name, lock in {
        "crashes and pauses": Lock(Faults(), ticks=3),
        "a clock set back": Lock(Faults(clock=-STEP), ticks=3),
    }.items():
        print(f"This project's, with {name}:", lock.search(), sep="\n")
