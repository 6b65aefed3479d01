"""Start train.py, watch it, end it, and say what came of it.

train.py runs in a folder of its own beside the session's copies of prepare.py and constants.py, in a process group of its own,
without standard input, with an environment of a few named variables. Covered: time-outs, hangs, survivors in the process group,
floods of output. Not covered: a train.py that lies about its score or reads what it should not; its score is believed and
labelled self-reported.
"""

import contextlib
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from autoresearch.errors import Interrupted, NotReady
from autoresearch.journal import CRASHED, SCORED, TIMED_OUT, RunResult
from autoresearch.results import clean

DEFAULT_SEED = 1337
# Seconds that a run may take beyond its budget: start-up with a cold compile was measured at 83 s on an H200, on slower GPUs with
# slower CPUs it takes several times as long.
ALLOWANCE = 600.0
MAX_LOG_BYTES = 16 * 2**20  # a run prints about 100 KB
MIN_FREE_BYTES = 256 * 2**20  # weights, log and caches of a run need less
MAX_DETAIL = 200  # characters of an error's last line

PROGRESS = re.compile(rb"step (\d+) \((\d+\.\d)%\) \| loss: (\S+) \| tok/s: ([\d,]+) .*?left: (\d+)s")
# What a candidate may see of this process's environment.
PASSED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "SYSTEMROOT",
    "CC",
    "CXX",
)
PASSED_PREFIXES = ("CUDA", "NVIDIA", "NCCL", "TORCH", "PYTORCH", "TRITON", "OMP_", "MKL_", "AUTORESEARCH_CACHE")


@dataclass(frozen=True)
class Progress:
    step: int
    percent: float
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class RunPlan:
    source: str  # the text of train.py
    helpers: Path  # folder with the session's prepare.py and constants.py
    folder: Path  # run.log, work/ and model.safetensors are made here
    budget: float  # TIME_BUDGET, seconds
    caches: Path  # compile caches that outlive a run
    seed: int = DEFAULT_SEED
    allowance: float = ALLOWANCE


def execute(plan: RunPlan, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> RunResult:
    """Run train.py to its end. Raises NotReady if the disk is full, Interrupted if `should_stop` says so."""
    check_disk(plan.folder)
    work = _lay_out(plan)
    log_path = plan.folder / "run.log"
    began = time.monotonic()
    command = [sys.executable, "-u", "-B", "train.py"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=_environment(plan),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            write_pid(plan.folder / "pid", process.pid)
            in_time = _watch(process, log, began + plan.budget + plan.allowance, on_progress, should_stop)
        finally:
            kill_group(process.pid)
            process.wait()
            (plan.folder / "pid").unlink(missing_ok=True)
            assert process.stdout is not None
            process.stdout.close()
    wall = time.monotonic() - began
    shutil.rmtree(work, ignore_errors=True)
    result = read_log(log_path.read_bytes(), process.returncode, in_time, wall)
    if result.outcome != SCORED:
        check_disk(plan.folder)  # a full disk crashes a run that is innocent
    return result


def check_disk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise NotReady(f"the disk of {folder} is full ({free // 2**20} MB free): free {MIN_FREE_BYTES // 2**20} MB and start again")


def _lay_out(plan: RunPlan) -> Path:
    work = plan.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "train.py").write_text(plan.source, encoding="utf-8")
    for name in ("prepare.py", "constants.py"):
        shutil.copy(plan.helpers / name, work / name)
    return work


def _environment(plan: RunPlan) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
    return passed | {
        "AUTORESEARCH_SEED": str(plan.seed),
        "AUTORESEARCH_WEIGHTS_OUT": str(plan.folder / "model.safetensors"),
        "TORCHINDUCTOR_CACHE_DIR": str(plan.caches / "inductor"),
        "TRITON_CACHE_DIR": str(plan.caches / "triton"),
        "PYTHONUNBUFFERED": "1",
    }


def _watch(
    process: "subprocess.Popen[bytes]",
    log: BinaryIO,
    deadline: float,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Copy the output into the log until the process ends; False if the deadline ended it."""
    assert process.stdout is not None
    written, tail = 0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if should_stop():
                raise Interrupted("stopped")
            if time.monotonic() > deadline:
                return False
            if not selector.select(timeout=0.2):
                if process.poll() is not None:
                    return True  # something it left behind still holds the pipe; the group is killed by the caller
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                process.wait()
                return True
            if written < MAX_LOG_BYTES:
                log.write(chunk)
                log.flush()
                written += len(chunk)
            tail = (tail + chunk)[-4096:]
            if progress := last_progress(tail):
                on_progress(progress)


def last_progress(text: bytes) -> Progress | None:
    """The newest progress that train.py printed."""
    found = PROGRESS.findall(text)
    if not found:
        return None
    step, percent, loss, speed, left = found[-1]
    try:
        return Progress(int(step), float(percent), float(loss), float(speed.replace(b",", b"")), float(left))
    except ValueError:
        return None


def read_log(log: bytes, exit_code: int, in_time: bool, wall: float) -> RunResult:
    """What a finished run's output and exit code amount to."""
    text = log.decode("utf-8", errors="replace").replace("\r", "\n")
    if not in_time:
        return RunResult(TIMED_OUT, wall_seconds=wall, crash_class="timeout", detail="stopped after its time")
    figures = read_summary(text)
    score = figures.get("val_bpb")
    if exit_code == 0 and score is not None and math.isfinite(score) and score > 0:
        steps = figures.get("num_steps")
        return RunResult(
            SCORED,
            val_bpb=score,
            memory_mb=figures.get("peak_vram_mb"),
            training_seconds=figures.get("training_seconds"),
            startup_seconds=figures.get("startup_seconds"),
            evaluation_seconds=figures.get("evaluation_seconds"),
            total_seconds=figures.get("total_seconds"),
            wall_seconds=wall,
            num_steps=int(steps) if steps is not None else None,
            total_tokens_m=figures.get("total_tokens_M"),
            num_params_m=figures.get("num_params_M"),
            mfu_percent=figures.get("mfu_percent"),
        )
    crash_class, detail = classify(text, exit_code)
    return RunResult(CRASHED, wall_seconds=wall, crash_class=crash_class, detail=detail)


def read_summary(text: str) -> dict[str, float]:
    """The `name: number` lines behind the last `---`."""
    _, mark, block = text.rpartition("\n---\n")
    figures = {}
    for line in block.splitlines() if mark else []:
        name, colon, value = line.partition(":")
        if colon:
            with contextlib.suppress(ValueError):
                figures[name.strip()] = float(value)
    return figures


def classify(text: str, exit_code: int) -> tuple[str, str]:
    """(class, the error's last line) of a crash."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = clean(lines[-1])[:MAX_DETAIL] if lines else f"no output, exit code {exit_code}"
    tail = "\n".join(lines[-30:])
    if exit_code == -signal.SIGKILL:
        return "oom", "killed by the system, most likely out of memory"
    if re.search(r"OutOfMemoryError|out of memory|MemoryError|can't allocate memory", tail):
        return "oom", detail
    if re.search(r"FloatingPointError|non-finite", tail):
        return "non-finite", detail
    if "SyntaxError" in tail:
        return "syntax", detail
    if re.search(r"ValueError|shape|size mismatch|must match", detail):
        return "shape", detail
    if exit_code == 0:
        return "no-score", "train.py ended without printing a score"
    return "error", detail


# -- processes -------------------------------------------------------------------------------------------------------


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _start_time(pid: int) -> str:
    """What tells a process from a later one with the same number; '' if there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[19]  # field 22, in clock ticks since boot
        except (OSError, IndexError):
            return ""
    return subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


def write_pid(path: Path, pid: int) -> None:
    path.write_text(f"{pid} {_start_time(pid)}\n")


def end_left_over(folder: Path) -> None:
    """Kill the run that a dead loop left behind in this folder, if it still lives."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid, _, started = (folder / "pid").read_text().strip().partition(" ")
        if started and _start_time(int(pid)) == started:
            kill_group(int(pid))
        (folder / "pid").unlink(missing_ok=True)
