"""Any agent that speaks the Agent Client Protocol: `acp:opencode acp`, `acp:gemini --acp`.

The protocol is JSON-RPC, one object a line, over the agent's standard input and output (agentclientprotocol.com, version 1). What
is needed of it is small: initialize, session/new, session/prompt, and answers to its requests. Reading is allowed, an edit
of train.py alone, no shell command.
"""

import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from autoresearch.errors import Interrupted, WrongCall
from autoresearch.lab import TRAIN
from autoresearch.researchers import INSTALL, Context, Cost, Options, Proposal, ResearcherFailed, process
from autoresearch.researchers.agent import TASK, Agent, Answer, finished, number
from autoresearch.researchers.command import OUTPUT_LIMIT, SOURCE_LIMIT, lay_out
from autoresearch.researchers.faults import fault

VERSION = 1
LINE_LIMIT = 16 * 2**20  # bytes of one message
NOT_FOUND, NOT_ALLOWED, NO_SUCH_METHOD = -32002, -32000, -32601
READING = ("read", "search", "think")


class Acp:
    thinks = True

    def __init__(self, words: Sequence[str], options: Options) -> None:
        self.words, self.options = list(words), options
        self.name = f"acp:{Path(words[0]).name}"
        if shutil.which(words[0]) is None:
            program = Path(words[0]).name
            way_out = INSTALL.get(program, "check its name or its path")
            raise WrongCall(f"--researcher acp:{words[0]}: there is no program '{words[0]}': {way_out}")

    def propose(self, context: Context) -> Proposal:
        before = lay_out(context)
        launch = self.launch(context)
        with context.log.open("wb") as log, process.started(launch, subprocess.PIPE, subprocess.PIPE, log) as agent:
            answer = Conversation(launch, agent, context, log).hold()
        answer = replace(answer, cost=self.options.priced(answer.cost))
        if answer.error:
            raise fault(self.name, answer.error, answer.cost, "log in with the agent's own command, or set its key")
        return finished(self.name, context, before, answer)

    def launch(self, context: Context) -> process.Launch:
        """It gets what the agents that we know by name, and that its command names, would get; else what the options name."""
        from autoresearch.researchers.choose import agents

        kinds: list[type[Agent]] = [kind for name, kind in agents().items() if any(name in word for word in self.words)]
        variables = [name for kind in kinds for name in kind.variables]
        logins = [name for kind in kinds for name in kind.logins]
        settings: dict[str, str] = {}
        home_files: dict[str, str] = {}
        for kind in kinds:
            try:
                known = kind(self.options)
            except WrongCall:
                continue
            settings |= known.settings()
            home_files |= known.home_files()
        return process.Launch(
            self.name,
            self.words,
            context.scratch,
            context.log,
            self.options.time_limit,
            context.should_stop,
            variables=(*variables, *self.options.all_variables),
            settings=settings,
            logins=(*logins, *self.options.files),
            home_files=home_files,
            level=context.sandbox,
        )


class Conversation:
    """One session with one prompt."""

    def __init__(self, launch: process.Launch, agent: "subprocess.Popen[bytes]", context: Context, log: IO[bytes]) -> None:
        self.launch, self.agent, self.context, self.log = launch, agent, context, log
        self.deadline = time.monotonic() + launch.time_limit
        self.buffer, self.calls, self.logged = b"", 0, 0
        self.text, self.denied = "", [""]

    def hold(self) -> Answer:
        try:
            files = {"readTextFile": True, "writeTextFile": True}
            client = {"name": "autoresearch", "version": "1"}
            hello = {"protocolVersion": VERSION, "clientCapabilities": {"fs": files, "terminal": False}, "clientInfo": client}
            self.call("initialize", hello)
            session = self.call("session/new", {"cwd": str(self.context.scratch), "mcpServers": []}).get("sessionId")
            prompt = [{"type": "text", "text": self.context.brief + TASK}]
            done = self.call("session/prompt", {"sessionId": session, "prompt": prompt})
        except _Failed as failure:
            return Answer(self.text, str(failure), Cost(dollars=None), ", ".join(filter(None, self.denied)))
        usage = done.get("usage")
        cost = Cost(0.0, number(usage, "inputTokens"), number(usage, "outputTokens"), None)
        stop = done.get("stopReason")
        error = "" if stop in ("end_turn", None) else f"it stopped: {stop}"
        return Answer(self.text, error, cost, ", ".join(filter(None, self.denied)))

    def call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The result of a request of ours; the agent's own requests are answered meanwhile."""
        self.calls += 1
        self.send({"id": self.calls, "method": method, "params": parameters})
        while True:
            message = self.receive()
            if "method" in message:
                self.handle(message)
            elif message.get("id") == self.calls:
                if error := message.get("error"):
                    raise _Failed(_told(error))
                result = message.get("result")
                return result if isinstance(result, dict) else {}

    def send(self, message: dict[str, Any]) -> None:
        assert self.agent.stdin is not None
        try:
            self.agent.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            self.agent.stdin.flush()
        except OSError:
            raise _Failed(self.last_words()) from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises for an agent that has ended, hangs, or floods us."""
        assert self.agent.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.agent.stdout, selectors.EVENT_READ)
            while True:
                line, newline, rest = self.buffer.partition(b"\n")
                if newline:
                    self.buffer = rest
                    self.keep(line)
                    try:
                        message = json.loads(line)
                    except (ValueError, RecursionError):
                        continue  # some print for people there
                    if isinstance(message, dict):
                        return message
                    continue
                if len(self.buffer) > LINE_LIMIT:
                    raise ResearcherFailed(f"'{self.launch.name}' sent a message of over {LINE_LIMIT // 2**20} MB")
                if self.launch.should_stop and self.launch.should_stop():
                    raise Interrupted("stopped while the researcher was thinking")
                if time.monotonic() > self.deadline:
                    raise process.too_slow(self.launch)
                if selector.select(process.POLL_SECONDS):
                    chunk = os.read(self.agent.stdout.fileno(), 65536)
                    if not chunk:
                        raise _Failed(self.last_words())
                    self.buffer += chunk

    def keep(self, line: bytes) -> None:
        """Into the log, as far as its limit goes."""
        room = OUTPUT_LIMIT - self.logged
        self.logged += self.log.write(line[:room] + b"\n") if room > 0 else 0
        self.log.flush()

    def last_words(self) -> str:
        """Of an agent that went away: the end of what it said to people."""
        lines = self.context.log.read_bytes()[-4096:].decode(errors="replace").split("\n")
        words = [line for line in lines if line.strip() and not line.startswith("{")]
        return f"it ended in the middle: {words[-1]}" if words else "it ended in the middle"

    # -- its requests --------------------------------------------------------------------------------------------

    def handle(self, message: dict[str, Any]) -> None:
        parameters = message.get("params")
        parameters = parameters if isinstance(parameters, dict) else {}
        answer: dict[str, Any] = {}
        match message["method"]:
            case "session/update":
                return self.note(parameters.get("update"))
            case "session/request_permission":
                answer = {"result": {"outcome": self.permit(parameters)}}
            case "fs/read_text_file":
                answer = self.read_file(parameters)
            case "fs/write_text_file":
                answer = self.write_file(parameters)
            case _:
                answer = {"error": {"code": NO_SUCH_METHOD, "message": "not offered"}}
        if "id" in message:
            self.send({"id": message["id"], **answer})

    def note(self, update: Any) -> None:
        """Its words, as they come in pieces."""
        if isinstance(update, dict) and update.get("sessionUpdate") == "agent_message_chunk":
            content = update.get("content")
            if isinstance(content, dict) and content.get("type") == "text":
                self.text = (self.text + str(content.get("text")))[-OUTPUT_LIMIT:]

    def permit(self, parameters: dict[str, Any]) -> dict[str, Any]:
        call = parameters.get("toolCall")
        call = call if isinstance(call, dict) else {}
        places = [str(place.get("path")) for place in call.get("locations") or [] if isinstance(place, dict)]
        kind = call.get("kind")
        allowed = kind in READING or (
            kind == "edit" and bool(places) and all(self.name_in_scratch({"path": place}) == TRAIN for place in places)
        )
        wanted = ("allow_once",) if allowed else ("reject_once", "reject_always")
        if not allowed:
            self.denied.append(str(call.get("title") or kind)[:80])
        for option in parameters.get("options") or []:
            if isinstance(option, dict) and option.get("kind") in wanted:
                return {"outcome": "selected", "optionId": option.get("optionId")}
        return {"outcome": "cancelled"}

    def name_in_scratch(self, parameters: dict[str, Any]) -> str:
        """The name of a file that lies directly in the scratch folder; '' for any other path."""
        path = Path(os.path.normpath(self.context.scratch / str(parameters.get("path"))))
        return path.name if path.parent == self.context.scratch else ""

    def open(self, name: str, flags: int) -> int:
        """Not through a link: the agent can make one, and we are not in its box."""
        return os.open(self.context.scratch / name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)

    def read_file(self, parameters: dict[str, Any]) -> dict[str, Any]:
        missing = {"error": {"code": NOT_FOUND, "message": "Resource not found", "data": {"uri": str(parameters.get("path"))}}}
        if not (name := self.name_in_scratch(parameters)):
            return missing
        try:
            with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
                data = file.read(SOURCE_LIMIT)
        except OSError:
            return missing
        lines = data.decode("utf-8", errors="replace").splitlines(keepends=True)
        begin, limit = max(0, number(parameters, "line") - 1), parameters.get("limit")
        end = begin + limit if isinstance(limit, int) else len(lines)
        return {"result": {"content": "".join(lines[begin:end])}}

    def write_file(self, parameters: dict[str, Any]) -> dict[str, Any]:
        data = str(parameters.get("content", "")).encode(errors="replace")
        if self.name_in_scratch(parameters) != TRAIN or len(data) > SOURCE_LIMIT:
            self.denied.append(f"writing {str(parameters.get('path'))[:80]}")
            return {"error": {"code": NOT_ALLOWED, "message": f"only {TRAIN} may be written"}}
        try:
            with os.fdopen(self.open(TRAIN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(data)
        except OSError as error:
            return {"error": {"code": NOT_ALLOWED, "message": f"{TRAIN}: {error.strerror}"}}
        return {"result": {}}


class _Failed(Exception):
    """The agent told an error, or went away."""


def _told(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    data = error.get("data")
    detail = data.get("details") or data.get("message") if isinstance(data, dict) else data
    return " ".join(str(part) for part in (error.get("code"), error.get("message"), detail) if part)
