"""Claims about the lab: its files are found and checked, and two scores compare only if all that matters is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from conftest import CONSTANTS, ROOT, Cli

from autoresearch.errors import NotReady
from autoresearch.files import write_atomically
from autoresearch.hardware import Hardware, probe
from autoresearch.lab import (
    Lab,
    data_fingerprint,
    differences,
    find_lab,
    fingerprint,
    fingerprint_parts,
)
from autoresearch.literals import set_literals


@pytest.fixture
def machine() -> Hardware:
    return replace(probe({"PATH": "", "CUDA_VISIBLE_DEVICES": ""}), cpu_name="A CPU", cpu_cores=2)


def told(lab: Path, call: str) -> str:
    """The line that a person gets, checked to be one."""
    with pytest.raises(NotReady) as error:
        getattr(Lab(lab), call)()
    text = str(error.value)
    assert "\n" not in text and str(lab) in text
    return text


# -- finding it ----------------------------------------------------------------------------------------------------------


def test_a_lab_is_found_from_any_folder_in_it(lab: Path) -> None:
    (lab / "a" / "b").mkdir(parents=True)
    assert find_lab(lab / "a" / "b") == find_lab(lab) == Lab(lab)


def test_elsewhere_the_lab_of_the_scripts_is_taken_and_without_one_the_line_says_what_a_lab_is(lab: Path, tmp_path: Path) -> None:
    assert find_lab(tmp_path, str(lab)) == Lab(lab)
    with pytest.raises(NotReady, match=r"no lab around .*train\.py, program\.md, prepare\.py"):
        find_lab(tmp_path, str(tmp_path / "nowhere"))


def test_the_innermost_lab_is_the_one(lab: Path) -> None:
    inner = lab / "copy"
    inner.mkdir()
    for name in ("prepare.py", "constants.py"):
        (inner / name).write_bytes((lab / name).read_bytes())
    assert find_lab(inner) == Lab(inner)


# -- its files -----------------------------------------------------------------------------------------------------------


def test_a_missing_empty_or_binary_file_is_named_with_the_way_out(lab: Path) -> None:
    for damage, word in ((b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe\x00", "is not UTF-8"), (None, "is missing")):
        (lab / "train.py").unlink()
        if damage is not None:
            (lab / "train.py").write_bytes(damage)
        said = told(lab, "train_source")
        assert word in said and "git checkout -- train.py" in said
        (lab / "train.py").touch()


@pytest.mark.parametrize(
    "source",
    ["def f(:\n", "x = 1\x00\n", "  indented\n", "return 1\n", "x = " + "-" * 100_000 + "1\n", "x = " + "1+" * 9_000 + "1\n"],
)
def test_a_train_py_that_is_not_python_is_told_in_one_line(lab: Path, source: str) -> None:
    (lab / "train.py").write_text(source)
    said = told(lab, "train_source")
    assert "is not valid Python" in said and len(said) < 500


def test_constants_are_the_five_values(lab: Path) -> None:
    assert Lab(lab).constants() == {
        "TIME_BUDGET": 1,
        "MAX_SEQ_LEN": 256,
        "EVAL_TOKENS": 8192,
        "VOCAB_SIZE": 2048,
        "DATASET": "stdlib",
    }


@pytest.mark.parametrize(
    ("name", "right", "word"),
    [
        ("MAX_SEQ_LEN", '"256"', "must be int"),
        ("MAX_SEQ_LEN", "256.0", "must be int"),
        ("VOCAB_SIZE", "True", "must be int"),
        ("TIME_BUDGET", "None", "must be int or float"),
        ("DATASET", "3", "must be str"),
        ("EVAL_TOKENS", "compute()", "is missing or is no literal"),
        ("EVAL_TOKENS", "9**9**9**9", "is missing or is no literal"),
        ("TIME_BUDGET", "1\nTIME_BUDGET = 10", "is missing or is no literal"),
    ],
)
def test_a_constant_of_the_wrong_type_is_named(lab: Path, name: str, right: str, word: str) -> None:
    lines = [f"{name} = {right}" if line.startswith(name) else line for line in CONSTANTS.splitlines()]
    (lab / "constants.py").write_text("\n".join(lines) + "\n")
    said = told(lab, "constants")
    assert name in said and word in said


def test_a_missing_constant_and_a_file_that_is_no_python_are_told(lab: Path) -> None:
    (lab / "constants.py").write_text(CONSTANTS.replace("VOCAB_SIZE", "VOCABULARY"))
    assert "VOCAB_SIZE is missing" in told(lab, "constants")
    (lab / "constants.py").write_text("TIME_BUDGET = (\n")
    assert "not valid Python" in told(lab, "constants")


# -- what makes scores comparable ----------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_for_the_same_and_spelled_otherwise(lab: Path, machine: Hardware) -> None:
    data = data_fingerprint(lab)
    before = fingerprint_parts(Lab(lab), machine, data)
    (lab / "constants.py").write_text(CONSTANTS.replace("16 * 512", "8_192").replace("# seconds", "# the seconds"))
    (lab / "train.py").write_text("print('another model')\n")
    (lab / "program.md").write_text("another goal\n")
    after = fingerprint_parts(Lab(lab), machine, data_fingerprint(lab))
    assert differences(before, after) == [] and fingerprint(before) == fingerprint(after)


def test_whatever_changes_a_score_changes_the_fingerprint_and_is_told_by_its_name(lab: Path, machine: Hardware) -> None:
    before = fingerprint_parts(Lab(lab), machine, "0" * 64)

    def changed(hardware: Hardware = machine, data: str = "0" * 64) -> list[str]:
        now = fingerprint_parts(Lab(lab), hardware, data)
        assert fingerprint(now) != fingerprint(before)
        return differences(before, now)

    assert changed(data="1" * 64) == ["data: 0000000000000000 -> 1111111111111111"]
    assert changed(replace(machine, cpu_cores=4)) == ["device: A CPU, 2 cores -> A CPU, 4 cores"]
    gpu = replace(machine, gpu_name="NVIDIA H100", driver_version="570.1")
    assert changed(gpu) == ["device: A CPU, 2 cores -> NVIDIA H100", "driver: none -> 570.1"]
    for name, value in {
        "TIME_BUDGET": 2,
        "MAX_SEQ_LEN": 512,
        "EVAL_TOKENS": 1024,
        "VOCAB_SIZE": 4096,
        "DATASET": "climbmix",
    }.items():
        (lab / "constants.py").write_text(set_literals(CONSTANTS, {name: value}))
        assert [line.partition(":")[0] for line in changed()] == [name]
    (lab / "constants.py").write_text(CONSTANTS)
    (lab / "prepare.py").write_text((lab / "prepare.py").read_text() + "# another metric\n")
    assert [line.partition(":")[0] for line in changed()] == ["prepare.py"]


def test_the_torch_and_the_attention_of_this_environment_are_part_of_it(lab: Path, machine: Hardware) -> None:
    parts = fingerprint_parts(Lab(lab), machine, "0" * 64)
    assert parts["torch"] == metadata.version("torch") and parts["attention"]


def test_the_datas_fingerprint_is_told_by_the_labs_own_prepare_py(lab: Path, prepared_cache: Path) -> None:
    assert len(data_fingerprint(lab)) == 64
    (lab / "prepare.py").write_text("def data_fingerprint():\n    return 'another metric'\n")
    assert data_fingerprint(lab) == "another metric"


def test_data_that_is_not_prepared_is_told_with_the_way_out(lab: Path) -> None:
    (lab / "constants.py").write_text(CONSTANTS.replace("2048", "4096"))
    with pytest.raises(NotReady) as error:
        data_fingerprint(lab)
    assert str(error.value).startswith("no data is prepared") and "prepare.py" in str(error.value)


def test_a_module_in_the_callers_folder_or_path_is_not_what_is_asked(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = data_fingerprint(lab)
    for name in ("prepare.py", "json.py", "hashlib.py"):
        (tmp_path / name).write_text("def data_fingerprint():\n    return 'forged'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert data_fingerprint(lab) == honest


# -- small things --------------------------------------------------------------------------------------------------------


def test_a_reader_sees_the_old_file_or_the_new_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    write_atomically(path, "old")
    before = path.open()
    write_atomically(path, b"new\xff")
    assert before.read() == "old" and path.read_bytes() == b"new\xff"
    before.close()
    assert list(path.parent.iterdir()) == [path]


def test_check_and_results_need_the_standard_library_alone(lab: Path, tmp_path: Path) -> None:
    """With everything that is installed out of reach: -S leaves the site-packages away."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"], "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    for arguments in (["check", "--json"], ["results"]):
        command = [sys.executable, "-S", "-P", "-m", "autoresearch", *arguments]
        done = subprocess.run(command, cwd=lab, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1) and done.stdout and "Traceback" not in done.stderr, done.stderr


def test_a_damaged_lab_is_told_by_the_command_in_one_line_and_nothing_is_changed(lab: Path, cli: Cli) -> None:
    (lab / "train.py").write_text("def f(:\n")
    done = cli("run")
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "train.py" in done.stderr
    assert not (lab / ".autoresearch").exists()
