"""What the researchers cost: one line for each time one was asked, in `.autoresearch/asked.jsonl`.

Also those that came to nothing are in it: they are paid for too. Standard library only.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from sys import intern
from typing import Any

from autoresearch.errors import Enough, NotReady
from autoresearch.lines import append_line, read_lines
from autoresearch.researchers import Cost


@dataclass(frozen=True, slots=True)
class Asked:
    session: str
    researcher: str
    at: str  # ISO 8601, UTC
    outcome: str  # proposed, failed
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = 0.0

    @property
    def cost(self) -> Cost:
        return Cost(self.seconds, self.input_tokens, self.output_tokens, self.dollars)


FIELDS = frozenset(each.name for each in fields(Asked))
PROPOSED, FAILED = "proposed", "failed"


class Ledger:
    def __init__(self, journal: Path) -> None:
        self.path = journal / "asked.jsonl"
        self._all: list[Asked] | None = None

    def all(self) -> list[Asked]:
        if self._all is None:
            self._all = read_lines(self.path, asked_from)
        return self._all

    def add(self, asked: Asked) -> None:
        self.all().append(asked)
        append_line(self.path, asdict(asked))

    def counts(self, session: str) -> Mapping[str, int]:
        """How often each researcher was asked in this session."""
        return Counter(each.researcher for each in self.all() if each.session == session)


def asked_from(data: dict[str, Any]) -> Asked:
    known = data if data.keys() <= FIELDS else {name: value for name, value in data.items() if name in FIELDS}
    for name in ("session", "researcher", "outcome"):
        known[name] = intern(known[name])
    return Asked(**known)


def total(asked: Sequence[Asked]) -> Cost:
    return sum((each.cost for each in asked), Cost())


def text(cost: Cost) -> str:
    """'12,300 tokens in, 800 out, $0.04, 31 s'."""
    parts = [f"{cost.input_tokens:,} tokens in, {cost.output_tokens:,} out"] if cost.input_tokens or cost.output_tokens else []
    if cost.dollars is None:
        parts.append("price unknown")
    elif cost.dollars:
        parts.append(f"${cost.dollars:.2f}" if cost.dollars >= 0.1 else f"${cost.dollars:.4f}")
    return ", ".join([*parts, f"{cost.seconds:.0f} s"])


def summary(asked: Sequence[Asked]) -> list[str]:
    """One line for each researcher that was asked, with what it took."""
    lines = []
    for name in dict.fromkeys(each.researcher for each in asked):
        own = [each for each in asked if each.researcher == name]
        failed = sum(each.outcome == FAILED for each in own)
        lost = f" ({failed} came to nothing)" if failed else ""
        lines.append(f"{name}: asked {len(own)} times{lost}, {text(total(own))}")
    return lines


@dataclass(frozen=True)
class Limits:
    """What this start of the loop may spend. `begun` is on the same clock as `now` below."""

    begun: float
    dollars: float = math.inf
    seconds: float = math.inf

    def check_time(self, now: float) -> None:
        """Raises Enough."""
        if now - self.begun >= self.seconds:
            raise Enough(f"--max-hours: {self.seconds / 3600:g} hours have passed")

    def check(self, spent: Sequence[Asked], now: float) -> None:
        """Raises Enough at the first limit that is reached, NotReady where dollars can't be counted."""
        self.check_time(now)
        if self.dollars < math.inf and (dollars := _counted(spent)) >= self.dollars:
            raise Enough(f"--max-cost: ${dollars:.2f} of ${self.dollars:g} are spent")


def _counted(spent: Sequence[Asked]) -> float:
    """Dollars. One that was ended before it told its price counts as the dearest of the same researcher."""
    dollars = 0.0
    for name in {each.researcher for each in spent}:
        own = [each for each in spent if each.researcher == name]
        known = [each.dollars for each in own if each.dollars is not None]
        if not known and any(each.outcome == PROPOSED for each in own):
            way_out = "set input-price and output-price (dollars for a million tokens) in [tool.autoresearch] of pyproject.toml"
            raise NotReady(f"--max-cost can't be kept: '{name}' tells no price of its model: {way_out}")
        dollars += sum(known) + (len(own) - len(known)) * max(known, default=0.0)
    return dollars
