"""The files of ESCI and of Rec-R1's queries, read into queries and items; see `esci` for the task."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.catalogues import COLUMNS, plain
from recr1_lite.tasks.checks import shown
from recr1_lite.tasks.streams import checked_path, need, parquet_rows

SHARDS = {  # of tasksource/esci, branch refs/convert/parquet: train 1.8 GB, test 0.7 GB
    "train": [f"default/train/{number:04}.parquet" for number in range(11)],
    "test": [f"default/test/{number:04}.parquet" for number in range(4)],
}
CATALOGUE = "processed_esci/sampled_item_metadata_esci.jsonl"  # of McAuley-Lab/blair-bench
EXAMPLE_TYPES = {
    "query": str,
    "query_id": int,
    "product_id": str,
    "product_locale": str,
    "esci_label": str,
    "small_version": int,
}
PARTS = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
LABELS = {
    "E": "E",
    "S": "S",
    "C": "C",
    "I": "I",
    "Exact": "E",
    "Substitute": "S",
    "Complement": "C",
    "Irrelevant": "I",
}
LOCALE = "us"
QUERY_COLUMNS = ["example_id", "request", "relevant", "split"]


def judged_queries(
    tables: Iterable[tuple[Path | pd.DataFrame, str, str | None]], gains: Mapping[str, float]
) -> tuple[pd.DataFrame, set[str]]:
    """QUERY_COLUMNS of the judgements, queries in order of appearance, and the ids of all products judged.

    tables: (file or DataFrame, name, split; None: it has a column `split`). gains: label -> gain, 0 where
    absent. Rows of another locale or outside the small version are left alone; queries of one text in one
    split are one, and a product of two labels has its best. Raises RecR1Error that names the row: a label
    that is none of LABELS, an empty query or id, a split that is none, no row of the locale.
    """
    found: dict[tuple[str, str], dict] = {}
    judged: set[str] = set()
    for source, name, own_split in tables:
        types = EXAMPLE_TYPES if own_split else EXAMPLE_TYPES | {"split": str}
        for rows in parquet_rows(source, name, types):
            rows = rows[(rows["product_locale"] == LOCALE) & (rows["small_version"] == 1)]
            splits = [own_split] * len(rows) if own_split else rows["split"]
            wanted = (rows[key] for key in ("query", "query_id", "product_id", "esci_label"))
            for number, query, query_id, product, label, split in zip(rows.index, *wanted, splits):
                place = f"{name}, row {number}"
                if label not in LABELS:
                    raise RecR1Error(
                        f"{place}: esci_label is {shown(label)}; write one of {', '.join(LABELS)}"
                    )
                if split not in ("train", "test"):
                    raise RecR1Error(f"{place}: split is {shown(split)}; write train or test")
                request = _text(query, f"{place}: query")
                judged.add(_text(product, f"{place}: product_id"))
                example = found.setdefault(
                    (split, request), {"example_id": f"query-{query_id}", "relevant": {}}
                )
                if gain := gains.get(LABELS[label], 0.0):
                    example["relevant"][product] = max(gain, example["relevant"].get(product, 0.0))
    if not found:
        raise RecR1Error(
            f"the requests have no row with product_locale {LOCALE!r} and small_version 1; give ESCI's "
            "examples file"
        )
    rows = [(own["example_id"], text, own["relevant"], split) for (split, text), own in found.items()]
    return pd.DataFrame(rows, columns=QUERY_COLUMNS), judged


def paper_queries(paths: Mapping[str, str | os.PathLike]) -> pd.DataFrame:
    """QUERY_COLUMNS of two JSON files, {"train": path, "test": path}: lists of {"query", "item_id": [ids]}.

    A product that a list repeats counts once, with gain 1. Raises RecR1Error that names the file and the
    entry.
    """
    if set(paths) != {"train", "test"}:
        raise RecR1Error(f"requests names the files {', '.join(map(repr, paths))}; name 'train' and 'test'")
    rows = []
    for split, source in paths.items():
        path = checked_path(source, f"requests[{split!r}]", (".json",))
        entries = _json(path)
        if not isinstance(entries, list) or not entries:
            raise RecR1Error(
                f'{path.name} holds no list of queries; write [{{"query": ..., "item_id": [...]}}]'
            )
        seen: dict[str, int] = {}
        for number, entry in enumerate(entries, start=1):
            place = f"{path.name}, entry {number}"
            if not isinstance(entry, dict):
                raise RecR1Error(f'{place} is no JSON object; write {{"query": ..., "item_id": [...]}}')
            need(list(entry), ("query", "item_id"), place)
            request, ids = _text(entry["query"], f"{place}: query"), entry["item_id"]
            if (first := seen.setdefault(request, number)) != number:
                raise RecR1Error(f"{path.name}: query {request!r} is entry {first} and {number}; keep one")
            if not isinstance(ids, list) or not ids:
                raise RecR1Error(f"{place}: item_id is {shown(ids)}; write a list of one id or more")
            relevant = {_text(item, f"{place}: item_id"): 1.0 for item in ids}
            rows.append((f"{split}-{number - 1}", request, relevant, split))
    return pd.DataFrame(rows, columns=QUERY_COLUMNS)


def is_products(items: pd.DataFrame | str | os.PathLike) -> bool:
    """Whether this is a table in the form of ESCI's products file."""
    if isinstance(items, pd.DataFrame):
        return "product_id" in items
    if not str(items).lower().endswith(".parquet"):
        return False
    try:
        return "product_id" in pq.read_schema(checked_path(items, "items", (".parquet",))).names
    except (pa.ArrowException, OSError):
        return False  # read as a table, it says what is wrong with it


def products(
    items: pd.DataFrame | str | os.PathLike, judged: set[str] | None
) -> tuple[pd.DataFrame, str, int]:
    """Items (COLUMNS, category "") of the US products, of those judged alone where these are known.

    text: title, description, bullet points, brand and colour, without HTML. Returns also the file's name and
    how many products without a title were left out. Raises RecR1Error: a product twice, none of the locale.
    """
    if isinstance(items, pd.DataFrame):
        source, name = items, "items"
    else:
        source = checked_path(items, "items", (".parquet",))
        name = source.name
    kept, rows_of, untitled = [], {}, 0
    types = dict.fromkeys(("product_id", *PARTS, "product_locale"), str)
    for rows in parquet_rows(source, name, types):
        rows = rows[rows["product_locale"] == LOCALE]
        for number, product, *parts in zip(rows.index, rows["product_id"], *(rows[part] for part in PARTS)):
            product = _text(product, f"{name}, row {number}: product_id")
            if (first := rows_of.setdefault(product, number)) != number:
                raise RecR1Error(
                    f"{name}: product_id {product!r} stands in rows {first} and {number}; keep one"
                )
            if judged is not None and product not in judged:
                continue
            title, *rest = (plain(part) if isinstance(part, str) else "" for part in parts)
            if title:
                kept.append((product, title, " ".join(filter(None, (title, *rest))), ""))
            else:
                untitled += 1
    if not kept:
        raise RecR1Error(
            f"{name} has no judged product with a title and product_locale {LOCALE!r}; give the one of ESCI"
        )
    return pd.DataFrame(kept, columns=COLUMNS), name, untitled


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecR1Error(f"{place} is {shown(value)}; write text there")
    return value.strip().replace("\t", " ")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise RecR1Error(
            f"{path.name} is not UTF-8 (byte {problem.start}); save it again as UTF-8"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise RecR1Error(
            f"{path.name} is no JSON ({problem}); it may be cut short, so copy it again"
        ) from problem
    except OSError as problem:
        raise RecR1Error(
            f"{path.name} cannot be read ({problem.strerror}); mend its permissions"
        ) from problem
