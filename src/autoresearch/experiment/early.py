"""When a run is not worth its end: the rule, on curves alone.

Only for a change that is compared with an incumbent. What it goes by is the candidate's own word, so a train.py can hurt no
other than itself: a run that is ended early is never kept.

The margins are those of runs of 300 s on a GPU, from public logs of speed-runs: at 70 to 75% of the way 99.9% of the runs of one
code lie less than 0.011 nats above their own mean. Where batches are small, as on a CPU, most of a difference is their luck: that
part is read off the incumbent's own curve and added. Where the speed of one code is not steady from run to run, as on a CPU
(other tenants, heat), fewer steps are not held against a run: it has to be behind at equal steps too. `benchmarks/early.py` replays
the rule on recorded sessions.
"""

import math
from dataclasses import dataclass

from autoresearch.experiment import curve
from autoresearch.experiment.curve import Curve, Point
from autoresearch.journal import CRASHED, STOPPED, RunResult

# Classes of what is ended.
NON_FINITE, BLOWN_UP, SLOW, BEHIND = "non-finite", "blown-up", "slow", "behind"
CHECKS = ((30.0, 0.10), (72.5, 0.015))  # percent of the budget, nats behind the incumbent
# Standard deviations of two windows' difference, in each of two windows one after the other. Of 1,500 made-up runs like their
# incumbent, with the scatter of the CPU profile, it ended 0.4%.
SURE = 1.85
SLOWEST, SLOWEST_UNSTEADY = 0.7, 0.4  # of the incumbent's steps at the same share of the budget; where speed jumps
FIRST_STEPS, FIRST_PERCENT = 30, 5.0  # before them neither speed nor loss says anything
SPEED_UNTIL = 50.0  # percent; later there is less to save than a disturbance may cost
UNTRAINED_PERCENT, UNTRAINED = 10.0, 0.5  # nats above any loss of the incumbent's: it diverges


@dataclass(frozen=True)
class Slack:
    """What of the rule holds for a change (see `crossing.py`)."""

    blown_up: bool = True  # its loss can be compared with the incumbent's at all
    behind: float | None = 1.0  # by how much the margins are multiplied; None: neither behind nor slow ends it


class Ended(Exception):
    """Raised where progress is told: the run has come to its end."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail

    def result(self, wall: float, memory_mb: float | None, seed: int) -> RunResult:
        outcome = CRASHED if self.kind == NON_FINITE else STOPPED
        return RunResult(outcome, wall_seconds=wall, memory_mb=memory_mb, crash_class=self.kind, detail=self.detail, seed=seed)


def check(now: Point, seen: Curve, incumbent: Curve, slack: Slack, steady: bool = True) -> Ended | None:
    """Why the run ends at `now`; None if it goes on. `seen`: its points before that; `steady`: one code has one speed here."""
    if not math.isfinite(now.loss):
        return Ended(NON_FINITE, f"the loss is {now.loss} at step {now.step}")
    if not incumbent or now.step < FIRST_STEPS or now.percent < FIRST_PERCENT:
        return None
    worst = max(point.loss for point in incumbent) + UNTRAINED
    if slack.blown_up and now.percent >= UNTRAINED_PERCENT and now.loss > worst:
        return Ended(BLOWN_UP, f"loss {now.loss:.2f} at {now.percent:.0f}%, above an untrained model's")
    if slack.behind is None:
        return None
    return _slow(now, incumbent, steady) or _behind(now, seen, incumbent, slack.behind, steady)


def _slow(now: Point, incumbent: Curve, steady: bool) -> Ended | None:
    expected = curve.steps_at(incumbent, now.percent)
    if now.percent > SPEED_UNTIL or now.step >= (SLOWEST if steady else SLOWEST_UNSTEADY) * expected:
        return None
    return Ended(SLOW, f"{now.step / expected:.0%} of the incumbent's steps at {now.percent:.0f}%")


def _behind(now: Point, seen: Curve, incumbent: Curve, slack: float, steady: bool) -> Ended | None:
    """At each check once. In two windows one after the other, so that no lucky stretch decides."""
    before = seen[-1].percent if seen else 0.0
    margin = next((margin for at, margin in CHECKS if before < at <= now.percent), None)
    if margin is None:
        return None
    gaps = []
    for end in (now.percent, now.percent - curve.WINDOW):
        begin = end - curve.WINDOW
        own, other = (curve.mean(points, begin, end) for points in ([*seen, now], incumbent))
        if own is None or other is None:
            return None
        if not steady:
            at_its_steps = (curve.percent_at(incumbent, curve.steps_at([*seen, now], percent)) for percent in (begin, end))
            other = max(other, curve.mean(incumbent, *at_its_steps) or other)
        gaps.append(own - other)
    if min(gaps) <= slack * margin + SURE * math.sqrt(2) * curve.noise(incumbent):
        return None
    return Ended(BEHIND, f"{gaps[0]:.2f} nats behind the incumbent at {now.percent:.0f}%")
