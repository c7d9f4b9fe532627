"""What a policy learned, read from its own words: which it came to write, and which habits it took on."""

# MERGED: """The inspector's HTML: one card a request, every stage under the other, in whatever colours the page has."""
# MERGED: """The rollout inspector: what other rewrites did to the ranking, request by request, as one HTML page.
# MERGED:
# MERGED: The examples are not picked: they stand at even steps through all examples sorted by the change of the metric.
# MERGED: """

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import EvalResult, metric_label, paired
from recr1_lite.search.base import bag_of_words
from recr1_lite.search.metrics import Interval, mean_interval
from recr1_lite.tasks.prompts import Prompt


def words_of(text: str) -> list[str]:
    """Its words in order, in small letters, without punctuation."""
    return [piece.casefold() for piece, kind in mark_words("", text) if kind]


def rewrites(result: EvalResult, prompt: Prompt) -> dict[str, str]:
    """example_id -> what the model itself wrote, parsed ("" where that failed); not the query sent."""
    return {
        row.example_id: prompt.read(row.completion, row.outcome == "truncated").query
        for row in result.rows.itertuples()
    }


def word_shares(
    before: EvalResult, after: EvalResult, prompt: Prompt, n: int = 12, stopwords: str | Collection[str] | None = "en"
) -> pd.DataFrame:
    """The words whose use changed most: word, before, after (share of the rewrites that hold it, 0 to 1).

    `stopwords`, which the retriever does not see, are not counted.
    Up to n // 2 words that rose and as many that fell, from the largest rise to the largest fall; of equal
    changes in the order of the alphabet. attrs["n"]: how many rewrites. Raises RecR1Error where the results
    do not pair, or n < 2.
    """
    if n < 2:
        raise RecR1Error(f"word_shares shows n // 2 words of a kind, so n = {n!r} shows none; take 2 or more")
    paired(before, after, after.metric)
    shares = [
        Counter(
            word for words in bag_of_words(rewrites(result, prompt).values(), stopwords, None) for word in set(words)
        )
        for result in (before, after)
    ]
    count = len(after.rows)
    rows = [
        {"word": word, **{name: share[word] / count for name, share in zip(("before", "after"), shares)}}
        for word in sorted(shares[0].keys() | shares[1].keys())
    ]
    rows.sort(key=lambda row: row["before"] - row["after"])
    rose = [row for row in rows if row["after"] > row["before"]][: n // 2]
    fell = [row for row in rows if row["after"] < row["before"]][-(n // 2) :]
    frame = pd.DataFrame([*rose, *fell], columns=["word", "before", "after"])
    frame.attrs["n"] = count
    return frame


def habits(result: EvalResult, prompt: Prompt, vocabulary: Collection[str] = ()) -> dict[str, Interval | float]:
    """How the model writes: means over the examples with their 95% intervals, and one share without.

    "words": words a rewrite; "copied" and "new": share of its words that its request holds, or does not, over
    the rewrites that hold a word; "named": share of the rewrites with a word of `vocabulary`, say the classes
    of the catalogue (any case; only where one is given); "distinct": different rewrites over all, a plain
    number, because an interval over examples cannot be had for it. Pair two results with `paired_interval`.
    """
    texts = rewrites(result, prompt)
    words = {example: words_of(text) for example, text in texts.items()}
    asked = {row.example_id: set(words_of(row.request)) for row in result.rows.itertuples()}
    copied = [sum(word in asked[example] for word in said) / len(said) for example, said in words.items() if said]
    found = {"words": mean_interval([len(said) for said in words.values()])}
    if copied:
        found |= {"copied": mean_interval(copied), "new": mean_interval([1 - share for share in copied])}
    if vocabulary:
        known = {word.casefold() for word in vocabulary}
        found["named"] = mean_interval([bool(known & set(said)) for said in words.values()])
    return found | {"distinct": round(len(set(map(tuple, words.values()))) / len(words), 3)}


TIE = 1e-12
_WORD = re.compile(r"\w+(?:['’]\w+)*")


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


def unrepeated(text: str, completion: str) -> tuple[str, int]:
    """What `expand` mode repeated, and how often: ("warm skirt", 2) of "warm skirt warm skirt".

    A rewrite that repeats itself ("skirt skirt") is told from the repeating by the completion, which holds it
    once.
    """
    words, said = text.split(), " ".join(completion.split())
    units = [n for n in range(1, len(words) + 1) if words == words[:n] * (len(words) // n)]
    fitting = [n for n in units if " ".join(words[:n]) in said] or units[:1] or [1]
    return " ".join(words[: fitting[-1]]), max(1, len(words) // fitting[-1])


def heading(head: dict, rule: str) -> str:
    """What changed over all examples: counts, means, a bar for each change, the rule of what is shown."""
    count = (
        f"{head['gains']} of {head['n']} requests gained, {head['losses']} lost, {head['ties']} tied on "
        + head["split"]
        + (f" from {head['names'][0]} to {head['names'][-1]}" if len(head["names"]) > 2 else "")
        + f"; mean {metric_label(head['metric'])} {' → '.join(f'{mean:.3f}' for mean in head['means'])}."
    )
    return (
        f'<div class="rr-head"><p><b>{escape(count)}</b></p>{_strip(head)}<p>{escape(rule)}</p>'
        "<p>In a rewrite, <u>underlined</u> words are copied from the request and <mark>marked</mark> words "
        'are new; <span class="rr-move">×4</span>: sent 4 times over, which weighs it. ★ is a relevant item; '
        "▲ up, ▼ down, = same place, ✚ not in the first 10 before.</p></div>"
    )


def _strip(head: dict) -> str:
    """Every example's change as one bar, sorted, with a tick below each that is shown."""
    changes = head["changes"]
    top = max((abs(value) for value in changes), default=0.0) or 1.0
    width = 600 / max(1, len(changes))
    bars = "".join(
        f'<rect x="{place * width:.2f}" y="{36 - max(value, 0) / top * 34:.2f}" '
        f'width="{max(width * 0.85, 0.8):.2f}" height="{max(abs(value) / top * 34, 1):.2f}" '
        f'fill="{"#0072B2" if value > TIE else "#D55E00" if value < -TIE else "#808080"}"/>'
        for place, value in enumerate(changes)
    )
    ticks = "".join(
        f'<rect x="{min((place + 0.5) * width - 1, 598):.2f}" y="73" width="2" height="7" fill="currentColor"/>'
        for place in head["shown"]
    )
    caption = escape(
        f"Change of {metric_label(head['metric'])}, one bar a request, sorted: {min(changes):+.2f} to "
        f"{max(changes):+.2f}; a tick below each that is shown."
    )
    return (
        f'<svg viewBox="0 0 600 80" role="img" aria-label="{caption}" preserveAspectRatio="none">'
        f'<line x1="0" x2="600" y1="36" y2="36" stroke="#808080"/>{bars}{ticks}</svg>'
        f'<p class="rr-small">{caption}</p>'
    )


def card(head: dict, example: dict) -> str:
    """One request: at every stage its rewrite, the rank it won and the first hits."""
    stages, relevant, change = example["stages"], example["relevant"], example["change"]
    verdict = "gain" if change > TIE else "loss" if change < -TIE else "tie"
    label, names = escape(metric_label(head["metric"])), head["names"]
    values = " → ".join(f"{stage['value']:.2f}" for stage in stages)
    moves = [_ranks(item["ranks"]) for item in relevant]
    alone = moves[0] if len(moves) == 1 else [""] * len(stages)  # of several, each has its ranks by its title
    wanted = "".join(
        f"<li>★ {escape(item['title'])}{'' if len(moves) == 1 else ': ' + ' → '.join(ranks)}<br>"
        f'<span class="rr-small">{escape(item["text"])}</span></li>'
        for item, ranks in zip(relevant, moves)
    )
    queries = "".join(
        f'<p class="rr-label"><b>{escape(name)}</b> · {rank and rank + " · "}{label} {stage["value"]:.2f}</p>'
        f"<p>{_query(example['request'], stage)}</p>"
        for name, stage, rank in zip(names, stages, alone)
    )
    hits = "".join(_hits(names, stages, place, relevant) for place in range(len(stages)))
    return (
        f'<section class="rr-card rr-{verdict}"><p class="rr-verdict"><b>{verdict} {change:+.2f}</b> '
        f"{label} {values}</p>"
        f'<p class="rr-label">request</p><p>{escape(example["request"])}</p>'
        f'<p class="rr-label">relevant</p><ul>{wanted}</ul>{queries}'
        f'<div class="rr-hits">{hits}</div></section>'
    )


def _query(request: str, stage: dict) -> str:
    query, lead, times = stage["query"], "", 1
    if query.strip() == request.strip():
        body = "<i>the request as it is</i>"
    elif not query.strip():
        body = "<i>nothing was sent</i>"
    else:
        if query.startswith(request):  # expand mode sends the request and then the rewrite
            query, times = unrepeated(query[len(request) :], stage["completion"])
            lead = "<i>the request, then</i> "
        tags = {"copied": "<u>{}</u>", "new": "<mark>{}</mark>", "": "{}"}
        body = lead + "".join(tags[kind].format(escape(text)) for text, kind in mark_words(request, query))
    note = f' <span class="rr-move">×{times}</span>' if times > 1 else ""
    note += "" if stage["outcome"] == "ok" else f" <b>[{escape(stage['outcome'].replace('_', ' '))}]</b>"
    return body + note


def _hits(names: list[str], stages: list[dict], place: int, relevant: list[dict]) -> str:
    """The first hits of one stage and how far each moved since the last; then the relevant further down."""
    wanted = {item["id"]: item["ranks"] for item in relevant}
    old = {hit["id"]: rank for rank, hit in enumerate(stages[place - 1]["top"], start=1)} if place else {}
    old |= {item: ranks[place - 1] for item, ranks in wanted.items()} if place else {}

    def line(rank: int, item: str, title: str, far: str = "") -> str:
        move = " " + _arrow(old.get(item), rank) if place else ""
        star, tone = ("★ ", f' class="rr-star{far}"') if item in wanted else ("", "")
        return f'<li value="{rank}"{tone}>{star}{escape(title)}{move}</li>'

    first = stages[place]["top"][: 5 if len(stages) == 2 else 3]
    lines = [line(rank, hit["id"], hit["title"]) for rank, hit in enumerate(first, start=1)]
    for item in sorted(relevant, key=lambda item: item["ranks"][place] or 10**9):
        if item["ranks"][place] and item["id"] not in {hit["id"] for hit in first}:
            lines.append(line(item["ranks"][place], item["id"], item["title"], " rr-far"))
    body = f"<ol>{''.join(lines)}</ol>" if lines else "<p><i>no hits</i></p>"
    return f'<div><p class="rr-label">first hits, {escape(names[place])}</p>{body}</div>'


def _ranks(ranks: list[int | None]) -> list[str]:
    """The rank at each stage, with its move since the last: "rank 41", "rank 12 ▲29"."""
    said = [f"rank&nbsp;{rank}" if rank else "not found" for rank in ranks]
    moves = [_arrow(was, now) for was, now in zip(ranks, ranks[1:])]
    return said[:1] + [f"{text}&nbsp;{move}" for text, move in zip(said[1:], moves)]


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
CARD_CSS = """
.rr-inspector{max-width:860px;overflow-wrap:anywhere;line-height:1.45}
.rr-inspector p{margin:.2em 0 .5em}
.rr-inspector svg{width:100%;height:72px}
.rr-inspector .rr-small{font-size:.85em;opacity:.8}
.rr-inspector .rr-card{border:1px solid rgba(128,128,128,.45);border-left:6px solid rgba(128,128,128,.6);
 border-radius:6px;padding:.6em .9em;margin:1em 0}
.rr-inspector .rr-gain{border-left-color:#0072B2}
.rr-inspector .rr-loss{border-left-color:#D55E00}
.rr-inspector .rr-verdict{font-variant-numeric:tabular-nums}
.rr-inspector .rr-label{font-size:.85em;opacity:.8;margin:.6em 0 0}
.rr-inspector mark{background:rgba(230,159,0,.4);color:inherit;border-radius:3px;padding:0 .15em}
.rr-inspector u{text-decoration-thickness:2px;text-underline-offset:3px}
.rr-inspector .rr-card ol{margin:.2em 0;padding-left:2.2em}
.rr-inspector .rr-card ul{margin:.2em 0;padding-left:0;list-style:none}
.rr-inspector .rr-hits{display:grid;gap:0 1em;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,12em),1fr))}
.rr-inspector .rr-star{font-weight:600}
.rr-inspector .rr-far{margin-top:.4em}
.rr-inspector .rr-move{font-size:.85em;font-weight:600;white-space:nowrap;padding:0 .3em;border-radius:3px;
 background:rgba(128,128,128,.18)}
.rr-inspector .rr-up{background:rgba(0,114,178,.28)}
.rr-inspector .rr-down{background:rgba(213,94,0,.28)}
""".strip()


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
        raise RecR1Error(
            f"an inspection needs n of at least 1 and two results or more, not n={n!r} and "
            f"{len(results)}; 12 of before and after is usual"
        )
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
        wanted = [
            {
                "id": item,
                "title": titles.get(item, item),
                "ranks": [row["ranks"].get(item) for row in rows],
                "text": shorten(texts.get(item, ""), 160, placeholder="…"),
            }
            for item in rows[-1]["ranks"]
        ]
        examples.append(
            {
                "example_id": str(example),
                "request": str(rows[-1]["request"]),
                "change": float(change[example]),
                "relevant": wanted,
                "stages": [_stage(row, metric, titles) for row in rows],
            }
        )
    values, names = change.loc[order].to_numpy(), [result.name for result in results]
    head = {
        "names": names,
        "before": names[0],
        "after": names[-1],
        "split": results[-1].split,
        "metric": metric,
        "n": len(order),
        "gains": int((values > TIE).sum()),
        "losses": int((values < -TIE).sum()),
        "ties": int((abs(values) <= TIE).sum()),
        "means": [round(float(frame[metric].mean()), 6) for frame in frames],
        "changes": [round(float(value), 4) for value in values],
        "shown": [int(place) for place in places],
    }
    return Inspection(head, examples)


def _stage(row: pd.Series, metric: str, titles: dict[str, str]) -> dict:
    return {
        "query": str(row["query"]),
        "completion": str(row["completion"]),
        "outcome": str(row["outcome"]),
        "value": float(row[metric]),
        "top": [{"id": item, "title": titles.get(item, item)} for item in row["top"]],
    }


def _of_two(rows: list[dict]) -> list[dict]:
    """Rows of the older form, which knew a before and an after, in today's."""
    head, *examples = rows
    head = head | {"names": [head["before"], head["after"]], "means": [head["mean_before"], head["mean_after"]]}
    return [
        head,
        *(
            example
            | {
                "stages": [example["before"], example["after"]],
                "relevant": [item | {"ranks": [item["before"], item["after"]]} for item in example["relevant"]],
            }
            for example in examples
        ),
    ]
