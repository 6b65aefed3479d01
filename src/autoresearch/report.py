"""The report on results.tsv: the session's summary, its kept steps, JSON. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autoresearch.results import RUNS, Gain, Row, gains, runs_of, summarize

WIDTH = 100  # columns of a line; longer descriptions are cut


def text(rows: Sequence[Row], top: int, kept_only: bool, numbers: Mapping[str, int] | None = None) -> str:
    """The report for people. `numbers`: the experiments' numbers by the rows' commits, where they are known."""
    if not rows:
        return "no experiments yet: bash scripts/run-loop.sh --max 5"
    summary = summarize(rows, top)
    crashes = f", {summary.crashes} crashed" if summary.crashes else ""
    stopped = f", {summary.stopped} stopped early" if summary.stopped else ""
    lines = [f"Session summary: {summary.experiments} experiments, {summary.improvements} improvements{crashes}{stopped}"]
    if summary.best and summary.best.val_bpb is not None and summary.started is not None:
        lines.append(f"Best val_bpb: {summary.best.val_bpb:.6f} (started: {summary.started:.6f})")
    if kept_only:
        lines += ["", "Kept, in order:", *_table(gains(rows), numbers or {})]
        return "\n".join(lines)
    if summary.top:
        lines += ["", "Top improvements:"]
        said = [_cut(f"- {RUNS.sub('', step.row.description)}", WIDTH - 20) for step in summary.top]
        lines += [f"{what}: -{step.gain or 0:.6f} val_bpb" for what, step in zip(said, summary.top, strict=True)]
    best = sorted((row for row in rows if row.val_bpb is not None), key=lambda row: row.val_bpb or 0.0)[:top]
    if best:
        lines += ["", f"Best {len(best)}:", *_table([Gain(row, None) for row in best], numbers or {})]
    return "\n".join(lines)


def listed(rows: Sequence[Row], numbers: Mapping[str, int]) -> list[str]:
    """A line for each row, as it comes."""
    return _table([Gain(row, None) for row in rows], numbers)


def _table(steps: Sequence[Gain], numbers: Mapping[str, int]) -> list[str]:
    repeated = any(runs_of(step.row) > 1 for step in steps)

    def line(step: Gain) -> str:
        row = step.row
        memory = f"{row.memory_gb:5.1f}" if row.memory_gb is not None else "    —"
        gain = f" {-step.gain:+.6f}" if step.gain is not None else ""
        score = f"{row.val_bpb:.6f}" if row.val_bpb is not None else f"{'—':8}"
        number = f"#{numbers[row.commit]:<4} " if row.commit in numbers else ""
        runs = f"{runs_of(row)} run{'s' if runs_of(row) > 1 else ' '}  " if repeated else ""  # the tail of a long line is cut
        said = RUNS.sub("", row.description)
        return _cut(f"{number}{row.commit:7}  {score}{gain}  {memory} GB  {row.status:7}  {runs}{said}")

    return [line(step) for step in steps]


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def as_dict(rows: Sequence[Row], top: int, kept_only: bool, numbers: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The report for programs."""
    known = numbers or {}

    def _row(row: Row, gain: float | None) -> dict[str, Any]:
        return {"n": known.get(row.commit), **asdict(row), "gain": gain, "runs": runs_of(row)}

    summary = summarize(rows, top)
    steps = {id(step.row): step.gain for step in gains(rows)}
    shown = [row for row in rows if row.kept] if kept_only else list(rows)
    return {
        "experiments": summary.experiments,
        "improvements": summary.improvements,
        "crashes": summary.crashes,
        "stopped": summary.stopped,
        "started": summary.started,
        "best": _row(summary.best, steps.get(id(summary.best))) if summary.best else None,
        "top_improvements": [_row(step.row, step.gain) for step in summary.top],
        "rows": [_row(row, steps.get(id(row))) for row in shown],
    }
