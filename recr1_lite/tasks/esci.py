"""The files of ESCI and of Rec-R1's queries, read into queries and items; see `esci` for the task."""

# MERGED: """Product search on ESCI: what somebody typed into Amazon's search box, and the products judged for it.
# MERGED:
# MERGED: Shopping Queries (Reddy et al., arXiv 2206.06588), small version, US. Rec-R1 (arXiv 2503.24289) takes it as
# MERGED: BLaIR prepared it, and so does this task by default: the items are those of Amazon Reviews 2023, text is
# MERGED: title and description, and an Exact product is relevant. ESCI itself has no categories: a query has that of
# MERGED: its first relevant product in the catalogue. The category chooses the test queries alone; train and val are
# MERGED: of all.
# MERGED:
# MERGED: As in the paper: the catalogue file, the text of its items, Exact, queries of one text being one, the first
# MERGED: 100 of the train queries as val, the test queries of one category, k. Otherwise: a product counts once for a
# MERGED: query (the paper's lists repeat some, and its ideal DCG counts each); the train queries are ESCI's own train
# MERGED: split as far as its products are in the catalogue, while the paper's 4,610 come from a file that was not
# MERGED: published with how it was made. Give the paper's own query files as `requests` for exactly its queries.
# MERGED: """

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.assets.fetch import BLAIR, ESCI, HubFile, named
from recr1_lite.assets.fetch import fetch as fetch_file
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import EXAMPLE_COLUMNS, ITEM_COLUMNS, Task, shown
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import (
    COLUMNS,
    checked_path,
    items_of,
    known_category,
    need,
    parquet_rows,
    plain,
    records,
    thin,
)

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
LABELS = {"E": "E", "S": "S", "C": "C", "I": "I", "Exact": "E", "Substitute": "S", "Complement": "C", "Irrelevant": "I"}
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
                    raise RecR1Error(f"{place}: esci_label is {shown(label)}; write one of {', '.join(LABELS)}")
                if split not in ("train", "test"):
                    raise RecR1Error(f"{place}: split is {shown(split)}; write train or test")
                request = _text(query, f"{place}: query")
                judged.add(_text(product, f"{place}: product_id"))
                example = found.setdefault((split, request), {"example_id": f"query-{query_id}", "relevant": {}})
                if gain := gains.get(LABELS[label], 0.0):
                    example["relevant"][product] = max(gain, example["relevant"].get(product, 0.0))
    if not found:
        raise RecR1Error(
            f"the requests have no row with product_locale {LOCALE!r} and small_version 1; give ESCI's examples file"
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
            raise RecR1Error(f'{path.name} holds no list of queries; write [{{"query": ..., "item_id": [...]}}]')
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


def products(items: pd.DataFrame | str | os.PathLike, judged: set[str] | None) -> tuple[pd.DataFrame, str, int]:
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
                raise RecR1Error(f"{name}: product_id {product!r} stands in rows {first} and {number}; keep one")
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
        raise RecR1Error(f"{path.name} is not UTF-8 (byte {problem.start}); save it again as UTF-8") from problem
    except (ValueError, RecursionError) as problem:
        raise RecR1Error(f"{path.name} is no JSON ({problem}); it may be cut short, so copy it again") from problem
    except OSError as problem:
        raise RecR1Error(f"{path.name} cannot be read ({problem.strerror}); mend its permissions") from problem


PROMPT = Prompt(
    style="compact",
    instruction="A shopper searches for: {request}\n\nWhat product is it? Answer with words of its product page.",
    mode="expand",
)
CATEGORIES = ("Video_Games", "Baby_Products", "Office_Products", "Sports_and_Outdoors")  # the paper's four
GAINS = {  # KDD Cup 2022: Exact, Substitute, Complement; Irrelevant has none
    "exact": {"E": 1.0},
    "graded": {"E": 1.0, "S": 0.1, "C": 0.01},
}
Table = pd.DataFrame | str | os.PathLike


def load(
    category: str = "Video_Games",
    items: Table | None = None,
    requests: Table | Mapping[str, Table] | None = None,
    gains: str = "exact",
    n_val: int = 100,
    max_items: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The ESCI task.

    category: one of CATEGORIES or another of the catalogue, or "all". gains: "exact" counts Exact products
    alone, "graded" also Substitute and Complement (GAINS). max_items: a smaller catalogue with every relevant
    product in it. revision: of tasksource/esci, instead of the pinned one.

    items: instead of the Hub's catalogue JSON lines of item_id, category, metadata; or ESCI's products file
    (`shopping_queries_dataset_products.parquet`: of these the ones judged, with no category, so take "all");
    or any table of item_id, title, text. requests: instead of the Hub's ESCI its examples file
    (`shopping_queries_dataset_examples.parquet`); or {"train": path, "test": path} of JSON files in the
    paper's form, a list of {"query", "item_id": [ids]}, taken as they are (the test file is of a category).

    From the Hub: 2.5 GB of ESCI and the catalogue; this size was never run where the kit was written. Raises
    RecR1Error that names the file and the row.
    """
    if gains not in GAINS:
        raise RecR1Error(f"there is no gains={gains!r}; choose one of {', '.join(GAINS)}")
    fetched: list[HubFile] = []
    if isinstance(requests, Mapping):
        if gains != "exact":
            raise RecR1Error("the query files hold Exact products alone; take gains='exact', or ESCI's examples file")
        queries, judged = paper_queries(requests), None
    else:
        queries, judged = judged_queries(_examples(requests, revision, fetched), GAINS[gains])
    catalogue, items_name, empty = _catalogue(items, judged, fetched)
    notes: Counter[str] = Counter({"items without text left out": empty})
    if not isinstance(requests, Mapping):
        queries = _reachable(queries, catalogue, notes)
        if category != "all":
            queries = _of_category(queries, catalogue, category, items_name)
    splits = _splits(queries, n_val, notes)
    keep = {item for frame in splits.values() for relevant in frame["relevant"] for item in relevant}
    catalogue, size = thin(catalogue, keep, max_items, seed)
    return Task(
        name=f"esci-{category}",
        items=catalogue[list(ITEM_COLUMNS)],
        **splits,
        prompt=PROMPT,
        k_train=1000,
        k_eval=100,
        metrics=("ndcg@100", "ndcg@10", "recall@10", "mrr"),
        about={
            "source": "Shopping Queries (ESCI), small version, US; " + (named(fetched) if fetched else "local files"),
            "licence": "Apache-2.0 (ESCI); the items of Amazon Reviews 2023: see its page, for research",
            "gains": ", ".join(f"{label} {gain:g}" for label, gain in GAINS[gains].items()),
            "catalogue": size,
            **{note: count for note, count in notes.items() if count},
        },
    )


def _examples(
    requests: Table | None, revision: str | None, fetched: list[HubFile]
) -> Iterable[tuple[Path | pd.DataFrame, str, str | None]]:
    """(file, its name, its split) of each table of judgements; without a split the table has a column."""
    if isinstance(requests, pd.DataFrame):
        return [(requests, "requests", None)]
    if requests is not None:
        path = checked_path(requests, "requests", (".parquet",))
        return [(path, path.name, None)]
    tables = []
    for split, name in ((split, name) for split, shards in SHARDS.items() for name in shards):
        fetched.append(fetch_file(ESCI, name, "requests=", revision))
        tables.append((fetched[-1].path, name, split))
    return tables


def _catalogue(items: Table | None, judged: set[str] | None, fetched: list[HubFile]):
    """The items with their categories ("" where there is none), the file's name, how many had no text."""
    if items is None:
        fetched.append(fetch_file(BLAIR, CATALOGUE, "items="))
        items = fetched[-1].path
    if is_products(items):
        return products(items, judged)
    rows, name = records(items, "items")
    catalogue, empty = items_of(rows, name)
    return catalogue, name, empty


def _reachable(queries: pd.DataFrame, catalogue: pd.DataFrame, notes: Counter) -> pd.DataFrame:
    """Only products of the catalogue are relevant, as in BLaIR; queries with none go, and are counted."""
    known = set(catalogue["item_id"])
    found = [{item: gain for item, gain in own.items() if item in known} for own in queries["relevant"]]
    if not any(found):
        first = next((item for own in queries["relevant"] for item in own), None)
        raise RecR1Error(
            f"no relevant product of the requests is among the items (first wanted: {first!r}, their ids "
            f"look like {catalogue['item_id'].iloc[0]!r}); give the items that the requests are about"
        )
    notes["relevant products not in the catalogue, left out"] = sum(
        len(own) - len(left) for own, left in zip(queries["relevant"], found)
    )
    notes["queries without a relevant product there, left out"] = sum(not own for own in found)
    return queries.assign(relevant=found)[[bool(own) for own in found]]


def _of_category(queries: pd.DataFrame, catalogue: pd.DataFrame, category: str, name: str) -> pd.DataFrame:
    """The queries without the test queries of other categories; theirs is that of their best product."""
    found = set(catalogue["category"])
    if found == {""}:
        raise RecR1Error(
            f"{name} has no categories (ESCI has none; the paper's come from Amazon Reviews 2023); take "
            "category='all', or give items a column 'category'"
        )
    category = known_category(category, found, name)
    category_of = dict(zip(catalogue["item_id"], catalogue["category"]))
    best = (max(relevant, key=relevant.get) for relevant in queries["relevant"])  # the first, of equal ones
    own = [category_of[product] == category for product in best]
    return queries[(queries["split"] != "test") | pd.Series(own, index=queries.index)]


def _splits(queries: pd.DataFrame, n_val: int, notes: Counter) -> dict[str, pd.DataFrame]:
    """train, val (the first n_val train queries) and test; a query of test is in no other split."""
    test = queries[queries["split"] == "test"]
    train = queries[queries["split"] == "train"]
    if test.empty:
        raise RecR1Error("the requests have no test query (of the category); give all examples of ESCI")
    again = train["request"].isin(set(test["request"]))
    notes["train queries that are also test queries, left out"] = int(again.sum())
    train = train[~again]
    if isinstance(n_val, bool) or not isinstance(n_val, int) or not 1 <= n_val < len(train):
        raise RecR1Error(
            f"n_val={n_val!r} of {len(train)} train queries leaves no train or no val split; take a whole "
            f"number from 1 to {max(len(train) - 1, 1)}, or give more train queries"
        )
    split = {"train": train[n_val:], "val": train[:n_val], "test": test}
    return {name: frame[list(EXAMPLE_COLUMNS)] for name, frame in split.items()}
