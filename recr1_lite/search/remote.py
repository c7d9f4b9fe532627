"""JSON over HTTP, as both outside services of this kit need it: a model behind an API, a search engine.

What may pass is tried again, what is our own mistake is not; secrets go to their server and into no message.
"""

# MERGED: """A search engine behind HTTP as the retriever: OpenSearch or Elasticsearch, or any service of yours.
# MERGED:
# MERGED: The engine stays fixed and a black box; only where it runs differs. A failure that lasts, hits that are cut
# MERGED: short and an answer that makes no sense are errors with the query in them, never an empty list: a policy must
# MERGED: not be paid for an engine's bad day.
# MERGED: """

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import Hits, Retriever, RetrieverError, checked_queries, search_all
from recr1_lite.search.metrics import checked_cutoff

BACKOFF = 1.0  # seconds before the first repeat; doubled for each further one
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)  # of pages served here
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is given up


class Server:
    """One address that JSON is posted to.

    authorization: value of that header, or "". advise: what to do about a status below 500. ease: what to
    try when the server was too slow or too busy. Timeouts, lost connections, 429 and 5xx are tried again
    `retries` times with doubled pauses, or after the server's Retry-After; any other failure never. timeout:
    seconds of silence. client: further settings of the httpx client.
    """

    def __init__(
        self,
        address: httpx.URL,
        authorization: str,
        timeout: float,
        retries: int,
        advise: Callable[[int], str],
        ease: str,
        **client,
    ):
        self.address, self.retries, self.advise, self.ease = address, max(0, retries), advise, ease
        self.url = str(address.copy_with(userinfo=b"", query=None))  # what may be shown
        if not authorization.isascii() or not authorization.isprintable():
            raise RecR1Error(f"the key for {self.url} holds characters that no key has; copy it again")
        key = authorization.partition(" ")[2] or authorization  # "Bearer" may be shown
        self._secrets = [secret for secret in (key, address.password, address.query.decode()) if secret]
        headers = {"Content-Type": "application/json"} | client.pop("headers", {})
        headers |= {"Authorization": authorization} if authorization else {}
        # a proxy of the environment cannot reach this machine's own loopback; redirects are not followed
        loopback = address.host in ("localhost", "::1") or address.host.startswith("127.")
        self.client = httpx.Client(timeout=timeout, headers=headers, trust_env=not loopback, **client)

    @property
    def has_key(self) -> bool:
        return "Authorization" in self.client.headers or bool(self.address.userinfo)

    def post(
        self, body: str, hidden: Callable[[httpx.Response], tuple[int, str] | None] | None = None
    ) -> httpx.Response:
        """The answer, of status 200. Raises RecR1Error: address, status and the server's first line.

        hidden: finds status and message of a failure in the body of an answer of status 200.
        """
        for attempt in range(self.retries + 1):
            pause = min(BACKOFF * 2**attempt, LONGEST_WAIT)
            try:
                reply = self.client.post(self.address, content=body)
            except httpx.TimeoutException:
                problem = f"did not answer within {self.client.timeout.read:g} s"
            except httpx.RequestError as error:
                problem = f"cannot be reached ({self.safe(str(error) or type(error).__name__)})"
            else:
                status = reply.status_code
                if status == 200:
                    if not (found := hidden(reply) if hidden else None):
                        return reply
                    status, said = found
                else:
                    said = _message(reply)
                problem = f"answered {status}: {self.safe(said)}"
                if status != 429 and status < 500:
                    raise RecR1Error(f"{self.url} {problem}; {self.advise(status)}")
                pause = _retry_after(reply.headers.get("Retry-After", ""), pause)
            if attempt == self.retries or pause > LONGEST_WAIT:
                break
            time.sleep(pause)
        asks = f" and asks for a pause of {pause:.0f} s" if pause > LONGEST_WAIT else ""
        raise RecR1Error(
            f"{self.url} {problem}{asks} (tried {attempt + 1} times); check that it runs, then "
            f"try again with {self.ease}"
        )

    def said(self, reply: httpx.Response) -> str:
        """The first line of what the server says is wrong, out of JSON where it is JSON; no secrets."""
        return self.safe(_message(reply))

    def safe(self, text: str) -> str:
        """The text cut short, without this server's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:300]


def address_of(text: str, what: str, example: str) -> httpx.URL:
    """The URL; raises RecR1Error, with an example, for what is none."""
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise RecR1Error(f"the {what}'s address is no URL; it looks like {example}")
    return url


def same_server(one: httpx.URL, other: httpx.URL) -> bool:
    """Same scheme, host and port: a key for the one may be sent to the other."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


@contextmanager
def local_http(
    answer: Callable[[str, str], tuple[int, object]],
    port: int = 0,
    host: str = "127.0.0.1",
    page: Callable[[str], tuple[int, object]] | None = None,
    limit: int = 1 << 24,
) -> Iterator[str]:
    """Serve on `host` (port 0: a free one) while inside; gives the root URL, without a slash.

    answer: (path, body of the POST) -> (status, what goes back as JSON); what it raises is told as a 400.
    page: (path with its query) -> (status, HTML as text, or what goes back as JSON) of a GET. limit: bytes of
    a body; a longer one is not read. Raises RecR1Error where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may keep silent in the middle of a request

        def do_POST(self) -> None:
            self._reply(lambda: answer(self.path, self._body()))

        def do_GET(self) -> None:
            self._reply(lambda: page(self.path) if page else _refusal(404, "there is nothing to GET here"))

        def _body(self) -> str:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= limit:
                self.close_connection = True
                raise RecR1Error(f"the body has {length} bytes and {limit} are allowed; send less at a time")
            return self.rfile.read(length).decode()

        def _reply(self, make: Callable[[], tuple[int, object]]) -> None:
            try:
                status, reply = make()
            except Exception as error:  # told to the client, as servers do
                status, reply = _refusal(400, f"{type(error).__name__}: {error}")
            html = isinstance(reply, str)
            content = (reply if html else json.dumps(reply)).encode()
            with suppress(OSError):  # the client went away
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("X-Content-Type-Options", "nosniff")
                if html:  # no script, nothing from elsewhere, whatever a title or a request holds
                    self.send_header("Content-Security-Policy", POLICY)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_) -> None:  # a client that broke off; what `answer` raises is told above
            pass

    try:
        server = Quiet((host, port), Handler)
    except (OSError, OverflowError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RecR1Error(
            f"{host}:{port} cannot be served on ({reason}); give another --port, or 0 for a free one"
        ) from problem
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _refusal(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message}}


def _message(reply: httpx.Response) -> str:
    found = reply.text
    with suppress(ValueError, AttributeError, LookupError, TypeError):
        found = reply.json().get("error") or reply.json()
        found = (found.get("root_cause") or [found])[0]  # OpenSearch
        found = found.get("message") or found.get("reason") or found.get("detail") or reply.text
    return next((line.strip() for line in str(found).splitlines() if line.strip()), "nothing")


def _retry_after(value: str, default: float) -> float:
    """Seconds in a Retry-After header (a number or a date), or `default`."""
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    with suppress(ValueError):
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return default


SESSION = "recr1_lite"  # every search on the same shard copies: another may score and break ties otherwise


class JSONRetriever:
    """Any service that is sent {"queries": [text, ...], "k": n} and gives {"results": [[hit, ...], ...]}.

    One list a query, best first; a hit is {"id": ..., "score": number} or a bare id, which scores 1 / rank.
    `serve` is such a service. url: default RECR1_SEARCH_URL. batch_size: distinct queries a request.
    authorization: value of that header, such as "Bearer ..." or "ApiKey ..."; default RECR1_SEARCH_AUTH if
    the server is the one of RECR1_SEARCH_URL; a user and password in the URL serve too. timeout: seconds of
    silence. retries: of timeouts, lost connections, 429 and 5xx; no other failure is tried again. Raises
    RecR1Error for a missing or bad address, key or batch size.
    """

    wanted = '{"results": [[{"id": ..., "score": ...}, ...], ...]}'
    reach: dict = {}  # further settings of the HTTP client

    def __init__(
        self,
        url: str | None = None,
        batch_size: int = 64,
        timeout: float = 30.0,
        retries: int = 3,
        authorization: str | None = None,
    ):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise RecR1Error(f"batch_size is {batch_size!r}; pass a whole number of at least 1")
        if not (url := url or os.environ.get("RECR1_SEARCH_URL", "")):
            raise RecR1Error("the search engine has no address; set RECR1_SEARCH_URL or pass url=")
        address = _address(url)
        key = (_key_of(address) if authorization is None else authorization).strip()
        self.batch_size = batch_size
        self._server = Server(
            self._route(address),
            key,
            timeout,
            retries,
            self._advice,
            "smaller batches or a longer timeout",
            **self.reach,
        )
        self.url = self._server.url

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits a query in the engine's order, each item once; a blank query is not asked.

        Raises RecR1Error for a bad `k`, RetrieverError, with the query, for one that is not text and for a
        server that fails or answers otherwise.
        """
        k, queries = checked_cutoff(k), checked_queries(queries)
        asked = [query for query in dict.fromkeys(queries) if query.strip()]
        found: dict[str, Hits] = {}
        for at in range(0, len(asked), self.batch_size):
            batch = asked[at : at + self.batch_size]
            found |= zip(batch, self._batch(batch, k))
        return [found.get(query, Hits([], [])) for query in queries]

    def _batch(self, batch: list[str], k: int) -> list[Hits]:
        failed = f"the search for {batch[0]!r}"
        failed += f" (and {len(batch) - 1} more in its batch) failed" if len(batch) > 1 else " failed"
        body = self._body(batch, k)
        try:
            reply = self._server.post(body, self._hidden)
        except RecR1Error as error:
            raise RetrieverError(f"{failed}: {error}") from None
        try:
            answers = self._answers(reply.json())
        except (ValueError, LookupError, TypeError):
            raise RetrieverError(
                f"{failed}: {self.url} did not answer with {self.wanted} but with "
                f"{self._server.said(reply)!r}; is the URL that of the search?"
            ) from None
        if len(answers) != len(batch):
            raise RetrieverError(
                f"{failed}: {self.url} gave {len(answers)} lists for {len(batch)} queries; "
                "let it give one list for each query"
            )
        return [self._checked(query, answer, k) for query, answer in zip(batch, answers)]

    def _checked(self, query: str, answer: Any, k: int) -> Hits:
        """One query's answer as Hits; an item that comes again is dropped."""
        hits: dict[str, float] = {}
        try:
            for rank, (item, score) in enumerate(self._pairs(answer), start=1):
                score = 1 / rank if score is None else score
                if isinstance(item, bool) or not isinstance(item, (str, int)):
                    raise ValueError(f"{item!r} is no id")
                if not (type(score) in (int, float) and math.isfinite(score)):
                    raise ValueError(f"the score {score!r} of {item!r} is no finite number")
                hits.setdefault(str(item), float(score))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise RetrieverError(
                f"the answer of {self.url} to {query!r} is of no use "
                f"({self._server.safe(reason)}); it must be {self.wanted}"
            ) from None
        ids = list(hits)[:k]
        return Hits(ids, [hits[item] for item in ids])

    def _route(self, address: httpx.URL) -> httpx.URL:
        return address

    def _body(self, batch: list[str], k: int) -> str:
        return json.dumps({"queries": batch, "k": k})

    def _hidden(self, reply: httpx.Response) -> tuple[int, str] | None:
        return None

    def _answers(self, reply: Any) -> list:
        return _list(reply["results"])

    def _pairs(self, answer: Any) -> list[tuple]:
        hits = _list(answer)
        return [(hit["id"], hit.get("score")) if isinstance(hit, dict) else (hit, None) for hit in hits]

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return (
                "check the key"
                if self._server.has_key
                else ("no key was sent: set RECR1_SEARCH_AUTH beside RECR1_SEARCH_URL, or pass authorization=")
            )
        if status == 404 or status < 400:
            return "check the URL, and the name of the index in it"
        return "pass a smaller batch_size=" if status == 413 else "mend what is sent: k, fields= or body="


class OpenSearchRetriever(JSONRetriever):
    """An index of OpenSearch or Elasticsearch; `url` is the index's, such as http://localhost:9200/products.

    fields: what is searched, by `match` (one field) or `multi_match`. Both take a query as a bag of words: an
    operator, a quote or a colon in it means nothing. `query_string` parses it: a rewrite with ":" or "(" then
    names a field or is refused, and the policy learns the parser instead of the catalogue (so it is that
    Rec-R1's own retriever loses the first word of each query). body: a function from a query to a search body
    of yours. id_field: the field with the item's id; default the document's `_id`. A batch goes to
    `_msearch`, with a batch_size of 1 to `_search`. k above the index's max_result_window (10,000) is refused
    there. options: as JSONRetriever.
    """

    wanted = "the whole answer of _search or _msearch"

    def __init__(
        self,
        url: str | None = None,
        fields: Sequence[str] = ("text",),
        body: Callable[[str], dict] | None = None,
        id_field: str | None = None,
        batch_size: int = 64,
        **options,
    ):
        if isinstance(fields, str) or not fields:
            raise RecR1Error(f"fields is {fields!r}; pass a list of one or more names of fields")
        self.fields, self.body, self.id_field = list(fields), body or self.match, id_field
        self.single = batch_size == 1
        self.reach = (
            {"params": {"preference": SESSION}}
            if self.single
            else {"headers": {"Content-Type": "application/x-ndjson"}}
        )
        super().__init__(url, batch_size, **options)

    def match(self, query: str) -> dict:
        """The search body that is sent by default."""
        if len(self.fields) == 1:
            return {"query": {"match": {self.fields[0]: {"query": query}}}}
        return {"query": {"multi_match": {"query": query, "fields": self.fields}}}

    def _route(self, address: httpx.URL) -> httpx.URL:
        index = address.path.rstrip("/").removesuffix("/_search").removesuffix("/_msearch")
        return address.copy_with(path=index + ("/_search" if self.single else "/_msearch"))

    def _body(self, batch: list[str], k: int) -> str:
        lines = [self._line(query, k) for query in batch]
        head = json.dumps({"preference": SESSION})
        return lines[0] if self.single else "".join(f"{head}\n{line}\n" for line in lines)

    def _line(self, query: str, k: int) -> str:
        common = {"_source": [self.id_field] if self.id_field else False, "track_total_hits": False}
        try:
            return json.dumps(common | self.body(query) | {"size": k})
        except Exception as error:
            raise RetrieverError(
                f"body= failed on the query {query!r} ({error!r}); let it give a search body, a dict that JSON can hold"
            ) from error

    def _hidden(self, reply: httpx.Response) -> tuple[int, str] | None:
        """Of _msearch: the first search of the batch that the cluster was too busy for."""
        try:
            found = [(answer.get("status", 200), _cause(answer)) for answer in self._answers(reply.json())]
            return next(((status, cause) for status, cause in found if status == 429 or status >= 500), None)
        except (ValueError, LookupError, TypeError, AttributeError):
            return None  # no answer of _msearch, which `_batch` says

    def _answers(self, reply: Any) -> list:
        return [reply] if self.single else _list(reply["responses"])

    def _pairs(self, answer: Any) -> list[tuple]:
        if answer.get("error"):
            raise ValueError(_cause(answer))
        if answer.get("timed_out") or answer.get("_shards", {}).get("failed"):
            raise ValueError("the search timed out or a shard failed, so hits are missing")
        hits = _list(answer["hits"]["hits"])
        field = self.id_field
        return [(hit["_source"][field] if field else hit["_id"], hit.get("_score")) for hit in hits]


@contextmanager
def serve(retriever: Retriever, port: int = 0) -> Iterator[str]:
    """Any retriever behind JSONRetriever's contract, on 127.0.0.1 while inside; gives its URL.

    port 0: a free one. A model of what a service of yours must do; for lessons and tests, not for an open
    network.
    """

    def answer(path: str, body: str) -> tuple[int, dict]:
        asked = json.loads(body)
        found = search_all(retriever, asked["queries"], asked["k"])
        results = [[{"id": item, "score": score} for item, score in zip(*hits)] for hits in found]
        return 200, {"results": results}

    with local_http(answer, port) as url:
        yield url + "/search"


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:60]!r} is no list")
    return value


def _cause(answer: dict) -> str:
    """What one search of a batch died of, as the engine puts it."""
    error = answer.get("error") or ""
    cause = (error.get("root_cause") or [error])[0] if isinstance(error, dict) else error
    return str(cause.get("reason") or cause if isinstance(cause, dict) else cause)


def _address(text: str) -> httpx.URL:
    return address_of(text, "search engine", "http://localhost:9200/products")


def _key_of(address: httpx.URL) -> str:
    """RECR1_SEARCH_AUTH where this is the server that it belongs to, or ""."""
    configured, key = os.environ.get("RECR1_SEARCH_URL"), os.environ.get("RECR1_SEARCH_AUTH", "")
    return key if configured and same_server(address, _address(configured)) else ""
