"""Re-ranking: what an answer says, the candidates that are shown, the task, its reward and the closed loop."""

import shutil
import string
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PROMPT as TINY
from tiny import tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import evaluate_recommender
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy
from recr1_lite.recipes.rerank import (
    PROMPT,
    Reranker,
    RerankScorer,
    named,
    oracle,
    order,
    rerank_task,
    retriever_order,
    with_candidates,
)
from recr1_lite.search.base import CallableRetriever
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.search.metrics import Interval, ndcg
from recr1_lite.tasks import Task
from recr1_lite.tasks.prompts import Rewrite
from recr1_lite.train.grpo import train
from recr1_lite.train.loop import Run
from recr1_lite.train.rewards import reward

ROWS = [
    ("c1", "Wool coat", "Wool coat with a long warm lining and two deep pockets"),
    ("c2", "Coat", "Coats for rain and wind"),
    ("d1", "Silk dress", "A light dress for summer"),
    ("s1", "Wool  sweater\nred", "Wool sweater red and soft"),
]
ITEMS = pd.DataFrame(ROWS, columns=["item_id", "title", "text"])
HITS = {"wool": "c1 s1 c2", "coat": "c2 c1", "dress": "d1", "sail": "", "warm": "c1 c2 s1 d1"}
ENGINE = CallableRetriever(lambda queries, k: [HITS[query.split()[0]].split()[:k] for query in queries])


def examples(*rows, split: str = "") -> pd.DataFrame:
    """(request, relevant item) per row; the id is split, e and the row's number."""
    rows = [(f"{split}e{at}", request, {relevant: 1.0}) for at, (request, relevant) in enumerate(rows)]
    return pd.DataFrame(rows, columns=["example_id", "request", "relevant"])


def base(*splits: pd.DataFrame) -> Task:
    return Task("toy", ITEMS, *splits, TINY, 9, 9, ("ndcg@9",), {"seed": 4})


def toy(**options) -> Task:
    train = examples(("wool thing", "s1"), ("coat please", "d1"), ("dress", "d1"), ("warm one", "c2"))
    val, test = (
        examples((f"wool {name}", "s1"), (f"coat {name}", "d1"), (f"warm {name}", "c2"), split=f"{name}-")
        for name in ("val", "test")
    )
    return rerank_task(base(train, val, test), ENGINE, 3, **options)


ANSWERS = st.one_of(
    st.text(), st.text("ABCDEZabc ,.>\n'1"), st.lists(st.sampled_from(string.ascii_uppercase)).map(", ".join)
)


@settings(deadline=None)
@given(ANSWERS, st.integers(2, 26))
def test_an_order_is_a_permutation_that_begins_with_what_is_named(answer, count):
    places, said = order(answer, count), named(answer, count)
    assert sorted(places) == list(range(count))
    assert places[: len(said)] == said and places[len(said) :] == sorted(places[len(said) :])


def test_orders_by_hand():
    """A letter counts that stands alone, is upper case, and is a candidate's."""
    last_first, second_first = ("C, A", "Best is C.", "D, Z, C"), ("a coat, then B", "(B)", "B B A B", "I say B")
    assert [order(answer, 3) for answer in last_first] == [[2, 0, 1]] * 3
    assert [order(answer, 3) for answer in second_first] == [[1, 0, 2]] * 4
    assert [order(answer, 3) for answer in ("BAC", "Dress", "b, c", "")] == [[0, 1, 2]] * 4


def test_candidates_are_lettered_under_the_request():
    rows = examples(("wool thing", "s1"), ("dress", "d1"), ("sail", "d1"), ("coat please", "c1"))
    frame = with_candidates(rows, ENGINE, ITEMS, count=2, words=3)
    assert frame["example_id"].tolist() == ["e0", "e3"]  # the others have one hit, and none
    assert frame["candidates"].tolist() == [["c1", "s1"], ["c2", "c1"]]
    assert frame["request"].tolist() == [
        "wool thing\nA. Wool coat with a long\nB. Wool sweater red and soft",
        "coat please\nA. Coat Coats for rain\nB. Wool coat with a long",
    ]
    assert rows["request"][0] == "wool thing" and "candidates" not in rows
    titles = with_candidates(examples(("coat", "c1")), ENGINE, ITEMS, words=0)
    assert titles["request"].tolist() == ["coat\nA. Coat\nB. Wool coat"]


def test_shuffled_candidates_are_the_same_ones_in_an_order_that_the_seed_alone_makes():
    rows = examples(*[("warm wool coat", "c2")] * 40)
    plain, mixed, again, other = (with_candidates(rows, ENGINE, ITEMS, 3, shuffle=seed) for seed in (None, 0, 0, 1))
    assert plain["candidates"].equals(plain["retrieved"]) and mixed["retrieved"].equals(plain["retrieved"])
    assert mixed["candidates"].equals(again["candidates"]) and not mixed["candidates"].equals(other["candidates"])
    assert mixed["candidates"].map(sorted).tolist() == plain["candidates"].map(sorted).tolist()
    assert len(set(map(tuple, mixed["candidates"]))) == 6, "all orders of three"
    for row in mixed.itertuples():  # each letter stands before the title of its own candidate
        titles = [ITEMS.set_index("item_id").at[item, "title"].split() for item in row.candidates]
        assert [line.split()[1 : 1 + len(title)] for line, title in zip(row.request.split("\n")[1:], titles)] == titles
    assert retriever_order(mixed, 3) == plain["candidates"].tolist()
    scorer = RerankScorer(mixed, PROMPT, 3)
    letters = ["ABC"[ids.index("c2")] for ids in mixed["candidates"]]
    assert {row.ndcg for row in scorer.score(mixed["example_id"].tolist(), letters)} == {1.0}


def test_excluded_items_are_no_candidates_and_others_move_up():
    rows = examples(("warm one", "c2"), ("wool thing", "c2")).assign(exclude=[["c1", "d1"], []])
    frame = with_candidates(rows, ENGINE, ITEMS, count=2)
    assert frame["candidates"].tolist() == [["c2", "s1"], ["c1", "s1"]]
    scorer = RerankScorer(frame, PROMPT, 3)  # it cuts no ranking again, nor searches deeper
    assert scorer.depth == 3 and paid(scorer, ["A", "B"]) == [1.0, ndcg(["s1", "c2"], {"c2": 1.0}, 3)]
    alone = rows.assign(exclude=[["c1", "s1", "d1"], ["s1", "c1"]])
    empty = with_candidates(alone, ENGINE, ITEMS, count=2)
    assert len(empty) == 0 and "candidates" in empty  # one is left to each, and one is no order


def test_train_keeps_what_can_be_won_and_val_keeps_all():
    task = toy()
    real = with_candidates(examples(("red wool", "s1")), BM25Retriever.build(ITEMS), ITEMS, 2)
    assert real["candidates"].tolist() == [["s1", "c1"]]
    assert task.train["example_id"].tolist() == ["e0", "e3"]
    assert task.val["example_id"].tolist() == ["val-e0", "val-e1", "val-e2"]
    assert (task.name, task.k_train, task.k_eval, task.metrics) == ("toy-rerank", 3, 3, ("ndcg@3", "mrr", "recall@1"))
    assert task.prompt is PROMPT and task.about["seed"] == 4
    assert {split: row["examples"] for split, row in task.about["splits"].items()} == {"train": 2, "val": 3, "test": 3}


def test_the_test_split_stays_sealed(tmp_path):
    ledger, task = Ledger(tmp_path / "ledger.jsonl"), toy()
    assert not any("wool test" in str(getattr(task, key)) for key in dir(task) if key[0] != "_")
    with pytest.raises(AttributeError, match="sealed"):
        oracle(task, "test")
    opened = task.unseal_test("here", ledger)
    assert opened["candidates"].tolist() == [["c1", "s1", "c2"], ["c2", "c1"], ["c1", "c2", "s1"]]
    (mark,) = ledger.rows("unseal")
    assert (mark["task"], mark["reason"], mark["n"]) == ("toy-rerank", "here", 3)


LOST = base(examples(("coat", "d1")), examples(("wool", "s1"), split="v"), examples(("warm", "s1"), split="t"))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda rows: with_candidates(rows, ENGINE, ITEMS, 1), "1 candidates cannot be put in order by letters; take"),
        (lambda rows: with_candidates(rows, ENGINE, ITEMS, 27), "27 candidates cannot be"),
        (lambda rows: with_candidates(rows, ENGINE, ITEMS[:1], 5), "found 'c2', which the catalogue lacks"),
        (lambda rows: toy(prompt=replace(PROMPT, mode="expand")), "expand mode is no order"),
        (lambda rows: rerank_task(LOST, ENGINE), "'toy-rerank', train split is empty"),
        (lambda rows: RerankScorer(rows, PROMPT, 3), "no column 'candidates'"),
        (lambda rows: retriever_order(rows, 3), "no column 'retrieved'"),
        (lambda rows: Reranker(Fake(["A"])).recommend(rows, 3), "no column 'candidates'"),
    ],
)
def test_what_is_no_task_and_no_list_of_candidates_is_said(make, words):
    with pytest.raises(RecR1Error, match=words):
        make(examples(("coat", "c1")))


def paid(scorer: RerankScorer, answers: list[str]) -> list[float]:
    return [reward("ndcg", row) for row in scorer.score(["e0"] * len(answers), answers)]


def test_rewards_by_hand():
    task = toy()  # e0: c1, s1, c2, of which s1 is relevant: B
    scorer = RerankScorer(task.train, task.prompt, 3)
    second, third = ndcg(["x", "s1"], {"s1": 1.0}, 3), ndcg(["x", "y", "s1"], {"s1": 1.0}, 3)
    assert paid(scorer, [" B A", "A, B", "C A", "C", "A", " B."]) == [1.0, second, third, third, second, 1.0]
    rows = scorer.score(["e0", "e3"], ["B", "A"])
    assert [row.raw_ndcg for row in rows] == [second, second]  # the retriever's order: B is second in both
    assert [row.ndcg for row in rows] == [1.0, second] and rows[0].query == "B"
    said = {"": "empty", "  \n": "empty", "the wool sweater": "no_answer", "D": "no_answer", "A": "ok"}
    for row, outcome in zip(scorer.score(["e0"] * 5, list(said)), said.values(), strict=True):
        assert row.outcome == outcome and row.ndcg == row.raw_ndcg > 0  # naming no candidate earns what silence does
        assert (reward("ndcg", row) > 0) == (reward("paper", row) > 0) == (outcome == "ok")


class Fake:
    """A rewriter with given answers, two requests at a time."""

    name, batch_size = "fake", 2

    def __init__(self, answers):
        self.answers, self.asked = list(answers), []

    def complete(self, requests):
        self.asked.append(list(requests))
        said = [self.answers.pop(0) for _ in requests]
        return [Rewrite(PROMPT.read(text).query, text, str(PROMPT.read(text).outcome), 3) for text in said]


def test_a_reranker_is_scored_like_the_others(tmp_path, monkeypatch):
    task, ledger, answers = toy(), Ledger(tmp_path / "ledger.jsonl"), [" B, A", " no idea", " C"]
    fake = Fake(answers)
    result = evaluate_recommender(Reranker(fake), task, "val", ledger)
    assert [len(batch) for batch in fake.asked] == [2, 1] and fake.asked[1][0].startswith("warm val\nA. Wool coat")
    assert result.rows["top"].tolist() == [["s1", "c1", "c2"], ["c2", "c1"], ["s1", "c1", "c2"]]
    assert result.rows["completion"].tolist() == answers
    assert result.rows["ranks"].tolist() == [{"s1": 1}, {"d1": None}, {"c2": 3}]
    assert result.rows["recall@1"].tolist() == [1, 0, 0] and result.outcomes == {"ok": 2, "no_answer": 1}
    (row,) = ledger.rows("eval")
    assert (row["method"], row["tokens"], row["task"], row["outcomes"]["no_answer"]) == ("fake", 9, "toy-rerank", 1)
    rewarded = RerankScorer(task.val, task.prompt, task.k_train).score(task.val["example_id"].tolist(), answers)
    assert result.rows["ndcg@3"].tolist() == [row.ndcg for row in rewarded]
    monkeypatch.setattr(Fake, "complete", lambda *_: [Rewrite("A", "A", "ok", 1)])
    with pytest.raises(RecR1Error, match="fake: 2 answers for 3 asked"):
        Reranker(Fake([])).recommend(task.val, 3)


def test_the_retrievers_order_and_the_ceiling():
    task = toy()
    assert retriever_order(task.val, 2) == [["c1", "s1"], ["c2", "c1"], ["c1", "c2"]]
    plain, best = (evaluate_recommender(one, task) for one in (retriever_order, oracle(task)))
    assert (plain.name, best.name) == ("retriever's order", "oracle")
    assert best.rows["top"].tolist() == [["s1", "c1", "c2"], ["c2", "c1"], ["c2", "c1", "s1"]]
    assert best.rows["ndcg@3"].tolist() == [1.0, 0.0, 1.0]
    on_train = oracle(task, "train")(task.train.drop(columns="relevant"), 1)
    assert on_train == [["s1"], ["c2"]]


@pytest.fixture
def lettered(tiny_folder, tmp_path):
    """The tiny model with three of its words called A, B and C."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    for word, letter in {"w100": "A", "w101": "B", "w102": "C"}.items():
        text = text.replace(f'"{word}"', f'"{letter}"')
    (folder / "tokenizer.json").write_text(text)
    return folder


def test_grpo_learns_the_letter_that_pays(lettered, tmp_path):
    task = toy(prompt=TINY)  # the relevant candidate is B in both training examples
    profile = tiny_profile(lettered, steps=12, prompts_per_step=2, group_size=16, validate_every=12, learning_rate=3e-2)
    scorer = RerankScorer(task.train, task.prompt, task.k_train)
    run = Run(tmp_path / "run", lambda merged: Interval(0.5, 0.0, 1.0, 3), progress=False)
    fixed = dict(lr_scheduler_type="constant", warmup_steps=0)
    done = train(load_policy(profile), task.train, scorer, profile, run, **fixed)
    rewards, silent = ([row[key] for row in done.curve] for key in ("reward", "outcome/no_answer"))
    assert len(rewards) == 12 and len(done.val) == 2 and all(0 <= value <= 1 for value in rewards)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2 and silent[-1] < silent[0] - 0.2
    assert done.curve[0]["raw_ndcg"] == pytest.approx(0.63093, abs=1e-4)  # of the retriever's order: B is second
