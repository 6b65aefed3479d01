"""Loops at work, for tests that watch, stop and kill them: a lab that is set up once, scripted researchers, background loops."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from conftest import ROOT, fewer_tokens, git, make_lab, toy, unboxed

from autoresearch import cli as commands
from autoresearch import hardware, session
from autoresearch.experiment import crossing, cuts, referee, refereeing
from autoresearch.experiment.witness import Witness
from autoresearch.lab import data_fingerprint
from autoresearch.literals import code_key, read_literals
from autoresearch.size import code_size

PATIENCE = 60.0  # seconds for an event that takes well under one
AUTORESEARCH = (sys.executable, "-P", "-m", "autoresearch")


def template(folder: Path, cache: Path) -> Path:
    """A lab on autoresearch/test with a budget of 1 s, made by `setup` once, to be copied for each test."""
    lab = make_lab(folder / "lab")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AUTORESEARCH_CACHE": str(cache),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT / "src"),
    }
    setup = (*AUTORESEARCH, "setup", "--tag", "test", "--time-budget", "1")
    done = subprocess.run(setup, cwd=lab, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    fewer_tokens(lab)
    return lab


def copy_of(template: Path, folder: Path) -> Path:
    return Path(shutil.copytree(template, folder, symlinks=True))


# -- researchers -----------------------------------------------------------------------------------------------------


def setting(name: str, value: Any) -> str:
    """A researcher's move: another value for a literal."""
    return f"sed -i 's/^{name} = [^ ]*/{name} = {value}/' train.py; echo '{name} {value}'"


def agent(folder: Path, *moves: str) -> str:
    """`--researcher` for a program that makes these moves, one a call, the last one again and again."""
    program, calls = folder / "agent", folder / "calls"
    cases = "\n".join(f"{number}) {move} ;;" for number, move in enumerate(moves[:-1], start=1))
    program.write_text(
        f"#!/bin/sh\nn=$(($(cat '{calls}' 2>/dev/null || echo 0) + 1))\necho $n > '{calls}'\n"
        f"case $n in\n{cases}\n*) {moves[-1]} ;;\nesac\n"
    )
    program.chmod(0o755)
    return str(program)


class Later:
    """A module that is imported where it is first used: a process that holds torch forks ten times slower than one without, and
    each worker collects all tests."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest looks at all that a test file holds
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self.name), attribute)


class Held:
    """A train.py that goes on only when it is let go."""

    def __init__(self, folder: Path, **literals: Any) -> None:
        self.latch, self.started, self.file = folder / "latch", folder / "started", folder / "held.py"
        self.latch.touch()
        wait = (
            f"import pathlib\npathlib.Path({str(self.started)!r}).touch()\n"
            f"while pathlib.Path({str(self.latch)!r}).exists():\n    time.sleep(0.01)\nmain()\n"
        )
        source, call = toy(**literals).rsplit("main()\n", 1)
        assert not call
        self.source = source + wait
        self.file.write_text(self.source)
        self.move = f"cp '{self.file}' train.py; echo held"

    def wait(self) -> None:
        wait_for(self.started.exists, "the run never began")

    def let_go(self) -> None:
        self.latch.unlink()


def dies(file: Path) -> None:
    """Wait until the process whose number is in this file, and which is no child of ours, has ended."""

    def gone() -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{file.read_text().strip()}/status").read_text()
        except FileNotFoundError:
            return True

    wait_for(gone, "it lives")


def in_a_fork(rigged: Callable[[], None], work: Callable[[], None], gpu: int | None = None) -> str:
    """What a witness says of this work, "nothing" if it was not disturbed. In a fork, as a loop is beside the other programs: they
    are no children of its."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            rigged()
            ours = Witness(gpu)
            ours.begin()
            work()
            os.write(start, ours.disturbed().encode() or b"nothing")
        finally:
            os._exit(0)
    os.close(start)
    with os.fdopen(end) as said:
        text = said.read()
    os.waitpid(child, 0)
    assert text
    return text


# -- commands in a fork of the test ---------------------------------------------------------------------------------


def facts(lab: Path, known: list[Any] = []) -> list[Any]:  # noqa: B006 - kept from call to call on purpose
    """The data's fingerprint and the machine, the same for each of these labs: asked for once, because that takes 300 ms."""
    if not known:
        known += [data_fingerprint(lab), hardware.probe()]
    return known


def forked(lab: Path, *arguments: str, rigged: Callable[[], None] = lambda: None) -> subprocess.CompletedProcess[str]:
    """The command in a fork of this process, which spares it the start of Python. A signal that ended it is a negative code."""
    data, machine = facts(lab)
    for known in (code_key, code_size, crossing._statements, read_literals):  # kept by them, and so by the fork
        known(toy())
    out, err = lab.parent / "stdout", lab.parent / "stderr"
    gc.freeze()  # else a collection in the fork copies all that was ever imported: 0.1 s
    child = os.fork()
    if child == 0:
        try:
            for path, stream in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os.chdir(lab)
            session.data_fingerprint, hardware.probe = lambda *_, **__: data, lambda: machine
            refereeing.start = forked_referee
            rigged()
            code = commands.main(list(unboxed(arguments)))
            sys.stdout.flush()
            os._exit(code)
        finally:
            os._exit(99)
    gc.unfreeze()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


PREPARE = (ROOT / "prepare.py").read_bytes()
COMPILED = compile(PREPARE, ROOT / "prepare.py", "exec", dont_inherit=True)


class Compiled(SourceFileLoader):
    """prepare.py as it was compiled once: each lab has a copy of its own."""

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:
        return COMPILED if data == PREPARE else super().source_to_code(data, path, **options)


class ForkedReferee:
    """A referee in a fork of this process, as `subprocess.Popen` has it: numpy is imported already, and it counts in few rows."""

    def __init__(self, spec: Mapping[str, Any], log: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
                for each in [
                    int(path.name) for path in Path("/proc/self/fd").iterdir()
                ]:  # the candidate's end of the socket among them
                    if each > 2 and each != spec["socket"]:
                        with contextlib.suppress(OSError):
                            os.close(each)
                sys.argv = ["referee", json.dumps(spec)]
                referee.SAMPLE_ROWS, cuts.SIEVE = 64, 2**16
                sys.path_hooks.insert(0, FileFinder.path_hook((Compiled, [".py"])))
                os._exit(referee.main())
            except BaseException:
                traceback.print_exc(file=os.fdopen(2, "w", closefd=False))
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        wait_for(lambda: self.poll() is not None, "the referee lives")
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def forked_referee(spec: Mapping[str, Any], log: Any, mark: str) -> ForkedReferee:
    return ForkedReferee(spec, log)


# -- loops in the background -----------------------------------------------------------------------------------------


def wait_for(event: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not event():
        assert time.monotonic() < deadline, failure
        time.sleep(0.005)


class Background:
    """A command of autoresearch that runs beside the test; in a process group of its own, as from a shell."""

    def __init__(self, lab: Path, *arguments: str, env: Mapping[str, str], log: Path, before: str = "") -> None:
        self.log = log
        command = ("sh", "-c", f'{before} exec "$@"', "sh", *AUTORESEARCH, *unboxed(arguments))
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=lab, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, text: str) -> None:
        wait_for(lambda: text in self.said() or self.process.poll() is not None, f"never said '{text}'")
        assert text in self.said(), self.said()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()


# -- what is there afterwards ----------------------------------------------------------------------------------------


def rows(lab: Path, name: str = "results.tsv") -> list[tuple[str, ...]]:
    """The table without its header."""
    header, *lines = (lab / name).read_text().splitlines()
    assert header == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    return [tuple(line.split("\t")) for line in lines]


def statuses(lab: Path) -> list[str]:
    return [row[3] for row in rows(lab)]


def state(lab: Path, n: int) -> dict[str, Any]:
    text = (lab / ".autoresearch" / "runs" / str(n) / "state.json").read_text()
    return dict(json.loads(text))


def journal(lab: Path) -> list[dict[str, Any]]:
    path = lab / ".autoresearch" / "experiments.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tip(lab: Path, name: str = "autoresearch/test") -> str:
    return git(lab, "rev-parse", name)


def processes_of(lab: Path) -> list[str]:
    """Runs of this lab that are alive."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(lab / ".autoresearch").encode() in environment.read_bytes():
                found.append(environment.parent.name)
        except OSError:
            continue
    return found


def picture(lab: Path) -> tuple[str, ...]:
    """All that a person would miss: HEAD, references, the index, what git sees as changed, and each file's bytes."""
    files = sorted(path for path in lab.rglob("*") if not {".git", ".autoresearch"} & set(path.relative_to(lab).parts))
    return (
        (lab / ".git" / "HEAD").read_text(),
        git(lab, "for-each-ref"),
        git(lab, "ls-files", "--stage"),
        git(lab, "--no-optional-locks", "status", "--porcelain"),
        *(f"{path} {path.read_bytes().hex()}" for path in files if path.is_file()),
    )


def wrongs(lab: Path) -> list[str]:
    """What is not as if nothing had ever been killed: table, journal, references, branch, working tree, processes, locks."""
    table, settled = rows(lab), journal(lab)
    numbers = [done["n"] for done in settled]
    kept = [done for done in settled if done["status"] == "keep"]
    begun = {int(path.parent.name): stage_in(path) for path in lab.glob(".autoresearch/runs/*/state.json")}
    tried = [(done, f"refs/autoresearch/{done['session']}/{done['n']}") for done in settled]
    refs = dict(line.split() for line in git(lab, "for-each-ref", "--format=%(refname) %(objectname)").splitlines())
    claims = {
        "the table has the rows of the journal": [row[0] for row in table] == [done["commit"][:7] for done in settled],
        "a row says what the journal says": [row[3] for row in table] == [done["status"] for done in settled],
        "the table ends with a whole line": (lab / "results.tsv").read_bytes().endswith(b"\n"),
        "experiments are there once, in order": numbers == sorted(set(numbers)),
        "all that was begun came to its end": set(begun.values()) <= {"settled", "abandoned", ""},
        "what is settled is in the journal": {n for n, stage in begun.items() if stage == "settled"} == set(numbers),
        "every commit is reachable": all(refs.get(name) == done["commit"] for done, name in tried),
        "the branch is at the incumbent": not kept or tip(lab) == kept[-1]["commit"],
        "train.py is the incumbent's": not kept or (lab / "train.py").read_text() == source_of(lab, kept[-1]["n"]),
        "the tree is clean": git(lab, "status", "--porcelain", "--untracked-files=no") == "",
        "main never moved": git(lab, "log", "--format=%s", "main") == "a lab",
        "no process is left": processes_of(lab) == [],
        "no lock is left": is_free(lab) and not list((lab / ".git").rglob("*.lock")),
    }
    return [claim for claim, holds in claims.items() if not holds]


def stage_in(file: Path) -> str:
    """The stage that a state.json tells; '' for one that a power cut tore."""
    try:
        return str(json.loads(file.read_text())["stage"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return ""


def source_of(lab: Path, n: int) -> str:
    return (lab / ".autoresearch" / "runs" / str(n) / "train.py").read_text()


def is_free(lab: Path) -> bool:
    with (lab / ".autoresearch" / "lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
