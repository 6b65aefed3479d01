"""How far the runs of one train.py differ: a prior, and what the repeats of a session say.

sigma is the standard deviation of val_bpb over runs that differ in their seed alone. Repeats are few, so what they say is drawn
towards a prior: the pooled variance within commits, to which the prior adds as many degrees of freedom as it is worth (the
posterior mean of an inverse-gamma distribution, read as Student's t). Standard library only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prior:
    sigma: float  # bpb
    weight: float  # degrees of freedom that it counts for
    source: str  # where it was measured


@dataclass(frozen=True)
class Noise:
    """sigma in bpb, the degrees of freedom it rests on with the prior's, and how many of those were measured here."""

    sigma: float
    degrees: float
    measured: int


FULL_BUDGET = 300.0  # seconds
# 85 groups of runs of one code: 0.0013 nats (0.0004 bpb) in the middle, four fifths of them between 0.7 and 1.5 times that, which
# scatter as variances of about ten degrees of freedom do.
GPU = Prior(0.0004, 10.0, "300 s runs of one code on H100s, 85 groups")
# Two CPU cores, 15 s (benchmarks/sessions.py): 0.010 over four seeds and 0.04 with a fifth, 0.015 with one seed beside other work;
# 0.003 at 30 s on a quiet machine. So wide a range is worth two repeats.
CPU = Prior(0.008, 2.0, "runs of 15 to 30 s on two CPU cores, quiet and loaded")


def prior_for(device: str, budget: float) -> Prior:
    """The prior for a run of `budget` seconds. A shorter one scatters more (0.0006 at 75 s on a GPU): at most as its root."""
    if device != "cuda":
        return CPU
    return Prior(GPU.sigma * math.sqrt(max(1.0, FULL_BUDGET / budget)), GPU.weight, GPU.source)


def estimate(prior: Prior, groups: Iterable[Sequence[float]]) -> Noise:
    """`groups`: the scores of each commit's runs."""
    squares, degrees = prior.weight * prior.sigma**2, 0
    for scores in groups:
        if len(scores) > 1:  # of thousands hardly any
            middle = mean(scores)
            squares += sum((score - middle) ** 2 for score in scores)
            degrees += len(scores) - 1
    return Noise(math.sqrt(squares / (prior.weight + degrees)), prior.weight + degrees, degrees)


@dataclass(frozen=True)
class Gain:
    """By how much one mean is lower than another, bpb, with the interval that holds it 19 times in 20."""

    value: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        return self.low > 0

    @property
    def is_loss(self) -> bool:
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.6f} ({self.low:.6f} to {self.high:.6f})"


def gain(pairs: Sequence[tuple[float, float]], prior: Prior) -> Gain:
    """From (before, after) of the same seeds, so that what a seed does to both is no noise."""
    differences = [before - after for before, after in pairs]
    found = estimate(Prior(math.sqrt(2) * prior.sigma, prior.weight, prior.source), [differences])
    half = quantile(found.degrees) * found.sigma / math.sqrt(len(differences))
    return Gain(mean(differences), mean(differences) - half, mean(differences) + half)


def quantile(degrees: float, normal: float = 1.96) -> float:
    """Of Student's t, where the normal distribution has `normal`; by Wallace's approximation (1959), 4% off at 2 degrees."""
    scaled = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return math.sqrt(degrees * math.expm1(scaled**2 / degrees))


def mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)
