"""Start train.py, watch it, end it, and say what came of it.

train.py runs in a folder of its own beside the session's copies of prepare.py and constants.py, in a process group of its own,
without standard input, with an environment of a few named variables. Covered here: time-outs, hangs, processes that it leaves
behind, floods of output. What it may reach is `sandbox.py`'s part, what it scores the referee's (`RunPlan.refereed`).
A plan without conditions is a run whose own word is taken, labelled self-reported; no command of ours makes one.
"""

import builtins
import contextlib
import hashlib
import math
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from autoresearch.errors import Interrupted, NotReady
from autoresearch.experiment import caches
from autoresearch.experiment.early import Ended
from autoresearch.experiment.meter import Meter
from autoresearch.experiment.refereeing import WEIGHTS, WEIGHTS_OUT, Conditions, Refereeing
from autoresearch.journal import CRASHED, SCORED, TIMED_OUT, RunResult
from autoresearch.processes import PROC, birth, end_marked
from autoresearch.results import clean

DEFAULT_SEED = 1337
# Seconds that a run may take beyond its budget: start-up with a cold compile was measured at 83 s on an H200, on slower GPUs with
# slower CPUs it takes several times as long.
ALLOWANCE = 600.0
GRACE = 0.5  # seconds of training past the budget that are not overtime
MAX_LOG_BYTES = 16 * 2**20  # a run prints about 100 KB
LOG_TAIL_BYTES = 64 * 2**10  # of a longer log the end is kept too: the summary is there, or the error
LATE_READS = 16  # of 64 KB: what a pipe can still hold when the process has ended
POLL_SECONDS = 0.2
MIN_FREE_BYTES = 256 * 2**20  # weights, log and caches of a run need less
MAX_FILE_BYTES = 16 * 2**30  # of a file that a run writes; the largest are compile caches and weights
MAX_PROGRESS = 4096  # bytes that the next progress may have begun in
MAX_DETAIL = 200  # characters of an error's last line

PROGRESS = re.compile(rb"step (\d+) \((\d+\.\d)%\) \| loss: (\S+) \| tok/s: ([\d,]+) .*?left: (\d+)s")
ATTENTION = re.compile(r"\battention: ([^|\n]+)")
# What a run may still say once it has seen validation text, each of it once: the summary, and which error ended it.
FIGURES = {
    *("val_bpb", "peak_vram_mb", "depth", "score", "training_seconds", "total_seconds", "startup_seconds", "evaluation_seconds"),
    *("mfu_percent", "total_tokens_M", "num_steps", "num_params_M", "eval_tokens", "---"),
}
FIGURE = re.compile(rb"(---)$|(\w+): +(?:[-+.\dEe]{1,20}|nan|inf|refereed|self-reported)$")
ERRORS = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
ERRORS.add("OutOfMemoryError")  # torch's
ERROR = re.compile(rb"(?:train\.py: )?(?:torch\.)?(\w+)")
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
    caches: Path  # compile caches that outlive a run, as caches.py lays them out
    seed: int = DEFAULT_SEED
    allowance: float = ALLOWANCE
    refereed: Conditions | None = None  # a box and a referee for it; without, its own score is believed
    begin_with: Path | None = None  # other compile caches than the snapshot


def execute(plan: RunPlan, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> RunResult:
    """Run train.py to its end, or until `on_progress` raises Ended. Raises NotReady if the disk is full or the referee failed,
    Interrupted if `should_stop` says so."""
    check_disk(plan.folder)
    end_left_over(plan.folder)
    work = _lay_out(plan)
    caches.lay_out(plan.caches, plan.begin_with)
    log_path = plan.folder / "run.log"
    began = time.monotonic()
    command, environment, descriptors = [sys.executable, "-u", "-B", "train.py"], _environment(plan), []
    with contextlib.ExitStack() as stack:
        referee = stack.enter_context(Refereeing(plan.refereed, plan.caches)) if plan.refereed else None
        if referee:
            environment = referee.environment(environment, work)
            command = referee.command(command, environment, work)
            descriptors = [referee.end.fileno()]
        log = _Log(stack.enter_context(log_path.open("wb", buffering=0)), lambda: bool(referee and referee.has_shown_text))
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: limit(plan),
        )
        if referee:
            referee.end.close()  # the candidate's copy is the only one: its end is seen
        meter = meter_of(plan, process.pid, referee)

        def look() -> None:
            meter.look()
            if referee and referee.is_gone:
                judged(plan, referee, RunResult(CRASHED))  # raises NotReady
            if should_stop():
                raise Interrupted("stopped")

        ended: Ended | None = None
        try:
            write_pid(plan.folder / "pid", process.pid)
            in_time = _watch(process, log, began + plan.budget + plan.allowance, on_progress, look)
        except Ended as early:
            ended = early
        finally:
            kill_group(process.pid)
            process.wait()
            end_left_over(plan.folder, but=referee.process.pid if referee else 0)
            assert process.stdout is not None
            process.stdout.close()
            log.finish()
        wall = time.monotonic() - began
        shutil.rmtree(work, ignore_errors=True)
        if ended:
            return ended.result(wall, meter.peak_mb, plan.seed)
        result = read_log(log_path.read_bytes(), process.returncode, in_time, wall)
        if referee:
            result = judged(plan, referee, replace(result, memory_mb=meter.peak_mb))
        elif result.outcome == SCORED and overtime(result, plan.budget):
            took = f"trained for {result.training_seconds:.1f} s of {plan.budget:.1f} s"
            result = RunResult(TIMED_OUT, wall_seconds=wall, crash_class="overtime", detail=took)
    if result.outcome != SCORED:
        check_disk(plan.folder)  # full by something else, it crashes a run that is innocent
    return result


def limit(plan: RunPlan) -> None:
    """Called in the candidate's process before anything of it runs. Memory only on the CPU: CUDA maps far more than it uses."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    if plan.refereed and plan.refereed.gpu is None and sys.platform == "linux":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def judged(plan: RunPlan, referee: Refereeing, seen: RunResult) -> RunResult:
    """The referee's word. Raises NotReady where there is none, and says if a full disk is why."""
    try:
        return referee.result(seen)
    except NotReady:
        check_disk(plan.folder)
        raise


def meter_of(plan: RunPlan, pid: int, referee: Refereeing | None) -> Meter:
    gpu = plan.refereed.gpu if plan.refereed else None
    return Meter(pid, gpu.index if gpu else None, referee.process.pid if referee else None)


def overtime(result: RunResult, budget: float) -> bool:
    """Whether a run trained past its budget by more than one step or GRACE."""
    trained = result.training_seconds or 0.0
    return trained > budget + max(GRACE, trained / (result.num_steps or 1))


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
        WEIGHTS_OUT: str(plan.folder / WEIGHTS),
        "TORCHINDUCTOR_CACHE_DIR": str(plan.caches / caches.LIVE / "inductor"),
        "TRITON_CACHE_DIR": str(plan.caches / caches.LIVE / "triton"),
        "PYTHONUNBUFFERED": "1",
    }


class _Log:
    """A log that keeps the beginning and the end of what is written to it, as far as the disk has room.

    Once `has_seen_text` the candidate has seen validation text, and of what it prints only the summary's numbers and the names of
    errors are taken, each once: people read the log, and the next proposal's brief quotes it.
    """

    def __init__(self, file: FileIO, has_seen_text: Callable[[], bool] = lambda: False) -> None:
        self.file, self.written, self.left_out, self.tail = file, 0, 0, b""
        self.has_seen_text, self.line, self.said = has_seen_text, b"", set[str]()

    def write(self, chunk: bytes) -> bytes:
        """Returns what of it was taken."""
        if self.has_seen_text():
            *lines, line = (self.line + chunk).split(b"\n")
            self.line = line[:MAX_DETAIL]
            chunk = b"".join(map(self._harmless, lines))
        self.tail = (self.tail + chunk)[-LOG_TAIL_BYTES:]
        written = self._put(chunk[: MAX_LOG_BYTES - self.written])
        self.written += written
        self.left_out += len(chunk) - written
        return chunk

    def _harmless(self, line: bytes) -> bytes:
        """The line, or b"" where it could carry text."""
        if found := FIGURE.match(line):
            name, known = (found.group(1) or found.group(2)).decode(), FIGURES
        elif found := ERROR.match(line):
            name, known = found.group(1).decode(errors="replace"), ERRORS
        else:
            return b""
        if name not in known or name in self.said:
            return b""
        self.said.add(name)
        return found.group(0) + b"\n"

    def finish(self) -> None:
        if self.left_out:
            tail = self.tail[-self.left_out :]
            self._put(f"\n[cut: {self.left_out - len(tail)} bytes]\n".encode() + tail)

    def _put(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError:  # a run that filled the disk itself shall be a crash: its folder is removed before the disk is looked at
            return 0


def _watch(
    process: "subprocess.Popen[bytes]",
    log: _Log,
    deadline: float,
    on_progress: Callable[[Progress], None],
    look: Callable[[], None],
) -> bool:
    """Copy the output into the log until the process ends; False if the deadline ended it. `look` is called often and may raise."""
    assert process.stdout is not None
    closed, late, text = False, 0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            look()
            if time.monotonic() > deadline:
                return False
            if closed:  # at its end, or by a train.py that goes on without it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                    return True
                continue
            ended = process.poll() is not None
            if not selector.select(0 if ended else POLL_SECONDS):
                if ended:
                    return True  # something it left behind still holds the pipe
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            closed = not chunk
            told, text = read_progress(text + log.write(chunk))
            for progress in told:
                on_progress(progress)
            late += ended
            if late > LATE_READS:
                return True  # and it floods the pipe


def read_progress(text: bytes) -> tuple[list[Progress], bytes]:
    """All progress in what train.py printed, oldest first, and the text behind it, where the next may have begun."""
    told, end = [], 0
    for found in PROGRESS.finditer(text):
        step, percent, loss, speed, left = found.groups()
        end = found.end()
        with contextlib.suppress(ValueError):
            told.append(Progress(int(step), float(percent), float(loss), float(speed.replace(b",", b"")), float(left)))
    return told, text[end:][-MAX_PROGRESS:]


def seed_of(session_seed: int, repeat: int) -> int:
    """The seed of an experiment's run: the session's for the first, another for each repeat, the same whoever computes it."""
    if repeat == 0:
        return session_seed
    digest = hashlib.sha256(f"{session_seed} {repeat}".encode()).digest()
    return int.from_bytes(digest[:4]) % 2**31  # what every framework takes


def read_log(log: bytes, exit_code: int, in_time: bool, wall: float) -> RunResult:
    """What a finished run's output and exit code amount to."""
    text = log.decode("utf-8", errors="replace").replace("\r", "\n")
    path = ATTENTION.search(text)
    return replace(_read_text(text, exit_code, in_time, wall), attention=clean(path.group(1))[:MAX_DETAIL] if path else "")


def _read_text(text: str, exit_code: int, in_time: bool, wall: float) -> RunResult:
    if not in_time:
        return RunResult(TIMED_OUT, wall_seconds=wall, crash_class="timeout", detail=f"not done after {wall:.0f} s, ended")
    summary = read_summary(text)
    figures = {name: value for name, value in summary.items() if math.isfinite(value)}
    score = figures.get("val_bpb")
    if exit_code == 0 and score is not None and score > 0:
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
    if exit_code == 0 and "val_bpb" in summary:
        return RunResult(CRASHED, wall_seconds=wall, crash_class="non-finite", detail=f"val_bpb {summary['val_bpb']} is no score")
    crash_class, detail = classify(text, exit_code)
    return RunResult(CRASHED, wall_seconds=wall, crash_class=crash_class, detail=detail)


def read_summary(text: str) -> dict[str, float]:
    """The `name: number` lines behind the last `---`."""
    _, mark, block = ("\n" + text).rpartition("\n---\n")
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
    if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):  # the second as a sandbox passes it on
        return "oom", "killed by the system, most likely out of memory"
    if re.search(r"OutOfMemoryError|out of memory|MemoryError|can't allocate memory|Cannot allocate memory", tail):
        return "oom", detail
    if re.search(r"FloatingPointError|non-finite", tail):
        return "non-finite", detail
    if "SyntaxError" in tail:
        return "syntax", detail
    if exit_code == 0:
        return "no-score", "train.py ended without printing a score"
    if re.search(r"ValueError|shape|size mismatch|must match", detail):
        return "shape", detail
    return "error", detail


# -- processes -------------------------------------------------------------------------------------------------------


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_left_over(folder: Path, but: int = 0) -> None:
    """Kill what still lives of the runs and audits in this folder, whose loop died or whose main process ended before it; their
    referees too."""
    if not PROC.exists():
        return _end_by_pid(folder / "pid")
    end_marked(f"{WEIGHTS_OUT}={folder}/", but)


def write_pid(path: Path, pid: int) -> None:
    """For systems whose processes don't show their environment."""
    if not PROC.exists():
        path.write_text(f"{pid} {birth(pid)}\n")


def _end_by_pid(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid, _, started = path.read_text().strip().partition(" ")
        if started and birth(int(pid)) == started:
            kill_group(int(pid))
        path.unlink()
