"""The referee: a process of its own that holds the clock, the training rows, the validation text, and the score.

    python -P -m autoresearch.experiment.referee SPEC        SPEC: JSON of `Spec`; one end of a socket pair is inherited

The candidate (train.py, untrusted) has the other end and nothing else. It gets the training rows when the clock starts, hands over
its weights when it says that it is done, and then answers batches of validation tokens with logits in memory that both share. The
referee empties that memory before each batch, takes one private copy when the batch is done and scores the copy. Its verdict goes
into a file that the candidate cannot reach; whatever the candidate prints is not believed.

Covered: the clock, the rows, the score, the weights, and by `probes.py` most ways to look ahead. A fault of the candidate
is a `crash` or `overtime` in the verdict; a fault of the referee leaves no verdict, and the machine is "not ready".

With `Spec.audit` it plays the other part: `audit.py` says what for.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from autoresearch.experiment import cuts, probes
from autoresearch.experiment.logits import Logits, OnGpu
from autoresearch.experiment.match import Foul, Match, Overtime
from autoresearch.files import write_atomically

# Seconds past the budget before a run is overtime: handing over the weights and what a step's length was misjudged by.
GRACE = 1.0
DISK_PATIENCE = 10.0  # seconds for a disk that was filled to have room again
SAMPLE_ROWS = 20_000  # training rows from which the decoys' frequencies are counted
VAULT = 10  # one row for the vault on so many scored ones, where the held-out text goes on behind them


@dataclass(frozen=True)
class Spec:
    socket: int  # file descriptor
    helpers: str  # folder of the session's prepare.py and constants.py
    verdict: str  # file to write
    weights: str  # file to write the candidate's weights to; in an audit the one they are read from
    seed: int
    budget: float  # seconds
    startup_allowance: float  # seconds before `start` that are free; more is charged to the budget
    evaluation_limit: float = 900.0  # seconds from the first batch to the last
    shown: str = ""  # file that is made before the first validation token is shown
    losses: str = ""  # file (.npy) to write the losses of the scored rows to
    caches: str = ""  # the candidate's compile caches, and where they are copied to when it says `start`
    snapshot: str = ""
    gpu: bool = False  # train.py will run on CUDA
    audit: str = ""  # file (.npy) with the losses that were scored: compare them with those at cuts, from the weights


@dataclass(frozen=True)
class Verdict:
    outcome: str  # scored, crash or overtime
    reason: str = ""
    val_bpb: float | None = None
    vault_bpb: float | None = None  # of rows that no candidate's score is made of; for the journal alone
    training_seconds: float | None = None
    startup_seconds: float | None = None
    evaluation_seconds: float | None = None
    eval_tokens: int | None = None
    device: str = ""  # what the candidate said that it runs on
    transport: str = ""  # how its logits came
    findings: dict[str, float] | None = None  # of an audit


@dataclass(frozen=True)
class Text:
    """What a run is scored on: the rows that count, then the vault, then the probes."""

    rows: np.ndarray  # uint16 (N, T + 1)
    counted: int
    vault: int
    probes: probes.Probes
    sizes: np.ndarray  # bytes of each token


class Referee:
    def __init__(self, spec: Spec, prepare: ModuleType) -> None:
        self.spec, self.prepare = spec, prepare
        self.match = Match(spec.socket, prepare, spec.evaluation_limit, spec.gpu)

    def run(self) -> Verdict:
        """The whole of a run, from the candidate's hello to its score. Raises Foul."""
        return self.reproduce() if self.spec.audit else self.measure()

    def measure(self) -> Verdict:
        match, spec, prepare = self.match, self.spec, self.prepare
        training = prepare.load_rows("train")
        shuffled = match.sealed_rows(training, np.random.default_rng(spec.seed).permutation(len(training)))
        text = self.text(training)
        match.gpu_memory = self.gpu_memory()
        match.hello(spec.seed)
        match.await_start(spec.caches, spec.snapshot)
        match.start(shuffled, len(training), self.granted())
        batch_rows = match.take_weights(match.budget + GRACE)
        self.tell_shown()
        losses, stopped = match.evaluate(text.rows[:, :-1], text.rows[:, 1:], batch_rows)
        trained = stopped - match.started
        if trained > match.budget + GRACE:
            raise Overtime(f"trained for {trained:.1f} s of {match.budget:.1f} s")
        if foul := probes.verdict(text.probes, losses[text.counted + text.vault :]):
            raise Foul(foul)
        bpb = self.score(losses, text, 0, text.counted)
        vault = self.score(losses, text, text.counted, text.counted + text.vault) if text.vault else None
        done = time.monotonic()
        tokens = text.counted * prepare.MAX_SEQ_LEN
        match.tell({"op": "score", "val_bpb": bpb, "eval_tokens": tokens})
        try:
            write_atomically(Path(spec.weights), match.weights)
            if spec.losses:
                np.save(spec.losses, losses[: text.counted])
        except OSError as error:
            raise Foul(f"no room for its weights: {error.strerror}") from None
        return Verdict(
            outcome="scored",
            val_bpb=bpb,
            vault_bpb=vault,
            training_seconds=trained,
            startup_seconds=match.started - match.began,
            evaluation_seconds=done - stopped,
            eval_tokens=tokens,
            device=match.device,
            transport=match.transport,
        )

    def reproduce(self) -> Verdict:
        """An audit's part: the candidate gets weights and no time, and its losses at cuts are compared with the scored ones."""
        match, spec, prepare = self.match, self.spec, self.prepare
        random, scored = np.random.default_rng(), np.load(spec.audit)
        rows, sample = np.array(prepare.load_rows("val")[: len(scored)]), prepare.load_rows("train")[:SAMPLE_ROWS]
        places = cuts.choose(random, rows, scored, sample, prepare.VOCAB_SIZE)
        shown, targets = cuts.inputs(random, rows, places, probes.frequencies(sample, prepare.VOCAB_SIZE))
        weights = Path(spec.weights).read_bytes()
        match.gpu_memory = self.gpu_memory()
        match.hello(spec.seed)
        match.await_start()
        match.start(match.sealed_rows(np.empty((0, prepare.MAX_SEQ_LEN + 1), np.uint16)), 0, 0.0, weights)
        batch_rows = match.take_weights(spec.evaluation_limit)
        if match.weights != weights:
            raise Foul("it did not give back the weights that it got: a model must be what its tensors are")
        wanted, each = np.zeros(shown.shape, np.uint16), np.arange(len(shown))
        wanted[each, places.places] = targets
        self.tell_shown()
        losses, _ = match.evaluate(shown, wanted, batch_rows, least_batches=1, places=places.places)  # nobody's clock stops here
        findings = cuts.compare(places, scored, losses)
        match.tell({"op": "score", "val_bpb": 0.0, "eval_tokens": len(each)})
        return Verdict(outcome="scored", device=match.device, transport=match.transport, findings=asdict(findings))

    def tell_shown(self) -> None:
        """What the candidate prints from here on may be held-out text: the runner takes no more of it."""
        if self.spec.shown:
            Path(self.spec.shown).touch()

    def text(self, training: np.ndarray) -> Text:
        prepare = self.prepare
        held_out = np.array(prepare.load_rows("val"), np.uint16)
        counted = min(len(held_out), prepare.EVAL_TOKENS // prepare.MAX_SEQ_LEN)
        rows = held_out[: counted + counted // VAULT]
        q = probes.frequencies(training[:SAMPLE_ROWS], prepare.VOCAB_SIZE)
        extra = probes.make(np.random.default_rng(), held_out[:counted], q)
        return Text(np.concatenate([rows, extra.rows]), counted, len(rows) - counted, extra, prepare.token_bytes())

    def gpu_memory(self) -> Logits | None:
        """Where there is a GPU: its memory for logits and all that scoring needs, before the candidate has built its model."""
        if not self.spec.gpu:
            return None
        try:
            return OnGpu(self.prepare)
        except (RuntimeError, ImportError) as problem:  # the driver can't share memory, or it is full: the host's does
            print(f"logits pass through the host's memory: {problem}", file=sys.stderr)
            return None

    def granted(self) -> float:
        """Seconds of training: the budget less what start-up took beyond its allowance."""
        beyond = max(0.0, time.monotonic() - self.match.began - self.spec.startup_allowance)
        return max(0.0, self.spec.budget - beyond)

    def score(self, losses: np.ndarray, text: Text, first: int, last: int) -> float:
        try:
            return float(self.prepare.bits_per_byte(losses[first:last], text.rows[first:last, 1:], text.sizes))
        except RuntimeError as error:
            raise Foul(f"non-finite: {error}") from None


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
    match = referee.match
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
        with contextlib.suppress(Foul):
            match.tell({"op": "refused", "reason": verdict.reason})
        verdict = dataclasses.replace(verdict, startup_seconds=(match.started or time.monotonic()) - match.began)
    write_verdict(Path(spec.verdict), verdict)
    return 0


def write_verdict(path: Path, verdict: Verdict) -> None:
    """A run that filled the disk is a crash: the runner ends it and removes its folder meanwhile."""
    deadline = time.monotonic() + DISK_PATIENCE
    while True:
        try:
            return write_atomically(path, json.dumps(asdict(verdict)))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to tidy up, and taking torch down costs a second
