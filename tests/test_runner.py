"""Claims about one run of train.py: how it is watched, ended and read, and what `run` makes of it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import CONSTANTS, Cli, bpb, git, let_it_last, scored, subject, toy
from labs import Background, Held, copy_of, dies, journal, processes_of, rows, state, statuses, tip

from autoresearch.errors import Interrupted, NotReady
from autoresearch.experiment import runner
from autoresearch.experiment.runner import Progress, RunPlan, execute
from autoresearch.journal import RunResult


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


def plan(tmp_path: Path, source: str, seconds: float = 60.0) -> RunPlan:
    helpers = tmp_path / "helpers"
    helpers.mkdir(exist_ok=True)
    (helpers / "prepare.py").write_text("")
    (helpers / "constants.py").write_text(CONSTANTS)
    return RunPlan(source, helpers, tmp_path / "run", budget=1.0, caches=tmp_path / "caches", allowance=seconds - 1.0)


def run(tmp_path: Path, source: str, seconds: float = 60.0) -> RunResult:
    return execute(plan(tmp_path, source, seconds), lambda _: None, lambda: False)


# -- what came of it -------------------------------------------------------------------------------------------------


def test_a_score_comes_with_its_figures(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = execute(plan(tmp_path, toy(LR=0.3, DEPTH=6)), seen.append, lambda: False)
    assert (result.outcome, result.val_bpb, result.memory_mb, result.num_steps) == ("scored", 1.0, 6144.0, 2)
    assert result.wall_seconds > 0
    assert seen[-1] == Progress(step=2, percent=100.0, loss=5.5, tokens_per_second=12345.0, seconds_left=0.0)


@pytest.mark.parametrize(
    ("source", "crash_class", "detail"),
    [
        (toy(MODE="crash"), "error", "RuntimeError: told to crash"),
        (toy(MODE="oom"), "oom", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."),
        (toy(MODE="nan"), "non-finite", "val_bpb nan is no score"),
        (toy(MODE="silent"), "no-score", "train.py ended without printing a score"),
        ("", "no-score", "train.py ended without printing a score"),
        ("raise SystemExit('ValueError: shapes (2, 3) and (4, 5)')", "shape", "ValueError: shapes (2, 3) and (4, 5)"),
        ("import os; os.kill(os.getpid(), 9)", "oom", "killed by the system, most likely out of memory"),
        ("raise SystemExit(137)", "oom", "killed by the system, most likely out of memory"),
        ("import os; os.kill(os.getpid(), 11)", "error", "no output, exit code -11"),
        ("print('---'); print('val_bpb: 1.5'); raise SystemExit(1)", "error", "val_bpb: 1.5"),
        ("print('---'); print('val_bpb: -1')", "non-finite", "val_bpb -1.0 is no score"),
        ("print('\\x1b[31mval_bpb: 0.5\\x07')", "no-score", "train.py ended without printing a score"),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\xfe broken\\n'); sys.exit(4)", "error", "�� broken"),
    ],
)
def test_a_run_without_a_score_is_a_crash_with_its_reason(tmp_path: Path, source: str, crash_class: str, detail: str) -> None:
    result = run(tmp_path, source)
    assert (result.outcome, result.val_bpb, result.crash_class, result.detail) == ("crash", None, crash_class, detail)


def test_figures_that_are_no_numbers_harm_nothing(tmp_path: Path) -> None:
    lines = ["---", "val_bpb: 1.5", "peak_vram_mb: nan", "num_steps: inf", "total_tokens_M: many", "depth"]
    result = run(tmp_path, f"print({chr(10).join(lines)!r})")
    assert (result.outcome, result.val_bpb) == ("scored", 1.5)
    assert result.memory_mb is result.num_steps is result.total_tokens_m is None


@pytest.mark.parametrize(("trained", "outcome"), [(1.9, "scored"), (2.1, "timeout")])
def test_one_step_past_the_budget_is_grace_and_more_is_overtime(tmp_path: Path, trained: float, outcome: str) -> None:
    result = run(tmp_path, toy().replace('"training_seconds": "1.0"', f'"training_seconds": "{trained}"'))
    assert result.outcome == outcome
    if outcome == "timeout":
        assert (result.val_bpb, result.crash_class) == (None, "overtime")


def test_the_last_summary_counts(tmp_path: Path) -> None:
    result = run(tmp_path, "print('---\\nval_bpb: 9.0\\n---\\nval_bpb: 2.0')")
    assert result.val_bpb == 2.0


# -- how it is ended -------------------------------------------------------------------------------------------------


def test_a_run_that_hangs_is_ended_after_its_time(tmp_path: Path) -> None:
    result = run(tmp_path, toy(MODE="hang"), seconds=0.3)
    assert (result.outcome, result.crash_class, result.val_bpb) == ("timeout", "timeout", None)
    assert 0.3 <= result.wall_seconds < 5


def test_a_run_that_closes_its_output_and_goes_on_is_ended_after_its_time_too(tmp_path: Path) -> None:
    silent = "import os, time\nfor fd in (0, 1, 2):\n    os.close(fd)\ntime.sleep(600)\n"
    assert run(tmp_path, silent, seconds=0.3).outcome == "timeout"


def test_a_run_that_closes_its_output_can_be_stopped(tmp_path: Path) -> None:
    silent = (
        f"import os, pathlib, time\nos.close(1)\nos.close(2)\npathlib.Path({str(tmp_path / 'closed')!r}).touch()\ntime.sleep(600)"
    )
    with pytest.raises(Interrupted):
        execute(plan(tmp_path, silent), lambda _: None, (tmp_path / "closed").exists)


@pytest.mark.parametrize("session", [False, True])
def test_what_a_run_leaves_behind_is_killed_and_costs_no_time(tmp_path: Path, session: bool) -> None:
    """It holds the output open, and once more in a session of its own, out of reach of a signal to the group."""
    child = f"[sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session={session}"
    pid = tmp_path / "pid"
    note = f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))"
    source = f"import pathlib, subprocess, sys\nchild = subprocess.Popen({child})\n{note}\n"
    result = run(tmp_path, source + toy())
    assert (result.outcome, result.val_bpb) == ("scored", 1.08)
    assert result.wall_seconds < 10
    dies(pid)


def test_a_child_that_floods_the_output_forever_does_not_hold_the_result(tmp_path: Path) -> None:
    source = "import subprocess, sys\nsubprocess.Popen(['yes'])\n" + toy()
    result = run(tmp_path, source.replace('print("---"', 'print("\\n---"'))
    assert result.wall_seconds < 10
    assert result.outcome in ("scored", "crash")


def test_a_flood_of_output_is_cut_in_the_middle_and_the_score_is_read(tmp_path: Path) -> None:
    flood = "for _ in range(800):\n    print('x' * 65535)\n"
    result = run(tmp_path, flood + toy())
    assert (result.outcome, result.val_bpb) == ("scored", 1.08)
    log = (tmp_path / "run" / "run.log").read_bytes()
    assert runner.MAX_LOG_BYTES < len(log) <= runner.MAX_LOG_BYTES + runner.LOG_TAIL_BYTES + 100
    assert b"\n[cut: " in log and log.endswith(b"score:            self-reported\n")


def test_a_run_sees_its_files_its_seed_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    source = (
        "import os, sys\nprint(sorted(os.listdir()), os.environ['AUTORESEARCH_SEED'], sys.stdin.read() == '',\n"
        "      [name for name in os.environ if 'KEY' in name or name == 'PYTHONPATH'])\n"
    )
    run(tmp_path, source)
    assert (tmp_path / "run" / "run.log").read_text() == "['constants.py', 'prepare.py', 'train.py'] 1337 True []\n"


def test_a_disk_that_is_full_is_not_the_runs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(NotReady, match=r"the disk of .* is full \(\d+ MB free\): free \d+ MB and start again"):
        run(tmp_path, toy())


def test_where_processes_do_not_show_their_environment_the_left_over_run_is_found_by_number_and_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PROC", tmp_path / "no-proc")
    alive = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        runner.write_pid(tmp_path / "pid", alive.pid)
        known = (tmp_path / "pid").read_text()
        (tmp_path / "pid").write_text(f"{alive.pid} another start\n")
        runner.end_left_over(tmp_path)
        assert alive.poll() is None, "a later process with the same number"
        (tmp_path / "pid").write_text(known)
        runner.end_left_over(tmp_path)
        assert alive.wait(10) == -signal.SIGKILL
        assert not (tmp_path / "pid").exists()
    finally:
        alive.kill()
        alive.wait()


# -- `run` -----------------------------------------------------------------------------------------------------------


def test_run_prints_the_two_figures_and_leaves_its_log_in_the_lab(lab: Path, cli: Cli) -> None:
    let_it_last(lab)
    before = tip(lab)
    done = cli("run")
    assert done.returncode == 0, done.stderr
    score, memory = done.stdout.splitlines()
    assert score == f"val_bpb: {bpb()}"
    assert 10 < float(memory.removeprefix("peak_vram_mb: ")) < 1000, "seen from outside, not the 4096 that it claims"
    grep = subprocess.run(["grep", r"^val_bpb:\|^peak_vram_mb:", "run.log"], cwd=lab, capture_output=True, text=True)
    assert grep.stdout == f"val_bpb:          {bpb()}\npeak_vram_mb:     4096.0\n"
    assert tip(lab) == before
    assert git(lab, "status", "--porcelain") == ""
    assert not (lab / "results.tsv").exists()
    assert journal(lab) == []


def test_run_with_a_literal_set_says_so_and_leaves_train_py_as_it_is(lab: Path, cli: Cli) -> None:
    before = (lab / "train.py").read_text()
    done = cli("run", "--set", "LR=2x", "--set", "DEPTH=6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"val_bpb: {scored(0.2, 6):.6f}"
    assert "measured by the referee with LR=2x, DEPTH=6, not committed" in done.stderr
    assert (lab / "train.py").read_text() == before and git(lab, "status", "--porcelain") == ""
    refused = cli("run", "--set", "LRR=2x")
    assert refused.returncode == 64 and "--set LRR=2x: want NAME=VALUE with one of LR, DEPTH, MODE" in refused.stderr


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [("crash", 1, "crash (error): RuntimeError: told to crash"), ("hang", 2, "timeout (timeout): not done after 1 s, ended")],
)
def test_run_ends_with_1_for_a_crash_and_2_for_a_time_out(lab: Path, cli: Cli, mode: str, code: int, said: str) -> None:
    (lab / "train.py").write_text(toy(MODE=mode))
    done = cli("run", "--allowance", "0")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == f"{said}; the whole output is in {lab / 'run.log'}"
    assert "100.0%" in (lab / "run.log").read_text()


def test_run_ends_with_3_where_the_machine_is_not_ready(lab: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("run", env={"AUTORESEARCH_CACHE": str(tmp_path / "empty")})
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "prepare" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], number: signal.Signals
) -> None:
    held = Held(tmp_path)
    (lab / "train.py").write_text(held.source)
    process = Background(lab, "run", env=environment, log=tmp_path / "log")
    held.wait()
    process.send(number)
    assert process.end() == 130
    assert processes_of(lab) == []
    assert "Traceback" not in process.said()


# -- `run --record` --------------------------------------------------------------------------------------------------


def edit(lab: Path, **literals: object) -> None:
    (lab / "train.py").write_text(toy(**literals))


def test_record_is_a_whole_turn_and_the_first_one_begins_with_the_baseline(lab: Path, cli: Cli) -> None:
    edit(lab, LR=0.2)
    (lab / "notes.txt").write_text("mine\n")
    done = cli("run", "--record", "a higher\trate,\nas in the\x1b[31m paper")
    assert done.returncode == 0, done.stderr
    row = done.stdout.rstrip("\n").split("\t")
    assert [row[1], *row[3:]] == [bpb(LR=0.2), "keep", "a higher rate, as in the paper"]
    assert [each[3:] for each in rows(lab)] == [("keep", "baseline"), ("keep", "a higher rate, as in the paper")]
    assert tip(lab).startswith(row[0])
    assert git(lab, "log", "-1", "--format=%s") == subject(scored(LR=0.2), scored(), "a higher rate, as in the paper")
    assert (lab / "train.py").read_text() == toy(LR=0.2)
    assert git(lab, "status", "--porcelain") == "?? notes.txt"
    assert git(lab, "show", "refs/autoresearch/test/results:results.tsv") == (lab / "results.tsv").read_text().rstrip("\n")


def test_record_takes_back_what_is_not_better_and_keeps_it_reachable(lab: Path, cli: Cli) -> None:
    edit(lab, LR=0.05)
    (lab / "program.md").write_text("# Research Program\n\nMine.\n")
    done = cli("run", "--record", "lower")
    assert done.returncode == 0, done.stderr
    assert statuses(lab) == ["keep", "discard"]
    assert (lab / "train.py").read_text() == toy()
    assert git(lab, "status", "--porcelain") == ""
    assert (lab / "program.md").read_text().endswith("Mine.\n")
    assert git(lab, "show", "refs/autoresearch/test/2:train.py") == toy(LR=0.05).rstrip("\n")
    assert (lab / ".autoresearch/runs/2/train.py").read_text() == toy(LR=0.05)


@pytest.mark.parametrize(("mode", "code", "crash_class"), [("crash", 1, "error"), ("hang", 2, "timeout")])
def test_record_of_a_crash_is_a_row_and_is_taken_back(lab: Path, cli: Cli, mode: str, code: int, crash_class: str) -> None:
    edit(lab)
    assert cli("run", "--record", "as it is").returncode == 0
    edit(lab, MODE=mode)
    done = cli("run", "--record", "bold", "--allowance", "0")
    assert done.returncode == code
    assert [row[1:] for row in rows(lab)][1:] == [("crash", "—", "crash", "bold")]
    assert state(lab, 2)["result"]["crash_class"] == crash_class
    assert (lab / "train.py").read_text() == toy()


def test_record_of_an_unchanged_file_is_the_baseline_once(lab: Path, cli: Cli) -> None:
    first = cli("run", "--record", "as it is")
    assert first.returncode == 0
    assert "train.py is unchanged: this was the baseline; change train.py and record again" in first.stderr
    again = cli("run", "--record", "as it is")
    assert again.returncode == 3
    assert again.stderr.splitlines()[-1] == "autoresearch: not run: no change: train.py does the same as the incumbent's"
    assert statuses(lab) == ["keep"]


def test_record_of_what_was_tried_before_leaves_the_edit_where_it_is(lab: Path, cli: Cli) -> None:
    edit(lab, LR=0.05)
    assert cli("run", "--record", "lower").returncode == 0
    edit(lab, LR=0.05)
    done = cli("run", "--record", "lower again")
    assert done.returncode == 3
    assert "not run: this very code was tried before" in done.stderr
    assert (lab / "train.py").read_text() == toy(LR=0.05)
    assert len(rows(lab)) == 2


def test_an_edit_that_is_refused_costs_no_baseline_and_stays(lab: Path, cli: Cli) -> None:
    source = toy() + f"DATA = {'x' * 2000!r}\n"
    (lab / "train.py").write_text(source)
    done = cli("run", "--record", "data")
    assert done.returncode == 3
    assert "not run: train.py, line" in done.stderr
    assert (lab / "train.py").read_text() == source
    assert not (lab / "results.tsv").exists()


def test_an_edit_survives_a_baseline_that_is_stopped_or_fails(lab: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    held = Held(tmp_path)
    (lab / "train.py").write_text(held.source)
    git(lab, "commit", "--quiet", "--all", "--message=slow")
    edit(lab, LR=0.2)
    process = Background(lab, "run", "--record", "mine", env=environment, log=tmp_path / "log")
    held.wait()
    process.send(signal.SIGINT)
    process.until("stopping after this experiment")
    held.let_go()
    assert process.end() == 130
    assert "stopped after the baseline; train.py is as you left it" in process.said()
    assert (lab / "train.py").read_text() == toy(LR=0.2)
    assert statuses(lab) == ["keep"]


def test_what_is_edited_while_a_record_runs_is_kept_aside(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], cli: Cli
) -> None:
    assert cli("run", "--record", "as it is").returncode == 0
    held = Held(tmp_path, LR=0.05)
    (lab / "train.py").write_text(held.source)
    process = Background(lab, "run", "--record", "mine", env=environment, log=tmp_path / "log")
    held.wait()
    (lab / "train.py").write_text("# the next idea\n")
    held.let_go()
    assert process.end() == 0
    assert (lab / "train.py").read_text() == toy()
    assert (lab / ".autoresearch/runs/2/train.py.edited").read_text() == "# the next idea\n"


def test_record_with_other_files_changed_is_refused_with_their_names(lab: Path, cli: Cli) -> None:
    edit(lab, LR=0.2)
    (lab / "uv.lock").write_text("mine\n")
    done = cli("run", "--record", "mine")
    assert done.returncode == 3
    assert done.stderr.startswith("autoresearch: uncommitted changes in uv.lock: commit them")
    assert (lab / "train.py").read_text() == toy(LR=0.2)
