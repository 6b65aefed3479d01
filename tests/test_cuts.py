"""The audit's numbers: what is shown at a cut, which differences are noise, and how small a leak is found."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from autoresearch.experiment import cuts, probes

ROWS, LENGTH, VOCAB = 64, 128, 256


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def rows(random: np.random.Generator) -> np.ndarray:
    return random.integers(VOCAB, size=(ROWS, LENGTH + 1)).astype(np.uint16)


def cut(random: np.random.Generator, rows: np.ndarray, losses: np.ndarray) -> cuts.Cuts:
    return cuts.choose(random, rows, losses, rows, VOCAB)


def test_a_row_is_shown_up_to_its_cut_and_never_its_next_token(random, rows):
    places = cut(random, rows, random.exponential(3, (ROWS, LENGTH)))
    shown, targets = cuts.inputs(random, rows, places, probes.frequencies(rows, VOCAB))
    assert shown.shape == (4 * ROWS, LENGTH)
    for number, (row, place) in enumerate(zip(places.rows, places.places, strict=True)):
        assert np.array_equal(shown[number, : place + 1], rows[row, : place + 1])
        assert targets[number] == rows[row, place + 1]
        if place + 1 < LENGTH:
            assert shown[number, place + 1] != targets[number]


def test_half_of_the_cuts_lie_where_the_score_looked_too_good(random, rows):
    losses = np.full((ROWS, LENGTH), 5.0)
    losses[:, 77] = 0.001
    places = cut(random, rows, losses)
    assert (places.places[places.anywhere :] == 77).mean() > 0.3
    assert (places.places[: places.anywhere] == 77).mean() < 0.1


@pytest.mark.parametrize("vocab", [40, VOCAB, 20_000, 2**16])  # beyond 8192 pairs share places in the sieve
def test_a_targets_surprise_is_how_often_it_followed_the_token_before(random, vocab):
    training, rows = (np.minimum(random.pareto(0.5, (30, 65)), vocab - 1).astype(np.uint16) for _ in range(2))
    single, counts = probes.frequencies(training, vocab), Counter[tuple[int, int]]()
    for row in training.tolist():
        counts.update(itertools.pairwise(row))
    first = Counter(training[:, :-1].ravel().tolist())
    for row, nats in zip(rows.tolist(), cuts.surprise(training, rows, vocab), strict=True):
        for (before, after), found in zip(itertools.pairwise(row), nats, strict=True):
            share = (counts[before, after] + cuts.SMOOTHING * single[after]) / (first[before] + cuts.SMOOTHING)
            assert found == pytest.approx(-np.log(share))


def test_where_no_pair_was_seen_in_training_single_tokens_count():
    training, rows = np.full((2, 5), 3, np.uint16), np.full((1, 5), 4, np.uint16)
    assert np.ptp(cuts.surprise(training, rows, VOCAB)) == 0
    assert cuts.surprise(training, rows, VOCAB)[0, 0] == pytest.approx(-np.log(probes.frequencies(training, VOCAB)[4]))


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.03])
def test_the_noise_of_the_arithmetic_raises_no_alarm_in_500_audits(random, rows, noise):
    losses = random.exponential(3, (ROWS, LENGTH))
    for _ in range(500):
        places = cut(random, rows, losses)
        found = losses[places.rows, places.places] + noise * random.standard_normal(len(places.rows))
        assert cuts.compare(places, losses, found).foul() == ""


@pytest.mark.parametrize(
    ("leak", "reason"),
    [
        (lambda size: np.where(np.arange(size) % 50 == 0, 2.0, 0.0), "off the scored one"),
        (lambda size: np.full(size, 0.01), r"losses are \+0\.0(10|099)"),
        (lambda size: np.full(size, -0.01), r"losses are -0\.0(10|099)"),
        (lambda size: np.where(np.arange(size) == 3, np.nan, 0.0), "not finite"),
    ],
)
def test_a_leak_is_found_whether_rare_and_large_or_small_and_everywhere(random, rows, leak, reason):
    losses = random.exponential(3, (ROWS, LENGTH))
    places = cut(random, rows, losses)
    found = losses[places.rows, places.places] + leak(len(places.rows)) + 0.001 * random.standard_normal(len(places.rows))
    assert re.search(reason, cuts.compare(places, losses, found).foul())


def test_two_processes_together_find_what_neither_finds_alone(random, rows):
    losses = random.exponential(3, (ROWS, LENGTH))

    def one() -> cuts.Findings:
        places = cut(random, rows, losses)
        found = losses[places.rows, places.places] + 0.011 + 0.03 * random.standard_normal(len(places.rows))
        return cuts.compare(places, losses, found)

    parts = [one() for _ in range(8)]
    whole = cuts.together(parts)
    assert whole.anywhere == sum(part.anywhere for part in parts)
    assert whole.foul() and not all(part.foul() for part in parts)


@pytest.mark.parametrize(("size", "noise"), [(0.01, 0.001), (0.1, 0.03), (1.0, 0.03), (4.0, 0.001)])
def test_the_smallest_leak_that_is_stated_is_found_99_times_in_100(random, size, noise):
    anywhere, trials = 2048, 400
    leak = cuts.smallest_leak(anywhere, noise, [size])
    missed = 0
    for _ in range(trials):
        difference = np.where(random.random(anywhere) < leak / size, size, 0.0) + noise * random.standard_normal(anywhere)
        places = cuts.Cuts(np.zeros(anywhere, int), np.arange(anywhere), anywhere)
        missed += cuts.compare(places, np.zeros((1, anywhere)), difference).foul() == ""
    assert missed <= 12, "4 are expected, more than 12 happen once in 4,000 times"
