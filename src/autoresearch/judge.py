"""The keep rule: turns scores into better, not better, or "run it again".

Pure functions of scores and noise. A run scatters by sigma (noise.py), so one that is lower than the incumbent by less than that
says little. After each run a sequential test asks which fits the scores better: no gain, or one of at least GAIN sigmas. It is
Wald's probability ratio test (1945), with the likelihoods at their largest under each hypothesis, and as Student's t since sigma is
an estimate too. The incumbent's mean leaves out its first run, which was selected for being low, and is as uncertain as its other
runs are few: where it has no more of them than the candidate, the next run is the incumbent's, and serves all later candidates too.

A candidate with clearly less code need not be better: it has to be, as good as surely, less than a margin worse.

The constants are chosen by simulation: benchmarks/judge.py, which calls this code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoresearch.noise import Noise, mean

MEASURED, STRICT = "measured", "strict"  # --keep
BETTER, SIMPLER, NOT_BETTER = "better", "as good, and simpler", "not better"
AGAIN, AGAIN_INCUMBENT = "again", "again, the incumbent"

GAIN = 2.0  # sigmas: what the test looks for
SURE_BETTER, SURE_NOT = 3.5, -0.5  # logarithms of the likelihood ratio that end the test
LAST = 2.0  # what it has to reach when there is no further run
MARGIN = 0.75  # sigmas by which simpler code may be worse: 0.0003 bpb at 300 s on a GPU
EQUAL = 1.0  # standard errors by which it has to be inside of the margin
MARGINS = 4  # kept for that in one session: 3 sigmas are risked in all


@dataclass(frozen=True)
class Rule:
    """How a session judges."""

    keep: str = MEASURED
    noise_runs: int = 3  # of a baseline
    most_runs: int = 4  # of a candidate
    most_reference: int = 5  # of an incumbent, without its first: more are not made for a candidate's sake
    sure_not: float = SURE_NOT  # evidence at which a candidate is given up
    simpler: bool = True  # whether as good and clearly less code is a keep
    hurried: int = 0  # experiments at a lab's beginning that shall cost few repeats, so that a first look takes minutes

    def at(self, number: int) -> "Rule":
        """For a lab's `number`-th experiment. In a hurry a candidate is run again only where its first run speaks for it, and a
        baseline never."""
        return replace(self, most_reference=1, sure_not=0.5) if number <= self.hurried else self


GPU = Rule()
CPU = Rule(noise_runs=1, most_runs=2, most_reference=2, hurried=5)


@dataclass(frozen=True)
class Incumbent:
    scores: tuple[float, ...]  # of its runs, in order
    selected: bool = True  # whether the first decided that it is the incumbent: not so for a baseline

    @property
    def fair(self) -> tuple[float, ...]:
        return self.scores[1:] if self.selected else self.scores

    @property
    def reference(self) -> tuple[float, ...]:
        """What candidates are compared with: the first run too where there is no other."""
        return self.fair or self.scores

    def again(self, score: float) -> "Incumbent":
        return replace(self, scores=(*self.scores, score))


@dataclass(frozen=True)
class Verdict:
    outcome: str
    reference: float  # what it was compared with, bpb
    error: float  # standard error of the difference, bpb


def compare(candidate: Sequence[float], incumbent: Incumbent, noise: Noise, rule: Rule, simpler: bool = False) -> Verdict:
    """`candidate`: the scores of its runs so far; `simpler`: whether it has clearly less code, and may be kept for that."""
    if rule.keep == STRICT:
        before = mean(incumbent.scores)
        return Verdict(BETTER if mean(candidate) < before else NOT_BETTER, before, 0.0)
    reference = incumbent.reference
    difference = mean(candidate) - mean(reference)
    error = noise.sigma * math.sqrt(1 / len(candidate) + 1 / len(reference))
    evidence = likelihood_ratio(difference / error, GAIN * noise.sigma / error, noise.degrees)
    inside = (MARGIN * noise.sigma - difference) / error
    if evidence >= SURE_BETTER:
        outcome = BETTER
    elif simpler and inside >= EQUAL:
        outcome = SIMPLER
    elif inside <= -EQUAL if simpler else evidence <= rule.sure_not:
        outcome = NOT_BETTER
    elif len(incumbent.fair) <= len(candidate) and len(incumbent.fair) < rule.most_reference:
        outcome = AGAIN_INCUMBENT
    elif len(candidate) < rule.most_runs:
        outcome = AGAIN
    else:
        outcome = BETTER if evidence >= LAST else NOT_BETTER
    return Verdict(outcome, mean(reference), error)


def likelihood_ratio(difference: float, gain: float, degrees: float) -> float:
    """Logarithm of the likelihood of a gain of at least `gain` over that of none. In standard errors; a lower score is a gain."""
    from_none, from_gain = max(0.0, -difference), max(0.0, difference + gain)
    return (degrees + 1) / 2 * (math.log1p(from_none**2 / degrees) - math.log1p(from_gain**2 / degrees))
