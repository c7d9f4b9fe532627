"""The fixed search engine behind the reward: BM25, or any callable of yours.

The policy learns whatever the retriever pays for, a retriever's bugs included. So a query is a bag of words
(order and case never matter), ties have one order, and a failure is an error rather than an empty list.
`environment.environment_check` tests any retriever for the traps that are known.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import bm25s
import numpy as np
import pandas as pd
import Stemmer

from recr1_lite.errors import RecR1Error
from recr1_lite.files import atomic_write
from recr1_lite.metrics import checked_cutoff

METHODS = ("lucene", "robertson", "atire")  # bm25l and bm25+ score documents without any word of the query


class RetrieverError(RecR1Error):
    """A search that failed, with the query that made it fail. It stops a run and never becomes a zero."""


class Hits(NamedTuple):
    """The answer to one query, best first."""

    ids: list[str]
    scores: list[float]


class Retriever(Protocol):
    """Anything that answers a batch of queries; the only thing that training and evaluation ask of it."""

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits for each query, in the queries' order. Raises RetrieverError with the query."""
        ...


def checked_queries(queries: Sequence[str]) -> list[str]:
    """The queries as a list. Raises RetrieverError for a lone string or for a query that is not text."""
    if isinstance(queries, str):
        raise RetrieverError(f"search takes a list of queries, not one string; pass [{queries!r}]")
    queries = list(queries)
    for position, query in enumerate(queries):
        if not isinstance(query, str):
            raise RetrieverError(f"query {position} is {query!r}, which is not text; pass strings only")
    return queries


def checked_catalogue(items: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Ids and texts of a catalogue. Raises RecR1Error: a column missing, no row, an id twice, a text that is none."""
    missing = [column for column in ("item_id", "text") if column not in items.columns]
    if missing:
        raise RecR1Error(f"the catalogue has no column {missing[0]!r}; it needs item_id and text")
    ids, texts = [str(item) for item in items["item_id"]], list(items["text"])
    if not ids:
        raise RecR1Error("the catalogue is empty; give it at least one row")
    twice = pd.Index(ids).duplicated()
    if twice.any():
        raise RecR1Error(f"item {ids[twice.argmax()]!r} is in the catalogue twice; keep one row of it")
    for item_id, text in zip(ids, texts):
        if not isinstance(text, str):
            raise RecR1Error(f"the text of item {item_id!r} is {text!r}; fill it or drop the row")
    return ids, texts


def best(scores: np.ndarray, k: int, found: np.ndarray) -> np.ndarray:
    """The `k` best-scored of the rows `found` (ascending), best first; equal scores stay in their order."""
    values = scores[found]
    if len(found) > k:  # every score tied with the k-th stays in until the stable sort below
        keep = values >= np.partition(values, len(found) - k)[len(found) - k]
        found, values = found[keep], values[keep]
    return found[np.argsort(-values, kind="stable")[:k]]


def search_all(retriever: Retriever, queries: Sequence[str], k: int) -> list[Hits]:
    """What training and evaluation call: each distinct query searched once, a blank one has no hits.

    Whatever a retriever raises becomes a RetrieverError with the query that caused it.
    """
    queries = checked_queries(queries)
    asked = [query for query in dict.fromkeys(queries) if query.strip()]
    found = dict(zip(asked, _ask(retriever.search, asked, checked_cutoff(k))))
    return [found.get(query, Hits([], [])) for query in queries]


def _ask(search: Callable[[list[str], int], Iterable], queries: list[str], k: int) -> list:
    if not queries:
        return []
    try:
        answers = list(search(queries, k))
    except RecR1Error:
        raise
    except Exception as error:
        raise RetrieverError(f"the retriever failed on {_culprit(search, queries, k)}: {error!r}") from error
    if len(answers) != len(queries):
        raise RetrieverError(
            f"the retriever gave {len(answers)} lists for {len(queries)} queries, {queries[0]!r} first; "
            "let it return one list for each query"
        )
    return answers


def _culprit(search: Callable[[list[str], int], Iterable], queries: list[str], k: int) -> str:
    for query in queries:
        try:
            search([query], k)
        except Exception:
            return f"the query {query!r}"
    return f"a batch of {len(queries)} queries, but on none of them alone; the first is {queries[0]!r}"


def bag_of_words(
    texts: Iterable[str], stopwords: str | Sequence[str] | None = "en", stemmer: str | None = "english"
) -> list[list[str]]:
    """Each text as a list of stems: runs of two or more letters or digits, case folded, stopwords dropped."""
    try:
        stem = Stemmer.Stemmer(stemmer) if stemmer else None
    except KeyError:
        known = ", ".join(Stemmer.algorithms())
        raise RecR1Error(f"there is no stemmer {stemmer!r}; choose None or one of {known}") from None
    folded = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    try:
        return bm25s.tokenize(
            folded, lower=False, stopwords=stopwords, stemmer=stem, return_ids=False, show_progress=False
        )
    except ValueError as error:  # raised for an unknown stopword list only
        raise RecR1Error(f"bm25s has no stopwords {stopwords!r}; pass a list or None ({error})") from None


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
        """Index `items`: one row a document, columns `item_id` and `text`. Other columns are not searched.

        Raises RecR1Error for a missing column, a duplicate id, a text that is not a string, a catalogue
        without any word, k1 below 0, b outside 0 to 1, or an unknown method, stopword list or stemmer.
        """
        if method not in METHODS:
            raise RecR1Error(f"there is no BM25 method {method!r} here; choose one of {', '.join(METHODS)}")
        if not (k1 >= 0 and 0 <= b <= 1):
            raise RecR1Error(f"BM25 needs k1 >= 0 and b from 0 to 1 (usual: 1.2, 0.75), not {k1!r} and {b!r}")
        ids, texts = checked_catalogue(items)
        stopwords = stopwords if stopwords is None or isinstance(stopwords, str) else sorted(stopwords)
        documents = bag_of_words(texts, stopwords, stemmer)
        # Sorted: these numbers fix the order in which scores add up, and a set's order differs by process.
        vocabulary = {word: number for number, word in enumerate(sorted(set().union(*documents)))}
        if not vocabulary:
            raise RecR1Error("no text of the catalogue holds a word to index; check the text column")
        index = bm25s.BM25(k1=k1, b=b, method=method)
        numbers = [[vocabulary[word] for word in words] for words in documents]
        index.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
        return cls(index, ids, stopwords, stemmer)

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits a query with a score above 0, best first; equal scores in the catalogue's order.

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

        The arrays go to a new sub-folder; `retriever.json`, which names it, is replaced last.
        """
        folder = Path(folder)
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


class CallableRetriever:
    """Your own search engine: `fn(queries, k)` gives for each query its ids, or its (id, score), best first.

    The order is taken as it comes. Without scores a hit scores 1 / rank. More than `k` hits are cut to `k`.
    """

    def __init__(self, fn: Callable[[list[str], int], Sequence[Sequence[Any]]]):
        self.fn = fn

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """As `Retriever.search`. Raises RetrieverError with the query if `fn` fails or answers otherwise."""
        k, queries = checked_cutoff(k), checked_queries(queries)
        return [self._hits(query, answer, k) for query, answer in zip(queries, _ask(self.fn, queries, k))]

    @staticmethod
    def _hits(query: str, answer: Sequence[Any], k: int) -> Hits:
        ids, scores = [], []
        try:
            for rank, hit in enumerate(list(answer)[:k], start=1):
                item_id, score = (hit, 1 / rank) if isinstance(hit, (str, int, np.integer)) else hit
                if not isinstance(item_id, (str, int, np.integer)):
                    raise TypeError(f"{item_id!r} is no id")
                ids.append(str(item_id))
                scores.append(float(score))
        except (TypeError, ValueError) as error:
            raise RetrieverError(
                f"the retriever's answer to {query!r} is no list of ids or of (id, score): {error}"
            ) from None
        return Hits(ids, scores)
