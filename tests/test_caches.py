"""Compile caches between runs: what was there before the data goes on, if the run was kept, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

from autoresearch.experiment import caches


def put(folder: Path, name: str, text: str = "kernel") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_run_begins_with_the_snapshot_and_what_it_writes_is_gone_for_the_next(tmp_path: Path) -> None:
    put(tmp_path / "caches" / caches.SNAPSHOT, "triton/a")
    live = caches.lay_out(tmp_path / "caches")
    assert (live / "triton/a").read_text() == "kernel"
    put(live, "triton/a", "the data")
    put(live, "triton/b", "the data")
    again = caches.lay_out(tmp_path / "caches")
    assert again == live
    assert [path.name for path in (again / "triton").iterdir()] == ["a"]
    assert (again / "triton/a").read_text() == "kernel"


def test_a_kept_runs_own_snapshot_is_what_later_runs_begin_with(tmp_path: Path) -> None:
    put(tmp_path / "caches" / caches.SNAPSHOT, "triton/old")
    put(tmp_path / "run", "triton/new")
    for _ in range(2):  # a kill in between makes it again
        caches.adopt(tmp_path / "run", tmp_path / "caches")
    assert caches.is_warm(tmp_path / "caches")
    assert [path.name for path in (caches.lay_out(tmp_path / "caches") / "triton").iterdir()] == ["new"]


def test_links_fifos_and_too_much_are_left_out_of_a_copy(tmp_path: Path, monkeypatch) -> None:
    secret = tmp_path / "secret"
    put(secret, "text", "the held-out text")
    source = tmp_path / "live"
    put(source, "triton/a")
    put(source, "triton/big", "x" * 2000)
    (source / "file").symlink_to(secret / "text")
    (source / "folder").symlink_to(secret)
    os.mkfifo(source / "fifo")
    monkeypatch.setattr(caches, "MAX_BYTES", 1000)
    caches.copy(source, tmp_path / "copy")
    found = sorted(str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert found == ["triton/a"]
