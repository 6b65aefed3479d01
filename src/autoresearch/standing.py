"""Where an experiment stands: its runs beside the incumbent's, the noise as known by now, and what the judge makes of that."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from autoresearch import judge, noise
from autoresearch.journal import Experiment, Journal
from autoresearch.judge import AGAIN, AGAIN_INCUMBENT, BETTER, SIMPLER, Incumbent, Rule
from autoresearch.lab import TRAIN
from autoresearch.noise import Noise, Prior
from autoresearch.results import CRASH, DISCARD, KEEP
from autoresearch.size import saving

FIRST, FAILED, STOPPED = "first", "failed", "stopped"  # nothing to compare with; a run without a score, or ended early


@dataclass(frozen=True)
class Judgement:
    """What the journal keeps of a decision."""

    outcome: str  # FIRST, FAILED or one of judge.py's
    incumbent: int | None = None  # the number of what it was compared with
    incumbent_bpb: float | None = None
    incumbent_runs: int = 0
    error: float | None = None  # standard error of the difference, bpb
    sigma: float | None = None  # of one run, bpb
    measured: int = 0  # degrees of freedom of that sigma that were measured, not assumed
    saved: int = 0  # nodes of code less than the incumbent's, where that is clearly less

    @property
    def status(self) -> str:
        if self.outcome == FAILED:
            return CRASH
        return KEEP if self.outcome in (FIRST, BETTER, SIMPLER) else DISCARD

    @property
    def is_open(self) -> bool:
        return self.outcome in (AGAIN, AGAIN_INCUMBENT)

    def remark(self) -> str:
        """What the row has to say of it."""
        if self.outcome != SIMPLER or self.sigma is None:
            return ""
        return f" (simpler: {self.saved} nodes less, equal within {judge.MARGIN * self.sigma:.4f})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scores_of(journal: Journal, experiment: Experiment) -> tuple[float, ...]:
    """Of all its runs, those that were made later too."""
    later = [run.val_bpb for run in journal.repeats(experiment.n) if run.val_bpb is not None]
    return (*experiment.scores, *later) if later else experiment.scores


def noise_of(journal: Journal, fingerprint: str, prior: Prior, running: Experiment | None = None) -> Noise:
    """As all repeats under these conditions have it. `running`: an experiment that is not settled yet."""
    groups = [scores_of(journal, done) for done in journal.settled() if done.fingerprint == fingerprint]
    return noise.estimate(prior, [*groups, running.scores if running else ()])


def margins_used(journal: Journal, tag: str, fingerprint: str) -> int:
    """How many of a session were kept for being simpler."""
    kept = (done for done in journal.settled() if done.status == KEEP and (done.session, done.fingerprint) == (tag, fingerprint))
    return sum(done.verdict == SIMPLER for done in kept)


def weigh(journal: Journal, experiment: Experiment, best: Experiment | None, prior: Prior, rule: Rule) -> Judgement:
    """`best`: the incumbent; None for a baseline."""
    if experiment.val_bpb is None:
        return Judgement(STOPPED if experiment.stopped else FAILED)
    known = noise_of(journal, experiment.fingerprint, prior, experiment)
    facts = Judgement(FIRST, sigma=known.sigma, measured=known.measured)
    if best is None:
        return replace(facts, outcome=AGAIN if len(experiment.counted) < rule.noise_runs else FIRST)
    incumbent = Incumbent(scores_of(journal, best), selected=not best.baseline)
    if any(run.val_bpb is None for run in journal.repeats(best.n)):
        rule = replace(rule, most_reference=0)  # it failed: what it scored before has to do
    saved = _saved(journal, experiment, best, rule)
    verdict = judge.compare(experiment.scores, incumbent, known, rule, simpler=saved > 0)
    return replace(
        facts,
        outcome=verdict.outcome,
        incumbent=best.n,
        incumbent_bpb=verdict.reference,
        incumbent_runs=len(incumbent.reference),
        error=verdict.error,
        saved=saved,
    )


def _saved(journal: Journal, experiment: Experiment, best: Experiment, rule: Rule) -> int:
    if not rule.simpler or margins_used(journal, experiment.session, experiment.fingerprint) >= judge.MARGINS:
        return 0
    texts = [(journal.folder(each.n) / TRAIN).read_text(encoding="utf-8") for each in (experiment, best)]
    return saving(*texts)


def as_it_is(rule: Rule, experiment: Experiment) -> Rule:
    """The rule for an experiment that can't be run again, since it belongs to other conditions."""
    return replace(rule, noise_runs=0, most_runs=len(experiment.counted), most_reference=0)
