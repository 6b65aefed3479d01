"""What the documents say is what the code does: commands, flags, links, formats, figures.

One test fails until the README's figures and picture are filled in from measurements; that is what it is for.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from autoresearch import brief, check, cli, hardware, journal, loop, profiles, researchers, results
from autoresearch.experiment import runner
from autoresearch.lab import Lab
from autoresearch.literals import read_literals
from autoresearch.researchers import Context

ROOT = Path(__file__).resolve().parents[1]
README, SKILL, PROGRAM = ROOT / "README.md", ROOT / "SKILL.md", ROOT / "program.md"
ARCHITECTURE, GUIDE, HARDWARE = (ROOT / "references" / f"{n}.md" for n in ("architecture", "program-md-guide", "hardware-config"))
DOCS = [README, SKILL, PROGRAM, ARCHITECTURE, GUIDE, HARDWARE]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCS]
each_document = pytest.mark.parametrize("path", DOCS, ids=NAMES)

# Other people's commands that the documents use.
TOOLS = {"awk", "chmod", "git", "grep", "head", "kill", "sort", "tail", "uniq", "uv", "watch"}
MARKER = "<<FIGURE"


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def sources() -> str:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").iterdir(), ROOT / "prepare.py", ROOT / "train.py"]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text_of(path))


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", text_of(path))


def inline_code(path: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(path))


def tables(path: Path) -> Iterator[list[dict[str, str]]]:
    """Each table as its rows, by the column's name; backticks are taken off."""
    for table in re.findall(r"(?m)(?:^\|.*\|\n)+", prose(path)):
        # A pipe inside code is no border.
        lines = [re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "\0"), line) for line in table.splitlines()]
        cells = [[cell.strip().strip("`").replace("\0", "|") for cell in line.strip("|").split("|")] for line in lines]
        yield [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def table_with(path: Path, *columns: str) -> list[dict[str, str]]:
    return next(table for table in tables(path) if table and set(columns) <= set(table[0]))


# --- commands and flags -----------------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    """Every command that the document shows, in words, without the pipes around it."""
    lines = [line for block in blocks(path, "bash") for line in block.splitlines()]
    lines += [code for code in inline_code(path) if re.match(r"([A-Z_]+=\S+ )*(bash|git|uv) |scripts/\S+\.sh", code)]
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables before the command
                words = words[1:]
            end = next((i for i, word in enumerate(words) if word in ("|", "&&", ">")), len(words))
            found.append(words[:end])
            words = words[end + 1 :] if end < len(words) and words[end] != ">" else []
    return [words for words in found if words]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    action = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def called_by(script: Path) -> list[str]:
    """The words that a script puts before its own arguments: ['check', '--json']; [] for one that is no command of ours."""
    return re.findall(r'(?m)^(?:light|full) (.+) "\$@"$', script.read_text())[-1:]


@each_document
def test_every_command_that_is_shown_exists_and_takes_these_flags(path: Path) -> None:
    for words in commands(path):
        words = words[1:] if words[0] == "bash" else words
        program, arguments = words[0], words[1:]
        if program.startswith("scripts/"):
            script = ROOT / program
            assert script.is_file(), f"{path.name}: {shlex.join(words)}"
            for command in called_by(script):
                cli.parser().parse_args([*command.split(), *arguments])  # raises WrongCall with the reason
        elif words[:3] == ["uv", "run", "autoresearch"]:
            cli.parser().parse_args(words[3:])
        elif words[:2] == ["uv", "run"]:
            assert (ROOT / words[2]).is_file(), f"{path.name}: {shlex.join(words)}"
        else:
            assert program in TOOLS, f"{path.name}: {shlex.join(words)}"


@each_document
def test_every_flag_that_the_text_names_is_one_of_ours(path: Path) -> None:
    known = set().union(*(parser.format_help().split() for parser in subparsers().values()))
    known = {word.strip("[],") for word in known}
    for code in inline_code(path):
        if code.split()[0] in TOOLS:
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code):
            assert flag in known, f"{path.name}: `{code}`"


def test_every_script_of_the_seed_is_shown_and_every_flag_of_the_commands_is_told() -> None:
    told = text_of(SKILL) + text_of(README) + text_of(HARDWARE)
    for script in ("setup", "run-experiment", "run-loop", "show-results", "check-hardware", "test"):
        assert f"bash scripts/{script}.sh" in told
    for name, parser in subparsers().items():
        for action in parser._actions:
            if action.option_strings and "--help" not in action.option_strings:
                assert action.option_strings[-1] in told or name == "check", f"{name} {action.option_strings[-1]}"


# --- links and names --------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as git hosts make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(path))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.is_file(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{path.name}: {target}"


@each_document
def test_every_path_and_variable_that_is_named_exists(path: Path) -> None:
    for code in inline_code(path):
        if re.fullmatch(r"(src|scripts|references|tests|benchmarks)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{path.name}: `{code}`"
    for name in set(re.findall(r"\b(?:AUTORESEARCH|HF|UV|PIP)_[A-Z_]+\b", text_of(path))):
        assert name in sources(), f"{path.name}: {name}"


# --- the skill --------------------------------------------------------------------------------------------------------


def test_the_frontmatter_is_valid_and_within_the_limits() -> None:
    found = re.match(r"---\n(.*?)\n---\n", text_of(SKILL), re.DOTALL)
    assert found
    said = yaml.safe_load(found[1])
    assert set(said) == {"name", "description"}
    assert said["name"] == "autoresearch"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", said["name"]) and len(said["name"]) <= 64
    assert 0 < len(said["description"]) < 1024
    assert "<" not in said["description"] and "\n" not in said["description"].strip()
    assert "Use it to" in said["description"], "what it does, and when to use it"


def test_the_exit_codes_are_those_of_the_cli() -> None:
    told = {int(row["code"]) for row in table_with(SKILL, "code", "meaning")}
    assert told == {0, cli.CRASH, cli.TIMEOUT, cli.NOT_READY, cli.WRONG, cli.FAULT, cli.STOPPED}
    assert (cli.CRASH, cli.TIMEOUT, cli.NOT_READY) == (1, 2, 3)


@pytest.mark.parametrize("path", [SKILL, ARCHITECTURE], ids=["SKILL", "architecture"])
def test_the_columns_of_results_tsv_are_those_that_are_written(path: Path) -> None:
    assert tuple(row["column"] for row in table_with(path, "column", "content")) == results.HEADER


def test_the_statuses_are_those_of_the_code() -> None:
    told = [row["status"] for row in table_with(SKILL, "status", "meaning")]
    assert told == [results.KEEP, results.DISCARD, results.CRASH]


# --- architecture -----------------------------------------------------------------------------------------------------


def test_the_stages_of_an_experiment_are_those_of_the_journal() -> None:
    told = [row["stage"] for row in table_with(ARCHITECTURE, "stage")]
    stages = ["PROPOSED", "COMMITTED", "RUNNING", "MEASURED", "JUDGED", "RECORDED", "SETTLED", "ABANDONED"]
    assert told == [getattr(journal, stage) for stage in stages]


def test_the_journals_files_are_known_to_the_code() -> None:
    for row in table_with(ARCHITECTURE, "path", "content"):
        for part in row["path"].strip("/").split("/"):
            assert part.startswith("<") or f'"{part}"' in sources() or f"/{part}" in sources(), row["path"]


def test_the_summary_has_the_lines_that_are_told() -> None:
    body = re.search(r"(?ms)^    def summary\(.*?^        print\(", text_of(ROOT / "prepare.py"))
    assert body
    printed = re.findall(r'(?m)^            "(\w+)": ', body[0])
    told = re.search(r"(?ms)^- `summary` prints.*?(?=^- )", text_of(ARCHITECTURE))
    assert told and re.findall(r"`(\w+): ?(?:self-reported)?`", told[0]) == printed


def test_the_constants_that_are_told_are_those_of_constants_py() -> None:
    row = next(row for row in table_with(ARCHITECTURE, "file", "researcher") if row["file"] == "constants.py")
    told = re.findall(r"[A-Z_]{4,}", row["what it holds"])
    assert set(told) == set(read_literals(text_of(ROOT / "constants.py")))


@pytest.mark.parametrize(
    ("path", "phrase"),
    [
        (README, f"within {researchers.DEFAULT_TIME_LIMIT:.0f} seconds (`--researcher-timeout`)"),
        (SKILL, f"ended after {runner.ALLOWANCE:.0f} more (`--allowance`)"),
        (SKILL, f"under {check.MAX_COMPRESSED // 1024} KB compressed"),
        (SKILL, f"more than {check.MAX_OPAQUE:,} entries or characters"),
        (ARCHITECTURE, f"plus {runner.ALLOWANCE:.0f} s (`--allowance`)"),
        (ARCHITECTURE, f"more than {check.MAX_COMPRESSED // 1024} KB compressed"),
        (ARCHITECTURE, f"more than {check.MAX_OPAQUE:,} entries, characters"),
        (ARCHITECTURE, f"the last {brief.RECENT} attempts"),
        (ARCHITECTURE, f"one line of up to {results.MAX_DESCRIPTION} characters"),
        (ARCHITECTURE, f"({runner.DEFAULT_SEED} unless set)"),
        (GUIDE, f"the first {brief.MAX_PROGRAM:,} bytes"),
        (GUIDE, f"the last {brief.RECENT} attempts"),
        (HARDWARE, f"from {profiles.MIN_SEQ_LEN} to {profiles.MAX_SEQ_LEN:,}"),
        (HARDWARE, "CUDA {}.{}".format(*hardware.MIN_CUDA)),
        (HARDWARE, "compute capability {}.{}".format(*hardware.MIN_COMPUTE)),
        (HARDWARE, f"{hardware.INSTALL_MB:,} MB of free disk to install"),
        (HARDWARE, f"{hardware.WORK_MB:,} MB for a session"),
    ],
)
def test_a_figure_in_the_text_is_the_one_in_the_code(path: Path, phrase: str) -> None:
    assert phrase in " ".join(text_of(path).split())


def test_the_loop_gives_a_researcher_up_after_as_many_tries_as_are_told() -> None:
    assert loop.BARREN == 3
    assert "three proposals in a row" in text_of(ARCHITECTURE)


# --- hardware ---------------------------------------------------------------------------------------------------------


def machine(device: str, vram_mb: int | None) -> hardware.Hardware:
    facts: dict[str, object] = dict.fromkeys((field.name for field in fields(hardware.Hardware)), None)
    return hardware.Hardware(**{**facts, "device": device, "vram_mb": vram_mb})  # type: ignore[arg-type]


def literal(cell: str) -> object:
    cell = cell.replace(",", "")
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell


@pytest.mark.parametrize("path", [HARDWARE, SKILL], ids=["hardware-config", "SKILL"])
def test_the_profiles_in_the_tables_are_those_that_setup_writes(path: Path) -> None:
    names, seen = list(profiles._CONSTANT_ROWS), set()
    for table in tables(path):
        if not table or "profile" not in table[0]:
            continue
        assert [row["profile"] for row in table] == names
        for row in table:
            device = row["profile"] if row["profile"] in ("mps", "cpu") else "cuda"
            profile = profiles._profile(row["profile"], device)
            for name, value in {**profile.constants, **profile.train}.items():
                if name in row:
                    assert literal(row[name]) == value, f"{row['profile']} {name}"
                    seen.add(name)
    if path == HARDWARE:
        assert seen == {*profiles._CONSTANTS, *profiles._SIZES}


def test_the_memory_in_the_table_is_where_a_profile_begins() -> None:
    rows = table_with(HARDWARE, "profile", "from MB")
    for number, row in enumerate(rows):
        if not row["from MB"]:
            assert profiles.profile_for(machine(row["device"], None)).name == row["profile"]
            continue
        least = int(row["from MB"].replace(",", ""))
        assert profiles.profile_for(machine("cuda", least)).name == row["profile"]
        if least:
            assert profiles.profile_for(machine("cuda", least - 1)).name == rows[number + 1]["profile"]
    assert profiles.profile_for(machine("cuda", None)).name == "gpu-5gb", "as told of a GPU whose memory is not known"


def test_the_rule_for_evaluation_tokens_is_the_one_that_is_told() -> None:
    told = " ".join(text_of(HARDWARE).split())
    assert "20,971,520 from 2,048 on, 10,485,760 at 1,024, 5,242,880 at 512, below that 8,192 rows" in told
    assert [profiles.eval_tokens(n) for n in (4096, 2048, 1024, 512)] == [20_971_520, 20_971_520, 10_485_760, 5_242_880]
    assert [profiles.eval_tokens(n) // n for n in (256, 128, 64)] == [8192] * 3


def test_the_versions_of_torch_are_those_of_the_lock_and_the_project() -> None:
    locked = re.search(r'name = "torch"\nversion = "([\d.]+)"', text_of(ROOT / "uv.lock"))
    least = re.search(r'"torch>=([\d.]+)"', text_of(ROOT / "pyproject.toml"))
    assert locked and f"pins torch {locked[1]};" in text_of(HARDWARE)
    assert least and f"accepts {least[1]} and newer" in text_of(HARDWARE)


def test_every_message_that_is_explained_is_one_that_is_said() -> None:
    rows = table_with(HARDWARE, "message contains")
    assert len(rows) > 20
    for row in rows:
        assert row["message contains"] in sources()


# --- program.md -------------------------------------------------------------------------------------------------------


def test_the_charter_has_the_sections_of_a_charter_and_names_only_what_is_there() -> None:
    wanted = ["Goal", "Current Baseline", "Directions to Explore", "Constraints", "Notes from Previous Runs"]
    for text in (text_of(PROGRAM), blocks(GUIDE, "markdown")[0]):
        assert text.startswith("# Research Program\n")
        assert re.findall(r"(?m)^## (.+)$", text) == wanted
    names = {*read_literals(text_of(ROOT / "train.py")), *read_literals(text_of(ROOT / "constants.py"))}
    assert set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text_of(PROGRAM))) <= names
    assert not re.search(r"\d\.\d{3}", text_of(PROGRAM)), "a score from another machine"
    assert len(text_of(PROGRAM)) < brief.MAX_PROGRAM


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_says_what_is_not_covered() -> None:
    text = text_of(README)
    assert len(text.splitlines()) < 150
    assert text.count(MARKER) <= 8
    assert "The score is not train.py's word" in text and "Not covered: faults of the kernel" in text
    for command in ("bash scripts/run-loop.sh --max 5", "bash scripts/test.sh"):
        assert command in blocks(README, "bash")[0].splitlines()


def test_the_example_researcher_works_as_it_is_printed(tmp_path: Path) -> None:
    script = tmp_path / "my-researcher.py"
    script.write_text(blocks(README, "python")[0])
    script.chmod(0o755)
    source = text_of(ROOT / "train.py")
    context = Context(Lab(ROOT), source, "# Brief\n", [], tmp_path / "scratch" / "lab")
    proposal = researchers.make(str(script)).propose(context)
    before, after = read_literals(source), read_literals(proposal.source)
    changed = [name for name in before if before[name].value != after[name].value]
    assert len(changed) == 1
    assert proposal.description.startswith(f"{changed[0]} {before[changed[0]].value} -> ")


def test_no_figure_is_left_open_and_the_picture_is_there() -> None:
    """Fails until the README's figures and its picture come from real sessions."""
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(README))
    assert pictures
    for document in DOCS:
        assert MARKER not in text_of(document), f"{document.name}: fill in the figures (benchmarks/ prints them)"
    for picture in pictures:
        assert (ROOT / picture).is_file(), f"draw it: bash scripts/show-results.sh --plot {picture}"
