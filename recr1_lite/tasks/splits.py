"""What the rows of a task must be, and how its splits are made: drawn or by history, with no request in two of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error, words

ITEM_COLUMNS = ["item_id", "title", "text"]
EXAMPLE_COLUMNS = ["example_id", "request", "relevant"]
HISTORY_COLUMNS = [*EXAMPLE_COLUMNS, "exclude", "history"]
SPLITS = ("train", "val", "test")
METRICS = ("ndcg@100", "ndcg@10", "recall@10", "mrr")
LAST_TITLES = 10  # titles in a request that is made of a history, as in arXiv 2503.24289
BETWEEN = "; "  # stands between them


def validate(items: pd.DataFrame, splits: Mapping[str, pd.DataFrame], task: str) -> dict[str, dict[str, int]]:
    """Counts per split of a sound task: examples, items, targets, unreachable, cold_items.

    A target that the catalogue lacks is unreachable. Items are counted where they are the most relevant of an example;
    a cold one is so in no example of train.
    Raises RecR1Error that names the first offending row (from 1): a column missing, no row, an id twice, what should be
    text and is not, a request in two splits, a gain that is not a positive finite number, no relevant item, ids to
    exclude that are not in the catalogue or relevant, a split whose targets are all unreachable.
    """
    _check_texts(items, ITEM_COLUMNS, ITEM_COLUMNS, f"task {task!r}, catalogue")
    catalogue = set(items["item_id"])
    for split, frame in splits.items():
        where = f"task {task!r}, {split} split"
        _check_texts(frame, EXAMPLE_COLUMNS, EXAMPLE_COLUMNS[:2], where)
        for row in frame.to_dict("records"):
            _check_example(row, catalogue, f"{where}, example {row['example_id']!r}")
    _check_apart(splits, task)

    seen, counts = {item for relevant in splits["train"]["relevant"] for item in most_relevant(relevant)}, {}
    for split, frame in splits.items():
        targets = [item for relevant in frame["relevant"] for item in relevant]
        lost = sum(target not in catalogue for target in targets)
        if lost == len(targets):
            example, item = frame["example_id"].iloc[0], items["item_id"].iloc[0]
            wants = f"example {example!r} wants {targets[0]!r}, the ids there look like {item!r}"
            raise RecR1Error(f"task {task!r}, {split} split: no relevant item is in the catalogue ({wants})")
        different = {item for relevant in frame["relevant"] for item in most_relevant(relevant)}
        counts[split] = dict(examples=len(frame), items=len(different), targets=len(targets), unreachable=lost)
        counts[split]["cold_items"] = len(different & catalogue - seen)
    return counts


def _check_texts(frame: pd.DataFrame, wanted: Sequence[str], texts: Sequence[str], where: str) -> None:
    """All `wanted` columns, at least one row, text in the columns `texts`, no value of the first of them twice."""
    for column in wanted:
        if column not in frame:
            raise RecR1Error(no_column(column, frame.columns, where))
    if frame.empty:
        raise RecR1Error(f"{where} is empty; give it at least one row")
    for column in texts:
        for row, (value, row_id) in enumerate(zip(frame[column], frame[texts[0]], strict=True), start=1):
            if not isinstance(value, str) or not value.strip():
                row_name = f"row {row}" if column == texts[0] else f"row {row} ({row_id!r})"
                raise RecR1Error(f"{where}, {row_name}: {column} is {shown(value)}; write text there")
    rows: dict[str, int] = {}
    for row, row_id in enumerate(frame[texts[0]], start=1):
        if (first := rows.setdefault(row_id, row)) != row:
            raise RecR1Error(f"{where}: {texts[0]} {row_id!r} stands in rows {first} and {row}; keep one")


def _check_example(row: dict, catalogue: set[str], where: str) -> None:
    relevant = row["relevant"]
    if not isinstance(relevant, dict) or not relevant:
        raise RecR1Error(f"{where}: relevant is {relevant!r}; write {{item_id: gain}}, one item at least")
    for item, gain in relevant.items():
        if not isinstance(item, str):
            raise RecR1Error(f"{where}: the relevant item {item!r} is no text; ids are text")
        if isinstance(gain, bool) or not isinstance(gain, Real) or not math.isfinite(gain) or gain <= 0:
            raise RecR1Error(f"{where}: item {item!r} has gain {gain!r}; make it a positive finite number")
    for column in ("history", "exclude"):
        if not isinstance(ids := row.get(column, []), (list, tuple)):
            raise RecR1Error(f"{where}: {column} is {shown(ids)}; write a list of item ids, [] for none")
        for item in ids:
            if item not in catalogue:
                raise RecR1Error(f"{where}: {column} holds {item!r}, which is not in the catalogue; add the item")
            if column == "exclude" and item in relevant:
                raise RecR1Error(f"{where} excludes its own relevant item {item!r}; keep it in one of the two")


def _check_apart(splits: Mapping[str, pd.DataFrame], task: str) -> None:
    """No example_id and no request, as `alike` has it, in two splits; with a `history` only no example_id: two users
    may have had the same things."""
    first_of: dict[tuple[str, str], tuple[str, str]] = {}
    for split, frame in splits.items():
        requests = {} if "history" in frame else {"request": alike(frame["request"])}
        for key, values in {"example_id": frame["example_id"], **requests}.items():
            for example, value, cell in zip(frame["example_id"], values, frame[key], strict=True):
                other, first = first_of.setdefault((key, value), (split, example))
                if other != split:
                    places = f"the {other} split (example {first!r}) and in the {split} split (example {example!r})"
                    same = f"task {task!r}: {key} {shown(cell.strip())} stands in {places}"
                    raise RecR1Error(f"{same}{', as a retriever sees it' * (key == 'request')}; keep one of the two")


def alike(requests: pd.Series) -> pd.Series:
    """For each request a key that it shares with those of the same words, in whatever order, case and punctuation."""
    keys = [" ".join(sorted(words(request))) or request.strip() for request in requests]
    return pd.Series(keys, requests.index, dtype=str)


def apart(splits: dict[str, pd.DataFrame], notes: Counter[str]) -> dict[str, pd.DataFrame]:
    """The splits without the requests of train and val that a later split asks in other spelling; notes count them.

    A request that a later split spells alike stays, for `validate` to tell.
    """
    later: set[str] = set()
    spelt: set[str] = set()
    for split in ("test", "val", "train"):
        keys, texts = alike(splits[split]["request"]), splits[split]["request"].str.strip()
        again = keys.isin(later) & ~texts.isin(spelt)
        notes[f"{split} requests that stand in a later split in other spelling, left out"] += int(again.sum())
        splits[split] = splits[split][~again]
        later |= set(keys)
        spelt |= set(texts)
    return splits


def no_column(name: str, there: Iterable, where: str) -> str:
    """The sentence for a column that is not there."""
    return f"{where} has no column {name!r} (it has {', '.join(map(str, there)) or 'none'}); rename or add it"


def most_relevant(relevant: Mapping[str, float]) -> list[str]:
    """The items of the highest gain; of graded relevance in the manner of ESCI the exact ones."""
    best = max(relevant.values(), default=0.0)
    return [item for item, gain in relevant.items() if gain == best]


def is_empty(value: object) -> bool:
    """None, pandas' NA, NaN, or a text without letters."""
    nothing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return nothing or (isinstance(value, str) and not value.strip())


def shown(value: object, limit: int = 60) -> str:
    """A cell as a message shows it: `empty` for what holds nothing, long text cut."""
    text = "empty" if is_empty(value) else repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


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


def past(history: Sequence[str], titles: Mapping[str, str], last: int, place: str) -> dict:
    """`request` (the last `last` titles of a history, the latest last), `exclude` and `history` of an example."""
    if not is_count(last):
        raise RecR1Error(f"last={last!r} shows no item of a history; use a whole number from 1 on")
    if not history:
        raise RecR1Error(f"{place}: history is empty; name an item at least, or leave the row out")
    for item in history:
        if item not in titles:
            raise RecR1Error(f"{place}: history holds item {item!r}, which the catalogue lacks; add it or leave it out")
    request = BETWEEN.join(titles[item] for item in history[-last:])
    return {"request": request, "exclude": list(dict.fromkeys(history)), "history": list(history)}


def history_examples(
    rows: Iterable[tuple[str, Sequence[str], str | Sequence[str]]], titles: Mapping[str, str], last: int = LAST_TITLES
) -> tuple[pd.DataFrame, int]:
    """A split of a sequential task, in HISTORY_COLUMNS, and how many repeats were left out.

    rows: (example_id, history, target or list of them) with the ids of the items that the user had, oldest first;
    titles: item_id -> title. A target that the history holds is a repeat: excluded, it could not be found. Raises
    RecR1Error: a history without items, an item without title, `last` no whole number from 1 on.
    """
    examples, repeats = [], 0
    for example, history, target in rows:
        asked = past(history, titles, last, f"example {example!r}")
        targets = dict.fromkeys([target] if isinstance(target, str) else target, 1.0)
        relevant = {item: gain for item, gain in targets.items() if item not in asked["exclude"]}
        repeats += len(targets) - len(relevant)
        if relevant:
            examples.append({"example_id": example, "relevant": relevant, **asked})
    return pd.DataFrame(examples, columns=HISTORY_COLUMNS), repeats
