"""The referee against candidates that keep the rules and ones that don't; each speaks the protocol from a thread of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import CONSTANTS, ROOT
from labs import Later
from safetensors.numpy import save

from autoresearch.experiment import probes, referee
from autoresearch.experiment.logits import OnHost

torch = Later("torch")

T, V = 256, 2048
BATCH_ROWS = 4


@pytest.fixture
def prepare(prepared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The session's own copy of prepare.py, as the referee loads it."""
    folder = tmp_path / "helpers"
    folder.mkdir()
    shutil.copy(ROOT / "prepare.py", folder)
    (folder / "constants.py").write_text(CONSTANTS)
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(prepared_cache))
    before = {name: sys.modules.pop(name, None) for name in ("prepare", "constants")}
    yield referee.load_prepare(str(folder))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@dataclasses.dataclass
class Candidate:
    """The candidate's side by hand. Each step can be replaced by a cheat."""

    prepare: Any
    channel: Any
    q: np.ndarray
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, T + 1), np.uint16))
    rows_file: int = -1
    score: dict = dataclasses.field(default_factory=dict)

    def ask(self, op: str, files: tuple[int, ...] = (), **fields: Any) -> tuple[dict, list[int]]:
        self.channel.send({"op": op, **fields}, files)
        return self.channel.receive()

    def hello(self) -> None:
        assert self.ask("hello", version=2)[0]["seed"] == 7

    def start(self) -> None:
        answer, files = self.ask("start")
        self.rows_file = files[0]
        self.rows = np.frombuffer(mmap.mmap(files[0], 0, access=mmap.ACCESS_READ), np.uint16).reshape(answer["rows"], T + 1)

    def weights(self) -> bytes:
        return save({"q": self.q})

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """A unigram model: it looks at nothing."""
        return np.broadcast_to(np.log(self.q).astype(np.float32), (*tokens.shape, V))

    def evaluate(self, batch_rows: int = BATCH_ROWS) -> None:
        answer, files = self.ask("evaluate", (self.prepare.shared_file("w", self.weights()),), batch_rows=batch_rows)
        if answer["op"] == "refused":
            return
        tokens = np.frombuffer(mmap.mmap(files[0], 0), np.uint16).reshape(2, batch_rows, T)
        self.shared = np.frombuffer(mmap.mmap(files[1], 0), np.float32).reshape(2, batch_rows, T, V)
        message = self.ask("ready")[0]
        while message["op"] == "batch":
            slot = message["slot"]
            self.answer(slot, tokens[slot].astype(np.int64))
            self.channel.send({"op": "done", "slot": slot})
            self.after_done(slot)
            message = self.channel.receive()[0]
        self.score = message

    def answer(self, slot: int, tokens: np.ndarray) -> None:
        self.shared[slot] = self.logits(tokens)

    def after_done(self, slot: int) -> None:
        pass

    def play(self) -> None:
        self.hello()
        self.start()
        self.evaluate()


Game = Callable[..., "tuple[referee.Verdict | Exception, Candidate]"]


@pytest.fixture
def game(prepare: ModuleType, tmp_path: Path) -> Game:
    def run(kind: type[Candidate] = Candidate, budget: float = 30.0, allowance: float = 60.0) -> tuple[Any, Candidate]:
        ours, theirs = socket.socketpair()
        spec = referee.Spec(
            socket=ours.detach(),
            helpers=str(tmp_path / "helpers"),
            verdict=str(tmp_path / "verdict.json"),
            weights=str(tmp_path / "model.safetensors"),
            seed=7,
            budget=budget,
            startup_allowance=allowance,
            losses=str(tmp_path / "losses.npy"),
        )
        judge = referee.Referee(spec, prepare)
        q = probes.frequencies(prepare.load_rows("train")[:2000], V)
        candidate = kind(prepare, prepare.Channel(theirs), q)

        def play() -> None:
            with contextlib.suppress(OSError, EOFError), theirs:
                candidate.play()

        thread = threading.Thread(target=play, daemon=True)
        thread.start()
        try:
            outcome: Any = judge.run()
        except referee.Foul as foul:
            outcome = foul
        finally:
            judge.match.channel.socket.close()
        thread.join(20)
        return outcome, candidate

    return run


def self_reported(prepare: ModuleType, logits: Callable[[np.ndarray], np.ndarray]) -> float:
    rows = np.array(prepare.load_rows("val"))[: prepare.EVAL_TOKENS // T]
    given = lambda tokens: torch.from_numpy(np.array(logits(tokens.numpy())))  # noqa: E731
    losses = prepare.validation_losses(rows, given, BATCH_ROWS, torch.device("cpu"))
    return prepare.bits_per_byte(losses, rows[:, 1:], prepare.token_bytes())


def test_an_honest_run_gets_the_score_that_it_would_report_itself(game, prepare, tmp_path):
    verdict, candidate = game()
    assert verdict.outcome == "scored"
    assert verdict.val_bpb == pytest.approx(self_reported(prepare, candidate.logits), abs=1e-5)
    assert candidate.score["val_bpb"] == verdict.val_bpb
    assert verdict.eval_tokens == 16 * 512
    assert (tmp_path / "model.safetensors").read_bytes() == candidate.weights()


def test_the_rows_come_shuffled_by_the_seed_and_whole(game, prepare):
    _, candidate = game()
    rows = np.array(prepare.load_rows("train"))
    assert not np.array_equal(candidate.rows, rows)
    assert np.array_equal(np.sort(candidate.rows, axis=0), np.sort(rows, axis=0))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files to seal")
def test_the_rows_cannot_be_written_not_even_through_a_reopened_descriptor(game):
    tried = {}

    class Writes(Candidate):
        def evaluate(self, batch_rows: int = BATCH_ROWS) -> None:
            for name, action in {
                "write": lambda: os.pwrite(self.rows_file, b"xx", 0),
                "map": lambda: mmap.mmap(self.rows_file, 0, prot=mmap.PROT_WRITE),
                "reopen": lambda: os.pwrite(os.open(f"/proc/self/fd/{self.rows_file}", os.O_RDWR), b"xx", 0),
                "shorten": lambda: os.ftruncate(self.rows_file, 2),
            }.items():
                try:
                    action()
                    tried[name] = True
                except (OSError, ValueError):
                    tried[name] = False
            super().evaluate(batch_rows)

    verdict, _ = game(Writes)
    assert tried == {"write": False, "map": False, "reopen": False, "shorten": False}
    assert verdict.outcome == "scored"


def test_training_past_the_budget_is_overtime(game, monkeypatch):
    monkeypatch.setattr(referee, "GRACE", 0.1)

    class Trains(Candidate):
        def evaluate(self, batch_rows: int = BATCH_ROWS) -> None:
            time.sleep(0.8)  # the training itself
            super().evaluate(batch_rows)

    verdict, _ = game(Trains, budget=0.3)
    assert isinstance(verdict, referee.Overtime)


def test_work_that_is_still_queued_when_evaluation_begins_counts_as_training(game, monkeypatch):
    monkeypatch.setattr(referee, "GRACE", 0.1)

    class Queued(Candidate):
        waited = False

        def answer(self, slot: int, tokens: np.ndarray) -> None:
            if not self.waited:
                self.waited = True
                time.sleep(1.5)  # kernels that run before the first logits can
            super().answer(slot, tokens)

    verdict, _ = game(Queued, budget=0.5)
    assert isinstance(verdict, referee.Overtime)


def test_start_up_beyond_the_allowance_is_charged(game):
    class Slow(Candidate):
        def start(self) -> None:
            time.sleep(0.6)
            super().start()

    granted = []

    class Looks(Slow):
        def ask(self, op: str, files: tuple[int, ...] = (), **fields: Any) -> tuple[dict, list[int]]:
            answer, received = super().ask(op, files, **fields)
            if op == "start":
                granted.append(answer["budget"])
            return answer, received

    game(Looks, budget=30.0, allowance=0.1)
    assert granted[0] < 29.6


def test_logits_that_are_no_numbers_are_a_crash(game):
    class Infinite(Candidate):
        def logits(self, tokens: np.ndarray) -> np.ndarray:
            return np.full((*tokens.shape, V), np.inf, np.float32)

    verdict, _ = game(Infinite)
    assert "non-finite" in str(verdict)


def test_a_batch_left_unanswered_is_a_crash_and_not_the_last_ones_logits(game):
    class Skips(Candidate):
        count = 0

        def answer(self, slot: int, tokens: np.ndarray) -> None:
            self.count += 1
            if self.count != 3:
                super().answer(slot, tokens)

    verdict, _ = game(Skips)
    assert "non-finite" in str(verdict)


def test_logits_changed_after_they_were_handed_over_change_no_score(game, prepare):
    class Flips(Candidate):
        def after_done(self, slot: int) -> None:
            self.shared[1 - slot][:] = 0.0  # the other batch is being scored, or about to be filled anew

    verdict, candidate = game(Flips)
    honest = self_reported(prepare, candidate.logits)
    assert not isinstance(verdict, referee.Verdict) or verdict.val_bpb >= honest - 1e-5


def test_a_look_ahead_at_every_position_is_found(game):
    class Looks(Candidate):
        def logits(self, tokens: np.ndarray) -> np.ndarray:
            out = super().logits(tokens).copy()
            ahead = np.roll(tokens, -1, axis=1)
            np.put_along_axis(out, ahead[..., None], 20.0, axis=2)
            return out

    verdict, _ = game(Looks)
    assert "look-ahead" in str(verdict)


def test_logits_that_depend_on_what_follows_are_found(game):
    class Depends(Candidate):
        def logits(self, tokens: np.ndarray) -> np.ndarray:
            out = super().logits(tokens).copy()
            temperature = 1 + (tokens.sum(axis=1) % 97) / 97  # the whole row, what follows too
            return out * temperature[:, None, None].astype(np.float32)

    verdict, _ = game(Depends)
    assert "not causal" in str(verdict)


def test_logits_that_depend_on_what_was_shown_before_are_found(game):
    class Counts(Candidate):
        shown = 0  # rows; each gets another temperature

        def logits(self, tokens: np.ndarray) -> np.ndarray:
            order = self.shown + np.arange(len(tokens))
            self.shown += len(tokens)
            return super().logits(tokens) * (1 + 0.1 * order[:, None, None]).astype(np.float32)

    verdict, _ = game(Counts)
    assert "not causal" in str(verdict)


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (lambda c: None, "ended before 'hello'"),
        (lambda c: c.ask("hello", version=99), "speaks version 99"),
        (lambda c: c.ask("score", val_bpb=0.1), "said 'score' where 'hello' was due"),
        (lambda c: (c.hello(), c.evaluate()), "said 'evaluate' where 'start' was due"),
        (lambda c: (c.hello(), c.start(), c.ask("start")), "said 'start' where 'evaluate' was due"),
        (lambda c: (c.hello(), c.start()), "ended before 'evaluate'"),
        (lambda c: c.channel.socket.sendall(b"no json\n"), "spoke no protocol"),
        (lambda c: c.channel.socket.sendall(b"[1]\n"), "spoke no protocol"),
        (lambda c: c.channel.socket.sendall(b"x" * 200_000), "spoke no protocol"),
        (lambda c: (c.hello(), c.start(), c.evaluate(batch_rows=10**6)), "at most"),
        (lambda c: (c.hello(), c.start(), c.ask("evaluate", batch_rows=4)), "a file of weights"),
        (lambda c: (c.hello(), c.start(), c.ask("evaluate", (os.memfd_create("w"),), batch_rows=True)), "whole number"),
    ],
)
def test_a_candidate_that_leaves_the_protocol_is_told_which_rule_it_broke(game, play, reason):
    class Other(Candidate):
        def play(self) -> None:
            play(self)

    verdict, _ = game(Other)
    assert isinstance(verdict, referee.Foul) and reason in str(verdict)


@pytest.mark.parametrize("data", [b"", b"pickle", save({"a": np.zeros(4)})[:-1], (2**40).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_no_plain_tensors_are_refused(game, data):
    class Garbage(Candidate):
        def weights(self) -> bytes:
            return data

    verdict, _ = game(Garbage)
    assert "weights" in str(verdict)


def test_honest_models_keep_the_bettor_poor():
    """Over 3,000 honest runs of any confidence the decoys raise no alarm; one in ten thousand is allowed."""
    random = np.random.default_rng(5)
    alarms = 0
    for _ in range(3000):
        p = random.dirichlet(np.full(64, random.choice([0.02, 0.1, 1.0])))
        q = random.dirichlet(np.full(64, 1.0)) * 0.9 + 0.1 / 64
        drawn = random.choice(64, size=1000, p=q)
        alarms += probes.wealth(p[drawn] / q[drawn]) >= 1 / probes.FALSE_ALARM
    assert alarms <= 1


def test_a_look_ahead_at_one_position_in_a_hundred_is_found_by_4000_decoys():
    assert probes.power(4000, 0.01, np.random.default_rng(3)) > 0.95


@pytest.mark.parametrize("rows", [BATCH_ROWS, BATCH_ROWS - 1])
def test_the_losses_at_chosen_places_are_those_among_all(prepare: ModuleType, rows: int) -> None:
    random = np.random.default_rng(5)
    logits = OnHost(prepare, BATCH_ROWS, gpu=False)
    logits.shared[1] = random.normal(size=logits.shared[1].shape)
    logits.take(1)
    targets, at = random.integers(V, size=(rows, T)).astype(np.uint16), random.integers(T, size=rows)
    assert np.array_equal(logits.losses(targets, at), logits.losses(targets)[np.arange(rows), at])
