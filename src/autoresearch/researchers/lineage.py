"""Which incumbent each experiment changed, and what its score owes to the gains of others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from autoresearch.journal import Experiment
from autoresearch.results import KEEP

NONE = object()  # the value of a literal that is not there


@dataclass(frozen=True, slots=True)
class Link:
    done: Experiment
    before: Experiment | None  # the incumbent that it changed; None for a baseline

    @property
    def changed(self) -> set[str]:
        """The literals that differ from the incumbent's. Made anew at each call: thousands of them would fill the memory."""
        old, new = (self.before and self.before.literals) or {}, self.done.literals or {}
        return {name for name, value in new.items() if old.get(name, NONE) != value} | (old.keys() - new.keys())


def lineage(history: Sequence[Experiment]) -> list[Link]:
    """Each experiment with the incumbent that its session had then."""
    incumbents: dict[str, Experiment] = {}
    links: list[Link] = []
    for done in history:
        links.append(Link(done, None if done.baseline else incumbents.get(done.session)))
        if done.status == KEEP:
            incumbents[done.session] = done
    return links


def line(links: Sequence[Link], code_key: str) -> list[Link]:
    """What the session with this incumbent did from its newest baseline on: a train.py that a person commits begins anew."""
    kept = (link.done.session for link in reversed(links) if link.done.status == KEEP and link.done.code_key == code_key)
    newest = (link.done.session for link in reversed(links))
    session = next(kept, None) or next(newest, None)
    ours = [link for link in links if link.done.session == session]
    begin = max((place for place, link in enumerate(ours) if link.done.baseline), default=0)
    return ours[begin:]


def gained(links: Sequence[Link], names: Collection[str]) -> Mapping[int, float]:
    """By an experiment's number: what kept changes that left these literals alone had gained before it (bpb). Its own score has
    that in it; added back, it is as if measured on the baseline's structure."""
    found: dict[int, float] = {}
    above: dict[int, float] = {}  # of an incumbent: its own gain, too
    for link in links:
        done, before = link.done, link.before
        found[done.n] = level = above.get(before.n, 0.0) if before else 0.0
        reference = None if before is None else before.val_bpb if done.incumbent_bpb is None else done.incumbent_bpb
        if done.status == KEEP:
            alone = reference is not None and done.val_bpb is not None and link.changed.isdisjoint(names)
            above[done.n] = level + ((reference or 0.0) - (done.val_bpb or 0.0) if alone else 0.0)
    return found
