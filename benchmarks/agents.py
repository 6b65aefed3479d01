"""The real coding agents through three experiments of the real loop, each against a scripted model.

    uv run python benchmarks/agents.py                    all of them
    uv run python benchmarks/agents.py claude opencode    some
    uv run python benchmarks/agents.py --acp opencode     by the Agent Client Protocol

Each is installed from its registry first (about 1 GB in all, kept in ~/.cache/autoresearch-agents). Then everything runs in a
network namespace with nothing but loopback, where the machine allows one: this repository's own train.py on the CPU profile with
5 s a run, and one change of MATRIX_LR a proposal. Prints a row for each agent; exits with 1 if one of them did not get through.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real_agents import AGENTS, NotInstalled, RealAgent, install, session  # noqa: E402

EXPERIMENTS = 3
VALUES = [0.03, 0.05, 0.025, 0.06, 0.033, 0.045, 0.028, 0.055]  # more than experiments: some are asked for again
BUDGET = "5"  # seconds of training a run
AUTORESEARCH = [sys.executable, "-P", "-m", "autoresearch"]


def make_lab(folder: Path, environment: dict[str, str]) -> Path:
    """A clone of this repository, with what was not committed, set up for this machine."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for name in ("train.py", "prepare.py"):
        shutil.copy(ROOT / name, folder / name)
    person = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run(["git", *person, "commit", "--quiet", "--allow-empty", "-am", "lab"], cwd=folder, check=True)
    subprocess.run([*AUTORESEARCH, "setup", "--tag", "agents", "--time-budget", BUDGET], cwd=folder, env=environment, check=True)
    return folder


def drive(agent: RealAgent, lab: Path, environment: dict[str, str], acp: bool) -> list[dict[str, object]]:
    """Three experiments by this agent in a session of its own. Returns the loop's own record of them."""
    tag = f"{agent.name}-acp" if acp else agent.name
    values = [round(value * (1 + list(AGENTS).index(agent.name) / 100), 5) for value in VALUES]  # others' are tried before
    options = ("--max", str(EXPERIMENTS), "--tag", tag, "--researcher-timeout", "120")
    done = session(agent, lab, values, environment, *options, literal="MATRIX_LR", acp=acp)
    print(done.stderr, file=sys.stderr)
    lines = (lab / ".autoresearch" / "experiments.jsonl").read_text().splitlines()
    return [done for done in map(json.loads, lines) if done["session"] == tag and not done["baseline"]]


def report(agent: RealAgent, done: list[dict[str, object]], seconds: float, acp: bool) -> str:
    thought = " ".join(f"{each['proposal_seconds']:.1f}" for each in done)
    tokens = " ".join(str(each["input_tokens"]) for each in done)
    named = f"acp:{agent.acp}" if acp else agent.name
    said = sum(each["category"] == "optimizer" and bool(each["hypothesis"]) for each in done)
    return f"| {named} | {agent.package} | {len(done)} of {EXPERIMENTS} | {said} | {thought} | {tokens} | {seconds:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("agents", nargs="*", metavar="AGENT", help=", ".join(AGENTS))
    parser.add_argument("--acp", action="store_true", help="by the Agent Client Protocol, for the agents that speak it")
    arguments = parser.parse_args()
    wanted = [AGENTS[name] for name in arguments.agents or AGENTS if not arguments.acp or AGENTS[name].acp]
    ready = []
    for agent in wanted:
        try:
            install(agent)
            ready.append(agent)
        except NotInstalled as reason:
            print(f"not run: {reason}", file=sys.stderr)
    failed = len(ready) < len(wanted)
    with tempfile.TemporaryDirectory(prefix="autoresearch-agents-") as folder:
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
        lab = make_lab(Path(folder) / "lab", environment)
        rows = []
        for agent in ready:
            began = time.monotonic()
            done = drive(agent, lab, environment, arguments.acp)
            failed = failed or len(done) < EXPERIMENTS
            rows.append(report(agent, done, time.monotonic() - began, arguments.acp))
    print("| researcher | package | experiments | said why | seconds of thought | input tokens | seconds in all |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
