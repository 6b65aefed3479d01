"""What a person sees while the loop works: a live bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from autoresearch.experiment.runner import Progress
from autoresearch.journal import Experiment
from autoresearch.results import CRASH, KEEP
from autoresearch.terminal import leave, tell

BESIDE_TITLE = 72  # columns of the live bar beside the title: an 80-column terminal shows the seconds left
PLAIN_EVERY = 10.0  # seconds between two plain progress lines


class View:
    def __init__(self) -> None:
        self._terminal = sys.stderr  # while a bar is shown, `sys.stderr` is rich's
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0.0

    def say(self, text: str) -> None:
        if self._bar is not None and self._terminal.isatty():
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            tell(text)

    @contextlib.contextmanager
    def run(self, title: str, budget: float) -> Iterator[None]:
        """Around one run of train.py."""
        self._shown = time.monotonic()
        if not self._terminal.isatty():  # a file, or closed since
            self.say(f"{title}: starting")
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        console = Console(stderr=True)
        shown = title[: max(8, console.width - BESIDE_TITLE)]
        with Bar(*columns, console=console, transient=True) as bar:
            self._bar, self._task = bar, bar.add_task(shown, total=100.0, figures="starting")
            try:
                yield
            finally:
                self._bar = None
                if not self._terminal.isatty():
                    leave()  # before the bar takes its leave of a terminal that is closed

    def progress(self, now: Progress) -> None:
        figures = f"step {now.step}  loss {now.loss:.4f}  {now.tokens_per_second:,.0f} tok/s  {now.seconds_left:.0f} s left"
        if self._bar is not None:
            try:
                self._bar.update(self._task, completed=now.percent, figures=figures, refresh=True)
            except OSError:
                leave()
        elif time.monotonic() - self._shown >= PLAIN_EVERY:
            self._shown = time.monotonic()
            self.say(f"  {now.percent:3.0f}%  {figures}")

    def settled(self, done: Experiment) -> None:
        self.say(outcome(done))


def outcome(done: Experiment) -> str:
    """'#3 keep 1.912345 (-0.012000): MATRIX_LR 0.04->0.05'."""
    if done.status == CRASH or done.result is None:
        reason = done.result.crash_class if done.result else "error"
        detail = f" - {done.result.detail}" if done.result and done.result.detail else ""
        return f"#{done.n} crash ({reason}): {done.description}{detail}"
    if done.stopped:
        return f"#{done.n}  {done.status} — (stopped: {done.result.detail}): {done.description}"
    score = f"{done.val_bpb:.6f}" if done.val_bpb is not None else "—"
    change = "" if done.incumbent_bpb is None or done.val_bpb is None else f" ({done.val_bpb - done.incumbent_bpb:+.6f})"
    change += f", {len(done.counted)} runs" if len(done.counted) > 1 else ""
    mark = "*" if done.status == KEEP else " "
    return f"#{done.n} {mark}{done.status} {score}{change}: {done.description}"
