"""What a policy learned: counted from its own words, never from the query that was composed of them."""

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


def result(name, said, outcome="ok"):
    rows = pd.DataFrame({"example_id": ["e0", "e1", "e2", "e3"], "request": REQUESTS, "completion": said})
    rows["query"] = rows["request"] + " " + rows["completion"] + " " + rows["completion"]
    rows["outcome"], rows["tokens"], rows["ndcg@100"] = outcome, 3, 0.5
    return EvalResult(name, "val", rows, {"ndcg@100": mean_interval(rows["ndcg@100"])}, 1.0, 12, "toy")


BEFORE = result("step 0", ["soft work", "Keywords: warm, warm coat", "my son", "so soft"])
AFTER = result("step 50", [" Skirt\n", "coat", "jeans", "sweater warm"])


def test_shares_count_each_rewrite_once_and_leave_the_label_and_the_request_out():
    frame = word_shares(BEFORE, AFTER, PROMPT, n=100, stopwords=None)
    rose, fell = (
        dict.fromkeys(["jeans", "skirt", "sweater"], (0, 0.25)),
        dict.fromkeys(["my", "so", "son", "work"], (0.25, 0)),
    )
    shares = {row.word: (row.before, row.after) for row in frame.itertuples()}
    assert shares == rose | fell | {"soft": (0.5, 0)}, "warm and coat stayed: no row"
    assert [*shares] == [*rose, *fell, "soft"], "by change, then by the alphabet"
    assert frame.attrs["n"] == 4


def test_the_largest_changes_are_kept_on_both_sides_and_stopwords_are_not_counted():
    assert list(word_shares(BEFORE, AFTER, PROMPT, n=2)["word"]) == ["jeans", "soft"]
    assert word_shares(AFTER, BEFORE, PROMPT, n=2).iloc[0].tolist() == ["soft", 0.0, 0.5]
    assert len(word_shares(AFTER, AFTER, PROMPT)) == 0
    before, after = result("a", ["the red", "with", "a coat", "and"]), result("b", ["with a skirt"] * 4)
    assert set(word_shares(before, after, PROMPT)["word"]) == {"red", "coat", "skirt"}


def test_habits_are_means_over_the_examples():
    told = habits(BEFORE, PROMPT)
    assert told["words"].mean == 2.25 and told["words"].n == 4
    assert told["copied"].mean == 1.0 and told["new"].mean == 0.0 and "named" not in told
    told = habits(AFTER, PROMPT, vocabulary=["Skirt", "COAT"])
    assert told["copied"].mean == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert told["new"].mean == pytest.approx(1 - told["copied"].mean)
    assert told["named"].mean == 0.5 and told["words"].mean == 1.25
    assert habits(result("same", ["Top", "top.", "top", "a top"]), PROMPT)["distinct"] == 0.5


def test_what_did_not_parse_holds_no_word():
    broken = habits(result("broken", ["", " ", "\n", ""], outcome="empty"), PROMPT, ["coat"])
    assert broken["words"].mean == 0 and broken["named"].mean == 0 and "copied" not in broken
    assert broken["distinct"] == 0.25
    # the prefix opens the JSON, so that only read() can parse what follows
    before, after = result("a", ['xy"}'] * 4), result("b", ['red skirt"}', 'skirt"}', "no json", 'xy"}'])
    frame = word_shares(before, after, PROMPTS["json"])
    assert {row.word: row.after for row in frame.itertuples()} == {"skirt": 0.5, "red": 0.25, "xy": 0.25}


@pytest.mark.parametrize(("first", "n", "told"), [(1, 12, "same examples"), (0, 1, "n = 1 shows none")])
def test_bad_calls_are_refused(first, n, told):
    with pytest.raises(RecR1Error, match=told):
        word_shares(BEFORE, replace(AFTER, rows=AFTER.rows.iloc[first:]), PROMPT, n=n)
