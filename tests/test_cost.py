"""Claims about cost: every time a researcher is asked is booked, limits end the loop cleanly, and patience has its word."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli, toy
from labs import Background, agent, copy_of, rows, setting
from model_server import Fault, model

from autoresearch import desk
from autoresearch.errors import Enough, Interrupted, NotReady
from autoresearch.lab import Lab
from autoresearch.ledger import FAILED, PROPOSED, Asked, Ledger, Limits, summary, text
from autoresearch.researchers import Busy, Context, Cost, Proposal, ResearcherFailed, Unreachable
from autoresearch.researchers.team import Member, Team

ASKED = Asked("s", "claude", "2026-11-25T00:00:00+00:00", PROPOSED, 10.0, 1000, 50, 0.5)


# -- the ledger ------------------------------------------------------------------------------------------------------


def test_a_line_for_each_time_survives_the_process_and_a_torn_line(tmp_path: Path) -> None:
    Ledger(tmp_path).add(ASKED)
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write('{"session": "s", "resear')
    Ledger(tmp_path).add(replace(ASKED, researcher="llm"))
    read = Ledger(tmp_path)
    assert [each.researcher for each in read.all()] == ["claude", "llm"]
    assert read.counts("s") == {"claude": 1, "llm": 1} and read.counts("other") == {}


def test_the_sum_is_told_by_researcher_and_an_unknown_price_is_not_guessed() -> None:
    lost = replace(ASKED, outcome=FAILED, dollars=0.25)
    lines = summary([ASKED, lost, replace(ASKED, researcher="codex", dollars=None)])
    assert lines == [
        "claude: asked 2 times (1 came to nothing), 2,000 tokens in, 100 out, $0.75, 20 s",
        "codex: asked 1 times, 1,000 tokens in, 50 out, price unknown, 10 s",
    ]
    assert text(Cost(3.0)) == "3 s" and text(Cost(3.0, 1, 1, 0.0042)) == "1 tokens in, 1 out, $0.0042, 3 s"


# -- limits ----------------------------------------------------------------------------------------------------------


def test_the_first_limit_that_is_reached_is_named() -> None:
    Limits(0.0, 1.0, 3600.0).check([ASKED], 3599.0)
    with pytest.raises(Enough, match="--max-hours: 1 hours have passed"):
        Limits(0.0, 1.0, 3600.0).check([ASKED], 3600.0)
    with pytest.raises(Enough, match=r"--max-cost: \$1.00 of \$1 are spent"):
        Limits(0.0, 1.0, math.inf).check([ASKED, ASKED], 0.0)


def test_dollars_that_nobody_tells_can_t_be_limited() -> None:
    with pytest.raises(NotReady, match="--max-cost can't be kept: 'claude' tells no price of its model: set input-price"):
        Limits(0.0, 1.0).check([replace(ASKED, dollars=None)], 0.0)
    Limits(0.0, math.inf).check([replace(ASKED, dollars=None)], 0.0)


def test_one_that_was_ended_before_it_told_its_price_counts_as_the_dearest() -> None:
    ended = replace(ASKED, outcome=FAILED, dollars=None)
    Limits(0.0, 1.0).check([ended], 0.0)
    with pytest.raises(Enough):
        Limits(0.0, 1.0).check([ASKED, ended], 0.0)


# -- patience --------------------------------------------------------------------------------------------------------


class Scripted:
    name, thinks = "scripted", True

    def __init__(self, *answers: Proposal | Exception) -> None:
        self.answers = list(answers)

    def propose(self, context: Context) -> Proposal:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def desk_for(folder: Path, *answers: Proposal | Exception, limits: Limits | None = None) -> tuple[desk.Desk, Context, list[str]]:
    said: list[str] = []
    asked_at = desk.Desk(Team((Member(Scripted(*answers), 1.0),)), Ledger(folder), "s", limits or Limits(0.0), said.append)
    return asked_at, Context(Lab(folder), toy(), "", [], folder / "lab"), said


def test_a_busy_service_is_waited_for_longer_each_time_and_nothing_is_booked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(desk.time, "sleep", waits.append)
    clock = iter(range(0, 10**9, 40))
    monkeypatch.setattr(desk.time, "monotonic", lambda: float(next(clock)))
    ours, context, said = desk_for(
        tmp_path, Busy("'x': 429"), Busy("'x': 429", 5.0), Busy("'x': 529"), Proposal(toy(LR=0.2), "idea")
    )
    assert ours.ask(context).proposal.description == "idea"
    assert len(said) == 3 and all(": waiting until " in line for line in said)
    assert [each.outcome for each in ours.ledger.all()] == [PROPOSED]


def test_a_network_that_goes_away_is_waited_for_and_one_that_was_never_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "FIRST_WAIT", 0.0)
    idea, gone = Proposal(toy(LR=0.2), "idea"), Unreachable("'x': can't be reached: check --endpoint")
    ours, context, said = desk_for(tmp_path, gone, idea, gone, gone, idea)
    with pytest.raises(Unreachable):
        ours.ask(context)
    ours.ask(context)
    assert said == []
    ours.ask(context)
    assert len(said) == 2 and all("can't be reached" in line and "waiting until" in line for line in said)


@pytest.mark.parametrize(("asked", "waited"), [(None, 30.0), (0.0, 1.0), (7.0, 7.0), (1e9, 6 * 3600.0)])
def test_a_service_is_given_the_time_it_asks_for_within_reason(asked: float | None, waited: float, tmp_path: Path) -> None:
    ours, context, said = desk_for(tmp_path)
    stopping = replace(context, should_stop=lambda: True)
    with pytest.raises(Interrupted):
        ours._wait(Busy("busy", asked), 30.0, stopping)
    assert said
    assert desk.seconds_to_wait(Busy("busy", asked), 30.0) == waited


def test_a_limit_that_is_reached_while_waiting_ends_it(tmp_path: Path) -> None:
    ours, context, _ = desk_for(tmp_path, Busy("busy", 60.0), limits=Limits(0.0, math.inf, 1e-9))
    with pytest.raises(Enough):
        ours._wait(Busy("busy", 60.0), 30.0, context)


def test_a_proposal_that_came_to_nothing_is_booked_with_what_it_took(tmp_path: Path) -> None:
    ours, context, _ = desk_for(tmp_path, ResearcherFailed("no", Cost(0.0, 100, 10, 0.1)))
    with pytest.raises(ResearcherFailed):
        ours.ask(context)
    (booked,) = ours.ledger.all()
    assert (booked.outcome, booked.input_tokens, booked.dollars) == (FAILED, 100, 0.1)


# -- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


PRICES = "\n[tool.autoresearch]\ninput-price = 100.0\noutput-price = 100.0\n"


def priced(lab: Path) -> None:
    from conftest import git

    with (lab / "pyproject.toml").open("a") as file:
        file.write(PRICES)
    git(lab, "commit", "--quiet", "-am", "prices")


def llm(url: str) -> tuple[str, ...]:
    return ("loop", "--researcher", "llm", "--model", "m", "--endpoint", f"{url}/v1")


@pytest.mark.parametrize("ahead", [(), ("--no-ahead",)], ids=["ahead", "not ahead"])
def test_max_cost_ends_the_loop_after_the_experiment_that_reached_it(lab: Path, call: Cli, ahead: tuple[str, ...]) -> None:
    priced(lab)
    with model(lab / "train.py", [0.05, 0.2, 0.28, 0.29]) as server:
        done = call(*llm(server.url), "--max", "9", "--max-cost", "0.2", *ahead)
    assert done.returncode == 0, done.stderr
    assert "--max-cost: $0.21 of $0.2 are spent" in done.stderr
    assert len(rows(lab)) == 3
    assert "llm: asked 2 times, 2,000 tokens in, 100 out, $0.21" in done.stdout


def test_max_cost_without_a_price_ends_with_the_way_out(lab: Path, call: Cli) -> None:
    with model(lab / "train.py", [0.2, 0.25]) as server:
        done = call(*llm(server.url), "--max", "3", "--max-cost", "1", "--no-ahead")
    assert done.returncode == 3
    assert "--max-cost can't be kept: 'llm' tells no price of its model: set input-price and output-price" in done.stderr
    assert len(rows(lab)) == 2


def test_max_hours_begins_no_further_experiment(lab: Path, tmp_path: Path, call: Cli) -> None:
    done = call("loop", "--max", "5", "--max-hours", "0.0000001", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert "--max-hours: 1e-07 hours have passed" in done.stderr
    assert not (lab / "results.tsv").exists() and not (tmp_path / "calls").exists()


IMPOSSIBLE = ("--max-cost 0", "--max-cost -1", "--max-hours nan", "--max-hours x", "--budget inf", "--turns 0")


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_an_impossible_limit_is_a_wrong_call(call: Cli, options: str) -> None:
    assert call("loop", *options.split()).returncode == 64


def test_a_service_that_fails_for_a_while_costs_time_and_no_row(lab: Path, call: Cli) -> None:
    def impatient() -> None:
        desk.FIRST_WAIT = 0.01

    with model(lab / "train.py", [0.2], *[Fault(500)] * 6) as server:
        done = call(*llm(server.url), "--max", "1", rigged=impatient)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("waiting until") == 6
    assert [row[3] for row in rows(lab)] == ["keep", "keep"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 130)])
def test_a_person_can_stop_it_while_it_waits(
    lab: Path, tmp_path: Path, environment: Mapping[str, str], number: signal.Signals, code: int
) -> None:
    with model(lab / "train.py", [0.2], always=Fault(429, {"retry-after": "600"})) as server:
        loop = Background(lab, *llm(server.url), env=environment, log=tmp_path / "log")
        loop.until("waiting until")
        loop.send(number)
        assert loop.end() == code
    assert [row[3] for row in rows(lab)] == ["keep"]


def test_each_experiment_knows_what_its_proposal_took(lab: Path, call: Cli) -> None:
    priced(lab)
    with model(lab / "train.py", [0.2]) as server:
        assert call(*llm(server.url), "--max", "1").returncode == 0
    state = json.loads((lab / ".autoresearch" / "runs" / "2" / "state.json").read_text())
    assert (state["input_tokens"], state["output_tokens"], state["dollars"]) == (1000, 50, pytest.approx(0.105))
    assert state["proposal_seconds"] > 0
