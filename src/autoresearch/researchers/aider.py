"""aider. It prints text for people and exits with 0 whatever happened, so its lines have to be read."""

import re
from collections.abc import Mapping, Sequence

from autoresearch.errors import WrongCall
from autoresearch.lab import TRAIN
from autoresearch.researchers import Context, Cost, Options
from autoresearch.researchers.agent import Agent, Answer

TOKENS = re.compile(r"Tokens: ([\d.,]+)([km]?) sent, .*?([\d.,]+)([km]?) received\.(?: Cost: \$([\d.]+) message)?", re.IGNORECASE)
ERROR = re.compile(
    r"^(?:litellm\.\S*(?:Error|Exception).*|.*(?:The API provider|did not conform|SEARCH/REPLACE blocks? failed|"
    r"can't be applied|Unable to apply|exceeds? the .*token limit).*)$",
    re.MULTILINE,
)
BANNER = re.compile(
    r"^(Aider v|Main model|Weak model|Model:|Git repo|Repo-map|Added |Tokens: |Applied edit|Warning|https?:|Can't initialize|"
    r"Terminal does not|Note:|Using |<<<<<<<|```)"
)
FLAGS = (
    *(
        "--edit-format",
        "diff",
        "--yes-always",
        "--no-git",
        "--no-check-update",
        "--no-show-model-warnings",
        "--no-stream",
        "--no-pretty",
    ),
    *("--map-tokens", "0", "--no-detect-urls", "--no-suggest-shell-commands", "--no-analytics", "--no-show-release-notes"),
    "--no-gitignore",
)
SCALE = {"": 1, "k": 1000, "m": 1_000_000}


class Aider(Agent):
    name = "aider"
    variables = (
        *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY", "DEEPSEEK_API_KEY", "GROQ_API_KEY"),
        *("OPENAI_API_BASE", "OLLAMA_API_BASE", "AIDER_MODEL"),
    )
    logins = (".aider.conf.yml", ".aider.model.settings.yml", ".aider.model.metadata.json")
    login_hint = "set the key of the model's provider, as OPENAI_API_KEY"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.endpoint and not options.model:
            raise WrongCall("--researcher aider with --endpoint needs --model: a name that the endpoint knows")

    def words(self, prompt: str, context: Context) -> Sequence[str]:
        name = f"openai/{self.options.model}" if self.options.endpoint else self.options.model
        return ["aider", *(["--model", name] if name else []), *FLAGS, "--message-file", "BRIEF.md", TRAIN]

    def settings(self) -> Mapping[str, str]:
        local = {"OPENAI_API_BASE": self.options.endpoint, "LITELLM_LOCAL_MODEL_COST_MAP": "True"} if self.options.endpoint else {}
        return {"AIDER_ANALYTICS": "false"} | local

    def read(self, output: str) -> Answer:
        cost = Cost(dollars=0.0)
        found = list(TOKENS.finditer(output))
        for sent, sent_unit, received, received_unit, dollars in (match.groups() for match in found):
            cost += Cost(0.0, _count(sent, sent_unit), _count(received, received_unit), float(dollars) if dollars else None)
        error = ERROR.search(output)
        applied = f"Applied edit to {TRAIN}" in output
        text = "\n".join(line for line in output.splitlines() if not BANNER.match(line.strip()))
        failed = "" if applied else error[0] if error else "" if found else "its output ended without a result"
        return Answer(text, failed, cost if found else Cost(dollars=None))


def _count(figure: str, unit: str) -> int:
    try:
        return int(float(figure.replace(",", "")) * SCALE[unit.lower()])
    except ValueError:
        return 0
