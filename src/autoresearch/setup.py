"""Fit a lab to this machine: enter the session's branch, write the profile's literals, prepare the data."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from autoresearch.errors import NotReady, WrongCall
from autoresearch.hardware import Hardware
from autoresearch.journal import Journal, SessionRecord
from autoresearch.lab import PROGRAM, TRAIN, Lab
from autoresearch.literals import read_literals, set_literals
from autoresearch.profiles import Profile, profile_for, with_seq_len
from autoresearch.ratchet import PREFIX, Ratchet


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
    """The session's tag: the one asked for, else the branch we are on, else today's date."""
    if wanted:
        return wanted.removeprefix(PREFIX)
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


def profile_of(hardware: Hardware, wishes: Wishes) -> Profile:
    """This machine's profile with a person's wishes in it. Raises WrongCall."""
    profile = profile_for(hardware)
    if wishes.seq_len is not None:
        try:
            profile = with_seq_len(profile, wishes.seq_len)
        except ValueError as error:
            raise WrongCall(str(error)) from None
    constants = dict(profile.constants)
    if wishes.source is not None:
        constants["DATASET"] = wishes.source
    if wishes.time_budget is not None:
        if wishes.time_budget < 1:
            raise WrongCall(
                f"--time-budget {wishes.time_budget}: seconds of training, 1 or more (300 makes scores comparable with others')"
            )
        constants["TIME_BUDGET"] = wishes.time_budget
    return replace(profile, constants=constants)


def setup(lab: Lab, hardware: Hardware, wishes: Wishes, say: Callable[[str], None]) -> SessionRecord:
    """Make the lab ready for a session. What was done before is not done again; a person's main branch stays."""
    ratchet, journal = Ratchet(lab.root), Journal(lab)
    ratchet.check_repository()
    check_clean(ratchet)
    lab.constants()
    lab.train_source()
    profile = profile_of(hardware, wishes)

    tag = tag_of(ratchet, wishes.tag)
    base = ratchet.branch()
    branch = ratchet.enter(tag)
    record = journal.session(tag)
    fresh = record is None or not record.profile
    if fresh or wishes.any():
        wanted = profile if fresh else replace(profile, train={}, constants=_asked_for(profile, wishes))
        _write_literals(lab, ratchet, branch, wanted)
    if record is None:
        base = None if base is None or base.startswith(PREFIX) else base
        record = SessionRecord(tag=tag, branch=branch, base=base, started=now())
    if fresh:
        record = replace(record, profile=profile.name)
    journal.save_session(record)
    say(f"lab: {lab.root}, branch {branch}, profile {record.profile}")
    prepare_data(lab, wishes.num_shards)
    return record


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


def _write_literals(lab: Lab, ratchet: Ratchet, branch: str, profile: Profile) -> None:
    """Write the profile into constants.py and train.py and commit both, if anything changes."""
    constants = set_literals(lab.read("constants.py"), profile.constants)
    train = lab.train_source()
    known = read_literals(train)
    train = set_literals(train, {name: value for name, value in profile.train.items() if name in known})
    files = {"constants.py": constants, TRAIN: train}
    changed = {name: text for name, text in files.items() if text != lab.read(name)}
    if changed:
        parent = ratchet.head()
        commit = ratchet.commit(parent, changed, f"setup: {profile.name} profile\n")
        ratchet.advance(branch, commit, tuple(changed))


def prepare_data(lab: Lab, num_shards: int | None = None) -> None:
    """Run the lab's prepare.py; it does nothing if the data is there. Raises NotReady."""
    command = [sys.executable, "-B", "prepare.py"]
    if num_shards is not None:
        command += ["--num-shards", str(num_shards)]
    done = subprocess.run(command, cwd=lab.root, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode != 0:
        raise NotReady(
            "the data could not be prepared, see above: choose another text with 'bash scripts/setup.sh --source stdlib'"
        )
