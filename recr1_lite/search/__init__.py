"""The black box: engines, the one path to them, and the metrics of a ranking."""

from __future__ import annotations

import lazy_loader
import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import Retriever
from recr1_lite.search.bm25 import BM25Retriever

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": [
            "CallableRetriever",
            "Hits",
            "Retriever",
            "RetrieverError",
            "bag_of_words",
            "environment_check",
            "search_all",
        ],
        "bm25": ["BM25Retriever"],
        "metrics": ["mean_interval", "ndcg", "next_run_interval", "paired_interval", "recall"],
        "remote": ["JSONRetriever", "OpenSearchRetriever"],
    },
)

RETRIEVERS = ("bm25", "dense", "hybrid")


def build_retriever(name: str, items: pd.DataFrame) -> Retriever:
    """One of RETRIEVERS over a catalogue, or a JSONRetriever of an http address, which has its own index.

    Raises RecR1Error for another name.
    """
    if name.startswith(("http://", "https://")):
        from recr1_lite.search.remote import JSONRetriever

        return JSONRetriever(name)
    if name not in RETRIEVERS:
        raise RecR1Error(f"there is no retriever {name!r}; choose one of {', '.join(RETRIEVERS)}, or an http address")
    if name == "bm25":
        return BM25Retriever.build(items)
    from recr1_lite.search.dense import DenseRetriever, HybridRetriever  # torch: only where it is needed

    dense = DenseRetriever.build(items)
    return dense if name == "dense" else HybridRetriever([BM25Retriever.build(items), dense])
