"""Product search on ESCI: what somebody typed into Amazon's search box, and the products judged for it.

Shopping Queries (Reddy et al., arXiv 2206.06588), small version, US. Rec-R1 (arXiv 2503.24289) takes it as
BLaIR prepared it, and so does this task by default: the items are those of Amazon Reviews 2023, text is
title and description, and an Exact product is relevant. ESCI itself has no categories: a query has that of
its first relevant product in the catalogue. The category chooses the test queries alone; train and val are
of all.

As in the paper: the catalogue file, the text of its items, Exact, queries of one text being one, the first
100 of the train queries as val, the test queries of one category, k. Otherwise: a product counts once for a
query (the paper's lists repeat some, and its ideal DCG counts each); the train queries are ESCI's own train
split as far as its products are in the catalogue, while the paper's 4,610 come from a file that was not
published with how it was made. Give the paper's own query files as `requests` for exactly its queries.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from recr1_lite import hub
from recr1_lite.errors import RecR1Error
from recr1_lite.prompts import Prompt
from recr1_lite.tasks import esci_files as files
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.catalogues import items_of, known_category, records, thin
from recr1_lite.tasks.checks import EXAMPLE_COLUMNS, ITEM_COLUMNS

PROMPT = Prompt(
    style="compact",
    instruction="A shopper searches for: {request}\n\nWhat product is it? Answer with words of its "
    "product page.",
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
    fetched: list[hub.HubFile] = []
    if isinstance(requests, Mapping):
        if gains != "exact":
            raise RecR1Error(
                "the query files hold Exact products alone; take gains='exact', or ESCI's examples file"
            )
        queries, judged = files.paper_queries(requests), None
    else:
        queries, judged = files.judged_queries(_examples(requests, revision, fetched), GAINS[gains])
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
            "source": "Shopping Queries (ESCI), small version, US; "
            + (hub.named(fetched) if fetched else "local files"),
            "licence": "Apache-2.0 (ESCI); the items of Amazon Reviews 2023: see its page, for research",
            "gains": ", ".join(f"{label} {gain:g}" for label, gain in GAINS[gains].items()),
            "catalogue": size,
            **{note: count for note, count in notes.items() if count},
        },
    )


def _examples(
    requests: Table | None, revision: str | None, fetched: list[hub.HubFile]
) -> Iterable[tuple[Path | pd.DataFrame, str, str | None]]:
    """(file, its name, its split) of each table of judgements; without a split the table has a column."""
    if isinstance(requests, pd.DataFrame):
        return [(requests, "requests", None)]
    if requests is not None:
        path = files.checked_path(requests, "requests", (".parquet",))
        return [(path, path.name, None)]
    tables = []
    for split, name in ((split, name) for split, shards in files.SHARDS.items() for name in shards):
        fetched.append(hub.fetch(hub.ESCI, name, "requests=", revision))
        tables.append((fetched[-1].path, name, split))
    return tables


def _catalogue(items: Table | None, judged: set[str] | None, fetched: list[hub.HubFile]):
    """The items with their categories ("" where there is none), the file's name, how many had no text."""
    if items is None:
        fetched.append(hub.fetch(hub.BLAIR, files.CATALOGUE, "items="))
        items = fetched[-1].path
    if files.is_products(items):
        return files.products(items, judged)
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
