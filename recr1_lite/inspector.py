"""The rollout inspector: what another rewrite did to the ranking, request by request, as one HTML page.

The examples are not picked: they stand at even steps through all examples sorted by the change of the metric.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from textwrap import shorten

import numpy as np
import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, metric_label, paired

SHOWN = 5  # hits drawn on each side; the ranks of the relevant items come from the whole ranking
TIE = 1e-12
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Inspection:
    """Requests with their rewrites and hits before and after.

    head: plain JSON about all examples: before, after (names), split, metric, n, gains, losses, ties,
    mean_before, mean_after, changes (sorted, one an example), shown (their places). examples: plain JSON, one
    a shown request.
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
        return cls(rows[0], list(rows[1:]))

    @property
    def rule(self) -> str:
        """How the shown examples were chosen, in one sentence."""
        return (
            f"Shown: {len(self.examples)} of {self.head['n']} requests, at even steps through the list "
            "sorted by change, from one end to the other; nobody picked them."
        )

    def _repr_html_(self) -> str:
        body = "".join(_card(self.head, example) for example in self.examples)
        return f'<style>{_CSS}</style><div class="rr-inspector">{_heading(self)}{body}</div>'

    def html(self) -> str:
        """A page that stands alone: no network, no script, light or dark as the reader's device is."""
        title = f"{self.head['before']} → {self.head['after']}"
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{PAGE_CSS}</style></head>"
            f"<body><main><h1>{escape(title)}</h1>{self._repr_html_()}</main></body></html>"
        )


def inspect_rewrites(
    before: EvalResult, after: EvalResult, items: pd.DataFrame, n: int = 12, metric: str | None = None
) -> Inspection:
    """Pair two results and take n examples at even quantiles of the metric's change: losses, ties and gains.

    items: item_id, title, text. Equal changes are ordered by example_id, so the choice is the same each time.
    Raises RecR1Error when n < 1, or when the two were not scored on the same examples.
    """
    if n < 1:
        raise RecR1Error(f"inspect_rewrites needs n of at least 1, not {n!r}; 12 is usual")
    metric = metric or after.metric
    right, left = paired(after, before, metric)
    change = (right[metric] - left[metric]).astype(float)
    order = sorted(change.index, key=lambda example: (change[example], example))
    places = np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))
    titles = dict(zip(items["item_id"].astype(str), items["title"].astype(str)))
    texts = dict(zip(items["item_id"].astype(str), items["text"].astype(str)))

    examples = []
    for example in (order[place] for place in places):
        old, new = left.loc[example], right.loc[example]
        wanted = [
            {"id": item, "title": titles.get(item, item), "before": old["ranks"].get(item), "after": rank,
             "text": shorten(texts.get(item, ""), 160, placeholder="…")}
            for item, rank in new["ranks"].items()
        ]
        examples.append({
            "example_id": str(example), "request": str(new["request"]), "change": float(change[example]),
            "relevant": wanted, "before": _side(old, metric, titles), "after": _side(new, metric, titles),
        })
    values = change.loc[order].to_numpy()
    head = {
        "before": before.name, "after": after.name, "split": after.split, "metric": metric, "n": len(order),
        "gains": int((values > TIE).sum()), "losses": int((values < -TIE).sum()),
        "ties": int((abs(values) <= TIE).sum()),
        "mean_before": round(float(left[metric].mean()), 6),
        "mean_after": round(float(right[metric].mean()), 6),
        "changes": [round(float(value), 4) for value in values],
        "shown": [int(place) for place in places],
    }
    return Inspection(head, examples)


def mark_words(request: str, query: str) -> list[tuple[str, str]]:
    """The query in pieces with their kind: "copied" (a word of the request, any case), "new", or "" between.

    The pieces joined are the query.
    """
    known = {word.casefold() for word in _WORD.findall(request)}
    pieces, end = [], 0
    for match in _WORD.finditer(query):
        pieces.append((query[end : match.start()], ""))
        pieces.append((match[0], "copied" if match[0].casefold() in known else "new"))
        end = match.end()
    return [piece for piece in [*pieces, (query[end:], "")] if piece[0]]


def _side(row: pd.Series, metric: str, titles: dict[str, str]) -> dict:
    return {
        "query": str(row["query"]), "completion": str(row["completion"]), "outcome": str(row["outcome"]),
        "value": float(row[metric]),
        "top": [{"id": item, "title": titles.get(item, item)} for item in row["top"]],
    }


def _heading(inspection: Inspection) -> str:
    head, label = inspection.head, metric_label(inspection.head["metric"])
    count = (
        f"{head['gains']} of {head['n']} requests gained, {head['losses']} lost, {head['ties']} tied on "
        f"{head['split']}; mean {label} {head['mean_before']:.3f} → {head['mean_after']:.3f}."
    )
    return (
        f'<div class="rr-head"><p><b>{escape(count)}</b></p>{_strip(head)}<p>{escape(inspection.rule)}</p>'
        "<p>In a rewrite, <u>underlined</u> words are copied from the request and <mark>marked</mark> words "
        "are new. ★ is a relevant item; ▲ up, ▼ down, = same place, ✚ not in the first 10 before.</p></div>"
    )


def _strip(head: dict) -> str:
    """Every example's change as one bar, sorted, the shown ones in full colour."""
    changes, shown = head["changes"], set(head["shown"])
    top = max((abs(value) for value in changes), default=0.0) or 1.0
    width = 600 / max(1, len(changes))
    bars = "".join(
        f'<rect x="{place * width:.2f}" y="{40 - max(value, 0) / top * 36:.2f}" '
        f'width="{max(width * 0.85, 0.8):.2f}" height="{max(abs(value) / top * 36, 1):.2f}" '
        f'opacity="{1 if place in shown else 0.3}" '
        f'fill="{"#0072B2" if value > TIE else "#D55E00" if value < -TIE else "#808080"}"/>'
        for place, value in enumerate(changes)
    )
    caption = escape(
        f"Change of {metric_label(head['metric'])}, one bar a request, sorted: {min(changes):+.2f} to "
        f"{max(changes):+.2f}; the shown ones in full colour."
    )
    return (
        f'<svg viewBox="0 0 600 80" role="img" aria-label="{caption}" preserveAspectRatio="none">'
        f'<line x1="0" x2="600" y1="40" y2="40" stroke="#808080"/>{bars}</svg>'
        f'<p class="rr-small">{caption}</p>'
    )


def _card(head: dict, example: dict) -> str:
    before, after, change = example["before"], example["after"], example["change"]
    verdict = "gain" if change > TIE else "loss" if change < -TIE else "tie"
    wanted = "".join(
        f"<li>★ {escape(item['title'])}: {_rank(item['before'])} → {_rank(item['after'])} "
        f"{_arrow(item['before'], item['after'])}<br>"
        f'<span class="rr-small">{escape(item["text"])}</span></li>'
        for item in example["relevant"]
    )
    return (
        f'<section class="rr-card rr-{verdict}"><p class="rr-verdict"><b>{verdict} {change:+.2f}</b> '
        f"{escape(metric_label(head['metric']))} {before['value']:.2f} → {after['value']:.2f}</p>"
        f'<p class="rr-label">request</p><p>{escape(example["request"])}</p>'
        f"{_query(head['before'], example['request'], before)}"
        f"{_query(head['after'], example['request'], after)}"
        f'<p class="rr-label">relevant</p><ul>{wanted}</ul>'
        f'<div class="rr-two">{_hits(head["before"], before, None, example["relevant"], "before")}'
        f"{_hits(head['after'], after, before, example['relevant'], 'after')}</div></section>"
    )


def _query(name: str, request: str, side: dict) -> str:
    query, lead = side["query"], ""
    if query == request:
        body = "<i>the request as it is</i>"
    elif not query.strip():
        body = "<i>nothing was sent</i>"
    else:
        if query.startswith(request):  # expand mode sends the request and then the rewrite
            query, lead = query[len(request) :].strip(), "<i>the request and</i> "
        tags = {"copied": "<u>{}</u>", "new": "<mark>{}</mark>", "": "{}"}
        body = lead + "".join(tags[kind].format(escape(text)) for text, kind in mark_words(request, query))
    note = "" if side["outcome"] == "ok" else f" <b>[{escape(side['outcome'].replace('_', ' '))}]</b>"
    return f'<p class="rr-label">{escape(name)}</p><p>{body}{note}</p>'


def _hits(name: str, side: dict, before: dict | None, relevant: list[dict], key: str) -> str:
    """The first hits of one side; with `before`, how far each moved. Relevant items further down follow."""
    wanted = {item["id"]: item for item in relevant}
    old = {hit["id"]: place for place, hit in enumerate(before["top"], start=1)} if before else {}
    lines = []
    for place, hit in enumerate(side["top"][:SHOWN], start=1):
        star, move = "", ""
        was = old.get(hit["id"])
        if hit["id"] in wanted:
            star, was = "★ ", wanted[hit["id"]]["before"]
        if before is not None:
            move = " " + _arrow(was, place)
        weight = ' class="rr-star"' if star else ""
        lines.append(f'<li value="{place}"{weight}>{star}{escape(hit["title"])}{move}</li>')
    shown = {hit["id"] for hit in side["top"][:SHOWN]}
    for item in sorted(relevant, key=lambda item: item[key] or 10**9):
        if item["id"] not in shown and item[key]:
            move = " " + _arrow(item["before"], item["after"]) if before is not None else ""
            line = f'<li value="{item[key]}" class="rr-star rr-far">★ {escape(item["title"])}{move}</li>'
            lines.append(line)
    body = f"<ol>{''.join(lines)}</ol>" if lines else "<p><i>no hits</i></p>"
    return f'<div><p class="rr-label">first hits, {escape(name)}</p>{body}</div>'


def _rank(rank: int | None) -> str:
    return f"rank&nbsp;{rank}" if rank else "not found"


def _arrow(was: int | None, now: int | None) -> str:
    if was == now:
        return '<span class="rr-move">=</span>'
    if now is None:
        return '<span class="rr-move rr-down">▼ lost</span>'
    if was is None:
        return '<span class="rr-move rr-up">✚</span>'
    sign, tone = ("▲", "rr-up") if now < was else ("▼", "rr-down")
    return f'<span class="rr-move {tone}">{sign}{abs(was - now)}</span>'


PAGE_CSS = (
    ":root{color-scheme:light dark}body{margin:0;background:Canvas;color:CanvasText;"
    "font:16px/1.5 system-ui,sans-serif}main{max-width:860px;margin:0 auto;padding:16px}"
    "h1{font-size:1.4em;line-height:1.25;overflow-wrap:anywhere}"
)
# Inherited colours and half-transparent tones, so that it reads on a light and on a dark notebook alike.
_CSS = """
.rr-inspector{max-width:860px;overflow-wrap:anywhere;line-height:1.45}
.rr-inspector p{margin:.2em 0 .5em}
.rr-inspector svg{width:100%;height:72px}
.rr-inspector .rr-small{font-size:.85em;opacity:.8}
.rr-inspector .rr-card{border:1px solid rgba(128,128,128,.45);border-left:6px solid rgba(128,128,128,.6);
 border-radius:6px;padding:.6em .9em;margin:1em 0}
.rr-inspector .rr-gain{border-left-color:#0072B2}
.rr-inspector .rr-loss{border-left-color:#D55E00}
.rr-inspector .rr-verdict{font-variant-numeric:tabular-nums}
.rr-inspector .rr-label{font-size:.8em;opacity:.75;margin:.5em 0 0}
.rr-inspector mark{background:rgba(230,159,0,.4);color:inherit;border-radius:3px;padding:0 .15em}
.rr-inspector u{text-decoration-thickness:2px;text-underline-offset:3px}
.rr-inspector ol{margin:.2em 0;padding-left:2.2em}
.rr-inspector ul{margin:.2em 0;padding-left:0;list-style:none}
.rr-inspector .rr-two{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:0 1.5em}
.rr-inspector .rr-star{font-weight:600}
.rr-inspector .rr-far{margin-top:.4em}
.rr-inspector .rr-move{font-size:.85em;font-weight:600;white-space:nowrap;padding:0 .3em;border-radius:3px;
 background:rgba(128,128,128,.18)}
.rr-inspector .rr-up{background:rgba(0,114,178,.28)}
.rr-inspector .rr-down{background:rgba(213,94,0,.28)}
""".strip()
