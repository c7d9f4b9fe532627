"""Product search on Amazon, as Rec-R1 (arXiv 2503.24289) does it: ESCI and Amazon-C4.

ESCI, Shopping Queries (Reddy et al., arXiv 2206.06588), small version, US: what somebody typed into the search box. As
BLaIR prepared it, by default: the items are those of Amazon Reviews 2023, text is title and description, an Exact
product is relevant, and a query has the category of its first relevant product; the category chooses the test queries
alone. As in the paper: queries of one text are one, the first 100 train queries are val, k. Otherwise: a product counts
once for a query; the train queries are ESCI's own train split as far as its products are in the catalogue, while the
paper's 4,610 come from a file that was not published with how it was made. Give the paper's own query files as
`requests` for exactly its queries.

Amazon-C4: 21,223 requests that ChatGPT made of 5-star reviews, over about a million items, of which each request has
one. The data set has one split, "test". The paper tests on four of its categories and trains on the others, with the
last 1,000 of these as val: splits="paper" does the same.

Neither was ever run from the Hub, at its size, where the kit was written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain

import pandas as pd

from recr1_lite.assets.fetch import AMAZON_C4, BLAIR, ESCI
from recr1_lite.common import RecR1Error
from recr1_lite.tasks import readers
from recr1_lite.tasks.base import EXAMPLE_COLUMNS, ITEM_COLUMNS, SPLITS, Task, alike, is_count, shown
from recr1_lite.tasks.custom import apart, draw_splits
from recr1_lite.tasks.prompts import Prompt, chosen

Tables = Mapping[str, readers.Table]

ESCI_QUESTION = "A shopper searches for: {request}\n\nWhat product is it? Answer with words of its product page."
ESCI_PROMPT = Prompt("compact", ESCI_QUESTION, mode="expand")
SHARDS = {  # of tasksource/esci, branch refs/convert/parquet: train 1.8 GB, test 0.7 GB
    "train": [f"default/train/{number:04}.parquet" for number in range(11)],
    "test": [f"default/test/{number:04}.parquet" for number in range(4)],
}
CATALOGUE = "processed_esci/sampled_item_metadata_esci.jsonl"  # of McAuley-Lab/blair-bench
COLUMNS = ("query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "split")
LOCALE = "us"
LABELS = ("E", "S", "C", "I", "Exact", "Substitute", "Complement", "Irrelevant")  # the first letter tells
PARTS = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
# KDD Cup 2022: Exact, Substitute, Complement; Irrelevant has none
GAINS = {"exact": {"E": 1.0}, "graded": {"E": 1.0, "S": 0.1, "C": 0.01}}


def load_esci(
    category: str = "Video_Games",
    items: readers.Table | None = None,
    requests: readers.Table | Tables | None = None,
    gains: str = "exact",
    n_val: int = 100,
    revision: str | None = None,
) -> Task:
    """The ESCI task.

    category: "Video_Games", "Baby_Products", "Office_Products", "Sports_and_Outdoors" (the paper's) or another of the
    catalogue, or "all". gains: "exact" counts Exact products alone, "graded" also Substitute and Complement (GAINS).
    items: instead of the Hub's catalogue rows of item_id, category, metadata; or ESCI's products file
    (`shopping_queries_dataset_products.parquet`: of these the ones judged, with no category, so take "all"); or any
    table of item_id, title, text. requests: instead of the Hub's ESCI (2.5 GB) its examples file
    (`shopping_queries_dataset_examples.parquet`); or {"train": path, "test": path} of JSON files in the paper's form, a
    list of {"query", "item_id": [ids]}, taken as they are (the test file is of a category). revision: of
    tasksource/esci, instead of the pinned one. Raises RecR1Error that names the file and the row."""
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
        table, name = _products(items, judged, notes)
    else:
        table, name = readers.read_items(items, notes)
    if judged is not None:
        queries = _reachable(queries, table, name, notes)
        if category != "all":
            category_known = readers.known_category(category, table, name)
            queries = queries[(queries["split"] != "test") | (queries["category"] == category_known)]
    train, test = (queries.loc[queries["split"] == split, EXAMPLE_COLUMNS] for split in ("train", "test"))
    if test.empty:
        raise RecR1Error("the requests have no test query (of the category); give all examples of ESCI")
    again = alike(train["request"]).isin(set(alike(test["request"])))
    notes["train queries that are also test queries, left out"] = int(again.sum())
    train = train[~again]
    if not is_count(n_val) or n_val >= len(train):
        raise RecR1Error(f"n_val={n_val!r} of {len(train)} train queries leaves no train or no val split; take fewer")
    splits = apart({"train": train[n_val:], "val": train[:n_val], "test": test}, notes)
    about = {
        "source": f"Shopping Queries (ESCI), small version, US; {hub}",
        "licence": "Apache-2.0 (ESCI); the items of Amazon Reviews 2023: see its page, for research",
        "gains": ", ".join(f"{label} {gain:g}" for label, gain in GAINS[gains].items()),
    }
    return Task(f"esci-{category}", table[ITEM_COLUMNS], **splits, prompt=ESCI_PROMPT, about=about | +notes)


def _judged_queries(tables: list[tuple], gains: Mapping[str, float]) -> tuple[pd.DataFrame, set[str]]:
    """EXAMPLE_COLUMNS and `split` of the judgements, queries in order of appearance; the ids of all products judged.

    tables: pairs of a table and its split, "" where a column has it. Rows of another locale or out of the small version
    are left alone; queries of one text in one split are one, and a product of two labels has its best."""
    examples: dict[tuple[str, str], dict] = {}
    judged: set[str] = set()
    for source, split_of_all in tables:
        for row in readers.read_rows(source, "requests", COLUMNS)[1]:
            if row["product_locale"] != LOCALE or row.id("small_version") != "1":
                continue
            label, split = row["esci_label"], split_of_all or row["split"]
            if label not in LABELS:
                raise RecR1Error(f"{row.place}: esci_label is {shown(label)}; write one of {', '.join(LABELS)}")
            if split not in SHARDS:
                raise RecR1Error(f"{row.place}: split is {shown(split)}; write train or test")
            request, product = row.text("query").replace("\t", " "), row.id("product_id")
            judged.add(product)
            example_id = f"query-{row.id('query_id')}"
            new: dict = {"example_id": example_id, "request": request, "relevant": {}, "split": split}
            relevant = examples.setdefault((split, request), new)["relevant"]
            if gain := gains.get(label[0], 0.0):
                relevant[product] = max(gain, relevant.get(product, 0.0))
    if not examples:
        raise RecR1Error("the requests have no row with product_locale 'us' and small_version 1; give ESCI's examples")
    return pd.DataFrame(list(examples.values())), judged


def _paper_queries(paths: Tables) -> pd.DataFrame:
    """EXAMPLE_COLUMNS and `split` of two JSON files. A product that a list repeats counts once. Raises RecR1Error."""
    if set(paths) != set(SHARDS):
        raise RecR1Error(f"requests names the files {', '.join(map(repr, paths))}; name 'train' and 'test'")
    queries = []
    for split, source in paths.items():
        places: dict[str, str] = {}
        for number, row in enumerate(readers.read_rows(source, f"requests[{split!r}]")[1]):
            request, ids = row.text("query").replace("\t", " "), row.ids("item_id")
            if (first := places.setdefault(request, row.place)) != row.place:
                raise RecR1Error(f"{row.place}: query {request!r} stands in {first.rpartition(', ')[2]} too; keep one")
            queries.append((f"{split}-{number}", request, dict.fromkeys(ids, 1.0), split))
    return pd.DataFrame(queries, columns=[*EXAMPLE_COLUMNS, "split"])


def _products(items: readers.Table, judged: set[str] | None, notes: Counter[str]) -> tuple[pd.DataFrame, str]:
    """A catalogue of the US products, of those judged alone where these are known, and the file's name. text: title,
    description, bullet points, brand and colour, without HTML. Raises RecR1Error."""
    name, rows = readers.read_rows(items, "items", ("product_id", "product_locale", *PARTS))

    def found() -> Iterator[tuple]:
        for row in rows:
            if row["product_locale"] == LOCALE and (judged is None or row.id("product_id") in judged):
                parts = [readers.plain(row.text(part, empty=True)) for part in PARTS]
                yield row, "product_id", parts[0], " ".join(filter(None, parts)), ""

    lacks = f"{name} has no judged product with a title and product_locale 'us'; give the one of ESCI"
    return readers.catalogue(found(), notes, lacks), name


def _reachable(examples: pd.DataFrame, items: pd.DataFrame, name: str, notes: Counter[str]) -> pd.DataFrame:
    """The examples with the relevant items that the catalogue has, and with the `category` of the best of them. As in
    BLaIR those without one go; notes count them. Raises RecR1Error where none is left."""
    known = dict(zip(items["item_id"], items["category"]))
    left = [{item: gain for item, gain in relevant.items() if item in known} for relevant in examples["relevant"]]
    if not any(left):
        first = next(chain.from_iterable(examples["relevant"]), None)
        ids = f"first wanted: {first!r}, the ids there look like {items['item_id'].iloc[0]!r}"
        raise RecR1Error(f"no relevant item of the requests is in {name} ({ids}); give the items they are about")
    gone = examples["relevant"].map(len).sum() - sum(map(len, left))
    notes["relevant products not in the catalogue, left out"] = int(gone)
    notes["queries without a relevant product there, left out"] = sum(not relevant for relevant in left)
    examples = examples.assign(relevant=left)[[bool(relevant) for relevant in left]]
    best = (max(relevant, key=relevant.get) for relevant in examples["relevant"])  # the first, of equal ones
    return examples.assign(category=[known[item] for item in best])


C4_QUESTION = "{request}\n\nWhich product is this about, and what are its features? Answer in five keywords."
C4_PROMPT = Prompt("compact", C4_QUESTION, mode="expand")
PAPER = ("Games", "Baby", "Office", "Sports")  # the categories that the paper tests on, as the catalogue names them
ALIASES = dict(zip(("Video_Games", "Baby_Products", "Office_Products", "Sports_and_Outdoors"), PAPER))


def load_c4(
    category: str = "Video_Games",
    items: readers.Table | None = None,
    requests: readers.Table | None = None,
    splits: str = "paper",
    catalogue: str = "all",
    n_val: int = 1000,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
) -> Task:
    """The Amazon-C4 task.

    category: of the test requests (with "seed" of all), as the catalogue or as Amazon Reviews names it ("Games",
    "Video_Games"), or "all" with splits="seed". splits: "paper" (val: the last `n_val` of the requests of other
    categories than PAPER) or "seed" (shares `val` and `test` of the category's requests). catalogue: "all", or
    "category" with splits="seed" for the items of the category alone. items: rows of item_id, category, metadata (title
    and description); requests: rows of qid, query, item_id; both default to the files of the Hub (643 MB and 12 MB),
    of `revision` instead of the pinned one. Requests of one text are one, with the items of all. Raises RecR1Error
    that names the file and the row."""
    chosen(("paper", "seed"), splits=splits)
    chosen(("all", "category"), catalogue=catalogue)
    if splits == "paper" and (catalogue == "category" or category == "all"):
        raise RecR1Error("splits='paper' trains on other categories than it tests on; take splits='seed' with this")
    hub, notes = readers.HubFiles(), Counter[str]()
    items = hub.instead_of(items, AMAZON_C4, "sampled_item_metadata_1M.jsonl", "items=", revision)
    table, items_name = readers.read_items(items, notes)
    name, rows = readers.read_rows(hub.instead_of(requests, AMAZON_C4, "test.csv", "requests=", revision), "requests")
    asked: dict[str, dict] = {}
    for row in rows:
        item, query, qid = row.id("item_id"), row.text("query"), row.id("qid")
        new = {"example_id": f"query-{qid}", "request": query, "relevant": {}}
        asked.setdefault(query, new)["relevant"][item] = 1.0
    examples = _reachable(pd.DataFrame(list(asked.values())), table, items_name, notes)
    if category != "all":
        category = readers.known_category(category, table, items_name, ALIASES)
    own = examples[(examples["category"] == category) | (category == "all")]
    if splits == "paper":
        others = examples[~examples["category"].isin({*PAPER, category})]
        if not is_count(n_val) or n_val >= len(others):
            other = f"the {len(others)} requests in {name} about other categories than {', '.join(PAPER)}"
            left = f"n_val={n_val!r} of {other} leaves no train or no val split"
            raise RecR1Error(f"{left}; take fewer, or splits='seed'")
        frames = apart({"train": others[:-n_val], "val": others[-n_val:], "test": own}, notes)
        made = "test: the category; train and val: the categories that the paper does not test on"
    else:
        keyed = own.set_index(alike(own["request"]))
        drawn = draw_splits(keyed.index.to_series(), val, test, seed, name)
        frames = {split: keyed.loc[drawn[split]] for split in SPLITS}
        made = f"drawn from the requests of the category with seed {seed}"
    if catalogue == "category" and category != "all":
        table = table[table["category"] == category].reset_index(drop=True)
    licence = "its page states none; made of Amazon Reviews 2023, for research"
    about = {"source": f"Amazon-C4; {hub}", "licence": licence, "splits made": made}
    frames = {split: frame[EXAMPLE_COLUMNS] for split, frame in frames.items()}
    return Task(f"amazon_c4-{category}", table[ITEM_COLUMNS], **frames, prompt=C4_PROMPT, about=about | +notes)
