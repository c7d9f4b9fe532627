"""Score any rewriter with the fixed retriever, and compare two of them example by example.

Everything is a rewriter here: the raw request, a prompted model, an adapter, an API, a lambda. Only the
queries differ.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from recr1_lite.common import RecR1Error, bar
from recr1_lite.search.metrics import Interval, compute, mean_interval, paired_interval, parse_name, without

SPLITS = ("train", "val", "test")
TOP = 10  # hits kept for each example, for the inspector
SEARCH_BATCH = 1024


@dataclass(frozen=True)
class EvalResult:
    """What one rewriter scored on one split.

    rows: one row an example: example_id, request, query (as sent to the retriever), completion, outcome,
    tokens, one column a metric (0 to 1), ranks {relevant item_id: rank from 1, or None when not found}, top
    (first 10 item ids). summary: metric -> mean with its 95% interval. outcomes: parse outcome -> how many.
    tokens: generated, all examples together. seconds: rewriting and searching, all examples.
    """

    name: str
    split: str
    rows: pd.DataFrame
    summary: dict[str, Interval]
    seconds: float
    tokens: int
    task: str = ""
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The metric reported first."""
        return next(iter(self.summary))

    def table(self) -> pd.DataFrame:
        """One row a metric: mean, low and high end of the 95% interval, n."""
        return pd.DataFrame([{"metric": metric, **i._asdict()} for metric, i in self.summary.items()])


def evaluate(
    rewriter,
    task,
    retriever,
    split: str = "val",
    ledger=None,
    profile: str = "",
    seed: int = 0,
    run: str = "",
    progress: bool = True,
) -> EvalResult:
    """Rewrite every request of a split, search, and score the rankings against the relevant items.

    rewriter: a Rewriter (`complete(requests)`), or any callable list[str] -> list[str]. A Rewriter gets the
    requests longest first in batches, so that little is padded; a callable gets all at once, in order. The
    test split is opened through `task.unseal_test`, which leaves its mark in the ledger. Where the examples
    have a column `exclude` (ids that an example's ranking must not hold: films seen already), the search goes
    deeper by the longest of them, and metrics, ranks and top are of what is left. seed: of the bootstrap.
    Appends an "eval" row to the ledger. Raises RecR1Error for an unknown or empty split and where there is
    not one answer a request; a retriever's own failure passes through, it never becomes a zero.
    """
    examples = _examples(task, split, f"evaluate {rewriter_name(rewriter)}", ledger)
    start = time.perf_counter()
    rewrites = _rewrites(rewriter, examples["request"].tolist(), f"{rewriter_name(rewriter)} on {split}", progress)
    rankings = _rankings(retriever, [query for query, *_ in rewrites], _depth(task) + _most_excluded(examples))
    seconds = time.perf_counter() - start
    row = {"retriever": type(retriever).__name__, "profile": profile, "seed": seed, "run": run}
    return _result(rewriter_name(rewriter), task, split, examples, rewrites, rankings, seconds, ledger, row)


def evaluate_recommender(
    recommender, task, split: str = "val", ledger=None, profile: str = "", seed: int = 0, run: str = ""
) -> EvalResult:
    """Score rankings that no retriever made: of popularity, a neighbourhood, SASRec, a re-ranker.

    recommender: has a name and `recommend(examples, k)`, one list of item ids, best first, for each row of the
    DataFrame `examples` (the split's own columns, without its targets); or such a function. The rest is as in
    `evaluate`: same depth, same exclusion, same metrics, same row in the ledger, with "retriever" empty. Where it has
    `answers`, one Rewrite an example of the last call, these stand in the result as a rewriter's do.
    """
    name = rewriter_name(recommender)
    examples = _examples(task, split, f"evaluate {name}", ledger)
    start = time.perf_counter()
    asked = examples.drop(columns="relevant")
    recommend = getattr(recommender, "recommend", recommender)
    rankings = _one_each(recommend(asked, _depth(task) + _most_excluded(examples)), asked, name)
    seconds = time.perf_counter() - start
    answers = getattr(recommender, "answers", None)
    rewrites = [_fields(answer) for answer in answers] if answers else [("", "", "ok", 0)] * len(examples)
    row = {"retriever": "", "profile": profile, "seed": seed, "run": run}
    return _result(name, task, split, examples, rewrites, rankings, seconds, ledger, row)


def _depth(task) -> int:
    return max([task.k_eval, *(parse_name(metric)[1] or 0 for metric in task.metrics)])


def _excluded(examples: pd.DataFrame) -> list[set[str]]:
    return [set(ids) for ids in examples.get("exclude", [()] * len(examples))]


def _most_excluded(examples: pd.DataFrame) -> int:
    return max(map(len, _excluded(examples)))


def _result(
    name: str,
    task,
    split: str,
    examples: pd.DataFrame,
    rewrites: list,
    rankings: list,
    seconds: float,
    ledger,
    row: dict,
) -> EvalResult:
    """Score the rankings, and leave the "eval" row `row` with what was found."""
    depth = _depth(task)
    rankings = [without(ids, gone, depth) for ids, gone in zip(rankings, _excluded(examples), strict=True)]
    rows = []
    for example, rewrite, ranking in zip(examples.itertuples(), rewrites, rankings, strict=True):
        place = {item: rank for rank, item in reversed(list(enumerate(ranking, start=1)))}
        rows.append(
            {
                "example_id": str(example.example_id),
                "request": example.request,
                **dict(zip(("query", "completion", "outcome", "tokens"), rewrite, strict=True)),
                **{metric: compute(metric, ranking, example.relevant) for metric in task.metrics},
                "ranks": {item: place.get(item) for item in example.relevant},
                "top": ranking[:TOP],
            }
        )
    frame = pd.DataFrame(rows)
    summary = {metric: mean_interval(frame[metric].to_numpy(float), seed=row["seed"]) for metric in task.metrics}
    result = EvalResult(
        name, split, frame, summary, seconds, int(frame["tokens"].sum()), task.name, dict(Counter(frame["outcome"]))
    )
    if ledger is not None:
        ledger.append(
            {
                "kind": "eval",
                "task": task.name,
                "method": name,
                "split": split,
                "metrics": {metric: i._asdict() for metric, i in summary.items()},
                "n": len(frame),
                "outcomes": result.outcomes,
                "k": depth,
                "seconds": round(seconds, 3),
                "tokens": result.tokens,
                **row,
            }
        )
    return result


def compare(
    a: EvalResult, b: EvalResult, metric: str | None = None, ledger=None, run: str = "", seed: int = 0
) -> Interval:
    """Mean over the examples of a's metric minus b's, with its paired 95% interval: above 0, a is better.

    Appends a "compare" row to the ledger. Raises RecR1Error when the two were not scored on the same
    examples, or not with this metric.
    """
    metric = metric or a.metric
    left, right = paired(a, b, metric)
    difference = paired_interval(left[metric].to_numpy(float), right[metric].to_numpy(float), seed=seed)
    if ledger is not None:
        ledger.append(
            {
                "kind": "compare",
                "task": a.task,
                "split": a.split,
                "metric": metric,
                "a": a.name,
                "b": b.name,
                "difference": difference._asdict(),
                "seed": seed,
                "run": run,
            }
        )
    return difference


def paired(a: EvalResult, b: EvalResult, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a and of b in one order, indexed by example_id; RecR1Error when they cannot be paired."""
    for result in (a, b):
        if metric not in result.summary:
            raise RecR1Error(f"{result.name} was not scored with {metric!r}; pick one of {', '.join(result.summary)}")
    left, right = a.rows.set_index("example_id"), b.rows.set_index("example_id")
    strangers = sorted(set(left.index) ^ set(right.index))
    if strangers or len(left) != len(right):
        first = f", first {strangers[0]!r}" if strangers else ""
        raise RecR1Error(
            f"{a.name} ({a.split}, n = {len(left)}) and {b.name} ({b.split}, n = {len(right)}) were not "
            f"scored on the same examples ({len(strangers)} are in one only{first}); evaluate both on one"
        )
    return left, right.loc[left.index]


def methods_table(
    results: Sequence[EvalResult],
    baselines: Iterable[str | EvalResult] = (),
    metric: str | None = None,
    ledger=None,
    run: str = "",
) -> pd.DataFrame:
    """One row a method: n, metric with its 95% interval, paired difference to each baseline, tokens, seconds.

    Baselines are results, or names of results; of two baselines the later one is compared with the earlier.
    Each difference also goes to the ledger when one is given.
    """
    if not results:
        raise RecR1Error("no results to put in a table; pass what evaluate() returned")
    metric = metric or results[0].metric
    by_name = {result.name: result for result in results}
    bases = [base if isinstance(base, EvalResult) else by_name.get(base, base) for base in baselines]
    unknown = next((base for base in bases if isinstance(base, str)), None)
    if unknown is not None:
        raise RecR1Error(f"no result named {unknown!r} to compare with; there are {', '.join(by_name)}")
    heading, table = f"{metric_label(metric)} [95%]", []
    for place, result in enumerate(results):
        ahead = {other.name for other in results[place:]}
        row = {"method": result.name, "n": len(result.rows), heading: show(result.summary[metric])}
        for base in bases:
            row[f"vs {base.name}"] = (
                "" if base.name in ahead else show(compare(result, base, metric, ledger, run), sign=True)
            )
        table.append(row | {"tokens": result.tokens, "seconds": round(result.seconds, 1)})
    return pd.DataFrame(table)


def show(interval: Interval | dict, sign: bool = False) -> str:
    """An interval, or its plain JSON, as text: "0.251 [0.224, 0.279]"; signed, "+0.031 [+0.010, +0.052]"."""
    row = interval if isinstance(interval, dict) else interval._asdict()
    form = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if sign else "{mean:.3f} [{low:.3f}, {high:.3f}]"
    return form.format(**row)


def metric_label(metric: str) -> str:
    """A metric's name as it is written in print: "ndcg@100" as "nDCG@100"."""
    return metric.replace("ndcg", "nDCG").replace("mrr", "MRR")


def rewriter_name(rewriter) -> str:
    """The rewriter's own name, or a function's."""
    return str(getattr(rewriter, "name", "") or getattr(rewriter, "__name__", type(rewriter).__name__))


def _examples(task, split: str, reason: str, ledger) -> pd.DataFrame:
    if split not in SPLITS:
        raise RecR1Error(f"there is no split {split!r}; use one of {', '.join(SPLITS)}")
    examples = task.unseal_test(reason, ledger) if split == "test" else getattr(task, split)
    if not len(examples):
        raise RecR1Error(f"the {split} split of the task {task.name} is empty; evaluate on another one")
    return examples


def _rewrites(rewriter, requests: list[str], label: str, progress: bool) -> list[tuple[str, str, str, int]]:
    """(query, completion, outcome, tokens) for each request, in the requests' order."""
    if not hasattr(rewriter, "complete"):
        queries = _one_each(rewriter(list(requests)), requests, label)
        wrong = next((query for query in queries if not isinstance(query, str)), "")
        if wrong != "":
            raise RecR1Error(f"{label}: a query must be text, not {type(wrong).__name__}; return list[str]")
        return [(query, query, "ok" if query.strip() else "empty", 0) for query in queries]

    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i]), i))
    size = getattr(rewriter, "batch_size", None) or 64
    found: dict[int, tuple[str, str, str, int]] = {}
    with bar(total=len(order), desc=label, unit="request", progress=progress) as shown:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            answers = _one_each(rewriter.complete([requests[i] for i in batch]), batch, label)
            for i, rewrite in zip(batch, answers):
                found[i] = _fields(rewrite)
            shown.update(len(batch))
    return [found[i] for i in range(len(requests))]


def _fields(rewrite) -> tuple[str, str, str, int]:
    return rewrite.query, rewrite.completion, str(rewrite.outcome), int(rewrite.tokens)


def _rankings(retriever, queries: list[str], depth: int) -> list[list[str]]:
    rankings = []
    for start in range(0, len(queries), SEARCH_BATCH):
        batch = queries[start : start + SEARCH_BATCH]
        hits = _one_each(retriever.search(batch, depth), batch, type(retriever).__name__)
        rankings += [[str(item) for item in ids] for ids, _ in hits]
    return rankings


def _one_each(answers, asked: Sequence, who: str) -> list:
    answers = list(answers)
    if len(answers) != len(asked):
        raise RecR1Error(f"{who}: {len(answers)} answers for {len(asked)} asked; return exactly one for each")
    return answers
