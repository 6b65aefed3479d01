"""Who proposes the next train.py. One Protocol, one small file for each kind.

search                      steps and CMA-ES over the literals, in this process
claude, codex, opencode, gemini, aider, acp:COMMAND
                            coding agents: each edits a scratch copy of train.py in a box of its own
llm                         one request to a model, no agent
any command                 `./my-agent --flag`
search:0.7,claude:0.3       a mixture: each takes its share of the turns and sees what the others found
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from autoresearch.journal import Experiment
from autoresearch.lab import Lab

DEFAULT_TIME_LIMIT = 900.0  # seconds for one proposal: three runs of an H100's budget
DEFAULT_TURNS = 30  # of an agent in one proposal: reading, one idea, a few edits and their repair
DEFAULT_BUDGET = 2.0  # dollars of one proposal, for agents that count them: some twenty times an ordinary one

CATEGORIES = ("architecture", "optimizer", "schedule", "data", "systems", "simplification")


@dataclass(frozen=True)
class Cost:
    """What one proposal took. Dollars are None where nobody knows the price: they are never guessed."""

    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        known = self.dollars is not None and other.dollars is not None
        return Cost(
            self.seconds + other.seconds,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            (self.dollars or 0.0) + (other.dollars or 0.0) if known else None,
        )


class ResearcherFailed(Exception):
    """No proposal came: the researcher hung, failed, or broke a rule. The message is told to it once."""

    def __init__(self, message: str, cost: Cost = Cost()) -> None:
        super().__init__(message)
        self.cost = cost


class Unreachable(ResearcherFailed):
    """Its model can't be reached: a wrong address, or a network that is away for a while."""


class Busy(Exception):
    """The model's service asks for patience: a rate limit, an overload, a fault of its own. `wait`: seconds it asked for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Context:
    """What a researcher gets."""

    lab: Lab
    source: str  # the incumbent's train.py
    brief: str  # Markdown
    history: Sequence[Experiment]  # settled experiments of the same fingerprint, oldest first
    scratch: Path  # an empty folder of its own; its log is `researcher.log` beside it
    should_stop: Callable[[], bool] | None = None  # a person wants to stop now
    sandbox: str = ""  # the level that the loop took; "": the best of this machine

    @property
    def log(self) -> Path:
        return self.scratch.parent / "researcher.log"


@dataclass(frozen=True)
class Proposal:
    source: str  # a whole train.py
    description: str  # one line
    details: dict[str, Any] = field(default_factory=dict)  # what the researcher wants to find again in the history
    hypothesis: str = ""  # why it should help, one line
    expected_gain: float | None = None  # bpb by which the score should fall
    category: str = ""  # one of CATEGORIES
    cost: Cost = Cost()


class Researcher(Protocol):
    name: str
    thinks: bool  # long enough that it is asked ahead, while an experiment trains

    def propose(self, context: Context) -> Proposal:
        """One idea. Raises ResearcherFailed, Busy, or NotReady where it can't work at all (logged out, no credit)."""
        ...


@dataclass(frozen=True)
class Options:
    """What a person may set, by a flag of `loop` or in the lab's [tool.autoresearch]."""

    model: str = ""
    endpoint: str = ""  # base URL of another model server
    key_variable: str = ""  # name of the environment variable that holds its key
    time_limit: float = DEFAULT_TIME_LIMIT  # seconds of one proposal
    turns: int = DEFAULT_TURNS
    budget: float = DEFAULT_BUDGET  # dollars of one proposal
    input_price: float | None = None  # dollars for a million tokens, where the source tells tokens alone
    output_price: float | None = None
    variables: tuple[str, ...] = ()  # further environment variables that its process gets
    files: tuple[str, ...] = ()  # further files of the home folder that it gets copies of

    @property
    def all_variables(self) -> tuple[str, ...]:
        """Every environment variable that a person named, the key's among them."""
        return (self.key_variable, *self.variables) if self.key_variable else self.variables

    def priced(self, cost: Cost) -> Cost:
        """With dollars by the prices that a person named, where the source tells none."""
        if cost.dollars is not None or self.input_price is None or self.output_price is None:
            return cost
        return replace(cost, dollars=(cost.input_tokens * self.input_price + cost.output_tokens * self.output_price) / 1e6)


INSTALL = {
    "claude": "npm install -g @anthropic-ai/claude-code",
    "codex": "npm install -g @openai/codex",
    "opencode": "npm install -g opencode-ai",
    "gemini": "npm install -g @google/gemini-cli",
    "aider": "pip install aider-chat (or 'uv tool install aider-chat')",
}
KNOWN = ("search", "llm", *INSTALL)


def make(spec: str, options: Options = Options()) -> Researcher:
    """The researcher that one part of `--researcher` names. Raises WrongCall for one that can't exist."""
    from autoresearch.researchers import choose  # the kinds import this module

    return choose.one(spec, options)
