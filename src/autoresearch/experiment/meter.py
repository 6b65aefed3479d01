"""How much memory a run takes, seen from outside: on a GPU the driver's figure, else the resident memory of its processes.

The driver's figure counts what the process holds, its context and the allocator's reserve too, and so reads higher than torch's own
count by some hundred MB. Where the driver does not tell processes apart (in a container it may not), it is what the GPU's
memory in use has grown by since the run began, less the referee's.

Where a machine runs out of memory the kernel ends what is marked first: a run's processes are, its referee and the loop are not.
"""

import contextlib
import ctypes
import time

from autoresearch.processes import PROC

EVERY = 0.05  # seconds between two looks, at most so often: one takes about a tenth of a millisecond
MB = 2**20


class Meter:
    """Look often while the run lives; `peak_mb` is None where nothing could be seen."""

    def __init__(self, pid: int, gpu: int | None = None, referee: int | None = None) -> None:
        self.pid, self.referee = pid, referee
        self.peak_mb: float | None = None
        self._looked = 0.0
        self._marked: set[int] = set()
        self._gpu = Gpu(gpu) if gpu is not None else None
        self._before = self._gpu.in_use() if self._gpu else None

    def look(self) -> None:
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        processes = family(self.pid)
        for pid in set(processes) - self._marked:
            mark_to_end_first(pid)
        self._marked.update(processes)
        seen = self._on_gpu(processes) if self._gpu else sum(map(peak_resident, processes))
        if seen:
            self.peak_mb = max(self.peak_mb or 0.0, seen / MB)

    def _on_gpu(self, processes: list[int]) -> int:
        assert self._gpu is not None
        by_process = self._gpu.by_process()
        own = sum(by_process.get(pid, 0) for pid in processes)
        if own:
            return own
        in_use = self._gpu.in_use()
        if in_use is None or self._before is None:
            return 0
        return max(0, in_use - self._before - by_process.get(self.referee or 0, 0))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, left = [], [pid]
    while left:
        each = left.pop()
        found.append(each)
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            for thread in (PROC / str(each) / "task").iterdir():
                with contextlib.suppress(OSError):
                    left += [int(word) for word in (thread / "children").read_text().split()]
    return found


def mark_to_end_first(pid: int) -> None:
    """Its children inherit it, and can't take it back without privileges."""
    with contextlib.suppress(OSError):
        (PROC / str(pid) / "oom_score_adj").write_text("1000")


def peak_resident(pid: int) -> int:
    """The most that a process ever had in memory, in bytes; 0 once it has gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Gpu:
    """NVML, the driver's own library of figures: what nvidia-smi prints, without starting it each time."""

    class Process(ctypes.Structure):
        _fields_ = (("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("slice", ctypes.c_uint))

    class Memory(ctypes.Structure):
        _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))

    class Use(ctypes.Structure):
        _fields_ = (
            *(("pid", ctypes.c_uint), ("microseconds", ctypes.c_ulonglong)),
            *((name, ctypes.c_uint) for name in ("percent", "memory_percent", "encoder_percent", "decoder_percent")),
        )

    NOT_TOLD = 2**64 - 1
    MOST = 256  # processes

    def __init__(self, index: int) -> None:
        self._device = ctypes.c_void_p()
        self._nvml: ctypes.CDLL | None = None
        with contextlib.suppress(OSError, AttributeError):
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device)) == 0:
                self._nvml = nvml

    def by_process(self) -> dict[int, int]:
        """Bytes by process number."""
        if self._nvml is None:
            return {}
        count, table = ctypes.c_uint(self.MOST), (self.Process * self.MOST)()
        with contextlib.suppress(AttributeError):
            if self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._device, ctypes.byref(count), table) == 0:
                return {each.pid: each.bytes for each in table[: count.value] if each.bytes != self.NOT_TOLD}
        return {}

    def use(self, since: float) -> dict[int, float]:
        """The share of the GPU's time that each process took when the driver last saw it at work, if that was after `since`, in
        seconds since 1970. Some drivers and split GPUs don't tell."""
        if self._nvml is None:
            return {}
        count, table = ctypes.c_uint(self.MOST), (self.Use * self.MOST)()
        with contextlib.suppress(AttributeError):
            begin = ctypes.c_ulonglong(int(since * 1e6))
            if self._nvml.nvmlDeviceGetProcessUtilization(self._device, table, ctypes.byref(count), begin) == 0:
                return {each.pid: each.percent / 100 for each in table[: count.value]}
        return {}

    def in_use(self) -> int | None:
        memory = self.Memory()
        if self._nvml is None or self._nvml.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)) != 0:
            return None
        return int(memory.used)
