"""The witness on a GPU: another program's work on it is seen, the run's own is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from labs import in_a_fork

from autoresearch.experiment import witness

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


def counts_short_runs() -> None:
    witness.SHORTEST = 1.0


def test_another_programs_work_on_the_gpu_is_seen(other: subprocess.Popen[str]) -> None:
    assert in_a_fork(counts_short_runs, lambda: work(other), gpu=0).endswith("of the GPU")


def test_the_runs_own_work_is_not(other: subprocess.Popen[str]) -> None:
    def own() -> None:
        process = program()
        work(process)
        process.kill()

    assert in_a_fork(counts_short_runs, own, gpu=0) == "nothing"
