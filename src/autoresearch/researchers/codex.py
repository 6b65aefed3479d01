"""Codex. It tells tokens, never dollars. Its own sandbox can't be nested in ours, so where ours is there its own is off."""

import json
from collections.abc import Mapping, Sequence

from autoresearch.researchers import Context, Cost
from autoresearch.researchers.agent import Agent, Answer, boxed, events, number


class Codex(Agent):
    name = "codex"
    variables = ("OPENAI_API_KEY", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN")
    logins = (".codex/auth.json",)
    login_hint = "run 'codex login', or set CODEX_API_KEY"

    def words(self, prompt: str, context: Context) -> Sequence[str]:
        options = self.options
        model = ["-m", options.model] if options.model else []
        confined = "danger-full-access" if boxed() else "workspace-write"
        # Its shell would hand the key to whatever it runs.
        server = ["-c", 'shell_environment_policy={inherit="core"}']
        if options.endpoint:  # OPENAI_BASE_URL is ignored by it
            key = options.key_variable or "OPENAI_API_KEY"
            own = f'{{name="lab",base_url={json.dumps(options.endpoint)},env_key={json.dumps(key)},wire_api="responses"}}'
            server += ["-c", 'model_provider="lab"', "-c", f"model_providers.lab={own}"]
        flags = ["--json", "--skip-git-repo-check", "--ephemeral", "--ignore-user-config", "-s", confined]
        return ["codex", "exec", *flags, "-C", str(context.scratch), *server, *model, prompt]

    def settings(self) -> Mapping[str, str]:
        return {"RUST_LOG": "error"}

    def read(self, output: str) -> Answer:
        text, error, done = "", "", False
        cost = Cost(dollars=None)
        for event in events(output):
            match event.get("type"):
                case "item.completed" if isinstance(item := event.get("item"), dict) and item.get("type") == "agent_message":
                    text = str(item.get("text") or "")
                case "turn.completed":
                    done, error = True, ""  # what it mended by itself on the way is no error
                    usage = event.get("usage")
                    cost += Cost(0.0, number(usage, "input_tokens"), number(usage, "output_tokens"), None)
                case "turn.failed":
                    done, failure = True, event.get("error")
                    error = str(failure.get("message") if isinstance(failure, dict) else failure)
                case "error":
                    error = str(event.get("message"))
        return Answer(text, error or ("" if done else "its output ended without a result"), cost)
