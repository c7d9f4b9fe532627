"""Your own task: a catalogue and requests from DataFrames or from CSV, JSONL or Parquet files.

`items` has the columns `item_id`, `title`, `text`. `requests` has `request` and `relevant`, and may have:
- `gain`: of the ids that stand alone or in a list, 1 where it is empty or absent
- `split`: train, val or test
- `example_id`: rows that share one are one example with several relevant items, as in a qrels file
- `exclude`: a JSON list of the ids that the ranking must not hold
- `history`: a JSON list of the ids that a user had, oldest first; then the titles of the last items are the request.
`relevant` is one item id, a JSON list of ids, or a JSON object {id: gain}, where a gain of null leaves the id out; a
gain of 0 or below, as qrels files hold, says that the item is not relevant. Ids are text: 7 and 7.0 are "7".
"""

from collections import Counter

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt, chosen
from recr1_lite.tasks.readers import Catalogue, Row, Table, read_rows
from recr1_lite.tasks.splits import LAST_TITLES, METRICS, SPLITS, alike, apart, draw_splits, past, shown

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
    items_name, rows = read_rows(items, "items")
    read = Catalogue(notes := Counter[str]())
    for row in rows:
        _ = row.id("item_id"), row.text("title"), row.text("text")
        read.add(row, "item_id", row["title"], row["text"])  # as they are, spaces and all
    catalogue = read.table(f"{items_name} has no item")
    titles = dict(zip(catalogue["item_id"], catalogue["title"]))
    name_of_requests, rows = read_rows(requests, "requests")
    examples = _examples(list(rows), name_of_requests, titles, last, notes)
    if unreachable == "error":
        _check_targets(examples, titles, name_of_requests, items_name)
    if examples["split"].isna().all():
        keys = alike(examples["request"])
        drawn = draw_splits(keys, val, test, seed, name_of_requests)
        examples["split"] = keys.map({key: split for split, drawn_keys in drawn.items() for key in drawn_keys})
    splits = {split: examples[examples["split"] == split].drop(columns="split") for split in SPLITS}
    if "history" not in examples:
        splits = apart(splits, notes)
    about = {"source": source or f"{items_name}, {name_of_requests}", "licence": licence, "seed": seed, **+notes}
    metrics = tuple(metrics)
    return Task(name, catalogue, **splits, prompt=prompt, k_train=k_train, k_eval=k_eval, metrics=metrics, about=about)


def _examples(rows: list[Row], name: str, titles: dict[str, str], last: int, notes: Counter[str]) -> pd.DataFrame:
    """The examples, `split` None without such a column. Notes count what is left out."""
    columns = {column for row in rows for column in row}
    examples: dict[str, dict] = {}
    for number, row in enumerate(rows, start=1):
        for column in columns:
            row.setdefault(column, None)
        example_id, relevant = row.id("example_id") if "example_id" in row else f"row-{number}", row.relevant()
        if "history" in row:
            asked = past(row.ids("history"), titles, last, row.place)
            if not relevant.keys().isdisjoint(asked["history"]):
                notes["rows whose relevant item is already in their history, left out"] += 1
                continue
        else:
            row.text("request")
            asked = {"request": row["request"]}  # as it is, spaces and all
            asked |= {"exclude": row.ids("exclude")} if "exclude" in row else {}
        split = row.get("split")
        if "split" in row and split not in SPLITS:
            raise RecR1Error(f"{row.place}: split is {shown(split)}; write one of {', '.join(SPLITS)}")
        new = {"example_id": example_id, "request": "", "relevant": {}, "split": split, **asked}
        example = examples.setdefault(example_id, new)
        if (example["request"], example["split"]) != (asked["request"], split):
            twice = f"{row.place}: example_id {example_id!r} stands in an earlier row with another request or split"
            raise RecR1Error(f"{twice}; give each example its own")
        example |= asked
        for item, gain in relevant.items():
            if example["relevant"].setdefault(item, gain) != gain:
                two = f"item {item!r} has two gains in example {example_id!r}"
                raise RecR1Error(f"{row.place}: {two}; keep one of them")
    for example in examples.values():
        judged, example["relevant"] = example["relevant"], {i: g for i, g in example["relevant"].items() if g > 0}
        notes["judged items with a gain of 0 or below, left out"] += len(judged) - len(example["relevant"])
    kept = [example for example in examples.values() if example["relevant"]]
    notes["examples without a relevant item then, left out"] += len(examples) - len(kept)
    if not kept:
        why = "has a gain of 0 or below" if examples else "is in its own history"
        raise RecR1Error(f"{name}: every relevant item {why}, so nothing is left; check the columns")
    return pd.DataFrame(kept)


def _check_targets(examples: pd.DataFrame, known: dict[str, str], where: str, items_name: str) -> None:
    for example, relevant in zip(examples["example_id"], examples["relevant"], strict=True):
        for item in relevant:
            if item not in known:
                lacks = f"which {items_name} lacks (its ids look like {next(iter(known))!r})"
                do = "add the item, or keep such targets with unreachable='count'"
                raise RecR1Error(f"{where}: example {example!r} wants item {item!r}, {lacks}; {do}")
