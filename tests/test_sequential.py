"""Sequential recommendation: its examples, the baselines on catalogues worked out by hand, and their evaluation."""

import numpy as np
import pandas as pd
import pytest
from hub_files import write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import compare, evaluate, evaluate_recommender
from recr1_lite.evaluate.recommenders import (
    PAD,
    ItemKNN,
    Popularity,
    SASRec,
    _collate,
    _pieces,
    choose,
    last_title,
    train_sequences,
)
from recr1_lite.ledger import Ledger
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.tasks import Task, history_examples, load_task
from recr1_lite.tasks.prompts import Prompt

TITLES = {item: f"title {item}" for item in "abcdef"}
ITEMS = pd.DataFrame([(item, title, title) for item, title in TITLES.items()], columns=["item_id", "title", "text"])
PROMPT = Prompt(style="compact", instruction="next after {request}", mode="expand")
TRAIN = [("t1", "ab", "c"), ("t2", "ab", "d"), ("t3", "a", "b"), ("t4", "e", "c"), ("t5", "b", "d")]
VAL, TEST = [("v1", "a", "b"), ("v2", "e", "c")], [("s1", "a", "c"), ("s2", "b", "f")]

BARE = ["example_id", "request", "relevant", "exclude"]
LEFT_OUT = "rows whose relevant item is already in their history, left out"


def split(rows) -> pd.DataFrame:
    return history_examples(rows, TITLES)[0]


def task(train=split(TRAIN), val=split(VAL), test=split(TEST)) -> Task:  # noqa: B008
    return Task("toy", ITEMS, train, val, test, PROMPT, 3, 3, ("ndcg@3", "recall@1"))


def test_a_row_of_the_table():
    frame, repeats = history_examples([("x", list("abcab"), "d"), ("again", "ab", "b")], TITLES, last=2)
    assert repeats == 1
    assert frame.to_dict("records") == [
        dict(example_id="x", request="title a; title b", relevant={"d": 1.0}, exclude=[*"abc"], history=[*"abcab"])
    ]
    same = task(test=split([("s1", "ab", "c"), ("s2", "ab", "e")]))  # two users may have had the same
    assert same.about["splits"]["test"]["examples"] == 2


def test_several_targets_are_all_learned_in_order():
    frame, repeats = history_examples([("x", list("ab"), list("dc")), ("again", list("ab"), list("bf"))], TITLES)
    assert repeats == 1 and frame["relevant"].tolist() == [{"d": 1.0, "c": 1.0}, {"f": 1.0}]
    assert train_sequences(frame) == [list("abdc"), list("abf")]
    assert Popularity(frame, ITEMS).popularity.tolist() == [2, 2, 1, 1, 0, 1]
    model = SASRec(frame, ITEMS, frame, epochs=1, length=2, n_embd=8, progress=False)
    assert model._ahead(frame) == [([2, 4, 3], 1), ([1, 2, 6], 2)]  # what the loss on val counts: d and c; f


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: history_examples([("x", [], "a")], TITLES), "example 'x': history is empty"),
        (lambda: history_examples([("x", ["zz"], "b")], TITLES), "'x': history holds item 'zz', which the catal"),
        (lambda: history_examples([("x", "a", "b")], TITLES, 0), "last=0 shows no item"),
        (lambda: task(val=split(VAL[:1]).assign(history=["ab"])), "v1': history is 'ab'; write a list"),
        (lambda: task(val=split(VAL[:1]).assign(history=[["zz"]])), "v1': history holds 'zz', which is not in the cat"),
        (lambda: task(val=split(TRAIN[:1])), "example_id 't1' stands in the train split .* and in the val split"),
        (lambda: task(split(TRAIN)[BARE], split(VAL)[BARE]), "request 'title a' stands in the train split"),
        (lambda: train_sequences(split(TRAIN)[BARE]), "no column 'history'"),
    ],
)
def test_unsound_histories(make, words):
    with pytest.raises(RecR1Error, match=words):
        make()


def custom(tmp_path, rows, **options) -> Task:
    return load_task("custom", items=ITEMS, requests=write_jsonl(tmp_path / "r.jsonl", rows), **options)


def test_histories_of_your_own(tmp_path):
    asked = [("train", list("ab"), "c"), ("train", list("ab"), "b"), ("val", '["c", "a"]', "d"), ("test", ["a"], "e")]
    rows = [{"history": history, "relevant": wanted, "split": split} for split, history, wanted in asked]
    own = custom(tmp_path, rows, last=1)
    assert own.train["example_id"].tolist() == ["row-1"] and own.about[LEFT_OUT] == 1
    assert own.val.iloc[0].tolist() == ["row-3", "title a", {"d": 1.0}, ["c", "a"], ["c", "a"]]

    names = [("train", None), ("val", '["b"]'), ("test", ["c"])]
    rows = [{"request": f"q{split}", "relevant": "a", "split": split, "exclude": gone} for split, gone in names]
    own = custom(tmp_path, rows)
    assert own.train["exclude"].tolist() == [[]] and own.val["exclude"].tolist() == [["b"]]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"history": ["a", "zz"], "relevant": "c"}, "line 1: history holds item 'zz', which the catalogue lacks"),
        ({"history": [], "relevant": "c"}, "line 1: history is empty"),
        ({"history": "[1", "relevant": "c"}, "line 1: history is no JSON .*; mend it"),
        ({"history": "a", "relevant": "c"}, "line 1: history is 'a'; write a JSON list"),
        ({"history": [1.5], "relevant": "c"}, "line 1: history: an id is 1.5"),
        ({"history": ["c"], "relevant": "c"}, "every relevant item is in its own history"),
        ({"history": ["a"]}, "has no column 'relevant'"),
    ],
)
def test_bad_histories_of_your_own(tmp_path, row, words):
    with pytest.raises(RecR1Error, match=words) as error:
        custom(tmp_path, [{**row, "split": "train"}])
    assert "\n" not in str(error.value)


def test_popularity_by_hand():
    # a: t1 t2 t3, b: t1 t2 t3 t5, c: t1 t4, d: t2 t5, e: t4, f: none; c before d as in the catalogue
    ranked = Popularity(split(TRAIN), ITEMS).recommend(split(VAL), 6)
    assert ranked == [list("bacdef")] * 2
    seen = Popularity(split(TRAIN), ITEMS).matrix([["a", "a", "zz"], []])  # an item counts once, a stranger not at all
    assert seen.toarray().tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_item_knn_by_hand():
    # columns over t1..t5: a 11100, b 11101, c 10010, d 01001, e 00010; cosines to a: b 3/sqrt(12), c and d 1/sqrt(6)
    knn = ItemKNN(split(TRAIN), ITEMS, neighbours=5)
    similarity = knn.similarity.toarray()
    assert similarity[0, 1] == pytest.approx(3 / np.sqrt(12)) and similarity[0, 2] == pytest.approx(1 / np.sqrt(6))
    assert knn.recommend(split([("x", "a", "b")]), 6) == [list("abcdef")]  # of c and d, c stands first
    assert knn.recommend(split([("x", "e", "b")]), 3) == [list("ecb")]  # c 1/sqrt(2); then unknown ones, by popularity
    recent = ItemKNN(split(TRAIN), ITEMS, neighbours=5, recent=1)
    assert recent.recommend(split([("x", "ae", "b")]), 2) == knn.recommend(split([("x", "e", "b")]), 2)
    one = ItemKNN(split(TRAIN), ITEMS, neighbours=1).similarity
    assert (one.getnnz(axis=1) <= 2).all()  # itself and its nearest


def test_sasrec_learns_an_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    circle = "abcdef" * 3
    rows = [(f"t{at}", circle[at % 6 : at % 6 + 4], circle[at % 6 + 4]) for at in range(60)]
    val = split([("v1", "abc", "d"), ("v2", "def", "a"), ("longer than is read", "defab", "c")])
    plain = dict(n_embd=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = SASRec(split(rows), ITEMS, val, length=3, epochs=30, learning_rate=1e-2, progress=False, **plain)
    assert [own[0] for own in model.recommend(val, 6)] == ["d", "a", "c"] and not list(tmp_path.iterdir())
    assert model.recommend(split([("one", "b", "c")]).assign(history=[["zz"]]), 6)[0]  # a stranger breaks nothing


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=40), st.integers(1, 12))
def test_pieces_hold_each_step_once(tokens, length):
    pieces = _pieces(tokens, length)
    steps = [pair for piece in reversed(pieces) for pair in zip(piece, piece[1:])]
    assert steps == list(zip(tokens, tokens[1:])) and max(map(len, pieces)) <= length + 1


def test_collate_masks_padding_and_places_before_the_first():
    batch = _collate([([3, 4, 5], 2), ([6, 7], 1)])
    assert batch["input_ids"].tolist() == [[3, 4, 5], [6, 7, PAD]]
    assert batch["labels"].tolist() == [[-100, -100, 5], [-100, 7, -100]]


def test_a_recommender_is_scored_like_a_rewriter(tmp_path):
    ledger, own = Ledger(tmp_path / "ledger.jsonl"), task()
    result = evaluate_recommender(Popularity(own.train, ITEMS), own, "val", ledger.bind(profile="smoke", run="r"), 3)
    # v1 leaves out a: b is first. v2 leaves out e: c is third after b and a, 1/log2(4) = 0.5
    assert result.rows["ndcg@3"].tolist() == [1.0, 0.5] and result.rows["recall@1"].tolist() == [1.0, 0.0]
    assert result.rows["ranks"].tolist() == [{"b": 1}, {"c": 3}]
    (row,) = ledger.rows("eval")
    said = [row[key] for key in ("method", "retriever", "n", "profile", "run", "seed")]
    assert said == ["popularity", "", 2, "smoke", "r", 3]
    assert last_title(["One; Two; Three", "Alone"]) == ["Three", "Alone"]
    text = evaluate(last_title, own, BM25Retriever.build(ITEMS), "val", progress=False)
    assert compare(result, text).n == 2


def test_a_recommender_never_sees_the_targets_and_opens_the_test_split_with_a_mark(tmp_path):
    seen, ledger = [], Ledger(tmp_path / "ledger.jsonl")

    def peek(examples, k):
        seen.extend(examples.columns)
        return [list("abcdef")[:k]] * len(examples)

    evaluate_recommender(peek, task(), "test", ledger)
    assert "relevant" not in seen and "history" in seen
    assert [row["kind"] for row in ledger.rows()] == ["unseal", "eval"]
    with pytest.raises(RecR1Error, match="1 answers for 2 asked"):
        evaluate_recommender(lambda examples, k: [["a"]], task())


def test_choose_takes_the_best_on_val():
    own = task()
    backwards, popular = Popularity(own.train, ITEMS), Popularity(own.train, ITEMS)
    backwards.recommend = lambda examples, k: [list("fedcba")[:k]] * len(examples)
    assert choose([lambda: backwards, lambda: popular], own) is popular
