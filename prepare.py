"""The fixed half of an experiment: the text, the clock, and the number. Whoever changes train.py may only read it.

`uv run prepare.py` turns the text that constants.py names into rows of tokens, once. After that train.py makes four
calls, the same whether a referee stands behind them or, as here, nobody:

    run = prepare.open_run()                          what this run is; the data is read in the background
    rows = run.start(model)                           the clock starts; before it there is no training text
    run.evaluate_bpb(model, logits_fn, batch_rows)    the clock stops; the validation text is scored
    run.summary(num_steps=..., ...)                   the block of figures that everything else reads

Worth knowing before reading on:
- The score is bits per byte: the model's surprise in bits over the raw bytes it was surprised by. A loss per token
  depends on the vocabulary, this doesn't. A token that is half a UTF-8 character counts the bytes it has.
- A row is MAX_SEQ_LEN + 1 tokens and begins with BOS: inputs are row[:-1], targets row[1:]. No run tokenizes anything.
- The data lies in <cache>/prepared/<source>-v<vocabulary>-t<length>/ with a manifest of hashes, checked when opened;
  other constants are prepared beside it. It is built in a temporary folder and renamed, so it is whole or not there.
- <cache> is AUTORESEARCH_CACHE, else XDG_CACHE_HOME/autoresearch, else ~/.cache/autoresearch.
- At the top only what every run needs of the standard library is imported: a referee, a fingerprint or `--help` shall not
  wait for torch, nor for what preparing alone needs, and a fingerprint not for numpy.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar

from constants import DATASET, EVAL_TOKENS, MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    import numpy as np
    import tiktoken
    import torch

    RunData = tuple[np.ndarray, np.ndarray, np.ndarray]  # training rows, validation rows, bytes per token
else:

    class _Numpy:
        """numpy, imported at its first use: that takes longer than all the rest of this file."""

        def __getattr__(self, name):
            import numpy

            return getattr(numpy, name)

    np = _Numpy()

PROCESS_STARTED = time.perf_counter()  # s; as near to the start of the process as this file can see
NOT_READY, WRONG_CALL, INTERRUPTED = 3, 64, 130  # exit codes; 3: the machine or the data is at fault, not train.py


T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt, in bytes


class NotReady(Exception):
    """The data or this machine can't do what was asked. The message is one line: what, to what, and the way out."""


# ---------------------------------------------------------------------------------------------------------------------
# The four calls


def open_run() -> Run:
    """Say what this run is, and begin to read its data, beside the building and compiling of the model."""
    with _told_in_one_line():
        check_constants()
        _keep_freed_memory()
        if descriptor := os.environ.get("AUTORESEARCH_REFEREE"):
            return RefereedRun(Channel(socket.socket(fileno=int(descriptor))))
        read_manifest()  # data that is missing is told now, not after a minute of compiling
        return Run(_seed())


class Run:
    """One training run by hand: it keeps its own clock and scores itself, so the score is self-reported."""

    refereed = False
    seq_len = MAX_SEQ_LEN
    vocab_size = VOCAB_SIZE
    time_budget = TIME_BUDGET  # s

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.budget = float(TIME_BUDGET)  # s granted; `start` makes it 0 where weights are brought back
        self.val_bpb = math.nan
        self.eval_tokens = 0  # tokens in the rows that were scored
        self._data: Future[RunData] | None = _in_background(lambda: _open_data(seed))
        self._device: torch.device | None = None
        self._started: float | None = None
        self._stopped: float | None = None
        self._evaluation_seconds = 0.0

    def start(self, model: torch.nn.Module) -> np.ndarray:
        """Start the clock and hand out the training rows: uint16 (N, seq_len + 1), shuffled by the seed, contiguous.

        With AUTORESEARCH_WEIGHTS_IN the tensors of that file go into the model and no time is granted: what was trained
        before is only scored again.
        """
        if self._data is None:
            raise RuntimeError("run.start was called twice")
        with _told_in_one_line():
            rows, self._held_out, self._bytes = self._data.result()
            self._data = None  # the rows are train.py's alone now, so that it may free them
            if weights := os.environ.get("AUTORESEARCH_WEIGHTS_IN"):
                load_weights(model, Path(weights))
                self.budget = 0.0
        self._device = next(model.parameters()).device
        _synchronize(self._device)
        self._started = time.perf_counter()
        return rows

    def elapsed(self) -> float:
        """Seconds on the clock: 0 before `start`, and no more from `evaluate_bpb` on."""
        if self._started is None:
            return 0.0
        return (time.perf_counter() if self._stopped is None else self._stopped) - self._started

    def remaining(self) -> float:
        """Seconds of the budget that are left, at least 0."""
        return max(0.0, self.budget - self.elapsed())

    def evaluate_bpb(self, model: torch.nn.Module, logits_fn: LogitsFn, batch_rows: int) -> float:
        """Stop the clock, then score the first EVAL_TOKENS // MAX_SEQ_LEN validation rows (all where there are fewer).

        logits_fn takes tokens (batch_rows, seq_len) on the model's device and gives logits (batch_rows, seq_len, V),
        V >= VOCAB_SIZE: columns beyond are padding. With AUTORESEARCH_WEIGHTS_OUT the weights are written there first.
        """
        if self._device is None:
            raise RuntimeError("run.evaluate_bpb was called before run.start(model)")
        _synchronize(self._device)
        self._stopped = time.perf_counter()
        if weights := os.environ.get("AUTORESEARCH_WEIGHTS_OUT"):
            save_weights(model, Path(weights))
        rows = self._held_out[: EVAL_TOKENS // MAX_SEQ_LEN]
        losses = validation_losses(rows, logits_fn, batch_rows, self._device)
        self.val_bpb = bits_per_byte(losses, rows[:, 1:], self._bytes)
        self.eval_tokens = losses.size
        self._evaluation_seconds = time.perf_counter() - self._stopped
        return self.val_bpb

    def summary(self, *, num_steps: int, total_tokens: int, num_params: int, depth: int, mfu: float | None = None) -> None:
        """Print the block that the harness and `grep "^val_bpb:" run.log` read. mfu is in percent."""
        figures = {
            "val_bpb": f"{self.val_bpb:.6f}",
            "training_seconds": f"{self.elapsed():.1f}",
            "total_seconds": f"{time.perf_counter() - PROCESS_STARTED:.1f}",
            "peak_vram_mb": f"{_peak_memory_mb(self._device):.1f}",
            "mfu_percent": f"{mfu or 0.0:.2f}",
            "total_tokens_M": f"{total_tokens / 1e6:.1f}",
            "num_steps": f"{num_steps}",
            "num_params_M": f"{num_params / 1e6:.1f}",
            "depth": f"{depth}",
            "eval_tokens": f"{self.eval_tokens}",
            "startup_seconds": f"{(self._started or PROCESS_STARTED) - PROCESS_STARTED:.1f}",
            "evaluation_seconds": f"{self._evaluation_seconds:.1f}",
            "score": "refereed" if self.refereed else "self-reported",
        }
        print("---", *(f"{name + ':':<17} {value}" for name, value in figures.items()), sep="\n", flush=True)


class RefereedRun(Run):
    """The same run with a referee behind it: clock, data and score are in another process, at the end of a socket.

    This side is not trusted: nothing that it does or leaves out can change what the other side measures.
    """

    refereed = True

    def __init__(self, channel: Channel) -> None:
        self.budget = float(TIME_BUDGET)
        self.val_bpb = math.nan
        self.eval_tokens = 0
        self.referee = Candidate(channel)
        self.seed = self.referee.seed
        self._device = None
        self._started = self._stopped = None
        self._evaluation_seconds = 0.0

    def start(self, model: torch.nn.Module) -> np.ndarray:
        self._device = next(model.parameters()).device
        _synchronize(self._device)
        rows, self.budget, weights = self.referee.start(self._device.type)
        self._started = time.perf_counter()
        if weights is not None:
            from safetensors.torch import load

            _unwrapped(model).load_state_dict(load(weights))
        return rows

    def evaluate_bpb(self, model: torch.nn.Module, logits_fn: LogitsFn, batch_rows: int) -> float:
        import torch

        device = self._device
        if device is None:
            raise RuntimeError("run.evaluate_bpb was called before run.start(model)")
        _synchronize(device)
        self._stopped = time.perf_counter()
        referee = self.referee
        weights = shared_file("weights", 0)
        _write_weights(model, weights)
        referee.evaluate(weights, batch_rows)
        if referee.shape != (batch_rows, MAX_SEQ_LEN, VOCAB_SIZE):
            raise SystemExit(f"the referee scores logits of shape {referee.shape}: prepare.py and constants.py differ from its own")
        shared = self._shared_logits()
        given, is_pinned = None, referee.transport == GPU_MEMORY or device.type != "cuda"
        for slot, piece in referee.requests():
            if piece == 0:
                given = None  # before the next batch needs the memory
                given = logits_fn(torch.from_numpy(referee.tokens[slot].astype(np.int64)).to(device)).detach()
                _check_logits(given.shape, referee.shape[:2])
            assert given is not None
            part = given[piece * referee.piece_rows : (piece + 1) * referee.piece_rows, :, :VOCAB_SIZE]
            shared[slot, : len(part)].copy_(part)
            _synchronize(device)
            if not is_pinned:  # copies run at the bus's speed then; it takes a second, so not while the clock runs
                torch.cuda.cudart().cudaHostRegister(shared.data_ptr(), shared.nbytes, 0)
                is_pinned = True
        self.val_bpb, self.eval_tokens = referee.score
        self._evaluation_seconds = time.perf_counter() - self._stopped
        return self.val_bpb

    def _shared_logits(self) -> torch.Tensor:
        """The memory that the referee reads the logits from: on its GPU, if this process can map it, else the host's."""
        import torch

        referee = self.referee
        if referee.transport == GPU_MEMORY:
            try:
                self._memory = DeviceMemory(referee.logits_bytes, referee.logits_file)
                return self._memory.tensor(referee.logits_shape)
            except RuntimeError as problem:
                print(f"logits pass through the host's memory: {problem}", flush=True)
                referee.ask_for_host_memory()
        return torch.frombuffer(referee.map_logits(), dtype=torch.float32).view(referee.logits_shape)


# How safetensors calls the types of torch.
_WEIGHT_TYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def _write_weights(model: torch.nn.Module, descriptor: int) -> None:
    """The model's state as safetensors into an empty file. Tensors that share memory are written one by one.

    A clock may be running: each tensor is copied once, from the device into the file. Raises ValueError for a type without a name.
    """
    import torch

    state = {name: tensor.detach() for name, tensor in _unwrapped(model).state_dict().items()}
    spans = list(itertools.pairwise(itertools.accumulate((tensor.nbytes for tensor in state.values()), initial=0)))
    if unknown := {str(tensor.dtype) for tensor in state.values()} - set(_WEIGHT_TYPES):
        raise ValueError(f"weights of the type {', '.join(sorted(unknown))} can't be handed over: keep them as float32 or bfloat16")
    header = json.dumps(
        {
            name: {"dtype": _WEIGHT_TYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": span}
            for (name, tensor), span in zip(state.items(), spans, strict=True)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    first = 8 + len(header)
    os.ftruncate(descriptor, first + (spans[-1][1] if spans else 0))
    with mmap.mmap(descriptor, 0) as memory:
        memory[:first] = len(header).to_bytes(8, "little") + header
        for tensor, (start, _) in zip(state.values(), spans, strict=True):
            if tensor.nbytes:
                place = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=first + start)
                place.copy_(tensor.reshape(-1))
                del place  # the memory can't be unmapped before


# ---------------------------------------------------------------------------------------------------------------------
# The protocol between train.py and the referee, as references/architecture.md has it; both sides use what is here

PROTOCOL = 2  # version of the messages
MESSAGE_LIMIT = 2**16  # bytes of one message
HOST_MEMORY, GPU_MEMORY = "host", "gpu"  # where the logits pass


class Channel:
    """JSON objects, one a line, with open files beside them, over a Unix socket."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._received = b""

    def send(self, message: dict[str, Any], files: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [json.dumps(message).encode() + b"\n"], list(files))

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message and the files that came with it. Raises EOFError at the end, ValueError for what is no message."""
        files: list[int] = []
        while b"\n" not in self._received:
            if len(self._received) > MESSAGE_LIMIT:
                raise ValueError(f"a message of over {MESSAGE_LIMIT} bytes")
            data, more, _, _ = socket.recv_fds(self.socket, MESSAGE_LIMIT, 4)
            files += more
            if not data:
                raise EOFError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            raise ValueError("a message without an op")
        return message, files


class Candidate:
    """train.py's side in bytes and numpy alone: a train.py in any framework can stand on it.

    `start`, then `evaluate`, then put logits into the mapped memory for each of `requests`; `score` is there at their end.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.seed = int(self._ask({"op": "hello", "version": PROTOCOL})[0]["seed"])
        self.score = (math.nan, 0)  # val_bpb, tokens scored

    def _ask(self, message: dict[str, Any], files: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        try:
            self._channel.send(message, files)
            answer, received = self._channel.receive()
        except (OSError, EOFError):
            raise SystemExit("the referee is gone") from None
        if answer["op"] == "refused":
            raise SystemExit(f"refused by the referee: {answer['reason']}")
        return answer, received

    def start(self, device: str) -> tuple[np.ndarray, float, bytes | None]:
        """The clock starts: training rows uint16 (N, T + 1), seconds granted, and weights to begin with, if any."""
        answer, files = self._ask({"op": "start", "device": device})
        rows = np.frombuffer(_mapped(files[0]), np.uint16, count=answer["rows"] * (MAX_SEQ_LEN + 1)).reshape(-1, MAX_SEQ_LEN + 1)
        return rows, float(answer["budget"]), bytes(_mapped(files[1])) if answer["weights"] else None

    def evaluate(self, weights: bytes | int, batch_rows: int) -> None:
        """Hand over the weights (safetensors, or a file of them) and get the memory for tokens (slots, B, T) and logits."""
        file = weights if isinstance(weights, int) else shared_file("weights", weights)
        self._accept(*self._ask({"op": "evaluate", "batch_rows": batch_rows}, [file]))
        os.close(file)

    def ask_for_host_memory(self) -> None:
        self._accept(*self._ask({"op": "unmappable"}))

    def _accept(self, answer: dict[str, Any], files: list[int]) -> None:
        slots, self.piece_rows, self.transport = int(answer["slots"]), int(answer["piece_rows"]), str(answer["transport"])
        self.shape = tuple(int(n) for n in answer["shape"])  # of a batch's logits: (B, T, V)
        self.logits_shape = (slots, self.piece_rows, *self.shape[1:])
        self.logits_bytes, self.logits_file = int(answer["bytes"]), files[1]
        self.tokens = np.frombuffer(_mapped(files[0]), np.uint16).reshape(slots, *self.shape[:2])

    def map_logits(self) -> mmap.mmap:
        """The host's memory for logits_shape in float32."""
        return _mapped(self.logits_file, write=True)

    def requests(self) -> Iterator[tuple[int, int]]:
        """(slot, piece): rows piece * piece_rows .. of the batch whose tokens are in the slot; piece 0 begins a new batch."""
        message = self._ask({"op": "ready"})[0]
        while message["op"] == "batch":
            yield int(message["slot"]), int(message["piece"])
            message = self._ask({"op": "done", "slot": message["slot"]})[0]
        self.score = float(message["val_bpb"]), int(message["eval_tokens"])


def shared_file(name: str, content: bytes | int) -> int:
    """A file in memory, or without a name where there is none: its descriptor. `content` is its bytes or its size."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        import tempfile

        descriptor, path = tempfile.mkstemp()
        Path(path).unlink()
    if isinstance(content, int):
        os.ftruncate(descriptor, content)
    else:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    return descriptor


def _mapped(descriptor: int, write: bool = False) -> mmap.mmap | bytes:
    """A file's content as memory; the descriptor is closed, the memory stays."""
    if os.fstat(descriptor).st_size == 0:  # nothing to map
        os.close(descriptor)
        return b""
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
    os.close(descriptor)
    return mapped


class DeviceMemory:
    """GPU memory that two processes share by a file descriptor: the virtual memory API of CUDA's driver.

    Without a descriptor it is allocated, and `descriptor` is what another process maps it by; nothing else gives access. Raises
    RuntimeError where the driver can't.
    """

    PINNED, ON_DEVICE, BY_DESCRIPTOR, READ_WRITE = 1, 1, 1, 3  # of the driver's enumerations

    class Location(ctypes.Structure):
        _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))

    class Properties(ctypes.Structure):
        pass

    class Access(ctypes.Structure):
        pass

    Properties._fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )
    Access._fields_ = (("location", Location), ("flags", ctypes.c_int))

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        import torch

        torch.zeros(1, device="cuda")  # makes the device's context the current one
        index = torch.cuda.current_device()
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"no driver library: {error}") from None
        self._index, handle, address = index, ctypes.c_uint64(), ctypes.c_uint64()
        if descriptor is None:
            kind = self.Properties(type=self.PINNED, handle_types=self.BY_DESCRIPTOR, location=self._location())
            step, exported = ctypes.c_size_t(), ctypes.c_int(-1)
            self._call("cuMemGetAllocationGranularity", ctypes.byref(step), ctypes.byref(kind), 1)
            size = -(-size // step.value) * step.value
            self._call("cuMemCreate", ctypes.byref(handle), ctypes.c_size_t(size), ctypes.byref(kind), ctypes.c_uint64(0))
            self._call("cuMemExportToShareableHandle", ctypes.byref(exported), handle, self.BY_DESCRIPTOR, ctypes.c_uint64(0))
            descriptor = exported.value
        else:
            self._call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(descriptor), self.BY_DESCRIPTOR)
        self.size, self.descriptor = size, descriptor
        none, whole = ctypes.c_uint64(0), ctypes.c_size_t(size)
        self._call("cuMemAddressReserve", ctypes.byref(address), whole, ctypes.c_size_t(0), none, none)
        self._call("cuMemMap", address, whole, ctypes.c_size_t(0), handle, none)
        access = self.Access(location=self._location(), flags=self.READ_WRITE)
        self._call("cuMemSetAccess", address, whole, ctypes.byref(access), ctypes.c_size_t(1))
        self._call("cuMemRelease", handle)  # the mapping keeps the memory
        self.address = int(address.value)

    def _location(self) -> DeviceMemory.Location:
        return self.Location(type=self.ON_DEVICE, id=self._index)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} failed with CUDA error {code}")

    def tensor(self, shape: Sequence[int]) -> torch.Tensor:
        """The memory's beginning as float32; it lives as long as the process."""
        import torch

        described = {"shape": tuple(shape), "typestr": "<f4", "data": (self.address, False), "version": 3}

        class Array:
            __cuda_array_interface__: ClassVar = described

        return torch.as_tensor(Array(), device=f"cuda:{self._index}")


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """At train.py's border NotReady becomes a line on stderr and exit code 3, without a traceback."""
    try:
        yield
    except NotReady as problem:
        print(f"not ready: {problem}", file=sys.stderr, flush=True)
        raise SystemExit(NOT_READY) from None


def _seed() -> int:
    text = os.environ.get("AUTORESEARCH_SEED", "1337")
    if not re.fullmatch("[0-9]+", text):
        raise NotReady(f"AUTORESEARCH_SEED is {text!r}: wanted a whole number, 0 or more")
    return int(text)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """The coming result, or error, of `work` in a daemon thread: a crash elsewhere need not wait for it."""
    from concurrent.futures import Future

    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


def _open_data(seed: int) -> RunData:
    """Training rows shuffled by the seed, validation rows, bytes per token: all checked, all in memory."""
    rows = load_rows("train")
    shuffled = np.empty(rows.shape, np.uint16)
    order = np.random.default_rng(seed).permutation(len(rows))
    for at in range(0, len(order), 4096):  # in parts: between them the thread that compiles has its turn
        shuffled[at : at + 4096] = rows[order[at : at + 4096]]
    return shuffled, np.array(load_rows("val"), np.uint16), token_bytes()


def _synchronize(device: torch.device) -> None:
    """Wait for the work queued on the device: a clock read before would not count it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _keep_freed_memory() -> None:
    """On Linux, let malloc keep what is freed: returning every large tensor to the kernel costs a CPU run a third of its speed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _peak_memory_mb(device: torch.device | None) -> float:
    """Peak memory of the device in MB of 2**20 bytes; on a CPU the peak resident memory of this process."""
    import resource

    import torch

    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device is not None and device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KB elsewhere


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy a safetensors file into the model, in place; names and shapes must be the model's own."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise NotReady(f"AUTORESEARCH_WEIGHTS_IN names {path}: there is no such file")
    _unwrapped(model).load_state_dict(load_file(path))


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the model's state as safetensors, by rename."""
    part = path.with_name(path.name + ".part")
    with part.open("w+b") as file:
        _write_weights(model, file.fileno())
    part.replace(path)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside torch.compile's wrapper, which puts a prefix before every name."""
    return getattr(model, "_orig_mod", model)


# ---------------------------------------------------------------------------------------------------------------------
# The metric: pure functions, for a referee to call as well

LogitsFn = Callable[["torch.Tensor"], "torch.Tensor"]
SCORED_AT_ONCE = 2**26  # logits taken to float32 at a time: 256 MB, so that scoring never sets the peak of memory


def validation_losses(rows: np.ndarray, logits_fn: LogitsFn, batch_rows: int, device: torch.device) -> np.ndarray:
    """Nats for every target of rows (N, T + 1): float32 (N, T). Each call of logits_fn has the same shape."""
    import torch

    count, width = rows.shape
    padded = np.zeros((math.ceil(count / batch_rows) * batch_rows, width), np.int32)
    padded[:count] = rows
    losses = []
    for batch in torch.from_numpy(padded).to(device).split(batch_rows):  # uploaded once: no batch waits for its own
        batch = batch.long()
        losses.append(token_losses(logits_fn(batch[:, :-1].contiguous()), batch[:, 1:].contiguous()))
    return torch.cat(losses)[:count].cpu().numpy()


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per target, float32, in the shape of targets (B, T); each at least 0, whatever was rounded.

    logits is (B, T, V) of any floating type; the softmax is taken in float32, over the first VOCAB_SIZE columns.
    """
    import torch

    _check_logits(logits.shape, targets.shape)
    size = max(1, SCORED_AT_ONCE // VOCAB_SIZE)
    with torch.no_grad():
        parts = zip(logits.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)
        nats = [torch.nn.functional.cross_entropy(part[:, :VOCAB_SIZE].float(), right, reduction="none") for part, right in parts]
        return torch.cat(nats).clamp_(min=0).view(targets.shape)


def token_losses_on_host(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The same for float32 logits (N, V) and targets (N,) in the host's memory, without torch, whose import takes seconds."""
    losses = np.empty(len(targets), np.float32)
    at_once = max(1, 2**15 // logits.shape[1])  # 128 KB stay in a core's cache
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits give a loss that is not finite, and that is told
        for at in range(0, len(targets), at_once):
            part, right = logits[at : at + at_once], targets[at : at + at_once]
            top = part.max(axis=1)
            total = np.exp(part - top[:, None]).sum(axis=1)
            losses[at : at + at_once] = np.log(total) - (part[np.arange(len(right)), right] - top)
    return np.maximum(losses, 0)


def _check_logits(shape: Sequence[int], tokens: Sequence[int]) -> None:
    """Raise ValueError unless these are logits for a batch of tokens (B, T)."""
    if len(shape) != 3 or tuple(shape[:2]) != tuple(tokens) or shape[2] < VOCAB_SIZE:
        wanted = f"({tokens[0]}, {tokens[1]}, {VOCAB_SIZE} or more)"
        raise ValueError(f"logits_fn gave logits of shape {tuple(shape)}: wanted {wanted}")


def bits_per_byte(losses: np.ndarray, targets: np.ndarray, bytes_of: np.ndarray) -> float:
    """sum(nats) / (ln 2 * sum(bytes)) in float64, over the targets whose token has bytes (BOS has none).

    losses and targets have one shape; bytes_of is `token_bytes()`. Raises RuntimeError where a loss is not finite.
    """
    sizes = bytes_of[targets]
    nats = losses[sizes > 0].astype(np.float64)
    broken = nats.size - np.count_nonzero(np.isfinite(nats))
    if broken:
        raise RuntimeError(f"{broken} of {nats.size} validation losses are not finite: the model has diverged")
    return float(nats.sum() / (math.log(2) * sizes.sum(dtype=np.float64)))


# ---------------------------------------------------------------------------------------------------------------------
# The prepared data, as it is opened

FORMAT = 1  # of the prepared folder: data of another format is prepared anew
FILES = ("tokenizer.json", "train.bin", "val.bin")
ROW_DTYPE = "<u2"
WAY_OUT = "run `bash scripts/setup.sh` (or, in a lab that is set up, `uv run prepare.py`)"


def check_constants() -> None:
    """Raise NotReady where constants.py holds what can't work."""
    number = (int, float)
    rules: tuple[tuple[str, Any, type | tuple[type, ...], Callable[[Any], bool], str], ...] = (
        ("MAX_SEQ_LEN", MAX_SEQ_LEN, int, lambda n: n >= 64 and n & (n - 1) == 0, "a power of two, 64 or more"),
        ("VOCAB_SIZE", VOCAB_SIZE, int, lambda n: 258 <= n <= 65536, "a whole number from 258 to 65536"),
        ("EVAL_TOKENS", EVAL_TOKENS, int, lambda n: n >= MAX_SEQ_LEN, "a whole number, MAX_SEQ_LEN or more"),
        ("TIME_BUDGET", TIME_BUDGET, number, lambda s: 0 < s < math.inf, "seconds, more than 0"),
        ("DATASET", DATASET, str, bool, "a name or the path of a folder"),
    )
    for name, value, kind, holds, wanted in rules:
        if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
            raise NotReady(f"constants.py has {name} = {value!r}: wanted {wanted}")


def cache_folder() -> Path:
    if own := os.environ.get("AUTORESEARCH_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autoresearch"


def prepared_folder() -> Path:
    """Where the data of these constants is, or will be. EVAL_TOKENS has no part in it: it only counts rows."""
    return cache_folder() / "prepared" / f"{source_name()}-v{VOCAB_SIZE}-t{MAX_SEQ_LEN}"


def read_manifest() -> dict[str, Any]:
    """The manifest of the prepared data, after a look that the files are there. Raises NotReady."""
    folder = prepared_folder()
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        sizes = {name: manifest["files"][name]["bytes"] for name in FILES}
        known = manifest["format"] == FORMAT
    except (FileNotFoundError, NotADirectoryError):
        raise NotReady(f"no data is prepared for these constants ({folder}): {WAY_OUT}") from None
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise NotReady(f"{folder / 'manifest.json'} can't be read: {WAY_OUT}")
    for name, size in sizes.items():
        if _size(folder / name) != size:
            raise NotReady(f"{folder / name} is missing or has another size than prepared: {WAY_OUT}")
    return manifest


def data_fingerprint() -> str:
    """sha256 over the hashes of the prepared files: scores on data with different ones don't compare. Raises NotReady."""
    check_constants()
    files = read_manifest()["files"]
    return hashlib.sha256("".join(f"{name} {files[name]['sha256']}\n" for name in FILES).encode()).hexdigest()


def check_data() -> str:
    """`data_fingerprint` after every file was read and compared with its hash. Raises NotReady."""
    for name in FILES:
        _checked(name)
    return data_fingerprint()


def hidden_files() -> str:
    """The files outside the prepared folder that hold validation text, one a line: a sandbox hides them."""
    return "\n".join(str(path) for path in stdlib_heldout_files()) if DATASET == "stdlib" else ""


def load_rows(split: str) -> np.ndarray:
    """The rows of `train` or `val`: uint16 (N, MAX_SEQ_LEN + 1), checked, mapped from the disk, read-only."""
    return np.memmap(_checked(f"{split}.bin"), ROW_DTYPE, "r").reshape(-1, MAX_SEQ_LEN + 1)


def load_tokenizer() -> tiktoken.Encoding:
    return _encoding(_checked("tokenizer.json"))


def token_bytes() -> np.ndarray:
    """Raw bytes of each token: int32 (VOCAB_SIZE,); 0 for BOS, and for entries that a small text left unused."""
    sizes = np.zeros(VOCAB_SIZE, np.int32)
    for rank, token in enumerate(json.loads(_checked("tokenizer.json").read_bytes())["ranks"]):
        sizes[rank] = len(base64.b64decode(token))
    return sizes


def _checked(name: str) -> Path:
    """The path of a prepared file, whose sha256 is the manifest's. Raises NotReady."""
    wanted = read_manifest()["files"][name]["sha256"]
    path = prepared_folder() / name
    if file_sha256(path) != wanted:
        raise NotReady(f"{path} was changed since it was prepared (its sha256 differs): {WAY_OUT}")
    return path


def _encoding(path: Path) -> tiktoken.Encoding:
    import tiktoken

    stored = json.loads(path.read_bytes())
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(stored["ranks"])}
    special = stored["special"]
    return tiktoken.Encoding("autoresearch", pat_str=stored["pattern"], mergeable_ranks=ranks, special_tokens=special)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Preparation: text -> tokenizer -> tokens -> rows -> a folder with a manifest

# GPT-4's split into words, punctuation, line ends and blanks; but numbers have two digits at most, not three: a small
# vocabulary has better uses for a thousand entries.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SAMPLE_CHARS = 200_000_000  # the tokenizer is trained on this much training text at most, from all files alike
DOCUMENT_CHARS = 2**20  # a longer text is several documents: bounds memory, and the tokenizer's worst cases
JOB_CHARS = 2**20  # text sent to a tokenizing process at a time
MAX_WORKERS = 32  # tokenizing processes: what one reading process can feed
PACK_BUFFER = 4096  # pieces to choose from while a row is filled
VAL_ORDER_SEED = 0  # fixed for good: any first part of the validation rows is a fair sample of them


def prepare(num_shards: int | None = None) -> None:
    """Make the prepared folder of these constants, unless it is there and whole. Raises NotReady."""
    check_constants()
    folder = prepared_folder()
    if not _is_prepared(num_shards):
        with _locked(cache_folder()):
            if not _is_prepared(num_shards):  # nobody did it while we waited
                began = time.perf_counter()
                counts = _build(find_inputs(num_shards), folder)
                tokens = " and ".join(f"{counts[split]['tokens']:,} {split} tokens" for split in counts)
                print(f"prepared {tokens} in {time.perf_counter() - began:.1f} s: {folder}")
                return
    print(f"prepared already: {folder}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One preparation at a time: the second waits, and finds the work done."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prepare.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another preparation is running: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_prepared(num_shards: int | None) -> bool:
    """Whether the data is there, whole, and made of what is asked for now."""
    try:
        manifest = read_manifest()
        check_data()
    except NotReady:
        return False
    return not _inputs_changed(manifest["inputs"], num_shards)


def _build(inputs: Inputs, folder: Path) -> dict[str, dict[str, int]]:
    """Fill a temporary folder beside `folder`, see it onto the disk, and let it take its place. Returns the counts."""
    building, old = folder.with_name(f".{folder.name}.building"), folder.with_name(f".{folder.name}.old")
    for left_over in (building, old):
        shutil.rmtree(left_over, ignore_errors=True)
    building.mkdir(parents=True)
    _say("training the tokenizer")
    (building / "tokenizer.json").write_text(json.dumps(train_tokenizer(inputs)))
    with _tokenizing_processes(building / "tokenizer.json") as pool:
        counts = {split: _write_rows(inputs, split, building, pool) for split in ("train", "val")}
    _say("")
    (building / "manifest.json").write_text(json.dumps(_manifest(inputs, building, counts), indent=1))
    for name in (*FILES, "manifest.json", "."):
        _fsync(building / name)
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return counts


def _manifest(inputs: Inputs, folder: Path, counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    files = {name: {"sha256": file_sha256(folder / name), "bytes": _size(folder / name)} for name in FILES}
    for split in counts:
        files[f"{split}.bin"]["rows"] = counts[split]["rows"]
    return {
        "format": FORMAT,
        "source": source_name(),
        "dataset": DATASET,
        "open_text": DATASET == "stdlib",  # a run could have read its validation text elsewhere
        "seq_len": MAX_SEQ_LEN,
        "vocab_size": VOCAB_SIZE,
        "files": files,
        "counts": counts,
        "inputs": [item | {"sha256": file_sha256(inputs.root / item["name"])} for item in inputs.listed()],
    }


def train_tokenizer(inputs: Inputs) -> dict[str, Any]:
    """BPE over a bounded sample of the training text, as data: {pattern, ranks: base64 in order of rank, special}."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(inputs.sample(SAMPLE_CHARS), VOCAB_SIZE - 1, pattern=PATTERN)
    ranks = sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = [base64.b64encode(bytes(token)).decode() for token, _ in ranks]
    return {"pattern": PATTERN, "ranks": tokens, "special": {"<|bos|>": VOCAB_SIZE - 1}}


def _write_rows(inputs: Inputs, split: str, folder: Path, pool: ProcessPoolExecutor) -> dict[str, int]:
    """Tokenize, pack and write one split. Returns its counts; `packed` are the tokens that came into rows."""
    counts = {"documents": 0, "tokens": 0, "bytes": 0, "packed": 0, "rows": 0}
    bos = VOCAB_SIZE - 1

    def documents() -> Iterator[np.ndarray]:
        for tokens, size in tokenized(inputs.texts(split), pool):
            counts["documents"] += 1
            counts["tokens"] += len(tokens)
            counts["bytes"] += size
            if counts["documents"] % 1000 == 0:
                _say(f"{split}: {counts['tokens'] / 1e6:.1f} M tokens")
            yield tokens

    # Training text is scarce, so what a cut left over comes back. In validation it doesn't: there a document is read
    # from its beginning, as in the figures that others publish.
    rows = pack(documents(), MAX_SEQ_LEN + 1, bos, keep_tails=split == "train")
    if split == "val":
        ordered = list(rows)
        rows = (ordered[i] for i in np.random.default_rng(VAL_ORDER_SEED).permutation(len(ordered)))
    with (folder / f"{split}.bin").open("wb") as file:
        for row in rows:
            file.write(row.astype(ROW_DTYPE, copy=False).tobytes())
            counts["packed"] += int(np.count_nonzero(row != bos))
            counts["rows"] += 1
    if not counts["rows"]:
        raise NotReady(f"{DATASET} has too little {split} text: {counts['tokens']} tokens fill no row of {MAX_SEQ_LEN}")
    return counts


@contextlib.contextmanager
def _tokenizing_processes(tokenizer: Path) -> Iterator[ProcessPoolExecutor]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")  # the tokenizer's training left threads behind: no fork
    pool = ProcessPoolExecutor(min(cores, MAX_WORKERS), spawn, _start_worker, (tokenizer,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_worker_encoding: tiktoken.Encoding  # of a tokenizing process


def _start_worker(tokenizer: Path) -> None:
    import multiprocessing

    global _worker_encoding
    _worker_encoding = _encoding(tokenizer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:  # else a killed preparation leaves its workers waiting for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def tokenized(texts: Iterable[str], pool: ProcessPoolExecutor) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens as uint16, bytes) of each text, in order, with a bounded number of texts on their way."""
    ahead = 3 * MAX_WORKERS
    waiting: deque[Future[tuple[np.ndarray, list[int], list[int]]]] = deque()
    for job in itertools.chain(_jobs(texts), itertools.repeat(None, ahead)):
        if job is not None:
            waiting.append(pool.submit(_tokenize_job, job))
        if waiting and (job is None or len(waiting) == ahead):
            tokens, ends, sizes = waiting.popleft().result()
            yield from zip(np.split(tokens, ends[:-1]), sizes, strict=True)


def _jobs(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about JOB_CHARS characters."""
    job: list[str] = []
    chars = 0
    for text in texts:
        job.append(text)
        chars += len(text)
        if chars >= JOB_CHARS:
            yield job
            job, chars = [], 0
    if job:
        yield job


def _tokenize_job(texts: list[str]) -> tuple[np.ndarray, list[int], list[int]]:
    """The tokens of all texts in one array, where each text ends in it, and the bytes of each."""
    documents = [_worker_encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16) for text in texts]
    return np.concatenate(documents), list(itertools.accumulate(map(len, documents))), [len(t.encode()) for t in texts]


def pack(documents: Iterable[np.ndarray], row_tokens: int, bos: int, keep_tails: bool) -> Iterator[np.ndarray]:
    """Full rows of row_tokens tokens from documents (arrays of tokens), by best fit, with a BOS before each piece.

    A document longer than a row is several pieces, each as long as a row. A row takes, again and again, the largest
    waiting piece that fits; when none fits, the shortest is cut to fill it, and the tail becomes a piece of its own
    (keep_tails) or is dropped. A single place left gets a lone BOS. What doesn't fill a last row is dropped.
    """
    pieces = (tokens[at : at + row_tokens - 1] for tokens in documents for at in range(0, len(tokens), row_tokens - 1))
    by_length: list[deque[np.ndarray]] = [deque() for _ in range(row_tokens)]
    lengths = 0  # bit n is set where a piece of n tokens waits
    waiting = 0

    def put(piece: np.ndarray) -> None:
        nonlocal lengths, waiting
        by_length[len(piece)].append(piece)
        lengths |= 1 << len(piece)
        waiting += 1

    def take(length: int) -> np.ndarray:
        nonlocal lengths, waiting
        piece = by_length[length].popleft()
        lengths &= -1 if by_length[length] else ~(1 << length)
        waiting -= 1
        return piece

    while True:
        row = np.full(row_tokens, bos, np.uint16)
        at = 1
        while at < row_tokens:
            for piece in itertools.islice(pieces, PACK_BUFFER - waiting):
                put(piece)
            if not waiting:
                return
            room = row_tokens - at
            fitting = lengths & ((2 << room) - 1)
            piece = take((fitting or lengths & -lengths).bit_length() - 1)
            if len(piece) > room and keep_tails:
                put(piece[room:])
            piece = piece[:room]
            row[at : at + len(piece)] = piece
            at += len(piece) + 1
        yield row


def _say(text: str) -> None:
    """Progress on one line of a terminal that is written over; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# Sources: where the text comes from


@dataclass(frozen=True)
class Inputs:
    """The files of a source, sorted. Without held-out files every 20th document, by its hash, is validation text."""

    root: Path
    train: list[Path]
    held_out: list[Path]

    def texts(self, split: str) -> Iterator[str]:
        for path in self.held_out if self.held_out and split == "val" else self.train:
            for text in read_documents(path):
                if self.held_out or _falls_to_validation(text) == (split == "val"):
                    yield text

    def sample(self, chars: int) -> Iterator[str]:
        """Training text for the tokenizer: about the same share from the beginning of every file, `chars` in all."""
        total = 0
        for number, path in enumerate(self.train, start=1):
            share = chars * number // len(self.train)  # what files before this one left over is taken here
            for text in read_documents(path):
                if total >= share:
                    break
                if self.held_out or not _falls_to_validation(text):
                    yield text
                    total += len(text)

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"name": path.relative_to(self.root).as_posix(), "bytes": path.stat().st_size, "held_out": held_out}
            for paths, held_out in ((self.train, False), (self.held_out, True))
            for path in paths
        ]


HELD_OUT_EVERY = 20  # documents


def _falls_to_validation(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % HELD_OUT_EVERY == 0


def source_name() -> str:
    """The source as a folder is called after it: a name, or a folder's own name and a hash of where it lies."""
    if DATASET == "stdlib" or DATASET in HUB:
        return DATASET
    folder = _dataset_folder()
    label = re.sub(r"[^A-Za-z0-9._]+", "-", folder.name).strip("-.") or "folder"
    return f"{label}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _dataset_folder() -> Path:
    """DATASET as a path; a relative one counts from the lab, wherever the command is called from."""
    return (Path(__file__).resolve().parent / Path(DATASET).expanduser()).resolve()


def find_inputs(num_shards: int | None) -> Inputs:
    """The files of the source that constants.py names; a Hugging Face source is downloaded as far as it is not here."""
    if DATASET == "stdlib":
        return stdlib_inputs()
    return hub_inputs(HUB[DATASET], num_shards) if DATASET in HUB else folder_inputs(_dataset_folder())


def _inputs_changed(had: list[dict[str, Any]], num_shards: int | None) -> bool:
    """Whether other inputs than `had` are asked for now. What can't be seen any more has not changed."""
    if DATASET in HUB:
        return num_shards is not None and num_shards != sum(not item["held_out"] for item in had)
    if DATASET == "stdlib" or not _dataset_folder().is_dir():
        return False  # an upgrade of Python is no reason to change the text under a session
    hashes = [{"sha256": item["sha256"]} for item in had]  # sizes are compared, not contents: this must be quick
    now = folder_inputs(_dataset_folder()).listed()
    return len(now) != len(had) or [item | known for item, known in zip(now, hashes, strict=True)] != had


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file, by its name's ending; long ones in parts. Raises NotReady where it can't be read."""
    import lzma

    import pyarrow

    kind = path.name.lower().removesuffix(".xz").removesuffix(".zst").rpartition(".")[2]
    documents = {"parquet": _parquet_documents, "jsonl": _jsonl_documents}.get(kind, _plain_documents)
    try:
        for text in documents(path):
            for at in range(0, len(text), DOCUMENT_CHARS):
                # A lone surrogate, which JSON can spell, has no bytes: it becomes a question mark.
                yield text[at : at + DOCUMENT_CHARS].encode(errors="replace").decode()
    except (OSError, EOFError, ValueError, KeyError, lzma.LZMAError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotReady(f"{path} can't be read: {reason}. Mend it or remove it, then {WAY_OUT}") from None


def _open_bytes(path: Path) -> IO[bytes]:
    import pyarrow

    ending = path.suffix.lower()
    if ending == ".xz":
        import lzma

        return lzma.open(path)
    if ending == ".zst":
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return path.open("rb")


def _parquet_documents(path: Path) -> Iterator[str]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise ValueError("it has no column 'text'")
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)


def _jsonl_documents(path: Path) -> Iterator[str]:
    with _open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    text = None
                if not isinstance(text, str):
                    raise ValueError(f'line {number} is not {{"text": "..."}}')
                yield text


def _plain_documents(path: Path) -> Iterator[str]:
    """A file is one document, in parts that end with a line where it is long."""
    with _open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8", errors="replace") as file:
        while text := file.read(DOCUMENT_CHARS // 2):
            yield text + file.readline(DOCUMENT_CHARS // 2)


def folder_inputs(root: Path) -> Inputs:
    """Every parquet, jsonl and txt file (also .xz and .zst) under a folder; names with `val` in them are held out."""
    if not root.is_dir():
        names = ", ".join((*HUB, "stdlib"))
        raise NotReady(f"DATASET {DATASET!r} in constants.py is none of {names}, nor a folder that exists")
    wanted = re.compile(r".*\.(parquet|(jsonl|txt)(\.xz|\.zst)?)", re.IGNORECASE)
    paths = [p for p in sorted(root.rglob("*")) if wanted.fullmatch(p.name) and p.is_file()]
    paths = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    train = [p for p in paths if "val" not in p.name.lower()]
    if not train:
        raise NotReady(f"{root} has no training text: no .parquet, .jsonl or .txt file (.xz and .zst too) without 'val'")
    return Inputs(root, train, [p for p in paths if "val" in p.name.lower()])


# Modules that no training run imports (a test looks), in every distribution of Python: Debian's too, which splits
# tkinter, idlelib and others off. Some of them left in 3.13; the rest still is enough for the CPU profile.
STDLIB_HELD_OUT = (
    "_pydecimal _pyio aifc cgi cgitb chunk curses dbm ftplib imaplib mailbox mailcap modulefinder netrc nntplib "
    "optparse pipes poplib pyclbr sched shelve smtplib sndhdr sunau tabnanny telnetlib trace wave wsgiref "
    "xdrlib xmlrpc"
)
# Tests, tables, generated text, and what other packages put there.
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}


def stdlib_inputs() -> Inputs:
    root = Path(sysconfig.get_path("stdlib")).resolve()
    paths = [p for p in sorted(root.rglob("*.py")) if not STDLIB_LEFT_OUT & {*p.relative_to(root).parts}]
    paths = [p for p in paths if not p.name.startswith("_sysconfigdata") and p.stat().st_size]
    held_out = [p for p in paths if p.relative_to(root).parts[0].removesuffix(".py") in STDLIB_HELD_OUT.split()]
    if not held_out:
        raise NotReady(f"this Python has no sources of its standard library ({root}): choose another DATASET")
    return Inputs(root, [p for p in paths if p not in held_out], held_out)


def stdlib_heldout_files() -> list[Path]:
    """The held-out modules' sources on this machine: a sandbox hides them from a run."""
    return stdlib_inputs().held_out


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face: shards of parquet, the last one held out


@dataclass(frozen=True)
class HubSource:
    repo: str
    shards: int


HUB = {
    "fineweb-edu": HubSource("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": HubSource("karpathy/climbmix-400b-shuffle", 6543),
}
NUM_SHARDS = 10  # training shards by default: about 500 M tokens, what passes in 300 s on the fastest card
TRIES = 5  # in a row without a new byte, with waits of 1, 2, 4 and 8 times RETRY_SECONDS between them
RETRY_SECONDS = 1.0  # AUTORESEARCH_RETRY_SECONDS overrides it
WITHOUT_NETWORK = "or go without: `setup --source stdlib`, or `setup --source FOLDER` with text of your own"


def hub_inputs(source: HubSource, num_shards: int | None) -> Inputs:
    root = cache_folder() / "data" / DATASET
    count = num_shards or NUM_SHARDS
    if count >= source.shards:
        raise NotReady(f"--num-shards {count}: {DATASET} has {source.shards - 1} training shards")
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"shard_{number:05d}.parquet" for number in (*range(count), source.shards - 1)]
    for number, path in enumerate(paths, start=1):
        if not path.exists():  # it gets its name only when its hash was right
            download(source.repo, path)
            print(f"downloaded {path.name} ({number} of {len(paths)})", file=sys.stderr, flush=True)
    return Inputs(root, paths[:-1], paths[-1:])


def download(repo: str, path: Path) -> None:
    """Fetch a file of a dataset on the Hub, or at HF_ENDPOINT, from where an earlier try broke off. Raises NotReady.

    `hf_hub_download` would be one line, but at an error or a kill it throws away what it had (huggingface_hub 2).
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    part = path.with_name(path.name + ".part")
    tries = 0
    furthest = _size(part)
    while True:
        try:
            reason = _fetch(repo, path.name, part)
            if not reason:
                part.replace(path)
                return
        except OfflineModeIsEnabled:
            raise NotReady(f"{path.name} is not here and HF_HUB_OFFLINE is set: unset it, {WITHOUT_NETWORK}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            reason = f"the Hub answers {status} for {repo}/{path.name}"
            if status not in (408, 416, 429) and status < 500:
                raise NotReady(f"{reason}: look at HF_ENDPOINT and --num-shards, {WITHOUT_NETWORK}") from None
        except HTTPError as error:
            reason = f"{path.name} can't be downloaded ({type(error).__name__}: {error})"
        tries = 1 if _size(part) > furthest else tries + 1
        furthest = max(furthest, _size(part))
        if tries >= TRIES:
            raise NotReady(f"{reason}. Look at the network and HF_ENDPOINT and try again, {WITHOUT_NETWORK}")
        wait = float(os.environ.get("AUTORESEARCH_RETRY_SECONDS", RETRY_SECONDS)) * 2 ** (tries - 1)
        print(f"{reason}: trying again in {wait:g} s", file=sys.stderr, flush=True)
        time.sleep(wait)


def _fetch(repo: str, name: str, part: Path) -> str:
    """Ask once for what `part` lacks. Returns what is wrong with it then, or nothing; wrong bytes are removed."""
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

    url = hf_hub_url(repo, name, repo_type="dataset")
    metadata = get_hf_file_metadata(url)
    if not re.fullmatch("[0-9a-f]{64}", metadata.etag or ""):
        raise NotReady(f"{url} comes without its sha256: look at HF_ENDPOINT, {WITHOUT_NETWORK}")
    have = max(0, _size(part))
    if have != metadata.size:
        headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
            if response.status_code == 416:  # what is here is longer than the file
                part.unlink(missing_ok=True)
            hf_raise_for_status(response)
            have, mode = (have, "ab") if response.status_code == 206 else (0, "wb")
            bar = tqdm(desc=name, total=metadata.size, initial=have, unit="B", unit_scale=True, disable=None)
            with bar, part.open(mode) as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    bar.update(len(chunk))
    _fsync(part)
    if metadata.size and _size(part) < metadata.size:
        return f"{name} broke off at {_size(part):,} of {metadata.size:,} bytes"
    if file_sha256(part) == metadata.etag:
        return ""
    part.unlink()
    return f"{name} arrived damaged (its sha256 is not the one that the Hub names)"


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main(argv: list[str] | None = None) -> int:
    import argparse
    from concurrent.futures.process import BrokenProcessPool

    parser = argparse.ArgumentParser(prog="prepare.py", description="Prepare the text that constants.py names, once.")
    shards_help = f"training shards of a Hugging Face source to download (default: {NUM_SHARDS})"
    parser.add_argument("--num-shards", type=_at_least_one, metavar="N", help=shards_help)
    try:
        num_shards = parser.parse_args(argv).num_shards
    except SystemExit as stop:
        return WRONG_CALL if stop.code else 0
    try:
        prepare(num_shards)
    except NotReady as problem:
        return _stopped(NOT_READY, f"not ready: {problem}")
    except (OSError, BrokenProcessPool) as problem:  # a full or read-only disk; a process killed for want of memory
        return _stopped(NOT_READY, f"not ready: {problem} (while preparing in {cache_folder()})")
    except KeyboardInterrupt:
        return _stopped(INTERRUPTED, "stopped: what was downloaded is kept; run it again to go on")
    return 0


def _stopped(code: int, line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
