"""What the search's first step size and population are worth, by simulation.

    uv run python benchmarks/search.py

A made-up task: 20 literals on log scales, a bowl whose curvatures differ a hundredfold and whose lowest point lies about a
factor of 1.5 off in each, noise of 0.002 bpb on every score. Prints the share of the possible gain that the best-looking trial
really has, after 5, 20, 50 and 100 trials; the mean of 60 tasks.
"""

import warnings

import numpy as np
from cmaes import CMA

DIMENSIONS, TASKS, TRIALS, NOISE = 20, 60, 100, 0.002
RANGE = 2 * np.log(4)  # natural logarithm from a quarter to four times the value
MARKS = (5, 20, 50, 100)


def one_task(seed: int, sigma: float, population: int) -> list[float]:
    random = np.random.default_rng(seed)
    curvature = np.exp(random.normal(np.log(0.01), 1.2, DIMENSIONS))
    curvature[:3] *= 5
    lowest = random.normal(0, 0.4, DIMENSIONS)

    def score(point: np.ndarray) -> float:
        return float(np.sum(curvature * ((point - 0.5) * RANGE - lowest) ** 2))

    start = np.full(DIMENSIONS, 0.5)
    bounds = np.tile([0.0, 1.0], (DIMENSIONS, 1))
    search = CMA(mean=start, sigma=sigma, population_size=population, seed=seed + 1, bounds=bounds)
    first = true = score(start)
    seen = first + random.normal(0, NOISE)
    shares: list[float] = []
    told = []
    for trial in range(1, TRIALS + 1):
        point = search.ask()
        value = score(point) + random.normal(0, NOISE)
        if value < seen:
            seen, true = value, score(point)
        told.append((point, value))
        if len(told) == population:
            search.tell(told)
            told = []
        if trial in MARKS:
            shares.append((first - true) / first)
    return shares


def main() -> None:
    warnings.simplefilter("ignore")
    print("| population | first step | " + " | ".join(f"{mark} trials" for mark in MARKS) + " |")
    print("|---|---|" + "---|" * len(MARKS))
    for population in (4, 6, 8, 12):
        for sigma in (0.03, 0.05, 0.06, 0.08, 0.1, 0.15):
            shares = np.mean([one_task(seed, sigma, population) for seed in range(TASKS)], axis=0)
            print(f"| {population} | {sigma} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
