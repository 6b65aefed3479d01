"""The report on results.tsv: the session's summary, its kept steps, JSON, and a plot. Standard library but for the plot."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoresearch.errors import NotReady, WrongCall
from autoresearch.results import CRASH, Gain, Row, gains, summarize

WIDTH = 100  # columns of a line; longer descriptions are cut
PLOT_KINDS = (".png", ".svg", ".pdf")


def text(rows: Sequence[Row], top: int, kept_only: bool, numbers: Mapping[str, int] | None = None) -> str:
    """The report for people. `numbers`: the experiments' numbers by the rows' commits, where they are known."""
    if not rows:
        return "no experiments yet: bash scripts/run-loop.sh --max 5"
    summary = summarize(rows, top)
    crashes = f", {summary.crashes} crashed" if summary.crashes else ""
    lines = [f"Session summary: {summary.experiments} experiments, {summary.improvements} improvements{crashes}"]
    if summary.best and summary.best.val_bpb is not None and summary.started is not None:
        lines.append(f"Best val_bpb: {summary.best.val_bpb:.6f} (started: {summary.started:.6f})")
    if kept_only:
        lines += ["", "Kept, in order:", *_table(gains(rows), numbers or {})]
        return "\n".join(lines)
    if summary.top:
        lines += ["", "Top improvements:"]
        lines += [f"{_cut(f'- {step.row.description}', WIDTH - 20)}: -{step.gain or 0:.6f} val_bpb" for step in summary.top]
    best = sorted((row for row in rows if row.val_bpb is not None), key=lambda row: row.val_bpb or 0.0)[:top]
    if best:
        lines += ["", f"Best {len(best)}:", *_table([Gain(row, None) for row in best], numbers or {})]
    return "\n".join(lines)


def _table(steps: Sequence[Gain], numbers: Mapping[str, int]) -> list[str]:
    def line(step: Gain) -> str:
        row = step.row
        memory = f"{row.memory_gb:5.1f}" if row.memory_gb is not None else "    —"
        gain = f" {-step.gain:+.6f}" if step.gain is not None else ""
        number = f"#{numbers[row.commit]:<4} " if row.commit in numbers else ""
        return _cut(f"{number}{row.commit:7}  {row.val_bpb or 0:.6f}{gain}  {memory} GB  {row.status:7}  {row.description}")

    return [line(step) for step in steps]


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def as_dict(rows: Sequence[Row], top: int, kept_only: bool, numbers: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The report for programs."""
    known = numbers or {}

    def _row(row: Row, gain: float | None) -> dict[str, Any]:
        return {"n": known.get(row.commit), **asdict(row), "gain": gain}

    summary = summarize(rows, top)
    steps = {id(step.row): step.gain for step in gains(rows)}
    shown = [row for row in rows if row.kept] if kept_only else list(rows)
    return {
        "experiments": summary.experiments,
        "improvements": summary.improvements,
        "crashes": summary.crashes,
        "started": summary.started,
        "best": _row(summary.best, steps.get(id(summary.best))) if summary.best else None,
        "top_improvements": [_row(step.row, step.gain) for step in summary.top],
        "rows": [_row(row, steps.get(id(row))) for row in shown],
    }


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Every experiment a point, the kept ones the falling line. The ending of `path` chooses PNG, SVG or PDF.

    Raises WrongCall for another ending, NotReady without matplotlib or without anything to draw.
    """
    if path.suffix.lower() not in PLOT_KINDS:
        raise WrongCall(f"--plot {path}: the name must end in {', '.join(PLOT_KINDS)}")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise NotReady("a plot needs matplotlib: 'uv sync --extra plot', or use scripts/show-results.sh --plot FILE") from None
    points = [(number, row) for number, row in enumerate(rows) if row.val_bpb is not None]
    if not points:
        raise NotReady("there is no scored experiment to plot yet")
    kept = [(number, row) for number, row in points if row.kept]
    crashed = [number for number, row in enumerate(rows) if row.status == CRASH]
    scores = [row.val_bpb or 0.0 for _, row in points]
    best, first = min(scores), scores[0]
    # Far outliers would flatten the line that matters: the view ends a little above the first score.
    top = first + max(0.35 * (first - best), 0.002)

    figure, axes = pyplot.subplots(figsize=(10, 5.2), dpi=150)
    discarded = [(number, min(row.val_bpb or 0.0, top)) for number, row in points if not row.kept]
    axes.scatter([n for n, _ in discarded], [y for _, y in discarded], s=22, color="#b8bcc4", label="discarded", zorder=2)
    axes.step(
        [n for n, _ in kept],
        [row.val_bpb or 0.0 for _, row in kept],
        where="post",
        color="#2a9d5c",
        linewidth=2,
        zorder=3,
    )
    axes.scatter([n for n, _ in kept], [row.val_bpb or 0.0 for _, row in kept], s=42, color="#2a9d5c", label="kept", zorder=4)
    if crashed:
        axes.scatter(crashed, [top] * len(crashed), marker="x", color="#d1495b", label="crashed", zorder=3)
    for (number, row), step in zip(kept, gains(rows), strict=True):
        label = "baseline" if step.gain is None else row.description
        axes.annotate(
            label if len(label) <= 44 else label[:43] + "…",
            (number, row.val_bpb or 0.0),
            textcoords="offset points",
            xytext=(7, 7),
            fontsize=7.5,
            rotation=16,
            color="#333333",
            parse_math=False,  # a dollar in a description is a dollar
        )
    axes.set_ylim(best - 0.12 * (top - best), top + 0.06 * (top - best))
    axes.margins(x=0.08)
    axes.set_xlabel("experiment")
    axes.set_ylabel("val_bpb (lower is better)")
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is drawn as a box
        figure.tight_layout()
        figure.savefig(path)
    pyplot.close(figure)
