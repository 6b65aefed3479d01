"""All cheats that are a train.py, by what they are after."""

from redteam.cheat import Cheat
from redteam.cheats import ahead, clock, data, machine, outside, score, state, weights

ALL: tuple[Cheat, ...] = (
    *score.CHEATS,
    *clock.CHEATS,
    *data.CHEATS,
    *ahead.CHEATS,
    *state.CHEATS,
    *weights.CHEATS,
    *outside.CHEATS,
    *machine.CHEATS,
)
