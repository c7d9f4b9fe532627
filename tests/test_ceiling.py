"""What can be had without a language model, on small tasks in which what helps was planted."""

import random

import numpy as np
import pandas as pd
import pytest
from tiny import PROMPT, toy_retriever, toy_task

from recr1_lite.evaluate import ceiling
from recr1_lite.evaluate.ceiling import Lessons, fit
from recr1_lite.evaluate.evaluation import NO_MODEL, compare
from recr1_lite.ledger import Ledger
from recr1_lite.policy.rewriters import RuleRewriter
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.tasks.base import ITEM_COLUMNS, Task

HINTS = {"dress": "ballroom", "coat": "rainy", "boots": "muddy", "hat": "sunny"}  # said instead of the garment


def request(rng: random.Random, kind: str, said: str) -> str:
    noise = rng.sample([f"n{at}" for at in range(30)], 6)
    return " ".join(rng.sample([*noise, said], 7))


def garments(hinted: bool = False, texts=lambda rng, kind: f"{kind} n{rng.randrange(30)} n{rng.randrange(30)}", **more):
    """Four kinds of garment, ten of each; a request names the kind (or hints at it) among words that lead astray."""
    rng, kinds = random.Random(0), list(HINTS)
    items = [(f"{kind}{at}", kind, texts(rng, kind)) for kind in kinds for at in range(10)]
    catalogue, splits = pd.DataFrame(items, columns=ITEM_COLUMNS), []
    for split, n in (("train", 80), ("val", 24), ("test", 24)):
        rows = []
        for at in range(n):
            kind = kinds[at % 4]
            asked = request(rng, kind, HINTS[kind] if hinted else kind)
            exclude = [f"{kind}{at % 10}", f"{kinds[at % 3]}{at % 7}"]
            relevant = {f"{kind}{place}": 1.0 + (place == 9) for place in range(10) if f"{kind}{place}" not in exclude}
            rows.append((f"{split}{at}", asked, relevant, exclude))
        splits.append(pd.DataFrame(rows, columns=["example_id", "request", "relevant", "exclude"]))
    return Task("garments", catalogue, *splits, PROMPT, 10, 10, ("ndcg@10",), **more)


def by_kind(methods, word: str):
    return next(method for method in methods if word in method.rewriter.name)


def test_a_word_that_helps_is_learned_and_is_what_is_sent():
    task = garments()
    raw, *results = ceiling.ceiling(task, BM25Retriever.build(task.items))
    learned = next(result for result in results if "learned" in result.name)
    assert raw.name == "raw request" and all(result.name.startswith(NO_MODEL) for result in results)
    assert compare(learned, raw).low > 0
    rewriter = by_kind(fit(task, BM25Retriever.build(task.items)), "learned").rewriter
    assert "coat" in rewriter.complete(["n1 n2 coat n3"])[0].completion.split()
    assert rewriter.rewrite(["never seen"]) == ["never seen"], "no word of value: the request goes"


def test_a_classifier_names_what_the_request_only_hints_at():
    task = garments(hinted=True)
    raw, *results = ceiling.ceiling(task, BM25Retriever.build(task.items))
    classifier = next(result for result in results if "classifier" in result.name)
    assert compare(classifier, raw).low > 0
    method = by_kind(fit(task, BM25Retriever.build(task.items)), "classifier")
    assert method.rewriter.complete(["n4 sunny n5"])[0].completion == "hat"


def test_a_silent_rule_sends_the_request_in_every_form():
    def rule(asked: str) -> tuple[str, str]:
        return ("hat", "so I think") if "hat" in asked else ("", "")

    task = garments(rule=rule)
    rules = [one.rewriter for one in fit(task, BM25Retriever.build(task.items)) if "rule " in one.rewriter.name]
    assert [rewriter.rewrite(["a hat"])[0] for rewriter in rules] == [
        "hat",
        "a hat" + " hat" * 4,
        "a hat" + " hat" * 20,
    ]
    assert {rewriter.rewrite(["a coat"])[0] for rewriter in rules} == {"a coat"}
    assert RuleRewriter(rule, PROMPT).complete(["a coat"])[0].outcome == "empty"


def test_fitting_reads_train_alone(tmp_path, monkeypatch):
    task, ledger = garments(), Ledger(tmp_path / "l.jsonl")
    monkeypatch.setattr(Task, "_opened", lambda _: pytest.fail("the test split was opened"))
    val, task.val = task.val, None
    methods = fit(task, BM25Retriever.build(task.items))
    task.val = val
    scored = ceiling.score(methods, task, "val", ledger)
    assert not ledger.rows("unseal") and [row["method"] for row in ledger.rows("eval")] == [one.name for one in scored]


def test_the_tuned_engine_is_the_planted_one_and_is_not_told_twice(capsys):
    """An item of the kind repeats its word, another one says it once, beside more of the noise: only a large k1 counts
    repetitions."""

    def texts(rng: random.Random, kind: str) -> str:
        other = rng.choice([other for other in HINTS if other != kind])
        return " ".join([kind] * 20 + [other] + [f"n{rng.randrange(30)}" for _ in range(4)])

    task = garments(texts=texts)
    engine = BM25Retriever.build(task.items)
    (tuned,) = [one for one in fit(task, engine) if "BM25" in one.rewriter.name]
    assert tuned.retriever.index.k1 > 4 * engine.index.k1
    raw, better, *_ = ceiling.ceiling(task, engine)
    assert better.name == tuned.rewriter.name and compare(better, raw).low > 0
    assert better.rows["query"].tolist() == task.val["request"].tolist(), "the request itself, on another engine"
    capsys.readouterr()
    assert not [one for one in fit(task, tuned.retriever) if "BM25" in one.rewriter.name]
    assert "tuned already" in capsys.readouterr().out


def test_words_alone_are_scored_as_evaluation_does_with_what_is_excluded():
    task = garments()
    lessons = Lessons(task, BM25Retriever.build(task.items))
    candidates, rows = ["coat", "n3", "hat", "nowhere"], range(len(lessons.requests))
    slow = np.array([lessons.score([word] * len(rows), rows) for word in candidates]).T
    assert lessons.alone(candidates) == pytest.approx(slow) and slow[:, 0].max() > 0 == slow[:, 3].max()


def test_any_engine_will_do(tmp_path):
    raw, *results = ceiling.ceiling(toy_task(), toy_retriever(), ledger=Ledger(tmp_path / "l.jsonl"))
    (classifier,) = results
    assert "classifier" in classifier.name and classifier.summary["ndcg@10"].mean > raw.summary["ndcg@10"].mean == 0
    few = toy_task().subsample(n_train=5)
    assert fit(few, toy_retriever()) == [], "five requests teach nothing"
