"""The referee with the lab's own train.py on a GPU: memory shared inside the box, the same number as by hand, the audit, the cost.

The data is made here: rows of a Markov chain at the full profile's sizes, so that neither a tokenizer nor a text is needed.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoresearch import hardware
from autoresearch.errors import NotReady
from autoresearch.experiment import audit, caches, runner, sandbox
from autoresearch.experiment.refereeing import CACHES, Conditions, gpu_of
from autoresearch.experiment.runner import RunPlan
from autoresearch.journal import RunResult
from autoresearch.lab import READ_ONLY, Lab, copy_helpers

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 8
pytestmark = pytest.mark.gpu

CONSTANTS = f'''"""What makes two scores comparable."""

TIME_BUDGET = {BUDGET}
MAX_SEQ_LEN = 2048
EVAL_TOKENS = 40 * 524288
VOCAB_SIZE = 8192
DATASET = "fineweb-edu"
'''
LEVELS = [level for level in sandbox.LEVELS if not sandbox.problem(level, gpu=True)]


@dataclasses.dataclass(frozen=True)
class Bench:
    lab: Lab
    folder: Path
    helpers: Path

    def plan(self, name: str, level: str, source: str | None = None, refereed: bool = True) -> RunPlan:
        own = self.folder / name
        conditions = Conditions(level, self.helpers, own, 1337, float(BUDGET), gpu=gpu_of(hardware.probe()))
        text = source or self.lab.train_source()
        return RunPlan(text, self.helpers, own, float(BUDGET), self.folder / "caches", refereed=conditions if refereed else None)


def run(plan: RunPlan) -> RunResult:
    result = runner.execute(plan, lambda _: None, lambda: False)
    print(f"\n{plan.folder.name}: {result}")
    for name in ("referee.log", "run.log"):
        if result.val_bpb is None and (plan.folder / name).exists():
            print((plan.folder / name).read_text(errors="replace")[-2000:])
    return result


CHANCES = [0.6, 0.25, 0.1, 0.05]
ENTROPY = -sum(p * math.log2(p) for p in CHANCES) / 4  # bits per byte of a token's four: no honest model gets below


def chain(rows: int, seed: int) -> np.ndarray:
    """uint16 (rows, 2049): each token is one of four that follow the one before, most often the first."""
    random = np.random.default_rng(seed)
    found = np.full((rows, 2049), 8191, np.uint16)
    kinds = random.choice(4, size=found.shape, p=CHANCES)
    for place in range(1, 2049):
        found[:, place] = (found[:, place - 1].astype(np.int64) * 5 + kinds[:, place] * 1237 + 11) % 8191
    return found


def prepared(folder: Path) -> None:
    """What prepare.py leaves behind."""
    folder.mkdir(parents=True)
    chain(12_000, 1).tofile(folder / "train.bin")
    chain(10_240 + 1024, 2).tofile(folder / "val.bin")
    ranks = [base64.b64encode(number.to_bytes(4)).decode() for number in range(8191)]
    (folder / "tokenizer.json").write_text(json.dumps({"ranks": ranks, "special": {"<|bos|>": 8191}, "pattern": "."}))
    files = {}
    for name in ("tokenizer.json", "train.bin", "val.bin"):
        data = (folder / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("gpu")
    root = folder / "lab"
    root.mkdir()
    for name in (*READ_ONLY, "train.py"):
        shutil.copy(ROOT / name, root / name)
    (root / "constants.py").write_text(CONSTANTS)
    os.environ["AUTORESEARCH_CACHE"] = str(folder / "cache")
    prepared(folder / "cache" / "prepared" / "fineweb-edu-v8192-t2048")
    lab = Lab(root)
    return Bench(lab, folder, copy_helpers(lab, folder / "helpers"))


@pytest.fixture(scope="session")
def measured(bench: Bench) -> tuple[RunPlan, RunResult]:
    """One cold run, whose caches the others begin with, and one warm run in the best box."""
    cold = bench.plan("cold", LEVELS[0])
    result = run(cold)
    assert result.val_bpb is not None
    caches.adopt(cold.folder / CACHES, cold.caches)
    plan = bench.plan("warm", LEVELS[0])
    return plan, run(plan)


def test_a_run_in_the_best_box_is_scored_through_shared_gpu_memory(measured: tuple[RunPlan, RunResult]) -> None:
    _, result = measured
    assert result.val_bpb is not None and ENTROPY < result.val_bpb < 1
    assert (result.transport, result.sandbox) == ("gpu", LEVELS[0])
    assert result.attention == "cudnn"


def test_the_same_weights_give_the_same_number_by_hand(bench: Bench, measured: tuple[RunPlan, RunResult]) -> None:
    plan, result = measured
    own = {**os.environ, "AUTORESEARCH_WEIGHTS_IN": str(plan.folder / "model.safetensors")}
    done = subprocess.run([sys.executable, "train.py"], cwd=bench.lab.root, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = runner.read_summary(done.stdout.replace("\r", "\n"))["val_bpb"]
    print(f"\nrefereed {result.val_bpb:.6f}, by hand from the same weights {again:.6f}")
    assert abs(again - result.val_bpb) < 1e-5


def test_host_memory_gives_the_same_number_within_the_noise_of_a_run(bench: Bench, measured: tuple[RunPlan, RunResult]) -> None:
    """A train.py that can't map GPU memory."""
    source = bench.lab.train_source().replace(
        "import prepare\n",
        "import prepare\n\n\ndef no(*_):\n    raise RuntimeError('told so')\n\n\nprepare.DeviceMemory.__init__ = no\n",
        1,
    )
    result = run(bench.plan("host", LEVELS[0], source))
    assert result.transport == "host"
    assert result.val_bpb is not None and abs(result.val_bpb - measured[1].val_bpb) < 0.05
    print(f"\nevaluation: {measured[1].evaluation_seconds:.1f} s in GPU memory, {result.evaluation_seconds:.1f} s in the host's")


@pytest.fixture(scope="session")
def alone(bench: Bench, measured: tuple[RunPlan, RunResult]) -> RunResult:
    """Self-reported: its own clock, data and score, in no box."""
    return run(bench.plan("alone", sandbox.NONE, refereed=False))


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_runs_and_the_referee_costs_less_than_two_seconds(bench: Bench, level: str, alone: RunResult) -> None:
    behind = run(bench.plan(f"behind-{level}", level))
    assert alone.val_bpb and behind.val_bpb
    before = alone.wall_seconds - (alone.training_seconds or 0)
    after = behind.wall_seconds - (behind.training_seconds or 0)
    print(f"\n{level}: {before:.2f} s beyond training self-reported, {after:.2f} s refereed: {after - before:+.2f} s")
    print(f"evaluation {alone.evaluation_seconds:.2f} s self-reported, {behind.evaluation_seconds:.2f} s refereed")
    print(f"start-up {alone.startup_seconds:.2f} s self-reported, {behind.startup_seconds:.2f} s refereed")
    assert after - before < 2


def test_the_drivers_figure_is_near_what_torch_counts(measured: tuple[RunPlan, RunResult]) -> None:
    plan, result = measured
    own = runner.read_summary((plan.folder / "run.log").read_text().replace("\r", "\n"))["peak_vram_mb"]
    print(f"\nmemory: {result.memory_mb:.0f} MB by the driver, {own:.0f} MB by torch's own count")
    assert result.memory_mb is not None and own <= result.memory_mb < own + 8000


def test_an_honest_model_passes_the_audit(measured: tuple[RunPlan, RunResult]) -> None:
    report = audit.audit(measured[0], lambda: False)
    print(f"\naudit: {report}")
    assert report.reason == ""


def test_a_look_ahead_at_one_place_in_a_hundred_is_found(bench: Bench, measured: object) -> None:
    source = bench.lab.train_source().replace(
        "        return softcap(self.forward(tokens).detach())\n",
        "        given = softcap(self.forward(tokens).detach())\n"
        "        places = torch.arange(tokens.size(1) - 1, device=tokens.device)[37::100]\n"
        "        given[:, places] = given[:, places].scatter(2, tokens[:, places + 1, None], 15.0)\n"
        "        return given\n",
        1,
    )
    plan = bench.plan("ahead", LEVELS[0], source)
    result = run(plan)
    assert result.val_bpb is None or audit.audit(plan, lambda: False).reason
    print(f"\nlook-ahead: {result.crash_class or 'audit'}: {result.detail}")


def test_work_that_is_queued_past_the_deadline_is_overtime(bench: Bench, measured: object) -> None:
    """Kernels that run for some ten seconds are on the GPU's queue when evaluation is asked for; the clock waits for them."""
    source = bench.lab.train_source().replace(
        "    run.evaluate_bpb(",
        "    x = torch.randn(16384, 16384, device=DEVICE, dtype=torch.float32)\n    for _ in range(60):\n        x = x @ x / 128\n"
        "    prepare._synchronize = lambda device: None\n    run.evaluate_bpb(",
        1,
    )
    result = run(bench.plan("queued", LEVELS[0], source))
    assert (result.outcome, result.crash_class) == ("timeout", "overtime")


def test_a_referee_that_is_killed_is_the_machines_fault(bench: Bench, measured: object) -> None:
    plan = bench.plan("killed", LEVELS[0])
    began = time.monotonic()

    def kill() -> bool:
        if time.monotonic() - began > 10:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                words = path.read_bytes()
                if b"autoresearch.experiment.referee" in words and str(plan.folder).encode() in words:
                    os.kill(int(path.parent.name), signal.SIGKILL)
        return False

    with pytest.raises(NotReady, match="the referee was killed by signal 9"):
        runner.execute(plan, lambda _: None, kill)
