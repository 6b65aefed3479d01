"""What the referee costs, and how small a leak it finds.

    uv run python benchmarks/referee.py [--runs 5] [--time-budget 10] [--sandbox LEVEL] [--power-only]

Cost: a copy of this lab is set up in a temporary folder, and its train.py is run in turn by itself (self-reported: its own clock,
data and score) and behind the referee in the sandbox; printed are the medians of the seconds beyond the training itself, their
difference, the cost of an audit, and of the sandbox's start. Power: by simulation, with nothing run: the decoys' false alarms and
how often a look-ahead at all places, one in ten and one in a thousand is found, and the smallest leak that an audit finds with
a probability of 0.99, on the CPU profile and the full one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from autoresearch.errors import NotReady
from autoresearch.experiment import audit, caches, cuts, probes, runner, sandbox
from autoresearch.experiment.refereeing import CACHES, Conditions, gpu_of
from autoresearch.hardware import probe
from autoresearch.lab import Lab, copy_helpers

ROOT = Path(__file__).resolve().parent.parent
# Validation rows and tokens a row, bytes a token (of stdlib and of English by their own tokenizers), and the scatter in nats of a
# loss that is computed again: none in float32 on a CPU, 0.03 in bf16 on a GPU.
PROFILES = {"CPU": (512, 256, 2.9, 0.001), "full": (10_240, 2048, 4.3, 0.03)}


def tell_power() -> None:
    random = np.random.default_rng(1)
    alarms = sum(honest(random) for _ in range(20_000))
    print(
        f"decoys: an honest run fails with a probability of at most {probes.FALSE_ALARM:g}; {alarms} of 20,000 simulated ones did"
    )
    print("| profile | decoys | found: ahead at all places | one in 10 | one in 100 | one in 1000 |\n|---|---|---|---|---|---|")
    for name, (rows, length, _, _) in PROFILES.items():
        count = len(probes.make(random, np.zeros((rows, length + 1), np.uint16), np.full(2048, 1 / 2048)).decoy_at)
        found = [probes.power(count, share, random) for share in (1.0, 0.1, 0.01, 0.001)]
        print(f"| {name} | {count} | " + " | ".join(f"{100 * each:.0f}%" for each in found) + " |")
    print("\naudit: the smallest leak, in bpb, that is found with a probability of 0.99\n")
    gains = (0.01, 0.1, 0.5, 4)
    shown = " | ".join(f"{gain:g} nats" for gain in gains)
    print(f"| profile | cuts anywhere | {shown} at a share of the places | whichever hides best |\n|---|---|---|---|---|---|---|")
    for name, (rows, _, size, noise) in PROFILES.items():
        anywhere = audit.PROCESSES * (max(rows, min(cuts.PASSES * rows, cuts.LEAST)) // 2)
        bpb = 1 / (np.log(2) * size)
        leaks = [cuts.smallest_leak(anywhere, noise, [gain]) * bpb for gain in gains]
        worst = cuts.smallest_leak(anywhere, noise) * bpb
        print(f"| {name} | {anywhere} | " + " | ".join(f"{each:.4f}" for each in [*leaks, worst]) + " |", flush=True)


def honest(random: np.random.Generator) -> bool:
    """Whether the decoys take a model that can't see ahead for one that can: p / q log-normal with mean 1, heavy-tailed."""
    return probes.wealth(np.exp(random.normal(-2.0, 2.0, 1500))) >= 1 / probes.FALSE_ALARM


def setup(folder: Path, budget: int) -> Lab:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    command = [sys.executable, "-P", "-m", "autoresearch", "setup", "--time-budget", str(budget), "--tag", "cost"]
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    return Lab(folder)


def beyond(plan: runner.RunPlan) -> float:
    """Seconds of one run beyond its training."""
    result = runner.execute(plan, lambda _: None, lambda: False)
    if result.val_bpb is None:
        raise SystemExit(f"the run failed: {result.crash_class}: {result.detail}")
    if plan.refereed:
        caches.adopt(plan.folder / CACHES, plan.caches)
    return result.wall_seconds - (result.training_seconds or 0.0)


def tell_cost(lab: Lab, folder: Path, runs: int, level: str) -> None:
    budget = float(lab.constants()["TIME_BUDGET"])
    helpers = copy_helpers(lab, folder / "helpers")

    def plan(name: str, refereed: bool) -> runner.RunPlan:
        own = folder / name
        conditions = Conditions(level, helpers, own, runner.DEFAULT_SEED, budget, gpu=gpu_of(probe()))
        return runner.RunPlan(
            lab.train_source(), helpers, own, budget, folder / f"caches-{name}", refereed=conditions if refereed else None
        )

    alone, behind = plan("alone", False), plan("behind", True)
    beyond(alone), beyond(behind)  # caches of the disk and of compilers are warm from here on
    sides: dict[str, list[float]] = {"self-reported": [], "refereed": []}
    for _ in range(runs):
        sides["self-reported"].append(beyond(alone))
        sides["refereed"].append(beyond(behind))
    print(f"\nseconds of a run beyond its {budget:.0f} s of training, {runs} each in turn, sandbox {level}:")
    for name, seconds in sides.items():
        print(f"  {name}: median {statistics.median(seconds):.2f}, from {min(seconds):.2f} to {max(seconds):.2f}")
    difference = [after - before for before, after in zip(*sides.values(), strict=True)]
    print(f"  the referee and the sandbox: {statistics.median(difference):+.2f} s a run", flush=True)
    report = audit.audit(behind, lambda: False)
    print(f"audit: {report.seconds:.1f} s ({report.reason or 'passed'}); {report.findings}")


def tell_start(folder: Path) -> None:
    def took(call: Callable[[], object]) -> float:
        began = time.monotonic()
        call()
        return time.monotonic() - began

    box = sandbox.Box(workdir=folder, write=(folder,), environment={"PATH": os.environ["PATH"]})
    for level in sandbox.LEVELS:
        if sandbox.problem(level):
            print(f"start in {level}: {sandbox.problem(level)}")
            continue
        line = sandbox.command(box, ["true"], level)
        seconds = [took(lambda line=line: subprocess.run(line, cwd=folder, check=True)) for _ in range(20)]
        print(f"start of `true` in {level}: median {1000 * statistics.median(seconds):.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--time-budget", type=int, default=10)
    parser.add_argument("--sandbox", choices=sandbox.LEVELS)
    parser.add_argument("--power-only", action="store_true")
    arguments = parser.parse_args()
    tell_power()
    if arguments.power_only:
        return
    level = sandbox.choose(arguments.sandbox, True, lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as temporary:
        folder = Path(temporary)
        tell_start(folder)
        tell_cost(setup(folder / "lab", arguments.time_budget), folder, arguments.runs, level)


if __name__ == "__main__":
    try:
        main()
    except NotReady as problem:
        sys.exit(f"benchmarks/referee.py: {problem}")
