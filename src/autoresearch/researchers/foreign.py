"""What others tried, put into the search: CMA-ES goes where it was good (injection of external solutions, Hansen 2011).

A point is put into the generation that is being sampled, the best first, at most half of a generation, so that the search's own
steps still decide its scale. One that lies far off is drawn in towards the centre, in its direction: as it stands, it would blow up
the step size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

# Attributes of a trial: two of Optuna's own for CMA-ES with margin (generation, raw place), and whose it is where it is not ours.
GENERATION, PLACE, FOREIGN = "cmawm:generation", "x_for_tell", "experiment"
LEARNED = "learned"  # of a study: the experiments that were put into those that it goes on from


@dataclass(frozen=True)
class Point:
    experiment: int
    numbers: Mapping[str, float]  # as the study sees the literals
    score: float


def inject(
    study: optuna.Study, space: Mapping[str, BaseDistribution], points: Iterable[Point], population: int, sigma: float
) -> None:
    """Put those points into the study that it does not know yet, as far as there is room. `points`: the best first; no more of
    them are asked for than there is room for."""
    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    known = learned(study, told)
    generations = [trial.system_attrs[GENERATION] for trial in told if GENERATION in trial.system_attrs]
    now = max(generations, default=0)
    if generations.count(now) >= population:  # full: the next ask begins another
        now += 1
    there = sum(trial.system_attrs.get(GENERATION) == now for trial in told if FOREIGN in trial.user_attrs)
    new = (point for point in points if point.experiment not in known)
    names = [name for name in sorted(space) if not space[name].single()]  # the sampler leaves out what has one value only
    centre = _centre(told, names, space, now)
    for point in islice(new, max(0, population // 2 - there)):
        place = [_share(space[name], point.numbers[name]) for name in names]
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(point.numbers),
                distributions=dict(space),
                value=point.score,
                user_attrs={FOREIGN: point.experiment},
                system_attrs={GENERATION: now, PLACE: _drawn_in(place, centre, sigma)},
            )
        )


def learned(study: optuna.Study, told: Iterable[FrozenTrial]) -> set[int]:
    """The numbers of the experiments that were put into it. `told`: its finished trials."""
    return {*study.user_attrs.get(LEARNED, ()), *(trial.user_attrs[FOREIGN] for trial in told if FOREIGN in trial.user_attrs)}


def _centre(told: Sequence[FrozenTrial], names: Sequence[str], space: Mapping[str, BaseDistribution], now: int) -> list[float]:
    """The middle of the search's own newest points; before there are any, where it starts."""
    for generation in range(now, -1, -1):
        own = [trial for trial in told if trial.system_attrs.get(GENERATION) == generation and FOREIGN not in trial.user_attrs]
        if own:
            return [sum(column) / len(own) for column in zip(*(trial.system_attrs[PLACE] for trial in own), strict=True)]
    return [_share(space[name], told[0].params[name]) for name in names]


def _drawn_in(place: Sequence[float], centre: Sequence[float], sigma: float) -> list[float]:
    """At most as far from the centre as Hansen lets an injected step go, in units of the first step size."""
    n = len(place)
    distance = math.dist(place, centre) / sigma
    scale = min(1.0, (math.sqrt(n) + 2 * n / (n + 2)) / distance) if distance else 1.0
    return [at + (to - at) * scale for to, at in zip(place, centre, strict=True)]


def _share(distribution: BaseDistribution, number: float) -> float:
    """Where a number lies between its limits, 0 to 1, as Optuna's CMA-ES sees it."""
    return float(_SearchSpaceTransform({"x": distribution}, transform_step=False, transform_0_1=True).transform({"x": number})[0])
