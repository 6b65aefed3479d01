"""What the search's parts are worth, by simulation.

    uv run python benchmarks/search.py

Two made-up tasks, with noise of 0.002 bpb on every score. Printed is the share of the possible gain that the best-looking trial
really has; the mean of 60 tasks.

The first has 20 literals on log scales: a bowl whose curvatures differ a hundredfold and whose lowest point lies about a factor of
1.5 off in each. It is there for CMA-ES's first step size and population.

The second has 6 whole numbers besides, each lowest up to two steps off, up as often as down, and each with a bowl of its own: the
step next to the lowest point costs 0.005 to 0.04 bpb. A train.py whose numbers are together more than two steps larger than at the
start is out of memory. It compares the researcher as it is, on a real train.py and from its own history, with CMA-ES over all
literals at once.
"""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cmaes import CMA, CMAwM

from autoresearch.journal import CRASHED, SCORED, SETTLED, Experiment, RunResult
from autoresearch.lab import Lab
from autoresearch.literals import code_key, values
from autoresearch.researchers import Context
from autoresearch.researchers.search import Search
from autoresearch.researchers.study import POPULATION, SIGMA
from autoresearch.results import CRASH, DISCARD, KEEP

DIMENSIONS, TASKS, TRIALS, NOISE = 20, 60, 100, 0.002
RANGE = 2 * np.log(4)  # natural logarithm from a quarter to four times the value
MARKS = (5, 20, 50, 100)
WHOLE, START, FURTHEST, ROOM = 6, 4, 2, 2  # numbers, their first value, how far off the lowest is, how much larger the sum may get
MARKS_OF_BOTH = (5, 20, 50)


class Bowl:
    """Over numbers from 0 to 1 that stand for factors from 1/4 to 4."""

    def __init__(self, random: np.random.Generator) -> None:
        self.curvature = np.exp(random.normal(np.log(0.01), 1.2, DIMENSIONS))
        self.curvature[:3] *= 5
        self.lowest = random.normal(0, 0.4, DIMENSIONS)

    def __call__(self, point: np.ndarray) -> float:
        return float(np.sum(self.curvature * ((point - 0.5) * RANGE - self.lowest) ** 2))


class Structured:
    """That bowl and one over whole numbers; None is out of memory."""

    def __init__(self, random: np.random.Generator) -> None:
        self.bowl = Bowl(random)
        self.price = np.exp(random.uniform(np.log(0.005), np.log(0.04), WHOLE))
        self.best = START + random.integers(-FURTHEST, FURTHEST + 1, WHOLE)

    def __call__(self, point: np.ndarray, whole: np.ndarray) -> float | None:
        if np.sum(whole - START) > ROOM:
            return None
        return self.bowl(point) + float(np.sum(self.price * (whole - self.best) ** 2))


@dataclass
class Account:
    """What a researcher came to: of its trials, in order, the share that the best-looking one so far really has."""

    first: float
    seen: float
    true: float = field(init=False)
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.true = self.first

    def add(self, true: float | None, seen: float | None) -> bool:
        """Whether it looked better than all before."""
        better = true is not None and seen is not None and seen < self.seen
        if better:
            self.seen, self.true = seen, true
        self.shares.append((self.first - self.true) / self.first)
        return better


def alone(seed: int, sigma: float, population: int) -> list[float]:
    """CMA-ES on the bowl."""
    random = np.random.default_rng(seed)
    score = Bowl(random)
    start = np.full(DIMENSIONS, 0.5)
    bounds = np.tile([0.0, 1.0], (DIMENSIONS, 1))
    search = CMA(mean=start, sigma=sigma, population_size=population, seed=seed + 1, bounds=bounds)
    first = score(start)
    account = Account(first, first + random.normal(0, NOISE))
    told = []
    for _ in range(TRIALS):
        point = search.ask()
        true = score(point)
        seen = true + random.normal(0, NOISE)
        account.add(true, seen)
        told.append((point, seen))
        if len(told) == population:
            search.tell(told)
            told = []
    return [account.shares[mark - 1] for mark in MARKS]


def at_once(seed: int) -> list[float]:
    """CMA-ES over all literals, the whole numbers from half to twice their first value as a step of their range each."""
    random = np.random.default_rng(seed)
    task = Structured(random)
    low, high = START // 2, START * 2
    start = np.array([0.5] * DIMENSIONS + [(START - low) / (high - low)] * WHOLE)
    bounds = np.tile([0.0, 1.0], (DIMENSIONS + WHOLE, 1))
    steps = np.array([0.0] * DIMENSIONS + [1 / (high - low)] * WHOLE)
    search = CMAwM(mean=start, sigma=SIGMA, population_size=POPULATION, seed=seed + 1, bounds=bounds, steps=steps)
    first = task(start[:DIMENSIONS], np.full(WHOLE, START)) or 0.0
    account = Account(first, first + random.normal(0, NOISE))
    told, worst = [], account.seen
    for _ in range(MARKS_OF_BOTH[-1]):
        point, place = search.ask()
        true = task(point[:DIMENSIONS], np.round(low + point[DIMENSIONS:] * (high - low)))
        seen = None if true is None else true + random.normal(0, NOISE)
        account.add(true, seen)
        worst = max(worst, seen or worst)
        told.append((place, 2 * worst - account.seen + 0.01 if seen is None else seen))
        if len(told) == POPULATION:
            search.tell(told)
            told = []
    return [account.shares[mark - 1] for mark in MARKS_OF_BOTH]


def by_steps(seed: int, folder: Path) -> list[float]:
    """The researcher itself."""
    random = np.random.default_rng(seed)
    task = Structured(random)
    rates = [f"RATE_{chr(65 + n)}" for n in range(DIMENSIONS)]
    sizes = [f"SIZE_{chr(65 + n)}" for n in range(WHOLE)]
    source = "".join(f"{name} = 0.001\n" for name in rates) + "".join(f"{name} = {START}\n" for name in sizes)

    def score(text: str) -> float | None:
        literals = values(text)
        point = 0.5 + np.log([literals[name] / 0.001 for name in rates]) / RANGE
        return task(point, np.array([literals[name] for name in sizes]))

    first = score(source) or 0.0
    account = Account(first, first + random.normal(0, NOISE))
    history = [experiment(1, str(seed), source, account.seen, None, {})]
    for n in range(2, MARKS_OF_BOTH[-1] + 2):
        proposal = Search().propose(Context(Lab(folder), source, "", history, folder))
        true, before = score(proposal.source), account.seen
        seen = None if true is None else true + random.normal(0, NOISE)
        if account.add(true, seen):
            source = proposal.source
        history.append(experiment(n, str(seed), proposal.source, seen, before, proposal.details))
    return [account.shares[mark - 1] for mark in MARKS_OF_BOTH]


def experiment(n: int, session: str, source: str, seen: float | None, before: float | None, details: dict) -> Experiment:
    return Experiment(
        n=n,
        session=session,
        stage=SETTLED,
        description="",
        researcher="search",
        fingerprint="made up",
        code_key=code_key(source),
        parent="",
        started="",
        baseline=before is None,
        result=RunResult(CRASHED, crash_class="oom") if seen is None else RunResult(SCORED, val_bpb=seen),
        status=CRASH if seen is None else KEEP if before is None or seen < before else DISCARD,
        incumbent_bpb=before,
        literals=values(source),
        details=details,
    )


def of_cma() -> Iterator[str]:
    yield "| population | first step | " + " | ".join(f"{mark} trials" for mark in MARKS) + " |"
    yield "|---|---|" + "---|" * len(MARKS)
    for population in (4, 6, 8, 12):
        for sigma in (0.03, 0.05, 0.06, 0.08, 0.1, 0.15):
            shares = np.mean([alone(seed, sigma, population) for seed in range(TASKS)], axis=0)
            yield f"| {population} | {sigma} | " + " | ".join(f"{share:.2f}" for share in shares) + " |"


def of_both() -> Iterator[str]:
    yield "| with whole numbers | " + " | ".join(f"{mark} trials" for mark in MARKS_OF_BOTH) + " |"
    yield "|---|" + "---|" * len(MARKS_OF_BOTH)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "CMA-ES over all literals at once": [at_once(seed) for seed in range(TASKS)],
            "steps, and CMA-ES over the rest": [by_steps(seed, Path(folder)) for seed in range(TASKS)],
        }
    for name, shares in ways.items():
        yield f"| {name} | " + " | ".join(f"{share:.2f}" for share in np.mean(shares, axis=0)) + " |"


def main() -> None:
    warnings.simplefilter("ignore")
    for table in (of_both, of_cma):
        print("\n".join(table()), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
