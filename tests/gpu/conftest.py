"""Tests that need a GPU. Without `--gpu` they are left out, with one line that says so: this suite hides the GPU from itself."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--gpu"):
        return
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: bash tests/gpu/run.sh"))
