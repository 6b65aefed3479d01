"""Real sessions by `search` on this machine's profile, and the spread of the baseline beside them.

    uv run python benchmarks/sessions.py [--sessions 3] [--experiments 20] [--time-budget 15] [--baselines 5] [--keep FOLDER]

Each session is a fresh clone of this repository with the loop run in it by its script. Prints one row a session (kept, discarded,
crashed, first and best val_bpb), how far repeated baselines scatter, each session's best again under seeds that did not select
it, and what the time went to. With --keep the clones stay.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_SEED = 1337  # the loop's


def call(clone: Path, script: str, *words: str) -> None:
    subprocess.run(["bash", f"scripts/{script}", *words], cwd=clone, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def new_clone(folder: Path, name: str, budget: int) -> Path:
    clone = folder / name
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    call(clone, "setup.sh", "--time-budget", str(budget), "--tag", name)  # the tag seeds the search
    return clone


def session(clone: Path, experiments: int, early_stop: str) -> list[dict]:
    """Run the loop; returns what the journal has of it, and prints its row."""
    began = time.monotonic()
    call(clone, "run-loop.sh", "--max", str(experiments), "--early-stop", early_stop)
    wall = time.monotonic() - began
    done = [json.loads(line) for line in (clone / ".autoresearch" / "experiments.jsonl").read_text().splitlines()]
    tried = [each for each in done if not each["baseline"]]
    count = {status: sum(each["status"] == status for each in tried) for status in ("keep", "discard", "crash")}
    kept = [statistics.mean(run["val_bpb"] for run in each["runs"]) for each in done if each["status"] == "keep"]
    cells = [clone.name, count["keep"], count["discard"], count["crash"], f"{kept[0]:.4f}", f"{min(kept):.4f}", f"{wall:.0f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    for each in done:
        each["session_wall"] = wall
    return done


def setup_commit(clone: Path) -> str:
    """The session's start: its train.py is the baseline's."""
    command = ["git", "rev-list", "--max-count=1", "--grep=^setup:", f"autoresearch/{clone.name}"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()


def scores(clone: Path, commit: str, seeds: Iterable[int]) -> list[float]:
    """val_bpb of a commit's train.py, run once with each seed."""
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=clone, check=True)
    found = []
    for seed in seeds:
        command = [str(clone / ".venv" / "bin" / "python"), "train.py"]
        env = os.environ | {"AUTORESEARCH_SEED": str(seed)}
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=True)
        found.append(next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("val_bpb:")))
    return found


def tell_baselines(clones: list[Path], runs: int) -> None:
    """How far the unchanged train.py scatters, and what each session's best is worth where it was not selected."""
    start, others = setup_commit(clones[0]), range(1, runs + 1)
    same = scores(clones[0], start, [DEFAULT_SEED] * runs)
    other = scores(clones[0], start, others)
    for what, found in (("the loop's seed", same), ("other seeds", other)):
        shown = ", ".join(f"{score:.4f}" for score in found)
        print(f"\n{len(found)} baseline runs with {what}: {shown}; spread {max(found) - min(found):.4f}", flush=True)
    for clone in clones:
        best = scores(clone, f"autoresearch/{clone.name}", others)
        gains = [before - after for before, after in zip(other, best, strict=True)]
        shown = ", ".join(f"{gain:+.4f}" for gain in gains)
        print(f"{clone.name}: its best against the baseline, seed by seed: {shown}; mean {statistics.mean(gains):+.4f}", flush=True)


def tell_time(sessions: list[list[dict]]) -> None:
    """Where the wall time of the sessions went."""
    done = [each for one in sessions for each in one if each["result"] and each["result"]["val_bpb"]]
    wall = sum(one[0]["session_wall"] for one in sessions)
    runs = [run for each in done for run in each["runs"]]
    training = sum(run["training_seconds"] for run in runs)
    startup = sum(run["startup_seconds"] for run in runs)
    evaluation = sum(run["evaluation_seconds"] for run in runs)
    around = sum(run["wall_seconds"] for run in runs) - training - startup - evaluation
    proposing = sum(each["proposal_seconds"] for each in done)
    harness = [each["overhead_seconds"] for each in done]
    rest = wall - training - startup - evaluation - around - proposing - sum(harness)
    parts = {
        "training": training,
        "start-up of train.py (imports, model, warm-up)": startup,
        "evaluation": evaluation,
        "interpreter start and end, weights on disk": around,
        "proposing (Optuna)": proposing,
        "harness (git, files, parsing)": sum(harness),
        "the rest (environment, start and end of the loop, crashes)": rest,
    }
    print(f"\n{len(runs)} scored runs, {wall:.0f} s of sessions; not training: {100 * (1 - training / wall):.1f}%")
    for name, seconds in parts.items():
        print(f"  {100 * seconds / wall:5.1f}%  {seconds / len(runs):6.2f} s a run  {name}")
    print(f"harness's own part: median {statistics.median(harness):.3f} s, largest {max(harness):.3f} s an experiment")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--time-budget", type=int, default=15)
    parser.add_argument("--baselines", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--early-stop", choices=("on", "off"), default="on", help="off: whole curves, for benchmarks/early.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| session | kept | discarded | crashed | first val_bpb | best val_bpb | seconds |\n|---|---|---|---|---|---|---|")
        clones = [new_clone(folder, f"session-{number}", arguments.time_budget) for number in range(1, arguments.sessions + 1)]
        sessions = [session(clone, arguments.experiments, arguments.early_stop) for clone in clones]
        tell_baselines(clones, arguments.baselines)
        tell_time(sessions)


if __name__ == "__main__":
    main()
