"""Claims about `status` and `stop`: they tell what is, from any terminal, and ask the loop that runs and no other."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, bpb
from labs import Background, Held, agent, copy_of, picture, rows, setting, statuses

from autoresearch import owner, processes, status
from autoresearch.experiment.meter import family
from autoresearch.journal import Journal
from autoresearch.lab import Lab
from autoresearch.ratchet import Ratchet


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


WORSE = setting("LR", 0.05)


def shown(call: Cli) -> dict[str, object]:
    done = call("status", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# -- status ----------------------------------------------------------------------------------------------------------


def test_status_tells_what_runs_how_far_it_is_and_the_newest_rows_and_changes_nothing(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held = Held(tmp_path, LR=0.2)
    # Its progress is printed before it waits: as a run in its middle.
    printing, _, waiting = held.source.partition("import pathlib\n")
    first = "print('\\rstep 00040 (12.5%) | loss: 6.5000 | tok/s: 12,345 | mfu: - | left: 26s   ', end='')\n"
    second = "print('\\rstep 00123 (41.5%) | loss: 3.2199 | tok/s: 12,345 | mfu: - | left: 17s   ', end='', flush=True)\n"
    held.file.write_text(f"{printing}{first}{second}import pathlib\n{waiting}")
    earlier = "".join(f"{n:07d}\tcrash\t—\tcrash\tby another tool\n" for n in range(11))
    (lab / "results.tsv").write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n" + earlier)
    loop = Background(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, held.move), env=environment, log=tmp_path / "log")
    held.wait()
    before = picture(lab)
    seen = shown(call)
    said = call("status").stdout.splitlines()
    assert picture(lab) == before
    held.let_go()
    assert loop.end() == 0

    process, experiment = seen["process"], seen["experiment"]
    assert isinstance(process, dict) and isinstance(experiment, dict)
    assert (seen["running"], seen["stopping"], process["pid"], process["loop"]) == (True, False, loop.process.pid, True)
    assert (experiment["n"], experiment["description"], experiment["researcher"]) == (2, "held", "agent")
    assert (experiment["stage"], experiment["run"]) == ("running", 1)
    assert seen["progress"] == {
        "step": 123,
        "percent": 41.5,
        "loss": 3.2199,
        "tokens_per_second": 12345.0,
        "seconds_left": 17.0,
    }
    assert seen["curve"] == [[12.5, 6.5], [41.5, 3.2199]]
    newest = seen["rows"]
    assert isinstance(newest, list) and [row["n"] for row in newest] == [None] * 9 + [1]
    assert [row["commit"] for row in newest] == [row[0] for row in rows(lab)[2:12]]
    assert seen["total_rows"] == 12

    assert said[0].startswith(f"the loop runs as process {loop.process.pid}, since 20")
    assert said[1].startswith("#2 held, by agent: running, run 1, for ")
    assert said[2] == "  42%  step 123  loss 3.2199  12,345 tok/s  17 s of training left"
    assert said[3] == "  loss 6.5000 █▁ 3.2199"
    assert said[5] == "The last 10 of 12 rows:"
    assert said[6].split() == ["0000002", "—", "—", "GB", "crash", "by", "another", "tool"]
    assert said[-1].split()[:3] == ["#1", rows(lab)[11][0], bpb()]


def test_after_a_kill_status_tells_what_was_left_and_after_the_end_that_nothing_runs(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    assert shown(call)["running"] is False
    assert call("status").stdout == f"nothing runs in {lab}\n"
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move, WORSE))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    loop.send(signal.SIGKILL)
    loop.end()
    said = call("status").stdout.splitlines()
    assert said[:2] == [
        f"nothing runs in {lab}",
        "#2 held, by agent: left at 'running', the next start goes on from there",
    ]
    held.let_go()
    assert call(*options).returncode == 0
    assert shown(call)["experiment"] is None
    assert "left at" not in call("status").stdout


def test_status_works_with_nothing_installed(lab: Path, environment: Mapping[str, str]) -> None:
    """The standard library alone: no site-packages."""
    command = ["python3", "-S", "-P", "-m", "autoresearch", "status"]
    done = subprocess.run(command, cwd=lab, env=dict(environment), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nothing runs in {lab}\n"


def test_a_command_that_is_no_loop_is_told_as_one_and_is_not_stopped(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held = Held(tmp_path)
    (lab / "train.py").write_text(held.source)
    run = Background(lab, "run", env=environment, log=tmp_path / "log")
    held.wait()
    said = call("status").stdout.splitlines()
    assert said[0].startswith(f"a single command runs as process {run.process.pid}, since ")
    assert said[1] == "  a run that is not recorded:"
    refused = call("stop")
    assert refused.returncode == 3
    assert f"process {run.process.pid} works in {lab} and is no loop: it ends by itself, or with 'kill -INT" in refused.stderr
    held.let_go()
    assert run.end() == 0


@pytest.mark.parametrize(
    ("losses", "drawn"),
    [
        ([4.0, 3.0, 2.0], "█▅▁"),
        ([2.0, 2.0], "▁▁"),
        ([4.0, float("nan"), 2.0, float("inf")], "█ ▁ "),
        ([float("nan")], " "),
    ],
)
def test_a_curve_is_drawn_between_its_least_and_its_greatest_loss(losses: list[float], drawn: str) -> None:
    assert status.sparkline(losses) == drawn


# -- stop ------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_loop_after_its_experiment_and_not_the_next_one(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held = Held(tmp_path, LR=0.2)
    researcher = agent(tmp_path, held.move, WORSE)
    loop = Background(lab, "loop", "--max", "0", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    asked = call("stop")
    assert (asked.returncode, asked.stdout) == (0, "")
    at_once = f"'kill -TERM {loop.process.pid}' ends it at once and loses nothing"
    assert asked.stderr == f"the loop (process {loop.process.pid}) is asked to end after experiment #2; {at_once}\n"
    assert "is asked already to end after experiment #2" in call("stop").stderr
    assert "it ends after this experiment, as asked" in call("status").stdout
    assert shown(call)["stopping"] is True
    assert statuses(lab) == ["keep"]
    held.let_go()
    assert loop.end() == 0
    assert "stopped, as 'autoresearch stop' asked" in loop.said()
    assert statuses(lab) == ["keep", "keep"]
    assert call("loop", "--max", "1", "--researcher", researcher).returncode == 0
    assert statuses(lab) == ["keep", "keep", "discard"]


def test_one_ctrl_c_after_a_stop_is_still_the_first(lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli) -> None:
    held = Held(tmp_path, LR=0.2)
    loop = Background(lab, "loop", "--researcher", agent(tmp_path, held.move), env=environment, log=tmp_path / "log")
    held.wait()
    assert call("stop").returncode == 0
    loop.send(signal.SIGINT)
    loop.until("stopping after this experiment")
    held.let_go()
    assert loop.end() == 0
    assert statuses(lab) == ["keep", "keep"]


def test_a_wish_to_stop_that_a_killed_loop_left_stops_no_other(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "2", "--no-ahead", "--researcher", agent(tmp_path, held.move, WORSE, setting("LR", 0.06)))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    assert call("stop").returncode == 0
    loop.send(signal.SIGKILL)
    loop.end()
    held.let_go()
    refused = call("stop")
    assert (refused.returncode, refused.stderr) == (3, f"autoresearch: nothing runs in {lab}: there is nothing to stop\n")
    again = call(*options)
    assert again.returncode == 0 and "as 'autoresearch stop' asked" not in again.stderr
    assert statuses(lab) == ["keep", "keep", "discard", "discard"]


def test_a_process_that_came_to_the_number_of_a_dead_loop_is_not_taken_for_it(lab: Path) -> None:
    """The lock names a living number with another birth: this test's own."""
    journal = Journal(Lab(lab))
    mine = owner.me(loop=True)
    (journal.root / "lock").write_text(mine.line())
    assert journal.at_work() == mine
    (journal.root / "lock").write_text(owner.Owner(mine.pid, "another", True, mine.since).line())
    assert journal.at_work() is None
    with pytest.raises(status.NotReady, match="nothing runs"):
        status.stop(Lab(lab))
    assert not (journal.root / "stop").exists()


def test_a_process_that_has_ended_and_was_not_waited_for_counts_as_none() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended; its number is not free yet
    assert processes.birth(child) == ""
    os.waitpid(child, 0)
    assert processes.birth(os.getpid()) != ""


def test_a_process_that_ends_while_it_is_looked_at_stops_nobody(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel answers then is neither "not found" nor "not permitted". It once ended a loop."""
    stat = Path.stat

    def ended(self: Path, **options: Any) -> os.stat_result:
        if self.parts[:2] == ("/", "proc") and len(self.parts) > 3:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(self))
        return stat(self, **options)

    monkeypatch.setenv("MARK", "here")
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(Path, "stat", ended)
        try:
            assert child.pid in processes.marked("MARK=here")
            assert child.pid in family(os.getpid())
            assert list(Ratchet(lab)._living()) == []
        finally:
            child.kill()


def test_a_lock_of_whatever_content_is_nobodys(lab: Path) -> None:
    journal = Journal(Lab(lab))
    for text in ("", "1234\n", "{}", '{"pid": 1}', "\0\0", "[]"):
        (journal.root / "lock").write_text(text)
        assert journal.at_work() is None
    with journal.lock():
        assert journal.at_work() is not None
