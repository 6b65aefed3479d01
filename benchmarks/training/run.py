"""Train the shipped train.py, or variants of it, on a folder of text, and print a row of NOTES.md for each.

    python benchmarks/training/run.py --data FOLDER [--budget 300] [--seed 42] [--gpus 0,1] [VARIANT ...]

FOLDER holds text as `prepare.py` takes it (jsonl, txt or parquet; .xz and .zst too; `*val*` is held out). It is prepared first,
which is done once. A VARIANT is NAME, or NAME:LITERAL=VALUE,LITERAL=2x, or NAME@FILE:LITERAL=VALUE with another train.py; without
any, train.py as it is. `--constants MAX_SEQ_LEN=1024` changes constants.py for all of them. With several GPUs as many variants run
side by side. Needs the packages of the run path alone; logs lie in --work.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from autoresearch.literals import override  # noqa: E402 - of the standard library alone

COLUMNS = "variant, measured val_bpb, steps, M tokens, MFU %, peak GB, start-up s, evaluation s, seconds beyond, attention, date"


@dataclass(frozen=True)
class Variant:
    name: str
    source: str  # of train.py


def variant(text: str) -> Variant:
    head, _, settings = text.partition(":")
    name, _, file = head.partition("@")
    source = Path(file or ROOT / "train.py").read_text()
    return Variant(name, override(source, [each for each in settings.split(",") if each]))


def dataset(named: str) -> str:
    """DATASET of constants.py for what --data names."""
    return named if named in ("fineweb-edu", "climbmix", "stdlib") else str(Path(named).resolve())


def print_header(columns: str) -> None:
    print(f"| {columns.replace(',', ' |')} |\n|{'---|' * (columns.count(',') + 1)}", flush=True)


def lay_out(folder: Path, source: str, constants: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(source)
    (folder / "constants.py").write_text(constants)
    shutil.copy(ROOT / "prepare.py", folder)


def start(folder: Path, seed: int, gpu: str) -> tuple[int, str, float]:
    """Run its train.py; returns the exit code, what it printed, and the seconds that all took."""
    env = os.environ | {"AUTORESEARCH_SEED": str(seed), "PYTHONUNBUFFERED": "1"}
    env |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # setup compiles the packages: without that each start would, for several seconds
    began = time.monotonic()
    with (folder / "run.log").open("wb") as log:
        code = subprocess.run([sys.executable, "-u", "train.py"], cwd=folder, env=env, stdout=log, stderr=log).returncode
    text = (folder / "run.log").read_text(errors="replace").replace("\r", "\n")
    return code, text, time.monotonic() - began


def summary_of(log: str) -> dict[str, str]:
    """The summary that train.py prints."""
    return dict(re.findall(r"^(\w+): +(\S+)$", log, re.MULTILINE))


def train(folder: Path, seed: int, gpu: str) -> str:
    """Run it; returns its row."""
    code, text, wall = start(folder, seed, gpu)
    if code:
        last = ([line for line in text.splitlines() if line.strip()] or ["no output"])[-1]
        return f"{folder.name} | failed with exit code {code}: {last[:300]}"
    found = summary_of(text)
    attention = re.search(r"attention: ([^|]*?) \|", text)
    cells = [
        folder.name,
        found["val_bpb"],
        found["num_steps"],
        found["total_tokens_M"],
        found["mfu_percent"],
        f"{float(found['peak_vram_mb']) / 1024:.1f}",
        found["startup_seconds"],
        found["evaluation_seconds"],
        f"{wall - float(found['training_seconds']):.1f}",
        attention[1] if attention else "-",
        date.today().isoformat(),
    ]
    return " | ".join(cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["shipped"], metavar="VARIANT")
    parser.add_argument("--data", required=True, help="folder of text, or fineweb-edu, climbmix, stdlib")
    parser.add_argument("--budget", type=float, default=300, help="seconds of training")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--gpus", default="", help="their numbers, with commas between")
    parser.add_argument("--constants", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work", type=Path, default=Path("/tmp/autoresearch-training"))
    arguments = parser.parse_args()
    try:
        wanted = [variant(text) for text in arguments.variants]
        settings = [f"DATASET={dataset(arguments.data)!r}", f"TIME_BUDGET={arguments.budget:g}", *arguments.constants]
        constants = override((ROOT / "constants.py").read_text(), settings)
    except (ValueError, OSError) as error:
        sys.exit(f"run.py: {error}")

    lay_out(arguments.work / "prepare", wanted[0].source, constants)
    if code := subprocess.run([sys.executable, "prepare.py"], cwd=arguments.work / "prepare").returncode:
        return code
    waiting: queue.SimpleQueue[Variant] = queue.SimpleQueue()
    for each in wanted:
        lay_out(arguments.work / each.name, each.source, constants)
        waiting.put(each)
    print_header(COLUMNS)

    def work_on(gpu: str) -> None:
        while True:
            try:
                each = waiting.get_nowait()
            except queue.Empty:
                return
            print(f"| {train(arguments.work / each.name, arguments.seed, gpu)} |", flush=True)

    workers = [threading.Thread(target=work_on, args=(gpu,)) for gpu in arguments.gpus.split(",")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
