"""Score any rewriter with the fixed retriever, and compare two of them example by example.

Everything is a rewriter here: the raw request, a prompted model, an adapter, an API, a lambda. Only the queries differ.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from recr1_lite.common import RecR1Error, bar
from recr1_lite.ledger import Ledger, packed, unpacked
from recr1_lite.search.base import Retriever, checked, search_all
from recr1_lite.search.metrics import Interval, compute, mean_interval, paired_interval, parse_name, without
from recr1_lite.tasks.base import SPLITS, Task, ids_of, most_relevant
from recr1_lite.tasks.prompts import Outcome, Rewrite

TOP = 10  # hits kept per example, for the inspector
SEARCH_BATCH = 1024
LABELS = ("example_id", "cluster")  # what a ledger row keeps of an example beside its metrics
NO_MODEL = "no LLM: "  # how the names of the methods of `ceiling` begin


@dataclass(frozen=True)
class EvalResult:
    """What one rewriter scored on one split.

    rows: one per example, with example_id, request, query (as sent to the retriever), completion, outcome, tokens, one
    column per metric (0 to 1), ranks {item_id: rank from 1, or None} of the most relevant items, top (10 item ids).
    summary: metric -> mean with its 95% interval. seconds: of rewriting and searching all examples. retriever: its
    class, "" where none was asked. depth: places of the ranking that were scored. seed: of the bootstrap."""

    name: str
    split: str
    rows: pd.DataFrame
    summary: dict[str, Interval]
    seconds: float = 0.0
    task: str = ""
    retriever: str = ""
    depth: int = 0
    seed: int = 0

    @property
    def metric(self) -> str:
        """The metric reported first."""
        return next(iter(self.summary))

    @property
    def tokens(self) -> int:
        """Tokens generated, all examples together."""
        return int(self.rows["tokens"].sum())

    @property
    def outcomes(self) -> dict[str, int]:
        """Parse outcome -> how many."""
        return dict(Counter(self.rows["outcome"]))

    def table(self) -> pd.DataFrame:
        """One row per metric: mean, low and high end of the 95% interval, n."""
        return pd.DataFrame([{"metric": metric, **i._asdict()} for metric, i in self.summary.items()])

    def ledger_row(self) -> dict:
        """The "eval" row of the ledger. values: ids, metrics (6 digits) and clusters, if any, of the examples."""
        kept = self.rows[[name for name in (*LABELS, *self.summary) if name in self.rows]].round(6).to_dict("list")
        row = {"kind": "eval", "task": self.task, "method": self.name, "split": self.split, "n": len(self.rows)}
        row |= {"metrics": {metric: i._asdict() for metric, i in self.summary.items()}, "outcomes": self.outcomes}
        row |= {"k": self.depth, "seconds": round(self.seconds, 3), "tokens": self.tokens}
        return row | {"retriever": self.retriever, "seed": self.seed, "values": packed(kept)}

    @classmethod
    def from_row(cls, row: Mapping) -> "EvalResult":
        """The result that an "eval" row of the ledger tells of; of the examples it has ids, metrics and clusters alone.

        Raises RecR1Error where the values are damaged, or are not those of the row's n and means."""
        try:
            told = unpacked(row["values"])
            kept = {key: [*map(str if key in LABELS else float, column)] for key, column in told.items()}
            rows, summary = pd.DataFrame(kept), {metric: Interval(**i) for metric, i in row["metrics"].items()}
            fits = all(abs(rows[metric].mean() - i.mean) < 1e-5 for metric, i in summary.items())
            if not (fits and len(rows) == row["n"] and rows["example_id"].is_unique):
                raise ValueError("not its values")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as bad:
            which = f"the ledger's per-example values of {row['method']} on {row['split']}"
            raise RecR1Error(f"{which} are damaged, or not those of its n and means; evaluate again") from bad
        return cls(row["method"], row["split"], rows, summary, task=row.get("task", ""))


def evaluate(
    rewriter, task: Task, retriever: Retriever, split="val", ledger: Ledger | None = None, seed=0, progress=True
) -> EvalResult:
    """Rewrite every request of a split, search, and score the rankings against the relevant items.

    rewriter: a Rewriter (`complete(requests)`), or any callable list[str] -> list[str]. A Rewriter gets the requests
    longest first in batches, so that little is padded; a callable gets all at once, in order. The test split is opened
    through `task.unseal_test`, which leaves its mark in the ledger. What an example has in `exclude` (films seen
    already) is taken out of its ranking first. seed: of the bootstrap. Appends an "eval" row to the ledger. Raises
    RecR1Error for an unknown or empty split and where there is not one answer per request. A retriever's failure is
    raised: it never becomes a zero."""

    def rank(name: str, examples: pd.DataFrame, depth: int) -> tuple[list[Rewrite], list[list[str]]]:
        rewrites = _rewrites(rewriter, examples["request"].tolist(), f"{name} on {split}", progress)
        queries, rankings = [rewrite.query for rewrite in rewrites], []
        for at in range(0, len(queries), SEARCH_BATCH):
            found = search_all(retriever, queries[at : at + SEARCH_BATCH], depth, ids_of(examples))
            rankings += [hits.ids for hits in found]
        return rewrites, rankings

    return _scored(rewriter, task, split, ledger, seed, rank, type(retriever).__name__)


def evaluate_recommender(recommender, task: Task, split="val", ledger: Ledger | None = None, seed=0) -> EvalResult:
    """Score rankings that no retriever made: of popularity, a neighbourhood, SASRec, a re-ranker.

    recommender: has a name and `recommend(examples, k)`, one list of item ids, best first, per row of the DataFrame
    `examples` (the split's columns without its targets); or such a function. Depth, exclusion, metrics and ledger row
    are those of `evaluate`. Where it has `answers`, one Rewrite per example of the last call, they are in the rows."""

    def rank(name: str, examples: pd.DataFrame, depth: int) -> tuple[list[Rewrite], list[list[str]]]:
        ranked = getattr(recommender, "recommend", recommender)(examples.drop(columns="relevant"), depth)
        pairs, known = zip(examples["example_id"], one_each(ranked, examples, name)), ids_of(examples)
        rankings = [checked(example, ids, depth, known, name).ids for example, ids in pairs]
        return getattr(recommender, "answers", [Rewrite("", "", Outcome.ok, 0)] * len(examples)), rankings

    return _scored(recommender, task, split, ledger, seed, rank)


def excluded(examples: pd.DataFrame) -> list[set[str]]:
    """What each ranking leaves out."""
    return [set(ids) for ids in examples.get("exclude", [()] * len(examples))]


def _scored(
    method, task: Task, split: str, ledger: Ledger | None, seed: int, rank: Callable, retriever: str = ""
) -> EvalResult:
    """Every ranking that rank(name, examples, depth) gives beside its rewrites, less what its example excludes, scored
    with every metric of the task, and noted in the ledger."""
    if split not in SPLITS:
        raise RecR1Error(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    name = str(getattr(method, "name", "") or getattr(method, "__name__", type(method).__name__))
    examples = task.unseal_test(f"evaluate {name}", ledger) if split == "test" else getattr(task, split)
    if not len(examples):
        raise RecR1Error(f"the {split} split of the task {task.name} is empty; evaluate on another one")
    depth, gone = max([task.k_eval, *(parse_name(metric)[1] or 0 for metric in task.metrics)]), excluded(examples)
    start = time.perf_counter()
    rewrites, rankings = rank(name, examples, depth + max(map(len, gone)))
    seconds, rows = time.perf_counter() - start, []
    for example, rewrite, ids, own in zip(examples.itertuples(), rewrites, rankings, gone, strict=True):
        ranking = without(ids, own, depth)
        place = {item: rank for rank, item in reversed(list(enumerate(ranking, start=1)))}
        row = {"example_id": str(example.example_id), "request": example.request, "query": rewrite.query}
        row |= {"cluster": str(example.cluster)} if "cluster" in examples else {}
        row |= {"completion": rewrite.completion, "outcome": str(rewrite.outcome), "tokens": int(rewrite.tokens)}
        row |= {metric: compute(metric, ranking, example.relevant) for metric in task.metrics}
        ranks = {item: place.get(item) for item in most_relevant(example.relevant)}
        rows.append(row | {"ranks": ranks, "top": ranking[:TOP]})
    frame = pd.DataFrame(rows)
    groups: dict = dict(seed=seed, clusters=frame.get("cluster"))
    summary = {metric: mean_interval(frame[metric], **groups) for metric in task.metrics}
    result = EvalResult(name, split, frame, summary, seconds, task.name, retriever, depth, seed)
    if ledger is not None:
        ledger.append(result.ledger_row())
    return result


def compare(a: EvalResult, b: EvalResult, metric: str | None = None, ledger: Ledger | None = None, seed=0) -> Interval:
    """Mean over the examples of a's metric minus b's, with its paired 95% interval: above 0, a is better.

    Where the examples have a `cluster`, whole clusters are resampled. Appends a "compare" row to the ledger. Raises
    RecR1Error when the two were not scored on the same examples, or not with this metric."""
    metric = metric or a.metric
    left, right = paired(a, b, metric)
    difference = paired_interval(left[metric], right[metric], seed=seed, clusters=left.get("cluster"))
    if ledger is not None:
        row = {"kind": "compare", "task": a.task, "split": a.split, "metric": metric, "a": a.name, "b": b.name}
        ledger.append(row | {"difference": difference._asdict(), "seed": seed})
    return difference


def paired(a: EvalResult, b: EvalResult, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a and of b in one order, indexed by example_id; RecR1Error when they cannot be paired."""
    for result in (a, b):
        if metric not in result.summary:
            raise RecR1Error(f"{result.name} was not scored with {metric!r}; pick one of {', '.join(result.summary)}")
    left, right = a.rows.set_index("example_id"), b.rows.set_index("example_id")
    strangers = sorted(set(left.index) ^ set(right.index))
    if strangers:
        who = " and ".join(f"{one.name} ({one.split}, n = {len(one.rows)})" for one in (a, b))
        where = f"({len(strangers)} are in one only, first {strangers[0]!r})"
        raise RecR1Error(f"{who} were not scored on the same examples {where}; evaluate both on one")
    return left, right.loc[left.index]


def methods_table(
    results: Sequence[EvalResult], baselines: Sequence[str] = (), metric=None, ledger: Ledger | None = None
) -> pd.DataFrame:
    """One row per method: n, metric with its 95% interval, paired difference to each baseline (also for the ledger),
    tokens, seconds. Baselines are names of results, of which the later one is compared with the earlier."""
    if not results:
        raise RecR1Error("no results to put in a table; pass what evaluate() returned")
    metric, names = metric or results[0].metric, [result.name for result in results]
    if unknown := [name for name in baselines if name not in names]:
        raise RecR1Error(f"no result named {unknown[0]!r} to compare with; there are {', '.join(names)}")
    before, table = dict[str, EvalResult](), []
    for result in results:
        row = {"method": result.name, "n": len(result.rows)}
        row[f"{metric_label(metric)} [95%]"] = show(result.summary[metric])
        for name in baselines:
            row[f"vs {name}"] = show(compare(result, before[name], metric, ledger), True) if name in before else ""
        table.append(row | {"tokens": result.tokens, "seconds": round(result.seconds, 1)})
        before[result.name] = result
    return pd.DataFrame(table)


def show(interval: Interval | dict, sign: bool = False) -> str:
    """An interval, or its plain JSON, as text: "0.251 [0.224, 0.279]"; signed, "+0.031 [+0.010, +0.052]"."""
    row = interval if isinstance(interval, dict) else interval._asdict()
    form = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else "{mean:.3f} [{low:.3f}, {high:.3f}]"
    return form.format(**row)


def metric_label(metric: str) -> str:
    """A metric's name as it is written in print: "ndcg@100" as "nDCG@100"."""
    return metric.replace("ndcg", "nDCG").replace("mrr", "MRR")


def _rewrites(rewriter, requests: list[str], label: str, progress: bool) -> list[Rewrite]:
    """One Rewrite per request, in the requests' order."""
    if not hasattr(rewriter, "complete"):
        queries = one_each(rewriter(list(requests)), requests, label)
        if wrong := [query for query in queries if not isinstance(query, str)]:
            raise RecR1Error(f"{label}: a query must be text, not {type(wrong[0]).__name__}; return list[str]")
        return [Rewrite(query, query, Outcome.ok if query.strip() else Outcome.empty, 0) for query in queries]
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i]))
    size = getattr(rewriter, "batch_size", None) or 64
    answers: dict[int, Rewrite] = {}
    with bar(total=len(order), desc=label, unit="request", progress=progress) as shown:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            answers |= zip(batch, one_each(rewriter.complete([requests[i] for i in batch]), batch, label), strict=True)
            shown.update(len(batch))
    return [answers[i] for i in range(len(requests))]


def one_each(answers, asked: Sequence, who: str) -> list:
    """The answers as a list. Raises RecR1Error where there is not exactly one for each that was asked."""
    answers = list(answers)
    if len(answers) != len(asked):
        raise RecR1Error(f"{who}: {len(answers)} answers for {len(asked)} asked; return exactly one for each")
    return answers
