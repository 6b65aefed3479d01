"""Module-level literals of a Python file: read them, change them in place, compare files by what they mean.

Edits replace whole right-hand sides by their byte spans, so comments, spacing and everything else stay as they were. Nothing
is executed: a right-hand side counts as a literal if it is one, or arithmetic on numbers (`40 * 524288`, `2**18`).
"""

import ast
import hashlib
import json
import math
import operator
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from types import MappingProxyType
from typing import Any

Value = int | float | bool | str

MAX_EXPONENT = 64  # 2**64 is the largest power that a literal needs; more would only burn time and memory
MAX_BITS = 4096  # of a whole number, also in a tower of small powers


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
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("root of a negative number")
    return result


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def evaluate(node: ast.expr, known: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The value of a literal or of arithmetic on numbers. Raises ValueError for anything else. `known`: values of names."""
    if isinstance(node, ast.Constant):
        return _bounded(node.value)  # literal_eval would say the same, and leave a cycle of functions behind
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = evaluate(node.left, known), evaluate(node.right, known)
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise ValueError("arithmetic on something that is no number")
        try:
            return _bounded(_BINARY[type(node.op)](left, right))
        except (ArithmeticError, TypeError) as error:
            raise ValueError(str(error)) from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = evaluate(node.operand, known)
        if isinstance(value, int | float):
            return -value
    return _bounded(ast.literal_eval(node))


def _bounded(value: Any) -> Any:
    """The value. Raises ValueError for a number that couldn't be written down again."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("number too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("no finite number")
    return value


def parse(source: str) -> ast.Module:
    """The syntax tree. Raises SyntaxError, also for null bytes and for nesting beyond what Python's own parser can hold."""
    try:
        return ast.parse(source)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or "nested too deeply") from None


def _comments(source: str) -> dict[int, str]:
    """The comments of a file that parses, by line."""
    tokens = tokenize.generate_tokens(StringIO(source, newline=None).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


@lru_cache(maxsize=8)  # of one experiment's files each is asked for several times, by many
def read_literals(source: str) -> Mapping[str, Literal]:
    """ALL_CAPS names that the module binds exactly once, at its top level, to a literal. Raises SyntaxError."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = parse(source)
    comments = _comments(source)
    bound = Counter(_bindings(tree))
    found: dict[str, Literal] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if not isinstance(target, ast.Name) or not target.id.isupper() or bound[target.id] > 1:
            continue
        try:
            begin = starts[value.lineno - 1] + value.col_offset
            end = starts[(value.end_lineno or value.lineno) - 1] + (value.end_col_offset or 0)
            comment = comments.get(value.end_lineno or value.lineno, "")
            found[target.id] = Literal(target.id, evaluate(value), node.lineno, comment, (begin, end))
        except (ValueError, TypeError, RecursionError):
            continue
    return MappingProxyType(found)


def _bindings(module: ast.Module) -> Iterator[str]:
    """Every name that the module's own code binds, as often as it does: `LR *= 2` or an `if` around it counts too."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name  # what it binds inside is its own, but for `global`
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Global):
                        yield from inner.names
                continue
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                continue
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.alias():
                yield (node.asname or node.name).partition(".")[0]
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name
        waiting += ast.iter_child_nodes(node)


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


def override(source: str, settings: Iterable[str]) -> str:
    """`source` with each "NAME=VALUE" in it: a literal as Python writes it, or "2x" for a multiple. Raises ValueError, one line."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        known = read_literals(source)
        if not equals or name not in known:
            raise ValueError(f"{setting}: want NAME=VALUE with one of {', '.join(known)}")
        source = set_literals(source, {name: _given(setting, known[name].value, text)})
    return source


def _given(setting: str, old: Any, text: str) -> Any:
    """The value that `text` stands for, of the type that the literal has. Raises ValueError."""
    try:
        value = evaluate(ast.parse(text.removesuffix("x"), mode="eval").body)
        value = value * old if text.endswith("x") else value
    except (SyntaxError, ValueError, TypeError):
        value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    elif isinstance(old, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not type(old):
        raise ValueError(f"{setting}: the value is {old!r} now, of the type {type(old).__name__}")
    return value


def _written(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else repr(value)  # a path may hold bytes that are no text


def values(source: str) -> dict[str, Value]:
    """The plain ones among the literals: numbers, truth values and strings, which JSON can hold. Raises SyntaxError."""
    return {name: each.value for name, each in read_literals(source).items() if isinstance(each.value, int | float | bool | str)}


@lru_cache(maxsize=4)
def code_key(source: str) -> str:
    """The same for two files that differ only in comments, docstrings, spacing or how a number is written, also where it is
    written in terms of other constants: `BATCH = 8 * ROWS` is `BATCH = 64` while ROWS is 8. Raises SyntaxError."""
    tree = parse(source)
    try:
        _resolve(tree)
        meaning = ast.dump(plain(tree))
    except RecursionError:  # a sum of a thousand terms; then the text itself has to do
        meaning = source
    return hashlib.sha256(meaning.encode(errors="surrogatepass")).hexdigest()[:16]


def _resolve(tree: ast.Module) -> None:
    """ALL_CAPS names that the module binds once, at its top level: what they come to, instead of how it is computed."""
    bound, known = Counter(_bindings(tree)), dict[str, Any]()
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(target := node.targets[0], ast.Name):
            continue
        if not target.id.isupper() or bound[target.id] > 1:
            continue
        try:
            value = evaluate(node.value, known)
        except (ValueError, TypeError):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            known[target.id] = value
            node.value = ast.Constant(value)


def plain(tree: ast.Module) -> ast.Module:
    """The code without statements that do nothing, each number written as one. Changes the tree."""
    found = _Plain().visit(tree)
    assert isinstance(found, ast.Module)
    return found


class _Plain(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def _number(self, node: ast.expr) -> ast.AST:
        try:
            return ast.Constant(evaluate(node))
        except (ValueError, TypeError):
            return self.generic_visit(node)

    visit_BinOp = visit_UnaryOp = _number
