"""A run's loss curve, as its train.py prints it: recorded while it runs, small, beside its log.

A line of `curve.tsv` is percent of the budget, loss, steps. Numbers alone, the candidate's own word: good for telling people and
for ending a run early, never for a score.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "curve.tsv"
EVERY = 0.5  # percent of the budget between two points, so that a file has at most 200 lines
# Windows for `noise`: the first quarter of a run bends too much to tell its noise from its course.
SETTLED, WINDOW = 25.0, 7.5  # percent of the budget
# Variance of a third difference over that of a window: 20 if windows were independent, but train.py's smoothing carries a part of
# each into the next. This is what it comes to on 200 made-up steps; where there are more the noise is overrated.
THIRD = 7.5


@dataclass(frozen=True)
class Point:
    percent: float  # of the budget
    loss: float  # nats per token, smoothed as train.py does
    step: int


Curve = Sequence[Point]


class Recorder:
    """Writes the points of one run as they come."""

    def __init__(self, folder: Path) -> None:
        self.points: list[Point] = []
        self._path = folder / FILE
        self._path.unlink(missing_ok=True)

    def add(self, point: Point) -> bool:
        """False if it is left out: no later than the last one, too close to it, or no number."""
        last = self.points[-1].percent if self.points else -EVERY
        if not last + EVERY <= point.percent <= 100 or not math.isfinite(point.loss):
            return False
        self.points.append(point)
        with contextlib.suppress(OSError), self._path.open("a") as file:  # a run that filled the disk is its own crash
            file.write(f"{point.percent:.1f}\t{point.loss:.6g}\t{point.step}\n")
        return True


def read(folder: Path) -> list[Point]:
    """The curve of the run in this folder; empty if it never had a loss. A line that was cut by a crash ends it."""
    points: list[Point] = []
    try:
        for line in (folder / FILE).read_text().splitlines():
            percent, loss, step = line.split("\t")
            points.append(Point(float(percent), float(loss), int(step)))
    except (FileNotFoundError, ValueError):
        pass
    return points


def mean(curve: Curve, begin: float, end: float) -> float | None:
    """The mean loss between two shares of the budget; None if no point lies there."""
    losses = [point.loss for point in curve if begin < point.percent <= end]
    return math.fsum(losses) / len(losses) if losses else None


def steps_at(curve: Curve, percent: float) -> float:
    """How many steps were done at this share of the budget, between the points on a line."""
    before = Point(0.0, 0.0, 0)
    for point in curve:
        if point.percent >= percent:
            share = (percent - before.percent) / (point.percent - before.percent)
            return before.step + share * (point.step - before.step)
        before = point
    return before.step * percent / before.percent if before.percent else 0.0


def percent_at(curve: Curve, steps: float) -> float:
    """The share of the budget at which so many steps were done; the last one known if there never were so many."""
    return next((point.percent for point in curve if point.step >= steps), curve[-1].percent if curve else 0.0)


def noise(curve: Curve) -> float:
    """Standard deviation of a window's mean loss, in nats; 0 where the curve is too short to tell.

    From the third differences of neighbouring windows, which a smooth course leaves small; taken at every third of a window, which
    makes more of one curve.
    """
    starts = [SETTLED + i * WINDOW / 3 for i in range(int(3 * (100 - SETTLED) / WINDOW) - 2)]
    means = [mean(curve, start, start + WINDOW) for start in starts]
    known = [each for each in means if each is not None]
    if len(known) < len(starts):
        return 0.0
    differences = [d - 3 * c + 3 * b - a for a, b, c, d in zip(known, known[3:], known[6:], known[9:], strict=False)]
    return math.sqrt(math.fsum(each * each for each in differences) / len(differences) / THIRD)
