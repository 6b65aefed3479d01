"""Claims about coding agents: what each is told and given, what counts as success, and that each bad way is one clear line.

The programs are stand-ins that print what the real ones printed; the real ones, from their registries, come at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import toy
from labs import Background, copy_of, journal, rows, wait_for
from model_server import Fault, model
from real_agents import AGENTS, NotInstalled, environment_for, install, session

from autoresearch.errors import NotReady
from autoresearch.experiment import sandbox
from autoresearch.lab import Lab
from autoresearch.researchers import INSTALL, Busy, Context, Options, Proposal, ResearcherFailed, make, process

WORDS = "Tried: higher rate\nHypothesis: it helps\nExpected gain: 0.01\nCategory: optimizer"
EDIT = "sed -i 's/^LR = [^ ]*/LR = 0.2/' train.py"
NAMES = tuple(INSTALL)


@pytest.fixture
def context(tmp_path: Path, environment: Mapping[str, str]) -> Context:
    lab = tmp_path / "lab"
    lab.mkdir()
    for name in ("prepare.py", "constants.py", "program.md", "pyproject.toml"):
        (lab / name).write_text(f"# {name}\n")
    return Context(Lab(lab), toy(), "# Brief\n", [], lab / ".autoresearch" / "scratch" / "lab")


def stand_in(name: str, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, first in PATH."""
    program = folder / "programs" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def output(name: str, text: str = WORDS, error: str = "") -> str:
    """What the agent prints for that end of its work."""
    usage = {"input_tokens": 900, "cache_read_input_tokens": 100, "cached_input_tokens": 100, "output_tokens": 50}
    lines: dict[str, list[Any]] = {
        "claude": [
            {"type": "system", "subtype": "init"},
            {
                "type": "result",
                "subtype": "success",
                "is_error": bool(error),
                "result": error or text,
                "total_cost_usd": 0.02,
                "usage": usage,
                "modelUsage": {"m": {"costBasis": "known"}},
                "permission_denials": [],
            },
        ],
        "codex": [
            {"type": "thread.started", "thread_id": "x"},
            {"type": "item.completed", "item": {"type": "agent_message", "text": text}},
            {"type": "turn.failed", "error": {"message": error}} if error else {"type": "turn.completed", "usage": usage},
        ],
        "opencode": [
            {"type": "text", "part": {"text": text}},
            {"type": "error", "error": {"name": "APIError", "data": {"message": error}}}
            if error
            else {
                "type": "step_finish",
                "part": {
                    "reason": "stop",
                    "cost": 0.02,
                    "tokens": {"input": 900, "output": 50, "cache": {"read": 100, "write": 0}},
                },
            },
        ],
        "gemini": [
            {"error": {"type": "ApiError", "message": error}}
            if error
            else {"response": text, "stats": {"models": {"m": {"tokens": {"prompt": 1000, "candidates": 50}}}}}
        ],
    }
    if name == "aider":
        told = error or f"{text}\n\nTokens: 1.0k sent, 50 received. Cost: $0.02 message, $0.02 session.\nApplied edit to train.py"
        return f"Aider v0.86.2\nModel: openai/m with diff edit format\n\n{told}\n"
    return "".join(json.dumps(line) + "\n" for line in lines[name])


def says(name: str, text: str = WORDS, error: str = "") -> str:
    return f"printf '%s' {shlex.quote(output(name, text, error))}"


Propose = Any


@pytest.fixture
def propose(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Propose:
    def call(name: str, script: str, options: Options = Options()) -> Proposal:  # noqa: B008 - frozen
        stand_in(name, script, tmp_path, monkeypatch)
        return make(name, options).propose(context)

    return call


each_agent = pytest.mark.parametrize("name", NAMES)


# -- what counts as success ------------------------------------------------------------------------------------------


@each_agent
def test_an_edit_its_words_its_tokens_and_its_dollars_are_the_proposal(name: str, propose: Propose) -> None:
    proposal = propose(name, f"{EDIT}; {says(name)}")
    assert proposal.source == toy(LR=0.2)
    assert (proposal.description, proposal.hypothesis) == ("higher rate", "it helps")
    assert (proposal.expected_gain, proposal.category) == (0.01, "optimizer")
    assert proposal.cost.output_tokens == 50
    assert proposal.cost.input_tokens == (900 if name == "codex" else 1000)
    assert proposal.cost.dollars == (None if name in ("codex", "gemini") else 0.02)


@each_agent
def test_one_that_says_nothing_of_the_kind_is_described_by_its_change(name: str, propose: Propose) -> None:
    assert propose(name, f"{EDIT}; {says(name, text='')}").description == "LR 0.1->0.2"


@each_agent
@pytest.mark.parametrize(
    ("message", "kind"),
    [("401 invalid x-api-key", NotReady), ("529 overloaded", Busy), ("500 server error", Busy), ("boom", ResearcherFailed)],
)
@pytest.mark.parametrize("code", [0, 1])
def test_an_error_that_it_reports_counts_whatever_its_exit_code(
    name: str, message: str, kind: type[Exception], code: int, propose: Propose
) -> None:
    if name == "aider":
        message = f"litellm.APIError: {message}"
    with pytest.raises(kind):
        propose(name, f"{EDIT}; {says(name, error=message)}; exit {code}")


@each_agent
def test_exit_code_0_without_an_edit_is_refused(name: str, propose: Propose) -> None:
    with pytest.raises(ResearcherFailed, match=f"'{name}' ended without a change to train.py") as failed:
        propose(name, says(name))
    assert failed.value.cost.output_tokens == 50


@each_agent
def test_an_output_that_is_cut_in_the_middle_is_refused(name: str, propose: Propose) -> None:
    half = output(name)[: len(output(name)) // 3].rsplit("\n", 1)[0] + '\n{"type": "res'
    with pytest.raises(ResearcherFailed, match="ended without a result"):
        propose(name, f"{EDIT}; printf '%s' {shlex.quote(half)}")


@each_agent
def test_an_exit_code_is_told_with_the_last_line(name: str, propose: Propose) -> None:
    with pytest.raises(ResearcherFailed, match=r"unknown option|without a result"):
        propose(name, "echo 'error: unknown option --bare' >&2; exit 2")


@each_agent
@pytest.mark.parametrize(
    ("move", "told"),
    [
        ("echo x >> prepare.py", "changed prepare.py: only train.py may change"),
        ("rm constants.py", "changed constants.py: only train.py may change"),
        ("rm train.py", "left no plain train.py behind"),
        ("rm train.py; ln -s /etc/passwd train.py", "left no plain train.py behind"),
        ("printf '\\377' > train.py", "left a train.py that is not UTF-8 text"),
    ],
)
def test_an_edit_elsewhere_or_a_deleted_file_is_refused(name: str, move: str, told: str, propose: Propose) -> None:
    with pytest.raises(ResearcherFailed, match=told):
        propose(name, f"{move}; {says(name)}")


def processes_in(scratch: Path) -> list[str]:
    """Programs of a researcher that are alive: in a sandbox their numbers are others, so their environment has to tell."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{process.MARK}={scratch}".encode() in environment.read_bytes():
                found.append(environment.parent.name)
    return found


@each_agent
def test_one_that_hangs_is_ended_with_all_that_it_started(name: str, propose: Propose, context: Context) -> None:
    script = "sleep 600 & touch started; sleep 600"
    with pytest.raises(ResearcherFailed, match=rf"'{name}' gave no answer in 0.5 s \(--researcher-timeout\)"):
        propose(name, script, Options(time_limit=0.5))
    assert (context.scratch / "started").exists()
    wait_for(lambda: processes_in(context.scratch) == [], "something that it started lives on")


@each_agent
def test_ten_megabytes_and_bytes_that_are_no_text_are_no_obstacle(name: str, propose: Propose) -> None:
    """Lines of its own that an agent's format does not know are passed over; those of a person's are cut to a length."""
    flood = "head -c 3000000 /dev/zero | tr '\\0' x; echo; printf '\\377\\376\\n'"
    assert propose(name, f"{EDIT}; {flood}; {says(name)}").source == toy(LR=0.2)


@each_agent
def test_an_end_beyond_what_is_kept_of_its_output_is_refused(name: str, propose: Propose) -> None:
    with pytest.raises(ResearcherFailed, match="without a result"):
        propose(name, f"{EDIT}; head -c 10000000 /dev/zero | tr '\\0' x; echo; {says(name)}")


def test_a_tool_that_was_denied_is_told(propose: Propose) -> None:
    result = {"type": "result", "subtype": "success", "result": "done", "permission_denials": [{"tool_name": "Edit"}]}
    with pytest.raises(ResearcherFailed, match=r"without a change to train\.py; not allowed were: Edit"):
        propose("claude", f"printf '%s' {shlex.quote(json.dumps(result))}")


def test_dollars_that_claude_made_up_are_not_believed(propose: Propose) -> None:
    made_up = output("claude").replace('"known"', '"unknown"')
    assert propose("claude", f"{EDIT}; printf '%s' {shlex.quote(made_up)}").cost.dollars is None


# -- what it gets ----------------------------------------------------------------------------------------------------


@each_agent
def test_it_gets_the_brief_no_input_and_only_the_variables_that_its_adapter_names(
    name: str, propose: Propose, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(name)
    monkeypatch.setenv(key, "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "theirs")
    seen = "env > seen; cat > input; printf '%s\\n' \"$@\" > words"
    told = propose(name, f"{seen}; cp seen input words ..; {EDIT}; {says(name)}") if sandbox.best()[0] == sandbox.NONE else None
    if told is None:
        propose(name, f"{seen}; {EDIT}; {says(name)}")
    folder = context.scratch
    environment = dict(line.split("=", 1) for line in (folder / "seen").read_text().splitlines() if "=" in line)
    assert environment[key] == "mine" and "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["HOME"] != os.environ["HOME"]
    assert (folder / "input").read_text() == ""
    told_by = (folder / "words").read_text() if name != "aider" else (folder / "BRIEF.md").read_text()
    assert "# Brief" in told_by


def make_key(name: str) -> str:
    return {"claude": "ANTHROPIC_API_KEY", "codex": "CODEX_API_KEY", "gemini": "GEMINI_API_KEY"}.get(name, "OPENAI_API_KEY")


@pytest.mark.skipif(sandbox.best()[0] == sandbox.NONE, reason=f"no sandbox on this machine: {sandbox.best()[1]}")
def test_no_other_file_exists_for_it(propose: Propose, context: Context, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    results = context.lab.root / "results.tsv"
    results.write_text("commit\n")
    script = f"cat '{secret}' '{results}' '{context.lab.root}/prepare.py' > stolen 2>&1; echo x > '{tmp_path}/left' 2>/dev/null"
    propose("claude", f"{script}; {EDIT}; {says('claude')}")
    stolen = (context.scratch / "stolen").read_text()
    assert "s3cret" not in stolen and "commit" not in stolen and "# prepare.py" not in stolen
    assert not (tmp_path / "left").exists()


def test_a_login_is_copied_in_and_a_renewed_one_back(propose: Propose, environment: Mapping[str, str]) -> None:
    login = Path(environment["HOME"]) / ".codex" / "auth.json"
    login.parent.mkdir()
    login.write_text('{"token": 1}')
    login.chmod(0o600)
    propose("codex", f"grep -q 1 ~/.codex/auth.json && echo '{{\"token\": 2}}' > ~/.codex/auth.json; {EDIT}; {says('codex')}")
    assert json.loads(login.read_text()) == {"token": 2}
    assert login.stat().st_mode & 0o777 == 0o600


def test_a_login_that_a_person_renewed_meanwhile_stays(propose: Propose, environment: Mapping[str, str]) -> None:
    login = Path(environment["HOME"]) / ".codex" / "auth.json"
    login.parent.mkdir()
    login.write_text("old")
    launch = process.Launch("codex", ["true"], login.parent / "lab", login.parent / "log", 1.0, logins=(".codex/auth.json",))
    copies = process._make_home(launch)
    (launch.home / ".codex" / "auth.json").write_text("by the agent")
    login.write_text("by a person")
    process._keep_logins(launch, copies)
    assert login.read_text() == "by a person"


def test_a_login_that_is_led_away_by_a_link_is_not_taken_back(propose: Propose, environment: Mapping[str, str]) -> None:
    """Else an agent could have a file of ours copied to where it gets it next time."""
    home = Path(environment["HOME"])
    for name, text in ((".codex/auth.json", "mine"), ("private/auth.json", "s3cret")):
        (home / name).parent.mkdir()
        (home / name).write_text(text)
    propose("codex", f"rm -r ~/.codex; ln -s '{home}/private' ~/.codex; {EDIT}; {says('codex')}")
    assert (home / ".codex" / "auth.json").read_text() == "mine"


def test_its_log_is_what_it_printed(propose: Propose, context: Context) -> None:
    propose("claude", f"{EDIT}; {says('claude')}")
    assert context.log.read_text() == output("claude")


# -- the real ones ---------------------------------------------------------------------------------------------------


def test_a_killed_loop_leaves_no_agent_behind(
    made: Path, environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = copy_of(made, tmp_path / "lab")
    stand_in("claude", "sleep 600 & touch started; sleep 600", tmp_path, monkeypatch)
    env = {**environment, "PATH": os.environ["PATH"]}
    loop = Background(lab, "loop", "--researcher", "claude", env=env, log=tmp_path / "log")
    scratch = lab / ".autoresearch" / "scratch" / "lab"
    wait_for((scratch / "started").exists, "it was never asked")
    assert processes_in(scratch)
    loop.send(signal.SIGKILL)
    loop.end()
    wait_for(lambda: processes_in(scratch) == [], "an agent outlived the loop")


def installed(name: str) -> None:
    try:
        install(AGENTS[name])
    except NotInstalled as reason:
        pytest.skip(str(reason))


VALUES = (0.05, 0.06, 0.2)


def led_through(name: str, lab: Path, environment: Mapping[str, str], acp: bool = False) -> None:
    """Three experiments by the real program, each with its row, its words and its tokens."""
    installed(name)
    done = session(AGENTS[name], lab, VALUES, environment, "--max", "3", "--researcher-timeout", "60", acp=acp)
    assert done.returncode == 0, done.stderr
    expected = [("discard", "LR to 0.05"), ("discard", "LR to 0.06"), ("keep", "LR to 0.2")]
    assert [row[3:] for row in rows(lab)][1:] == expected, done.stderr
    for each in journal(lab)[1:]:
        assert (each["category"], each["expected_gain"], each["hypothesis"]) == ("optimizer", 0.02, "the bowl is lower there")
        assert each["input_tokens"] > 0 or acp  # gemini tells none there
        assert (lab / ".autoresearch" / "runs" / str(each["n"]) / "researcher.log").stat().st_size > 0


@pytest.mark.parametrize("name", ["claude", "gemini"])
def test_the_real_program_goes_through_three_experiments(
    name: str, made: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    led_through(name, copy_of(made, tmp_path / "lab"), environment)


def test_a_real_program_goes_through_three_experiments_by_the_agent_client_protocol(
    made: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    led_through("gemini", copy_of(made, tmp_path / "lab"), environment, acp=True)


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (Fault(401, message="invalid x-api-key"), NotReady, "'claude' has no access to its model"),
        (Fault(429, {"retry-after": "1"}, "slow down"), Busy, "'claude': "),
        (Fault(500), Busy, "'claude': "),
        (Fault(kind="hang"), ResearcherFailed, "'claude' gave no answer in 2 s"),
        (Fault(kind="mute"), ResearcherFailed, "'claude' ended without a change to train.py"),
        (Fault(kind="elsewhere"), ResearcherFailed, "'claude' ended without a change to train.py; not allowed were: Edit"),
        (Fault(kind="delete"), ResearcherFailed, "'claude' ended without a change to train.py"),
        (Fault(kind="huge"), ResearcherFailed, "'claude' "),
        (Fault(kind="bytes"), ResearcherFailed, "'claude' failed: API Error: JSON Parse error"),
    ],
    ids=["401", "429", "500", "hang", "no edit", "edit elsewhere", "a file deleted", "10 MB", "no text"],
)
def test_the_real_claude_fails_in_one_line(
    fault: Fault, kind: type[Exception], told: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("claude")
    claude = AGENTS["claude"]
    for name, value in environment_for(claude, os.environ).items():
        monkeypatch.setenv(name, value)
    with model(context.scratch / "train.py", [0.2], always=fault) as server, pytest.raises(kind) as failed:
        make("claude", Options(model=claude.model, endpoint=server.url, time_limit=2.0 if fault.kind == "hang" else 60.0)).propose(
            context
        )
    assert str(failed.value).startswith(told)
