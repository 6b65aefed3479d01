"""A lab on disk: its files, its constants, its fingerprint; what may change and what may not.

Standard library only: `check`, `results` and `status` work before anything is installed.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.errors import NotReady
from autoresearch.files import write_atomically
from autoresearch.hardware import Hardware
from autoresearch.literals import read_literals, set_literals

TRAIN = "train.py"
PROGRAM = "program.md"
READ_ONLY = ("prepare.py", "constants.py", "pyproject.toml", "uv.lock")  # nobody changes these in a session
FILES = (TRAIN, PROGRAM, "prepare.py", "constants.py", "pyproject.toml")

# The types that constants.py must have; what may be in them is prepare.py's to check.
CONSTANTS: dict[str, tuple[type, ...]] = {
    "TIME_BUDGET": (int, float),
    "MAX_SEQ_LEN": (int,),
    "EVAL_TOKENS": (int,),
    "VOCAB_SIZE": (int,),
    "DATASET": (str,),
}

# Packages whose presence decides which attention kernels a run can choose.
ATTENTION_PACKAGES = ("flash-attn-4", "flash-attn")


@dataclass(frozen=True)
class Lab:
    root: Path

    @property
    def train(self) -> Path:
        return self.root / TRAIN

    @property
    def program(self) -> Path:
        return self.root / PROGRAM

    @property
    def results(self) -> Path:
        return self.root / "results.tsv"

    @property
    def log(self) -> Path:
        return self.root / "run.log"

    @property
    def journal(self) -> Path:
        return self.root / ".autoresearch"

    def read(self, name: str) -> str:
        """A file of the lab. Raises NotReady with a line for a person."""
        path = self.root / name
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotReady(f"{path} is missing: bring it back with 'git checkout -- {name}'") from None
        except UnicodeDecodeError:
            raise NotReady(f"{path} is not UTF-8 text: bring it back with 'git checkout -- {name}'") from None
        if not text.strip():
            raise NotReady(f"{path} is empty: bring it back with 'git checkout -- {name}'")
        return text

    def train_source(self) -> str:
        """train.py, checked to be Python."""
        source = self.read(TRAIN)
        try:
            compile(source, TRAIN, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise NotReady(f"{self.train} is not valid Python ({error}{line}): mend it or 'git checkout -- {TRAIN}'") from None
        return source

    def constants(self) -> dict[str, Any]:
        """The five constants. Raises NotReady that names the one that is missing or has the wrong type."""
        path = self.root / "constants.py"
        try:
            literals = read_literals(self.read("constants.py"))
        except SyntaxError as error:
            raise NotReady(f"{path} is not valid Python (line {error.lineno}): 'git checkout -- constants.py'") from None
        found = {}
        for name, types in CONSTANTS.items():
            if name not in literals:
                raise NotReady(f"{path}: {name} is missing or is no literal: 'git checkout -- constants.py'")
            value = literals[name].value
            if not isinstance(value, types) or isinstance(value, bool):
                wanted = " or ".join(kind.__name__ for kind in types)
                raise NotReady(f"{path}: {name} = {value!r} must be {wanted}: correct it and commit")
            found[name] = value
        return found


def find_lab(start: Path, fallback: str | None = None) -> Lab:
    """The lab around `start`, else the one at `fallback` (where the scripts lie). Raises NotReady."""
    for folder in (start, *start.parents):
        if all((folder / name).is_file() for name in ("prepare.py", "constants.py")):
            return Lab(folder)
    if fallback and (Path(fallback) / "constants.py").is_file():
        return Lab(Path(fallback).resolve())
    raise NotReady(f"no lab around {start}: a lab is a folder with {', '.join(FILES)}; go into a clone of autoresearch")


NAMED_SOURCES = ("fineweb-edu", "climbmix", "stdlib")  # every other DATASET is a folder


def copy_helpers(lab: Lab, folder: Path) -> Path:
    """prepare.py and constants.py as runs get them: apart from the lab's own, and a relative DATASET made absolute."""
    constants = lab.read("constants.py")
    dataset = lab.constants()["DATASET"]
    if dataset not in NAMED_SOURCES:
        constants = set_literals(constants, {"DATASET": str((lab.root / Path(dataset).expanduser()).resolve())})
    write_atomically(folder / "prepare.py", lab.read("prepare.py"))
    write_atomically(folder / "constants.py", constants)
    return folder


def data_fingerprint(copy: Path, thorough: bool = False) -> str:
    """Hash of the prepared data, by the prepare.py in `copy`. Raises NotReady with that file's own line if there is none."""
    return _ask_prepare(copy, "check_data" if thorough else "data_fingerprint")


def held_out_files(copy: Path) -> tuple[Path, ...]:
    """Files outside the prepared data that hold its validation text."""
    return tuple(map(Path, _ask_prepare(copy, "hidden_files").splitlines()))


def _ask_prepare(copy: Path, question: str) -> str:
    """What this function of the prepare.py in `copy` says, in a process of its own. Raises NotReady."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import prepare; print(getattr(prepare, sys.argv[2])())"
    command = [sys.executable, "-I", "-B", "-c", code, str(copy), question]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["prepare.py failed without a word"]
        raise NotReady(lines[-1].removeprefix("prepare.NotReady: "))
    return done.stdout.strip()


def _installed() -> dict[str, str]:
    """Version of each package that this Python finds, by name, read off folders' names: `importlib.metadata` takes as long as all
    the rest of a command's start."""
    found = dict[str, str]()
    for entry in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(entry or "."):  # noqa: PTH208 - ten times as fast as Path.iterdir
                if name.endswith(".dist-info"):
                    package, _, version = name.removesuffix(".dist-info").partition("-")
                    found.setdefault(package.lower().replace("_", "-"), version)
    return found


def fingerprint_parts(lab: Lab, hardware: Hardware, data: str) -> dict[str, str]:
    """All that makes scores comparable, by name, so that a difference can be told."""
    parts, installed = {name: str(value) for name, value in lab.constants().items()}, _installed()
    attention = [f"{name} {installed[name]}" for name in ATTENTION_PACKAGES if name in installed]
    parts |= {
        "prepare.py": hashlib.sha256(lab.read("prepare.py").encode()).hexdigest()[:16],
        "data": data[:16],
        "device": hardware.gpu_name or f"{hardware.cpu_name}, {hardware.cpu_cores} cores",
        "driver": hardware.driver_version or "none",
        "torch": installed.get("torch", "none"),
        "attention": ", ".join(attention) or "torch",
    }
    return parts


def fingerprint(parts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed, one line each: 'torch: 2.11.0 -> 2.13.0'."""
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]
