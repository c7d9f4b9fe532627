"""BM25, the default engine: bm25s with Lucene's formula, exact and ordered the same way every time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import bm25s
import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error, place_folder
from recr1_lite.search.base import Hits, bag_of_words, best, checked_catalogue, checked_queries, fingerprint
from recr1_lite.search.metrics import checked_cutoff

METHODS = ("lucene", "robertson", "atire")  # bm25l and bm25+ score documents without any word of the query


class BM25Retriever:
    """BM25 over the `text` column of a catalogue.

    score(q, d) = sum over the words of q, repeats included, of
        idf * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),  idf = ln(1 + (N - df + 0.5) / (df + 0.5)) > 0.
    Source: "Lucene (accurate)" in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020; bm25s (arXiv 2407.03618)
    computes the scores beforehand.
    """

    def __init__(self, index: bm25s.BM25, ids: Sequence[str], stopwords, stemmer: str | None):
        self.index, self.ids, self.stopwords, self.stemmer = index, list(ids), stopwords, stemmer

    @property
    def about(self) -> dict:
        """The settings and the index's fingerprint, as a file that was made with this engine notes them."""
        index = {"k1": self.index.k1, "b": self.index.b, "method": self.index.method}
        words = {"stopwords": self.stopwords, "stemmer": self.stemmer}
        scores, vocabulary = self.index.scores, sorted(self.index.vocab_dict)
        content = "\n".join(vocabulary).encode() + scores["data"].tobytes() + scores["indices"].tobytes()
        return index | words | {"index": fingerprint(self.ids, content)}

    @classmethod
    def build(
        cls,
        items: pd.DataFrame,
        k1: float = 1.2,
        b: float = 0.75,
        method: str = "lucene",
        stopwords: str | Sequence[str] | None = "en",
        stemmer: str | None = "english",
    ) -> BM25Retriever:
        """Index the columns `item_id` and `text` of `items`.

        Raises RecR1Error as `checked_catalogue`, and for texts without any word, k1 below 0, b outside 0 to 1, or an
        unknown method, stopword list or stemmer.
        """
        return next(cls.each(items, [(k1, b)], method, stopwords, stemmer))

    @classmethod
    def each(
        cls, items: pd.DataFrame, settings: Iterable[tuple[float, float]], method: str, stopwords, stemmer: str | None
    ) -> Iterator[BM25Retriever]:
        """As `build`, an engine for each (k1, b) of `settings`, made when it is asked for; the texts are read once."""
        if method not in METHODS:
            raise RecR1Error(f"there is no BM25 method {method!r} here; choose one of {', '.join(METHODS)}")
        ids, texts = checked_catalogue(items)
        stopwords = stopwords if stopwords is None or isinstance(stopwords, str) else sorted(stopwords)
        documents = bag_of_words(texts, stopwords, stemmer)
        # Sorted: these numbers fix the order in which scores add up, and a set's order differs by process.
        vocabulary = {word: number for number, word in enumerate(sorted(set().union(*documents)))}
        if not vocabulary:
            raise RecR1Error("no text of the catalogue holds a word to index; check the text column")
        numbers = [[vocabulary[word] for word in words] for words in documents]
        for k1, b in settings:
            if not (k1 >= 0 and 0 <= b <= 1):
                raise RecR1Error(f"BM25 needs k1 >= 0 and b from 0 to 1 (usual: 1.2, 0.75), not {k1!r} and {b!r}")
            index = bm25s.BM25(k1=k1, b=b, method=method)
            index.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
            yield cls(index, ids, stopwords, stemmer)

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits per query with a score above 0, best first; equal scores in the catalogue's order.

        A query without a known word has no hits. A repeated word counts again each time. Raises RecR1Error for a bad
        `k`, RetrieverError for a query that is not text.
        """
        k, queries = checked_cutoff(k), checked_queries(queries)
        results = []
        for words in bag_of_words(queries, self.stopwords, self.stemmer):
            # Sorted, so that two orders of the same words add up to the very same float.
            numbers = sorted(self.index.get_tokens_ids(words))
            scores = self.index.get_scores_from_ids(numbers) if numbers else np.empty(0)
            rows = best(scores, k, np.flatnonzero(scores > 0))
            results.append(Hits([self.ids[row] for row in rows], scores[rows].tolist()))
        return results

    def save(self, folder: str | Path) -> Path:
        """Write the index into `folder`, whole or not at all. Raises RecR1Error where that cannot be written."""
        about = json.dumps(dict(stopwords=self.stopwords, stemmer=self.stemmer, ids=self.ids))

        def write(work: Path) -> None:
            self.index.save(work / "index", show_progress=False)
            (work / "retriever.json").write_text(about, encoding="utf-8")

        return place_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> BM25Retriever:
        """Read what `save` wrote; with `mmap` the arrays stay on disk and processes share them.

        Raises RecR1Error where there is no whole index."""
        try:
            head = json.loads((Path(folder) / "retriever.json").read_text(encoding="utf-8"))
            index = bm25s.BM25.load(Path(folder) / "index", mmap=mmap, show_progress=False)
            if index.scores["num_docs"] != len(head["ids"]):
                raise ValueError(f"{index.scores['num_docs']} documents but {len(head['ids'])} ids")
            for name in ("data", "indices", "indptr"):  # plain views of the pages; memmap slices are slow
                index.scores[name] = index.scores[name].view(np.ndarray)
            return cls(index, head["ids"], head["stopwords"], head["stemmer"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            advice = "make it again with BM25Retriever.build(items).save(folder)"
            raise RecR1Error(f"there is no whole BM25 index at {folder} ({error}); {advice}") from None
