"""The kit's own model behind the chat-completions interface, on this machine only: to show and to test
`endpoint.py` where no other server runs."""

# MERGED: """A small server of rewrites: POST /search gives rewrite and results as JSON, GET / a page to try it by hand,
# MERGED: and POST /v1/chat/completions lets OpenAI clients ask the model itself.
# MERGED:
# MERGED: For one person's trying: one generation at a time, no streaming, no key asked for, on this machine alone by
# MERGED: default.
# MERGED: """

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rewriters import ModelRewriter, encode
from recr1_lite.policy.rollouts import generate_grouped
from recr1_lite.search.base import search_all
from recr1_lite.search.remote import local_http
from recr1_lite.tasks.prompts import break_special_tokens

PAGE_CSS = (
    ":root{color-scheme:light dark}body{margin:0;background:Canvas;color:CanvasText;"
    "font:16px/1.5 system-ui,sans-serif}main{max-width:860px;margin:0 auto;padding:16px}"
    "h1{font-size:1.4em;line-height:1.25;overflow-wrap:anywhere}"
)
PATH = "/v1/chat/completions"


@contextmanager
def local_server(policy: Policy, port: int = 0, max_prompt_tokens: int = 1024) -> Iterator[str]:
    """Serve `policy` on 127.0.0.1 (port 0: a free one) while inside; gives the base URL.

    For lessons and tests: one chat at a time, no streaming, no key asked for. The last message may be an
    assistant's; the model then goes on with it.
    """
    busy = threading.Lock()

    def answer(path: str, body: str) -> tuple[int, dict]:
        if path != PATH:
            return 404, {"error": {"message": f"there is no {path} here, only {PATH}"}}
        with busy:
            return 200, chat_completion(policy, json.loads(body), max_prompt_tokens)

    with local_http(answer, port) as url:
        yield url + "/v1"


def chat_completion(policy: Policy, body: Mapping, limit: int) -> dict:
    """The answer to one chat of the chat-completions interface. limit: tokens of the prompt."""
    tokenizer = policy.tokenizer
    chat = [
        {"role": turn["role"], "content": break_special_tokens(tokenizer, turn["content"])} for turn in body["messages"]
    ]
    prefix = chat.pop()["content"] if chat[-1]["role"] == "assistant" else ""
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + prefix
    ids, mask = encode(tokenizer, [text], limit, policy.model.device)
    training = policy.model.training
    row = generate_grouped(
        policy.model.eval(),
        ids,
        mask,
        int(body.get("max_tokens", 64)),
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        float(body.get("temperature", 1.0)),
    )[0].tolist()
    policy.model.train(training)
    content = tokenizer.decode(row, skip_special_tokens=True)
    ended = tokenizer.eos_token_id in row
    return {
        "object": "chat.completion",
        "created": int(time.time()),
        "model": policy.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop" if ended else "length",
            }
        ],
        "usage": {"prompt_tokens": ids.size(1), "completion_tokens": len(row)},
    }


BODY = 1 << 20  # bytes of a body
REQUESTS = 32  # requests in one call
LETTERS = 4000  # letters of a request
CHAT = 32_000  # letters of a chat
RESULTS = 100  # results that may be asked for
NEW_TOKENS = 1024  # tokens of a chat's answer
WAIT = 60.0  # seconds until a busy server says so
_CSS = """form{display:flex;gap:.5rem}input[name=q]{flex:1;font:inherit;padding:.4rem}button{font:inherit}
.two{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}.two ol{padding-left:1.4rem}small{opacity:.7}"""


class Service:
    """What the server knows: a rewriter on a policy, the search engine, titles of the items."""

    def __init__(self, rewriter: ModelRewriter, retriever, titles: Mapping[str, str], k: int = 10):
        self.rewriter, self.retriever, self.titles, self.k = rewriter, retriever, titles, k
        self._busy = threading.Lock()

    def answer(self, path: str, body: str) -> tuple[int, object]:
        """Status and JSON of a POST; what cannot be answered is a 400 and one sentence."""
        work = {"/search": self._search, PATH: self._chat}.get(path)
        if work is None:
            return 404, _error(f"there is no {path} here; POST to /search or {PATH}, or GET /")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return 400, _error('the body is no JSON object; send such as {"request": "warm coat", "k": 5}')
        if not self._busy.acquire(timeout=WAIT):
            return 503, _error("the model is busy with other requests; try again later")
        try:
            return 200, work(asked)
        except RecR1Error as error:
            return 400, _error(str(error))
        finally:
            self._busy.release()

    def page(self, path: str) -> tuple[int, object]:
        """Status and HTML (text) or JSON of a GET."""
        url = urlsplit(path)
        if url.path == "/health":
            return 200, {"status": "ok", "model": self.rewriter.policy.name, "rewriter": self.rewriter.name}
        if url.path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.rewriter.policy.name, "object": "model"}]}
        if url.path != "/":
            return 404, _error(f"there is no {url.path} here; GET / or /health, POST to /search")
        request = parse_qs(url.query).get("q", [""])[0].strip()
        if not request:
            return 200, _page("", "")
        status, found = self.answer("/search", json.dumps({"request": request}))
        if status == 200:
            return 200, _page(request, _compared(found, self._hits([found["request"]], self.k)[0]))
        return status, _page(request[:LETTERS], f"<p>{escape(found['error']['message'])}</p>")

    def _search(self, asked: Mapping) -> dict | list[dict]:
        given, k = asked.get("request"), asked.get("k", self.k)
        requests = given if isinstance(given, list) else [given]
        if not 1 <= len(requests) <= REQUESTS:
            raise RecR1Error(f"{len(requests)} requests in one call; send 1 to {REQUESTS}")
        if not all(isinstance(request, str) and request.strip() for request in requests):
            raise RecR1Error('"request" is no text, or an empty one; send a text or a list of texts')
        if (longest := max(map(len, requests))) > LETTERS:
            raise RecR1Error(f"a request has {longest} letters and {LETTERS} are allowed; shorten it")
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= RESULTS:
            raise RecR1Error(f'"k" is {json.dumps(k)[:40]}; send a whole number from 1 to {RESULTS}')
        requests = [_whole(request) for request in requests]
        size = self.rewriter.batch_size
        answers = [
            one
            for start in range(0, len(requests), size)
            for one in self.rewriter.complete(requests[start : start + size])
        ]
        hits = self._hits([answer.query for answer in answers], k)
        found = [
            {
                "request": request,
                "rewrite": answer.completion,
                "query": answer.query,
                "outcome": answer.outcome,
                "results": results,
            }
            for request, answer, results in zip(requests, answers, hits)
        ]
        return found if isinstance(given, list) else found[0]

    def _hits(self, queries: Sequence[str], k: int) -> list[list[dict]]:
        found = search_all(self.retriever, queries, k)
        return [
            [
                {"item_id": item, "title": self.titles.get(item, item), "score": float(score)}
                for item, score in zip(hits.ids, hits.scores)
            ]
            for hits in found
        ]

    def _chat(self, asked: Mapping) -> dict:
        turns = asked.get("messages")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise RecR1Error('"messages" is no list of turns; send [{"role": "user", "content": "hello"}]')
        if asked.get("stream"):
            raise RecR1Error('this server does not stream; leave "stream" out')
        turns = [{"role": turn.get("role"), "content": _text(turn.get("content"))} for turn in turns]
        letters = sum(len(turn["content"]) for turn in turns)
        if letters > CHAT or not all(isinstance(turn["role"], str) for turn in turns):
            raise RecR1Error(f"a turn has no role, or the chat more than {CHAT} letters; give roles, less")
        numbers = {
            "max_tokens": asked.get("max_completion_tokens") or asked.get("max_tokens") or 64,
            "temperature": 1.0 if asked.get("temperature") is None else asked["temperature"],
        }
        for name, most in (("max_tokens", NEW_TOKENS), ("temperature", 2)):
            value = numbers[name]
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise RecR1Error(f'"{name}" is {json.dumps(value)[:40]}; send a number up to {most}')
        return chat_completion(self.rewriter.policy, {"messages": turns, **numbers}, self.rewriter.max_prompt_tokens)


def run(arguments, profile, task, retriever) -> None:
    """The command `serve`: see recr1_lite/arguments.py. Ends with Ctrl-C."""
    from recr1_lite.policy.models import load_policy

    if arguments.adapter and arguments.model:
        raise RecR1Error("give --adapter or --model, not both: an adapter is put on the profile's model")
    if arguments.model:
        if (Path(arguments.model) / "adapter_config.json").is_file():
            raise RecR1Error(f"{arguments.model} is an adapter; give it with --adapter")
        profile = replace(profile, model=arguments.model)
    if not 1 <= arguments.k <= RESULTS:
        raise RecR1Error(f"--k {arguments.k} is not served; give 1 to {RESULTS}")
    policy = load_policy(profile, adapter=arguments.adapter, trainable=False)
    name = Path(profile.model).name
    if arguments.adapter:
        name += " + " + "/".join(Path(arguments.adapter).absolute().parts[-2:])
    policy.name = name  # no path of this machine goes out
    rewriter = ModelRewriter(
        policy,
        task.prompt,
        name,
        profile.max_completion_tokens,
        profile.batch_size,
        max_prompt_tokens=profile.max_prompt_tokens,
    )
    service = Service(rewriter, retriever, task.items.set_index("item_id")["title"].to_dict(), arguments.k)
    with local_http(service.answer, arguments.port, arguments.host, service.page, BODY) as url:
        print(
            f"{name} answers at {url}: a page to try it, POST {url}/search, {url}/v1 for OpenAI clients; Ctrl-C stops"
        )
        if not (arguments.host == "localhost" or arguments.host.startswith("127.")):
            print("warning: nobody is asked for a key, so whoever reaches this address can use the model")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nstopped serving")


def _error(message: str) -> dict:
    return {"error": {"message": message}}


def _text(content: object) -> str:
    """A turn's content: text, or the list of text parts that OpenAI clients may send."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RecR1Error('a turn\'s "content" is no text; this model reads text only')
    return _whole("".join(texts))


def _whole(text: str) -> str:
    """The text with a question mark for each half of a character, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _compared(found: Mapping, raw: Sequence[Mapping]) -> str:
    """The raw request's results beside the rewrite's, as HTML."""

    def column(title: str, query: str, hits: Sequence[Mapping]) -> str:
        rows = "".join(f"<li>{escape(str(hit['title']))} <small>{hit['score']:.2f}</small></li>" for hit in hits)
        return f"<section><h2>{escape(title)}</h2><p><small>sent: {escape(query)}</small></p><ol>{rows}</ol></section>"

    said = f"<p>The model says: <b>{escape(found['rewrite'])}</b> ({escape(found['outcome'])})</p>"
    return (
        f'{said}<div class="two">{column("The request itself", found["request"], raw)}'
        f"{column('With the rewrite', found['query'], found['results'])}</div>"
    )


def _page(request: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Try the rewriter</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{PAGE_CSS}{_CSS}</style></head><body><main><h1>Try the rewriter</h1>"
        '<form action="/" method="get">'
        f'<input name="q" aria-label="request" placeholder="What are you looking for?" maxlength="{LETTERS}" '
        f'value="{escape(request, quote=True)}" autofocus><button>Search</button></form>{body}</main></body>'
        "</html>"
    )
