"""Claims about the keep rule: how often it is wrong, what it costs, and what it never believes."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, toy

from autoresearch import judge, noise, size
from autoresearch.judge import AGAIN, AGAIN_INCUMBENT, BETTER, CPU, GPU, NOT_BETTER, SIMPLER, STRICT, Incumbent, Rule, compare
from autoresearch.noise import Noise, Prior

SIGMA = 0.0004
KNOWN = Noise(SIGMA, 1000.0, 1000)
BASELINE = Incumbent((1.0, 1.0, 1.0), selected=False)


def outcome(
    *candidate: float, incumbent: Incumbent = BASELINE, rule: Rule = GPU, known: Noise = KNOWN, simpler: bool = False
) -> str:
    return compare(candidate, incumbent, known, rule, simpler).outcome


# -- one decision ----------------------------------------------------------------------------------------------------


def test_one_run_settles_what_is_far_from_the_noise_and_nothing_else() -> None:
    assert outcome(1.0 - 10 * SIGMA) == BETTER
    assert outcome(1.0 + 3 * SIGMA) == NOT_BETTER
    assert outcome(1.0 - SIGMA) == AGAIN


def test_a_keep_never_rests_on_a_mean_inside_the_noise_however_many_runs() -> None:
    for runs in range(1, GPU.most_runs + 1):
        assert outcome(*[1.0] * runs) != BETTER
        assert outcome(*[1.0 - SIGMA / 2] * runs, incumbent=Incumbent((1.0,) * 5, selected=False)) != BETTER


def test_the_last_run_decides() -> None:
    five = Incumbent((1.0,) * 5, selected=False)
    candidates = [[1.0 + shift * SIGMA / 10] * GPU.most_runs for shift in range(-40, 40)]
    assert {outcome(*candidate, incumbent=five) for candidate in candidates} == {BETTER, NOT_BETTER}


def test_the_run_that_made_an_incumbent_is_not_what_others_are_compared_with() -> None:
    lucky = Incumbent((0.9, 1.0, 1.0, 1.0))
    assert lucky.reference == (1.0, 1.0, 1.0)
    assert outcome(0.99, incumbent=lucky) == BETTER
    assert Incumbent((0.9, 1.0), selected=False).reference == (0.9, 1.0), "nobody selected a baseline"


def test_an_incumbent_with_no_more_runs_than_a_near_candidate_is_run_again_first() -> None:
    lucky = Incumbent((1.0,))
    assert outcome(1.0 - SIGMA, incumbent=lucky) == AGAIN_INCUMBENT
    assert outcome(1.0 - SIGMA, incumbent=lucky.again(1.0)) == AGAIN_INCUMBENT
    assert outcome(1.0 - SIGMA, incumbent=lucky.again(1.0).again(1.0)) == AGAIN
    assert outcome(1.0 + 10 * SIGMA, incumbent=lucky) == NOT_BETTER, "what is clear costs no run"
    assert outcome(1.0 - SIGMA, incumbent=lucky, rule=replace(GPU, most_reference=0)) == AGAIN, "unless it can't be run"


def test_a_small_laptop_gets_at_most_two_runs_of_each() -> None:
    baseline, selected = Incumbent((1.0,), selected=False), Incumbent((1.0,))
    near, nearer = 1.0 - 2 * SIGMA, 1.0 - SIGMA
    for hurried in (CPU.at(1), CPU.at(5)):
        assert outcome(near, incumbent=baseline, rule=hurried) == AGAIN, "the baseline has its one"
        assert outcome(near, near, incumbent=baseline, rule=hurried) == NOT_BETTER
        assert outcome(near, incumbent=selected, rule=hurried) == AGAIN_INCUMBENT
        assert outcome(near, incumbent=selected.again(1.0), rule=hurried) == AGAIN
        assert outcome(nearer, incumbent=baseline, rule=hurried) == NOT_BETTER, "too little to pay for a second run"
    later, twice = CPU.at(6), replace(baseline, scores=(1.0, 1.0))
    assert outcome(nearer, incumbent=baseline, rule=later) == AGAIN_INCUMBENT, "it may have been lucky"
    assert outcome(nearer, incumbent=twice, rule=later) == AGAIN
    assert outcome(near, near, incumbent=twice, rule=later) in (BETTER, NOT_BETTER), "two runs of each are all"
    assert GPU.at(1) == GPU


def test_the_less_is_known_of_the_noise_the_more_a_keep_takes() -> None:
    vague = Noise(SIGMA, 2.0, 0)
    gain = 1.0 - 3.6 * SIGMA
    assert outcome(gain) == BETTER
    assert outcome(gain, known=vague) == AGAIN


def test_strict_is_one_run_and_lower_wins() -> None:
    rule = replace(GPU, keep=STRICT)
    assert outcome(1.0 - 1e-9, rule=rule) == BETTER
    assert outcome(1.0, rule=rule) == NOT_BETTER
    assert outcome(1.0, rule=rule, simpler=True) == NOT_BETTER


# -- simpler ---------------------------------------------------------------------------------------------------------


def test_simpler_code_need_not_be_better_but_must_not_be_worse_by_more_than_the_margin() -> None:
    five = Incumbent((1.0,) * 5, selected=False)
    assert outcome(*[1.0] * 4, incumbent=five, simpler=True) == SIMPLER
    assert outcome(*[1.0] * 4, incumbent=five) == NOT_BETTER
    assert outcome(*[1.0 + judge.MARGIN * SIGMA] * 4, incumbent=five, simpler=True) == NOT_BETTER
    assert outcome(1.0 - 10 * SIGMA, simpler=True) == BETTER, "and what is better is said to be"


def test_less_code_is_counted_in_syntax_not_in_comments_layout_or_strings() -> None:
    long = toy() + "".join(
        f"\ndef f{n}(x: int) -> int:\n    '''Some words.'''\n    return (x + {n}) * x  # why\n" for n in range(10)
    )
    assert size.saving(toy(), long) >= 10 * 8
    assert size.saving(long, toy()) == 0
    bare = "\n".join(line for line in long.replace("'''Some words.'''", "pass").splitlines() if not line.lstrip().startswith("#"))
    assert size.saving(bare, long) == 0, "nothing but words went"
    hidden = toy() + f"\nexec({long.removeprefix(toy())!r})\n"
    assert size.saving(hidden, long) < size.saving(toy(), long) / 2, "code in a string is code"
    assert size.saving(toy(LR=0.2), toy()) == 0


def test_a_line_less_is_not_clearly_less() -> None:
    assert size.saving(toy(), toy() + "\nprint(1)\n") == 0


# -- noise -----------------------------------------------------------------------------------------------------------


def test_the_noise_starts_at_the_prior_and_goes_where_the_repeats_lead() -> None:
    prior = Prior(0.001, 4.0, "made up")
    assert noise.estimate(prior, []) == noise.estimate(prior, [[1.0], [2.0]]) == Noise(0.001, 4.0, 0)
    draw = random.Random(1)
    groups = [[draw.gauss(1.0 + group, 0.003) for _ in range(3)] for group in range(200)]
    few, many = noise.estimate(prior, groups[:2]), noise.estimate(prior, groups)
    assert 0.001 < few.sigma < 0.003
    assert many.sigma == pytest.approx(0.003, rel=0.1)
    assert (few.measured, few.degrees, many.measured) == (4, 8.0, 400)


def test_a_gain_is_inside_its_interval_19_times_in_20_whatever_the_seeds_do_to_both() -> None:
    draw, inside = random.Random(2), 0
    for _ in range(1000):
        seeds = [draw.gauss(0.0, 0.1) for _ in range(3)]
        pairs = [(1.0 + seed + draw.gauss(0.0, 0.003), 0.99 + seed + draw.gauss(0.0, 0.003)) for seed in seeds]
        found = noise.gain(pairs, Prior(0.003, 0.001, "nothing known"))
        inside += found.low <= 0.01 <= found.high
    assert 0.93 <= inside / 1000 <= 0.97


# -- operating points ------------------------------------------------------------------------------------------------


def played(change: float, rule: Rule = GPU, trials: int = 2000) -> tuple[float, float]:
    """How often an idea that changes the score by so many sigmas is kept, and how many runs that takes of both together."""
    draw, kept, runs = random.Random(3), 0, 0
    for _ in range(trials):
        incumbent = Incumbent(tuple(draw.gauss(0.0, SIGMA) for _ in range(4)), selected=False)
        candidate, said = list[float](), AGAIN
        while said in (AGAIN, AGAIN_INCUMBENT):
            runs += 1
            if said == AGAIN:
                candidate.append(draw.gauss(change * SIGMA, SIGMA))
            else:
                incumbent = incumbent.again(draw.gauss(0.0, SIGMA))
            said = compare(candidate, incumbent, KNOWN, rule).outcome
        kept += said == BETTER
    return kept / trials, runs / trials


@pytest.mark.parametrize(
    ("change", "least", "most", "most_runs"),
    [
        (2.5, 0.0, 0.001, 1.1),
        (1.25, 0.0, 0.005, 1.4),
        (0.0, 0.0, 0.035, 1.8),
        (-2.0, 0.7, 1.0, 3.0),
        (-3.0, 0.95, 1.0, 2.2),
        (-5.0, 1.0, 1.0, 1.2),
    ],
)
def test_what_does_nothing_is_hardly_ever_kept_and_a_gain_of_a_few_sigmas_hardly_ever_lost(
    change: float, least: float, most: float, most_runs: float
) -> None:
    kept, runs = played(change)
    assert least <= kept <= most
    assert runs <= most_runs


def test_the_strict_rule_keeps_what_does_nothing_half_the_time() -> None:
    """So that the test above can fail."""
    kept, runs = played(0.0, replace(GPU, keep=STRICT))
    assert 0.4 < kept < 0.6
    assert runs == 1.0


def test_at_the_same_gpu_time_a_session_gains_no_less_than_by_the_strict_rule_and_believes_what_is_true() -> None:
    """What benchmarks/judge.py prints in its last line, in its form."""
    spec = importlib.util.spec_from_file_location("benchmark_of_the_judge", ROOT / "benchmarks" / "judge.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = benchmark  # its dataclasses look themselves up
    spec.loader.exec_module(benchmark)
    stream = next(iter(benchmark.STREAMS.values()))
    ours, strict = (benchmark.play(rule, stream, sessions=200, experiments=100) for rule in (benchmark.ours, benchmark.strict))
    assert all(one.runs_left <= 0 for one in (*ours, *strict))
    found, other = benchmark.pooled(ours), benchmark.pooled(strict)
    assert found["false_keeps"] <= 0.05 < other["false_keeps"]
    assert abs(found["bias"]) < SIGMA < other["bias"]
    assert found["true_gain"] >= other["true_gain"]
    figures = r"false_keeps=\d\.\d\d bias=-?\d\.\d{4} true_gain=\d\.\d{4}"
    assert re.fullmatch(rf"ours {figures} \| strict {figures}", benchmark.last_line(ours=ours, strict=strict))
