"""What CMA-ES was asked and told, kept by Optuna in `.autoresearch/search/`.

Optuna reads the whole log of a study at each start, for each trial 12 kB on the disk and three times as much in memory. But CMA-ES
goes on from its newest state and the generation that is being told, and from nothing else. So after MOST trials a study goes on in
another log that begins with those two: neither its time nor its memory grows with the session.
"""

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import CmaEsSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from autoresearch.lines import last_line
from autoresearch.researchers.foreign import GENERATION, LEARNED, learned
from autoresearch.researchers.space import Dimension

# First step size, as a fraction of a literal's range (0.05 is a factor of 1.15 on a log range of 1/4 to 4), and trials in a
# generation: the best of benchmarks/search.py over 20 to 100 trials.
SIGMA = 0.05
POPULATION = 6
MOST = 10 * POPULATION  # trials of one log, which is read in some 20 ms then
STATE = "cmawm:optimizer"  # how the attributes begin in which a trial holds CMA-ES's state

optuna.logging.set_verbosity(logging.ERROR)


def distributions_of(dims: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    return {name: FloatDistribution(*dim.limits(), log=True) for name, dim in dims.items()}


def open_study(folder: Path, session: Sequence[str], dims: Mapping[str, Dimension], score: float) -> optuna.Study:
    """The study of this space. New ones begin at the values of `dims`, with the session's first experiment and its `score` as
    their first trial."""
    shape = {name: [dim.kind, dim.value] for name, dim in dims.items()}
    # The session's tag is in the key, and so in the seed: another session goes another way, the same one the same way.
    key = hashlib.sha256(json.dumps([session, shape], sort_keys=True).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    study = _load(max(folder.glob(f"{key}*.log"), key=_part, default=folder / f"{key}.log"), dims)
    if not study.get_trials(deepcopy=False):
        trial = optuna.trial.create_trial(params=_start(dims), distributions=distributions_of(dims), value=score)
        study.add_trial(trial)
    return study


def continued(study: optuna.Study, folder: Path, dims: Mapping[str, Dimension]) -> optuna.Study:
    """The study, or once it is large the one that goes on from it. None of its trials may be open."""
    trials = study.get_trials(deepcopy=False)
    if len(trials) < MOST:
        return study
    told = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    generation = next((trial.system_attrs[GENERATION] for trial in reversed(told) if _has_state(trial)), 0)
    old = folder / f"{study.study_name}.log"
    log = folder / f"{old.stem.partition('-')[0]}-{_part(old) + 1}.log"
    unfinished = log.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    new = _load(unfinished, dims)
    new.set_user_attr(LEARNED, sorted(learned(study, told)))
    for trial in told:
        if trial.system_attrs.get(GENERATION, 0) >= generation:
            new.add_trial(trial)
    unfinished.rename(log)
    return _load(log, dims)


def _has_state(trial: FrozenTrial) -> bool:
    return any(name.startswith(STATE) for name in trial.system_attrs)


def _part(log: Path) -> int:
    """Which of a study's logs it is: 1 for KEY.log, 2 for KEY-2.log."""
    return int(log.stem.partition("-")[2] or 1)


def _load(log: Path, dims: Mapping[str, Dimension]) -> optuna.Study:
    """The study in this file, which is made if need be."""
    _mend_tail(log)
    lock: Any = _NoLock()
    storage = JournalStorage(JournalFileBackend(str(log), lock))
    seed = (int(log.stem.partition("-")[0], 16) + _part(log) - 1) % 2**31
    with warnings.catch_warnings():  # x0 and sigma0 are to go in Optuna 6; pyproject.toml stays below it
        warnings.simplefilter("ignore")
        sampler = CmaEsSampler(x0=_start(dims), sigma0=SIGMA, popsize=POPULATION, seed=seed, with_margin=True)
    return optuna.create_study(study_name=log.stem, storage=storage, sampler=sampler, load_if_exists=True)


def _start(dims: Mapping[str, Dimension]) -> dict[str, float]:
    return {name: dim.encode(dim.value) for name, dim in dims.items()}


class _NoLock:
    """For Optuna's file: we hold the lab's lock. Its own would outlive a killed process, and the next one wait 30 s for it."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend_tail(log: Path) -> None:
    """Cut off a last line that a killed process left half written: Optuna would not read the file again."""
    with contextlib.suppress(FileNotFoundError), log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(size - len(last_line(file, size)))
