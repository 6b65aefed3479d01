"""Claims about the Agent Client Protocol: an agent may read the lab's copies and edit train.py; whatever else it asks is denied.

The agent is a script that sends the requests it is given and leaves the answers in its scratch folder.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import toy

from autoresearch.errors import NotReady
from autoresearch.lab import Lab
from autoresearch.researchers import Busy, Context, Options, Proposal, ResearcherFailed, make

AGENT = """
import json, os, sys, time
PLAN = json.loads(PLAN_TEXT)
def send(**message): print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def say(text): send(method="session/update", params={"sessionId": "s", "update": {
    "sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}})
for line in sys.stdin:
    asked = json.loads(line)
    method = asked.get("method")
    if method == "initialize":
        send(id=asked["id"], result={"protocolVersion": 1})
    elif method == "session/new":
        print("a line for people", flush=True)
        send(id=asked["id"], result={"sessionId": "s"})
    elif method == "session/prompt":
        open("prompt", "w").write(asked["params"]["prompt"][0]["text"])
        answers = []
        for number, request in enumerate(PLAN["requests"]):
            send(id=f"r{number}", **request)
            answers.append(json.loads(sys.stdin.readline()))
        open("answers", "w").write(json.dumps(answers))
        exec(PLAN["then"])
        for piece in PLAN["words"]: say(piece)
        if PLAN["error"]: send(id=asked["id"], error=PLAN["error"])
        else: send(id=asked["id"], result={"stopReason": PLAN["stop"], "usage": {"inputTokens": 1000, "outputTokens": 50}})
"""

WORDS = ["Tried: higher ", "rate\nCategory: optimizer\n"]
EDIT = "text = open('train.py').read().replace('LR = 0.1', 'LR = 0.2'); open('train.py', 'w').write(text)"


@pytest.fixture
def context(tmp_path: Path, environment: Mapping[str, str]) -> Context:
    lab = tmp_path / "lab"
    lab.mkdir()
    for name in ("prepare.py", "constants.py", "program.md", "pyproject.toml"):
        (lab / name).write_text(f"# {name}\n")
    return Context(Lab(lab), toy(), "# Brief\n", [], lab / ".autoresearch" / "scratch" / "lab")


def propose(context: Context, *requests: dict[str, Any], then: str = EDIT, seconds: float = 60.0, **plan: Any) -> Proposal:
    whole = {"requests": requests, "then": then, "words": WORDS, "error": None, "stop": "end_turn", **plan}
    script = context.lab.root.parent / "agent.py"
    script.write_text(AGENT.replace("PLAN_TEXT", repr(json.dumps(whole))))
    return make(f"acp:{shlex.join([sys.executable, str(script)])}", Options(time_limit=seconds)).propose(context)


def answers(context: Context, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    propose(context, *requests)
    return list(json.loads((context.scratch / "answers").read_text()))


def permission(kind: str, *paths: str) -> dict[str, Any]:
    options = [{"optionId": "yes", "kind": "allow_once"}, {"optionId": "always", "kind": "allow_always"}]
    options.append({"optionId": "no", "kind": "reject_once"})
    call = {"toolCallId": "t", "kind": kind, "title": f"{kind} it", "locations": [{"path": path} for path in paths]}
    return {"method": "session/request_permission", "params": {"sessionId": "s", "toolCall": call, "options": options}}


def file(method: str, path: Path | str, **more: Any) -> dict[str, Any]:
    return {"method": f"fs/{method}_text_file", "params": {"sessionId": "s", "path": str(path), **more}}


# -- success ---------------------------------------------------------------------------------------------------------


def test_its_edit_and_its_words_in_pieces_are_the_proposal(context: Context) -> None:
    proposal = propose(context)
    assert proposal.source == toy(LR=0.2)
    assert (proposal.description, proposal.category) == ("higher rate", "optimizer")
    assert (proposal.cost.input_tokens, proposal.cost.output_tokens, proposal.cost.dollars) == (1000, 50, None)
    assert (context.scratch / "prompt").read_text().startswith("# Brief\n")
    assert "a line for people" in context.log.read_text()


def test_it_may_edit_by_our_hand_too(context: Context) -> None:
    request = file("write", context.scratch / "train.py", content=toy(LR=0.25))
    assert propose(context, request, then="pass").source == toy(LR=0.25)


# -- what it may and what not ----------------------------------------------------------------------------------------


def test_reading_is_allowed_and_an_edit_of_train_py_alone(context: Context) -> None:
    train, other = str(context.scratch / "train.py"), str(context.scratch / "prepare.py")
    given = answers(
        context,
        permission("read", other),
        permission("search"),
        permission("edit", train),
        permission("edit", train, other),
        permission("edit", other),
        permission("edit", f"{context.scratch}/../train.py"),
        permission("edit"),
        permission("execute"),
        permission("fetch"),
    )
    chosen = [answer["result"]["outcome"].get("optionId") for answer in given]
    assert chosen == ["yes", "yes", "yes", "no", "no", "no", "no", "no", "no"]


def test_files_are_read_and_written_in_its_scratch_folder_alone_and_not_through_links(context: Context) -> None:
    secret = context.lab.root / "secret"
    secret.write_text("s3cret")
    given = answers(
        context,
        file("read", context.scratch / "program.md"),
        file("read", context.scratch / "train.py", line=5, limit=1),
        file("read", context.scratch / "no-such-file"),
        file("read", secret),
        file("read", "../../../secret"),
        file("write", context.scratch / "prepare.py", content="x"),
        file("write", secret, content="x"),
        {"method": "terminal/create", "params": {"command": "sh"}},
    )
    assert given[0]["result"] == {"content": "# program.md\n"}
    assert given[1]["result"] == {"content": toy().splitlines(keepends=True)[4]}
    assert [answer["error"]["code"] for answer in given[2:]] == [-32002, -32002, -32002, -32000, -32000, -32601]
    assert secret.read_text() == "s3cret"


def test_a_link_in_place_of_train_py_is_not_followed(context: Context) -> None:
    victim = context.lab.root / "victim"
    victim.write_text("mine")
    link = f"import os; os.remove('train.py'); os.symlink({str(victim)!r}, 'train.py')"
    write = file("write", context.scratch / "train.py", content="theirs")
    linked = {**write, "params": {**write["params"]}}
    with pytest.raises(ResearcherFailed, match=r"left no plain train\.py behind"):
        propose(context, then=f"{link}; send(id='late', **{linked!r}); sys.stdin.readline()")
    assert victim.read_text() == "mine"


# -- the bad ways ----------------------------------------------------------------------------------------------------


def test_what_was_denied_is_told_where_nothing_was_changed(context: Context) -> None:
    with pytest.raises(ResearcherFailed, match=r"without a change to train\.py; not allowed were: execute it"):
        propose(context, permission("execute"), then="pass")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": -32000, "message": "Authentication required"}, NotReady),
        ({"code": -32603, "message": "Internal error", "data": {"details": "429 too many requests"}}, Busy),
        ({"code": -32603, "message": "boom"}, ResearcherFailed),
    ],
)
def test_its_errors_mean_end_wait_or_try_again(context: Context, error: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        propose(context, error=error)


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("time.sleep(600)", r"gave no answer in 2 s \(--researcher-timeout\)"),
        ("print('no key', file=sys.stderr); sys.exit(3)", "it ended in the middle: no key"),
        ("sys.stdout.write('x' * 20_000_000); sys.stdout.flush(); time.sleep(600)", "sent a message of over 16 MB"),
    ],
    ids=["hang", "death", "20 MB"],
)
def test_a_hang_a_death_and_a_flood_are_refused_in_one_line(context: Context, then: str, told: str) -> None:
    with pytest.raises(ResearcherFailed, match=told):
        propose(context, then=then, seconds=2.0 if "gave no" in told else 60.0)


def test_one_that_stops_for_another_reason_is_refused(context: Context) -> None:
    with pytest.raises(ResearcherFailed, match="it stopped: max_tokens"):
        propose(context, stop="max_tokens")
