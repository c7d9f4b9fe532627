"""The inspector: an honest choice of examples, words and movements told right, a page that stands alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult
from recr1_lite.inspector import Inspection, inspect_rewrites, mark_words
from recr1_lite.metrics import mean_interval

ITEMS = pd.DataFrame(
    [(f"i{n}", f"Garment {n}", f"text of garment {n}") for n in range(30)],
    columns=["item_id", "title", "text"],
)


def result(name, values, query="{request}", outcome="ok", shift=0):
    asked = "request number {} <script>alert(1)</script>"
    rows = [
        {
            "example_id": f"e{n:03d}", "request": asked.format(n),
            "query": query.format(request=asked.format(n)), "completion": "",
            "outcome": outcome, "tokens": 0, "ndcg@100": value, "ranks": {f"i{n % 30}": 12 - shift},
            "top": [f"i{(n + step + shift) % 30}" for step in range(1, 11)],
        }
        for n, value in enumerate(values)
    ]
    frame = pd.DataFrame(rows)
    return EvalResult(name, "val", frame, {"ndcg@100": mean_interval(frame["ndcg@100"])}, 1.0, 0, "toy")


@pytest.fixture
def pair():
    """101 requests whose changes are -0.50, -0.49 ... +0.50, in another order than the ids."""
    values = [0.5 + ((n * 37) % 101 - 50) / 100 for n in range(101)]
    return result("raw", [0.5] * 101), result("GRPO", values, "warm <b>request</b>", shift=2)


def test_examples_stand_at_even_steps_of_the_sorted_change(pair):
    found = inspect_rewrites(*pair, ITEMS, n=5)
    assert [round(example["change"], 2) for example in found.examples] == [-0.5, -0.25, 0, 0.25, 0.5]
    head = found.head
    assert (head["gains"], head["losses"], head["ties"], head["n"]) == (50, 50, 1, 101)
    assert head["changes"] == sorted(head["changes"]) and len(head["changes"]) == 101
    assert "5 of 101 requests, at even steps" in " ".join(re.sub(r"<[^>]+>", "", found.html()).split())


def test_the_choice_does_not_depend_on_row_order(pair):
    before, after = pair
    shuffled = EvalResult(**{**vars(after), "rows": after.rows.sample(frac=1, random_state=1)})
    expected = inspect_rewrites(before, after, ITEMS).to_rows()
    assert inspect_rewrites(before, shuffled, ITEMS).to_rows() == expected


def test_more_examples_than_there_are_shows_each_once():
    found = inspect_rewrites(result("a", [0.1, 0.1, 0.3]), result("b", [0.1, 0.4, 0.2]), ITEMS, n=12)
    assert [example["example_id"] for example in found.examples] == ["e002", "e000", "e001"]


def test_words_are_copied_or_new():
    assert mark_words("A warm Sweater, please", "sweater: WARM wool") == [
        ("sweater", "copied"), (": ", ""), ("WARM", "copied"), (" ", ""), ("wool", "new"),
    ]
    assert mark_words("don't", "don't don") == [("don't", "copied"), (" ", ""), ("don", "new")]


@given(st.text(), st.text())
def test_marked_pieces_join_to_the_query(request, query):
    assert "".join(text for text, _ in mark_words(request, query)) == query


def test_rows_are_plain_json_and_rebuild_the_page(pair):
    found = inspect_rewrites(*pair, ITEMS)
    rows = json.loads(json.dumps(found.to_rows(), allow_nan=False))
    assert Inspection.from_rows(rows).html() == found.html()
    for broken in ([], rows[1:], [*rows, {}]):
        with pytest.raises(RecR1Error, match="not an inspection's rows"):
            Inspection.from_rows(broken)


class Page(HTMLParser):
    """Collects tags and checks that they close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "br", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_everything(pair):
    before, after = pair
    items = ITEMS.assign(title="<img src=x onerror=alert(1)>")
    evil = EvalResult(**{**vars(after), "name": "<iframe>"})
    page = inspect_rewrites(before, evil, items).html()
    parsed = Page(page)
    assert parsed.open == [] and parsed.links == []
    assert {"script", "img", "iframe", "b>"} & set(parsed.tags) == set()
    assert not re.search(r"https?://|@import|url\(", page)
    assert "width=device-width" in page and 'lang="en"' in page


def test_movement_and_ranks_are_told():
    before = result("raw", [0.2])
    after = result("GRPO", [0.6], "soft wool", shift=3)
    text = inspect_rewrites(before, after, ITEMS)._repr_html_()
    # i4 was at place 4 and is now first; the relevant i0 went from 12 to 9, below the five that are drawn
    assert re.search(r'<li value="1">Garment 4 <span class="rr-move rr-up">▲3</span>', text)
    assert re.search(r'<li value="9" class="rr-star rr-far">★ Garment 0 <span class="rr-move rr-up">▲3', text)
    assert "rank&nbsp;12 → rank&nbsp;9" in text
    back = inspect_rewrites(after, before, ITEMS)._repr_html_()
    assert "▼3" in back and "loss -0.40" in back
    far = inspect_rewrites(before, result("GRPO", [0.6], shift=11), ITEMS)._repr_html_()
    assert '<li value="1">Garment 12 <span class="rr-move rr-up">✚' in far


def test_expand_mode_unparsed_and_empty_rewrites_are_shown_as_such():
    before = result("raw", [0.2])
    expanded = inspect_rewrites(before, result("e", [0.2], "{request} wool"), ITEMS)._repr_html_()
    assert "<i>the request and</i> <mark>wool</mark>" in expanded and "tie +0.00" in expanded
    silent = inspect_rewrites(before, result("s", [0.0], " ", outcome="no_answer"), ITEMS)._repr_html_()
    assert "nothing was sent" in silent and "[no answer]" in silent


def test_bad_calls_say_what_to_do(pair):
    before, after = pair
    with pytest.raises(RecR1Error, match="n of at least 1"):
        inspect_rewrites(before, after, ITEMS, n=0)
    other = EvalResult(**{**vars(after), "rows": after.rows.iloc[1:]})
    with pytest.raises(RecR1Error, match="same examples"):
        inspect_rewrites(before, other, ITEMS)
