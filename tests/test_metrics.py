from __future__ import annotations

import ast
import itertools
import json
import math
import random
import warnings

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from recr1_lite.common import RecR1Error
from recr1_lite.search.metrics import (
    Interval,
    compute,
    dcg,
    holm,
    mean_interval,
    ndcg,
    next_run_interval,
    paired_interval,
    parse_name,
    recall,
    reciprocal_rank,
    runs_interval,
)


def test_toy_ranking_by_hand():
    ranking, relevant = ["a", "b", "c", "d"], {"b": 3, "d": 1, "z": 2}
    assert dcg(ranking, relevant, 4) == pytest.approx(3 / math.log2(3) + 1 / math.log2(5))
    assert dcg(ranking, relevant, 4, "exponential") == pytest.approx(7 / math.log2(3) + 1 / math.log2(5))
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg(ranking, relevant, 4) == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert ndcg(ranking, relevant, 1) == 0.0
    assert ndcg(["b"], relevant, 1) == 1.0  # the ideal is cut at k too
    assert recall(ranking, relevant, 2) == pytest.approx(1 / 3)
    assert recall(ranking, relevant, 4) == pytest.approx(2 / 3)
    assert reciprocal_rank(ranking, relevant) == 0.5
    assert reciprocal_rank(ranking, relevant, 1) == 0.0
    for ranking, relevant in ((["a"], {}), (["a"], []), (["a"], {"a": 0.0}), ([], {"a": 1})):
        assert ndcg(ranking, relevant, 5) == recall(ranking, relevant, 5) == reciprocal_rank(ranking, relevant) == 0.0


def test_a_duplicate_counts_once_and_keeps_its_place_unless_legacy():
    assert dcg(["a", "a", "b"], ["a", "b"], 3) == pytest.approx(1 + 1 / math.log2(4))
    assert ndcg(["a", "a"], ["a", "b"], 2) == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert recall(["a", "a"], ["a", "b"], 2) == 0.5
    assert ndcg(["a", "b"], ["a", "a", "b"], 10) == 1.0
    short = (1 + 1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)
    assert ndcg(["a", "b"], ["a", "a", "b"], 10, legacy=True) == pytest.approx(short)


def test_names():
    ranking, relevant = ["x", "a"], {"a": 2.0}
    values = {"ndcg@100": 1 / math.log2(3), "recall@1": 0.0, "mrr": 0.5, "mrr@2": 0.5, "mrr@1": 0.0}
    assert {name: compute(name, ranking, relevant) for name in values} == pytest.approx(values)
    assert parse_name("exact-ndcg@100") == ("ndcg", 100) and parse_name("mrr") == ("mrr", None)
    for name in ("ndcg", "ndcg@0", "recall@", "map@10", "NDCG@10", "ndcg@10 ", "exact-map@10", None):
        with pytest.raises(RecR1Error, match="ndcg@100"):
            compute(name, ["a"], ["a"])


def test_exact_metrics_count_the_most_relevant_alone():
    graded, ranking = {"a": 1.0, "b": 0.1, "c": 0.1}, ["b", "x", "a", "c"]
    values = {"exact-ndcg@100": 0.5, "exact-recall@2": 0.0, "exact-recall@3": 1.0, "exact-mrr": 1 / 3, "mrr": 1.0}
    assert {name: compute(name, ranking, graded) for name in values} == pytest.approx(values)


def test_bad_relevance_and_cutoffs():
    for metric, k in itertools.product([ndcg, recall, dcg], [0, 2.5, "10", None, True]):
        with pytest.raises(RecR1Error, match="cut-off"):
            metric(["a"], ["a"], k)
    for relevant, options, message in (
        *(({"a": gain}, {}, "'a'") for gain in (math.nan, -1, math.inf, "1")),
        ("a", {}, "string"),
        (["a"], {"gain": "quadratic"}, "exponential"),
        ({"a": 1.0}, {"legacy": True}, "list of ids"),
    ):
        with pytest.raises(RecR1Error, match=message):
            ndcg(["a"], relevant, 5, **options)


def random_run(seed: int) -> tuple[list[str], dict[str, int]]:
    """A ranking without ties and whole-number gains, 0 among them, some items relevant but not retrieved."""
    rng = random.Random(seed)
    pool = [f"d{number}" for number in range(40)]
    ranking = rng.sample(pool, rng.randint(1, 30))
    return ranking, {item: rng.randint(0, 4) for item in rng.sample(pool, rng.randint(1, 20))}


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_pytrec_eval_and_ir_measures(seed):
    ranking, relevant = random_run(seed)
    k = random.Random(seed).choice([1, 3, 10, 100])
    run = {"q": {item: float(-rank) for rank, item in enumerate(ranking)}}
    theirs = pytrec_eval.RelevanceEvaluator({"q": relevant}, {f"ndcg_cut.{k}", f"recall.{k}", "recip_rank"})
    found = theirs.evaluate(run)["q"]
    assert ndcg(ranking, relevant, k) == pytest.approx(found[f"ndcg_cut_{k}"], abs=1e-9)
    assert recall(ranking, relevant, k) == pytest.approx(found[f"recall_{k}"], abs=1e-9)
    assert reciprocal_rank(ranking, relevant) == pytest.approx(found["recip_rank"], abs=1e-9)

    exponential = {gain: 2**gain - 1 for gain in range(5)}
    measures = [ir_measures.nDCG(gains=exponential) @ k, ir_measures.RR @ k]
    values = ir_measures.calc_aggregate(measures, {"q": relevant}, run)
    assert ndcg(ranking, relevant, k, "exponential") == pytest.approx(values[measures[0]], abs=1e-9)
    assert reciprocal_rank(ranking, relevant, k) == pytest.approx(values[measures[1]], abs=1e-9)


@settings(deadline=None)
@given(
    ranking=st.lists(st.sampled_from("abcdefgh")),
    relevant=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 10)),
    k=st.integers(1, 12),
    gain=st.sampled_from(["linear", "exponential"]),
)
def test_always_in_the_unit_range_and_1_for_the_ideal(ranking, relevant, k, gain):
    assert 0 <= ndcg(ranking, relevant, k, gain) <= 1 + 1e-12
    assert 0 <= recall(ranking, relevant, k) <= 1
    assert 0 <= reciprocal_rank(ranking, relevant, k) <= 1
    best = sorted(relevant, key=relevant.get, reverse=True)
    if any(2.0**value > 1.0 for value in relevant.values()):
        assert ndcg(best, relevant, k, gain) == pytest.approx(1)


# Means of nDCG in percent as stored, and with each target counted once.
GOLDEN = {
    "esci__ori_query": (12.44, 13.27),
    "esci__query_metric_results-gpt-4o": (26.06, 27.38),
    "esci__query_metric_results-rec-r1": (32.22, 33.51),
} | {
    f"amazon_review__query_metric_results-{model}-{split}": None
    for model in ("Rec-r1", "gpt-4o")
    for split in ("inductive", "transductive")
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_official_numbers_both_ways(shared_data, name):
    rows = list(json.loads((shared_data / "rec_r1" / "golden_metrics" / f"{name}.json").read_text()).values())
    assert len(rows) in (103, 538, 1000)
    stored, once = [], []
    for row in rows:
        ranking = ast.literal_eval(row["retrieved"])
        targets = ast.literal_eval(row["target"]) if row["target"].startswith("[") else [row["target"]]
        for metric, value in row.items():
            if metric.startswith("ndcg@"):
                k = int(metric.removeprefix("ndcg@"))
                assert ndcg(ranking, targets, k, legacy=True) == pytest.approx(value, abs=1e-12)
                clean = compute(metric, ranking, dict.fromkeys(targets, 1.0))
                if len(set(targets)) == len(targets):
                    assert clean == pytest.approx(value, abs=1e-12)
                else:  # a definition of its own: each target once in the ideal
                    ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(set(targets)))))
                    assert clean == pytest.approx(dcg(ranking, set(targets), k) / ideal, abs=1e-12)
                stored.append(value)
                once.append(clean)
            elif metric.startswith("recall@"):
                assert compute(metric, ranking, targets) == pytest.approx(value, abs=1e-12)
    if GOLDEN[name]:
        assert (round(100 * np.mean(stored), 2), round(100 * np.mean(once), 2)) == GOLDEN[name]
    else:
        assert stored == pytest.approx(once, abs=1e-12)


def test_interval_covers_the_mean_and_repeats():
    values = np.random.default_rng(3).random(600)
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low < interval.mean < interval.high and interval.n == 600
    assert mean_interval(values) == interval != mean_interval(values, seed=1)
    normal = 1.96 * values.std(ddof=1) / math.sqrt(600)
    assert interval.high - interval.low == pytest.approx(2 * normal, rel=0.1)
    wider = mean_interval(values, level=0.99)
    assert wider.low < interval.low and wider.high > interval.high


def test_interval_of_constants_of_one_value_and_as_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_interval([0.25] * 40) == Interval(0.25, 0.25, 0.25, 40)
        assert mean_interval([0.5]) == Interval(0.5, 0.5, 0.5, 1)
        assert paired_interval([0.1, 0.9], [0.1, 0.9]) == Interval(0.0, 0.0, 0.0, 2)
    assert str(Interval(0.2514, 0.224, 0.2791, 600)) == "0.251 [0.224, 0.279]"


def test_pairing_is_by_example():
    rng = np.random.default_rng(0)
    b = rng.random(300)
    a = b + 0.01 + rng.normal(0, 0.01, 300)  # a small gain, the same for easy and hard examples
    paired = paired_interval(a, b)
    assert paired.low > 0 and paired.mean == pytest.approx(np.mean(a - b))
    assert mean_interval(a).low < mean_interval(b).high  # unpaired, the two means cannot be told apart
    assert paired_interval(b, a).high < 0


def test_clusters_are_resampled_whole():
    values = np.random.default_rng(5).random(300)
    plain, alone = mean_interval(values), mean_interval(values, clusters=range(300))
    assert alone == pytest.approx(plain, abs=1e-12), "every example is its own cluster"
    k = 4
    copies, labels = np.tile(values, k), [f"g{place}" for place in range(300)] * k  # k requests say what one says
    whole, naive = mean_interval(copies, clusters=labels), mean_interval(copies)
    assert whole[:3] == pytest.approx(plain[:3], abs=1e-12) and whole.n == 300 * k
    assert (whole.high - whole.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(k), rel=0.1)
    assert paired_interval(copies, 0 * copies, clusters=labels) == whole
    assert mean_interval([0.1, 0.9, 0.5], clusters=["g", "g", "h"]).mean == 0.5, "the mean of the examples"
    assert mean_interval([0.1, 0.9], clusters=["g", "g"]) == Interval(0.5, 0.5, 0.5, 2)
    with pytest.raises(RecR1Error, match="1 cluster labels for 2 values"):
        mean_interval([0.1, 0.9], clusters=["g"])


def test_bad_intervals():
    for values in ([], [0.1, math.nan], [math.inf], [[0.1], [0.2]]):
        with pytest.raises(RecR1Error):
            mean_interval(values)
    with pytest.raises(RecR1Error, match="same examples"):
        paired_interval([0.1, 0.2], [0.1])
    with pytest.raises(RecR1Error, match="level"):
        mean_interval([0.1, 0.2], level=95)


def test_holm_by_hand_and_between_bonferroni_and_none():
    def by_p(*values):  # an interval whose two-sided p is this
        return [Interval(z, z - 1.959964, z + 1.959964, 9) for z in map(norm.isf, np.array(values) / 2)]

    # Holm's own rule: 0.01 <= 0.05/4, 0.016 <= 0.05/3, 0.03 > 0.05/2, and nothing after that
    assert holm(by_p(0.03, 0.01, 0.016, 0.04)) == [False, True, True, False]
    assert holm(by_p(0.04)) == [True] and holm(by_p(0.06)) == [False] and holm([]) == []
    assert holm([Interval(0, 0, 0, 9), Interval(0.1, 0.1, 0.1, 9)]) == [False, True]
    random = np.random.default_rng(0)
    for _ in range(200):
        p = random.beta(0.3, 3, size=7)
        shown = np.array(holm(by_p(*p)))
        assert (
            (shown >= (p <= 0.05 / 7)).all()
            and (shown <= (p <= 0.05)).all()
            and max(p[shown], default=0) <= min(p[~shown], default=1)
        )


def test_next_run_interval_by_hand_and_by_simulation():
    found = next_run_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.n == 3
    assert found.high - found.mean == pytest.approx(4.302653 * 1.0 * math.sqrt(4 / 3), rel=1e-5)
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    inside = [low <= row[5] <= high for row in draws for _, low, high, _ in [next_run_interval(row[:5])]]
    assert 0.94 < np.mean(inside) < 0.96
    for wrong in ([], [0.3], [0.1, math.nan]):
        with pytest.raises(RecR1Error, match="two or more"):
            next_run_interval(wrong)


def test_an_interval_over_runs_asks_for_other_runs_too():
    values = np.repeat([[0.1], [0.5]], 40, axis=1) + np.linspace(0, 0.1, 40)
    garments = [f"g{at % 8}" for at in range(40)]
    both, one = (runs_interval(some, garments) for some in (values, values[:1]))
    assert both.mean == pytest.approx(0.35) and both.high - both.low > 0.3 > one.high - one.low > 0
    paired = runs_interval(values, garments, values - 0.2)
    assert paired.low == pytest.approx(paired.high) == pytest.approx(0.2), "as many runs are compared in pairs"
    fixed = runs_interval(values[:1], garments, values.mean(0, keepdims=True))
    apart = runs_interval(values[:1], garments, values)
    assert apart.mean == pytest.approx(fixed.mean) and apart.high - apart.low > fixed.high - fixed.low + 0.3
