"""Claims about `autoresearch mcp`: four tools for an agent that a person works with, with the same checks as the loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import git, toy
from labs import copy_of, journal, rows
from mcp import Client, StdioServerParameters


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(made, tmp_path / "lab")


Call = Callable[..., Awaitable[str]]


def served(lab: Path, environment: Mapping[str, str], talk: Callable[[Call], Awaitable[None]]) -> set[str]:
    """A conversation with the server, a process of its own. Returns the names of its tools."""

    async def hold() -> set[str]:
        server = StdioServerParameters(
            command=sys.executable, args=["-P", "-m", "autoresearch", "mcp"], cwd=str(lab), env=dict(environment)
        )
        async with Client(server) as client:

            async def call(tool: str, **arguments: Any) -> str:
                answer = await client.call_tool(tool, arguments)
                return "\n".join(str(part.text) for part in answer.content if part.type == "text")

            await talk(call)
            return {tool.name for tool in (await client.list_tools()).tools}

    return asyncio.run(asyncio.wait_for(hold(), 60))


def test_an_agent_works_through_the_tools_with_the_loops_checks(lab: Path, environment: Mapping[str, str]) -> None:
    async def talk(call: Call) -> None:
        assert (await call("brief")).startswith("# Brief\n")
        (lab / "train.py").write_text(toy(LR=0.2))
        told = await call(
            "run_experiment", description="a higher\nrate", hypothesis="the bowl", expected_gain=0.02, category="optimizer"
        )
        assert "\tkeep\ta higher rate" in told
        (lab / "train.py").write_text(toy(LR=0.1))
        told = await call("run_experiment", description="back again")
        assert "no row was written" in told and "not run: this very code was tried before" in told
        git(lab, "checkout", "--", "train.py")
        assert '"expected_gain": 0.02' in await call("history", search="higher")
        assert "Session summary: 1 experiments, 1 improvements" in await call("results")

    assert served(lab, environment, talk) == {"brief", "run_experiment", "history", "results"}
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "a higher rate")]
    assert (journal(lab)[1]["hypothesis"], journal(lab)[1]["category"]) == ("the bowl", "optimizer")


def test_a_crash_is_told_with_its_row(lab: Path, environment: Mapping[str, str]) -> None:
    async def talk(call: Call) -> None:
        (lab / "train.py").write_text(toy(MODE="crash"))
        assert "\tcrash\tboom" in await call("run_experiment", description="boom")

    served(lab, environment, talk)
    assert [row[3] for row in rows(lab)] == ["keep", "crash"]
