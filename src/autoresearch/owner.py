"""Who works in a lab: the process that holds its lock, told by what a later process of the same number has not.

A wish to stop names the process it is meant for. One that comes too late, or is left behind, is therefore nobody's.
Standard library only.
"""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from autoresearch.processes import birth


@dataclass(frozen=True)
class Owner:
    pid: int
    birth: str  # see `processes.birth`
    loop: bool = False  # whether it can be asked to stop after an experiment
    since: str = ""  # ISO 8601, UTC

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def is_same(self, other: "Owner | None") -> bool:
        return other is not None and (self.pid, self.birth) == (other.pid, other.birth)


def me(loop: bool = False) -> Owner:
    return Owner(os.getpid(), birth(os.getpid()), loop, datetime.now(UTC).isoformat(timespec="seconds"))


def read(path: Path) -> Owner | None:
    """Whom a file names; None if there is none or it is half written."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def living(path: Path) -> Owner | None:
    """Whom a lock names, if that very process lives. Takes no lock, so that it is in nobody's way."""
    owner = read(path)
    return owner if owner and owner.birth and birth(owner.pid) == owner.birth else None
