"""Verify: kept commits run again with fresh seeds, beside the session's start, to see what of their gain is real.

The runs alternate, so that a machine that drifts harms all alike, and those of a round share a seed. Each is a line in
.autoresearch/verify.jsonl as soon as it is done: whoever is stopped loses the run in progress alone, and each further call adds to
what is there. No row and no branch is touched.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoresearch import noise
from autoresearch.ahead import merge_settings
from autoresearch.errors import Interrupted, NotReady, WrongCall
from autoresearch.experiment import audit
from autoresearch.experiment.runner import DEFAULT_SEED, seed_of
from autoresearch.journal import Experiment, RunResult, result_from
from autoresearch.lab import TRAIN
from autoresearch.lines import append_line, read_lines
from autoresearch.literals import code_key
from autoresearch.noise import Gain
from autoresearch.results import KEEP
from autoresearch.runs import Runs

SCORES = ("val_bpb", "vault_bpb")
FRESH = 1000  # repeats whose seeds no experiment's runs reach


@dataclass(frozen=True)
class Variant:
    """A train.py that is run, and its name for people."""

    name: str
    source: str

    @property
    def key(self) -> str:
        return code_key(self.source)


@dataclass(frozen=True)
class Finding:
    """By how much `after` is better than `before`."""

    before: str
    after: str
    runs: int = 0  # of each
    gain: Gain | None = None
    vault: Gain | None = None  # on held-out rows that no score in results.tsv is made of
    claimed: float | None = None  # by the rows
    failure: str = ""  # why there is no gain to tell

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Record:
    """The runs that were made to verify something, under one fingerprint: by code, then by seed."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.runs: dict[str, dict[int, RunResult]] = {}
        for key, of, result in read_lines(path, lambda data: (data["key"], data["fingerprint"], result_from(data["result"]))):
            if of == fingerprint:
                self._put(key, result)

    def _put(self, key: str, result: RunResult) -> None:
        self.runs.setdefault(key, {})[result.seed or 0] = result

    def add(self, variant: Variant, result: RunResult) -> None:
        entry = {"key": variant.key, "name": variant.name, "fingerprint": self.fingerprint, "result": asdict(result)}
        append_line(self.path, entry)
        self._put(variant.key, result)

    def fresh_seeds(self, count: int) -> list[int]:
        """Seeds that no run has had."""
        used = {seed for runs in self.runs.values() for seed in runs}
        unused = (seed for repeat in range(FRESH, FRESH + len(used) + count) if (seed := seed_of(DEFAULT_SEED, repeat)) not in used)
        return [next(unused) for _ in range(count)]

    def pairs(self, before: Variant, after: Variant) -> list[tuple[RunResult, RunResult]]:
        """Their runs of the same rounds."""
        one, other = self.runs.get(before.key, {}), self.runs.get(after.key, {})
        return [(one[seed], other[seed]) for seed in one if seed in other]


class Verifier:
    def __init__(self, runs: Runs) -> None:
        self.runs, self.session = runs, runs.session
        self.folder = self.session.journal.aside
        self.record = Record(self.session.journal.root / "verify.jsonl", self.session.record.fingerprint)

    # -- what there is to verify ---------------------------------------------------------------------------------

    def kept(self) -> list[Experiment]:
        """The session's kept experiments in order, its start first. Raises NotReady if there is no step to verify."""
        tag = self.session.record.tag
        kept = [done for done in self.session.history() if done.session == tag and done.status == KEEP]
        if len(kept) < 2:
            raise NotReady(f"nothing to verify: session {tag} has kept nothing beside its start under these conditions")
        return kept

    def variant(self, experiment: Experiment) -> Variant:
        name = f"#{experiment.n}" if experiment.n != self.kept()[0].n else "the start"
        return Variant(name, self.session.ratchet.show(experiment.commit or "", TRAIN))

    def without(self, step: Experiment, end: Variant) -> Variant | None:
        """The end with this step's change taken back; None where that can't be done or makes no difference."""
        ratchet = self.session.ratchet
        versions = (end.source, ratchet.show(step.commit or "", TRAIN), ratchet.show(step.parent, TRAIN))
        source = ratchet.merge(*versions) or merge_settings(*versions)
        try:
            variant = Variant(f"{end.name} without #{step.n}", source) if source else None
            return variant if variant and variant.key != end.key else None
        except SyntaxError:
            return None

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, variants: Sequence[Variant], rounds: int) -> None:
        """Each variant once in each round."""
        different = {variant.key: variant for variant in variants}
        for number, seed in enumerate(self.record.fresh_seeds(rounds), start=1):
            for variant in different.values():
                if self.runs.stop.asked:
                    raise Interrupted("stopped; the runs that were made are kept")
                plan = self.session.plan(variant.source, self.folder, seed, self.runs.sandbox, self.runs.allowance)
                result = self.runs.execute(plan, f"verify, round {number} of {rounds}: {variant.name}")
                if result.val_bpb is None:
                    self.session.check_machine(result.crash_class)
                self.record.add(variant, result)
        audit.clear(self.folder)

    # -- saying --------------------------------------------------------------------------------------------------

    def find(self, before: Variant, after: Variant, claimed: float | None = None) -> Finding:
        pairs = self.record.pairs(before, after)
        failed = next((run for pair in pairs for run in pair if run.val_bpb is None), None)
        if failed or not pairs:
            reason = f"a run failed ({failed.crash_class}: {failed.detail})" if failed else "no runs"
            return Finding(before.name, after.name, len(pairs), claimed=claimed, failure=reason)
        scores, vaults = (self._gain([(getattr(one, name), getattr(other, name)) for one, other in pairs]) for name in SCORES)
        return Finding(before.name, after.name, len(pairs), scores, vaults, claimed)

    def _gain(self, pairs: list[tuple[float | None, float | None]]) -> Gain | None:
        known = [(one, other) for one, other in pairs if one is not None and other is not None]
        return noise.gain(known, self.session.prior) if known else None


def verify_one(verifier: Verifier, wanted: Experiment | None, rounds: int) -> list[Finding]:
    """Whether this kept experiment, or the newest, is better than the session's start."""
    start, *steps = verifier.kept()
    chosen = wanted or steps[-1]
    if chosen.n == start.n or chosen.status != KEEP:
        raise WrongCall(f"verify #{chosen.n}: {'that is the start' if chosen.n == start.n else 'it was not kept'}: give a kept one")
    before, after = verifier.variant(start), verifier.variant(chosen)
    verifier.run((before, after), rounds)
    return [verifier.find(before, after, (start.val_bpb or 0.0) - (chosen.val_bpb or 0.0))]


def verify_all(verifier: Verifier, rounds: int) -> list[Finding]:
    """The whole gain, and for each kept step what the end loses without it."""
    start, *steps = verifier.kept()
    before, end = verifier.variant(start), verifier.variant(steps[-1])
    without = [verifier.without(step, end) for step in steps]
    verifier.run((before, end, *filter(None, without)), rounds)
    findings = [verifier.find(before, end, (start.val_bpb or 0.0) - (steps[-1].val_bpb or 0.0))]
    for step, variant in zip(steps, without, strict=True):
        claimed = (step.incumbent_bpb or 0.0) - (step.val_bpb or 0.0)
        if variant:
            findings.append(verifier.find(variant, end, claimed))
        else:
            failure = "it can't be taken out: later steps build on it or undid it"
            findings.append(Finding(f"{end.name} without #{step.n}", end.name, claimed=claimed, failure=failure))
    return findings


def text(findings: Sequence[Finding]) -> str:
    """A line or two for each."""
    whole, *steps = findings
    lines = [f"{whole.after} against {whole.before}, {whole.runs} runs each with fresh seeds: {_said(whole)}"]
    if whole.vault:
        lines.append(f"on the vault's rows, which no score is made of: {whole.vault}")
    lines += [f"{step.before}: {_needed(step)}" for step in steps]
    return "\n".join(lines)


def _said(finding: Finding) -> str:
    if finding.gain is None:
        return finding.failure
    gain, claimed = finding.gain, finding.claimed or 0.0
    verdict = "real" if gain.is_real else "a loss" if gain.is_loss else "not beyond the noise"
    share = f"; {claimed:.6f} was claimed, {gain.value / claimed:.0%} of it is there" if claimed > 0 else ""
    return f"gain {gain}: {verdict}{share}"


def _needed(finding: Finding) -> str:
    if finding.gain is None:
        return finding.failure
    worse = finding.gain
    verdict = (
        "leaving it out hurts" if worse.is_real else "it is better left out" if worse.is_loss else "no difference beyond the noise"
    )
    return f"{worse.value:+.6f} ({worse.low:+.6f} to {worse.high:+.6f}): {verdict}"
