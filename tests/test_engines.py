"""What a file notes of the engine that it was made with: another engine never passes for it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from recr1_lite.search.base import CallableRetriever, described
from recr1_lite.search.bm25 import BM25Retriever
from recr1_lite.search.dense import DenseRetriever, HybridRetriever
from recr1_lite.search.remote import JSONRetriever, OpenSearchRetriever

ITEMS = pd.DataFrame({"item_id": ["a", "b"], "text": ["red dress", "blue jeans"]})
OTHER = ITEMS.assign(text=["red dress", "green jeans"])  # the same ids, as many items


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), 1] for text in texts])


def vowels(texts: list[str]) -> np.ndarray:
    return np.array([[text.count("e"), 1] for text in texts])


def dense(items: pd.DataFrame, encode=lengths) -> DenseRetriever:
    return DenseRetriever.build(items, encode)


def first(queries, k):
    return [["a"]] * len(queries)


def last(queries, k):
    return [["b"]] * len(queries)


def engines() -> list:
    bm25, sharp = BM25Retriever.build(ITEMS), BM25Retriever.build(ITEMS, k1=3.0)
    plain = [bm25, sharp, BM25Retriever.build(OTHER), dense(ITEMS), dense(OTHER), dense(ITEMS, vowels)]
    fused = [HybridRetriever([bm25, dense(ITEMS)]), HybridRetriever([sharp, dense(ITEMS)])]
    remote = [JSONRetriever("http://localhost:1/a"), JSONRetriever("http://localhost:1/b")]
    return plain + fused + remote + [CallableRetriever(first), CallableRetriever(last)]


def test_every_engine_tells_itself_apart_and_is_told_the_same_twice():
    told, again = ([repr(described(engine)) for engine in engines()] for _ in range(2))
    assert told == again and len(set(told)) == len(told)


def test_an_address_is_told_without_its_secrets():
    url = "http://user:hidden@localhost:1/products?key=hidden"
    told = [described(OpenSearchRetriever(url, fields)) for fields in (["text"], ["title"])]
    assert told[0] != told[1] and "hidden" not in repr(told) + repr(described(JSONRetriever(url)))
