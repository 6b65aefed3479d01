"""The memory that a candidate puts its logits into, and the one private copy of it that is scored.

Two kinds with the same calls. `OnHost`: a memory file with sealed size; works everywhere, but a GPU's logits pass the bus to the
host and back (full profile: 690 GB each way, so tens of seconds). `OnGpu`: memory of the driver that both processes map, scored
where it is. Whatever the candidate writes after `take` changes the shared memory and not the copy.
"""

import fcntl
import mmap
from types import ModuleType
from typing import Any, Protocol

import numpy as np

SLOTS = 2  # pieces in shared memory: one is taken while the next is written
PIECE_BYTES = 512 * 2**20  # of logits in one slot, at most
PIECE_SHARE = 64  # of a GPU's memory, at most one part in this many: a small card is not filled by its referee
FLOAT32 = 4  # bytes
SEALS = ("F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE")


class Logits(Protocol):
    transport: str
    descriptor: int  # what the candidate maps it by
    size: int  # bytes

    def clear(self, slot: int) -> None:
        """Fill a slot with NaN, so that nothing is taken for an answer that is none."""

    def take(self, slot: int) -> None:
        """Copy a slot into private memory."""

    def losses(self, targets: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """Nats of these targets (rows, T) under the first rows of the private copy: float32 (rows, T), or (rows,) of the one that
        is `at` this place of each row."""


def seal(descriptor: int, writable: bool = False) -> None:
    """Nobody can change the file's size any more, nor its content unless `writable`. A no-op where there are no seals."""
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return
    names = [name for name in SEALS if not (writable and name == "F_SEAL_WRITE")]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in names))


def rows_of_a_piece(prepare: ModuleType, limit: int = PIECE_BYTES) -> int:
    """Rows whose logits fit into a slot; at least one."""
    return max(1, limit // int(prepare.MAX_SEQ_LEN * prepare.VOCAB_SIZE * FLOAT32))


class OnHost:
    def __init__(self, prepare: ModuleType, rows: int, gpu: bool) -> None:
        """`rows` of logits in each slot; `gpu`: score on it, else in numpy, which spares a CPU run the import of torch."""
        self.prepare, self.gpu, self.transport = prepare, gpu, prepare.HOST_MEMORY
        shape = (SLOTS, rows * prepare.MAX_SEQ_LEN, prepare.VOCAB_SIZE)
        self.size = int(np.prod(shape)) * FLOAT32
        self.descriptor: int = prepare.shared_file("logits", self.size)
        seal(self.descriptor, writable=True)
        self.shared = np.frombuffer(mmap.mmap(self.descriptor, 0), np.float32).reshape(shape)
        self.private = np.empty(shape[1:], np.float32)
        self.is_pinned = not gpu

    def clear(self, slot: int) -> None:
        self.shared[slot].fill(np.nan)

    def take(self, slot: int) -> None:
        np.copyto(self.private, self.shared[slot])
        if not self.is_pinned:  # by the first answer no clock runs any more
            self.pin()

    def pin(self) -> None:
        """The private copy goes to the GPU at the bus's speed from now on."""
        from torch.cuda import cudart

        cudart().cudaHostRegister(self.private.ctypes.data, self.private.nbytes, 0)  # type: ignore[no-untyped-call]
        self.is_pinned = True

    def losses(self, targets: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        wanted = targets.ravel().astype(np.int64)
        if not self.gpu:
            rows, length = targets.shape
            chosen = slice(len(wanted)) if at is None else np.arange(rows) * length + at
            found: np.ndarray = self.prepare.token_losses_on_host(self.private[chosen], wanted[chosen])
            return found.reshape(targets.shape if at is None else rows)
        import torch

        return _on_gpu(self.prepare, torch.from_numpy(self.private[: len(wanted)]).cuda(), targets, at)


class OnGpu:
    def __init__(self, prepare: ModuleType) -> None:
        """All the GPU memory that the referee will need, taken before the candidate can fill it. Raises RuntimeError."""
        import torch

        _, total = torch.cuda.mem_get_info()
        self.prepare, self.transport = prepare, prepare.GPU_MEMORY
        self.rows = rows_of_a_piece(prepare, min(PIECE_BYTES, total // PIECE_SHARE))
        self.memory = prepare.DeviceMemory(SLOTS * self.rows * prepare.MAX_SEQ_LEN * prepare.VOCAB_SIZE * FLOAT32)
        self.descriptor, self.size = self.memory.descriptor, self.memory.size
        self.fit(self.rows)
        self.clear(0)
        self.take(0)
        self.losses(np.zeros((self.rows, prepare.MAX_SEQ_LEN), np.uint16))  # the kernels are loaded, and the scratch memory is ours

    def fit(self, rows: int) -> None:
        """Lay out the slots for pieces of so many rows, `self.rows` at most."""
        import torch

        shape = (SLOTS, rows * self.prepare.MAX_SEQ_LEN, self.prepare.VOCAB_SIZE)
        self.shared = self.memory.tensor(shape)
        self.private = torch.empty(shape[1:], device="cuda")

    def clear(self, slot: int) -> None:
        import torch

        self.shared[slot].fill_(float("nan"))
        torch.cuda.synchronize()

    def take(self, slot: int) -> None:
        import torch

        self.private.copy_(self.shared[slot])
        torch.cuda.synchronize()

    def losses(self, targets: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        return _on_gpu(self.prepare, self.private[: targets.size], targets, at)


def _on_gpu(prepare: ModuleType, logits: Any, targets: np.ndarray, at: np.ndarray | None) -> np.ndarray:
    import torch

    rows, length = targets.shape
    wanted = torch.from_numpy(targets.astype(np.int64)).cuda()
    found: np.ndarray = prepare.token_losses(logits.view(rows, length, prepare.VOCAB_SIZE), wanted).cpu().numpy()
    return found if at is None else found[np.arange(rows), at]
