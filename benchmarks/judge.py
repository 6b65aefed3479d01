"""What the keep rules are worth: 200 simulated sessions by each, with the GPU time of 100 experiments of the strict rule.

    uv run python benchmarks/judge.py [--sessions 200] [--experiments 100]
    uv run python benchmarks/judge.py --first-session

The noise is 0.0004 bpb a run, as at 300 s on an H100; each session's own sigma varies about that a little. The streams of ideas are
made up: most do nothing or harm, few help (`STREAMS`). Ours is judge.py's own code with its own estimate of the noise, which starts
at the prior; its baseline and repeats are paid from the same GPU time. Prints one table a stream, mean and standard deviation over
the sessions. The last line has the first stream's figures, its shares those of all sessions together.

true gain      how much lower the last kept train.py really is than the first
claimed        how much lower the best kept row is than the first row: what the report says
false keeps    kept ideas that don't help, of those kept, and of the useless ideas that were tried
missed         ideas that help and were tried and not kept, and the bpb they would have brought, of all that was in them

--first-session asks how long the first command takes on a CPU: 4,000 sessions of five ideas by its rule and by two that repeat
more, at the noise of its prior. Seconds are reckoned from what a run, an audit and the installation took.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from autoresearch import judge, noise

START = 0.9979  # val_bpb of the first train.py; nothing depends on it
# Of a session's log(sigma). Groups of six runs and more scatter by 0.3 there, and nearly as much by their small number alone.
SIGMA_SPREAD = 0.15
HARM = 0.0015  # bpb, mean of an exponential distribution: of the discards of a real session 13% missed by 0.003 and more
SLIGHT = 0.0005  # bpb, the most that a slight harm does: a third of those discards missed by less
HELP = (0.0005, 0.0015)  # bpb, evenly


@dataclass(frozen=True)
class Stream:
    """Shares of the ideas; the rest harms."""

    helps: float
    nothing: float
    slight: float

    def idea(self, draw: random.Random) -> float:
        """The change of val_bpb that it really makes."""
        which = draw.random()
        if which < self.helps:
            return -draw.uniform(*HELP)
        if which < self.helps + self.nothing:
            return 0.0
        return draw.uniform(0.0, SLIGHT) if which < self.helps + self.nothing + self.slight else draw.expovariate(1 / HARM)


STREAMS = {
    "one idea in twenty helps, half harm slightly, the others more": Stream(0.05, 0.0, 0.50),
    "one in twenty helps, a quarter do nothing, a quarter harm slightly": Stream(0.05, 0.25, 0.25),
    "one in thirty-three helps, half harm slightly": Stream(0.03, 0.0, 0.50),
    "one in ten helps, half harm slightly": Stream(0.10, 0.0, 0.50),
}


@dataclass
class Session:
    """A session as it goes: what is true, what is written, what is counted."""

    sigma: float
    idea: Callable[[], float]
    runs_left: int
    draw: random.Random
    value: float = START  # what the incumbent really is
    rows: list[float] = field(default_factory=list)  # kept, as they stand in the table
    experiments: int = 0
    kept: int = 0
    useless: int = 0
    false: int = 0
    offered: float = 0.0  # bpb in the ideas that help
    lost: float = 0.0  # of those, in ideas that were not kept
    good: int = 0
    missed: int = 0

    def run(self, value: float) -> float:
        self.runs_left -= 1
        return self.draw.gauss(value, self.sigma)

    def count(self, change: float, keeps: bool, row: float) -> None:
        self.experiments += 1
        self.kept += keeps
        self.useless += change >= 0
        self.good += change < 0
        self.offered += max(0.0, -change)
        self.lost += 0.0 if keeps else max(0.0, -change)
        self.false += keeps and change >= 0
        self.missed += not keeps and change < 0
        if keeps:
            self.value += change
            self.rows.append(row)


def strict(session: Session) -> None:
    session.rows.append(session.run(session.value))
    while session.runs_left > 0:
        change = session.idea()
        score = session.run(session.value + change)
        session.count(change, score < min(session.rows), score)


def ours(session: Session, rule: judge.Rule = judge.GPU, prior: noise.Prior = noise.GPU, most: float = math.inf) -> None:
    incumbent = judge.Incumbent(tuple(session.run(session.value) for _ in range(rule.noise_runs)), selected=False)
    session.rows.append(noise.mean(incumbent.scores))
    repeats = [list(incumbent.scores)]  # of each commit that was run more than once
    while session.runs_left > 0 and session.experiments < most:
        change = session.idea()
        candidate: list[float] = []
        outcome = judge.AGAIN
        while outcome in (judge.AGAIN, judge.AGAIN_INCUMBENT):
            if outcome == judge.AGAIN:
                candidate.append(session.run(session.value + change))
            else:
                incumbent = incumbent.again(session.run(session.value))
                repeats[0] = list(incumbent.scores)
            found = noise.estimate(prior, [*repeats, candidate])
            outcome = judge.compare(candidate, incumbent, found, rule).outcome
        session.count(change, outcome == judge.BETTER, noise.mean(candidate))
        if outcome == judge.BETTER:
            incumbent = judge.Incumbent(tuple(candidate), selected=True)
            repeats.insert(0, candidate)
        else:
            repeats.append(candidate)


RUN, AUDIT, INSTALLATION = 35.5, 24.0, 33.0  # seconds, on two quiet cores
ALLOWED = 420.0  # seconds for a first session
MANY = 1000  # runs: more than five ideas can take
SEARCHED = {"wide": (0.01, 0.03), "narrow": (0.0, 0.02), "tiny": (0.0, 0.006)}  # bpb, mean and deviation of what an idea changes


def first_session(rule: judge.Rule, ideas: tuple[float, float], draw: random.Random) -> tuple[int, float, float]:
    """Runs, seconds and true gain of a baseline and five ideas on a CPU."""
    session = Session(noise.CPU.sigma, partial(draw.gauss, *ideas), MANY, draw)
    ours(session, rule, noise.CPU, most=5)
    runs = MANY - session.runs_left
    return runs, INSTALLATION + RUN * runs + AUDIT * session.kept, START - session.value


def tell_first_sessions() -> None:
    hurried = judge.CPU.at(1)
    near = replace(hurried, sure_not=judge.SURE_NOT)
    rules = {
        "shipped": hurried,
        "a second run for whatever is near": near,
        "and one of the baseline, as later": judge.CPU,
    }
    print("| ideas | rule | runs | seconds, median | nine in ten below | over seven minutes | true gain |\n" + "|---" * 7 + "|")
    for ideas in SEARCHED:
        for name, rule in rules.items():
            draw = random.Random(f"first {ideas}")
            runs, seconds, gains = zip(*(first_session(rule, SEARCHED[ideas], draw) for _ in range(4000)), strict=True)
            ordered, late = sorted(seconds), statistics.mean(each > ALLOWED for each in seconds)
            cells = f"{statistics.mean(runs):.1f} | {ordered[2000]:.0f} | {ordered[3600]:.0f} | {late:.1%}"
            print(f"| {ideas} | {name} | {cells} | {statistics.mean(gains):.4f} |", flush=True)


Play = Callable[[Session], None]


def play(rule: Play, stream: Stream, sessions: int, experiments: int) -> list[Session]:
    """The same ideas in the same order whatever the rule, as far as it comes."""
    played = []
    for number in range(sessions):
        sigma = noise.GPU.sigma * random.Random(f"sigma {number}").lognormvariate(0.0, SIGMA_SPREAD)
        ideas, runs = random.Random(f"ideas {number}"), random.Random(f"runs {number}")
        played.append(Session(sigma, partial(stream.idea, ideas), experiments + 1, runs))
        rule(played[-1])
    return played


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


FIGURES: dict[str, Callable[[Session], float]] = {
    "experiments": lambda one: one.experiments,
    "kept": lambda one: one.kept,
    "true gain": lambda one: START - one.value,
    "claimed - true": lambda one: one.rows[0] - min(one.rows) - (START - one.value),
    "false keeps, of those kept": lambda one: share(one.false, one.kept),
    "of useless ideas": lambda one: share(one.false, one.useless),
    "missed, of those that help": lambda one: share(one.missed, one.good),
    "of their bpb": lambda one: share(one.lost, one.offered),
}


def pooled(played: list[Session]) -> dict[str, float]:
    """The last line's figures: shares of all sessions together."""
    return {
        "false_keeps": share(sum(one.false for one in played), sum(one.kept for one in played)),
        "bias": statistics.mean(FIGURES["claimed - true"](one) for one in played),
        "true_gain": statistics.mean(START - one.value for one in played),
    }


def cell(played: list[Session], figure: Callable[[Session], float]) -> str:
    found = [figure(one) for one in played]
    return f"{statistics.mean(found):.4g} +- {statistics.stdev(found):.2g}"


def last_line(**rules: list[Session]) -> str:
    parts = []
    for name, played in rules.items():
        found = pooled(played)
        parts.append(f"{name} false_keeps={found['false_keeps']:.2f} bias={found['bias']:.4f} true_gain={found['true_gain']:.4f}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--experiments", type=int, default=100)
    parser.add_argument("--first-session", action="store_true", help="how long the first command takes on a CPU, and no more")
    arguments = parser.parse_args()
    if arguments.first_session:
        return tell_first_sessions()
    alone = partial(ours, rule=replace(judge.GPU, most_reference=1))
    rules: dict[str, Play] = {"strict": strict, "ours": ours, "ours, the incumbent run again only if it must be": alone}
    last = ""
    for title, stream in STREAMS.items():
        print(f"\n{title}\n\n| rule | " + " | ".join(FIGURES) + " |\n" + "|---" * (len(FIGURES) + 1) + "|")
        played = {name: play(rule, stream, arguments.sessions, arguments.experiments) for name, rule in rules.items()}
        for name, sessions in played.items():
            print(f"| {name} | " + " | ".join(cell(sessions, figure) for figure in FIGURES.values()) + " |", flush=True)
        last = last or last_line(ours=played["ours"], strict=played["strict"])
    print(f"\n{last}")


if __name__ == "__main__":
    main()
