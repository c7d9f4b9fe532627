"""What a policy learned, from its own words: request by request with both rankings, and word by word over all.

The requests shown are not picked: they stand at even steps through all examples sorted by the change of the metric.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error, template
from recr1_lite.evaluate.evaluation import EvalResult, metric_label, paired
from recr1_lite.search.base import bag_of_words
from recr1_lite.search.metrics import Interval, mean_interval
from recr1_lite.tasks.prompts import Prompt

TIE = 1e-12
_WORD = re.compile(r"(\w+(?:['’]\w+)*)")


def mark_words(request: str, query: str) -> list[tuple[str, str]]:
    """The query in pieces with their kind: "copied" (a word of the request, any case), "new", or "" between."""
    known, pieces = set(words_of(request)), []
    for place, text in enumerate(_WORD.split(query)):  # every second piece is a word
        kind = "copied" if text.casefold() in known else "new"
        pieces.append((text, kind if place % 2 else ""))
    return [piece for piece in pieces if piece[0]]


def words_of(text: str) -> list[str]:
    """Its words in order, in small letters, without punctuation."""
    return [word.casefold() for word in _WORD.findall(text)]


def rewrites(result: EvalResult, prompt: Prompt) -> dict[str, str]:
    """example_id -> what the model itself wrote, parsed ("" where that failed); not the query sent."""
    rows = result.rows.itertuples()
    return {row.example_id: prompt.read(row.completion, row.outcome == "truncated").query for row in rows}


def word_shares(
    before: EvalResult, after: EvalResult, prompt: Prompt, n=12, stopwords: str | None = "en"
) -> pd.DataFrame:
    """The words whose use changed most: word, before, after (share of the rewrites that hold it, 0 to 1).

    `stopwords`, which the retriever does not see, are not counted. Up to n // 2 words that rose and as many that
    fell, from the largest rise to the largest fall; equal changes in the order of the alphabet. attrs["n"]: how many
    rewrites. Raises RecR1Error where the results do not pair, or n < 2."""
    if n < 2:
        raise RecR1Error(f"word_shares shows n // 2 words of a kind, so n = {n!r} shows none; take 2 or more")
    paired(before, after, after.metric)
    shares = {}
    for name, result in (("before", before), ("after", after)):
        bags = bag_of_words(rewrites(result, prompt).values(), stopwords, None)
        shares[name] = pd.Series([word for bag in bags for word in set(bag)], dtype=str).value_counts() / len(bags)
    frame = pd.DataFrame(shares).fillna(0.0).sort_index().rename_axis("word").reset_index()
    gain = (frame["after"] - frame["before"]).sort_values(ascending=False, kind="stable")
    kept = frame.loc[[*gain[gain > 0].index[: n // 2], *gain[gain < 0].index[-(n // 2) :]]].reset_index(drop=True)
    kept.attrs["n"] = len(after.rows)
    return kept


def habits(result: EvalResult, prompt: Prompt, vocabulary: Collection[str] = ()) -> dict[str, Interval | float]:
    """How the model writes: means over the examples with their 95% intervals, and one share without.

    "words": words per rewrite; "copied" and "new": share of its words that its request holds, or does not, over the
    rewrites that hold a word; "named": share of the rewrites with a word of `vocabulary`, say the classes of the
    catalogue (any case; only where one is given); "distinct": different rewrites over all, a plain number, because an
    interval over examples cannot be had for it. Pair two results with `paired_interval`."""
    words = {example: words_of(text) for example, text in rewrites(result, prompt).items()}
    asked = {row.example_id: set(words_of(row.request)) for row in result.rows.itertuples()}
    copied = [sum(word in asked[example] for word in said) / len(said) for example, said in words.items() if said]
    shares: dict[str, Interval | float] = {"words": mean_interval([len(said) for said in words.values()])}
    if copied:
        shares |= {"copied": mean_interval(copied), "new": mean_interval([1 - share for share in copied])}
    if vocabulary:
        known = {word.casefold() for word in vocabulary}
        shares["named"] = mean_interval([bool(known & set(said)) for said in words.values()])
    return shares | {"distinct": round(len(set(map(tuple, words.values()))) / len(words), 3)}


def unrepeated(text: str, completion: str) -> tuple[str, int]:
    """What `expand` mode repeated, and how often: ("warm skirt", 2) of "warm skirt warm skirt". A rewrite that repeats
    itself ("skirt skirt") is told from that by the completion, which holds it once."""
    words, said = text.split(), " ".join(completion.split())
    units = [n for n in range(1, len(words) + 1) if words == words[:n] * (len(words) // n)]
    fitting = [n for n in units if " ".join(words[:n]) in said] or units[:1] or [1]
    return " ".join(words[: fitting[-1]]), max(1, len(words) // fitting[-1])


def sent(request: str, stage: dict) -> dict:
    """What a stage sent, for the card: {lead: whether the request comes first, words: pieces with kinds, times}."""
    query, times = stage["query"], 1
    lead = query.startswith(request) and query.strip() != request.strip()  # expand: the request, then the rewrite
    if lead:
        query, times = unrepeated(query[len(request) :], stage["completion"])
    return {"lead": lead, "words": mark_words(request, query), "times": times}


def moved(was: int | None, now: int | None) -> tuple[str, str]:
    """The sign of a move between two ranks, and its tone: ("▲29", "rr-up")."""
    if was == now:
        return "=", ""
    if was is None:
        return "✚", "rr-up"
    if now is None:
        return "▼ lost", "rr-down"
    return (f"▲{was - now}", "rr-up") if now < was else (f"▼{now - was}", "rr-down")


def hits(example: dict, place: int, first: int) -> list[dict]:
    """The first hits of a stage, then the relevant ones further down: {rank, title, star, far, move}."""
    stages, wanted = example["stages"], {item["id"]: item["ranks"] for item in example["relevant"]}
    shown = [{"rank": rank, **hit, "far": False} for rank, hit in enumerate(stages[place]["top"][:first], start=1)]
    found = wanted.keys() - {hit["id"] for hit in shown}
    below = [item | {"rank": item["ranks"][place], "far": True} for item in example["relevant"] if item["id"] in found]
    shown += sorted((item for item in below if item["rank"]), key=lambda item: item["rank"])
    old = {hit["id"]: rank for rank, hit in enumerate(stages[place - 1]["top"], start=1)}
    old |= {item: ranks[place - 1] for item, ranks in wanted.items()}
    for hit in shown:
        hit |= {"star": hit["id"] in wanted, "move": moved(old.get(hit["id"]), hit["rank"]) if place else None}
    return shown


@dataclass(frozen=True, repr=False)
class Inspection:
    """Requests with their rewrites and hits at two stages or more: before and after, or along a training.

    head: plain JSON about all examples: names and means (one per stage), before and after (the first name and the
    last), split, metric, n, gains, losses, ties, changes (last stage minus first, sorted, one per example), shown
    (their places). examples: plain JSON, one per shown request."""

    head: dict
    examples: list[dict]

    def __repr__(self) -> str:
        return f"Inspection of {len(self.examples)} of {self.head['n']} requests: {' → '.join(self.head['names'])}"

    def to_rows(self) -> list[dict]:
        """Plain JSON rows for the ledger: the heading first, then one row per example."""
        return [self.head, *self.examples]

    @classmethod
    def from_rows(cls, rows: list[dict]) -> "Inspection":
        """The inspection that `to_rows` wrote; RecR1Error where rows are missing or are something else."""
        if not rows or "changes" not in rows[0] or not all("example_id" in row for row in rows[1:]):
            raise RecR1Error("these are not an inspection's rows; pass what Inspection.to_rows() gave, whole")
        head, examples = rows[0], list(rows[1:])
        if "names" not in head:  # written before there were stages: a before and an after
            head = head | {"names": [head["before"], head["after"]], "means": [head["mean_before"], head["mean_after"]]}
            for place, row in enumerate(examples):
                relevant = [item | {"ranks": [item["before"], item["after"]]} for item in row["relevant"]]
                examples[place] = row | {"stages": [row["before"], row["after"]], "relevant": relevant}
        return cls(head, examples)

    @property
    def rule(self) -> str:
        """How the shown examples were chosen, in one sentence."""
        told = "at even steps through the list sorted by change, from one end to the other; nobody picked them"
        return f"Shown: {len(self.examples)} of {self.head['n']} requests, {told}."

    def _repr_html_(self) -> str:
        helpers = dict(sent=sent, hits=hits, moved=moved, label=metric_label(self.head["metric"]), tie=TIE)
        return template("report", "inspector.html.j2").render(**vars(self), rule=self.rule, **helpers)

    def html(self) -> str:
        """A page that stands alone: no network, no script, light or dark as the reader's device is."""
        title = " → ".join(self.head["names"])
        return template("report", "alone.html.j2").render(title=title, body=self._repr_html_())


def inspect_rewrites(before: EvalResult, after: EvalResult, items: pd.DataFrame, n: int = 12) -> Inspection:
    """`inspect_stages` of two results, with twelve examples."""
    return inspect_stages([before, after], items, n)


def inspect_stages(results: Sequence[EvalResult], items: pd.DataFrame, n: int = 6) -> Inspection:
    """Results in order, say steps 0, 25 and 50, with n examples at even quantiles of the change, last less first.

    items: item_id, title, text. Equal changes are ordered by example_id, so the choice is the same each time. Raises
    RecR1Error when n < 1, for one result, or when the results were not scored on the same examples."""
    if n < 1 or len(results) < 2:
        told = f"not n={n!r} and {len(results)}; 12 of before and after is usual"
        raise RecR1Error(f"an inspection needs n of at least 1 and two results or more, {told}")
    last, metric = results[-1], results[-1].metric
    frames = [paired(last, result, metric)[1] for result in results]
    change = (frames[-1][metric] - frames[0][metric]).astype(float).sort_index().sort_values(kind="stable")
    places = np.unique(np.linspace(0, len(change) - 1, min(n, len(change))).round().astype(int))
    known = items.astype({"item_id": str, "title": str, "text": str}).set_index("item_id")
    titles, texts = known["title"].to_dict(), known["text"].to_dict()
    examples = []
    for example, gain in change.iloc[places].items():
        rows, relevant, stages = [frame.loc[example] for frame in frames], [], []
        for item in rows[-1]["ranks"]:
            text = shorten(texts.get(item, ""), 160, placeholder="…")
            ranks = [row["ranks"].get(item) for row in rows]
            relevant.append({"id": item, "title": titles.get(item, item), "ranks": ranks, "text": text})
        for row in rows:
            top = [{"id": item, "title": titles.get(item, item)} for item in row["top"]]
            said = {key: str(row[key]) for key in ("query", "completion", "outcome")}
            stages.append(said | {"value": float(row[metric]), "top": top})
        about: dict = {"example_id": str(example), "request": str(rows[-1]["request"]), "change": float(gain)}
        examples.append(about | {"relevant": relevant, "stages": stages})
    names, gains, losses = [result.name for result in results], int((change > TIE).sum()), int((change < -TIE).sum())
    head: dict = {"names": names, "before": names[0], "after": names[-1], "split": last.split, "metric": metric}
    head |= {"n": len(change), "gains": gains, "losses": losses, "ties": len(change) - gains - losses}
    head["means"] = [round(float(frame[metric].mean()), 6) for frame in frames]
    return Inspection(head | {"changes": change.round(4).tolist(), "shown": places.tolist()}, examples)
