"""Plain search as a researcher: single steps and CMA-ES over the ALL_CAPS literals of the incumbent's train.py.

It needs no network, no key and no agent. Discrete literals (whole numbers, choices) are moved one at a time: steps.py. The others
are searched together by CMA-ES, from the current values with small steps (on tasks of this size that beats TPE and a Gaussian
process within 20 trials), on top of the incumbent's discrete ones. Two of three proposals are steps while one is promising, later
one of three. A crash, out of memory above all, and a run that was stopped early count as worse than anything that was measured.

One study for each set of continuous literals and fingerprint lasts through all changes of structure. What those gained is taken out
of the scores that it is told: a kept step that left its literals alone lowers every score after it by the same, so that only what
the continuous literals do is compared. Of a proposal of another's that moved both nobody knows which did it: it is told as it is.
What was asked and told is kept by Optuna in `.autoresearch/search/`.
"""

import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import CmaEsSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoresearch.journal import Experiment
from autoresearch.lab import Lab
from autoresearch.literals import code_key, set_literals, values
from autoresearch.researchers import Context, Proposal, ResearcherFailed
from autoresearch.researchers.foreign import Point, inject
from autoresearch.researchers.lineage import Link, gained, line, lineage
from autoresearch.researchers.said import describe
from autoresearch.researchers.space import Dimension, space
from autoresearch.researchers.steps import attempts, steps

# First step size, as a fraction of a literal's range (0.05 is a factor of 1.15 on a log range of 1/4 to 4), and trials in a
# generation: the best of benchmarks/search.py over 20 to 100 trials.
SIGMA = 0.05
POPULATION = 6
CYCLE, STEPS_FIRST, STEPS_LATER = 3, 2, 1  # of three proposals, how many are steps: while one is promising, and afterwards
ATTEMPTS = 50  # points that are asked for until one is new

optuna.logging.set_verbosity(logging.ERROR)


@dataclass(frozen=True)
class Scores:
    """What the study is told of experiments: val_bpb without what others had gained, by number."""

    history: Sequence[Experiment]
    gained: Mapping[int, float]

    def of(self, done: Experiment) -> float | None:
        return None if done.val_bpb is None else done.val_bpb + self.gained[done.n]

    @property
    def penalty(self) -> float:
        """What a crash counts as: clearly worse than the worst that was measured."""
        known = [score for done in self.history if (score := self.of(done)) is not None]
        return max(known) + (max(known) - min(known)) + 0.01 if known else 1e9


class Search:
    name = "search"
    thinks = False

    def propose(self, context: Context) -> Proposal:
        context = replace(context, history=[done.whole for done in context.history])  # it goes by the literals of all of them
        links = lineage(context.history)
        ours = line(links, code_key(context.source))
        first = ours[0].done if ours else None
        origin = (first and first.literals) or values(context.source)
        dims = space(context.source, origin)
        if not dims:
            raise ResearcherFailed(
                "train.py has no ALL_CAPS literal that search could change: write one, or use another researcher"
            )
        turn = sum("step" in link.done.details or "study" in link.done.details for link in ours) % CYCLE
        step, promising = _step(context, ours, dims, f"{first.fingerprint} {first.session}" if first else "")
        if step and turn < (STEPS_FIRST if promising else STEPS_LATER):
            return step
        continuous = {name: dim for name, dim in dims.items() if not dim.discrete}
        found = _sample(context, links, continuous, origin, first) if continuous else None
        if proposal := found or step:
            return proposal
        raise ResearcherFailed("all that is near the incumbent was tried before: train.py leaves nothing more to search")


def _step(context: Context, ours: Iterable[Link], dims: Mapping[str, Dimension], session: str) -> tuple[Proposal | None, bool]:
    """The next step of a discrete literal, if one is left, and whether it is promising."""
    current = values(context.source)
    known = {code_key(context.source)} | {done.code_key for done in context.history}
    for step in steps(current, dims, attempts(ours, dims), session):
        changes = {step.move[0]: step.value}
        source = set_literals(context.source, changes)
        if code_key(source) not in known:
            return Proposal(source, describe(current, changes), {"step": list(step.move)}), step.promising
    return None, False


def _sample(
    context: Context,
    links: Sequence[Link],
    dims: Mapping[str, Dimension],
    origin: Mapping[str, Any],
    first: Experiment | None,
) -> Proposal | None:
    """A new point of the continuous literals, from CMA-ES; None if it has none."""
    current = values(context.source)
    scores = Scores(context.history, gained(links, dims))
    study = _study(context.lab, dims, first)
    told = _tell(study, scores)
    distributions = _distributions(dims)
    inject(study, distributions, _points(links, scores, dims, origin), POPULATION, SIGMA)
    known = {code_key(context.source): None} | {done.code_key: scores.of(done) for done in context.history}
    for _ in range(ATTEMPTS):
        trial = study.ask(distributions)
        wanted = {name: dim.decode(trial.params[name]) for name, dim in dims.items()}
        changes = {name: value for name, value in wanted.items() if value != current[name]}
        source = set_literals(context.source, changes)
        if (key := code_key(source)) not in known:
            details = {"study": study.study_name, "trial": trial.number, "told": told}
            return Proposal(source, describe(current, changes), details)
        score = known[key]  # no need to run it again
        study.tell(trial.number, scores.penalty if score is None else score)
    return None


def _distributions(dims: Mapping[str, Dimension]) -> dict[str, optuna.distributions.BaseDistribution]:
    return {name: FloatDistribution(*dim.limits(), log=True) for name, dim in dims.items()}


def _study(lab: Lab, dims: Mapping[str, Dimension], first: Experiment | None) -> optuna.Study:
    """The study of this space; new ones begin at the session's first values, with its first experiment as their first trial."""
    shape = {name: [dim.kind, dim.value] for name, dim in dims.items()}
    # The session's tag is in the key, and so in the seed: another session goes another way, the same one the same way.
    session = [first.fingerprint, first.session] if first else []
    key = hashlib.sha256(json.dumps([session, shape], sort_keys=True).encode()).hexdigest()[:12]
    folder = lab.journal / "search"
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
        value = first.val_bpb if first and first.val_bpb is not None else math.inf
        study.add_trial(optuna.trial.create_trial(params=start, distributions=_distributions(dims), value=min(value, 1e9)))
    return study


def _tell(study: optuna.Study, scores: Scores) -> int:
    """Give the study what became of its open trials, the penalty for a crash. Returns how many were told."""
    outcomes = {
        done.details["trial"]: scores.of(done)
        for done in scores.history
        if done.details.get("study") == study.study_name and "trial" in done.details
    }
    told = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number in outcomes:
            score = outcomes[trial.number]
            study.tell(trial.number, scores.penalty if score is None else score)
            told += 1
        else:  # never ran: lost with its process
            study.tell(trial.number, state=TrialState.FAIL)
    return told


def _points(links: Iterable[Link], scores: Scores, dims: Mapping[str, Dimension], origin: Mapping[str, Any]) -> list[Point]:
    """What others tried in this space. What left these literals alone, a step or a change of code, says nothing of them."""
    points = []
    for link in links:
        done, literals, score = link.done, link.done.literals or {}, scores.of(link.done)
        if score is None or "study" in done.details or not all(dim.holds(literals.get(name)) for name, dim in dims.items()):
            continue
        before = link.before.literals or {} if link.before else origin
        if any(literals[name] != before.get(name) for name in dims):
            points.append(Point(done.n, {name: dim.encode(literals[name]) for name, dim in dims.items()}, score))
    return points


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
