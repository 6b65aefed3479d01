"""Module-level literals of a Python file: read them, change them in place, compare files by what they mean.

Edits replace whole right-hand sides by their byte spans, so comments, spacing and everything else stay as they were. Nothing
is executed: a right-hand side counts as a literal if it is one, or arithmetic on numbers (`40 * 524288`, `2**18`).
"""

import ast
import hashlib
import json
import operator
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

Value = int | float | bool | str

MAX_EXPONENT = 64  # 2**64 is the largest power that a literal needs; more would only burn time and memory


@dataclass(frozen=True)
class Literal:
    name: str
    value: Any
    line: int  # first line of the assignment, counted from 1
    comment: str  # the comment behind it, without the hash
    span: tuple[int, int]  # byte offsets of the right-hand side


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError("exponent too large")
    return base**exponent


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def evaluate(node: ast.expr) -> Any:
    """The value of a literal or of arithmetic on numbers. Raises ValueError for anything else."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = evaluate(node.left), evaluate(node.right)
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise ValueError("arithmetic on something that is no number")
        try:
            return _BINARY[type(node.op)](left, right)
        except (ArithmeticError, TypeError) as error:
            raise ValueError(str(error)) from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = evaluate(node.operand)
        if isinstance(value, int | float):
            return -value
    return ast.literal_eval(node)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def read_literals(source: str) -> dict[str, Literal]:
    """ALL_CAPS names that the module assigns exactly once at its top level. Raises SyntaxError."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    comments = _comments(source)
    found: dict[str, list[Literal | None]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if not isinstance(target, ast.Name) or not target.id.isupper():
            continue
        literal = None
        try:
            begin = starts[value.lineno - 1] + value.col_offset
            end = starts[(value.end_lineno or value.lineno) - 1] + (value.end_col_offset or 0)
            comment = comments.get(value.end_lineno or value.lineno, "")
            literal = Literal(target.id, evaluate(value), node.lineno, comment, (begin, end))
        except ValueError:
            pass
        found.setdefault(target.id, []).append(literal)
    return {name: each[0] for name, each in found.items() if len(each) == 1 and each[0] is not None}


def set_literals(source: str, values: Mapping[str, Any]) -> str:
    """`source` with the named literals changed. Raises KeyError with a name that is not assigned exactly once."""
    literals = read_literals(source)
    for name in values:
        if name not in literals:
            raise KeyError(name)
    data = source.encode()
    for name in sorted(values, key=lambda name: literals[name].span, reverse=True):
        if literals[name].value == values[name] and type(literals[name].value) is type(values[name]):
            continue  # `2**18` stays as it is written
        begin, end = literals[name].span
        data = data[:begin] + _written(values[name]).encode() + data[end:]
    return data.decode()


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def values(source: str) -> dict[str, Any]:
    return {name: literal.value for name, literal in read_literals(source).items()}


def code_key(source: str) -> str:
    """The same for two files that differ only in comments, spacing or how a number is written. Raises SyntaxError."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            try:
                node.value = ast.Constant(evaluate(node.value))
            except (ValueError, TypeError):
                continue
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
