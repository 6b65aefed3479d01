"""Claims about the loop: what it runs, what it keeps, what stops it, and that nothing of a person's is lost on the way."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Cli, bpb, git, scored, subject, toy
from labs import (
    AUTORESEARCH,
    Background,
    Held,
    agent,
    copy_of,
    journal,
    processes_of,
    rows,
    setting,
    state,
    statuses,
    tip,
    wait_for,
    wrongs,
)

from autoresearch.experiment.runner import Progress
from autoresearch.view import View


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    """On autoresearch/test, with the toy train.py that scores 1.08, and no baseline yet."""
    return copy_of(made, tmp_path / "lab")


BETTER, WORSE, EQUAL = setting("LR", 0.2), setting("LR", 0.05), setting("LR", 0.5)


# -- a session -------------------------------------------------------------------------------------------------------


def test_a_session_is_a_baseline_and_n_experiments_and_n_further_on_the_next_call(lab: Path, call: Cli) -> None:
    main = tip(lab, "main")
    first = call("loop", "--max", "2", "--desc", "a night's\twork")
    assert first.returncode == 0, first.stderr
    said = first.stderr.splitlines()
    assert re.match(r"2 experiments and the baseline, about \d+ s each \(1 s of training\): about .* in all", said[0])
    assert first.stdout.startswith("a night's work\nSession summary: 2 experiments, ")
    assert said[-1] == "to take the best into your branch: git checkout main && git merge autoresearch/test"
    assert len(rows(lab)) == 3
    assert rows(lab)[0][3:] == ("keep", "baseline")

    second = call("loop", "--max", "1")
    assert second.returncode == 0, second.stderr
    assert second.stderr.startswith("1 experiment, about")
    assert second.stdout.startswith("a night's work\nSession summary: 3 experiments, ")
    assert [done["n"] for done in journal(lab)] == [1, 2, 3, 4]
    assert len(rows(lab)) == 4

    assert tip(lab, "main") == main
    tried = git(lab, "for-each-ref", "--format=%(refname)", "refs/autoresearch/test").split()
    assert sorted(tried) == sorted(f"refs/autoresearch/test/{name}" for name in ("1", "2", "3", "4", "results"))
    for row, number in zip(rows(lab), range(1, 5), strict=True):
        assert tip(lab, f"refs/autoresearch/test/{number}").startswith(row[0])
    assert git(lab, "show", "refs/autoresearch/test/results:results.tsv") == (lab / "results.tsv").read_text().rstrip("\n")
    assert git(lab, "status", "--porcelain") == ""


def test_what_is_better_stays_with_its_score_in_its_subject_and_what_is_equal_goes(lab: Path, tmp_path: Path, call: Cli) -> None:
    done = call("loop", "--max", "3", "--researcher", agent(tmp_path, EQUAL, BETTER, WORSE))
    assert done.returncode == 0, done.stderr
    assert [(row[1], *row[3:]) for row in rows(lab)] == [
        (bpb(), "keep", "baseline"),
        (bpb(), "discard", "LR 0.5"),
        (bpb(LR=0.2), "keep", "LR 0.2"),
        (bpb(LR=0.05), "discard", "LR 0.05"),
    ]
    assert git(lab, "log", "--format=%s", "-2").splitlines() == [
        subject(scored(LR=0.2), scored(), "LR 0.2"),
        f"val_bpb {bpb()}: baseline",
    ]
    assert tip(lab).startswith(rows(lab)[2][0])
    assert git(lab, "show", "HEAD:train.py") == (lab / "train.py").read_text().rstrip("\n") == toy(LR=0.2).rstrip("\n")
    assert "-LR = 0.2" in (lab / ".autoresearch/runs/4/patch").read_text()


def test_a_crash_is_a_row_and_the_loop_goes_on(lab: Path, tmp_path: Path, call: Cli) -> None:
    researcher = agent(tmp_path, setting("MODE", '"crash"'), setting("MODE", '"oom"'), setting("MODE", '"nan"'), BETTER)
    done = call("loop", "--max", "4", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert [row[1:4] for row in rows(lab)[1:4]] == [("crash", "—", "crash")] * 3
    assert [each["result"]["crash_class"] for each in journal(lab)[1:4]] == ["error", "oom", "non-finite"]
    assert rows(lab)[4][3:] == ("keep", "LR 0.2")
    assert '#2 crash (error): MODE "crash" - RuntimeError: told to crash' in done.stderr


def test_a_tag_names_the_branch_of_a_session_of_its_own(lab: Path, tmp_path: Path, call: Cli) -> None:
    before = tip(lab)
    done = call("loop", "--max", "1", "--tag", "other", "--researcher", agent(tmp_path, BETTER))
    assert done.returncode == 0, done.stderr
    assert git(lab, "branch", "--show-current") == "autoresearch/other"
    assert tip(lab) == before
    assert git(lab, "for-each-ref", "--format=%(refname:short)", "refs/autoresearch").split() == [
        f"autoresearch/other/{name}" for name in ("1", "2", "results")
    ]


def test_the_harness_needs_less_than_300_ms_an_experiment(lab: Path, tmp_path: Path, call: Cli) -> None:
    moves = [setting("LR", value / 100) for value in range(4, 10)]
    assert call("loop", "--max", str(len(moves)), "--no-ahead", "--researcher", agent(tmp_path, *moves)).returncode == 0
    own = sorted(done["overhead_seconds"] for done in journal(lab))
    assert own[len(own) // 2] < 0.3


# -- stopping --------------------------------------------------------------------------------------------------------


def test_ctrl_c_finishes_the_experiment_and_a_session_without_limit_ends_so(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    held = Held(tmp_path, LR=0.2)
    researcher = agent(tmp_path, held.move, WORSE)
    loop = Background(lab, "loop", "--max", "0", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    loop.send(signal.SIGINT)
    loop.until("stopping after this experiment; Ctrl-C again stops at once and loses nothing")
    assert statuses(lab) == ["keep"]
    held.let_go()
    assert loop.end() == 0
    assert "experiments until you stop with Ctrl-C" in loop.said()
    assert statuses(lab) == ["keep", "keep"]
    assert tip(lab, "refs/autoresearch/test/results^") == tip(lab)


def test_ctrl_c_twice_stops_at_once_and_the_next_start_repeats_the_run(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held = Held(tmp_path, LR=0.05)
    researcher = agent(tmp_path, held.move, BETTER)
    loop = Background(lab, "loop", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    loop.send(signal.SIGINT)
    loop.until("stopping after this experiment")
    loop.send(signal.SIGINT)
    assert loop.end() == 130
    assert "the next start goes on from here" in loop.said()
    assert processes_of(lab) == []
    assert statuses(lab) == ["keep"]
    commit = state(lab, 2)["commit"]

    held.let_go()
    again = call("loop", "--max", "1", "--researcher", researcher)
    assert again.returncode == 0, again.stderr
    assert "#2 was left at 'running': going on from there" in again.stderr
    assert [done["commit"] for done in journal(lab)][1] == commit == tip(lab, "refs/autoresearch/test/2")
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("discard", "held"), ("keep", "LR 0.2")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_or_a_shutdown_stops_at_once(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], number: signal.Signals
) -> None:
    held = Held(tmp_path)
    loop = Background(lab, "loop", "--researcher", agent(tmp_path, held.move), env=environment, log=tmp_path / "log")
    held.wait()
    loop.send(number)
    assert loop.end() == 130
    assert processes_of(lab) == []
    assert state(lab, 2)["stage"] == "running"


def test_a_loop_under_nohup_outlives_the_terminal(lab: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    held = Held(tmp_path)
    researcher = agent(tmp_path, held.move)
    options = ("loop", "--max", "1", "--researcher", researcher)
    loop = Background(lab, *options, env=environment, log=tmp_path / "log", before="trap '' HUP;")
    held.wait()
    loop.send(signal.SIGHUP)
    held.let_go()
    assert loop.end() == 0
    assert statuses(lab) == ["keep", "discard"]


def test_a_loop_that_no_hangup_reaches_goes_on_when_its_terminal_is_closed(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    """As one that was disowned by its shell: what it says then goes nowhere."""
    held = Held(tmp_path, LR=0.2)
    words = (*AUTORESEARCH, "loop", "--max", "2", "--sandbox", "none", "--researcher", agent(tmp_path, held.move, WORSE))
    ours, theirs = pty.openpty()
    loop = subprocess.Popen(words, cwd=lab, env={**environment, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    held.wait()
    os.close(ours)
    held.let_go()
    loop.wait()
    assert statuses(lab) == ["keep", "keep", "discard"]
    assert wrongs(lab) == []


def test_ctrl_c_in_a_terminal_reaches_git_too_and_harms_nothing(lab: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    """A terminal signals the whole process group; here in the middle of the git command that commits the proposal."""
    bin, real = tmp_path / "bin", git(lab, "--exec-path") + "/git"
    bin.mkdir()
    group = tmp_path / "group"
    (bin / "git").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *commit-tree*) [ -s "{group}" ] && kill -INT -$(cat "{group}") && : > "{group}" && sleep 0.05 ;; esac\n'
        f'exec "{real}" "$@"\n'
    )
    (bin / "git").chmod(0o755)
    with_git = {**environment, "PATH": f"{bin}:{environment['PATH']}"}
    held = Held(tmp_path)
    move = f"cp '{tmp_path}/pid' '{group}'; {BETTER}"
    loop = Background(lab, "loop", "--researcher", agent(tmp_path, held.move, move), env=with_git, log=tmp_path / "log")
    held.wait()
    (tmp_path / "pid").write_text(str(loop.process.pid))
    held.let_go()
    assert loop.end() == 0, loop.said()
    assert "stopping after this experiment" in loop.said()
    assert statuses(lab) == ["keep", "discard", "keep"]


def test_detach_says_how_to_follow_and_works_on_alone(lab: Path, tmp_path: Path, cli: Cli) -> None:
    held = Held(tmp_path, LR=0.2)
    begun = cli("loop", "--max", "1", "--detach", "--researcher", agent(tmp_path, held.move))
    assert begun.returncode == 0, begun.stderr
    log = lab / ".autoresearch" / "loop.log"
    said = re.fullmatch(rf"running as process (\d+); follow it: tail -f {log}; stop it .*: kill -INT (\d+)\n", begun.stdout)
    assert said and said[1] == said[2]
    held.wait()
    held.let_go()
    wait_for(lambda: "to take the best" in log.read_text(), "the detached loop never ended")
    assert statuses(lab) == ["keep", "keep"]


def test_a_detached_loop_that_can_t_begin_says_why(lab: Path, cli: Cli) -> None:
    (lab / "constants.py").write_text("nonsense\n")
    done = cli("loop", "--max", "1", "--detach")
    assert done.returncode == 3
    assert "constants.py" in done.stderr


# -- a person at the same desk ---------------------------------------------------------------------------------------


def test_a_program_that_is_edited_during_the_session_is_committed_by_the_loop(lab: Path, tmp_path: Path, call: Cli) -> None:
    edit = f"echo 'Try the depth.' >> '{lab}/program.md'"
    researcher = agent(tmp_path, f"{edit}; {WORSE}", f"cp BRIEF.md '{tmp_path}'; {BETTER}")
    done = call("loop", "--max", "2", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert git(lab, "log", "--format=%s", "-2").splitlines()[1] == "program.md: changed by its author"
    assert git(lab, "diff", "--name-only", "HEAD~2", "HEAD~1") == "program.md"
    assert "Try the depth." in (tmp_path / "BRIEF.md").read_text()
    assert git(lab, "status", "--porcelain") == ""


def test_other_uncommitted_changes_stop_it_at_the_start_with_the_names(lab: Path, call: Cli) -> None:
    (lab / "prepare.py").write_text("# mine\n")
    (lab / "uv.lock").unlink()
    done = call("loop", "--max", "1")
    assert done.returncode == 3
    assert "uncommitted changes in prepare.py, uv.lock: commit them" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (lab / "results.tsv").exists()


@pytest.mark.parametrize("then", ["", "; git -C {lab} -c user.name=p -c user.email=p@p commit --quiet --all --message=mine"])
def test_a_read_only_file_that_changes_during_the_session_stops_it(lab: Path, tmp_path: Path, call: Cli, then: str) -> None:
    move = f"echo '# longer' >> '{lab}/constants.py'" + then.format(lab=lab)
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, f"{move}; {WORSE}", BETTER))
    assert done.returncode == 3
    assert "constants.py changed during the session: take it back" in done.stderr
    assert statuses(lab) == ["keep", "discard"]


@pytest.mark.parametrize(("switch", "where"), [("main", "main"), ("--detach HEAD", "no branch")])
def test_another_branch_or_none_under_the_session_stops_it(lab: Path, tmp_path: Path, call: Cli, switch: str, where: str) -> None:
    move = f"git -C '{lab}' switch --quiet {switch}; {BETTER}"
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, move))
    assert done.returncode == 3
    assert f"is now on {where}: 'git switch autoresearch/test' and start again" in done.stderr
    assert git(lab, "log", "-1", "--format=%s", "autoresearch/test") == subject(scored(LR=0.2), scored(), "LR 0.2")
    assert git(lab, "status", "--porcelain") == ""
    assert git(lab, "log", "--format=%s", "main") == "a lab"


def test_a_branch_deleted_under_the_session_stops_it_with_the_way_back(lab: Path, tmp_path: Path, call: Cli) -> None:
    move = f"git -C '{lab}' update-ref -d refs/heads/autoresearch/test; {WORSE}"
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, move, BETTER))
    assert done.returncode == 3
    way_back = re.search(r"the branch autoresearch/test is gone: bring it back with 'git (update-ref \S+ \S+)'", done.stderr)
    assert way_back
    assert "is gone" in call("loop", "--max", "1").stderr
    git(lab, *way_back[1].split())
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, BETTER)).returncode == 0
    assert statuses(lab)[0] == statuses(lab)[-1] == "keep"


def test_an_edit_of_train_py_during_a_run_is_kept_aside_where_a_keep_replaces_it(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    (lab / "train.py").write_text("# my idea\n")
    held.let_go()
    assert loop.end() == 0
    assert (lab / "train.py").read_text() == held.source
    assert (lab / ".autoresearch/runs/2/train.py.edited").read_text() == "# my idea\n"
    assert "the edit is kept in" in loop.said()


def test_a_train_py_committed_by_hand_between_sessions_is_a_new_baseline(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, BETTER)).returncode == 0
    (lab / "train.py").write_text(toy(DEPTH=8, LR=0.1))
    git(lab, "commit", "--quiet", "--all", "--message=deeper")
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.25)))
    assert done.returncode == 0, done.stderr
    assert [row[1] + " " + row[3] + " " + row[4] for row in rows(lab)[2:]] == [
        f"{bpb()} keep baseline",
        f"{bpb(LR=0.25)} keep LR 0.25",
    ]
    assert git(lab, "log", "--format=%s", "-2", "HEAD~1").splitlines() == [f"val_bpb {bpb()}: baseline", "deeper"]


def test_a_train_py_committed_by_hand_during_a_run_is_never_replaced(lab: Path, tmp_path: Path, call: Cli) -> None:
    (tmp_path / "theirs.py").write_text(toy(LR=0.28))
    commit = f"git -C '{lab}' -c user.name=p -c user.email=p@p commit --quiet --all --message=theirs"
    move = f"cp '{tmp_path}/theirs.py' '{lab}/train.py'; {commit}; {BETTER}"
    # The commit comes while the researcher thinks: what it proposes then is made from the train.py before it.
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, move, setting("DEPTH", 5)))
    assert done.returncode == 0, done.stderr
    assert "theirs" in git(lab, "log", "--format=%s").splitlines()
    assert (lab / "train.py").read_text() == toy(LR=0.28, DEPTH=5)
    assert [row[4] for row in rows(lab) if row[3] == "keep"] == ["baseline", "baseline", "DEPTH 5"]


# -- what scores depend on -------------------------------------------------------------------------------------------


def test_new_constants_begin_a_new_table_and_the_old_ones_bring_theirs_back(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, WORSE)).returncode == 0
    first, old = rows(lab), (lab / "constants.py").read_text()

    (lab / "constants.py").write_text(old.replace("TIME_BUDGET = 1 ", "TIME_BUDGET = 2 "))
    git(lab, "commit", "--quiet", "--all", "--message=longer")
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, BETTER))
    assert done.returncode == 0, done.stderr
    assert "scores from now on don't compare with the earlier ones:\n  TIME_BUDGET: 1 -> 2\n" in done.stderr
    (aside,) = lab.glob("results-*.tsv")
    assert f"the earlier rows are in {aside.name}; results.tsv begins anew" in done.stderr
    assert rows(lab, aside.name) == first
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "LR 0.2")]
    second = rows(lab)

    (lab / "constants.py").write_text(old)
    git(lab, "commit", "--quiet", "--all", "--message=back")
    again = call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.25)))
    assert again.returncode == 0, again.stderr
    assert rows(lab)[: len(first)] == first
    assert len(rows(lab)) == len(first) + 2, "a baseline for the train.py that was kept meanwhile, and one experiment"
    (aside,) = lab.glob("results-*.tsv")
    assert rows(lab, aside.name) == second


# -- what a person sees ----------------------------------------------------------------------------------------------


def test_a_terminal_of_80_columns_shows_step_loss_and_the_seconds_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        view = View()
        with view.run("#7 a title that is far too long for what is left beside the figures", 300.0):
            view.progress(Progress(step=1234, percent=41.5, loss=3.21987, tokens_per_second=1_234_567.0, seconds_left=175.0))
            view.say("a line in between")
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "step 1234  loss 3.2199  1,234,567 tok/s  175 s left" in shown
    assert "a line in between" in shown


def test_elsewhere_the_progress_comes_in_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view, now = View(), Progress(step=3, percent=50.0, loss=2.5, tokens_per_second=900.0, seconds_left=4.0)
    with view.run("#7 a title", 300.0):
        view.progress(now)
        monkeypatch.setattr("autoresearch.view.PLAIN_EVERY", 0.0)
        view.progress(now)
    assert capsys.readouterr().err == "#7 a title: starting\n   50%  step 3  loss 2.5000  900 tok/s  4 s left\n"
