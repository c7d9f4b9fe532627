"""evaluate and compare on a catalogue of five items whose rankings can be worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import compare, evaluate, methods_table, show
from recr1_lite.search.base import Hits, RetrieverError
from recr1_lite.search.metrics import Interval

ITEMS = pd.DataFrame(
    [
        ("d1", "red dress", "red dress soft"),
        ("d2", "blue dress", "blue dress"),
        ("p1", "black trousers", "black trousers work"),
        ("s1", "wool sweater", "wool sweater warm"),
        ("j1", "denim jacket", "denim jacket"),
    ],
    columns=["item_id", "title", "text"],
)
VAL = [
    ("v1", "a warm thing of wool please", {"s1": 1.0}),
    ("v2", "dress", {"d2": 1.0}),
    ("v3", "nothing that is here", {"j1": 1.0}),
    ("v4", "black trousers", {"p1": 2.0, "d1": 1.0}),
]


class WordOverlap:
    """Rank by the number of shared words, ties in the catalogue's order; counts its calls."""

    def __init__(self):
        self.calls = []

    def search(self, queries, k):
        self.calls.append((list(queries), k))
        answers = []
        for query in queries:
            scores = [
                (len(set(query.lower().split()) & set(text.split())), item)
                for item, text in zip(ITEMS["item_id"], ITEMS["text"])
            ]
            found = sorted((hit for hit in scores if hit[0]), key=lambda hit: -hit[0])[:k]
            answers.append(Hits([item for _, item in found], [float(score) for score, _ in found]))
        return answers


class FakeRewriter:
    name = "fake"
    batch_size = 3

    def __init__(self, answers):
        self.answers, self.seen = answers, []

    def complete(self, requests):
        self.seen.append(list(requests))
        queries = [self.answers.get(request, request) for request in requests]
        return [
            SimpleNamespace(
                query=query, completion=f"<{query}>", outcome="ok" if query else "empty", tokens=len(query.split())
            )
            for query in queries
        ]


class ListLedger:
    """A ledger in memory."""

    def __init__(self):
        self.kept, self.marks = [], {}

    def bind(self, **marks):
        self.marks = marks
        return self

    def append(self, row):
        self.kept.append(self.marks | row)


class FakeTask:
    name, k_eval, metrics = "toy", 3, ("ndcg@3", "mrr")

    def __init__(self, val=VAL):
        self.items = ITEMS
        self.val = pd.DataFrame(val, columns=["example_id", "request", "relevant"])
        self.train = self.val.iloc[:0]

    def unseal_test(self, reason="", ledger=None):
        if ledger is not None:
            ledger.append({"kind": "unseal", "task": self.name, "reason": reason})
        return self.val.assign(example_id=["t" + name for name in self.val["example_id"]])


@pytest.fixture
def task():
    return FakeTask()


def test_values_ranks_and_summary_are_those_worked_out_by_hand(task):
    result = evaluate(lambda requests: requests, task, WordOverlap())
    rows = result.rows.set_index("example_id")
    assert list(rows.index) == ["v1", "v2", "v3", "v4"]
    assert rows.loc["v1", "ranks"] == {"s1": 1} and rows.loc["v1", "ndcg@3"] == 1
    assert rows.loc["v2", "ranks"] == {"d2": 2} and rows.loc["v2", "top"] == ["d1", "d2"]
    assert rows.loc["v2", "ndcg@3"] == pytest.approx(1 / math.log2(3))
    assert rows.loc["v3", "ranks"] == {"j1": None} and rows.loc["v3", "mrr"] == 0
    assert rows.loc["v4", "ranks"] == {"p1": 1, "d1": None}
    assert rows.loc["v4", "ndcg@3"] == pytest.approx(2 / (2 + 1 / math.log2(3)))
    assert result.summary["mrr"].mean == pytest.approx((1 + 0.5 + 0 + 1) / 4) and result.summary["mrr"].n == 4
    assert result.metric == "ndcg@3"
    assert list(result.table().columns) == ["metric", "mean", "low", "high", "n"]


def test_a_rewriter_gets_sorted_batches_and_its_answers_come_back_in_order(task):
    rewriter, retriever = FakeRewriter({"dress": "blue", "nothing that is here": ""}), WordOverlap()
    result = evaluate(rewriter, task, retriever, progress=False)
    assert [len(batch) for batch in rewriter.seen] == [3, 1]
    lengths = [len(request) for batch in rewriter.seen for request in batch]
    assert lengths == sorted(lengths, reverse=True)
    rows = result.rows.set_index("example_id")
    assert rows.loc["v2", "query"] == "blue" and rows.loc["v2", "completion"] == "<blue>"
    assert rows.loc["v2", "ndcg@3"] == 1
    assert result.outcomes == {"ok": 3, "empty": 1} and result.tokens == 6 + 1 + 0 + 2
    assert len(retriever.calls) == 1, "one batched search, not one a request"


def test_search_goes_as_deep_as_the_deepest_metric(task):
    task.metrics = ("ndcg@3", "recall@50")
    retriever = WordOverlap()
    evaluate(lambda requests: requests, task, retriever)
    assert retriever.calls[0][1] == 50


def test_the_ledger_gets_an_eval_row_and_the_unsealing_comes_first(task):
    ledger = ListLedger()
    evaluate(FakeRewriter({}), task, WordOverlap(), "test", ledger=ledger.bind(profile="smoke", run="r1"), seed=3)
    unseal, row = ledger.kept
    assert unseal["kind"] == "unseal" and "fake" in unseal["reason"]
    assert (row["kind"], row["split"], row["run"], row["profile"]) == ("eval", "test", "r1", "smoke")
    assert row["metrics"]["mrr"]["n"] == row["n"] == 4 and row["seed"] == 3
    assert row["outcomes"] == {"ok": 4} and row["tokens"] > 0 and row["seconds"] >= 0


def test_compare_pairs_by_example_id_whatever_the_order(task):
    ledger = ListLedger()
    raw = evaluate(lambda requests: requests, task, WordOverlap())
    task.val = task.val.iloc[::-1]
    better = evaluate(FakeRewriter({"dress": "blue"}), task, WordOverlap())
    gap = 1 - 1 / math.log2(3)
    found = compare(better, raw, ledger=ledger.bind(run="r1"))
    assert found.mean == pytest.approx(gap / 4) and found.n == 4
    assert compare(raw, better).mean == pytest.approx(-gap / 4)
    # shuffling would leave the mean as it is but widen the interval: three differences are exactly 0
    assert found.low >= -1e-12 and found.high <= gap
    (row,) = ledger.kept
    assert row["kind"] == "compare" and (row["a"], row["b"]) == ("fake", raw.name) and row["run"] == "r1"
    assert row["difference"]["mean"] == found.mean


def test_compare_refuses_other_examples_and_other_metrics(task):
    val = evaluate(FakeRewriter({}), task, WordOverlap())
    test = evaluate(FakeRewriter({}), task, WordOverlap(), split="test")
    with pytest.raises(RecR1Error, match=r"same examples.*'tv1'"):
        compare(val, test)
    with pytest.raises(RecR1Error, match="ndcg@3, mrr"):
        compare(val, val, "recall@10")


def test_methods_table_shows_differences_to_each_baseline(task):
    raw = evaluate(lambda requests: requests, task, WordOverlap())
    fake = evaluate(FakeRewriter({"dress": "blue"}), task, WordOverlap())
    ledger = ListLedger()
    table = methods_table([raw, fake], baselines=[raw.name], ledger=ledger)
    assert list(table["method"]) == [raw.name, "fake"] and list(table["n"]) == [4, 4]
    assert list(table[f"vs {raw.name}"]) == ["", show(compare(fake, raw), sign=True)]
    assert len(ledger.kept) == 1
    with pytest.raises(RecR1Error, match="no result named 'zero-shot'"):
        methods_table([raw], baselines=["zero-shot"])
    with pytest.raises(RecR1Error, match="no results"):
        methods_table([])


def test_show_writes_means_and_signed_differences():
    assert show(Interval(0.25, 0.2, 0.3, 9)) == "0.250 [0.200, 0.300]"
    assert show({"mean": 0.25, "low": -0.2, "high": 0.3, "n": 9}, sign=True) == "+0.250 [-0.200, +0.300]"


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda requests: requests[:-1], "3 answers for 4 asked"),
        (lambda requests: [None] * len(requests), "must be text, not NoneType"),
    ],
)
def test_a_broken_callable_is_named(task, broken, message):
    with pytest.raises(RecR1Error, match=message):
        evaluate(broken, task, WordOverlap())


def test_a_rewriter_or_retriever_that_loses_an_answer_is_named(task):
    short = FakeRewriter({})
    short.complete = lambda requests: []
    with pytest.raises(RecR1Error, match="fake on val: 0 answers for 3 asked"):
        evaluate(short, task, WordOverlap())
    with pytest.raises(RecR1Error, match="the retriever gave 0 lists for 4 queries"):
        evaluate(FakeRewriter({}), task, SimpleNamespace(search=lambda queries, k: []))


def test_a_retriever_failure_stops_the_evaluation_and_writes_no_row(task):
    def fail(queries, k):
        raise RetrieverError("the index is gone, at query 'dress'")

    ledger = ListLedger()
    with pytest.raises(RetrieverError, match="dress"):
        evaluate(FakeRewriter({}), task, SimpleNamespace(search=fail), ledger=ledger)
    assert ledger.kept == []


def test_unknown_and_empty_splits_are_refused(task):
    with pytest.raises(RecR1Error, match="no split 'dev'; use one of train, val, test"):
        evaluate(FakeRewriter({}), task, WordOverlap(), split="dev")
    with pytest.raises(RecR1Error, match="train split of the task toy is empty"):
        evaluate(FakeRewriter({}), task, WordOverlap(), split="train")
