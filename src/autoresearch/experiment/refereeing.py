"""A run in a box, behind the referee: start both, and turn the verdict into a result.

The candidate gets its folder, the interpreter and one end of a socket. Its data comes through the socket, and its score from the
referee's verdict; of what it prints only the counts of its own work (steps, tokens, parameters) are taken, as its own claims.
"""

import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from autoresearch.errors import NotReady
from autoresearch.experiment import caches as compile_caches
from autoresearch.experiment import sandbox
from autoresearch.hardware import Hardware
from autoresearch.journal import CRASHED, SCORED, TIMED_OUT, RunResult
from autoresearch.lab import held_out_files
from autoresearch.results import clean

# Seconds before `start` that are free: a cold compile took 46 to 83 s on an H200, a warm one 19 to 22, slower machines take several
# times as long. Nothing of the data is known before `start`.
COLD_ALLOWANCE, WARM_ALLOWANCE = 180.0, 90.0
# Where the training text lies open on the machine (`stdlib`) start-up could be spent on it: then no more than a few times what the
# incumbent took is free, and what is beyond comes off the budget.
OPEN_LEAST, OPEN_FACTOR = 20.0, 4.0
VERDICT_LIMIT = 60.0  # seconds that the referee has, once the candidate is gone
# Evaluation has no backward pass: an honest one is done long before. Where the incumbent's is known, a few times that.
EVALUATION_SHARE, EVALUATION_LEAST, EVALUATION_FACTOR = 3.0, 60.0, 5.0
WEIGHTS, WEIGHTS_OUT = "model.safetensors", "AUTORESEARCH_WEIGHTS_OUT"  # the variable marks all processes of a run too
LOSSES, CACHES = "losses.npy", "caches"  # of the scored rows, and the caches as they were at `start`: in the run's folder
SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Gpu:
    index: int  # as the driver counts
    uuid: str  # names it wherever it can be seen, whatever the numbers are there


def gpu_of(machine: Hardware) -> Gpu | None:
    return Gpu(machine.gpu_index, machine.gpu_uuid) if machine.device == "cuda" else None


@dataclass(frozen=True)
class Conditions:
    """What the referee and the box need to know of a run."""

    level: str  # of the sandbox
    helpers: Path
    folder: Path  # verdict.json, referee.log, losses.npy, caches/ and model.safetensors are made here
    seed: int
    budget: float
    hidden: tuple[Path, ...] = ()  # files with held-out text in places that the candidate can read
    gpu: Gpu | None = None  # that it runs on
    incumbent_evaluation: float | None = None  # seconds that the incumbent's evaluation took
    incumbent_startup: float | None = None  # and its start-up
    has_open_text: bool = False  # the training text can be read before the clock starts
    audit: Path | None = None  # cuts to reproduce with `weights` instead of a run of its own
    weights: Path | None = None


def hidden_files(helpers: Path) -> tuple[Path, ...]:
    """All files in a box's reach that hold the validation text of the session in `helpers`: their compiled forms, which have the
    strings, and those of other Pythons on this machine too."""
    named = held_out_files(helpers)
    libraries = [Path(sysconfig.get_paths()["stdlib"]).resolve()]
    libraries += [found for place in ("/usr/lib", "/usr/local/lib") for found in Path(place).glob("python3*") if found.is_dir()]
    inside = [path.relative_to(libraries[0]) for path in named if path.is_relative_to(libraries[0])]
    sources = {*named, *(library / path for library in libraries for path in inside)}
    compiled = {found for path in sources for found in path.parent.glob(f"__pycache__/{path.stem}.*pyc")}
    return tuple(sorted(path for path in sources | compiled if path.is_file()))


def start(spec: Mapping[str, object], log: IO[bytes], mark: str) -> "subprocess.Popen[bytes]":
    """The referee's process. `mark` is in its environment, for whoever finds it left over."""
    descriptor = spec["socket"]
    assert isinstance(descriptor, int)
    return subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", "autoresearch.experiment.referee", json.dumps(spec)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), WEIGHTS_OUT: mark},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[descriptor],
        start_new_session=True,
    )


def free_startup(given: Conditions, is_warm: bool) -> float:
    """Seconds before `start` that are not charged to the budget."""
    most = WARM_ALLOWANCE if is_warm else COLD_ALLOWANCE
    if given.has_open_text and given.incumbent_startup is not None:
        return min(most, max(OPEN_LEAST, OPEN_FACTOR * given.incumbent_startup))
    return most


class Refereeing:
    """Around one candidate: `with Refereeing(conditions, caches) as referee`, start `referee.command(...)`, then ask for the
    `result`."""

    def __init__(self, conditions: Conditions, caches: Path) -> None:
        self.conditions, self.caches = conditions, caches
        folder = conditions.folder
        self.verdict_path, self.log = folder / "verdict.json", folder / "referee.log"
        self.shown = folder / "shown"
        for stale in (self.verdict_path, self.shown, folder / LOSSES):
            stale.unlink(missing_ok=True)
        ours, self.end = socket.socketpair()
        with ours, self.log.open("wb") as log:
            self.process = start(self._spec(ours.fileno()), log, f"{folder / WEIGHTS}")

    def _spec(self, descriptor: int) -> dict[str, object]:
        """The referee's `Spec`, whose module is not imported here: it would bring numpy along."""
        given = self.conditions
        most = max(EVALUATION_LEAST, EVALUATION_SHARE * given.budget)
        if given.incumbent_evaluation is not None:
            most = min(most, max(EVALUATION_LEAST, EVALUATION_FACTOR * given.incumbent_evaluation))
        return {
            "socket": descriptor,
            "helpers": str(given.helpers),
            "verdict": str(self.verdict_path),
            "weights": str(given.weights or given.folder / WEIGHTS),
            "seed": given.seed,
            "budget": given.budget,
            "startup_allowance": free_startup(given, compile_caches.is_warm(self.caches)),
            "evaluation_limit": most,
            "shown": str(self.shown),
            "losses": str(given.folder / LOSSES),
            "caches": str(self.caches / compile_caches.LIVE),
            "snapshot": "" if given.audit else str(given.folder / CACHES),
            "gpu": given.gpu is not None,
            "audit": str(given.audit or ""),
        }

    def __enter__(self) -> "Refereeing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def has_shown_text(self) -> bool:
        """From now on what the candidate prints may be validation text."""
        return self.shown.exists()

    @property
    def is_gone(self) -> bool:
        """It ended and left no verdict: nothing will come of the run."""
        return self.process.poll() is not None and not self.verdict_path.exists()

    def environment(self, environment: Mapping[str, str], work: Path) -> dict[str, str]:
        """What the candidate sees: no home, no cache, and where the referee is."""
        kept = {name: value for name, value in environment.items() if name not in ("XDG_CACHE_HOME", "USER")}
        if self.conditions.gpu and self.conditions.gpu.uuid:
            kept["CUDA_VISIBLE_DEVICES"] = self.conditions.gpu.uuid  # the box has this one alone, under another number perhaps
        return kept | {"HOME": str(work), "TMPDIR": str(work), "AUTORESEARCH_REFEREE": str(self.end.fileno())}

    def command(self, words: list[str], environment: Mapping[str, str], work: Path) -> list[str]:
        given = self.conditions
        box = sandbox.Box(
            workdir=work,
            write=(work, self.caches / compile_caches.LIVE),
            hidden=given.hidden,
            environment=environment,
            gpu=given.gpu.index if given.gpu else None,
        )
        return sandbox.command(box, words, given.level)

    def result(self, seen: RunResult) -> RunResult:
        """The verdict as a result; `seen` is what the candidate's log and exit code look like. Raises NotReady if there is none."""
        self.end.close()
        verdict = self._verdict()
        result = self._outcome(seen, verdict)
        given = self.conditions
        return replace(result, sandbox=given.level, seed=given.seed, refereed=True, transport=str(verdict["transport"]))

    def _outcome(self, seen: RunResult, verdict: dict[str, Any]) -> RunResult:
        failed = RunResult(CRASHED, wall_seconds=seen.wall_seconds, memory_mb=seen.memory_mb, attention=seen.attention)
        if seen.outcome == TIMED_OUT:
            return replace(failed, outcome=TIMED_OUT, crash_class=seen.crash_class, detail=seen.detail)
        if verdict["outcome"] == "scored":
            names = ("val_bpb", "vault_bpb", "training_seconds", "startup_seconds", "evaluation_seconds")
            return replace(seen, outcome=SCORED, crash_class="", detail="", **{name: verdict[name] for name in names})
        reason = clean(str(verdict["reason"]))[:200]
        if verdict["outcome"] == "overtime":
            return replace(failed, outcome=TIMED_OUT, crash_class="overtime", detail=reason)
        if seen.outcome == CRASHED and reason.startswith("ended before"):  # it crashed by itself: its own log says how
            return replace(failed, crash_class=seen.crash_class, detail=seen.detail)
        return replace(failed, crash_class="non-finite" if reason.startswith("non-finite") else "foul", detail=reason)

    def _verdict(self) -> dict[str, Any]:
        try:
            self.process.wait(VERDICT_LIMIT)
        except subprocess.TimeoutExpired:
            raise NotReady(f"the referee gave no verdict in {VERDICT_LIMIT:.0f} s: see {self.log}") from None
        try:
            verdict: dict[str, Any] = json.loads(self.verdict_path.read_text())
            return verdict
        except (FileNotFoundError, json.JSONDecodeError):
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
            code = self.process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended ({clean(last)[:200]})"
            raise NotReady(f"the referee {how}, so this run was not measured: see {self.log} and start again") from None
