"""The witness on a GPU: another program's work on it is seen, the run's own is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from labs import in_a_fork

from autoresearch.experiment import witness
from autoresearch.experiment.meter import Gpu

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


def told(process: subprocess.Popen[str]) -> float | None:
    """The share of the GPU that this program's work took, by the driver; None if it doesn't name the program."""
    since = time.time()
    work(process)
    return Gpu(0).use(since).get(process.pid)


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module", autouse=True)
def driver_that_tells() -> None:
    process = program()
    share = told(process)
    ended(process)
    if share is None:
        pytest.skip("the driver does not tell here which process takes how much of the GPU: a container or a split GPU may be why")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    process = program()
    yield process
    ended(process)


def counts_short_runs() -> None:
    witness.SHORTEST = 1.0


def test_another_programs_work_on_the_gpu_is_seen(other: subprocess.Popen[str]) -> None:
    assert in_a_fork(counts_short_runs, lambda: work(other), gpu=0).endswith("of the GPU")


def test_the_runs_own_work_is_not(other: subprocess.Popen[str]) -> None:
    def own() -> None:
        process = program()
        assert (told(process) or 0.0) >= witness.GPU_LOAD
        ended(process)

    assert in_a_fork(counts_short_runs, own, gpu=0) == "nothing"
