"""Is a retriever fit to train on? Checks that a user can run on his own, with the query that breaks each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from recr1_lite.retrievers import Retriever, bag_of_words


class Check(NamedTuple):
    """One property of a retriever: whether it holds, and the first query that breaks it."""

    name: str
    passed: bool
    detail: str


def environment_check(
    retriever: Retriever,
    items: pd.DataFrame,
    n: int = 200,
    seed: int = 0,
    stopwords: str | Sequence[str] | None = "en",
) -> list[Check]:
    """Try a bag-of-words retriever on its own catalogue, with `n` words and `n` five-word queries drawn by
    `seed`.

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
