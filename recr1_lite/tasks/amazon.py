"""Two tasks of Amazon Reviews 2023 (Hou et al., arXiv 2403.03952): long product requests, and what is bought next.

Amazon-C4: 21,223 requests that ChatGPT made of 5-star reviews, over about a million items, of which each request has
one. The data set has one split, "test". Rec-R1 (arXiv 2503.24289) tests on four of its categories and trains on the
others, with the last 1,000 of these as val: splits="paper" does the same.

Amazon Reviews: titles of the last purchases, and the one that came next, in the data set's own splits ("0core": no
item is filtered out by its number of reviews). Rec-R1 takes the ones cut by time ("timestamp"), trains on all users,
and tests on users with a train example (transductive) and without one (inductive) apart. As in the paper: items
without metadata go out of the histories and examples without a history are left out; the catalogue is what such
examples hold; an item's text is title, features, categories and description. Otherwise: nothing of a history stands in
the ranking, and an item bought again is no target.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recr1_lite.assets.fetch import AMAZON_C4, AMAZON_REVIEWS
from recr1_lite.common import RecR1Error
from recr1_lite.tasks import readers
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt, chosen
from recr1_lite.tasks.splits import (
    EXAMPLE_COLUMNS,
    ITEM_COLUMNS,
    LAST_TITLES,
    SPLITS,
    alike,
    apart,
    draw_splits,
    history_examples,
    is_count,
    is_empty,
    shown,
)

C4_QUESTION = "{request}\n\nWhich product is this about, and what are its features? Answer in five keywords."
C4_PROMPT = Prompt("compact", C4_QUESTION, mode="expand")
PAPER = ("Games", "Baby", "Office", "Sports")  # the categories that the paper tests on, as the catalogue names them
ALIASES = dict(zip(("Video_Games", "Baby_Products", "Office_Products", "Sports_and_Outdoors"), PAPER))
LOST = "requests whose item is not in the catalogue, left out"


def load_c4(
    category: str = "Video_Games",
    items: readers.Table | None = None,
    requests: readers.Table | None = None,
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

    category: of the test requests (with "seed" of all), as the catalogue or as Amazon Reviews names it ("Games",
    "Video_Games"), or "all" with splits="seed". splits: "paper" (val: the last `n_val` of the requests of other
    categories than PAPER) or "seed" (shares `val` and `test` of the category's requests). catalogue: "all", or
    "category" with splits="seed" for the items of the category alone. max_items: a smaller catalogue with every
    relevant item in it. items: rows of item_id, category, metadata (title and description); requests: rows of qid,
    query, item_id; both default to the files of the Hub (643 MB and 12 MB; never run at this size where the kit was
    written). revision: of that repo, instead of the pinned one. Requests of one text are one, with the items of all.
    Raises RecR1Error that names the file and the row.
    """
    chosen(("paper", "seed"), splits=splits)
    chosen(("all", "category"), catalogue=catalogue)
    if splits == "paper" and (catalogue == "category" or category == "all"):
        raise RecR1Error("splits='paper' trains on other categories than it tests on; take splits='seed' with this")
    hub, notes = readers.HubFiles(), Counter[str]()
    items = hub.instead_of(items, AMAZON_C4, "sampled_item_metadata_1M.jsonl", "items=", revision)
    table, items_name = readers.read_items(items, notes)
    requests = hub.instead_of(requests, AMAZON_C4, "test.csv", "requests=", revision)
    examples, name = _c4_examples(requests, table, notes)
    if category != "all":
        category = readers.known_category(category, table, items_name, ALIASES)
    if splits == "paper":
        frames = apart(_paper_splits(examples, category, n_val, name), notes)
        made = "test: the category; train and val: the categories that the paper does not test on"
    else:
        examples = examples[(examples["category"] == category) | (category == "all")]
        keyed = examples.set_index(alike(examples["request"]))
        drawn = draw_splits(keyed.index.to_series(), val, test, seed, name)
        frames = {split: keyed.loc[drawn[split]] for split in SPLITS}
        made = f"drawn from the requests of the category with seed {seed}"
    if catalogue == "category" and category != "all":
        table = table[table["category"] == category].reset_index(drop=True)
    table, size = readers.thin(table, frames, max_items, seed)
    about: dict = {
        "source": f"Amazon-C4; {hub}",
        "licence": "its page states none; made of Amazon Reviews 2023, for research",
        "splits made": made,
        "catalogue": size,
    }
    frames = {split: frame[EXAMPLE_COLUMNS] for split, frame in frames.items()}
    return Task(f"amazon_c4-{category}", table[ITEM_COLUMNS], **frames, prompt=C4_PROMPT, about=about | +notes)


def _c4_examples(requests: readers.Table, items: pd.DataFrame, notes: Counter[str]) -> tuple[pd.DataFrame, str]:
    """EXAMPLE_COLUMNS and `category` of the first item, where the item is known, and the file's name."""
    name, rows = readers.read_rows(requests, "requests")
    category_of = dict(zip(items["item_id"], items["category"]))
    examples: dict[str, dict] = {}
    lost: list[str] = []
    for row in rows:
        item, query, qid = row.id("item_id"), row.text("query"), row.id("qid")
        if item not in category_of:
            lost.append(item)
            continue
        new = {"example_id": f"query-{qid}", "request": query, "relevant": {}, "category": category_of[item]}
        examples.setdefault(query, new)["relevant"][item] = 1.0
    if not examples:
        ids = f"first wanted: {lost[0]!r}, the items' ids look like {items['item_id'].iloc[0]!r}"
        raise RecR1Error(f"{name} has no request whose item is among the items ({ids}); give the items they are about")
    notes[LOST] += len(lost)
    return pd.DataFrame(list(examples.values())), name


def _paper_splits(examples: pd.DataFrame, category: str, n_val: int, name: str) -> dict[str, pd.DataFrame]:
    test = examples[examples["category"] == category]
    others = examples[~examples["category"].isin({*PAPER, category})]
    if not is_count(n_val) or n_val >= len(others):
        of = f"n_val={n_val!r} of the {len(others)} requests in {name} about other categories than {', '.join(PAPER)}"
        raise RecR1Error(f"{of} leaves no train or no val split; take fewer, or splits='seed'")
    return {"train": others[:-n_val], "val": others[-n_val:], "test": test}


BOUGHT = "I bought these products, the latest last: {request}"
REVIEWS_PROMPT = Prompt(
    "compact", f"{BOUGHT}\n\nWhat kind of product do I need next? Answer with keywords.", mode="expand"
)
FILES = {"train": "train", "val": "valid", "test": "test"}  # split -> its name in the data set
SETTINGS = {"transductive": "with a train example", "inductive": "without a train example", "all": "of both"}


class Purchase(NamedTuple):
    """What a user bought after a history, oldest first."""

    example_id: str
    user: str
    history: list[str]
    target: str


def load_reviews(
    category: str = "All_Beauty",
    setting: str = "transductive",
    cut: str = "timestamp",
    catalogue: str = "examples",
    items: readers.Table | None = None,
    requests: Mapping[str, readers.Table] | str | os.PathLike | None = None,
    last: int = LAST_TITLES,
    max_items: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The Amazon Reviews task of a category, such as "All_Beauty", "Baby_Products" or "Video_Games".

    setting: which users val and test have, or "all". cut: the data set's "timestamp", or "last_out" (each user's last
    item is for test, the one before for val). last: titles in a request. catalogue: "examples" for the items that
    examples hold, "metadata" for all of the file; max_items: fewer of them, drawn with `seed` beside those of the
    examples. items: the metadata, rows of parent_asin, title and perhaps features, description, categories. requests:
    a folder with <category>.train.csv, .valid.csv and .test.csv (or .csv.gz), or {"train", "valid", "test"} -> file,
    with user_id, parent_asin and history (ids with spaces between, oldest first). Both default to the files of the Hub
    (the metadata of the largest categories takes 12 GB), read line by line; they were never fetched where the kit was
    written. revision: of that repo, instead of the pinned one. Raises RecR1Error that names the file and the line.
    """
    chosen(SETTINGS, setting=setting)
    chosen(("timestamp", "last_out"), cut=cut)
    chosen(("examples", "metadata"), catalogue=catalogue)
    hub, notes = readers.HubFiles(), Counter[str]()
    bought = {}
    for split, name in FILES.items():
        source = None if requests is None else _local_file(requests, category, name)
        file = f"benchmark/0core/{cut}_w_his/{category}.{name}.csv"
        source = hub.instead_of(source, AMAZON_REVIEWS, file, "requests=", revision)
        bought[split] = _purchases(source, split)
    file = f"raw/meta_categories/meta_{category}.jsonl"
    items = hub.instead_of(items, AMAZON_REVIEWS, file, "items=", revision)
    asked = {item for own in bought.values() for one in own for item in (*one.history, one.target)}
    table = _metadata(items, asked, catalogue == "metadata", notes)
    titles, splits = dict(zip(table["item_id"], table["title"])), {}
    bought = {split: _with_metadata(own, titles, notes) for split, own in bought.items()}
    trained = {one.user for one in bought["train"]}
    for split in FILES:
        if split != "train" and setting != "all":
            bought[split] = [one for one in bought[split] if (one.user in trained) == (setting == "transductive")]
            if not bought[split]:
                lacks = f"the {FILES[split]} file has no user {SETTINGS[setting]}"
                raise RecR1Error(f"{lacks}, so the {setting} {split} split is empty; take setting='all'")
        rows = [(one.example_id, one.history, one.target) for one in bought[split]]
        splits[split], repeats = history_examples(rows, titles, last)
        notes["examples with an item bought again, left out"] += repeats
    table, size = readers.thin(table, splits, max_items, seed)
    about: dict = {
        "source": f"Amazon Reviews 2023, {category}; {hub}",
        "licence": "its page states none; for research, cite arXiv 2403.03952",
        "setting": f"{setting}: val and test have users {SETTINGS[setting]}",
        "splits made": f"by the data set, {cut}",
        "request": f"titles of the last {last} items that a user bought, the latest last",
        "catalogue": size,
    }
    name, metrics = f"amazon_reviews-{category}-{setting}", ("ndcg@50", "ndcg@10", "recall@50", "recall@10", "mrr")
    about |= +notes
    return Task(name, table, **splits, prompt=REVIEWS_PROMPT, k_train=5000, k_eval=50, metrics=metrics, about=about)


def _local_file(requests: Mapping[str, readers.Table] | str | os.PathLike, category: str, name: str) -> readers.Table:
    if isinstance(requests, Mapping):
        if name not in requests:
            raise RecR1Error(f"requests names no {name!r} file (it has {', '.join(map(str, requests))}); add it")
        return requests[name]
    folder = Path(requests).expanduser()
    if not folder.is_dir():
        raise RecR1Error(f"requests: {folder} is no folder; name the folder of {category}.{name}.csv, or a dict")
    plain_file, zipped = (folder / f"{category}.{name}{ending}" for ending in (".csv", ".csv.gz"))
    return zipped if zipped.exists() and not plain_file.exists() else plain_file


def _purchases(source: readers.Table, split: str) -> list[Purchase]:
    """The rows with a history; a user's first purchase has none and is left out. Raises RecR1Error."""
    name, rows = readers.read_rows(source, f"requests[{FILES[split]!r}]")
    bought = []
    for row in rows:
        user, target = row.id("user_id"), row.id("parent_asin")
        if not is_empty(row.cell("history")):
            history = row.id("history").split()  # one id alone may have become a number
            bought.append(Purchase(f"{split}-{row.place.rpartition(' ')[2]}", user, history, target))
    if not bought:
        raise RecR1Error(f"{name} has no row with a history; give the {FILES[split]} file of a category that has some")
    return bought


def _metadata(source: readers.Table, asked: set[str], whole: bool, notes: Counter[str]) -> pd.DataFrame:
    """Items of the metadata, all or those that an example holds. Raises RecR1Error that names the row."""
    name, rows = readers.read_rows(source, "items")
    catalogue, item = readers.Catalogue(notes, empty="items without a title, left out"), ""
    for row in rows:
        item = row.id("parent_asin")
        if not whole and item not in asked:
            continue
        parts = [readers.plain(row.text("title", empty=True))]
        parts += [_part(row.get(key), f"{row.place}: {key}") for key in ("features", "categories", "description")]
        catalogue.add(row, "parent_asin", parts[0], " ".join(filter(None, parts)))
    ids = f"its ids look like {item!r}, theirs like {min(asked)!r}"
    lacks = f"{name} has none of the items of the requests ({ids}); give the metadata of the category"
    if asked.isdisjoint(catalogue.rows):
        raise RecR1Error(lacks)
    return catalogue.table(lacks)


def _part(value: object, place: str) -> str:
    """A text, or a list of texts, as one text; "" for nothing."""
    if isinstance(value, str) or is_empty(value):
        return readers.plain(value) if isinstance(value, str) else ""
    if not isinstance(value, (list, tuple, np.ndarray)) or not all(isinstance(part, str) for part in value):
        raise RecR1Error(f"{place} is {shown(value)}; write text or a list of texts there")
    return readers.plain(" ".join(value))


def _with_metadata(bought: list[Purchase], titles: Mapping[str, str], notes: Counter[str]) -> list[Purchase]:
    """Histories without the items that have no metadata; what is left without a history goes."""
    kept = [one._replace(history=[item for item in one.history if item in titles]) for one in bought]
    gone = sum(len(old.history) - len(new.history) for old, new in zip(bought, kept))
    notes["items of histories without metadata, left out"] += gone
    notes["examples without a history then, left out"] += sum(not one.history for one in kept)
    return [one for one in kept if one.history]
