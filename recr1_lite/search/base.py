"""The fixed search engine behind the reward: BM25, or any callable of yours.

The policy learns whatever the retriever pays for, a retriever's bugs included. So a query is a bag of words
(order and case never matter), ties have one order, and a failure is an error rather than an empty list.
`environment_check` tests any retriever for the traps that are known.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import Stemmer
from bm25s.tokenization import Tokenizer

from recr1_lite.common import RecR1Error, is_indexed, whole
from recr1_lite.common import words as words_of
from recr1_lite.search.metrics import checked_cutoff


class RetrieverError(RecR1Error):
    """A search that failed, with the query that made it fail. It stops a run and never becomes a zero."""


class Hits(NamedTuple):
    """The answer to one query, best first."""

    ids: list[str]
    scores: list[float]


class Retriever(Protocol):
    """Anything that answers a batch of queries; the only thing that training and evaluation ask of it.

    An engine may have `about`, what `described` notes of it in files that were made with it.
    """

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits for each query, in the queries' order. Raises RetrieverError with the query."""
        ...


def described(retriever: Retriever) -> dict:
    """Class and settings of an engine, for files whose content depends on it; of another engine they differ."""
    return {"class": type(retriever).__name__, "settings": getattr(retriever, "about", None)}


def fingerprint(ids: Sequence[str], content: bytes) -> str:
    """A short digest of a catalogue: its ids, and its texts or what was computed from them."""
    return hashlib.sha256("\n".join(ids).encode() + b"\0" + content).hexdigest()[:16]


def checked_queries(queries: Sequence[str]) -> list[str]:
    """The queries as a list, halves of surrogate pairs mended. Raises RetrieverError for a lone string or no text."""
    if isinstance(queries, str):
        raise RetrieverError(f"search takes a list of queries, not one string; pass [{queries!r}]")
    queries = list(queries)
    for position, query in enumerate(queries):
        if not isinstance(query, str):
            raise RetrieverError(f"query {position} is {query!r}, which is not text; pass strings only")
    return [whole(query) for query in queries]


def checked_catalogue(items: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Ids and texts of a catalogue. Raises RecR1Error: a column missing, no row, an id twice, a text that is none."""
    missing = [column for column in ("item_id", "text") if column not in items.columns]
    if missing:
        raise RecR1Error(f"the catalogue has no column {missing[0]!r}; it needs item_id and text")
    ids, texts = [whole(str(item)) for item in items["item_id"]], [whole(text) for text in items["text"]]
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
    """Each text as a list of stems: its `words` that are indexed, stopwords dropped."""
    try:
        stem = Stemmer.Stemmer(stemmer).stemWord if stemmer else str
    except KeyError:
        known = ", ".join(Stemmer.algorithms())
        raise RecR1Error(f"there is no stemmer {stemmer!r}; choose None or one of {known}") from None
    try:
        stems: dict[str, str | None] = dict.fromkeys(Tokenizer(stopwords=stopwords).stopwords)
    except ValueError as error:  # raised for an unknown stopword list only
        raise RecR1Error(f"bm25s has no stopwords {stopwords!r}; pass a list or None ({error})") from None
    bags = []
    for text in texts:
        bag = words_of(text)
        for word in bag:
            if word not in stems:
                stems[word] = stem(word) if is_indexed(word) else None
        bags.append([kept for word in bag if (kept := stems[word]) is not None])
    return bags


class CallableRetriever:
    """Your own search engine: `fn(queries, k)` gives for each query its ids, or its (id, score), best first.

    The order is taken as it comes. Without scores a hit scores 1 / rank. More than `k` hits are cut to `k`.
    """

    def __init__(self, fn: Callable[[list[str], int], Sequence[Sequence[Any]]]):
        self.fn = fn

    @property
    def about(self) -> dict:
        """The function's name; what it does inside is not known here."""
        return {"function": getattr(self.fn, "__qualname__", type(self.fn).__name__)}

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


class Check(NamedTuple):
    """One property of a retriever: whether it holds, and the first query that breaks it."""

    name: str
    passed: bool
    detail: str


def environment_check(
    retriever: Retriever, items: pd.DataFrame, n: int = 200, seed: int = 0, stopwords: str | Sequence[str] | None = "en"
) -> list[Check]:
    """Try a bag-of-words retriever on its own catalogue, with `n` words and `n` five-word queries drawn by `seed`.

    `pd.DataFrame(environment_check(...))` is a readable table. A dense retriever rightly fails the checks of
    word order, case, punctuation and unknown words; the others hold for anything one trains on. `stopwords`
    are the words that are not asked for. Raises RetrieverError where a search does.
    """
    rng = random.Random(seed)
    ids, texts = [str(item) for item in items["item_id"]], list(items["text"])
    holders: dict[str, list[str]] = {}
    for item_id, words in zip(ids, bag_of_words(texts, stopwords, None)):
        for word in dict.fromkeys(words):
            holders.setdefault(word, []).append(item_id)
    words = rng.sample(sorted(holders), min(n, len(holders)))
    phrases = [rng.sample(sorted(holders), min(5, len(holders))) for _ in range(n)]
    queries = [" ".join(phrase) for phrase in phrases]
    everything = len(ids)

    def ranked(batch: list[str]) -> list[list[str]]:
        return [hits.ids for hits in retriever.search(batch, everything)]

    def first(name: str, broken: Iterable[str]) -> Check:
        query = next(iter(broken), None)
        return Check(name, query is None, "" if query is None else f"broken by {query!r}")

    plain = ranked(queries)

    def differs(batch: list[str]) -> list[str]:
        return [query for query, one, other in zip(batch, plain, ranked(batch)) if one != other]

    known = set(ids)
    lost = (word for word, hit in zip(words, ranked(words)) if not set(holders[word]) <= set(hit))
    single = (query for query, hit in zip(queries, plain) if ranked([query])[0] != hit)
    strange = (query for query, hit in zip(queries, plain) if sorted(hit) != sorted(known.intersection(hit)))
    many = (query for query, hits in zip(queries, retriever.search(queries, 3)) if len(hits.ids) > 3)
    punctuated = [f'"{phrase[0]}" ({" +".join(phrase[1:])}) : [ }} \\' for phrase in phrases]
    return [
        first("one word finds its documents", lost),
        first("order never matters", differs([" ".join(reversed(phrase)) for phrase in phrases])),
        first("case never matters", differs([query.upper() for query in queries])),
        first("quotes, brackets and operators do no harm", differs(punctuated)),
        first("the same search gives the same list", differs(queries)),
        first("a query alone gives the same list as in a batch", single),
        first("hits are items of the catalogue, each once", strange),
        first("at most k hits", many),
        first("an empty query has no hits", (query for query in ("", " ?! ") if ranked([query])[0])),
        first("an unknown word has no hits", (query for query in ["zqxjkvzzq"] if ranked([query])[0])),
    ]
