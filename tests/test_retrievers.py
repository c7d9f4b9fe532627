from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from hypothesis import given, settings
from hypothesis import strategies as st

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import CallableRetriever, Hits, RetrieverError, bag_of_words, environment_check, search_all
from recr1_lite.search.bm25 import BM25Retriever

ITEMS = pd.DataFrame(
    [
        ("d1", "A red summer dress with pockets; the dress runs small."),
        ("d2", "Blue denim jeans, slim and stretchy. No pockets!"),
        ("d3", "Warm wool sweater in red and blue, great for winter"),
        ("d4", "Silk blouse. Elegant, buttons down the back"),
        ("d5", "Summer shorts in denim with a drawstring"),
        ("d6", "Café-style apron, naïve print, size 42"),
        ("d7", "Swim suit, two pieces, runs large"),
        ("d8", "Swim suit, two pieces, runs large"),
    ],
    columns=["item_id", "text"],
)


@pytest.fixture(scope="module")
def retriever() -> BM25Retriever:
    return BM25Retriever.build(ITEMS)


def reference(items: pd.DataFrame, query: str, k1: float = 1.2, b: float = 0.75) -> dict[str, float]:
    """BM25 by the formula, with nothing shared with the code under test but the list of stopwords."""
    stem = Stemmer.Stemmer("english").stemWord

    def words(text: str) -> list[str]:
        return [stem(w) for w in re.findall(r"\w\w+", text.lower()) if w not in STOPWORDS_EN]

    documents = {row.item_id: Counter(words(row.text)) for row in items.itertuples()}
    lengths = {name: sum(counts.values()) for name, counts in documents.items()}
    average = sum(lengths.values()) / len(lengths)
    scores: dict[str, float] = Counter()
    for word in words(query):
        df = sum(word in counts for counts in documents.values())
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for name, counts in documents.items():
            if tf := counts[word]:
                scores[name] += idf * tf / (tf + k1 * (1 - b + b * lengths[name] / average))
    return dict(scores)


def random_corpus(seed: int, documents: int = 60) -> tuple[pd.DataFrame, list[str]]:
    rng = random.Random(seed)
    vocabulary = [f"w{number}x" for number in range(80)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 40))) for _ in range(documents)]
    items = pd.DataFrame({"item_id": [f"i{number}" for number in range(documents)], "text": texts})
    return items, [" ".join(rng.choices(vocabulary, k=rng.randint(1, 30))) for _ in range(20)]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_formula(seed):
    items, queries = random_corpus(seed)
    k1, b = [(1.2, 0.75), (0.9, 0.4), (2.0, 1.0), (0.0, 0.5), (1.5, 0.0)][seed]
    found = BM25Retriever.build(items, k1=k1, b=b).search(queries, len(items))
    for query, hits in zip(queries, found, strict=True):
        expected = reference(items, query, k1, b)
        assert dict(zip(hits.ids, hits.scores, strict=True)) == pytest.approx(expected, rel=1e-5)


def test_agrees_with_the_formula_on_words_with_stems_and_stopwords(retriever):
    for query in ["the red DRESSES", "denim pocket", "summer summer blue", "runs small"]:
        (hits,) = retriever.search([query], 10)
        assert dict(zip(hits.ids, hits.scores)) == pytest.approx(reference(ITEMS, query), rel=1e-5)


def test_each_word_of_the_index_finds_its_documents(retriever):
    holders: dict[str, set[str]] = {}
    for row in ITEMS.itertuples():
        for word in re.findall(r"\w\w+", row.text.lower()):
            if word not in STOPWORDS_EN:
                holders.setdefault(word, set()).add(row.item_id)
    assert len(holders) > 30
    for (word, documents), hits in zip(holders.items(), retriever.search(list(holders), 100)):
        assert documents <= set(hits.ids), word


def test_order_case_and_repeated_searches(retriever):
    rng = random.Random(1)
    words = "red blue denim summer dress wool swim suit pockets runs two winter".split()
    for _ in range(30):
        query = rng.choices(words, k=6)
        shuffled = rng.sample(query, k=len(query))
        texts = [" ".join(query), " ".join(shuffled), " ".join(query).upper(), " ".join(query)]
        first, *others = retriever.search(texts, 10)
        assert first.ids and all(other == first for other in others)  # to the last bit of the score


def test_a_repeated_word_counts_each_time(retriever):
    one, four = retriever.search(["dress blue", "dress dress dress dress blue"], 10)
    score = dict(zip(one.ids, one.scores))
    weighted = dict(zip(four.ids, four.scores))
    assert weighted["d1"] == pytest.approx(4 * score["d1"], rel=1e-5)
    assert weighted["d2"] == pytest.approx(score["d2"], rel=1e-5)


def test_ties_come_in_catalogue_order_at_every_cutoff():
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(50)], "text": ["plain shirt"] * 49 + ["shirt shirt"]})
    retriever = BM25Retriever.build(items)
    for k in (1, 2, 10, 49, 50, 80):
        (hits,) = retriever.search(["shirt"], k)
        assert hits.ids == (["i49"] + [f"i{n}" for n in range(49)])[:k]
        assert hits.scores == sorted(hits.scores, reverse=True)


def test_nothing_to_find(retriever):
    assert retriever.search([], 5) == []
    for query in ["", "   ", "?!", "the and of", "zebra quagga", "a"]:
        assert retriever.search([query], 5) == [Hits([], [])]
    (hits,) = retriever.search(["zebra dress"], 5)
    assert hits.ids == ["d1"]


def test_scores_are_above_zero_and_k_may_exceed_the_catalogue(retriever):
    (hits,) = retriever.search(["red"], 10_000)
    assert set(hits.ids) == {"d1", "d3"} and all(score > 0 for score in hits.scores)
    (hits,) = retriever.search(["red blue summer"], 2)
    assert len(hits.ids) == len(hits.scores) == 2


@pytest.mark.parametrize("k", [0, -3, 1.5, "10", None, True])
def test_a_bad_k(retriever, k):
    for search in (retriever.search, CallableRetriever(lambda queries, k: []).search):
        with pytest.raises(RecR1Error, match="cut-off"):
            search(["red"], k)


@pytest.mark.parametrize(
    "query",
    [
        '"red" AND (dress OR "blue")',
        "+red -dress",
        "contents:red dress",
        "red~2 dress^4",
        "[red TO dress]",
        "red\\dress",
        "red\tdress\n",
        "{red} dress's",
        "r\u00e9d rouge red 红色 dress 🙂",
        "red\x00dress \ud800",
    ],
)
def test_punctuation_and_boolean_words_are_only_words(retriever, query):
    plain = " ".join(re.findall(r"\w+", query.replace("AND", "").replace("OR", "").replace("TO", "")))
    hits, expected = retriever.search([query, plain], 10)
    assert hits == expected and "d1" in hits.ids


def test_unicode_is_folded(retriever):
    folded = ["café naïve", "CAFÉ NAÏVE", "cafe\u0301 nai\u0308ve", "ＣＡＦÉ naïve"]
    assert all(hits.ids == ["d6"] for hits in retriever.search(folded, 5))


@settings(deadline=None)
@given(st.text(max_size=80), st.integers(1, 20))
def test_any_text_can_be_searched(query, k):
    retriever = BM25Retriever.build(ITEMS)
    hits, again = retriever.search([query, query], k)
    assert hits == again and len(hits.ids) == len(set(hits.ids)) <= k


@pytest.mark.parametrize("queries", [["red", None], ["red", math.nan], [1]])
def test_a_query_that_is_not_text_is_named(retriever, queries):
    with pytest.raises(RetrieverError, match=repr(queries[-1])):
        retriever.search(queries, 5)


def test_one_string_instead_of_a_list(retriever):
    with pytest.raises(RetrieverError, match="list of queries"):
        retriever.search("red dress", 5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda items: items.drop(columns="text"), "'text'"),
        (lambda items: items.assign(item_id="d1"), "'d1'"),
        (lambda items: items.assign(text=[*items["text"][:-1], math.nan]), "'d8'"),
        (lambda items: items.assign(text="the a !"), "no text"),
        (lambda items: items[:0], "is empty"),
    ],
)
def test_a_bad_catalogue(change, message):
    with pytest.raises(RecR1Error, match=message):
        BM25Retriever.build(change(ITEMS))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "bm25+"}, "lucene"),
        ({"k1": -1}, "k1"),
        ({"b": 1.5}, "b from 0 to 1"),
        ({"stopwords": "klingon"}, "klingon"),
        ({"stemmer": "klingon"}, "klingon"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(RecR1Error, match=message):
        BM25Retriever.build(ITEMS, **settings)


def test_stopwords_and_stemmer_can_be_chosen():
    plain = BM25Retriever.build(ITEMS, stopwords=None, stemmer=None)
    assert plain.search(["the"], 9)[0].ids and not plain.search(["dresses"], 9)[0].ids
    own = BM25Retriever.build(ITEMS, stopwords={"red", "blue"})
    assert not own.search(["red blue"], 9)[0].ids and own.search(["the"], 9)[0].ids


@pytest.mark.parametrize("mmap", [True, False])
def test_save_and_load_search_alike(tmp_path, mmap):
    items, queries = random_corpus(7)
    built = BM25Retriever.build(items, k1=0.9, stopwords=["w1x"])
    built.save(tmp_path / "index")
    loaded = BM25Retriever.load(tmp_path / "index", mmap=mmap)
    assert loaded.search(queries, 30) == built.search(queries, 30)
    assert loaded.search(["w1x"], 30) == [Hits([], [])]


def test_saving_again_replaces_the_index_as_a_whole(tmp_path):
    folder = BM25Retriever.build(ITEMS).save(tmp_path / "index")
    old = BM25Retriever.load(folder)
    BM25Retriever.build(ITEMS[:3]).save(folder)
    assert len(BM25Retriever.load(folder).ids) == 3
    assert old.search(["swim"], 5)[0].ids == ["d7", "d8"]  # a reader keeps the pages that it has open
    assert len(list(folder.iterdir())) == 2


def test_a_failed_save_keeps_the_old_index(tmp_path, monkeypatch):
    folder = BM25Retriever.build(ITEMS).save(tmp_path / "index")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recr1_lite.search.base.atomic_write", full)
    with pytest.raises(OSError):
        BM25Retriever.build(ITEMS[:3]).save(folder)
    assert len(BM25Retriever.load(folder).ids) == len(ITEMS)
    assert len(list(folder.iterdir())) == 2


def test_loading_what_is_not_there_or_is_broken(tmp_path):
    with pytest.raises(RecR1Error, match="no BM25 index"):
        BM25Retriever.load(tmp_path / "nowhere")
    folder = BM25Retriever.build(ITEMS).save(tmp_path / "index")
    head = json.loads((folder / "retriever.json").read_text())
    (folder / head["index"] / "data.csc.index.npy").write_bytes(b"cut")
    with pytest.raises(RecR1Error, match="cannot be read"):
        BM25Retriever.load(folder)
    (folder / "retriever.json").write_text("{")
    with pytest.raises(RecR1Error, match="cannot be read"):
        BM25Retriever.load(folder)


def test_scores_do_not_depend_on_the_process():
    items, queries = random_corpus(3)
    code = (
        "import json, sys, pandas as pd; from recr1_lite.search.base import BM25Retriever;"
        "ids, texts, queries = json.load(sys.stdin);"
        "retriever = BM25Retriever.build(pd.DataFrame({'item_id': ids, 'text': texts}));"
        "print(retriever.search(queries, 100))"
    )
    given = json.dumps([list(items["item_id"]), list(items["text"]), queries])
    path = os.pathsep.join(sys.path)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            input=given,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{BM25Retriever.build(items).search(queries, 100)}\n"


def test_a_callable_gives_ids_or_pairs():
    by_id = CallableRetriever(lambda queries, k: [["a", 7] for _ in queries])
    assert by_id.search(["x", "y"], 5) == [Hits(["a", "7"], [1.0, 0.5])] * 2
    pairs = CallableRetriever(lambda queries, k: [[("a", 3), ("b", 2.5), ("c", 1)] for _ in queries])
    assert pairs.search(["x"], 2) == [Hits(["a", "b"], [3.0, 2.5])]
    assert CallableRetriever(lambda queries, k: [()]).search(["x"], 2) == [Hits([], [])]


@pytest.mark.parametrize("answer", [None, 5, [None], [1.5], [("a", "high")], [("a", 1, 2)]])
def test_a_callable_with_another_answer_is_named_with_the_query(answer):
    with pytest.raises(RetrieverError, match="'odd one'"):
        CallableRetriever(lambda queries, k: [["a"], answer]).search(["good", "odd one"], 5)


def fails_on_bad(queries, k):
    if any("bad" in query for query in queries):
        raise ConnectionError("no route to the index")
    return [Hits(["a"], [1.0]) for _ in queries]


class Broken:
    search = staticmethod(fails_on_bad)


@pytest.mark.parametrize(
    "search",
    [CallableRetriever(fails_on_bad).search, lambda queries, k: search_all(Broken(), queries, k)],
    ids=["callable", "any retriever"],
)
def test_a_failure_names_its_query(search):
    with pytest.raises(RetrieverError, match="'a bad query'.*no route") as caught:
        search(["fine", "a bad query", "fine too"], 5)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_failure_of_the_batch_alone_says_so():
    def limited(queries, k):
        if len(queries) > 1:
            raise ConnectionError("too many at once")
        return [["a"]]

    with pytest.raises(RetrieverError, match="batch of 2.*'x'.*too many"):
        CallableRetriever(limited).search(["x", "y"], 5)


def test_a_missing_answer_is_an_error():
    with pytest.raises(RetrieverError, match="1 lists for 2 queries"):
        CallableRetriever(lambda queries, k: [["a"]]).search(["x", "y"], 5)


def test_search_all_asks_once_and_never_for_nothing():
    asked = []

    class Counting:
        def search(self, queries, k):
            asked.extend(queries)
            return [Hits([query], [1.0]) for query in queries]

    hits = search_all(Counting(), ["x", "", "y", "x", "  "], 5)
    assert [hit.ids for hit in hits] == [["x"], [], ["y"], ["x"], []] and asked == ["x", "y"]
    assert search_all(Counting(), [""], 5) == [Hits([], [])]


def failed(retriever, items=ITEMS) -> set[str]:
    return {check.name for check in environment_check(retriever, items, n=30) if not check.passed}


def test_the_environment_check_passes_bm25(retriever):
    assert failed(retriever) == set()


class Swallows:
    """The trap of a query sent as `(contents:<query>)` through a plain analyser: the first word is lost."""

    def __init__(self, inner):
        self.inner = inner

    def search(self, queries, k):
        return self.inner.search([query.partition(" ")[2] for query in queries], k)


def test_the_environment_check_catches_a_swallowed_first_word(retriever):
    checks = {check.name: check for check in environment_check(Swallows(retriever), ITEMS, n=30)}
    words = checks["one word finds its documents"]
    assert not words.passed and words.detail.startswith("broken by '")
    assert not checks["order never matters"].passed


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda query: query if query.islower() else "", "case never matters"),
        (lambda query: query.replace('"', "qq"), "quotes, brackets and operators do no harm"),
        (lambda query: query or "dress", "an empty query has no hits"),
        (lambda query: "dress" if "zq" in query else query, "an unknown word has no hits"),
    ],
)
def test_the_environment_check_catches(retriever, change, name):
    class Changed:
        def search(self, queries, k):
            return retriever.search([change(query) for query in queries], k)

    assert name in failed(Changed())


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda hits, k: Hits(hits.ids[:1] + hits.ids, hits.scores), "hits are items of the catalogue, each once"),
        (lambda hits, k: Hits(["stranger"] if hits.ids else [], [1.0]), "hits are items of the catalogue, each once"),
        (
            lambda hits, k: Hits(random.sample(hits.ids, len(hits.ids)), hits.scores),
            "the same search gives the same list",
        ),
    ],
)
def test_the_environment_check_catches_in_hits(retriever, change, name):
    class Changed:
        def search(self, queries, k):
            return [change(hits, k) for hits in retriever.search(queries, k)]

    assert name in failed(Changed())


def test_the_environment_check_catches_too_many_hits(retriever):
    class Endless:
        def search(self, queries, k):
            return retriever.search(queries, 100)

    assert "at most k hits" in failed(Endless())


def test_bag_of_words():
    assert bag_of_words(["The DRESSES, dresses!", ""]) == [["dress", "dress"], []]
