"""Catalogues of the Amazon tasks, from their published files to `item_id`, `title`, `text`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.streams import checked_path, json_lines, text_of
from recr1_lite.tasks.tables import read_table

COLUMNS = ["item_id", "title", "text", "category"]
TITLE_WORDS = 25  # of a text whose title is not marked
JSON_LINES = (".jsonl", ".jsonl.gz")
_TAG = re.compile(r"<[^<>]*>")


def plain(text: str) -> str:
    """The text without HTML tags and entities, its white space single."""
    return " ".join(_TAG.sub(" ", html.unescape(text)).split())


def records(source: pd.DataFrame | str | os.PathLike, what: str) -> tuple[Iterable[tuple[int, dict]], str]:
    """The numbered rows of a DataFrame, of JSON lines (one at a time) or of a CSV or Parquet table; its name.

    Raises RecR1Error as `read_table` does, for JSON lines as they are read.
    """
    if isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(JSON_LINES):
        path = checked_path(Path(source), what, JSON_LINES)
        return json_lines(path), path.name
    table, name = read_table(source, what)
    return enumerate(table.to_dict("records"), start=1), name


def items_of(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str) -> tuple[pd.DataFrame, int]:
    """Items (COLUMNS) of rows with item_id (or item), metadata and category, as in BLaIR and Amazon-C4.

    metadata: title and description in one text, the title closed by a full stop; so `title` is its start up
    to the first ". ". Rows may have title and text instead of metadata, and then need no category. An item
    whose text is empty is left out; how many comes second. Raises RecR1Error that names the row: a text
    that is none, an id twice, no row at all.
    """
    kept, lines, line, empty = [], {}, 0, 0
    for line, row in rows:
        place = f"{name}, row {line}"
        own_id = text_of(row, "item" if "item" in row and "item_id" not in row else "item_id", place)
        if (first := lines.setdefault(own_id, line)) != line:
            raise RecR1Error(f"{name}: item_id {own_id!r} stands in rows {first} and {line}; keep one")
        if "metadata" in row or "text" not in row:
            text, category = (text_of(row, key, place, empty=True) for key in ("metadata", "category"))
            title = first_sentence(text)
        else:
            title, text = text_of(row, "title", place, empty=True), text_of(row, "text", place, empty=True)
            category = text_of(row, "category", place, empty=True) if "category" in row else ""
        if title and text:
            kept.append((own_id, title, text, category))
        else:
            empty += 1
    if not kept:
        raise RecR1Error(f"{name} has no item with a text; give it at least one")
    return pd.DataFrame(kept, columns=COLUMNS), empty


def first_sentence(text: str) -> str:
    """The text up to its first ". ", and at most TITLE_WORDS words."""
    return " ".join(text.split(". ")[0].split()[:TITLE_WORDS])


def known_category(category: str, found: Collection[str], name: str, aliases: Mapping[str, str] = {}) -> str:
    """The category as the file writes it. Raises RecR1Error with those that there are."""
    for way in (category, aliases.get(category, category)):
        if way in found:
            return way
    there = sorted(filter(None, found))
    raise RecR1Error(
        f"{name} has no category {category!r}; choose 'all' or one of "
        f"{', '.join(there[:40]) or '(none is named)'}"
    )


def thin(
    items: pd.DataFrame, keep: Collection[str], max_items: int | None, seed: int
) -> tuple[pd.DataFrame, str]:
    """At most `max_items` items: all of `keep`, the rest drawn with `seed`, in their order; and a note on it.

    Scores on a thinned catalogue are higher than on the whole: fewer items compete. Raises RecR1Error where
    `keep` alone is more than `max_items`.
    """
    needed = items["item_id"].isin(set(keep)).to_numpy(copy=True)
    if max_items is None:
        max_items = len(items)
    if isinstance(max_items, bool) or not isinstance(max_items, int) or max_items < max(needed.sum(), 1):
        raise RecR1Error(
            f"max_items={max_items!r} is no number from the {needed.sum()} items on that the examples need; "
            "raise it, or take fewer examples"
        )
    if max_items >= len(items):
        return items, f"whole: {len(items)} items"
    others = np.flatnonzero(~needed)
    drawn = np.random.RandomState(seed).permutation(others)[: max_items - needed.sum()]
    needed[drawn] = True
    note = (
        f"thinned to {max_items} of {len(items)} items, those of the examples kept, the rest drawn "
        f"with seed {seed}"
    )
    return items[needed].reset_index(drop=True), note
