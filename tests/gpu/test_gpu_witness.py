"""The witness on a GPU: another program's work on it is seen, the run's own is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from autoresearch.experiment import witness
from autoresearch.experiment.witness import Witness

pytestmark = pytest.mark.gpu

# Waits for a line, then multiplies for four seconds, says so, and stays.
WORK = """
import time, torch
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print("ready", flush=True)
input()
end = time.monotonic() + 4
while time.monotonic() < end:
    x = (x @ x).clamp(-1, 1)
    torch.cuda.synchronize()
print("done", flush=True)
input()
"""


def program() -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def work(process: subprocess.Popen[str]) -> None:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    process = program()
    yield process
    process.kill()
    process.communicate()


def in_a_fork(during: Callable[[], None]) -> str:
    """What a witness says whose loop is beside the other program, not above it. A run of some seconds counts."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            witness.SHORTEST = 1.0
            ours = Witness(0)
            ours.begin()
            during()
            os.write(start, ours.disturbed().encode() or b"nothing")
        finally:
            os._exit(0)
    os.close(start)
    with os.fdopen(end) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_another_programs_work_on_the_gpu_is_seen(other: subprocess.Popen[str]) -> None:
    assert in_a_fork(lambda: work(other)).endswith("of the GPU")


def test_the_runs_own_work_is_not(other: subprocess.Popen[str]) -> None:
    def own() -> None:
        process = program()
        work(process)
        process.kill()

    assert in_a_fork(own) == "nothing"
