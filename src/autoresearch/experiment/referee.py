"""The referee: a process of its own that holds the clock, the training rows, the validation text, and the score.

    python -P -m autoresearch.experiment.referee SPEC        SPEC: JSON of `Spec`; one end of a socket pair is inherited

The candidate (train.py, untrusted) has the other end and nothing else. It gets the training rows when the clock starts, hands over
its weights when it says that it is done, and then answers batches of validation tokens with logits in memory that both share. The
referee empties that memory before each batch, takes one private copy when the batch is done and scores the copy. Its verdict goes
into a file that the candidate cannot reach; whatever the candidate prints is not believed.

Covered: the clock, the rows, the score, the weights, and by `probes.py` most ways to look ahead. A fault of the candidate
is a `crash` or `overtime` in the verdict; a fault of the referee leaves no verdict, and the machine is "not ready".
"""

import contextlib
import dataclasses
import fcntl
import importlib
import json
import mmap
import os
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autoresearch.experiment import probes
from autoresearch.lab import write_atomically

# Seconds past the budget before a run is overtime: handing over the weights and what a step's length was misjudged by.
GRACE = 1.0
SLOTS = 2  # batches in shared memory: one is scored while the next is computed
LEAST_BATCHES = 4  # so that a batch's own time can be told from work that was queued before it
# Evaluation may take this many times the training's own seconds a token; it has no backward pass, so an honest one takes a third.
EVALUATION_FACTOR, EVALUATION_LEAST = 3.0, 120.0
SAMPLE_ROWS = 20_000  # training rows from which the decoys' frequencies are counted
SEALS = ("F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE")


@dataclass(frozen=True)
class Spec:
    socket: int  # file descriptor
    helpers: str  # folder of the session's prepare.py and constants.py
    verdict: str  # file to write
    weights: str  # file to write the candidate's weights to
    seed: int
    budget: float  # seconds
    startup_allowance: float  # seconds before `start` that are free; more is charged to the budget


@dataclass(frozen=True)
class Verdict:
    outcome: str  # scored, crash or overtime
    reason: str = ""
    val_bpb: float | None = None
    training_seconds: float | None = None
    startup_seconds: float | None = None
    evaluation_seconds: float | None = None
    eval_tokens: int | None = None


class Foul(Exception):
    """The candidate broke a rule; the message says which."""


class Overtime(Foul):
    """It trained past its budget."""


class Referee:
    def __init__(self, spec: Spec, prepare: ModuleType) -> None:
        self.spec, self.prepare = spec, prepare
        self.channel = prepare.Channel(socket.socket(fileno=spec.socket))
        self.began = time.monotonic()
        self.started = self.budget = 0.0
        self.weights = b""

    def run(self) -> Verdict:
        """The whole of a run, from the candidate's hello to its score. Raises Foul."""
        rows = self.prepare.load_rows("train")
        order = np.random.default_rng(self.spec.seed).permutation(len(rows))
        training = self.sealed_rows(rows, order)
        held_out = np.array(self.prepare.load_rows("val"), np.uint16)[: self.prepare.EVAL_TOKENS // self.prepare.MAX_SEQ_LEN]
        sizes = self.prepare.token_bytes()
        extra = probes.make(np.random.default_rng(), held_out, probes.frequencies(rows[:SAMPLE_ROWS], self.prepare.VOCAB_SIZE))
        import torch  # noqa: F401 - scoring needs it; loaded while the candidate builds its model

        self.hello()
        self.start(training, len(rows))
        batch_rows = self.take_weights()
        losses, stopped = self.evaluate(np.concatenate([held_out, extra.rows]), batch_rows)
        trained = stopped - self.started
        if trained > self.budget + GRACE:
            raise Overtime(f"trained for {trained:.1f} s of {self.budget:.1f} s")
        if foul := probes.verdict(extra, losses[len(held_out) :]):
            raise Foul(foul)
        losses = losses[: len(held_out)]
        bpb = self.score(losses, held_out[:, 1:], sizes)
        done = time.monotonic()
        self.channel.send({"op": "score", "val_bpb": bpb, "eval_tokens": int(losses.size)})
        write_atomically(Path(self.spec.weights), self.weights)
        return Verdict(
            outcome="scored",
            val_bpb=bpb,
            training_seconds=trained,
            startup_seconds=self.started - self.began,
            evaluation_seconds=done - stopped,
            eval_tokens=int(losses.size),
        )

    # -- before and during training ------------------------------------------------------------------------------

    def sealed_rows(self, rows: np.ndarray, order: np.ndarray) -> int:
        """The training rows in this run's order, as a memory file that nobody can write any more. Returns its descriptor."""
        descriptor: int = self.prepare.shared_file("rows", rows.nbytes)
        with mmap.mmap(descriptor, 0) as memory:
            shuffled = np.frombuffer(memory, np.uint16).reshape(rows.shape)
            np.take(rows, order, axis=0, out=shuffled)
            del shuffled
        seal(descriptor)
        return descriptor

    def expect(self, op: str, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The candidate's next message, which has to be this one."""
        self.channel.socket.settimeout(timeout)
        try:
            message, files = self.channel.receive()
        except TimeoutError:
            raise Overtime(f"no '{op}' in {timeout:.0f} s") from None
        except EOFError:
            raise Foul(f"ended before '{op}'") from None
        except (OSError, ValueError) as error:
            raise Foul(f"spoke no protocol: {error}") from None
        if message["op"] != op:
            raise Foul(f"said '{str(message['op'])[:40]}' where '{op}' was due")
        return message, files

    def hello(self) -> None:
        message, _ = self.expect("hello")
        if message.get("version") != self.prepare.PROTOCOL:
            raise Foul(f"speaks version {str(message.get('version'))[:20]} of the protocol, this is {self.prepare.PROTOCOL}")
        self.channel.send({"op": "hello", "version": self.prepare.PROTOCOL, "seed": self.spec.seed})

    def start(self, training: int, rows: int) -> None:
        """Start the clock, then hand out the rows."""
        self.expect("start")
        self.started = time.monotonic()
        beyond = max(0.0, self.started - self.began - self.spec.startup_allowance)
        self.budget = max(0.0, self.spec.budget - beyond)
        self.channel.send({"op": "start", "rows": rows, "budget": self.budget, "weights": False}, [training])
        os.close(training)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def take_weights(self) -> int:
        """A copy of the model's weights, before any validation token is shown. Returns the rows of a batch."""
        message, files = self.expect("evaluate", self.budget + GRACE + EVALUATION_LEAST)
        batch_rows = message.get("batch_rows")
        if not isinstance(batch_rows, int) or isinstance(batch_rows, bool) or batch_rows < 1 or len(files) != 1:
            raise Foul("asked for evaluation without a whole number of rows and a file of weights")
        with os.fdopen(files[0], "rb") as file:
            file.seek(0)
            weights = file.read()
        check_safetensors(weights)
        self.weights = weights
        return batch_rows

    def evaluate(self, rows: np.ndarray, batch_rows: int) -> tuple[np.ndarray, float]:
        """Losses (N, T) in nats of all rows, and when the candidate's clock stopped: as its first logits were there, less the
        time that a batch takes. Work that was still queued on its device counts as training."""
        import torch

        prepare = self.prepare
        count, length, vocab = len(rows), prepare.MAX_SEQ_LEN, prepare.VOCAB_SIZE
        if batch_rows > max(1, count // LEAST_BATCHES):
            raise Foul(f"batches of {batch_rows} rows: at most {count // LEAST_BATCHES} of the {count} validation rows")
        batches = -(-count // batch_rows)
        padded = np.zeros((batches * batch_rows, length + 1), np.uint16)
        padded[:count] = rows
        order = np.random.default_rng().permutation(len(padded)).reshape(batches, batch_rows)  # nobody can foresee what comes when
        tokens_file = prepare.shared_file("tokens", SLOTS * batch_rows * length * 2)
        logits_file = prepare.shared_file("logits", SLOTS * batch_rows * length * vocab * 4)
        for each in (tokens_file, logits_file):
            seal(each, writable=True)
        tokens = np.frombuffer(mmap.mmap(tokens_file, 0), np.uint16).reshape(SLOTS, batch_rows, length)
        shared = torch.frombuffer(mmap.mmap(logits_file, 0), dtype=torch.float32).view(SLOTS, batch_rows * length, vocab)
        private = torch.empty_like(shared[0])
        losses = np.zeros((batches * batch_rows, length), np.float32)

        self.channel.send({"op": "evaluate", "slots": SLOTS}, [tokens_file, logits_file])
        for each in (tokens_file, logits_file):
            os.close(each)
        self.expect("ready", EVALUATION_LEAST)
        limit = max(EVALUATION_LEAST, EVALUATION_FACTOR * self.budget)
        began = time.monotonic()
        sent: list[float] = []
        took: list[float] = []

        def show(number: int) -> None:
            slot = number % SLOTS
            tokens[slot] = padded[order[number], :-1]
            shared[slot].fill_(float("nan"))
            sent.append(time.monotonic())
            self.channel.send({"op": "batch", "slot": slot})

        show(0)
        for number in range(batches):
            slot = number % SLOTS
            self.expect("done", max(0.1, began + limit - time.monotonic()))
            took.append(time.monotonic() - sent[number])
            private.copy_(shared[slot])
            if number + 1 < batches:
                show(number + 1)  # the candidate computes the next batch while this one is scored
            targets = torch.from_numpy(padded[order[number], 1:].astype(np.int64))
            losses[order[number]] = prepare.token_losses(private.view(batch_rows, length, vocab), targets).numpy()
        stopped = sent[0] + max(0.0, took[0] - statistics.median(took[1:] or took))
        return losses[:count], stopped

    def score(self, losses: np.ndarray, targets: np.ndarray, sizes: np.ndarray) -> float:
        try:
            return float(self.prepare.bits_per_byte(losses, targets, sizes))
        except RuntimeError as error:
            raise Foul(f"non-finite: {error}") from None


def seal(descriptor: int, writable: bool = False) -> None:
    """Nobody can change the file's size any more, nor its content unless `writable`. A no-op where there are no seals."""
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return
    names = [name for name in SEALS if not (writable and name == "F_SEAL_WRITE")]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in names))


def check_safetensors(data: bytes) -> None:
    """Raises Foul unless `data` is a safetensors file, by its own header."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Foul("weights that are no safetensors file") from None
    if end != len(data) - 8 - size:
        raise Foul("weights whose header and length differ")


def load_prepare(folder: str) -> ModuleType:
    """The session's own copy of prepare.py, which a candidate can't have touched."""
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("prepare")
    finally:
        sys.path.remove(folder)


def main() -> int:
    spec = Spec(**json.loads(sys.argv[1]))
    sys.dont_write_bytecode = True
    prepare = load_prepare(spec.helpers)
    referee = Referee(spec, prepare)
    try:
        verdict = referee.run()
    except Overtime as foul:
        verdict = Verdict("overtime", str(foul))
    except Foul as foul:
        verdict = Verdict("crash", str(foul))
    except prepare.NotReady as problem:
        print(problem, file=sys.stderr)
        return 3
    if verdict.outcome != "scored":
        with contextlib.suppress(OSError):
            referee.channel.send({"op": "refused", "reason": verdict.reason})
        verdict = dataclasses.replace(verdict, startup_seconds=(referee.started or time.monotonic()) - referee.began)
    write_atomically(Path(spec.verdict), json.dumps(asdict(verdict)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
