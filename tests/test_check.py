"""Claims about what is refused before any GPU time is spent."""

from __future__ import annotations

import base64
import contextlib
import random

import pytest
from conftest import ROOT, toy

from autoresearch.check import MAX_COMPRESSED, Refused, check
from autoresearch.literals import code_key

BASE = toy()
NOISE = base64.b64encode(random.Random(0).randbytes(MAX_COMPRESSED + 3000)).decode()


def test_a_new_idea_passes_and_its_key_is_told() -> None:
    idea = toy(LR=0.2)
    assert check(idea, BASE, []) == code_key(idea) != code_key(BASE)


def test_the_real_train_py_passes() -> None:
    source = (ROOT / "train.py").read_text()
    assert check(source, BASE, []) == code_key(source)


@pytest.mark.parametrize(
    "same", [BASE, BASE + "# a comment\n", BASE.replace("LR = 0.1", "LR = 1e-1"), BASE.replace("\n\n\n", "\n\n\n\n\n")]
)
def test_no_change_is_refused(same: str) -> None:
    with pytest.raises(Refused, match="no change"):
        check(same, BASE, [])


def test_what_was_tried_before_is_refused_also_under_another_spelling() -> None:
    tried = [code_key(toy(LR=0.2)), code_key(toy(DEPTH=5))]
    with pytest.raises(Refused, match="tried before"):
        check(toy(LR=0.2).replace("0.2", "2e-1") + "# new words\n", BASE, iter(tried))
    assert check(toy(LR=0.3), BASE, tried)


@pytest.mark.parametrize("source", ["def f(:\n", "x = 1\x00\n", "return 1\n", "x = (1\n", "await x\n", "  x = 1\n"])
def test_what_python_does_not_take_is_a_syntax_error(source: str) -> None:
    with pytest.raises(SyntaxError):
        check(source, BASE, [])


@pytest.mark.parametrize("source", ["x = " + "-" * 100_000 + "1\n", "x = " + "y+" * 9_000 + "1\n"])
def test_nesting_without_end_is_refused_where_it_is_too_much_and_kills_nobody(source: str) -> None:
    """How much is too much differs between versions of Python."""
    with contextlib.suppress(Refused, SyntaxError):
        assert check(source, BASE, []) == code_key(source)


def test_a_file_with_more_than_ideas_in_it_is_refused() -> None:
    lines = "\n".join(f"# {NOISE[at : at + 80]}" for at in range(0, len(NOISE), 80))
    with pytest.raises(Refused, match=rf"{MAX_COMPRESSED} are allowed"):
        check(toy(LR=0.2) + lines, BASE, [])


@pytest.mark.parametrize(
    "data",
    [
        "TABLE = " + repr("x" * 1025),
        "TABLE = " + repr(b"x" * 1025),
        "TABLE = " + repr(list(range(1025))),
        "TABLE = " + repr([[n, n] for n in range(600)]),
        "TABLE = " + repr(dict.fromkeys(range(600), 0)),
        "TABLE = 0x" + "f" * 2100,
        "def f():\n    return " + repr("x" * 1025),
        "print(f'{1}" + "x" * 1025 + "')",
        "TABLE = 'x' " + " ".join(repr("y" * 100) for _ in range(11)),
        f'TABLE = 1\n"""{NOISE[:1500]}"""',
    ],
    ids=["text", "bytes", "list", "nested", "dict", "number", "inside", "f-string", "joined", "docstring"],
)
def test_a_literal_that_holds_data_is_refused_with_its_line(data: str) -> None:
    with pytest.raises(Refused, match=r"line \d+: a literal with \d+"):
        check(BASE + "\n" + data + "\n", BASE, [])


def test_comments_that_hold_data_are_refused_with_their_line() -> None:
    lines = "\n".join(f"# {NOISE[at : at + 80]}" for at in range(0, 1500, 80))
    first = BASE.count("\n") + 1
    with pytest.raises(Refused, match=rf"line {first}: comments of \d+ bytes"):
        check(toy(LR=0.2) + lines, BASE, [])
    spread = "\n".join(f"x = 1  # {NOISE[at : at + 80]}" for at in range(0, 1500, 80))
    assert check(toy(LR=0.2) + spread, BASE, [])  # a remark on each line is no block


@pytest.mark.parametrize("form", ["x = 1  # {}", "x = '{}'", "x = 0x{}"])
def test_data_in_many_small_pieces_is_refused_too(form: str) -> None:
    noise = random.Random(1).randbytes(12_000).hex()
    pieces = "\n".join(form.format(noise[at : at + 200]) for at in range(0, len(noise), 200))
    with pytest.raises(Refused, match=r"\d+ bytes, compressed, in its literals and comments"):
        check(toy(LR=0.2) + pieces, BASE, [])


@pytest.mark.parametrize(
    "fine", ["TABLE = " + repr("x" * 1000), "TABLE = " + repr(list(range(1000))), '"""' + "words " * 300 + '"""']
)
def test_what_an_idea_needs_is_allowed(fine: str) -> None:
    assert check(toy(LR=0.2) + "\n" + fine + "\n", BASE, [])
