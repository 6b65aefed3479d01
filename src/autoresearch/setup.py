"""Fit a lab to this machine: enter the session's branch, write the profile's literals, prepare the data."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoresearch.errors import NotReady, WrongCall
from autoresearch.files import write_atomically
from autoresearch.hardware import Hardware
from autoresearch.journal import Journal, SessionRecord
from autoresearch.lab import NAMED_SOURCES, PROGRAM, TRAIN, Lab
from autoresearch.literals import read_literals, set_literals
from autoresearch.profiles import Profile, profile_for, with_seq_len
from autoresearch.ratchet import PREFIX, GitError, Ratchet


@dataclass(frozen=True)
class Wishes:
    """What a person asked `setup` for; None leaves it to the profile, or as it is."""

    tag: str | None = None
    seq_len: int | None = None
    source: str | None = None
    time_budget: int | None = None
    num_shards: int | None = None

    def any(self) -> bool:
        return any(wish is not None for wish in (self.seq_len, self.source, self.time_budget))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def tag_of(ratchet: Ratchet, wanted: str | None) -> str:
    """The session's tag: the one asked for, else the branch we are on, else today's date. Raises WrongCall."""
    if wanted is not None:
        tag = wanted.removeprefix(PREFIX)
        try:
            ratchet.git("check-ref-format", f"refs/heads/{PREFIX}{tag}")
        except GitError:
            raise WrongCall(f"--tag {wanted}: git can't name a branch that: use letters, digits and dashes") from None
        return tag
    branch = ratchet.branch() or ""
    return branch.removeprefix(PREFIX) if branch.startswith(PREFIX) else datetime.now().strftime("%Y-%m-%d")


def check_clean(ratchet: Ratchet, allowed: tuple[str, ...] = (PROGRAM,)) -> None:
    """Raises NotReady that names the tracked files with uncommitted changes."""
    changed = [name for name in ratchet.changed_files() if name not in allowed]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        hint = "commit them, or take them back with 'git checkout -- FILE'"
        if changed == [TRAIN]:
            hint += ", or measure the change with scripts/run-experiment.sh --record 'what I tried'"
        raise NotReady(f"uncommitted changes in {shown}: {hint}")


def _from_lab(lab: Lab, folder: str) -> str:
    """A folder as constants.py names it: a relative path counts from the lab, a person's from where the person is."""
    path = Path(folder).expanduser()
    return str(path) if path.is_absolute() else os.path.relpath(path.resolve(), lab.root)


def profile_of(lab: Lab, hardware: Hardware, wishes: Wishes) -> Profile:
    """This machine's profile with a person's wishes in it. Raises WrongCall."""
    profile = profile_for(hardware)
    if wishes.seq_len is not None:
        try:
            profile = with_seq_len(profile, wishes.seq_len)
        except ValueError as error:
            raise WrongCall(str(error)) from None
    constants = dict(profile.constants)
    if wishes.source is not None:
        constants["DATASET"] = wishes.source if wishes.source in NAMED_SOURCES else _from_lab(lab, wishes.source)
    if wishes.time_budget is not None:
        if wishes.time_budget < 1:
            raise WrongCall(
                f"--time-budget {wishes.time_budget}: seconds of training, 1 or more (300 makes scores comparable with others')"
            )
        constants["TIME_BUDGET"] = wishes.time_budget
    return replace(profile, constants=constants)


def setup(lab: Lab, hardware: Hardware, wishes: Wishes, say: Callable[[str], None]) -> SessionRecord:
    """Make the lab ready for a session. What was done before is not done again; a person's main branch stays.

    The data is prepared first, in a folder apart: whatever is wrong shows before anything in git has changed.
    """
    ratchet, journal = Ratchet(lab.root), Journal(lab)
    ratchet.check_repository()
    check_clean(ratchet)
    lab.constants()
    lab.train_source()
    tag = tag_of(ratchet, wishes.tag)
    profile = profile_of(lab, hardware, wishes)

    base, branch = ratchet.branch(), PREFIX + tag
    start = ratchet.commit_of(f"refs/heads/{branch}")
    record = journal.session(tag)
    fresh = record is None or not record.profile or start is None
    fitted_before = _was_fitted(ratchet, start or ratchet.head(), profile)
    if not fresh or fitted_before:
        profile = replace(profile, train=_sizes_for(profile, wishes), constants=_asked_for(profile, wishes))
    if record is None:
        base = None if base is None or base.startswith(PREFIX) else base
        record = SessionRecord(tag=tag, branch=branch, base=base, started=now())
    if fresh:
        record = replace(record, profile=profile.name)
    say(f"lab: {lab.root}, branch {branch}, profile {record.profile}")
    start = start or ratchet.head()
    fitted = _fitted(ratchet, start, profile)
    prepare_data(lab, {**_texts(ratchet, start), **fitted}, wishes.num_shards)

    if fitted or (fresh and not fitted_before):  # an empty commit, too, says which profile the lab has
        commit = ratchet.commit(start, fitted, f"setup: {profile.name} profile\n")
        ratchet.advance(branch, commit, tuple(fitted))
    ratchet.enter(tag)
    journal.save_session(record)
    return record


def _was_fitted(ratchet: Ratchet, commit: str, profile: Profile) -> bool:
    """Whether `commit` comes from a session with this profile: its sizes are what that session found, not to be undone."""
    return bool(ratchet.git("log", "--max-count=1", "--format=%h", f"--grep=^setup: {profile.name} profile$", commit))


def _sizes_for(profile: Profile, wishes: Wishes) -> dict[str, Any]:
    """The sizes of train.py that have to follow another sequence length."""
    names = ("DEVICE_BATCH", "TOTAL_BATCH", "SHORT_WINDOW") if wishes.seq_len is not None else ()
    return {name: profile.train[name] for name in names}


def _asked_for(profile: Profile, wishes: Wishes) -> dict[str, Any]:
    """The constants that a repeated `setup` may change: only those that the person named now."""
    names = []
    if wishes.seq_len is not None:
        names += ["MAX_SEQ_LEN", "EVAL_TOKENS"]
    if wishes.source is not None:
        names += ["DATASET"]
    if wishes.time_budget is not None:
        names += ["TIME_BUDGET"]
    return {name: profile.constants[name] for name in names}


def _texts(ratchet: Ratchet, commit: str) -> dict[str, str]:
    return {name: ratchet.show(commit, name) for name in ("prepare.py", "constants.py", TRAIN)}


def _fitted(ratchet: Ratchet, commit: str, profile: Profile) -> dict[str, str]:
    """constants.py and train.py of `commit` with the profile in them, where that changes anything."""
    texts = _texts(ratchet, commit)
    known = read_literals(texts[TRAIN])
    train = {name: value for name, value in profile.train.items() if name in known}
    fitted = {"constants.py": set_literals(texts["constants.py"], profile.constants), TRAIN: set_literals(texts[TRAIN], train)}
    return {name: text for name, text in fitted.items() if text != texts[name]}


def prepare_data(lab: Lab, texts: Mapping[str, str], num_shards: int | None = None) -> None:
    """Run this prepare.py with these constants; it does nothing if the data is there. Raises NotReady."""
    folder = lab.journal / "scratch" / "prepare"
    constants = texts["constants.py"]
    dataset = read_literals(constants)["DATASET"].value
    if dataset not in NAMED_SOURCES:  # a relative path counts from the lab
        constants = set_literals(constants, {"DATASET": str((lab.root / Path(dataset).expanduser()).resolve())})
    write_atomically(folder / "prepare.py", texts["prepare.py"])
    write_atomically(folder / "constants.py", constants)
    command = [sys.executable, "-B", "prepare.py"]
    if num_shards is not None:
        command += ["--num-shards", str(num_shards)]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode != 0:
        raise NotReady("no data, see the line above; nothing was changed")
