"""opencode. Its whole configuration goes in by one variable: what it may do, and where its model is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autoresearch.errors import WrongCall
from autoresearch.lab import TRAIN
from autoresearch.researchers import Context, Cost, Options
from autoresearch.researchers.agent import Agent, Answer, events, number

PROVIDER = "lab"  # the name under which a person's own endpoint is known to it


class OpenCode(Agent):
    name = "opencode"
    variables = (
        *("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
        *("GROQ_API_KEY", "DEEPSEEK_API_KEY", "MISTRAL_API_KEY", "XAI_API_KEY", "OPENCODE_API_KEY"),
    )
    logins = (".local/share/opencode/auth.json", ".config/opencode/opencode.json", ".config/opencode/opencode.jsonc")
    login_hint = "run 'opencode auth login', or set the key of the model's provider"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.endpoint and not options.model:
            raise WrongCall("--researcher opencode with --endpoint needs --model: a name that the endpoint knows")

    def words(self, prompt: str, context: Context) -> Sequence[str]:
        name = f"{PROVIDER}/{self.options.model}" if self.options.endpoint else self.options.model
        return ["opencode", "run", "--pure", "--format", "json", *(["-m", name] if name else []), prompt]

    def settings(self) -> Mapping[str, str]:
        edit = {"*": "deny", TRAIN: "allow", f"*/{TRAIN}": "allow"}  # outside a repository it sees paths from the root
        config: dict[str, Any] = {
            "permission": {"edit": edit, "bash": "deny", "webfetch": "deny", "external_directory": "deny"},
            "share": "disabled",
            "autoupdate": False,
        }
        options = self.options
        if options.endpoint:
            server = {"baseURL": options.endpoint}
            if options.key_variable:
                server["apiKey"] = f"{{env:{options.key_variable}}}"
            provider = {"npm": "@ai-sdk/openai-compatible", "name": PROVIDER, "options": server, "models": {options.model: {}}}
            config |= {
                "provider": {PROVIDER: provider},
                "enabled_providers": [PROVIDER],
                "small_model": f"{PROVIDER}/{options.model}",
            }
        quiet = {"OPENCODE_DISABLE_AUTOUPDATE": "1"}
        quiet |= {"OPENCODE_DISABLE_MODELS_FETCH": "1"} if options.endpoint else {}
        return quiet | {"OPENCODE_CONFIG_CONTENT": json.dumps(config)}

    def read(self, output: str) -> Answer:
        text, error, finished = "", "", False
        cost, priced = Cost(), False
        for event in events(output):
            part = event.get("part")
            match event.get("type"):
                case "text" if isinstance(part, dict):
                    text = str(part.get("text") or "")
                case "step_finish" if isinstance(part, dict):
                    finished = part.get("reason") != "tool-calls"
                    tokens, dollars = part.get("tokens"), part.get("cost")
                    priced = priced or bool(dollars)
                    read = number(tokens, "input") + number(tokens, "cache", "read") + number(tokens, "cache", "write")
                    written = number(tokens, "output") + number(tokens, "reasoning")
                    cost += Cost(0.0, read, written, float(dollars) if isinstance(dollars, int | float) else 0.0)
                case "error":
                    error = _message(event.get("error"))
        if not priced:  # it says 0 for a model whose price it doesn't know
            cost = Cost(0.0, cost.input_tokens, cost.output_tokens, None)
        return Answer(text, error or ("" if finished else "its output ended without a result"), cost)


def _message(error: Any) -> str:
    """'APIError 401: Invalid key' from its nested report."""
    if not isinstance(error, dict):
        return str(error)
    nested = error.get("data")
    data: dict[str, Any] = nested if isinstance(nested, dict) else {}
    parts = (error.get("name"), data.get("statusCode"), data.get("message") or error.get("message"))
    return " ".join(str(part) for part in parts if part)
