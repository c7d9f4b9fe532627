"""Your own task: a catalogue and requests from DataFrames or from CSV, JSONL or Parquet files.

`items` has the columns `item_id`, `title`, `text`. `requests` has `request` and `relevant`, and may have:
- `gain`: of the ids that stand alone or in a list, 1 where it is empty or absent
- `split`: train, val or test
- `example_id`: rows that share one are one example with several relevant items, as in a qrels file
- `exclude`: a JSON list of the ids that the ranking must not hold
- `history`: a JSON list of the ids that a user had, oldest first; then the titles of the last items are the request.
`relevant` is one item id, a JSON list of ids, or a JSON object {id: gain}, where a gain of null leaves the id out.
"""

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import ITEM_COLUMNS, LAST_TITLES, METRICS, SPLITS, Task, draw_splits, past, shown
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import Table, cell, chosen, read_id, read_ids, read_relevant, read_table, text_of

INSTRUCTION = "What is this request about? Answer in five keywords.\n\n{request}"


def load(
    items: Table,
    requests: Table,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    prompt: Prompt | str = INSTRUCTION,
    name: str = "custom",
    k_train: int = 1000,
    k_eval: int = 100,
    metrics: tuple[str, ...] = METRICS,
    unreachable: str = "error",
    last: int = LAST_TITLES,
    source: str = "",
    licence: str = "not stated",
) -> Task:
    """A task from your own tables; see the module for their columns.

    Without a `split` column the shares `val` and `test` of the different requests are drawn with `seed`; equal requests
    go to one split. `prompt`: a Prompt, or just an instruction with {request} in it. `unreachable`: "error" stops at a
    relevant id that the catalogue lacks, "count" keeps it as one that is never found. `last`: titles in a request made
    of a history. Raises RecR1Error that names the file and its first offending row.
    """
    chosen(("error", "count"), unreachable=unreachable)
    if isinstance(prompt, str):
        prompt = Prompt(style="compact", instruction=prompt, mode="expand")
    catalogue, items_name = read_table(items, "items")
    rows = zip(catalogue.index, catalogue.to_dict("records"))
    catalogue = pd.DataFrame([_item(row, f"{items_name}, {line}") for line, row in rows])
    titles = dict(zip(catalogue["item_id"], catalogue["title"]))
    table, name_of_requests = read_table(requests, "requests")
    examples, repeats = _examples(table, name_of_requests, titles, last)
    if unreachable == "error":
        _check_targets(examples, titles, name_of_requests, items_name)
    if "split" not in table:
        drawn = draw_splits(examples["request"], val, test, seed, name_of_requests)
        split_of = {request: split for split, requests_of_split in drawn.items() for request in requests_of_split}
        examples["split"] = examples["request"].str.strip().map(split_of)
    splits = {split: examples[examples["split"] == split].drop(columns="split") for split in SPLITS}
    about = {"source": source or f"{items_name}, {name_of_requests}", "licence": licence, "seed": seed}
    if "history" in table:
        about["left out"] = f"{repeats} rows whose relevant item is already in their history"
    metrics = tuple(metrics)
    return Task(name, catalogue, **splits, prompt=prompt, k_train=k_train, k_eval=k_eval, metrics=metrics, about=about)


def _item(row: dict, place: str) -> dict:
    item = {column: cell(row, column, place) for column in ITEM_COLUMNS}
    return item | {"item_id": read_id(item["item_id"], f"{place}: item_id")}


def _examples(table: pd.DataFrame, name: str, titles: dict[str, str], last: int) -> tuple[pd.DataFrame, int]:
    """One row per example, `split` None without such a column; how many rows of things bought again were left out."""
    examples: dict[str, dict] = {}
    repeats = 0
    for number, (line, row) in enumerate(zip(table.index, table.to_dict("records")), start=1):
        place = f"{name}, {line}"
        example_id = read_id(row.get("example_id", f"row-{number}"), f"{place}: example_id")
        relevant = read_relevant(cell(row, "relevant", place), row.get("gain"), place)
        if "history" in row:
            asked = past(read_ids(row["history"], f"{place}: history"), titles, last, place)
            if not relevant.keys().isdisjoint(asked["history"]):
                repeats += 1
                continue
        else:
            text_of(row, "request", place)
            lists = {"exclude": read_ids(row["exclude"], f"{place}: exclude")} if "exclude" in row else {}
            asked = {"request": row["request"], **lists}
        split = row.get("split")
        if "split" in row and split not in SPLITS:
            raise RecR1Error(f"{place}: split is {shown(split)}; write one of {', '.join(SPLITS)}")
        new = {"example_id": example_id, "request": "", "relevant": {}, "split": split, **asked}
        example = examples.setdefault(example_id, new)
        if (example["request"], example["split"]) != (asked["request"], split):
            raise RecR1Error(
                f"{place}: example_id {example_id!r} stands in an earlier row with another request or split; give each "
                "example its own"
            )
        example |= asked
        for item, gain in relevant.items():
            if example["relevant"].setdefault(item, gain) != gain:
                raise RecR1Error(f"{place}: item {item!r} has two gains in example {example_id!r}; keep one of them")
    if not examples:
        raise RecR1Error(f"{name}: every relevant item is in its own history, so nothing is left; check the columns")
    return pd.DataFrame(list(examples.values())), repeats


def _check_targets(examples: pd.DataFrame, known: dict[str, str], where: str, items_name: str) -> None:
    for example, relevant in zip(examples["example_id"], examples["relevant"], strict=True):
        for item in relevant:
            if item not in known:
                raise RecR1Error(
                    f"{where}: example {example!r} wants item {item!r}, which {items_name} lacks (its ids look like "
                    f"{next(iter(known))!r}); add the item, or keep such targets with unreachable='count'"
                )
