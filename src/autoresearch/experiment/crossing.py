"""Whether a change is of a kind whose loss curves cross late: looks behind half-way and wins.

Schedules, momentum, weight decay, batch and auxiliary losses do (seen across 49 optimizer recipes: the order at 25 to 60% of a run
says next to nothing of the order at its end). Decided from the two files alone, by the names in whatever differs between them;
what the researcher says of its change can only switch the rule off.
"""

import ast
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from autoresearch.experiment.early import Slack
from autoresearch.literals import parse, read_literals

SCHEDULE = """lr lrs rate rates schedule scheduler warm warmup warmdown cool cooldown ramp anneal annealing curriculum progress
    elapsed"""
OPTIMIZER = """momentum nesterov beta betas ema average averaging swa clip clipping optimizer optim muon adam adamw sgd lion polar
    orthogonalize"""
DECAY = "decay decays wd regularization dropout drop"
BATCH = "batch batches accumulation accumulate accum"
LOSS = set("loss losses aux auxiliary entropy smoothing distill mtp".split())  # noqa: SIM905 - words, as in the lines above
LATE = LOSS.union(SCHEDULE.split(), OPTIMIZER.split(), DECAY.split(), BATCH.split())
CATEGORIES = ("optimizer", "schedule", "data")  # of a researcher's own word
# A literal of these kinds that moves by less than half is no other recipe, but its curve may cross later than that of another kind:
# twice the margin. `search` moves by a factor of 1.15 at first.
SMALL_STEP, SMALL_STEP_SLACK = 1.5, 2.0


def slack(incumbent: str, candidate: str, category: str = "") -> Slack:
    """What of the rule of early stops holds for the change from one train.py to the other. Raises SyntaxError."""
    old, new = read_literals(incumbent), read_literals(candidate)
    shared = old.keys() & new.keys()
    touched = _touched(incumbent, candidate, shared)
    moved = [name for name in shared if old[name].value != new[name].value and words(name) & LATE]
    steps = [_step(old[name].value, new[name].value) for name in moved]
    comparable = not (touched | {word for name in moved for word in words(name)}) & LOSS
    if touched & LATE or category in CATEGORIES or any(step >= SMALL_STEP for step in steps):
        return Slack(comparable, None)
    return Slack(comparable, SMALL_STEP_SLACK if steps else 1.0)


def words(name: str) -> set[str]:
    """The words of an identifier: MUON_BETA2 is muon and beta, LossScaler loss and scaler."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _step(old: Any, new: Any) -> float:
    """The factor by which a number has moved; of what lies near 1, as a momentum, also its distance to 1. Infinite for all else."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    if not numbers:
        return float("inf")
    pairs = [(old, new)] + ([(1 - old, 1 - new)] if 0.5 <= old < 1 else [])
    if any(a <= 0 or b <= 0 for a, b in pairs):
        return float("inf")
    return float(max(max(a / b, b / a) for a, b in pairs))


def _touched(incumbent: str, candidate: str, settings: Container[str]) -> set[str]:
    """The words of all statements that only one of the two files has, and of the functions and classes that they stand in."""
    old, new = (Counter(each for each in _statements(source) if each.assigned not in settings) for source in (incumbent, candidate))
    differing = (old - new) + (new - old)
    return {word for each in differing for name in each.names for word in words(name)}


class Statement(NamedTuple):
    assigned: str  # the one name that it assigns
    names: tuple[str, ...]  # in and around it
    says: str


@lru_cache(maxsize=2)  # the incumbent's are asked for again and again
def _statements(source: str) -> tuple[Statement, ...]:
    return tuple(_statements_in(parse(source).body, ()))


def _statements_in(body: Iterable[ast.stmt], around: tuple[str, ...]) -> Iterator[Statement]:
    """Each statement by itself: of a compound one its head, then what is inside. Docstrings are left out."""
    for statement in body:
        assigned = ""
        match statement:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                assigned = name
        head, inner = _split(statement)
        own = (statement.name,) if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ()
        says = type(statement).__name__ + "".join(map(ast.dump, head)) if inner else ast.dump(statement)
        yield Statement(assigned, (*around, *own, *(name for node in head for name in _names(node))), says)
        yield from _statements_in(inner, (*around, *own))


def _split(node: ast.AST) -> tuple[list[ast.AST], list[ast.stmt]]:
    """A statement's own expressions, and the statements inside of it."""
    head, inner = list[ast.AST](), list[ast.stmt]()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            inner.append(child)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            heads, inners = _split(child)
            head, inner = head + heads, inner + inners
        else:
            head.append(child)
    return head, inner


def _names(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        match each:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.alias(name=name)
            ):
                yield name
