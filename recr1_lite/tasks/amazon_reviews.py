"""The files of Amazon Reviews 2023, read into examples and items; see `amazon_reviews` for the task."""

# MERGED: """Sequential recommendation on Amazon Reviews 2023: titles of the last purchases, and the one that came next.
# MERGED:
# MERGED: The splits are those of the data set (Hou et al., arXiv 2403.03952), no item filtered out by its number of
# MERGED: reviews ("0core"). Rec-R1 (arXiv 2503.24289) takes the ones cut by time ("timestamp"), trains on all users,
# MERGED: and tests on users with a train example (transductive) and without one (inductive) apart; k is 5000 in
# MERGED: training and 50 in evaluation. "last_out" leaves each user's last item for test and the one before for val.
# MERGED:
# MERGED: As in the paper: items without metadata go out of the histories and examples without a history are left out;
# MERGED: the catalogue is what such examples hold; the request has the last ten titles, an item's text is title,
# MERGED: features, categories and description. Otherwise: nothing of a history stands in the ranking, and an item
# MERGED: bought again is no target (`sequences`). The paper draws 500 test examples of each setting; n_test draws
# MERGED: some, with a seed.
# MERGED: """

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recr1_lite.assets.fetch import AMAZON_REVIEWS, HubFile, named
from recr1_lite.assets.fetch import fetch as fetch_file
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import ITEM_COLUMNS, LAST_TITLES, Task, history_examples, shown
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import checked_path, csv_rows, need, plain, records, text_of, thin

FILES = {"train": "train", "val": "valid", "test": "test"}  # split -> its name in the data set
HISTORY_COLUMNS = ("user_id", "parent_asin", "history")
CSV_ENDINGS = (".csv", ".csv.gz")
Row = tuple[str, str, list[str], str]  # example_id, user, history, target
Table = pd.DataFrame | str | os.PathLike


def file_of(
    split: str,
    requests: Mapping[str, Table] | str | os.PathLike | None,
    category: str,
    cut: str,
    revision: str | None,
    fetched: list[HubFile],
) -> tuple[Path | pd.DataFrame, str]:
    """The file of a split, or a DataFrame, and its name; one of the Hub is noted in `fetched`.

    Raises RecR1Error: no such file or folder, no such split in a dict, what fetch_file raises.
    """
    name = FILES[split]
    if requests is None:
        file = f"benchmark/0core/{cut}_w_his/{category}.{name}.csv"
        fetched.append(fetch_file(AMAZON_REVIEWS, file, "requests=", revision))
        return fetched[-1].path, fetched[-1].path.name
    if isinstance(requests, Mapping):
        if name not in requests:
            raise RecR1Error(f"requests names no {name!r} file (it has {', '.join(map(str, requests))}); add it")
        source = requests[name]
        if isinstance(source, pd.DataFrame):
            return source, f"requests[{name!r}]"
    else:
        folder = Path(requests).expanduser()
        if not folder.is_dir():
            raise RecR1Error(f"requests: {folder} is no folder; name the folder of {category}.{name}.csv, or a dict")
        ways = [folder / f"{category}.{name}{ending}" for ending in CSV_ENDINGS]
        source = next((way for way in ways if way.exists()), ways[0])
    path = checked_path(source, f"requests[{name!r}]", CSV_ENDINGS)
    return path, path.name


def read_rows(source: Path | pd.DataFrame, name: str, split: str) -> list[Row]:
    """The rows with a history; a user's first purchase has none and is left out.

    Raises RecR1Error that names the line: a cell that is no text, a user or item that is empty, no row left.
    """
    if isinstance(source, pd.DataFrame):
        need(list(source.columns), HISTORY_COLUMNS, name)
        numbered, unit = enumerate(source.to_dict("records"), start=1), "row"
    else:
        numbered, unit = csv_rows(source, HISTORY_COLUMNS), "line"
    rows, number = [], 0
    for number, row in numbered:
        place = f"{name}, {unit} {number}"
        user, target = text_of(row, "user_id", place), text_of(row, "parent_asin", place)
        if history := text_of(row, "history", place, empty=True).split():
            rows.append((f"{split}-{number}", user, history, target))
    if not rows:
        what = "no row with a history" if number else "a header and no rows"
        raise RecR1Error(f"{name} has {what}; give the {FILES[split]} file of a category that has some")
    return rows


def read_items(source: Table, asked: set[str], whole: bool) -> tuple[pd.DataFrame, Counter[str]]:
    """Items of the metadata, all or those that an example holds, and a count of what has no title.

    Raises RecR1Error that names the row: a text that is none, an id twice, none of the ids `asked` for.
    """
    rows, name = records(source, "items")
    kept, seen, notes, some = [], {}, Counter(), ""
    for number, row in rows:
        place = f"{name}, row {number}"
        own_id = some = text_of(row, "parent_asin", place)
        if not whole and own_id not in asked:
            continue
        if (first := seen.setdefault(own_id, number)) != number:
            raise RecR1Error(f"{name}: parent_asin {own_id!r} stands in rows {first} and {number}; keep one")
        title = plain(text_of(row, "title", place, empty=True))
        if not title:
            notes["items without a title, left out"] += 1
            continue
        parts = [_part(row.get(key), f"{place}: {key}") for key in ("features", "categories", "description")]
        kept.append((own_id, title, " ".join(filter(None, (title, *parts)))))
    if asked.isdisjoint(seen) or not kept:
        raise RecR1Error(
            f"{name} has none of the items of the requests (its ids look like {some!r}, theirs like "
            f"{min(asked)!r}); give the metadata of the same category"
        )
    return pd.DataFrame(kept, columns=ITEM_COLUMNS), notes


def _part(value: object, place: str) -> str:
    """A text, or a list of texts, as one text; "" for nothing."""
    if value is None or isinstance(value, str) or shown(value) == "empty":
        return plain(value) if isinstance(value, str) else ""
    if not isinstance(value, (list, tuple, np.ndarray)) or not all(isinstance(part, str) for part in value):
        raise RecR1Error(f"{place} is {shown(value)}; write text or a list of texts there")
    return plain(" ".join(value))


PROMPT = Prompt(
    style="compact",
    instruction="I bought these products, the latest last: {request}\n\nWhat kind of product do I need next? "
    "Answer with keywords.",
    mode="expand",
)
SETTINGS = ("transductive", "inductive", "all")
CUTS = ("timestamp", "last_out")
CATALOGUES = ("examples", "metadata")


def load(
    category: str = "All_Beauty",
    setting: str = "transductive",
    cut: str = "timestamp",
    catalogue: str = "examples",
    items: Table | None = None,
    requests: Mapping[str, Table] | str | os.PathLike | None = None,
    last: int = LAST_TITLES,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
    max_items: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The Amazon Reviews task of a category, such as "All_Beauty", "Baby_Products" or "Video_Games".

    setting: which users val and test have, or "all". last: titles in a request. n_train, n_val, n_test: at
    most so many examples, drawn with `seed`; the catalogue stays that of all, unless max_items thins it to
    what the drawn examples hold and others. catalogue: "examples" for the items that examples hold,
    "metadata" for all of the file. items: the metadata, JSON lines with parent_asin, title and perhaps
    features, description, categories. requests: a folder with <category>.train.csv, .valid.csv and
    .test.csv (or .csv.gz), or {"train", "valid", "test"} -> file, with user_id, parent_asin and history
    (ids with spaces between, oldest first). Both default to the files of the Hub, read line by line (the
    metadata of the largest categories takes 12 GB), with the examples and the texts of their items held in
    memory; they were never fetched where the kit was written. revision: of that repo, instead of the pinned
    one. Raises RecR1Error that names the file and the line.
    """
    choices = {"setting": (setting, SETTINGS), "cut": (cut, CUTS), "catalogue": (catalogue, CATALOGUES)}
    for option, (value, known) in choices.items():
        if value not in known:
            raise RecR1Error(f"there is no {option}={value!r}; choose one of {', '.join(known)}")
    fetched: list[HubFile] = []
    rows = {split: read_rows(*file_of(split, requests, category, cut, revision, fetched), split) for split in FILES}
    if items is None:
        fetched.append(fetch_file(AMAZON_REVIEWS, f"raw/meta_categories/meta_{category}.jsonl", "items=", revision))
        items = fetched[-1].path
    asked = {item for own in rows.values() for row in own for item in (*row[2], row[3])}
    table, notes = read_items(items, asked, whole=catalogue == "metadata")
    rows = _with_metadata(rows, set(table["item_id"]), notes)
    rows = _of_setting(rows, setting)
    titles, splits = dict(zip(table["item_id"], table["title"])), {}
    for split, n in zip(FILES, (n_train, n_val, n_test)):
        found, repeats = history_examples(((row[0], row[2], row[3]) for row in rows[split]), titles, last)
        notes["examples with an item bought again, left out"] += repeats
        splits[split] = _draw(found, n, seed)
    table, size = thin(table, _held(splits), max_items, seed)
    return Task(
        name=f"amazon_reviews-{category}-{setting}",
        items=table,
        **splits,
        prompt=PROMPT,
        k_train=5000,
        k_eval=50,
        metrics=("ndcg@50", "ndcg@10", "recall@50", "recall@10", "mrr"),
        about={
            "source": f"Amazon Reviews 2023, {category}; {named(fetched) if fetched else 'local files'}",
            "licence": "its page states none; for research, cite arXiv 2403.03952",
            "setting": f"{setting}: val and test have users "
            + {"transductive": "with a train example", "inductive": "without a train example"}.get(setting, "of both"),
            "splits made": f"by the data set, {cut}",
            "request": f"titles of the last {last} items that a user bought, the latest last",
            "catalogue": size,
            **{note: count for note, count in notes.items() if count},
        },
    )


def _with_metadata(rows: dict[str, list[Row]], known: set[str], notes: Counter) -> dict[str, list[Row]]:
    """Histories without the items that have no metadata; what is left without a history goes."""
    kept = {}
    for split, own in rows.items():
        kept[split] = []
        for example, user, history, target in own:
            left = [item for item in history if item in known]
            notes["items of histories without metadata, left out"] += len(history) - len(left)
            if left:
                kept[split].append((example, user, left, target))
            else:
                notes["examples without a history then, left out"] += 1
    return kept


def _of_setting(rows: dict[str, list[Row]], setting: str) -> dict[str, list[Row]]:
    """val and test with the users of the setting alone."""
    if setting == "all":
        return rows
    users = {row[1] for row in rows["train"]}
    kept = {"train": rows["train"]}
    for split in ("val", "test"):
        kept[split] = [row for row in rows[split] if (row[1] in users) == (setting == "transductive")]
        if not kept[split]:
            which = "with" if setting == "transductive" else "without"
            raise RecR1Error(
                f"the {FILES[split]} file has no user {which} a train example, so the {setting} {split} "
                "split is "
                "empty; take setting='all' or the other one"
            )
    return kept


def _draw(examples: pd.DataFrame, n: int | None, seed: int) -> pd.DataFrame:
    """At most `n` examples, drawn with `seed`, in their order."""
    if n is None:
        return examples
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise RecR1Error(f"a split of {n!r} examples is none; ask for 1 or more")
    return examples.sample(min(n, len(examples)), random_state=seed).sort_index()


def _held(splits: Mapping[str, pd.DataFrame]) -> set[str]:
    """The items that the examples hold, in their histories or as what is relevant."""
    columns = [frame[column] for frame in splits.values() for column in ("relevant", "exclude")]
    return {item for column in columns for own in column for item in own}
