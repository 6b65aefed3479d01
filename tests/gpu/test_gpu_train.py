"""train.py's own kernel on a GPU that has what it wants."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from labs import Later

torch = Later("torch")
pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT)
    yield importlib.import_module("train")
    for name in ("train", "prepare", "constants"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("rows", "depth", "cols"), [(4096, 640, 2560), (300, 64, 520)])
def test_the_fused_product_is_the_plain_one(train: ModuleType, rows: int, depth: int, cols: int) -> None:
    assert train.product is train.fused_product, "this GPU has not what it wants"
    a, b = (torch.randn(n, depth, device="cuda", dtype=torch.bfloat16) / depth**0.25 for n in (rows, cols))
    squares = train.fused_product(a, b)
    z = a.float() @ b.float().t()
    torch.testing.assert_close(squares.float(), z.relu().square(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(train.fused_product(a, b, squares).float(), z * 2 * squares.float().sqrt(), rtol=0.02, atol=0.02)
