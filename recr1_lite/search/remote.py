"""A search engine behind HTTP as the retriever: any service of yours, OpenSearch or Elasticsearch.

What may pass (a timeout, a lost connection, 429, 5xx) is tried again, our own mistake is not. A failure that lasts,
hits that are cut short and an answer that makes no sense are errors with the query in them, never an empty list: a
policy must not be paid for an engine's bad day.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import Hits, RetrieverError, listed, once, read_hits
from recr1_lite.search.metrics import checked_cutoff

BACKOFF = 1.0  # seconds before the first repeat; doubled for each further one
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is given up
SESSION = "recr1_lite"  # every search on the same shard copies: another may score and break ties otherwise
ADVICE = {401: "check the key", 403: "check the key", 404: "check the URL, and the name of the index in it"}
ADVICE[413] = "pass a smaller batch_size="
NO_KEY = "no key was sent: set RECR1_SEARCH_AUTH beside RECR1_SEARCH_URL, or pass authorization="


class Passing(Exception):
    """A failure that may pass. pause: seconds that the server asks for, or None."""

    def __init__(self, problem: str, pause: float | None = None):
        super().__init__(problem)
        self.pause = pause


class Remote:
    """What is reached over HTTP. url: its address as it may be shown; its key goes to that server and into no message.

    `what`, `example`, and the variables of the environment with its address and key are the subclass's."""

    what, example = "search engine", "http://localhost:9200/products"
    variables = "RECR1_SEARCH_URL", "RECR1_SEARCH_AUTH"

    def connect(self, address: httpx.URL, key: str | None, path: str = "") -> None:
        """Keep the address, whose URL goes on with `path`, and the key; None: the environment's for this server.

        Raises RecR1Error for characters that no key has."""
        self.address, self.key = address, (self.key_of(address) if key is None else key).strip()
        self.url = str(address.copy_with(userinfo=b"", query=None)) + path
        if not self.key.isascii() or not self.key.isprintable():
            raise RecR1Error(f"the key for {self.url} holds characters that no key has; copy it again")
        secret = self.key.partition(" ")[2] or self.key  # "Bearer" may be shown
        self.secrets = [secret for secret in (secret, address.password, address.query.decode()) if secret]

    def address_of(self, text: str) -> httpx.URL:
        """The URL; raises RecR1Error, with an example, for what is none."""
        with suppress(httpx.InvalidURL):
            url = httpx.URL(text.strip())
            if url.scheme in ("http", "https") and url.host:
                return url
        raise RecR1Error(f"the {self.what}'s address is no URL; it looks like {self.example}")

    def key_of(self, address: httpx.URL) -> str:
        """The environment's key where this is the server that it belongs to, or ""."""
        configured, key = (os.environ.get(name, "") for name in self.variables)
        return key if configured and key and same_server(address, self.address_of(configured)) else ""

    def safe(self, text: str) -> str:
        """The text cut short, without this server's secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text[:300]


class JSONRetriever(Remote):
    """Any service that is sent {"queries": [text, ...], "k": n} and gives {"results": [[hit, ...], ...]}.

    One list per query, best first; a hit is {"id": ..., "score": number} or a bare id, which scores 1 / rank.
    url: default RECR1_SEARCH_URL. batch_size: distinct queries per request. authorization: value of that header, such
    as "Bearer ..." or "ApiKey ..."; default RECR1_SEARCH_AUTH if the server is the one of RECR1_SEARCH_URL; a user and
    password in the URL serve too. timeout: seconds of silence. retries: of what may pass. Raises RecR1Error for a
    missing or bad address, key or batch size."""

    wanted = '{"results": [[{"id": ..., "score": ...}, ...], ...]}'
    answers, content_type = "results", "application/json"

    def __init__(self, url=None, batch_size: int = 64, timeout: float = 30.0, retries: int = 3, authorization=None):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise RecR1Error(f"batch_size is {batch_size!r}; pass a whole number of at least 1")
        if not (url := url or os.environ.get("RECR1_SEARCH_URL", "")):
            raise RecR1Error("the search engine has no address; set RECR1_SEARCH_URL or pass url=")
        self.connect(self.address_of(url), authorization)
        self.batch_size, self.timeout, self.retries = batch_size, timeout, max(0, retries)
        headers = {"Content-Type": self.content_type} | ({"Authorization": self.key} if self.key else {})
        # a proxy of the environment cannot reach this machine's own loopback; redirects are not followed
        self.client = httpx.Client(timeout=timeout, headers=headers, trust_env=not is_loopback(self.address))

    @property
    def about(self) -> dict:
        """The address, without its secrets; what the service holds is not known here."""
        return {"url": self.url}

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits per query in the engine's order, each item once; a blank query is not asked. Raises
        RecR1Error for a bad `k`, RetrieverError, with the query, for what is no text and for a server that fails."""
        k, size = checked_cutoff(k), self.batch_size

        def search(asked: list[str]) -> list[Hits]:
            batches = [asked[at : at + size] for at in range(0, len(asked), size)]
            return [hits for batch in batches for hits in self._batch(batch, k)]

        return once(queries, search)

    def _batch(self, batch: list[str], k: int) -> list[Hits]:
        def last(state: RetryCallState) -> bool:
            return state.attempt_number > self.retries or _pause(state) > LONGEST_WAIT

        again = Retrying(stop=last, wait=_pause, retry=retry_if_exception_type(Passing), reraise=True)
        try:
            answers = again(self._ask, batch, k)
            if len(answers) != len(batch):
                lists = f"gave {len(answers)} lists for {len(batch)} queries; let it give one list for each query"
                raise RecR1Error(f"{self.url} {lists}")
        except (RecR1Error, Passing) as error:
            problem = str(error)
            if isinstance(error, Passing):
                asks = f" and asks for a pause of {error.pause:.0f} s" if (error.pause or 0) > LONGEST_WAIT else ""
                tried = f"tried {again.statistics['attempt_number']} times"
                advice = "check that it runs, then try again with smaller batches or a longer timeout"
                problem = f"{self.url} {error}{asks} ({tried}); {advice}"
            more = f" (and {len(batch) - 1} more in its batch)" if len(batch) > 1 else ""
            raise RetrieverError(f"the search for {batch[0]!r}{more} failed: {problem}") from None
        return [self._checked(query, answer, k) for query, answer in zip(batch, answers, strict=True)]

    def _ask(self, batch: list[str], k: int) -> list:
        """The engine's answer to each query. Raises Passing for what may pass, RecR1Error for what will not."""
        body = self._body(batch, k)
        try:
            reply = self.client.post(self.address, content=body)
        except httpx.TimeoutException:
            raise Passing(f"did not answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            raise Passing(f"cannot be reached ({self.safe(str(error) or type(error).__name__)})") from None
        if reply.status_code != 200:
            asked = reply.headers.get("Retry-After", "")
            pause = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else None
            self._fail(reply.status_code, message_of(reply), pause)
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            return listed(reply.json()[self.answers])
        problem = f"did not answer with {self.wanted} but with {self.safe(first_line(reply.text))!r}"
        raise RecR1Error(f"{self.url} {problem}; is the URL that of the search?")

    def _body(self, batch: list[str], k: int) -> str:
        return json.dumps({"queries": batch, "k": k})

    def _pairs(self, answer: Any) -> list[tuple]:
        """(id, score or None) of each hit of one answer; ValueError, KeyError or TypeError for no answer."""
        return [(hit["id"], hit.get("score")) if isinstance(hit, dict) else (hit, None) for hit in listed(answer)]

    def _checked(self, query: str, answer: Any, k: int) -> Hits:
        """One query's answer as Hits; an item that comes again is dropped."""
        hits: dict[str, float] = {}
        try:
            for item, score in zip(*read_hits(self._pairs(answer))):
                hits.setdefault(item, score)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = self.safe(f"no {error}" if isinstance(error, KeyError) else str(error))
            answer_to = f"the answer of {self.url} to {query!r} is of no use ({reason})"
            raise RetrieverError(f"{answer_to}; it must be {self.wanted}") from None
        return Hits(list(hits)[:k], list(hits.values())[:k])

    def _fail(self, status: int, said: str, pause: float | None = None) -> None:
        problem = f"answered {status}: {self.safe(said)}"
        if status == 429 or status >= 500:
            raise Passing(problem, pause)
        advice = ADVICE.get(status, ADVICE[404] if status < 400 else "mend what is sent: k, fields= or body=")
        if status in (401, 403) and not (self.key or self.address.userinfo):
            advice = NO_KEY
        raise RecR1Error(f"{self.url} {problem}; {advice}")


class OpenSearchRetriever(JSONRetriever):
    """An index of OpenSearch or Elasticsearch; `url` is the index's, such as http://localhost:9200/products.

    fields: what is searched, by `match` (one field) or `multi_match`. Both take a query as a bag of words: an operator,
    a quote or a colon in it means nothing. `query_string` parses it: a rewrite with ":" or "(" then names a field or is
    refused, and the policy learns the parser instead of the catalogue (so it is that Rec-R1's own retriever loses the
    first word of each query). body: a function from a query to a search body of yours. id_field: the field with the
    item's id; default the document's `_id`. A batch goes to `_msearch`. k above the index's max_result_window (10,000)
    is refused there. options: as JSONRetriever."""

    wanted = "the whole answer of _msearch"
    answers, content_type = "responses", "application/x-ndjson"

    def __init__(
        self, url=None, fields: Sequence[str] = ("text",), body: Callable | None = None, id_field=None, **options
    ):
        if isinstance(fields, str) or not fields:
            raise RecR1Error(f"fields is {fields!r}; pass a list of one or more names of fields")
        super().__init__(url, **options)
        self.fields, self.body, self.id_field = list(fields), body or self.match, id_field
        index = self.address.path.rstrip("/").removesuffix("/_search").removesuffix("/_msearch")
        self.address = self.address.copy_with(path=f"{index}/_msearch")

    @property
    def about(self) -> dict:
        """The address, and what is searched there."""
        return {"url": self.url, "fields": self.fields, "id_field": self.id_field, "example": self.body("example")}

    def match(self, query: str) -> dict:
        """The search body that is sent by default."""
        if len(self.fields) == 1:
            return {"query": {"match": {self.fields[0]: {"query": query}}}}
        return {"query": {"multi_match": {"query": query, "fields": self.fields}}}

    def _body(self, batch: list[str], k: int) -> str:
        common = {"_source": [self.id_field] if self.id_field else False, "track_total_hits": False}
        lines = []
        for query in batch:
            try:
                lines += [json.dumps({"preference": SESSION}), json.dumps(common | self.body(query) | {"size": k})]
            except Exception as error:
                advice = "let it give a search body, a dict that JSON can hold"
                raise RetrieverError(f"body= failed on the query {query!r} ({error!r}); {advice}") from error
        return "\n".join([*lines, ""])

    def _ask(self, batch: list[str], k: int) -> list:
        answers = super()._ask(batch, k)
        for answer in answers:  # the first search of the batch that the cluster was too busy for
            status = answer.get("status") if isinstance(answer, dict) else None
            if isinstance(status, int) and (status == 429 or status >= 500):
                self._fail(status, cause_of(answer))
        return answers

    def _pairs(self, answer: Any) -> list[tuple]:
        if answer.get("error"):
            raise ValueError(cause_of(answer))
        if answer.get("timed_out") or answer.get("_shards", {}).get("failed"):
            raise ValueError("the search timed out or a shard failed, so hits are missing")
        field, hits = self.id_field, listed(answer["hits"]["hits"])
        return [(hit["_source"][field] if field else hit["_id"], hit.get("_score")) for hit in hits]


def cause_of(said: Any) -> str:
    """The first line of what a server says is wrong, in the JSON of services and search engines."""
    for _ in range(6):  # {"error": {"root_cause": [{"reason": ...}]}}
        if isinstance(said, dict):
            keys = ("error", "root_cause", "message", "reason", "detail")
            said = next((said[key] for key in keys if said.get(key)), said)
        elif isinstance(said, list) and said:
            said = said[0]
    return first_line(str(said))


def message_of(reply: Any) -> str:
    """The first line of what a server says is wrong, out of JSON where it is JSON."""
    with suppress(ValueError, RecursionError):
        return cause_of(reply.json() or reply.text)
    return first_line(reply.text)


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "nothing")


def same_server(one: httpx.URL, other: httpx.URL) -> bool:
    """Same scheme, host and port: a key for the one may be sent to the other."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def is_loopback(address: httpx.URL) -> bool:
    return address.host in ("localhost", "::1") or address.host.startswith("127.")


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: what the server asks for, else doubled each time."""
    problem = state.outcome.exception() if state.outcome else None
    asked = problem.pause if isinstance(problem, Passing) else None
    return min(BACKOFF * 2 ** (state.attempt_number - 1), LONGEST_WAIT) if asked is None else asked
