"""The loop's runs of train.py: an experiment's first and its repeats, an incumbent's once more, the audit of a would-be keep."""

import shutil
from pathlib import Path

from autoresearch.experiment import audit, runner
from autoresearch.experiment.watch import Against, Watch, against
from autoresearch.experiment.witness import Witness, undisturbed
from autoresearch.journal import CRASHED, Experiment, RunResult
from autoresearch.lab import TRAIN
from autoresearch.results import clean
from autoresearch.session import Session
from autoresearch.stop import Stop
from autoresearch.view import View


class Runs:
    def __init__(self, session: Session, view: View, stop: Stop, sandbox: str, allowance: float, early_stop: bool = True) -> None:
        self.session, self.view, self.stop = session, view, stop
        self.sandbox, self.allowance, self.early_stop = sandbox, allowance, early_stop
        self.journal = session.journal
        self.witness = Witness(session.machine.gpu_index if session.machine.device == "cuda" else None)
        self.seconds = 0.0  # that runs and audits took: not the harness's own

    def end_left_over(self) -> None:
        """Kill what still runs of a process that died."""
        left, journal = self.journal.unfinished(), self.journal
        # Its root has them all; the others are for systems where processes don't show their environment.
        for folder in (journal.root, journal.by_hand, journal.aside, *([journal.folder(left.n)] if left else [])):
            runner.end_left_over(folder)

    def source_of(self, experiment: Experiment) -> str:
        return (self.journal.folder(experiment.n) / TRAIN).read_bytes().decode()

    def plan(self, experiment: Experiment, seed: int | None = None, folder: Path | None = None) -> runner.RunPlan:
        """A run with this seed, or again its last one, whose weights lie in its folder."""
        folder, last = folder or self.journal.folder(experiment.n), experiment.result.seed if experiment.result else None
        seed = next(known for known in (seed, last, experiment.seed) if known is not None)
        return self.session.plan(self.source_of(experiment), folder, seed, self.sandbox, self.allowance)

    def execute(self, plan: runner.RunPlan, title: str, rule: Against | None = None) -> RunResult:
        def once() -> RunResult:
            with self.view.run(title, plan.budget):
                watch = Watch(plan.folder, self.view.progress, rule, self.witness)
                result = runner.execute(plan, watch, lambda: self.stop.now)
            self.seconds += result.wall_seconds
            return result

        result = undisturbed(once, self.witness, self.view.say)
        shutil.copy(plan.folder / "run.log", self.session.lab.log)
        return result

    def next(self, experiment: Experiment) -> RunResult:
        """Its first run, or one more with another seed."""
        repeat = len(experiment.counted)
        try:
            compile(self.source_of(experiment), TRAIN, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return RunResult(CRASHED, crash_class="syntax", detail=clean(str(error)))
        plan, title = self.plan(experiment, runner.seed_of(experiment.seed, repeat)), f"#{experiment.n} {experiment.description}"
        return self.execute(plan, title + (f", run {repeat + 1}" if repeat else ""), self._against(experiment))

    def _against(self, experiment: Experiment) -> Against | None:
        """What a run is compared with while it goes on. None for a baseline and for repeats: they run to their end."""
        best = self.session.kept(experiment.session, experiment.fingerprint)
        if not self.early_stop or experiment.baseline or experiment.counted or best is None:
            return None
        steady = self.session.machine.device == "cuda"  # a CPU's speed changes with its other tenants and with heat
        return against(self.journal.folder(best.n), self.source_of(experiment), experiment.category, steady)

    def again(self, incumbent: Experiment) -> RunResult:
        """One more run of a settled experiment, so that others can be compared with it. Its own weights stay."""
        repeat = len(incumbent.counted) + len(self.journal.repeats(incumbent.n))
        plan = self.plan(incumbent, runner.seed_of(incumbent.seed, repeat), self.journal.aside)
        result = self.execute(plan, f"#{incumbent.n}, the incumbent, run {repeat + 1}")
        if result.val_bpb is None:
            self.session.check_machine(result.crash_class)
            self.view.say(f"#{incumbent.n} failed when it was run again ({result.crash_class}): its earlier runs have to do")
        audit.clear(self.journal.aside)
        return result

    def audit(self, experiment: Experiment) -> audit.Report:
        report = audit.audit(self.plan(experiment), lambda: self.stop.now, self.witness)
        self.seconds += report.seconds
        return report
