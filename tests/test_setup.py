"""Claims about `setup`: a lab fits its machine on a branch of its own, once, and a setup that fails has changed nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Cli, bpb, fewer_tokens, git, toy
from labs import agent, picture, rows, setting, tip

from autoresearch.literals import values

NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9", "AUTORESEARCH_RETRY_SECONDS": "0"}


def constants(lab: Path) -> dict[str, object]:
    return dict(values((lab / "constants.py").read_text()))


def session(lab: Path, tag: str = "test") -> dict[str, object]:
    return dict(json.loads((lab / ".autoresearch" / "sessions" / tag / "session.json").read_text()))


@pytest.fixture
def texts(lab: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of text in the lab, quickly prepared, and a cache of its own."""
    folder = lab / "texts"
    folder.mkdir()
    words = [f"{number * 7919 % 10007} {number * 104729 % 65537:x}" for number in range(20000)]
    for name in ("some.jsonl", "val.jsonl"):
        documents = (json.dumps({"text": " ".join(words[start : start + 100])}) for start in range(0, len(words), 100))
        (folder / name).write_text("\n".join(documents))
    git(lab, "add", "texts")
    git(lab, "commit", "--quiet", "--message=texts")
    return folder


def test_it_makes_a_branch_with_the_machines_constants_and_leaves_main(lab: Path, cli: Cli) -> None:
    main = tip(lab, "main")
    done = cli("setup", "--tag", "test")
    assert done.returncode == 0, done.stderr
    assert f"lab: {lab}, branch autoresearch/test, profile cpu" in done.stderr
    assert git(lab, "branch", "--show-current") == "autoresearch/test"
    assert git(lab, "log", "--format=%s").splitlines() == ["setup: cpu profile", "a lab"]
    assert constants(lab) == {
        "TIME_BUDGET": 30,
        "MAX_SEQ_LEN": 256,
        "EVAL_TOKENS": 131_072,
        "VOCAB_SIZE": 2048,
        "DATASET": "stdlib",
    }
    assert "TIME_BUDGET = 30  # seconds of training\n" in (lab / "constants.py").read_text(), "its comment stays"
    assert tip(lab, "main") == main
    assert git(lab, "status", "--porcelain") == ""
    assert (session(lab)["base"], session(lab)["profile"]) == ("main", "cpu")


def test_a_second_time_it_does_nothing(lab: Path, cli: Cli) -> None:
    assert cli("setup", "--tag", "test").returncode == 0
    before = picture(lab)
    assert cli("setup").returncode == 0
    assert cli("setup", "--tag", "autoresearch/test").returncode == 0
    assert picture(lab) == before


def test_a_wish_on_the_second_time_changes_that_alone(lab: Path, cli: Cli) -> None:
    assert cli("setup", "--tag", "test").returncode == 0
    (lab / "train.py").write_text(toy(DEPTH=7))
    git(lab, "commit", "--quiet", "--all", "--message=deeper")
    before = constants(lab)
    assert cli("setup", "--time-budget", "2").returncode == 0
    assert constants(lab) == {**before, "TIME_BUDGET": 2}
    assert (lab / "train.py").read_text() == toy(DEPTH=7), "what was found since is not set back to the profile"
    assert git(lab, "log", "-1", "--format=%s", "--name-only").split("\n\n") == ["setup: cpu profile", "constants.py"]


def test_data_that_can_t_be_had_is_told_before_anything_has_changed(lab: Path, cli: Cli, tmp_path: Path) -> None:
    before = picture(lab)
    done = cli("setup", "--source", "fineweb-edu", env={**NO_NETWORK, "AUTORESEARCH_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 3
    *_, reason, last = done.stderr.splitlines()
    assert "Look at the network and HF_ENDPOINT" in reason and "`setup --source stdlib`" in reason
    assert last == "autoresearch: no data, see the line above; nothing was changed"
    assert picture(lab) == before


def test_a_loop_in_a_fresh_lab_without_data_changes_nothing_either(lab: Path, cli: Cli, tmp_path: Path) -> None:
    (lab / "prepare.py").write_text("import sys\nsys.exit('prepare.py: no network')\n")
    git(lab, "commit", "--quiet", "--all", "--message=a network that is down")
    before = picture(lab)
    done = cli("loop", "--max", "1")
    assert done.returncode == 3
    assert "prepare.py: no network" in done.stderr
    assert picture(lab) == before


def test_a_source_may_be_a_folder_named_from_where_the_person_is(lab: Path, texts: Path, cli: Cli, tmp_path: Path) -> None:
    """constants.py names it from the lab, without the machine's paths."""
    cache = {"AUTORESEARCH_CACHE": str(tmp_path / "cache")}
    done = cli("setup", "--source", ".", "--seq-len", "64", cwd=texts, env=cache)
    assert done.returncode == 0, done.stderr
    assert (constants(lab)["DATASET"], constants(lab)["MAX_SEQ_LEN"]) == ("texts", 64)
    assert cli("run", env=cache).returncode == 0


def test_an_edited_program_comes_along(lab: Path, cli: Cli) -> None:
    (lab / "program.md").write_text("# Mine\n")
    assert cli("setup", "--tag", "test").returncode == 0
    assert (lab / "program.md").read_text() == "# Mine\n"
    assert git(lab, "status", "--porcelain") == " M program.md"


def test_the_branch_it_was_made_from_is_the_one_to_merge_into(lab: Path, tmp_path: Path, cli: Cli) -> None:
    git(lab, "switch", "--quiet", "--create", "dev")
    assert cli("setup", "--tag", "first").returncode == 0
    fewer_tokens(lab)
    assert session(lab, "first")["base"] == "dev"
    assert cli("setup", "--tag", "second").returncode == 0
    assert session(lab, "second")["base"] is None, "another session's branch is none to merge into"
    done = cli("loop", "--max", "1", "--tag", "first", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert done.stderr.splitlines()[-1].endswith("git checkout dev && git merge autoresearch/first")


def test_a_session_can_begin_at_a_commit_without_a_branch(lab: Path, cli: Cli) -> None:
    git(lab, "switch", "--quiet", "--detach")
    done = cli("setup", "--tag", "test")
    assert done.returncode == 0, done.stderr
    assert git(lab, "branch", "--show-current") == "autoresearch/test"


def test_a_branch_that_was_deleted_between_sessions_is_fitted_anew(lab: Path, tmp_path: Path, cli: Cli) -> None:
    loop = ("loop", "--max", "1", "--tag", "test", "--researcher", agent(tmp_path, setting("LR", 0.2), setting("LR", 0.05)))
    assert cli(*loop).returncode == 0
    git(lab, "switch", "--quiet", "main")
    git(lab, "branch", "--quiet", "-D", "autoresearch/test")
    (lab / "constants.py").write_text((lab / "constants.py").read_text().replace("TIME_BUDGET = 1 ", "TIME_BUDGET = 300 "))
    git(lab, "commit", "--quiet", "--all", "--message=as upstream")
    done = cli(*loop)
    assert done.returncode == 0, done.stderr
    assert constants(lab)["TIME_BUDGET"] == 30
    assert [row[1] for row in rows(lab)] == [bpb(rows=512), bpb(LR=0.2, rows=512), bpb(rows=512), bpb(LR=0.05, rows=512)]
    assert [git(lab, "show", f"refs/autoresearch/test/{n}:train.py") for n in (2, 4)] == [
        toy(LR=0.2).rstrip("\n"),
        toy(LR=0.05).rstrip("\n"),
    ]
