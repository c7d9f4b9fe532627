"""Everything is a rewriter: the raw request, a rule, a prompted model, a trained adapter and a server's model differ in
nothing else.

A server is any with OpenAI's chat completions: vLLM, llama.cpp, Ollama, LM Studio, OpenAI ... The package openai (an
optional extra) does the talking: what may pass it tries again by itself. A failure that comes inside a status 200 is
made one of HTTP before it sees it (`_unwrap`), so both have one way.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import httpx
import torch

from recr1_lite.common import RecR1Error, whole
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rollouts import MergedCopy, generate_grouped, until_end
from recr1_lite.profiles import Profile
from recr1_lite.search.remote import Remote, first_line, is_loopback, message_of, same_server
from recr1_lite.tasks.prompts import Outcome, Parsed, Prompt, Rewrite, split_thoughts

_TAG = re.compile(r"<(?=[|/\w])")  # how a chat template's special tokens open
_OVERLOAD = re.compile(r"overload|rate.?limit|too many|time.?out|timed out|temporar|unavailable|capacity|busy|upstream")
# why an answer ended, as servers spell it; None and "" where they do not say
DONE = {"", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed"}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
REFUSED = {"content_filter", "refusal", "safety", "recitation", "prohibited_content", "blocklist", "sensitive"}
REFUSED |= {"tool_calls", "tool_call", "function_call", "tool_use"}
BROKEN = {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "insufficient_system_resource"}


class Rewriter:
    """A name and `complete`; a subclass writes `complete`, and `rewrite` gives the queries alone."""

    name: str
    batch_size = 64

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        raise NotImplementedError

    def rewrite(self, requests: Sequence[str]) -> list[str]:
        return [answer.query for answer in self.complete(requests)]


class RawRewriter(Rewriter):
    """The request itself: the baseline that every rewriter has to beat."""

    name = "raw request"

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        return [Rewrite(whole(request), "", "ok", 0) for request in requests]


class RuleRewriter(Rewriter):
    """A plain function from a request to its rewrite ("": nothing to say, and the request is sent) and the thought."""

    def __init__(self, rule: Callable[[str], tuple[str, str]], prompt: Prompt, name: str = "rule"):
        self.rule, self.prompt, self.name = rule, prompt, name

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        pairs = [(request, self.rule(request)[0]) for request in requests]
        sent = self.prompt.sent
        return [Rewrite(sent(r, a), a, "ok", 0) if a else Rewrite(whole(r), "", "empty", 0) for r, a in pairs]


@dataclass(eq=False, repr=False)
class ModelRewriter(Rewriter):
    """A model asked with a prompt: greedy by default, sampled when temperature > 0. `merged`: a MergedCopy of the
    policy, which generates faster; by default one is made where the weights allow."""

    policy: Policy
    prompt: Prompt
    name: str
    max_new_tokens: int
    batch_size: int = 50
    temperature: float = 0.0
    max_prompt_tokens: int = 512
    merged: MergedCopy | None = None

    def __post_init__(self) -> None:
        self.merged = self.merged or MergedCopy.of(self.policy.model)

    def at(self, temperature: float) -> "ModelRewriter":
        """The same rewriter at another temperature."""
        return replace(self, temperature=temperature)

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        """One Rewrite per request, in order. Raises RecR1Error when a prompt is longer than `max_prompt_tokens`."""
        if not requests:
            return []
        tokenizer, prompt, policy = self.policy.tokenizer, self.prompt, self.policy
        texts = [prompt.render(tokenizer, request) for request in requests]
        ids, mask = encode(tokenizer, texts, self.max_prompt_tokens, policy.model.device)
        training, model = policy.model.training, self.merged.refresh() if self.merged else policy.model.eval()
        sizes = self.max_new_tokens, policy.end_ids, tokenizer.pad_token_id, self.temperature
        tokens = generate_grouped(model, ids, mask, *sizes)
        policy.model.train(training)
        answers = []
        for request, row in zip(requests, tokens.tolist(), strict=True):
            said, ended = until_end(row, policy.end_ids)
            text = tokenizer.decode(said, skip_special_tokens=True)
            parsed = prompt.read(text, truncated=not ended)
            answers.append(Rewrite(prompt.sent(request, parsed.query), text, str(parsed.outcome), len(said)))
        return answers


def encode(tokenizer, texts: Sequence[str], limit: int, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask (B, L) of rendered prompts. Raises RecR1Error when one is longer than `limit` tokens."""
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    if (longest := batch.input_ids.size(1)) > limit:
        advice = "shorten the request or the few-shot examples, or raise max_prompt_tokens in the profile"
        raise RecR1Error(f"a prompt has {longest} tokens and the limit is {limit}; {advice}")
    return batch.input_ids.to(device), batch.attention_mask.to(device)


def padded(rows: Sequence[list[int]], side: str, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (n, longest) of rows of ids, padded on the "left" or the "right"."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad(ids).to(device), pad([torch.ones_like(row) for row in ids]).to(device)


def as_rewriter(
    policy: Policy, prompt: Prompt, profile: Profile, name: str, merged: MergedCopy | None = None, temperature=0.0
) -> ModelRewriter:
    """The policy as a rewriter with the profile's sizes; greedy at temperature 0."""
    sizes = profile.max_completion_tokens, profile.batch_size
    return ModelRewriter(policy, prompt, name, *sizes, temperature, profile.max_prompt_tokens, merged)


class Answer(NamedTuple):
    """What a server said. tokens, prompt_tokens: None where it does not say. truncated: by max_tokens. refused: the
    model declined, a filter stopped it, or it called a tool. thought: what it said in a field of its own."""

    text: str
    tokens: int | None
    truncated: bool
    prompt_tokens: int | None = None
    refused: bool = False
    thought: str = ""


class EndpointRewriter(Rewriter, Remote):
    """A model behind `base_url` (such as http://localhost:8000/v1), asked with a prompt, `workers` at a time.

    Defaults: `base_url` RECR1_ENDPOINT, `model` RECR1_ENDPOINT_MODEL, `api_key` RECR1_ENDPOINT_KEY if the server is the
    one of RECR1_ENDPOINT, OPENAI_API_KEY if it is https://api.openai.com, else none. Most servers cannot go on with an
    assistant's turn that is begun, so the prompt's prefix is left out; `continue_prefix=True` sends it as a last
    assistant message, with the two settings that vLLM wants for that. `extra`: further fields of the body; None takes
    one out (for models that refuse max_tokens: {"max_tokens": None, "max_completion_tokens": 64}). Timeouts, lost
    connections, 408, 409, 429 and 5xx, inside a status 200 too, are tried again `retries` times, any other failure
    never. `timeout`: seconds of silence. Raises RecR1Error for a missing address or model, and a broken key."""

    what, example = "endpoint", "http://localhost:8000/v1"
    variables = "RECR1_ENDPOINT", "RECR1_ENDPOINT_KEY"

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
        self.model = model or os.environ.get("RECR1_ENDPOINT_MODEL", "")
        base_url = base_url or os.environ.get("RECR1_ENDPOINT", "")
        if not base_url:
            raise RecR1Error("the endpoint has no address; set RECR1_ENDPOINT or pass base_url=")
        if not self.model:
            raise RecR1Error("the endpoint has no model; set RECR1_ENDPOINT_MODEL or pass model=")
        self.name, self.workers, self.timeout, self.tries = name or self.model, max(1, workers), timeout, retries + 1
        self.connect(address := self.address_of(base_url), api_key, "/chat/completions")
        self.fields: dict = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature}
        if self.prompt.prefix:
            self.fields |= {"continue_final_message": True, "add_generation_prompt": False}
        self.fields |= extra or {}
        self.told: set[str] = set()
        try:
            from openai import DefaultHttpxClient, Omit, OpenAI
        except ImportError:
            raise RecR1Error('an endpoint needs the package openai; run pip install -e ".[api]"') from None
        # a proxy of the environment cannot reach this machine's own loopback; redirects are not followed
        hooks: dict = {"response": [_unwrap]}
        http = DefaultHttpxClient(trust_env=not is_loopback(address), follow_redirects=False, event_hooks=hooks)
        base, query = str(address.copy_with(query=None)), dict(httpx.QueryParams(address.query.decode()))
        reach: dict = dict(base_url=base, default_query=query, http_client=http, timeout=timeout, max_retries=retries)
        self.client = OpenAI(api_key=self.key or "none", **reach)
        self.headers = {} if self.key else {"Authorization": Omit()}  # without a key none is sent

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        """One Rewrite per request, in order. The first failure is raised, and what is left is not asked."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            jobs = [pool.submit(self.answer, request) for request in requests]
            failed = [job for job in wait(jobs, return_when=FIRST_EXCEPTION).done if job.exception()]
            answers = [job.result() for job in failed or jobs]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if any(answer.tokens is None for answer, _ in answers):
            self.tell(f"{self.url} does not say how many tokens it made; they count as 0")
        return [
            Rewrite(self.prompt.sent(request, parsed.query), answer.text, str(parsed.outcome), answer.tokens or 0)
            for request, (answer, parsed) in zip(requests, answers, strict=True)
        ]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        """The answer to a chat. Raises RecR1Error: address, status and the server's first line."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        body = {key: value for key, value in self.fields.items() if value is not None and key != "model"}
        advice = "check that it runs, then try again with fewer workers or a longer timeout"
        advice = f"(tried {self.tries} times); {advice}"
        try:
            raw = self.client.chat.completions.with_raw_response
            chat: dict = dict(model=self.model, messages=list(messages), extra_body=body, extra_headers=self.headers)
            return self._answer(raw.create(**chat).http_response)
        except APITimeoutError:
            problem = f"did not answer within {self.timeout:g} s {advice}"
        except APIConnectionError as error:
            broke = type(error.__cause__).__name__ in ("RemoteProtocolError", "ReadError")
            lost = "broke off its answer" if broke else "cannot be reached"
            problem = f"{lost} ({self.safe(str(error.__cause__ or error))}) {advice}"
        except APIStatusError as error:
            passing = error.status_code in (408, 409, 429) or error.status_code >= 500
            key = "check the key" if self.secrets else "no key was sent: set RECR1_ENDPOINT_KEY or pass api_key="
            place = "check the model's name, and that the base URL ends as the server wants it (often /v1)"
            known = {401: key, 403: key, 404: place, 301: place, 302: place, 307: place, 308: place}
            mend = known.get(error.status_code, "mend the request; extra= changes its fields")
            said = self.safe(message_of(error.response))
            problem = f"answered {error.status_code}: {said}{f' {advice}' if passing else f'; {mend}'}"
        raise RecR1Error(f"{self.url} {problem}") from None

    def answer(self, request: str) -> tuple[Answer, Parsed]:
        """What the server says to this request with the rewriter's prompt, and how it parses."""
        messages = self.prompt.messages(_TAG.sub("< ", request))
        if self.prompt.prefix:
            messages.append({"role": "assistant", "content": self.prompt.prefix})
        answer = self.chat(messages)
        text = whole(answer.text).removeprefix(self.prompt.prefix)  # some servers repeat it
        parsed = self.prompt.read(text, answer.truncated)
        if answer.refused or answer.truncated and not text.strip():
            parsed = Parsed(Outcome.refused if answer.refused else Outcome.truncated, "")
        if parsed.outcome == Outcome.truncated and (answer.thought or not text.strip() or split_thoughts(text)[1]):
            off = 'turn thinking off (often extra={"chat_template_kwargs": {"enable_thinking": False}})'
            self.tell(f"{self.url} used up its tokens in thought, with no answer; raise max_tokens, or {off}")
        return answer._replace(text=text), parsed

    def address_of(self, text: str) -> httpx.URL:
        """The base URL of the chats' own one, too."""
        url = super().address_of(text)
        return url.copy_with(path=url.path.rstrip("/").removesuffix("/chat/completions"))

    def key_of(self, address: httpx.URL) -> str:
        """OPENAI_API_KEY too, where this is OpenAI's own server."""
        openai = same_server(address, httpx.URL("https://api.openai.com"))
        return super().key_of(address) or (os.environ.get("OPENAI_API_KEY", "") if openai else "")

    def _answer(self, reply) -> Answer:
        try:
            said = json.loads(reply.content)
            choice = said["choices"][0]
            message, reason = choice["message"], str(choice.get("finish_reason") or "").lower()
            if said.get("error") or choice.get("error"):
                raise ValueError
            text, thought = _texts(message.get("content"))
            thought = str(message.get("reasoning_content") or message.get("reasoning") or thought)
            refused = reason in REFUSED or bool(message.get("refusal")) and not text
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            problem = f"did not answer with a chat completion but with {self.safe(message_of(reply))!r}"
            raise RecR1Error(f"{self.url} {first_line(problem)}; is the base URL that of the API?") from None
        if reason not in DONE | CUT | REFUSED:
            unknown = f"ended its answer for a reason that is not known here ({self.safe(reason)!r})"
            raise RecR1Error(f"{self.url} {unknown}; ask its makers what that means; no answer was taken")
        prompt_tokens, tokens = _usage(said.get("usage"), bool(text or thought))
        return Answer("" if refused else text, tokens, reason in CUT, prompt_tokens, refused, thought)

    def tell(self, what: str) -> None:
        """Warn of it once."""
        if what not in self.told:
            self.told.add(what)
            warnings.warn(what, stacklevel=2)


def from_environment(prompt: Prompt, **options) -> EndpointRewriter | None:
    """The rewriter that RECR1_ENDPOINT and its _MODEL and _KEY describe; None where it is not set."""
    return EndpointRewriter(prompt, **options) if os.environ.get("RECR1_ENDPOINT", "") else None


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
    if both and prompt:  # a count that leaves the thought out is smaller than the rest of the total
        made = max(made or 0, both - prompt)
    elif both and made:
        prompt = both - made
    return prompt or None, made if made or made == 0 and not said else None


def _count(value: Any) -> int | None:
    """A count as JSON may spell it (7, 7.0, "7"); None for what is none."""
    try:
        whole_number = not isinstance(value, bool) and float(value) == int(value) >= 0
    except (TypeError, ValueError, OverflowError):
        return None
    return int(value) if whole_number else None
