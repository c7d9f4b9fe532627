"""What a user had so far -> what comes next: the examples of a sequential recommendation task.

The request is the titles of the last items (arXiv 2503.24289 takes ten), the relevant item is the next one, and
nothing of the history may stand in the ranking. An example whose next item is already in its history (bought again)
is left out and counted: excluded, it could not be found; kept in the ranking, it would be the only one of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from recr1_lite.common import RecR1Error

COLUMNS = ("example_id", "request", "relevant", "exclude", "history")
BETWEEN = "; "
LAST = 10  # titles in a request


def table(
    rows: Iterable[tuple[str, Sequence[str], str]], titles: Mapping[str, str], last: int = LAST
) -> tuple[pd.DataFrame, int]:
    """A split of a sequential task, in COLUMNS, and how many repeats were left out.

    rows: (example_id, history, target) with the ids of the items that the user had, oldest first; titles:
    item_id -> title. `request` holds the titles of the last `last` of them, the latest last; `exclude` the different
    ids of the whole history. Raises RecR1Error: `last` below 1, a history without items, an item without title.
    """
    checked_last(last)
    examples, repeats = [], 0
    for example, history, target in rows:
        history = list(history)
        if not history:
            raise RecR1Error(f"example {example!r} has an empty history, so there is nothing to ask with; leave it out")
        if unknown := [item for item in history if item not in titles]:
            raise RecR1Error(
                f"example {example!r} has item {unknown[0]!r} in its history, which the catalogue lacks; "
                "add the item, or leave it out of the history"
            )
        if target in history:
            repeats += 1
            continue
        examples.append((example, request(history, titles, last), {target: 1.0}, list(dict.fromkeys(history)), history))
    return pd.DataFrame(examples, columns=list(COLUMNS)), repeats


def request(history: Sequence[str], titles: Mapping[str, str], last: int = LAST) -> str:
    """The titles of the last `last` items of a history, the latest last."""
    return BETWEEN.join(titles[item] for item in history[-last:])


def checked_last(last: int) -> int:
    """`last` again. Raises RecR1Error where it is no whole number from 1 on."""
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:
        raise RecR1Error(f"last={last!r} shows no item of a history; use a whole number from 1 on")
    return last
