"""BM25, the default engine: bm25s with Lucene's formula, exact and ordered the same way every time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import bm25s
import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error, atomic_write, writing
from recr1_lite.search.base import Hits, bag_of_words, best, checked_catalogue, checked_queries, fingerprint
from recr1_lite.search.metrics import checked_cutoff

METHODS = ("lucene", "robertson", "atire")  # bm25l and bm25+ score documents without any word of the query


class BM25Retriever:
    """BM25 over the `text` column of a catalogue, on bm25s, with Lucene's formula as default.

    score(q, d) = sum over the words of q, repeats included, of
        idf * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),  idf = ln(1 + (N - df + 0.5) / (df + 0.5)) > 0.
    Source: "Lucene (accurate)" in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020; the scores are
    precomputed by bm25s (arXiv 2407.03618).
    """

    def __init__(self, index: bm25s.BM25, ids: Sequence[str], stopwords, stemmer: str | None):
        self.index = index
        self.ids = list(ids)
        self.stopwords = stopwords
        self.stemmer = stemmer

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
        """Index `items`: one row per document, columns `item_id` and `text`. Other columns are not searched.

        Raises RecR1Error for a missing column, a duplicate id, a text that is not a string, a catalogue
        without any word, k1 below 0, b outside 0 to 1, or an unknown method, stopword list or stemmer.
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

        A query with no known word, or none at all, has no hits. A repeated word counts again each time.
        Raises RecR1Error for a bad `k`, RetrieverError (naming the query) for a query that is not text.
        """
        k, queries = checked_cutoff(k), checked_queries(queries)
        results = []
        for words in bag_of_words(queries, self.stopwords, self.stemmer):
            # Sorted, so that two orders of the same words add up to the very same float.
            numbers = sorted(self.index.get_tokens_ids(words))
            results.append(self._top(self.index.get_scores_from_ids(numbers), k) if numbers else Hits([], []))
        return results

    def _top(self, scores: np.ndarray, k: int) -> Hits:
        rows = best(scores, k, np.flatnonzero(scores > 0))
        return Hits([self.ids[row] for row in rows], scores[rows].tolist())

    def save(self, folder: str | Path) -> Path:
        """Write the index under `folder`: a reader sees the old index or the new one, never a mixture.

        The arrays go to a new sub-folder; `retriever.json`, which names it, is replaced last. Raises RecR1Error where
        that cannot be written.
        """
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            head = folder / "retriever.json"
            before = json.loads(head.read_text(encoding="utf-8"))["index"] if head.exists() else None
            arrays = Path(tempfile.mkdtemp(prefix="index-", dir=folder))
            try:
                self.index.save(arrays, show_progress=False)
                about = dict(index=arrays.name, stopwords=self.stopwords, stemmer=self.stemmer, ids=self.ids)
                atomic_write(head, json.dumps(about))
            except BaseException:
                shutil.rmtree(arrays, ignore_errors=True)
                raise
        if before:  # only the one that was replaced: another process may be writing its own
            shutil.rmtree(folder / before, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> BM25Retriever:
        """Read what `save` wrote; with `mmap` the arrays stay on disk and processes share them.

        Raises RecR1Error where there is no whole index.
        """
        advice = "make it again with BM25Retriever.build(items).save(folder)"
        try:
            head = json.loads((Path(folder) / "retriever.json").read_text(encoding="utf-8"))
            index = bm25s.BM25.load(Path(folder) / head["index"], mmap=mmap, show_progress=False)
            if index.scores["num_docs"] != len(head["ids"]):
                raise ValueError(f"{index.scores['num_docs']} documents but {len(head['ids'])} ids")
            for name in ("data", "indices", "indptr"):  # plain views of the pages; memmap slices are slow
                index.scores[name] = index.scores[name].view(np.ndarray)
            return cls(index, head["ids"], head["stopwords"], head["stemmer"])
        except FileNotFoundError as error:
            raise RecR1Error(f"there is no BM25 index at {folder} ({error.filename}); {advice}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecR1Error(f"the BM25 index at {folder} cannot be read ({error}); {advice}") from None
