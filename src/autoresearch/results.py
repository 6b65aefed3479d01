"""results.tsv: one row an experiment, written once, read by people, shells and other tools.

Written by a single append and fsync. Read with tolerance for what other tools of this kind write; a row's status decides what
it is, never its number.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.errors import NotReady

HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
KEEP, DISCARD, CRASH = "keep", "discard", "crash"
MAX_DESCRIPTION = 300  # characters; more makes a table unreadable

# Numbers that other tools write where there was no score.
NO_SCORE = {"crash", "—", "-", "", "n/a", "nan", "none", "inf"}
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class Row:
    commit: str
    val_bpb: float | None
    memory_gb: float | None
    status: str
    description: str

    @property
    def kept(self) -> bool:
        return self.status == KEEP and self.val_bpb is not None


def clean(description: str) -> str:
    """One line without control characters, direction marks or escape codes, of a length that fits a table."""
    text = UNPRINTABLE.sub(" ", re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", description))
    text = " ".join(text.split())
    return text if len(text) <= MAX_DESCRIPTION else text[: MAX_DESCRIPTION - 1] + "…"


def format_row(row: Row) -> str:
    if row.status == CRASH:
        score, memory = "crash", "—"
    else:
        score = "—" if row.val_bpb is None else f"{row.val_bpb:.6f}"
        memory = "—" if row.memory_gb is None else f"{row.memory_gb:.1f}"
    return "\t".join((row.commit[:7], score, memory, row.status, clean(row.description)))


def append(path: Path, row: Row) -> None:
    """Add a row, after a header where the file is new. A torn last line, from a machine that died, is set aside first."""
    _mend_tail(path)
    text = format_row(row) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.fstat(descriptor).st_size == 0:
            text = "\t".join(HEADER) + "\n" + text
        data = text.encode()
        written = os.write(descriptor, data)
        if written != len(data):  # a full disk: take the part back, so that the next try starts clean
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(28, "no space left on device", str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend_tail(path: Path) -> None:
    """A last line without its newline: complete it if all fields are there, else move it to results.tsv.torn."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    tail = data[start:]
    with path.open("r+b") as file:
        if tail.count(b"\t") == len(HEADER) - 1:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return
        with path.with_name(path.name + ".torn").open("ab") as torn:
            torn.write(tail + b"\n")
        file.truncate(start)


def _number(text: str) -> float | None:
    text = text.strip().lower()
    if text in NO_SCORE:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def read(path: Path) -> tuple[list[Row], list[str]]:
    """Rows and warnings (one for each line that can't be read). Raises NotReady for a file with a foreign header."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], []
    lines = text.split("\n")
    if not text.strip():
        return [], []
    names = [name.strip() for name in lines[0].split("\t")]
    memory_name = "peak_vram_mb" if "peak_vram_mb" in names else "memory_gb"
    missing = [name for name in ("commit", "val_bpb", "status", "description") if name not in names]
    if missing:
        shown = clean(lines[0])[:60]
        raise NotReady(f"{path}: line 1 is '{shown}', not the header {' '.join(HEADER)}: move the file away, a new one is begun")
    order = {name: index for index, name in enumerate(names)}
    commit, score, status, description = (order[name] for name in ("commit", "val_bpb", "status", "description"))
    memory = order.get(memory_name)
    per_gb = 1024.0 if memory_name == "peak_vram_mb" else 1.0

    rows, warnings = [], []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        if len(fields) < len(names) or fields[status].strip().lower() not in (KEEP, DISCARD, CRASH):
            warnings.append(f"{path.name}, line {number}: not a row, left out: '{clean(line)[:60]}'")
            continue
        state = fields[status].strip().lower()
        value = None if state == CRASH else _number(fields[score])
        gigabytes = _number(fields[memory]) if memory is not None and state != CRASH else None
        gigabytes = gigabytes / per_gb if gigabytes is not None else None
        rows.append(Row(fields[commit].strip(), value, gigabytes, state, fields[description].strip()))
    return rows, warnings


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
        started=kept[0].val_bpb if kept else None,
        best=min(kept, key=lambda row: row.val_bpb or 0.0) if kept else None,
        top=sorted(won, key=lambda step: -(step.gain or 0.0))[:top],
    )
