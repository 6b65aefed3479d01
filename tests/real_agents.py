"""The real coding agents, each from its registry, pointed at a scripted model; and a place with no network but loopback.

As a program, `real_agents.py SPEC` leads one of them through a session of the real loop in such a place (see `session`).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_server import Fault, ModelServer

INSTALL_LIMIT = 600  # seconds; the largest takes half a minute on a fast line
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoresearch-agents"


@dataclass(frozen=True)
class RealAgent:
    name: str
    package: str  # name and version, as its registry knows them
    registry: str  # npm or pypi
    path: str = ""  # behind the model server's address
    key: str = "OPENAI_API_KEY"
    model: str = "mock-1"
    acp: str = ""  # the words that make it speak the Agent Client Protocol

    @property
    def bin(self) -> Path:
        folder = CACHE / self.package.replace("/", "-")
        return folder / ("node_modules/.bin" if self.registry == "npm" else "bin")


AGENTS = {
    agent.name: agent
    for agent in (
        RealAgent("claude", "@anthropic-ai/claude-code-linux-x64@2.1.330", "npm", key="ANTHROPIC_API_KEY", model="claude-mock-1"),
        RealAgent("codex", "@openai/codex@0.169.0", "npm", path="/v1"),
        RealAgent("opencode", "opencode-linux-x64@1.18.33", "npm", path="/v1", acp="opencode acp"),
        RealAgent("gemini", "@google/gemini-cli@0.61.0", "npm", key="GEMINI_API_KEY", acp="gemini --acp"),
        RealAgent("aider", "aider-chat==0.86.2", "pypi", path="/v1"),
    )
}


class NotInstalled(Exception):
    """The reason, for a test that is skipped for it."""


def install(agent: RealAgent) -> Path:
    """The folder with the agent's program, installed if it isn't there yet. Raises NotInstalled."""
    program = agent.bin / agent.name
    if not program.exists():
        folder = CACHE / agent.package.replace("/", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if agent.registry == "npm":
            words = [
                "npm",
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--fetch-retries=1",
                "--prefix",
                str(folder),
                agent.package,
            ]
        else:
            words = [sys.executable, "-c", PIP, str(folder), agent.package]
        try:
            done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=INSTALL_LIMIT)
        except FileNotFoundError:
            raise NotInstalled(f"{agent.name}: {words[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"{agent.name}: its registry gave {agent.package} not within {INSTALL_LIMIT} s") from None
        if done.returncode != 0:
            raise NotInstalled(f"{agent.name}: {agent.package} can't be installed: {done.stderr.strip().splitlines()[-1:]}")
        if not program.exists():  # the platform's own package has the program and no link to it
            found = [path for path in (folder / "node_modules").rglob(agent.name) if path.is_file() and os.access(path, os.X_OK)]
            agent.bin.mkdir(exist_ok=True)
            program.symlink_to(found[0])
    return agent.bin


PIP = """
import shutil, subprocess, sys
folder, package = sys.argv[1:]
uv = shutil.which("uv")
if uv:
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    sys.exit(subprocess.run([uv, "pip", "install", "--quiet", "--python", folder + "/bin/python", package]).returncode)
subprocess.run([sys.executable, "-m", "venv", folder], check=True)
sys.exit(subprocess.run([folder + "/bin/python", "-m", "pip", "install", "--quiet", package]).returncode)
"""


def without_network() -> str:
    """Leave for a network namespace with nothing but loopback. Returns why it was not possible; '' if it was."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, network = 0x10000000, 0x40000000
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(network) != 0:
        if libc.unshare(user | network) != 0:
            return os.strerror(ctypes.get_errno())
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    up, flags = 0x1, 0x8914  # IFF_UP, SIOCSIFFLAGS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        fcntl.ioctl(end, flags, struct.pack("16sh", b"lo", up))
    return ""


# -- one session -----------------------------------------------------------------------------------------------------


def session(
    agent: RealAgent,
    lab: Path,
    values: Sequence[float],
    environment: Mapping[str, str],
    *options: str,
    literal: str = "LR",
    faults: Sequence[Fault] = (),
    always: Fault | None = None,
    acp: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`loop` with this agent, in a network namespace with nothing but loopback where the machine allows one."""
    spec = {
        "agent": agent.name,
        "lab": str(lab),
        "values": list(values),
        "options": list(options),
        "literal": literal,
        "faults": [asdict(fault) for fault in faults],
        "always": asdict(always) if always else None,
        "acp": acp,
        "bin": str(agent.bin),
    }
    words = [sys.executable, __file__, json.dumps(spec)]
    return subprocess.run(words, cwd=lab, env=dict(environment), capture_output=True, text=True, stdin=subprocess.DEVNULL)


def words_for(agent: RealAgent, url: str, acp: bool) -> list[str]:
    """`--researcher` and its options, for a model server at `url`."""
    named = f"acp:{agent.acp}" if acp else agent.name
    return ["--researcher", named, "--model", agent.model, "--endpoint", url + agent.path, "--key-variable", agent.key]


def environment_for(agent: RealAgent, environment: Mapping[str, str], bin: str = "") -> dict[str, str]:
    return {**environment, "PATH": f"{bin or agent.bin}:{environment['PATH']}", agent.key: "a key of no worth"}


def main() -> int:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    agent, lab = AGENTS[spec["agent"]], Path(spec["lab"])
    problem = without_network()
    print(f"network: {problem or 'loopback alone'}", file=sys.stderr, flush=True)
    always = Fault(**spec["always"]) if spec["always"] else None
    train = lab / ".autoresearch" / "scratch" / "lab" / "train.py"
    with ModelServer(train, spec["values"], [Fault(**fault) for fault in spec["faults"]], always, spec["literal"]) as server:
        loop = [sys.executable, "-P", "-m", "autoresearch", "loop", *words_for(agent, server.url, spec["acp"]), *spec["options"]]
        return subprocess.run(
            loop, cwd=lab, env=environment_for(agent, os.environ, spec["bin"]), stdin=subprocess.DEVNULL
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
