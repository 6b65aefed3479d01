"""One dialogue with a candidate, message by message, as references/architecture.md lists them.

Whatever the candidate says is bounded, checked and taken once, in one order; what is wrong with it is a `Foul` that names the rule.
A descriptor is looked at before it is read, memory is copied before it is believed, and every wait has an end.
"""

import json
import mmap
import os
import socket
import stat
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autoresearch.experiment import caches
from autoresearch.experiment.logits import SLOTS, Logits, OnGpu, OnHost, rows_of_a_piece, seal

LEAST_BATCHES = (
    4  # so that a batch's own time can be told from work that was queued before it; rows are shown again if they are few
)
MOST_TOKENS = 2**24  # in a batch
PATIENCE = 120.0  # seconds for an answer that takes milliseconds, on a machine that is busy
# Bytes of weights: they are copied, and a referee that runs out of memory stops the night.
WEIGHTS_LIMIT = min(2**33, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
DEVICES = ("cpu", "cuda", "mps", "other")


class Foul(Exception):
    """The candidate broke a rule; the message says which."""


class Overtime(Foul):
    """It trained past its budget."""


class Match:
    def __init__(self, descriptor: int, prepare: ModuleType, evaluation_limit: float, gpu: bool = False) -> None:
        self.prepare, self.evaluation_limit, self.gpu = prepare, evaluation_limit, gpu
        self.channel = prepare.Channel(socket.socket(fileno=descriptor))
        self.began = time.monotonic()
        self.started = self.budget = 0.0
        self.weights = b""
        self.handed_over = 0.0  # when the weights were there, and what the candidate took since then to map its memory
        self.device = self.transport = ""
        self.gpu_memory: Logits | None = None

    # -- messages ------------------------------------------------------------------------------------------------

    def tell(self, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
        self.channel.socket.settimeout(PATIENCE)
        try:
            self.channel.send(message, files)
        except OSError as error:
            raise Foul(f"ended before it heard '{message['op']}' ({error.strerror or error})") from None

    def expect(self, *ops: str, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The candidate's next message, which has to be one of these."""
        self.channel.socket.settimeout(timeout)
        try:
            message, files = self.channel.receive()
        except TimeoutError:
            raise Overtime(f"no '{ops[0]}' in {timeout:.0f} s") from None
        except EOFError:
            raise Foul(f"ended before '{ops[0]}'") from None
        except (OSError, ValueError, RecursionError) as error:
            raise Foul(f"spoke no protocol: {error}") from None
        if message["op"] not in ops:
            raise Foul(f"said '{str(message['op'])[:40]}' where '{ops[0]}' was due")
        if message["op"] != "evaluate":
            for each in files:
                os.close(each)
        return message, files

    # -- before and during training ------------------------------------------------------------------------------

    def sealed_rows(self, rows: np.ndarray, order: np.ndarray | None = None) -> int:
        """The training rows in this run's order, as a memory file that nobody can write any more. Returns its descriptor."""
        descriptor: int = self.prepare.shared_file("rows", rows.nbytes)
        if order is not None:
            with mmap.mmap(descriptor, 0) as memory:
                shuffled = np.frombuffer(memory, np.uint16).reshape(rows.shape)
                np.take(rows, order, axis=0, out=shuffled)
                del shuffled
        seal(descriptor)
        return descriptor

    def hello(self, seed: int) -> None:
        message, _ = self.expect("hello")
        if message.get("version") != self.prepare.PROTOCOL:
            raise Foul(f"speaks version {str(message.get('version'))[:20]} of the protocol, this is {self.prepare.PROTOCOL}")
        facts = {"seq_len": self.prepare.MAX_SEQ_LEN, "vocabulary": self.prepare.VOCAB_SIZE, "dtype": "float32"}
        self.tell({"op": "hello", "version": self.prepare.PROTOCOL, "seed": seed, **facts})

    def await_start(self, live: str = "", snapshot: str = "") -> None:
        """The candidate is built and compiled. Its caches are copied as they are now, before it has seen any data."""
        message, _ = self.expect("start")
        named = message.get("device")
        self.device = named if isinstance(named, str) and named in DEVICES else "other"
        if snapshot:
            caches.copy(Path(live), Path(snapshot))

    def start(self, training: int, rows: int, budget: float, weights: bytes | None = None) -> None:
        """Start the clock, then hand out the rows."""
        files = [training]
        if weights is not None:
            files.append(self.prepare.shared_file("weights", weights))
            seal(files[1])
        self.budget, self.started = budget, time.monotonic()
        self.tell({"op": "start", "rows": rows, "budget": budget, "weights": weights is not None}, tuple(files))
        for each in files:
            os.close(each)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def take_weights(self, timeout: float) -> int:
        """A copy of the model's weights, before any validation token is shown. Returns the rows of a batch."""
        message, files = self.expect("evaluate", timeout=timeout + PATIENCE)
        self.handed_over = time.monotonic()
        batch_rows = message.get("batch_rows")
        if not isinstance(batch_rows, int) or isinstance(batch_rows, bool) or batch_rows < 1 or len(files) != 1:
            raise Foul("asked for evaluation without a whole number of rows and a file of weights")
        with os.fdopen(files[0], "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > WEIGHTS_LIMIT:
                raise Foul(f"weights that are no plain file of up to {WEIGHTS_LIMIT // 2**30} GB")
            file.seek(0)
            self.weights = file.read(found.st_size)
        check_safetensors(self.weights)
        return batch_rows

    def evaluate(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        batch_rows: int,
        least_batches: int = LEAST_BATCHES,
        places: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """Losses (N, T) in nats of targets after inputs, both (N, T), and when the candidate's clock stopped: when its weights were
        handed over, and what its first logits took longer than others. So work that was still queued on its device counts as
        training, and what the referee does for itself meanwhile does not. With `places` (N,) the losses are (N,): those of the
        targets there alone, which the candidate can't tell."""
        count, length = inputs.shape
        if batch_rows * length > MOST_TOKENS:
            raise Foul(f"batches of {batch_rows} rows: at most {MOST_TOKENS // length}")
        random, batches = np.random.default_rng(), max(least_batches, -(-count // batch_rows))
        order = random.permutation(batches * batch_rows).reshape(batches, batch_rows)  # nobody foresees what comes
        more = random.integers(count, size=batches * batch_rows - count)  # fill the batches, unscored
        shown, wanted = np.concatenate([inputs, inputs[more]]), np.concatenate([targets, targets[more]])
        at = None if places is None else np.concatenate([places, places[more]])
        losses = np.zeros(shown.shape if at is None else len(shown), np.float32)

        logits, tokens, piece_rows = self.share(batch_rows)
        pieces = -(-batch_rows // piece_rows)
        asked, answered = np.zeros(batches), np.zeros(batches)  # when; of a batch's first piece

        def ask(number: int) -> None:
            batch, piece = divmod(number, pieces)
            slot = number % SLOTS
            tokens[slot] = shown[order[batch]]
            logits.clear(slot)
            if piece == 0:
                asked[batch] = time.monotonic()
            self.tell({"op": "batch", "slot": slot, "piece": piece})

        ask(0)
        deadline = time.monotonic() + self.evaluation_limit
        for number in range(batches * pieces):
            batch, piece = divmod(number, pieces)
            self.expect("done", timeout=max(0.1, deadline - time.monotonic()))
            if piece == 0:
                answered[batch] = time.monotonic()
            logits.take(number % SLOTS)
            if number + 1 < batches * pieces:
                ask(number + 1)  # the candidate works on while this piece is scored
            rows = order[batch, piece * piece_rows : (piece + 1) * piece_rows]
            losses[rows] = logits.losses(wanted[rows], None if at is None else at[rows])
        took = answered - asked
        stopped = self.handed_over + max(0.0, took[0] - took[1:].min(initial=took[0]))
        return losses[:count], float(stopped)

    def share(self, batch_rows: int) -> tuple[Logits, np.ndarray, int]:
        """Give the candidate memory for tokens and logits: on its GPU if both can map it, else the host's."""
        on_gpu = self.gpu_memory if self.device == "cuda" else None
        if isinstance(on_gpu, OnGpu):
            piece_rows = min(batch_rows, on_gpu.rows)
            on_gpu.fit(piece_rows)
            tokens = self.offer(on_gpu, batch_rows, piece_rows)
            if self.await_mapped("ready", "unmappable") == "ready":
                return on_gpu, tokens, piece_rows
        piece_rows = min(batch_rows, rows_of_a_piece(self.prepare))
        on_host = OnHost(self.prepare, piece_rows, gpu=self.gpu and self.device == "cuda")
        tokens = self.offer(on_host, batch_rows, piece_rows)
        self.await_mapped("ready")
        return on_host, tokens, piece_rows

    def await_mapped(self, *ops: str) -> str:
        began = time.monotonic()
        message, _ = self.expect(*ops, timeout=PATIENCE)
        self.handed_over += time.monotonic() - began
        return str(message["op"])

    def offer(self, logits: Logits, batch_rows: int, piece_rows: int) -> np.ndarray:
        """Send the two descriptors. Returns the memory of the tokens, (slots, B, T)."""
        shape = (batch_rows, self.prepare.MAX_SEQ_LEN, self.prepare.VOCAB_SIZE)
        file = self.prepare.shared_file("tokens", SLOTS * batch_rows * shape[1] * 2)
        seal(file, writable=True)
        tokens = np.frombuffer(mmap.mmap(file, 0), np.uint16).reshape(SLOTS, *shape[:2])
        self.transport = logits.transport
        facts = {"transport": logits.transport, "bytes": logits.size, "dtype": "float32"}
        self.tell({"op": "evaluate", "slots": SLOTS, "shape": shape, "piece_rows": piece_rows, **facts}, (file, logits.descriptor))
        os.close(file)
        return tokens


def check_safetensors(data: bytes) -> None:
    """Raises Foul unless `data` is a safetensors file, by its own header."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise Foul("weights that are no safetensors file") from None
    if end != len(data) - 8 - size:
        raise Foul("weights whose header and length differ")
