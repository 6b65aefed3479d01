"""How much code a train.py is: what a reader has to follow, not how it is laid out.

Counted are the nodes of its syntax tree, but for docstrings and statements that do nothing; a number counts once however it is
written, and a string for each of its WORDs, so that nothing is gained by moving code into one.
"""

import ast
from functools import lru_cache

from autoresearch.literals import parse, plain

WORD = 8  # characters of a string that count as much as a name
CLEARLY = 0.01  # of the incumbent's code
LEAST = 30  # nodes: two or three lines
SILENT = ast.expr_context | ast.operator | ast.unaryop | ast.cmpop | ast.boolop


@lru_cache(maxsize=2)  # the incumbent's is asked for again and again
def code_size(source: str) -> int:
    """Raises SyntaxError."""
    return sum(_weight(node) for node in ast.walk(plain(parse(source))))


def _weight(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return 1 + len(node.value) // WORD
    return 0 if isinstance(node, SILENT) else 1


def saving(candidate: str, incumbent: str) -> int:
    """By how many nodes the candidate is smaller, if that is clearly less code; else 0."""
    try:
        before, after = code_size(incumbent), code_size(candidate)
    except RecursionError:  # an expression of a thousand terms is not simple
        return 0
    saved = before - after
    return saved if saved >= max(LEAST, CLEARLY * before) else 0
