"""The search engines that benchmarks/retrieval.py compares, without stopwords and stemmer.

Each is made of texts and a folder, tokenising included, and gives two functions: search(queries, k) takes texts and
gives for each the places of its hits in the catalogue, best first; save(folder) writes its index, None where it has no
form on disk.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from retrieval_corpus import K1, B

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bm25s_engine(texts: list[str], folder: Path):
    """bm25s as its README uses it, on NumPy and one thread."""
    import bm25s

    def split(texts: list[str], ids: bool):
        return bm25s.tokenize(texts, stopwords=None, stemmer=None, return_ids=ids, show_progress=False)

    def search(queries: list[str], k: int):
        options = dict(n_threads=0, backend_selection="numpy", show_progress=False)
        return index.retrieve(split(queries, ids=False), k=k, **options).documents

    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    index.index(split(texts, ids=True), show_progress=False)
    return search, lambda folder: index.save(folder, show_progress=False)


def kit_engine(texts: list[str], folder: Path):
    """`recr1_lite.search.bm25.BM25Retriever`, what the reward calls: ids as text, ties in one order."""
    import pandas as pd

    from recr1_lite.search.bm25 import BM25Retriever

    items = pd.DataFrame({"item_id": [str(place) for place in range(len(texts))], "text": texts})
    retriever = BM25Retriever.build(items, k1=K1, b=B, stopwords=None, stemmer=None)
    save = partial(retriever.index.save, show_progress=False)
    return lambda queries, k: [hits.ids for hits in retriever.search(queries, k)], save


def tantivy_engine(texts: list[str], folder: Path):
    """tantivy: an index on disk, written by all cores, searched by one; the words of a query joined by OR."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("place", fast=True)
    builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    schema = builder.build()
    folder.mkdir(parents=True, exist_ok=True)
    index = tantivy.Index(schema, path=str(folder))
    writer = index.writer(heap_size=128_000_000, num_threads=min(CORES, 8))
    for place, text in enumerate(texts):
        document = tantivy.Document()
        document.add_unsigned("place", place)
        document.add_text("text", text)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher, should = index.searcher(), tantivy.Occur.Should

    def one(words: list[str], k: int) -> list[int]:
        parts = [(should, tantivy.Query.term_query(schema, "text", word, "freq")) for word in words]
        hits = searcher.search(tantivy.Query.boolean_query(parts), k, count=False).hits
        return searcher.fast_field_values("place", [address for _, address in hits])

    return lambda queries, k: [one(query.split(), k) for query in queries], lambda folder: None  # it is on disk


def rank_bm25_engine(texts: list[str], folder: Path):
    """rank_bm25's BM25Okapi, plain Python: every text is looked up for every word of a query."""
    from rank_bm25 import BM25Okapi

    places, index = range(len(texts)), BM25Okapi([text.split() for text in texts], k1=K1, b=B)
    return lambda queries, k: [index.get_top_n(query.split(), places, k) for query in queries], None


class Engine(NamedTuple):
    label: str
    make: Callable
    package: str
    pip: str

    @property
    def version(self) -> str:
        """What is measured, package and version; "" where it is not installed."""
        there = importlib.util.find_spec(self.package)
        return f"{self.package} {metadata.version(self.package)}" if there else ""


ENGINES = {
    "bm25s": Engine("bm25s, 1 thread", bm25s_engine, "bm25s", "bm25s"),
    "kit": Engine("this kit's BM25Retriever", kit_engine, "bm25s", "bm25s"),
    "tantivy": Engine("tantivy, 1 thread", tantivy_engine, "tantivy", "tantivy==0.27.0"),
    "rank_bm25": Engine("rank_bm25", rank_bm25_engine, "rank_bm25", "rank_bm25==0.2.2"),
}
