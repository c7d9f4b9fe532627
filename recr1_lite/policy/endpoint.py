"""Any OpenAI-compatible chat-completions server as a rewriter: vLLM, llama.cpp, Ollama, LM Studio, OpenAI ...

What is asked, parsed and sent is the same as for a local model; only where the model runs differs. The package openai
(an optional extra) does the talking: what may pass it tries again by itself. A key goes to the server it belongs to and
into no message.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import httpx

from recr1_lite.common import RecR1Error, whole
from recr1_lite.policy.rewriters import Rewriter
from recr1_lite.search.remote import address_of, first_line, is_loopback, message_of, same_server
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

    Defaults: `base_url` RECR1_ENDPOINT, `model` RECR1_ENDPOINT_MODEL, `api_key` RECR1_ENDPOINT_KEY if the server is the
    one of RECR1_ENDPOINT, OPENAI_API_KEY if it is https://api.openai.com, else none. Most servers cannot go on with an
    assistant's turn that is begun, so the prompt's prefix is left out; `continue_prefix=True` sends it as a last
    assistant message, with the two settings that vLLM wants for that. `extra`: further fields of the body; None takes
    one out (for models that refuse max_tokens: {"max_tokens": None, "max_completion_tokens": 64}). Timeouts, lost
    connections, 429 and 5xx are tried again `retries` times, any other failure never. `timeout`: seconds of silence.
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
        self.model, base_url = model or os.environ.get("RECR1_ENDPOINT_MODEL", ""), base_url or _configured()
        if not base_url:
            raise RecR1Error("the endpoint has no address; set RECR1_ENDPOINT or pass base_url=")
        if not self.model:
            raise RecR1Error("the endpoint has no model; set RECR1_ENDPOINT_MODEL or pass model=")
        self.name, self.workers, self.timeout, self.retries = name or self.model, max(1, workers), timeout, retries
        address = _base(base_url)
        self.url = str(address.copy_with(userinfo=b"", query=None)) + "/chat/completions"  # what may be shown
        self.key = (api_key if api_key is not None else _key_of(address)).strip()
        if not self.key.isascii() or not self.key.isprintable():
            raise RecR1Error(f"the key for {self.url} holds characters that no key has; copy it again")
        self.secrets = [secret for secret in (self.key, address.password, address.query.decode()) if secret]
        self.has_key = bool(self.key or address.userinfo)
        self.client, self.headers = _client(address, self.key, timeout, max(0, retries))
        self.fields: dict = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        if self.prompt.prefix:
            self.fields |= {"continue_final_message": True, "add_generation_prompt": False}
        self.fields |= extra or {}

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        """One Rewrite per request, in order. The first failure is raised, and what is left is not asked."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            answers = [pool.submit(self._rewrite, request) for request in requests]
            failed = [job for job in wait(answers, return_when=FIRST_EXCEPTION).done if job.exception()]
            return [job.result() for job in failed or answers]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        """The answer to a chat. Raises RecR1Error: address, status and the server's first line."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        body = {key: value for key, value in self.fields.items() if value is not None and key != "model"}
        tries = f"(tried {max(0, self.retries) + 1} times)"
        advice = "check that it runs, then try again with fewer workers or a longer timeout"
        try:
            raw = self.client.chat.completions.with_raw_response
            chat: dict = dict(model=self.model, messages=list(messages), extra_body=body, extra_headers=self.headers)
            reply = raw.create(**chat).http_response
        except APITimeoutError:
            problem = f"did not answer within {self.timeout:g} s {tries}"
        except APIConnectionError as error:
            problem = f"cannot be reached ({self.safe(str(error.__cause__ or error))}) {tries}"
        except APIStatusError as error:
            status, said = error.status_code, self.safe(message_of(error.response))
            passing = status in (408, 409, 429) or status >= 500
            problem = f"answered {status}: {said}" + (f" {tries}" if passing else "")
            advice = advice if passing else self._advice(status)
        else:
            return self._answer(reply)
        raise RecR1Error(f"{self.url} {problem}; {advice}") from None

    def answer(self, request: str) -> tuple[Answer, Parsed]:
        """What the server says to this request with the rewriter's prompt, and how it parses."""
        messages = self.prompt.messages(_TAG.sub("< ", request))
        if self.prompt.prefix:
            messages.append({"role": "assistant", "content": self.prompt.prefix})
        answer = self.chat(messages)
        text = whole(answer.text).removeprefix(self.prompt.prefix)  # some servers repeat it
        return answer._replace(text=text), self.prompt.read(text, answer.truncated)

    def safe(self, text: str) -> str:
        """The text cut short, without this server's secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text[:300]

    def _rewrite(self, request: str) -> Rewrite:
        answer, parsed = self.answer(request)
        query = compose(request, parsed.query, self.prompt.mode, self.prompt.weight)
        return Rewrite(query, answer.text, str(parsed.outcome), answer.tokens)

    def _answer(self, reply: httpx.Response) -> Answer:
        try:
            said = json.loads(reply.content)
            choice, usage = said["choices"][0], said.get("usage") or {}
            text = "" + (choice["message"].get("content") or "")  # null with a refusal
            tokens, cut = usage.get("completion_tokens"), choice.get("finish_reason") == "length"
            answer = Answer(text, int(tokens or 0), cut, int(usage.get("prompt_tokens") or 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            problem = f"did not answer with a chat completion but with {self.safe(message_of(reply))!r}"
            raise RecR1Error(f"{self.url} {first_line(problem)}; is the base URL that of the API?") from None
        if tokens is None:
            warnings.warn(f"{self.url} does not say how many tokens it made; they count as 0", stacklevel=2)
        return answer

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            none = "no key was sent: set RECR1_ENDPOINT_KEY beside RECR1_ENDPOINT, or pass api_key="
            return "check the key" if self.has_key else none
        if status == 404 or status < 400:
            return "check the model's name, and that the base URL ends as the server wants it (often /v1)"
        return "mend the request; extra= changes its fields"


def from_environment(prompt: Prompt, **options) -> EndpointRewriter | None:
    """The rewriter that RECR1_ENDPOINT and its _MODEL and _KEY describe; None where it is not set."""
    return EndpointRewriter(prompt, **options) if _configured() else None


def _configured() -> str:
    return os.environ.get("RECR1_ENDPOINT", "")


def _client(address: httpx.URL, key: str, timeout: float, retries: int) -> tuple:
    """The openai client, and the headers of a call: without a key none is sent."""
    try:
        from openai import DefaultHttpxClient, Omit, OpenAI
    except ImportError:
        raise RecR1Error('an endpoint needs the package openai; run pip install -e ".[api]"') from None
    # a proxy of the environment cannot reach this machine's own loopback; redirects are not followed
    http = DefaultHttpxClient(trust_env=not is_loopback(address), follow_redirects=False)
    base, query = str(address.copy_with(query=None)), dict(httpx.QueryParams(address.query.decode()))
    reach: dict = dict(base_url=base, default_query=query, http_client=http)
    client = OpenAI(api_key=key or "none", timeout=timeout, max_retries=retries, **reach)
    return client, {} if key else {"Authorization": Omit()}


def _base(base_url: str) -> httpx.URL:
    url = address_of(base_url, "endpoint", "http://localhost:8000/v1")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/chat/completions"))


def _key_of(url: httpx.URL) -> str:
    """The key in the environment that belongs to this server, or ""."""
    configured, key = _configured(), os.environ.get("RECR1_ENDPOINT_KEY")
    if configured and key and same_server(url, _base(configured)):
        return key
    openai = same_server(url, httpx.URL("https://api.openai.com"))
    return os.environ.get("OPENAI_API_KEY", "") if openai else ""
