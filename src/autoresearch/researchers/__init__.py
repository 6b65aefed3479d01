"""Who proposes the next train.py. One Protocol, one small file for each kind."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autoresearch.errors import WrongCall
from autoresearch.journal import Experiment
from autoresearch.lab import Lab

DEFAULT_TIME_LIMIT = 900.0  # seconds for one proposal: three runs of an H100's budget


class ResearcherFailed(Exception):
    """No proposal came: the researcher hung, failed, or broke a rule. The message is told to it once."""


@dataclass(frozen=True)
class Context:
    """What a researcher gets."""

    lab: Lab
    source: str  # the incumbent's train.py
    brief: str  # Markdown
    history: Sequence[Experiment]  # settled experiments of the same fingerprint, oldest first
    scratch: Path  # an empty folder of its own
    should_stop: Any = None  # () -> bool: a person wants to stop now


@dataclass(frozen=True)
class Proposal:
    source: str  # a whole train.py
    description: str  # one line
    details: dict[str, Any] = field(default_factory=dict)  # what the researcher wants to find again in the history


class Researcher(Protocol):
    name: str

    def propose(self, context: Context) -> Proposal:
        """One idea. Raises ResearcherFailed."""
        ...


KNOWN = ("search",)


def make(spec: str, time_limit: float = DEFAULT_TIME_LIMIT) -> Researcher:
    """The researcher that `--researcher SPEC` names. Raises WrongCall for one that can't exist."""
    if spec == "search":
        from autoresearch.researchers.search import Search

        return Search()
    if any(mark in spec for mark in " /"):
        from autoresearch.researchers.command import Command

        try:
            words = shlex.split(spec)
        except ValueError as error:
            raise WrongCall(f"--researcher {spec!r}: {error}") from None
        if not words:
            raise WrongCall("--researcher is empty: name one, or a command")
        return Command(words, time_limit)
    raise WrongCall(f"--researcher {spec}: not one of {', '.join(KNOWN)}; a command needs a space or a slash in it, as './{spec}'")
