"""Each cheat fools a harness that greps run.log, and does not fool ours.

A cheat "works" by one and the same predicate under both harnesses, so that a cheat that doesn't really try fails its test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from autoresearch.experiment import landlock, sandbox
from redteam.arena import Arena
from redteam.cheat import Cheat
from redteam.cheats import ALL
from redteam.world import SECRET, prepare_data

BEST, WHY_NOT_BETTER = sandbox.best()
MISSING = {sandbox.BUBBLEWRAP: sandbox._bubblewrap_problem(), sandbox.LANDLOCK: landlock.problem(), sandbox.NONE: WHY_NOT_BETTER}


def levels(cheat: Cheat) -> tuple[str, ...]:
    return cheat.levels or (BEST,)


def marks(level: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skipif(bool(MISSING[level]), reason=f"{level} is not to be had here: {MISSING[level]}")]


CASES = [
    pytest.param(
        cheat,
        level,
        id=f"{cheat.name} [{level}]" if cheat.levels else cheat.name,
        marks=marks(level),
    )
    for cheat in ALL
    for level in levels(cheat)
]


@pytest.fixture(scope="module")
def arena(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AUTORESEARCH_", "GIT_", "XDG_", "TORCH", "TRITON"))]:
            patch.delenv(name)
        data = prepare_data(tmp_path_factory.mktemp("redteam-data"))
        for name, value in {
            "AUTORESEARCH_CACHE": str(data.cache),
            "AGENT_KEY": SECRET,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        arena = Arena(tmp_path_factory.mktemp("redteam"), data, BEST)
        if "PYTEST_XDIST_WORKER" not in os.environ:  # else each worker would run them all, and use a part
            here = (getattr(item, "callspec", None) for item in request.session.items if item.fspath == request.node.fspath)
            wanted = ((each.params["cheat"], each.params["level"]) for each in here if each)
            arena.begin((cheat, level) for cheat, level in wanted if not MISSING[level])
        yield arena
        arena.close()


@pytest.mark.parametrize(("cheat", "level"), CASES)
def test_a_cheat_that_fools_a_harness_of_the_usual_kind_does_not_fool_ours(
    cheat: Cheat, level: str, arena: Arena, record_property: Callable[[str, object], None]
) -> None:
    naive, ours = arena.seen(cheat, level)
    fooled = {"fools naive": cheat.works(naive), "fools ours": cheat.works(ours)}
    for name, value in {"cheat": cheat.name, "needs the audit": cheat.audited, **fooled}.items():
        record_property(name, value)
    assert fooled["fools naive"], f"it doesn't really try: {naive}"
    assert not fooled["fools ours"], f"it got through: {ours}"
    assert ours.status == cheat.answer.status and re.search(cheat.answer.says, ours.reason), str(ours)
    assert not ours.changed and not ours.alive and not ours.heard and not ours.killed, str(ours)


@pytest.mark.skipif(bool(MISSING[BEST]), reason=f"no sandbox here: {MISSING[BEST]}")
def test_an_honest_run_gets_the_same_number_from_both_harnesses(arena: Arena) -> None:
    """Else a harness that believes nobody would pass all the rest."""
    assert arena.our_best == pytest.approx(arena.naive_best, abs=1e-5)


def test_the_red_team_is_as_large_as_promised() -> None:
    names = [cheat.name for cheat in ALL]
    assert len(names) == len(set(names)) >= 45
