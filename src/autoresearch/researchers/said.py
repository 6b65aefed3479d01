"""What a researcher says about its proposal: what it tried, why, what it expects, and in which category.

The brief asks for four labelled lines. Whatever is missing stays empty; without a label the first line says what was tried.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch.literals import values
from autoresearch.researchers import CATEGORIES
from autoresearch.results import clean

NAMED = 4  # changes that a description names; the patch has all of them
SIGNIFICANT = 3  # digits of a float
MAX_GAIN = 10.0  # bpb; beyond it is no expectation
LABEL = re.compile(r"^[\s#>*_-]*(tried|hypothesis|expected gain|category)[*_]*\s*:[*_\s]*(.*)$", re.IGNORECASE)
FORM = """\
Tried: what you changed, in one line
Hypothesis: why it should lower val_bpb, in one line
Expected gain: by how much, in bpb, as 0.004
Category: architecture, optimizer, schedule, data, systems or simplification"""


@dataclass(frozen=True)
class Said:
    description: str = ""
    hypothesis: str = ""
    expected_gain: float | None = None
    category: str = ""


def read(text: str) -> Said:
    """The last value of each label; the first other line where nothing says "Tried"."""
    found: dict[str, str] = {}
    first = ""
    for line in text.splitlines():
        if label := LABEL.match(line):
            found[label[1].lower()] = clean(label[2])
        elif not first:
            first = clean(line)
    category = found.get("category", "").lower().strip(" .*_")
    return Said(
        found.get("tried", "") or first,
        found.get("hypothesis", ""),
        _gain(found.get("expected gain", "")),
        category if category in CATEGORIES else "",
    )


def is_labelled(text: str) -> bool:
    return any(LABEL.match(line) for line in text.splitlines())


def _gain(text: str) -> float | None:
    """The size of the first number: '0.004 bpb' and '-0.004' both mean that the score should fall by it."""
    number = re.search(r"\d*\.?\d+(?:e-?\d+)?", text)
    gain = float(number[0]) if number else math.nan
    return gain if gain <= MAX_GAIN else None


def changes(before: str, after: str) -> str:
    """What a proposal changes, for one that says nothing about itself. Both are valid Python, or it names lines."""
    try:
        old, new = values(before), values(after)
    except SyntaxError:
        old = new = {}
    moved = {name: value for name, value in new.items() if name in old and old[name] != value}
    if moved:
        return describe(old, moved)
    lines = len(set(after.splitlines()) ^ set(before.splitlines()))
    return f"{lines} changed lines"


def describe(current: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """'MATRIX_LR 0.04->0.05, DEPTH 4->5', the largest changes first."""

    def size(name: str) -> float:
        before, after = current[name], changed[name]
        if isinstance(before, int | float) and isinstance(after, int | float) and before > 0 and after > 0:
            return abs(math.log(after / before))
        return math.inf

    names = sorted(changed, key=size, reverse=True)
    told = [f"{name} {_short(current[name])}->{_short(changed[name])}" for name in names[:NAMED]]
    more = [f"{len(names) - NAMED} smaller steps"] if len(names) > NAMED else []
    return ", ".join(told + more) or "no change"


def _short(value: Any) -> str:
    return f"{value:.{SIGNIFICANT}g}" if isinstance(value, float) else str(value)
