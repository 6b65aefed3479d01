"""The keep rule: turns a run's score into keep or discard."""

from autoresearch.results import CRASH, DISCARD, KEEP


def judge(val_bpb: float | None, incumbent: float | None) -> str:
    """Lower than the incumbent is kept; equal is not. Without a score it is a crash, without an incumbent a keep."""
    if val_bpb is None:
        return CRASH
    return KEEP if incumbent is None or val_bpb < incumbent else DISCARD
