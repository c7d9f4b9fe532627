"""What one cell of a user's table holds: an id, a list of ids, relevant items with their gains."""

from __future__ import annotations

import json
import math
import numbers
from typing import Any

import numpy as np
import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.checks import shown


def read_relevant(value: Any, gain: Any, place: str) -> dict[str, float]:
    """`{item_id: gain}` of one cell: an id, or a list of ids or an object of gains, perhaps as JSON text."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise RecR1Error(
                f"{place}: relevant starts like JSON and is not ({problem}); check the quotes"
            ) from problem
    if isinstance(value, dict):
        if not _missing(gain):
            raise RecR1Error(f"{place} has gains in relevant and in gain; keep one of the two")
        judged = {item: own for item, own in value.items() if own is not None}  # Parquet fills up with None
        found = {read_id(item, f"{place}: relevant"): _gain(own, place) for item, own in judged.items()}
    else:
        ids = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        shared = 1.0 if _missing(gain) else _gain(gain, place)
        found = {read_id(item, f"{place}: relevant"): shared for item in ids}
    if not found:
        raise RecR1Error(f"{place}: relevant is empty; name at least one item, or leave the row out")
    return found


def read_ids(value: Any, place: str) -> list[str]:
    """The ids of one cell: a list, perhaps as JSON text; an empty cell holds none."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise RecR1Error(f"{place} is no JSON list ({problem}); write such as [\"a\", \"b\"]") from problem
    if _missing(value) or (isinstance(value, float) and math.isnan(value)):
        return []
    if not isinstance(value, (list, tuple)):
        raise RecR1Error(f"{place} is {shown(value)}; write a JSON list of item ids")
    return [read_id(item, f"{place}: an id") for item in value]


def read_id(value: Any, place: str) -> str:
    """An id as text. A number with decimals is refused: 7.0 is how a damaged "7" or "007" looks."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)):
        return str(value)
    raise RecR1Error(f"{place} is {shown(value)}; an id is text or a whole number")


def _gain(value: Any, place: str) -> float:
    try:
        gain = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        gain = math.nan
    if not math.isfinite(gain) or gain <= 0:
        raise RecR1Error(
            f"{place}: the gain {value!r} is not a positive finite number; mend it or leave the item out"
        )
    return gain


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, str) and not value.strip())
