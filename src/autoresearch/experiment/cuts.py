"""What an audit shows a model, and what it makes of the answers: numbers in, numbers out.

A cut is a validation row up to some place, with random tokens behind it. The model's loss at the place, for the token that came
next in truth and that it is never shown, must be the loss that was scored. Half of the cuts lie anywhere; half where the score
looked too good: where the token before says little about the next one and the model was nearly sure of it. A leak that pays
is there.

Four things are looked at, of `difference` = loss at the cut - loss that was scored, in nats:
- a single difference that arithmetic can't explain, measured by how far most of them scatter: one is enough
- how far most of them scatter: an answer that is another one is not the same model's
- the signed mean of the cuts that lie anywhere, beyond FLOOR and SIGMAS of its standard error: a leak that is small and everywhere
- the same with the other sign: a score that depends on what surrounds the row

How small a leak that finds: `smallest_leak`; benchmarks/referee.py prints it for both profiles.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from autoresearch.experiment.probes import frequencies

# bf16 logits under a soft cap of 15 are 0.06 apart, so that one token's loss can be 0.2 nats off; in float32 on a CPU nothing
# differs. So one difference may be this many times what most scatter by, within these bounds in nats.
SINGLE_SIGMAS, SINGLE_LEAST, SINGLE_MOST = 12.0, 0.05, 0.5
SCATTER_MOST = 0.1  # nats that most differences may scatter by, three times what bf16 was taken to do
SIGMAS = 4.5  # a false alarm in 150,000 audits, were noise all there is
FLOOR = 0.0005  # nats; kernels that are chosen anew round in another direction
LEAST = 2048  # cuts of one process, as far as a few passes over the rows give them
PASSES = 4
LOOKED_AT = 2**21  # positions among which the too good ones are sought
TOO_GOOD = 0.02  # share of the positions that is taken for too good
SMOOTHING = 5.0  # a pair of tokens counts this many times less than what it was seen
SIEVE = 2**26  # bytes; what else falls through it is told apart afterwards


@dataclass(frozen=True)
class Cuts:
    rows: np.ndarray  # (N,) of the scored rows
    places: np.ndarray  # (N,) of the target
    anywhere: int  # so many lie anywhere, the rest where the score looked too good


@dataclass(frozen=True)
class Findings:
    """Differences in nats: the cuts that lie anywhere, and the largest of all."""

    cuts: int
    anywhere: int
    mean: float
    deviation: float
    largest: float  # by size, with its sign
    single: float  # what one may be off
    scatter: float  # standard deviation of most of them, by their median
    largest_row: int = -1
    largest_place: int = -1

    def foul(self) -> str:
        """'' or what is wrong."""
        if not math.isfinite(self.largest) or not math.isfinite(self.mean):
            return "logits that are not finite"
        if abs(self.largest) > self.single:
            return f"without what follows, a token's loss is {self.largest:+.2f} nats off the scored one"
        if self.scatter > SCATTER_MOST:
            return f"without what follows, losses scatter by {self.scatter:.2f} nats around the scored ones"
        allowed = FLOOR + SIGMAS * self.deviation / math.sqrt(self.anywhere)
        if abs(self.mean) > allowed:
            return f"without what follows, losses are {self.mean:+.5f} nats off the scored ones ({allowed:.5f} is noise)"
        return ""


def together(findings: Iterable[Findings]) -> Findings:
    """Those of several processes as one."""
    parts = list(findings)
    anywhere = sum(part.anywhere for part in parts)
    mean = sum(part.mean * part.anywhere for part in parts) / anywhere
    square = sum((part.deviation**2 + part.mean**2) * part.anywhere for part in parts) / anywhere
    worst = max(parts, key=lambda part: abs(part.largest))
    deviation = math.sqrt(max(0.0, square - mean**2))
    return replace(worst, cuts=sum(part.cuts for part in parts), anywhere=anywhere, mean=mean, deviation=deviation)


def choose(random: np.random.Generator, rows: np.ndarray, losses: np.ndarray, training: np.ndarray, vocab: int) -> Cuts:
    """Where to cut. rows: scored (N, T + 1), losses (N, T), training: a sample of rows to count pairs of tokens in."""
    count, length = losses.shape
    total = max(count, min(PASSES * count, LEAST))
    anywhere = total // 2
    looked_at = random.permutation(count)[: max(1, LOOKED_AT // length)]
    gain = surprise(training, rows[looked_at], vocab) - losses[looked_at]
    wanted = max(1, int(gain.size * TOO_GOOD))
    best = np.argpartition(gain.ravel(), -wanted)[-wanted:]
    taken = random.choice(best, total - anywhere, replace=wanted < total - anywhere)
    return Cuts(
        rows=np.concatenate([random.integers(count, size=anywhere), looked_at[taken // length]]),
        places=np.concatenate([random.integers(length, size=anywhere), taken % length]),
        anywhere=anywhere,
    )


def surprise(training: np.ndarray, rows: np.ndarray, vocab: int) -> np.ndarray:
    """Nats of each target of rows (N, T + 1) by the token before it, as counted in `training`: float (N, T)."""
    single = frequencies(training, vocab)
    wanted, pairs = _pairs(rows, vocab), _pairs(training, vocab).ravel()
    sieve = np.zeros(SIEVE, bool)  # most pairs are none of the wanted ones: to sort them all takes seconds
    sieve[wanted & (SIEVE - 1)] = True
    found, counts = np.unique(pairs.compress(sieve[pairs & (SIEVE - 1)]), return_counts=True)
    at = np.searchsorted(found, wanted)
    seen = np.where(np.append(found, 0)[at] == wanted, np.append(counts, 0)[at], 0)  # behind the last: none
    first = np.bincount(training[:, :-1].ravel(), minlength=vocab)[rows[:, :-1]]
    nats: np.ndarray = -np.log((seen + SMOOTHING * single[rows[:, 1:]]) / (first + SMOOTHING))
    return nats


def _pairs(rows: np.ndarray, vocab: int) -> np.ndarray:
    """One number for each two tokens: uint32 (N, T), since a token has 16 bits."""
    pairs: np.ndarray = rows[:, :-1].astype(np.uint32) * vocab + rows[:, 1:]
    return pairs


def inputs(random: np.random.Generator, rows: np.ndarray, cuts: Cuts, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is shown (N, T), random behind each cut and never the true next token there, and the true targets (N,)."""
    shown = rows[cuts.rows, :-1].copy()
    targets = rows[cuts.rows, cuts.places + 1]
    length = shown.shape[1]
    behind = np.arange(length)[None, :] > cuts.places[:, None]
    noise = random.choice(len(q), size=shown.shape, p=q).astype(shown.dtype)
    shown[behind] = noise[behind]
    last = np.minimum(cuts.places + 1, length - 1)
    own = np.arange(len(shown))
    told = (cuts.places + 1 < length) & (shown[own, last] == targets)
    shown[own[told], last[told]] = (targets[told] + 1) % len(q)
    return shown, targets


def compare(cuts: Cuts, losses: np.ndarray, found: np.ndarray) -> Findings:
    """losses: as scored, (N, T); found: at the cuts."""
    difference = found.astype(np.float64) - losses[cuts.rows, cuts.places]
    difference[~np.isfinite(difference)] = np.inf
    worst = int(np.abs(difference).argmax())
    scatter = 1.4826 * _median(np.abs(difference[: cuts.anywhere]))  # of most; a rare leak is no part of it
    single = largest_allowed(scatter)
    anywhere = np.clip(difference[: cuts.anywhere], -single, single)  # a larger one is a foul by itself
    return Findings(
        cuts=len(difference),
        anywhere=cuts.anywhere,
        mean=float(anywhere.mean()),
        deviation=float(anywhere.std()),
        largest=float(difference[worst]),
        single=single,
        scatter=scatter,
        largest_row=int(cuts.rows[worst]),
        largest_place=int(cuts.places[worst]),
    )


def _median(numbers: np.ndarray) -> float:
    """As numpy's own, which imports a fifth of numpy for it."""
    ordered = np.sort(numbers)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def largest_allowed(scatter: float) -> float:
    """Nats that one loss may be off, where most scatter with this standard deviation."""
    return min(SINGLE_MOST, max(SINGLE_LEAST, SINGLE_SIGMAS * scatter))


SIZES = tuple(float(size) for size in np.geomspace(1e-4, 4.0, 60))  # nats that a leak gains at one place


def smallest_leak(anywhere: int, noise: float, sizes: Iterable[float] = SIZES) -> float:
    """The mean gain a token, in nats, from which any leak is found with a probability of 0.99 by the cuts that lie anywhere.

    A leak gains one of `sizes` nats at some share of the places, whichever hides best. `noise` is the standard deviation of a
    difference. The cuts at places that look too good come on top and find large gains at rare places far sooner.
    """
    return max(_least_gain(anywhere, noise, size) for size in sizes)


def _least_gain(anywhere: int, noise: float, size: float) -> float:
    missed, single = 0.01, largest_allowed(noise)
    once = size * (1 - missed ** (1 / anywhere)) if size > single else math.inf  # one hit is enough
    share, least = 1.0, math.inf
    while share > 1e-7:  # the mean: its threshold and its own scatter grow with the leak's
        spread = math.sqrt(noise**2 + share * (1 - share) * min(size, single) ** 2)
        if share * min(size, single) < FLOOR + (SIGMAS + 2.33) * spread / math.sqrt(anywhere):
            break
        least = share * size
        share *= 0.98
    return min(once, least, size)  # at all places and still not found: larger ones are
