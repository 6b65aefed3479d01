"""What all coding agents have in common: one fresh call for each proposal, on a scratch copy of the lab.

One call each, because an agent's context fills over a night and its work drifts. Success is: exit code 0, and no error in what it
reported, and a changed train.py; exit codes alone lie. The harness runs the training, never the agent's shell: the agents' own
sandboxes hide the GPU, and a score must come from one place.
"""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from autoresearch.errors import WrongCall
from autoresearch.experiment import sandbox
from autoresearch.researchers import INSTALL, Context, Cost, Options, Proposal, ResearcherFailed, process, said
from autoresearch.researchers.command import lay_out, read_log, take
from autoresearch.researchers.faults import fault
from autoresearch.results import clean

TASK = "\nYou are in a folder with copies of the lab's files. Edit train.py there. The brief above is also in BRIEF.md.\n"


@dataclass(frozen=True)
class Answer:
    """What an agent reported, in its own format, read into one."""

    text: str = ""  # its last words
    error: str = ""  # '' for success
    cost: Cost = Cost()  # noqa: RUF009 - frozen
    denied: str = ""  # tools that it was not allowed to use


class Agent(ABC):
    thinks = True
    name: str
    variables: ClassVar[tuple[str, ...]]  # that may hold its key or lead to its model
    logins: ClassVar[tuple[str, ...]] = ()  # files of the home folder with its login or its settings
    login_hint: ClassVar[str]  # how a person gives it access

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def check(cls) -> None:
        """Raises WrongCall if its program is not there."""
        if shutil.which(cls.name) is None:
            raise WrongCall(f"--researcher {cls.name}: the program '{cls.name}' is not installed: {INSTALL[cls.name]}")

    @abstractmethod
    def words(self, prompt: str, context: Context) -> Sequence[str]:
        """The command line."""

    @abstractmethod
    def read(self, output: str) -> Answer:
        """What its output says."""

    def settings(self) -> Mapping[str, str]:
        """Environment variables that it gets whatever the caller's are."""
        return {}

    def home_files(self) -> Mapping[str, str]:
        """Files that it finds in its home folder."""
        return {}

    def propose(self, context: Context) -> Proposal:
        before = lay_out(context)
        try:
            exit_code = process.run(self.launch(context))
        except ResearcherFailed as failure:  # it was ended; what it took so far is owed
            raise ResearcherFailed(str(failure), self.options.priced(self.read(read_log(context)).cost)) from None
        output = read_log(context)
        answer = self.read(output)
        answer = replace(answer, cost=self.options.priced(answer.cost))
        error = answer.error
        if exit_code != 0 and not error:
            lines = [clean(line) for line in output.splitlines() if clean(line)]
            error = f"exit code {exit_code}: {lines[-1] if lines else 'it printed nothing'}"
        if error:
            raise fault(self.name, error, answer.cost, self.login_hint)
        return finished(self.name, context, before, answer)

    def launch(self, context: Context) -> process.Launch:
        return process.Launch(
            self.name,
            self.words(context.brief + TASK, context),
            context.scratch,
            context.log,
            self.options.time_limit,
            context.should_stop,
            variables=(*self.variables, *self.options.all_variables),
            settings=self.settings(),
            logins=(*self.logins, *self.options.files),
            home_files=self.home_files(),
            level=context.sandbox,
        )


def finished(name: str, context: Context, before: Mapping[str, str], answer: Answer) -> Proposal:
    """The proposal of an agent that ended well. Raises ResearcherFailed if it changed nothing, or what it must not."""
    try:
        source = take(context.scratch, name, before)
    except ResearcherFailed as failure:
        raise ResearcherFailed(str(failure), answer.cost) from None
    if source == context.source:
        why = f"; not allowed were: {answer.denied}" if answer.denied else ""
        raise ResearcherFailed(f"'{name}' ended without a change to train.py{why}", answer.cost)
    told = said.read(answer.text)
    description = told.description or said.changes(context.source, source)
    return Proposal(source, description, {}, told.hypothesis, told.expected_gain, told.category, answer.cost)


def events(output: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of an output; a line that was cut or is something else is passed over."""
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def number(data: Any, *names: str) -> int:
    """A count somewhere in a report; 0 for what is not there or is no count."""
    for name in names:
        data = data.get(name) if isinstance(data, dict) else None
    return int(data) if isinstance(data, int | float) and not isinstance(data, bool) and 0 <= data < 1e15 else 0


def boxed() -> bool:
    """Whether a sandbox of ours confines the agents on this machine."""
    return sandbox.best()[0] != sandbox.NONE


def has_login(agent: type[Agent]) -> bool:
    """Whether a key or a login file of the agent is there; whether it is good is not asked."""
    keyed = any(os.environ.get(name) for name in agent.variables if name.endswith(("_KEY", "_TOKEN")))
    return keyed or any((Path.home() / name).is_file() for name in agent.logins)
