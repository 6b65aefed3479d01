"""Our own harness, with the parts that the loop runs an experiment with."""

from __future__ import annotations

from autoresearch.check import Refused, check
from autoresearch.errors import NotReady
from autoresearch.experiment.audit import audit
from autoresearch.experiment.refereeing import Conditions
from autoresearch.experiment.runner import WEIGHTS, RunPlan, execute
from autoresearch.journal import SCORED, TIMED_OUT
from redteam.cheat import CRASH, DIED, DISCARD, KEEP, REFUSED, TIMEOUT, Cheat, Seen
from redteam.naive import MARGIN
from redteam.world import World, beside

BUDGET = 1.0
SEED = 1337


def try_cheat(cheat: Cheat, world: World, level: str, best: float) -> Seen:
    before = world.picture()
    with beside(world, cheat.beside) as other:
        for source in filter(None, (cheat.source, cheat.then)):
            status, score, reason = run(plan(world, world.fill(source), level, cheat.allowance), best)
            if status == DIED:
                break
        log, weights = ((world.run / name) for name in ("run.log", WEIGHTS))
        after = world.picture()
        return Seen(
            status,
            score,
            reason,
            log.read_text(errors="replace") if log.exists() else "",
            frozenset(name for name in after if after[name] != before.get(name)),
            len(world.left_alive(other)),
            world.sockets.heard(),
            other is not None and other.poll() is not None,
            weights.read_bytes() if weights.exists() else b"",
        )


def run(plan: RunPlan, best: float) -> tuple[str, float | None, str]:
    """(status, val_bpb, reason) as the loop would come to them: check, run, judge, audit."""
    try:
        check(plan.source, "", [])
        result = execute(plan, lambda _: None, lambda: False)
        if result.outcome == TIMED_OUT:
            return TIMEOUT, None, f"{result.crash_class}: {result.detail}"
        if result.outcome != SCORED or result.val_bpb is None:
            return CRASH, None, f"{result.crash_class}: {result.detail}"
        if result.val_bpb >= best - MARGIN:
            return DISCARD, result.val_bpb, result.detail
        report = audit(plan, lambda: False)
        return (CRASH, None, f"audit: {report.reason}") if report.reason else (KEEP, result.val_bpb, result.detail)
    except Refused as refusal:
        return REFUSED, None, str(refusal)
    except NotReady as problem:
        return DIED, None, str(problem)


def plan(world: World, source: str, level: str, allowance: float) -> RunPlan:
    conditions = Conditions(level, world.data.helpers, world.run, SEED, BUDGET, world.data.hidden)
    caches = world.lab / ".autoresearch" / "caches"
    return RunPlan(source, world.data.helpers, world.run, BUDGET, caches, SEED, allowance, conditions)
