"""How the literals of a train.py are searched: a literal's own line says it. Its value gives the scale, "one of:" in its comment
names choices, "fixed" keeps it out. Standard library only.
"""

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autoresearch.literals import Literal, Value, read_literals
from autoresearch.researchers.said import SIGNIFICANT

SPAN = 4.0  # a value is searched from 1/SPAN to SPAN times itself
STRIDE = 8  # a step of a whole number is this part of it, and at least 1: one in a hundred would drown in the noise
SMALLEST_POWER = 16  # ints from here on that are powers of two stay powers of two
NEAR_ONE = 0.5  # floats from here to 1 (momenta, decay rates) are searched by their distance to 1
# Literals beyond these are no settings: a seed, a sentinel, an epsilon that is there for the arithmetic.
MAX_INT = 2**40
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30
MIN_DISTANCE, MAX_DISTANCE = 1e-6, 0.99  # of a float to 1


@dataclass(frozen=True)
class Dimension:
    """How one literal is searched; `encode` and `decode` translate to the number that it is searched by."""

    name: str
    kind: str  # choice, power, int, near_one, log
    value: Value
    choices: tuple[Value, ...] = ()

    def encode(self, value: Any) -> float | int:
        match self.kind:
            case "choice":
                return self.choices.index(value)
            case "power":
                return int(math.log2(value))
            case "near_one":
                return float(1 - value)
            case _:
                return value  # type: ignore[no-any-return]

    def decode(self, number: float) -> Value:
        match self.kind:
            case "choice":
                return self.choices[int(number)]
            case "power":
                return 1 << int(number)
            case "int":
                return int(number)
            case "near_one":
                return round(1 - _rounded(number), 12)  # 0.1, not 0.09999999999999998
            case _:
                return _rounded(number)

    def limits(self) -> tuple[float, float]:
        """Lowest and highest number, both included."""
        at: Any = self.encode(self.value)
        match self.kind:
            case "choice":
                return 0, len(self.choices) - 1
            case "power":
                return max(0, at - 2), at + 2
            case "int":
                return max(1, int(at) // 2), at * 2
            case "near_one":
                return at / SPAN, min(MAX_DISTANCE, at * SPAN)
            case _:
                return at / SPAN, min(1.0, at * SPAN) if at <= 1 else at * SPAN

    @property
    def discrete(self) -> bool:
        return self.kind in ("choice", "power", "int")

    def neighbour(self, value: Any, direction: int) -> Value | None:
        """One step up (1) or down (-1) from a value that it holds; None beyond the limits. Of discrete ones only."""
        stride = max(1, int(self.value) // STRIDE) if self.kind == "int" else 1
        number = self.encode(value) + direction * stride
        low, high = self.limits()
        return self.decode(number) if low <= number <= high else None

    def holds(self, value: Any) -> bool:
        """Whether the search could have come to this value, rounded as it is."""
        if self.kind == "choice":
            return value in self.choices
        if type(value) is not type(self.value) or not isinstance(value, int | float) or value <= 0:
            return False
        if self.kind == "power" and int(value).bit_count() != 1:
            return False
        slack = 0.0 if isinstance(value, int) else 5 * 10.0**-SIGNIFICANT
        low, high = self.limits()
        return bool(low * (1 - slack) <= self.encode(value) <= high * (1 + slack))


def _rounded(number: float) -> float:
    return float(f"{number:.{SIGNIFICANT}g}")


def dimension(literal: Literal) -> Dimension | None:
    """How a literal is searched; None if it is not."""
    name, value = literal.name, literal.value
    if re.search(r"\bfixed\b", literal.comment):
        return None
    if found := re.search(r"one of:\s*([^;()]+)", literal.comment):
        choices = tuple(_choice(word.strip()) for word in found[1].split(","))
        return Dimension(name, "choice", value, choices) if value in choices and len(choices) > 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    if isinstance(value, int):
        if value > MAX_INT:
            return None
        is_power = value >= SMALLEST_POWER and value & (value - 1) == 0
        return Dimension(name, "power" if is_power else "int", value)
    if not MIN_FLOAT <= value <= MAX_FLOAT or 0 < 1 - value < MIN_DISTANCE:
        return None
    return Dimension(name, "near_one" if NEAR_ONE <= value < 1 else "log", value)


def _choice(word: str) -> Value:
    try:
        value = ast.literal_eval(word)
        return value if isinstance(value, int | float | bool | str) else word
    except (ValueError, SyntaxError):
        return word


def space(source: str, origin: Mapping[str, Any]) -> dict[str, Dimension]:
    """How the literals of `source` are searched: kinds and ranges are those of the values in `origin`, so that they stay put
    while the incumbent moves. A literal that somebody else has moved out of its range gets one around its value now."""
    found: dict[str, Dimension] = {}
    for name, literal in read_literals(source).items():
        begun = dimension(replace(literal, value=origin.get(name, literal.value)))
        now = begun if begun and begun.holds(literal.value) else dimension(literal)
        if now:
            found[name] = now
    return found
