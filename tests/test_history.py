"""Claims about `history` and `brief` as commands: they work on any lab, and say what was tried, expected and spent."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli, git, make_lab, scored
from labs import agent, copy_of, forked, setting

from autoresearch.errors import NotReady
from autoresearch.journal import Experiment, Journal, RunResult
from autoresearch.lab import Lab
from autoresearch.literals import read_literals, values
from autoresearch.researchers import Context, Proposal
from autoresearch.researchers.search import Search
from autoresearch.researchers.space import space


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


LINES = ("Tried: a higher rate", "Hypothesis: the bowl is lower there", "Expected gain: 0.02", "Category: optimizer")
WORDS = {"": [1, 2, 3], "HIGHER rate": [2], "crash": [3], "optimizer bowl": [2], "lr 0.05": [3], "moe": []}
SAID = "; ".join(f"echo '{line}'" for line in LINES)


def test_what_was_said_and_expected_stands_beside_what_came(lab: Path, tmp_path: Path, call: Cli) -> None:
    quiet = setting("LR", 0.2).partition(";")[0]
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, f"{quiet}; {SAID}", setting("MODE", '"crash"')))
    assert done.returncode == 0, done.stderr
    found = json.loads(call("history", "--json").stdout)
    assert [each["n"] for each in found] == [1, 2, 3]
    kept = found[1]
    assert (kept["description"], kept["hypothesis"], kept["category"]) == ("a higher rate", "the bowl is lower there", "optimizer")
    assert (kept["expected_gain"], kept["gain"], kept["status"]) == (0.02, pytest.approx(scored() - scored(0.2), abs=1e-6), "keep")
    assert kept["settings"]["LR"] == 0.2 and kept["cost"]["seconds"] > 0
    assert (found[2]["crash_class"], found[2]["gain"]) == ("error", None)
    change = f"{scored(0.2) - scored():+.6f}"
    assert f"#2    keep    {scored(0.2):.6f}  {change} (expected -0.020000) agent: a higher rate" in call("history").stdout
    assert f"Expected against measured, 1 experiments: -0.020000 and {change} on average, 1 better than before" in done.stdout


def test_a_search_finds_what_has_all_words(lab: Path, tmp_path: Path, call: Cli) -> None:
    quiet = setting("LR", 0.2).partition(";")[0]
    broken = f"{setting('LR', 0.05)} >&2; {setting('MODE', chr(34) + 'crash' + chr(34))}"
    assert call("loop", "--max", "2", "--no-ahead", "--researcher", agent(tmp_path, f"{quiet}; {SAID}", broken)).returncode == 0
    found = {words: [each["n"] for each in json.loads(call("history", "--json", "--search", words).stdout)] for words in WORDS}
    assert found == WORDS


def test_before_anything_ran_there_is_none(environment: Mapping[str, str], tmp_path: Path) -> None:
    fresh = make_lab(tmp_path / "fresh")
    assert forked(fresh, "history").stdout == "no experiments\n"
    assert json.loads(forked(fresh, "history", "--json").stdout) == []


def test_the_brief_is_there_in_a_fresh_clone_and_without_git(environment: Mapping[str, str], tmp_path: Path) -> None:
    fresh = make_lab(tmp_path / "fresh")
    done = forked(fresh, "brief")
    assert done.returncode == 0, done.stderr
    for part in ("Find the lowest point of the bowl.", "None yet: the baseline has not been run.", "Its settings: LR 0.1, DEPTH 4"):
        assert part in done.stdout
    assert not (fresh / ".autoresearch").exists()
    (fresh / ".git").rename(tmp_path / "away")
    assert forked(fresh, "brief").stdout == done.stdout


def test_the_brief_that_is_printed_is_the_one_that_a_researcher_gets(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert (
        call(
            "loop", "--max", "2", "--no-ahead", "--researcher", agent(tmp_path, setting("LR", 0.2), setting("LR", 0.05))
        ).returncode
        == 0
    )
    printed = call("brief").stdout
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.25))).returncode == 0
    assert (lab / ".autoresearch" / "runs" / "4" / "brief.md").read_text() == printed


def test_constants_that_come_to_the_same_are_the_same_experiment(lab: Path, tmp_path: Path, call: Cli) -> None:
    below = "sed -i '/^LR/{h;d};/^BASE/{G}' train.py"  # the line of LR goes behind that of BASE
    first = f"sed -i 's/^DEPTH/BASE = 0.05\\nDEPTH/' train.py; {below}; echo a base"
    written = f"sed -i 's/^LR = [^ ]*/LR = BASE * 2/; s/^DEPTH/BASE = 0.05\\nDEPTH/' train.py; {below}; echo by another name"
    moves = agent(tmp_path, first, written, setting("LR", 0.2))
    done = call("loop", "--max", "2", "--no-ahead", "--researcher", moves)
    assert done.returncode == 0, done.stderr
    assert "this very code was tried before" in done.stderr
    assert git(lab, "log", "--format=%s", "-1").endswith("LR 0.2")


# -- what the journal holds ------------------------------------------------------------------------------------------


def past(n: int, **changes: Any) -> Experiment:
    result = RunResult("scored", 0.9 + n / 1e6, wall_seconds=2.0)
    done = Experiment(n, "night", "settled", f"idea {n} " * 30, "claude", "f", f"{n:016x}", "p", "2026", f"{n:040x}", result=result)
    return replace(done, literals={f"SETTING_{i}": n + i / 100 for i in range(20)}, status="discard", **changes)


def journal_of(folder: Path, *made: Experiment) -> Journal:
    (folder / ".autoresearch").mkdir(exist_ok=True)
    lines = "".join(json.dumps(asdict(done)) + "\n" for done in made)
    (folder / ".autoresearch" / "experiments.jsonl").write_text(lines)
    return Journal(Lab(folder))


def test_all_of_a_settled_experiment_can_be_had_although_little_of_it_is_in_memory(tmp_path: Path) -> None:
    two = (RunResult("scored", 0.7, seed=1), RunResult("scored", 0.8, seed=2, disturbed="others"))
    crash = RunResult("crash", crash_class="oom")
    made = [past(1), past(2, runs=two, judgement={"outcome": "better"}), replace(past(3), result=crash, status="crash")]
    journal = journal_of(tmp_path, *made)
    journal.settle(past(4, details={"step": ["DEPTH", 1]}))
    made.append(replace(past(4), details={"step": ["DEPTH", 1]}))
    names = [each.name for each in fields(Experiment)] + [
        name for name, value in vars(Experiment).items() if isinstance(value, property) and name != "whole"
    ]
    for found, whole in zip(journal.settled(), made, strict=True):
        for name in set(names) - {"stage", "settled"}:
            assert getattr(found, name) == getattr(whole, name), name
        assert isinstance(found.whole, Experiment)
    assert [done.description for done in journal.wholes()] == [done.description for done in made]


def test_what_was_read_ahead_is_what_is_there(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, past(1), past(2))
    journal.read_ahead()
    assert [done.n for done in journal.settled()] == [1, 2]
    journal.settle(past(3))
    assert [done.n for done in journal.settled()] == [1, 2, 3]


def test_a_journal_that_can_t_be_read_ahead_is_told_to_whoever_asks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".autoresearch" / "experiments.jsonl").mkdir(parents=True)
    journal = Journal(Lab(tmp_path))
    journal.read_ahead()
    with pytest.raises(IsADirectoryError):
        journal.settled()
    assert capfd.readouterr().err == ""


def test_a_journal_that_was_edited_under_a_loop_is_named_and_not_misread(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, past(1), past(2))
    last = journal.settled()[-1]
    journal_of(tmp_path, past(1, hypothesis="written by hand"), past(2))
    with pytest.raises(NotReady, match=r"experiments\.jsonl was changed while it was in use"):
        _ = last.description


def real_past(count: int) -> list[Experiment]:
    """As `search` and an agent leave it on the real train.py: a step of one literal, a point that moves all the continuous ones,
    and two literals of the agent's, in turn; each eighth is kept."""
    source = (ROOT / "train.py").read_text()
    now, made = values(source), list[Experiment]()
    dims = space(source, now)
    continuous = [name for name, dim in dims.items() if not dim.discrete]
    draw = random.Random(1)
    for n in range(1, count + 1):
        moved = [continuous, draw.sample(continuous, k=2), ["DEPTH"]][n % 3] if n > 1 else []
        literals = {**now, **{name: dims[name].decode(draw.uniform(*dims[name].limits())) for name in moved}}
        details = [{"study": "0123456789ab", "trial": n, "told": 1}, {}, {"step": ["DEPTH", 1]}][n % 3]
        done = replace(past(n, category="optimizer", details=details, incumbent_bpb=0.9), literals=literals, baseline=n == 1)
        made.append(replace(done, status="keep" if n % 8 == 1 else "discard"))
        now = literals if n % 8 == 1 else now
    return made


def traced(work: Callable[[], Any]) -> tuple[int, int]:
    """By how many bytes more memory is held after it, and was at its peak."""
    gc.collect()
    gc.disable()  # garbage then counts always, and not by chance
    tracemalloc.start()
    try:
        kept = work()
        held, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
        gc.enable()
    return held, peak


def test_an_experiment_with_the_literals_of_the_real_train_py_takes_less_than_900_bytes_in_memory(tmp_path: Path) -> None:
    made = real_past(1000)
    journal = journal_of(tmp_path, *made)
    held, peak = traced(journal.settled)
    assert held / 1000 < 900
    assert peak / 1000 < 62.5 * len(made[0].literals or {})  # unpacked while it is read: by its literals, 40 when this was measured


def peak_of_proposal(folder: Path, count: int, turn: int) -> int:
    """Bytes at the peak of the search's answer after so many experiments. `turn`: how many of its cycle of three it has made."""
    made = real_past(count)
    ours = [place for place, done in enumerate(made) if done.details]
    for place in ours[: (len(ours) - turn) % 3]:
        made[place] = replace(made[place], details={})
    folder.mkdir()
    context = Context(Lab(folder), (ROOT / "train.py").read_text(), "", journal_of(folder, *made).settled(), folder)
    found = list[Proposal]()
    read_literals.cache_clear()  # else the syntax tree is a part of the one peak and not of the other
    _, peak = traced(lambda: found.append(Search().propose(context)))
    assert ("step" in found[0].details) == (turn == 0)
    return peak


@pytest.mark.parametrize("turn", [0, 2], ids=["a step", "a point of CMA-ES"])
def test_a_proposal_of_the_search_takes_less_than_300_bytes_of_memory_for_an_experiment_more(tmp_path: Path, turn: int) -> None:
    """The whole of one takes thousands."""
    peak_of_proposal(tmp_path / "first", 30, turn)  # what is imported and made once
    few, many = (peak_of_proposal(tmp_path / f"{count}", count, turn) for count in (300, 2300))
    assert (many - few) / 2000 < 300


def test_literals_and_details_come_back_from_memory_as_they_were(tmp_path: Path) -> None:
    literals = {"B": 1, "A": 1.0, "C": True, "D": "é", "E": 2**70, "F": -0.0, "G": 1e-10, "H": "1"}
    details = {"study": "ab", "trial": 3, "carried_over": True}
    none, empty = replace(past(2), literals=None), replace(past(3), literals={})
    settled = journal_of(tmp_path, replace(past(1), literals=literals, details=details), none, empty).settled()
    (tmp_path / ".autoresearch" / "experiments.jsonl").unlink()
    assert repr(settled[0].literals) == repr(literals) and repr(settled[0].details) == repr(details)
    assert [(done.literals, done.details) for done in settled[1:]] == [(None, {}), ({}, {})]
