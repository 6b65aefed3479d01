"""A model without an agent: one request, answered by search-and-replace blocks, repaired once where they don't apply.

Two wire formats are spoken: OpenAI's chat completions (OpenAI, OpenRouter, Gemini, Ollama, vLLM, llama.cpp) and Anthropic's
messages. Where the model is, is said by --endpoint, or by the first of the known keys that is set.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from autoresearch.errors import Interrupted, WrongCall
from autoresearch.literals import parse
from autoresearch.researchers import Busy, Context, Cost, Options, Proposal, ResearcherFailed, Unreachable, said
from autoresearch.researchers.agent import number
from autoresearch.researchers.faults import fault

OPENAI, ANTHROPIC = "openai", "anthropic"
# Key, base URL, a variable that replaces the URL, wire format; in this order.
SERVERS = (
    ("ANTHROPIC_API_KEY", "https://api.anthropic.com", "ANTHROPIC_BASE_URL", ANTHROPIC),
    ("OPENAI_API_KEY", "https://api.openai.com/v1", "OPENAI_BASE_URL", OPENAI),
    ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "", OPENAI),
    ("GEMINI_API_KEY", "https://generativelanguage.googleapis.com/v1beta/openai", "", OPENAI),
)
ANSWER_TOKENS = 16_000  # room for a long thought and a few edits
ANSWER_BYTES = 2 * 2**20  # of one response: train.py's limit is far below
CONNECT_SECONDS = 20.0
POLL_SECONDS = 0.2
FORMAT = """\
You can't edit files or run anything. Answer with the four lines named in the rules, then with one or more blocks, each of which
replaces lines of train.py:
<<<<<<< SEARCH
lines exactly as they stand in train.py, enough of them to be found once
=======
the lines that take their place
>>>>>>> REPLACE"""
BLOCK = re.compile(r"^<{5,9} SEARCH[^\n]*\n(.*?)^={5,9}[ \t]*\n(.*?)^>{5,9} REPLACE", re.MULTILINE | re.DOTALL)

Message = dict[str, str]


class DoesNotApply(Exception):
    """An answer's blocks don't fit train.py; the message is for the model."""


@dataclass(frozen=True)
class Server:
    url: str
    wire: str
    key: str  # '' for a server that wants none
    hint: str = ""  # how its access is given


@dataclass(frozen=True)
class Reply:
    status: int
    data: bytes
    retry_after: str | None


class Llm:
    name = "llm"
    thinks = True

    def __init__(self, options: Options) -> None:
        self.options, self.server = options, server_of(options)
        if not options.model:
            raise WrongCall("--researcher llm needs --model: the model's name, as its server knows it")

    def propose(self, context: Context) -> Proposal:
        messages = [{"role": "user", "content": f"{context.brief}\n## train.py\n```python\n{context.source}\n```\n\n{FORMAT}\n"}]
        context.log.write_text("", encoding="utf-8")
        text, cost = self._ask(messages, context)
        try:
            source = apply(context.source, text)
        except DoesNotApply as problem:
            repair = f"{problem}\nNothing was changed. Send all your blocks again, corrected."
            messages += [{"role": "assistant", "content": text or "(nothing)"}, {"role": "user", "content": repair}]
            second, more = self._ask(messages, context)
            cost += more
            try:
                source = apply(context.source, second)
            except DoesNotApply as again:
                raise ResearcherFailed(f"'{self.name}': its edits don't apply, nor did their repair: {again}", cost) from None
            text = f"{text}\n{second}"
        told = said.read(BLOCK.sub("", text))
        description = told.description or said.changes(context.source, source)
        return Proposal(source, description, {}, told.hypothesis, told.expected_gain, told.category, cost)

    def _ask(self, messages: Sequence[Message], context: Context) -> tuple[str, Cost]:
        """The answer's text and what it took. Raises as `Researcher.propose` does."""
        request = _request(self.server, self.options.model, messages)
        try:
            reply = asyncio.run(_fetch(*request, self.options.time_limit, context.should_stop or (lambda: False)))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(f"'{self.name}': {self.server.url} can't be reached ({error}): check --endpoint") from None
        except TimeoutError:
            limit = f"{self.options.time_limit:g} s (--researcher-timeout)"
            raise ResearcherFailed(f"'{self.name}' gave no answer in {limit}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ResearcherFailed(f"'{self.name}': the connection failed in the middle ({error})") from None
        data = reply.data
        with context.log.open("ab") as log:
            log.write(data + b"\n")
        if reply.status != 200:
            message = f"{reply.status} {_error_of(data)}"
            problem = fault(self.name, message, Cost(), self.server.hint)
            if isinstance(problem, Busy):
                asked = _seconds(reply.retry_after)
                problem.wait = problem.wait if asked is None else asked
            raise problem
        return self._read_answer(data)

    def _read_answer(self, data: bytes) -> tuple[str, Cost]:
        try:
            answer = json.loads(data)
            usage = answer.get("usage")
            if self.server.wire == ANTHROPIC:
                text = "".join(str(part.get("text", "")) for part in answer["content"] if part.get("type") == "text")
            else:
                text = str(answer["choices"][0]["message"].get("content") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise ResearcherFailed(f"'{self.name}': what {self.server.url} answered is no answer of a model") from None
        read = number(usage, "input_tokens") or number(usage, "prompt_tokens")
        written = number(usage, "output_tokens") or number(usage, "completion_tokens")
        told = usage.get("cost") if isinstance(usage, dict) else None  # OpenRouter tells it
        dollars = float(told) if isinstance(told, int | float) else None
        return text, self.options.priced(Cost(0.0, read, written, dollars))


def server_of(options: Options, environment: Mapping[str, str] = os.environ) -> Server:
    """Where the model is. Raises WrongCall if nothing says so."""
    if options.endpoint:
        wire = ANTHROPIC if "anthropic" in options.endpoint or options.endpoint.endswith("/messages") else OPENAI
        known = next((name for name, url, _, _ in SERVERS if url in options.endpoint), "")
        variable = options.key_variable or known
        if options.key_variable and not environment.get(options.key_variable):
            raise WrongCall(f"--key-variable {options.key_variable}: that environment variable is not set")
        url = options.endpoint.rstrip("/").removesuffix("/messages").removesuffix("/v1" if wire == ANTHROPIC else "")
        return Server(
            url, wire, environment.get(variable, ""), f"set {variable or 'a key and name its variable by --key-variable'}"
        )
    for name, url, replacement, wire in SERVERS:
        if environment.get(name):
            return Server((environment.get(replacement) or url).rstrip("/"), wire, environment[name], f"check {name}")
    names = ", ".join(name for name, *_ in SERVERS)
    raise WrongCall(
        f"--researcher llm: no model to ask: set one of {names}, or name a server: --endpoint http://127.0.0.1:11434/v1"
    )


def _request(server: Server, model: str, messages: Sequence[Message]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """URL, headers and body of a request in the server's format."""
    if server.wire == ANTHROPIC:
        headers = {"x-api-key": server.key, "anthropic-version": "2023-06-01"}
        return f"{server.url}/v1/messages", headers, {"model": model, "max_tokens": ANSWER_TOKENS, "messages": list(messages)}
    headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
    return f"{server.url}/chat/completions", headers, {"model": model, "messages": list(messages)}


async def _fetch(url: str, headers: Mapping[str, str], body: Any, limit: float, should_stop: Callable[[], bool]) -> Reply:
    """The answer to a POST. Raises TimeoutError after `limit` seconds, however it trickles in, and Interrupted."""
    asked = asyncio.ensure_future(_post(url, headers, body))
    deadline = time.monotonic() + limit
    try:
        while not (await asyncio.wait({asked}, timeout=POLL_SECONDS))[0]:
            if should_stop():
                raise Interrupted("stopped while the model was answering")
            if time.monotonic() > deadline:
                raise TimeoutError
        return asked.result()
    finally:
        asked.cancel()


async def _post(url: str, headers: Mapping[str, str], body: Any) -> Reply:
    async with (
        httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS)) as client,
        client.stream("POST", url, headers=headers, json=body) as reply,
    ):
        data = bytearray()
        async for chunk in reply.aiter_bytes():
            data += chunk
            if len(data) > ANSWER_BYTES:
                raise ResearcherFailed(f"'llm' answered with over {ANSWER_BYTES // 2**20} MB: an answer is a few edits")
        return Reply(reply.status_code, bytes(data), reply.headers.get("retry-after"))


def _error_of(data: bytes) -> str:
    """The message in an error's body, or its beginning."""
    try:
        error = json.loads(data)["error"]
        return " ".join(str(error[name]) for name in ("type", "code", "message") if error.get(name)) or str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data[:300].decode(errors="replace")


def _seconds(header: str | None) -> float | None:
    try:
        return float(header or "")
    except ValueError:  # a date is allowed too; then we wait as we think
        return None


def apply(source: str, answer: str) -> str:
    """`source` with an answer's blocks applied. Raises DoesNotApply."""
    blocks = BLOCK.findall(answer)
    if not blocks:
        raise DoesNotApply("Your answer has no block of the form <<<<<<< SEARCH ... ======= ... >>>>>>> REPLACE.")
    for number_, (old, new) in enumerate(blocks, start=1):
        count = f"\n{source}".count(f"\n{old}") if old.strip() else 0
        if count != 1:
            problem = (
                "is empty" if not old.strip() else f"stands in train.py {count} times" if count else "does not stand in train.py"
            )
            raise DoesNotApply(f"Block {number_}: its SEARCH part {problem}; it must stand there exactly once:\n{old[:500]}")
        source = f"\n{source}".replace(f"\n{old}", f"\n{new}")[1:]
    try:
        parse(source)
    except SyntaxError as error:
        raise DoesNotApply(f"After your blocks train.py is not valid Python: {error.msg}, line {error.lineno}.") from None
    return source
