"""Plain search as a researcher: steps and CMA-ES over the ALL_CAPS literals of the incumbent's train.py.

It needs no network, no key and no agent. Discrete literals (whole numbers, choices) are moved by steps: steps.py. The others
are searched together by CMA-ES, from the current values with small steps (on tasks of this size that beats TPE and a Gaussian
process within 20 trials), on top of the incumbent's discrete ones. Two of three proposals are steps while one is promising, later
one of three. A crash, out of memory above all, and a run that was stopped early count as worse than anything that was measured.

One study for each set of continuous literals and fingerprint lasts through all changes of structure. What those gained is taken out
of the scores that it is told: a kept step that left its literals alone lowers every score after it by the same, so that only what
the continuous literals do is compared. Of a proposal of another's that moved both nobody knows which did it: it is told as it is.
What was asked and told is kept by Optuna in `.autoresearch/search/`: study.py.

It goes by all that was tried, of which there may be thousands: what it makes of each is small, or made and left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import TrialState

from autoresearch.journal import Experiment
from autoresearch.literals import code_key, set_literals, values
from autoresearch.researchers import Context, Proposal, ResearcherFailed
from autoresearch.researchers.foreign import Point, inject
from autoresearch.researchers.lineage import Link, gained, line, lineage
from autoresearch.researchers.said import describe
from autoresearch.researchers.space import Dimension, space
from autoresearch.researchers.steps import attempts, steps, together
from autoresearch.researchers.study import POPULATION, SIGMA, continued, distributions_of, open_study

CYCLE, STEPS_FIRST, STEPS_LATER = 3, 2, 1  # of three proposals, how many are steps: while one is promising, and afterwards
ATTEMPTS = 50  # points that are asked for until one is new
OURS = frozenset(("step", "study"))  # one of them is in the details of each of its proposals
LARGEST = 1e9  # what is told where nothing was measured


@dataclass(frozen=True)
class Scores:
    """What the study is told of experiments: val_bpb without what others had gained, by number."""

    history: Sequence[Experiment]
    gained: Mapping[int, float]

    def of(self, done: Experiment) -> float | None:
        return None if done.val_bpb is None else done.val_bpb + self.gained[done.n]

    @cached_property
    def penalty(self) -> float:
        """What a crash counts as: clearly worse than the worst that was measured."""
        known = [score for done in self.history if (score := self.of(done)) is not None]
        return max(known) + (max(known) - min(known)) + 0.01 if known else LARGEST


class Search:
    name = "search"
    thinks = False

    def propose(self, context: Context) -> Proposal:
        links = lineage(context.history)
        ours = line(links, code_key(context.source))
        first = ours[0].done if ours else None
        origin = (first and first.literals) or values(context.source)
        dims = space(context.source, origin)
        if not dims:
            raise ResearcherFailed(
                "train.py has no ALL_CAPS literal that search could change: write one, or use another researcher"
            )
        turn = sum(not OURS.isdisjoint(link.done.details) for link in ours) % CYCLE
        step, promising = _step(context, ours, dims, f"{first.fingerprint} {first.session}" if first else "")
        if step and turn < (STEPS_FIRST if promising else STEPS_LATER):
            return step
        continuous = {name: dim for name, dim in dims.items() if not dim.discrete}
        found = _sample(context, links, continuous, origin, first) if continuous else None
        if proposal := found or step:
            return proposal
        raise ResearcherFailed("all that is near the incumbent was tried before: train.py leaves nothing more to search")


def _step(context: Context, ours: Sequence[Link], dims: Mapping[str, Dimension], session: str) -> tuple[Proposal | None, bool]:
    """The next step of a discrete literal, if one is left, or those together that nearly helped, and whether it is promising."""
    current = values(context.source)
    known = {code_key(context.source)} | {done.code_key for done in context.history}
    joint = together(ours, dims, code_key(context.source))
    options: list[tuple[dict[str, Any], Sequence[Any], bool]] = [(joint, sorted(joint), True)] if joint else []
    for step in steps(current, dims, attempts(ours, dims), session):
        options.append(({step.move[0]: step.value}, step.move, step.promising))
    for changes, moved, promising in options:
        source = set_literals(context.source, changes)
        if code_key(source) not in known:
            return Proposal(source, describe(current, changes), {"step": list(moved)}), promising
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
    folder, session = context.lab.journal / "search", [first.fingerprint, first.session] if first else []
    begun_with = first.val_bpb if first and first.val_bpb is not None else LARGEST
    study = open_study(folder, session, dims, min(begun_with, LARGEST))
    told = _tell(study, scores)
    study = continued(study, folder, dims)
    distributions = distributions_of(dims)
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


def _tell(study: optuna.Study, scores: Scores) -> int:
    """Give the study what became of its open trials, the penalty for a crash. Returns how many were told."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    outcomes: dict[int, float | None] = {}
    for done in scores.history if trials else ():
        details = done.details
        if details.get("study") == study.study_name and "trial" in details:
            outcomes[details["trial"]] = scores.of(done)
    told = 0
    for trial in trials:
        if trial.number in outcomes:
            score = outcomes[trial.number]
            study.tell(trial.number, scores.penalty if score is None else score)
            told += 1
        else:  # never ran: lost with its process
            study.tell(trial.number, state=TrialState.FAIL)
    return told


def _points(links: Sequence[Link], scores: Scores, dims: Mapping[str, Dimension], origin: Mapping[str, Any]) -> Iterator[Point]:
    """What others tried in this space, the best first. What left these literals alone, a step or a change of code, says nothing
    of them."""
    ranked = sorted((score, place) for place, link in enumerate(links) if (score := scores.of(link.done)) is not None)
    for score, place in ranked:
        link = links[place]
        if "study" in link.done.details:
            continue
        literals, before = link.done.literals or {}, link.before.literals or {} if link.before else origin
        moved = any(literals.get(name) != before.get(name) for name in dims)
        if moved and all(dim.holds(literals.get(name)) for name, dim in dims.items()):
            yield Point(link.done.n, {name: dim.encode(literals[name]) for name, dim in dims.items()}, score)
