"""Product search with long requests: what a reviewer wanted, told by ChatGPT, and the product reviewed.

Amazon-C4 (Hou et al., arXiv 2403.03952): 21,223 requests made of 5-star reviews, over about a million items
of Amazon Reviews 2023, of which each request has one. The data set has one split, "test". Rec-R1 (arXiv
2503.24289) tests on four of its categories and trains on the others, with the last 1,000 of these as val:
splits="paper" does the same. splits="seed" draws all three from one category instead.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from recr1_lite.assets.fetch import AMAZON_C4, named
from recr1_lite.assets.fetch import fetch as fetch_file
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import EXAMPLE_COLUMNS, ITEM_COLUMNS, Task
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import items_of, known_category, need, records, text_of, thin

PROMPT = Prompt(
    style="compact",
    instruction="{request}\n\nWhich product is this about, and what are its features? Answer in five keywords.",
    mode="expand",
)
PAPER = ("Games", "Baby", "Office", "Sports")  # the categories that the paper tests on, as the catalogue names them
ALIASES = {
    "Video_Games": "Games",
    "Baby_Products": "Baby",
    "Office_Products": "Office",
    "Sports_and_Outdoors": "Sports",
}
Table = pd.DataFrame | str | os.PathLike
QUERIES, CATALOGUE = "test.csv", "sampled_item_metadata_1M.jsonl"


def load(
    category: str = "Video_Games",
    items: Table | None = None,
    requests: Table | None = None,
    splits: str = "paper",
    catalogue: str = "all",
    n_val: int = 1000,
    val: float = 0.2,
    test: float = 0.2,
    max_items: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The Amazon-C4 task.

    category: of the test requests (with "seed" of all), as the catalogue names it or as Amazon Reviews does
    ("Video_Games" is "Games" here), or "all" with splits="seed". splits: "paper" (val: the last `n_val` of
    the requests of other categories than PAPER) or "seed" (shares `val` and `test` of the category's
    requests). catalogue: "all", or "category" with splits="seed" for the items of the category alone.
    max_items: a smaller catalogue with every relevant item in it. items: JSON lines of item_id, category,
    metadata (title and description); requests: CSV with qid, query, item_id; both default to the files of
    the Hub (643 MB and 12 MB; never run at this size where the kit was written). revision: of that repo,
    instead of the pinned one. Requests of one text are one, with the items of all. Raises RecR1Error that
    names the file and the row.
    """
    if splits not in ("paper", "seed"):
        raise RecR1Error(f"there is no splits={splits!r}; choose 'paper' or 'seed'")
    if catalogue not in ("all", "category"):
        raise RecR1Error(f"there is no catalogue={catalogue!r}; choose 'all' or 'category'")
    if splits == "paper" and (catalogue == "category" or category == "all"):
        raise RecR1Error("splits='paper' trains on other categories than it tests on; take splits='seed' with this")
    fetched = []
    if items is None:
        fetched.append(fetch_file(AMAZON_C4, CATALOGUE, "items=", revision))
        items = fetched[-1].path
    if requests is None:
        fetched.append(fetch_file(AMAZON_C4, QUERIES, "requests=", revision))
        requests = fetched[-1].path
    rows, items_name = records(items, "items")
    table, empty = items_of(rows, items_name)
    examples, lost, requests_name = _examples(requests, table)
    if category != "all":
        category = known_category(category, set(table["category"]), items_name, ALIASES)
    if splits == "paper":
        drawn = _paper_splits(examples, category, n_val, requests_name)
    else:
        own = examples if category == "all" else examples[examples["category"] == category]
        drawn = _seed_splits(own, val, test, seed, requests_name)
    if catalogue == "category" and category != "all":
        table = table[table["category"] == category].reset_index(drop=True)
    keep = {item for frame in drawn.values() for relevant in frame["relevant"] for item in relevant}
    table, size = thin(table, keep, max_items, seed)
    counted = {"requests whose item is not in the catalogue, left out": lost, "items without text left out": empty}
    return Task(
        name=f"amazon_c4-{category}",
        items=table[list(ITEM_COLUMNS)],
        **{split: frame[list(EXAMPLE_COLUMNS)] for split, frame in drawn.items()},
        prompt=PROMPT,
        k_train=1000,
        k_eval=100,
        metrics=("ndcg@100", "ndcg@10", "recall@10", "mrr"),
        about={
            "source": f"Amazon-C4; {named(fetched) if fetched else 'local files'}",
            "licence": "its page states none; made of Amazon Reviews 2023, for research",
            "splits made": "test: the category; train and val: the categories that the paper does not test on"
            if splits == "paper"
            else f"drawn from the requests of the category with seed {seed}",
            "catalogue": size,
            **{note: count for note, count in counted.items() if count},
        },
    )


def _examples(requests: Table, items: pd.DataFrame) -> tuple[pd.DataFrame, int, str]:
    """EXAMPLE_COLUMNS and `category` (of the first item) where the item is known; how many not; the name."""
    rows, name = records(requests, "requests")
    category_of = dict(zip(items["item_id"], items["category"]))
    found: dict[str, dict] = {}
    lost, first_lost = 0, ""
    for number, row in rows:
        place = f"{name}, row {number}"
        need(list(row), ("qid", "query", "item_id"), place)
        item, query = text_of(row, "item_id", place), text_of(row, "query", place)
        if item not in category_of:
            lost, first_lost = lost + 1, first_lost or item
            continue
        new = {"example_id": f"query-{row['qid']}", "request": query, "relevant": {}, "category": category_of[item]}
        found.setdefault(query, new)["relevant"][item] = 1.0
    if not found:
        raise RecR1Error(
            f"{name} has no request whose item is among the items (first wanted: {first_lost!r}, the "
            "items' ids look "
            f"like {items['item_id'].iloc[0]!r}); give the items that the requests are about"
        )
    return pd.DataFrame(list(found.values())), lost, name


def _paper_splits(examples: pd.DataFrame, category: str, n_val: int, name: str) -> dict[str, pd.DataFrame]:
    test = examples[examples["category"] == category]
    others = examples[~examples["category"].isin({*PAPER, category})]
    if isinstance(n_val, bool) or not isinstance(n_val, int) or not 1 <= n_val < len(others):
        raise RecR1Error(
            f"n_val={n_val!r} of the {len(others)} requests in {name} about other categories than "
            f"{', '.join(PAPER)} "
            "leaves no train or no val split; take fewer, or splits='seed'"
        )
    return {"train": others[:-n_val], "val": others[-n_val:], "test": test}


def _seed_splits(examples: pd.DataFrame, val: float, test: float, seed: int, name: str) -> dict[str, pd.DataFrame]:
    if not all(isinstance(share, (int, float)) and share > 0 for share in (val, test)) or val + test >= 1:
        raise RecR1Error(f"val={val!r} and test={test!r} are no shares of the requests; take such as 0.2 and 0.2")
    n_val, n_test = max(round(val * len(examples)), 1), max(round(test * len(examples)), 1)
    if len(examples) <= n_val + n_test:
        raise RecR1Error(f"{name} has {len(examples)} requests of the category, too few for three splits; take 'all'")
    shuffled = examples.iloc[np.random.RandomState(seed).permutation(len(examples))]
    parts = {"test": shuffled[:n_test], "val": shuffled[n_test : n_test + n_val], "train": shuffled[n_test + n_val :]}
    return {split: parts[split] for split in ("train", "val", "test")}
