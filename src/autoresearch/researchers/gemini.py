"""Gemini CLI. It tells tokens, never dollars; its settings are a file in its home folder."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from autoresearch.researchers import Context, Cost
from autoresearch.researchers.agent import Agent, Answer, number


class Gemini(Agent):
    name = "gemini"
    variables = (
        *("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"),
        "GOOGLE_GENAI_USE_VERTEXAI",
    )
    logins = (".gemini/oauth_creds.json", ".gemini/google_accounts.json")
    login_hint = "set GEMINI_API_KEY, or run 'gemini' once and log in"

    def words(self, prompt: str, context: Context) -> Sequence[str]:
        model = ["-m", self.options.model] if self.options.model else []
        return ["gemini", "--skip-trust", "-p", prompt, "--output-format", "json", "--approval-mode", "auto_edit", *model]

    def settings(self) -> Mapping[str, str]:
        return {"GOOGLE_GEMINI_BASE_URL": self.options.endpoint} if self.options.endpoint else {}

    def home_files(self) -> Mapping[str, str]:
        kind = "gemini-api-key" if os.environ.get("GEMINI_API_KEY") else "oauth-personal"
        settings = {
            "security": {"auth": {"selectedType": kind}},
            "general": {"disableAutoUpdate": True, "disableUpdateNag": True},
            "privacy": {"usageStatisticsEnabled": False},
            "model": {"maxSessionTurns": self.options.turns},
            "tools": {"exclude": ["run_shell_command", "web_fetch", "google_web_search"]},
        }
        return {".gemini/settings.json": json.dumps(settings)}

    def read(self, output: str) -> Answer:
        report = _report(output)
        if report is None:
            lines = [line for line in output.splitlines() if line.strip()]
            told = next((line for line in lines if "error" in line.lower()), "")
            return Answer(error=told or "its output ended without a result", cost=Cost(dollars=None))
        error = report.get("error")
        parts = (error.get("type"), error.get("code"), error.get("message")) if isinstance(error, dict) else (error,)
        told = " ".join(str(part) for part in parts if part)
        models = report.get("stats", {}).get("models") if isinstance(report.get("stats"), dict) else None
        used = list(models.values()) if isinstance(models, dict) else []
        cost = Cost(
            input_tokens=sum(number(each, "tokens", "prompt") for each in used),
            output_tokens=sum(number(each, "tokens", "candidates") + number(each, "tokens", "thoughts") for each in used),
            dollars=None,
        )
        return Answer(str(report.get("response") or ""), told, cost)


def _report(output: str) -> dict[str, Any] | None:
    """The JSON object among its lines: warnings stand around it."""
    decoder = json.JSONDecoder()
    at = output.find("{")
    for _ in range(100):
        if at < 0:
            break
        try:
            report, _ = decoder.raw_decode(output, at)
        except (ValueError, RecursionError):
            report = None
        if isinstance(report, dict) and {"response", "stats", "error"} & report.keys():
            return report
        at = output.find("\n{", at)
        at += 1 if at >= 0 else 0
    return None
