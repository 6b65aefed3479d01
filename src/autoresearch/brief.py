"""What a researcher is told: made afresh from facts for each proposal, of bounded size whatever the history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoresearch.journal import Experiment
from autoresearch.results import CRASH, KEEP

RECENT = 20  # experiments that are listed one by one
KEPT = 20  # kept steps that are listed
NEAR_MISS = 0.001  # bpb; discards closer than this to the incumbent are marked: twice the noise of a 300 s run on a GPU
MAX_PROGRAM = 20_000  # characters of program.md

RULES = """\
- Change train.py alone. One idea at a time, so that its gain can be told.
- Your train.py must call prepare.open_run, start, evaluate_bpb and summary as it does now; data, clock and score are theirs.
- A model is what its state_dict is: a run that would be kept is started again from it and must give the same losses on rows cut
  anywhere. Logits that depend on later tokens or on other rows of the batch, and state outside of it, are refused.
- No new packages, no network, no reading or writing of other files.
- A run that needs more memory than the machine has, or fails, is a crash; a score that is not lower is taken back.
- You don't run the training and you don't use git: the harness does both after you have finished.
- The first line that you print describes what you tried, in one line."""


@dataclass(frozen=True)
class Facts:
    program: str  # text of program.md
    constants: dict[str, Any]
    machine: str
    incumbent: Experiment | None
    history: Sequence[Experiment]  # oldest first, of one fingerprint
    refusal: str = ""  # why the last proposal was not run


def write(facts: Facts) -> str:
    """The brief as Markdown."""
    parts = [
        "# Brief\nYou are the researcher of an autonomous training lab. Propose the next experiment by changing `train.py`.",
        _refusal(facts.refusal),
        f"## The program, by the person who owns this lab\n{_bounded(facts.program, MAX_PROGRAM)}",
        f"## Rules\n{RULES}",
        _machine(facts),
        _incumbent(facts.incumbent),
        _kept(facts.history),
        _recent(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bounded(text: str, limit: int) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[:limit] + f"\n[cut: {len(text) - limit} more characters in program.md]"


def _refusal(reason: str) -> str:
    return f"## Your last proposal was not run\n{reason}\nPropose again; this is the second and last try." if reason else ""


def _machine(facts: Facts) -> str:
    constants = facts.constants
    return (
        f"## Machine and budget\n- {facts.machine}\n"
        f"- {constants['TIME_BUDGET']} s of training, sequences of {constants['MAX_SEQ_LEN']} tokens, "
        f"a vocabulary of {constants['VOCAB_SIZE']}, text: {constants['DATASET']}\n"
        "- The score is val_bpb, validation bits per byte; lower is better."
    )


def _incumbent(incumbent: Experiment | None) -> str:
    if incumbent is None or incumbent.result is None:
        return "## Incumbent\nNone yet: the baseline has not been run."
    result = incumbent.result
    figures = [
        f"val_bpb {result.val_bpb:.6f}",
        f"{result.num_steps} steps" if result.num_steps else "",
        f"{result.total_tokens_m} M tokens" if result.total_tokens_m else "",
        f"{result.num_params_m} M parameters" if result.num_params_m else "",
        f"{result.memory_mb / 1024:.1f} GB at its peak" if result.memory_mb else "",
    ]
    return f"## Incumbent (the train.py you start from)\nExperiment {incumbent.n}: " + ", ".join(f for f in figures if f)


def _kept(history: Sequence[Experiment]) -> str:
    kept = [done for done in history if done.status == KEEP and not done.baseline]
    if not kept:
        return ""
    lines = [f"{len(kept)} changes were kept. The last {min(KEPT, len(kept))}:"]
    for done in kept[-KEPT:]:
        gain = (done.incumbent_bpb or 0.0) - (done.val_bpb or 0.0)
        lines.append(f"- {-gain:+.6f} {_quoted(done.description)}")
    return "## What worked\n" + "\n".join(lines)


def _recent(facts: Facts) -> str:
    tried = [done for done in facts.history if not done.baseline]
    if not tried:
        return "## What was tried\nNothing yet."
    lines = [f"{len(tried)} experiments so far; do not repeat one. The last {min(RECENT, len(tried))}, newest last:"]
    lines += [f"- {_outcome(done)} {_quoted(done.description)}" for done in tried[-RECENT:]]
    return "## What was tried\n" + "\n".join(lines)


def _outcome(done: Experiment) -> str:
    if done.status == CRASH:
        return f"crash ({done.result.crash_class if done.result else 'error'}):"
    change = (done.val_bpb or 0.0) - (done.incumbent_bpb or 0.0)
    near = ", a near miss" if done.status != KEEP and change < NEAR_MISS else ""
    return f"{done.status} {change:+.6f}{near}:"


def _quoted(text: str) -> str:
    """A researcher's words, as data: one line, in quotes that it can't close."""
    return '"' + text.replace('"', "'").replace("`", "'") + '"'
