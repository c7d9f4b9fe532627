"""Any OpenAI-compatible chat-completions server as a rewriter: vLLM, llama.cpp, Ollama, LM Studio, OpenAI ...

What is asked, parsed and sent is the same as for a local model; only where the model runs differs. A key
goes to the server it belongs to and into no message.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import httpx

from recr1_lite.common import RecR1Error
from recr1_lite.policy.rewriters import Rewriter
from recr1_lite.search.remote import Server, address_of, same_server
from recr1_lite.tasks.prompts import Parsed, Prompt, Rewrite, compose

_TAG = re.compile(r"<(?=[|/\w])")  # how a chat template's special tokens open


class Answer(NamedTuple):
    """What a server said. tokens: generated, and of the prompt; 0 where it does not say. truncated: by max_tokens."""

    text: str
    tokens: int
    truncated: bool
    prompt_tokens: int = 0


class EndpointRewriter(Rewriter):
    """A model behind `base_url` (such as http://localhost:8000/v1), asked with a prompt, `workers` at a time.

    Defaults: `base_url` RECR1_ENDPOINT, `model` RECR1_ENDPOINT_MODEL, `api_key` RECR1_ENDPOINT_KEY if the
    server is the one of RECR1_ENDPOINT, OPENAI_API_KEY if it is https://api.openai.com, else none. Most
    servers cannot go on with an assistant's turn that is begun, so the prompt's prefix is left out;
    `continue_prefix=True` sends it as a last assistant message, with the two settings that vLLM wants for
    that. `extra`: further fields of the body; None takes one out (for models that refuse max_tokens:
    {"max_tokens": None, "max_completion_tokens": 64}). Timeouts, lost connections, 429 and 5xx are tried
    again `retries` times, any other failure never. `timeout`: seconds of silence.
    """

    def __init__(
        self,
        prompt: Prompt,
        model: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        name: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        timeout: float = 60.0,
        retries: int = 3,
        workers: int = 4,
        continue_prefix: bool = False,
        extra: Mapping | None = None,
    ):
        self.prompt = prompt if continue_prefix else replace(prompt, prefix="")
        base_url = base_url or os.environ.get("RECR1_ENDPOINT", "")
        self.model = model or os.environ.get("RECR1_ENDPOINT_MODEL", "")
        if not base_url or not self.model:
            lacking = (
                "model; set RECR1_ENDPOINT_MODEL or pass model="
                if base_url
                else ("address; set RECR1_ENDPOINT or pass base_url=")
            )
            raise RecR1Error(f"the endpoint has no {lacking}")
        self.name, self.workers = name or self.model, max(1, workers)
        address = _chat_url(base_url)
        key = (api_key if api_key is not None else _key_of(address)).strip()
        self._server = Server(
            address,
            f"Bearer {key}" if key else "",
            timeout,
            retries,
            self._advice,
            ease="fewer workers or a longer timeout",
        )
        self.url = self._server.url
        self.fields = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        if self.prompt.prefix:
            self.fields |= {"continue_final_message": True, "add_generation_prompt": False}
        self.fields |= extra or {}

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        """One Rewrite a request, in order. The first failure is raised, and what is left is not asked."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            answers = [pool.submit(self._rewrite, request) for request in requests]
            failed = [job for job in wait(answers, return_when=FIRST_EXCEPTION).done if job.exception()]
            return [job.result() for job in failed or answers]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        """The answer to a chat. Raises RecR1Error: address, status and the server's first line."""
        fields = self.fields | {"messages": list(messages)}
        body = json.dumps({key: value for key, value in fields.items() if value is not None})
        return self._answer(self._server.post(body))

    def answer(self, request: str) -> tuple[Answer, Parsed]:
        """What the server says to this request with the rewriter's prompt, and how it parses."""
        messages = self.prompt.messages(_TAG.sub("< ", request))
        if self.prompt.prefix:
            messages.append({"role": "assistant", "content": self.prompt.prefix})
        answer = self.chat(messages)
        text = answer.text.removeprefix(self.prompt.prefix)  # some servers repeat it
        return answer._replace(text=text), self.prompt.read(text, answer.truncated)

    def _rewrite(self, request: str) -> Rewrite:
        answer, parsed = self.answer(request)
        query = compose(request, parsed.query, self.prompt.mode, self.prompt.weight)
        return Rewrite(query, answer.text, str(parsed.outcome), answer.tokens)

    def _answer(self, reply: httpx.Response) -> Answer:
        try:
            found = reply.json()
            choice = found["choices"][0]
            text = choice["message"].get("content") or ""  # null with a refusal
            usage = found.get("usage") or {}
            tokens = usage.get("completion_tokens")
            answer = Answer(
                "" + text,
                int(tokens or 0),
                choice.get("finish_reason") == "length",
                int(usage.get("prompt_tokens") or 0),
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RecR1Error(
                f"{self.url} did not answer with a chat completion but with "
                f"{self._server.said(reply)!r}; is the base URL that of the API?"
            ) from None
        if tokens is None:
            warnings.warn(f"{self.url} does not say how many tokens it made; they count as 0", stacklevel=2)
        return answer

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return (
                "check the key"
                if self._server.has_key
                else ("no key was sent: set RECR1_ENDPOINT_KEY beside RECR1_ENDPOINT, or pass api_key=")
            )
        if status == 404 or status < 400:
            return "check the model's name, and that the base URL ends as the server wants it (often /v1)"
        return "mend the request; extra= changes its fields"


def from_environment(prompt: Prompt, **options) -> EndpointRewriter | None:
    """The rewriter that RECR1_ENDPOINT and its _MODEL and _KEY describe; None where it is not set."""
    return EndpointRewriter(prompt, **options) if os.environ.get("RECR1_ENDPOINT") else None


def _chat_url(base_url: str) -> httpx.URL:
    url = address_of(base_url, "endpoint", "http://localhost:8000/v1")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions")


def _key_of(url: httpx.URL) -> str:
    """The key in the environment that belongs to this server, or ""."""
    configured, key = os.environ.get("RECR1_ENDPOINT"), os.environ.get("RECR1_ENDPOINT_KEY")
    if configured and key and same_server(url, _chat_url(configured)):
        return key
    openai = same_server(url, httpx.URL("https://api.openai.com"))
    return os.environ.get("OPENAI_API_KEY", "") if openai else ""
