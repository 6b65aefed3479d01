"""Claims about literals.py: literals are changed in place, nothing else is, and files are compared by what they mean."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch.hardware import probe
from autoresearch.literals import code_key, override, read_literals, set_literals, values
from autoresearch.profiles import profile_for

ROOT = Path(__file__).resolve().parents[1]

# -- edits in place ------------------------------------------------------------------------------------------------------


def test_an_edit_leaves_everything_but_the_value_as_it_was() -> None:
    before = (
        '"""Doc."""\n\nLR = 0.04   #  Muon; größer → schneller\nDEPTH=4;WIDTH = 8  # both\n\n\n'
        "def f(LR=1):\n    return LR  # LR = 3\n"
    )
    after = set_literals(before, {"LR": 0.05, "WIDTH": 16})
    assert after == before.replace("0.04", "0.05").replace("WIDTH = 8", "WIDTH = 16")


def test_spans_are_counted_in_bytes_so_text_of_any_script_before_a_value_does_no_harm() -> None:
    assert set_literals("ÄÖ = 'ü' ; B_Ñ = '日本' # ß 🙂\n", {"B_Ñ": "東京"}) == "ÄÖ = 'ü' ; B_Ñ = \"東京\" # ß 🙂\n"


def test_a_value_over_several_lines_is_replaced_whole() -> None:
    before = "PEAK = {\n    'a': 1,  # inner\n    'b': 2,\n}  # outer\nNEXT = (40 *\n    524288)  # tokens\n"
    after = set_literals(before, {"PEAK": {"c": 3}, "NEXT": 7})
    assert after == "PEAK = {'c': 3}  # outer\nNEXT = (7)  # tokens\n"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_kind_stay(end: str) -> None:
    before = end.join(["A = 1  # first", "B = 2  # second", ""])
    assert set_literals(before, {"B": 3}) == before.replace("B = 2", "B = 3")


def test_eval_tokens_becomes_a_whole_number_and_not_a_product_of_new_and_old() -> None:
    before = "EVAL_TOKENS = 40 * 524288  # validation tokens\n"
    assert read_literals(before)["EVAL_TOKENS"].value == 20_971_520
    assert set_literals(before, {"EVAL_TOKENS": 2_097_152}) == "EVAL_TOKENS = 2097152  # validation tokens\n"


def test_a_value_that_stays_keeps_the_way_it_is_written() -> None:
    before = "BATCH = 2**18\nLR = 1e-3\nFLAG = True\nONE = 1\n"
    assert set_literals(before, {"BATCH": 262144, "LR": 0.001, "FLAG": True}) == before
    assert set_literals(before, {"ONE": 1.0}) == before.replace("ONE = 1", "ONE = 1.0")  # another type is another value


@pytest.mark.parametrize("text", ['a "quoted" \\ path', "two\nlines\ttab", "日本 \u2028 \x7f", "bytes of a path: \udcff", "{x}%s"])
def test_any_string_is_written_so_that_python_reads_the_same(text: str) -> None:
    after = set_literals("DATASET = 'stdlib'  # the text\nNEXT = 1\n", {"DATASET": text})
    assert values(after) == {"DATASET": text, "NEXT": 1}
    assert len(after.encode().splitlines()) == 2


@pytest.mark.parametrize("value", [1e-7, 0.1, 3, -2.5, True, False, 262144])
def test_any_number_is_written_so_that_python_reads_the_same(value: float) -> None:
    read = values(set_literals("X = 0.5\n", {"X": value}))["X"]
    assert read == value and type(read) is type(value)


def test_the_profile_of_this_machine_goes_into_the_real_files_and_changes_their_values_alone() -> None:
    profile = profile_for(probe({"PATH": "", "CUDA_VISIBLE_DEVICES": ""}))
    for name, wanted in (("constants.py", profile.constants), ("train.py", profile.train)):
        before = (ROOT / name).read_text()
        after = set_literals(before, wanted)
        assert {key: read_literals(after)[key].value for key in wanted} == wanted
        changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
        assert all(old.partition("=")[0] == new.partition("=")[0] for old, new in changed)
        assert all(old.partition("  #")[2] == new.partition("  #")[2] for old, new in changed)


# -- what counts as a literal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "LR = 2",
        "LR *= 2",
        "if fast:\n    LR = 2",
        "try:\n    LR = 2\nexcept OSError:\n    pass",
        "for LR in range(3):\n    pass",
        "A, LR = 1, 2",
        "A = LR = 2",
        "import json as LR",
        "def LR():\n    pass",
        "with open('x') as LR:\n    pass",
        "def change():\n    global LR\n    LR = 2",
        "print(LR := 2)",
        "del LR",
        "LR: int = 3",
    ],
)
def test_a_name_that_is_bound_a_second_time_is_refused(rest: str) -> None:
    source = f"LR = 1\n{rest}\n"
    assert "LR" not in read_literals(source)
    with pytest.raises(KeyError, match="LR"):
        set_literals(source, {"LR": 5})


def test_names_inside_functions_classes_and_comprehensions_are_their_own() -> None:
    source = "LR = 1\ndef f(q):\n    LR = 2\n    B, T = q\nclass C:\n    LR = 3\nx = [LR for LR in range(3)]\n"
    assert values(source) == {"LR": 1}


def test_a_missing_name_is_refused_by_its_name_and_nothing_is_written() -> None:
    with pytest.raises(KeyError, match="WIDTH"):
        set_literals("DEPTH = 1\n", {"DEPTH": 2, "WIDTH": 3})


@pytest.mark.parametrize(
    "right",
    [
        "9**9**9**9",
        "((2**64)**64)**64",
        "2**65",
        "0 ** -1",
        "1 % 0",
        "1e308 * 10",
        "(-8) ** 0.5",
        "'a' * 10**12",
        "f()",
        "OTHER + 1",
        "1 << 99999999999",
        "-'a'",
        "f'{x}'",
        "0x" + "f" * 5000,
    ],
)
def test_what_is_no_plain_literal_is_not_evaluated_and_costs_no_time(right: str) -> None:
    began = time.monotonic()
    assert read_literals(f"X = {right}\nY = 2\n").keys() == {"Y"}
    assert time.monotonic() - began < 1.0


def test_arithmetic_on_numbers_is_a_literal() -> None:
    found = values("A = 2**18\nB = -3 * (2 + 0.5)\nC = 7 // 2 % 2\nD: float = 1 / 4\nE = 1_000\n")
    assert found == {"A": 262144, "B": -7.5, "C": 1, "D": 0.25, "E": 1000}


def test_plain_values_are_those_that_json_can_hold() -> None:
    source = "A = {1, 2}\nB = b'x'\nC = 2j\nD = ...\nE = None\nF = {(1, 2): 3}\nG = 'text'\nH = 0.5\nI = True\n"
    assert json.loads(json.dumps(values(source))) == {"G": "text", "H": 0.5, "I": True}


def test_the_comment_behind_a_literal_is_told_without_its_hash() -> None:
    source = 'A = 1 \\\n  + 2  # one of: 3, 4\nB = "# no comment"\n# before C\nC = [\n  1,  # inner\n]  # outer\n'
    assert {name: literal.comment for name, literal in read_literals(source).items()} == {
        "A": "one of: 3, 4",
        "B": "",
        "C": "outer",
    }


@pytest.mark.parametrize(
    "source", ["X = (1", "def f(:\n", "X = 1\x00\n", "X = " + "-" * 100_000 + "1\n", "X = " + "1+" * 20_000 + "1\n"]
)
def test_a_file_that_is_not_python_is_a_syntax_error_whatever_is_wrong(source: str) -> None:
    for function in (read_literals, values, code_key):
        with pytest.raises(SyntaxError):
            function(source)


# -- comparing by meaning ------------------------------------------------------------------------------------------------

PLAIN = "LR = 0.001\nBATCH = 262144\n\n\ndef f(x):\n    return g(x, 0.25) + 4\n"


@pytest.mark.parametrize(
    "same",
    [
        PLAIN + "# a comment\n",
        PLAIN.replace("\n", "\r\n"),
        '"""A docstring."""\n' + PLAIN,
        PLAIN.replace("(x):\n", '(x):\n    """Says what."""\n'),
        PLAIN.replace("(x):\n", "(x):\n    pass\n    'text that does nothing'\n"),
        PLAIN.replace("0.001", "1e-3"),
        PLAIN.replace("262144", "2**18"),
        PLAIN.replace("262144", "262_144"),
        PLAIN.replace("0.25", "1 / 4"),
        PLAIN.replace("    return g(x, 0.25) + 4", "    return (\n        g(x,   0.25)\n        + 4)"),
    ],
)
def test_comments_docstrings_spacing_and_the_spelling_of_numbers_do_not_count(same: str) -> None:
    assert same != PLAIN and code_key(same) == code_key(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("0.001", "0.002"),
        PLAIN.replace("262144", "262144.0"),
        PLAIN.replace("x, 0.25", "0.25, x"),
        PLAIN.replace("+ 4", "- 4"),
        PLAIN.replace("LR", "RATE"),
        PLAIN + "f(1)\n",
    ],
)
def test_whatever_changes_the_program_changes_its_key(other: str) -> None:
    assert code_key(other) != code_key(PLAIN)


def test_the_key_is_the_same_in_every_process() -> None:
    code = 'from autoresearch.literals import code_key; print(code_key(\'A = {"a", "b", "c", "d"}\\n\'))'
    environments = [{"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")} for seed in ("1", "2", "3")]
    keys = {subprocess.run([sys.executable, "-c", code], env=each, capture_output=True, text=True).stdout for each in environments}
    assert len(keys) == 1 and keys != {""}


def test_a_sum_of_a_thousand_terms_has_a_key_too() -> None:
    long = "A = x" + " + x" * 900 + "\n"
    assert code_key(long) == code_key(long) != code_key("A = x\n")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("DEPTH=2x", "DEPTH = 8  # layers"),
        ("DEPTH=2**4", "DEPTH = 16  # layers"),
        ("LR=1", "LR = 1.0"),
        ("LR=0.5x", "LR = 0.15"),
        ("PATTERN=SL", 'PATTERN = "SL"'),
        ("PATTERN='SL'", 'PATTERN = "SL"'),
        ("FAST=False", "FAST = False"),
    ],
)
def test_a_setting_of_the_command_line_changes_its_literal(setting: str, line: str) -> None:
    source = 'DEPTH = 4  # layers\nLR = 0.3\nPATTERN = "S"\nFAST = True\n'
    assert line in override(source, [setting]).splitlines()


@pytest.mark.parametrize("setting", ["DEPTH", "DEPT=3", "DEPTH=1.5", "DEPTH=x", "LR=fast", "FAST=1", "DEPTH=__import__('os')"])
def test_a_setting_that_cannot_be_is_told_by_its_words(setting: str) -> None:
    with pytest.raises(ValueError, match=re.escape(setting)):
        override("DEPTH = 4\nLR = 0.3\nFAST = True\n", [setting])
