"""Every GPU profile of the hardware table on one large GPU: memory capped at each tier's size, a short run each, a row each.

    python benchmarks/training/tiers.py --data FOLDER [--budget 75] [--at-once] [TIER ...]

TIER is 80, 40, 24, 12 or 6: GB of the card that is played. torch's allocator gets no more than that, and the 6 GB card has no fast
bfloat16. Prints the profile, the number format, rows x accumulation of a step, the peak beside the cap, and the mean loss of the
last two fifths of the run; exits with 1 if a run failed, took more than 90% of its cap, or did not learn in its last fifth.
"""

import argparse
import dataclasses
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path

from run import ROOT, dataset, lay_out, print_header, start, summary_of

from autoresearch import hardware, profiles
from autoresearch.literals import override

CARDS_MB = {80: 81_559, 40: 40_536, 24: 24_564, 12: 12_282, 6: 6_144}  # as their drivers report them
WITHOUT_BF16 = {6}
MOST_OF_CAP = 0.9
COLUMNS = "card, profile, numbers, rows x accumulation, peak GB, of the cap, tokens/s, loss in the 4th fifth, in the last, val_bpb"


def source_for(card: int, train: dict[str, int | float | str | bool]) -> str:
    source = override((ROOT / "train.py").read_text(), [f"{name}={value!r}" for name, value in train.items()])
    share = f"min(1.0, {CARDS_MB[card] * 2**20} / torch.cuda.get_device_properties(0).total_memory)"
    cap = f"import torch\n\ntorch.cuda.set_per_process_memory_fraction({share})\n"
    edits = [("import torch\n", cap)]
    if card in WITHOUT_BF16:
        edits.append(("has_bf16 = torch.cuda.get_device_capability()[0] >= 8", "has_bf16 = False"))
    for before, after in edits:
        if before not in source:
            sys.exit(f"tiers.py: train.py has no {before!r}: mend this benchmark")
        source = source.replace(before, after, 1)
    return source


def fifths(log: str) -> list[float]:
    """Mean of the losses shown in each fifth of the run."""
    shown = [(float(percent), float(loss)) for percent, loss in re.findall(r"\((\d[\d.]*)%\) \| loss: ([\d.]+)", log)]
    return [statistics.mean([loss for percent, loss in shown if 20 * i < percent <= 20 * i + 20]) for i in range(5)]


def measure(card: int, profile: str, folder: Path) -> bool:
    """Run what lies in `folder`; prints its row. True if the tier holds."""
    code, log, _ = start(folder, seed=42, gpu="")
    if code:
        print(f"| {card} | {profile} | failed: {(log.strip().splitlines() or ['no output'])[-1][:300]} |", flush=True)
        return False
    found = summary_of(log)
    device = re.search(r"device: cuda (\w+) .*?(\d+) rows x (\d+)", log)
    numbers, rows, accumulation = device.groups() if device else ("?", "?", "?")
    share = float(found["peak_vram_mb"]) / CARDS_MB[card]
    *_, before, last = fifths(log)
    speed = float(found["total_tokens_M"]) * 1e6 / float(found["training_seconds"])
    cells = [card, profile, numbers, f"{rows} x {accumulation}", f"{float(found['peak_vram_mb']) / 1024:.1f}", f"{share:.0%}"]
    cells += [f"{speed:,.0f}", f"{before:.4f}", f"{last:.4f}", found["val_bpb"]]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return share <= MOST_OF_CAP and last < before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="*", type=int, metavar="TIER")
    parser.add_argument("--data", required=True, help="folder of text, or fineweb-edu, climbmix, stdlib")
    parser.add_argument("--budget", type=float, default=75, help="seconds of training")
    parser.add_argument("--at-once", action="store_true", help="all of them side by side: their speed then says nothing")
    parser.add_argument("--work", type=Path, default=Path("/tmp/autoresearch-tiers"))
    arguments = parser.parse_args()
    if unknown := set(arguments.cards) - set(CARDS_MB):
        sys.exit(f"tiers.py: no tier {unknown}: take of {', '.join(map(str, CARDS_MB))}")
    machine = dataclasses.replace(hardware.probe(), device="cuda")
    planned: list[tuple[int, str, Path]] = []
    for card in arguments.cards or CARDS_MB:
        profile = profiles.profile_for(dataclasses.replace(machine, vram_mb=CARDS_MB[card]))
        settings = profile.constants | {"DATASET": dataset(arguments.data), "TIME_BUDGET": arguments.budget}
        constants = override((ROOT / "constants.py").read_text(), [f"{name}={value!r}" for name, value in settings.items()])
        folder = arguments.work / str(card)
        lay_out(folder, source_for(card, profile.train), constants)
        if code := subprocess.run([sys.executable, "prepare.py"], cwd=folder).returncode:
            return code
        planned.append((card, profile.name, folder))
    print_header(COLUMNS)
    held: list[bool] = []
    runs = [threading.Thread(target=lambda plan=plan: held.append(measure(*plan))) for plan in planned]
    for run in runs:
        run.start()
        if not arguments.at_once:
            run.join()
    for run in runs:
        run.join()
    return 0 if all(held) and len(held) == len(planned) else 1


if __name__ == "__main__":
    sys.exit(main())
