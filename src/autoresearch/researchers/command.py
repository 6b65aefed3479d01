"""Any program as a researcher.

It is started in a scratch folder with copies of the lab's files, gets the brief as BRIEF.md and on its standard input, changes
train.py there and prints one line that says what it tried. Only its train.py is taken. It sees the caller's environment and the
network: it needs its keys.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from autoresearch.errors import Interrupted, WrongCall
from autoresearch.experiment.runner import kill_group
from autoresearch.lab import FILES, TRAIN
from autoresearch.researchers import Context, Proposal, ResearcherFailed
from autoresearch.results import clean

OUTPUT_LIMIT = 4 * 2**20  # bytes of its output that are kept as its log
FLOOD = 256 * 2**20  # bytes of output that end it: it would fill the disk
SOURCE_LIMIT = 2**20  # bytes of a train.py that are read at all


class Command:
    def __init__(self, words: Sequence[str], time_limit: float) -> None:
        self.words, self.time_limit = list(words), time_limit
        if "/" in self.words[0]:
            # Not resolved: a virtual environment's python is a link, and must stay one. pathlib's expanduser raises for ~nobody.
            self.words[0] = str(Path(os.path.expanduser(self.words[0])).absolute())  # noqa: PTH111
        if shutil.which(self.words[0]) is None:
            raise WrongCall(f"--researcher: there is no program '{words[0]}' that can be run: check its path and 'chmod +x' it")
        self.name = Path(words[0]).name

    def propose(self, context: Context) -> Proposal:
        before = lay_out(context)
        log = context.scratch.parent / "researcher.log"
        exit_code = self._run(context, log)
        with log.open("r+b") as file:
            output = file.read(OUTPUT_LIMIT).decode("utf-8", errors="replace")
            file.truncate()
        if exit_code != 0:
            last = clean(output.strip().splitlines()[-1])[:200] if output.strip() else "it printed nothing"
            raise ResearcherFailed(f"'{self.name}' ended with exit code {exit_code}: {last}")
        changed = [name for name, digest in sorted(before.items()) if digest_of(context.scratch / name) != digest and name != TRAIN]
        if changed:
            raise ResearcherFailed(f"'{self.name}' changed {', '.join(changed)}: only train.py may change")
        source = read_train(context.scratch, self.name)
        description = next((clean(line) for line in output.splitlines() if clean(line)), "")
        if not description:
            raise ResearcherFailed(f"'{self.name}' printed nothing: the first line of its output must say what it tried")
        return Proposal(source, description)

    def _run(self, context: Context, log: Path) -> int:
        with log.open("wb") as out, (context.scratch / "BRIEF.md").open("rb") as brief:
            process = subprocess.Popen(
                self.words,
                cwd=context.scratch,
                stdin=brief,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            deadline = time.monotonic() + self.time_limit
            try:
                while True:
                    try:
                        return process.wait(timeout=0.2)
                    except subprocess.TimeoutExpired:
                        pass
                    if context.should_stop and context.should_stop():
                        raise Interrupted("stopped while the researcher was thinking")
                    if time.monotonic() > deadline:
                        raise ResearcherFailed(f"'{self.name}' gave no answer in {self.time_limit:g} s (--researcher-timeout)")
                    if log.stat().st_size > FLOOD:
                        raise ResearcherFailed(f"'{self.name}' printed over {FLOOD // 2**20} MB: its answer is one line")
            finally:
                kill_group(process.pid)
                process.wait()


def lay_out(context: Context) -> dict[str, str]:
    """Copy the lab's files and the brief into the scratch folder. Returns the digest of each copy."""
    shutil.rmtree(context.scratch, ignore_errors=True)
    context.scratch.mkdir(parents=True)
    for name in (*FILES, "results.tsv"):
        if (context.lab.root / name).is_file():
            shutil.copy(context.lab.root / name, context.scratch / name)
    (context.scratch / TRAIN).write_text(context.source, encoding="utf-8")
    (context.scratch / "BRIEF.md").write_text(context.brief, encoding="utf-8")
    return {path.name: digest_of(path) for path in context.scratch.iterdir()}


def digest_of(path: Path) -> str:
    """Hash of a plain file; '' for anything else (a link, a FIFO, nothing)."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_train(scratch: Path, name: str) -> str:
    """The train.py that the researcher left. Raises ResearcherFailed if it is none."""
    path = scratch / TRAIN
    if path.is_symlink() or not path.is_file():
        raise ResearcherFailed(f"'{name}' left no plain train.py behind: change it in place")
    with path.open("rb") as file:
        data = file.read(SOURCE_LIMIT + 1)
    if len(data) > SOURCE_LIMIT:
        raise ResearcherFailed(f"'{name}' left a train.py of over {SOURCE_LIMIT // 1024} KB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ResearcherFailed(f"'{name}' left a train.py that is not UTF-8 text") from None
