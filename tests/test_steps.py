"""Claims about steps: one discrete literal, one step from the incumbent, in an order that follows from the history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_search import RICH, SMOOTH, Game, of, others

from autoresearch.journal import RunResult
from autoresearch.literals import read_literals, values
from autoresearch.researchers import Proposal
from autoresearch.researchers.lineage import lineage
from autoresearch.researchers.space import space
from autoresearch.researchers.steps import Step, attempts, steps

SIZES = """\
DEPTH = 4
HEADS = 4
WIDTH = 48
BATCH = 4096
PATTERN = "SL"  # one of: L, SL, SSL
"""
DISCRETE = ("DEPTH", "BATCH", "PATTERN")  # of RICH
FIRST = {("DEPTH", -1), ("HEADS", -1), ("WIDTH", -1), ("BATCH", -1)}
LAST = {(name, 1) for name, _ in FIRST}


def same(_: dict[str, Any]) -> float:
    return 1.0


def order(game: Game, session: str = "night") -> list[Step]:
    """The open steps from where the game stands."""
    dims = space(game.incumbent, values(game.source))
    return steps(values(game.incumbent), dims, attempts(lineage(game.history), dims), session)


def moves(found: list[Step]) -> list[tuple[str, int]]:
    return [step.move for step in found]


@pytest.mark.parametrize(
    ("line", "down", "up"),
    [
        ("DEPTH = 4", 3, 5),
        ("DEPTH = 1", None, 2),
        ("WIDTH = 48", 42, 54),
        ("BATCH = 4096", 2048, 8192),
        ("ROWS = 16", 8, 32),
        ('PATTERN = "SL"  # one of: L, SL, SSL', "L", "SSL"),
        ('PATTERN = "L"  # one of: L, SL, SSL', None, "SL"),
        ("FLAG = True  # one of: True, False", None, False),
    ],
)
def test_a_step_goes_to_the_next_value_and_not_beyond_the_last(line: str, down: Any, up: Any) -> None:
    dim = of(line)
    assert dim is not None and dim.discrete
    assert (dim.neighbour(dim.value, -1), dim.neighbour(dim.value, 1)) == (down, up)


def test_a_whole_number_that_comes_to_a_power_of_two_goes_on_by_its_own_steps(tmp_path: Path) -> None:
    game = Game(tmp_path, "X = 14\n", lambda literals: 1.0 + abs(literals["X"] - 18))
    for _ in range(5):
        game.turn()
    assert values(game.incumbent)["X"] == 18, "by way of 16"


# -- the order ----------------------------------------------------------------------------------------------------------


def test_steps_to_a_smaller_model_come_first_and_to_a_larger_one_last(tmp_path: Path) -> None:
    found = order(Game(tmp_path, SIZES, same))
    assert set(moves(found)[:4]) == FIRST and set(moves(found)[-4:]) == LAST
    assert set(moves(found)[4:-4]) == {("PATTERN", -1), ("PATTERN", 1)}
    assert all(step.promising for step in found)


def test_another_session_goes_another_way_and_the_same_one_the_same(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, same)
    ways = [moves(order(game, session)) for session in ("a", "b", "c", "d", "a")]
    assert ways[0] == ways[4]
    assert len({tuple(way) for way in ways}) > 1


def test_a_move_that_was_kept_is_repeated_as_long_as_it_is_kept(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, lambda literals: 1.0 + abs(literals["DEPTH"] - 6))
    others(game, DEPTH=5)
    assert order(game)[0] == Step(("DEPTH", 1), 6, promising=True)
    others(game, DEPTH=6)
    others(game, BATCH=2048)
    assert order(game)[0] == Step(("DEPTH", 1), 7, promising=True), "also after something else was tried"
    others(game, DEPTH=7)
    assert order(game)[0].move != ("DEPTH", 1)


def test_a_move_that_was_tried_comes_after_those_that_were_not_and_the_oldest_first(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, lambda literals: 2.0 - (literals["HEADS"] == 5))
    tried = [("DEPTH", 3), ("WIDTH", 42), ("PATTERN", "L"), ("HEADS", 5)]
    for name, value in tried:
        others(game, **{name: value})
    assert values(game.incumbent)["HEADS"] == 5
    found = order(game)
    assert found[0].move == ("HEADS", 1)
    assert moves(found)[-4:] == [("DEPTH", -1), ("WIDTH", -1), ("PATTERN", -1), ("HEADS", -1)], "the way back was measured too"
    assert [step.promising for step in found] == [True] * (len(found) - 4) + [False] * 4


def test_a_step_counts_whoever_made_it_and_nothing_else_does(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, same)
    others(game, DEPTH=3)
    others(game, HEADS=6)  # two steps
    others(game, WIDTH=42, BATCH=2048)  # two literals
    game.enter(Proposal(SIZES + "print()\n", "code"))
    dims = space(SIZES, values(SIZES))
    assert [each.move for each in attempts(lineage(game.history), dims)] == [("DEPTH", -1)]


def test_another_session_and_a_new_baseline_begin_with_no_move_tried(tmp_path: Path) -> None:
    game = Game(tmp_path, "DEPTH = 4\nHEADS = 4\n", same)
    first = game.turn().details["step"]
    own = "DEPTH = 6\nHEADS = 6\n"  # what a person committed
    game.incumbent = own
    game.enter(Proposal(own, "baseline"), baseline=True)
    assert game.turn().details["step"] == first


def test_a_session_that_is_gone_back_to_goes_on_where_it_was(tmp_path: Path) -> None:
    game = Game(tmp_path, "DEPTH = 4\nHEADS = 4\n", lambda literals: 1.0 + abs(literals["DEPTH"] - 5))
    others(game, DEPTH=5)
    mine = game.incumbent
    game.incumbent = "DEPTH = 6\nHEADS = 6\n"
    game.enter(Proposal(game.incumbent, "baseline"), baseline=True)
    game.history[-1] = replace(game.history[-1], session="another")
    game.incumbent = mine
    assert game.search().details == {"step": ["DEPTH", 1]}, "which was kept there"


# -- crashes ------------------------------------------------------------------------------------------------------------


def test_a_crash_bars_its_direction_until_a_discrete_literal_of_the_incumbent_moved(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, lambda literals: None if literals["DEPTH"] == 5 else 2.0)
    others(game, DEPTH=5)
    assert ("DEPTH", 1) not in moves(order(game)) and ("DEPTH", -1) in moves(order(game))
    game.score = lambda _: 1.5
    others(game, LR=0.05)
    assert values(game.incumbent)["LR"] == 0.05
    assert ("DEPTH", 1) not in moves(order(game)), "another learning rate needs no less memory"
    game.score = lambda _: 1.0
    others(game, BATCH=2048)
    assert ("DEPTH", 1) in moves(order(game))


def test_a_discard_without_a_score_bars_nothing(tmp_path: Path) -> None:
    """A run that was stopped early was merely worse."""
    game = Game(tmp_path, RICH, same)
    done = others(game, DEPTH=5)
    game.history[-1] = replace(done, result=RunResult("stopped"))
    assert ("DEPTH", 1) in moves(order(game))


# -- in turn with CMA-ES ------------------------------------------------------------------------------------------------


def kinds(game: Game) -> str:
    """The search's own proposals: s for a step, c for CMA-ES."""
    return "".join("s" if "step" in done.details else "c" for done in game.history if done.details)


def test_two_of_three_proposals_are_steps_while_there_are_new_ones_then_one_of_three(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, same)
    for _ in range(18):
        game.turn()
    assert kinds(game) == "sscsscsccccccccccc", "five moves; then nothing is kept, and each is known"
    game.score = lambda _: 0.5
    others(game, LR=0.05)
    game.score = same
    for _ in range(9):
        game.turn()
    assert kinds(game)[18:] == "sccsccscc", "the incumbent moved: what was tried is open again"


def test_where_all_is_discrete_or_all_continuous_there_is_the_one_alone(tmp_path: Path) -> None:
    discrete, continuous = Game(tmp_path / "a", SIZES, same), Game(tmp_path / "b", SMOOTH, same)
    for _ in range(7):
        discrete.turn()
        continuous.turn()
    assert (kinds(discrete), kinds(continuous)) == ("sssssss", "ccccccc")


def test_a_step_is_one_literal_and_its_description_says_all_of_it(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, same)
    before = values(SIZES)
    for _ in range(10):
        done = game.turn()
        name, direction = done.details["step"]
        now = (done.literals or {})[name]
        assert {**before, name: now} == done.literals and now != before[name] and direction in (-1, 1)
        assert done.description == f"{name} {before[name]}->{now}"


def sized(literals: dict[str, Any]) -> float:
    """Smaller is a little better, in these two; each gains half of what a keep takes."""
    return 1.0 + literals["DEPTH"] / 64 + literals["HEADS"] / 64 + abs(literals["WIDTH"] - 48) + abs(literals["BATCH"] - 4096)


def test_steps_that_each_nearly_help_are_made_together_and_kept(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, sized, margin=1.5 / 64)
    done = game.history[0]
    while done.status == "discard" or done.baseline:
        assert len(game.history) < 8
        done = game.turn()
    assert done.description in ("DEPTH 4->3, HEADS 4->3", "HEADS 4->3, DEPTH 4->3")
    assert done.details == {"step": ["DEPTH", "HEADS"]} and done.status == "keep"
    alone = [each for each in game.history[1:-1] if each.val_bpb and each.val_bpb < 1.125]
    assert len(alone) == 2, "both were tried alone before, and neither was kept"
    again = game.turn()
    assert len(again.details["step"]) == 2 and again.details["step"][1] in (-1, 1), "a single step from the new incumbent"


def test_what_was_made_together_in_vain_is_not_made_together_again(tmp_path: Path) -> None:
    apart = {"DEPTH": 3, "HEADS": 3}

    def no_sum(literals: dict[str, Any]) -> float:
        changed = sum(literals[name] == value for name, value in apart.items())
        return {0: 1.0, 1: 0.99, 2: 1.1}[changed] + abs(literals["WIDTH"] - 48) / 48

    game = Game(tmp_path, SIZES, no_sum, margin=0.05)
    for _ in range(11):  # ten steps and these two together: that is all there is
        game.turn()
    joint = [done for done in game.history if (done.literals or {}).items() >= apart.items()]
    assert len(joint) == 1 and joint[0].status == "discard"


def test_one_near_miss_alone_is_nothing_to_make_together(tmp_path: Path) -> None:
    game = Game(tmp_path, SIZES, lambda literals: 1.0 + literals["DEPTH"] / 64 * (literals["DEPTH"] > 2), margin=1.0)
    for _ in range(9):
        assert len(game.turn().details["step"]) == 2 and game.history[-1].details["step"][1] in (-1, 1)


def test_a_step_that_was_lost_with_its_process_is_proposed_again(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, same)
    game.turn()
    lost = game.search()
    assert game.search() == lost and "step" in lost.details


def test_cma_es_proposes_on_top_of_the_incumbents_discrete_literals_in_one_study(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, lambda literals: 1.0 + literals["DEPTH"] + literals["BATCH"] / 4096)
    sampled = []
    for _ in range(24):
        before = values(game.incumbent)
        done = game.turn()
        if "study" in done.details:
            sampled.append(done.details["study"])
            assert all((done.literals or {})[name] == before[name] for name in DISCRETE)
    assert values(game.incumbent)["DEPTH"] == 2 and values(game.incumbent)["BATCH"] == 1024
    assert len(sampled) > 6 and len(set(sampled)) == 1


def test_what_a_kept_step_gained_is_taken_out_of_what_cma_es_is_told(tmp_path: Path) -> None:
    game = Game(tmp_path, RICH, lambda literals: 2.0 + literals["DEPTH"] / 8 + (literals["LR"] != 0.04) / 64)
    while "study" not in game.turn().details or values(game.incumbent)["DEPTH"] == 4:
        assert len(game.history) < 20
    sampled = game.history[-1]
    depth = values(game.incumbent)["DEPTH"]
    while "study" not in game.turn().details:
        assert len(game.history) < 20
    told = next(trial.value for trial in game.trials() if trial.number == sampled.details["trial"])
    assert sampled.val_bpb == 2.0 + depth / 8 + 1 / 64
    assert told == 2.5 + 1 / 64, "as it would have been at the first depth"


def test_what_a_person_wrote_as_fixed_is_no_step(tmp_path: Path) -> None:
    source = SIZES.replace("DEPTH = 4", "DEPTH = 4  # fixed")
    assert "DEPTH" in read_literals(source)
    assert not any(name == "DEPTH" for name, _ in moves(order(Game(tmp_path, source, same))))
