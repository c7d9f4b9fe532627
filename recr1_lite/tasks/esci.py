"""Product search on ESCI: what somebody typed into Amazon's search box, and the products judged for it.

Shopping Queries (Reddy et al., arXiv 2206.06588), small version, US. Rec-R1 (arXiv 2503.24289) takes it as BLaIR
prepared it, and so does this task by default: the items are those of Amazon Reviews 2023, text is title and
description, and an Exact product is relevant. ESCI itself has no categories: a query has that of its first relevant
product in the catalogue. The category chooses the test queries alone; train and val are of all.

As in the paper: the catalogue file, the text of its items, Exact, queries of one text being one, the first 100 of the
train queries as val, the test queries of one category, k. Otherwise: a product counts once for a query (the paper's
lists repeat some, and its ideal DCG counts each); the train queries are ESCI's own train split as far as its products
are in the catalogue, while the paper's 4,610 come from a file that was not published with how it was made. Give the
paper's own query files as `requests` for exactly its queries.
"""

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from recr1_lite.assets.fetch import BLAIR, ESCI
from recr1_lite.common import RecR1Error
from recr1_lite.tasks import readers
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt, chosen
from recr1_lite.tasks.splits import EXAMPLE_COLUMNS, ITEM_COLUMNS, alike, apart, is_count, shown

QUESTION = "A shopper searches for: {request}\n\nWhat product is it? Answer with words of its product page."
PROMPT = Prompt("compact", QUESTION, mode="expand")
SHARDS = {  # of tasksource/esci, branch refs/convert/parquet: train 1.8 GB, test 0.7 GB
    "train": [f"default/train/{number:04}.parquet" for number in range(11)],
    "test": [f"default/test/{number:04}.parquet" for number in range(4)],
}
CATALOGUE = "processed_esci/sampled_item_metadata_esci.jsonl"  # of McAuley-Lab/blair-bench
COLUMNS = ("query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "split")
LOCALE = "us"
LABELS = {"E": "E", "S": "S", "C": "C", "I": "I", "Exact": "E", "Substitute": "S", "Complement": "C", "Irrelevant": "I"}
PARTS = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
GAINS = {  # KDD Cup 2022: Exact, Substitute, Complement; Irrelevant has none
    "exact": {"E": 1.0},
    "graded": {"E": 1.0, "S": 0.1, "C": 0.01},
}


def load(
    category: str = "Video_Games",
    items: readers.Table | None = None,
    requests: readers.Table | Mapping[str, readers.Table] | None = None,
    gains: str = "exact",
    n_val: int = 100,
    max_items: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The ESCI task.

    category: "Video_Games", "Baby_Products", "Office_Products", "Sports_and_Outdoors" (the paper's) or another of the
    catalogue, or "all". gains: "exact" counts Exact products alone, "graded" also Substitute and Complement (GAINS).
    max_items: a smaller catalogue with every relevant product in it. revision: of tasksource/esci, instead of the
    pinned one.

    items: instead of the Hub's catalogue rows of item_id, category, metadata; or ESCI's products file
    (`shopping_queries_dataset_products.parquet`: of these the ones judged, with no category, so take "all"); or any
    table of item_id, title, text. requests: instead of the Hub's ESCI its examples file
    (`shopping_queries_dataset_examples.parquet`); or {"train": path, "test": path} of JSON files in the paper's form,
    a list of {"query", "item_id": [ids]}, taken as they are (the test file is of a category).

    From the Hub: 2.5 GB of ESCI and the catalogue; this size was never run where the kit was written. Raises
    RecR1Error that names the file and the row.
    """
    chosen(GAINS, gains=gains)
    hub, notes = readers.HubFiles(), Counter({readers.WITHOUT_TEXT: 0})
    judged: set[str] | None = None
    if isinstance(requests, Mapping):
        if gains != "exact":
            raise RecR1Error("the query files hold Exact products alone; take gains='exact', or ESCI's examples file")
        queries = _paper_queries(requests)
    else:
        tables: list[tuple] = [(requests, "")]
        if requests is None:
            shards = ((split, name) for split, names in SHARDS.items() for name in names)
            tables = [(hub.instead_of(None, ESCI, name, "requests=", revision), split) for split, name in shards]
        queries, judged = _judged_queries(tables, GAINS[gains])
    items = hub.instead_of(items, BLAIR, CATALOGUE, "items=")
    if "product_id" in next(readers.read_rows(items, "items")[1]):  # ESCI's products file
        catalogue, name = _products(items, judged, notes)
    else:
        catalogue, name = readers.read_items(items, notes)
    if judged is not None:
        queries = _reachable(queries, catalogue, notes)
        if category != "all":
            queries = _of_category(queries, catalogue, category, name)
    splits = _splits(queries, n_val, notes)
    catalogue, size = readers.thin(catalogue, splits, max_items, seed)
    about = {
        "source": f"Shopping Queries (ESCI), small version, US; {hub}",
        "licence": "Apache-2.0 (ESCI); the items of Amazon Reviews 2023: see its page, for research",
        "gains": ", ".join(f"{label} {gain:g}" for label, gain in GAINS[gains].items()),
        "catalogue": size,
    }
    return Task(f"esci-{category}", catalogue[ITEM_COLUMNS], **splits, prompt=PROMPT, about=about | +notes)


def _judged_queries(tables: list[tuple], gains: Mapping[str, float]) -> tuple[pd.DataFrame, set[str]]:
    """EXAMPLE_COLUMNS and `split` of the judgements, queries in order of appearance; the ids of all products judged.

    tables: pairs of a table and its split, "" where a column has it. Rows of another locale or out of the small version
    are left alone; queries of one text in one split are one, and a product of two labels has its best.
    """
    examples: dict[tuple[str, str], dict] = {}
    judged: set[str] = set()
    for source, split_of_all in tables:
        for row in readers.read_rows(source, "requests", COLUMNS)[1]:
            if row.cell("product_locale") != LOCALE or row.id("small_version") != "1":
                continue
            label, split = row.cell("esci_label"), split_of_all or row.cell("split")
            if label not in LABELS:
                raise RecR1Error(f"{row.place}: esci_label is {shown(label)}; write one of {', '.join(LABELS)}")
            if split not in SHARDS:
                raise RecR1Error(f"{row.place}: split is {shown(split)}; write train or test")
            request, product = row.text("query").replace("\t", " "), row.id("product_id")
            judged.add(product)
            example_id = f"query-{row.id('query_id')}"
            new: dict = {"example_id": example_id, "request": request, "relevant": {}, "split": split}
            relevant = examples.setdefault((split, request), new)["relevant"]
            if gain := gains.get(LABELS[label], 0.0):
                relevant[product] = max(gain, relevant.get(product, 0.0))
    if not examples:
        raise RecR1Error("the requests have no row with product_locale 'us' and small_version 1; give ESCI's examples")
    return pd.DataFrame(list(examples.values())), judged


def _paper_queries(paths: Mapping[str, readers.Table]) -> pd.DataFrame:
    """EXAMPLE_COLUMNS and `split` of two JSON files. A product that a list repeats counts once. Raises RecR1Error."""
    if set(paths) != set(SHARDS):
        raise RecR1Error(f"requests names the files {', '.join(map(repr, paths))}; name 'train' and 'test'")
    queries = []
    for split, source in paths.items():
        places: dict[str, str] = {}
        for number, row in enumerate(readers.read_rows(source, f"requests[{split!r}]")[1]):
            request, ids = row.text("query").replace("\t", " "), row.cell("item_id")
            if (first := places.setdefault(request, row.place)) != row.place:
                raise RecR1Error(f"{row.place}: query {request!r} stands in {first.rpartition(', ')[2]} too; keep one")
            if not isinstance(ids, list) or not ids:
                raise RecR1Error(f"{row.place}: item_id is {shown(ids)}; write a list of one id or more")
            relevant = {readers.Row(row.place, {"item_id": item}).id("item_id"): 1.0 for item in ids}
            queries.append((f"{split}-{number}", request, relevant, split))
    return pd.DataFrame(queries, columns=[*EXAMPLE_COLUMNS, "split"])


def _products(items: readers.Table, judged: set[str] | None, notes: Counter[str]) -> tuple[pd.DataFrame, str]:
    """A catalogue of the US products, of those judged alone where these are known, and the file's name.

    text: title, description, bullet points, brand and colour, without HTML. Raises RecR1Error.
    """
    name, rows = readers.read_rows(items, "items", ("product_id", "product_locale", *PARTS))
    catalogue = readers.Catalogue(notes, [*ITEM_COLUMNS, "category"])
    for row in rows:
        if row.cell("product_locale") == LOCALE and (judged is None or row.id("product_id") in judged):
            parts = [readers.plain(row.text(part, empty=True)) for part in PARTS]
            catalogue.add(row, "product_id", parts[0], " ".join(filter(None, parts)), "")
    lacks = f"{name} has no judged product with a title and product_locale 'us'; give the one of ESCI"
    return catalogue.table(lacks), name


def _reachable(queries: pd.DataFrame, catalogue: pd.DataFrame, notes: Counter[str]) -> pd.DataFrame:
    """Only products of the catalogue are relevant, as in BLaIR; queries with none go, and are counted."""
    known = set(catalogue["item_id"])
    left = [{item: gain for item, gain in relevant.items() if item in known} for relevant in queries["relevant"]]
    if not any(left):
        first = next((item for relevant in queries["relevant"] for item in relevant), None)
        ids = f"first wanted: {first!r}, their ids look like {catalogue['item_id'].iloc[0]!r}"
        lacks = f"no relevant product of the requests is among the items ({ids})"
        raise RecR1Error(f"{lacks}; give the items they are about")
    gone = sum(map(len, queries["relevant"])) - sum(map(len, left))
    notes["relevant products not in the catalogue, left out"] = gone
    notes["queries without a relevant product there, left out"] = sum(not relevant for relevant in left)
    return queries.assign(relevant=left)[[bool(relevant) for relevant in left]]


def _of_category(queries: pd.DataFrame, catalogue: pd.DataFrame, category: str, name: str) -> pd.DataFrame:
    """The queries without the test queries of other categories; theirs is that of their best product."""
    if not catalogue["category"].any():
        raise RecR1Error(f"{name} has no categories, as ESCI; take category='all', or give items a column 'category'")
    category = readers.known_category(category, catalogue, name)
    category_of = dict(zip(catalogue["item_id"], catalogue["category"]))
    best = (max(relevant, key=relevant.get) for relevant in queries["relevant"])  # the first, of equal ones
    wanted = [category_of[product] == category for product in best]
    return queries[(queries["split"] != "test") | pd.Series(wanted, index=queries.index)]


def _splits(queries: pd.DataFrame, n_val: int, notes: Counter[str]) -> dict[str, pd.DataFrame]:
    """train, val (the first n_val train queries) and test; a query of test is in no other split, nor one of val."""
    train, test = (queries.loc[queries["split"] == split, EXAMPLE_COLUMNS] for split in ("train", "test"))
    if test.empty:
        raise RecR1Error("the requests have no test query (of the category); give all examples of ESCI")
    again = alike(train["request"]).isin(set(alike(test["request"])))
    notes["train queries that are also test queries, left out"] = int(again.sum())
    train = train[~again]
    if not is_count(n_val) or n_val >= len(train):
        raise RecR1Error(f"n_val={n_val!r} of {len(train)} train queries leaves no train or no val split; take fewer")
    return apart({"train": train[n_val:], "val": train[:n_val], "test": test}, notes)
