"""Runs the chosen cheats side by side, each under both harnesses, and hands out what came of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from conftest import ROOT

from redteam import naive, ours
from redteam.cheat import HONEST, KEEP, Cheat, Seen, kept
from redteam.world import Data, World

WORKERS = min(4, os.cpu_count() or 1)
HONEST_RUN = Cheat("an honest run", HONEST, kept)
ANYTHING = 1e9  # bpb that everything is better than
NAIVE = "naive"  # instead of a sandbox's level


class Arena:
    def __init__(self, folder: Path, data: Data, level: str) -> None:
        self.folder, self.data, self.level = folder, data, level
        self.pool = ThreadPoolExecutor(WORKERS)
        self.jobs: dict[tuple[str, str], Future[Seen]] = {}
        self.naive_best, self.our_best = self.honest(NAIVE), self.honest(level)

    def honest(self, harness: str) -> float:
        """The number that an honest run gets: what a cheat has to beat."""
        seen = self.run(HONEST_RUN, harness, ANYTHING)
        assert seen.status == KEEP and seen.score, str(seen)
        return seen.score

    def begin(self, wanted: Iterable[tuple[Cheat, str]]) -> None:
        """Put these (cheat, level) to work, in this order."""
        for cheat, level in wanted:
            for harness in (NAIVE, level):
                if (cheat.name, harness) not in self.jobs:
                    best = self.naive_best if harness == NAIVE else self.our_best
                    self.jobs[cheat.name, harness] = self.pool.submit(self.run, cheat, harness, best)

    def seen(self, cheat: Cheat, level: str) -> tuple[Seen, Seen]:
        """What came of it in the naive harness, and in ours."""
        self.begin([(cheat, level)])
        return self.jobs[cheat.name, NAIVE].result(), self.jobs[cheat.name, level].result()

    def run(self, cheat: Cheat, harness: str, best: float) -> Seen:
        prepare = Path(__file__).parent / "naive_prepare.py" if harness == NAIVE else ROOT / "prepare.py"
        world = World(self.folder, self.data, prepare, own_cache=harness == NAIVE)
        try:
            return naive.try_cheat(cheat, world, best) if harness == NAIVE else ours.try_cheat(cheat, world, harness, best)
        finally:
            world.close()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder)
