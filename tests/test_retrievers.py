from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from servers import ITEMS, refuses_bad_searches

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import CallableRetriever, Hits, RetrieverError, bag_of_words, environment_check, search_all
from recr1_lite.search.engines import BM25Retriever, DenseRetriever


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


def test_agrees_with_the_formula():
    settings = [(1.2, 0.75), (0.9, 0.4), (2.0, 1.0), (0.0, 0.5), (1.5, 0.0)]
    cases = [(*random_corpus(seed), *chosen) for seed, chosen in enumerate(settings)]
    words = sorted(set(re.findall(r"\w\w+", " ".join(ITEMS["text"]).lower())))  # each finds all its documents
    cases.append((ITEMS, ["the red DRESSES", "denim pocket", "summer summer blue", "runs small", *words], 1.2, 0.75))
    for items, queries, k1, b in cases:
        found = BM25Retriever.build(items, k1=k1, b=b).search(queries, len(items))
        for query, hits in zip(queries, found, strict=True):
            assert dict(zip(*hits, strict=True)) == pytest.approx(reference(items, query, k1, b), rel=1e-5)


def test_order_case_and_repeated_searches(retriever):
    rng = random.Random(1)
    words = "red blue denim summer dress wool swim suit pockets runs two winter".split()
    for _ in range(30):
        query = rng.choices(words, k=6)
        shuffled = rng.sample(query, k=len(query))
        texts = [" ".join(query), " ".join(shuffled), " ".join(query).upper(), " ".join(query)]
        first, *others = retriever.search(texts, 10)
        assert first.ids and all(other == first for other in others)  # to the last bit of the score


def test_ties_come_in_catalogue_order_at_every_cutoff():
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(50)], "text": ["plain shirt"] * 49 + ["shirt shirt"]})
    retriever = BM25Retriever.build(items)
    for k in (1, 2, 10, 49, 50, 80):
        (hits,) = retriever.search(["shirt"], k)
        assert hits.ids == (["i49"] + [f"i{n}" for n in range(49)])[:k]
        assert hits.scores == sorted(hits.scores, reverse=True)


def test_nothing_to_find_and_scores_above_zero(retriever):
    assert retriever.search([], 5) == []
    for query in ["", "   ", "?!", "the and of", "zebra quagga", "a"]:
        assert retriever.search([query], 5) == [Hits([], [])]
    assert retriever.search(["zebra dress"], 5)[0].ids == ["d1"]
    (hits,) = retriever.search(["red"], 10_000)
    assert set(hits.ids) == {"d1", "d3"} and all(score > 0 for score in hits.scores)


def test_bad_searches(retriever):
    for search in (retriever.search, CallableRetriever(lambda queries, k: []).search):
        refuses_bad_searches(search)


ODD = ['"red" AND (dress OR "blue")', "+red -dress", "contents:red dress", "red~2 dress^4", "[red TO dress]"]
ODD += ["red\\dress", "red\tdress\n", "{red} dress's", "r\u00e9d rouge red 红色 dress 🙂", "red\x00dress \ud800"]


@pytest.mark.parametrize("query", ODD)
def test_punctuation_and_boolean_words_are_only_words(retriever, query):
    plain = " ".join(re.findall(r"\w+", query.replace("AND", "").replace("OR", "").replace("TO", "")))
    hits, expected = retriever.search([query, plain], 10)
    assert hits == expected and "d1" in hits.ids
    folded = ["café naïve", "CAFÉ NAÏVE", "cafe\u0301 nai\u0308ve", "ＣＡＦÉ naïve"]
    assert all(hits.ids == ["d6"] for hits in retriever.search(folded, 5))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda items: items.drop(columns="text"), "no column 'text'"),
        (lambda items: items.assign(item_id="d1"), "'d1' stands in rows 1 and 2"),
        (lambda items: items.assign(text=[*items["text"][:-1], math.nan]), "the text of item 'd9' is (None|nan)"),
        (lambda items: items[:0], "the catalogue is empty"),
    ],
)
def test_a_bad_catalogue(change, message):
    for build in (BM25Retriever.build, lambda items: DenseRetriever.build(items, model=len)):
        with pytest.raises(RecR1Error, match=message):
            build(change(ITEMS))


def test_bad_settings():
    for chosen, message in (
        ({"method": "bm25+"}, "lucene"),
        ({"k1": -1}, "k1"),
        ({"b": 1.5}, "b from 0 to 1"),
        *(({name: "klingon"}, "klingon") for name in ("stopwords", "stemmer")),
        ({"items": ITEMS.assign(text="the a !")}, "no text"),
    ):
        with pytest.raises(RecR1Error, match=message):
            BM25Retriever.build(**({"items": ITEMS} | chosen))


def test_stopwords_and_stemmer_can_be_chosen():
    plain = BM25Retriever.build(ITEMS, stopwords=None, stemmer=None)
    assert plain.search(["the"], 9)[0].ids and not plain.search(["dresses"], 9)[0].ids
    own = BM25Retriever.build(ITEMS, stopwords={"red", "blue"})
    assert not own.search(["red blue"], 9)[0].ids and own.search(["the"], 9)[0].ids


def test_scores_do_not_depend_on_the_process():
    items, queries = random_corpus(3)
    code = (
        "import json, sys, pandas as pd; from recr1_lite.search.engines import BM25Retriever;"
        "ids, texts, queries = json.load(sys.stdin);"
        "retriever = BM25Retriever.build(pd.DataFrame({'item_id': ids, 'text': texts}));"
        "print(retriever.search(queries, 100))"
    )
    given = json.dumps([list(items["item_id"]), list(items["text"]), queries])
    for seed in ("1", "2"):
        process = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.check_output([sys.executable, "-c", code], input=given, text=True, env=process)
        assert out == f"{BM25Retriever.build(items).search(queries, 100)}\n"


def test_a_callable_gives_ids_or_pairs():
    for answer, found in (
        (["a", 7], Hits(["a", "7"], [1.0, 0.5])),
        ([("a", 3), ("b", 2.5), ("c", 1)], Hits(["a", "b"], [3.0, 2.5])),
        ((), Hits([], [])),
    ):
        retriever = CallableRetriever(lambda queries, k, answer=answer: [answer] * len(queries))
        assert retriever.search(["x", "y"], 2) == [found] * 2


def fails_on_bad(queries, k):
    if any("bad" in query for query in queries):
        raise ConnectionError("no route to the index")
    return [Hits(["a"], [1.0]) for _ in queries]


def test_a_failure_names_its_query():
    broken = SimpleNamespace(search=fails_on_bad)
    for search in (CallableRetriever(fails_on_bad).search, lambda queries, k: search_all(broken, queries, k)):
        with pytest.raises(RetrieverError, match="'a bad query'.*no route") as caught:
            search(["fine", "a bad query", "fine too"], 5)
        assert isinstance(caught.value.__cause__, ConnectionError)

    def limited(queries, k):
        if len(queries) > 1:
            raise ConnectionError("too many at once")
        return [["a"]]

    with pytest.raises(RetrieverError, match="batch of 2.*'x'.*too many"):
        CallableRetriever(limited).search(["x", "y"], 5)


@pytest.mark.parametrize(
    "text, bag",
    [
        ("The DRESSES, dresses!", ["dress", "dress"]),
        ("", []),
        ("लाल साड़ी न", ["लाल", "साड़ी", "न"]),  # vowel signs belong to the word
        ("İSTANBUL ıstanbul ISTANBUL", ["istanbul"] * 3),
        ("wo\u00adol wo\u200col \ufeffwool\u200b", ["wool"] * 3),
        ("红色 T恤", ["红色", "恤"]),
        ("สีแดง", ["สี", "ีแ", "แด", "ดง"]),
        ("コート3着", ["コー", "ート", "着"]),
        ("옷 가방", ["옷", "가방"]),
    ],
)
def test_bag_of_words(text, bag):
    assert bag_of_words([text], "en", "english") == [bag]


def test_scripts_without_spaces_are_found():
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "text": ["红色连衣裙夏季新款", "เสื้อเชิ้ตสีขาว", "लाल साड़ी"]})
    retriever = BM25Retriever.build(items)
    found = retriever.search(["新款连衣裙", "สีขาว", "साड़ी", "साड़"], 5)
    assert [hits.ids for hits in found] == [["a"], ["b"], ["c"], []]
    assert all(check.passed for check in environment_check(retriever, items, n=20))


@pytest.mark.parametrize("mmap", [True, False])
def test_save_and_load_search_alike(tmp_path, mmap):
    items = pd.DataFrame({"item_id": ["7", "8", "9"], "text": ["café 裙子", "lamp lamp", "café lamp"]})
    built, queries = BM25Retriever.build(items), ["café", "lamp", "", "sofa"]
    folder = built.save(tmp_path / "index")
    assert BM25Retriever.load(folder, mmap).search(queries, 9) == built.search(queries, 9)
    BM25Retriever.build(items[:2]).save(folder)  # takes the place of the first
    assert len(BM25Retriever.load(folder, mmap).ids) == 2 and [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_that_is_not_whole(tmp_path):
    folder = BM25Retriever.build(pd.DataFrame({"item_id": ["7"], "text": ["lamp"]})).save(tmp_path / "index")
    for path in (folder / "retriever.json", folder / "index" / "params.index.json"):
        before = path.read_bytes()
        path.write_bytes(before[:9])
        with pytest.raises(RecR1Error, match="no whole BM25 index at"):
            BM25Retriever.load(folder)
        path.write_bytes(before)
    head = folder / "retriever.json"
    head.write_text(head.read_text().replace('["7"]', '["7", "8"]'))  # of another catalogue
    for path, why in ((folder, "1 documents but 2 ids"), (tmp_path / "nowhere", "No such file")):
        with pytest.raises(RecR1Error, match=f"no whole BM25 index at .*{why}"):
            BM25Retriever.load(path)
