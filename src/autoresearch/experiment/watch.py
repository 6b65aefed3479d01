"""What happens each time a run tells its progress: it is shown, it becomes a point of the curve, and it may end the run."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoresearch.experiment import curve
from autoresearch.experiment.crossing import slack
from autoresearch.experiment.curve import Curve, Point, Recorder
from autoresearch.experiment.early import BEHIND, SLOW, Slack, check
from autoresearch.experiment.runner import Progress
from autoresearch.experiment.witness import Witness
from autoresearch.lab import TRAIN

SHOW_EVERY = 0.1  # seconds: a train.py that floods its progress keeps no terminal busy


@dataclass(frozen=True)
class Against:
    """The incumbent that a run is compared with while it goes on."""

    curve: Curve
    slack: Slack
    steady: bool = True  # whether one code has one speed on this machine


def against(folder: Path, source: str, category: str, steady: bool) -> Against | None:
    """The incumbent in `folder`, for a train.py that changes it. None if it left no curve or no file to compare."""
    try:
        incumbent = (folder / TRAIN).read_bytes().decode()
        points = curve.read(folder)
        return Against(points, slack(incumbent, source, category), steady) if points else None
    except (FileNotFoundError, SyntaxError, UnicodeDecodeError):
        return None


class Watch:
    """Around one run. `rule`: None for what is never ended early; `witness`: so that others' load does not pass for slowness."""

    def __init__(
        self, folder: Path, show: Callable[[Progress], None], rule: Against | None = None, witness: Witness | None = None
    ) -> None:
        self.show, self.rule, self.witness = show, rule, witness
        self.shown = 0.0
        self.recorder = Recorder(folder)

    def __call__(self, now: Progress) -> None:
        """Raises `early.Ended`."""
        if time.monotonic() - self.shown >= SHOW_EVERY:
            self.shown = time.monotonic()
            self.show(now)
            if self.witness:
                self.witness.look()
        point, seen = Point(now.percent, now.loss, now.step), tuple(self.recorder.points)
        if (not self.recorder.add(point) and math.isfinite(now.loss)) or self.rule is None:
            return
        ended = check(point, seen, self.rule.curve, self.rule.slack, self.rule.steady)
        if ended and not (ended.kind in (SLOW, BEHIND) and self.witness and self.witness.disturbed()):
            raise ended
