"""Claims about recovery: a loop that is killed at any instant loses no row, doubles none, and the next start goes on.

The loop runs in a fork of the test that kills itself with SIGKILL at a named instant. What each researcher's move is depends on the
rows alone, so that every session, however often it is killed, must end with the same table.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import Cli, bpb, git, make_lab, toy
from labs import (
    AUTORESEARCH,
    Background,
    Held,
    agent,
    copy_of,
    forked,
    journal,
    processes_of,
    rows,
    setting,
    wrongs,
)

from autoresearch import cli as commands
from autoresearch import loop, results, session
from autoresearch.journal import Experiment, Journal
from autoresearch.lines import append_line, newest_lines, read_lines
from autoresearch.ratchet import Ratchet

# The literals of a train.py that was scored, or "crash"; status; description.
Row = tuple[dict[str, float] | str, str, str]
BASELINE, BETTER, WORSE = ({}, "keep", "baseline"), ({"LR": 0.2}, "keep", "LR 0.2"), ({"LR": 0.05}, "discard", "LR 0.05")
CRASHED = ("crash", "crash", 'MODE "crash"')


def as_told(row: Row) -> tuple[str, str, str]:
    return (row[0] if isinstance(row[0], str) else bpb(**row[0]), *row[1:])


def researcher(folder: Path, first: str = setting("LR", 0.2), then: str = setting("LR", 0.05)) -> str:
    """One move where the table has the baseline alone, another where it has more."""
    return agent(folder, f"case $(grep -c . results.tsv) in 2) {first} ;; *) {then} ;; esac")


@pytest.fixture
def fresh(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    """On autoresearch/test, without a baseline."""
    return copy_of(made, tmp_path / "lab")


@pytest.fixture(scope="module")
def measured(made: Path, prepared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = copy_of(made, tmp_path_factory.mktemp("measured") / "lab")
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(prepared_cache), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(commands.__file__).parents[1])
    done = subprocess.run([*AUTORESEARCH, "run", "--record", "as it is"], cwd=lab, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return lab


@pytest.fixture
def lab(measured: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    """With the baseline in its table."""
    return copy_of(measured, tmp_path / "lab")


# -- killing ---------------------------------------------------------------------------------------------------------


def die(*_: Any, **__: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def killed(lab: Path, *arguments: str, rigged: Callable[[], None]) -> None:
    done = forked(lab, *arguments, rigged=rigged)
    assert done.returncode == -signal.SIGKILL, done.stderr


def finished(lab: Path, *arguments: str) -> str:
    """The next start, which must end well. Returns what it said."""
    done = forked(lab, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def at(stage: str, when: str, also: Callable[[Experiment], bool] = lambda _: True) -> Callable[[], None]:
    """Die before or after a state of that stage, and of which `also` holds, is on disk: with the work done and not noted, or noted
    and not followed."""

    def rig() -> None:
        save = Journal.save

        def rigged(self: Journal, experiment: Experiment, **changes: Any) -> Experiment:
            hit = changes.get("stage", experiment.stage) == stage and also(experiment)
            if hit and when == "before":
                die()
            saved = save(self, experiment, **changes)
            if hit:
                die()
            return saved

        Journal.save = rigged  # type: ignore[method-assign]

    return rig


def in_append(part: float) -> Callable[[], None]:
    """Die with a part of the row written."""

    def rig() -> None:
        def rigged(path: Path, row: results.Row) -> None:
            line = results.format_row(row)
            with path.open("a") as file:
                file.write(line[: int(part * len(line))])
            die()

        loop.results.append = rigged

    return rig


def in_git(words: str, when: str) -> Callable[[], None]:
    """Die before or after the first git command that begins with these words."""

    def rig() -> None:
        call = Ratchet.git_bytes

        def rigged(self: Ratchet, *arguments: str, **options: Any) -> bytes:
            hit = " ".join(arguments).startswith(words)
            if hit and when == "before":
                die()
            done = call(self, *arguments, **options)
            if hit:
                die()
            return done

        Ratchet.git_bytes = rigged  # type: ignore[method-assign]

    return rig


def in_journal(part: float) -> Callable[[], None]:
    """Die with a part of the experiment's line in experiments.jsonl."""

    def rig() -> None:
        settle = Journal.settle

        def rigged(self: Journal, experiment: Experiment, **changes: Any) -> Experiment:
            settle(self, experiment, **changes)
            path = self.root / "experiments.jsonl"
            *whole, last = path.read_text().splitlines(keepends=True)
            path.write_text("".join(whole) + last[: int(part * len(last))])
            die()

        Journal.settle = rigged  # type: ignore[method-assign]

    return rig


# -- what must hold afterwards ---------------------------------------------------------------------------------------


def check(lab: Path, *expected: Row) -> None:
    """All is as if nothing had happened."""
    assert [(row[1], row[3], row[4]) for row in rows(lab)] == [as_told(row) for row in expected]
    assert wrongs(lab) == []


STAGES = ("committed", "running", "measured", "judged", "recorded", "settled")
INSTANTS = {
    "after proposed": at("proposed", "after"),
    "before the commit's reference": in_git("update-ref refs/autoresearch", "before"),
    **{f"before {stage}": at(stage, "before") for stage in STAGES},
    "after running": at("running", "after"),
    "in the row": in_append(0.5),
    "in the row's description": in_append(1.0),
    "before the branch moves": in_git("update-ref refs/heads", "before"),
    "before train.py is brought": in_git("checkout", "before"),
    "after train.py is brought": in_git("checkout", "after"),
    "before the journal's line": in_journal(0.0),
    "in the journal's line": in_journal(0.5),
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_loop_that_is_killed_before_a_keep_is_settled_loses_nothing(lab: Path, tmp_path: Path, instant: str) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    killed(lab, *options, rigged=INSTANTS[instant])
    said = finished(lab, *options)
    assert ("#2 was left at" in said) == ("journal's" not in instant)
    check(lab, BASELINE, BETTER, WORSE)


@pytest.mark.parametrize("instant", ["after running", "before recorded", "before settled"])
@pytest.mark.parametrize("kind", ["discard", "crash"])
def test_a_loop_that_is_killed_before_a_discard_or_a_crash_is_settled_loses_nothing(
    lab: Path, tmp_path: Path, instant: str, kind: str
) -> None:
    first = setting("LR", 0.05) if kind == "discard" else setting("MODE", '"crash"')
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path, first, setting("LR", 0.2)))
    killed(lab, *options, rigged=INSTANTS[instant])
    finished(lab, *options)
    check(lab, BASELINE, WORSE if kind == "discard" else CRASHED, BETTER)


@pytest.mark.parametrize("instant", ["after proposed", "before judged", "before settled"])
def test_a_loop_that_is_killed_in_its_baseline_has_one_baseline(fresh: Path, tmp_path: Path, instant: str) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    killed(fresh, *options, rigged=INSTANTS[instant])
    finished(fresh, *options)
    check(fresh, BASELINE, BETTER)


@pytest.mark.parametrize("instant", ["after running", "before the branch moves", "before train.py is brought"])
@pytest.mark.parametrize("next_start", ["loop", "record"])
def test_a_recorded_edit_whose_turn_is_killed_comes_to_its_end(lab: Path, tmp_path: Path, instant: str, next_start: str) -> None:
    """The same command again is the same turn, not another; and a loop does not mistake the edit for a person's."""
    (lab / "train.py").write_text(toy(LR=0.2))
    record = ("run", "--record", "LR 0.2")
    killed(lab, *record, rigged=INSTANTS[instant])
    again = record if next_start == "record" else ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    finished(lab, *again)
    check(lab, BASELINE, BETTER, *([] if next_start == "record" else [WORSE]))


@pytest.mark.parametrize("instant", ["after running", "before train.py is brought", "after train.py is brought"])
def test_a_recorded_edit_that_is_worse_is_taken_back_after_a_kill_too(lab: Path, tmp_path: Path, instant: str) -> None:
    (lab / "train.py").write_text(toy(LR=0.05))
    killed(lab, "run", "--record", "LR 0.05", rigged=INSTANTS[instant])
    finished(lab, "loop", "--max", "1", "--researcher", researcher(tmp_path, then=setting("LR", 0.2)))
    check(lab, BASELINE, WORSE, BETTER)


def test_a_proposal_that_was_not_noted_yet_is_asked_for_again(lab: Path, tmp_path: Path) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    killed(lab, *options, rigged=at("proposed", "before"))
    finished(lab, *options)
    check(lab, BASELINE, BETTER)


def test_a_loop_that_is_killed_again_and_again_goes_on_from_where_it_is(lab: Path, tmp_path: Path) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    for instant in ("after proposed", "before running", "before measured", "in the row", "before train.py is brought"):
        killed(lab, *options, rigged=INSTANTS[instant])
    finished(lab, *options)
    check(lab, BASELINE, BETTER, WORSE)


def test_a_run_that_is_left_alive_is_killed_and_repeated(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], cli: Cli
) -> None:
    """Also what it started in a session of its own, out of reach of a signal to its group."""
    held = Held(tmp_path, LR=0.2)
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    held.file.write_text(f"import subprocess\nsubprocess.Popen({child}, start_new_session=True)\n" + held.source)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move, setting("LR", 0.05)))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    loop.send(signal.SIGKILL)
    assert loop.end() == -signal.SIGKILL
    assert len(processes_of(lab)) == 3, "the run, its child and its referee"
    held.let_go()
    done = cli(*options)
    assert done.returncode == 0, done.stderr
    check(lab, BASELINE, ({"LR": 0.2}, "keep", "held"), WORSE)


def test_a_run_by_hand_that_is_left_alive_is_killed_by_the_next_start(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    held = Held(tmp_path)
    (lab / "train.py").write_text(held.source)
    run = Background(lab, "run", env=environment, log=tmp_path / "log")
    held.wait()
    run.send(signal.SIGKILL)
    run.end()
    assert len(processes_of(lab)) == 2, "the run and its referee"
    git(lab, "checkout", "train.py")
    finished(lab, "loop", "--max", "1", "--researcher", researcher(tmp_path))
    check(lab, BASELINE, BETTER)


# -- what a power cut can leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"", b'{"n": 2, "sess', b"\0" * 300, b"[]", b"{}"])
def test_a_torn_state_costs_that_experiment_alone(lab: Path, tmp_path: Path, torn: bytes) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    killed(lab, *options, rigged=at("running", "after"))
    (lab / ".autoresearch/runs/2/state.json").write_bytes(torn)
    finished(lab, *options)
    check(lab, BASELINE, BETTER)
    assert [done["n"] for done in journal(lab)] == [1, 3]


@pytest.mark.parametrize("torn", [b"", b'{"n": 2, "sess', b"\0" * 300])
def test_a_torn_line_of_the_journal_is_written_again(lab: Path, tmp_path: Path, torn: bytes) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    finished(lab, *options)
    path = lab / ".autoresearch" / "experiments.jsonl"
    first, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + torn)
    finished(lab, *options)
    read = [Experiment.from_json(line) for line in path.read_bytes().splitlines()]
    assert [done.n for done in read if done] == [1, 2, 3]
    assert [(row[1], row[3], row[4]) for row in rows(lab)] == [as_told(row) for row in (BASELINE, BETTER, WORSE)]


def test_a_line_of_the_journal_that_lacks_only_its_newline_is_written_again(lab: Path, tmp_path: Path) -> None:
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path))
    finished(lab, *options)
    path = lab / ".autoresearch" / "experiments.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    finished(lab, *options)
    check(lab, BASELINE, BETTER, WORSE)


@pytest.mark.parametrize("lines", [0, 1, 3, 2000])
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("torn", [b"", b"half a li"])
def test_the_newest_lines_are_read_from_the_end_and_a_new_one_comes_behind_whole_ones(
    tmp_path: Path, lines: int, count: int, torn: bytes
) -> None:
    path, written = tmp_path / "lines", [{"n": n, "text": "x" * 90} for n in range(lines)]
    whole = "".join(json.dumps(each) + "\n" for each in written).encode()
    path.write_bytes(whole + torn)
    assert newest_lines(path, count, dict) == written[-count:]
    assert list(read_lines(path, dict)) == written
    append_line(path, {"n": 1})
    assert path.read_bytes() == whole + b'{"n": 1}\n'
    assert newest_lines(tmp_path / "nothing", count, dict) == list(read_lines(tmp_path / "nothing", dict)) == []


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"n": 1', b"1], [2", b"\0\0", b'"n": 3}', b"[1, 2]", b"7"])
def test_a_damaged_line_among_thousands_costs_itself_alone(tmp_path: Path, damaged: bytes) -> None:
    path, lines = tmp_path / "lines", [b'{"n": %d}' % n for n in range(1200)]
    path.write_bytes(b"\n".join([*lines[:700], damaged, *lines[700:]]) + b"\n")
    assert [each["n"] for each in read_lines(path, lambda data: {"n": data["n"]})] == list(range(1200))


# -- before the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_of_tables_that_is_killed_in_the_middle_loses_no_row(lab: Path, tmp_path: Path, when: str) -> None:
    """New constants and back again: the second change moves one table away and another in."""
    old = (lab / "constants.py").read_text()
    (lab / "constants.py").write_text(old.replace("TIME_BUDGET = 1 ", "TIME_BUDGET = 2 "))
    git(lab, "commit", "--quiet", "--all", "--message=longer")
    options = ("loop", "--max", "1", "--researcher", researcher(tmp_path, then=setting("LR", 0.25)))
    finished(lab, *options)
    second = rows(lab)
    (lab / "constants.py").write_text(old)
    git(lab, "commit", "--quiet", "--all", "--message=back")

    def rig() -> None:
        write = session.write_atomically

        def rigged(path: Path, data: str | bytes) -> None:
            if path.name == "results.fingerprint":
                if when == "after":
                    write(path, data)
                die()
            write(path, data)

        session.write_atomically = rigged

    killed(lab, *options, rigged=rig)
    finished(lab, *options)
    (aside,) = lab.glob("results-*.tsv")
    assert rows(lab, aside.name) == second
    assert [row[1] for row in rows(lab)] == [bpb(), bpb(LR=0.2), bpb(LR=0.25)]


@pytest.mark.parametrize(
    "instant", [("commit-tree", "after"), ("update-ref", "after"), ("switch", "before"), ("switch", "after")], ids=" ".join
)
def test_a_setup_that_is_killed_is_done_again(environment: Mapping[str, str], tmp_path: Path, instant: tuple[str, str]) -> None:
    lab = make_lab(tmp_path / "lab")
    killed(lab, "setup", "--tag", "test", rigged=in_git(*instant))
    finished(lab, "setup", "--tag", "test")
    assert git(lab, "log", "--format=%s").splitlines() == ["setup: cpu profile", "a lab"]
    assert git(lab, "branch", "--show-current") == "autoresearch/test"
    assert git(lab, "status", "--porcelain") == ""
    assert git(lab, "log", "--format=%s", "main") == "a lab"
