"""What is refused before any GPU time is spent on it."""

import ast
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from io import StringIO

from autoresearch.literals import code_key

MAX_COMPRESSED = 24 * 1024  # bytes of a train.py: room for ideas, none for data
# Characters of a string, entries of a table, compressed bytes of a docstring or of comments in a row: room for data is a way to
# cheat.
MAX_OPAQUE = 1024
MAX_WORDS = 8 * 1024  # compressed bytes of all literals and comments together: the shipped train.py has 4.2 KB of them


class Refused(Exception):
    """The proposal is not run; the message is for whoever proposed it."""


def check(source: str, incumbent: str, tried: Iterable[str]) -> str:
    """The proposal's code key. `tried` are the keys of earlier experiments. Raises Refused, or SyntaxError."""
    size = _compressed(source)
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
    if key in tried:
        raise Refused("this very code was tried before (comments and spacing don't count): try something else")
    check_literals(source)
    return key


def check_literals(source: str) -> None:
    """Raises Refused for a literal that holds data rather than an idea."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            size = _compressed(node.value) if id(node) in docstrings else len(node.value)
        elif isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            size = sum(1 for each in ast.walk(node) if isinstance(each, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            size = node.value.bit_length() // 8
        else:
            continue
        if size > MAX_OPAQUE:
            raise Refused(f"train.py, line {node.lineno}: a literal with {size} entries or characters; {MAX_OPAQUE} are allowed")
    blocks = list(_blocks(source))
    for line, comments in blocks:
        if (size := _compressed(comments)) > MAX_OPAQUE:
            raise Refused(f"train.py, line {line}: comments of {size} bytes compressed in a row; {MAX_OPAQUE} are allowed")
    literals = [repr(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    if (size := _compressed("\n".join([*literals, *(text for _, text in blocks)]))) > MAX_WORDS:
        raise Refused(f"train.py has {size} bytes, compressed, in its literals and comments; {MAX_WORDS} are allowed")


def _compressed(text: str | bytes) -> int:
    return len(zlib.compress(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"), 9))


def _blocks(source: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of all comments that follow each other without code between them."""
    first, text = 0, ""
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            first, text = (first if text else token.start[0]), text + token.string
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) and text:
            yield first, text
            text = ""
