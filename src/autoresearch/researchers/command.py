"""Any program as a researcher.

It is started in a scratch folder with copies of the lab's files, gets the brief as BRIEF.md and on its standard input, changes
train.py there and prints one line that says what it tried. Only its train.py is taken. It runs in the sandbox, with the network and
the environment variables and home files that the settings name; where no sandbox was wanted, with all that the caller has.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoresearch.errors import WrongCall
from autoresearch.experiment import sandbox
from autoresearch.lab import FILES, TRAIN
from autoresearch.researchers import Context, Options, Proposal, ResearcherFailed, process, said
from autoresearch.results import clean

OUTPUT_LIMIT = 4 * 2**20  # bytes of its output that are kept as its log
SOURCE_LIMIT = 2**20  # bytes of a train.py that are read at all


class Command:
    thinks = True

    def __init__(self, words: Sequence[str], options: Options) -> None:
        self.words, self.options = list(words), options
        if "/" in self.words[0]:
            # Not resolved: a virtual environment's python is a link, and must stay one. pathlib's expanduser raises for ~nobody.
            self.words[0] = str(Path(os.path.expanduser(self.words[0])).absolute())  # noqa: PTH111
        if shutil.which(self.words[0]) is None:
            raise WrongCall(f"--researcher: there is no program '{words[0]}' that can be run: check its path and 'chmod +x' it")
        self.name = Path(words[0]).name

    def propose(self, context: Context) -> Proposal:
        before = lay_out(context)
        exit_code = self._run(context)
        output = read_log(context)
        if exit_code != 0:
            last = clean(output.strip().splitlines()[-1])[:200] if output.strip() else "it printed nothing"
            raise ResearcherFailed(f"'{self.name}' ended with exit code {exit_code}: {last}")
        source = take(context.scratch, self.name, before)
        told = said.read(output)
        if not told.description:
            raise ResearcherFailed(f"'{self.name}' printed nothing: the first line of its output must say what it tried")
        return Proposal(source, told.description, {}, told.hypothesis, told.expected_gain, told.category)

    def _run(self, context: Context) -> int:
        return process.run(
            process.Launch(
                self.name,
                self.words,
                context.scratch,
                context.log,
                self.options.time_limit,
                context.should_stop,
                variables=self.options.all_variables,
                # `python3` is the lab's own there: a version manager's stand-in could not reach what it stands for.
                settings={"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"},
                logins=self.options.files,
                stdin=context.scratch / "BRIEF.md",
                boxed=context.sandbox != sandbox.NONE,
                level=context.sandbox,
            )
        )


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


def read_log(context: Context) -> str:
    """What it printed; the file is cut to OUTPUT_LIMIT."""
    with context.log.open("r+b") as file:
        output = file.read(OUTPUT_LIMIT).decode("utf-8", errors="replace")
        file.truncate()
    return output


def take(scratch: Path, name: str, before: Mapping[str, str]) -> str:
    """Its train.py, the one file that is taken over. Raises ResearcherFailed if it changed another of the lab's files."""
    changed = [file for file, digest in sorted(before.items()) if digest_of(scratch / file) != digest and file != TRAIN]
    if changed:
        raise ResearcherFailed(f"'{name}' changed {', '.join(changed)}: only train.py may change")
    return read_train(scratch, name)


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
