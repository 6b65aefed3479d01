"""Real sessions on this machine's profile by each keep rule, and what verify leaves of their gain.

    uv run python benchmarks/keep_rules.py [--pairs 2] [--experiments 20] [--time-budget 15] [--verify-runs 4] [--keep FOLDER]

Each session is a fresh clone of this repository with `search` as its researcher. Those of a pair have the same tag, which seeds
the search, so they are offered the same first ideas; which rule goes first alternates. Prints one row a session: what its table
claims, and what its best gains over its start on fresh seeds, also on the vault's rows. With --keep the clones stay.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from sessions import call, new_clone

RULES = ("strict", "measured")
HEADER = "| rule | tag | runs | kept | claimed gain | verified gain, 95% interval | on the vault | seconds |\n" + "|---" * 8 + "|"


def session(folder: Path, tag: str, rule: str, experiments: int, budget: int) -> tuple[Path, float]:
    (folder / rule).mkdir(parents=True, exist_ok=True)
    clone = new_clone(folder / rule, tag, budget)
    began = time.monotonic()
    call(clone, "run-loop.sh", "--max", str(experiments), "--keep", rule)
    return clone, time.monotonic() - began


def journal(clone: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (clone / ".autoresearch" / "experiments.jsonl").read_text().splitlines()]


def runs(clone: Path) -> int:
    """Of all experiments, the incumbents' later ones too."""
    later = clone / ".autoresearch" / "repeats.jsonl"
    return sum(len(done["runs"]) for done in journal(clone)) + (len(later.read_text().splitlines()) if later.exists() else 0)


def verify(clone: Path, rounds: int) -> dict[str, Any] | None:
    """The finding on the session's best; None where nothing was kept."""
    command = [str(clone / ".venv" / "bin" / "python"), "-P", "-m", "autoresearch", "verify", "--json", "--runs", str(rounds)]
    done = subprocess.run(command, cwd=clone, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return None
    finding: dict[str, Any] = json.loads(done.stdout)[0]
    return finding


def shown(finding: dict[str, Any], name: str) -> str:
    gain = finding.get(name)
    return f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})" if gain else finding.get("failure") or "none"


def row(rule: str, clone: Path, seconds: float, rounds: int) -> str:
    kept = sum(done["status"] == "keep" and not done["baseline"] for done in journal(clone))
    finding = verify(clone, rounds) or {}
    claimed = f"{finding['claimed']:+.4f}" if finding else "none"
    gains = (shown(finding, name) for name in ("gain", "vault"))
    cells = (rule, clone.name, runs(clone), kept, claimed, *gains, f"{seconds:.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--time-budget", type=int, default=15)
    parser.add_argument("--verify-runs", type=int, default=4)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as temporary:
        folder = arguments.keep or Path(temporary)
        print(HEADER, flush=True)
        for pair in range(1, arguments.pairs + 1):
            for rule in RULES if pair % 2 else RULES[::-1]:
                tag = f"pair-{pair}"
                try:
                    clone, seconds = session(folder, tag, rule, arguments.experiments, arguments.time_budget)
                    print(row(rule, clone, seconds, arguments.verify_runs), flush=True)
                except subprocess.CalledProcessError as failure:  # the others are still worth their time
                    print(f"| {rule} | {tag} | ended with exit code {failure.returncode}, see above |" + " |" * 5, flush=True)


if __name__ == "__main__":
    main()
