"""The git side: a branch that only ever moves to better commits, and a reference to every commit that was tried.

Commits are made from objects alone (an index of their own, no checkout): while an experiment runs, the branch, the index and the
working tree stay at the incumbent. A discard therefore has nothing to undo; a keep moves the branch and writes train.py. Commits
carry the tool's own identity, run no hooks and are not signed. A person's main branch is never touched.
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch.errors import NotReady, WrongCall

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


class GitError(NotReady):
    """git refused; its own words are in the message."""


@dataclass(frozen=True)
class Ratchet:
    root: Path

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
        try:
            # A session of its own: Ctrl-C in a terminal reaches the whole process group, and git shall finish.
            done = subprocess.run(
                command, cwd=self.root, capture_output=True, env=environment, input=data or b"", start_new_session=True
            )
        except FileNotFoundError:
            raise NotReady("git is not installed: install it with your system's packages") from None
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            reason = next((line for line in words if line.startswith(("fatal:", "error:"))), words[-1])  # advice follows it
            raise GitError(f"git {' '.join(arguments[:2])} in {self.root}: {reason}")
        return done.stdout

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

    def commit(self, parent: str, files: Mapping[str, str], message: str) -> str:
        """A commit on top of `parent` with these files' texts changed. Nothing else moves. Returns its hash."""
        with tempfile.TemporaryDirectory(prefix="autoresearch-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self.git("read-tree", parent, env=index)
            modes = self._modes(parent)
            for path, text in files.items():
                blob = self.git("hash-object", "-w", "--stdin", data=text.encode())
                entry = f"{modes.get(path, '100644')},{blob},{path}"
                self.git("update-index", "--add", "--cacheinfo", entry, env=index)
            tree = self.git("write-tree", env=index)
        return self.git("commit-tree", tree, "-p", parent, "-F", "-", data=message.encode())

    def _modes(self, commit: str) -> dict[str, str]:
        """Which files of the top folder are executable: they stay so."""
        entries = (line.split("\t", 1) for line in self.git("ls-tree", commit).splitlines())
        return {name: "100755" for facts, name in entries if facts.startswith("100755")}

    def remember(self, session: str, name: str, commit: str) -> None:
        """Make `commit` reachable for good as refs/autoresearch/<session>/<name>."""
        self.git("update-ref", f"refs/autoresearch/{session}/{name}", commit)

    def advance(self, branch: str, commit: str, files: tuple[str, ...]) -> None:
        """Move the branch to `commit`; bring these files into the index and the working tree. May be repeated."""
        self.git("update-ref", f"refs/heads/{branch}", commit)
        if self.branch() == branch:
            self.restore(commit, files)

    def restore(self, commit: str, files: tuple[str, ...]) -> None:
        """Index and working tree get these files as they are in `commit`. Nothing else of a person's tree is touched."""
        self.git("checkout", "--quiet", commit, "--", *files)
