"""A picture of a session: every experiment a point, the kept ones the falling line, labelled. Needs matplotlib."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoresearch.errors import NotReady, WrongCall
from autoresearch.results import CRASH, Row, gains

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".png", ".svg", ".pdf")
GREEN, GREY, RED = "#2a9d5c", "#b8bcc4", "#d1495b"
LABEL = 44  # characters of a description beside its point


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw into `path`, whose ending chooses PNG, SVG or PDF.

    Raises WrongCall for another ending, NotReady without matplotlib or without anything to draw.
    """
    if path.suffix.lower() not in KINDS:
        raise WrongCall(f"--plot {path}: the name must end in {', '.join(KINDS)}")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise NotReady("a plot needs matplotlib: 'uv sync --extra plot', or use scripts/show-results.sh --plot FILE") from None
    if not any(row.val_bpb is not None for row in rows):
        raise NotReady("there is no scored experiment to plot yet")

    figure, axes = pyplot.subplots(figsize=(10, 5.2), dpi=150)
    _points(axes, rows)
    _labels(axes, rows)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("experiment")  # counted from 1, the baseline
    axes.set_ylabel("val_bpb (lower is better)")
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=4, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is drawn as a box
        figure.tight_layout()
        figure.savefig(path)
    pyplot.close(figure)


def _points(axes: "Axes", rows: Sequence[Row]) -> None:
    scored = [(number, row.val_bpb, row.kept) for number, row in enumerate(rows, start=1) if row.val_bpb is not None]
    scores = [score for _, score, _ in scored]
    best, first = min(scores), scores[0]
    # Far outliers would flatten the line that matters: the view ends a little above the first score, they stand at its edge.
    top = first + max(0.35 * (first - best), 0.002)
    kept = [(number, score) for number, score, is_kept in scored if is_kept]
    near = [(number, score) for number, score, is_kept in scored if not is_kept and score <= top]
    far = [(number, top) for number, score, is_kept in scored if not is_kept and score > top]
    crashed = [(number, top) for number, row in enumerate(rows, start=1) if row.status == CRASH]

    axes.step(*_columns(kept), where="post", color=GREEN, linewidth=2, zorder=3)
    axes.scatter(*_columns(kept), s=42, color=GREEN, label="kept", zorder=4)
    axes.scatter(*_columns(near), s=22, color=GREY, label="discarded", zorder=2)
    if far:
        axes.scatter(*_columns(far), s=26, marker="^", color=GREY, label="discarded, far above", zorder=2)
    if crashed:
        axes.scatter(*_columns(crashed), marker="x", color=RED, label="crashed", zorder=3)
    axes.set_ylim(best - 0.12 * (top - best), top + 0.06 * (top - best))
    axes.set_xlim(0.5, len(rows) + 0.5)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _labels(axes: "Axes", rows: Sequence[Row]) -> None:
    kept = [(number, row) for number, row in enumerate(rows, start=1) if row.kept]
    for (number, row), step in zip(kept, gains(rows), strict=True):
        label = "baseline" if step.gain is None else row.description
        to_the_left = number > 0.6 * len(rows)  # else it would run out of the picture
        axes.annotate(
            label if len(label) <= LABEL else label[: LABEL - 1] + "…",
            (number, row.val_bpb or 0.0),
            textcoords="offset points",
            xytext=(-7, -12) if to_the_left else (7, 6),
            ha="right" if to_the_left else "left",
            fontsize=7.5,
            color="#333333",
            parse_math=False,  # a dollar in a description is a dollar
        )
