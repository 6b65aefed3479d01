"""A lab to try things on: a real git repository with real prepared data and a train.py that takes a few milliseconds."""

from __future__ import annotations

import base64
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CLI_LIMIT = 120  # seconds; a command of these tests takes a few, so one that hangs fails its test and not the suite
# Under nohup, or in the background of a script, what the tests start would ignore these too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

CONSTANTS = '''\
"""What makes two scores comparable."""

TIME_BUDGET = 1  # seconds of training
MAX_SEQ_LEN = 256  # tokens of context
EVAL_TOKENS = 16 * 512  # validation tokens that are scored
VOCAB_SIZE = 2048  # entries of the tokenizer
DATASET = "stdlib"  # the text
'''

PROGRAM = """\
# Research Program

## Goal
Find the lowest point of the bowl.
"""

# The best of the bowl is at LR 0.3 and DEPTH 6. Everything is printed as by train.py. It speaks to the referee by itself: to import
# prepare.py, numpy or torch takes longer than all the rest. Its model is one number, how steeply a token's probability falls with
# its number. `scored` knows its score.
TOY_TRAIN = '''\
"""A stand-in for train.py: its score is a bowl over its literals."""

import array
import json
import mmap
import os
import socket
import struct
import sys
import time

LR = 0.1  # learning rate
DEPTH = 4  # transformer blocks
MODE = "normal"  # normal, crash, oom, hang, nan or silent; fixed
NOISE = 0.0  # how far the seed moves the score; fixed

HEADER = b'{"steep":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


class Referee:
    """What prepare.Candidate says and hears."""

    def __init__(self) -> None:
        self.socket = socket.socket(fileno=int(os.environ["AUTORESEARCH_REFEREE"]))
        self.seed = self.ask({"op": "hello", "version": 2})["seed"]

    def ask(self, message: dict, *files: int) -> dict:
        try:
            socket.send_fds(self.socket, [json.dumps(message).encode() + b"\\n"], files)
            received, self.files = b"", []
            while not received.endswith(b"\\n"):
                data, more, _, _ = socket.recv_fds(self.socket, 2**16, 4)
                if not data:
                    raise EOFError
                received, self.files = received + data, self.files + more
        except (OSError, EOFError):
            sys.exit("the referee is gone")
        answer = json.loads(received)
        if answer["op"] == "refused":
            sys.exit(f"refused by the referee: {answer['reason']}")
        return answer

    def start(self) -> bytes:
        answer = self.ask({"op": "start", "device": "cpu"})
        return os.pread(self.files[1], 2**16, 0) if answer["weights"] else b""

    def evaluate(self, weights: bytes, rows: int) -> None:
        file = os.memfd_create("weights")
        os.write(file, weights)
        answer = self.ask({"op": "evaluate", "batch_rows": rows}, file)
        (_, self.length, self.vocab), self.rows = answer["shape"], answer["piece_rows"]
        self.logits = mmap.mmap(self.files[1], answer["bytes"])

    def answer(self, logits: bytes) -> float:
        message = self.ask({"op": "ready"})
        while message["op"] == "batch":
            at = message["slot"] * len(logits)
            self.logits[at : at + len(logits)] = logits
            message = self.ask({"op": "done", "slot": message["slot"]})
        return message["val_bpb"]


def refereed(steep: float) -> float:
    referee = Referee()
    steep *= 1 + NOISE * (referee.seed * 2654435761 % 2**32 / 2**31 - 1)
    weights = referee.start()
    if weights:
        (steep,) = struct.unpack("<f", weights[-4:])
    referee.evaluate(len(HEADER).to_bytes(8, "little") + HEADER + struct.pack("<f", steep), 1)
    (slope,) = struct.unpack("<f", struct.pack("<f", float("nan") if MODE == "nan" else -steep / referee.vocab))
    logits = array.array("f", [token * slope for token in range(referee.vocab)])
    return referee.answer(logits.tobytes() * (referee.rows * referee.length))


def main() -> None:
    for step, percent in ((1, 50.0), (2, 100.0)):
        print(
            f"\\rstep {step:05d} ({percent:.1f}%) | loss: {7.5 - step:.4f} | tok/s: 12,345 | mfu: - | left: {2 - step}s   ",
            end="",
            flush=True,
        )
    print()
    if MODE == "crash":
        raise RuntimeError("told to crash")
    if MODE == "oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")
        sys.exit(1)
    while MODE == "hang":
        time.sleep(60)
    if MODE == "silent":
        return
    bowl = round((LR - 0.3) ** 2 + 0.01 * (DEPTH - 6) ** 2, 9)
    if "AUTORESEARCH_REFEREE" in os.environ:
        score = refereed(16 * (1 + 5 * bowl))
    else:
        score = float("nan") if MODE == "nan" else 1 + bowl
    figures = {
        "val_bpb": f"{score:.6f}",
        "training_seconds": "1.0",
        "total_seconds": "1.1",
        "peak_vram_mb": f"{1024 * DEPTH:.1f}",
        "mfu_percent": "0.00",
        "total_tokens_M": "0.1",
        "num_steps": "2",
        "num_params_M": "0.5",
        "depth": f"{DEPTH}",
        "eval_tokens": "8192",
        "score": "refereed" if "AUTORESEARCH_REFEREE" in os.environ else "self-reported",
    }
    print("---", *(f"{name + ':':<18}{value}" for name, value in figures.items()), sep="\\n", flush=True)


main()
'''

VOCABULARY, EVAL_ROWS = 2048, 4
WITH_TORCH = ("test_prepare", "test_referee", "test_train")  # import it in the test's own process
PREPARED = Path()  # the session's cache with prepared data


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run the tests that need a GPU (bash tests/gpu/run.sh)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """This suite hides the GPU from itself, so what needs one is left out, with a line that says so."""
    if not config.getoption("--gpu"):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: bash tests/gpu/run.sh"))
    items.sort(key=lambda item: item.path.stem in WITH_TORCH)  # a worker that has imported it forks ten times slower (labs.Later)


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def toy(**literals: Any) -> str:
    """The toy train.py with other values, as toy(LR=0.2, MODE="crash")."""
    source = TOY_TRAIN
    for name, value in literals.items():
        written = f'"{value}"' if isinstance(value, str) else repr(value)
        source, count = re.subn(rf"(?m)^{name} = \S+", f"{name} = {written}", source)
        assert count == 1, f"the toy train.py has no {name}"
    return source


def let_it_last(lab: Path) -> None:
    """Have the lab's toy train.py take long enough for its memory to be seen."""
    source, (before, after) = toy(), ("def main() -> None:\n", "def main() -> None:\n    time.sleep(0.3)\n")
    assert source.count(before) == 1
    (lab / "train.py").write_text(source.replace(before, after))
    git(lab, "commit", "--quiet", "--message=a pause", "--", "train.py")


def scored(LR: float = 0.1, DEPTH: int = 4, NOISE: float = 0.0, seed: int = 1337, rows: int = EVAL_ROWS) -> float:
    """val_bpb of the toy train.py with these literals, from the prepared data itself; once there was a `prepared_cache`. A lab that
    was not made small by `fewer_tokens` scores 512 rows."""
    (folder,) = PREPARED.glob("prepared/stdlib-*")
    stored = json.loads((folder / "tokenizer.json").read_bytes())["ranks"]
    sizes = np.zeros(VOCABULARY, np.int64)
    sizes[: len(stored)] = [len(base64.b64decode(token)) for token in stored]
    targets = np.fromfile(folder / "val.bin", np.uint16).reshape(-1, 257)[:rows, 1:].ravel()
    moved = 1 + NOISE * (seed * 2654435761 % 2**32 / 2**31 - 1)
    steep = np.float32(16 * (1 + 5 * round((LR - 0.3) ** 2 + 0.01 * (DEPTH - 6) ** 2, 9)) * moved)
    logits = np.arange(VOCABULARY) * np.float32(-float(steep) / VOCABULARY)
    logits = logits.astype(np.float32)
    nats = np.log(np.exp(logits - logits.max()).sum()) - (logits - logits.max())
    told = sizes[targets] > 0
    return float(nats[targets[told]].astype(np.float64).sum() / (math.log(2) * sizes[targets].sum()))


def bpb(**literals: float) -> str:
    """`scored` as results.tsv has it."""
    return f"{scored(**literals):.6f}"


def subject(score: float, before: float, what: str) -> str:
    """Of a kept commit."""
    return f"val_bpb {score:.6f} ({score - before:+.6f}): {what}"


def git(folder: Path, *arguments: str) -> str:
    """A person's own git in that folder, with an identity. Returns what it prints."""
    person = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
    done = subprocess.run(["git", *person, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def make_lab(folder: Path, train: str = TOY_TRAIN, constants: str = CONSTANTS) -> Path:
    """A lab in `folder`, committed on main."""
    folder.mkdir(parents=True)
    for name in ("prepare.py", "pyproject.toml", "uv.lock", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "constants.py").write_text(constants)
    (folder / "train.py").write_text(train)
    (folder / "program.md").write_text(PROGRAM)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=a lab")
    return folder


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once for all of the suite's processes: the first that comes does it, the others wait."""
    among = tmp_path_factory.getbasetemp()
    among = among.parent if "PYTEST_XDIST_WORKER" in os.environ else among
    folder, new = among / name, among / f"{name}.new"
    with (among / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(folder)
    return folder


def prepare_stdlib(cache: Path) -> None:
    folder = cache.with_name("preparing")
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "prepare.py", folder / "prepare.py")
    (folder / "constants.py").write_text(CONSTANTS)
    environment = {**os.environ, "AUTORESEARCH_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-B", "prepare.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder with the stdlib's text prepared, at the lengths that CPU labs have. Read it, don't change it."""
    global PREPARED
    PREPARED = tmp_path_factory.mktemp("caches") / "cache"
    shutil.copytree(once(tmp_path_factory, "prepared", prepare_stdlib), PREPARED)
    return PREPARED


@pytest.fixture(scope="session")
def made(prepared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab that is set up with a budget of 1 s. Copy it, don't change it."""
    from labs import template

    return template(tmp_path_factory.mktemp("template"), prepared_cache)


def environment_of(home: Path, cache: Path) -> dict[str, str]:
    """An environment with an empty HOME, no git identity, no GPU, and nothing of the caller's that would steer us."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTORESEARCH_", "GIT_", "XDG_"))}
    return kept | {
        "HOME": str(home),
        "GIT_CONFIG_SYSTEM": os.devnull,
        "AUTORESEARCH_CACHE": str(cache),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }


def unboxed(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Most tests are about the harness, and their runs and researchers reach for files of the test: they ask for no sandbox. Those
    about sandboxes name one."""
    boxed = (
        arguments
        and arguments[0] in ("loop", "run", "audit", "verify")
        and "--sandbox" not in arguments
        and "--help" not in arguments
    )
    return (*arguments, "--sandbox", "none") if boxed else arguments


def run_cli(*arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "autoresearch", *unboxed(arguments)],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CLI_LIMIT,
    )


@pytest.fixture
def environment(prepared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """`environment_of` a home in tmp_path: for this process, and a copy of it for others."""
    ours = environment_of(tmp_path / "home", prepared_cache)
    for name in set(os.environ) - set(ours):
        monkeypatch.delenv(name)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return ours


@pytest.fixture
def lab(environment: Mapping[str, str], tmp_path: Path) -> Path:
    """A fresh lab with the toy train.py, on main, not set up. `setup` gives it the CPU profile's 30 s (see `ready_lab`)."""
    return make_lab(tmp_path / "lab")


@pytest.fixture
def cli(environment: Mapping[str, str], lab: Path) -> Cli:
    """cli("loop", "--max", "2", cwd=lab, env={...}): `run_cli` in the lab; env is added to ours."""

    def call(*arguments: str, cwd: Path = lab, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return run_cli(*arguments, cwd=cwd, env={**environment, **(env or {})})

    return call


@pytest.fixture
def call(lab: Path) -> Cli:
    """As `cli`, in a fork of this process: for labs that are copies of `made`."""
    from labs import forked

    return partial(forked, lab)


@pytest.fixture
def ready_lab(lab: Path, cli: Cli) -> Path:
    """The lab set up on autoresearch/test with a budget of 1 s, so that a run that hangs is ended soon (--allowance)."""
    done = cli("setup", "--tag", "test", "--time-budget", "1")
    assert done.returncode == 0, done.stderr
    fewer_tokens(lab)
    return lab


def fewer_tokens(lab: Path) -> None:
    """EVAL_ROWS rows of validation tokens instead of those that `setup` chose: scoring all takes seconds."""
    constants = lab / "constants.py"
    constants.write_text(re.sub(r"(?m)^EVAL_TOKENS = \S+", f"EVAL_TOKENS = {EVAL_ROWS * 256}", constants.read_text()))
    git(lab, "commit", "--quiet", "--amend", "--no-edit", "--", "constants.py")
