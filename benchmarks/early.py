"""What early stops save and what they cost, on recorded sessions: the rule is replayed on the runs' curves.

    uv run python benchmarks/early.py FOLDER...

FOLDER is a lab or holds labs, such as those that `benchmarks/sessions.py --early-stop off --keep FOLDER` leaves.
Each run is replayed from its log against the incumbent that it was judged against. Prints, for the rule as it is on a CPU and on
a GPU, for the latter without its exemptions of changes that cross late, and without early stops: how many runs are stopped, the
share of all runs' time that it saves, and the false stops, which are stops of a run that was kept.
"""

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from autoresearch.experiment import curve
from autoresearch.experiment.crossing import slack
from autoresearch.experiment.early import Ended, Slack
from autoresearch.experiment.runner import Progress, read_progress
from autoresearch.experiment.watch import Against, Watch
from autoresearch.journal import STOPPED, Experiment
from autoresearch.results import KEEP


@dataclass(frozen=True)
class Run:
    """A recorded run and what it was compared with; a baseline has no `rule`."""

    name: str
    experiment: Experiment
    progress: list[Progress]
    rule: Against | None


@dataclass(frozen=True)
class Stop:
    run: Run
    kind: str
    saved: float  # seconds


def labs(folders: list[Path]) -> list[Path]:
    return [found.parent.parent for folder in folders for found in sorted(folder.rglob(".autoresearch/experiments.jsonl"))]


def recorded(lab: Path) -> Iterator[Run]:
    incumbent: tuple[str, list[curve.Point]] | None = None
    for line in (lab / ".autoresearch" / "experiments.jsonl").read_bytes().splitlines():
        experiment = Experiment.from_json(line)
        if experiment is None or experiment.result is None:
            continue
        folder = lab / ".autoresearch" / "runs" / str(experiment.n)
        source, progress = (folder / "train.py").read_text(), read_progress((folder / "run.log").read_bytes())[0]
        rule = None
        if incumbent and not experiment.baseline:
            rule = Against(incumbent[1], slack(incumbent[0], source, experiment.category))
        yield Run(f"{lab.name} #{experiment.n}", experiment, progress, rule)
        if experiment.status == KEEP:
            incumbent = source, replayed(progress, None)[0]


def replayed(progress: list[Progress], rule: Against | None) -> tuple[list[curve.Point], Ended | None]:
    """The curve that the loop would have recorded, and how it would have ended the run."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder), lambda _: None, rule)
        try:
            for now in progress:
                watch(now)
        except Ended as ended:
            return watch.recorder.points, ended
        return watch.recorder.points, None


def stop_of(run: Run, rule: Against | None) -> Stop | None:
    points, ended = replayed(run.progress, rule)
    if ended is None:
        return None
    result = run.experiment.result
    assert result is not None
    left = 1 - points[-1].percent / 100
    rest = result.wall_seconds * left  # of a run that failed: no more is known
    if result.training_seconds is not None:
        rest = result.training_seconds * left + (result.evaluation_seconds or 0.0)
    return Stop(run, ended.kind, rest)


def tell(name: str, total: float, on: int, stops: list[Stop]) -> None:
    false = [stop.run.name for stop in stops if stop.run.experiment.status == KEEP]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(stop.kind for stop in stops).most_common())
    saved = sum(stop.saved for stop in stops) / total
    cells = [name, on, f"{len(stops)}{f' ({kinds})' if kinds else ''}", f"{saved:.1%}", len(false)]
    print("| " + " | ".join(map(str, cells)) + " |" + (f" {', '.join(false)}" if false else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    found = labs(parser.parse_args().folders)
    runs = [run for lab in found for run in recorded(lab)]
    if not runs:
        parser.error("no recorded runs there: 'uv run python benchmarks/sessions.py --early-stop off --keep FOLDER' makes some")
    cut = [run.name for run in runs if run.experiment.result and run.experiment.result.outcome == STOPPED]
    if cut:
        print(f"left out, because they were stopped when they ran: {', '.join(cut)}")
        runs = [run for run in runs if run.name not in cut]
    tried = [run for run in runs if run.rule]
    total = sum(run.experiment.result.wall_seconds for run in runs if run.experiment.result)
    kept = sum(run.experiment.status == KEEP for run in tried)
    noise = statistics.median(curve.noise(run.rule.curve) for run in tried if run.rule)
    print(f"{len(found)} sessions, {len(tried)} runs against an incumbent, {kept} of them kept; {total:.0f} s with baselines")
    print(f"noise of an incumbent's curve, as the rule takes it: {noise:.4f} nats in the middle\n")
    print("| rule | on for | stopped | time saved | false stops |\n|---|---|---|---|---|")
    exempt = sum(run.rule.slack.behind is not None for run in tried if run.rule)
    unsteady = [stop for run in tried if run.rule and (stop := stop_of(run, replace(run.rule, steady=False)))]
    steady = [stop for run in tried if (stop := stop_of(run, run.rule))]
    everywhere = [stop for run in tried if run.rule and (stop := stop_of(run, replace(run.rule, slack=Slack())))]
    tell("on a CPU", total, exempt, unsteady)
    tell("on a GPU", total, exempt, steady)
    tell("on a GPU, without exemptions", total, len(tried), everywhere)
    tell("no early stops", total, 0, [])
    worse = sorted(
        stop.run.experiment.val_bpb - stop.run.experiment.incumbent_bpb
        for stop in unsteady
        if stop.run.experiment.val_bpb is not None and stop.run.experiment.incumbent_bpb is not None
    )
    if worse:
        middle = statistics.median(worse)
        print(f"\nwhat was stopped would have ended {worse[0]:+.4f} bpb from its incumbent at best, {middle:+.4f} in the middle")


if __name__ == "__main__":
    main()
