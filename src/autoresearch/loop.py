"""The loop: recover, then propose, check, commit, run, judge, record, settle; and again.

An experiment goes through its stages one by one, and its state is on disk before each next one begins. So there is one way on, for
a fresh experiment and for one that a dead process left behind: `finish` carries it from the stage it has reached to the end.
"""

import contextlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from autoresearch import brief, facts, results, standing
from autoresearch.ahead import Ahead
from autoresearch.check import Refused, check
from autoresearch.desk import Answered, Desk
from autoresearch.errors import Enough, Interrupted, NotReady
from autoresearch.experiment import audit, caches, refereeing, runner
from autoresearch.files import write_atomically
from autoresearch.journal import (
    ABANDONED,
    COMMITTED,
    CRASHED,
    JUDGED,
    MEASURED,
    PROPOSED,
    RECORDED,
    RUNNING,
    SETTLED,
    TIMED_OUT,
    Experiment,
    RunResult,
)
from autoresearch.judge import AGAIN, STRICT, Rule
from autoresearch.lab import PROGRAM, TRAIN
from autoresearch.ledger import Limits
from autoresearch.literals import code_key, values
from autoresearch.researchers import Context, Proposal, ResearcherFailed, process, said
from autoresearch.researchers.team import Team
from autoresearch.results import CRASH, KEEP, Row, clean
from autoresearch.runs import Runs
from autoresearch.session import Session
from autoresearch.setup import now
from autoresearch.standing import Judgement
from autoresearch.stop import Stop
from autoresearch.view import View

BARREN = 3  # proposals in a row that end without an experiment before the loop gives up on the researcher
HAND = "hand"  # the researcher of `run --record`: whoever edited train.py in the working tree
NO_KEY = "syntax error"  # instead of a code key: what can't be read can't be compared


class Loop:
    def __init__(
        self,
        session: Session,
        team: Team,
        view: View,
        stop: Stop,
        allowance: float = runner.ALLOWANCE,
        limits: Limits | None = None,
        ahead: bool = True,
        early_stop: bool = True,
        *,
        sandbox: str,
        rule: Rule,
    ) -> None:
        self.session, self.team, self.view, self.stop = session, team, view, stop
        self.sandbox, self.rule = sandbox, rule
        self.runs = Runs(session, view, stop, sandbox, allowance, early_stop)
        self.journal, self.ratchet, self.lab = session.journal, session.ratchet, session.lab
        limits = limits or Limits(time.monotonic())
        self.desk = Desk(team, session.ledger, session.record.tag, limits, view.say, lambda: stop.asked)
        self.ahead = Ahead(self.desk, self.journal.root / "ahead.json", self.ratchet.merge, lambda: stop.now, ahead)

    def run(self, limit: int) -> None:
        """`limit` further experiments; 0: until stopped. The baseline is extra."""
        try:
            self.recover()
            done = barren = 0
            while not self.stop.asked and (limit == 0 or done < limit):
                self.session.check_tree()
                self.desk.check_time()
                if self.begin():
                    continue
                experiment = self.propose()
                if experiment:
                    done, barren = done + 1, 0
                    if not self.stop.asked and done != limit:
                        self.ahead.start(partial(self.context, self.incumbent_source(), "", experiment))
                    self.finish(experiment)
                elif (barren := barren + 1) == BARREN:
                    raise NotReady(f"'{self.team.name}' made no usable proposal {BARREN} times in a row, see above")
        except Enough as limit_reached:
            self.view.say(str(limit_reached))
        finally:
            self.ahead.stop()
            with contextlib.suppress(NotReady, OSError):  # it ends for a reason of its own, which is the one to tell
                self.snapshot()

    def record(self, source: str, description: str) -> Experiment | None:
        """One whole turn for a train.py that somebody edited by hand. None if there was only the baseline to run."""
        try:
            return self._record(source, description)
        except Enough as stopped:
            raise Interrupted(str(stopped)) from None

    def _record(self, source: str, description: str) -> Experiment | None:
        left = self.recover()
        if left and left.researcher == HAND and self.runs.source_of(left) == source:
            return left  # this very turn, which was interrupted before
        if self.session.incumbent() is None and code_key(source) == self.incumbent_key():
            self.begin()
            return None
        try:
            key = check(source, self.incumbent_source(), (done.code_key for done in self.session.history()))
        except (Refused, SyntaxError) as refusal:
            raise NotReady(f"not run: {refusal}") from None
        self.begin()
        if self.stop.asked:
            raise Interrupted("stopped after the baseline; train.py is as you left it")
        told = said.read(description) if said.is_labelled(description) else said.Said(description)
        proposal = Proposal(source, told.description, {}, told.hypothesis, told.expected_gain, told.category)
        done = self.finish(self.propose_by(HAND, proposal, key, self.session.tip()))
        self.snapshot()
        return done

    # -- recover -------------------------------------------------------------------------------------------------

    def recover(self) -> Experiment | None:
        """Finish what the last process left, whatever it was ended by. Returns the experiment that came to its end so."""
        self.runs.end_left_over()
        process.end_left_over(self.scratch)
        left = self.journal.unfinished()
        self.complete_table(self.session.record.fingerprint)
        if left is None:
            return None
        ours = (self.session.record.tag, self.session.record.fingerprint) == (left.session, left.fingerprint)
        if not ours and left.counted and left.stage == RUNNING:
            left = self.journal.save(left, stage=MEASURED)  # to be judged by the runs that it has
        if not ours and left.stage in (PROPOSED, COMMITTED, RUNNING):
            self.view.say(f"#{left.n} of session {left.session} was never measured and belongs to other conditions: left alone")
            self.journal.save(left, stage=ABANDONED)
            return None
        self.view.say(f"#{left.n} was left at '{left.stage}': going on from there")
        return self.finish(left)

    def begin(self) -> bool:
        """Run the baseline if the branch's train.py has none yet; True if so."""
        self.commit_program()
        if self.session.incumbent():
            return False
        proposal = Proposal(self.incumbent_source(), "baseline")
        self.finish(self.propose_by("", proposal, self.incumbent_key(), self.session.tip(), baseline=True))
        return True

    def commit_program(self) -> None:
        """A person may edit program.md at any time; what the researchers were told stays in the history."""
        tip = self.session.tip()
        if PROGRAM in self.ratchet.changed_files():
            commit = self.ratchet.commit(tip, {PROGRAM: self.lab.read(PROGRAM)}, "program.md: changed by its author\n")
            self.ratchet.git("reset", "--quiet", commit, "--", PROGRAM)  # the index alone: they may be writing on
            self.ratchet.git("update-ref", f"refs/heads/{self.session.record.branch}", commit, tip)

    # -- propose, check ------------------------------------------------------------------------------------------

    def propose(self) -> Experiment | None:
        """Ask for a proposal; a refusal goes back to its researcher once. None if nothing came of it."""
        refusal, tip = "", self.session.tip()
        source = self.ratchet.show(tip, TRAIN)
        for last in (False, True):
            try:
                made_ahead = None if refusal else self.ahead.take(source)
                answered = made_ahead or self.desk.ask(self.context(source, refusal), again=bool(refusal))
                experiment = self.accept(answered, tip, last)
                self.ahead.clear()
                return experiment
            except (Refused, ResearcherFailed) as reason:
                refusal = str(reason)
                self.view.say(f"proposal refused: {refusal}")
                self.ahead.clear()
        return None

    def accept(self, answered: Answered, tip: str, last: bool) -> Experiment:
        """The proposal as an experiment. Raises Refused."""
        proposal = answered.proposal
        try:
            key = check(proposal.source, answered.source, (done.code_key for done in self.session.history()))
        except SyntaxError as error:
            if not last:
                raise Refused(f"train.py is not valid Python: {error.msg}, line {error.lineno}") from None
            key = NO_KEY  # told once already: now it is an experiment that crashed
        return self.propose_by(answered.researcher, proposal, key, tip, answered.brief)

    @property
    def scratch(self) -> Path:
        return self.journal.root / "scratch" / "lab"

    def context(self, source: str, refusal: str = "", running: Experiment | None = None) -> Context:
        told = facts.of_session(self.session, source, refusal, running)
        self.scratch.mkdir(parents=True, exist_ok=True)
        return Context(self.lab, source, brief.write(told), told.history, self.scratch, lambda: self.stop.now, self.sandbox)

    def incumbent_source(self) -> str:
        return self.ratchet.show(self.session.tip(), TRAIN)

    def incumbent_key(self) -> str:
        try:
            return code_key(self.incumbent_source())
        except SyntaxError as error:
            raise NotReady(f"{TRAIN} as committed is not valid Python ({error}): mend it and commit") from None

    def propose_by(self, who: str, proposal: Proposal, key: str, tip: str, told: str = "", baseline: bool = False) -> Experiment:
        """Give the proposal a number and a folder: from here on it is not lost."""
        n = self.journal.next_number()
        folder = self.journal.folder(n)
        write_atomically(folder / TRAIN, proposal.source)
        if told:
            write_atomically(folder / "brief.md", told)
            if (log := self.scratch.parent / "researcher.log").exists():
                log.replace(folder / "researcher.log")
        return self.journal.save(
            Experiment(
                n=n,
                session=self.session.record.tag,
                stage=PROPOSED,
                description=clean(proposal.description) or "no description",
                researcher=who,
                fingerprint=self.session.record.fingerprint,
                parent=tip,
                code_key=key,
                started=now(),
                seed=self.first_seed(n, baseline),
                baseline=baseline,
                literals={} if key == NO_KEY else values(proposal.source),
                details=proposal.details,
                hypothesis=clean(proposal.hypothesis),
                expected_gain=proposal.expected_gain,
                category=proposal.category,
                proposal_seconds=proposal.cost.seconds,
                input_tokens=proposal.cost.input_tokens,
                output_tokens=proposal.cost.output_tokens,
                dollars=proposal.cost.dollars,
            )
        )

    def first_seed(self, n: int, baseline: bool) -> int:
        """Each experiment has seeds of its own: a lucky one, shared by all, would make every candidate look better than a reference
        without it. The strict rule's one run has the same seed always."""
        return runner.DEFAULT_SEED if baseline or self.rule.keep == STRICT else runner.seed_of(n, runner.DEFAULT_SEED)

    # -- commit, run, judge, record, settle ----------------------------------------------------------------------

    def finish(self, experiment: Experiment) -> Experiment:
        """Carry the experiment from the stage it has reached to its end."""
        steps = {
            PROPOSED: self.commit,
            COMMITTED: self.measure,
            RUNNING: self.measure,
            MEASURED: self.judge,
            JUDGED: self.write_row,
            RECORDED: self.settle,
        }
        while experiment.stage != SETTLED:
            began, ran = time.monotonic(), self.runs.seconds
            experiment = steps[experiment.stage](experiment)
            overhead = experiment.overhead_seconds + (time.monotonic() - began) - (self.runs.seconds - ran)
            experiment = self.journal.save(experiment, overhead_seconds=overhead) if experiment.stage != SETTLED else experiment
        self.view.settled(experiment)
        return experiment

    def commit_on(self, tip: str, experiment: Experiment, subject: str) -> str:
        """The experiment's train.py on top of `tip`, reachable for good. No two experiments have the same commit."""
        name = f"refs/autoresearch/{experiment.session}/{experiment.n}"
        files = {} if experiment.baseline else {TRAIN: self.runs.source_of(experiment)}
        commit = self.ratchet.commit(tip, files, f"{subject}\n\n{name}\n")
        self.ratchet.remember(experiment.session, str(experiment.n), commit)
        return commit

    def commit(self, experiment: Experiment) -> Experiment:
        """The proposal as a commit of its own; the branch stays where it is."""
        commit = self.commit_on(experiment.parent, experiment, experiment.description)
        patch = self.ratchet.git("diff", experiment.parent, commit, "--", TRAIN)
        write_atomically(self.journal.folder(experiment.n) / "patch", patch + "\n")
        return self.journal.save(experiment, stage=COMMITTED, commit=commit)

    def measure(self, experiment: Experiment) -> Experiment:
        """Run train.py, with another seed each time. A machine that is not ready leaves the experiment here, to be run again."""
        experiment = self.journal.save(experiment, stage=RUNNING)
        result = self.runs.next(experiment)
        if result.outcome in (CRASHED, TIMED_OUT) and result.wall_seconds:  # it was started
            self.session.check_machine(result.crash_class)
            if experiment.baseline:
                self.give_up_baseline(experiment, result)
        return self.journal.save(experiment.ran(result), stage=MEASURED)

    def give_up_baseline(self, experiment: Experiment, result: RunResult) -> None:
        """No night begins on a train.py that doesn't run."""
        self.journal.save(experiment, stage=ABANDONED, result=result)
        log = (self.journal.folder(experiment.n) / "run.log").read_text(errors="replace").replace("\r", "\n").splitlines()
        tail = "\n  ".join(clean(line) for line in log[-8:])
        self.view.say(f"the end of run.log:\n  {tail}")
        raise NotReady(
            f"the baseline failed ({result.crash_class}: {result.detail}): mend train.py and commit it; all of it is in run.log"
        )

    def judge(self, experiment: Experiment) -> Experiment:
        """Keep, discard, crash or another run. A kept commit gets its score into its subject, on top of the branch as it is now."""
        best = None if experiment.baseline else self.session.kept(experiment.session, experiment.fingerprint)
        judgement = self.weigh(experiment, best)
        if judgement.is_open:
            return self.run_again(experiment, best, judgement)
        commit, tip = experiment.commit or "", self.branch_tip(experiment)
        status, description = judgement.status, results.with_tail(experiment.description, judgement.remark())
        if status == KEEP and self.ratchet.blob(tip, TRAIN) != self.ratchet.blob(experiment.parent, TRAIN):
            status, description = (
                results.DISCARD,
                results.with_tail(experiment.description, " (better, but train.py was committed by hand meanwhile)"),
            )
        if status == KEEP and not experiment.baseline:  # the baseline is its owner's own train.py
            experiment = self.audit(experiment)
            status = status if experiment.val_bpb is not None else CRASH
        before = judgement.incumbent_bpb
        if status == KEEP:
            change = "" if before is None else f" ({(experiment.val_bpb or 0.0) - before:+.6f})"
            subject = f"val_bpb {experiment.val_bpb:.6f}{change}: {description}"
            commit = self.commit_on(tip, experiment, subject)
        changes: dict[str, Any] = {
            "status": status,
            "commit": commit,
            "incumbent_bpb": before,
            "description": description,
            "judgement": judgement.as_dict(),
        }
        return self.journal.save(experiment, stage=JUDGED, **changes)

    def weigh(self, experiment: Experiment, best: Experiment | None) -> Judgement:
        ours = (self.session.record.tag, self.session.record.fingerprint) == (experiment.session, experiment.fingerprint)
        rule = self.rule.at(experiment.n - 1) if ours else standing.as_it_is(self.rule, experiment)
        return standing.weigh(self.journal, experiment, best, self.session.prior, rule)

    def run_again(self, experiment: Experiment, best: Experiment | None, judgement: Judgement) -> Experiment:
        """What the judge needs before it can decide: a further run of the experiment, or of what it is compared with."""
        if self.stop.asked:
            raise Enough(f"#{experiment.n} has to be run again before it can be judged")
        if judgement.outcome == AGAIN or best is None:
            return self.journal.save(experiment, stage=RUNNING)
        self.journal.add_repeat(best.n, self.runs.again(best))
        return experiment

    def audit(self, experiment: Experiment) -> Experiment:
        """A would-be keep must give its losses again, or it crashed."""
        self.view.say(f"#{experiment.n} would be kept: audit")
        report = self.runs.audit(experiment)
        experiment = replace(experiment, audit=report.as_dict())
        if not report.reason:
            return experiment
        result = replace(experiment.result or RunResult(CRASHED), outcome=CRASHED, val_bpb=None)
        return experiment.refuted(replace(result, crash_class="audit", detail=report.reason))

    def branch_tip(self, experiment: Experiment) -> str:
        return self.ratchet.commit_of(f"refs/heads/autoresearch/{experiment.session}") or experiment.parent

    def write_row(self, experiment: Experiment) -> Experiment:
        """One row, once: after a crash the row may be there already."""
        self.complete_table(experiment.fingerprint, experiment)
        return self.journal.save(experiment, stage=RECORDED)

    def complete_table(self, fingerprint: str, *new: Experiment) -> None:
        """Append the rows that the table lacks: new ones, and those that an editor lost, which saved the file as it was before."""
        path, wanted = (
            self.session.results_path(fingerprint),
            [done for done in self.journal.settled() if done.fingerprint == fingerprint],
        )
        wanted += new
        places = results.missing([(each.commit or "")[:7] for each in wanted], results.commits(path))
        lost = [wanted[place] for place in places if wanted[place] not in new]
        if lost:
            shown = ", ".join(f"#{each.n}" for each in lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            self.view.say(f"{path.name} lacked rows of earlier experiments ({shown}): they are written again")
        for place in places:
            results.append(path, row_of(wanted[place]))

    def settle(self, experiment: Experiment) -> Experiment:
        """Keep moves the branch. Otherwise nothing has moved; an edit by hand is taken back."""
        branch = f"autoresearch/{experiment.session}"
        if experiment.status == KEEP:
            caches.adopt(self.journal.folder(experiment.n) / refereeing.CACHES, self.journal.root / "caches")
        if experiment.status == KEEP and experiment.baseline:  # the same train.py: only the commit's subject is new
            self.ratchet.advance(branch, experiment.commit or "", ())
        elif experiment.status == KEEP:
            self.set_aside(experiment)
            if not self.ratchet.advance(branch, experiment.commit or "", (TRAIN,)):
                self.view.say(f"train.py was committed on {branch} meanwhile and stays; #{experiment.n} is {experiment.commit}")
        else:
            audit.clear(self.journal.folder(experiment.n))
            if experiment.researcher == HAND and self.ratchet.branch() == branch:
                self.set_aside(experiment)
                self.ratchet.restore("HEAD", (TRAIN,))
        return self.journal.settle(experiment, settled=now())

    def set_aside(self, experiment: Experiment) -> None:
        """train.py in the working tree is about to be replaced: what a person wrote there during the run is not lost."""
        if not self.lab.train.is_file():
            return
        found = self.lab.train.read_bytes()
        known = [self.runs.source_of(experiment), self.ratchet.show(experiment.parent, TRAIN)]
        if found not in [text.encode() for text in known]:
            copy = self.journal.folder(experiment.n) / "train.py.edited"
            write_atomically(copy, found)
            self.view.say(f"train.py was edited during the run and is replaced now; the edit is kept in {copy}")

    def snapshot(self) -> None:
        """results.tsv and program.md as they are at the session's end, reachable beside its experiments."""
        if self.lab.results.exists():
            files: dict[str, str | Path] = {"results.tsv": self.lab.results, PROGRAM: self.lab.read(PROGRAM)}
            commit = self.ratchet.commit(self.session.tip(), files, f"results of session {self.session.record.tag}\n")
            self.ratchet.remember(self.session.record.tag, "results", commit)


def row_of(experiment: Experiment) -> Row:
    """The experiment as results.tsv has it."""
    memory = max((run.memory_mb for run in experiment.counted if run.memory_mb is not None), default=None)
    gigabytes = None if memory is None else memory / 1024
    description = experiment.description
    if experiment.stopped and experiment.result:
        description = results.with_tail(description, f" (stopped: {experiment.result.detail})")
    if experiment.disturbed:
        description = results.with_tail(description, f" (disturbed: {experiment.disturbed})")
    description = results.with_runs(description, len(experiment.counted))
    return Row((experiment.commit or "")[:7], experiment.val_bpb, gigabytes, experiment.status, description)
