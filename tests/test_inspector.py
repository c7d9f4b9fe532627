"""The inspector: an honest choice of examples, words and movements told right, a page that stands alone. And what a
policy learned, counted from its own words."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import EvalResult
from recr1_lite.report.inspector import (
    Inspection,
    habits,
    inspect_rewrites,
    inspect_stages,
    mark_words,
    unrepeated,
    word_shares,
)
from recr1_lite.search.metrics import mean_interval
from recr1_lite.tasks.prompts import PROMPTS

ITEMS = pd.DataFrame(
    [(f"i{n}", f"Garment {n}", f"text of garment {n}") for n in range(30)], columns=["item_id", "title", "text"]
)


def result(name, values, query="{}", outcome="ok", shift=0, completion=""):
    rows = []
    for n, value in enumerate(values):
        asked = f"request number {n} <script>alert(1)</script>"
        row = {"example_id": f"e{n:03d}", "request": asked, "query": query.format(asked), "completion": completion}
        row |= {"outcome": outcome, "tokens": 0, "ndcg@100": value, "ranks": {f"i{n % 30}": 12 - shift}}
        rows.append(row | {"top": [f"i{(n + step + shift) % 30}" for step in range(1, 11)]})
    frame = pd.DataFrame(rows)
    return EvalResult(name, "val", frame, {"ndcg@100": mean_interval(frame["ndcg@100"])}, 1.0, 0, "toy")


def cards(*results):
    """What a notebook shows of them, and the same without tags."""
    page = inspect_stages(results, ITEMS, 12)._repr_html_()
    return page, re.sub(r"<[^>]+>", "", page)


@pytest.fixture
def pair():
    """101 requests whose changes are -0.50, -0.49 ... +0.50, in another order than the ids."""
    values = [0.5 + ((n * 37) % 101 - 50) / 100 for n in range(101)]
    return result("raw", [0.5] * 101), result("GRPO", values, "warm <b>request</b>", shift=2)


def test_examples_stand_at_even_steps_of_the_sorted_change(pair):
    shown = inspect_rewrites(*pair, ITEMS, n=5)
    assert [round(example["change"], 2) for example in shown.examples] == [-0.5, -0.25, 0, 0.25, 0.5]
    head = shown.head
    assert (head["gains"], head["losses"], head["ties"], head["n"]) == (50, 50, 1, 101)
    assert head["changes"] == sorted(head["changes"]) and len(head["changes"]) == 101
    assert "5 of 101 requests, at even steps" in " ".join(re.sub(r"<[^>]+>", "", shown.html()).split())
    before, after = pair
    shuffled = replace(after, rows=after.rows.sample(frac=1, random_state=1))
    assert inspect_rewrites(before, shuffled, ITEMS, n=5).to_rows() == shown.to_rows(), "whatever the rows' order"
    few = inspect_rewrites(result("a", [0.1, 0.1, 0.3]), result("b", [0.1, 0.4, 0.2]), ITEMS, n=12)
    assert [example["example_id"] for example in few.examples] == ["e002", "e000", "e001"], "each once"


def test_words_are_copied_or_new():
    copied = [("sweater", "copied"), (": ", ""), ("WARM", "copied"), (" ", ""), ("wool", "new")]
    assert mark_words("A warm Sweater, please", "sweater: WARM wool") == copied
    assert mark_words("don't", "don't don") == [("don't", "copied"), (" ", ""), ("don", "new")]


@given(st.text(), st.text())
def test_marked_pieces_join_to_the_query(request, query):
    assert "".join(text for text, _ in mark_words(request, query)) == query


def test_rows_are_plain_json_and_rebuild_the_page(pair):
    shown = inspect_rewrites(*pair, ITEMS)
    rows = json.loads(json.dumps(shown.to_rows(), allow_nan=False))
    assert Inspection.from_rows(rows).html() == shown.html()
    for broken in ([], rows[1:], [*rows, {}]):
        with pytest.raises(RecR1Error, match="not an inspection's rows"):
            Inspection.from_rows(broken)


def tags(shown):
    """The tags of an inspection's cards, which close in order and have no link."""
    elements = [*ElementTree.fromstring(f"<x>{shown._repr_html_().replace('&nbsp;', ' ')}</x>").iter()]
    assert not any({"href", "src"} & set(element.attrib) for element in elements)
    return [element.tag for element in elements]


def test_the_page_stands_alone_and_escapes_everything(pair):
    before, after = pair
    items = ITEMS.assign(title="<img src=x onerror=alert(1)>")
    shown = inspect_rewrites(before, replace(after, name="<iframe>"), items)
    page = shown.html()
    assert not {"script", "img", "iframe", "b>"} & set(tags(shown)) and "<iframe>" not in page
    assert not re.search(r"https?://|@import|url\(", page)
    assert "width=device-width" in page and 'lang="en"' in page


def test_movement_and_ranks_are_told():
    before = result("raw", [0.2])
    after = result("GRPO", [0.6], "soft wool", shift=3)
    text = cards(before, after)[0]
    # i4 was at place 4 and is now first; the relevant i0 went from 12 to 9, below the five that are drawn
    assert re.search(r'<li value="1">Garment 4 <span class="rr-move rr-up">▲3</span>', text)
    assert re.search(r'<li value="9" class="rr-star rr-far">★ Garment 0 <span class="rr-move rr-up">▲3', text)
    assert "<b>raw</b> · rank&nbsp;12 · nDCG@100 0.20" in text
    assert '<b>GRPO</b> · rank&nbsp;9&nbsp;<span class="rr-move rr-up">▲3</span> · nDCG@100 0.60' in text
    back = cards(after, before)[0]
    assert "▼3" in back and "loss -0.40" in back
    far = cards(before, result("GRPO", [0.6], shift=11))[0]
    assert '<li value="1">Garment 12 <span class="rr-move rr-up">✚' in far


def test_expand_mode_unparsed_and_empty_rewrites_are_shown_as_such():
    before = result("raw", [0.2])
    weighed = result("e", [0.2], "{} wool skirt wool skirt", completion=" wool skirt\n")
    expanded = cards(before, weighed)[0]
    sent = '<i>the request, then</i> <mark>wool</mark> <mark>skirt</mark> <span class="rr-move">×2</span></p>'
    assert sent in expanded and "tie +0.00" in expanded
    assert "<mark>wool</mark> <mark>skirt</mark></p>" in cards(before, result("e", [0.2], "{} wool skirt"))[0]
    silent = cards(before, result("s", [0.0], " ", outcome="no_answer"))[0]
    assert "nothing was sent" in silent and "[no answer]" in silent


def test_what_was_repeated_is_told_from_a_rewrite_that_repeats_itself():
    assert unrepeated("skirt skirt skirt skirt", "Keywords: skirt skirt") == ("skirt skirt", 2)
    assert unrepeated("a b a c", "a b a c") == ("a b a c", 1)
    assert unrepeated("wool wool", "") == ("wool", 2) and unrepeated(" ", "x") == ("", 1)


@given(st.lists(st.sampled_from("ab"), min_size=1), st.integers(1, 4))
def test_unrepeating_undoes_the_weight(words, weight):
    text = " ".join(words)
    assert unrepeated(" ".join([text] * weight), f" {text}\n") == (text, weight)


def test_stages_show_each_move_since_the_last():
    stages = [result("step 0", [0.1]), result("step 25", [0.3], "wool", shift=3), result("step 50", [0.2], shift=1)]
    page, text = cards(*stages)
    for expected in (
        "gain +0.10 nDCG@100 0.10 → 0.30 → 0.20",
        "step 0 · rank&nbsp;12 · nDCG@100 0.10",
        "step 25 · rank&nbsp;9&nbsp;▲3 · nDCG@100 0.30",
        "step 50 · rank&nbsp;11&nbsp;▼2 · ",
        "from step 0 to step 50; mean nDCG@100 0.100 → 0.300 → 0.200",
    ):
        assert expected in text, expected
    assert page.count("<li value=") == 3 * 4
    # Garment 4: place 4, then 1, then 3; three hits a stage, and the relevant item below them
    assert text.count("Garment 4 ▲3") == 1 and text.count("Garment 4 ▼2") == 1


def test_several_relevant_items_have_their_ranks_by_their_titles():
    before, after = result("raw", [0.2]), result("GRPO", [0.6], "wool", shift=3)
    for one, ranks in ((before, {"i0": 12, "i20": None}), (after, {"i0": 9, "i20": 40})):
        one.rows.at[0, "ranks"] = ranks
    text = cards(before, after)[1]
    assert "★ Garment 0: rank&nbsp;12 → rank&nbsp;9&nbsp;▲3" in text
    assert "★ Garment 20: not found → rank&nbsp;40&nbsp;✚" in text and "GRPO · nDCG@100 0.60" in text


@pytest.mark.parametrize(("some", "n", "told"), [(slice(2), 0, "n of at least 1"), (slice(1), 6, "two results")])
def test_bad_calls_say_what_to_do(pair, some, n, told):
    with pytest.raises(RecR1Error, match=told):
        inspect_stages(pair[some], ITEMS, n)
    with pytest.raises(RecR1Error, match="same examples"):
        inspect_rewrites(pair[0], replace(pair[1], rows=pair[1].rows.iloc[1:]), ITEMS)
    with pytest.raises(RecR1Error, match="same examples"):
        word_shares(BEFORE, replace(AFTER, rows=AFTER.rows.iloc[1:]), PROMPT)
    with pytest.raises(RecR1Error, match="n = 1 shows none"):
        word_shares(BEFORE, AFTER, PROMPT, n=1)


PROMPT = replace(PROMPTS["compact"], mode="expand", weight=4)
REQUESTS = ["I wear this soft skirt to work", "a warm wool coat", "jeans for my son", "so soft and warm"]


def said(name, completions, outcome="ok"):
    rows = pd.DataFrame({"example_id": ["e0", "e1", "e2", "e3"], "request": REQUESTS, "completion": completions})
    rows["query"] = rows["request"] + " " + rows["completion"] + " " + rows["completion"]
    rows["outcome"], rows["tokens"], rows["ndcg@100"] = outcome, 3, 0.5
    return EvalResult(name, "val", rows, {"ndcg@100": mean_interval(rows["ndcg@100"])}, 1.0, 12, "toy")


BEFORE = said("step 0", ["soft work", "Keywords: warm, warm coat", "my son", "so soft"])
AFTER = said("step 50", [" Skirt\n", "coat", "jeans", "sweater warm"])


def test_shares_count_each_rewrite_once_and_leave_the_label_and_the_request_out():
    frame = word_shares(BEFORE, AFTER, PROMPT, n=100, stopwords=None)
    rose = dict.fromkeys(["jeans", "skirt", "sweater"], (0, 0.25))
    fell = dict.fromkeys(["my", "so", "son", "work"], (0.25, 0))
    shares = {row.word: (row.before, row.after) for row in frame.itertuples()}
    assert shares == rose | fell | {"soft": (0.5, 0)}, "warm and coat stayed: no row"
    assert [*shares] == [*rose, *fell, "soft"], "by change, then by the alphabet"
    assert frame.attrs["n"] == 4


def test_the_largest_changes_are_kept_on_both_sides_and_stopwords_are_not_counted():
    assert list(word_shares(BEFORE, AFTER, PROMPT, n=2)["word"]) == ["jeans", "soft"]
    assert word_shares(AFTER, BEFORE, PROMPT, n=2).iloc[0].tolist() == ["soft", 0.0, 0.5]
    assert len(word_shares(AFTER, AFTER, PROMPT)) == 0
    before, after = said("a", ["the red", "with", "a coat", "and"]), said("b", ["with a skirt"] * 4)
    assert set(word_shares(before, after, PROMPT)["word"]) == {"red", "coat", "skirt"}


def test_habits_are_means_over_the_examples():
    told = habits(BEFORE, PROMPT)
    assert told["words"].mean == 2.25 and told["words"].n == 4
    assert told["copied"].mean == 1.0 and told["new"].mean == 0.0 and "named" not in told
    told = habits(AFTER, PROMPT, vocabulary=["Skirt", "COAT"])
    assert told["copied"].mean == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert told["new"].mean == pytest.approx(1 - told["copied"].mean)
    assert told["named"].mean == 0.5 and told["words"].mean == 1.25
    assert habits(said("same", ["Top", "top.", "top", "a top"]), PROMPT)["distinct"] == 0.5


def test_what_did_not_parse_holds_no_word():
    broken = habits(said("broken", ["", " ", "\n", ""], outcome="empty"), PROMPT, ["coat"])
    assert broken["words"].mean == 0 and broken["named"].mean == 0 and "copied" not in broken
    assert broken["distinct"] == 0.25
    # the prefix opens the JSON, so that only read() can parse what follows
    before, after = said("a", ['xy"}'] * 4), said("b", ['red skirt"}', 'skirt"}', "no json", 'xy"}'])
    frame = word_shares(before, after, PROMPTS["json"])
    assert {row.word: row.after for row in frame.itertuples()} == {"skirt": 0.5, "red": 0.25, "xy": 0.25}
