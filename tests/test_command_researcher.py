"""Claims about a command as a researcher: what it gets, what is taken from it, and that nothing it does can harm a session."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli, git, toy
from labs import Background, agent, copy_of, dies, journal, rows, setting, state, statuses, tip, wait_for

from autoresearch.errors import Interrupted, WrongCall
from autoresearch.experiment import sandbox
from autoresearch.lab import Lab
from autoresearch.researchers import Context, Options, Proposal, ResearcherFailed, command, make, process


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


@pytest.fixture
def context(lab: Path) -> Context:
    return Context(Lab(lab), toy(), "# Brief\n", [], lab / ".autoresearch" / "scratch" / "lab", sandbox="none")


def propose(context: Context, program: str, seconds: float = 60.0) -> Proposal:
    """What comes of this shell program as a researcher."""
    path = context.lab.root.parent / "researcher"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    return make(str(path), Options(time_limit=seconds)).propose(context)


def refusal(context: Context, program: str, seconds: float = 60.0) -> str:
    with pytest.raises(ResearcherFailed) as told:
        propose(context, program, seconds)
    return str(told.value)


@pytest.mark.skipif(sandbox.best()[0] == sandbox.NONE, reason=f"no sandbox on this machine: {sandbox.best()[1]}")
def test_in_the_sandbox_it_has_its_scratch_folder_and_the_variables_that_the_settings_name(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k1")
    monkeypatch.setenv("OTHER_KEY", "k2")
    secret = context.lab.root / "secret"
    secret.write_text("s3")
    path = context.lab.root.parent / "researcher"
    said = f"tried $MY_KEY$OTHER_KEY $(cat '{secret}' 2>&1 | wc -c)"
    path.write_text(f"#!/bin/sh\nsed -i 's/LR = 0.1/LR = 0.2/' train.py; echo \"{said}\"\n")
    path.chmod(0o755)
    researcher = make(str(path), Options(variables=("MY_KEY",)))
    proposal = researcher.propose(replace(context, sandbox=sandbox.best()[0]))
    words = proposal.description.split()
    assert words[:2] == ["tried", "k1"] and words[2] != "2" and "LR = 0.2" in proposal.source


# -- what it gets and what it gives ----------------------------------------------------------------------------------


def test_it_finds_the_labs_files_and_the_brief_twice(context: Context) -> None:
    (context.lab.root / "train.py").write_text("# in the working tree, not the incumbent's\n")
    (context.lab.root / "results.tsv").write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n")
    seen = context.lab.root.parent
    proposal = propose(context, f"ls | tr '\\n' ' '; cat > '{seen}/stdin'; cp BRIEF.md '{seen}'; cp train.py '{seen}'")
    assert proposal.description == "BRIEF.md constants.py prepare.py program.md pyproject.toml results.tsv train.py"
    assert (seen / "stdin").read_text() == (seen / "BRIEF.md").read_text() == "# Brief\n"
    assert (seen / "train.py").read_text() == toy() == proposal.source


def test_its_train_py_and_the_first_line_of_its_output_are_the_proposal(context: Context) -> None:
    proposal = propose(
        context, f"{setting('LR', 0.2)} >&2; echo; printf ' \\033[1mhigher\\trate \\n'; echo more; touch scratch.txt"
    )
    assert proposal.source == toy(LR=0.2)
    assert proposal.description == "LR 0.2"
    assert propose(context, "printf '\\n \\t\\n\\033[1mhigher\\trate\\n'; echo more").description == "higher rate"


def test_each_call_starts_from_the_incumbent_in_an_empty_folder(context: Context) -> None:
    propose(context, f"{setting('LR', 0.2)}; mkdir -p left/over; chmod 500 left")
    proposal = propose(context, "ls left 2>/dev/null; echo clean")
    assert (proposal.source, proposal.description) == (toy(), "clean")


def test_it_may_be_a_command_with_words_and_quotes_from_the_path_or_by_a_relative_path(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make("echo 'two words'  end").propose(context).description == "two words end"
    (context.lab.root / "my agent").write_text('#!/bin/sh\necho "$0 $1"\n')
    (context.lab.root / "my agent").chmod(0o755)
    monkeypatch.chdir(context.lab.root)
    named = make("'./my agent' --flag")
    assert named.name == "my agent"
    assert named.propose(context).description == f"{context.lab.root}/my agent --flag"


def test_a_link_to_a_program_stays_a_link(context: Context) -> None:
    """A virtual environment's python is one: followed, it would lose its packages."""
    link = context.lab.root.parent / "linked"
    link.symlink_to("/bin/sh")
    assert make(f"{link} -c 'echo $0' ").propose(context).description == str(link)


def test_it_has_the_callers_environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_AGENT_KEY", "abc")
    assert propose(context, "echo $MY_AGENT_KEY").description == "abc"


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("true", "'researcher' printed nothing: the first line of its output must say what it tried"),
        ("printf '\\n \\n\\t\\n'", "'researcher' printed nothing: the first line of its output must say what it tried"),
        ("echo no key >&2; exit 7", "'researcher' ended with exit code 7: no key"),
        ("exit 7", "'researcher' ended with exit code 7: it printed nothing"),
        ("kill -9 $$", "'researcher' ended with exit code -9: it printed nothing"),
        ("echo x >> prepare.py; echo ok", "'researcher' changed prepare.py: only train.py may change"),
        ("rm BRIEF.md program.md; echo ok", "'researcher' changed BRIEF.md, program.md: only train.py may change"),
        ("ln -sf train.py constants.py; echo ok", "'researcher' changed constants.py: only train.py may change"),
        ("rm train.py; echo ok", "'researcher' left no plain train.py behind: change it in place"),
        ("rm train.py; ln -s /etc/passwd train.py; echo ok", "'researcher' left no plain train.py behind: change it in place"),
        ("rm train.py; mkfifo train.py; echo ok", "'researcher' left no plain train.py behind: change it in place"),
        ("rm train.py; mkdir train.py; echo ok", "'researcher' left no plain train.py behind: change it in place"),
        ("head -c 2000000 /dev/zero > train.py; echo ok", "'researcher' left a train.py of over 1024 KB"),
        ("printf '\\377' > train.py; echo ok", "'researcher' left a train.py that is not UTF-8 text"),
        ("rm -r ../lab; echo ok", "'researcher' changed"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_its_reason(context: Context, program: str, told: str) -> None:
    assert refusal(context, program).startswith(told)


def test_one_that_hangs_is_ended_with_all_that_it_started(context: Context) -> None:
    pid = context.lab.root.parent / "pid"
    told = refusal(context, f"sleep 600 & echo $! > '{pid}'; sleep 600", seconds=0.3)
    assert told == "'researcher' gave no answer in 0.3 s (--researcher-timeout)"
    dies(pid)


def test_a_person_who_stops_at_once_does_not_wait_for_it(context: Context) -> None:
    started = context.lab.root.parent / "started"
    stopped = replace(context, should_stop=started.exists)
    with pytest.raises(Interrupted):
        propose(stopped, f"touch '{started}'; sleep 600")


def test_what_it_leaves_running_ends_with_it(context: Context) -> None:
    pid = context.lab.root.parent / "pid"
    propose(context, f"sleep 600 & echo $! > '{pid}'; echo ok")
    dies(pid)


def test_50_mb_of_output_are_cut_to_a_log_of_4(context: Context) -> None:
    proposal = propose(context, "echo idea; head -c 50000000 /dev/zero")
    assert proposal.description == "idea"
    assert (context.scratch.parent / "researcher.log").stat().st_size == command.OUTPUT_LIMIT


def test_output_without_end_is_ended(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FLOOD", 2**20)
    assert refusal(context, "yes").startswith("'researcher' printed over 1 MB")


def test_bytes_that_are_no_text_are_no_obstacle(context: Context) -> None:
    assert propose(context, "printf 'caf\\351 \\000\\033]0;title\\007 idea\\n'").description == "caf� idea"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("gpt", "--researcher gpt: not one of search"),
        ("", "--researcher : not one of search"),
        (" ", "--researcher is empty"),
        ("./no-such-program", "there is no program './no-such-program' that can be run: check its path and 'chmod +x' it"),
        ("no-such-program --flag", "there is no program 'no-such-program'"),
        ("/etc/passwd", "there is no program '/etc/passwd'"),
        ("~nobody-of-that-name/agent x", "there is no program '~nobody-of-that-name/agent'"),
        ("./agent 'unbalanced", "No closing quotation"),
    ],
)
def test_one_that_can_t_exist_is_a_wrong_call(spec: str, told: str) -> None:
    with pytest.raises(WrongCall) as wrong:
        make(spec)
    assert told in str(wrong.value)


# -- in the loop -----------------------------------------------------------------------------------------------------


def test_its_brief_and_its_log_lie_with_the_experiment(lab: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, f"{setting('LR', 0.2)}; echo because"))
    assert done.returncode == 0, done.stderr
    folder = lab / ".autoresearch" / "runs" / "2"
    assert (folder / "researcher.log").read_text() == "LR 0.2\nbecause\n"
    assert (folder / "brief.md").read_text().startswith("# Brief\n")
    assert (state(lab, 2)["researcher"], state(lab, 2)["description"]) == ("agent", "LR 0.2")
    assert state(lab, 2)["proposal_seconds"] > 0


def test_a_refusal_goes_back_to_it_once_with_the_reason(lab: Path, tmp_path: Path, cli: Cli) -> None:
    second = f"cp BRIEF.md '{tmp_path}'; {setting('LR', 0.2)}"
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, "echo nothing new", second))
    assert done.returncode == 0, done.stderr
    assert "proposal refused: no change: train.py does the same as the incumbent's" in done.stderr
    brief = (tmp_path / "BRIEF.md").read_text()
    assert "## Your last proposal was not run\nno change: train.py does the same as the incumbent's\n" in brief
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.2"]


def test_what_was_tried_before_is_refused_however_it_is_written(lab: Path, tmp_path: Path, cli: Cli) -> None:
    worse = setting("LR", 0.05)
    disguised = f"{setting('LR', '5e-2')} ; echo '# new' >> train.py"
    done = cli("loop", "--max", "2", "--researcher", agent(tmp_path, worse, disguised, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert "this very code was tried before (comments and spacing don't count)" in done.stderr
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.05", "LR 0.2"]


def test_a_second_syntax_error_is_a_crash_and_so_is_the_same_one_again(lab: Path, tmp_path: Path, cli: Cli) -> None:
    """Two rows of the same broken file, in the same second, are two rows."""
    broken = "echo 'x = (' > train.py; echo broken"
    done = cli("loop", "--max", "2", "--researcher", agent(tmp_path, broken))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("proposal refused: train.py is not valid Python: '(' was never closed, line 1") == 2
    assert [row[1:] for row in rows(lab)[1:]] == [("crash", "—", "crash", "broken")] * 2
    assert [each["result"]["crash_class"] for each in journal(lab)[1:]] == ["syntax"] * 2
    assert len({row[0] for row in rows(lab)}) == 3


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("dd if=/dev/urandom bs=1k count=40 2>/dev/null | base64 -w 800 | sed 's/^/#/' >> train.py; echo big", "bytes compressed"),
        (f"{sys.executable} -c \"print('DATA =', repr('x' * 1100))\" >> train.py; echo data", "a literal with 1100 entries or"),
    ],
)
def test_a_train_py_with_room_for_data_is_refused(lab: Path, tmp_path: Path, cli: Cli, program: str, told: str) -> None:
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, program, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    assert [row[4] for row in rows(lab)] == ["baseline", "LR 0.2"]


def test_three_proposals_in_a_row_without_an_experiment_end_the_session(lab: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("loop", "--max", "5", "--researcher", agent(tmp_path, "sleep 600"), "--researcher-timeout", "0.2")
    assert done.returncode == 3
    said = done.stderr.splitlines()
    assert said.count("proposal refused: 'agent' gave no answer in 0.2 s (--researcher-timeout)") == 6
    assert said[-1] == "autoresearch: 'agent' made no usable proposal 3 times in a row, see above"
    assert statuses(lab) == ["keep"]
    assert git(lab, "status", "--porcelain") == ""


def test_a_useless_proposal_now_and_then_does_not(lab: Path, tmp_path: Path, cli: Cli) -> None:
    moves = ["exit 1"] * 4 + [setting("LR", 0.2)] + ["exit 1"] * 4 + [setting("LR", 0.25)]
    done = cli("loop", "--max", "2", "--researcher", agent(tmp_path, *moves))
    assert done.returncode == 0, done.stderr
    assert statuses(lab) == ["keep"] * 3


def test_ctrl_c_twice_while_it_thinks_stops_at_once(lab: Path, tmp_path: Path, environment: Mapping[str, str]) -> None:
    pid = tmp_path / "pid"
    researcher = agent(tmp_path, f"echo $$ > '{pid}.part'; mv '{pid}.part' '{pid}'; sleep 600")
    loop = Background(lab, "loop", "--researcher", researcher, env=environment, log=tmp_path / "log")
    wait_for(pid.exists, "it was never asked")
    loop.send(signal.SIGINT)
    loop.until("stopping after this experiment")
    loop.send(signal.SIGINT)
    assert loop.end() == 130
    dies(pid)
    assert statuses(lab) == ["keep"]
    assert not (lab / ".autoresearch" / "runs" / "2").exists()


def test_a_program_that_the_system_can_t_start_is_told_in_one_line(lab: Path, tmp_path: Path, cli: Cli) -> None:
    program = tmp_path / "no-shebang"
    program.write_bytes(os.urandom(64))
    program.chmod(0o755)
    done = cli("loop", "--max", "1", "--researcher", str(program))
    assert done.returncode == 3
    assert f"autoresearch: {program}: Exec format error" in done.stderr
    assert "Traceback" not in done.stderr
    assert tip(lab).startswith(rows(lab)[0][0])
