"""Checks a history of one lock: fences grow, holds do not overlap, and the guarded register is linearisable.

Pure functions over what clients wrote down; times in microseconds of one clock that all of them read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

NEVER = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One acquisition: asked at `asked`, known to the client at `begin`, believed in until `end`."""

    fence: int
    asked: int
    begin: int
    end: int
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One call on the guarded register; `end` NEVER and `result` None: its client never heard."""

    kind: Literal["read", "write"]
    begin: int
    end: int = NEVER
    fence: int = 0  # of a write
    value: str | None = None  # written, or read
    accepted: bool | None = None  # of a write


@dataclass(slots=True)
class History:
    """All that happened to one name."""

    name: str
    holds: list[Hold] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def violations(self, explained: Sequence[tuple[int, int]] = ()) -> list[str]:
        """What is wrong; overlaps within an explained span (begin, end) are the fault's, not the lock's."""
        found = [*fences_grow(self.holds), *holds_apart(self.holds, explained), *linearisable(self.ops)]
        return [f"{self.name}: {each}" for each in found]


def fences_grow(holds: Iterable[Hold]) -> list[str]:
    """Who asked after another had been told has the larger fence; no fence is given out twice."""
    found = []
    by_fence = sorted(holds, key=lambda hold: hold.fence)
    for one, other in pairwise(by_fence):
        if one.fence == other.fence:
            found.append(f"fence {one.fence} was given out twice, to {one.pid} and {other.pid}")
    earliest = NEVER  # when somebody with a larger fence was told first
    for hold in reversed(by_fence):
        if earliest < hold.asked:
            found.append(f"fence {hold.fence} was given out after a larger one had been")
        earliest = min(earliest, hold.begin)
    return found


def holds_apart(holds: Iterable[Hold], explained: Sequence[tuple[int, int]] = ()) -> list[str]:
    """No two clients believe in their leases at once."""
    found = []
    ordered = sorted((hold for hold in holds if hold.end > hold.begin), key=lambda hold: hold.begin)
    last: Hold | None = None
    for hold in ordered:
        if last is not None and hold.begin < last.end:
            span = hold.begin, min(last.end, hold.end)
            if not any(begin <= span[0] and span[1] <= end for begin, end in explained):
                found.append(
                    f"fences {last.fence} ({last.pid}) and {hold.fence} ({hold.pid}) were held together "
                    f"for {(span[1] - span[0]) / 1000:.1f} ms"
                )
        if last is None or hold.end > last.end:
            last = hold
    return found


def linearisable(ops: Sequence[Op], limit: int = 500_000) -> list[str]:
    """Whether some order of the calls, each within its own time, explains every answer (Wing and Gong's search).

    The register refuses a write whose fence is smaller than the largest it has accepted. Calls without an answer may
    have happened at any time after they began, or not at all.
    """
    ordered = sorted(ops, key=lambda op: op.begin)
    needed = sum(1 << n for n, op in enumerate(ordered) if op.end < NEVER)
    start: tuple[int, tuple[int, str | None]] = (0, (-1, None))
    seen = {start}
    stack = [start]
    furthest = 0
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return []
        furthest = max(furthest, (done & needed).bit_count())
        assert len(seen) < limit, "the search is too large for this history"
        for n, after in _next(ordered, done, state):
            following = (done | 1 << n, after)
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return [f"no order of its {len(ops)} register calls explains the answers; {furthest} of them fit at best"]


def _next(ordered: Sequence[Op], done: int, state: tuple[int, str | None]) -> Iterable[tuple[int, Any]]:
    """The calls that may come next, and the register after them."""
    first_end = min((op.end for n, op in enumerate(ordered) if not done >> n & 1), default=NEVER)
    largest, value = state
    for n, op in enumerate(ordered):
        if op.begin > first_end:
            break
        if done >> n & 1:
            continue
        if op.kind == "read":
            if op.end == NEVER:
                continue
            if op.value == value:
                yield n, state
        elif op.accepted is not False and op.fence >= largest:
            yield n, (op.fence, op.value)
        elif op.accepted is False and op.fence < largest:
            yield n, state


# ── from what the clients wrote ───────────────────────────────────────────────────────────────────────────────────────
def collect(folder: Path, killed: Mapping[int, int]) -> dict[str, History]:
    """The histories by name from the clients' files; `killed` says when which of them were."""
    histories: dict[str, History] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        pid = int(path.stem)
        by_id: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            by_id[line["id"]].append(line)
        for group in by_id.values():
            name = group[0]["n"]
            history = histories.setdefault(name, History(name))
            if group[0]["e"] == "held":
                history.holds.append(_hold(group, pid, killed.get(pid, NEVER)))
            else:
                history.ops.append(_op(group))
    return histories


def _hold(group: list[dict[str, Any]], pid: int, killed: int) -> Hold:
    """Where the client wrote no end, it believed until it was killed, or until the last deadline it had written."""
    first = group[0]
    ends = [line["t"] for line in group[1:] if "t" in line]
    trusts = [line["until"] for line in group if "until" in line]
    end = min(ends) if ends else min(killed, max(trusts, default=NEVER))
    return Hold(fence=first["f"], asked=first["a"], begin=first["t"], end=end, pid=pid)


def _op(group: list[dict[str, Any]]) -> Op:
    first, answer = group[0], group[1] if len(group) > 1 else None
    end = NEVER if answer is None else answer["t"]
    if first["e"] == "read":
        return Op(kind="read", begin=first["t"], end=end, value=None if answer is None else answer["v"])
    accepted = None if answer is None else answer["ok"]
    return Op(kind="write", begin=first["t"], end=end, fence=first["f"], value=first["v"], accepted=accepted)
