"""What a lab costs that has seen 100 or 10,000 experiments: seconds to start, brief, propose, record and report, and memory.

    uv run python benchmarks/scale.py [--sizes 100 10000]

The lab is the tests' (a real repository with real data), its past is made up: a commit, a reference, a row, a line of the journal
and one of the bill for each experiment. Each size is measured in processes of their own, the middle of three counts.

start: from the start of Python to the first question to a researcher. brief: its text. propose: `search`'s answer, a point of
CMA-ES from a study that is as long as it gets, with the import of Optuna. record: all of one experiment but its run: check,
number, folder, commit, judgement, row, settling. report: the end of a session, with the snapshot that is kept in git.
Exits with 1 if at the largest size the four but propose take over a second together, or propose does alone, or if the peak of
memory grows from the smallest size to the largest by more than 2,000 bytes an experiment.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoresearch.journal import Experiment

ROOT = Path(__file__).resolve().parents[1]
for place in ("benchmarks", "tests", "src"):
    sys.path.insert(0, str(ROOT / place))

REPEATS = 3
LIMIT = 1.0  # seconds
BYTES = 2000  # of memory for an experiment more: an index of what was tried, its literals, the bill, and in a report its row
PARTS = ("start", "brief", "propose", "record", "report")
OWN = "propose"  # has a limit of its own, as high


# -- a lab with a past -----------------------------------------------------------------------------------------------


def with_past(lab: Path, size: int, fingerprint: str) -> None:
    """Give a lab, which was set up and has no experiment yet, so many of them. The last one was kept and is the branch's."""
    from brief import history
    from conftest import git

    from autoresearch.ledger import Asked
    from autoresearch.literals import code_key
    from autoresearch.loop import row_of
    from autoresearch.results import HEADER, format_row

    made = [replace(done, session="test", fingerprint=fingerprint) for done in history(size - 1)]
    best = [done for done in made if done.status == "keep"][-1]
    made.append(replace(best, n=size, incumbent_bpb=best.val_bpb, details={}))
    sources = [train_of(done.literals or {}) for done in made]
    made[-1] = replace(made[-1], code_key=code_key(sources[-1]))
    made = with_study(lab, sources[-1], made)
    for done, source in zip(made, sources, strict=True):
        folder = lab / ".autoresearch" / "runs" / str(done.n)
        folder.mkdir(parents=True)
        (folder / "train.py").write_text(source)
    commits = commit_all(lab, sources)
    made = [replace(done, commit=commit) for done, commit in zip(made, commits, strict=True)]
    git(lab, "reset", "--quiet", "--hard", commits[-1])
    journal = lab / ".autoresearch"
    (journal / "experiments.jsonl").write_text("".join(json.dumps(asdict(done)) + "\n" for done in made))
    asked = (Asked("test", "claude", done.started, "proposed", 60.0, 9000, 800, 0.04) for done in made)
    (journal / "asked.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in asked))
    lines = ["\t".join(HEADER), *(format_row(row_of(done)) for done in made)]
    (lab / "results.tsv").write_text("\n".join(lines) + "\n")


def train_of(literals: Mapping[str, Any]) -> str:
    """The tests' train.py with the settings of the real one."""
    from brief import TRAIN
    from conftest import TOY_TRAIN

    comments = {line.split(" ")[0]: line.partition("  #")[2] for line in TRAIN.splitlines()}
    settings = "".join(f"{name} = {value!r}  #{comments[name]}\n" for name, value in literals.items())
    return TOY_TRAIN.replace("LR = 0.1  #", f"{settings}LR = MATRIX_LR  #").replace("DEPTH = 4  # transformer blocks\n", "")


def with_study(lab: Path, source: str, made: list[Experiment]) -> list[Experiment]:
    """Give `search` a study of as many trials as one log gets, whose newest the experiments are, the last of them not yet told.
    Returns the experiments with that in their details, and so that a point of CMA-ES is next."""
    from autoresearch.researchers.search import CYCLE, OURS
    from autoresearch.researchers.space import space
    from autoresearch.researchers.study import MOST, distributions_of, open_study

    first, folder = made[0], lab / ".autoresearch" / "search"
    dims = {name: dim for name, dim in space(source, first.literals or {}).items() if not dim.discrete}
    study = open_study(folder, [first.fingerprint, first.session], dims, first.val_bpb or 0.0)
    sampled = [place for place, done in enumerate(made) if "study" in done.details]
    places = [None] * MOST + sampled
    for place in places[1 - MOST :]:
        trial = study.ask(distributions_of(dims))
        if place is not None:
            made[place] = replace(made[place], details={"study": study.study_name, "trial": trial.number, "told": 1})
        if place != sampled[-1]:
            study.tell(trial.number, first.val_bpb or 0.0 if place is None else made[place].val_bpb or 9.0)
    ours = [place for place, done in enumerate(made) if not OURS.isdisjoint(done.details)]
    for place in ours[: (len(ours) + 1) % CYCLE]:
        made[place] = replace(made[place], details={})
    return made


def commit_all(lab: Path, sources: list[str]) -> list[str]:
    """A commit on top of HEAD for each train.py, with its reference."""
    from conftest import git

    head, stream = git(lab, "rev-parse", "HEAD"), []
    for number, source in enumerate(sources, start=1):
        size = len(source.encode())
        who, ref = "committer autoresearch <autoresearch@localhost> 0 +0000", f"refs/autoresearch/test/{number}"
        stream.append(f"commit {ref}\n{who}\ndata 1\nx\nfrom {head}\nM 100644 inline train.py\ndata {size}\n{source}\n")
    fast = ["git", "fast-import", "--quiet"]
    subprocess.run(fast, cwd=lab, input="".join(stream).encode(), check=True)
    found = dict(line.split() for line in git(lab, "for-each-ref", "--format=%(refname) %(objectname)").splitlines())
    return [found[f"refs/autoresearch/test/{number}"] for number in range(1, len(sources) + 1)]


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(began: float) -> dict[str, float]:
    """In a process of its own, in the lab."""
    from autoresearch import cli
    from autoresearch.check import check
    from autoresearch.experiment import sandbox
    from autoresearch.experiment.meter import peak_resident
    from autoresearch.journal import MEASURED, SCORED, RunResult
    from autoresearch.loop import Loop
    from autoresearch.researchers.team import Team
    from autoresearch.stop import Stop
    from autoresearch.view import View

    lab, view = cli.lab_here(), View()
    arguments = argparse.Namespace(tag=None)
    session = cli._open_session(lab, arguments, view)
    loop = Loop(session, Team(()), view, Stop(view), sandbox=sandbox.NONE, rule=cli._rule(session, arguments))
    loop.recover()
    session.check_tree()
    assert not loop.begin(), "the incumbent is the branch's"
    source = loop.incumbent_source()
    times = {"start": time.monotonic() - began}

    def lap(name: str) -> None:
        times[name] = time.monotonic() - began - sum(times.values())

    told = loop.context(source)
    lap("brief")
    from autoresearch.researchers.search import Search

    proposal = Search().propose(told)
    lap("propose")
    assert "study" in proposal.details, "a point of CMA-ES"
    proposal = replace(proposal, details={})  # as another's: the next process is to find the search as this one did
    key = check(proposal.source, source, (done.code_key for done in session.history()))
    experiment = loop.commit(loop.propose_by("claude", proposal, key, session.tip(), told.brief))
    worse = RunResult(SCORED, val_bpb=9.0, memory_mb=100.0, training_seconds=1.0, wall_seconds=2.0)
    loop.finish(loop.journal.save(experiment.ran(worse), stage=MEASURED))
    lap("record")
    with redirect_stdout(StringIO()) as shown:
        cli._end(session)
    loop.snapshot()
    lap("report")
    assert "Session summary" in shown.getvalue()
    return times | {"memory": peak_resident(os.getpid()) / 2**20}


def measured(lab: Path, environment: dict[str, str], study: Path) -> dict[str, float]:
    """`study`: what `search` is to find of its own."""
    shutil.rmtree(lab / ".autoresearch" / "search", ignore_errors=True)
    shutil.copytree(study, lab / ".autoresearch" / "search")
    command = [sys.executable, "-P", __file__, "--began", str(time.monotonic())]
    done = subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def row(size: int, folder: Path, empty: Path, environment: dict[str, str], fingerprint: str) -> tuple[float, float, float]:
    """Measure one size and print its line. Returns the seconds of all parts but propose together, those of propose, and the peak
    of memory in MB."""
    from labs import copy_of

    lab = copy_of(empty, folder / f"lab-{size}")
    with_past(lab, size, fingerprint)
    study = shutil.move(lab / ".autoresearch" / "search", folder / f"study-{size}")
    runs = [measured(lab, environment, study) for _ in range(REPEATS)]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    together = sum(middle[name] for name in PARTS if name != OWN)
    cells = [f"{middle[name]:.3f}" for name in PARTS]
    print(f"| {size:,} | {' | '.join(cells)} | {together:.3f} | {middle['memory']:.0f} |", flush=True)
    return together, middle[OWN], middle["memory"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.began is not None:
        print(json.dumps(measure(arguments.began)))
        return 0
    import conftest
    from labs import AUTORESEARCH, copy_of, journal, template

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = template(folder, folder / "cache")
        environment = conftest.environment_of(folder / "home", folder / "cache")
        tried = copy_of(empty, folder / "tried")
        first = [*AUTORESEARCH, "run", "--sandbox", "none", "--record", "as it is"]
        subprocess.run(first, cwd=tried, env=environment, check=True, capture_output=True)
        fingerprint = journal(tried)[0]["fingerprint"]
        print(
            "| experiments | "
            + " | ".join(f"{part} s" for part in PARTS)
            + f" | together but {OWN} s | peak MB |\n|---|---|---|---|---|---|---|---|"
        )
        sizes = sorted(arguments.sizes)
        rows = [row(size, folder, empty, environment, fingerprint) for size in sizes]
    (*_, least), (together, own, most) = rows[0], rows[-1]
    each = (most - least) * 2**20 / (sizes[-1] - sizes[0] or 1)
    print(f"memory: {each:,.0f} bytes for an experiment more, at most {BYTES:,}; together and {OWN} at most {LIMIT:g} s each")
    return 0 if max(together, own) < LIMIT and each < BYTES else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
