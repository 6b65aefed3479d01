"""One stretch of the loop on one branch: its record, its own copies of the read-only files, its history and its incumbent."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autoresearch import hardware, noise, results, standing
from autoresearch.errors import NotReady
from autoresearch.experiment import sandbox
from autoresearch.experiment.refereeing import Conditions, gpu_of, hidden_files
from autoresearch.experiment.runner import DEFAULT_SEED, RunPlan
from autoresearch.files import write_atomically
from autoresearch.hardware import Hardware
from autoresearch.journal import Experiment, Journal, SessionRecord
from autoresearch.lab import (
    READ_ONLY,
    TRAIN,
    Lab,
    copy_helpers,
    data_fingerprint,
    differences,
    fingerprint,
    fingerprint_parts,
)
from autoresearch.ledger import Ledger
from autoresearch.ratchet import PREFIX, Ratchet
from autoresearch.results import KEEP

OTHERS_MB = 300  # of a GPU: less than a program needs that does anything on it, whose context alone takes as much
BY_OTHERS = ("oom", "error", "timeout", "no-score")  # classes of a crash that a GPU in other hands can cause
RELEASE_PATIENCE = 5.0  # seconds until the driver has taken back the memory of a run that was killed


def gone(record: SessionRecord, journal: Journal) -> NotReady:
    """What to say when somebody deleted the branch of a session."""
    kept = [done.commit for done in journal.settled() if done.status == KEEP and done.session == record.tag and done.commit]
    best = kept[-1][:12] if kept else "COMMIT"
    return NotReady(f"the branch {record.branch} is gone: bring it back with 'git update-ref refs/heads/{record.branch} {best}'")


def machine_line(found: Hardware) -> str:
    if found.gpu_name:
        return f"{found.gpu_name}, {(found.vram_mb or 0) / 1024:.0f} GB of memory"
    return f"CPU: {found.cpu_name}, {found.cpu_cores} cores, {found.ram_mb / 1024:.0f} GB of memory"


class Session:
    def __init__(self, lab: Lab, journal: Journal, record: SessionRecord, machine: Hardware, say: Callable[[str], None]) -> None:
        """Open the session: fix what its scores depend on. Raises NotReady if a file or the data isn't there."""
        self.lab, self.journal, self.machine, self.say = lab, journal, machine, say
        self.ratchet, self.ledger = Ratchet(lab.root, say), Ledger(journal.root)
        self._hidden: tuple[Path, ...] | None = None
        self.held_before = (hardware.gpu_in_use_mb(machine.gpu_uuid) or 0) if machine.device == "cuda" else 0
        self.constants = lab.constants()
        self.helpers = copy_helpers(lab, journal.session_folder(record.tag))
        parts = fingerprint_parts(lab, machine, data_fingerprint(self.helpers))
        self.record = replace(record, fingerprint=fingerprint(parts), parts=parts)
        self.fixed = {name: self._content(name) for name in READ_ONLY}
        self._tell_differences(record.parts, parts)
        self._rotate_results()
        journal.save_session(self.record)

    # -- what its scores depend on -------------------------------------------------------------------------------

    def _tell_differences(self, before: dict[str, str] | None, parts: dict[str, str]) -> None:
        if before and (changed := differences(before, parts)):
            self.say("scores from now on don't compare with the earlier ones:\n  " + "\n  ".join(changed))

    def _rotate_results(self) -> None:
        """results.tsv holds the rows of one fingerprint; those of others lie beside it under theirs.

        The marker says whose rows results.tsv has. It changes while there is none, so that whoever is killed between two of these
        steps leaves every row in a file of its name.
        """
        marker = self.journal.root / "results.fingerprint"
        current = marker.read_text().strip() if marker.exists() else self.record.fingerprint
        if current != self.record.fingerprint and self.lab.results.exists():
            self.lab.results.replace(self._aside(current))
            self.say(f"the earlier rows are in {self._aside(current).name}; results.tsv begins anew")
        write_atomically(marker, self.record.fingerprint + "\n")
        if not self.lab.results.exists() and self._aside(self.record.fingerprint).exists():
            self._aside(self.record.fingerprint).replace(self.lab.results)
            self.say("results.tsv has the rows again that were measured under these conditions")
        results.check_header(self.lab.results)  # a foreign one stops the session before any work

    def _aside(self, of: str) -> Path:
        return self.lab.root / f"results-{of}.tsv"

    def results_path(self, of: str) -> Path:
        """Where rows of a fingerprint belong."""
        return self.lab.results if of == self.record.fingerprint else self._aside(of)

    def check_machine(self, crash_class: str = "error") -> None:
        """Raises NotReady if the GPU or the data is gone, or the GPU is another's: then a crash is not the experiment's."""
        parts = self.record.parts or {}
        if data_fingerprint(self.helpers, thorough=True)[:16] != parts["data"]:
            raise NotReady("the prepared data has changed since the session began: run 'uv run prepare.py' and start again")
        if self.machine.device == "cuda":
            self._check_gpu(crash_class in BY_OTHERS)

    def _check_gpu(self, by_others: bool) -> None:
        name, found = self.machine.gpu_name, hardware.probe()
        if found.gpu_name != name:
            why = found.gpu_error or f"now: {found.gpu_name or 'none'}"
            raise NotReady(f"the GPU {name} is gone ({why}): see nvidia-smi and 'dmesg'")
        if (others := self._held_by_others()) > OTHERS_MB:
            way_out = "end it, or wait for it, or choose another GPU with CUDA_VISIBLE_DEVICES, and start again"
            raise NotReady(
                f"another program holds {others:,} MB of the GPU {name} that were free when the session began: {way_out}"
            )

    def _held_by_others(self) -> int:
        """MB of the GPU, beyond what was held when the session began, once our own run has ended."""
        deadline = time.monotonic() + RELEASE_PATIENCE
        while True:
            in_use = hardware.gpu_in_use_mb(self.machine.gpu_uuid) or 0
            self.held_before = min(self.held_before, in_use)  # a run that a killed loop left may have been in it
            others = in_use - self.held_before
            if others <= OTHERS_MB or time.monotonic() > deadline:
                return others
            time.sleep(0.2)

    def check_tree(self) -> None:
        """Raises NotReady if a file that must stand still has changed, committed or not, or the lab is on another branch."""
        self.tip()
        here, branch = self.ratchet.branch(), self.record.branch
        if here != branch:
            raise NotReady(f"{self.lab.root} is now on {here or 'no branch'}: 'git switch {branch}' and start again")
        changed = [name for name, content in self.fixed.items() if self._content(name) != content]
        changed += [name for name in self.ratchet.changed_files() if name == TRAIN]
        if changed:
            hint = "take it back with 'git checkout -- FILE', or commit it and start again (new constants start a new results.tsv)"
            raise NotReady(f"{', '.join(changed)} changed during the session: {hint}")

    def _content(self, name: str) -> bytes | None:
        try:
            return (self.lab.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def conditions(self, folder: Path, level: str, seed: int = DEFAULT_SEED) -> Conditions:
        """What the referee and the box need for a run in this folder."""
        if level != sandbox.NONE and self._hidden is None:
            self._hidden = hidden_files(self.helpers)
        best = self.incumbent()
        result = best.result if best else None
        return Conditions(
            level=level,
            helpers=self.helpers,
            folder=folder,
            seed=seed,
            budget=float(self.constants["TIME_BUDGET"]),
            hidden=self._hidden or (),
            gpu=gpu_of(self.machine),
            incumbent_evaluation=result.evaluation_seconds if result else None,
            incumbent_startup=result.startup_seconds if result else None,
            has_open_text=self.constants["DATASET"] == "stdlib",
        )

    def plan(self, source: str, folder: Path, seed: int, level: str, allowance: float) -> RunPlan:
        """A run of this train.py under the session's conditions."""
        return RunPlan(
            source=source,
            helpers=self.helpers,
            folder=folder,
            budget=float(self.constants["TIME_BUDGET"]),
            caches=self.journal.root / "caches",
            seed=seed,
            allowance=allowance,
            refereed=self.conditions(folder, level, seed),
        )

    @property
    def prior(self) -> noise.Prior:
        return noise.prior_for(self.machine.device, float(self.constants["TIME_BUDGET"]))

    def noise(self) -> noise.Noise:
        return standing.noise_of(self.journal, self.record.fingerprint, self.prior)

    # -- its past ------------------------------------------------------------------------------------------------

    def history(self) -> list[Experiment]:
        """All settled experiments whose scores compare with ours, oldest first."""
        return [done for done in self.journal.settled() if done.fingerprint == self.record.fingerprint]

    def kept(self, tag: str, of: str) -> Experiment | None:
        """The newest kept experiment of a session and fingerprint."""
        for done in reversed(self.journal.settled()):
            if done.status == KEEP and done.session == tag and done.fingerprint == of:
                return done
        return None

    def incumbent(self) -> Experiment | None:
        """The best kept experiment, if the branch still holds its train.py: a train.py that a person committed is new."""
        best = self.kept(self.record.tag, self.record.fingerprint)
        if best is None or best.commit is None:
            return None
        same = self.ratchet.blob(self.tip(), TRAIN) == self.ratchet.blob(best.commit, TRAIN)
        return best if same else None

    def tip(self) -> str:
        tip = self.ratchet.commit_of(f"refs/heads/{self.record.branch}")
        if tip is None:
            raise gone(self.record, self.journal)
        return tip

    def merge_line(self) -> str:
        return f"git checkout {self.record.base or 'main'} && git merge {PREFIX}{self.record.tag}"
