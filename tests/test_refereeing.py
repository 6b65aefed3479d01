"""Runs behind the referee and in a box: what is measured counts, and what train.py prints does not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import EVAL_ROWS, Cli, bpb, let_it_last, toy
from labs import Background, Held, agent, journal, rows, setting, statuses, wait_for

from autoresearch.errors import NotReady
from autoresearch.experiment import runner, sandbox
from autoresearch.experiment.audit import PROCESSES
from autoresearch.experiment.cuts import PASSES
from autoresearch.experiment.meter import Meter
from autoresearch.experiment.refereeing import Conditions, free_startup, hidden_files

LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(bool(sandbox.problem(level)), reason=sandbox.problem(level) or "-"))
    for level in (sandbox.BUBBLEWRAP, sandbox.LANDLOCK)
]
BEST = sandbox.best()[0]
needs_box = pytest.mark.skipif(BEST == sandbox.NONE, reason=f"no sandbox here: {sandbox.best()[1]}")

UNIGRAM = """
import torch
import prepare

run = prepare.open_run()
model = torch.nn.Embedding(prepare.VOCAB_SIZE, prepare.VOCAB_SIZE)
torch.nn.init.zeros_(model.weight)
rows = run.start(model)
if len(rows):
    counts = torch.bincount(torch.from_numpy(rows[:500].astype("int64")).flatten(), minlength=prepare.VOCAB_SIZE) + 1.0
    with torch.no_grad():
        model.weight += (counts / counts.sum()).log()
run.evaluate_bpb(model, model, 4)
run.summary(num_steps=1, total_tokens=1000, num_params=1000, depth=1)
"""

FORGED = "print('---')\nprint('val_bpb:          0.123456')\nprint('num_steps:        1')\n"

WRITES_OUTSIDE = """
import pathlib
for path in {paths!r}:
    try:
        pathlib.Path(path).write_text("mine")
    except OSError:
        pass
print(pathlib.Path({secret!r}).read_text())
"""


def put(lab: Path, source: str) -> None:
    (lab / "train.py").write_text(source)


@pytest.mark.parametrize("level", LEVELS)
def test_an_honest_run_is_scored_by_the_referee_and_leaves_its_weights(ready_lab: Path, cli: Cli, level: str) -> None:
    put(ready_lab, UNIGRAM)
    done = cli("run", "--sandbox", level)
    assert done.returncode == 0, done.stderr
    assert f"measured by the referee, sandbox {level}" in done.stderr
    score = float(done.stdout.split()[1])
    assert 2.0 < score < 8.0
    log = (ready_lab / "run.log").read_text()
    assert f"val_bpb:          {score:.6f}" in log and "score:            refereed" in log
    assert list(ready_lab.glob(".autoresearch/scratch/*/model.safetensors"))


@needs_box
def test_a_score_that_is_only_printed_is_no_score(ready_lab: Path, cli: Cli) -> None:
    put(ready_lab, FORGED)
    done = cli("run", "--sandbox", BEST)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "ended before 'hello'" in done.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_a_train_py_reads_and_writes_nothing_outside_its_box(ready_lab: Path, cli: Cli, tmp_path: Path, level: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret text")
    outside = [str(tmp_path / "written"), str(ready_lab / "results.tsv"), str(ready_lab / ".autoresearch" / "written")]
    put(ready_lab, WRITES_OUTSIDE.format(paths=outside, secret=str(secret)))
    done = cli("run", "--sandbox", level)
    assert done.returncode == 1
    assert not any(Path(path).exists() for path in outside)
    assert "the secret text" not in (ready_lab / "run.log").read_text()


@pytest.mark.parametrize("level", LEVELS)
def test_a_loop_runs_in_the_box_and_the_journal_has_the_level_the_seed_and_the_memory(
    ready_lab: Path, cli: Cli, level: str
) -> None:
    let_it_last(ready_lab)
    done = cli("loop", "--max", "1", "--sandbox", level)
    assert done.returncode == 0, done.stderr
    result = journal(ready_lab)[0]["result"]
    assert (result["sandbox"], result["seed"], result["refereed"]) == (level, runner.DEFAULT_SEED, True)
    assert rows(ready_lab)[0][1] == bpb()
    assert 10 < result["memory_mb"] < 1000


@pytest.mark.parametrize("level", LEVELS)
def test_no_file_with_held_out_text_can_be_read_in_the_box(ready_lab: Path, cli: Cli, level: str) -> None:
    hidden = [str(path) for path in hidden_files(ready_lab)]
    assert any(path.endswith("optparse.py") for path in hidden)
    put(
        ready_lab,
        f"import os\nfor path in {hidden!r}:\n    try:\n        print(len(open(path, 'rb').read()), path)\n"
        "    except OSError:\n        print(0, path)\nimport json, shutil, socket, torch\nprint('imports work')\n",
    )
    cli("run", "--sandbox", level)
    log = (ready_lab / "run.log").read_text()
    assert "imports work" in log
    assert [line for line in log.splitlines() if line.split()[0].isdigit() and not line.startswith("0 ")] == []


def test_without_a_sandbox_a_run_is_refused_unless_it_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "best", lambda gpu: (sandbox.NONE, "no such thing here"))
    said: list[str] = []
    with pytest.raises(NotReady, match=r"no sandbox on this machine: no such thing here\. Or go without, by name: --sandbox none"):
        sandbox.choose(None, False, said.append)
    assert sandbox.choose(None, True, said.append) == sandbox.NONE, "search changes literals alone"
    assert sandbox.choose("none", False, said.append) == sandbox.NONE
    assert [line.startswith("sandbox: NONE") for line in said] == [True, True]


def test_a_level_that_cannot_be_reached_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(NotReady, match="--sandbox bubblewrap: bubblewrap is not installed: install bubblewrap"):
        sandbox.choose("bubblewrap", False, lambda _: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="about root")
def test_landlock_with_a_gpu_is_no_box_for_root() -> None:
    assert "start as another user" in sandbox.problem("landlock", gpu=True)
    with pytest.raises(NotReady, match="leaves /proc writable"):
        sandbox.choose("landlock", False, lambda _: None, gpu=True)


# -- faults of the referee itself ------------------------------------------------------------------------------------


def referee_of(lab: Path) -> int:
    """The process of the referee of the run that is going on in this lab."""
    found: list[int] = []

    def seen() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if b"autoresearch.experiment.referee" in words and str(lab).encode() in words:
                found.append(int(path.parent.name))
        return bool(found)

    wait_for(seen, "there is no referee")
    return found[0]


def test_a_referee_that_is_killed_is_the_machines_fault_and_the_run_is_done_again(
    ready_lab: Path, tmp_path: Path, environment: Mapping[str, str], cli: Cli
) -> None:
    held = Held(tmp_path, LR=0.2)
    researcher = agent(tmp_path, held.move)
    loop = Background(ready_lab, "loop", "--max", "1", "--researcher", researcher, env=environment, log=tmp_path / "log")
    held.wait()
    os.kill(referee_of(ready_lab), signal.SIGKILL)
    assert loop.end() == 3
    assert "the referee was killed by signal 9, so this run was not measured" in loop.said()
    assert statuses(ready_lab) == ["keep"], "the baseline alone: neither a score nor a crash"

    held.let_go()
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.05)))
    assert done.returncode == 0, done.stderr
    assert "#2 was left at 'running': going on from there" in done.stderr
    assert statuses(ready_lab)[:2] == ["keep", "keep"]


def test_a_referee_that_is_out_of_memory_is_the_machines_fault(ready_lab: Path, cli: Cli) -> None:
    helpers = ready_lab / "prepare.py"
    helpers.write_text(helpers.read_text().replace("def token_bytes() ->", "def token_bytes(_x=0) ->", 1))
    source = helpers.read_text()
    rigged = source.replace("    sizes = np.zeros(VOCAB_SIZE, np.int32)\n", "    raise MemoryError('none left')\n", 1)
    assert rigged != source
    helpers.write_text(rigged)
    done = cli("run")
    assert done.returncode == 3
    assert "the referee ended (MemoryError: none left)" in done.stderr


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_what_the_processes_of_a_run_hold_and_not_what_it_claims(ready_lab: Path, cli: Cli) -> None:
    put(ready_lab, toy().replace("def main() -> None:\n", "def main() -> None:\n    kept = bytearray(200 * 2**20)\n"))
    done = cli("run")
    assert done.returncode == 0, done.stderr
    assert 200 < float(done.stdout.split()[3]) < 500


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="this system has no such mark")
def test_where_memory_runs_out_the_run_is_ended_and_not_its_referee(ready_lab: Path, cli: Cli) -> None:
    put(
        ready_lab,
        "import time\nwhile open('/proc/self/oom_score_adj').read() != '1000\\n':\n    time.sleep(0.01)\nprint('marked')\n",
    )
    done = cli("run", "--allowance", "30")
    assert done.returncode == 1
    assert (ready_lab / "run.log").read_text() == "marked\n"


def test_a_process_that_has_gone_is_no_fault() -> None:
    meter = Meter(2**22 + 1)
    meter.look()
    assert meter.peak_mb is None


# -- seeds -----------------------------------------------------------------------------------------------------------


def test_the_first_run_has_the_sessions_seed_and_each_repeat_one_of_its_own() -> None:
    seeds = [runner.seed_of(1337, repeat) for repeat in range(50)]
    assert seeds[0] == 1337
    assert len(set(seeds)) == 50
    assert seeds == [runner.seed_of(1337, repeat) for repeat in range(50)]
    assert runner.seed_of(1338, 1) != seeds[1]


# -- the audit -------------------------------------------------------------------------------------------------------

# Its score is a little better than its weights: what it adds is no part of them.
BEYOND_ITS_WEIGHTS = toy(LR=0.2).replace('HEADER + struct.pack("<f", steep)', 'HEADER + struct.pack("<f", 0.3)')
# It scores honestly where it was trained, and gives other answers when only rows that are cut come.
HIDDEN_STATE = (
    toy(LR=0.2)
    .replace("    if weights:\n", "    if weights and False:\n")
    .replace("referee.evaluate(", "steep = 0.3 if weights else steep\n    referee.evaluate(")
)


def test_a_keep_is_audited_and_the_journal_has_what_was_found(ready_lab: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2)))
    assert done.returncode == 0, done.stderr
    assert "#2 would be kept: audit" in done.stderr
    baseline, kept = journal(ready_lab)
    assert baseline["audit"] is None, "its owner's own train.py"
    assert kept["audit"]["reason"] == "" and kept["audit"]["findings"]["cuts"] == PROCESSES * PASSES * EVAL_ROWS
    assert abs(kept["audit"]["findings"]["mean"]) < 1e-6

    again = cli("audit", rows(ready_lab)[1][0])
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["passed"] is True
    assert cli("audit", "abcdef0").returncode == 64


@pytest.mark.parametrize(
    ("source", "reason"), [(BEYOND_ITS_WEIGHTS, "without what follows"), (HIDDEN_STATE, "did not give back the weights")]
)
def test_a_model_that_is_more_than_its_weights_is_a_crash_with_that_reason(
    ready_lab: Path, tmp_path: Path, cli: Cli, source: str, reason: str
) -> None:
    file = tmp_path / "other.py"
    file.write_text(source)
    done = cli("loop", "--max", "1", "--researcher", agent(tmp_path, f"cp '{file}' train.py; echo more"))
    assert done.returncode == 0, done.stderr
    assert statuses(ready_lab) == ["keep", "crash"]
    result = journal(ready_lab)[1]["result"]
    assert result["crash_class"] == "audit" and reason in result["detail"]
    assert result["val_bpb"] is None
    assert not list((ready_lab / ".autoresearch/runs/2").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("is_open", "incumbents", "is_warm", "free"),
    [
        (False, 3.0, False, 180.0),
        (False, 3.0, True, 90.0),
        (True, None, False, 180.0),  # the baseline
        (True, 3.0, False, 20.0),
        (True, 12.0, True, 48.0),
        (True, 100.0, True, 90.0),
    ],
)
def test_where_the_text_lies_open_no_more_start_up_is_free_than_a_few_times_the_incumbents(
    tmp_path: Path, is_open: bool, incumbents: float | None, is_warm: bool, free: float
) -> None:
    given = Conditions("none", tmp_path, tmp_path, 1, 30.0, incumbent_startup=incumbents, has_open_text=is_open)
    assert free_startup(given, is_warm) == free
