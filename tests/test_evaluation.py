"""evaluate and compare on a catalogue of five items whose rankings can be worked out by hand."""

import base64
import json
import math
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import evaluation
from recr1_lite.evaluate.evaluation import EvalResult, compare, evaluate, methods_table, show
from recr1_lite.ledger import MOST, Ledger
from recr1_lite.search.base import Hits, RetrieverError
from recr1_lite.search.metrics import Interval, mean_interval, paired_interval
from recr1_lite.tasks.prompts import Rewrite

TEXTS = {"d1": "red dress soft", "d2": "blue dress", "p1": "black trousers work", "s1": "wool sweater warm"}
TEXTS |= {"j1": "denim jacket"}
VAL = [
    ("v1", "a warm thing of wool please", {"s1": 1.0}),
    ("v2", "dress", {"d2": 1.0}),
    ("v3", "nothing that is here", {"j1": 1.0}),
    ("v4", "black trousers", {"p1": 2.0, "d1": 1.0}),
]


class WordOverlap:
    """Ranks by the number of shared words, ties in the catalogue's order; keeps its calls."""

    def __init__(self):
        self.calls = []

    def search(self, queries, k):
        self.calls.append(k)
        return [self.hits(set(query.lower().split()), k) for query in queries]

    def hits(self, words, k):
        scores = {item: len(words & set(text.split())) for item, text in TEXTS.items()}
        ranked = sorted((item for item in TEXTS if scores[item]), key=lambda item: -scores[item])[:k]
        return Hits(ranked, [float(scores[item]) for item in ranked])


class FakeRewriter:
    name, batch_size = "fake", 3

    def __init__(self, **answers):
        self.answers, self.seen = answers, []

    def complete(self, requests):
        self.seen.append(list(requests))
        queries = [self.answers.get(request.split()[0], request) for request in requests]
        return [Rewrite(q, f"<{q}>", "ok" if q else "empty", len(q.split())) for q in queries]


class FakeTask:
    name, k_eval, metrics = "toy", 3, ("ndcg@3", "mrr")

    def __init__(self):
        self.val = pd.DataFrame(VAL, columns=["example_id", "request", "relevant"])
        self.train = self.val.iloc[:0]

    def unseal_test(self, reason, ledger):
        if ledger is not None:
            ledger.append({"kind": "unseal", "task": self.name, "reason": reason})
        return self.val.assign(example_id="t" + self.val["example_id"])


@pytest.fixture
def task():
    return FakeTask()


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl").bind(profile="smoke", run="r1")


@pytest.fixture
def raw(task):
    return evaluate(lambda requests: requests, task, WordOverlap())


def test_values_ranks_and_summary_are_those_worked_out_by_hand(raw):
    rows = raw.rows.set_index("example_id")
    assert list(rows.index) == ["v1", "v2", "v3", "v4"]
    assert rows["ranks"].tolist() == [{"s1": 1}, {"d2": 2}, {"j1": None}, {"p1": 1}]  # of the most relevant
    by_hand = [1, 1 / math.log2(3), 0, 2 / (2 + 1 / math.log2(3))]
    assert rows["ndcg@3"].tolist() == pytest.approx(by_hand) and rows["mrr"].tolist() == [1, 0.5, 0, 1]
    assert rows.loc["v2", "top"] == ["d1", "d2"]
    assert raw.summary["mrr"].mean == pytest.approx((1 + 0.5 + 0 + 1) / 4) and raw.summary["mrr"].n == 4
    assert raw.metric == "ndcg@3" and list(raw.table().columns) == ["metric", "mean", "low", "high", "n"]


def test_a_rewriter_gets_sorted_batches_and_its_answers_come_back_in_order(task):
    rewriter, retriever = FakeRewriter(dress="blue", nothing=""), WordOverlap()
    task.metrics = ("ndcg@3", "recall@50")
    result = evaluate(rewriter, task, retriever, progress=False)
    assert [len(batch) for batch in rewriter.seen] == [3, 1]
    lengths = [len(request) for batch in rewriter.seen for request in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert result.rows["query"].tolist() == [VAL[0][1], "blue", "", VAL[3][1]]
    assert result.rows["completion"][1] == "<blue>" and result.rows["ndcg@3"][1] == 1
    assert result.outcomes == {"ok": 3, "empty": 1} and result.tokens == 6 + 1 + 0 + 2
    assert retriever.calls == [50], "one batched search, as deep as the deepest metric"


def test_the_ledger_gets_an_eval_row_and_the_unsealing_comes_first(task, ledger):
    result = evaluate(FakeRewriter(), task, WordOverlap(), "test", ledger.bind(command="python x"), seed=3)
    unseal, row = ledger.rows()
    assert row["command"] == "python x" and row["device"] and {"commit", "versions", "time"} <= set(row)
    assert unseal["kind"] == "unseal" and "fake" in unseal["reason"]
    names = ("kind", "task", "method", "split", "run", "profile", "retriever", "seed", "k", "n")
    said = ["eval", "toy", "fake", "test", "r1", "smoke", "WordOverlap", 3, 3, 4]
    assert [row[name] for name in names] == said
    assert row["metrics"] == {metric: interval._asdict() for metric, interval in result.summary.items()}
    assert row["outcomes"] == {"ok": 4} and row["tokens"] > 0 and row["seconds"] >= 0


def test_the_seconds_are_those_of_rewriting_and_searching_alone(task, ledger, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(function, seconds):
        return lambda *given: clock.__setitem__(0, clock[0] + seconds) or function(*given)

    monkeypatch.setattr(task, "unseal_test", slow(task.unseal_test, 100.0))
    monkeypatch.setattr(evaluation, "mean_interval", lambda values, **_: slow(mean_interval, 100.0)(values))
    engine = SimpleNamespace(search=slow(WordOverlap().search, 2.0))
    assert evaluate(slow(lambda requests: requests, 3.0), task, engine, "test", ledger).seconds == 5.0
    assert clock[0] > 200 and ledger.rows("eval")[0]["seconds"] == 5.0


def test_the_values_of_each_example_come_back_from_the_ledger_and_its_cluster_stays_together(task, ledger, raw):
    clusters = ["g1", "g2", "g1", "g2"]
    task.val["cluster"] = clusters
    better = evaluate(FakeRewriter(dress="blue"), task, WordOverlap(), ledger=ledger)
    columns = [[*better.rows["ndcg@3"]], [*raw.rows["ndcg@3"]]]
    expected = paired_interval(*columns, clusters=clusters)
    assert compare(better, raw) == expected != paired_interval(*columns)
    assert better.summary["mrr"] == mean_interval(better.rows["mrr"], clusters=clusters)
    back = EvalResult.from_row(ledger.rows("eval")[0])
    assert list(back.rows.columns) == ["example_id", "cluster", "ndcg@3", "mrr"] and back.summary == better.summary
    for column in back.rows:
        assert back.rows[column].tolist() == pytest.approx(better.rows[column].tolist(), abs=1e-6)
    assert compare(back, raw) == pytest.approx(expected, abs=1e-6)


def test_400_examples_take_less_than_10_kilobytes_and_too_many_are_left_out(monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"example_id": [f"clothing-test-{n:05}" for n in rng.permutation(9999)[:400]], "tokens": 1})
    names = ["ndcg@100", "ndcg@10", "recall@100", "mrr"]
    for name in names:
        frame[name] = 1 / np.log2(1 + np.where(rng.random(400) < 0.6, rng.integers(1, 101, 400), np.inf))
    result = EvalResult("x", "test", frame.assign(outcome="ok"), {name: mean_interval(frame[name]) for name in names})
    row = result.ledger_row()
    assert len(row["values"]) < 10_000 and len(EvalResult.from_row(row).rows) == 400
    monkeypatch.setattr("recr1_lite.ledger.MOST", 9000)
    assert result.ledger_row()["values"] == ""


def packed(text, cut=None):
    return base64.b64encode(zlib.compress(text.encode())[:cut]).decode()


GOOD = {"example_id": ["v1", "v2", "v3", "v4"], "mrr": [0, 0, 1, 1]}
BAD = {"no base64": "(", "no text": 5, "not packed": base64.b64encode(b"[]").decode(), "no JSON": packed("{")}
BAD |= {"cut off": packed(json.dumps(GOOD), -5), "no columns": packed("[[1]]"), "nested": packed("[" * 100_000)}
BAD |= {"a bomb": packed(" " * 10**8), "a number": packed(f'{{"mrr": [{"9" * 5000}]}}')}
CHANGED: dict = {"no ids": {"example_id": []}, "an id twice": {"example_id": ["v1", "v1", "v3", "v4"]}}
CHANGED |= {"null": {"mrr": None}, "another mean": {"mrr": [0, 1, 1, 1]}, "no number": {"mrr": [0, "x", 1, 1]}}
CHANGED |= {"not finite": {"mrr": [0, math.nan, 1, 1]}, "huge": {"mrr": [0, 10**400, 1, 1]}}
CHANGED |= {"fewer": {"example_id": ["v1", "v2"], "mrr": [0, 1]}, "lists": {"mrr": [[0], [0], [1], [1]]}}
BAD |= {name: packed(json.dumps(GOOD | change)) for name, change in CHANGED.items()}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_damaged_values_are_told_in_one_sentence_and_take_little_memory(values):
    row = {"method": "fake", "split": "val", "n": 4, "metrics": {"mrr": Interval(0.5, 0, 1, 4)._asdict()}}
    assert EvalResult.from_row(row | {"values": packed(json.dumps(GOOD))}).rows["mrr"].tolist() == [0, 0, 1, 1]
    tracemalloc.start()
    with pytest.raises(RecR1Error, match="values of fake on val are damaged, or not .*; evaluate again$"):
        EvalResult.from_row(row | {"values": values})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * MOST


def test_compare_pairs_by_example_id_whatever_the_order(task, ledger, raw):
    task.val = task.val.iloc[::-1]
    better = evaluate(FakeRewriter(dress="blue"), task, WordOverlap())
    gap, difference = 1 - 1 / math.log2(3), compare(better, raw, ledger=ledger)
    assert difference.mean == pytest.approx(gap / 4) == -compare(raw, better).mean and difference.n == 4
    # shuffling would leave the mean as it is but widen the interval: three differences are exactly 0
    assert difference.low >= -1e-12 and difference.high <= gap
    (row,) = ledger.rows("compare")
    assert (row["a"], row["b"], row["run"]) == ("fake", raw.name, "r1") and row["difference"] == difference._asdict()


def test_compare_refuses_other_examples_and_other_metrics(task, raw):
    with pytest.raises(RecR1Error, match=r"same examples.*'tv1'"):
        compare(raw, evaluate(FakeRewriter(), task, WordOverlap(), split="test"))
    with pytest.raises(RecR1Error, match="ndcg@3, mrr"):
        compare(raw, raw, "recall@10")


def test_methods_table_shows_differences_to_each_baseline(task, ledger, raw):
    fake = evaluate(FakeRewriter(dress="blue"), task, WordOverlap())
    table = methods_table([raw, fake], [raw.name], ledger=ledger)
    assert list(table["method"]) == [raw.name, "fake"] and list(table["n"]) == [4, 4]
    assert list(table[f"vs {raw.name}"]) == ["", show(compare(fake, raw), sign=True)]
    assert show(Interval(0.25, 0.2, 0.3, 9)) == "0.250 [0.200, 0.300]"
    assert show({"mean": 0.25, "low": -0.2, "high": 0.3, "n": 9}, sign=True) == "+0.250 [-0.200, +0.300]"
    assert len(ledger.rows("compare")) == 1
    with pytest.raises(RecR1Error, match="no result named 'zero-shot'"):
        methods_table([raw], ["zero-shot"])
    with pytest.raises(RecR1Error, match="no results"):
        methods_table([])


def fail(*_):
    raise RetrieverError("the index is gone, at query 'dress'")


@pytest.mark.parametrize(
    "rewriter, search, split, words",
    [
        (lambda requests: requests[:-1], None, "val", "3 answers for 4 asked"),
        (lambda requests: [None] * len(requests), None, "val", "must be text, not NoneType"),
        (SimpleNamespace(name="fake", complete=lambda _: []), None, "val", "fake on val: 0 answers for 4 asked"),
        (FakeRewriter(), fail, "val", "dress"),
        (FakeRewriter(), None, "dev", "no split 'dev'; use one of train, val, test"),
        (FakeRewriter(), None, "train", "train split of the task toy is empty"),
    ],
)
def test_what_goes_wrong_is_named_and_leaves_no_row(task, ledger, rewriter, search, split, words):
    with pytest.raises(RecR1Error, match=words):
        evaluate(rewriter, task, SimpleNamespace(search=search or WordOverlap().search), split, ledger)
    assert ledger.rows() == []
