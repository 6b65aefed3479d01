"""A run in a box, behind the referee: start both, and turn the verdict into a result.

The candidate gets its folder, the interpreter and one end of a socket. Its data comes through the socket, and its score from the
referee's verdict; of what it prints only the counts of its own work (steps, tokens, parameters) are taken, as its own claims.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from autoresearch.errors import NotReady
from autoresearch.experiment import sandbox
from autoresearch.experiment.referee import Spec
from autoresearch.journal import CRASHED, SCORED, TIMED_OUT, RunResult
from autoresearch.results import clean

# Seconds before `start` that are free. A cold compile took 46 to 83 s on an H200; nothing of the data is known before `start`.
STARTUP_ALLOWANCE = 180.0
VERDICT_LIMIT = 60.0  # seconds that the referee has, once the candidate is gone
SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Conditions:
    """What the referee and the box need to know of a run."""

    level: str  # of the sandbox
    helpers: Path
    folder: Path  # verdict.json, referee.log and model.safetensors are made here
    seed: int
    budget: float
    hidden: tuple[Path, ...] = ()  # files with held-out text in places that the candidate can read


class Refereeing:
    """Around one candidate: `with Refereeing(conditions) as referee`, start `referee.command(...)`, then ask for the `result`."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.verdict_path = conditions.folder / "verdict.json"
        self.log = conditions.folder / "referee.log"
        ours, self.end = socket.socketpair()
        spec = Spec(
            socket=ours.fileno(),
            helpers=str(conditions.helpers),
            verdict=str(self.verdict_path),
            weights=str(conditions.folder / "model.safetensors"),
            seed=conditions.seed,
            budget=conditions.budget,
            startup_allowance=STARTUP_ALLOWANCE,
        )
        self.verdict_path.unlink(missing_ok=True)
        with ours, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-B", "-m", "autoresearch.experiment.referee", json.dumps(asdict(spec))],
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ours.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> "Refereeing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def environment(self, environment: Mapping[str, str], work: Path) -> dict[str, str]:
        """What the candidate sees: no home, no cache, and where the referee is."""
        kept = {name: value for name, value in environment.items() if name not in ("XDG_CACHE_HOME", "USER")}
        return kept | {"HOME": str(work), "TMPDIR": str(work), "AUTORESEARCH_REFEREE": str(self.end.fileno())}

    def command(self, words: list[str], environment: Mapping[str, str], work: Path, caches: Path) -> list[str]:
        caches.mkdir(parents=True, exist_ok=True)
        box = sandbox.Box(workdir=work, write=(work, caches), hidden=self.conditions.hidden, environment=environment)
        return sandbox.command(box, words, self.conditions.level)

    def result(self, seen: RunResult) -> RunResult:
        """The verdict as a result; `seen` is what the candidate's log and exit code look like. Raises NotReady if there is none."""
        self.end.close()
        try:
            self.process.wait(VERDICT_LIMIT)
        except subprocess.TimeoutExpired:
            raise NotReady(f"the referee gave no verdict in {VERDICT_LIMIT:.0f} s: see {self.log}") from None
        try:
            verdict = json.loads(self.verdict_path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
            raise NotReady(f"the referee ended ({clean(last)[:200]}): see {self.log}") from None
        if seen.outcome == TIMED_OUT:
            return seen
        if verdict["outcome"] == "scored":
            measured = {name: verdict[name] for name in ("val_bpb", "training_seconds", "startup_seconds", "evaluation_seconds")}
            return replace(seen, outcome=SCORED, crash_class="", detail="", **measured)
        if verdict["outcome"] == "overtime":
            return RunResult(TIMED_OUT, wall_seconds=seen.wall_seconds, crash_class="overtime", detail=verdict["reason"])
        if seen.outcome == CRASHED and verdict["reason"].startswith("ended before"):
            return seen  # it crashed by itself: its own log says how
        return RunResult(CRASHED, wall_seconds=seen.wall_seconds, crash_class="foul", detail=clean(verdict["reason"])[:200])
