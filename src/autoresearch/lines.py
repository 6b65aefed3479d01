"""Files of JSON objects, one a line, that are only ever appended to: the journal, the bill. Standard library only.

A line counts once its newline is there. What a crash cut is not read, and goes when the next line is written: what it was about is
written again by whoever does it again.
"""

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any, TypeVar

Made = TypeVar("Made")

BATCH = 100  # lines that are parsed at once: twice as fast, and their names are one object each and not one for each line
BLOCK = 2**16  # bytes that are read at a time from a file's end


def append_line(path: Path, entry: dict[str, Any]) -> int:
    """Add a line that is on the disk when this returns. Returns where in the file it begins."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        begin = size - len(last_line(file, size))
        file.truncate(begin)
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return begin


def last_line(file: IO[bytes], size: int) -> bytes:
    """What stands behind the last newline: of a whole file nothing."""
    return _end(file, size, 1).rpartition(b"\n")[2]


def _end(file: IO[bytes], size: int, newlines: int) -> bytes:
    """So much of a file's end that it has at least so many newlines, or all of it; without reading what is before."""
    data, at = b"", size
    while at > 0 and data.count(b"\n") < newlines:
        step = min(at, BLOCK)
        at -= step
        file.seek(at)
        data = file.read(step) + data
    return data


def read_lines(path: Path, make: Callable[[dict[str, Any]], Made]) -> list[Made]:
    """What `make` makes of each line, in order; lines that are none, or that it raises for, are left out."""
    with no_collection():
        return list(iterate(path, make))


def iterate(path: Path, make: Callable[[dict[str, Any]], Made]) -> Iterator[Made]:
    """The same one by one, for whoever doesn't keep them."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for _, made in batches(file, lambda data, _: make(data)):
            yield from made


def batches(file: IO[bytes], make: Callable[[dict[str, Any], int], Made]) -> Iterator[tuple[list[bytes], list[Made]]]:
    """From where the file stands, so many lines at a time, with what `make` makes of them. It is told where in the file each
    begins, for whoever wants to read it again."""
    begin = file.tell()
    while lines := list(islice(file, BATCH)):
        places = list(accumulate(map(len, lines), initial=begin))
        begin = places.pop()
        if not lines[-1].endswith(b"\n"):
            lines.pop()
        yield lines, list(_parsed(lines, lambda data, number: make(data, places[number])))  # noqa: B023 - called at once


def line_at(path: Path, begin: int) -> bytes:
    """The line that begins there."""
    with path.open("rb") as file:
        file.seek(begin)
        return file.readline()


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python's search for unreachable cycles takes a third of the time where thousands of objects come to stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def newest_lines(path: Path, count: int, make: Callable[[dict[str, Any]], Made]) -> list[Made]:
    """The same of the last lines alone, without reading those before them."""
    data = b""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        data = _end(file, file.seek(0, os.SEEK_END), count + 1)
    return list(_parsed(data.split(b"\n")[:-1][-count:], lambda data, _: make(data)))


def _parsed(lines: list[bytes], make: Callable[[dict[str, Any], int], Made]) -> Iterator[Made]:
    """`make` is told which of the lines it is, too."""
    try:
        objects = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        objects = []
    if len(objects) != len(lines):  # one of them is damaged
        objects = map(_one, lines)
    for number, data in enumerate(objects):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            yield make(data, number)


def _one(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
