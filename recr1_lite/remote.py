"""A search engine behind HTTP as the retriever: OpenSearch or Elasticsearch, or any service of yours.

The engine stays fixed and a black box; only where it runs differs. A failure that lasts, hits that are cut
short and an answer that makes no sense are errors with the query in them, never an empty list: a policy must
not be paid for an engine's bad day.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from recr1_lite.errors import RecR1Error
from recr1_lite.metrics import checked_cutoff
from recr1_lite.retrievers import Hits, Retriever, RetrieverError, checked_queries, search_all
from recr1_lite.web import Server, address_of, local_http, same_server

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

    def __init__(self, url: str | None = None, batch_size: int = 64, timeout: float = 30.0, retries: int = 3,
                 authorization: str | None = None):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise RecR1Error(f"batch_size is {batch_size!r}; pass a whole number of at least 1")
        if not (url := url or os.environ.get("RECR1_SEARCH_URL", "")):
            raise RecR1Error("the search engine has no address; set RECR1_SEARCH_URL or pass url=")
        address = _address(url)
        key = (_key_of(address) if authorization is None else authorization).strip()
        self.batch_size = batch_size
        self._server = Server(self._route(address), key, timeout, retries, self._advice,
                              "smaller batches or a longer timeout", **self.reach)
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
            raise RetrieverError(f"{failed}: {self.url} did not answer with {self.wanted} but with "
                                 f"{self._server.said(reply)!r}; is the URL that of the search?") from None
        if len(answers) != len(batch):
            raise RetrieverError(f"{failed}: {self.url} gave {len(answers)} lists for {len(batch)} queries; "
                                 "let it give one list for each query")
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
            raise RetrieverError(f"the answer of {self.url} to {query!r} is of no use "
                                 f"({self._server.safe(reason)}); it must be {self.wanted}") from None
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
            return "check the key" if self._server.has_key else (
                "no key was sent: set RECR1_SEARCH_AUTH beside RECR1_SEARCH_URL, or pass authorization=")
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

    def __init__(self, url: str | None = None, fields: Sequence[str] = ("text",),
                 body: Callable[[str], dict] | None = None, id_field: str | None = None, batch_size: int = 64,
                 **options):
        if isinstance(fields, str) or not fields:
            raise RecR1Error(f"fields is {fields!r}; pass a list of one or more names of fields")
        self.fields, self.body, self.id_field = list(fields), body or self.match, id_field
        self.single = batch_size == 1
        self.reach = {"params": {"preference": SESSION}} if self.single else {
            "headers": {"Content-Type": "application/x-ndjson"}}
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
            raise RetrieverError(f"body= failed on the query {query!r} ({error!r}); let it give a search "
                                 "body, a dict that JSON can hold") from error

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
