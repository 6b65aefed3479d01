"""The git side: a branch that only ever moves to better commits, and a reference to every commit that was tried.

Commits are made from objects alone (an index of their own, no checkout): while an experiment runs, the branch, the index and the
working tree stay at the incumbent. A discard therefore has nothing to undo; a keep moves the branch and writes train.py. Commits
carry the tool's own identity, run no hooks and are not signed. A person's main branch is never touched.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch.errors import NotReady, WrongCall
from autoresearch.processes import PROC, running
from autoresearch.terminal import tell

PREFIX = "autoresearch/"  # session branches are autoresearch/<tag>
IDENTITY = {
    "GIT_AUTHOR_NAME": "autoresearch",
    "GIT_AUTHOR_EMAIL": "autoresearch@localhost",
    "GIT_COMMITTER_NAME": "autoresearch",
    "GIT_COMMITTER_EMAIL": "autoresearch@localhost",
}
CONFIG = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "core.fsmonitor=false",
    "gc.auto=0",
    "core.quotePath=false",
    "color.ui=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "diff.relative=false",
    "i18n.commitEncoding=utf-8",
)
# Variables with which a caller's git (a hook, an alias) would lead ours to another repository or change what it prints.
FOREIGN = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_QUARANTINE_PATH",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_DATE",
    "GIT_EXTERNAL_DIFF",
)
# git's lock files are there for milliseconds, or as long as an editor is open for a commit. One that stands so long while no git
# lives here was left by one that died.
LOCK_PATIENCE = 10.0  # seconds
LOCKED = re.compile(r"Unable to create '(.+\.lock)': File exists")


class GitError(NotReady):
    """git refused; its own words are in the message."""


@dataclass(frozen=True)
class Ratchet:
    root: Path
    say: Callable[[str], None] = tell

    def git(self, *arguments: str, data: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        """What git prints, without its last newline. Raises GitError."""
        return self.git_bytes(*arguments, data=data, env=env).decode(errors="replace").rstrip("\n")

    def git_bytes(self, *arguments: str, data: bytes | None = None, env: Mapping[str, str] | None = None) -> bytes:
        options = [word for setting in CONFIG for word in ("-c", setting)]
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment |= IDENTITY | {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"} | dict(env or {})
        if arguments[0] == "diff":
            arguments = ("diff", "--no-ext-diff", "--no-textconv", *arguments[1:])
        command = ["git", *options, *arguments]
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            done = self._run(command, environment, data or b"")
            if done.returncode == 0:
                return done.stdout
            said = done.stderr.decode(errors="replace").strip()
            if (found := LOCKED.search(said)) and self._comes_free(self.root / found[1], deadline):
                continue
            words = said.splitlines() or ["no reason given"]
            reason = next((line for line in words if line.startswith(("fatal:", "error:"))), words[-1])  # advice follows it
            raise GitError(f"git {' '.join(arguments[:2])} in {self.root}: {reason}{self._hint(found)}")

    def _run(self, command: list[str], environment: Mapping[str, str], data: bytes) -> "subprocess.CompletedProcess[bytes]":
        try:
            # A session of its own: Ctrl-C in a terminal reaches the whole process group, and git shall finish.
            return subprocess.run(command, cwd=self.root, capture_output=True, env=environment, input=data, start_new_session=True)
        except FileNotFoundError:
            raise NotReady("git is not installed: install it with your system's packages") from None

    # -- the locks of other gits -------------------------------------------------------------------------------------

    def _comes_free(self, lock: Path, deadline: float) -> bool:
        """Whether a lock that is in the way goes, by itself or because whoever made it is dead."""
        if time.monotonic() < deadline:
            time.sleep(0.05)
            return True
        if not lock.exists() or not PROC.exists() or any(True for _ in self._living()):
            return False
        lock.unlink()
        self.say(f"{lock} was left behind by a git that has died: removed")
        return True

    def _living(self) -> Iterator[int]:
        """Processes of git that may be at work in this repository."""
        for process in running():
            try:
                name = (process / "comm").read_text()
                if name.startswith("git") and (process / "cwd").readlink().is_relative_to(self.root.resolve()):
                    yield int(process.name)
            except PermissionError:  # another user's
                yield int(process.name)
            except OSError:  # it has ended meanwhile
                continue

    def _hint(self, found: "re.Match[str] | None") -> str:
        if found is None:
            return ""
        pid = next(self._living(), None)
        return f" (git, process {pid}, is at work there: let it end)" if pid else f" (if no git is at work there: rm '{found[1]}')"

    # -- looking -------------------------------------------------------------------------------------------------

    def check_repository(self) -> None:
        """Raises NotReady unless the lab is the root of a git repository with a commit that holds train.py."""
        hint = f"run 'git init && git add -A && git commit -m lab' in {self.root}, or clone autoresearch"
        try:
            top = self.git("rev-parse", "--show-toplevel")
        except GitError as error:
            if "dubious ownership" in str(error):
                way_out = f"run 'git config --global --add safe.directory {self.root}'"
                raise NotReady(f"{self.root} belongs to another user, so git refuses it: {way_out}") from None
            raise NotReady(f"{self.root} is not in a git repository: {hint}") from None
        if Path(top).resolve() != self.root.resolve():
            raise NotReady(f"{self.root} is not the root of its git repository ({top} is): {hint}")
        try:
            self.git("cat-file", "-e", "HEAD:train.py")
        except GitError:
            raise NotReady(f"train.py is not in the last commit of {self.root}: {hint}") from None

    def branch(self) -> str | None:
        """The branch that HEAD is on; None if it is detached."""
        try:
            return self.git("symbolic-ref", "--short", "-q", "HEAD")
        except GitError:
            return None

    def commit_of(self, name: str) -> str | None:
        try:
            return self.git("rev-parse", "--verify", "-q", f"{name}^{{commit}}")
        except GitError:
            return None

    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def changed_files(self) -> list[str]:
        """Tracked files that differ from the last commit, staged or not."""
        return [name for name in self.git("diff", "--name-only", "HEAD", "--").split("\n") if name]

    def show(self, commit: str, path: str) -> str:
        """A file's text as it is in `commit`."""
        return self.git_bytes("show", f"{commit}:{path}").decode()

    def blob(self, commit: str, path: str) -> str:
        return self.git("rev-parse", f"{commit}:{path}")

    def merge(self, ours: str, base: str, theirs: str) -> str | None:
        """The change from `base` to `theirs`, made to `ours`; None where it doesn't apply."""
        with tempfile.TemporaryDirectory(prefix="autoresearch-") as folder:
            names = []
            for name, text in (("ours", ours), ("base", base), ("theirs", theirs)):
                names.append(str(Path(folder) / name))
                Path(names[-1]).write_bytes(text.encode())
            try:
                return self.git_bytes("merge-file", "--stdout", *names).decode()
            except GitError:
                return None

    # -- writing -------------------------------------------------------------------------------------------------

    def enter(self, tag: str) -> str:
        """Switch to the session's branch, made from where HEAD is if it is new. Returns the branch's name."""
        branch = PREFIX + tag
        try:
            self.git("check-ref-format", f"refs/heads/{branch}")
        except GitError:
            raise WrongCall(f"--tag {tag}: git can't name a branch that: use letters, digits and dashes") from None
        if self.branch() == branch:
            return branch
        if self.commit_of(f"refs/heads/{branch}"):
            self.git("switch", "--quiet", branch)
        else:
            self.git("switch", "--quiet", "--create", branch)
        return branch

    def commit(self, parent: str, files: Mapping[str, str | Path], message: str, other: str | None = None) -> str:
        """A commit on top of `parent` (and `other`) with these files changed, to a text or to what lies at a path. Nothing else
        moves. Returns its hash."""
        with tempfile.TemporaryDirectory(prefix="autoresearch-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self.git("read-tree", parent, env=index)
            modes = self._modes(parent)
            for path, new in files.items():
                if isinstance(new, Path):
                    blob = self.git("hash-object", "-w", "--no-filters", "--", str(new))
                else:
                    blob = self.git("hash-object", "-w", "--stdin", data=new.encode())
                entry = f"{modes.get(path, '100644')},{blob},{path}"
                self.git("update-index", "--add", "--cacheinfo", entry, env=index)
            tree = self.git("write-tree", env=index)
        parents = [word for each in (parent, other) if each for word in ("-p", each)]
        return self.git("commit-tree", tree, *parents, "-F", "-", data=message.encode())

    def _modes(self, commit: str) -> dict[str, str]:
        """Which files of the top folder are executable: they stay so."""
        entries = (line.split("\t", 1) for line in self.git("ls-tree", commit).splitlines())
        return {name: "100755" for facts, name in entries if facts.startswith("100755")}

    def remember(self, session: str, name: str, commit: str) -> None:
        """Make `commit` reachable for good as refs/autoresearch/<session>/<name>."""
        self.git("update-ref", f"refs/autoresearch/{session}/{name}", commit)

    def advance(self, branch: str, commit: str, files: tuple[str, ...]) -> bool:
        """Move the branch to `commit`; bring these files into the index and the working tree. May be repeated.

        What somebody committed on the branch meanwhile stays on it: the two are joined. False, and nothing is moved, where they
        changed one of these files too.
        """
        name = f"refs/heads/{branch}"
        tip = self.commit_of(name)
        if tip is None or self.is_ancestor(tip, commit):
            target = commit
        elif self.is_ancestor(commit, tip):
            target = tip
        elif joined := self._join(tip, commit, files):
            target = joined
        else:
            return False
        self.git("update-ref", name, target, tip or "")  # only if it is still there
        if files and self.branch() == branch:
            self.restore(target, files)
        return True

    def is_ancestor(self, older: str, newer: str) -> bool:
        return older == newer or self._merge_base(older, newer) == older

    def _merge_base(self, one: str, other: str) -> str | None:
        try:
            return self.git("merge-base", one, other)
        except GitError:  # they have nothing in common
            return None

    def _join(self, tip: str, commit: str, files: tuple[str, ...]) -> str | None:
        """`tip` with these files of `commit`, on top of both; None where they differ from those that `commit` was made from."""
        base = self._merge_base(tip, commit)
        if base is None or any(self.blob(tip, file) != self.blob(base, file) for file in files):
            return None
        subject = self.git("show", "--no-patch", "--format=%s", commit)
        return self.commit(tip, {file: self.show(commit, file) for file in files}, f"{subject}\n", commit)

    def restore(self, commit: str, files: tuple[str, ...]) -> None:
        """Index and working tree get these files as they are in `commit`. Nothing else of a person's tree is touched."""
        self.git("checkout", "--quiet", commit, "--", *files)
