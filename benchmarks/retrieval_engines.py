"""The search engines that benchmarks/retrieval.py compares, each behind the same three steps, and what to know of each.

An engine is built from a list of texts, tokenising included; `search(queries, k)` takes texts and gives for
each the places of its hits in the catalogue, best first; `save(folder)` writes its index, if it has a form on
disk. All see the same words: no stopwords, no stemmer.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from retrieval_corpus import K1, B

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BM25S:
    """bm25s as its README uses it, on NumPy and one thread."""

    def __init__(self, texts: list[str], folder: Path):
        import bm25s

        self.bm25s = bm25s
        self.index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
        self.index.index(self._split(texts), show_progress=False)

    def _split(self, texts: list[str], ids: bool = True):
        return self.bm25s.tokenize(texts, stopwords=None, stemmer=None, return_ids=ids, show_progress=False)

    def search(self, queries: list[str], k: int):
        options = dict(n_threads=0, backend_selection="numpy", show_progress=False)
        return self.index.retrieve(self._split(queries, ids=False), k=k, **options).documents

    def save(self, folder: Path) -> None:
        self.index.save(folder, show_progress=False)


class Kit:
    """`recr1_lite.search.bm25.BM25Retriever`, what the reward calls: ids as text, ties in one order."""

    def __init__(self, texts: list[str], folder: Path):
        import pandas as pd

        from recr1_lite.search.bm25 import BM25Retriever

        items = pd.DataFrame({"item_id": [str(place) for place in range(len(texts))], "text": texts})
        self.retriever = BM25Retriever.build(items, k1=K1, b=B, stopwords=None, stemmer=None)

    def search(self, queries: list[str], k: int):
        return [hits.ids for hits in self.retriever.search(queries, k)]

    def save(self, folder: Path) -> None:
        self.retriever.save(folder)


class Tantivy:
    """tantivy: an index on disk, written by all cores, searched by one; the words of a query joined by OR."""

    def __init__(self, texts: list[str], folder: Path):
        import tantivy

        self.tantivy = tantivy
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("place", fast=True)
        builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
        self.schema = builder.build()
        folder.mkdir(parents=True, exist_ok=True)
        index = tantivy.Index(self.schema, path=str(folder))
        writer = index.writer(heap_size=128_000_000, num_threads=min(CORES, 8))
        for place, text in enumerate(texts):
            document = tantivy.Document()
            document.add_unsigned("place", place)
            document.add_text("text", text)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self.searcher = index.searcher()

    def search(self, queries: list[str], k: int):
        return [self._one(query.split(), k) for query in queries]

    def _one(self, words: list[str], k: int) -> list[int]:
        term, should = self.tantivy.Query.term_query, self.tantivy.Occur.Should
        parts = [(should, term(self.schema, "text", word, "freq")) for word in words]
        hits = self.searcher.search(self.tantivy.Query.boolean_query(parts), k, count=False).hits
        return self.searcher.fast_field_values("place", [address for _, address in hits])

    def save(self, folder: Path) -> None:
        """It is on disk already."""


class RankBM25:
    """rank_bm25's BM25Okapi, plain Python: every text is looked up for every word of a query."""

    save = None

    def __init__(self, texts: list[str], folder: Path):
        from rank_bm25 import BM25Okapi

        self.places = range(len(texts))
        self.index = BM25Okapi([text.split() for text in texts], k1=K1, b=B)

    def search(self, queries: list[str], k: int):
        return [self.index.get_top_n(query.split(), self.places, k) for query in queries]


class Engine(NamedTuple):
    """make(texts, folder): the engine over a catalogue. package: what it needs. note: why its recall may not be 1."""

    label: str
    make: Callable
    package: str
    note: str


APART = "scores in float32, the reference in float64: apart by less than what counts as a tie"
LISTS = "as bm25s; it gives ids and scores as lists, and equal scores in the catalogue's order"
ROUNDED = (
    "Lucene's formula, but a length above 40 words is kept in one byte, rounded, as Lucene does: texts near the k-th "
    "place change sides"
)
OKAPI = (
    "BM25Okapi has another idf, ln((N - df + 0.5) / (df + 0.5)), negative ones replaced: words weigh a little "
    "differently; it keeps no index on disk"
)
ENGINES = {
    "bm25s": Engine("bm25s, 1 thread", BM25S, "bm25s", APART),
    "kit": Engine("this kit's BM25Retriever", Kit, "bm25s", LISTS),
    "tantivy": Engine("tantivy, 1 thread", Tantivy, "tantivy", ROUNDED),
    "rank_bm25": Engine("rank_bm25", RankBM25, "rank_bm25", OKAPI),
}
PIP = {"tantivy": "tantivy==0.27.0", "rank_bm25": "rank_bm25==0.2.2"}


def missing(engine: str) -> bool:
    """Whether the package that `engine` needs is not installed."""
    return importlib.util.find_spec(ENGINES[engine].package) is None


def version(engine: str) -> str:
    """What was measured: package and version."""
    return f"{ENGINES[engine].package} {importlib.metadata.version(ENGINES[engine].package)}"
