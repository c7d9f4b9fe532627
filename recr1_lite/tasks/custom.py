"""Your own task, from DataFrames or from CSV, JSONL or Parquet files; and how the examples of any task are split.

`items` has the columns `item_id`, `title`, `text`. `requests` has `request` and `relevant`, and may have:
- `gain`: of the ids that stand alone or in a list, 1 where it is empty or absent
- `split`: train, val or test
- `example_id`: rows that share one are one example with several relevant items, as in a qrels file
- `exclude`: a JSON list of the ids that the ranking must not hold
- `history`: a JSON list of the ids that a user had, oldest first; then the titles of the last items are the request.
`relevant` is one item id, a JSON list of ids, or a JSON object {id: gain}, where a gain of null leaves the id out; a
gain of 0 or below, as qrels files hold, says that the item is not relevant. Ids are text: 7 and 7.0 are "7".
"""

import math
from collections import Counter
from numbers import Real

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import METRICS, SPLITS, Task, alike, is_empty, shown
from recr1_lite.tasks.prompts import Prompt, chosen
from recr1_lite.tasks.readers import Row, Table, catalogue, read_id, read_rows, unpacked
from recr1_lite.tasks.sequential import LAST_TITLES, past

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
    of a history. Raises RecR1Error that names the file and its first offending row."""
    chosen(("error", "count"), unreachable=unreachable)
    if isinstance(prompt, str):
        prompt = Prompt(style="compact", instruction=prompt, mode="expand")
    items_name, rows = read_rows(items, "items")
    notes = Counter[str]()
    found = ((row, "item_id", row.written("title"), row.written("text"), "") for row in rows)
    table = catalogue(found, notes, f"{items_name} has no item").drop(columns="category")
    titles = dict(zip(table["item_id"], table["title"]))
    requests_name, rows = read_rows(requests, "requests")
    examples = _examples(list(rows), requests_name, titles, last, notes)
    wanted = ((example, item) for example, own in zip(examples["example_id"], examples["relevant"]) for item in own)
    for example, item in wanted:
        if unreachable == "error" and item not in titles:
            lacks = f"which {items_name} lacks (its ids look like {next(iter(titles))!r})"
            do = "add the item, or keep such targets with unreachable='count'"
            raise RecR1Error(f"{requests_name}: example {example!r} wants item {item!r}, {lacks}; {do}")
    if examples["split"].isna().all():
        keys = alike(examples["request"])
        drawn = draw_splits(keys, val, test, seed, requests_name)
        examples["split"] = keys.map({key: split for split, own in drawn.items() for key in own})
    splits = {split: examples[examples["split"] == split].drop(columns="split") for split in SPLITS}
    if "history" not in examples:
        splits = apart(splits, notes)
    about = {"source": source or f"{items_name}, {requests_name}", "licence": licence, "seed": seed, **+notes}
    given: dict = dict(k_train=k_train, k_eval=k_eval, metrics=tuple(metrics), about=about)
    return Task(name, table, **splits, prompt=prompt, **given)


def _examples(rows: list[Row], name: str, titles: dict[str, str], last: int, notes: Counter[str]) -> pd.DataFrame:
    """The examples, `split` None without such a column. Notes count what is left out."""
    columns = {column for row in rows for column in row}
    examples: dict[str, dict] = {}
    for number, row in enumerate(rows, start=1):
        for column in columns:
            row.setdefault(column, None)
        example_id, relevant = row.id("example_id") if "example_id" in row else f"row-{number}", _relevant(row)
        if "history" in row:
            asked = past(row.ids("history"), titles, last, row.place)
            if not relevant.keys().isdisjoint(asked["history"]):
                notes["rows whose relevant item is already in their history, left out"] += 1
                continue
        else:
            asked = {"request": row.written("request")}
            asked |= {"exclude": row.ids("exclude")} if "exclude" in row else {}
        split = row.get("split")
        if "split" in row and split not in SPLITS:
            raise RecR1Error(f"{row.place}: split is {shown(split)}; write one of {', '.join(SPLITS)}")
        new = {"example_id": example_id, "request": asked["request"], "relevant": {}, "split": split}
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


def _relevant(row: Row) -> dict[str, float]:
    """`{item_id: gain}` of a row; see the module. Raises RecR1Error."""
    value, gain = unpacked(row["relevant"], place := f"{row.place}: relevant"), row.get("gain")
    no_gain = is_empty(gain) and not isinstance(gain, float)  # NaN is a gain that went wrong
    if isinstance(value, dict) and not no_gain:
        raise RecR1Error(f"{row.place} has gains in relevant and in gain; keep one of the two")
    if not isinstance(value, dict):
        ids = value if isinstance(value, list) else [value]
        value = {read_id(item, place): 1.0 if no_gain else gain for item in ids}
    judged = {item: gain for item, gain in value.items() if gain is not None}  # Parquet fills up with None
    if not judged:
        raise RecR1Error(f"{place} is empty; name at least one item, or leave the row out")
    return {read_id(item, place): _gain(gain, row.place) for item, gain in judged.items()}


def _gain(value: object, place: str) -> float:
    try:
        gain = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        gain = math.nan
    if not math.isfinite(gain):
        raise RecR1Error(f"{place}: the gain {value!r} is not a finite number; mend it or leave the item out")
    return gain


def apart(splits: dict[str, pd.DataFrame], notes: Counter[str]) -> dict[str, pd.DataFrame]:
    """The splits without the requests of train and val that a later split asks in other spelling; notes count them. A
    request that a later split spells alike stays, for `validate` to tell."""
    later: set[str] = set()
    spelt: set[str] = set()
    for split in reversed(SPLITS):
        keys, texts = alike(splits[split]["request"]), splits[split]["request"].str.strip()
        again = keys.isin(later) & ~texts.isin(spelt)
        notes[f"{split} requests that stand in a later split in other spelling, left out"] += int(again.sum())
        splits[split] = splits[split][~again]
        later |= set(keys)
        spelt |= set(texts)
    return splits


def draw_splits(requests: pd.Series, val: float, test: float, seed: int, where: str) -> dict[str, list[str]]:
    """The different requests (or keys of `alike`) in three splits drawn with `seed`. Raises RecR1Error."""
    if not all(isinstance(share, Real) and share > 0 for share in (val, test)) or val + test >= 1:
        raise RecR1Error(f"val={val!r} and test={test!r} are no shares of the requests; take such as 0.2 and 0.2")
    distinct = requests.drop_duplicates().tolist()
    n_val, n_test = max(round(val * len(distinct)), 1), max(round(test * len(distinct)), 1)
    if len(distinct) <= n_val + n_test:
        raise RecR1Error(f"{where} has {len(distinct)} different requests, too few for three splits; give it more")
    rng = np.random.RandomState(seed)  # its stream is frozen: the same splits with any NumPy
    drawn = [distinct[at] for at in rng.permutation(len(distinct))]
    return {"train": drawn[n_test + n_val :], "val": drawn[n_test : n_test + n_val], "test": drawn[:n_test]}
