"""Claims about choosing researchers: names, mixtures, settings, what they say, and what their errors mean."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, toy

from autoresearch.errors import NotReady, WrongCall
from autoresearch.lab import Lab
from autoresearch.researchers import INSTALL, Busy, Options, ResearcherFailed, Unreachable, choose, faults, said
from autoresearch.researchers.team import Team
from autoresearch.settings import team as from_settings


def team(spec: str) -> Team:
    return choose.team(spec, lambda name: Options())


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INSTALL)
def test_a_missing_program_is_told_with_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WrongCall) as wrong:
        team(name)
    assert str(wrong.value) == f"--researcher {name}: the program '{name}' is not installed: {INSTALL[name]}"
    assert choose.readiness()[name] == f"not installed: {INSTALL[name]}"


@pytest.mark.parametrize("name", INSTALL)
def test_check_tells_an_installed_agent_with_a_key_from_one_without(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    kind = choose.agents()[name]
    for variable in kind.variables:
        monkeypatch.delenv(variable, raising=False)
    assert choose.readiness()[name] == f"installed, no login found: {kind.login_hint}"
    key = next(variable for variable in kind.variables if variable.endswith("_KEY"))
    monkeypatch.setenv(key, "k")
    assert choose.readiness()[name] == "ready"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("gpt", "--researcher gpt: not one of search, llm, claude, codex, opencode, gemini, aider, acp:COMMAND; a command needs"),
        ("acp:no-such-agent --acp", "--researcher acp:no-such-agent: there is no program 'no-such-agent': check its name"),
        ("acp:", "--researcher is empty"),
        ("search:0.7,claude", "'claude' has no share: a mixture is written search:0.7,claude:0.3"),
        ("search:0.7,claude:0", "'claude:0' has no share"),
        ("search:1,search:2", "a researcher is named twice"),
        ("search:0.5,gpt:0.5", "--researcher gpt: not one of"),
    ],
)
def test_one_that_can_t_exist_is_a_wrong_call(spec: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WrongCall) as wrong:
        team(spec)
    assert told in str(wrong.value)


def test_check_tells_the_researchers_with_nothing_installed(tmp_path: Path) -> None:
    """By an interpreter without packages: `check` comes before any installation."""
    code = "from autoresearch.researchers.choose import readiness; print(sorted(readiness()))"
    words = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); {code}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(sorted(("search", "llm", *INSTALL))), done.stderr


# -- mixtures --------------------------------------------------------------------------------------------------------


def test_a_mixture_gives_each_its_share_from_the_start_and_after_a_stop() -> None:
    mixed, asked, order = team("search:0.7,./bin/true:0.3".replace("./bin/true", "/bin/true")), Counter[str](), []
    for _ in range(100):
        name = mixed.turn(asked).name
        asked[name] += 1
        order.append(name)
    assert asked == {"search": 70, "true": 30}
    assert Counter(order[:10]) == {"search": 7, "true": 3}
    assert mixed.turn(Counter({"search": 7, "true": 2})).name == "true"


def test_commands_and_agents_by_protocol_may_take_part_and_a_port_is_no_share() -> None:
    mixed = team("acp:/bin/true --port localhost:80:0.3,/bin/echo two words:0.7")
    assert [(each.researcher.name, each.share) for each in mixed.members] == [("acp:true", 0.3), ("echo", 0.7)]
    assert [each.share for each in team("/bin/true localhost:8080").members] == [1.0]
    assert team("/bin/echo a,b").name == "echo"


def test_the_shares_need_not_add_up_to_one() -> None:
    mixed = team("search:3,/bin/true:1")
    assert [mixed.turn({"search": n}).name for n in range(3)] == ["search", "search", "true"]
    assert mixed.turn({"search": 2, "true": 1}).name == "search"


# -- settings --------------------------------------------------------------------------------------------------------


def lab_with(folder: Path, table: str) -> Lab:
    (folder / "pyproject.toml").write_text(f'[project]\nname = "lab"\n{table}')
    return Lab(folder)


def test_the_labs_table_names_the_researcher_and_its_options_and_a_flag_wins(tmp_path: Path) -> None:
    lab = lab_with(
        tmp_path,
        '[tool.autoresearch]\nresearcher = "llm"\nmodel = "common"\nendpoint = "http://127.0.0.1:1/v1"\n'
        '[tool.autoresearch.llm]\nmodel = "own"\n',
    )
    (member,) = from_settings(lab, None, {"model": None}).members
    assert member.researcher.name == "llm" and member.researcher.options.model == "own"  # type: ignore[attr-defined]
    (member,) = from_settings(lab, None, {"model": "flag", "time_limit": 5.0}).members
    assert member.researcher.options == Options(model="flag", endpoint="http://127.0.0.1:1/v1", time_limit=5.0)  # type: ignore[attr-defined]
    assert from_settings(lab, "search", {}).name == "search"


def test_without_a_table_it_is_search(tmp_path: Path) -> None:
    assert from_settings(lab_with(tmp_path, ""), None, {}).name == "search"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("modle = 'x'", "there is no setting 'modle': known are researcher, model, "),
        ("time-limit = 'long'", "time-limit = 'long' must be a number above 0"),
        ("time-limit = -1", "time-limit = -1 must be a number above 0"),
        ("turns = 1.5", "turns = 1.5 must be a whole number above 0"),
        ("turns = true", "turns = True must be a whole number above 0"),
        ("key-variable = 'a b'", "key-variable = 'a b' must be a variable's name"),
        ("variables = 'X'", "variables = 'X' must be a list of texts"),
        ("files = ['/tmp/key']", "files = ['/tmp/key'] must be a list of paths from your home folder on, like '.netrc'"),
        ("files = ['../key']", "files = ['../key'] must be a list of paths from your home folder on, like '.netrc'"),
        ("claude = {modle = 'x'}", "there is no setting 'claude.modle'"),
        ("researcher = 3", "there is no setting 'researcher'"),
    ],
)
def test_a_setting_that_can_t_be_is_named(table: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(NotReady) as wrong:
        from_settings(lab_with(tmp_path, f"[tool.autoresearch]\n{table}\n"), None, {})
    assert told in str(wrong.value)


def test_a_file_that_is_no_toml_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"pyproject\.toml is not valid TOML"):
        from_settings(lab_with(tmp_path, "[tool\n"), None, {})


# -- what they say ---------------------------------------------------------------------------------------------------


def test_the_four_lines_are_read_however_they_are_decorated() -> None:
    told = said.read(
        "I thought a lot.\n\n**Tried:** SwiGLU\tin the MLP\n- Hypothesis: gates help\n"
        "> expected gain: about 0.004 bpb\nCATEGORY: Architecture.\n"
    )
    assert told == said.Said("SwiGLU in the MLP", "gates help", 0.004, "architecture")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a new idea\nwith words", said.Said("a new idea")),
        ("", said.Said()),
        ("Category: magic\nExpected gain: lots\nidea", said.Said("idea")),
        ("Tried: one\nTried: two", said.Said("two")),
        ("Expected gain: -0.01", said.Said(expected_gain=0.01)),
        ("Expected gain: 1e300", said.Said()),
        ("Expected gain: 99999", said.Said()),
    ],
)
def test_what_is_missing_stays_empty(text: str, expected: said.Said) -> None:
    assert said.read(text) == expected


def test_one_that_says_nothing_is_described_by_what_it_changed() -> None:
    assert said.changes(toy(), toy(LR=0.2)) == "LR 0.1->0.2"
    assert said.changes(toy(), toy() + "x = 1\n") == "1 changed lines"
    assert said.changes(toy(), "x = (").endswith("changed lines")


# -- what errors mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("API Error: 401 authentication_error invalid x-api-key", NotReady),
        ("Not logged in · Please run /login", NotReady),
        ("unexpected status 401 Unauthorized: Missing bearer", NotReady),
        ("Your credit balance is too low to access the API", NotReady),
        ("429 insufficient_quota: You exceeded your current quota", NotReady),
        ("litellm.AuthenticationError: Incorrect API key provided", NotReady),
        ("API key not valid. Please pass a valid API key.", NotReady),
        ("API Error: 529 overloaded_error", Busy),
        ("You've hit your usage limit. Try again in 2 hours", Busy),
        ("RESOURCE_EXHAUSTED: quota for requests per minute", Busy),
        ("litellm.RateLimitError: slow down", Busy),
        ("unexpected status 503 Service Unavailable", Busy),
        ("exit code 2: unknown option --bare", ResearcherFailed),
        ("cannot parse the next token", ResearcherFailed),
        ("API Error: Unable to connect to API (ECONNREFUSED)", Unreachable),
        ("it stopped: max_turns", ResearcherFailed),
    ],
)
def test_a_message_means_end_wait_or_try_again(message: str, kind: type[Exception]) -> None:
    assert type(faults.fault("agent", message)) is kind


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("try again in 2 hours", 7200.0),
        ("retry after 30", 30.0),
        ("Please try again in 850ms", 0.85),
        ("resets in 5 minutes", 300.0),
        ("retryDelay: 17s", 17.0),
        ("no idea", None),
    ],
)
def test_the_wait_that_a_message_asks_for_is_read(message: str, seconds: float | None) -> None:
    assert faults.wait(message) == seconds


def test_control_codes_of_an_error_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in str(faults.fault("agent", "\x1b[31mboom\x07\n" * 500))
    assert len(str(faults.fault("agent", "x" * 10_000))) < 250
