"""Claims about `llm`: one request to a model, edits that apply or are repaired once, and every bad answer told in one line."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import scored, toy
from labs import copy_of, forked, journal, rows
from model_server import Fault, ModelServer, model

from autoresearch.errors import Interrupted, NotReady, WrongCall
from autoresearch.lab import Lab
from autoresearch.researchers import Busy, Context, Options, Proposal, ResearcherFailed, Unreachable, make
from autoresearch.researchers.llm import DoesNotApply, apply, server_of


@pytest.fixture
def context(tmp_path: Path) -> Context:
    scratch = tmp_path / "scratch" / "lab"
    scratch.mkdir(parents=True)
    (scratch / "train.py").write_text(toy())
    return Context(Lab(tmp_path), toy(), "# Brief\n", [], scratch)


@pytest.fixture
def server(context: Context) -> Iterator[ModelServer]:
    with model(context.scratch / "train.py", [0.2, 0.25]) as running:
        yield running


def ask(context: Context, server: ModelServer, path: str = "/v1", **options: object) -> Proposal:
    return make("llm", Options(endpoint=server.url + path, model="mock-1", **options)).propose(context)  # type: ignore[arg-type]


# -- what it asks and what it gives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "asked"), [("/v1", "/v1/chat/completions"), ("/v1/messages", "/v1/messages")])
def test_both_wire_formats_give_a_proposal_with_its_words_and_its_tokens(
    context: Context, server: ModelServer, path: str, asked: str
) -> None:
    proposal = ask(context, server, path)
    assert proposal.source == toy(LR=0.2)
    assert (proposal.description, proposal.category, proposal.expected_gain) == ("LR to 0.2", "optimizer", 0.02)
    assert proposal.hypothesis == "the bowl is lower there"
    assert (proposal.cost.input_tokens, proposal.cost.output_tokens, proposal.cost.dollars) == (1000, 50, None)
    assert [request["path"] for request in server.requests] == [asked]
    prompt = server.requests[0]["body"]["messages"][0]["content"]
    assert prompt.startswith("# Brief\n") and toy() in prompt and "<<<<<<< SEARCH" in prompt
    assert "Tried: LR to 0.2" in context.log.read_text()


def test_the_key_of_the_named_variable_goes_to_the_server_and_no_other(
    context: Context, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not for you")
    monkeypatch.setenv("MINE", "for you")
    ask(context, server, key_variable="MINE")
    ask(context, server)
    sent = [{name.lower(): value for name, value in request["headers"].items()} for request in server.requests]
    assert sent[0]["authorization"] == "Bearer for you"
    assert "authorization" not in sent[1]
    assert "not for you" not in str(sent)


def test_a_price_that_a_person_names_gives_dollars(context: Context, server: ModelServer) -> None:
    assert ask(context, server, input_price=3.0, output_price=15.0).cost.dollars == pytest.approx(0.00375)


def test_edits_that_do_not_apply_are_repaired_once(context: Context, server: ModelServer) -> None:
    context.scratch.joinpath("train.py").write_text(toy(LR=0.7))  # the server reads the wrong file: its first block does not fit
    whole = server.edit

    def late() -> tuple[str, str]:
        context.scratch.joinpath("train.py").write_text(toy(LR=0.7) if server.finished == 0 else toy())
        return whole()

    server.edit = late  # type: ignore[method-assign]
    proposal = ask(context, server)
    assert proposal.source == toy(LR=0.25)
    assert (proposal.cost.input_tokens, proposal.cost.output_tokens) == (2000, 100)
    repair = server.requests[1]["body"]["messages"]
    assert [each["role"] for each in repair] == ["user", "assistant", "user"]
    assert "Block 1: its SEARCH part does not stand in train.py" in repair[2]["content"]


def test_a_repair_that_does_not_apply_either_is_refused_and_paid_for(context: Context, server: ModelServer) -> None:
    server.always = Fault(kind="mute")
    with pytest.raises(ResearcherFailed, match="its edits don't apply, nor did their repair: Your answer has no block") as failed:
        ask(context, server)
    assert failed.value.cost.input_tokens == 2000


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("no block", "has no block"),
        ("<<<<<<< SEARCH\nLR = 9\n=======\nLR = 1\n>>>>>>> REPLACE", "Block 1: its SEARCH part does not stand in train.py"),
        ("<<<<<<< SEARCH\n    print(\n=======\n    x\n>>>>>>> REPLACE", "does not stand"),
        ("<<<<<<< SEARCH\n\n=======\nx = 1\n>>>>>>> REPLACE", "its SEARCH part is empty"),
        ("<<<<<<< SEARCH\nimport sys\n=======\nimport (\n>>>>>>> REPLACE", "not valid Python"),
    ],
)
def test_a_block_that_does_not_fit_is_told_with_its_reason(answer: str, told: str) -> None:
    with pytest.raises(DoesNotApply, match=told):
        apply(toy(), answer)


def test_blocks_are_applied_one_after_the_other_exactly_as_they_stand() -> None:
    first = "<<<<<<< SEARCH\nLR = 0.1  # learning rate\n=======\nLR = 0.2  # learning rate\n>>>>>>> REPLACE"
    second = "<<<<<<< SEARCH\nimport sys\nimport time\n=======\nimport time\nimport sys\n>>>>>>> REPLACE"
    changed = apply(toy(), f"words\n```python\n{first}\n```\nmore\n{second}\n")
    assert changed == toy(LR=0.2).replace("import sys\nimport time", "import time\nimport sys")


# -- the bad ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["invalid x-api-key", "Incorrect API key provided"])
def test_a_401_is_not_ready_and_says_how_to_log_in(context: Context, server: ModelServer, message: str) -> None:
    server.always = Fault(401, message=message)
    with pytest.raises(NotReady, match=f"'llm' has no access to its model .*{message}.*: set "):
        ask(context, server)
    assert len(server.requests) == 1


def test_a_429_without_credit_is_not_ready_either(context: Context, server: ModelServer) -> None:
    server.always = Fault(429, message="You exceeded your current quota (insufficient_quota)")
    with pytest.raises(NotReady):
        ask(context, server)


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (Fault(429, {"retry-after": "7"}, "slow down"), 7.0),
        (Fault(429, {"retry-after": "Wed, 25 Nov 2026 15:00:00 GMT"}, "Please try again in 1.5s."), 1.5),
        (Fault(529, message="Overloaded"), None),
        (Fault(500, message="Internal"), None),
    ],
)
def test_a_busy_service_asks_for_patience(context: Context, server: ModelServer, fault: Fault, wait: float | None) -> None:
    server.always = fault
    with pytest.raises(Busy) as busy:
        ask(context, server)
    assert busy.value.wait == wait


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("cut", "'llm': the connection failed in the middle"),
        ("huge", "'llm' answered with over 2 MB: an answer is a few edits"),
        ("bytes", "'llm': what http.* answered is no answer of a model"),
        ("hang", r"'llm' gave no answer in 0.5 s \(--researcher-timeout\)"),
    ],
)
def test_an_answer_that_is_none_is_refused_in_one_line(context: Context, server: ModelServer, kind: str, told: str) -> None:
    server.always = Fault(kind=kind)
    with pytest.raises(ResearcherFailed, match=told):
        ask(context, server, time_limit=0.5 if kind == "hang" else 60.0)


def test_a_server_that_is_not_there_is_told_with_the_way_out(context: Context, server: ModelServer) -> None:
    url = server.url
    server.__exit__()
    with pytest.raises(Unreachable, match=f"'llm': {url}/v1 can't be reached .*: check --endpoint"):
        make("llm", Options(endpoint=f"{url}/v1", model="m")).propose(context)


def test_a_person_who_stops_at_once_does_not_wait_for_the_answer(context: Context, server: ModelServer) -> None:
    server.always = Fault(kind="hang")
    stopped = threading.Event()
    asked = Context(context.lab, context.source, context.brief, [], context.scratch, stopped.is_set)
    threading.Timer(0.1, stopped.set).start()
    with pytest.raises(Interrupted):
        make("llm", Options(endpoint=f"{server.url}/v1", model="m")).propose(asked)


# -- where the model is ----------------------------------------------------------------------------------------------


def test_without_any_key_or_endpoint_it_is_a_wrong_call_with_the_way_out() -> None:
    with pytest.raises(WrongCall, match=r"no model to ask: set one of ANTHROPIC_API_KEY, .* or name a server"):
        server_of(Options(), {})


@pytest.mark.parametrize(
    ("environment", "url", "wire"),
    [
        ({"OPENAI_API_KEY": "k"}, "https://api.openai.com/v1", "openai"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://here/v1/"}, "http://here/v1", "openai"),
        ({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, "https://api.anthropic.com", "anthropic"),
        ({"OPENROUTER_API_KEY": "k"}, "https://openrouter.ai/api/v1", "openai"),
    ],
)
def test_the_first_key_that_is_set_says_where_the_model_is(environment: Mapping[str, str], url: str, wire: str) -> None:
    found = server_of(Options(), environment)
    assert (found.url, found.wire, found.key) == (url, wire, "k")


def test_a_model_has_to_be_named() -> None:
    with pytest.raises(WrongCall, match="llm needs --model"):
        make("llm", Options(endpoint="http://127.0.0.1:1/v1"))


# -- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "labs" / "lab")


def loop(lab: Path, server: ModelServer, *more: str) -> tuple[int, str]:
    done = forked(lab, "loop", "--researcher", "llm", "--model", "mock-1", "--endpoint", f"{server.url}/v1", *more)
    return done.returncode, done.stderr + done.stdout


def test_three_experiments_by_a_model_with_what_it_said_and_took(lab: Path) -> None:
    with model(lab / "train.py", [0.2, 0.25, 0.3]) as server:
        code, said = loop(lab, server, "--max", "3", "--no-ahead")
    assert code == 0, said
    assert [row[3:] for row in rows(lab)][1:] == [("keep", "LR to 0.2"), ("keep", "LR to 0.25"), ("keep", "LR to 0.3 n=2")]
    last = journal(lab)[-1]
    assert (last["researcher"], last["category"], last["expected_gain"]) == ("llm", "optimizer", 0.02)
    assert (last["input_tokens"], last["output_tokens"], last["dollars"]) == (1000, 50, None)
    assert "llm: asked 3 times, 3,000 tokens in, 150 out, price unknown" in said
    change = f"{(scored(0.3) - scored()) / 3:+.6f}"
    assert f"Expected against measured, 3 experiments: -0.020000 and {change} on average, 3 better than before" in said


def test_a_rate_limit_is_waited_out_and_is_no_row(lab: Path) -> None:
    with model(lab / "train.py", [0.2], Fault(429, {"retry-after": "0"}), Fault(529)) as server:
        server.faults[1:] = [Fault(503, {"retry-after": "1"})]
        code, said = loop(lab, server, "--max", "1")
    assert code == 0, said
    assert said.count("scripted fault: waiting until ") == 2
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "LR to 0.2")]


def test_one_without_access_ends_the_loop_with_the_reason_and_no_row(lab: Path) -> None:
    with model(lab / "train.py", [0.2], always=Fault(401, message="invalid x-api-key")) as server:
        code, said = loop(lab, server, "--max", "3")
        assert len(server.requests) == 1
    assert code == 3
    assert "autoresearch: 'llm' has no access to its model (401 authentication_error 401 invalid x-api-key)" in said
    assert [row[3] for row in rows(lab)] == ["keep"]
