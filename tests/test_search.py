"""Claims about the search: it starts at what is there, proposes what can run, takes single steps where they tell something, and
forgets nothing that it was told."""

from __future__ import annotations

import ast
import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT, TOY_TRAIN, Cli, git, toy
from labs import copy_of, rows
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoresearch.check import Refused, check
from autoresearch.journal import CRASHED, SCORED, SETTLED, Experiment, RunResult
from autoresearch.lab import Lab
from autoresearch.literals import code_key, read_literals, set_literals, values
from autoresearch.researchers import Context, Proposal, ResearcherFailed, study
from autoresearch.researchers.said import describe
from autoresearch.researchers.search import Search
from autoresearch.researchers.space import Dimension, dimension

Score = Callable[[dict[str, Any]], float | None]


def bowl(literals: dict[str, Any]) -> float:
    """The toy train.py's score."""
    return 1 + (literals["LR"] - 0.3) ** 2 + 0.01 * (literals["DEPTH"] - 6) ** 2


@dataclass
class Game:
    """The loop without its runs: the search proposes, `score` answers, the best is the incumbent. Each turn is a new process's."""

    root: Path
    source: str
    score: Score = bowl
    margin: float = 0.0  # that a keep is better by
    history: list[Experiment] = field(default_factory=list)
    incumbent: str = ""

    def __post_init__(self) -> None:
        self.incumbent = self.source
        self.enter(Proposal(self.source, "baseline"), baseline=True)

    @property
    def best(self) -> float:
        """The incumbent's score."""
        return min(done.val_bpb for done in self.history if done.val_bpb is not None and done.status == "keep")

    def context(self) -> Context:
        return Context(Lab(self.root), self.incumbent, "", tuple(self.history), self.root)

    def enter(self, proposal: Proposal, baseline: bool = False) -> Experiment:
        literals = values(proposal.source)
        score = self.score(literals)
        before = None if baseline else self.best
        crashed, better = score is None, score is not None and (before is None or score < before - self.margin)
        done = Experiment(
            n=len(self.history) + 1,
            session="night",
            stage=SETTLED,
            description=proposal.description,
            researcher="search",
            fingerprint="f",
            code_key=code_key(proposal.source),
            started="",
            parent="p",
            baseline=baseline,
            result=RunResult(CRASHED, crash_class="oom") if score is None else RunResult(SCORED, val_bpb=score),
            status="crash" if crashed else "keep" if better else "discard",
            incumbent_bpb=before,
            literals=literals,
            details=json.loads(json.dumps(proposal.details)),
        )
        if better:
            self.incumbent = proposal.source
        self.history.append(done)
        return done

    def search(self) -> Proposal:
        return Search().propose(self.context())

    def turn(self) -> Experiment:
        proposal = self.search()
        check(proposal.source, self.incumbent, [done.code_key for done in self.history])
        return self.enter(proposal)

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What Optuna has on disk in the newest study."""
        name = next(done.details["study"] for done in reversed(self.history) if "study" in done.details)
        storage = JournalStorage(JournalFileBackend(str(self.root / ".autoresearch" / "search" / f"{name}.log")))
        return optuna.load_study(study_name=name, storage=storage).trials


def others(game: Game, **literals: Any) -> Experiment:
    """Somebody else's experiment."""
    return game.enter(Proposal(set_literals(game.incumbent, literals), "by another"))


def of(line: str) -> Dimension | None:
    (literal,) = read_literals(line + "\n").values()
    return dimension(literal)


# -- how a literal is searched -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "kind", "low", "high"),
    [
        ("LR = 0.04  # Muon", "log", 0.01, 0.16),
        ("LR = 0.4", "log", 0.1, 1.0),  # a fraction stays one
        ("ROPE = 200_000.0", "log", 50_000.0, 800_000.0),
        ("CAP = 15.0", "log", 3.75, 60.0),
        ("BETA = 0.95", "near_one", 0.8, 0.9875),
        ("BETA = 0.5", "near_one", 0.01, 0.875),
        ("DEPTH = 9", "int", 4, 18),
        ("DEPTH = 1", "int", 1, 2),
        ("HIDDEN = 48", "int", 24, 96),
        ("BATCH = 2**18", "power", 2**16, 2**20),
        ("ROWS = 16", "power", 4, 64),
        ('PATTERN = "SSL"  # repeated; one of: L, SL, SSL (in this order)', "choice", "L", "SSL"),
        ("EVERY = 2  # 0: none; one of: 1, 2, 3", "choice", 1, 3),
        ("FLAG = True  # one of: True, False", "choice", True, False),
        ("RATE = 0.5  # one of: 0.25, 0.5", "choice", 0.25, 0.5),
    ],
)
def test_a_literal_is_searched_around_its_value_by_its_kind(line: str, kind: str, low: Any, high: Any) -> None:
    dim = of(line)
    assert dim is not None and dim.kind == kind
    ends = sorted((dim.decode(end) for end in dim.limits()), key=[low, high].index if kind == "choice" else None)
    assert ends == [pytest.approx(low), pytest.approx(high)]
    assert type(ends[0]) is type(low)
    assert dim.decode(dim.encode(dim.value)) == dim.value
    assert dim.holds(dim.value)


@pytest.mark.parametrize(
    "line",
    [
        "HEAD_DIM = 128  # even; fixed",
        "FLAG = True",
        "NAME = 'text'",
        "ZERO = 0.0",
        "NEGATIVE = -1.0",
        "TABLE = [1, 2]",
        "PATTERN = 'SL'  # one of: L, SSL",
        "ONLY = 2  # one of: 2",
        "EPS = 1e-38",
        "HUGE = 1e300",
        "SEED = 2**62",
        "ALMOST = 0.99999999",
    ],
)
def test_what_is_fixed_or_no_setting_is_left_alone(line: str) -> None:
    assert of(line) is None


def test_the_real_train_py_has_settings_to_search_and_its_fixed_ones_are_left_alone() -> None:
    literals = read_literals((ROOT / "train.py").read_text())
    dims = {name for name, literal in literals.items() if dimension(literal)}
    assert {"DEPTH", "MATRIX_LR", "MUON_MOMENTUM", "TOTAL_BATCH"} <= dims
    assert not dims & {"HEAD_DIM", "DEVICE_BATCH", "COMPILE", "PEAK_FLOPS"}


def test_a_proposed_number_is_written_with_few_digits() -> None:
    near_one, log = Dimension("B", "near_one", 0.95), Dimension("L", "log", 0.04)
    assert near_one.decode(0.9000001) == 0.1 and near_one.decode(0.0123456) == 0.9877
    assert log.decode(0.123456) == 0.123


# -- what it proposes ----------------------------------------------------------------------------------------------------

RICH = """\
LR = 0.04  # learning rate
BETA = 0.95
DEPTH = 4
BATCH = 4096
PATTERN = "SSL"  # one of: L, SL, SSL
HEAD = 64  # fixed
NAME = "name"


def f(LR):
    return LR  # LR = 0.04
"""
SMOOTH = (
    RICH.replace("DEPTH = 4", "DEPTH = 4  # fixed").replace("BATCH = 4096", "BATCH = 4096  # fixed").replace("one of:", "fixed:")
)


def rich(literals: dict[str, Any]) -> float | None:
    if literals["DEPTH"] > 6:
        return None  # out of memory
    return 1 + abs(math.log(literals["LR"] / 0.06)) / 10 + abs(literals["BETA"] - 0.9) + literals["BATCH"] / 1e6


def test_every_proposal_is_python_in_range_and_differs_in_the_searched_literals_alone(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, rich)
    dims = {name: dim for name, literal in read_literals(RICH).items() if (dim := dimension(literal))}
    for _ in range(30):
        proposal = Search().propose(game.context())
        ast.parse(proposal.source)
        found = values(proposal.source)
        assert set_literals(proposal.source, {name: values(RICH)[name] for name in dims}) == RICH
        assert all(dims[name].holds(found[name]) for name in dims), found
        assert found["HEAD"] == 64 and found["BATCH"].bit_count() == 1
        game.enter(proposal)


def test_it_starts_at_the_current_values_with_small_steps(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    first = [game.turn().literals or {} for _ in range(6)]
    assert all(0.02 < each["LR"] < 0.08 and 0.9 < each["BETA"] < 0.975 for each in first)
    assert game.trials()[0].value == game.history[0].val_bpb
    assert game.trials()[0].params["LR"] == 0.04


def test_it_starts_at_the_value_and_not_in_the_middle_of_its_range(tmp_path: Path) -> None:
    game = Game(tmp_path, "LR = 0.45\nBETA = 0.9\n", lambda _: 1.0)  # searched from 0.1125 to 1 and from 0.6 to 0.975
    first = [game.turn().literals or {} for _ in range(6)]
    assert 0.40 < sum(each["LR"] for each in first) / 6 < 0.51
    assert 0.88 < sum(each["BETA"] for each in first) / 6 < 0.92


def test_a_description_names_what_changed_the_largest_first() -> None:
    before = {"A": 1.0, "B": 4, "C": "SL", "D": 0.5, "E": 0.1, "F": 0.1}
    after = {"A": 2.0, "B": 5, "C": "L", "D": 0.51, "E": 0.111111, "F": 0.1001}
    assert describe(before, after) == "C SL->L, A 1->2, B 4->5, E 0.1->0.111, 2 smaller steps"


def test_the_same_session_proposes_the_same_twice(tmp_path: Path) -> None:
    games = [Game(tmp_path / name, RICH, rich) for name in ("a", "b")]
    for game in games:
        for _ in range(10):
            game.turn()
    assert [done.literals for done in games[0].history] == [done.literals for done in games[1].history]


def test_in_40_trials_it_comes_to_the_low_part_of_the_bowl(tmp_path: Path) -> None:
    game = Game(tmp_path, TOY_TRAIN)
    start = game.best
    for _ in range(40):
        game.turn()
    assert start == pytest.approx(1.08)
    assert game.best < 1.02, "three quarters of the way down"
    found = values(game.incumbent)
    assert 0.2 < found["LR"] <= 0.4 and found["DEPTH"] in (5, 6, 7)


def test_nothing_is_proposed_twice_and_a_space_that_is_used_up_is_told(tmp_path: Path) -> None:
    """`turn` refuses a repeat. The way goes down to (1, 1), whose neighbours are all that is left then."""
    game = Game(tmp_path, "DEPTH = 3\nKIND = 2  # one of: 1, 2\n", lambda literals: literals["DEPTH"] + literals["KIND"])
    with pytest.raises(ResearcherFailed, match="nothing more to search"):
        for _ in range(20):
            game.turn()
    tried = {(done.literals or {})["DEPTH"] * 10 + (done.literals or {})["KIND"] for done in game.history}
    assert values(game.incumbent) == {"DEPTH": 1, "KIND": 1} and {11, 21, 12} <= tried


def test_continuous_literals_that_are_used_up_are_told_too(tmp_path: Path) -> None:
    """Every value of three digits from 0.025 to 0.4 is known: wherever CMA-ES comes to, it was tried."""
    game = Game(tmp_path, "LR = 0.1\n", lambda literals: 1.0 if literals["LR"] == 0.1 else None)
    for value in [number / 10_000 for number in range(250, 1000)] + [number / 1000 for number in range(101, 401)]:
        others(game, LR=value)
    with pytest.raises(ResearcherFailed, match="nothing more to search"):
        Search().propose(game.context())


def test_a_single_literal_can_be_searched(tmp_path: Path) -> None:
    game = Game(tmp_path, "LR = 0.1\n", lambda literals: (literals["LR"] - 0.2) ** 2 + 1)
    for _ in range(30):
        game.turn()
    assert values(game.incumbent)["LR"] == pytest.approx(0.2, rel=0.15)


def test_a_train_py_without_literals_is_told_by_the_search_and_ends_the_loop(lab: Path, cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(ResearcherFailed, match="no ALL_CAPS literal"):
        Search().propose(Game(tmp_path, "lr = 0.1\n", lambda _: 1.0).context())
    source = TOY_TRAIN.replace("LR = 0.1  #", "LR = 0.1  # fixed;").replace("DEPTH = 4  #", "DEPTH = 4  # fixed;")
    (lab / "train.py").write_text(source)
    git(lab, "commit", "--quiet", "--all", "--message=fixed")
    done = cli("loop", "--max", "1")
    assert done.returncode == 3 and "no ALL_CAPS literal" in done.stderr
    assert (lab / "results.tsv").read_text().count("\n") == 2  # the header and the baseline


# -- what it is told -----------------------------------------------------------------------------------------------------


def test_every_outcome_is_told_once_also_after_a_restart(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    for number in range(8):
        done = game.turn()
        assert done.details["told"] == min(number, 1)
    states = [trial.state for trial in game.trials()]
    assert states == [TrialState.COMPLETE] * 8 + [TrialState.RUNNING]
    told = [trial.value for trial in game.trials()[1:-1]]
    assert told == [done.val_bpb for done in game.history[1:-1]]


def test_a_session_in_two_processes_goes_the_way_of_one(
    made: Path, environment: Mapping[str, str], cli: Cli, tmp_path: Path
) -> None:
    tables = []
    for name, parts in (("whole", ("4",)), ("parts", ("1", "3"))):
        lab = copy_of(made, tmp_path / name)
        for count in parts:
            assert cli("loop", "--max", count, cwd=lab).returncode == 0
        tables.append([row[1:] for row in rows(lab)])
    assert tables[0] == tables[1] and len(tables[0]) == 5


def test_a_crash_is_told_as_worse_than_the_worst(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, lambda literals: None if literals["LR"] > 0.045 else rich(literals))
    while game.turn().val_bpb is not None:
        assert len(game.history) < 100, "no crash in 100 trials"
    crashed = game.history[-1].details["trial"]
    game.turn()
    worst = max(done.val_bpb for done in game.history if done.val_bpb is not None)
    value = game.trials()[crashed].value
    assert value is not None and math.isfinite(value) and value > worst


def test_a_first_trial_that_crashes_is_told_too(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, lambda literals: 1.0 if literals == values(SMOOTH) else None)
    game.turn()
    game.turn()
    value = game.trials()[1].value
    assert value is not None and 1.0 < value < 10.0


def test_a_proposal_that_was_never_run_is_closed_and_forgotten(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    Search().propose(game.context())  # its process died
    second = game.turn()
    assert second.details["told"] == 0
    assert [trial.state for trial in game.trials()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]


def test_a_killed_process_leaves_no_lock_and_no_torn_line_in_the_way(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    game.turn()
    log = tmp_path / ".autoresearch" / "search" / f"{game.history[-1].details['study']}.log"
    Path(f"{log}.lock").symlink_to(log)  # as Optuna's own lock would be left
    with log.open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    began = time.monotonic()
    game.turn()
    game.turn()
    assert time.monotonic() - began < 10.0, "it waited for a lock that nobody holds"
    assert [trial.state for trial in game.trials()][:3] == [TrialState.COMPLETE] * 3


# -- a study that goes on in another log ---------------------------------------------------------------------------------


def state_of(trials: Sequence[optuna.trial.FrozenTrial]) -> tuple[int, str]:
    """The newest state of CMA-ES in a log, and its generation."""
    for trial in reversed(trials):
        parts = [trial.system_attrs[name] for name in sorted(trial.system_attrs) if name.startswith("cmawm:optimizer")]
        if parts and trial.state == TrialState.COMPLETE:
            return trial.system_attrs["cmawm:generation"], "".join(parts)
    raise AssertionError("none")


def test_a_study_that_is_long_goes_on_in_a_log_of_its_own_from_the_very_state_and_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "MOST", 15)
    game = Game(tmp_path, SMOOTH, lambda literals: 1 + abs(literals["LR"] - 0.07) + abs(literals["BETA"] - 0.9))
    crossed, generations = 0, []
    for _ in range(40):
        before = game.trials() if studies(game) else []
        name = game.history[-1].details.get("study")
        done = game.turn()
        after = game.trials()
        generations.append(after[-1].system_attrs["cmawm:generation"])
        if name and done.details["study"] != name:
            crossed += 1
            told = [trial for trial in after if trial.state == TrialState.COMPLETE]
            generation, state = state_of(before)
            assert len(before) == 15 and state_of(told) == (generation, state)
            ours = [trial.params for trial in before if trial.system_attrs.get("cmawm:generation") == generation]
            assert [trial.params for trial in told] == ours, "the last of which was open in the old log"
    assert crossed >= 3 and len(studies(game)) == crossed + 1
    assert generations == [turn // 6 for turn in range(40)]


def test_what_another_tried_is_learned_once_also_when_the_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MOST", 15)
    game = Game(tmp_path, SMOOTH, lambda literals: 1 + abs(literals["LR"] - 0.07))
    known = [others(game, LR=rate).n for rate in (0.05, 0.06)]
    for _ in range(30):
        game.turn()
    assert len(studies(game)) >= 3
    learned = []
    for log in sorted((tmp_path / ".autoresearch" / "search").iterdir()):
        storage = JournalStorage(JournalFileBackend(str(log)))
        for trial in optuna.load_study(study_name=log.stem, storage=storage).trials:
            learned.append(trial.user_attrs.get("experiment"))
    assert [learned.count(n) for n in known] == [1, 1]


def test_a_log_that_a_killed_process_left_half_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "MOST", 9)
    games = [Game(tmp_path / name, SMOOTH, rich) for name in ("whole", "killed")]
    for game in games:
        for _ in range(8):
            game.turn()
    name = game.history[-1].details["study"]
    unfinished = tmp_path / "killed" / ".autoresearch" / "search" / f"{name}-2.new"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            game.search()
    assert unfinished.exists()
    for game in games:
        done = game.turn()
        assert done.details["study"] == f"{name}-2"
    assert not unfinished.exists() and games[0].history[-1].literals == games[1].history[-1].literals


def test_no_log_of_a_long_session_has_more_trials_than_the_limit(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, lambda literals: 1 + abs(literals["LR"] - 0.07) + abs(literals["BETA"] - 0.9))
    for _ in range(200):
        game.turn()
        assert len(game.trials()) <= study.MOST
    assert len(studies(game)) >= 4


# -- an incumbent that others move ---------------------------------------------------------------------------------------


def studies(game: Game) -> set[str]:
    return {done.details["study"] for done in game.history if "study" in done.details}


@pytest.mark.parametrize(
    ("source", "score", "crossed"),
    [
        ("X = 0.45\n", lambda v: 9 - v["X"], lambda x: x >= 0.5),
        ("X = 0.55\n", lambda v: 9 + v["X"], lambda x: x < 0.5),
    ],
    ids=["log to near one", "near one to log"],
)
def test_a_literal_that_crosses_a_border_between_kinds_keeps_its_study(
    tmp_path: Path, source: str, score: Score, crossed: Callable[[Any], bool]
) -> None:
    game = Game(tmp_path, source, score)
    for _ in range(30):
        game.turn()
        if crossed(values(game.incumbent)["X"]):
            break
    assert crossed(values(game.incumbent)["X"]), "it has to cross for the claim to mean anything"
    game.turn()
    assert len(studies(game)) == 1


def test_an_incumbent_moved_within_its_range_goes_on_in_the_same_study(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    game.turn()
    game.enter(Proposal(set_literals(game.incumbent, {"LR": 0.06, "BETA": 0.9, "NAME": "another"}), "an agent's"))
    assert values(game.incumbent)["LR"] == 0.06
    done = game.turn()
    assert len(studies(game)) == 1 and (done.literals or {})["NAME"] == "another"


@pytest.mark.parametrize(
    ("edit", "anew"),
    [
        (lambda s: s.replace("LR = 0.04", "LR = 0.9"), True),
        (lambda s: s.replace("LR = 0.04", 'LR = "auto"'), True),
        (lambda s: s.replace("LR = 0.04  # learning rate\n", ""), True),
        (lambda s: "RATE = 0.7\n" + s, True),
        (lambda s: "WIDTH = 7\n" + s, False),
        (lambda s: s.replace("BETA = 0.95", "BETA = 0.95  # fixed"), True),
        (lambda s: s.replace("one of: L, SL, SSL", "one of: SSL, SSSL, SSSSL"), False),
        (lambda s: s.replace("DEPTH = 4", "DEPTH = 40"), False),
        (lambda s: s.replace("DEPTH = 4", "DEPTH = 4.0"), True),
        (lambda s: s.replace("DEPTH = 4", "DEPTH = 0"), False),
    ],
    ids=[
        "out of range",
        "a string",
        "gone",
        "a new rate",
        "a new size",
        "fixed",
        "other choices",
        "a size out of range",
        "another type",
        "zero",
    ],
)
def test_an_incumbent_of_another_shape_is_searched_around_what_it_is_now(
    tmp_path: Path, edit: Callable[[str], str], anew: bool
) -> None:
    """`anew`: with a study of its own, because what CMA-ES searches is something else."""
    game = Game(tmp_path, RICH, lambda _: 2.0)
    for _ in range(3):
        game.turn()
    game.score = lambda _: 1.0
    game.enter(Proposal(edit(RICH), "an agent's"))
    assert game.incumbent == edit(RICH)
    game.score = lambda _: 3.0
    now = values(game.incumbent)
    dims = {literal.name: dim for literal in read_literals(game.incumbent).values() if (dim := dimension(literal))}
    for _ in range(8):
        found = game.turn().literals or {}
        assert all(dims[name].holds(value) if name in dims else value == now[name] for name, value in found.items())
    assert len(studies(game)) == 1 + anew


def test_a_session_of_its_own_begins_at_its_own_values(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    for _ in range(3):
        game.turn()
    own = set_literals(SMOOTH, {"LR": 0.1})  # within the first session's range
    game.incumbent = own
    game.enter(Proposal(own, "baseline"), baseline=True)
    game.incumbent = own
    first = game.turn()
    assert 0.05 < (first.literals or {})["LR"] < 0.2
    assert game.trials()[0].params["LR"] == 0.1


def test_scores_of_another_fingerprint_are_another_study(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, rich)
    before = game.turn().details["study"]
    game.history = [replace(done, fingerprint="g", details={}) for done in game.history[:1]]
    assert game.turn().details["study"] != before


def test_a_refused_repeat_is_what_check_says_it_is(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, rich)
    done = game.turn()
    with pytest.raises(Refused):
        check(set_literals(RICH, done.literals or {}), RICH, [done.code_key])


def test_proposing_stays_quick_after_50_trials(tmp_path: Path) -> None:
    """In a process of its own, as the loop's: importing Optuna, reading the study, proposing."""
    source = "".join(f"RATE_{chr(65 + n)} = 0.{n + 1}\n" for n in range(9)) + toy().partition("LR")[0]
    game = Game(tmp_path, source, lambda v: 1 + sum((v[name] - 0.3) ** 2 for name in v))
    for _ in range(50):
        game.turn()
    code = """
import pickle, sys, time
context = pickle.load(open(sys.argv[1], "rb"))
from autoresearch.researchers.search import Search
Search().propose(context)
began = time.process_time()
Search().propose(context)
print(time.process_time() - began)
"""
    (tmp_path / "context").write_bytes(pickle.dumps(game.context()))
    command = [sys.executable, "-c", code, str(tmp_path / "context")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    assert float(done.stdout) < 1.0, done.stderr


# -- what others tried -----------------------------------------------------------------------------------------------


def foreign(game: Game) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in game.trials() if "experiment" in trial.user_attrs]


def test_a_point_that_another_tried_is_learned_from_once(tmp_path: Path) -> None:
    game = Game(tmp_path, toy())
    others(game, LR=0.3, DEPTH=6)
    for _ in range(6):
        game.turn()
    assert [(trial.params, trial.value) for trial in foreign(game)] == [({"LR": 0.3}, 1.0)]


def test_what_says_nothing_of_the_settings_is_not_learned(tmp_path: Path) -> None:
    """A change of code alone, a step alone, a point outside the space, a crash, and code on top of a point that is known."""
    game = Game(tmp_path, toy())
    game.enter(Proposal(toy() + "print()\n", "code"))
    others(game, DEPTH=5)
    others(game, LR=0.9)
    game.score = lambda literals: None
    others(game, LR=0.2)
    game.score = bowl
    known = others(game, LR=0.25)
    game.enter(Proposal(game.incumbent + "print()\n", "code"))
    for _ in range(3):
        game.turn()
    assert [trial.user_attrs["experiment"] for trial in foreign(game)] == [known.n]


def test_others_are_never_more_than_half_of_a_generation(tmp_path: Path) -> None:
    game = Game(tmp_path, SMOOTH, lambda literals: 1 + abs(literals["LR"] - 0.07))
    game.turn()
    for rate in (0.05, 0.06, 0.07, 0.08):
        others(game, LR=rate)
    game.turn()
    assert sorted(trial.params["LR"] for trial in foreign(game)) == [0.06, 0.07, 0.08]
    assert foreign(game)[0].params["LR"] == 0.07, "the best first"


def best_own(folder: Path, session: str, helped: bool) -> float:
    """The best that the search itself came to in 16 turns, with two points of another's or without."""
    game = Game(folder, toy(DEPTH=6).replace("DEPTH = 6  #", "DEPTH = 6  # fixed;"))
    game.history[0] = replace(game.history[0], session=session)
    for turn in range(16):
        if helped and turn in (2, 8):
            source, done = game.incumbent, others(game, LR=0.31 - turn / 100)
            # The help is to be in the search, not in the code that it starts from.
            game.incumbent, game.history[-1] = source, replace(done, status="discard")
        game.turn()
    return min(done.val_bpb for done in game.history if done.val_bpb is not None and "study" in done.details)


def test_with_points_of_another_near_the_best_the_search_gets_further(tmp_path: Path) -> None:
    sessions = ("a", "b", "c", "d")
    alone = [best_own(tmp_path / f"{session}-alone", session, helped=False) for session in sessions]
    together = [best_own(tmp_path / f"{session}-together", session, helped=True) for session in sessions]
    assert sum(together) < sum(alone)
