"""Discrete literals are moved one at a time, by one step from the incumbent: "DEPTH 4->3" is then all that a row has to say.

The order: a move that was just kept goes on in its direction; then moves that were never tried, those to a smaller model first,
because it trains for more steps; then those that were tried longest ago, since the incumbent has changed. A move counts whoever
made it, if it was the only literal that changed. A crash, out of memory above all, bars its direction for as long as the
incumbent's discrete literals are what they were: other learning rates need no less memory.

Steps that scored better than the incumbent, but not surely, are made together once there are two: their gains add up, the noise
of a run does not.

All of it follows from the history, so that a stop changes nothing.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch.literals import Value
from autoresearch.researchers.lineage import Link
from autoresearch.researchers.space import Dimension
from autoresearch.results import CRASH, DISCARD, KEEP

Move = tuple[str, int]  # a literal, and 1 for up or -1 for down


@dataclass(frozen=True, slots=True)
class Attempt:
    move: Move
    status: str  # keep, discard or crash
    start: Mapping[str, Any]  # the discrete literals that it was made from, one object for all from the same incumbent


@dataclass(frozen=True)
class Step:
    move: Move
    value: Value  # the literal's new one
    promising: bool  # never tried, or just kept


def discrete(literals: Mapping[str, Any], dims: Mapping[str, Dimension]) -> dict[str, Any]:
    return {name: literals.get(name) for name, dim in dims.items() if dim.discrete}


def attempts(links: Iterable[Link], dims: Mapping[str, Dimension]) -> list[Attempt]:
    """The single steps among what was tried, oldest first."""
    found: list[Attempt] = []
    starts: dict[int, Mapping[str, Any]] = {}  # by the incumbent's number
    for link in links:
        if link.before and len(changed := link.changed) == 1 and (move := _move(link, changed.pop(), dims)):
            if link.before.n not in starts:
                starts[link.before.n] = discrete(link.before.literals or {}, dims)
            found.append(Attempt(move, link.done.status, starts[link.before.n]))
    return found


def _move(link: Link, name: str, dims: Mapping[str, Dimension]) -> Move | None:
    """Which move the change of this literal was; None if none."""
    dim = dims.get(name)
    old, new = ((each.literals or {}).get(name) for each in (link.before, link.done) if each)
    if dim is None or not dim.discrete or not dim.holds(old):
        return None
    return next(((name, direction) for direction in (-1, 1) if dim.neighbour(old, direction) == new), None)


def together(links: Iterable[Link], dims: Mapping[str, Dimension], incumbent: str) -> dict[str, Value]:
    """The values of all near misses from this incumbent (its code_key) that were not yet made together; {} for fewer than two."""
    near: dict[str, tuple[float, Value]] = {}
    movable = discrete({}, dims).keys()
    for link in links:
        done, before, bpb = link.done, link.before, link.done.val_bpb
        if before is None or before.code_key != incumbent:
            continue
        changed = link.changed
        if len(changed) > 1 and changed <= movable:
            near = {name: found for name, found in near.items() if name not in changed}
        elif len(changed) == 1 and done.status == DISCARD and bpb is not None and (move := _move(link, changed.pop(), dims)):
            name, score = move[0], bpb - (done.incumbent_bpb or 0.0)
            if score < (near[name][0] if name in near else 0.0):
                near[name] = score, (done.literals or {})[name]
    return {name: value for name, (_, value) in near.items()} if len(near) > 1 else {}


def steps(current: Mapping[str, Any], dims: Mapping[str, Dimension], tried: Sequence[Attempt], session: str) -> list[Step]:
    """The open steps from these literals, the best first. Another `session` goes another way."""
    last: dict[Move, int] = {}
    going: set[Move] = set()
    for place, each in enumerate(tried):
        name, direction = each.move
        last[each.move] = place
        going.discard(each.move)
        if each.status == KEEP:
            last[name, -direction] = place  # the way back was measured with it
            going = (going | {each.move}) - {(name, -direction)}
    now = discrete(current, dims)
    barred = {each.move for each in tried if each.status == CRASH and each.start == now}

    def rank(step: Step) -> tuple[int, int, str]:
        move, (name, direction) = step.move, step.move
        if move in going:
            return 0, -last[move], ""
        if move not in last:
            shuffled = hashlib.sha256(f"{session} {name} {direction}".encode()).hexdigest()
            return 1, 0 if dims[name].kind == "choice" else direction, shuffled
        return 2, last[move], ""

    found = []
    for name in now:
        for direction in (-1, 1):
            move = (name, direction)
            value = dims[name].neighbour(current[name], direction)
            if value is not None and move not in barred:
                found.append(Step(move, value, move in going or move not in last))
    return sorted(found, key=rank)
