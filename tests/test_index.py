"""Claims about the index of a file of JSON lines: it gives what the lines give, whatever happened to either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autoresearch.index import HEAD, read_indexed
from autoresearch.lines import BATCH, append_line

COUNT = 3 * BATCH + 7


class Reader:
    """Reads the file, and tells how many of its lines were parsed for that."""

    def __init__(self, path: Path) -> None:
        self.path, self.parsed = path, 0

    def __call__(self, version: str = "1") -> list[tuple[int, int]]:
        self.parsed = 0
        return read_indexed(
            self.path, self.path.with_suffix(".index"), self.make, list, lambda packed: (packed[0], packed[1]), version
        )

    def make(self, data: dict[str, int], at: int) -> tuple[int, int]:
        self.parsed += 1
        return data["n"], at


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(COUNT)))
    return Reader(path)


def expected(path: Path) -> list[tuple[int, int]]:
    found, at = list[tuple[int, int]](), 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"}\n"):
            found.append((json.loads(line)["n"], at))
        at += len(line)
    return found


def test_only_what_is_no_whole_batch_is_parsed_again(read: Reader) -> None:
    assert read() == expected(read.path) and read.parsed == COUNT
    assert read() == expected(read.path) and read.parsed == 7
    for n in range(BATCH):
        append_line(read.path, {"n": n})
    assert read() == expected(read.path) and read.parsed == BATCH + 7
    assert read() == expected(read.path) and read.parsed == 7


def another_line(path: Path, text: str) -> None:
    """In the second batch."""
    lines = path.read_text().splitlines(keepends=True)
    lines[BATCH + 5] = text
    path.write_text("".join(lines))


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a line says something else, with as many bytes": (lambda path: another_line(path, '{"n": 999}\n'), COUNT - BATCH),
    "a line is damaged": (lambda path: another_line(path, '{"n": \n'), COUNT - BATCH),
    "a line is gone": (lambda path: another_line(path, ""), COUNT - BATCH - 1),
    "the last line was cut": (lambda path: path.write_bytes(path.read_bytes()[:-3]), 6),
    "it was begun anew": (lambda path: path.write_text('{"n": 1}\n'), 1),
    "the index was cut": (lambda path: cut(path.with_suffix(".index"), 5), COUNT - 2 * BATCH),
    "the index was cut in a piece's head": (lambda path: cut_to(path.with_suffix(".index"), HEAD.size - 1), COUNT),
    "the index is something else": (lambda path: path.with_suffix(".index").write_bytes(b"\xff" * 4000), COUNT),
    "the index is empty": (lambda path: path.with_suffix(".index").write_bytes(b""), COUNT),
    "the index is gone": (lambda path: path.with_suffix(".index").unlink(), COUNT),
    "the index is a folder": (lambda path: folder_instead(path.with_suffix(".index")), COUNT),
}


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def cut_to(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:count])


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changed_the_lines_are_what_counts(read: Reader, change: str) -> None:
    read()
    changed, parsed = CHANGES[change]
    changed(read.path)
    assert read() == expected(read.path) and read.parsed == parsed
    assert read() == expected(read.path)
    if "folder" not in change:
        assert read.parsed == len(expected(read.path)) % BATCH or "damaged" in change or "gone" in change


def test_another_version_reads_the_lines(read: Reader) -> None:
    read()
    assert read("2") == expected(read.path) and read.parsed == COUNT
    assert read("2") == expected(read.path) and read.parsed == 7


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert Reader(tmp_path / "none.jsonl")() == []
    assert list(tmp_path.iterdir()) == []
