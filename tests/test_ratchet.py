"""Claims about the ratchet: main never moves, nothing of a person's is touched, and no attempt is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import PROGRAM, Cli, git, make_lab, toy

from autoresearch.errors import NotReady, WrongCall
from autoresearch.ratchet import GitError, Ratchet

FAILING_AGENT = """\
#!/usr/bin/env bash
# Each proposal is another idea; none is better than the baseline.
sed -i "s/^LR = .*/LR = 0.0$(grep -c . results.tsv)/" train.py
echo "worse, number $(grep -c . results.tsv)"
"""


@pytest.fixture
def ratchet(lab: Path) -> Ratchet:
    return Ratchet(lab)


def state(lab: Path) -> tuple[str, ...]:
    """All that a person would miss: HEAD, branches, the index, what git sees as changed, and each file's bytes."""
    files = sorted(path for path in lab.rglob("*") if path.is_file() and ".git" not in path.parts)
    return (
        git(lab, "symbolic-ref", "HEAD"),
        git(lab, "for-each-ref", "refs/heads", "refs/tags"),
        git(lab, "ls-files", "--stage"),
        git(lab, "status", "--porcelain"),
        *(f"{path} {path.stat().st_mode} {path.read_bytes().hex()}" for path in files),
    )


def make_untidy(lab: Path) -> None:
    """What a person has lying about: untracked files, an edit, a staged edit, an executable, a deleted file."""
    (lab / "notes.txt").write_text("mine\n")
    (lab / "tool.sh").write_text("echo\n")
    git(lab, "add", "tool.sh")
    git(lab, "commit", "--quiet", "--message=a tool")
    (lab / "tool.sh").write_text("echo edited\n")
    (lab / "staged.txt").write_text("staged\n")
    git(lab, "add", "staged.txt")
    (lab / "uv.lock").unlink()


# -- a commit moves nothing ----------------------------------------------------------------------------------------------


def test_a_commit_of_a_proposal_moves_no_branch_no_index_and_no_file(lab: Path, ratchet: Ratchet) -> None:
    make_untidy(lab)
    before = state(lab)
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "an idea\n")
    ratchet.remember("night", "1", commit)
    assert state(lab) == before
    assert ratchet.show(commit, "train.py") == toy(LR=0.2)
    assert git(lab, "log", "--format=%s", "-2", commit) == "an idea\na tool"


def test_a_commit_changes_the_named_files_alone(lab: Path, ratchet: Ratchet) -> None:
    make_untidy(lab)
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2), "new.txt": "größer\n"}, "an idea\n")
    assert git(lab, "diff", "--name-only", "HEAD", commit) == "new.txt\ntrain.py"
    assert ratchet.show(commit, "new.txt") == "größer\n"


def test_an_executable_train_py_stays_executable(lab: Path, ratchet: Ratchet) -> None:
    (lab / "train.py").chmod(0o755)
    git(lab, "commit", "--quiet", "--all", "--message=executable")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "an idea\n")
    ratchet.advance("main", commit, ("train.py",))
    assert os.access(lab / "train.py", os.X_OK) and git(lab, "status", "--porcelain") == ""


def test_line_ends_are_committed_as_they_are(lab: Path, ratchet: Ratchet) -> None:
    git(lab, "config", "core.autocrlf", "true")
    text = "A = 1\r\nB = 2\n"
    commit = ratchet.commit(ratchet.head(), {"train.py": text}, "x\n")
    assert ratchet.show(commit, "train.py") == text


# -- identity, hooks, signing --------------------------------------------------------------------------------------------


def test_commits_need_no_identity_run_no_hook_and_are_not_signed(lab: Path, ratchet: Ratchet) -> None:
    for name in ("pre-commit", "commit-msg", "post-commit", "post-checkout", "reference-transaction", "prepare-commit-msg"):
        hook = lab / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{lab}/hook-ran'\nexit 1\n")
        hook.chmod(0o755)
    for name, value in {
        "commit.gpgSign": "true",
        "gpg.program": "/bin/false",
        "user.useConfigOnly": "true",
        "i18n.commitEncoding": "latin1",
        "core.fsmonitor": "/bin/false",
    }.items():
        git(lab, "config", name, value)
    branch = ratchet.enter("night")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "größer → 学習率\n")
    ratchet.remember("night", "1", commit)
    ratchet.advance(branch, commit, ("train.py",))
    assert not (lab / "hook-ran").exists()
    assert git(lab, "log", "-1", "--format=%an <%ae> %G? %s") == "autoresearch <autoresearch@localhost> N größer → 学習率"
    assert "encoding" not in git(lab, "cat-file", "commit", "HEAD")


def test_a_persons_settings_change_nothing_that_we_read(lab: Path, ratchet: Ratchet) -> None:
    for name, value in {
        "color.ui": "always",
        "diff.external": "/bin/false",
        "diff.noprefix": "true",
        "core.pager": "/bin/false",
        "core.quotePath": "true",
    }.items():
        git(lab, "config", name, value)
    (lab / "größer.txt").write_text("x\n")
    git(lab, "add", "größer.txt")
    (lab / "train.py").write_text(toy(LR=0.2))
    assert ratchet.changed_files() == ["größer.txt", "train.py"]
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "x\n")
    patch = ratchet.git("diff", "HEAD", commit, "--", "train.py")
    assert patch.startswith("diff --git a/train.py b/train.py") and "\n-LR = 0.1 " in patch and "\x1b" not in patch


def test_variables_of_a_callers_git_lead_nowhere_else(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the loop is started from a hook or an alias of another repository."""
    other = make_lab(tmp_path / "other")
    before = state(other)
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_PREFIX": "sub/",
        "GIT_NAMESPACE": "elsewhere",
        "GIT_EXTERNAL_DIFF": "/bin/false",
        "GIT_AUTHOR_DATE": "nonsense",
    }.items():
        monkeypatch.setenv(name, value)
    ratchet = Ratchet(lab)
    ratchet.check_repository()
    branch = ratchet.enter("night")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "x\n")
    ratchet.advance(branch, commit, ("train.py",))
    for name in [name for name in os.environ if name.startswith("GIT_") and name != "GIT_CONFIG_SYSTEM"]:
        monkeypatch.delenv(name)
    assert state(other) == before
    assert git(lab, "rev-parse", "autoresearch/night") == commit and (lab / "train.py").read_text() == toy(LR=0.2)


# -- keep and discard ----------------------------------------------------------------------------------------------------


def test_a_keep_brings_its_files_and_nothing_else(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    make_untidy(lab)
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    before = git(lab, "status", "--porcelain")
    ratchet.advance(branch, commit, ("train.py",))
    assert ratchet.head() == commit and (lab / "train.py").read_text() == toy(LR=0.2)
    assert git(lab, "status", "--porcelain") == before
    assert (lab / "tool.sh").read_text() == "echo edited\n" and not (lab / "uv.lock").exists()


def test_advancing_twice_is_harmless(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    ratchet.advance(branch, commit, ("train.py",))
    once = state(lab)
    ratchet.advance(branch, commit, ("train.py",))
    assert state(lab) == once


def test_a_keep_while_a_person_is_on_another_branch_leaves_their_files(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    git(lab, "switch", "--quiet", "main")
    ratchet.advance(branch, commit, ("train.py",))
    assert git(lab, "rev-parse", branch) == commit
    assert (lab / "train.py").read_text() == toy() and git(lab, "status", "--porcelain") == ""


def test_main_never_moves_and_every_attempt_keeps_a_reference(ready_lab: Path, cli: Cli, tmp_path: Path) -> None:
    main = git(ready_lab, "rev-parse", "main")
    agent = tmp_path / "agent.sh"
    agent.write_text(FAILING_AGENT)
    agent.chmod(0o755)
    assert cli("loop", "--max", "3", "--researcher", str(agent)).returncode == 0
    assert git(ready_lab, "rev-parse", "main") == main
    refs = git(ready_lab, "for-each-ref", "--format=%(refname)", "refs/autoresearch").splitlines()
    assert refs == [f"refs/autoresearch/test/{name}" for name in ("1", "2", "3", "4", "results")]
    rows = [line.split("\t") for line in (ready_lab / "results.tsv").read_text().splitlines()[1:]]
    assert [row[3] for row in rows] == ["keep", "discard", "discard", "discard"]
    for number, row in enumerate(rows, start=1):
        assert git(ready_lab, "rev-parse", "--short=7", f"refs/autoresearch/test/{number}") == row[0]
    assert "LR = 0.02\n" in git(ready_lab, "show", "refs/autoresearch/test/2:train.py")
    saved = git(ready_lab, "show", "refs/autoresearch/test/results:results.tsv")
    assert saved.splitlines() == (ready_lab / "results.tsv").read_text().splitlines()


def test_a_discard_leaves_the_branch_the_index_and_every_file_as_they_were(ready_lab: Path, cli: Cli, tmp_path: Path) -> None:
    agent = tmp_path / "agent.sh"
    agent.write_text(FAILING_AGENT)
    agent.chmod(0o755)
    assert cli("loop", "--max", "1", "--researcher", str(agent)).returncode == 0
    (ready_lab / "notes.txt").write_text("mine\n")
    (ready_lab / "folder").mkdir()
    (ready_lab / "folder" / "deep.bin").write_bytes(bytes(range(256)))

    def kept() -> list[str]:
        ours = (".autoresearch", "results.tsv", "run.log")
        return [line for line in state(ready_lab) if not any(name in line.partition(" ")[0] for name in ours)]

    before = kept()
    done = cli("loop", "--max", "2", "--researcher", str(agent))
    assert done.returncode == 0, done.stderr
    assert (ready_lab / "results.tsv").read_text().count("discard") == 3
    assert kept() == before


# -- a branch that moved -------------------------------------------------------------------------------------------------


def person_commits(lab: Path, name: str, text: str) -> str:
    (lab / name).write_text(text)
    git(lab, "add", name)
    git(lab, "commit", "--quiet", f"--message=my {name}")
    return git(lab, "rev-parse", "HEAD")


def test_a_keep_joins_what_was_committed_on_the_branch_meanwhile(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    kept = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    theirs = person_commits(lab, "notes.md", "mine\n")
    for _ in range(2):  # the second time as after a kill
        assert ratchet.advance(branch, kept, ("train.py",))
        assert git(lab, "log", "-1", "--format=%P") == f"{theirs} {kept}"
        assert (lab / "notes.md").read_text() == "mine\n" and (lab / "train.py").read_text() == toy(LR=0.2)
        assert git(lab, "status", "--porcelain") == ""
        assert git(lab, "log", "-1", "--format=%s") == "better"


def test_a_keep_does_not_replace_a_train_py_that_was_committed_meanwhile(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    kept = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    theirs = person_commits(lab, "train.py", toy(LR=0.3))
    before = state(lab)
    assert not ratchet.advance(branch, kept, ("train.py",))
    assert ratchet.head() == theirs and state(lab) == before


def test_a_branch_that_has_the_keep_and_more_stays_where_it_is(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    kept = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    ratchet.advance(branch, kept, ("train.py",))
    theirs = person_commits(lab, "train.py", toy(LR=0.3))
    assert ratchet.advance(branch, kept, ("train.py",))
    assert ratchet.head() == theirs and (lab / "train.py").read_text() == toy(LR=0.3)


def test_a_branch_with_another_history_is_left_alone(lab: Path, ratchet: Ratchet) -> None:
    branch = ratchet.enter("night")
    kept = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    git(lab, "checkout", "--quiet", "--orphan", "new")
    git(lab, "commit", "--quiet", "--message=begun anew")
    git(lab, "branch", "--quiet", "--force", branch)
    assert not ratchet.advance(branch, kept, ("train.py",))
    assert git(lab, "rev-parse", branch) == ratchet.head()


# -- locks of other gits -------------------------------------------------------------------------------------------------


def test_a_lock_that_goes_within_a_moment_is_waited_for(lab: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's git in another terminal has it."""
    lock = lab / ".git" / "index.lock"
    lock.touch()
    monkeypatch.setattr("autoresearch.ratchet.time.sleep", lambda _: lock.unlink(missing_ok=True))
    (lab / "train.py").write_text(toy(LR=0.2))
    ratchet.restore("HEAD", ("train.py",))
    assert (lab / "train.py").read_text() == toy()


@pytest.mark.parametrize("name", ["index.lock", "refs/heads/main.lock"])
def test_a_lock_that_a_dead_git_left_is_removed_with_a_word(lab: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("autoresearch.ratchet.LOCK_PATIENCE", 0.1)
    said: list[str] = []
    ratchet = Ratchet(lab, said.append)
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "better\n")
    (lab / ".git" / name).touch()
    ratchet.advance("main", commit, ("train.py",))
    assert ratchet.head() == commit and (lab / "train.py").read_text() == toy(LR=0.2)
    assert said == [f"{lab / '.git' / name} was left behind by a git that has died: removed"]


def test_a_lock_while_a_git_lives_here_is_never_removed(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoresearch.ratchet.LOCK_PATIENCE", 0.1)
    lock = lab / ".git" / "index.lock"
    lock.touch()
    living = subprocess.Popen(["git", "cat-file", "--batch"], cwd=lab, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with pytest.raises(GitError, match=rf"git, process {living.pid}, is at work there: let it end"):
            Ratchet(lab).restore("HEAD", ("train.py",))
        assert lock.exists()
    finally:
        living.communicate()
    Ratchet(lab).restore("HEAD", ("train.py",))
    assert not lock.exists()


# -- program.md ----------------------------------------------------------------------------------------------------------


def test_an_edited_program_is_committed_by_the_loop_and_nothing_else_is(ready_lab: Path, cli: Cli, tmp_path: Path) -> None:
    agent = tmp_path / "agent.sh"
    agent.write_text(FAILING_AGENT.replace("sed", f"cat program.md > '{tmp_path}/told'\nsed", 1))
    agent.chmod(0o755)
    (ready_lab / "program.md").write_text(PROGRAM + "\n## Notes\nTry größere Schritte.\n")
    done = cli("loop", "--max", "1", "--researcher", str(agent))
    assert done.returncode == 0, done.stderr
    assert "größere Schritte" in (tmp_path / "told").read_text()
    assert "größere Schritte" in git(ready_lab, "show", "HEAD:program.md")
    assert git(ready_lab, "status", "--porcelain") == ""
    assert git(ready_lab, "show", "main:program.md") == PROGRAM.rstrip()
    changed = git(ready_lab, "log", "--format=%s", "--", "program.md").splitlines()
    assert changed == ["program.md: changed by its author", "a lab"]


def test_any_other_change_stops_the_loop_at_its_start_with_the_files_names(ready_lab: Path, cli: Cli) -> None:
    (ready_lab / "prepare.py").write_text("# mine\n")
    (ready_lab / "train.py").write_text(toy(LR=0.25))
    before = state(ready_lab)
    done = cli("loop", "--max", "1")
    assert done.returncode == 3
    assert "prepare.py, train.py" in done.stderr and len(done.stderr.splitlines()) == 1
    after = [line for line in state(ready_lab) if "/.autoresearch/" not in line]
    assert after == [line for line in before if "/.autoresearch/" not in line]


# -- where a lab may lie -------------------------------------------------------------------------------------------------


def test_a_folder_without_git_is_refused_with_the_way_out(tmp_path: Path, environment: Mapping[str, str]) -> None:
    shutil.rmtree(make_lab(tmp_path / "lab") / ".git")
    with pytest.raises(NotReady, match=r"not in a git repository.*git init"):
        Ratchet(tmp_path / "lab").check_repository()


def test_a_lab_in_a_subfolder_of_a_repository_is_refused(tmp_path: Path, environment: Mapping[str, str]) -> None:
    lab = make_lab(tmp_path / "work" / "lab")
    shutil.move(lab / ".git", tmp_path / "work" / ".git")
    with pytest.raises(NotReady, match="not the root of its git repository"):
        Ratchet(lab).check_repository()


def test_a_repository_without_a_commit_of_train_py_is_refused(lab: Path, ratchet: Ratchet) -> None:
    git(lab, "rm", "--quiet", "--cached", "train.py")
    git(lab, "commit", "--quiet", "--message=gone")
    with pytest.raises(NotReady, match=r"train\.py is not in the last commit"):
        ratchet.check_repository()
    shutil.rmtree(lab / ".git")
    git(lab, "init", "--quiet")
    with pytest.raises(NotReady, match=r"train\.py is not in the last commit"):
        ratchet.check_repository()


def test_a_path_with_blanks_quotes_and_letters_of_any_script_is_no_obstacle(tmp_path: Path, environment: Mapping[str, str]) -> None:
    lab = make_lab(tmp_path / "mein 'Labor' \"größer\" 実験 $HOME")
    ratchet = Ratchet(lab)
    ratchet.check_repository()
    branch = ratchet.enter("größer")
    commit = ratchet.commit(ratchet.head(), {"train.py": toy(LR=0.2)}, "x\n")
    ratchet.advance(branch, commit, ("train.py",))
    assert (lab / "train.py").read_text() == toy(LR=0.2)


def test_a_lab_behind_a_link_and_one_in_a_worktree_are_labs(lab: Path, ratchet: Ratchet, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(lab)
    Ratchet(tmp_path / "link").check_repository()
    git(lab, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "worktree"))
    side = Ratchet(tmp_path / "worktree")
    side.check_repository()
    branch = side.enter("night")
    commit = side.commit(side.head(), {"train.py": toy(LR=0.2)}, "x\n")
    side.advance(branch, commit, ("train.py",))
    assert (tmp_path / "worktree" / "train.py").read_text() == toy(LR=0.2)
    assert (lab / "train.py").read_text() == toy() and git(lab, "status", "--porcelain") == ""


# -- branches ------------------------------------------------------------------------------------------------------------


def test_a_session_branch_begins_where_head_is_and_is_entered_again(lab: Path, ratchet: Ratchet) -> None:
    start = ratchet.head()
    assert ratchet.enter("night") == "autoresearch/night" == ratchet.branch()
    assert ratchet.head() == start
    git(lab, "switch", "--quiet", "main")
    assert ratchet.enter("night") == "autoresearch/night" == ratchet.branch()
    assert git(lab, "branch", "--format=%(refname:short)").splitlines() == ["autoresearch/night", "main"]


def test_a_detached_head_starts_a_session_like_any_other(lab: Path, cli: Cli) -> None:
    git(lab, "switch", "--quiet", "--detach")
    done = cli("setup", "--tag", "night")
    assert done.returncode == 0, done.stderr
    assert Ratchet(lab).branch() == "autoresearch/night"
    record = json.loads((lab / ".autoresearch" / "sessions" / "night" / "session.json").read_text())
    assert record["base"] is None
    assert git(lab, "log", "--format=%s", "main") == "a lab"


@pytest.mark.parametrize("tag", ["a b", "x..y", "../main", "x.lock", "tilde~", "end/", "back\\slash", "new\nline", "@{u}", "-"])
def test_a_tag_that_can_name_no_branch_is_a_wrong_call(lab: Path, ratchet: Ratchet, tag: str) -> None:
    before = state(lab)
    if tag == "-":
        assert ratchet.enter(tag) == "autoresearch/-"
        return
    with pytest.raises(WrongCall, match="--tag"):
        ratchet.enter(tag)
    assert state(lab) == before


def test_what_git_says_is_passed_on_in_one_line(lab: Path, ratchet: Ratchet) -> None:
    git(lab, "branch", "autoresearch")  # no branch can lie below this one
    with pytest.raises(GitError) as told:
        ratchet.enter("night")
    assert "autoresearch" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(GitError, match="nowhere"):
        ratchet.show("HEAD", "nowhere.py")


def test_a_machine_without_git_is_told_so(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NotReady, match="git is not installed"):
        Ratchet(lab).check_repository()


def test_a_repository_of_another_user_is_told_with_the_command_that_trusts_it(lab: Path, ratchet: Ratchet) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    subprocess.run(["chown", "-R", "12345", str(lab)], check=True)
    with pytest.raises(NotReady, match=r"safe\.directory"):
        ratchet.check_repository()
