"""Plain search as a researcher: CMA-ES over the ALL_CAPS literals of the incumbent's train.py.

It needs no network, no key and no agent. It starts at the current values with small steps (on tasks of this size that beats TPE and
a Gaussian process within 20 trials). A literal's own line says how it is searched: its value gives the scale, "one of:" in its
comment names choices, "fixed" keeps it out. A crash, out of memory above all, counts as worse than anything that was measured.

What was asked and told is kept by Optuna in `.autoresearch/search/`, one study for each set of literals and fingerprint.
"""

import ast
import hashlib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import CmaEsSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoresearch.journal import Experiment
from autoresearch.literals import Literal, Value, code_key, read_literals, set_literals
from autoresearch.researchers import Context, Proposal, ResearcherFailed
from autoresearch.researchers.foreign import Point, inject
from autoresearch.researchers.said import SIGNIFICANT, describe

SPAN = 4.0  # a value is searched from 1/SPAN to SPAN times itself
# First step size, as a fraction of a literal's range (0.05 is a factor of 1.15 on a log range of 1/4 to 4), and trials in a
# generation: the best of benchmarks/search.py over 20 to 100 trials.
SIGMA = 0.05
POPULATION = 6
SMALLEST_POWER = 16  # ints from here on that are powers of two stay powers of two
NEAR_ONE = 0.5  # floats from here to 1 (momenta, decay rates) are searched by their distance to 1
# Literals beyond these are no settings: a seed, a sentinel, an epsilon that is there for the arithmetic.
MAX_INT = 2**40
MIN_FLOAT, MAX_FLOAT = 1e-30, 1e30
MIN_DISTANCE, MAX_DISTANCE = 1e-6, 0.99  # of a float to 1
ATTEMPTS = 50  # points that are asked for until one is new; where all literals are small whole numbers there are few

optuna.logging.set_verbosity(logging.ERROR)


@dataclass(frozen=True)
class Dimension:
    """How one literal is searched; `encode` and `decode` translate to the number that CMA-ES sees."""

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

    def distribution(self) -> BaseDistribution:
        low, high = self.limits()
        if self.kind in ("near_one", "log"):
            return FloatDistribution(low, high, log=True)
        return IntDistribution(int(low), int(high))

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


class Search:
    name = "search"
    thinks = False

    def propose(self, context: Context) -> Proposal:
        current = {name: literal.value for name, literal in read_literals(context.source).items()}
        scored = [done for done in context.history if done.val_bpb is not None]
        # The newest: a session of its own, or a train.py that a person committed, is searched from its own values.
        baseline = next((done for done in reversed(scored) if done.baseline), scored[0] if scored else None)
        origin = baseline.literals if baseline and baseline.literals else current
        dims = space(context.source, origin)
        if not dims:
            raise ResearcherFailed(
                "train.py has no ALL_CAPS literal that search could change: write one, or use another researcher"
            )
        study = self._study(context, dims, origin, baseline)
        penalty = _penalty([done.val_bpb for done in scored if done.val_bpb is not None])
        told = self._tell(study, context.history, penalty)
        points = [
            Point(done.n, {name: dim.encode(done.literals[name]) for name, dim in dims.items()}, done.val_bpb)
            for done in scored
            if "study" not in done.details and done.val_bpb is not None and done.literals and _moved(done.literals, dims, origin)
        ]
        inject(study, {name: dim.distribution() for name, dim in dims.items()}, points, POPULATION, SIGMA)
        distributions = {name: dim.distribution() for name, dim in dims.items()}
        known = {code_key(context.source): None} | {done.code_key: done.val_bpb for done in context.history}
        for _ in range(ATTEMPTS):
            trial = study.ask(distributions)
            wanted = {name: dim.decode(trial.params[name]) for name, dim in dims.items()}
            changes = {name: value for name, value in wanted.items() if value != current[name]}
            source = set_literals(context.source, changes)
            if (key := code_key(source)) not in known:
                details = {"study": study.study_name, "trial": trial.number, "told": told}
                return Proposal(source, describe(current, changes), details)
            score = known[key]  # no need to run it again
            study.tell(trial.number, penalty if score is None else score)
        raise ResearcherFailed(f"{ATTEMPTS} points in a row were tried before: train.py leaves nothing more to search")

    @staticmethod
    def _study(
        context: Context, dims: Mapping[str, Dimension], origin: Mapping[str, Any], baseline: Experiment | None
    ) -> optuna.Study:
        """The study of this space; new ones begin at the session's first values, with the baseline as their first trial."""
        shape = {name: [dim.kind, dim.value, list(dim.choices)] for name, dim in dims.items()}
        # The session's tag is in the key, and so in the seed: another session goes another way, the same one the same way.
        session = [baseline.fingerprint, baseline.session] if baseline else []
        key = hashlib.sha256(json.dumps([session, shape], sort_keys=True).encode()).hexdigest()[:12]
        folder = context.lab.journal / "search"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{key}.log"
        _mend_tail(log)
        lock: Any = _NoLock()
        storage = JournalStorage(JournalFileBackend(str(log), lock))
        start = {name: dim.encode(dim.value) for name, dim in dims.items()}
        with warnings.catch_warnings():  # x0 and sigma0 are to go in Optuna 6; pyproject.toml stays below it
            warnings.simplefilter("ignore")
            sampler = CmaEsSampler(x0=start, sigma0=SIGMA, popsize=POPULATION, seed=int(key, 16) % 2**31, with_margin=True)
        study = optuna.create_study(study_name=key, storage=storage, sampler=sampler, load_if_exists=True)
        if not study.get_trials(deepcopy=False):
            value = baseline.val_bpb if baseline and baseline.val_bpb is not None else math.inf
            distributions = {name: dim.distribution() for name, dim in dims.items()}
            study.add_trial(optuna.trial.create_trial(params=start, distributions=distributions, value=min(value, 1e9)))
        return study

    @staticmethod
    def _tell(study: optuna.Study, history: Sequence[Experiment], penalty: float) -> int:
        """Give the study what became of its open trials, `penalty` for a crash. Returns how many were told."""
        outcomes = {
            done.details["trial"]: done.val_bpb
            for done in history
            if done.details.get("study") == study.study_name and "trial" in done.details
        }
        told = 0
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in outcomes:
                score = outcomes[trial.number]
                study.tell(trial.number, penalty if score is None else score)
                told += 1
            else:  # never ran: lost with its process
                study.tell(trial.number, state=TrialState.FAIL)
        return told


def _moved(literals: Mapping[str, Any], dims: Mapping[str, Dimension], origin: Mapping[str, Any]) -> bool:
    """Whether these literals are a point of the space, and another than its start: a change of code alone says nothing of them."""
    inside = all(name in literals and dim.holds(literals[name]) for name, dim in dims.items())
    return inside and any(literals[name] != origin.get(name) for name in dims)


def _penalty(scores: Sequence[float]) -> float:
    """What a crash counts as: clearly worse than the worst that was measured."""
    return max(scores) + (max(scores) - min(scores)) + 0.01 if scores else 1e9


class _NoLock:
    """For Optuna's file: we hold the lab's lock. Its own would outlive a killed process, and the next one wait 30 s for it."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend_tail(log: Path) -> None:
    """Cut off a last line that a killed process left half written: Optuna would not read the file again."""
    if log.exists() and not (data := log.read_bytes()).endswith(b"\n"):
        os.truncate(log, data.rfind(b"\n") + 1)
