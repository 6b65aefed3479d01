"""A model that is a script: it speaks the wire formats of Anthropic, OpenAI (both) and Gemini, and has one idea, another LR.

Each conversation ends with an edit of the scratch folder's train.py, by whatever tool the agent offers, or by a search-and-replace
block where it offers none. `faults` are given instead, one a request, before it behaves. Standard library alone: it also runs as a
program (benchmarks/agents.py), in a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

INPUT_TOKENS, OUTPUT_TOKENS = 1000, 50
HELD = 600.0  # seconds that a hanging answer is held back; the client gives up long before


@dataclass(frozen=True)
class Fault:
    """What comes instead of an answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "scripted fault"
    kind: str = ""  # hang, cut, huge, bytes, mute (no edit, a text), elsewhere, delete


class ModelServer:
    """`with ModelServer(train, values) as server:` answers at `server.url`. `values`: what LR becomes, one a conversation."""

    def __init__(
        self,
        train: Path,
        values: Sequence[float],
        faults: Sequence[Fault] = (),
        always: Fault | None = None,
        literal: str = "LR",
        port: int = 0,
    ) -> None:
        self.train, self.values, self.faults, self.always, self.literal = train, list(values), list(faults), always, literal
        self.finished, self.requests, self.lock = 0, list[dict[str, Any]](), threading.Lock()
        self.released = threading.Event()
        handler = type("Bound", (Handler,), {"model": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> ModelServer:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self) -> Fault | None:
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always

    def edit(self) -> tuple[str, str]:
        """The line to change and what it becomes, as train.py in the scratch folder stands now."""
        found = re.search(rf"(?m)^{self.literal} = \S+", self.train.read_text())
        assert found, f"no {self.literal} in train.py"
        return found[0], f"{self.literal} = {self.values[min(self.finished, len(self.values) - 1)]}"

    def last_words(self) -> str:
        value = self.values[min(self.finished, len(self.values) - 1)]
        with self.lock:
            self.finished += 1
        return f"Tried: {self.literal} to {value}\nHypothesis: the bowl is lower there\nExpected gain: 0.02\nCategory: optimizer\n"


def shell(edit: tuple[str, str]) -> str:
    old, new = edit
    return f"sed -i 's/^{old}/{new}/' train.py"


def step(names: set[str], results: int, model: ModelServer, fault: Fault | None) -> tuple[str, dict[str, Any]] | None:
    """The next tool call of a conversation that has `results` behind it; None when it is time for last words."""
    path, other = str(model.train), str(model.train.with_name("prepare.py"))
    if fault and fault.kind == "delete":
        steps = [(name, {"command": "rm train.py"}) for name in ("Bash", "bash", "shell_command") if name in names]
        return steps[0] if steps and results == 0 else None
    if results >= (1 if names & {"exec_command", "shell_command", "shell"} else 2):
        return None
    old, new = model.edit()
    target = path
    if fault and fault.kind == "elsewhere":
        target, old = other, Path(other).read_text().splitlines()[0]
        new = f"{old} changed"
    sed = shell((old, new))
    plans: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
        ("Edit", [("Read", {"file_path": target}), ("Edit", {"file_path": target, "old_string": old, "new_string": new})]),
        ("edit", [("read", {"filePath": target}), ("edit", {"filePath": target, "oldString": old, "newString": new})]),
        (
            "replace",
            [
                ("read_file", {"file_path": target}),
                ("replace", {"file_path": target, "old_string": old, "new_string": new, "instruction": "another rate"}),
            ],
        ),
        ("exec_command", [("exec_command", {"cmd": sed})]),
        ("shell_command", [("shell_command", {"command": sed})]),
        ("shell", [("shell", {"command": ["bash", "-lc", sed]})]),
    ]
    for name, calls in plans:
        if name in names:
            return calls[results] if results < len(calls) else None
    return None


def tool_names(tools: Any) -> set[str]:
    names = set()
    for tool in tools or []:
        for declared in tool.get("functionDeclarations") or [tool.get("function") or tool]:
            if isinstance(declared, dict) and declared.get("name"):
                names.add(str(declared["name"]))
    return names


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: ModelServer

    def log_message(self, *_: object) -> None:
        pass

    def send(self, data: bytes, kind: str = "application/json", status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def json(self, answer: Any) -> None:
        self.send(json.dumps(answer).encode())

    def stream(self, events: Sequence[tuple[str, Any]]) -> None:
        lines = [f"event: {name}\n" if name else "" for name, _ in events]
        bodies = [data if isinstance(data, str) else json.dumps(data) for _, data in events]
        text = "".join(f"{line}data: {body}\n\n" for line, body in zip(lines, bodies, strict=True)).encode()
        if self.fault and self.fault.kind == "cut":
            self.cut(text, "text/event-stream")
        else:
            self.send(text, "text/event-stream")

    def cut(self, data: bytes, kind: str) -> None:
        """Half of what was promised, then nothing."""
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.send(b"")

    def do_GET(self) -> None:
        self.json({"object": "list", "data": [{"id": "mock-1", "object": "model", "type": "model"}], "models": []})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            body = {}
        path = self.path.split("?")[0]
        self.model.requests.append({"path": path, "headers": dict(self.headers), "body": body})
        if path.endswith(("/count_tokens", ":countTokens")):
            return self.json({"input_tokens": 10, "totalTokens": 10})
        self.fault = self.model.fault()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.misbehave(self.fault, path, body) if self.fault and self.fault.kind not in KEPT else self.answer(path, body)

    def misbehave(self, fault: Fault, path: str, body: Any) -> None:
        match fault.kind:
            case "hang":
                self.model.released.wait(HELD)
                self.close_connection = True
            case "bytes":
                self.send(b'{"choices": [{"message": {"content": "\xff\xfe\x00"}}], "content": [{"type": "text", "text": "\xff"}]}')
            case _:
                error = {"type": TYPES.get(fault.status, "api_error"), "message": fault.message, "code": fault.status}
                answer = {"type": "error", "error": error}
                self.send(json.dumps(answer).encode(), status=fault.status, headers=fault.headers)

    def answer(self, path: str, body: Any) -> None:
        for end, speak in (("/messages", self.anthropic), ("/responses", self.openai_responses), ("/chat/completions", self.chat)):
            if path.endswith(end):
                return speak(body)
        if "enerateContent" in path:
            return self.gemini(body, "stream" in path)
        return self.json({})

    def next(self, names: set[str], results: int) -> tuple[str, dict[str, Any]] | None:
        if self.fault and self.fault.kind in ("huge", "mute"):
            return None
        return step(names, results, self.model, self.fault)

    def text(self, names: set[str], asked: str = "") -> str:
        """What it says when no tool is to be called."""
        if self.fault and self.fault.kind == "huge":
            return "x" * 10_000_000
        if self.fault and self.fault.kind == "mute":
            return "I have thought about it."
        if not names and "SEARCH" in asked:  # no tools: aider, or a plain model
            old, new = self.model.edit()
            words = self.model.last_words()
            line = next(line for line in self.model.train.read_text().splitlines() if line.startswith(old))
            block = f"<<<<<<< SEARCH\n{line}\n=======\n{line.replace(old, new)}\n>>>>>>> REPLACE"
            return f"{words}\ntrain.py\n```python\n{block}\n```\n"
        return self.model.last_words() if names else "a title"

    # -- wire formats --------------------------------------------------------------------------------------------

    def anthropic(self, body: Any) -> None:
        names = tool_names(body.get("tools"))
        parts = [
            part for message in body.get("messages", []) if isinstance(message["content"], list) for part in message["content"]
        ]
        call = self.next(names, sum(part.get("type") == "tool_result" for part in parts))
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        if call:
            block: dict[str, Any] = {"type": "tool_use", "id": new_id("toolu"), "name": call[0], "input": call[1]}
        else:
            block = {"type": "text", "text": self.text(names, json.dumps(body.get("messages")))}
        whole = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": body.get("model"),
            "content": [block],
            "stop_reason": "tool_use" if call else "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        if not body.get("stream"):
            return self.json(whole)
        empty = {**block, "input": {}} if call else {"type": "text", "text": ""}
        delta = (
            {"type": "input_json_delta", "partial_json": json.dumps(call[1])}
            if call
            else {"type": "text_delta", "text": block["text"]}
        )
        return self.stream(
            [
                ("message_start", {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}),
                ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": empty}),
                ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}),
                ("content_block_stop", {"type": "content_block_stop", "index": 0}),
                (
                    "message_delta",
                    {
                        "type": "message_delta",
                        "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
                        "usage": usage,
                    },
                ),
                ("message_stop", {"type": "message_stop"}),
            ]
        )

    def openai_responses(self, body: Any) -> None:
        names = tool_names(body.get("tools"))
        given = body.get("input") if isinstance(body.get("input"), list) else []
        call = self.next(names, sum(str(item.get("type", "")).endswith("_call_output") for item in given))
        if call:
            item: dict[str, Any] = {
                "type": "function_call",
                "id": new_id("fc"),
                "call_id": new_id("call"),
                "name": call[0],
                "arguments": json.dumps(call[1]),
                "status": "completed",
            }
        else:
            content = [{"type": "output_text", "text": self.text(names), "annotations": []}]
            item = {"type": "message", "id": new_id("msg"), "role": "assistant", "status": "completed", "content": content}
        usage = {
            "input_tokens": INPUT_TOKENS,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": OUTPUT_TOKENS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        base = {"id": new_id("resp"), "object": "response", "model": body.get("model"), "status": "in_progress", "output": []}
        done = {**base, "status": "completed", "output": [item], "usage": usage}
        if not body.get("stream"):
            return self.json(done)
        events: list[tuple[str, Any]] = [("response.created", {"type": "response.created", "response": base})]
        if not call:
            text, open_ = item["content"][0]["text"], {**item, "content": [], "status": "in_progress"}
            events.append(("response.output_item.added", {"type": "response.output_item.added", "output_index": 0, "item": open_}))
            events.append(
                (
                    "response.output_text.delta",
                    {
                        "type": "response.output_text.delta",
                        "item_id": item["id"],
                        "output_index": 0,
                        "content_index": 0,
                        "delta": text,
                    },
                )
            )
        events.append(("response.output_item.done", {"type": "response.output_item.done", "output_index": 0, "item": item}))
        events.append(("response.completed", {"type": "response.completed", "response": done}))
        return self.stream(events)

    def chat(self, body: Any) -> None:
        names = tool_names(body.get("tools"))
        call = self.next(names, sum(message.get("role") == "tool" for message in body.get("messages", [])))
        usage = {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        base = {"id": new_id("chatcmpl"), "model": body.get("model")}
        calls = (
            [{"id": new_id("call"), "type": "function", "function": {"name": call[0], "arguments": json.dumps(call[1])}}]
            if call
            else None
        )
        text = None if call else self.text(names, json.dumps(body.get("messages")))
        reason = "tool_calls" if call else "stop"
        if not body.get("stream"):
            message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
            answer = {
                **base,
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": usage,
            }
            data = json.dumps(answer).encode()
            return self.cut(data, "application/json") if self.fault and self.fault.kind == "cut" else self.send(data)
        delta = {"role": "assistant", "tool_calls": [{"index": 0, **calls[0]}]} if calls else {"role": "assistant", "content": text}

        def chunk(part: Any, end: str | None) -> dict[str, Any]:
            return {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": part, "finish_reason": end}]}

        last = {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        return self.stream([("", chunk(delta, None)), ("", chunk({}, reason)), ("", last), ("", "[DONE]")])

    def gemini(self, body: Any, streamed: bool) -> None:
        names = tool_names(body.get("tools"))
        parts = [part for content in body.get("contents", []) for part in content.get("parts", [])]
        call = self.next(names, sum("functionResponse" in part for part in parts))
        part: dict[str, Any] = {"functionCall": {"name": call[0], "args": call[1]}} if call else {"text": ""}
        if not call:
            wants_json = (body.get("generationConfig") or {}).get("responseMimeType") == "application/json"
            routed = {
                "reasoning": "x",
                "model_choice": "flash",
                "next_speaker": "user",
                "complexity_reasoning": "x",
                "complexity_score": 1,
            }
            part = {"text": json.dumps(routed) if wants_json and not names else self.text(names)}
        usage = {
            "promptTokenCount": INPUT_TOKENS,
            "candidatesTokenCount": OUTPUT_TOKENS,
            "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
        answer = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "mock-1"}
        self.stream([("", answer)]) if streamed else self.json(answer)


KEPT = ("cut", "huge", "mute", "elsewhere", "delete")  # faults inside an answer
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


@contextlib.contextmanager
def model(train: Path, values: Sequence[float], *faults: Fault, always: Fault | None = None) -> Iterator[ModelServer]:
    with ModelServer(train, values, faults, always) as server:
        yield server
