"""What a lab costs that has seen 100 or 10,000 experiments: seconds to start, to brief, to record and to report, and memory.

    uv run python benchmarks/scale.py [--sizes 100 10000]

The lab is the tests' (a real repository with real data), its past is made up: a commit, a reference, a row, a line of the journal
and one of the bill for each experiment. Each size is measured in processes of their own, the middle of three counts.

start: from the start of Python to the first question to a researcher. brief: its text. record: all of one experiment but its
run: check, number, folder, commit, judgement, row, settling. report: the end of a session, with the snapshot that is kept in git.
Exits with 1 if these four take over a second together at the largest size, or if the peak of memory grows from the smallest size
to the largest by more than 2,000 bytes an experiment.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for place in ("benchmarks", "tests", "src"):
    sys.path.insert(0, str(ROOT / place))

REPEATS = 3
LIMIT = 1.0  # seconds
BYTES = 2000  # of memory for an experiment more: an index of what was tried, the bill, and in a report its row
PARTS = ("start", "brief", "record", "report")


# -- a lab with a past -----------------------------------------------------------------------------------------------


def with_past(lab: Path, size: int, fingerprint: str) -> None:
    """Give a lab, which was set up and has no experiment yet, so many of them. The last one was kept and is the branch's."""
    from brief import history
    from conftest import git, toy

    from autoresearch.ledger import Asked
    from autoresearch.loop import row_of
    from autoresearch.results import HEADER, format_row

    made = [replace(done, session="test", fingerprint=fingerprint) for done in history(size - 1)]
    best = [done for done in made if done.status == "keep"][-1]
    made.append(replace(best, n=size, code_key="last", incumbent_bpb=best.val_bpb))
    sources = [toy(LR=0.1 + done.n / 1e6) for done in made]
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
    from autoresearch.researchers import Proposal
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

    told = loop.context(source).brief
    lap("brief")
    proposal = Proposal(source.replace("DEPTH = 4", f"DEPTH = {loop.journal.next_number()}"), "deeper")
    key = check(proposal.source, source, (done.code_key for done in session.history()))
    experiment = loop.commit(loop.propose_by("claude", proposal, key, session.tip(), told))
    worse = RunResult(SCORED, val_bpb=9.0, memory_mb=100.0, training_seconds=1.0, wall_seconds=2.0)
    loop.finish(loop.journal.save(experiment.ran(worse), stage=MEASURED))
    lap("record")
    with redirect_stdout(StringIO()) as shown:
        cli._end(session)
    loop.snapshot()
    lap("report")
    assert "Session summary" in shown.getvalue()
    return times | {"memory": peak_resident(os.getpid()) / 2**20}


def measured(lab: Path, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-P", __file__, "--began", str(time.monotonic())]
    done = subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def row(size: int, folder: Path, empty: Path, environment: dict[str, str], fingerprint: str) -> tuple[float, float]:
    """Measure one size and print its line. Returns the seconds of all parts together, and the peak of memory in MB."""
    from labs import copy_of

    lab = copy_of(empty, folder / f"lab-{size}")
    with_past(lab, size, fingerprint)
    runs = [measured(lab, environment) for _ in range(REPEATS)]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    together = sum(middle[name] for name in PARTS)
    cells = [f"{middle[name]:.3f}" for name in PARTS]
    print(f"| {size:,} | {' | '.join(cells)} | {together:.3f} | {middle['memory']:.0f} |", flush=True)
    return together, middle["memory"]


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
            + " | together s | peak MB |\n|---|---|---|---|---|---|---|"
        )
        sizes = sorted(arguments.sizes)
        rows = [row(size, folder, empty, environment, fingerprint) for size in sizes]
    (_, least), (together, most) = rows[0], rows[-1]
    each = (most - least) * 2**20 / (sizes[-1] - sizes[0] or 1)
    print(f"memory: {each:,.0f} bytes for an experiment more, at most {BYTES:,}; together at most {LIMIT:g} s")
    return 0 if together < LIMIT and each < BYTES else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
