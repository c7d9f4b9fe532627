"""Retrievers over HTTP against real servers on this machine: the JSON contract, and a small OpenSearch."""

import json
import math
import os
import time
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from servers import ITEMS, in_turn, refuses_bad_searches, search_server, server

from recr1_lite.common import RecR1Error
from recr1_lite.search import remote as web
from recr1_lite.search.base import NEEDED, Hits, RetrieverError, environment_check
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.search.remote import JSONRetriever, OpenSearchRetriever

KEY = "very-secret-0123456789"
QUERIES = ["red dress", "denim AND (pockets", "", "swim", "nothing of it here?", "red dress", "  "]
QUERIES += ['text:"wool" \\', "größe ü 裙"]
LOCAL = BM25Retriever.build(ITEMS)
KINDS = [JSONRetriever, OpenSearchRetriever]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No search engine or key of the developer's, and no waiting between tries."""
    for name in ("RECR1_SEARCH_URL", "RECR1_SEARCH_AUTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web, "BACKOFF", 0.01)


def one_search(body: dict) -> dict:
    """What OpenSearch says to a search body, for the queries that the kit sends; any other is refused."""
    match = body["query"].get("match") or {}
    ((_, text),) = match.items() if match else [("", body["query"]["multi_match"])]
    if body["size"] > 10_000:
        reason = "Result window is too large, from + size must be less than or equal to: [10000]"
        cause = {"type": "illegal_argument_exception", "reason": reason}
        return {"status": 400, "error": {"root_cause": [cause], "reason": "all shards failed", "type": "x"}}
    found = LOCAL.search([text["query"]], body["size"])[0]
    wanted = body["_source"] or []
    hits = [{"_index": "products", "_id": item, "_score": score} for item, score in zip(*found)]
    for hit in hits if wanted else ():
        hit["_source"] = dict.fromkeys(wanted, f"sku-{hit['_id']}")
    whole = {"took": 1, "timed_out": False, "status": 200, "_shards": {"total": 1, "failed": 0}}
    return whole | {"hits": {"max_score": max(found.scores, default=None), "hits": hits}}


def opensearch(path: str, headers, body) -> tuple[int, str]:
    """The call of OpenSearch that is used, on the index `products`. For another index it is answered too, with an error
    in each response, as OpenSearch does."""
    index, _, call = path.strip("/").rpartition("/")
    reason = {"root_cause": [{"reason": f"no such index [{index}]"}], "type": "index_not_found_exception"}
    if call == "_msearch":
        assert body.endswith("\n")
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[::2] == [{"preference": "recr1_lite"}] * (len(lines) // 2)
        lost = {"error": reason, "status": 404}
        found = [one_search(line) if index == "products" else lost for line in lines[1::2]]
        return 200, json.dumps({"took": 1, "responses": found})
    return 404, json.dumps({"error": reason, "status": 404})


@contextmanager
def engine(kind, **options):
    """The retriever of that kind with a server that holds ITEMS, and what the server saw."""
    if kind is OpenSearchRetriever:
        with server(opensearch, "/products") as (url, seen):
            yield kind(url, **options), seen
    else:
        asked = []
        noting = SimpleNamespace(search=lambda queries, k: asked.append(queries) or LOCAL.search(queries, k))
        with search_server(noting) as url:
            yield kind(url, **options), asked


def failure(kind, answer, queries=("red", "blue"), k=5, **options) -> tuple[str, list]:
    """What search() says of a failing server, and what the server saw."""
    with server(answer, "/products") as (url, seen), pytest.raises(RetrieverError) as caught:
        kind(url, **options).search(queries, k)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value), seen


def results(*lists) -> tuple[int, str]:
    return 200, json.dumps({"results": lists})


def responses(*answers) -> tuple[int, str]:
    return 200, json.dumps({"responses": answers})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_same_hits_as_the_same_engine_here(kind, batch_size):
    with engine(kind, batch_size=batch_size) as (remote, seen):
        for k in (1, 3, 100):
            seen.clear()
            assert remote.search(QUERIES, k) == LOCAL.search(QUERIES, k)
            asked = len(set(QUERIES) - {"", "  "})
            assert len(seen) == -(-asked // batch_size), "each distinct query once, batched"
        seen.clear()
        assert remote.search([], 3) == [] and remote.search(["", " \n"], 3) == [Hits([], [])] * 2
        refuses_bad_searches(remote.search)
        assert not seen
        assert [check for check in environment_check(remote, ITEMS, n=5) if not check.passed] == []
    for wrong in (0, 1.5, "8"):
        with pytest.raises(RecR1Error, match=f"batch_size is {wrong!r}; pass a whole number"):
            kind("http://localhost", batch_size=wrong)


def test_what_opensearch_is_asked_and_ids_of_a_field():
    with server(opensearch, "/products") as (url, seen):
        OpenSearchRetriever(url + "/_search", fields=["title^2", "text"]).search(["a:b (c"], 7)
        OpenSearchRetriever(url + "/_msearch/").search(["a"], 7)
        match = {"title": {"query": "a b", "operator": "and"}}
        OpenSearchRetriever(url, body=lambda query: {"query": {"match": match}, "size": 3}).search(["a b"], 7)
        found = OpenSearchRetriever(url, id_field="sku").search(["swim", "silk"], 5)
    assert found[0].ids == ["sku-d7", "sku-d8", "sku-d9"]
    common = {"_source": False, "track_total_hits": False, "size": 7}
    assert [json.loads(body.splitlines()[1]) for _, _, body in seen[:3]] == [
        common | {"query": {"multi_match": {"query": "a:b (c", "fields": ["title^2", "text"]}}},
        common | {"query": {"match": {"text": {"query": "a"}}}},
        common | {"query": {"match": match}},
    ]


def test_answers_as_they_come():
    hits = [{"id": "b", "score": 2}, {"id": 7, "score": 1.5}, {"id": "b", "score": 1}, {"id": "c", "score": -1}]
    with server(in_turn(results(hits, ["x", 3, "y"]))) as (url, seen):
        found = JSONRetriever(url).search(["one", "two"], 2)
    assert found == [Hits(["b", "7"], [2.0, 1.5]), Hits(["x", "3"], [1.0, 0.5])]
    assert seen[0][2] == {"queries": ["one", "two"], "k": 2}
    sorted_otherwise = {"hits": {"hits": [{"_id": "a", "_score": None}, {"_id": "b", "_score": None}]}}
    with server(in_turn(responses(sorted_otherwise))) as (url, _):
        assert OpenSearchRetriever(url).search(["one"], 9) == [Hits(["a", "b"], [1.0, 0.5])]


GOOD = {JSONRetriever: results(["a"], ["a"]), OpenSearchRetriever: responses(*[{"hits": {"hits": [{"_id": "a"}]}}] * 2)}
BUSY = {"status": 429, "error": {"root_cause": [{"reason": "rejected execution"}], "type": "x"}}
PASSING = [(429, "slow", {"Retry-After": "0"}), (500, "oops"), (503, "<html>\nbusy")]
PASSING = [(kind, bad) for kind in KINDS for bad in PASSING]
PASSING += [(OpenSearchRetriever, responses({"status": 200, "hits": {"hits": []}}, BUSY))]  # one search of two


@pytest.mark.parametrize("kind, bad", PASSING)
def test_what_may_pass_is_tried_again(kind, bad):
    with server(in_turn(bad, bad, GOOD[kind])) as (url, seen):
        assert kind(url).search(["red", "blue"], 5) == [Hits(["a"], [1.0])] * 2
    assert len(seen) == 3 and seen[0][2] == seen[2][2]
    said, seen = failure(kind, in_turn(bad), retries=1)
    assert len(seen) == 2 and "answered" in said and "(tried 2 times)" in said


def test_pauses_and_retry_after(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    said, seen = failure(JSONRetriever, in_turn((429, "no", {"Retry-After": "7"}), (503, "no")))
    assert pauses == [7, 0.02, 0.04] and len(seen) == 4
    assert said.startswith("the search for 'red' (and 1 more in its batch) failed: http://127.0.0.1:")
    assert "/products answered 503: no (tried 4 times); check that it runs, then try again with s" in said
    pauses.clear()
    said, seen = failure(JSONRetriever, in_turn((429, "no", {"Retry-After": "3600"})))
    assert not pauses and len(seen) == 1 and "asks for a pause of 3600 s" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_ours_is_never_tried_again(kind):
    advice = {400: "mend what is sent", 401: "check the key", 403: "check the key", 404: "name of the index"}
    for status, words in (advice | {413: "smaller batch_size=", 302: "check the URL"}).items():
        answer = status, '{"error": {"reason": "that is wrong"}}', {"Location": "/elsewhere"}
        said, seen = failure(kind, in_turn(answer), authorization=f"ApiKey {KEY}")
        assert len(seen) == 1 and f"answered {status}: that is wrong; " in said and words in said


def test_a_refused_search_says_why_and_which():
    said, seen = failure(OpenSearchRetriever, opensearch, k=10_001)
    assert "'red'" in said and "Result window is too large" in said and len(seen) == 1
    missing, _ = failure(OpenSearchRetriever, lambda path, *_: opensearch("/other" + path, *_))
    assert "to 'red' is of no use (no such index [other/products])" in missing
    busy = in_turn(responses({}, BUSY))
    assert "answered 429: rejected execution (tried 2 times)" in failure(OpenSearchRetriever, busy, retries=1)[0]


@pytest.mark.parametrize("kind, answer", zip(KINDS, (results, responses)))
def test_an_answer_that_is_none_and_a_list_for_each_query(kind, answer):
    texts = ["<html>\n<b>Welcome</b>", "", "[]", "null", '{"results": 3, "responses": 3}', '{"results": [[], []']
    for text in (*texts, "[" * 100_000, '{"responses": {"a": 1}, "results": "ab"}'):
        said, seen = failure(kind, in_turn((200, text)))
        assert len(seen) == 1 and "'red' (and 1 more in its batch) failed" in said
        assert "did not answer with" in said and "is the URL that of the search?" in said
    for n in (0, 1, 3):
        said, _ = failure(kind, in_turn(answer(*[[]] * n)))
        assert f"gave {n} lists for 2 queries" in said and "'red'" in said


NO_HITS = [("ab", "no list"), ([None], "is no id"), ([{"id": 1.5}], "is no id"), ([{"score": 1}], "no 'id'")]
NO_HITS += [([{"id": "a", "score": wrong}], "of 'a'") for wrong in ("high", math.nan, False)]


@pytest.mark.parametrize("hits, words", NO_HITS)
def test_hits_that_make_no_sense(hits, words):
    said, _ = failure(JSONRetriever, in_turn(results(["fine"], hits)))
    assert "to 'blue' is of no use" in said and words in said and "it must be" in said


def test_searches_that_make_no_sense_or_lack_hits():
    good = {"hits": {"hits": []}, "timed_out": False, "_shards": {"failed": 0}}
    hits = {"_score": 1.0}, {"_id": None}, {"_id": "a", "_score": "1"}
    odd = [{}, None, {"error": {"type": "odd"}}, *({"hits": {"hits": [hit]}} for hit in hits)]
    missing = [good | {"timed_out": True}, good | {"_shards": {"total": 5, "failed": 1}}]
    for answer in odd + missing:
        said, _ = failure(OpenSearchRetriever, in_turn(responses(good, answer)))
        assert "to 'blue' is of no use" in said
        assert answer not in missing or "is of no use (the search timed out or a shard failed" in said


def test_a_field_that_the_index_lacks_and_a_body_that_breaks():
    bare = {"hits": {"hits": [{"_id": "a", "_source": {}}]}}
    said, _ = failure(OpenSearchRetriever, in_turn(responses(bare)), queries=["red"], id_field="sku")
    assert "no 'sku'" in said
    for body in (lambda query: {"query": {query}}, lambda query: 1 / 0, lambda query: None):
        said, seen = failure(OpenSearchRetriever, opensearch, body=body)
        assert "body= failed on the query 'red'" in said and not seen
    for fields in ("text", []):
        with pytest.raises(RecR1Error, match="pass a list of one or more"):
            OpenSearchRetriever("http://localhost:9200/products", fields=fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_server_and_a_dead_port(kind):
    said, seen = failure(kind, lambda *_: time.sleep(0.5) or results(), timeout=0.1, retries=1)
    assert "did not answer within 0.1 s (tried 2 times)" in said and len(seen) == 2
    with server(opensearch) as (url, _):
        pass
    refused = r"'red' failed: .*cannot be reached \(.*refused.*\) \(tried 2 times"
    with pytest.raises(RetrieverError, match=refused):
        kind(url, retries=1).search(["red"], 5)


def key_sent_to(url: str | None, **options) -> str | None:
    return JSONRetriever(url, **options).client.headers.get("Authorization")


def test_a_key_goes_to_its_own_server_only_and_never_shows(monkeypatch):
    monkeypatch.setenv("RECR1_SEARCH_AUTH", f"ApiKey {KEY}")
    assert key_sent_to("https://box.lan/products") is None, "it belongs to RECR1_SEARCH_URL, which is not set"
    monkeypatch.setenv("RECR1_SEARCH_URL", "https://box.lan/products")
    assert key_sent_to(None) == key_sent_to("https://box.lan:443/other") == f"ApiKey {KEY}"
    assert key_sent_to("http://box.lan/products") is key_sent_to("https://box.lan.evil.org/products") is None
    assert key_sent_to(None, authorization="Bearer x") == "Bearer x"
    assert key_sent_to(None, authorization="") is None

    def echo(_, headers, __):
        return 401, json.dumps({"error": {"reason": f"bad key {headers['Authorization']}"}})

    said, _ = failure(JSONRetriever, echo, authorization=f" Bearer {KEY}\n")
    assert "401: bad key Bearer ***; check the key" in said
    assert "no key was sent: set RECR1_SEARCH_AUTH" in failure(JSONRetriever, echo)[0]
    asker = JSONRetriever(f"http://me:{KEY}@127.0.0.1:1/products?key={KEY}", retries=0)
    with pytest.raises(RetrieverError, match="127.0.0.1:1/products") as caught:
        asker.search(["red"], 1)
    assert KEY not in f"{caught.value} {asker.url} {asker!r}"
    with pytest.raises(RecR1Error, match="copy it again") as caught:
        JSONRetriever("http://127.0.0.1:1", authorization=f"Bearer {KEY}\nX: 1")
    assert KEY not in str(caught.value)


@pytest.mark.skipif("RECR1_TEST_OPENSEARCH" not in os.environ, reason="RECR1_TEST_OPENSEARCH names no OpenSearch")
def test_a_real_opensearch():
    """What the stand-in above claims, at the address RECR1_TEST_OPENSEARCH (docs/verl.md has a container)."""
    index = f"{os.environ['RECR1_TEST_OPENSEARCH'].rstrip('/')}/recr1-test-{os.getpid()}"
    engine = OpenSearchRetriever(index)
    try:
        for item, text in ITEMS.to_numpy():
            made = httpx.put(f"{index}/_doc/{item}?refresh=true", json={"text": text, "sku": f"sku-{item}"})
            assert made.status_code == 201
        found = dict(zip(QUERIES, engine.search(QUERIES, 100)))
        assert found["red dress"].ids[0] == "d1" and set(found["swim"].ids) == {"d7", "d8", "d9"}
        assert OpenSearchRetriever(index, id_field="sku").search(["silk"], 5)[0].ids == ["sku-d4"]
        assert all(rule.passed for rule in environment_check(engine, ITEMS, n=5) if rule.name in NEEDED)
        with pytest.raises(RetrieverError, match="Result window is too large"):
            engine.search(["red"], 10_001)
    finally:
        httpx.delete(index)
    with pytest.raises(RetrieverError, match="no such index"):
        engine.search(["red"], 5)


@pytest.mark.parametrize("kind", KINDS)
def test_addresses(kind):
    with server(in_turn(GOOD[kind])) as (url, seen):
        kind(url.replace("http://", "http://me:pass@")).search(["red", "blue"], 1)
    assert seen[0][1]["Authorization"] == "Basic bWU6cGFzcw=="
    with pytest.raises(RecR1Error, match="no address; set RECR1_SEARCH_URL or pass url="):
        kind()
    with pytest.raises(RecR1Error, match="search engine's address is no URL"):
        kind("localhost:9200/x")
