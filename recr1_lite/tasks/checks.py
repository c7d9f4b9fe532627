"""The one validation that every task passes when it is made; each message names the first offending row."""

from __future__ import annotations

import math
from numbers import Real

import pandas as pd

from recr1_lite.errors import RecR1Error

ITEM_COLUMNS = ("item_id", "title", "text")
EXAMPLE_COLUMNS = ("example_id", "request", "relevant")


def validate(items: pd.DataFrame, splits: dict[str, pd.DataFrame], task: str) -> dict[str, dict]:
    """Counts of a sound task: `{"splits": {split: {examples, items, targets, unreachable, cold_items}}}`.

    `items` and each frame of `splits` ("train" and others) have the columns of `Task`; rows count from 1. A
    column `exclude` may hold ids of the catalogue that an example's ranking leaves out, never a target; a column
    `history` those that a user had, oldest first. A
    target that the catalogue lacks is counted as unreachable; a cold item is a target in the catalogue that
    is no target in train. Raises RecR1Error: a column missing, an empty catalogue or split, an id twice, a
    text that is empty or no text, a request in two splits, a gain that is not a positive finite number, an
    example without relevant item, an exclude that is no such list, a split whose targets are all unreachable.
    """
    where = f"task {task!r}, catalogue"
    _columns(items, ITEM_COLUMNS, where)
    _texts(items, ITEM_COLUMNS, where)
    _unique(items["item_id"], where)
    catalogue = set(items["item_id"])
    for split, frame in splits.items():
        where = f"task {task!r}, {split} split"
        _columns(frame, EXAMPLE_COLUMNS, where)
        _texts(frame, ("example_id", "request"), where)
        _unique(frame["example_id"], where)
        for example, relevant in zip(frame["example_id"], frame["relevant"], strict=True):
            _relevant(relevant, f"{where}, example {example!r}")
        if "history" in frame:
            for example, history in zip(frame["example_id"], frame["history"], strict=True):
                _ids(history, catalogue, f"{where}, example {example!r}", "history")
        if "exclude" in frame:
            for example, relevant, exclude in frame[["example_id", "relevant", "exclude"]].values:
                _exclude(exclude, relevant, catalogue, f"{where}, example {example!r}")
    _apart(splits, task)

    seen, counts = set(_targets(splits["train"])), {}
    for split, frame in splits.items():
        targets = _targets(frame)
        lost = sum(target not in catalogue for target in targets)
        if lost == len(targets):
            raise RecR1Error(
                f"task {task!r}, {split} split: no relevant item is in the catalogue (example "
                f"{frame['example_id'].iloc[0]!r} wants {targets[0]!r}, the ids there look like "
                f"{items['item_id'].iloc[0]!r}); write the ids alike in both"
            )
        counts[split] = {
            "examples": len(frame),
            "items": len(set(targets)),
            "targets": len(targets),
            "unreachable": lost,
            "cold_items": len(set(targets) & catalogue - seen),
        }
    return {"splits": counts}


def _columns(frame: pd.DataFrame, wanted: tuple[str, ...], where: str) -> None:
    if missing := [column for column in wanted if column not in frame.columns]:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise RecR1Error(f"{where} has no column {missing[0]!r} (it has {found}); rename or add it")
    if not len(frame):
        raise RecR1Error(f"{where} is empty; give it at least one row")


def _texts(frame: pd.DataFrame, columns: tuple[str, ...], where: str) -> None:
    for column in columns:
        for row, (value, own_id) in enumerate(zip(frame[column], frame[columns[0]], strict=True), start=1):
            if not isinstance(value, str) or not value.strip():
                row_name = f"row {row}" if column == columns[0] else f"row {row} ({own_id!r})"
                raise RecR1Error(f"{where}, {row_name}: {column} is {shown(value)}; write text there")


def _unique(ids: pd.Series, where: str) -> None:
    rows: dict[str, int] = {}
    for row, own_id in enumerate(ids, start=1):
        if (first := rows.setdefault(own_id, row)) != row:
            raise RecR1Error(f"{where}: {ids.name} {own_id!r} stands in rows {first} and {row}; keep one")


def _relevant(relevant: dict[str, float], where: str) -> None:
    if not isinstance(relevant, dict) or not relevant:
        raise RecR1Error(f"{where}: relevant is {relevant!r}; write {{item_id: gain}}, one item at least")
    for item, gain in relevant.items():
        if not isinstance(item, str):
            raise RecR1Error(f"{where}: the relevant item {item!r} is no text; ids are text")
        if isinstance(gain, bool) or not isinstance(gain, Real) or not math.isfinite(gain) or gain <= 0:
            raise RecR1Error(f"{where}: item {item!r} has gain {gain!r}; make it a positive finite number")


def _ids(ids: list[str], catalogue: set[str], where: str, column: str) -> None:
    if not isinstance(ids, (list, tuple)):
        raise RecR1Error(f"{where}: {column} is {shown(ids)}; write a list of item ids, [] for none")
    for item in ids:
        if item not in catalogue:
            raise RecR1Error(f"{where}: {column} holds {item!r}, which is not in the catalogue; write the ids alike")


def _exclude(exclude: list[str], relevant: dict[str, float], catalogue: set[str], where: str) -> None:
    _ids(exclude, catalogue, where, "exclude")
    if own := [item for item in exclude if item in relevant]:
        raise RecR1Error(f"{where} excludes its own relevant item {own[0]!r}; keep it in one of the two")


def _apart(splits: dict[str, pd.DataFrame], task: str) -> None:
    """No example_id and no request (but for spaces at its ends) in two splits; with a `history` only no example_id:
    two users may have had the same things."""
    split_of: dict[tuple[str, str], tuple[str, str]] = {}
    for split, frame in splits.items():
        keys = ("example_id",) if "history" in frame else ("example_id", "request")
        for example, request in zip(frame["example_id"], frame["request"], strict=True):
            for key in zip(keys, (example, request.strip())):
                other, first = split_of.setdefault(key, (split, example))
                if other != split:
                    raise RecR1Error(
                        f"task {task!r}: {key[0]} {shown(key[1])} stands in the {other} split (example "
                        f"{first!r}) and in the {split} split (example {example!r}); keep one of the two"
                    )


def _targets(frame: pd.DataFrame) -> list[str]:
    return [item for relevant in frame["relevant"] for item in relevant]


def shown(value: object, limit: int = 60) -> str:
    """A cell as a message shows it: `empty` for what holds nothing, long text cut."""
    nothing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    if nothing or (isinstance(value, str) and not value.strip()):
        return "empty"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
