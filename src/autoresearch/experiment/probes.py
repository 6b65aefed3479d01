"""Rows that ride along in evaluation, unscored and unannounced, for a model that sees what it should not.

Decoys. In some rows single tokens, far apart, are replaced by draws from a distribution q of the referee's own (how often tokens
stand in the training text). A model that cannot see the token at t + 1 gave it a probability p(decoy) before the draw mattered, so
the mean of p / q over draws is at most 1, whatever the model is. One that looks ahead gives the decoy away. The test bets on that:
its wealth is the product of 1 + stake * (min(p / q, CAP) - 1), averaged over a few stakes, and starts at 1. Under any honest model
the expected wealth stays at most 1, so it reaches FALSE_ALARM ** -1 with a probability of at most FALSE_ALARM (Ville's inequality;
Shafer 2021, "Testing by betting"), with no assumption about noise, text or model.

Twins. Some rows are shown twice, in other batches and with everything behind a random place replaced. Up to that place their losses
must agree within the arithmetic's noise: a model whose logits depend on later tokens, on its neighbours in the batch, or on what it
was shown before does not.
"""

from dataclasses import dataclass

import numpy as np

FALSE_ALARM = 1e-4  # probability that an honest run fails the decoys
CAP = 1000.0  # on p / q, so that one lucky draw is not the whole wealth
STAKES = (0.0005, 0.002, 0.008)
SPACING = 8  # tokens between two decoys
DECOYS_WANTED = 16_384  # find a look-ahead at one position in a thousand; see `power`
SHARE = 1 / 8  # probe rows over scored rows, at most
TWINS = 8  # pairs, and at most a sixteenth of the scored rows
# The same row in another place of another batch: bf16 products differ in their last bits. Measured means are under 0.001 nats.
TWIN_MEAN, TWIN_SINGLE = 0.01, 1.0  # nats: of the mean over a pair's common part, and of one token


@dataclass(frozen=True)
class Probes:
    rows: np.ndarray  # uint16 (M, T + 1), to be mixed with the scored rows
    decoy_at: np.ndarray  # int (D, 2): row of `rows`, position of the target
    decoy_q: np.ndarray  # float64 (D,)
    twins: tuple[tuple[int, int, int], ...]  # rows i and j agree in the first n targets


def frequencies(rows: np.ndarray, vocab: int) -> np.ndarray:
    """q: how often each token stands in these rows, every token at least a little. float64 (V,), sums to 1."""
    counts = np.bincount(rows.ravel(), minlength=vocab).astype(np.float64) + 1.0
    total: np.ndarray = counts / counts.sum()
    return total


def make(random: np.random.Generator, held_out: np.ndarray, q: np.ndarray) -> Probes:
    """Probes made of the validation rows (N, T + 1)."""
    count, width = held_out.shape
    pairs = min(TWINS, count // 16)
    per_row = len(range(SPACING, width - 1, SPACING))
    decoy_rows = max(1, min(-(-DECOYS_WANTED // per_row), int(count * SHARE) - 2 * pairs))

    rows = held_out[random.choice(count, decoy_rows, replace=decoy_rows > count)].copy()
    places = []
    for number in range(decoy_rows):
        offset = int(random.integers(SPACING))
        places += [(number, place) for place in range(SPACING + offset, width - 1, SPACING)]
    at = np.array(places)
    drawn = random.choice(len(q), size=len(at), p=q)
    rows[at[:, 0], at[:, 1]] = drawn

    twins = []
    extra: list[np.ndarray] = []
    for source in random.choice(count, pairs, replace=False):
        first, second = held_out[source].copy(), held_out[source].copy()
        cut = int(random.integers(width // 4, 3 * width // 4))
        second[cut:] = random.choice(len(q), size=width - cut, p=q)
        index = decoy_rows + len(extra)
        extra += [first, second]
        twins.append((index, index + 1, cut - 1))  # targets 0 .. cut - 2 are the same tokens after the same tokens
    rows = np.concatenate([rows, np.array(extra, dtype=rows.dtype).reshape(-1, width)])
    return Probes(rows, at, q[drawn], tuple(twins))


def verdict(probes: Probes, losses: np.ndarray) -> str:
    """What the losses (M, T) of the probe rows show: '' for nothing, else the foul."""
    if not np.isfinite(losses).all():
        return "non-finite: logits that are not finite"
    # The target at position t of a row is its token t + 1.
    p = np.exp(-losses[probes.decoy_at[:, 0], probes.decoy_at[:, 1] - 1].astype(np.float64))
    gained = wealth(p / probes.decoy_q)
    if gained >= 1 / FALSE_ALARM:
        return f"look-ahead: it knows tokens that it could not have seen (wealth {gained:.1e} at {len(p)} decoys)"
    for first, second, common in probes.twins:
        difference = losses[first, :common].astype(np.float64) - losses[second, :common]
        if abs(difference.mean()) > TWIN_MEAN or np.abs(difference).max() > TWIN_SINGLE:
            return f"not causal: the same {common} tokens scored {difference.mean():+.4f} nats apart when what follows changed"
    return ""


def wealth(ratios: np.ndarray) -> float:
    """The bettor's wealth after these p / q, one after the other; the mean over the stakes."""
    bets = np.minimum(ratios, CAP) - 1.0
    logs = [np.log1p(stake * bets).sum() for stake in STAKES]
    return float(np.mean(np.exp(np.minimum(logs, 700.0))))


def power(decoys: int, share: float, random: np.random.Generator, trials: int = 200) -> float:
    """How often a look-ahead at a `share` of the positions is found, by simulation: it gives the decoys there p = 0.9 and is an
    ordinary model elsewhere (p / q of mean 1, log-normal with a spread of 2)."""
    found = 0
    for _ in range(trials):
        ratios = np.exp(random.normal(-2.0, 2.0, decoys))
        leaks = random.random(decoys) < share
        ratios[leaks] = 0.9 / random.choice([0.02, 0.004, 0.001, 0.0002], leaks.sum(), p=[0.25, 0.3, 0.3, 0.15])
        found += wealth(ratios) >= 1 / FALSE_ALARM
    return found / trials
