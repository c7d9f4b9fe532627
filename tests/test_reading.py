"""What a policy learned: counted from its own words, never from the query that was composed of them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import EvalResult
from recr1_lite.report.inspector import habits, word_shares
from recr1_lite.search.metrics import mean_interval
from recr1_lite.tasks.prompts import PROMPTS

PROMPT = replace(PROMPTS["compact"], mode="expand", weight=4)
REQUESTS = ["I wear this soft skirt to work", "a warm wool coat", "jeans for my son", "so soft and warm"]


def result(name, completions, outcome="ok"):
    rows = pd.DataFrame(
        [
            {
                "example_id": f"e{n}",
                "request": request,
                "query": f"{request} {text} {text}",
                "completion": text,
                "outcome": outcome,
                "tokens": 3,
                "ndcg@100": 0.5,
                "ranks": {},
                "top": [],
            }
            for n, (request, text) in enumerate(zip(REQUESTS, completions, strict=True))
        ]
    )
    return EvalResult(name, "val", rows, {"ndcg@100": mean_interval(rows["ndcg@100"])}, 1.0, 12, "toy")


BEFORE = result("step 0", ["soft work", "Keywords: warm, warm coat", "my son", "so soft"])
AFTER = result("step 50", [" Skirt\n", "coat", "jeans", "sweater warm"])


def test_shares_count_each_rewrite_once_and_leave_the_label_and_the_request_out():
    frame = word_shares(BEFORE, AFTER, PROMPT, n=100, stopwords=None)
    shares = {row.word: (row.before, row.after) for row in frame.itertuples()}
    assert shares == {
        "jeans": (0, 0.25),
        "skirt": (0, 0.25),
        "sweater": (0, 0.25),
        "my": (0.25, 0),
        "so": (0.25, 0),
        "son": (0.25, 0),
        "work": (0.25, 0),
        "soft": (0.5, 0),
    }
    assert frame.attrs["n"] == 4
    # "warm" and "coat" stayed at 0.25: no change, no row; the largest fall stands last
    assert list(frame["word"])[-1] == "soft"


def test_words_that_the_retriever_drops_are_not_counted():
    before, after = result("a", ["the red", "with", "a coat", "and"]), result("b", ["with a skirt"] * 4)
    assert set(word_shares(before, after, PROMPT)["word"]) == {"red", "coat", "skirt"}


def test_the_largest_changes_are_kept_on_both_sides():
    assert list(word_shares(BEFORE, AFTER, PROMPT, n=2)["word"]) == ["jeans", "soft"]
    swapped = word_shares(AFTER, BEFORE, PROMPT, n=2)
    assert swapped.iloc[0].tolist() == ["soft", 0.0, 0.5]
    assert len(word_shares(AFTER, AFTER, PROMPT)) == 0


def test_habits_are_means_over_the_examples():
    found = habits(BEFORE, PROMPT)
    assert found["words"].mean == 2.25 and found["words"].n == 4
    assert found["copied"].mean == 1.0 and found["new"].mean == 0.0 and "named" not in found
    found = habits(AFTER, PROMPT, vocabulary=["Skirt", "COAT"])
    assert found["copied"].mean == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert found["new"].mean == pytest.approx(1 - found["copied"].mean)
    assert found["named"].mean == 0.5 and found["words"].mean == 1.25
    assert habits(result("same", ["Top", "top.", "top", "a top"]), PROMPT)["distinct"] == 0.5


def test_what_did_not_parse_holds_no_word():
    broken = habits(result("broken", ["", " ", "\n", ""], outcome="empty"), PROMPT, ["coat"])
    assert broken["words"].mean == 0 and broken["named"].mean == 0 and "copied" not in broken
    assert broken["distinct"] == 0.25
    json_prompt = PROMPTS["json"]  # the prefix opens the JSON, so that only read() can parse what follows
    frame = word_shares(
        result("a", ['xy"}'] * 4), result("b", ['red skirt"}', 'skirt"}', "no json", 'xy"}']), json_prompt
    )
    assert {row.word: row.after for row in frame.itertuples()} == {"skirt": 0.5, "red": 0.25, "xy": 0.25}


def test_results_that_do_not_pair_are_refused():
    other = EvalResult(**{**vars(AFTER), "rows": AFTER.rows.iloc[1:]})
    with pytest.raises(RecR1Error, match="same examples"):
        word_shares(BEFORE, other, PROMPT)
    with pytest.raises(RecR1Error, match="n = 1 shows none"):
        word_shares(BEFORE, AFTER, PROMPT, n=1)
