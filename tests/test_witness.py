"""Claims about the witness: others' load is seen whoever runs, the run's own never is, and a disturbed run is done once more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import Cli, toy
from labs import Held, agent, copy_of, forked, in_a_fork, journal, rows, setting

from autoresearch.experiment import audit, witness
from autoresearch.experiment.audit import Report
from autoresearch.experiment.runner import RunPlan
from autoresearch.experiment.witness import Process, Witness, undisturbed, used
from autoresearch.journal import CRASHED, SCORED, STOPPED, TIMED_OUT, RunResult

pytestmark = pytest.mark.skipif(not witness.PROC.exists(), reason="needs Linux's /proc: elsewhere nothing is ever disturbed")

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


class Burner:
    """Another program of this machine: waits, uses a processor for a second when told, and lives on."""

    def __init__(self) -> None:
        code = "print(flush=True)\ninput()\n" + BURN.format(seconds=1.0) + "print(flush=True)\ninput()"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.wait()  # until it has started

    def burn(self) -> None:
        self.begin()
        self.wait()

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        assert self.process.stdout
        self.process.stdout.readline()


@pytest.fixture
def burner() -> Iterator[Burner]:
    burner = Burner()
    yield burner
    burner.process.kill()
    burner.process.communicate()


def only(*others: int) -> None:
    """In a fork: of all that runs on this machine when the witness first looks it sees these others, the fork, and, with what they
    reaped, the test and init. A fifth of a processor disturbs, also in a short run."""
    shown, heirs = {*others, os.getppid(), 1, os.getpid()}, (os.getppid(), 1)
    everything, hidden = witness.processes, set[tuple[int, int]]()

    def seen() -> dict[int, Process]:
        table = everything()
        if not hidden:
            hidden.update(process.name for pid, process in table.items() if pid not in shown)
        left = {pid: process for pid, process in table.items() if process.name not in hidden}
        return left | {pid: replace(left[pid], own=0.0) for pid in heirs if pid in left}

    witness.processes = seen
    witness.stolen = lambda: 0.0
    witness.SHORTEST, witness.LOAD = 0.0, 0.2 / (os.cpu_count() or 1)


def test_what_other_programs_use_is_seen(burner: Burner) -> None:
    assert "other processes took" in in_a_fork(lambda: only(burner.process.pid), burner.burn)
    assert in_a_fork(lambda: only(burner.process.pid), lambda: None) == "nothing"


OWN = {
    "children": "for each in [start(BURN) for _ in range(3)]:\n    each.wait()\n",
    "children that nobody counts": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(3):\n    start(BURN).wait()\n",
    "orphans": "fork = 'import os\\nif os.fork(): os._exit(0)\\n'\n"
    "for each in [start(fork + BURN) for _ in range(3)]:\n    each.stdout.read()\n",
}


@pytest.mark.parametrize("how", OWN)
def test_what_a_run_burns_itself_never_is(how: str, burner: Burner) -> None:
    start = "subprocess.Popen([sys.executable, '-c', code], env={}, stdout=subprocess.PIPE, start_new_session=True)"
    setting_out = f"import signal, subprocess, sys\nBURN = {BURN.format(seconds=0.4)!r}\ndef start(code):\n    return {start}\n"

    def work() -> None:
        subprocess.run([sys.executable, "-c", setting_out + OWN[how]], check=True)

    assert in_a_fork(lambda: only(burner.process.pid), work) == "nothing"


def process(pid: int, parent: int, own: float, reaped: float = 0.0) -> dict[tuple[int, int], Process]:
    return {(pid, 0): Process(pid, 0, parent, own, reaped, False)}


def test_what_ended_before_is_not_counted_again_when_it_is_reaped() -> None:
    before = process(1, 0, 5.0) | process(2, 1, 7.0, 1.0) | process(3, 2, 100.0)
    assert used(before, before) == 0
    assert used(before, process(1, 0, 6.0, 110.0)) == pytest.approx(1 + 2)  # 2 and 3 ended, and used 2 s more until then
    assert used(before, process(1, 0, 5.0) | process(2, 1, 7.0, 101.5) | process(4, 2, 3.0, 1.0)) == pytest.approx(0.5 + 4)


def test_sleep_is_seen_however_short_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Witness()
    ours.begin()
    assert ours.disturbed() == ""
    asleep = witness.slept() + 300
    monkeypatch.setattr(witness, "slept", lambda: asleep)
    assert ours.disturbed() == "the machine slept for 300 s"
    ours.begin()
    assert ours.disturbed() == ""


def test_another_program_on_the_gpu_is_seen_and_the_runs_own_is_not(monkeypatch: pytest.MonkeyPatch, burner: Burner) -> None:
    class Gpu:
        def __init__(self, index: int) -> None:
            assert index == 3

        def use(self, since: float) -> dict[int, float]:
            return {pid or os.getpid(): share for pid, share in busy.items()}  # 0: the loop

    def said() -> str:
        return in_a_fork(lambda: only(burner.process.pid), lambda: None, gpu=3)

    monkeypatch.setattr(witness, "Gpu", Gpu)
    busy = {burner.process.pid: 0.4}
    assert said() == "other processes took 40% of the GPU"
    busy = {burner.process.pid: 0.01, 0: 0.9, 4_000_000: 0.9}
    assert said() == "nothing"


# -- once more -------------------------------------------------------------------------------------------------------


class Saying(Witness):
    def __init__(self, *reasons: str) -> None:
        self.reasons, self.usual = list(reasons), False

    def begin(self) -> None:
        pass

    def disturbed(self) -> str:
        return self.reasons.pop(0)


@pytest.mark.parametrize(
    ("usual", "reasons", "ends", "left", "then"),
    [
        (False, ["", "x"], "", ["x"], False),
        (False, ["x", "", "y"], "", ["y"], False),
        (False, ["x", "y", "z"], "y", ["z"], True),
        (True, ["", "y"], "", ["y"], False),
    ],
)
@pytest.mark.parametrize("outcome", [SCORED, TIMED_OUT, STOPPED])
def test_a_disturbed_run_is_done_once_more_and_then_counts(
    usual: bool, reasons: list[str], ends: str, left: list[str], then: bool, outcome: str
) -> None:
    saying, said = Saying(*reasons), list[str]()
    saying.usual = usual
    assert undisturbed(lambda: RunResult(outcome), saying, said.append) == RunResult(outcome, disturbed=ends)
    assert (saying.reasons, saying.usual, len(said)) == (left, then, len(reasons) - len(left) - 1)


@pytest.mark.parametrize(("outcome", "runs"), [(SCORED, 1), (STOPPED, 1), (TIMED_OUT, 2)])
def test_where_load_is_usual_only_what_did_not_come_to_its_end_is_done_again(outcome: str, runs: int) -> None:
    saying = Saying("x", "y")
    saying.usual = True
    undisturbed(lambda: RunResult(outcome), saying, lambda _: None)
    assert len(saying.reasons) == 2 - runs and saying.usual


@pytest.mark.parametrize(("kind", "runs"), [("shape", 1), ("foul", 1), ("oom", 2), ("error", 2)])
def test_a_crash_that_no_load_explains_is_not_repeated(kind: str, runs: int) -> None:
    done = list[int]()

    def run() -> RunResult:
        done.append(1)
        return RunResult(CRASHED, crash_class=kind)

    undisturbed(run, Saying("x", "x"), lambda _: None)
    assert len(done) == runs


@pytest.mark.parametrize(
    ("first", "reason", "audits"),
    [
        (Report("overtime", 1.0, late=True), "others were there", 2),
        (Report("overtime", 1.0, late=True), "", 1),
        (Report("its losses differ", 1.0), "others were there", 1),
        (Report("", 1.0), "others were there", 1),
    ],
)
def test_an_audit_is_done_again_only_if_it_was_late_and_others_had_the_machine(
    monkeypatch: pytest.MonkeyPatch, first: Report, reason: str, audits: int
) -> None:
    reports = [first, Report("", 2.0)]
    monkeypatch.setattr(audit, "_audit", lambda *_: reports.pop(0))
    plan = RunPlan("", Path(), Path(), 1.0, Path())
    assert audit.audit(plan, lambda: False, Saying(reason)).seconds == (3.0 if audits == 2 else 1.0)
    assert len(reports) == 2 - audits


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


def test_the_loop_measures_a_disturbed_run_again(lab: Path, tmp_path: Path, burner: Burner) -> None:
    assert forked(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.15))).returncode == 0
    held = Held(tmp_path, LR=0.2)
    child = os.fork()
    if child == 0:  # lets the run go on once the other program has had the machine
        held.wait()
        burner.burn()
        held.let_go()
        os._exit(0)
    call = partial(forked, lab, rigged=lambda: only(burner.process.pid))
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, "true", held.move))
    os.waitpid(child, 0)
    assert done.returncode == 0, done.stderr
    assert "this run is not counted, other processes took" in done.stderr
    assert len(rows(lab)) == 3 and rows(lab)[2][3] == "keep" and "disturbed" not in rows(lab)[2][4]
    assert journal(lab)[2]["result"]["disturbed"] == ""


def test_a_run_that_burns_the_machine_itself_gets_no_second_try(lab: Path, tmp_path: Path, burner: Burner) -> None:
    burn = f"subprocess.Popen([sys.executable, '-c', {BURN.format(seconds=0.3)!r}])"
    burning = f"import subprocess\nfor each in [{burn} for _ in range(4)]:\n    each.wait()\nmain()\n"
    burning = toy(LR=0.05).rsplit("main()\n", 1)[0] + burning
    (tmp_path / "burning.py").write_text(burning)
    call: Cli = partial(forked, lab, rigged=lambda: only(burner.process.pid))
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, f"cp '{tmp_path}/burning.py' train.py; echo burns"))
    assert done.returncode == 0, done.stderr
    assert "not counted" not in done.stderr
    assert [each["result"]["disturbed"] for each in journal(lab)] == ["", ""]


def test_a_second_run_that_is_disturbed_counts_its_row_says_so_and_the_next_is_not_repeated(lab: Path, tmp_path: Path) -> None:
    def rigged() -> None:
        Witness.disturbed = lambda _: "others were there"  # type: ignore[method-assign]

    call: Cli = partial(forked, lab, rigged=rigged)
    done = call("loop", "--max", "1", "--no-ahead", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert [row[4] for row in rows(lab)] == ["baseline (disturbed: others were there)", "LR 0.2 (disturbed: others were there)"]
    assert done.stderr.count("not counted") == 1  # the baseline's: after that it is how this machine is
    assert [each["result"]["disturbed"] for each in journal(lab)] == ["others were there"] * 2
