"""A small server of rewrites: POST /search gives rewrite and results as JSON, GET / a page to try it by hand, and POST
/v1/chat/completions lets OpenAI clients ask the model itself. `Server` is also what the search server stands on.

For one person's trying: one generation at a time, no streaming, no key asked for, on this machine alone by default. It
runs on Starlette and uvicorn; where the optional extra `server` is not installed, the import raises RecR1Error.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from recr1_lite.common import RecR1Error, fault, template, whole
from recr1_lite.profiles import Profile
from recr1_lite.search.base import Retriever, RetrieverError, search_all
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import PROMPTS, break_special_tokens, chat_text

try:
    import h11
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError:
    raise RecR1Error('serving needs starlette and uvicorn; run pip install -e ".[server]"') from None

if TYPE_CHECKING:
    from recr1_lite.policy import ModelRewriter, Policy

CHAT_PATH = "/v1/chat/completions"
BODY = 1 << 20  # bytes of a body
REQUESTS = 32  # requests in one call
LETTERS, CHAT_LETTERS = 4000, 32_000  # letters of a request, and of a chat
RESULTS = 100  # results of a rewrite that may be asked for
NEW_TOKENS = 1024  # tokens of a chat's answer
WAIT = 60.0  # seconds in the queue after which it says that it is busy
SAFE = {"X-Content-Type-Options": "nosniff"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
PAGE = SAFE | {"Content-Security-Policy": POLICY}  # no script, nothing from elsewhere, whatever a title holds


class Server:
    """What both servers share: one piece of work at a time, JSON in and out, one sentence for what went wrong."""

    known = example = ""  # what may be asked here, and a body
    queue = 64  # requests in the server after which it says that it is busy

    def __init__(self) -> None:
        self.worker, self.waiting = ThreadPoolExecutor(1), 0

    def routes(self) -> list[Route]:
        """What is answered here."""
        raise NotImplementedError

    async def alone(self, work: Callable, asked: object) -> tuple[int, Any]:
        """Status and answer of one piece of work, one at a time; what cannot be answered is one sentence."""
        if self.waiting >= self.queue:
            return BUSY
        self.waiting += 1
        try:
            try:
                async with asyncio.timeout(WAIT):
                    await self.turn.acquire()
            except TimeoutError:
                return BUSY
            try:
                return 200, await asyncio.get_running_loop().run_in_executor(self.worker, work, asked)
            finally:
                self.turn.release()
        except RetrieverError as error:  # it may hold an address or a path of this machine
            return 502, _noted(error, "the search engine failed on this request")
        except RecR1Error as error:
            return 400, _error(str(error))
        except Exception as error:
            return 500, _noted(error)
        finally:
            self.waiting -= 1

    async def post(self, work: Callable, request):
        """The response to a request with a JSON body."""
        body, came, size = b"", 0, int(request.headers.get("Content-Length") or 0)
        # a body that is too long is read for a while, else the answer is lost; who goes away meanwhile is no fault
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(2 if size > BODY else None) as limit:
                async for part in request.stream():
                    came += len(part)
                    body += part if came <= BODY else b""
                    if came > BODY and limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + 2)
        size = max(size, came)
        if size > BODY:
            return reply(413, _error(f"the body has {size} bytes and {BODY} are allowed; send less at a time"))
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return reply(400, _error(f"the body is no JSON object; send such as {self.example}"))
        return reply(*await self.alone(work, asked))

    def app(self) -> Starlette:
        """The application."""

        def nothing(request, error):
            return reply(404, _error(f"there is no {request.method} {request.url.path[:80]} here; {self.known}"))

        def broken(request, error):
            return reply(500, _noted(error))

        self.turn = asyncio.Lock()  # of this application's event loop
        return Starlette(routes=self.routes(), exception_handlers={404: nothing, 405: nothing, 500: broken})


class Service(Server):
    """What the server knows: a rewriter on a policy, the search engine (None: chats only), titles of the items."""

    known = f"POST to /search or {CHAT_PATH}, or GET / or /health"
    example = '{"request": "warm coat", "k": 5}'

    def __init__(self, rewriter: ModelRewriter, retriever: Retriever | None, titles: Mapping[str, str], k: int = 10):
        super().__init__()
        self.rewriter, self.retriever, self.titles, self.k = rewriter, retriever, titles, k

    def search(self, asked: Mapping) -> dict | list[dict]:
        """{"request": text or list of texts, "k": n} -> rewrite, query and results of each. Raises RecR1Error."""
        given, k = asked.get("request"), asked.get("k", self.k)
        requests = given if isinstance(given, list) else [given]
        if not 1 <= len(requests) <= REQUESTS:
            raise RecR1Error(f"{len(requests)} requests in one call; send 1 to {REQUESTS}")
        if not all(isinstance(request, str) and request.strip() for request in requests):
            raise RecR1Error('"request" is no text, or an empty one; send a text or a list of texts')
        if (longest := max(map(len, requests))) > LETTERS:
            raise RecR1Error(f"a request has {longest} letters and {LETTERS} are allowed; shorten it")
        check_count("k", k, RESULTS)
        texts, size = [whole(str(request)) for request in requests], self.rewriter.batch_size
        batches = [texts[at : at + size] for at in range(0, len(texts), size)]
        answers = [answer for batch in batches for answer in self.rewriter.complete(batch)]
        results, found = self.hits([answer.query for answer in answers], k), []
        for request, answer, hits in zip(texts, answers, results, strict=True):
            said = {"request": request, "rewrite": answer.completion, "query": answer.query}
            found.append(said | {"outcome": str(answer.outcome), "results": hits})
        return found if isinstance(given, list) else found[0]

    def hits(self, queries: Sequence[str], k: int) -> list[list[dict]]:
        """The results of each query: item_id, title, score."""
        if self.retriever is None:
            return [[] for _ in queries]
        found = [zip(*hits, strict=True) for hits in search_all(self.retriever, queries, k, self.titles)]
        return [[{"item_id": i, "title": self.titles[i], "score": float(s)} for i, s in hits] for hits in found]

    def chat(self, asked: Mapping) -> dict:
        """One chat of the chat-completions interface. Raises RecR1Error."""
        turns = asked.get("messages")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise RecR1Error('"messages" is no list of turns; send [{"role": "user", "content": "hello"}]')
        if asked.get("stream"):
            raise RecR1Error('this server does not stream; leave "stream" out')
        turns = [{"role": turn.get("role"), "content": _text(turn.get("content"))} for turn in turns]
        if sum(len(turn["content"]) for turn in turns) > CHAT_LETTERS or not all(turn["role"] for turn in turns):
            raise RecR1Error(f"a turn has no role, or the chat more than {CHAT_LETTERS} letters; give roles, less")
        most = asked.get("max_completion_tokens") or asked.get("max_tokens") or 64
        heat = 1.0 if asked.get("temperature") is None else asked["temperature"]
        for name, value, limit in (("max_tokens", most, NEW_TOKENS), ("temperature", heat, 2)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= limit:
                raise RecR1Error(f'"{name}" is {json.dumps(value)[:40]}; send a number up to {limit}')
        if len(turns) == 1 and turns[0]["role"] == "assistant" or not all(isinstance(t["role"], str) for t in turns):
            raise RecR1Error('a turn\'s "role" is no text, or nothing is asked; send a turn of the role "user"')
        try:
            return self.completion(turns, max(1, int(most)), float(heat) if heat > 1e-3 else 0.0)
        except TemplateError as problem:
            raise RecR1Error(f"the model's chat template does not take these turns ({problem})") from None

    def completion(self, turns: list[dict], most: int, temperature: float) -> dict:
        """The model's answer to these turns; after an assistant's turn it goes on with that."""
        from recr1_lite.policy.rewriters import encode
        from recr1_lite.policy.rollouts import generate_grouped, until_end

        policy = self.rewriter.policy
        tokenizer, model, ends = policy.tokenizer, policy.model, policy.end_ids
        turns = [turn | {"content": break_special_tokens(tokenizer, turn["content"])} for turn in turns]
        prefix = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        text = chat_text(tokenizer, turns) + prefix
        ids, mask = encode(tokenizer, [text], self.rewriter.max_prompt_tokens, model.device)
        training = model.training
        rows = generate_grouped(model.eval(), ids, mask, most, ends, tokenizer.pad_token_id, temperature)
        model.train(training)
        row, ended = until_end(rows[0].tolist(), ends)
        message = {"role": "assistant", "content": tokenizer.decode(row, skip_special_tokens=True)}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}
        usage = {"prompt_tokens": ids.size(1), "completion_tokens": len(row)}
        about = {"object": "chat.completion", "created": int(time.time()), "model": policy.name}
        return about | {"choices": [choice], "usage": usage}

    def both(self, request: str) -> dict:
        """The request's own results beside the rewrite's."""
        found: Any = self.search({"request": request})
        return {"found": found, "raw": self.hits([found["request"]], self.k)[0]}

    async def page(self, request):
        """The page to try it by hand."""
        query, status = request.query_params.get("q", "").strip(), 200
        about: dict = {"request": query[:LETTERS], "letters": LETTERS, "found": None, "problem": ""}
        if query:
            status, said = await self.alone(self.both, query)
            about |= said if status == 200 else {"problem": said["error"]["message"]}
        html = template("deploy", "try.html.j2").render(about)
        return HTMLResponse(html.encode("utf-8", "replace"), status, headers=PAGE)

    async def told(self, request):
        """Who answers here."""
        name = self.rewriter.policy.name
        if request.url.path == "/health":
            return reply(200, {"status": "ok", "model": name, "rewriter": self.rewriter.name})
        return reply(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

    def routes(self) -> list[Route]:
        posts = (("/search", self.search), (CHAT_PATH, self.chat))
        routes = [Route(path, partial(self.post, work), methods=["POST"]) for path, work in posts]
        return [*routes, Route("/", self.page), Route("/health", self.told), Route("/v1/models", self.told)]


class Protocol(H11Protocol):
    """What is no HTTP gets its answer in JSON too."""

    def send_400_response(self, msg: str) -> None:
        said = json.dumps(_error("this is no HTTP request that can be read; send HTTP/1.1")).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(said)), "Connection": "close"}
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
            first = h11.Response(status_code=400, headers=[*head.items()])
            for event in (first, h11.Data(said), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()


@contextmanager
def serving(app, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """Run an application on `host` (port 0: a free one) while inside; gives the root URL, without a slash. Raises
    RecR1Error where the port is taken."""
    try:
        listening = socket.create_server((host, port))
    except (OSError, OverflowError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        advice = "give another --port, or 0 for a free one"
        raise RecR1Error(f"{host}:{port} cannot be served on ({reason}); {advice}") from problem
    # asyncio sets it for sockets that name TCP alone; an answer in two parts waited 40 ms for its second without it
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options: dict = dict(ws="none", log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(uvicorn.Config(app, http=Protocol, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listening.close()


@contextmanager
def local_server(policy: Policy, port: int = 0, max_prompt_tokens: int = 1024) -> Iterator[str]:
    """The kit's own model behind the chat-completions interface on 127.0.0.1 while inside; gives the base URL. To show
    and to test `EndpointRewriter` where no other server runs."""
    from recr1_lite.policy import ModelRewriter

    rewriter = ModelRewriter(policy, PROMPTS["compact"], policy.name, 64, max_prompt_tokens=max_prompt_tokens)
    with serving(Service(rewriter, None, {}).app(), port) as url:
        yield url + "/v1"


def run(arguments, profile: Profile, task: Task, retriever: Retriever | None) -> None:
    """The command `serve`. arguments: adapter, model, host, port, k. Ends with Ctrl-C."""
    from recr1_lite.policy import as_rewriter, load_policy

    if arguments.adapter and arguments.model:
        raise RecR1Error("give --adapter or --model, not both: an adapter is put on the profile's model")
    if arguments.model:
        if (Path(arguments.model) / "adapter_config.json").is_file():
            raise RecR1Error(f"{arguments.model} is an adapter; give it with --adapter")
        profile = replace(profile, model=arguments.model)
    if not 1 <= arguments.k <= RESULTS:
        raise RecR1Error(f"--k {arguments.k} is not served; give 1 to {RESULTS}")
    policy = load_policy(profile, adapter=arguments.adapter, trainable=False)
    adapter = f" + {'/'.join(Path(arguments.adapter).absolute().parts[-2:])}" if arguments.adapter else ""
    name = policy.name = Path(profile.model).name + adapter  # no path of this machine goes out
    titles = task.items.set_index("item_id")["title"].to_dict()
    service = Service(as_rewriter(policy, task.prompt, profile, name), retriever, titles, arguments.k)
    ways = "a page to try it, POST {0}/search, {0}/v1 for OpenAI clients"
    until_stopped(service, arguments, lambda url: f"{name} answers at {url}: {ways.format(url)}")
    gc.freeze()  # else Python's end looks through all that torch has loaded, for seconds
    try:
        service.worker.submit(int).result(timeout=0.3)
    except TimeoutError:  # a generation goes on, and Python's own end would wait for it
        sys.stdout.flush()
        os._exit(0)


def until_stopped(service: Server, arguments, words: Callable[[str], str]) -> None:
    """Serve until Ctrl-C. words: what is printed first, from the address."""
    with serving(service.app(), arguments.port, arguments.host) as url:
        print(f"{words(url)}; Ctrl-C stops", flush=True)
        if not (arguments.host == "localhost" or arguments.host.startswith("127.")):
            print("warning: nobody is asked for a key, so whoever reaches this address can use it", flush=True)
        with suppress(KeyboardInterrupt):
            while True:  # no wait without an end: a Ctrl-C just before it would be lost
                time.sleep(0.5)
    print("\nstopped serving", flush=True)


def _error(message: str) -> dict:
    return {"error": {"message": message}}


BUSY = 503, _error("the server is busy with other requests; try again later")


def _noted(error: Exception, message: str = "the server failed on this request") -> dict:
    """What the client is told of a failure; the rest goes to the server's log."""
    print(f"recr1_lite serve: {message}: {fault(error)}", file=sys.stderr)
    return _error(f"{message}; its log says why")


def reply(status: int, content: object):
    headers = SAFE | ({"Retry-After": "5"} if status == 503 else {})
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise RecR1Error(f'"{name}" is {json.dumps(value)[:40]}; send a whole number from 1 to {most}')


def _text(content: object) -> str:
    """A turn's content: text, or the list of text parts that OpenAI clients may send."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RecR1Error('a turn\'s "content" is no text; this model reads text only')
    return whole("".join(map(str, texts)))
