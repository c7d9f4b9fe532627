"""The fixed search engine by name, as the command line takes it: bm25, dense, hybrid, or the address of a server."""

from __future__ import annotations

import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.retrievers import BM25Retriever, Retriever

RETRIEVERS = ("bm25", "dense", "hybrid")


def build_retriever(name: str, items: pd.DataFrame) -> Retriever:
    """One of RETRIEVERS over a catalogue, or a JSONRetriever of an http address, which has its own index.

    Raises RecR1Error for another name.
    """
    if name.startswith(("http://", "https://")):
        from recr1_lite.remote import JSONRetriever

        return JSONRetriever(name)
    if name not in RETRIEVERS:
        raise RecR1Error(f"there is no retriever {name!r}; choose one of {', '.join(RETRIEVERS)}, or an http address")
    if name == "bm25":
        return BM25Retriever.build(items)
    from recr1_lite.dense import DenseRetriever, HybridRetriever  # torch: only where it is needed

    dense = DenseRetriever.build(items)
    return dense if name == "dense" else HybridRetriever([BM25Retriever.build(items), dense])
