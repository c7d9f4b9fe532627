"""Any OpenAI-compatible chat-completions server as a rewriter: vLLM, llama.cpp, Ollama, LM Studio, OpenAI ...

What is asked, parsed and sent is the same as for a local model; only where the model runs differs. The package openai
(an optional extra) does the talking: what may pass it tries again by itself. A failure that comes inside a status 200
is made one of HTTP before it sees it (`_unwrap`), so both have one way. A key goes to the server it belongs to and into
no message.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from enum import StrEnum
from typing import Any, NamedTuple

import httpx

from recr1_lite.common import RecR1Error, whole
from recr1_lite.policy.rewriters import Rewriter
from recr1_lite.search.remote import address_of, first_line, is_loopback, message_of, same_server
from recr1_lite.tasks.prompts import Outcome, Parsed, Prompt, Rewrite, split_thoughts

_TAG = re.compile(r"<(?=[|/\w])")  # how a chat template's special tokens open
_OVERLOAD = re.compile(r"overload|rate.?limit|too many|time.?out|timed out|temporar|unavailable|capacity|busy|upstream")
# why an answer ended, as servers spell it; None and "" where they do not say
DONE = {"", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed"}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
REFUSED = {"content_filter", "refusal", "safety", "recitation", "prohibited_content", "blocklist", "sensitive"}
NO_TEXT = {"tool_calls", "tool_call", "function_call", "tool_use"}
BROKEN = {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"}


class Failure(StrEnum):
    """Why there is no answer."""

    timeout = "timeout"  # silence, 408, a gateway's 504
    connection = "connection"  # not reached, or broken off in the middle
    overloaded = "overloaded"  # 409, 429, 5xx
    rejected = "rejected"  # any other status: the key, the model's name, the request
    no_completion = "no_completion"  # no chat completion, or one that ended in a way that is not known


class EndpointError(RecR1Error):
    """A server gave no answer, after all its tries where that may pass. failure: why."""

    def __init__(self, problem: str, failure: Failure):
        super().__init__(problem)
        self.failure = failure


class Answer(NamedTuple):
    """What a server said. tokens, prompt_tokens: generated, and of the prompt; None where it does not say.

    truncated: by max_tokens. refused: the model declined, a filter stopped it, or it called a tool; what it said is no
    answer. thought: what a reasoning model said in a field of its own.
    """

    text: str
    tokens: int | None
    truncated: bool
    prompt_tokens: int | None = None
    refused: bool = False
    thought: str = ""


class EndpointRewriter(Rewriter):
    """A model behind `base_url` (such as http://localhost:8000/v1), asked with a prompt, `workers` at a time.

    Defaults: `base_url` RECR1_ENDPOINT, `model` RECR1_ENDPOINT_MODEL, `api_key` RECR1_ENDPOINT_KEY if the server is the
    one of RECR1_ENDPOINT, OPENAI_API_KEY if it is https://api.openai.com, else none. Most servers cannot go on with an
    assistant's turn that is begun, so the prompt's prefix is left out; `continue_prefix=True` sends it as a last
    assistant message, with the two settings that vLLM wants for that. `extra`: further fields of the body; None takes
    one out (for models that refuse max_tokens: {"max_tokens": None, "max_completion_tokens": 64}). Timeouts, lost
    connections, 408, 409, 429 and 5xx, inside a status 200 too, are tried again `retries` times, any other failure
    never. `timeout`: seconds of silence.
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
        self.told: set[str] = set()

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
        """The answer to a chat. Raises EndpointError: address, status and the server's first line."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        body = {key: value for key, value in self.fields.items() if value is not None and key != "model"}
        tries = f"(tried {max(0, self.retries) + 1} times)"
        advice = "check that it runs, then try again with fewer workers or a longer timeout"
        try:
            raw = self.client.chat.completions.with_raw_response
            chat: dict = dict(model=self.model, messages=list(messages), extra_body=body, extra_headers=self.headers)
            reply = raw.create(**chat).http_response
        except APITimeoutError:
            failure, problem = Failure.timeout, f"did not answer within {self.timeout:g} s {tries}"
        except APIConnectionError as error:
            broke = type(error.__cause__).__name__ in ("RemoteProtocolError", "ReadError")
            lost = "broke off its answer" if broke else "cannot be reached"
            failure, problem = Failure.connection, f"{lost} ({self.safe(str(error.__cause__ or error))}) {tries}"
        except APIStatusError as error:
            status, said = error.status_code, self.safe(message_of(error.response))
            failure, problem = Failure.overloaded, f"answered {status}: {said} {tries}"
            if status in (408, 504):
                failure, problem = Failure.timeout, f"did not answer in time ({status}: {said}) {tries}"
            elif status not in (409, 429) and status < 500:
                failure, problem, advice = Failure.rejected, f"answered {status}: {said}", self._advice(status)
        else:
            return self._answer(reply)
        raise EndpointError(f"{self.url} {problem}; {advice}", failure) from None

    def answer(self, request: str) -> tuple[Answer, Parsed]:
        """What the server says to this request with the rewriter's prompt, and how it parses."""
        messages = self.prompt.messages(_TAG.sub("< ", request))
        if self.prompt.prefix:
            messages.append({"role": "assistant", "content": self.prompt.prefix})
        answer = self.chat(messages)
        text = whole(answer.text).removeprefix(self.prompt.prefix)  # some servers repeat it
        parsed = self.prompt.read(text, answer.truncated)
        if answer.refused:
            parsed = Parsed(Outcome.refused, "")
        elif answer.truncated and not text.strip():
            parsed = Parsed(Outcome.truncated, "")
        if parsed.outcome == Outcome.truncated and (answer.thought or not text.strip() or split_thoughts(text)[1]):
            off = 'turn thinking off (often extra={"chat_template_kwargs": {"enable_thinking": False}})'
            self.tell(f"{self.url} used up its tokens in thought, with no answer; raise max_tokens, or {off}")
        return answer._replace(text=text), parsed

    def safe(self, text: str) -> str:
        """The text cut short, without this server's secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text[:300]

    def _rewrite(self, request: str) -> Rewrite:
        answer, parsed = self.answer(request)
        if answer.tokens is None:
            self.tell(f"{self.url} does not say how many tokens it made; they count as 0")
        query = self.prompt.sent(request, parsed.query)
        return Rewrite(query, answer.text, str(parsed.outcome), answer.tokens or 0)

    def _answer(self, reply) -> Answer:
        try:
            said = json.loads(reply.content)
            choice = said["choices"][0]
            message, reason = choice["message"], str(choice.get("finish_reason") or "").lower()
            if said.get("error") or choice.get("error"):
                raise ValueError
            text, thought = _texts(message.get("content"))
            thought = str(message.get("reasoning_content") or message.get("reasoning") or thought)
            refused = reason in REFUSED | NO_TEXT or bool(message.get("refusal")) and not text
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            problem = f"did not answer with a chat completion but with {self.safe(message_of(reply))!r}"
            wrong = f"{self.url} {first_line(problem)}; is the base URL that of the API?"
            raise EndpointError(wrong, Failure.no_completion) from None
        if reason not in DONE | CUT | REFUSED | NO_TEXT:
            unknown = f"ended its answer for a reason that is not known here ({self.safe(reason)!r})"
            advice = "ask its makers what that means; no answer was taken"
            raise EndpointError(f"{self.url} {unknown}; {advice}", Failure.no_completion)
        prompt_tokens, tokens = _usage(said.get("usage"), bool(text or thought))
        return Answer("" if refused else text, tokens, reason in CUT, prompt_tokens, refused, thought)

    def tell(self, what: str) -> None:
        """Warn of it once."""
        if what not in self.told:
            self.told.add(what)
            warnings.warn(what, stacklevel=2)

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
    hooks: dict = {"response": [_unwrap]}
    http = DefaultHttpxClient(trust_env=not is_loopback(address), follow_redirects=False, event_hooks=hooks)
    base, query = str(address.copy_with(query=None)), dict(httpx.QueryParams(address.query.decode()))
    reach: dict = dict(base_url=base, default_query=query, http_client=http)
    client = OpenAI(api_key=key or "none", timeout=timeout, max_retries=retries, **reach)
    return client, {} if key else {"Authorization": Omit()}


def _unwrap(reply) -> None:
    """Give a failure inside a status 200 the status that it names, or break the answer off: openai then tries again
    what may pass. Anything else that is no completion is left for `_answer` to name."""
    content = reply.read().strip() if reply.status_code == 200 else b"{}"
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        if not content or content[:1] == b"{" and content[-1:] != b"}":
            raise httpx.RemoteProtocolError("it ends in the middle") from None
        return
    said = said if isinstance(said, dict) else {}
    choices = said.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error: Any = said.get("error") or choice.get("error") or (said if said.get("object") == "error" else None)
    if error:
        fields = error if isinstance(error, dict) else {}
        codes = [_count(fields.get(name)) or 0 for name in ("code", "status", "status_code", "http_code")]
        passing = _OVERLOAD.search(json.dumps(error).lower()) or choice.get("error")
        reply.status_code = next((code for code in codes if 400 <= code < 600), 503 if passing else 200)
    elif str(choice.get("finish_reason")).lower() in BROKEN:
        raise httpx.RemoteProtocolError(f"its finish_reason is {choice['finish_reason']!r}")
    elif "choices" in said and not choices or choice and choice.get("message", 0) is None:
        raise httpx.RemoteProtocolError("it holds no message")


def _texts(content: Any) -> tuple[str, str]:
    """The text and the thought of a message's content: a text, null, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    parts = [content] if isinstance(content, dict) else content
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    text = "".join(part["text"] or "" for part in parts if part.get("type") in ("text", "output_text"))
    return text, " ".join(_texts(part.get("thinking"))[0] for part in parts if part.get("type") == "thinking")


def _usage(usage: Any, said: bool) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer, None where the server does not say so: 0 for a text is no count."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, made, both = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if both is not None:  # a count that leaves the thought out is smaller than the rest of the total
        prompt = both - made if prompt is None and made is not None else prompt
        made = max(made or 0, both - prompt) if prompt is not None else made
    return prompt or None, made if made or made == 0 and not said else None


def _count(value: Any) -> int | None:
    """A count as JSON may spell it; None for what is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    counts = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value % 1 == 0
    return int(value) if counts else None


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
