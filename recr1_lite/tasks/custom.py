"""Your own task: a catalogue and requests from DataFrames or from CSV, JSONL or Parquet files.

`items` has the columns `item_id`, `title`, `text`. `requests` has `request` and `relevant`, and may have
`gain`, `split` (train, val or test), `example_id`, and `exclude`, a JSON list of the ids that the ranking must not
hold; other columns are left alone. With a column `history`, a JSON list of the ids that a user had, oldest first, the
task is sequential recommendation: the titles of the last items are the request. `relevant` is one item
id, a JSON list of ids, or a JSON object {id: gain}, where a gain of null leaves the id out. `gain` is the
gain of ids that are not in an object, 1 where it is empty or absent. Rows that share an `example_id` are
one example with several relevant items, as in a qrels file.
"""

from __future__ import annotations

import numbers
import os

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import EXAMPLE_COLUMNS, ITEM_COLUMNS, LAST_TITLES, Task, check_last, past, shown
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import read_id, read_ids, read_relevant, read_table

PROMPT = Prompt(
    style="compact", instruction="What is this request about? Answer in five keywords.\n\n{request}", mode="expand"
)
SPLITS = ("train", "val", "test")
LISTS = ("exclude", "history")  # columns of lists of ids
Table = pd.DataFrame | str | os.PathLike


def load(
    items: Table,
    requests: Table,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    prompt: Prompt | str | None = None,
    name: str = "custom",
    k_train: int = 1000,
    k_eval: int = 100,
    metrics: tuple[str, ...] = ("ndcg@100", "ndcg@10", "recall@10", "mrr"),
    unreachable: str = "error",
    last: int = LAST_TITLES,
    source: str = "",
    licence: str = "",
) -> Task:
    """A task from your own tables; see the module for their columns.

    Without a `split` column the shares `val` and `test` of the different requests are drawn with `seed`;
    equal requests go to one split. `prompt`: a Prompt, or just an instruction with {request} in it.
    `unreachable`: "error" stops at a relevant id that the catalogue lacks, "count" keeps it as one that is
    never found. `last`: titles in a request made of a history.
    Raises RecR1Error that names the file and its first offending row (rows count from 1,
    without the header).
    """
    if unreachable not in ("error", "count"):
        raise RecR1Error(f"there is no unreachable={unreachable!r}; choose 'error' or 'count'")
    if isinstance(prompt, str):
        prompt = Prompt(style="compact", instruction=prompt, mode="expand")
    catalogue, items_name = read_table(items, "items")
    catalogue = _catalogue(catalogue, items_name)
    table, requests_name = read_table(requests, "requests")
    about = {}
    if "history" in table.columns:
        table, about["left out"] = _with_requests(table, catalogue, last, requests_name)
    examples = _examples(table, requests_name)
    if unreachable == "error":
        _check_targets(examples, catalogue, requests_name, items_name)
    if "split" not in table:
        examples["split"] = _draw_splits(examples["request"], val, test, seed, requests_name)
    columns = [column for column in (*EXAMPLE_COLUMNS, *LISTS) if column in examples]
    splits = {split: examples.loc[examples["split"] == split, columns] for split in SPLITS}
    source = source or f"{items_name}, {requests_name}"
    return Task(
        name=name,
        items=catalogue,
        **splits,
        prompt=prompt or PROMPT,
        k_train=k_train,
        k_eval=k_eval,
        metrics=tuple(metrics),
        about={"source": source, "licence": licence or "not stated", "seed": seed, **about},
    )


def _catalogue(table: pd.DataFrame, where: str) -> pd.DataFrame:
    _need(table, ITEM_COLUMNS, where)
    items = table[list(ITEM_COLUMNS)].astype(object)
    ids = enumerate(items["item_id"], start=1)
    items["item_id"] = [read_id(value, f"{where}, row {row}: item_id") for row, value in ids]
    return items


def _with_requests(table: pd.DataFrame, catalogue: pd.DataFrame, last: int, where: str) -> tuple[pd.DataFrame, str]:
    """`table` with the column `request` made of `history`, `exclude` added; rows bought again left out and counted."""
    check_last(last)
    _need(table, ("history", "relevant"), where)
    titles, rows = dict(zip(catalogue["item_id"], catalogue["title"])), []
    for number, row in enumerate(table.to_dict("records"), start=1):
        place = f"{where}, row {number}"
        history = read_ids(row["history"], f"{place}: history")
        own_id = read_id(row.get("example_id", f"row-{number}"), f"{place}: example_id")
        relevant = read_relevant(row["relevant"], row.get("gain"), place)
        if lost := [item for item in history if item not in titles]:
            raise RecR1Error(
                f"{place}: history holds item {lost[0]!r}, which the catalogue lacks; add it or leave it out"
            )
        if not history:
            raise RecR1Error(f"{place}: history is empty; name an item at least, or leave the row out")
        if not set(relevant) & set(history):
            rows.append({**row, "example_id": own_id, **past(history, titles, last, place)})
    if not rows:
        raise RecR1Error(f"{where}: every relevant item is in its own history, so nothing is left; check the columns")
    return pd.DataFrame(rows), f"{len(table) - len(rows)} rows whose relevant item is already in their history"


def _examples(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """One row an example: `example_id`, `request`, `relevant`, `split` (None without such a column)."""
    _need(table, ("request", "relevant"), where)
    examples: dict[str, dict] = {}
    for number, row in enumerate(table.to_dict("records"), start=1):
        place = f"{where}, row {number}"
        request = row["request"]
        if not isinstance(request, str) or not request.strip():
            raise RecR1Error(f"{place}: request is {shown(request)}; fill it in or leave the row out")
        example_id = read_id(row.get("example_id", f"row-{number}"), f"{place}: example_id")
        split = row.get("split")
        if "split" in row and split not in SPLITS:
            raise RecR1Error(f"{place}: split is {shown(split)}; write one of {', '.join(SPLITS)}")
        example = examples.setdefault(
            example_id, {"example_id": example_id, "request": request, "relevant": {}, "split": split}
        )
        example |= {column: read_ids(row[column], f"{place}: {column}") for column in LISTS if column in row}
        if (example["request"], example["split"]) != (request, split):
            raise RecR1Error(
                f"{place}: example_id {example_id!r} stands in an earlier row with another request or "
                "split; give each example its own"
            )
        for item, gain in read_relevant(row["relevant"], row.get("gain"), place).items():
            if example["relevant"].setdefault(item, gain) != gain:
                raise RecR1Error(f"{place}: item {item!r} has two gains in example {example_id!r}; keep one of them")
    columns = [*EXAMPLE_COLUMNS, "split", *(column for column in LISTS if column in table.columns)]
    return pd.DataFrame(list(examples.values()), columns=columns)


def _need(table: pd.DataFrame, wanted: tuple[str, ...], where: str) -> None:
    if missing := [column for column in wanted if column not in table.columns]:
        found = ", ".join(map(str, table.columns)) or "none"
        raise RecR1Error(f"{where} has no column {missing[0]!r} (it has {found}); rename or add it")
    if twice := table.columns[table.columns.duplicated()].tolist():
        raise RecR1Error(f"{where} has two columns {twice[0]!r}; rename one")
    if table.empty:
        raise RecR1Error(f"{where} has a header and no rows; add some")


def _check_targets(examples: pd.DataFrame, catalogue: pd.DataFrame, where: str, items_name: str) -> None:
    known = set(catalogue["item_id"])
    for example, relevant in zip(examples["example_id"], examples["relevant"], strict=True):
        if lost := [item for item in relevant if item not in known]:
            raise RecR1Error(
                f"{where}: example {example!r} wants item {lost[0]!r}, which {items_name} lacks (its ids look "
                f"like {catalogue['item_id'].iloc[0]!r}); add the item, or keep such targets with "
                "unreachable='count'"
            )


def _draw_splits(requests: pd.Series, val: float, test: float, seed: int, where: str) -> list[str]:
    shares = all(isinstance(share, numbers.Real) and share > 0 for share in (val, test))
    if not shares or val + test >= 1:
        raise RecR1Error(f"val={val!r} and test={test!r} are no shares of the requests; take such as 0.2 and 0.2")
    distinct = requests.str.strip().drop_duplicates().tolist()
    n_val, n_test = max(round(val * len(distinct)), 1), max(round(test * len(distinct)), 1)
    if len(distinct) <= n_val + n_test:
        raise RecR1Error(
            f"{where} has {len(distinct)} different requests, too few for a train, a val and a test split; give it more"
        )
    random = np.random.RandomState(seed)  # its stream is frozen: the same splits with any NumPy
    shuffled = [distinct[i] for i in random.permutation(len(distinct))]
    split_of = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:n_test], "test")
    split_of |= dict.fromkeys(shuffled[n_test : n_test + n_val], "val")
    return [split_of[request.strip()] for request in requests]
