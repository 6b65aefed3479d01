"""How large the brief is, and how long it takes, after 1, 100 and 10,000 experiments.

    uv run python benchmarks/brief.py

The history is made up: long descriptions, long hypotheses, the settings of the real train.py, which `search` (a step, a point of
CMA-ES) and an agent (one or two settings) move in turn, one keep in six, one crash in ten. Two times are measured: the text from a
history in memory, as the loop makes it before each proposal, and with the journal read first, as the command does it. Exits with 1
if the first is not under 0.2 s.
"""

import json
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from autoresearch import brief, facts  # noqa: E402
from autoresearch.journal import CRASHED, SCORED, SETTLED, Experiment, RunResult  # noqa: E402
from autoresearch.lab import Lab  # noqa: E402
from autoresearch.literals import values  # noqa: E402
from autoresearch.researchers import CATEGORIES  # noqa: E402
from autoresearch.researchers.space import Dimension, space  # noqa: E402

SIZES, REPEATS = (1, 100, 10_000), 5
WORDS = ("a wider window", "for the layers", "in the middle", "and a slower decay", "of the second moment", "behind it")
FILES = ("train.py", "program.md", "prepare.py", "constants.py", "pyproject.toml")
TRAIN = (ROOT / "train.py").read_text()
DIMENSIONS = space(TRAIN, values(TRAIN))
CONTINUOUS = [name for name, dim in DIMENSIONS.items() if not dim.discrete]
MOVES = [(name, direction) for name, dim in DIMENSIONS.items() if dim.discrete for direction in (-1, 1)]
STUDY = "0123456789ab"


def proposed(n: int, now: dict[str, Any], draw: random.Random) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """By whom, the literals and the details of what is tried on top of these literals."""
    if n == 1:
        return "", now, {}
    if n % 3 == 0:
        moves = [(name, way, to) for name, way in MOVES if (to := DIMENSIONS[name].neighbour(now[name], way)) is not None]
        name, direction, value = draw.choice(moves)
        return "search", {**now, name: value}, {"step": [name, direction]}
    names, details = (
        (CONTINUOUS, {"study": STUDY, "trial": n, "told": 1}) if n % 3 == 1 else (draw.sample(CONTINUOUS, k=n % 2 + 1), {})
    )
    return "search" if details else "claude", {**now, **{name: near(DIMENSIONS[name], now[name], draw) for name in names}}, details


def near(dim: Dimension, value: Any, draw: random.Random) -> Any:
    low, high = dim.limits()
    return dim.decode(min(high, max(low, dim.encode(value) * math.exp(draw.gauss(0, 0.1)))))


def experiment(n: int, best: float, now: dict[str, Any], draw: random.Random) -> Experiment:
    researcher, literals, details = proposed(n, now, draw)
    crash, gain = n > 1 and draw.random() < 0.1, draw.gauss(-0.002, 0.002)
    kept = not crash and gain > 0
    result = RunResult(SCORED, best - gain, 38420.0, 300.0, 4.0, 8.0, 312.4, 315.0, 953, 499.6, 50.3, 45.1)
    return Experiment(
        n,
        "night",
        SETTLED,
        " ".join(draw.choices(WORDS, k=50))[:300],
        researcher,
        "f",
        f"{n:016x}",
        "p",
        "2026-11-25T00:00:00+00:00",
        commit=f"{n:040x}",
        baseline=n == 1,
        result=RunResult(CRASHED, crash_class=draw.choice(["oom", "shape", "timeout"])) if crash else result,
        status="crash" if crash else "keep" if kept or n == 1 else "discard",
        incumbent_bpb=best,
        literals=literals,
        details=details,
        hypothesis=" ".join(draw.choices(WORDS, k=50))[:300],
        expected_gain=0.003,
        category=draw.choice(CATEGORIES),
    )


def history(size: int) -> list[Experiment]:
    draw, best, now, made = random.Random(1), 1.0, values(TRAIN), list[Experiment]()
    for n in range(1, size + 1):
        made.append(experiment(n, best, now, draw))
        if made[-1].status == "keep":
            best, now = made[-1].val_bpb or best, made[-1].literals or now
    return made


def lab_with(made: list[Experiment], folder: Path) -> Lab:
    for name in FILES:
        (folder / name).write_bytes((ROOT / name).read_bytes())
    journal = folder / ".autoresearch"
    journal.mkdir()
    (journal / "experiments.jsonl").write_text("".join(json.dumps(asdict(done)) + "\n" for done in made))
    return Lab(folder)


def main() -> int:
    print("| experiments | bytes | seconds, history in memory | seconds, journal read |\n|---|---|---|---|")
    slowest = 0.0
    for size in SIZES:
        made = history(size)
        with tempfile.TemporaryDirectory() as folder:
            lab = lab_with(made, Path(folder))
            told = facts.of_lab(lab)
            incumbent = [done for done in made if done.status == "keep"][-1]
            told = brief.Facts(**{**vars(told), "history": made, "incumbent": incumbent})
            times, whole = [], []
            for _ in range(REPEATS):
                began = time.perf_counter()
                text = brief.write(told)
                times.append(time.perf_counter() - began)
                began = time.perf_counter()
                facts.Journal(lab).settled()
                brief.write(told)
                whole.append(time.perf_counter() - began)
        slowest = max(slowest, statistics.median(times))
        print(f"| {size:,} | {len(text.encode()):,} | {statistics.median(times):.4f} | {statistics.median(whole):.4f} |")
    return 0 if slowest < 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
