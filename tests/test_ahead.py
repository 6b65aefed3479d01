"""Claims about working ahead: the next proposal is there when a run ends and fits what came of it; no death loses it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, git, toy
from labs import Background, Held, agent, copy_of, dies, journal, rows, setting, wait_for

from autoresearch.ahead import Ahead, merge_settings
from autoresearch.desk import Desk
from autoresearch.lab import Lab
from autoresearch.ledger import Ledger, Limits
from autoresearch.ratchet import Ratchet
from autoresearch.researchers import Context, Cost, Proposal, ResearcherFailed
from autoresearch.researchers.team import Member, Team


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


def held_while(folder: Path, *moves: str, **literals: Any) -> tuple[Held, str]:
    """A first run that goes on only when it is let go, and the researcher that then makes these moves."""
    held = Held(folder, **literals)
    return held, agent(folder, held.move, *moves)


def asked(folder: Path) -> int:
    return int((folder / "calls").read_text()) if (folder / "calls").exists() else 0


# -- in the loop -----------------------------------------------------------------------------------------------------


def test_the_next_proposal_is_made_while_the_run_goes_on_and_told_what_runs(
    lab: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    held, researcher = held_while(tmp_path, f"cp BRIEF.md '{tmp_path}'; {setting('LR', 0.2)}", LR=0.05)
    loop = Background(lab, "loop", "--max", "2", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    wait_for((lab / ".autoresearch" / "ahead.json").exists, "nothing was proposed while the run went on")
    assert [row[3] for row in rows(lab)] == ["keep"]
    held.let_go()
    assert loop.end() == 0, loop.said()
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("discard", "held"), ("keep", "LR 0.2")]
    assert '## What is being trained just now\n"held"' in (tmp_path / "BRIEF.md").read_text()
    assert (lab / ".autoresearch" / "runs" / "3" / "brief.md").read_text() == (tmp_path / "BRIEF.md").read_text()
    assert asked(tmp_path) == 2
    assert not (lab / ".autoresearch" / "ahead.json").exists()


def test_a_proposal_is_carried_over_to_a_new_incumbent_where_its_patch_applies(lab: Path, tmp_path: Path, call: Cli) -> None:
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, setting("LR", 0.2), setting("DEPTH", 5)))
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "LR 0.2"), ("keep", "DEPTH 5")]
    last = journal(lab)[-1]
    assert (last["literals"]["LR"], last["literals"]["DEPTH"]) == (0.2, 5)
    assert last["details"]["carried_over"] is True
    assert asked(tmp_path) == 2


def test_code_and_settings_are_merged_and_the_same_setting_twice_is_not(tmp_path: Path) -> None:
    other = toy() + "print()\n"
    assert Ratchet(tmp_path).merge(toy(LR=0.2), toy(), other) == toy(LR=0.2) + "print()\n"
    assert Ratchet(tmp_path).merge(toy(LR=0.2), toy(), toy(DEPTH=5)) is None  # neighbouring lines
    assert merge_settings(toy(LR=0.2), toy(), toy(DEPTH=5)) == toy(LR=0.2, DEPTH=5)
    assert merge_settings(toy(LR=0.2), toy(), toy(LR=0.3)) is None
    assert merge_settings(toy(LR=0.2), toy(), toy(DEPTH=5) + "print()\n") is None
    assert merge_settings(toy(LR=0.2), toy(), "x = (") is None


def test_one_whose_patch_does_not_apply_is_asked_for_again(lab: Path, tmp_path: Path, call: Cli) -> None:
    researcher = agent(tmp_path, setting("LR", 0.2), setting("LR", 0.15), setting("LR", 0.25))
    done = call("loop", "--max", "2", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert "the proposal made meanwhile does not fit the new incumbent: asking again" in done.stderr
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.2", "LR 0.25"]
    assert asked(tmp_path) == 3


def test_one_that_is_refused_goes_back_with_the_reason(lab: Path, tmp_path: Path, call: Cli) -> None:
    researcher = agent(tmp_path, setting("LR", 0.05), setting("LR", "5e-2"), f"cp BRIEF.md '{tmp_path}'; {setting('LR', 0.2)}")
    done = call("loop", "--max", "2", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert "this very code was tried before" in (tmp_path / "BRIEF.md").read_text()
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.05", "LR 0.2"]


def test_no_ahead_asks_after_the_run_only(lab: Path, tmp_path: Path, call: Cli) -> None:
    researcher = agent(tmp_path, setting("LR", 0.2), setting("LR", 0.25))
    done = call("loop", "--max", "2", "--no-ahead", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.2", "LR 0.25"]
    assert asked(tmp_path) == 2


def test_nothing_is_asked_for_beyond_the_last_experiment(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2))).returncode == 0
    assert asked(tmp_path) == 1


def test_a_mixture_goes_on_where_one_of_its_two_fails(lab: Path, tmp_path: Path, call: Cli) -> None:
    done = call("loop", "--max", "4", "--researcher", f"search:0.5,{agent(tmp_path, 'exit 1')}:0.5")
    assert done.returncode == 0, done.stderr
    assert [each["researcher"] for each in journal(lab)[1:]] == ["search"] * 4
    assert "agent: asked" in done.stdout and "came to nothing" in done.stdout


def test_two_of_a_mixture_take_turns_and_learn_from_each_other(lab: Path, tmp_path: Path, call: Cli) -> None:
    (lab / "train.py").write_text(toy().replace("DEPTH = 4  #", "DEPTH = 4  # fixed;"))  # all of the search's is CMA-ES
    git(lab, "commit", "--quiet", "--all", "--message=fixed")
    other = agent(tmp_path, setting("LR", 0.2), f"cp BRIEF.md '{tmp_path}'; {setting('DEPTH', 7)}")
    done = call("loop", "--max", "4", "--no-ahead", "--researcher", f"search:0.5,{other}:0.5")
    assert done.returncode == 0, done.stderr
    history = journal(lab)
    assert [each["researcher"] for each in history[1:]] == ["search", "agent", "search", "agent"]
    told = (tmp_path / "BRIEF.md").read_text()
    assert history[1]["description"] in told and "LR 0.2" in told
    study = next((lab / ".autoresearch" / "search").glob("*.log")).read_text()
    assert '"experiment":3' in study


# -- deaths ----------------------------------------------------------------------------------------------------------


def thinking(folder: Path, *before: str) -> tuple[Path, str]:
    """A researcher that makes these moves and then thinks for good; its process number is in the file."""
    pid = folder / "pid"
    return pid, agent(folder, *before, f"sleep 600 & echo $! > '{pid}.part'; mv '{pid}.part' '{pid}'; sleep 600")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_loop_that_dies_leaves_no_researcher_behind(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], number: signal.Signals
) -> None:
    held = Held(tmp_path, LR=0.05)
    pid, researcher = thinking(tmp_path, held.move)
    loop = Background(lab, "loop", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    wait_for(pid.exists, "it was never asked ahead")
    loop.send(number)
    loop.end()
    dies(pid)
    held.let_go()  # a loop that was killed leaves its run to the next one


def test_a_proposal_that_was_made_before_the_loop_died_is_not_lost(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], call: Cli
) -> None:
    held, researcher = held_while(tmp_path, setting("LR", 0.2), setting("LR", 0.25), LR=0.05)
    loop = Background(lab, "loop", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    wait_for((lab / ".autoresearch" / "ahead.json").exists, "nothing was proposed while the run went on")
    loop.send(signal.SIGKILL)
    loop.end()
    held.let_go()
    done = call("loop", "--max", "1", "--researcher", researcher)
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("discard", "held"), ("keep", "LR 0.2")]
    assert asked(tmp_path) == 2


def test_ctrl_c_ends_the_run_and_not_the_answer_that_is_there(lab: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    held, researcher = held_while(tmp_path, setting("LR", 0.2), LR=0.05)
    loop = Background(lab, "loop", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    wait_for((lab / ".autoresearch" / "ahead.json").exists, "nothing was proposed while the run went on")
    loop.send(signal.SIGINT)
    held.let_go()
    assert loop.end() == 0
    assert [row[3] for row in rows(lab)] == ["keep", "discard"]
    assert json.loads((lab / ".autoresearch" / "ahead.json").read_text())["proposal"]["description"] == "LR 0.2"


def test_an_answer_of_another_session_or_of_nobody_is_dropped(lab: Path, tmp_path: Path, call: Cli) -> None:
    file = lab / ".autoresearch" / "ahead.json"
    for text in ("{", "[]", "{}", json.dumps({"session": "other", "researcher": "x", "source": "", "brief": "", "proposal": {}})):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        assert call("loop", "--max", "1", "--no-ahead").returncode == 0
        assert not file.exists()
    assert rows(lab)[0][4] == "baseline"


# -- by itself -------------------------------------------------------------------------------------------------------


class Scripted:
    """Gives what it is told to, or raises it."""

    name, thinks = "scripted", True

    def __init__(self, *answers: Proposal | Exception) -> None:
        self.answers = list(answers)

    def propose(self, context: Context) -> Proposal:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ahead_of(folder: Path, *answers: Proposal | Exception, **options: Any) -> tuple[Ahead, Context]:
    desk = Desk(Team((Member(Scripted(*answers), 1.0),)), Ledger(folder), "s", Limits(time.monotonic()), lambda text: None)
    ahead = Ahead(desk, folder / "ahead.json", Ratchet(folder).merge, lambda: False, **options)
    return ahead, Context(Lab(folder), toy(), "# Brief\n", [], folder / "scratch" / "lab")


def test_an_answer_keeps_all_that_was_said_on_its_way_over_the_disk(tmp_path: Path) -> None:
    given = Proposal(toy(LR=0.2), "idea", {"a": 1}, "why", 0.004, "optimizer", Cost(1.0, 10, 5, None))
    ahead, context = ahead_of(tmp_path, given)
    ahead.start(lambda: context)
    taken = ahead.take(toy())
    assert taken is not None
    assert replace(taken.proposal, cost=given.cost) == given
    assert replace(taken.proposal.cost, seconds=1.0) == given.cost
    assert (taken.researcher, taken.brief) == ("scripted", "# Brief\n")


@pytest.mark.parametrize("failure", [ResearcherFailed("no idea"), OSError("disk"), ZeroDivisionError("ours")])
def test_what_asking_raised_is_raised_where_the_answer_is_taken_once(tmp_path: Path, failure: Exception) -> None:
    ahead, context = ahead_of(tmp_path, failure)
    ahead.start(lambda: context)
    with pytest.raises(type(failure)):
        ahead.take(toy())
    assert ahead.take(toy()) is None


def test_a_merge_that_changes_nothing_is_no_proposal(tmp_path: Path) -> None:
    ahead, context = ahead_of(tmp_path, Proposal(toy(LR=0.2), "idea"))
    ahead.start(lambda: context)
    assert ahead.take(toy(LR=0.2)) is None


def test_turned_off_it_asks_nobody(tmp_path: Path) -> None:
    ahead, context = ahead_of(tmp_path, enabled=False)
    ahead.start(lambda: context)
    assert ahead.take(toy()) is None
