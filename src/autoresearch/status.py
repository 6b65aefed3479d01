"""`autoresearch status` and `autoresearch stop`: the lab as somebody sees it who is not the one at work in it.

Nothing is locked and nothing is written but the wish to stop, so that it may be asked at any time, from any terminal of the
machine. Standard library only.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoresearch import report, results
from autoresearch.brief import thinned
from autoresearch.errors import NotReady
from autoresearch.experiment import curve
from autoresearch.experiment.curve import Curve
from autoresearch.experiment.refereeing import WEIGHTS_OUT
from autoresearch.experiment.runner import PROGRESS, Progress
from autoresearch.journal import RUNNING, Experiment, Journal
from autoresearch.lab import Lab
from autoresearch.owner import Owner
from autoresearch.processes import PROC, marks
from autoresearch.results import Row

ROWS = 10
LOG_TAIL = 4096  # bytes of a run's log that hold its newest progress
WIDTH = 40  # columns of the curve
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Status:
    lab: str
    owner: Owner | None  # the process at work
    stopping: bool  # whether it was asked to end after this experiment
    experiment: Experiment | None  # that is worked on, or was left behind
    since: float | None  # when it came to its stage, seconds since 1970
    run: int  # which run of it, from 1: the one that goes on, or the last
    doing: str  # what train.py is run for just now; "" while it is not
    progress: Progress | None  # of that run
    curve: Curve  # of that run
    rows: Sequence[Row]  # the newest
    numbers: dict[str, int]  # of their experiments, by commit
    total: int  # rows in all


def look(lab: Lab) -> Status:
    journal = Journal(lab)
    owner, current = journal.at_work(), journal.current()
    experiment, since = current or (None, None)
    folder = _folder_of_run(journal) if owner else None
    rows, _ = results.read(lab.results)
    newest = journal.newest(2 * ROWS)  # rows of another fingerprint may lie between
    return Status(
        lab=str(lab.root),
        owner=owner,
        stopping=owner is not None and journal.is_asked_to_stop(owner),
        experiment=experiment,
        since=since,
        run=len(experiment.runs) + (experiment.stage == RUNNING) if experiment else 0,
        doing=_doing(journal, folder) if folder else "",
        progress=_progress(folder / "run.log") if folder else None,
        curve=thinned(curve.read(folder), WIDTH) if folder else (),
        rows=rows[-ROWS:],
        numbers={(done.commit or "")[:7]: done.n for done in newest},
        total=len(rows),
    )


def _folder_of_run(journal: Journal) -> Path | None:
    """Where train.py is running now, as its processes tell, or on systems that hide that, the state of its experiment."""
    for _, variable in marks(f"{WEIGHTS_OUT}={journal.root}/"):
        return Path(variable.partition("=")[2]).parent
    current = journal.current() if not PROC.exists() else None
    return journal.folder(current[0].n) if current and current[0].stage == RUNNING else None


def _doing(journal: Journal, folder: Path) -> str:
    if folder == journal.aside:
        return "a kept train.py runs once more"
    if folder == journal.by_hand:
        return "a run that is not recorded"
    return "a run" if folder.parent == journal.root / "runs" else "the audit of what would be kept"


def _progress(log: Path) -> Progress | None:
    """The newest that the run has printed."""
    with contextlib.suppress(OSError, ValueError, IndexError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL))
        step, percent, loss, speed, left = PROGRESS.findall(file.read(LOG_TAIL))[-1]
        return Progress(int(step), float(percent), float(loss), float(speed.replace(b",", b"")), float(left))
    return None


# -- for people ------------------------------------------------------------------------------------------------------


def text(status: Status, now: float) -> str:
    """`now`: seconds since 1970."""
    lines = [_who(status, now)]
    if status.experiment:
        lines.append(_what(status, status.experiment, now))
    elif status.owner and status.owner.loop:
        lines.append("between two experiments: a researcher is asked for the next one")
    lines += _how_far(status)
    if status.rows:
        lines += ["", f"The last {len(status.rows)} of {status.total} rows:", *report.listed(status.rows, status.numbers)]
    return "\n".join(lines)


def _who(status: Status, now: float) -> str:
    owner = status.owner
    if owner is None:
        return f"nothing runs in {status.lab}"
    since = datetime.fromisoformat(owner.since)
    work = "the loop" if owner.loop else "a single command"
    ending = "; it ends after this experiment, as asked" if status.stopping else ""
    return f"{work} runs as process {owner.pid}, since {_clock(since)} ({_length(now - since.timestamp())}){ending}"


def _what(status: Status, experiment: Experiment, now: float) -> str:
    who = f", by {experiment.researcher}" if experiment.researcher else ""
    title = f"#{experiment.n} {experiment.description}{who}"
    if status.owner is None:
        return f"{title}: left at '{experiment.stage}', the next start goes on from there"
    which = f", run {status.run}" if experiment.stage == RUNNING else ""
    return f"{title}: {experiment.stage}{which}, for {_length(now - (status.since or now))}"


def _how_far(status: Status) -> list[str]:
    lines = [f"  {status.doing}:"] if status.doing not in ("", "a run") else []
    if progress := status.progress:
        figures = f"step {progress.step}  loss {progress.loss:.4f}  {progress.tokens_per_second:,.0f} tok/s"
        lines.append(f"  {progress.percent:.0f}%  {figures}  {progress.seconds_left:.0f} s of training left")
    if len(status.curve) > 1:
        losses = [point.loss for point in status.curve]
        lines.append(f"  loss {losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}")
    return lines


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, between the least and the greatest; a gap where one is no number."""
    known = [value for value in values if abs(value) < float("inf")]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if abs(value) < float("inf") else " " for value in values)


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _length(seconds: float) -> str:
    """'45 s', '12 min', '3 h 5 min'. A clock that was set back since is no reason for a length below 0."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# -- for programs ----------------------------------------------------------------------------------------------------


def as_dict(status: Status) -> dict[str, Any]:
    experiment = status.experiment
    since = datetime.fromtimestamp(status.since, UTC).isoformat(timespec="seconds") if status.since else None
    names = ("n", "session", "description", "researcher", "stage", "baseline", "started", "seed")
    what = {name: getattr(experiment, name) for name in names} | {"run": status.run, "since": since} if experiment else None
    return {
        "lab": status.lab,
        "running": status.owner is not None,
        "process": asdict(status.owner) if status.owner else None,
        "stopping": status.stopping,
        "doing": status.doing,
        "experiment": what,
        "progress": {name: _number(value) for name, value in asdict(status.progress).items()} if status.progress else None,
        "curve": [[point.percent, _number(point.loss)] for point in status.curve],
        "rows": [{"n": status.numbers.get(row.commit), **asdict(row)} for row in status.rows],
        "total_rows": status.total,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if abs(value) < float("inf") else None


def show(lab: Lab, as_json: bool) -> str:
    status = look(lab)
    return json.dumps(as_dict(status), indent=2) if as_json else text(status, time.time())


# -- stopping --------------------------------------------------------------------------------------------------------


def stop(lab: Lab) -> str:
    """Ask the loop to end after its experiment. Returns what to say. Raises NotReady where there is nothing to be asked."""
    journal = Journal(lab)
    owner = journal.at_work()
    if owner is None:
        raise NotReady(f"nothing runs in {lab.root}: there is nothing to stop")
    if not owner.loop:
        raise NotReady(
            f"process {owner.pid} works in {lab.root} and is no loop: it ends by itself, or with 'kill -INT {owner.pid}'"
        )
    asked = journal.is_asked_to_stop(owner)
    journal.ask_to_stop(owner)
    current = journal.current()
    after = f"after experiment #{current[0].n}" if current else "after the experiment that is being proposed"
    again = " already" if asked else ""
    return (
        f"the loop (process {owner.pid}) is asked{again} to end {after}; 'kill -TERM {owner.pid}' ends it at once and loses nothing"
    )
