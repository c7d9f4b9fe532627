"""The black box: engines, the one path to them, and the metrics of a ranking."""

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import CallableRetriever, Retriever, bag_of_words, environment_check, search_all
from recr1_lite.search.engines import BM25Retriever, DenseRetriever, HybridRetriever
from recr1_lite.search.metrics import mean_interval, ndcg, next_run_interval, paired_interval, recall
from recr1_lite.search.remote import JSONRetriever

RETRIEVERS = ("bm25", "dense", "hybrid")
__all__ = ["RETRIEVERS", "BM25Retriever", "CallableRetriever", "bag_of_words", "build_retriever", "environment_check"]
__all__ += ["mean_interval", "ndcg", "next_run_interval", "paired_interval", "recall", "search_all"]


def build_retriever(name: str, items: pd.DataFrame) -> Retriever:
    """One of RETRIEVERS over a catalogue, or a JSONRetriever of an http address, which has its own index. Raises
    RecR1Error for another name."""
    if name.startswith(("http://", "https://")):
        return JSONRetriever(name)
    if name not in RETRIEVERS:
        raise RecR1Error(f"there is no retriever {name!r}; choose one of {', '.join(RETRIEVERS)}, or an http address")
    if name == "bm25":
        return BM25Retriever.build(items)
    dense = DenseRetriever.build(items)
    return dense if name == "dense" else HybridRetriever([BM25Retriever.build(items), dense])
