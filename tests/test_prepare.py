"""Claims about prepare.py: its data, its number and its clock are right, and bad input is told in one line."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import lzma
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from labs import Later

if TYPE_CHECKING:
    import torch
    from bigram import Model
else:
    torch = Later("torch")

ROOT = Path(__file__).resolve().parents[1]
TINY = {"TIME_BUDGET": 5, "MAX_SEQ_LEN": 64, "EVAL_TOKENS": 1280, "VOCAB_SIZE": 300, "DATASET": "texts"}


# ---------------------------------------------------------------------------------------------------------------------
# A lab of its own for each claim


def make_lab(folder: Path, **constants: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prepare.py").write_bytes((ROOT / "prepare.py").read_bytes())
    lines = (f"{name} = {value!r}\n" for name, value in (TINY | constants).items())
    (folder / "constants.py").write_text("".join(lines))
    return folder


def environment(cache: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AUTORESEARCH_")}
    return mine | {"AUTORESEARCH_CACHE": str(cache)}


def run(lab: Path, cache: Path, *command: str) -> SimpleNamespace:
    """`python <command>` in the lab, prepare.py without flags if nothing is said."""
    done = subprocess.run(
        [sys.executable, *(command or ("prepare.py",))],
        cwd=lab,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def load_prepare(lab: Path) -> ModuleType:
    """The lab's prepare.py as a module in this process, with the lab's own constants."""
    others = sys.modules.pop("constants", None)
    sys.path.insert(0, str(lab))
    try:
        spec = importlib.util.spec_from_file_location(f"prepare_{abs(hash(lab))}", lab / "prepare.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(lab))
        del sys.modules["constants"]
        if others is not None:
            sys.modules["constants"] = others


WORDS = ["the", "a", "model", "token", "café", "naïve", "漢字", "語", "🙂", "🚀", "2048", "loss,", "(step)", "don't\n"]


def documents(count: int, seed: int) -> list[str]:
    """Short and long texts with many characters of two to four bytes."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice([1, 5, 30, 150]))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A lab with a small prepared text, and its cache: shared, so nothing here may change them."""
    lab = make_lab(tmp_path_factory.mktemp("prepared") / "lab")
    write_jsonl(lab / "texts" / "train.jsonl", documents(300, seed=1))
    write_jsonl(lab / "texts" / "val.jsonl", documents(100, seed=2))
    cache = lab.parent / "cache"
    done = run(lab, cache)
    assert done.code == 0, done.err
    return lab, cache


@pytest.fixture
def prepare(prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    lab, cache = prepared
    for name in os.environ:
        if name.startswith("AUTORESEARCH_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(cache))
    return load_prepare(lab)


def logits_of(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tokens: model(tokens)


def a_model() -> Model:
    from bigram import Model

    torch.manual_seed(0)
    return Model()


# ---------------------------------------------------------------------------------------------------------------------
# The four calls


def test_the_four_calls_train_score_and_print_the_block(prepare: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model()
    run = prepare.open_run()
    assert (run.refereed, run.seed, run.seq_len, run.vocab_size, run.time_budget) == (False, 1337, 64, 300, 5)
    assert run.elapsed() == 0.0
    rows = run.start(model)
    assert rows.dtype == np.uint16 and rows.shape[1] == 65 and rows.flags.c_contiguous and rows.flags.writeable
    assert run.budget == 5.0 and 0 < run.remaining() < 5.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for at in range(0, 320, 32):
        batch = torch.from_numpy(rows[at : at + 32].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    val_bpb = run.evaluate_bpb(model, logits_of(model), batch_rows=8)
    stopped = run.elapsed()
    run.summary(num_steps=10, total_tokens=20_480, num_params=5_120, depth=1)
    assert run.elapsed() == stopped, "the clock stands still after evaluate_bpb"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "---" and lines[1] == f"val_bpb:          {val_bpb:.6f}"
    block = dict(line.split(maxsplit=1) for line in lines[1:])
    assert list(block) == [
        "val_bpb:",
        "training_seconds:",
        "total_seconds:",
        "peak_vram_mb:",
        "mfu_percent:",
        "total_tokens_M:",
        "num_steps:",
        "num_params_M:",
        "depth:",
        "eval_tokens:",
        "startup_seconds:",
        "evaluation_seconds:",
        "score:",
    ]
    assert block["score:"] == "self-reported" and block["eval_tokens:"] == "1280" and block["mfu_percent:"] == "0.00"
    assert float(block["peak_vram_mb:"]) > 10


def test_weights_brought_back_grant_no_time_and_reproduce_the_score(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    trained = a_model()
    torch.nn.init.normal_(trained.table.weight, std=0.5)
    trained.shift.fill_(0.25)
    monkeypatch.setenv("AUTORESEARCH_WEIGHTS_OUT", str(weights))
    run = prepare.open_run()
    run.start(trained)
    first = run.evaluate_bpb(trained, logits_of(trained), batch_rows=8)
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]

    monkeypatch.delenv("AUTORESEARCH_WEIGHTS_OUT")
    monkeypatch.setenv("AUTORESEARCH_WEIGHTS_IN", str(weights))
    again = a_model()
    run = prepare.open_run()
    run.start(again)
    assert (run.budget, run.remaining()) == (0.0, 0.0)
    assert run.evaluate_bpb(again, logits_of(again), batch_rows=16) == pytest.approx(first, abs=1e-5)


def test_a_compiled_model_keeps_its_plain_names(prepare: ModuleType, tmp_path: Path) -> None:
    wrapped = torch.compile(a_model(), backend="eager")
    prepare.save_weights(wrapped, tmp_path / "w.safetensors")
    from bigram import Model

    plain = Model()
    prepare.load_weights(plain, tmp_path / "w.safetensors")
    assert torch.equal(plain.table.weight, a_model().table.weight)


def test_weights_that_are_not_there_are_no_crash_of_the_experiment(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTORESEARCH_WEIGHTS_IN", "/nowhere/w.safetensors")
    with pytest.raises(SystemExit) as stop:
        prepare.open_run().start(a_model())
    assert stop.value.code == 3 and "/nowhere/w.safetensors" in capsys.readouterr().err


def test_the_seed_alone_decides_the_order_of_the_rows(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(seed: str) -> np.ndarray:
        monkeypatch.setenv("AUTORESEARCH_SEED", seed)
        run = prepare.open_run()
        assert run.seed == int(seed)
        return run.start(a_model())

    first, again, other = rows("7"), rows("7"), rows("8")
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sorted(map(bytes, first)) == sorted(map(bytes, other)) == sorted(map(bytes, prepare.load_rows("train")))


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", ""])
def test_a_senseless_seed_is_told(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    monkeypatch.setenv("AUTORESEARCH_SEED", seed)
    with pytest.raises(SystemExit) as stop:
        prepare.open_run()
    assert stop.value.code == 3 and "AUTORESEARCH_SEED" in capsys.readouterr().err


def test_calls_out_of_order_are_told(prepare: ModuleType) -> None:
    run, model = prepare.open_run(), a_model()
    with pytest.raises(RuntimeError, match="evaluate_bpb was called before"):
        run.evaluate_bpb(model, logits_of(model), batch_rows=8)
    run.start(model)
    with pytest.raises(RuntimeError, match="twice"):
        run.start(model)


# ---------------------------------------------------------------------------------------------------------------------
# The metric


def raw_tokens(prepare: ModuleType) -> list[bytes]:
    stored = json.loads((prepare.prepared_folder() / "tokenizer.json").read_text())
    return [base64.b64decode(token) for token in stored["ranks"]]


def test_bpb_is_what_plain_arithmetic_over_raw_bytes_gives(prepare: ModuleType) -> None:
    raw = raw_tokens(prepare)
    model = a_model()
    run = prepare.open_run()
    run.start(model)
    measured = run.evaluate_bpb(model, logits_of(model), batch_rows=8)

    table = model(torch.arange(300)).detach().double()[:, :300].tolist()
    surprise = [[math.log(sum(map(math.exp, row))) - value for value in row] for row in table]
    nats, size = 0.0, 0
    for row in prepare.load_rows("val")[: 1280 // 64].tolist():
        for token, following in itertools.pairwise(row):
            if following != 299:  # BOS is not text
                nats += surprise[token][following]
                size += len(raw[following])
    assert measured == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_token_that_is_half_a_character_counts_its_bytes(prepare: ModuleType) -> None:
    raw, sizes = raw_tokens(prepare), prepare.token_bytes()
    assert sizes.tolist() == [*map(len, raw), *[0] * (300 - len(raw))] and sizes[299] == 0
    used = {int(token) for token in np.unique(prepare.load_rows("val")) if token != 299}
    halves = [token for token in used if not is_utf8(raw[token])]
    assert halves, "this text should have tokens that are not valid UTF-8 alone"
    text = "漢字 🙂 naïve"
    assert sizes[prepare.load_tokenizer().encode_ordinary(text)].sum() == len(text.encode())


def test_the_batch_size_does_not_change_the_score_and_every_call_has_one_shape(prepare: ModuleType) -> None:
    model, shapes, scores = a_model(), [], []
    for batch_rows in (1, 7, 8, 64):
        run = prepare.open_run()
        run.start(model)
        seen: set[tuple[int, ...]] = set()
        scores.append(run.evaluate_bpb(model, lambda x, seen=seen: (seen.add(tuple(x.shape)), model(x))[1], batch_rows))
        shapes.append(seen)
        assert run.eval_tokens == 1280
    assert shapes == [{(1, 64)}, {(7, 64)}, {(8, 64)}, {(64, 64)}]
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-6)


def test_columns_beyond_the_vocabulary_are_ignored(prepare: ModuleType) -> None:
    logits = torch.randn(2, 3, 320, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 5]])
    plain = prepare.token_losses(logits[..., :300], targets)
    logits[..., 300:] = 1e9
    assert torch.equal(prepare.token_losses(logits, targets), plain)
    assert plain.dtype == torch.float32 and plain.shape == (2, 3)


def test_scoring_in_parts_changes_nothing(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(4, 50, 300), torch.randint(0, 300, (4, 50))
    whole = prepare.token_losses(logits, targets)
    monkeypatch.setattr(prepare, "SCORED_AT_ONCE", 300 * 7)
    assert torch.allclose(prepare.token_losses(logits, targets), whole)


def test_half_precision_logits_are_scored_in_float32(prepare: ModuleType) -> None:
    logits, targets = torch.randn(2, 8, 300).bfloat16(), torch.randint(0, 300, (2, 8))
    assert torch.equal(prepare.token_losses(logits, targets), prepare.token_losses(logits.float(), targets))


def test_no_token_is_worth_less_than_nothing(prepare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_below_0(logits: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full(logits.shape[:1], -1e-7)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", rounded_below_0)
    assert prepare.token_losses(torch.zeros(1, 2, 300), torch.tensor([[5, 6]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shape", [(8, 64, 299), (8, 63, 300), (8 * 64, 300), (4, 64, 300)])
def test_logits_of_another_shape_are_refused(prepare: ModuleType, shape: tuple[int, ...]) -> None:
    run, model = prepare.open_run(), a_model()
    run.start(model)
    with pytest.raises(ValueError, match=r"wanted \(8, 64, 300 or more\)"):
        run.evaluate_bpb(model, lambda _: torch.zeros(shape), batch_rows=8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(prepare: ModuleType, value: float) -> None:
    run, model = prepare.open_run(), a_model()
    run.start(model)

    def logits_fn(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, 300)
        logits[0, 3, :] = value
        return logits

    with pytest.raises(RuntimeError, match="not finite"):
        run.evaluate_bpb(model, logits_fn, batch_rows=8)


def test_a_model_may_rule_out_what_never_comes(prepare: ModuleType) -> None:
    run, model = prepare.open_run(), a_model()
    run.start(model)

    def logits_fn(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, 300)
        logits[..., 299] = -math.inf  # BOS, which isn't scored
        return logits

    assert math.isfinite(run.evaluate_bpb(model, logits_fn, batch_rows=8))


# ---------------------------------------------------------------------------------------------------------------------
# Packing


def numbered_documents(lengths: list[int]) -> list[np.ndarray]:
    """Documents in which no token occurs twice, so that each can be traced."""
    ends = list(itertools.accumulate(lengths))
    return [np.arange(end - length, end, dtype=np.uint16) for end, length in zip(ends, lengths, strict=True)]


def pieces_of(rows: list[np.ndarray], bos: int) -> list[list[list[int]]]:
    """The pieces between BOS in each row."""
    return [[list(g) for is_bos, g in itertools.groupby(row.tolist(), lambda t: t == bos) if not is_bos] for row in rows]


LENGTHS = [random.Random(3).choice([1, 2, 3, 10, 40, 63, 64, 65, 200, 700]) for _ in range(400)]


@pytest.mark.parametrize("keep_tails", [True, False])
def test_rows_are_full_begin_with_bos_and_hold_whole_stretches_of_documents(prepare: ModuleType, keep_tails: bool) -> None:
    docs = numbered_documents(LENGTHS)
    rows = list(prepare.pack(iter(docs), 65, 65535, keep_tails))
    assert all(row.shape == (65,) and row[0] == 65535 and row.dtype == np.uint16 for row in rows)
    starts = {int(doc[0]) for doc in docs}
    for piece in itertools.chain.from_iterable(pieces_of(rows, 65535)):
        assert piece == list(range(piece[0], piece[-1] + 1))
        assert not starts & set(piece[1:]), "a piece holds the end of one document and the start of the next"
    again = list(prepare.pack(iter(docs), 65, 65535, keep_tails))
    assert np.array_equal(rows, again)


def test_packing_training_text_loses_less_than_a_row(prepare: ModuleType) -> None:
    docs = numbered_documents(LENGTHS)
    rows = list(prepare.pack(iter(docs), 65, 65535, keep_tails=True))
    tokens = [t for row in rows for t in row.tolist() if t != 65535]
    assert len(set(tokens)) == len(tokens), "a token came twice"
    assert sum(LENGTHS) - len(tokens) < 65


def test_packing_validation_text_drops_only_what_follows_a_cut_at_the_end_of_a_row(prepare: ModuleType) -> None:
    docs = numbered_documents(LENGTHS)
    whole = [doc[at : at + 64].tolist() for doc in docs for at in range(0, len(doc), 64)]
    rows = list(prepare.pack(iter(docs), 65, 65535, keep_tails=False))
    beginnings = {piece[0]: piece for piece in whole}
    for *complete, last in pieces_of(rows, 65535):
        assert all(piece in whole for piece in complete)
        assert beginnings[last[0]][: len(last)] == last


def test_the_largest_piece_that_fits_comes_first_and_else_the_shortest_is_cut(prepare: ModuleType) -> None:
    docs = numbered_documents([5, 3, 4, 2, 6])  # tokens 0-4, 5-7, 8-11, 12-13, 14-19
    rows = [row.tolist() for row in prepare.pack(iter(docs), 9, 99, keep_tails=True)]
    assert rows == [
        [99, 14, 15, 16, 17, 18, 19, 99, 12],
        [99, 0, 1, 2, 3, 4, 99, 13, 99],
        [99, 8, 9, 10, 11, 99, 5, 6, 7],
    ]
    rows = [row.tolist() for row in prepare.pack(iter(docs), 9, 99, keep_tails=False)]
    assert rows == [[99, 14, 15, 16, 17, 18, 19, 99, 12], [99, 0, 1, 2, 3, 4, 99, 5, 6]]


def test_a_piece_that_fits_to_the_last_place_is_taken_whole(prepare: ModuleType) -> None:
    docs = numbered_documents([2, 3, 4])
    rows = [row.tolist() for row in prepare.pack(iter(docs), 9, 99, keep_tails=True)]
    assert rows == [[99, 5, 6, 7, 8, 99, 2, 3, 4]]


def test_packing_looks_ahead_no_further_than_its_buffer(prepare: ModuleType) -> None:
    taken = itertools.count()
    endless = (np.full(3, next(taken) % 1000, np.uint16) for _ in itertools.repeat(None))
    list(itertools.islice(prepare.pack(endless, 65, 65535, keep_tails=True), 100))
    assert next(taken) < prepare.PACK_BUFFER + 100 * 65


# ---------------------------------------------------------------------------------------------------------------------
# Preparation and what lies on the disk


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def test_preparing_twice_does_nothing_the_second_time(prepared: tuple[Path, Path]) -> None:
    lab, cache = prepared
    before = snapshot(cache)
    done = run(lab, cache)
    assert done.code == 0 and done.out.startswith("prepared already")
    assert snapshot(cache) == before


def test_the_same_text_is_prepared_to_the_same_bytes(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    lab, cache = prepared
    assert run(lab, tmp_path).code == 0
    for path in (cache / "prepared").rglob("*.*"):
        assert (tmp_path / path.relative_to(cache)).read_bytes() == path.read_bytes()


def test_the_manifest_says_what_the_data_is_and_was_made_of(prepare: ModuleType) -> None:
    folder = prepare.prepared_folder()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["seq_len"], manifest["vocab_size"], manifest["open_text"]) == (64, 300, False)
    assert [(item["name"], item["held_out"]) for item in manifest["inputs"]] == [
        ("train.jsonl", False),
        ("val.jsonl", True),
    ]
    for name, facts in manifest["files"].items():
        assert (folder / name).stat().st_size == facts["bytes"]
        assert prepare.file_sha256(folder / name) == facts["sha256"]
    texts = [json.loads(line)["text"] for line in (Path(prepare.__file__).parent / "texts/train.jsonl").open()]
    counts = manifest["counts"]["train"]
    assert counts["documents"] == len(texts) == 300
    assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert counts["tokens"] - 64 <= counts["packed"] <= counts["tokens"]
    assert manifest["files"]["train.bin"]["rows"] == counts["rows"] == len(prepare.load_rows("train"))


def test_rows_decode_to_the_text_they_were_made_of(prepare: ModuleType) -> None:
    texts = {json.loads(line)["text"] for line in (Path(prepare.__file__).parent / "texts/val.jsonl").open()}
    tokenizer = prepare.load_tokenizer()
    rows = prepare.load_rows("val")
    for *complete, _ in pieces_of(list(rows), 299):
        for piece in complete:
            assert any(tokenizer.decode_bytes(piece) in text.encode() for text in texts)


def test_two_lengths_and_two_vocabularies_lie_side_by_side(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    texts = str(prepared[0] / "texts")
    cache = tmp_path / "cache"
    labs = [
        make_lab(tmp_path / f"{vocab}-{length}", VOCAB_SIZE=vocab, MAX_SEQ_LEN=length, DATASET=texts)
        for vocab, length in ((300, 64), (300, 128), (400, 64))
    ]
    for lab in labs:
        assert run(lab, cache).code == 0
    after = snapshot(cache)
    names = {path.name.split("-", 2)[2] for path in (cache / "prepared").iterdir()}
    assert names == {"v300-t64", "v300-t128", "v400-t64"}
    for lab in labs:
        assert run(lab, cache).out.startswith("prepared already")
    assert snapshot(cache) == after


def test_eval_tokens_is_no_part_of_the_prepared_data(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    lab = make_lab(tmp_path / "lab", EVAL_TOKENS=64, DATASET=str(prepared[0] / "texts"))
    assert run(lab, prepared[1]).out.startswith("prepared already")


def test_the_fingerprint_follows_the_data_and_needs_no_torch(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    code = "import sys, prepare; print(prepare.data_fingerprint(), *({'torch', 'tiktoken', 'pyarrow'} & {*sys.modules}))"
    lab, cache = prepared
    first = run(lab, cache, "-c", code).out.split()
    assert len(first) == 1 and len(first[0]) == 64
    other = make_lab(tmp_path / "lab", VOCAB_SIZE=301, DATASET=str(lab / "texts"))
    assert run(other, tmp_path).code == 0
    assert run(other, tmp_path, "-c", code).out.split() != first


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json"])
def test_a_flipped_byte_is_told_when_the_data_is_opened_and_prepared_anew(
    prepared: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    lab, cache = copied(prepared, tmp_path)
    path = next((cache / "prepared").rglob(name))
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    done = run(lab, cache, "-c", "import prepare; prepare.open_run().start(None)")
    assert (done.code, done.err.count("\n"), done.out) == (3, 1, "")
    assert name in done.err and "sha256" in done.err and "uv run prepare.py" in done.err
    assert run(lab, cache).code == 0
    assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["missing", "short", "no manifest", "cut manifest", "other format"])
def test_data_that_is_not_whole_is_told_at_once(prepared: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    lab, cache = copied(prepared, tmp_path)
    manifest = next((cache / "prepared").rglob("manifest.json"))
    if damage == "missing":
        manifest.with_name("val.bin").unlink()
    elif damage == "short":
        os.truncate(manifest.with_name("train.bin"), 1000)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_text(manifest.read_text()[:100])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    done = run(lab, cache, "-c", "import prepare; prepare.open_run()")
    assert (done.code, done.err.count("\n")) == (3, 1) and "uv run prepare.py" in done.err
    assert run(lab, cache).code == 0
    assert run(lab, cache, "-c", "import prepare; prepare.open_run()").code == 0


def test_missing_data_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    done = run(make_lab(tmp_path / "lab"), tmp_path / "cache", "-c", "import prepare; prepare.open_run()")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    assert "no data is prepared" in done.err and "uv run prepare.py" in done.err


def copied(prepared: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The prepared lab's text and data, to be spoiled."""
    shutil.copytree(prepared[1], tmp_path / "cache")
    return make_lab(tmp_path / "lab", DATASET=str(prepared[0] / "texts")), tmp_path / "cache"


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc")
def test_a_killed_preparation_leaves_no_process_and_the_next_succeeds(tmp_path: Path) -> None:
    lab, cache = make_lab(tmp_path / "lab"), tmp_path / "cache"
    write_jsonl(lab / "texts" / "train.jsonl", documents(6000, seed=5))
    write_jsonl(lab / "texts" / "val.jsonl", documents(100, seed=6))
    process = subprocess.Popen([sys.executable, "prepare.py"], cwd=lab, env=environment(cache))
    while not any(path.stat().st_size for path in (cache / "prepared").glob(".*.building/train.bin")):
        assert process.poll() is None, "it ended before it could be killed"
    workers = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL and workers
    wait_for(lambda: all(map(gone, workers)))
    assert run(lab, cache, "-c", "import prepare; prepare.open_run()").code == 3
    assert run(lab, cache).code == 0
    assert [path.name for path in (cache / "prepared").iterdir() if path.name.startswith(".")] == []
    assert run(lab, cache, "-c", "import prepare; prepare.open_run()").code == 0


def wait_for(happened: Callable[[], bool]) -> None:
    patience = threading.Event()
    for _ in range(6000):
        if happened():
            return
        patience.wait(0.01)
    raise AssertionError("it did not happen within a minute")


def test_two_preparations_at_once_do_the_work_once(tmp_path: Path) -> None:
    lab, cache = make_lab(tmp_path / "lab"), tmp_path / "cache"
    write_jsonl(lab / "texts" / "train.jsonl", documents(1000, seed=5))
    write_jsonl(lab / "texts" / "val.jsonl", documents(100, seed=6))
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "prepare.py"], cwd=lab, env=environment(cache), stdout=-1, text=True)
            )
            for _ in range(2)
        ]
        said = sorted(process.communicate(timeout=120)[0] for process in both)
    assert [line.startswith("prepared already") for line in said].count(True) == 1


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / "lab")
    write_jsonl(lab / "texts" / "train.jsonl", documents(10, seed=5))
    (tmp_path / "file").write_text("")
    done = run(lab, tmp_path / "file" / "cache")
    assert (done.code, done.err.count("\n")) == (3, 1) and "file/cache" in done.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_SEQ_LEN", 384),
        ("MAX_SEQ_LEN", 0),
        ("MAX_SEQ_LEN", 32),
        ("MAX_SEQ_LEN", True),
        ("MAX_SEQ_LEN", 256.0),
        ("VOCAB_SIZE", 257),
        ("VOCAB_SIZE", 65537),
        ("VOCAB_SIZE", "8192"),
        ("EVAL_TOKENS", 63),
        ("EVAL_TOKENS", None),
        ("TIME_BUDGET", 0),
        ("TIME_BUDGET", -1.0),
        ("TIME_BUDGET", "300"),
        ("DATASET", ""),
        ("DATASET", ["stdlib"]),
    ],
)
def test_a_constant_that_cannot_work_is_one_line(tmp_path: Path, name: str, value: object) -> None:
    lab = make_lab(tmp_path / "lab", **{name: value})
    code = (
        "import prepare\ntry: prepare.open_run()\nexcept SystemExit as stop: assert stop.code == 3\n"
        "raise SystemExit(prepare.main([]))"
    )
    done = run(lab, tmp_path / "cache", "-c", code)
    first, second = done.err.splitlines()
    assert done.code == 3 and first == second and f"{name} = {value!r}" in first and "wanted" in first


def test_help_is_there_and_a_wrong_flag_is_a_wrong_call(tmp_path: Path) -> None:
    lab = make_lab(tmp_path / "lab")
    assert "--num-shards" in run(lab, tmp_path / "cache", "prepare.py", "--help").out
    assert run(lab, tmp_path / "cache", "prepare.py", "--source", "x").code == 64


# ---------------------------------------------------------------------------------------------------------------------
# Sources: a folder


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def test_a_folder_may_mix_all_formats(tmp_path: Path) -> None:
    lab, cache = make_lab(tmp_path / "lab"), tmp_path / "cache"
    texts = lab / "texts"
    (texts / "deep").mkdir(parents=True)
    made = {name: documents(40, seed) for seed, name in enumerate(["parquet", "jsonl", "xz", "zst", "txt", "txt.xz", "val"])}

    def lines(name: str) -> bytes:
        return "".join(json.dumps({"text": text}) + "\n\n" for text in made[name]).encode()

    pyarrow.parquet.write_table(pyarrow.table({"n": [*range(40)], "text": made["parquet"]}), texts / "a.parquet")
    (texts / "b.jsonl").write_bytes(lines("jsonl"))
    (texts / "c.jsonl.xz").write_bytes(lzma.compress(lines("xz")))
    (texts / "d.jsonl.zst").write_bytes(zstd(lines("zst")))
    (texts / "deep" / "e.txt").write_text("".join(made["txt"]))
    (texts / "f.TXT.xz").write_bytes(lzma.compress("".join(made["txt.xz"]).encode()))
    (texts / "my_val.jsonl.zst").write_bytes(zstd(lines("val")))
    (texts / "README.md").write_text("not a text to train on")
    (texts / ".hidden.txt").write_text("nor this")
    assert run(lab, cache).code == 0
    manifest = json.loads(next((cache / "prepared").rglob("manifest.json")).read_text())
    assert {item["name"]: item["held_out"] for item in manifest["inputs"]} == {
        "a.parquet": False,
        "b.jsonl": False,
        "c.jsonl.xz": False,
        "d.jsonl.zst": False,
        "deep/e.txt": False,
        "f.TXT.xz": False,
        "my_val.jsonl.zst": True,
    }

    def size(names: list[str]) -> int:
        return sum(len(text.encode()) for name in names for text in made[name])

    assert manifest["counts"]["train"]["documents"] == 4 * 40 + 2
    assert manifest["counts"]["train"]["bytes"] == size(["parquet", "jsonl", "xz", "zst", "txt", "txt.xz"])
    assert manifest["counts"]["val"]["bytes"] == size(["val"])


def test_without_a_val_file_every_twentieth_document_is_held_out_by_hash(tmp_path: Path) -> None:
    prepare = load_prepare(make_lab(tmp_path / "lab"))
    texts = [f"{number} {text}" for number, text in enumerate(documents(2000, seed=9))]
    write_jsonl(tmp_path / "lab" / "texts" / "all.jsonl", texts)
    inputs = prepare.find_inputs(None)
    train, val = list(inputs.texts("train")), list(inputs.texts("val"))
    assert sorted(train + val) == sorted(texts)
    assert 60 < len(val) < 140
    assert not set(inputs.sample(10**9)) & set(val), "the tokenizer saw validation text"


def test_a_text_given_twice_is_never_on_both_sides(tmp_path: Path) -> None:
    prepare = load_prepare(make_lab(tmp_path / "lab"))
    texts = documents(300, seed=9)
    write_jsonl(tmp_path / "lab" / "texts" / "all.jsonl", texts + texts)
    inputs = prepare.find_inputs(None)
    assert not set(inputs.texts("train")) & set(inputs.texts("val"))


def test_the_tokenizers_sample_is_bounded_and_comes_from_all_files(tmp_path: Path) -> None:
    prepare = load_prepare(make_lab(tmp_path / "lab"))
    for name in "abcd":
        write_jsonl(tmp_path / "lab" / "texts" / f"{name}.jsonl", [name * 100] * (3 if name == "a" else 1000))
    write_jsonl(tmp_path / "lab" / "texts" / "val.jsonl", ["v" * 100])
    sample = "".join(prepare.find_inputs(None).sample(40_000))
    assert 40_000 <= len(sample) < 41_000
    assert {name: sample.count(name) for name in "abcd"} == {"a": 300, "b": 19_700, "c": 10_000, "d": 10_000}


def test_a_long_text_becomes_documents_of_bounded_length(tmp_path: Path) -> None:
    prepare = load_prepare(make_lab(tmp_path / "lab"))
    text = "".join(f"line {number}\n" for number in range(200_000)) + "x" * 3_000_000
    path = tmp_path / "long.txt"
    path.write_text(text)
    parts = list(prepare.read_documents(path))
    assert "".join(parts) == text and max(map(len, parts)) <= prepare.DOCUMENT_CHARS
    assert parts[0].endswith("\n")
    write_jsonl(tmp_path / "long.jsonl", [text])
    parts = list(prepare.read_documents(tmp_path / "long.jsonl"))
    assert "".join(parts) == text and max(map(len, parts)) <= prepare.DOCUMENT_CHARS


def test_a_lone_surrogate_does_not_stop_a_preparation(tmp_path: Path) -> None:
    prepare = load_prepare(make_lab(tmp_path / "lab"))
    (tmp_path / "odd.jsonl").write_text('{"text": "a\\ud83d b"}\n')
    assert list(prepare.read_documents(tmp_path / "odd.jsonl")) == ["a? b"]


def test_a_text_that_spells_the_special_token_is_just_text(prepare: ModuleType) -> None:
    assert 299 not in prepare.load_tokenizer().encode_ordinary("<|bos|>")
    prepare._worker_encoding = prepare.load_tokenizer()
    assert 299 not in prepare._tokenize_job(["<|bos|> and <|bos|>"])[0]


def test_a_changed_folder_is_prepared_anew(tmp_path: Path) -> None:
    lab, cache = make_lab(tmp_path / "lab"), tmp_path / "cache"
    write_jsonl(lab / "texts" / "a.jsonl", documents(200, seed=1))
    write_jsonl(lab / "texts" / "val.jsonl", documents(100, seed=2))
    code = "import prepare; print(prepare.data_fingerprint())"
    assert run(lab, cache).code == 0
    first = run(lab, cache, "-c", code).out
    write_jsonl(lab / "texts" / "b.jsonl", documents(200, seed=3))
    assert "already" not in run(lab, cache).out
    assert run(lab, cache, "-c", code).out != first
    (lab / "texts").rename(lab / "away")  # what is prepared doesn't need its source
    assert "already" in run(lab, cache).out


def spoil_nothing(folder: Path) -> str:
    return "no training text"


def spoil_val_only(folder: Path) -> str:
    write_jsonl(folder / "val.jsonl", documents(10, 1))
    return "no training text"


def spoil_json(folder: Path) -> str:
    write_jsonl(folder / "a.jsonl", documents(10, 1))
    with (folder / "a.jsonl").open("a") as file:
        file.write("{not json\n")
    return "a.jsonl can't be read: line 11"


def spoil_field(folder: Path) -> str:
    (folder / "a.jsonl").write_text('{"content": "x"}\n')
    return "a.jsonl can't be read: line 1"


def spoil_xz(folder: Path) -> str:
    (folder / "a.jsonl.xz").write_bytes(lzma.compress(b'{"text": "abc"}\n' * 1000)[:-30])
    return "a.jsonl.xz can't be read"


def spoil_zst(folder: Path) -> str:
    (folder / "a.txt.zst").write_bytes(b"this is not zstd at all")
    return "a.txt.zst can't be read"


def spoil_parquet(folder: Path) -> str:
    (folder / "a.parquet").write_bytes(b"PAR1 but not really PAR1")
    return "a.parquet can't be read"


def spoil_column(folder: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), folder / "a.parquet")
    return "no column 'text'"


def spoil_size(folder: Path) -> str:
    write_jsonl(folder / "a.jsonl", documents(100, 1))
    write_jsonl(folder / "val.jsonl", ["short"])
    return "too little val text"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing,
        spoil_val_only,
        spoil_json,
        spoil_field,
        spoil_xz,
        spoil_zst,
        spoil_parquet,
        spoil_column,
        spoil_size,
    ],
)
def test_a_folder_that_is_no_good_is_one_line(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    lab, cache = make_lab(tmp_path / "lab"), tmp_path / "cache"
    (lab / "texts").mkdir()
    wanted = spoil(lab / "texts")
    done = run(lab, cache)
    assert (done.code, done.err.count("\n")) == (3, 1), done.err
    assert wanted in done.err
    assert not [*(cache / "prepared").glob("[!.]*")]


def test_an_unknown_source_is_one_line_that_names_the_known_ones(tmp_path: Path) -> None:
    done = run(make_lab(tmp_path / "lab", DATASET="finewebedu"), tmp_path / "cache")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert all(name in done.err for name in ("'finewebedu'", "fineweb-edu", "climbmix", "stdlib"))


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = {load_prepare(make_lab(tmp_path / lab)).source_name() for lab in ("one", "two")}
    assert len(names) == 2 and all(name.startswith("texts-") for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Sources: the standard library


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, dict]]:
    folder = tmp_path_factory.mktemp("stdlib")
    constants = {"MAX_SEQ_LEN": 256, "EVAL_TOKENS": 131_072, "VOCAB_SIZE": 2048, "DATASET": "stdlib"}
    lab = make_lab(folder / "lab", **constants)
    done = run(lab, folder / "cache")
    assert done.code == 0, done.err
    yield load_prepare(lab), json.loads(next((folder / "cache").rglob("manifest.json")).read_text())


def test_the_standard_library_gives_millions_of_tokens_and_enough_to_score(stdlib: tuple[ModuleType, dict]) -> None:
    prepare, manifest = stdlib
    assert manifest["open_text"] is True
    assert manifest["counts"]["train"]["packed"] > 2_000_000
    assert manifest["files"]["val.bin"]["rows"] * 256 >= prepare.EVAL_TOKENS


def test_a_newer_python_still_holds_enough_out(stdlib: tuple[ModuleType, dict]) -> None:
    prepare, manifest = stdlib
    left_in_3_13 = {
        "aifc",
        "cgi",
        "cgitb",
        "chunk",
        "mailcap",
        "nntplib",
        "pipes",
        "sndhdr",
        "sunau",
        "telnetlib",
        "xdrlib",
    }
    splits_off = {"tkinter", "turtle", "turtledemo", "idlelib", "lib2to3", "distutils", "ensurepip", "venv"}
    assert not splits_off & set(prepare.STDLIB_HELD_OUT.split())
    stays = [
        item["bytes"]
        for item in manifest["inputs"]
        if item["held_out"] and item["name"].split("/")[0].removesuffix(".py") not in left_in_3_13
    ]
    counts = manifest["counts"]["val"]
    assert sum(stays) * counts["packed"] / counts["bytes"] > 1.2 * prepare.EVAL_TOKENS


def test_held_out_modules_are_what_the_sandbox_is_told_to_hide(stdlib: tuple[ModuleType, dict]) -> None:
    prepare, manifest = stdlib
    hidden = prepare.stdlib_heldout_files()
    assert len(hidden) == sum(item["held_out"] for item in manifest["inputs"])
    assert all(path.is_file() for path in hidden)
    assert {"mailbox.py", "smtplib.py"} <= {path.name for path in hidden}


def test_no_training_run_imports_a_held_out_module(stdlib: tuple[ModuleType, dict]) -> None:
    script = """
import sys, torch, numpy, tiktoken, safetensors.torch, torch.distributed, torch._dynamo, torch._inductor.compile_fx
import torch._inductor.select_algorithm
try:
    import triton, triton.runtime, triton.compiler
except ImportError:
    pass
model = torch.nn.Linear(4, 4)
compiled = torch.compile(model, backend="aot_eager")
optimizer = torch.optim.AdamW(model.parameters())
compiled(torch.randn(2, 4)).sum().backward()
optimizer.step()
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "pickle" in loaded and not loaded & set(stdlib[0].STDLIB_HELD_OUT.split())
