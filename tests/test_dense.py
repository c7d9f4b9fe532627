"""Dense and hybrid retrieval: exact search against NumPy, fusion by hand, the real MiniLM; what engines tell."""

import hashlib
import re
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ITEMS, refuses_bad_searches

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.search import build_retriever, engines
from recr1_lite.search.base import CallableRetriever, Hits, described, environment_check
from recr1_lite.search.engines import BM25Retriever, DenseRetriever, HybridRetriever, load_encoder
from recr1_lite.search.remote import JSONRetriever, OpenSearchRetriever


def word_vector(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=24)


def encode(texts: list[str]) -> np.ndarray:
    """A random vector a word, summed over a text: what an encoder does, in no time."""
    return np.stack([sum(map(word_vector, text.lower().split()), np.zeros(24)) for text in texts])


def build(items=ITEMS, **options) -> DenseRetriever:
    return DenseRetriever.build(items, **({"model": encode} | options))


def catalogue(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"item_id": [f"i{row}" for row in range(len(texts))], "text": texts})


texts = st.text("abc ", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=50), st.lists(texts, min_size=1, max_size=40), st.integers(1, 60))
def test_exact_search_is_the_sorted_cosine(documents, queries, k):
    items = catalogue(*documents)
    documents, asked = encode(documents), encode(queries)
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(documents, axis=1)
    cosines = asked @ documents.T / lengths
    for hits, cosine in zip(build(items).search(queries, k), cosines, strict=True):
        rows = [int(item[1:]) for item in hits.ids]
        assert len(rows) == len(set(rows)) == min(k, len(items))
        assert hits.scores == sorted(hits.scores, reverse=True)
        np.testing.assert_allclose(hits.scores, cosine[rows], atol=1e-5)
        np.testing.assert_allclose(hits.scores, np.sort(cosine)[::-1][:k], atol=1e-5)
        for one, other in zip(range(len(rows)), range(1, len(rows))):
            if hits.scores[one] == hits.scores[other]:
                assert rows[one] < rows[other], "ties in the catalogue's order"


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_equal_items_tie_in_the_catalogues_order(batch, monkeypatch):
    """For a query alone, too: BLAS rounds a lone row's product otherwise than a batch's."""
    monkeypatch.setattr(engines, "BATCH", batch)
    retriever, equal = build(), ["d7", "d8", "d9"]
    words = "swim suit two runs red w1 w2 w3".split()
    queries = [f"{word} {other}" for word in words for other in ("", "large", "x")]
    batch = retriever.search(queries, 9)
    for query, hits in zip(queries, batch):
        assert [item for item in hits.ids if item in equal] == equal
        assert len({hits.scores[hits.ids.index(item)] for item in equal}) == 1
        assert retriever.search([query], 9) == [hits]
    assert retriever.search(queries[::-1], 9) == batch[::-1]
    assert retriever.search(queries, 2) == [Hits(ids[:2], scores[:2]) for ids, scores in batch]


def test_each_text_is_embedded_once_in_batches_and_blank_queries_never(monkeypatch):
    seen = []
    monkeypatch.setattr(engines, "BATCH", 4)
    retriever = build(model=lambda texts: seen.append(len(texts)) or encode(texts))
    assert seen == [4, 3] and retriever.vectors.shape == (9, 24), "7 different texts, 9 items"
    found = retriever.search(["red", " \n\t", "", "red", "blue"], 1000)
    assert seen[2:] == [2] and found[1:3] == [Hits([], [])] * 2 and sorted(found[0].ids) == sorted(ITEMS["item_id"])
    assert retriever.search([], 3) == []
    hits = build(catalogue("red", "", "blue red")).search(["red"], 3)[0]  # a text without a word ranks last
    assert hits.ids == ["i0", "i2", "i1"] and hits.scores[2] == 0 and hits.scores[0] == pytest.approx(1)


@pytest.mark.parametrize("vectors", [np.ones(9), np.ones((3, 2)), np.full((9, 2), np.nan), np.ones((9, 2, 1))])
def test_an_encoder_that_answers_otherwise(vectors):
    with pytest.raises(RecR1Error, match="one finite vector per text"):
        build(ITEMS.assign(text=list("abcdefghi")), model=lambda texts: vectors)


def test_faiss_gives_the_same_hits():
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    queries, items = ["red", "blue swim", "large x"], ITEMS.drop_duplicates("text")
    there, here = (build(items, backend=backend).search(queries, 100) for backend in ("faiss", "exact"))
    assert [hits.ids for hits in there] == [hits.ids for hits in here]
    np.testing.assert_allclose([hits.scores for hits in there], [hits.scores for hits in here], atol=1e-6)


def test_a_backend_or_encoder_that_is_not_there(tmp_path, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # as where it is not installed
    for make, message in (  # each is said before anything is embedded
        (lambda: build(backend="annoy", model=None), "no backend 'annoy'; choose exact or faiss"),
        (lambda: build(backend="faiss", model=lambda texts: 1 / 0), "pip install faiss-cpu"),
        (lambda: load_encoder(str(tmp_path / "nothing")), "the encoder .* cannot be loaded"),
    ):
        with pytest.raises(RecR1Error, match=message):
            make()


def ranking(*ids: str) -> CallableRetriever:
    return CallableRetriever(lambda queries, k: [list(ids)[:k]] * len(queries))


def test_fusion_by_hand():
    """a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/63, d: 1/62: in the order b, a, d, c."""
    engines = ranking("a", "b", "c"), ranking("b", "d", "a")
    (hits,) = HybridRetriever(engines).search(["q"], 10)
    assert hits.ids == ["b", "a", "d", "c"]
    assert hits.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 62, 1 / 63], abs=1e-12)
    deep = ranking("a", "c"), ranking("b", "c")
    assert HybridRetriever(deep).search(["q"], 1)[0].ids == ["c"], "it looks deeper than k"


def test_fusion_of_equals_and_of_nothing():
    pair = HybridRetriever([ranking("a", "b"), ranking("b", "a")])
    assert pair.search(["q"], 2)[0].ids == ["a", "b"], "of equal scores the first engine's better one"
    assert HybridRetriever([ranking(), ranking("x")]).search(["q"], 2)[0] == Hits(["x"], [1 / 61])
    assert HybridRetriever([ranking(), ranking()]).search(["q", "r"], 2) == [Hits([], [])] * 2
    for lone in ([], [ranking("a")]):
        with pytest.raises(RecR1Error, match="give two or more"):
            HybridRetriever(lone)


@pytest.mark.parametrize("make", [build, lambda: HybridRetriever([BM25Retriever.build(ITEMS), build()])])
def test_bad_searches_and_which_checks_of_the_environment_hold(make):
    """A dense engine ranks the whole catalogue for any query: that is why an unknown word, or one of signs
    alone, has hits. What anything that one trains on needs does hold."""
    retriever = make()
    refuses_bad_searches(retriever.search)
    checks = {check.name: check.passed for check in environment_check(retriever, ITEMS, n=25)}
    of_words = r"order|case|quotes|an empty query|an unknown word"
    assert all(passed for name, passed in checks.items() if not re.match(of_words, name)), checks
    assert not checks["an unknown word has no hits"]
    assert not checks["an empty query has no hits"], "broken by signs alone; a blank one has none"
    assert retriever.search(["", " "], 3) == [Hits([], [])] * 2


def test_minilm_knows_meanings_and_cuts_a_long_text_at_256_tokens(network):
    pytest.importorskip("sentence_transformers")
    try:
        minilm = load_encoder()
    except RecR1Error as problem:
        if assets.offline():
            pytest.skip(str(problem))
        raise
    retriever = build(model=minilm)
    queries = ["bathing costume for the pool", "a gown for a warm day", "jumper for cold weather"]
    found = retriever.search(queries, 3)
    assert [hits.ids[0] for hits in found] == ["d7", "d1", "d3"], "no word in common with any of them"
    assert found[0].ids == ["d7", "d8", "d9"] and len(set(found[0].scores)) == 1
    assert retriever.vectors.shape == (9, 384) and retriever.vectors.dtype == np.float32
    # 256 tokens with the two that mark its ends: 254 of these words
    whole, longer, shorter = minilm(["red " * 254, "red " * 254 + "unrelated engine oil " * 500, "red " * 20])
    np.testing.assert_allclose(whole, longer, atol=1e-5)
    assert np.abs(whole - shorter).max() > 1e-3 and np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)
    assert not network


def test_names_of_the_command_line(monkeypatch):
    asked = []
    monkeypatch.setattr(engines, "load_encoder", lambda *arguments: asked.append(arguments[0]) or encode)
    assert isinstance(build_retriever("bm25", ITEMS), BM25Retriever) and not asked
    assert isinstance(build_retriever("dense", ITEMS), DenseRetriever)
    hybrid = build_retriever("hybrid", ITEMS)
    assert [type(engine) for engine in hybrid.retrievers] == [BM25Retriever, DenseRetriever]
    assert asked == ["all-minilm-l6-v2"] * 2
    with pytest.raises(RecR1Error, match="no retriever 'splade'; choose one of bm25, dense, hybrid"):
        build_retriever("splade", ITEMS)


def of_each_kind() -> list:
    other = ITEMS.assign(text=[*ITEMS["text"][:-1], "green jeans"])  # the same ids, as many items
    bm25 = [BM25Retriever.build(ITEMS), BM25Retriever.build(ITEMS, k1=3.0), BM25Retriever.build(other)]
    fused = [HybridRetriever([engine, build()]) for engine in bm25[:2]]
    url = "http://user:hidden@localhost:1/products?key=hidden"
    remote = [JSONRetriever(url), JSONRetriever("http://localhost:1/b")]
    remote += [OpenSearchRetriever(url, fields) for fields in (["text"], ["title"])]
    callables = [CallableRetriever(function) for function in (max, min)]
    return [*bm25, build(), build(other), build(model=lambda texts: encode(texts)), *fused, *remote, *callables]


def test_every_engine_tells_itself_apart_and_no_secret():
    """A file that was made with one engine never passes for another's."""
    told, again = ([repr(described(engine)) for engine in of_each_kind()] for _ in range(2))
    assert told == again and len(set(told)) == len(told) and "hidden" not in "".join(told)
