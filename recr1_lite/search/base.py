"""The fixed search engine behind the reward, and the one path to it.

The policy learns whatever the retriever pays for, a retriever's bugs included. So a query is a bag of words (order and
case never matter), ties have one order, and a failure is an error rather than an empty list.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import Stemmer
from bm25s.tokenization import Tokenizer

from recr1_lite.common import RecR1Error, is_indexed, whole
from recr1_lite.common import words as words_of
from recr1_lite.search.metrics import checked_cutoff
from recr1_lite.tasks.base import check_texts

UNSEEN = {"Cc", "Cf", "Cs", "Mn", "Zl", "Zp", "Zs"}  # kinds of letters that show nothing by themselves
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a sign that are drawn as nothing
NO_LISTS = (str, bytes, bytearray, Mapping, Set)
SAMPLE, DEPTH = 2_000, 1000  # items whose words a check draws from; hits that it looks at
NEEDED = ("the same search gives the same list", "hits are items of the catalogue, each once", "at most k hits")


class RetrieverError(RecR1Error):
    """A search that failed, with the query that made it fail. It stops a run and never becomes a zero."""


class Hits(NamedTuple):
    """The answer to one query, best first."""

    ids: list[str]
    scores: list[float]


class Retriever(Protocol):
    """Anything that answers a batch of queries. It may have `about`, its settings, for `described`."""

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
    """Ids, as text, and texts of a catalogue. Raises RecR1Error: a column missing, no row, an id twice, no text."""
    if "item_id" in items:
        items = items.assign(item_id=[whole(str(item)) for item in items["item_id"]])
    check_texts(items, ["item_id", "text"], ["item_id"], "the catalogue")
    for item, text in zip(items["item_id"], items["text"]):
        if not isinstance(text, str):  # "" may stand there: it is never found
            raise RecR1Error(f"the text of item {item!r} is {text!r}; fill it or drop the row")
    return items["item_id"].tolist(), whole(items["text"].tolist())


def best(scores: np.ndarray, k: int, found: np.ndarray) -> np.ndarray:
    """The `k` best-scored of the rows `found` (ascending), best first; equal scores stay in their order."""
    values = scores[found]
    if len(found) > k:  # every score tied with the k-th stays in until the stable sort below
        keep = values >= np.partition(values, len(found) - k)[len(found) - k]
        found, values = found[keep], values[keep]
    return found[np.argsort(-values, kind="stable")[:k]]


def is_blank(text: str) -> bool:
    """Whether a text holds nothing that can be seen: it is empty, or all spaces, controls, joiners or lone marks."""
    return all(letter in FILLERS or unicodedata.category(letter) in UNSEEN for letter in text)


def once(queries: Sequence[str], search: Callable[[list[str]], list[Hits]]) -> list[Hits]:
    """What `search` finds for each distinct query, in the queries' order; a blank one is not asked and has no hits."""
    queries = checked_queries(queries)
    asked = [query for query in dict.fromkeys(queries) if not is_blank(query)]
    found = dict(zip(asked, search(asked), strict=True)) if asked else {}
    return [found.get(query, Hits([], [])) for query in queries]


def search_all(retriever: Retriever, queries: Sequence[str], k: int, known: Collection | None = None) -> list[Hits]:
    """The one way to the engine, for training, evaluation, the server and the command line alike.

    Each distinct query is asked once, a blank one never. Hits are cut to `k`; their order is taken as it comes. known:
    the catalogue's ids, in a set or a dict; None: not checked. Raises RetrieverError, with the query, for whatever the
    retriever raises and for an answer that is none: no list for each query, no list of hits, an id that is neither text
    nor a whole number (7 is read as "7"), comes twice or is not known, a score that is no finite number."""
    k = checked_cutoff(k)

    def search(asked: list[str]) -> list[Hits]:
        return [checked(query, answer, k, known) for query, answer in zip(asked, _ask(retriever.search, asked, k))]

    return once(queries, search)


def checked(query: str, answer: Any, k: int, known: Collection[str] | None, who: str = "the retriever") -> Hits:
    """The first `k` hits of one answer. Raises RetrieverError as `search_all` does."""
    ids, scores = _read(query, answer, who)
    ids = ids[:k]
    if len(set(ids)) < len(ids):
        raise RetrieverError(f"for {query!r} {who} found {max(ids, key=ids.count)!r} twice; let it give each item once")
    for item in ids:
        if known is not None and item not in known:
            lacks = f"found {item!r}, which the catalogue lacks (ids there look like {min(known, default=None)!r})"
            raise RetrieverError(f"for {query!r} {who} {lacks}; build its index from these items")
    return Hits(ids, scores[:k])


def _read(query: str, answer: Any, who: str = "the retriever") -> Hits:
    try:
        return read_hits(answer)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "is no list of ids or of (id, score)"
        raise RetrieverError(f"{who}'s answer to {query!r} {wanted}: {error}") from None


def read_hits(answer: Any) -> Hits:
    """An answer as Hits: it is Hits, or a list (or tuple, or array) of ids or of (id, score); no score is 1 / rank.
    TypeError, ValueError or OverflowError for what is none."""
    ids, scores = [], []
    hits = zip(*map(listed, answer), strict=True) if isinstance(answer, Hits) else listed(answer)
    for rank, hit in enumerate(hits, start=1):
        item, score = hit if isinstance(hit, (tuple, list)) else (hit, None)
        if isinstance(item, bool) or not isinstance(item, (str, int, np.integer)):
            raise TypeError(f"{item!r} is no id")
        score = 1 / rank if score is None else score
        if isinstance(score, (bool, str, bytes)) or not math.isfinite(score):
            raise ValueError(f"the score {score!r} of {item!r} is no finite number")
        ids.append(str(item))
        scores.append(float(score))
    return Hits(ids, scores)


def listed(value: Any) -> Any:
    """`value`, if it is a list or the like; TypeError for text, and for what has no order or can be read only once."""
    if isinstance(value, NO_LISTS) or not isinstance(value, Collection):
        raise TypeError(f"{str(value)[:60]!r} is no list")
    return value


def _ask(search: Callable[[list[str], int], Iterable], queries: list[str], k: int) -> list:
    if not queries:
        return []
    try:
        found = search(list(queries), k)
        lone = found is None or isinstance(found, (Hits, *NO_LISTS))
        answers = [] if lone else list(found)
    except RecR1Error:
        raise
    except Exception as error:
        raise RetrieverError(f"the retriever failed on {_culprit(search, queries, k)}: {error!r}") from error
    if len(answers) != len(queries):
        gave = type(found).__name__ if lone else f"{len(answers)} lists"
        told = f"gave {gave} for {len(queries)} queries, {queries[0]!r} first; let it return one list for each query"
        raise RetrieverError(f"the retriever {told}")
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
        stems: dict[str, str | None] = dict.fromkeys(Tokenizer(stopwords=stopwords).stopwords)
    except (KeyError, ValueError) as error:
        known = f"choose None or one of {', '.join(Stemmer.algorithms())} to stem, and a list or None as stopwords"
        raise RecR1Error(f"stemmer={stemmer!r} with stopwords={stopwords!r} is not known ({error}); {known}") from None
    bags = []
    for text in texts:
        bag = words_of(text)
        for word in bag:
            if word not in stems:
                stems[word] = stem(word) if is_indexed(word) else None
        bags.append([kept for word in bag if (kept := stems[word]) is not None])
    return bags


class CallableRetriever:
    """Your own search engine: `fn(queries, k)` gives for each query its ids, or its (id, score), best first. Without
    scores a hit scores 1 / rank. More than `k` hits are cut to `k`."""

    def __init__(self, fn: Callable[[list[str], int], Sequence[Sequence[Any]]]):
        self.fn, self.about = fn, {"function": getattr(fn, "__qualname__", type(fn).__name__)}

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """As `Retriever.search`. Raises RetrieverError with the query if `fn` fails or answers otherwise."""
        k, queries = checked_cutoff(k), checked_queries(queries)
        return [checked(query, answer, k, None) for query, answer in zip(queries, _ask(self.fn, queries, k))]


class Rule(NamedTuple):
    """One property of a retriever: whether it holds, and the first query that breaks it."""

    name: str
    passed: bool
    detail: str


def environment_check(
    retriever: Retriever, items: pd.DataFrame, n: int = 200, seed: int = 0, stopwords: str | Sequence[str] | None = "en"
) -> list[Rule]:
    """Try a bag-of-words retriever on its own catalogue, with `n` words and `n` five-word queries drawn by `seed`.

    `pd.DataFrame` makes a readable table of it. A dense retriever rightly fails the checks of order, case, punctuation
    and unknown words; the others hold for anything one trains on. stopwords: what the engine leaves out. Raises
    RetrieverError where a search does."""
    some, depth = items if len(items) <= SAMPLE else items.sample(SAMPLE, random_state=seed), min(DEPTH, len(items))
    holders: dict[str, set[str]] = defaultdict(set)
    for item_id, found in zip(some["item_id"], bag_of_words(some["text"], stopwords, None)):
        for word in found:
            holders[word].add(str(item_id))
    rng, words = random.Random(seed), sorted(holders)
    lone = rng.sample(words, min(n, len(words)))
    phrases = [rng.sample(words, min(5, len(words))) for _ in range(n if words else 0)]
    queries, known = [" ".join(phrase) for phrase in phrases], {str(item) for item in items["item_id"]}
    punctuated = [f'"{phrase[0]}" ({" +".join(phrase[1:])}) : [ }} \\' for phrase in phrases]

    def ranked(batch: list[str], k: int = depth) -> list[list[str]]:
        return [_read(query, answer).ids for query, answer in zip(batch, _ask(retriever.search, batch, k))]

    plain = ranked(queries)

    def other(found: Iterable[list[str]]) -> list[str]:
        return [query for query, one, two in zip(queries, plain, found) if one != two]

    def finds(query: str) -> bool:
        with suppress(*[RetrieverError] * is_blank(query)):  # a blank one may be refused: nothing else sends it
            return bool(ranked([query])[0])
        return False

    strange = [query for query, hits in zip(queries, plain) if len(known.intersection(hits)) < len(hits)]
    lost = [word for word, hits in zip(lone, ranked(lone)) if len(hits) < depth and not holders[word] <= set(hits)]
    rules = {
        "one word finds its documents": lost,
        "order never matters": other(ranked([" ".join(reversed(phrase)) for phrase in phrases])),
        "case never matters": other(ranked([query.upper() for query in queries])),
        "quotes, brackets and operators do no harm": other(ranked(punctuated)),
        "the same search gives the same list": other(ranked(queries)),
        "a query alone gives the same list as in a batch": other(ranked([query])[0] for query in queries),
        "hits are items of the catalogue, each once": strange,
        "at most k hits": [query for query, hits in zip(queries, ranked(queries, 3)) if len(hits) > 3],
        "an empty query has no hits": list(filter(finds, ("", " ?! "))),
        "an unknown word has no hits": list(filter(finds, ("zqxjkvzzq",))),
    }
    return [Rule(name, not query, f"broken by {query[0]!r}" if query else "") for name, query in rules.items()]


def check_engine(retriever: Retriever, items: pd.DataFrame) -> None:
    """`environment_check` in little, before long work: some 50 short searches, and a line on how it went.

    Raises RetrieverError where training would mean nothing: hits of another catalogue, one twice, more than were asked
    for, another answer to the same search. What holds for a bag of words alone is noted on stderr."""
    rules = environment_check(retriever, items, 5)
    for rule in (failed := [rule for rule in rules if not rule.passed]):
        if rule.name in NEEDED:
            raise RetrieverError(f"{rule.name!r} does not hold for the search engine ({rule.detail}); mend it first")
    if failed:
        told = "; ".join(f"{rule.name!r} is {rule.detail}" for rule in failed)
        print(f"note: the search engine is no bag of words: {told}", file=sys.stderr, flush=True)
    else:
        print(f"the search engine holds to all {len(rules)} rules of a bag of words", flush=True)
