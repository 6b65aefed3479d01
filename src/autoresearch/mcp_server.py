"""`autoresearch mcp`: the lab as tools for an agent that a person works with, by the Model Context Protocol on stdin and stdout.

The agent edits the lab's train.py with its own tools; `run_experiment` is `run --record`, with the same checks as the loop. Each
call is a process of its own, so that a run of minutes does not keep the server from answering.
"""

import asyncio
import sys
from typing import Any

from autoresearch import brief, facts, history, report, results
from autoresearch.errors import NotReady
from autoresearch.journal import Journal
from autoresearch.lab import Lab

MOST = 200  # experiments in one answer: an agent's context is small


def serve(lab: Lab) -> int:
    """Until the client goes away. Raises NotReady where the package is missing."""
    try:
        from mcp.server.mcpserver import MCPServer
    except ImportError:
        raise NotReady("autoresearch mcp needs the package mcp: uv sync --extra mcp (or pip install 'mcp>=2')") from None
    tools = Tools(lab)
    server = MCPServer("autoresearch", instructions="Edit train.py in the lab, then call run_experiment; brief says what is known.")
    for tool in (tools.brief, tools.run_experiment, tools.history, tools.results):
        server.tool()(tool)
    server.run()
    return 0


class Tools:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def brief(self) -> str:
        """What is known: the program, the rules, the machine, the best train.py, what was tried and what was not."""
        return brief.write(facts.of_lab(self.lab))

    async def run_experiment(
        self, description: str, hypothesis: str = "", expected_gain: float | None = None, category: str = ""
    ) -> str:
        """Train the train.py in the lab as you edited it, and keep the edit if it is better beyond the noise, else take it back.

        description: what you tried, in one line. hypothesis: why. expected_gain: by how much val_bpb should fall. category:
        architecture, optimizer, schedule, data, systems or simplification. Takes the time budget of a run and some more, up to four
        times where the gain is near the noise.
        """
        lines = [
            f"Tried: {' '.join(description.split())}",
            f"Hypothesis: {' '.join(hypothesis.split())}" if hypothesis else "",
            f"Expected gain: {expected_gain:f}" if expected_gain is not None else "",
            f"Category: {category}" if category else "",
        ]
        words = (sys.executable, "-P", "-m", "autoresearch", "run", "--record", "\n".join(filter(None, lines)))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *words, cwd=self.lab.root, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:  # the client went away: what was begun is gone on with at the next call
                process.terminate()
        said = err.decode(errors="replace").strip().splitlines()
        row = out.decode(errors="replace").strip()
        return f"{row or 'no row was written'}\n" + "\n".join(said[-5:])

    def history(self, search: str = "") -> list[dict[str, Any]]:
        """Earlier experiments, the newest last. search: only those in which every word of it stands."""
        found = history.search(Journal(self.lab).wholes(), search)
        return [history.as_dict(done) for done in found[-MOST:]]

    def results(self, top: int = 10) -> str:
        """The session's summary and its best experiments."""
        rows, _ = results.read(self.lab.results)
        return report.text(rows, max(1, min(top, MOST)), False, Journal(self.lab).numbers())
