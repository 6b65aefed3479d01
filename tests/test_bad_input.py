"""Claims about bad input: one line that names the thing and the way out, an exit code that is not 0, and nothing changed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Cli, git, toy
from labs import Background, Held, agent, copy_of, forked, picture, rows, setting, statuses, tip, wait_for, wrongs

from autoresearch import cli as commands
from autoresearch import ratchet

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


@pytest.fixture
def refused(lab: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """refused("loop", "--max", "1", code=3): the one line that the command said, having changed nothing. In this very process."""

    def call(*arguments: str, code: int = 3, env: Mapping[str, str] | None = None, cwd: Path = lab) -> str:
        before = picture(cwd)
        monkeypatch.chdir(cwd)
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        ended = commands.main(list(arguments))
        said = capfd.readouterr()
        assert (ended, said.out) == (code, ""), said.err
        (line,) = said.err.splitlines()
        assert picture(cwd) == before
        return line.removeprefix("autoresearch: ")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield call
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


Refused = Callable[..., str]


def commit(lab: Path, name: str, text: str | None) -> None:
    if text is None:
        (lab / name).unlink()
    else:
        (lab / name).write_text(text)
    git(lab, "commit", "--quiet", "--all", "--message=an accident")


# -- the call --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "",
        "lopo",
        "loop --maxx 3",
        "loop --det",
        "loop --max three",
        "loop --max -1",
        "loop --max 2 3",
        "loop --researcher gpt",
        "loop --researcher ./nothing-here",
        "loop --allowance -1",
        "loop --allowance nan",
        "loop --researcher-timeout soon",
        "loop --tag a..b",
        "loop --tag=",
        "run --rec x",
        "run --record=",
        "setup --seq-len 384",
        "setup --seq-len 0",
        "setup --seq-len -1",
        "setup --seq-len 1e3",
        "setup --time-budget 0",
        "setup --num-shards many",
        "setup --tag -x",
        "results --top 0",
        "results --diff 99",
    ],
)
def test_a_wrong_call_ends_with_64(refused: Refused, call: str) -> None:
    line = refused(*call.split(), code=64)
    assert re.search(r"see autoresearch|--|no experiment 99|sequence length -?\d+ won't work", line)


def test_unbalanced_quotes_are_a_wrong_call(refused: Refused) -> None:
    assert "No closing quotation" in refused("loop", "--researcher", "./agent 'x", code=64)


def test_a_length_that_is_no_power_of_two_is_told_with_those_that_are(refused: Refused) -> None:
    line = refused("setup", "--seq-len", "384", code=64)
    assert "384" in line and "256" in line and "512" in line


# -- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["loop --max 1", "setup", "run --record x"])
def test_no_git_repository(lab: Path, cli: Cli, tmp_path: Path, call: str) -> None:
    shutil.rmtree(lab / ".git")
    done = cli(*call.split(), env={"GIT_CEILING_DIRECTORIES": str(tmp_path)})
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert f"{lab} is not in a git repository: run 'git init && git add -A && git commit -m lab' in {lab}" in line


def test_a_lab_in_a_subfolder_of_a_repository(lab: Path, cli: Cli, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "--quiet")
    shutil.rmtree(lab / ".git")
    lab.rename(outer / "lab")
    done = cli("loop", "--max", "1", cwd=outer / "lab")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert f"{outer / 'lab'} is not the root of its git repository ({outer} is)" in line


def test_no_lab_at_all(cli: Cli, tmp_path: Path) -> None:
    done = cli("loop", "--max", "1", cwd=tmp_path)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"autoresearch: no lab around {tmp_path}: a lab is a folder with train.py, program.md")


@pytest.mark.parametrize("call", ["loop --max 1", "setup"])
def test_a_dirty_tree(lab: Path, refused: Refused, call: str) -> None:
    (lab / "train.py").write_text(toy(LR=0.2))
    (lab / "uv.lock").unlink()
    (lab / "program.md").write_text("# mine, and not in the way\n")
    line = refused(*call.split())
    assert line.startswith("uncommitted changes in train.py, uv.lock: commit them, or take them back with 'git checkout -- FILE'")


def test_an_edit_before_the_lab_was_set_up_is_not_mixed_with_the_profile(lab: Path, refused: Refused) -> None:
    git(lab, "switch", "--quiet", "main")
    (lab / "train.py").write_text(toy(LR=0.2))
    line = refused("run", "--record", "mine")
    assert "'git stash', 'bash scripts/setup.sh', 'git stash pop', then record again" in line


# -- its files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "is missing: bring it back with 'git checkout -- train.py'"),
        ("", "is empty: bring it back with 'git checkout -- train.py'"),
        ("def main(:\n", "is not valid Python (invalid syntax (train.py, line 1), line 1): mend it or 'git checkout -- train.py'"),
        ("\0", "is not valid Python (source code string cannot contain null bytes"),
        ("x = " + "(" * 500 + ")" * 500, "is not valid Python (too many nested parentheses"),
    ],
)
@pytest.mark.parametrize("call", ["loop --max 1", "run", "run --record x"])
def test_a_train_py_that_is_none(lab: Path, refused: Refused, text: str | None, told: str, call: str) -> None:
    (lab / "train.py").unlink()
    if text is not None:
        (lab / "train.py").write_text(text)
    assert told in refused(*call.split())


def test_a_train_py_that_is_no_text(lab: Path, refused: Refused) -> None:
    (lab / "train.py").write_bytes(b"\xff\xfe\x00")
    assert "train.py is not UTF-8 text" in refused("loop", "--max", "1")


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "train.py is not in the last commit"), ("", "is empty"), ("def main(:\n", "is not valid Python")],
)
def test_a_train_py_that_is_none_in_the_last_commit_too(lab: Path, refused: Refused, text: str | None, told: str) -> None:
    commit(lab, "train.py", text)
    assert told in refused("loop", "--max", "1")


def test_a_committed_train_py_that_is_none_under_an_edit_that_is_one(lab: Path, cli: Cli) -> None:
    commit(lab, "train.py", "def main(:\n")
    (lab / "train.py").write_text(toy())
    done = cli("run", "--record", "mended")
    assert done.returncode == 3
    assert "train.py as committed is not valid Python" in done.stderr
    assert (lab / "train.py").read_text() == toy()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('TIME_BUDGET = "300"', "TIME_BUDGET = '300' must be int or float: correct it and commit"),
        ("TIME_BUDGET = True", "TIME_BUDGET = True must be int or float"),
        ("TIME_BUDGET = minutes(5)", "TIME_BUDGET is missing or is no literal"),
        ("MAX_SEQ_LEN = 256.0", "MAX_SEQ_LEN = 256.0 must be int"),
        ("DATASET = None", "DATASET = None must be str"),
        ("", "is missing or is no literal"),
        ("MAX_SEQ_LEN = 512", "no data is prepared for these constants"),
        pytest.param("TIME_BUDGET = 0", "TIME_BUDGET = 0: wanted seconds"),
        pytest.param("EVAL_TOKENS = 10", "EVAL_TOKENS = 10: wanted"),
        ("DATASET = (", "constants.py is not valid Python (line"),
    ],
)
def test_constants_of_another_kind(lab: Path, refused: Refused, line: str, told: str) -> None:
    text = (lab / "constants.py").read_text()
    name = line.split(" ")[0] or "TIME_BUDGET"
    commit(lab, "constants.py", re.sub(rf"(?m)^{name} = .*", line, text))
    assert told in refused("loop", "--max", "1")


def test_a_table_with_a_foreign_header(lab: Path, refused: Refused) -> None:
    git(lab, "switch", "--quiet", "main")  # not even the branch is made
    git(lab, "branch", "--quiet", "-D", "autoresearch/test")
    (lab / "results.tsv").write_text("epoch\tloss\n1\t2.5\n")
    line = refused("loop", "--max", "1")
    assert f"{lab / 'results.tsv'}: line 1 is 'epoch loss', not the header" in line


def test_a_table_with_a_cut_last_line_goes_on_whole(lab: Path, tmp_path: Path, cli: Cli) -> None:
    (lab / "results.tsv").write_text(HEADER + "abc1234\t1.100000\t4.0\tkeep\told\nabc12")
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert [row[4] for row in rows(lab)] == ["old", "baseline", "LR 0.2"]


# -- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["loop --max 1", "run", "run --record x"])
def test_data_that_was_never_prepared(refused: Refused, tmp_path: Path, call: str) -> None:
    line = refused(*call.split(), env={"AUTORESEARCH_CACHE": str(tmp_path / "empty")})
    assert str(tmp_path / "empty") in line or "prepare" in line
    assert "setup" in line or "prepare.py" in line


def test_data_that_goes_during_a_session_is_no_crash_of_an_experiment(
    lab: Path, tmp_path: Path, prepared_cache: Path, cli: Cli
) -> None:
    shutil.copytree(prepared_cache, tmp_path / "cache")
    move = f"rm -r '{tmp_path}/cache'; " + setting("MODE", '"crash"')
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, move), env={"AUTORESEARCH_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 3
    assert statuses(lab) == ["keep"]
    again = cli("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert again.returncode == 0, again.stderr
    assert statuses(lab) == ["keep", "crash", "keep"]


def test_two_loops_in_one_lab(lab: Path, tmp_path: Path, environment: Mapping[str, str], refused: Refused) -> None:
    held = Held(tmp_path)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move))
    first = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    told = f"another autoresearch works in {lab} (process {first.process.pid}): wait for it or stop it"
    for call in ("loop --max 1", "run", "run --record x", "setup", "results --restore 2"):
        assert refused(*call.split()) == told
    held.let_go()
    assert first.end() == 0
    assert statuses(lab) == ["keep", "discard"]


@pytest.mark.parametrize(("mode", "reason"), [("crash", "error: RuntimeError: told to crash"), ("hang", "timeout: not done")])
def test_a_baseline_that_fails_begins_no_night(lab: Path, tmp_path: Path, cli: Cli, mode: str, reason: str) -> None:
    researcher = ("--researcher", agent(tmp_path, setting("LR", 0.2)))
    commit(lab, "train.py", toy(MODE=mode))
    before = tip(lab)
    for _ in range(2):
        done = cli("loop", "--max", "3", "--allowance", "0", *researcher)
        assert done.returncode == 3
        assert f"autoresearch: the baseline failed ({reason}" in done.stderr.splitlines()[-1]
        assert done.stderr.splitlines()[-1].endswith("mend train.py and commit it; all of it is in run.log")
        assert "the end of run.log:\n  " in done.stderr
    assert (tip(lab), git(lab, "status", "--porcelain")) == (before, "")
    assert not (lab / "results.tsv").exists()
    commit(lab, "train.py", toy())
    assert cli("loop", "--max", "1", *researcher).returncode == 0
    assert statuses(lab) == ["keep", "keep"]


def test_a_lock_that_a_dead_git_left_behind_is_removed_and_the_loop_goes_on(lab: Path, tmp_path: Path) -> None:
    (lab / ".git" / "index.lock").touch()

    def impatient() -> None:
        ratchet.LOCK_PATIENCE = 0.2

    done = forked(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2)), rigged=impatient)
    assert done.returncode == 0, done.stderr
    assert f"{lab}/.git/index.lock was left behind by a git that has died: removed" in done.stderr
    assert statuses(lab) == ["keep", "keep"]
    assert wrongs(lab) == []


def test_a_lock_of_a_git_that_lives_is_named_and_costs_nothing(lab: Path, tmp_path: Path, cli: Cli) -> None:
    """A person's commit, whose message is still being written in an editor."""
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ntouch '{tmp_path}/open'\nwhile [ -e '{tmp_path}/open' ]; do sleep 0.05; done\nexit 1\n")
    editor.chmod(0o755)
    (lab / "program.md").write_text("# Another way\n")
    words = ["git", "-c", "user.name=p", "-c", "user.email=p@p", "-c", f"core.editor={editor}", "commit", "--quiet", "--all"]
    theirs = subprocess.Popen(words, cwd=lab, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "open").exists, "no editor was opened")
    researcher = agent(tmp_path, setting("LR", 0.2))

    def impatient() -> None:
        ratchet.LOCK_PATIENCE = 0.2

    done = forked(lab, "loop", "--max", "1", "--researcher", researcher, rigged=impatient)
    (tmp_path / "open").unlink()
    assert theirs.wait() == 1
    assert done.returncode == 3
    assert f"index.lock': File exists. (git, process {theirs.pid}, is at work there: let it end)" in done.stderr.splitlines()[-1]
    again = cli("loop", "--max", "1", "--researcher", researcher)
    assert again.returncode == 0, again.stderr
    assert statuses(lab) == ["keep", "keep"]


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """disk("64m"): a file system of that size, in memory."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


@pytest.mark.parametrize("call", ["loop --max 1", "run", "run --record x", "setup"])
def test_a_full_disk(made: Path, disk: Callable[[str], Path], refused: Refused, call: str) -> None:
    lab = copy_of(made, disk("16m") / "lab")
    fill(lab.parent)
    assert re.search(r"No space left on device|is full \(0 MB free\)", refused(*call.split(), cwd=lab))


def test_a_disk_with_too_little_room_for_a_run(made: Path, disk: Callable[[str], Path], cli: Cli) -> None:
    lab = copy_of(made, disk("64m") / "lab")
    done = cli("loop", "--max", "1", cwd=lab)
    assert done.returncode == 3
    assert re.search(r"autoresearch: the disk of \S+ is full \(\d+ MB free\): free \d+ MB and start again", done.stderr)
    assert not (lab / "results.tsv").exists()


def filling(path: str) -> str:
    """A train.py that fills the disk with this file and says what it thinks of it."""
    fill = f"import os\nfile = open({path!r}, 'wb', buffering=0)\ntry:\n    while True:\n        file.write(bytes(2**24))\n"
    return fill + "except OSError as error:\n    print('x' * 100000)\n    raise SystemExit(f'{error}')\n" + toy()


def test_a_run_that_fills_the_disk_is_a_crash_and_the_loop_goes_on(
    made: Path, tmp_path: Path, disk: Callable[[str], Path], cli: Cli
) -> None:
    lab = copy_of(made, disk("300m") / "lab")
    (tmp_path / "filler.py").write_text(filling("big"))
    researcher = agent(tmp_path, f"cp '{tmp_path}/filler.py' train.py; echo big", setting("LR", 0.2))
    done = cli("loop", "--max", "2", "--researcher", researcher, cwd=lab)
    assert done.returncode == 0, done.stderr
    assert statuses(lab) == ["keep", "crash", "keep"]


def test_a_disk_that_others_fill_during_a_run_is_no_crash(
    made: Path, tmp_path: Path, disk: Callable[[str], Path], cli: Cli
) -> None:
    lab = copy_of(made, disk("300m") / "lab")
    (tmp_path / "filler.py").write_text(filling(str(lab.parent / "theirs")))
    researcher = agent(tmp_path, f"cp '{tmp_path}/filler.py' train.py; echo big", setting("LR", 0.2))
    done = cli("loop", "--max", "1", "--researcher", researcher, cwd=lab)
    assert done.returncode == 3
    assert "is full (0 MB free)" in done.stderr
    assert statuses(lab) == ["keep"]


@pytest.mark.parametrize("moment", ["proposed", "running"])
def test_a_disk_that_is_full_in_the_middle_of_a_session_costs_nothing_once_it_has_room(
    made: Path, tmp_path: Path, environment: Mapping[str, str], disk: Callable[[str], Path], moment: str
) -> None:
    """While a researcher thinks, so that its proposal can't be written; or while a run goes on, so that its result can't."""
    lab = copy_of(made, disk("320m") / "lab")
    held = Held(tmp_path, LR=0.2)
    wait = f"touch '{held.started}'; while [ -e '{held.latch}' ]; do sleep 0.01; done; {setting('LR', 0.2)}"
    moves = (wait, setting("LR", 0.2)) if moment == "proposed" else (held.move, setting("LR", 0.05))
    researcher = agent(tmp_path, *moves)
    options = ("loop", "--max", "1", "--no-ahead", "--researcher", researcher)
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    fill(lab.parent)
    held.let_go()
    assert loop.end() == 3
    assert re.search(
        r"No space left on device|is full \(0 MB free\)|gave no verdict|was not measured", loop.said().splitlines()[-1]
    )
    assert statuses(lab) == ["keep"]
    (lab.parent / "ballast").unlink()
    done = forked(lab, *options)
    assert done.returncode == 0, done.stderr
    assert statuses(lab)[:2] == ["keep", "keep"]
    assert wrongs(lab) == []


def test_a_disk_that_turns_read_only_during_a_run_costs_nothing_once_it_is_writable_again(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    held = Held(tmp_path, LR=0.2)
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, held.move, setting("LR", 0.05)))
    loop = Background(lab, *options, env=environment, log=tmp_path / "log")
    held.wait()
    for words in (["--bind", str(lab), str(lab)], ["-o", "remount,bind,ro", str(lab)]):
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
        if done.returncode != 0:
            loop.process.kill()
            pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")
    try:
        held.let_go()
        assert loop.end() == 3
        assert re.search(r"Read-only file system|was not measured|gave no verdict", loop.said().splitlines()[-1])
        assert statuses(lab) == ["keep"]
    finally:
        subprocess.run(["umount", str(lab)], check=True)
    again = forked(lab, *options)
    assert again.returncode == 0, again.stderr
    assert statuses(lab) == ["keep", "keep", "discard"]
    assert wrongs(lab) == []


@pytest.mark.parametrize("call", ["loop --max 1", "run", "run --record x", "setup", "loop --max 1 --detach"])
def test_a_lab_on_a_read_only_mount(made: Path, disk: Callable[[str], Path], refused: Refused, call: str) -> None:
    lab = copy_of(made, disk("16m") / "lab")
    subprocess.run(["mount", "-o", "remount,ro", str(lab.parent)], check=True)
    assert "Read-only file system" in refused(*call.split(), cwd=lab)


def test_results_and_status_are_shown_on_a_read_only_mount(made: Path, disk: Callable[[str], Path], cli: Cli) -> None:
    lab = copy_of(made, disk("16m") / "lab")
    (lab / "results.tsv").write_text(HEADER + "abc1234\t1.100000\t4.0\tkeep\told\n")
    subprocess.run(["mount", "-o", "remount,ro", str(lab.parent)], check=True)
    done = cli("results", cwd=lab)
    assert done.returncode == 0 and "Best val_bpb: 1.100000" in done.stdout
    shown = cli("status", cwd=lab)
    assert shown.returncode == 0 and "The last 1 of 1 rows:" in shown.stdout
    assert tip(lab)
