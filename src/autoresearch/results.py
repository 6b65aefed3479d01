"""results.tsv: one row an experiment, written once, read by people, shells and other tools.

Written by a single append and fsync. Read with tolerance for what other tools of this kind write; a row's status decides what
it is, never its number.
"""

import contextlib
import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from autoresearch.errors import NotReady
from autoresearch.lines import last_line

HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
STATUSES = KEEP, DISCARD, CRASH = "keep", "discard", "crash"
MAX_DESCRIPTION = 300  # characters; more makes a table unreadable
MAX_HEADER = 4096  # bytes

# Numbers that other tools write where there was no score.
NO_SCORE = {"crash", "—", "-", "", "n/a", "nan", "none", "inf"}
# What could move the cursor, colour a terminal or turn the direction of text; lone surrogates can't be written at all.
ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Row:
    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: str
    description: str

    @property
    def kept(self) -> bool:
        return self.status == KEEP and self.val_bpb is not None


def clean(description: str, limit: int = MAX_DESCRIPTION) -> str:
    """One line without control characters, direction marks or escape codes, of a length that fits a table."""
    text = UNPRINTABLE.sub(" ", ESCAPE.sub("", description))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


RUNS = re.compile(r" n=(\d+)$")


def runs_of(row: Row) -> int:
    """How many runs its val_bpb is the mean of."""
    found = RUNS.search(row.description)
    return int(found.group(1)) if found else 1


def with_runs(description: str, runs: int) -> str:
    """The description, with the number of runs behind it if there were several."""
    return with_tail(description, f" n={runs}") if runs > 1 else description


def with_tail(description: str, tail: str) -> str:
    """The description with something of ours behind it, which a long one makes room for."""
    return clean(description, MAX_DESCRIPTION - len(tail)) + tail


def format_row(row: Row, names: Sequence[str] = HEADER) -> str:
    """The row under a header with these names, without its newline."""
    number = "—" if row.val_bpb is None else f"{row.val_bpb:.6f}"
    memory = None if row.status == CRASH else row.memory_gb
    cells = {
        "commit": row.commit[:7],
        "val_bpb": "crash" if row.status == CRASH else number,
        "memory_gb": "—" if memory is None else f"{memory:.1f}",
        "peak_vram_mb": "—" if memory is None else f"{memory * 1024:.1f}",
        "status": row.status,
        "description": clean(row.description),
    }
    return "\t".join(cells.get(name, "") for name in names)


def append(path: Path, row: Row) -> None:
    """Add a row, after a header where the file is new. A torn last line, from a machine that died, is set aside first."""
    _mend_tail(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.fstat(descriptor).st_size == 0:
            text = "\t".join(HEADER) + "\n" + format_row(row) + "\n"
        else:  # another tool may have begun the file, with its own columns
            text = format_row(row, _names(os.pread(descriptor, MAX_HEADER, 0).decode(errors="replace"))) + "\n"
        data = text.encode()
        written = os.write(descriptor, data)
        if written != len(data):  # a full disk: take the part back, so that the next try starts clean
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _names(text: str) -> list[str]:
    """The columns, from a text that begins with the header."""
    return [name.strip() for name in text.partition("\n")[0].removeprefix("\ufeff").split("\t")]


def _mend_tail(path: Path) -> None:
    """A last line without its newline: complete it if all fields are there, else move it to results.tsv.torn."""
    try:
        with path.open("rb") as file:
            head = file.read(MAX_HEADER)
            size = file.seek(0, os.SEEK_END)
            tail = last_line(file, size)
    except FileNotFoundError:
        return
    if not tail:
        return
    start = size - len(tail)
    ours = "\t".join(HEADER).encode()
    if start == 0:
        whole = tail == ours or not ours.startswith(tail)
    else:
        whole = tail.count(b"\t") >= len(_names(head.decode(errors="replace"))) - 1
    with path.open("r+b") as file:
        if whole:  # only the newline is missing, or a part of the description
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return
        with path.with_name(path.name + ".torn").open("ab") as torn:
            torn.write(tail + b"\n")
        file.truncate(start)


def _tidy(cell: str) -> str:
    """`clean` for what others wrote; printable text, nearly all there is, takes the short way."""
    return cell.strip() if cell.isprintable() else clean(cell)


def _number(text: str) -> float | None:
    text = text.strip().lower()
    if text in NO_SCORE:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _lines(path: Path) -> Iterator[str]:
    """The lines of a table, one by one; none of a file that is missing or blank."""
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        first = file.readline()
        if first.strip() or any(map(str.strip, file)):
            yield first
            yield from file


def _columns(path: Path, header: str) -> dict[str, int]:
    """Where each column stands. Raises NotReady for a foreign header."""
    names = _names(header)
    if not {"commit", "val_bpb", "status", "description"} <= set(names):
        shown = clean(header)[:60]
        raise NotReady(f"{path}: line 1 is '{shown}', not the header {' '.join(HEADER)}: move the file away, a new one is begun")
    return {name: index for index, name in enumerate(names)}


def check_header(path: Path) -> None:
    """Raises NotReady for a file with a foreign header."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        start = file.read(MAX_HEADER).decode(errors="replace")
        if start.strip():
            _columns(path, start.partition("\n")[0])


def commits(path: Path) -> list[str]:
    """The commits of a table's rows, in order. Raises NotReady for a file with a foreign header."""
    lines = _lines(path)
    if (header := next(lines, None)) is None:
        return []
    order = _columns(path, header)
    at, status, width = order["commit"], order["status"], len(order)
    rows = (fields for line in lines if len(fields := line.rstrip("\r\n").split("\t")) >= width)
    return [_tidy(fields[at]) for fields in rows if fields[status].strip().lower() in STATUSES]


def read(path: Path) -> tuple[list[Row], list[str]]:
    """Rows and warnings (one for each line that can't be read). Raises NotReady for a file with a foreign header."""
    lines = _lines(path)
    if (header := next(lines, None)) is None:
        return [], []
    order = _columns(path, header)
    memory_name = "peak_vram_mb" if "peak_vram_mb" in order else "memory_gb"
    commit, score, status, description = (order[name] for name in ("commit", "val_bpb", "status", "description"))
    memory = order.get(memory_name)
    per_gb = 1024.0 if memory_name == "peak_vram_mb" else 1.0
    last = description == len(order) - 1  # then tabs in it, which other tools let pass, are a part of it

    rows, warnings = [], []
    for number, line in enumerate(lines, start=2):
        fields = line.rstrip("\r\n").split("\t")
        if fields == [""]:
            continue
        state = fields[status].strip().lower() if len(fields) >= len(order) else ""
        if state not in STATUSES:
            warnings.append(f"{path.name}, line {number}: not a row, left out: '{clean(line)[:60]}'")
            continue
        value = None if state == CRASH else _number(fields[score])
        gigabytes = _number(fields[memory]) if memory is not None and state != CRASH else None
        gigabytes = gigabytes / per_gb if gigabytes is not None else None
        said = "\t".join(fields[description:]) if last else fields[description]
        rows.append(Row(_tidy(fields[commit]), value, gigabytes, intern(state), _tidy(said)))
    return rows, warnings


def missing(wanted: Sequence[str], written: Iterable[str]) -> list[int]:
    """Which of these commits, by their places, a table with those lacks. A person may have sorted it and written in it: a row is
    known by its commit alone; and counted, since among thousands two commits begin alike."""
    there = Counter(written)
    there.subtract(wanted)
    lacking = []
    for place in reversed(range(len(wanted))):  # of two that begin alike the later one is the one that is not there yet
        if there[wanted[place]] < 0:
            there[wanted[place]] += 1
            lacking.append(place)
    return lacking[::-1]


@dataclass(frozen=True)
class Gain:
    """A kept row and what it won over the kept row before it; None for the first."""

    row: Row
    gain: float | None


def gains(rows: Iterable[Row]) -> list[Gain]:
    kept: list[Gain] = []
    for row in rows:
        if row.kept and row.val_bpb is not None:
            before = kept[-1].row.val_bpb if kept else None
            kept.append(Gain(row, None if before is None else before - row.val_bpb))
    return kept


@dataclass(frozen=True)
class Summary:
    experiments: int  # rows without the first baseline
    improvements: int
    crashes: int
    stopped: int  # early: discarded without a score
    started: float | None  # val_bpb of the first kept row
    best: Row | None
    top: Sequence[Gain]  # the largest gains first


def summarize(rows: Sequence[Row], top: int = 10) -> Summary:
    steps = gains(rows)
    won = [step for step in steps if step.gain is not None and step.gain > 0]
    kept = [row for row in rows if row.kept]
    return Summary(
        experiments=max(0, len(rows) - (1 if steps else 0)),
        improvements=len(won),
        crashes=sum(row.status == CRASH for row in rows),
        stopped=sum(row.status == DISCARD and row.val_bpb is None for row in rows),
        started=kept[0].val_bpb if kept else None,
        best=min(kept, key=lambda row: row.val_bpb or 0.0) if kept else None,
        top=sorted(won, key=lambda step: -(step.gain or 0.0))[:top],
    )
