from __future__ import annotations

import math

import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.tasks.prompts import Outcome, Prompt, format_answer
from recr1_lite.train import rewards
from recr1_lite.train.rewards import RECIPES, Scored, Scorer, components, reward, reward_functions

ITEMS = pd.DataFrame(
    [("dress", "red summer dress"), ("jeans", "blue denim jeans"), ("coat", "warm winter coat in red")],
    columns=["item_id", "text"],
)
EXAMPLES = pd.DataFrame(
    [
        ("u1", "something red", {"dress": 1.0}),
        ("u2", "something red", {"coat": 1.0}),  # the same words, another wish
        ("u3", "for the cold", {"coat": 2.0, "jeans": 1.0}),
    ],
    columns=["example_id", "request", "relevant"],
)
JSON = Prompt("json", "Find {request}")
END = 9


class Counting:
    """BM25 that keeps the queries it was asked."""

    def __init__(self):
        self.inner, self.asked = BM25Retriever.build(ITEMS), []

    def search(self, queries, k):
        self.asked.append(list(queries))
        return self.inner.search(queries, k)


def scorer(prompt: Prompt = JSON, k: int = 10, **options) -> Scorer:
    return Scorer(Counting(), EXAMPLES, prompt, k, **options)


def answer(query: str) -> str:
    return format_answer(query, "json")


def test_scores_one_by_one():
    rows = scorer().score(["u1", "u2", "u3", "u3"], [answer("dress"), answer("dress"), "no idea", answer("coat jeans")])
    raw = 1 / math.log2(3)  # "red": the shorter dress first, then the coat
    assert rows[0] == Scored(Outcome.ok, "dress", 1.0, 1.0, 1)
    assert rows[1] == Scored(Outcome.ok, "dress", 0.0, pytest.approx(raw), 1)
    assert rows[2] == Scored(Outcome.no_answer, "", 0.0, 0.0, 0)
    both = rows[3]
    hits = BM25Retriever.build(ITEMS).search(["coat jeans"], 10)[0].ids
    found = [{"coat": 2.0, "jeans": 1.0}[item] for item in hits]
    assert both.ndcg == pytest.approx((found[0] + found[1] / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_cutoff_and_gain():
    assert scorer(k=1).score(["u2"], [answer("red")])[0].ndcg == 0.0
    assert scorer(k=2).score(["u2"], [answer("red")])[0].ndcg > 0.0
    linear, exponential = (scorer(gain=g).score(["u3"], [answer("jeans")])[0].ndcg for g in ("linear", "exponential"))
    assert linear == pytest.approx(1 / (2 + 1 / math.log2(3)))
    assert exponential == pytest.approx(1 / (3 + 1 / math.log2(3)))


def test_expand_sends_the_request_too_and_a_failed_parse_sends_it_alone():
    prompt = Prompt("json", "Find {request}", mode="expand")
    good, bad = scorer(prompt).score(["u1", "u1"], [answer("dress"), "no idea"])
    assert good.query == "something red dress" and good.words == 1
    assert bad.query == "something red" and bad.ndcg == bad.raw_ndcg > 0 and bad.outcome == Outcome.no_answer
    assert all(reward(recipe, bad) <= 0 for recipe in RECIPES)  # silence does not earn what the request earned


def test_the_prefix_is_put_back_and_truncation_is_an_outcome_of_its_own():
    prompt = Prompt("json", "Find {request}", prefix='{"query": "')
    rows = scorer(prompt).score(["u1"] * 3, ['dress"}', "dre", 'dress"}'], [False, True, True])
    assert [row.outcome for row in rows] == [Outcome.ok, Outcome.truncated, Outcome.ok]
    assert rows[0].query == "dress"


def test_each_distinct_query_is_searched_once_and_the_request_once_for_all():
    one = scorer()
    one.score(["u1", "u1", "u1"], [answer("dress"), answer("dress"), "no idea"])
    assert one.retriever.asked == [["dress", "something red"]]
    one.score(["u1", "u1"], [answer("coat"), answer("coat")])
    assert one.retriever.asked[1:] == [["coat"]]


def example(outcome=Outcome.ok, ndcg=0.0, raw=0.3, words=5) -> Scored:
    return Scored(outcome, "query", ndcg, raw, words)


GRID = [
    example(outcome, ndcg, words=words if outcome == Outcome.ok else 0)
    for outcome in Outcome
    for ndcg in (0.0, 0.3, 1.0)
    for words in (1, 30, 500)
]
LIMITS = {"paper": (-2.0, 1.1), "ndcg": (0.0, 1.0), "gain_over_raw": (-0.3, 0.7), "length_penalised": (-0.1, 1.0)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_perfect_answer_gets_the_maximum_and_known_bad_ones_the_minimum(recipe):
    lowest, highest = LIMITS[recipe]
    paid = [reward(recipe, row) for row in GRID]
    assert (min(paid), max(paid)) == (pytest.approx(lowest), pytest.approx(highest))
    assert reward(recipe, example(ndcg=1.0)) == pytest.approx(highest)
    for outcome in set(Outcome) - {Outcome.ok}:
        assert reward(recipe, example(outcome, words=0)) == pytest.approx(lowest)
        # even where the request alone, sent in its place, ranks everything first
        assert reward(recipe, example(outcome, ndcg=1.0, words=0)) == pytest.approx(lowest)


@pytest.mark.parametrize("recipe", RECIPES)
def test_limits_hold_from_text_to_reward(recipe):
    perfect, *bad = scorer().score(
        ["u2"] * 5, [answer("coat"), "coat", '{"query": coat}', '{"q": "coat"}', answer(" ")]
    )
    lowest, highest = LIMITS[recipe]
    shift = 0.3 - perfect.raw_ndcg if recipe == "gain_over_raw" else 0.0
    assert reward(recipe, perfect) == pytest.approx(highest + shift)
    assert [reward(recipe, row) for row in bad] == [pytest.approx(lowest + shift)] * 4


def test_the_recipes_in_numbers():
    paid = [reward("paper", row) for row in (example(ndcg=0.4), example(ndcg=0.0), example(Outcome.bad_json))]
    assert paid == [pytest.approx(0.5), 0.0, -2.0]
    cost, free, limit = components("length_penalised")["length"], rewards.FREE_WORDS, rewards.WORD_LIMIT
    costs = [cost(example(words=words)) for words in (free, (free + limit) // 2, limit, 10 * limit)]
    assert costs == pytest.approx([0.0, -rewards.LENGTH_COST / 2, *[-rewards.LENGTH_COST] * 2])


def test_gain_over_raw_moves_every_reward_of_a_group_alike():
    group = [example(ndcg=ndcg) for ndcg in (0.0, 0.2, 0.9)] + [example(Outcome.empty, ndcg=0.3)]
    shifts = {round(reward("ndcg", row) - reward("gain_over_raw", row), 12) for row in group}
    assert shifts == {0.3}


def test_an_unknown_recipe_lists_the_known_ones():
    for call in (lambda: components("best"), lambda: reward_functions("best", scorer())):
        with pytest.raises(RecR1Error, match="paper, ndcg, gain_over_raw, length_penalised"):
            call()


BATCH = {
    "prompts": ["p"] * 4,
    "completions": [answer("dress"), answer("coat winter warm"), '{"query": "co', "no idea"],
    "completion_ids": [[1, END], [1, 2, END], [1, 2, 3], [1, END]],
    "example_id": ["u1", "u1", "u2", "u3"],
    "trainer_state": None,  # and whatever else TRL passes
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_functions_add_up_to_the_recipe(recipe):
    functions = reward_functions(recipe, scorer())
    assert [function.__name__ for function in functions] == list(RECIPES[recipe])
    totals = [sum(parts) for parts in zip(*(function(**BATCH) for function in functions), strict=True)]
    rows = scorer().score(BATCH["example_id"], BATCH["completions"])
    assert totals == pytest.approx([reward(recipe, row) for row in rows])
    cut = [function(**BATCH) for function in reward_functions(recipe, scorer(), {END})]
    assert cut == [function(**BATCH) for function in functions], "being cut changes no reward"


def test_one_search_serves_all_components_of_a_batch():
    one = scorer()
    functions = reward_functions("paper", one)
    for _ in range(2):
        for function in functions:
            function(**BATCH)
    assert len(one.retriever.asked) == 1
    functions[0](**{**BATCH, "completions": [answer("denim")] * 4})
    assert len(one.retriever.asked) == 2


def test_each_batch_is_logged_once():
    metrics, extra = [], []
    functions = reward_functions("paper", scorer(), end_ids={END})
    for function in functions:
        function(**BATCH, log_metric=lambda *pair: metrics.append(pair), log_extra=lambda *pair: extra.append(pair))
    assert len(metrics) == len(dict(metrics))
    logged = dict(metrics)
    assert logged["outcome/ok"] == 0.5 and logged["outcome/truncated"] == logged["outcome/no_answer"] == 0.25
    assert logged["query_words"] == 1.0
    assert logged["gain"] == pytest.approx(logged["ndcg"] - logged["raw_ndcg"])
    assert dict(extra) == {
        "query": ["dress", "coat winter warm", "", ""],
        "outcome": ["ok", "ok", "truncated", "no_answer"],
    }


def test_mistakes_of_the_caller():
    with pytest.raises(RecR1Error, match="'u9'"):
        scorer().score(["u9"], [answer("dress")])
    with pytest.raises(RecR1Error, match="2 example ids, 1 completions"):
        scorer().score(["u1", "u2"], [answer("dress")])
    with pytest.raises(RecR1Error, match="'u1' comes twice"):
        Scorer(Counting(), pd.concat([EXAMPLES, EXAMPLES[:1]]), JSON, 10)
    with pytest.raises(RecR1Error, match="'relevant'"):
        Scorer(Counting(), EXAMPLES.drop(columns="relevant"), JSON, 10)
    with pytest.raises(RecR1Error, match="cut-off"):
        scorer(k=0)
    with pytest.raises(RecR1Error, match="exponential"):
        scorer(gain="cubic")
