"""The audit: a would-be keep must give its losses again, from its weights alone and without what follows.

The candidate's program is started afresh, twice, in boxes that can't reach each other. Each time `start` brings the saved weights
and no time, so `evaluate_bpb` follows at once. It is shown validation rows cut at random places, and at places where its score
looked too good, in another order, never the next token (`cuts.py`), and its losses there must be those that were scored.

So it finds: looking ahead, however rarely it pays; answers that depend on the other rows of a batch, on their order, or on what
was shown before; training while it is scored; weights that are not all of the model. Whoever spots the probes of the scored pass
gains nothing here, since nothing but probes is shown. A leak is found with a probability of 0.99 from 0.0045 bpb on the CPU profile
and from 0.0012 on the full one, whichever way it hides (`cuts.smallest_leak`).
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoresearch.errors import NotReady
from autoresearch.experiment.refereeing import CACHES, LOSSES, WEIGHTS
from autoresearch.experiment.runner import RunPlan, execute
from autoresearch.experiment.witness import Witness
from autoresearch.journal import SCORED, TIMED_OUT

PROCESSES = 2


@dataclass(frozen=True)
class Report:
    reason: str  # '' if it passed
    seconds: float
    late: bool = False  # it took too long, which may be the machine's fault
    findings: dict[str, Any] | None = None  # of both processes together, as cuts.Findings

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(plan: RunPlan, should_stop: Callable[[], bool], witness: Witness | None = None) -> Report:
    """Audit the run that `plan` describes, which was scored; once more if it was late and the witness says that others had the
    machine. Raises NotReady if its files are not there or a referee failed."""
    if witness:
        witness.begin()
    report = _audit(plan, should_stop)
    if not report.late or not witness or not witness.disturbed():
        return report
    again = _audit(plan, should_stop)
    return replace(again, seconds=report.seconds + again.seconds)


def _audit(plan: RunPlan, should_stop: Callable[[], bool]) -> Report:
    began = time.monotonic()
    assert plan.refereed is not None
    weights, losses = plan.folder / WEIGHTS, plan.folder / LOSSES
    for path in (weights, losses):
        if not path.is_file():
            raise NotReady(f"{path} is gone: run the experiment again to audit it")
    found = []
    for number in range(1, PROCESSES + 1):
        folder = plan.folder / f"audit-{number}"
        conditions = replace(plan.refereed, folder=folder, audit=losses, weights=weights)
        own = replace(plan, folder=folder, refereed=conditions, begin_with=_caches(plan))
        result = execute(own, lambda _: None, should_stop)
        seconds = time.monotonic() - began
        if result.outcome != SCORED:
            reason = f"it could not be scored again from its weights: {result.crash_class}: {result.detail}"
            return Report(reason, seconds, late=result.outcome == TIMED_OUT)
        findings = json.loads((folder / "verdict.json").read_text())["findings"]
        found.append(findings)
    return _report(found, time.monotonic() - began)


def _caches(plan: RunPlan) -> Path | None:
    own = plan.folder / CACHES
    return own if own.is_dir() else None


def _report(found: list[dict[str, Any]], seconds: float) -> Report:
    from autoresearch.experiment.cuts import Findings, together  # brings numpy along, which the commands do without

    each = [Findings(**findings) for findings in found]
    whole = together(each)
    reason = next((foul for findings in (*each, whole) if (foul := findings.foul())), "")
    return Report(reason, seconds, findings=asdict(whole))


def clear(folder: Path) -> None:
    """Remove what an audit and a score leave behind for a run that was not kept."""
    for name in (CACHES, *(f"audit-{number}" for number in range(1, PROCESSES + 1))):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (WEIGHTS, LOSSES):
        (folder / name).unlink(missing_ok=True)
