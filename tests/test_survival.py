"""Claims about what a night brings: other victims than the loop (test_recover.py has that), machines that fail, people who edit.

benchmarks/survival.py kills at random moments; here each case is one that is meant.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, tzinfo
from itertools import cycle
from pathlib import Path

import pytest
from conftest import ROOT, TOY_TRAIN, Cli, bpb, git, toy
from labs import (
    Background,
    Held,
    agent,
    copy_of,
    dies,
    forked,
    journal,
    rows,
    setting,
    state,
    statuses,
    tip,
    wait_for,
    wrongs,
)

from autoresearch import hardware, owner, session, setup
from autoresearch.experiment import referee
from autoresearch.processes import marked

PROBE = hardware.probe
BETTER, WORSE = setting("LR", 0.2), setting("LR", 0.05)


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


def of_runs(lab: Path) -> list[int]:
    return list(marked(f"AUTORESEARCH_WEIGHTS_OUT={lab}/"))


# -- who is killed ---------------------------------------------------------------------------------------------------


def test_a_candidate_that_is_killed_is_a_crash_and_the_loop_goes_on(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "2", "--researcher", agent(tmp_path, held.move, BETTER))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    (candidate,) = [pid for pid in of_runs(lab) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(candidate, signal.SIGKILL)
    assert loop.end() == 0, loop.said()
    assert [row[1:] for row in rows(lab)][1] == ("crash", "—", "crash", "held")
    assert statuses(lab) == ["keep", "crash", "keep"]
    assert wrongs(lab) == []


@pytest.mark.parametrize("victim", ["the program", "its leash"])
def test_a_researcher_that_is_killed_is_asked_again(lab: Path, tmp_path: Path, environment: Mapping[str, str], victim: str) -> None:
    pid = tmp_path / "pid"
    think = f"sleep 600 & echo $! > '{pid}.part'; mv '{pid}.part' '{pid}'; wait"
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, think, BETTER))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    wait_for(pid.exists, "it was never asked")

    def victims() -> list[int]:
        commands = dict[int, bytes]()
        for each in marked(f"AUTORESEARCH_RESEARCHER={lab}/"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a fork of it that has ended since
                commands[each] = Path(f"/proc/{each}/cmdline").read_bytes()
        leashes = [each for each in commands if b"leash.py" in commands[each]]
        programs = [each for each in commands if str(tmp_path / "agent").encode() in commands[each]]
        return leashes if victim == "its leash" else [each for each in programs if each not in leashes]

    wait_for(lambda: len(victims()) == 1, "its `sleep` is still a fork of it")
    (chosen,) = victims()
    os.kill(chosen, signal.SIGKILL)
    assert loop.end() == 0, loop.said()
    dies(pid)
    assert "proposal refused: 'agent' ended with exit code" in loop.said()
    assert statuses(lab) == ["keep", "keep"]
    assert wrongs(lab) == []


def test_all_processes_killed_at_once_lose_nothing(lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli) -> None:
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move, WORSE))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    for pid in (loop.process.pid, *of_runs(lab)):
        os.kill(pid, signal.SIGKILL)
    loop.end()
    held.let_go()
    done = call(*options)
    assert done.returncode == 0, done.stderr
    assert [row[1] for row in rows(lab)] == [bpb(), bpb(LR=0.2), bpb(LR=0.05)]
    assert wrongs(lab) == []


def test_a_loop_that_is_killed_in_an_audit_leaves_no_process_of_it_once_it_goes_on(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    latch, started = tmp_path / "latch", tmp_path / "started"
    latch.touch()
    waits = (
        f"    if weights:\n        open({str(started)!r}, 'w').close()\n"
        f"        while os.path.exists({str(latch)!r}):\n            time.sleep(0.01)\n"
    )
    source = toy(LR=0.2).replace("    if weights:\n", waits + "    if weights:\n", 1)
    assert source != TOY_TRAIN
    (tmp_path / "waits.py").write_text(source)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, f"cp '{tmp_path}/waits.py' train.py; echo audited", WORSE))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    wait_for(started.exists, "there was no audit")
    told = call("status").stdout.splitlines()
    assert told[1].startswith("#2 audited, by agent: measured, for ") and told[2] == "  the audit of what would be kept:"
    loop.send(signal.SIGKILL)
    loop.end()
    left = of_runs(lab)
    assert len(left) == 2, "a candidate and a referee"
    assert state(lab, 2)["stage"] == "measured"
    # Judged by hand meanwhile, so that no second audit comes across what the first one left.
    latch.unlink()
    (lab / "train.py").write_text(toy(LR=0.28))
    git(lab, "commit", "--quiet", "--all", "--message=theirs")
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("DEPTH", 5)))
    assert done.returncode == 0, done.stderr
    assert not set(left) & set(of_runs(lab))
    assert wrongs(lab) == []


# -- a person at the same desk ---------------------------------------------------------------------------------------


def edited(lab: Path, change: Callable[[list[str]], list[str]], end: str = "\n") -> None:
    header, *lines = (lab / "results.tsv").read_text().splitlines()
    (lab / "results.tsv").write_text("\n".join([header, *change(lines)]) + end)


EDITS: dict[str, Callable[[Path], None]] = {
    "rows are gone": lambda lab: edited(lab, lambda lines: lines[:1]),
    "an editor saved it as it was before": lambda lab: edited(lab, lambda lines: lines[:-1]),
    "it is sorted": lambda lab: edited(lab, lambda lines: lines[::-1]),
    "a description is mended": lambda lab: edited(lab, lambda lines: [line + " (mine)" for line in lines]),
    "half a line is left": lambda lab: edited(lab, lambda lines: [*lines[:-1], lines[-1][:10]], end=""),
    "rows of their own are added": lambda lab: edited(lab, lambda lines: ["0000000\t1.5\t1.0\tdiscard\ttheirs", *lines]),
    "it is away": lambda lab: (lab / "results.tsv").unlink(),
}


@pytest.mark.parametrize(
    ("when", "edit"),
    [
        *(("during a run", edit) for edit in EDITS),
        *(("after a kill", edit) for edit in ("an editor saved it as it was before", "it is sorted")),
    ],
)
def test_no_row_is_lost_or_doubled_by_a_person_who_edits_the_table(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli, when: str, edit: str
) -> None:
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "3", "--no-ahead", "--researcher", agent(tmp_path, WORSE, setting("LR", 0.06), held.move))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    if when == "after a kill":
        loop.send(signal.SIGKILL)
        loop.end()
    EDITS[edit](lab)
    held.let_go()
    if when == "after a kill":
        done = call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.04)))
        assert done.returncode == 0, done.stderr
    else:
        assert loop.end() == 0, loop.said()
    commits = [row[0] for row in rows(lab) if row[0] != "0000000" and len(row) == 5]
    assert sorted(commits) == sorted(done["commit"][:7] for done in journal(lab))
    assert statuses(lab).count("keep") == 2
    if edit == "rows of their own are added":
        assert rows(lab)[0][4] == "theirs"


def test_what_a_person_committed_on_the_branch_stays_on_it_beside_the_keep(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    """A commit of another file comes after the judgement and before the branch moves: the loop was killed in between."""

    def killed_before_it_moves() -> None:
        from autoresearch.ratchet import Ratchet

        Ratchet.advance = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]

    options = ("loop", "--max", "1", "--no-ahead", "--researcher", agent(tmp_path, WORSE, BETTER, setting("LR", 0.06)))
    assert call(*options).returncode == 0
    assert forked(lab, *options, rigged=killed_before_it_moves).returncode == -signal.SIGKILL
    (lab / "notes.md").write_text("mine\n")
    git(lab, "add", "notes.md")
    git(lab, "commit", "--quiet", "--message=my notes")
    theirs = tip(lab)
    done = call(*options)
    assert done.returncode == 0, done.stderr
    kept = journal(lab)[2]["commit"]
    assert git(lab, "merge-base", theirs, "HEAD") == theirs and git(lab, "merge-base", kept, "HEAD") == kept
    assert (lab / "notes.md").read_text() == "mine\n" and (lab / "train.py").read_text() == toy(LR=0.2)
    assert git(lab, "log", "-1", "--format=%s", "--first-parent").endswith("LR 0.2")
    assert statuses(lab) == ["keep", "discard", "keep", "discard"], "no new baseline: the incumbent's train.py is there"
    assert git(lab, "status", "--porcelain") == ""


def test_a_train_py_that_a_person_committed_before_the_branch_moved_is_not_replaced(lab: Path, tmp_path: Path, call: Cli) -> None:
    def killed_before_it_moves() -> None:
        from autoresearch.ratchet import Ratchet

        Ratchet.advance = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]

    options = ("loop", "--max", "1", "--no-ahead", "--researcher", agent(tmp_path, WORSE, BETTER, setting("LR", 0.06)))
    assert call(*options).returncode == 0
    assert forked(lab, *options, rigged=killed_before_it_moves).returncode == -signal.SIGKILL
    (lab / "train.py").write_text(toy(LR=0.25))
    git(lab, "commit", "--quiet", "--all", "--message=theirs")
    done = call(*options)
    assert done.returncode == 0, done.stderr
    kept = journal(lab)[2]["commit"]
    assert f"train.py was committed on autoresearch/test meanwhile and stays; #3 is {kept}" in done.stderr
    assert (lab / "train.py").read_text() == toy(LR=0.25)
    assert tip(lab, "refs/autoresearch/test/3") == kept
    assert [row[3:] for row in rows(lab)][2:] == [("keep", "LR 0.2"), ("keep", "baseline"), ("discard", "LR 0.06")]


# -- clocks ----------------------------------------------------------------------------------------------------------

# Where the time of day is asked for: to be written down or shown. A jump of the clock changes what is read there and nothing else.
STAMPS = {
    ("owner.py", "me"),  # since when a process works
    ("setup.py", "now"),  # when an experiment began and ended
    ("setup.py", "tag_of"),  # the name of a new branch
    ("desk.py", "_wait"),  # until when it waits, for people; it waits by the other clock
    ("status.py", "show"),  # how long ago that was
    ("witness.py", "begin"),  # the driver's samples of the GPU are stamped with it
    ("witness.py", "_look_at_gpu"),
}
WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime"), ("time", "ctime")}
WALL_CLOCKS |= {("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}


def test_no_time_limit_hangs_on_the_time_of_day() -> None:
    """All others use time.monotonic or perf_counter, which neither a jump nor a sleeping laptop moves."""
    found = set()
    for path in (*(ROOT / "src").rglob("*.py"), ROOT / "prepare.py", ROOT / "train.py"):
        tree = ast.parse(path.read_text())
        for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)]:
            own = ast.walk(scope) if isinstance(scope, ast.FunctionDef) else (n for s in scope.body for n in outside(s))
            for node in own:
                assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), f"{path.name}: write time.monotonic"
                if isinstance(node, ast.Attribute) and (getattr(node.value, "id", ""), node.attr) in WALL_CLOCKS:
                    found.add((path.name, getattr(scope, "name", "<module>")))
    assert found == STAMPS


def outside(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what lies in it, without the functions: those are looked at by themselves."""
    if not isinstance(node, ast.FunctionDef):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from outside(child)


def test_a_clock_that_jumps_back_and_forth_changes_nothing(lab: Path, tmp_path: Path) -> None:
    hours = cycle((0, 5, -48, 1, -1, 9000))

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=next(hours))

    def rig() -> None:
        setup.datetime = owner.datetime = Jumping  # type: ignore[misc, attr-defined]

    moves = (BETTER, WORSE, setting("LR", 0.25))
    options = ("loop", "--max", "3", "--max-hours", "1", "--no-ahead", "--researcher", agent(tmp_path, *moves))
    done = forked(lab, *options, rigged=rig)
    assert done.returncode == 0, done.stderr
    assert statuses(lab) == ["keep", "keep", "discard", "keep"]
    assert all(0 < each["result"]["wall_seconds"] < 60 and each["overhead_seconds"] >= 0 for each in journal(lab))
    stamps = [each["started"] for each in journal(lab)]
    assert stamps != sorted(stamps), "the clock did jump"
    assert wrongs(lab) == []


# -- the GPU ---------------------------------------------------------------------------------------------------------


class Gpu:
    """nvidia-smi on PATH, answering with what lies in two files, and a loop in a fork that believes it."""

    CARD = "0, GPU-aaaa0000-0000, NVIDIA H100 80GB HBM3, 81559, 580.95.05, Disabled, 9.0"
    LOST = "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error"

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.card, self.used = folder / "card", folder / "used"
        self.card.write_text(self.CARD)
        self.used.write_text("450")
        bin = folder / "bin"
        bin.mkdir()
        smi = bin / "nvidia-smi"
        smi.write_text(
            f"#!/bin/sh\ncase $1 in --query-gpu=memory.used) cat '{self.used}' ;; --query-gpu=*) cat '{self.card}' ;;"
            " *) echo 'CUDA Version: 13.0' ;; esac\n"
            f"grep -q GPU- '{self.card}'\n"
        )
        smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def rig(self) -> None:
        def no_memory(_: object) -> None:
            raise RuntimeError("this machine has no GPU")

        hardware.probe = PROBE
        referee.OnGpu = no_memory  # type: ignore[assignment, misc]
        session.RELEASE_PATIENCE = 0.2


@pytest.fixture
def gpu(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(tmp_path, monkeypatch)


def failing(folder: Path, error: str, then: str = "") -> str:
    """A researcher's move: a train.py that does something to the machine and fails, as long as `trouble` is there."""
    trouble = folder / "trouble"
    trouble.touch()
    check = f"if os.path.exists({str(trouble)!r}):\n    os.system({then!r})\n    raise RuntimeError({error!r})\nmain()\n"
    source, call = toy(LR=0.2).rsplit("main()\n", 1)
    assert not call
    (folder / "failing.py").write_text(source + check)
    return f"cp '{folder}/failing.py' train.py; echo failing"


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (
            "echo '{lost}' > {card}",
            "the GPU NVIDIA H100 80GB HBM3 is gone (nvidia-smi failed: Unable to determine the device handle",
        ),
        ("echo 'No devices were found' > {card}", "the GPU NVIDIA H100 80GB HBM3 is gone (now: none)"),
        ("echo 40450 > {used}", "another program holds 40,000 MB of the GPU NVIDIA H100 80GB HBM3 that were free when"),
    ],
    ids=["off the bus", "gone", "held by another"],
)
def test_a_gpu_that_is_lost_or_taken_during_a_run_is_not_ready_and_no_crash(
    lab: Path, tmp_path: Path, gpu: Gpu, then: str, told: str
) -> None:
    move = failing(tmp_path, "CUDA error: unspecified launch failure", then.format(lost=gpu.LOST, card=gpu.card, used=gpu.used))
    options = ("loop", "--max", "1", "--no-ahead", "--researcher", agent(tmp_path, move, WORSE))
    done = forked(lab, *options, rigged=gpu.rig)
    assert done.returncode == 3, done.stderr
    assert told in done.stderr.splitlines()[-1]
    assert statuses(lab) == ["keep"]
    gpu.card.write_text(gpu.CARD)
    gpu.used.write_text("450")
    (tmp_path / "trouble").unlink()
    again = forked(lab, *options, rigged=gpu.rig)
    assert again.returncode == 0, again.stderr
    assert statuses(lab) == ["keep", "keep", "discard"]
    assert wrongs(lab) == []


@pytest.mark.parametrize("then", ["true", "echo 600 > {used}"], ids=["alone", "a desktop beside it"])
def test_a_crash_on_a_gpu_that_is_well_is_a_crash(lab: Path, tmp_path: Path, gpu: Gpu, then: str) -> None:
    move = failing(tmp_path, "CUDA out of memory", then.format(used=gpu.used))
    done = forked(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, move), rigged=gpu.rig)
    assert done.returncode == 0, done.stderr
    assert statuses(lab) == ["keep", "crash"]


def test_a_gpu_that_is_lost_before_the_start_stops_it(lab: Path, tmp_path: Path, gpu: Gpu) -> None:
    gpu.card.write_text(gpu.LOST)
    done = forked(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, BETTER), rigged=gpu.rig)
    assert done.returncode == 3
    assert "nvidia-smi failed: Unable to determine the device handle" in done.stderr
    assert not (lab / "results.tsv").exists()
