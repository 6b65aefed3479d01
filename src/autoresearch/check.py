"""What is refused before any GPU time is spent on it."""

import ast
import zlib
from collections.abc import Iterable

from autoresearch.literals import code_key

MAX_COMPRESSED = 24 * 1024  # bytes of a train.py: room for ideas, none for data
MAX_OPAQUE = 1024  # characters of a string or entries of a table that nobody reads: room for data is a way to cheat


class Refused(Exception):
    """The proposal is not run; the message is for whoever proposed it."""


def check(source: str, incumbent: str, tried: Iterable[str]) -> str:
    """The proposal's code key. `tried` are the keys of earlier experiments. Raises Refused, or SyntaxError."""
    size = len(zlib.compress(source.encode(), 9))
    if size > MAX_COMPRESSED:
        raise Refused(f"train.py is {size} bytes compressed, {MAX_COMPRESSED} are allowed: make it smaller")
    try:
        compile(source, "train.py", "exec", dont_inherit=True)
    except (RecursionError, MemoryError):
        raise Refused("train.py nests its expressions too deeply for Python: make them shorter") from None
    except ValueError as error:  # null bytes, in Python 3.11
        raise SyntaxError(str(error)) from None
    key = code_key(source)
    if key == code_key(incumbent):
        raise Refused("no change: train.py does the same as the incumbent's")
    if key in set(tried):
        raise Refused("this very code was tried before (comments and spacing don't count): try something else")
    check_literals(source)
    return key


def check_literals(source: str) -> None:
    """Raises Refused for a literal that holds data rather than an idea."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            size = len(node.value)
        elif isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            size = sum(1 for each in ast.walk(node) if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            size = node.value.bit_length() // 8
        else:
            continue
        if size > MAX_OPAQUE:
            raise Refused(f"train.py, line {node.lineno}: a literal with {size} entries or characters; {MAX_OPAQUE} are allowed")
