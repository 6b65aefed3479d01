"""How long the "GPU" waits for a researcher that thinks for 40% of a run, with working ahead and without.

    uv run python benchmarks/ahead.py

The loop is the real one; train.py is a stand-in that takes 5 s and scores a bowl over LR. The researcher is a script that thinks
for 2 s and then proposes another LR, every sixth time a better one. Idle is the time in which no train.py runs, neither for a score
nor for the audit of a keep, as a share of the whole; the session's baseline is left out, the start of Python and the first
proposal are not.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "src"))

from conftest import TOY_TRAIN, make_lab  # noqa: E402

RUN, THOUGHT, EXPERIMENTS = 5.0, 2.0, 10
AUTORESEARCH = [sys.executable, "-P", "-m", "autoresearch"]
RESEARCHER = f"""#!/bin/sh
sleep {THOUGHT}
n=$(($(cat CALLS 2>/dev/null || echo 0) + 1))
echo $n > CALLS
case $((n % 6)) in 0) new=0.$((28 + n / 6)) ;; *) new=0.0$((n + 10)) ;; esac
sed -i "s/^LR = [^ ]*/LR = $new/" train.py
echo "LR $new"
"""


def session(folder: Path, ahead: bool) -> tuple[float, float, int]:
    """Idle share, experiments an hour, and how many proposals were carried over to a new incumbent."""
    slow = TOY_TRAIN.replace("    print()\n    if MODE", f"    print()\n    time.sleep({RUN})\n    if MODE", 1)
    assert slow != TOY_TRAIN
    lab = make_lab(folder / "lab", slow)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    setup = [*AUTORESEARCH, "setup", "--tag", "ahead", "--time-budget", "10"]
    subprocess.run(setup, cwd=lab, env=environment, check=True, stderr=subprocess.DEVNULL)
    program = folder / "researcher"
    program.write_text(RESEARCHER.replace("CALLS", str(folder / "calls")))
    program.chmod(0o755)
    loop = [*AUTORESEARCH, "loop", "--sandbox", "none", "--researcher", str(program), *([] if ahead else ["--no-ahead"])]
    subprocess.run([*loop, "--max", "1"], cwd=lab, env=environment, check=True, capture_output=True)
    began = time.monotonic()
    out = subprocess.run(
        [*loop, "--max", str(EXPERIMENTS)],
        cwd=lab,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    whole = time.monotonic() - began
    lines = (lab / ".autoresearch" / "experiments.jsonl").read_text().splitlines()
    done = [json.loads(line) for line in lines][-EXPERIMENTS:]
    busy = sum(each["result"]["wall_seconds"] + (each["audit"] or {}).get("seconds", 0.0) for each in done)
    carried = sum(bool(each["details"].get("carried_over")) for each in done)
    again = out.stderr.count("asking again")
    print(
        f"ahead {ahead}: {whole:.1f} s, {busy:.1f} s of it runs and audits, {carried} carried over, {again} asked again",
        file=sys.stderr,
    )
    return 1 - busy / whole, EXPERIMENTS / whole * 3600, carried


def main() -> None:
    print("| working ahead | idle share | experiments an hour |\n|---|---|---|")
    for ahead in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            idle, hourly, _ = session(Path(folder), ahead)
        print(f"| {'yes' if ahead else 'no'} | {idle:.1%} | {hourly:.0f} |")


if __name__ == "__main__":
    main()
