"""`run --referee`: what is measured counts, and what train.py prints does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli

from autoresearch.errors import NotReady
from autoresearch.experiment import sandbox
from autoresearch.experiment.refereeing import Conditions, Refereeing
from autoresearch.journal import SCORED, RunResult

needs_box = pytest.mark.skipif(sandbox.best()[0] == sandbox.NONE, reason=f"no sandbox here: {sandbox.best()[1]}")

UNIGRAM = """
import torch
import prepare

run = prepare.open_run()
model = torch.nn.Embedding(prepare.VOCAB_SIZE, prepare.VOCAB_SIZE)
torch.nn.init.zeros_(model.weight)
rows = run.start(model)
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


def commit(lab: Path, source: str) -> None:
    (lab / "train.py").write_text(source)


@needs_box
def test_an_honest_run_is_scored_by_the_referee_and_leaves_its_weights(ready_lab: Path, cli: Cli) -> None:
    commit(ready_lab, UNIGRAM)
    done = cli("run", "--referee")
    assert done.returncode == 0, done.stderr
    assert "measured by the referee" in done.stderr
    score = float(done.stdout.split()[1])
    assert 2.0 < score < 8.0
    log = (ready_lab / "run.log").read_text()
    assert f"val_bpb:          {score:.6f}" in log and "score:            refereed" in log
    assert list(ready_lab.glob(".autoresearch/scratch/*/model.safetensors"))


@needs_box
def test_a_score_that_is_only_printed_is_no_score(ready_lab: Path, cli: Cli) -> None:
    commit(ready_lab, FORGED)
    believed = cli("run")
    assert (believed.returncode, believed.stdout.split()[1]) == (0, "0.123456")  # without a referee it works
    done = cli("run", "--referee")
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended before 'hello'" in done.stderr


@needs_box
def test_a_train_py_reads_and_writes_nothing_outside_its_box(ready_lab: Path, cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret text")
    outside = [str(tmp_path / "written"), str(ready_lab / "results.tsv"), str(ready_lab / ".autoresearch" / "written")]
    commit(ready_lab, WRITES_OUTSIDE.format(paths=outside, secret=str(secret)))
    done = cli("run", "--referee")
    assert done.returncode == 1
    assert not any(Path(path).exists() for path in outside)
    assert "the secret text" not in (ready_lab / "run.log").read_text()


def test_a_referee_that_dies_is_the_machines_fault_and_no_crash(tmp_path: Path) -> None:
    conditions = Conditions(sandbox.NONE, tmp_path, tmp_path, 1, 1.0)
    with Refereeing(conditions) as referee:
        referee.process.kill()
        with pytest.raises(NotReady, match="referee"):
            referee.result(RunResult(SCORED, val_bpb=0.1))
