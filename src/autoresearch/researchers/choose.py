"""From `--researcher` to researchers."""

import os
import re
import shlex
import shutil
from collections.abc import Callable

from autoresearch.errors import WrongCall
from autoresearch.researchers import INSTALL, KNOWN, Options, Researcher
from autoresearch.researchers.agent import Agent, has_login
from autoresearch.researchers.team import Member, Team

# The keys that llm.py looks for; named here because `check` works where its HTTP client is not installed yet.
LLM_KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY")
ACP = "acp:"
MIXTURE = re.compile(r"^(?P<name>.+):(?P<share>\d*\.?\d+)$")


def team(spec: str, options: Callable[[str], Options]) -> Team:
    """All that `--researcher` names. `options`: what is set for a researcher of this name. Raises WrongCall."""
    parts = [part.strip() for part in spec.split(",")]
    shares = [MIXTURE.match(part) for part in parts]
    if len(parts) == 1 or not any(shares):  # one alone may end in a port's number
        return Team((Member(one(spec, options(name_of(spec))), 1.0),))
    members = []
    for part, share in zip(parts, shares, strict=True):
        if share is None or float(share["share"]) <= 0:
            raise WrongCall(f"--researcher {spec}: '{part}' has no share: a mixture is written search:0.7,claude:0.3")
        members.append(Member(one(share["name"], options(name_of(share["name"]))), float(share["share"])))
    names = [each.researcher.name for each in members]
    if len(set(names)) < len(names):
        raise WrongCall(f"--researcher {spec}: a researcher is named twice")
    return Team(tuple(members))


def name_of(spec: str) -> str:
    """The name under which a researcher's own options stand: the word itself, 'acp', or 'command'."""
    return "acp" if spec.startswith(ACP) else spec if spec in KNOWN else "command"


def one(spec: str, options: Options) -> Researcher:
    if spec == "search":
        from autoresearch.researchers.search import Search

        return Search()
    if spec == "llm":
        from autoresearch.researchers.llm import Llm

        return Llm(options)
    if spec in INSTALL:
        kind = agents()[spec]
        kind.check()
        return kind(options)
    if spec.startswith(ACP):
        from autoresearch.researchers.acp import Acp

        return Acp(_words(spec.removeprefix(ACP)), options)
    if any(mark in spec for mark in " /"):
        from autoresearch.researchers.command import Command

        return Command(_words(spec), options)
    raise WrongCall(
        f"--researcher {spec}: not one of {', '.join(KNOWN)}, acp:COMMAND; a command needs a space or a slash in it, as './{spec}'"
    )


def agents() -> dict[str, type[Agent]]:
    """The coding agents, by name."""
    from autoresearch.researchers.aider import Aider
    from autoresearch.researchers.claude import Claude
    from autoresearch.researchers.codex import Codex
    from autoresearch.researchers.gemini import Gemini
    from autoresearch.researchers.opencode import OpenCode

    return {kind.name: kind for kind in (Claude, Codex, OpenCode, Gemini, Aider)}


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise WrongCall(f"--researcher {command!r}: {error}") from None
    if not words:
        raise WrongCall("--researcher is empty: name one, or a command")
    return words


def readiness() -> dict[str, str]:
    """Each researcher and whether it can work here, in a few words. Nothing is asked of any service."""
    found = {"search": "ready"}
    keys = [
        name for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY") if os.environ.get(name)
    ]
    found["llm"] = f"ready ({keys[0]}); needs --model" if keys else "no key is set; needs --endpoint and --model"
    for name, kind in agents().items():
        if shutil.which(name) is None:
            found[name] = f"not installed: {INSTALL[name]}"
        elif has_login(kind):
            found[name] = "ready"
        else:
            found[name] = f"installed, no login found: {kind.login_hint}"
    return found
