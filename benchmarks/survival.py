"""kill -9 at random moments, and what is lost by it: nothing, or the benchmark fails.

    uv run python benchmarks/survival.py [--kills 100] [--seed 1] [--sandbox none]

A lab with the tests' stand-in for train.py, which takes a few hundred milliseconds and is scored by the real referee. Each time the
loop (one time in six a turn recorded by hand, whose process is the runner's alone) is started, one of its processes is killed, and
it is started again to its end: then table, journal, references, branch, working tree, processes and locks must be as if nothing had
happened, and every row that was ever there must still be there, with the score that its train.py has.

The moment: at random within a stage chosen at random, so that those that last a millisecond are hit too. The victim: the loop, the
runner (a recorded turn), the referee, the candidate, the researcher, or all of them at once, as in a power cut.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "src"))

import conftest  # noqa: E402
from conftest import git, scored  # noqa: E402
from labs import Background, journal, rows, source_of, stage_in, template, wrongs  # noqa: E402

from autoresearch.processes import marked  # noqa: E402

VICTIMS = ("loop", "runner", "referee", "candidate", "researcher", "all")
STAGES = ("between", "proposed", "committed", "running", "measured", "judged", "recorded")
LONGEST = 0.4  # seconds into a stage; a run takes about as much
PATIENCE = 30.0  # seconds for a stage or a process to come
EXPERIMENTS = 2  # of a start that is killed
RULES = ("strict", "measured")  # the one keeps often, the other runs again

# Half of what it proposes is better, a third worse, the rest crashes; nothing is proposed twice.
RESEARCHER = f"""#!{sys.executable} -IS
import random, re, sys, time
source = open("train.py").read()
time.sleep(random.uniform(0.0, 0.2))
rate = float(re.search(r"(?m)^LR = (\\S+)", source)[1])
draw = random.random()
rate = rate + (0.3 - rate) * random.uniform(0.02, 0.06) if draw < 0.5 else rate * random.uniform(0.2, 0.8)
source = re.sub(r"(?m)^LR = \\S+", f"LR = {{rate:.9f}}", source)
if draw > 0.85:
    source = source.replace('MODE = "normal"', 'MODE = "crash"')
open("train.py", "w").write(source)
print(f"LR {{rate:.9f}}")
"""


class Lab:
    """A lab that is killed again and again, and all that was ever seen in its table."""

    def __init__(self, folder: Path, sandbox: str) -> None:
        cache = folder / "cache"
        self.root, self.log = template(folder, cache), folder / "log"
        conftest.PREPARED = cache
        self.researcher, self.sandbox = folder / "researcher", sandbox
        self.researcher.write_text(RESEARCHER)
        self.researcher.chmod(0o755)
        self.environment = conftest.environment_of(folder / "home", cache)
        self.seen: list[tuple[str, ...]] = []
        self.checked = 0

    @property
    def state(self) -> Path:
        """Of the newest experiment."""
        numbers = [int(name) for name in os.listdir(self.root / ".autoresearch" / "runs")]  # noqa: PTH208 - asked every 0.2 ms
        return self.root / ".autoresearch" / "runs" / str(max(numbers, default=0)) / "state.json"

    def stage(self) -> str:
        found = stage_in(self.state)
        return found if found in STAGES else "between"

    def loop(self, experiments: int, keep: str) -> Background:
        words = ("loop", "--max", str(experiments), "--sandbox", self.sandbox, "--researcher", str(self.researcher), "--keep", keep)
        return Background(self.root, *words, env=self.environment, log=self.log)

    def record(self) -> Background:
        words = ("run", "--sandbox", self.sandbox, "--record", "by hand")
        return Background(self.root, *words, env=self.environment, log=self.log)

    def edit(self, draw: random.Random) -> None:
        source = (self.root / "train.py").read_text()
        (self.root / "train.py").write_text(re.sub(r"(?m)^LR = \S+", f"LR = {draw.uniform(0.01, 0.29):.9f}", source))

    def look(self) -> None:
        """Remember the rows that are whole now."""
        whole = (self.root / "results.tsv").read_text().rpartition("\n")[0].split("\n")[1:]
        self.seen += [row for line in whole if (row := tuple(line.split("\t"))) not in self.seen]

    def check(self) -> list[str]:
        """What is wrong, once a start has come to its end."""
        table, found = rows(self.root), wrongs(self.root)
        if [row for row in table if row in self.seen] != self.seen:
            found.append("a row that was there is gone, doubled or elsewhere")
        for row, done in zip(table, journal(self.root), strict=False):
            self.checked += 1
            if row[3] != "crash" and row[1] != f"{score_of(source_of(self.root, done['n'])):.6f}":
                found.append(f"#{done['n']} has a score that is not its train.py's")
        self.look()
        return found


def score_of(source: str, known: dict[str, float] = {}) -> float:  # noqa: B006 - kept from call to call on purpose
    (rate,) = re.findall(r"(?m)^LR = (\S+)", source)
    if rate not in known:
        known[rate] = scored(LR=float(rate))
    return known[rate]


def wait_until(event: Callable[[], bool], start: Background) -> bool:
    """False if the start came to its end first."""
    deadline = time.monotonic() + PATIENCE
    while not event():
        if start.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


def processes(lab: Lab, victim: str, start: Background) -> list[int]:
    """The numbers of the victim's processes that are there now."""
    if victim in ("loop", "runner"):
        return [start.process.pid]
    runs = list(marked(f"AUTORESEARCH_WEIGHTS_OUT={lab.root}/"))
    referees = [pid for pid in runs if b"autoresearch.experiment.referee" in words_of(pid)]
    thinking = list(marked(f"AUTORESEARCH_RESEARCHER={lab.root}/"))
    named = {"referee": referees, "candidate": [pid for pid in runs if pid not in referees], "researcher": thinking}
    return named.get(victim, [start.process.pid, *runs, *thinking])


def words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_once(lab: Lab, victim: str, draw: random.Random) -> str | None:
    """Start, kill, and start again to the end. The stage that was hit; None if there was nothing left to be killed."""
    by_hand = victim == "runner"
    if by_hand:
        lab.edit(draw)
    start = lab.record() if by_hand else lab.loop(EXPERIMENTS, draw.choice(RULES))
    stage, later = draw.choice(STAGES), draw.uniform(0.0, LONGEST)
    if victim in ("loop", "runner", "all"):
        wait_until(lambda: lab.stage() == stage, start)
        time.sleep(later if stage in ("between", "running", "measured") else later / 100)
    else:
        wait_until(lambda: bool(processes(lab, victim, start)), start)
        time.sleep(later / 2)
    hit = lab.stage()
    found = processes(lab, victim, start)
    chosen = found if victim == "all" else found[:1] and [draw.choice(found)]
    killed = start.process.poll() is None and bool(chosen)
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            killed = killed and victim == "all"
    start.process.wait(PATIENCE * 4)
    if victim in ("loop", "runner", "all"):  # what it left is the stage that was hit
        hit = lab.stage()
    lab.look()
    if by_hand:  # the same command again is the same turn
        lab.record().end()
    return hit if killed else None


def finish(lab: Lab) -> list[str]:
    """The next start, which must end well."""
    start = lab.loop(1, "strict")
    code = start.end()
    return ([] if code == 0 else [f"the next start ended with {code}: {start.said()[-500:]}"]) + lab.check()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sandbox", default="none")
    arguments = parser.parse_args()
    draw, began = random.Random(arguments.seed), time.monotonic()
    victims, stages, losses = Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), arguments.sandbox)
        first = finish(lab)
        assert not first, first
        while sum(victims.values()) < arguments.kills:
            victim = VICTIMS[sum(victims.values()) % len(VICTIMS)]
            hit = kill_once(lab, victim, draw)
            wrong = finish(lab)
            if hit is not None:
                victims[victim] += 1
                stages[hit] += 1
            losses += len(wrong)
            for line in wrong:
                print(f"after the kill of the {victim} at '{hit}': {line}", flush=True)
            print(f"{sum(victims.values())} kills, {time.monotonic() - began:.0f} s", end="\r", file=sys.stderr, flush=True)
        git(lab.root, "fsck", "--connectivity-only", "--no-dangling")
        end, table = Counter(row[3] for row in rows(lab.root)), len(rows(lab.root))
    print(f"kills: {sum(victims.values())} ({told(victims)}), in {time.monotonic() - began:.0f} s")
    print(f"states hit: {told(stages)}")
    print(f"rows checked: {lab.checked}; {table} at the end ({told(end)})")
    print(f"losses: {losses}")
    return 1 if losses else 0


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
