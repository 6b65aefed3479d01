"""Claude Code. With a key in the environment it runs bare: nothing of the machine's settings is read, and a request has 3 KB
instead of 100. A subscription's login is read by the longer form only.
"""

import os
from collections.abc import Mapping, Sequence

from autoresearch.lab import TRAIN
from autoresearch.researchers import Context, Cost
from autoresearch.researchers.agent import Agent, Answer, events, number

INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
RETRIES = "2"  # of its own on a failed request: it would go on for over two minutes; the loop waits better


class Claude(Agent):
    name = "claude"
    variables = (
        *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL"),
        *("ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"),
    )
    logins = (".claude/.credentials.json",)
    login_hint = "set ANTHROPIC_API_KEY, or run 'claude' once and log in, or set CLAUDE_CODE_OAUTH_TOKEN by 'claude setup-token'"

    def words(self, prompt: str, context: Context) -> Sequence[str]:
        bare = ["--bare"] if os.environ.get("ANTHROPIC_API_KEY") else ["--setting-sources", "", "--disable-slash-commands"]
        model = ["--model", self.options.model] if self.options.model else []
        limits = ["--max-turns", str(self.options.turns), "--max-budget-usd", f"{self.options.budget:g}"]
        tools = ["--permission-mode", "dontAsk", "--tools", "Read,Edit", "--allowedTools", "Read", f"Edit({TRAIN})"]
        output = ["--output-format", "stream-json", "--verbose", "--no-session-persistence", "--strict-mcp-config"]
        return ["claude", *bare, "-p", prompt, *output, *tools, *limits, *model]

    def settings(self) -> Mapping[str, str]:
        quiet = {"CLAUDE_CODE_MAX_RETRIES": RETRIES, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        return quiet | ({"ANTHROPIC_BASE_URL": self.options.endpoint} if self.options.endpoint else {})

    def read(self, output: str) -> Answer:
        result = next((event for event in events(output) if event.get("type") == "result"), None)
        if result is None:
            return Answer(error="its output ended without a result", cost=Cost(dollars=None))
        usage = result.get("usage")
        dollars = result.get("total_cost_usd")
        models = result.get("modelUsage")
        bases = [each.get("costBasis") for each in models.values() if isinstance(each, dict)] if isinstance(models, dict) else []
        known = isinstance(dollars, int | float) and "unknown" not in bases  # for a model that it doesn't know it makes a price up
        cost = Cost(
            input_tokens=sum(number(usage, name) for name in INPUT),
            output_tokens=number(usage, "output_tokens"),
            dollars=float(dollars or 0.0) if known else None,
        )
        text = str(result.get("result") or "")
        failed = bool(result.get("is_error")) or result.get("subtype") != "success"
        denials = result.get("permission_denials")
        denied = (
            ", ".join(str(each.get("tool_name")) for each in denials if isinstance(each, dict)) if isinstance(denials, list) else ""
        )
        return Answer(text, (text or str(result.get("subtype"))) if failed else "", cost, denied)
