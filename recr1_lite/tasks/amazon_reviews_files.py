"""The files of Amazon Reviews 2023, read into examples and items; see `amazon_reviews` for the task."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recr1_lite import hub
from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.catalogues import plain, records
from recr1_lite.tasks.checks import ITEM_COLUMNS, shown
from recr1_lite.tasks.streams import checked_path, csv_rows, need, text_of

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
    fetched: list[hub.HubFile],
) -> tuple[Path | pd.DataFrame, str]:
    """The file of a split, or a DataFrame, and its name; one of the Hub is noted in `fetched`.

    Raises RecR1Error: no such file or folder, no such split in a dict, what hub.fetch raises.
    """
    name = FILES[split]
    if requests is None:
        file = f"benchmark/0core/{cut}_w_his/{category}.{name}.csv"
        fetched.append(hub.fetch(hub.AMAZON_REVIEWS, file, "requests=", revision))
        return fetched[-1].path, fetched[-1].path.name
    if isinstance(requests, Mapping):
        if name not in requests:
            raise RecR1Error(
                f"requests names no {name!r} file (it has {', '.join(map(str, requests))}); add it"
            )
        source = requests[name]
        if isinstance(source, pd.DataFrame):
            return source, f"requests[{name!r}]"
    else:
        folder = Path(requests).expanduser()
        if not folder.is_dir():
            raise RecR1Error(
                f"requests: {folder} is no folder; name the folder of {category}.{name}.csv, or a dict"
            )
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
    return pd.DataFrame(kept, columns=list(ITEM_COLUMNS)), notes


def _part(value: object, place: str) -> str:
    """A text, or a list of texts, as one text; "" for nothing."""
    if value is None or isinstance(value, str) or shown(value) == "empty":
        return plain(value) if isinstance(value, str) else ""
    if not isinstance(value, (list, tuple, np.ndarray)) or not all(isinstance(part, str) for part in value):
        raise RecR1Error(f"{place} is {shown(value)}; write text or a list of texts there")
    return plain(" ".join(value))
