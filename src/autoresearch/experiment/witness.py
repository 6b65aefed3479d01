"""Whether a run had the machine to itself: a witness that a candidate can't bring to speak for it.

What it goes by is never what the run did: the processor time of processes that are neither of the loop's family nor could have
come from it, what the hypervisor took away, other processes' work on the GPU, and sleep. Not the pressure or the clock rate of the
machine: a run can cause those itself, to get a second try.

A process counts as somebody else's if it was there before the loop, or descends from such a one. One that began later and has
lost its parents does not: an orphan may be the candidate's own. Linux alone tells; elsewhere nothing is ever disturbed.
"""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from autoresearch.experiment.meter import Gpu
from autoresearch.journal import TIMED_OUT, RunResult
from autoresearch.processes import PROC

KERNEL_THREAD = 0x00200000  # in a process's flags
SHORTEST = 5.0  # seconds; in less the start of any program is a large share
LOAD = 0.1  # of the processors: a run on them makes a tenth fewer steps then
HOST_CORES = 2.0  # that a run on a GPU needs for itself
ITS_OWN = ("syntax", "shape", "non-finite", "foul")  # crashes that no load explains
GPU_LOAD = 0.05  # of the GPU's time; a desktop takes one or two hundredths
LOOK_EVERY = 30.0  # seconds between two looks at the GPU, which tells of the last moment alone; one takes 2 ms
SLEEP = 1.0  # seconds


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # ticks since boot: with the number it names a process for good
    parent: int
    own: float  # seconds of processor time
    reaped: float  # of its ended children
    kernel: bool

    @property
    def name(self) -> tuple[int, int]:
        return self.pid, self.started


def processes() -> dict[int, Process]:
    """All that run here, by number; empty where there is no /proc."""
    tick, found = os.sysconf("SC_CLK_TCK"), dict[int, Process]()
    for name in os.listdir(PROC) if PROC.exists() else ():  # noqa: PTH208 - twice as fast as Path.iterdir, and called in a run
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - the same
                    fields = file.read().rpartition(b")")[2].split()
                ticks = [int(fields[i]) for i in (11, 12, 13, 14)]
                own, reaped = (ticks[0] + ticks[1]) / tick, (ticks[2] + ticks[3]) / tick
                kernel = bool(int(fields[6]) & KERNEL_THREAD)
                found[int(name)] = Process(int(name), int(fields[19]), int(fields[1]), own, reaped, kernel)
    return found


def lineage(pid: int, table: Mapping[int, Process]) -> list[int]:
    """A process, its parent, and so on up."""
    line = [pid]
    while (process := table.get(line[-1])) and process.parent not in (0, *line):
        line.append(process.parent)
    return line


@dataclass(frozen=True)
class Moment:
    """What the witness saw at one time."""

    at: float  # seconds
    slept: float  # seconds since the machine was started
    stolen: float  # seconds of processor time that the hypervisor gave to others since then
    others: Mapping[tuple[int, int], Process]  # other people's processes


class Witness:
    """Made before the loop starts anything. `begin` before a run, `disturbed` at its end, and in between as often as wanted."""

    def __init__(self, gpu: int | None = None) -> None:
        table = processes()
        self._me = os.getpid()
        self._ancestors = set(lineage(self._me, table)[1:]) | {1}
        self._known = {each.name for each in table.values() if self._me not in lineage(each.pid, table)}
        self._gpu = Gpu(gpu) if gpu is not None else None
        self.usual = False  # whether the last run that counts was disturbed
        self._looks: list[float] = []  # others' share of the GPU
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._most = LOAD * self.cores if gpu is None else max(LOAD * self.cores, self.cores - HOST_CORES)
        self.begin()

    def begin(self) -> None:
        self._began, self._looks, self._looked = self._see(), [], time.monotonic()
        self._samples_from = time.time()  # the driver stamps its samples with the time of day

    def look(self) -> None:
        """While the run lives, at any time."""
        if self._gpu and time.monotonic() - self._looked >= LOOK_EVERY:
            self._look_at_gpu(self._gpu)

    def disturbed(self) -> str:
        """What took the machine from the run since `begin`; "" if nothing did."""
        before, now = self._began, self._see()
        if (slept := now.slept - before.slept) >= SLEEP:
            return f"the machine slept for {slept:.0f} s"
        if (seconds := now.at - before.at) < SHORTEST:
            return ""
        if (cores := (used(before.others, now.others) + now.stolen - before.stolen) / seconds) >= self._most:
            return f"other processes took {cores:.1f} of {self.cores} processors"
        if self._gpu:
            self._look_at_gpu(self._gpu)
            if (share := sum(self._looks) / len(self._looks)) >= GPU_LOAD:
                return f"other processes took {share:.0%} of the GPU"
        return ""

    def _look_at_gpu(self, gpu: Gpu) -> None:
        use, self._looked, self._samples_from = gpu.use(self._samples_from), time.monotonic(), time.time()
        table = processes() if use else {}
        self._looks.append(sum(share for pid, share in use.items() if pid in table and self._counts(table[pid], table)))

    def _see(self) -> Moment:
        table = processes()
        others = {each.name: self._shown(each) for each in table.values() if self._counts(each, table)}
        return Moment(time.monotonic(), slept(), stolen(), others)

    def _shown(self, process: Process) -> Process:
        """Init and whoever started the loop inherit its orphans: what they reaped may be a candidate's."""
        return replace(process, reaped=0.0) if process.pid in self._ancestors else process

    def _counts(self, process: Process, table: Mapping[int, Process]) -> bool:
        if process.kernel:
            return False
        for pid in lineage(process.pid, table):
            each = table.get(pid)
            if each is None or pid == self._me:
                return False
            if each.name in self._known:
                return pid == process.pid or pid not in self._ancestors
        return False


def used(before: Mapping[tuple[int, int], Process], now: Mapping[tuple[int, int], Process]) -> float:
    """Seconds of processor time that these processes and their ended children took between two moments."""
    known = {each.pid: each for each in before.values()}
    earlier: dict[tuple[int, int], float] = defaultdict(float)  # what the ended ones had used already, by who has reaped them since
    for each in before.values():
        if each.name not in now:
            heir = known.get(each.parent)
            while heir and heir.name not in now:
                heir = known.get(heir.parent)
            if heir:
                earlier[heir.name] += each.own + each.reaped
    total = 0.0
    for name, process in now.items():
        was = before.get(name, replace(process, own=0.0, reaped=0.0))
        total += process.own - was.own + max(0.0, process.reaped - was.reaped - earlier[name])
    return total


def slept() -> float:
    """Seconds that this machine has slept since it was started."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def stolen() -> float:
    """Seconds of processor time, of all processors together, that the hypervisor has given to others since the start."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((PROC / "stat").read_bytes().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def undisturbed(run: Callable[[], RunResult], witness: Witness, say: Callable[[str], None]) -> RunResult:
    """The run's result. One that was disturbed is not counted and is done once more; the second counts and says so. After such a
    one the next counts at once if it came to its end: it is how this machine is."""
    for last in (False, True):
        witness.begin()
        result = replace(run(), disturbed=witness.disturbed())
        counts = not result.disturbed or result.crash_class in ITS_OWN or (witness.usual and result.outcome != TIMED_OUT)
        if counts or last:
            break
        say(f"this run is not counted, {result.disturbed}: once more")
    witness.usual = bool(result.disturbed)
    return result
