"""The rollout inspector: what other rewrites did to the ranking, request by request, as one HTML page.

The examples are not picked: they stand at even steps through all examples sorted by the change of the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten

import numpy as np
import pandas as pd

from recr1_lite.cards import CARD_CSS, PAGE_CSS, TIE, card, heading, mark_words
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, paired

__all__ = ["PAGE_CSS", "Inspection", "inspect_rewrites", "inspect_stages", "mark_words"]


@dataclass(frozen=True, repr=False)
class Inspection:
    """Requests with their rewrites and hits at two stages or more: before and after, or along a training.

    head: plain JSON about all examples: names and means (one a stage), before and after (the first name and
    the last), split, metric, n, gains, losses, ties, changes (last stage minus first, sorted, one an
    example), shown (their places). examples: plain JSON, one a shown request.
    """

    head: dict
    examples: list[dict]

    def to_rows(self) -> list[dict]:
        """Plain JSON rows for the ledger: the heading first, then one row an example."""
        return [self.head, *self.examples]

    @classmethod
    def from_rows(cls, rows: list[dict]) -> Inspection:
        """The inspection that `to_rows` wrote; RecR1Error where rows are missing or are something else."""
        if not rows or "changes" not in rows[0] or not all("example_id" in row for row in rows[1:]):
            raise RecR1Error("these are not an inspection's rows; pass what Inspection.to_rows() gave, whole")
        if "names" not in rows[0]:  # written before there were stages
            rows = _of_two(rows)
        return cls(rows[0], list(rows[1:]))

    @property
    def rule(self) -> str:
        """How the shown examples were chosen, in one sentence."""
        return (
            f"Shown: {len(self.examples)} of {self.head['n']} requests, at even steps through the list "
            "sorted by change, from one end to the other; nobody picked them."
        )

    def __repr__(self) -> str:
        names = " → ".join(self.head["names"])
        return f"Inspection of {len(self.examples)} of {self.head['n']} requests: {names}"

    def _repr_html_(self) -> str:
        body = "".join(card(self.head, example) for example in self.examples)
        head = heading(self.head, self.rule)
        return f'<style>{CARD_CSS}</style><div class="rr-inspector">{head}{body}</div>'

    def html(self) -> str:
        """A page that stands alone: no network, no script, light or dark as the reader's device is."""
        title = escape(" → ".join(self.head["names"]))
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{PAGE_CSS}</style></head>"
            f"<body><main><h1>{title}</h1>{self._repr_html_()}</main></body></html>"
        )


def inspect_rewrites(
    before: EvalResult, after: EvalResult, items: pd.DataFrame, n: int = 12, metric: str | None = None
) -> Inspection:
    """Pair two results and take n examples at even quantiles of the metric's change: losses, ties and gains.

    items: item_id, title, text. Equal changes are ordered by example_id, so the choice is the same each time.
    Raises RecR1Error when n < 1, or when the two were not scored on the same examples.
    """
    return inspect_stages([before, after], items, n, metric)


def inspect_stages(
    results: Sequence[EvalResult], items: pd.DataFrame, n: int = 6, metric: str | None = None
) -> Inspection:
    """The same for two stages or more, in order, say steps 0, 25 and 50; the change: the last less the first.

    Stages carry the names of their results. Raises RecR1Error as inspect_rewrites does, and for one result.
    """
    if n < 1 or len(results) < 2:
        raise RecR1Error(f"an inspection needs n of at least 1 and two results or more, not n={n!r} and "
                         f"{len(results)}; 12 of before and after is usual")
    metric = metric or results[-1].metric
    frames = [paired(results[-1], result, metric)[1] for result in results]
    change = (frames[-1][metric] - frames[0][metric]).astype(float)
    order = sorted(change.index, key=lambda example: (change[example], example))
    places = np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))
    titles = dict(zip(items["item_id"].astype(str), items["title"].astype(str)))
    texts = dict(zip(items["item_id"].astype(str), items["text"].astype(str)))

    examples = []
    for example in (order[place] for place in places):
        rows = [frame.loc[example] for frame in frames]
        wanted = [{"id": item, "title": titles.get(item, item),
                   "ranks": [row["ranks"].get(item) for row in rows],
                   "text": shorten(texts.get(item, ""), 160, placeholder="…")} for item in rows[-1]["ranks"]]
        examples.append({
            "example_id": str(example), "request": str(rows[-1]["request"]), "change": float(change[example]),
            "relevant": wanted, "stages": [_stage(row, metric, titles) for row in rows],
        })
    values, names = change.loc[order].to_numpy(), [result.name for result in results]
    head = {
        "names": names, "before": names[0], "after": names[-1], "split": results[-1].split, "metric": metric,
        "n": len(order), "gains": int((values > TIE).sum()), "losses": int((values < -TIE).sum()),
        "ties": int((abs(values) <= TIE).sum()),
        "means": [round(float(frame[metric].mean()), 6) for frame in frames],
        "changes": [round(float(value), 4) for value in values],
        "shown": [int(place) for place in places],
    }
    return Inspection(head, examples)


def _stage(row: pd.Series, metric: str, titles: dict[str, str]) -> dict:
    return {
        "query": str(row["query"]), "completion": str(row["completion"]), "outcome": str(row["outcome"]),
        "value": float(row[metric]),
        "top": [{"id": item, "title": titles.get(item, item)} for item in row["top"]],
    }


def _of_two(rows: list[dict]) -> list[dict]:
    """Rows of the older form, which knew a before and an after, in today's."""
    head, *examples = rows
    head = head | {"names": [head["before"], head["after"]],
                   "means": [head["mean_before"], head["mean_after"]]}
    return [head, *(example | {
        "stages": [example["before"], example["after"]],
        "relevant": [item | {"ranks": [item["before"], item["after"]]} for item in example["relevant"]],
    } for example in examples)]
