"""Claims: every shell recipe of the docs runs as it stands on what a real session leaves behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import bpb, environment_of, git, run_cli, scored, subject
from labs import copy_of

# What the researcher tries, one proposal a line: an edit of train.py and what it says.
IDEAS = """\
s/^LR = .*/LR = 0.2/|LR 0.1->0.2
s/^LR = .*/LR = 0.05/|grouped attention (GQA) with 2 heads
s/^MODE = .*/MODE = "oom"/|MLA: sequence length 4096
s/^DEPTH = .*/DEPTH = 5/|one more block
"""
AGENT = """\
#!/usr/bin/env bash
n=$(($(grep -c . results.tsv) - 1))  # rows so far: the first is the baseline
idea=$(sed -n "${n}p" "$(dirname "$0")/ideas")
sed -i "${idea%%|*}" train.py
echo "${idea#*|}"
"""


@pytest.fixture(scope="module")
def session(made: Path, prepared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str]]:
    """A lab after a real loop: a baseline, two kept, one discarded, one crashed."""
    folder = tmp_path_factory.mktemp("session")
    environment = environment_of(folder / "home", prepared_cache)
    lab = copy_of(made, folder / "lab")
    (folder / "ideas").write_text(IDEAS)
    (folder / "agent.sh").write_text(AGENT)
    (folder / "agent.sh").chmod(0o755)
    done = run_cli("loop", "--max", "4", "--researcher", str(folder / "agent.sh"), cwd=lab, env=environment)
    assert done.returncode == 0, done.stderr
    return lab, environment


@pytest.fixture(params=["C", "C.UTF-8"])
def shell(session: tuple[Path, Mapping[str, str]], request: pytest.FixtureRequest) -> Callable[[str], list[str]]:
    """Runs a recipe by bash in the lab, under both kinds of locale. Returns the lines that it prints."""
    lab, environment = session

    def run(recipe: str) -> list[str]:
        env = {**environment, "LC_ALL": request.param}
        done = subprocess.run(["bash", "-o", "pipefail", "-c", recipe], cwd=lab, env=env, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        return done.stdout.decode().splitlines()

    return run


Shell = Callable[[str], list[str]]
HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"


def test_tail_shows_the_whole_table(shell: Shell) -> None:
    header, *rows = shell("tail -20 results.tsv")
    assert header == HEAD
    assert [[cells[1], *cells[3:]] for cells in (row.split("\t") for row in rows)] == [
        [bpb(), "keep", "baseline"],
        [bpb(LR=0.2), "keep", "LR 0.1->0.2"],
        [bpb(LR=0.05), "discard", "grouped attention (GQA) with 2 heads"],
        ["crash", "crash", "MLA: sequence length 4096"],
        [bpb(LR=0.2, DEPTH=5), "keep", "one more block"],
    ]
    assert all(len(row.split("\t")[0]) == 7 for row in rows)


def test_the_line_that_watch_repeats_runs_in_a_plain_sh(shell: Shell) -> None:
    assert shell("sh -c 'tail -20 results.tsv'") == shell("tail -20 results.tsv")


def test_awk_sort_uniq_counts_kept_discarded_and_crashed(shell: Shell) -> None:
    counts = shell(r"awk -F'\t' '{print $4}' results.tsv | sort | uniq -c")
    assert sorted(line.split() for line in counts) == [["1", "crash"], ["1", "discard"], ["1", "status"], ["3", "keep"]]


def test_sort_by_score_puts_header_and_crashes_first_as_the_docs_say(shell: Shell) -> None:
    lines = shell(r"sort -t$'\t' -k2 -n results.tsv | head -5")
    assert {line.split("\t")[1] for line in lines[:2]} == {"val_bpb", "crash"}
    assert [line.split("\t")[1] for line in lines[2:]] == [bpb(LR=0.2, DEPTH=5), bpb(LR=0.2), bpb()]


def test_with_the_filter_the_best_comes_first(shell: Shell) -> None:
    lines = shell(r"awk -F'\t' '$2+0 > 0' results.tsv | LC_ALL=C sort -t$'\t' -k2 -n | head -5")
    assert [line.split("\t")[1] for line in lines] == [bpb(LR=0.2, DEPTH=5), bpb(LR=0.2), bpb(), bpb(LR=0.05)]


def test_git_log_shows_the_scores_of_the_kept_commits(shell: Shell) -> None:
    lines = shell("git log --oneline -5")
    assert [line.partition(" ")[2] for line in lines] == [
        subject(scored(LR=0.2, DEPTH=5), scored(LR=0.2), "one more block"),
        subject(scored(LR=0.2), scored(), "LR 0.1->0.2"),
        f"val_bpb {bpb()}: baseline",
        "setup: cpu profile",
        "a lab",
    ]


def test_the_hashes_of_the_table_are_those_of_git_log(shell: Shell) -> None:
    kept = shell(r"""awk -F'\t' '$4=="keep"' results.tsv""")
    assert [row.split("\t")[0] for row in kept] == [line.split()[0] for line in reversed(shell("git log --oneline -3"))]


def test_any_row_can_be_looked_at_by_its_hash(shell: Shell) -> None:
    for row in shell("tail -n +2 results.tsv"):
        commit, *_, said = row.split("\t")
        assert said in shell(f"git show --no-patch --format=%s {commit}")[0]


def test_grep_finds_the_two_figures_in_the_log_of_the_last_run(shell: Shell) -> None:
    lines = shell(r'grep "^val_bpb:\|^peak_vram_mb:" run.log')
    assert [line.split() for line in lines] == [["val_bpb:", bpb(LR=0.2, DEPTH=5)], ["peak_vram_mb:", "5120.0"]]


def test_grep_finds_the_two_figures_in_a_log_made_by_hand(shell: Shell) -> None:
    lines = shell(
        rf"{sys.executable} train.py > by-hand.log 2>&1; " r'grep "^val_bpb:\|^peak_vram_mb:" by-hand.log; rm by-hand.log'
    )
    assert [line.split() for line in lines] == [["val_bpb:", "1.020000"], ["peak_vram_mb:", "5120.0"]]


def test_grep_finds_experiments_by_category_whatever_became_of_them(shell: Shell) -> None:
    lines = shell(r'grep -i "attention\|GQA\|MLA\|MHA" results.tsv')
    assert [line.split("\t")[3] for line in lines] == ["discard", "crash"]


def test_awk_and_sort_list_the_improvements_best_first(shell: Shell) -> None:
    lines = shell(r"""awk -F'\t' '$4=="keep"' results.tsv | sort -t$'\t' -k2 -n""")
    assert [line.split("\t")[1] for line in lines] == [bpb(LR=0.2, DEPTH=5), bpb(LR=0.2), bpb()]


def test_the_session_left_main_and_the_tree_alone(session: tuple[Path, Mapping[str, str]]) -> None:
    lab, _ = session
    assert git(lab, "log", "--format=%s", "main") == "a lab"
    assert git(lab, "status", "--porcelain") == ""
