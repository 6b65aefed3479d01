"""Claims about the real train.py, on a CPU at a tiny size: it sees no future, its parts do what they say, and a run is whole."""

from __future__ import annotations

import importlib
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import CONSTANTS, ROOT, environment_of
from labs import Later

from autoresearch.experiment.runner import PROGRESS
from autoresearch.literals import set_literals

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:
    torch, F = Later("torch"), Later("torch.nn.functional")

TINY = {
    "DEPTH": 3,
    "NUM_HEADS": 2,
    "HEAD_DIM": 16,
    "MLP_RATIO": 2,
    "WINDOW_PATTERN": "SL",
    "SHORT_WINDOW": 32,
    "GATE_CHANNELS": 8,
    "SMEAR_CHANNELS": 4,
    "TOTAL_BATCH": 1024,
    "DEVICE_BATCH": 4,
    "COMPILE": False,
}
T = 256  # MAX_SEQ_LEN of the lab
BLOCK = [
    "val_bpb",
    "training_seconds",
    "total_seconds",
    "peak_vram_mb",
    "mfu_percent",
    "total_tokens_M",
    "num_steps",
    "num_params_M",
    "depth",
]  # and then whatever else, by name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "constants.py").write_text(CONSTANTS)
    (folder / "prepare.py").write_bytes((ROOT / "prepare.py").read_bytes())
    (folder / "train.py").write_text(set_literals((ROOT / "train.py").read_text(), TINY))
    return folder


@pytest.fixture(scope="module")
def module(folder: Path) -> Iterator[ModuleType]:
    """train.py as a module, with the tiny literals, in float32 on the CPU."""
    names = ("train", "prepare", "constants")
    before = {name: sys.modules.pop(name, None) for name in names}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        torch.set_num_threads(1)
        train = importlib.import_module("train")
        train.DTYPE = torch.float32  # a CPU with bf16 would blur the comparisons
        yield train
    torch.set_num_threads(threads)
    for name in names:
        sys.modules.pop(name, None)
        if (old := before[name]) is not None:
            sys.modules[name] = old


@pytest.fixture
def train(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with the same random numbers for each test; what a test sets in it is taken back."""
    torch.manual_seed(0)
    for name in TINY:
        monkeypatch.setattr(module, name, TINY[name])
    return module


def lively(train: ModuleType) -> torch.nn.Module:
    """A model whose every weight counts: a new one is the identity, which would be causal whatever its attention did."""
    model = train.GPT()
    model.init_weights()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def tokens(rows: int, length: int = T) -> torch.Tensor:
    return torch.randint(2048, (rows, length))


# -- attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "block"), [(64, 16), (64, 32), (64, 64), (64, 128), (96, 32), (6, 2), (4, 1)])
def test_attention_in_blocks_is_that_of_a_dense_mask(train: ModuleType, length: int, block: int) -> None:
    q, k, v = (torch.randn(2, length, 3, train.HEAD_DIM, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, length, 3, train.HEAD_DIM)
    at = torch.arange(length)
    visible = (at[None] <= at[:, None]) & (at[None] // block == at[:, None] // block)
    scores = train.QK_SCALE**2 * torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(train.HEAD_DIM)
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~visible, -math.inf).softmax(-1), v)
    found = train.attend(q, k, v, block)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), (q, k, v), retain_graph=True)
    found_gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    torch.testing.assert_close(found_gradients, wanted_gradients, rtol=0, atol=1e-5)


def test_the_mlp_and_its_own_backward_are_those_of_autograd(train: ModuleType) -> None:
    y, mlp_in, mlp_out = inputs = tuple(torch.randn(size, requires_grad=True) for size in ((40, 8), (32, 8), (8, 32)))
    weight = torch.randn(40, 8)
    wanted = F.relu(y @ mlp_in.t()).square() @ mlp_out.t()
    found = train.MLP.apply(*inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), inputs), wanted_gradients, rtol=1e-4, atol=1e-4)


def test_queries_and_keys_are_normed_and_turned_and_their_own_backward_is_that_of_autograd(train: ModuleType) -> None:
    model, D = train.GPT(), train.HEAD_DIM
    qk = torch.randn(2, T, 2, train.NUM_HEADS, D, requires_grad=True)
    angle = torch.outer(torch.arange(T).float(), train.ROPE_BASE ** -(torch.arange(0, D, 2) / D))
    turns = torch.polar(torch.ones_like(angle), -angle)[:, None, None]  # the second half of the channels is the imaginary part
    turned = torch.complex(*qk.chunk(2, dim=-1)) * turns
    wanted = F.rms_norm(torch.cat([turned.real, turned.imag], -1), (D,), eps=1e-6)
    found = torch.stack(train.Turn.apply(qk, model.cos, model.sin), 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    weight = torch.randn_like(wanted)
    (wanted_gradient,) = torch.autograd.grad((wanted * weight).sum(), qk)
    (found_gradient,) = torch.autograd.grad((found * weight).sum(), qk)
    torch.testing.assert_close(found_gradient, wanted_gradient, rtol=0, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_bent_logits(train: ModuleType) -> None:
    logits, targets = 2 * torch.randn(3, 5, 2048), tokens(3, 5)
    wanted = F.cross_entropy(train.softcap(logits).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(train.loss_of(logits, targets), wanted, rtol=1e-6, atol=1e-6)


def test_what_has_many_readers_gets_the_sum_of_their_gradients(train: ModuleType) -> None:
    x = torch.randn(2, 3).requires_grad_()
    for factor, each in enumerate(train.Fan.apply(x * 2, 4)):
        (factor * each).sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0 * (0 + 1 + 2 + 3)))


# -- the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["SL", "L", "SSSL"])
@pytest.mark.parametrize("place", [1, 31, 128, 255])
def test_a_later_token_changes_no_earlier_logit(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, pattern: str, place: int
) -> None:
    monkeypatch.setattr(train, "WINDOW_PATTERN", pattern)
    model = lively(train)
    before = tokens(2)
    after = before.clone()
    after[:, place:] = (after[:, place:] + 1 + torch.randint(2000, after[:, place:].shape)) % 2048
    with torch.no_grad():
        old, new = model(before), model(after)
    torch.testing.assert_close(new[:, :place], old[:, :place], rtol=0, atol=1e-6)
    assert (new[:, place] - old[:, place]).abs().max() > 1e-3


def test_an_earlier_token_reaches_the_last_logit_from_any_distance(train: ModuleType) -> None:
    model = lively(train)
    before = tokens(1)
    with torch.no_grad():
        old = model(before)[0, -1]
        for place in (0, 100, 254):
            after = before.clone()
            after[0, place] = (after[0, place] + 7) % 2048
            assert (model(after)[0, -1] - old).abs().max() > 1e-6, place


def test_rows_of_a_batch_do_not_see_each_other(train: ModuleType) -> None:
    model, batch = lively(train), tokens(3)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_new_model_knows_nothing(train: ModuleType) -> None:
    model = train.GPT()
    model.init_weights()
    batch = tokens(2, T + 1)
    loss = train.loss_of(model(batch[:, :-1]), batch[:, 1:])
    assert loss.item() == pytest.approx(math.log(2048), abs=0.02)


@pytest.mark.parametrize(
    "literals",
    [
        {"VALUE_EMBED_EVERY": 0},
        {"VALUE_EMBED_EVERY": 1},
        {"VALUE_EMBED_EVERY": 3, "DEPTH": 2},
        {"DEPTH": 1, "WINDOW_PATTERN": "S"},
        {"MLP_RATIO": 1},
        {"SHORT_WINDOW": 1},
        {"SHORT_WINDOW": 128},
        {"SHORT_WINDOW": 4096},
        {"VOCAB_SIZE": 2047},
        {"MUON_RAMP": 0.0},
        {"WARMDOWN": 0.0},
    ],
    ids=str,
)
def test_any_shape_that_is_allowed_trains(train: ModuleType, monkeypatch: pytest.MonkeyPatch, literals: dict[str, Any]) -> None:
    for name, value in literals.items():
        monkeypatch.setattr(train, name, value)
    train.check_shapes()
    trainer = train.Trainer(4)
    rows = np.random.default_rng(0).integers(0, 2047, (4, T + 1), dtype=np.uint16)
    batches = train.Batches(rows, 4)
    losses = [trainer.step(batches, count, 0.5).item() for count in range(4)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.1
    logits = trainer.logits(tokens(2))
    assert logits.shape == (2, T, 2048) and logits.abs().max() <= train.SOFTCAP and not logits.requires_grad


def test_parameters_and_flops_are_counted_right(train: ModuleType) -> None:
    model = train.GPT()
    width, blocks = 32, 3 * (4 * 32 * 32 + 2 * 2 * 32 * 32)
    embeds = 2048 * width * (1 + 20 + 2 + 1)  # tokens, pairs, two value embeddings, head
    assert sum(p.numel() for p in model.parameters()) == blocks + embeds + (3 + 2) * 2 * 8 + 2 * 3 + 4 + 2
    assert model.flops_per_token() == 6 * (blocks + 2048 * width) + 12 * width * (32 + 2 * T)


# -- the optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 16, 64), (2, 64, 16), (1, 1, 8)])
def test_orthogonalize_brings_singular_values_of_three_magnitudes_near_one(train: ModuleType, shape: tuple[int, ...]) -> None:
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = u * torch.logspace(0, -2.5, s.size(-1)) @ vh
    for scale in (1e-4, 1.0, 1e4):
        values = torch.linalg.svdvals(train.orthogonalize(scale * spread))
        assert 0.8 < values.min() and values.max() < 1.2


def test_orthogonalize_keeps_the_directions_and_takes_zeros(train: ModuleType) -> None:
    g = torch.randn(2, 16, 64)
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(train.orthogonalize(g), u @ vh, rtol=0, atol=0.1)
    assert torch.equal(train.orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_the_learning_rate_is_whole_at_first_and_falls_in_a_line_to_its_end(train: ModuleType) -> None:
    scale, flat = train.learning_rate_scale, 1 - train.WARMDOWN
    assert scale(0.0) == scale(flat / 2) == 1.0
    assert scale(flat + 1e-9) == pytest.approx(1.0)
    assert scale(1.0) == scale(1.5) == pytest.approx(train.FINAL_LR)
    assert scale(flat + train.WARMDOWN / 2) == pytest.approx((1 + train.FINAL_LR) / 2)
    points = [scale(n / 100) for n in range(101)]
    assert all(later <= earlier for earlier, later in pairwise(points))


def test_accumulation_gives_the_loss_and_the_gradient_of_the_whole_batch(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).integers(0, 2048, (4, T + 1), dtype=np.uint16)
    monkeypatch.setattr(train.Optimizer, "step", lambda *_: None)
    found = []
    for device_rows in (4, 2, 1):
        torch.manual_seed(1)
        trainer = train.Trainer(device_rows)
        trainer.model.load_state_dict(lively(train).state_dict())
        loss = trainer.step(train.Batches(rows, device_rows), 0, 0.0)
        found.append([loss, *(p.grad for p in trainer.optimizer.parameters())])
    for other in found[1:]:
        for tensor, whole in zip(other, found[0], strict=True):
            torch.testing.assert_close(tensor, whole, rtol=1e-3, atol=1e-5)


# -- before the clock starts ---------------------------------------------------------------------------------------------


def test_warm_up_leaves_weights_and_optimizer_exactly_as_they_were(train: ModuleType) -> None:
    trainer = train.Trainer(2)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.warm_up()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(not tensor.any() for tensor in trainer.optimizer.state())
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_step_after_warm_up_is_the_step_without_it(train: ModuleType) -> None:
    rows = np.random.default_rng(0).integers(0, 2048, (4, T + 1), dtype=np.uint16)
    states = []
    for warm in (True, False):
        torch.manual_seed(1)
        trainer = train.Trainer(4)
        if warm:
            trainer.warm_up()
        trainer.step(train.Batches(rows, 4), 0, 0.0)
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("fits", "rows", "tries"), [(4, 4, [4]), (2, 2, [4, 2]), (1, 1, [4, 2, 1])])
def test_a_device_batch_that_does_not_fit_is_halved_with_more_accumulation(
    train: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fits: int,
    rows: int,
    tries: list[int],
) -> None:
    tried = []

    def warm_up(trainer: Any) -> None:
        tried.append(trainer.device_rows)
        if trainer.device_rows > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train.Trainer, "warm_up", warm_up)
    trainer = train.largest_that_fits()
    assert (trainer.device_rows, tried) == (rows, tries)
    assert trainer.device_rows * trainer.accumulation * T == train.TOTAL_BATCH
    assert capsys.readouterr().out.count("out of memory") == len(tries) - 1


def test_one_row_that_does_not_fit_is_out_of_memory(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def warm_up(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train.Trainer, "warm_up", warm_up)
    with pytest.raises(torch.OutOfMemoryError):
        train.largest_that_fits()


def test_a_device_batch_larger_than_the_step_or_no_divisor_of_it_is_fitted(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.Trainer, "warm_up", lambda _: None)
    for wanted, rows in ((128, 4), (3, 2), (1, 1)):
        monkeypatch.setattr(train, "DEVICE_BATCH", wanted)
        assert train.largest_that_fits().device_rows == rows


@pytest.mark.parametrize("part", ["GPT.forward", "Optimizer.step", "Trainer.logits"])
@pytest.mark.parametrize(
    "fault",
    [lambda: ValueError("shapes don't match"), lambda: torch.OutOfMemoryError("out of memory")],
    ids=["shape", "memory"],
)
def test_an_error_of_training_or_of_evaluation_is_found_before_the_clock_starts(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, part: str, fault: Callable[[], Exception]
) -> None:
    error = fault()

    def fails(*_: Any, **__: Any) -> None:
        raise error

    started = list[Any]()
    run = SimpleNamespace(seed=1, start=started.append)
    monkeypatch.setattr(train.prepare, "open_run", lambda: run)
    owner, _, name = part.partition(".")
    monkeypatch.setattr(getattr(train, owner), name, fails)
    with pytest.raises(type(error)):
        train.main()
    assert not started


@pytest.mark.parametrize(
    ("literals", "named"),
    [
        ({"DEPTH": 0}, "DEPTH"),
        ({"SHORT_WINDOW": 0}, "SHORT_WINDOW"),
        ({"DEVICE_BATCH": 0}, "DEVICE_BATCH"),
        ({"HEAD_DIM": 15}, "HEAD_DIM = 15 is odd"),
        ({"WINDOW_PATTERN": "SXL"}, "WINDOW_PATTERN = 'SXL'"),
        ({"WINDOW_PATTERN": ""}, "WINDOW_PATTERN = ''"),
        ({"GATE_CHANNELS": 64}, "GATE_CHANNELS = 64 or SMEAR_CHANNELS = 4 is more than the width 32"),
        ({"SHORT_WINDOW": 100}, "SHORT_WINDOW = 100 does not divide MAX_SEQ_LEN = 256"),
        ({"TOTAL_BATCH": 128}, "TOTAL_BATCH = 128 is not a multiple of MAX_SEQ_LEN = 256"),
        ({"TOTAL_BATCH": 1000}, "TOTAL_BATCH = 1000"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_work_is_named(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, literals: dict[str, Any], named: str
) -> None:
    train.check_shapes()
    for name, value in literals.items():
        monkeypatch.setattr(train, name, value)
    with pytest.raises(ValueError, match=re.escape(named)):
        train.check_shapes()


# -- batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [2, 4, 6, 1000])
def test_an_epoch_hands_out_every_row_once_with_targets_one_token_on(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    rows = np.random.default_rng(0).integers(0, 2048, (10, 9), dtype=np.uint16)
    monkeypatch.setattr(train.Batches, "BLOCK_BYTES", block_rows * rows[0].nbytes)
    batches = train.Batches(rows, 2)
    for _ in range(3):  # epochs
        pairs = [batches() for _ in range(5)]
        inputs, targets = (torch.cat(part).numpy() for part in zip(*pairs, strict=True))
        assert np.array_equal(inputs, rows[:, :-1]) and np.array_equal(targets, rows[:, 1:])
        assert inputs.dtype == targets.dtype == np.int64


def test_tokens_beyond_the_range_of_a_signed_16_bit_number_survive(train: ModuleType) -> None:
    rows = np.full((2, 5), 65_535, np.uint16)
    inputs, targets = train.Batches(rows, 2)()
    assert inputs.unique().tolist() == targets.unique().tolist() == [65_535]


def test_a_rest_that_fills_no_step_is_left_out(train: ModuleType) -> None:
    rows = np.arange(7 * 4, dtype=np.uint16).reshape(7, 4)
    batches = train.Batches(rows, 3)
    firsts = [batches()[0][:, 0].tolist() for _ in range(3)]
    assert firsts == [[0, 4, 8], [12, 16, 20], [0, 4, 8]]


def test_fewer_rows_than_a_step_takes_are_told(train: ModuleType) -> None:
    with pytest.raises(ValueError, match="lower DEVICE_BATCH"):
        train.Batches(np.zeros((3, 5), np.uint16), 4)


# -- a whole run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(prepared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment_of(tmp_path_factory.mktemp("run") / "home", prepared_cache)


def run(folder: Path, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "train.py"]
    return subprocess.run(command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def finished(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = run(folder, environment, AUTORESEARCH_WEIGHTS_OUT=str(folder / "model.safetensors"))
    assert done.returncode == 0, done.stderr
    return done


def figures(output: str) -> dict[str, str]:
    block = output.partition("\n---\n")[2]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}


def test_a_run_prints_its_progress_and_then_the_block(finished: subprocess.CompletedProcess[str]) -> None:
    found = figures(finished.stdout)
    assert list(found)[: len(BLOCK)] == BLOCK
    numbers = {name: float(value) for name, value in found.items() if name != "score"}
    assert all(map(math.isfinite, numbers.values()))
    assert 1.0 < numbers["val_bpb"] < 4.0  # a model that knew nothing would have log2(2048) bits for 2.3 bytes: 4.7
    assert 0.5 < numbers["training_seconds"] <= 1.6  # of TIME_BUDGET = 1
    assert numbers["num_steps"] >= 3 and numbers["depth"] == 3 and numbers["eval_tokens"] == 8192
    assert numbers["total_tokens_M"] == pytest.approx(numbers["num_steps"] * 1024 / 1e6, abs=0.06)
    assert numbers["peak_vram_mb"] > 50 and found["score"] == "self-reported"
    progress = PROGRESS.findall(finished.stdout.encode())
    assert len(progress) >= 2 and int(progress[-1][0]) == numbers["num_steps"]
    assert float(progress[-1][2]) < 7.6  # the loss has fallen


def test_weights_that_are_brought_back_reproduce_the_score_without_any_training(
    folder: Path, environment: dict[str, str], finished: subprocess.CompletedProcess[str]
) -> None:
    done = run(folder, environment, AUTORESEARCH_WEIGHTS_IN=str(folder / "model.safetensors"), AUTORESEARCH_SEED="7")
    assert done.returncode == 0, done.stderr
    again, first = figures(done.stdout), figures(finished.stdout)
    assert float(again["val_bpb"]) == pytest.approx(float(first["val_bpb"]), abs=1e-5)
    assert (again["num_steps"], again["total_tokens_M"]) == ("0", "0.0") and float(again["training_seconds"]) < 0.5


def test_a_shape_that_cannot_work_ends_the_run_in_one_line_before_any_data_is_touched(
    module: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(set_literals((folder / "train.py").read_text(), {"HEAD_DIM": 15}))
    monkeypatch.setenv("AUTORESEARCH_CACHE", os.devnull)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")
    assert str(ended.value) == "train.py: ValueError: HEAD_DIM = 15 is odd: rotary positions turn channels in pairs"
