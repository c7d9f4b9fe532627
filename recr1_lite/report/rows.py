"""Ledger rows as a report needs them: those of one run, as tables of methods, and what made them."""

# MERGED: """The authors' own figures, marked as published: they never came from a run of this kit."""
# MERGED: """What a comparison at one budget says, worked out from ledger rows: curves, equal budgets, costs, retention.
# MERGED:
# MERGED: Plain data in, plain data out; the figures are in `budget_plots.py` and `forgetting_plots.py`.
# MERGED: """

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import pandas as pd
from matplotlib.figure import Figure

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.ledger import Ledger
from recr1_lite.report.inspector import Inspection

RESULTS = ("eval", "compare", "train", "headroom", "inspect", "capability", "capability_compare", "continual")
SPLITS = {"test": "Sealed test", "val": "Validation", "train": "Training examples"}


@dataclass(frozen=True)
class Grid:
    """A table of text."""

    head: list[str]
    body: list[list[str]]


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: list[str]


@dataclass(frozen=True)
class Fold:
    """Parts that a reader opens when wanted."""

    summary: str
    parts: list


@dataclass(frozen=True)
class Section:
    """A heading ("": none) with its parts in order: text, Grid, Bullets, Fold, Figure or Inspection."""

    title: str
    parts: list[str | Grid | Bullets | Fold | Figure | Inspection]


@dataclass(frozen=True)
class Table:
    """Methods on one split of one task: a headline metric for each, the first one as the baseline."""

    task: str
    split: str
    metric: str
    evals: list[dict]
    baselines: list[str]
    differences: dict[tuple[str, str], dict]

    def head(self) -> list[str]:
        versus = [f"vs {name}" for name in self.baselines]
        return ["method", "n", f"{metric_label(self.metric)} [95%]", *versus, "tokens", "seconds"]

    def body(self) -> list[list[str]]:
        return [
            [
                row["method"],
                str(row["n"]),
                shown(row["metrics"][self.metric]),
                *(shown(self.differences.get((row["method"], name)), True) for name in self.baselines),
                f"{row.get('tokens') or 0:,}",
                f"{row.get('seconds') or 0:.1f}",
            ]
            for row in self.evals
        ]

    def spots(self) -> list[dict]:
        """{method, mean, low, high, n} of each method whose interval is whole, in the table's order."""
        return [
            {"method": row["method"], **row["metrics"][self.metric]}
            for row in self.evals
            if whole(row["metrics"][self.metric])
        ]


def shown(interval, sign: bool = False) -> str:
    """An interval as text; "" where there is none, "not measured" where a figure in it is null or NaN."""
    return "" if interval is None else show(interval, sign) if whole(interval) else "not measured"


def select(ledger, run: str | None = None) -> tuple[str, list[dict]]:
    """Name and result rows of a run (default: the last); of a training that was told twice, the last row.

    Raises RecR1Error when the ledger holds no results, or none of that run.
    """
    rows = [row for row in ledger.rows() if row.get("kind") in RESULTS]
    if not rows:
        raise RecR1Error(
            f"the ledger {getattr(ledger, 'path', '')} has no results to report; run `make demo`, or "
            "`python -m recr1_lite demo`, which makes some"
        )
    names = list(dict.fromkeys(row.get("run") or "" for row in rows))
    name = next((row["run"] for row in reversed(rows) if row.get("run")), "") if run is None else run
    if name not in names:
        known = ", ".join(filter(None, names)) or "only rows without a run's name"
        raise RecR1Error(f"the ledger has no run {run!r}; it has {known}")
    rows = [row for row in rows if (row.get("run") or "") == name]
    last = {row.get("method"): row for row in rows if row["kind"] == "train"}  # a resumed run tells it all again
    return name, [row for row in rows if row["kind"] != "train" or row is last[row.get("method")]]


def tables(rows: list[dict]) -> list[Table]:
    """One table a task and split, test first; of a method that was evaluated again, the last."""
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["kind"] == "eval" and row.get("metrics"):
            groups.setdefault((row.get("task", ""), row["split"]), {})[row["method"]] = row
    found = []
    order = list(SPLITS)
    for (task, split), evals in sorted(groups.items(), key=lambda group: order.index(group[0][1])):
        metric = next(iter(next(iter(evals.values()))["metrics"]))
        pairs = {
            (row["a"], row["b"]): row["difference"]
            for row in rows
            if row["kind"] == "compare"
            and (row.get("task", ""), row["split"], row["metric"]) == (task, split, metric)
            and whole(row.get("difference"))
        }
        measured = [row for row in evals.values() if metric in row["metrics"]]
        bases = {b for _, b in pairs}
        baselines = [name for name in evals if name in bases] + sorted(bases - set(evals))
        found.append(Table(task, split, metric, measured, baselines, pairs))
    return found


def headline(rows: list[dict]) -> str:
    """The metric of the first table."""
    return next((table.metric for table in tables(rows)), "ndcg@100")


def main_table(rows: list[dict]) -> Table | None:
    """The table of most methods on the sealed test, or where nothing was tested, on the first split there is."""
    found = tables(rows)
    return max(found, key=lambda table: (table.split == "test", len(table.evals)), default=None)


def untrained(rows: list[dict], n: int | None, split: str = "val") -> dict[str, dict]:
    """Methods without a training, on a split, where they were measured on `n` requests: {method: interval}."""
    trained = {row.get("method") for row in rows if row["kind"] == "train"}
    main = main_table(rows)
    return {
        row["method"]: row["metrics"][table.metric]
        for table in tables(rows)
        if table.split == split and table.task == main.task
        for row in table.evals
        if row["method"] not in trained and row["n"] == n and whole(row["metrics"][table.metric])
    }


def facts(rows: list[dict]) -> list[tuple[str, str]]:
    """What made the rows: command, task, profile, device, seed, commit, versions, time."""

    def values(key: str) -> str:
        told = [row for row in rows if not (key == "task" and row["kind"].startswith("capability"))]
        return ", ".join(dict.fromkeys(str(row[key]) for row in told if row.get(key) not in (None, "")))

    versions = dict(item for row in rows for item in (row.get("versions") or {}).items() if item[1])
    times = sorted(row["time"] for row in rows if row.get("time"))
    found = [
        ("command", values("command")),
        ("task", values("task")),
        ("profile", values("profile")),
        ("device", values("device")),
        ("seed", values("seed")),
        ("commit", values("commit")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("time", " to ".join(dict.fromkeys([times[0], times[-1]])) if times else ""),
    ]
    return [(key, value or "not noted") for key, value in found]


def tasks_table(ledger: Ledger, run: str | None = None) -> pd.DataFrame:
    """Every method on the sealed test of every run in the ledger, or of one: task, retriever of the run, method, n,
    the run's first metric with its 95% interval, and the paired difference to the raw request."""
    rows = []
    gains = {
        (row["run"], row["a"], row["metric"]): row["difference"]
        for row in ledger.rows("compare")
        if row["b"] == "raw request" and row["split"] == "test"
    }
    tested = [row for row in ledger.rows("eval") if row["split"] == "test" and run in (None, row["run"])]
    engines = {row["run"]: row["retriever"].removesuffix("Retriever") for row in tested if row["retriever"]}
    for row in tested:
        metric = next(iter(row["metrics"]))
        gain = gains.get((row["run"], row["method"], metric))
        rows.append(
            {
                "task": row["task"],
                "retriever": engines.get(row["run"], ""),
                "method": row["method"],
                "n": row["n"],
                "metric": metric_label(metric),
                "mean [95%]": show(row["metrics"][metric]),
                "vs raw request": show(gain, sign=True) if gain else "",
            }
        )
    return pd.DataFrame(rows)


PAPER = "arXiv 2503.24289"
SOURCE = (
    "result files of the authors' repository linjc16/Rec-R1, commit 4f3ac37 (Apache-2.0), for the paper "
    "arXiv 2503.24289: mean of the stored nDCG@100 of each of 103 ESCI Video Games queries, times 100"
)
SETTING = "ESCI Video Games, nDCG@100 x 100, n = 103"

# what was asked, stored mean, its 95% interval (ours: metrics.mean_interval of their 103 stored values, seed 0),
# and the mean when a target that is listed twice counts once (ours: metrics.ndcg of their stored rankings)
FIGURES = [
    {
        "method": "raw query",
        "mean": 12.44,
        "low": 8.47,
        "high": 16.41,
        "once": 13.27,
        "n": 103,
        "ours": ["raw request"],
    },
    {
        "method": "GPT-4o, prompted",
        "mean": 26.06,
        "low": 21.29,
        "high": 30.88,
        "once": 27.38,
        "n": 103,
        "ours": ["zero-shot", "LM teacher"],
    },
    {"method": "Rec-R1 (GRPO)", "mean": 32.22, "low": 27.38, "high": 37.16, "once": 33.51, "n": 103, "ours": ["GRPO"]},
]


UNTRAINED = ["raw request", "zero-shot", "few-shot", "teacher", "LM teacher"]
ORDER = [
    *UNTRAINED,
    "SFT",
    "SFT + JSON",
    "SFT + reasoning",
    "SFT + reasoning + JSON",
    "SFT (LM teacher)",
    "rejection SFT",
    "GRPO",
    "SFT then GRPO",
]
TEACHERS = {"SFT (LM teacher)": "LM teacher"}  # whom a method is held against; all others: "teacher"
COSTS = {
    "samples": "samples",
    "tokens_generated": "tokens generated",
    "tokens_trained": "tokens trained",
    "seconds": "seconds",
    "money": "money",
}
LOSSES = ("nats", "bits", "perplexity", "loss")  # in the name of a metric of which more is worse


def number(value) -> float | None:
    """The value as a float where it is a finite number, else None (null, NaN, text, missing)."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def whole(interval) -> bool:
    """Whether it is {mean, low, high} with three finite numbers."""
    return isinstance(interval, Mapping) and all(
        number(interval.get(key)) is not None for key in ("mean", "low", "high")
    )


def verdict(difference: Mapping) -> str:
    """ "above", "below" or "not shown to differ" by where 0 lies in the interval of a paired difference."""
    return "above" if difference["low"] > 0 else "below" if difference["high"] < 0 else "not shown to differ"


def overlap(a: Mapping, b: Mapping) -> bool:
    """Whether two intervals share a point; then the figures alone do not show a difference."""
    return a["low"] <= b["high"] and b["low"] <= a["high"]


def in_order(names: Iterable[str]) -> list[str]:
    """Names without repeats, as tables list them: the comparison's order first, then as they came."""
    names = list(dict.fromkeys(names))
    return [name for name in ORDER if name in names] + [name for name in names if name not in ORDER]


def is_sft(method: str) -> bool:
    """Whether the method only imitates a teacher, so that the paper's bound applies to it."""
    return method == "SFT" or method.startswith(("SFT +", "SFT ("))


def curves(rows: Sequence[Mapping], by: str = "seconds") -> dict[str, list[dict]]:
    """Validation points of each trained method that say how much of the budget was used: {method: points}.

    by: "seconds" or "samples". Points come sorted by it; one without a number there, or without a whole
    interval, is left out, and so is a method of which none remains.
    """
    found = {}
    for row in rows:
        if row.get("kind") == "train":
            points = [point for point in row.get("val") or [] if whole(point) and number(point.get(by)) is not None]
            if points:
                found[str(row.get("method", "policy"))] = sorted(
                    points, key=lambda point: (point[by], point.get("step") or 0)
                )
    return {name: found[name] for name in in_order(found)}


def common(rows: Sequence[Mapping], by: str = "seconds") -> float | None:
    """The budget that no method of `curves` may exceed; None where there are no curves.

    The stated one, else the most that all methods which use any of it have reached.
    """
    ends = [points[-1][by] for points in curves(rows, by).values()]
    stated = [
        value
        for row in rows
        if row.get("kind") == "train" and isinstance(row.get("budget"), Mapping)
        if (value := number(row["budget"].get(by)))
    ]
    return float(min(stated or [end for end in ends if end] or ends)) if ends else None


def at_budget(rows: Sequence[Mapping], by: str = "seconds", budget: float | None = None) -> list[dict]:
    """Each method's best validation point within `budget` (default: the common one), as the test takes the best.

    {method, step, seconds, samples, mean, low, high, n}: its own seconds and samples stand in it, for a method
    may use less. A point up to 5% over counts too, since no step is cut in two. Step 0 does not count: a method
    that has not begun by then is left out.
    """
    budget = (common(rows, by) or 0.0) if budget is None else budget
    found = []
    for name, points in curves(rows, by).items():
        within = [point for point in points if point[by] <= 1.05 * budget and point.get("step") != 0]
        found += [{"method": name, **max(within, key=lambda point: point["mean"])}] if within else []
    return found


def baselines(rows: Sequence[Mapping]) -> dict[str, dict]:
    """Methods without a training that the "train" rows were validated against: {method: interval}."""
    return {
        name: value
        for row in rows
        if row.get("kind") == "train"
        for name, value in (row.get("baselines") or {}).items()
        if whole(value)
    }


def costs(rows: Sequence[Mapping]) -> list[dict]:
    """{method, samples, tokens_generated, tokens_trained, seconds, money} of each training that has a cost.

    A figure that was not noted, or is no number, is None.
    """
    found = {
        str(row.get("method", "policy")): row["cost"]
        for row in rows
        if row.get("kind") == "train" and isinstance(row.get("cost"), Mapping) and row["cost"]
    }
    return [{"method": name, **{key: number(found[name].get(key)) for key in COSTS}} for name in in_order(found)]


def capability_changes(rows: Sequence[Mapping]) -> list[dict]:
    """Paired differences to the untrained model, one a method and task: {method, task, metric, n, difference}.

    Only whole ones, the last of each; KL is no difference of a score and is left out.
    """
    found = {}
    for row in rows:
        if (
            row.get("kind") == "capability_compare"
            and row.get("b") == "untrained"
            and row.get("task") != "kl"
            and whole(row.get("difference"))
        ):
            key = str(row.get("a", "policy")), str(row.get("task", "")), str(row.get("metric", ""))
            found[key] = {
                "method": key[0],
                "task": key[1],
                "metric": key[2],
                "n": row.get("n"),
                "difference": row["difference"],
            }
    order = in_order(key[0] for key in found)
    return sorted(found.values(), key=lambda row: order.index(row["method"]))


def main_changes(rows: Sequence[Mapping]) -> list[dict]:
    """The rows of `capability_changes` with one metric a task: accuracy, else the strictest, else the first."""
    changes = capability_changes(rows)
    best: dict[str, str] = {}
    for row in changes:
        if row["task"] not in best or row["metric"] in ("accuracy", "prompt_level_strict_acc"):
            best[row["task"]] = row["metric"]
    return [row for row in changes if row["metric"] == best[row["task"]]]


def is_loss(metric: str) -> bool:
    """Whether more of this metric is worse."""
    return any(name in metric for name in LOSSES)


def worse(change: Mapping) -> str:
    """ "lost", "gained" or "" (the interval holds 0) for a row of `capability_changes`."""
    side = verdict(change["difference"])
    if side == "not shown to differ":
        return ""
    return "lost" if (side == "below") != is_loss(change["metric"]) else "gained"


def capability_means(rows: Sequence[Mapping]) -> list[dict]:
    """Last whole capability row of each method and task: {method, suite, task, metric, n, mean, low, high}."""
    found = {
        tuple(str(row.get(key)) for key in ("method", "suite", "task", "metric")): row
        for row in rows
        if row.get("kind") == "capability" and whole(row)
    }
    order = ["untrained", *in_order(key[0] for key in found)]
    return sorted(found.values(), key=lambda row: order.index(str(row["method"])))


def retention(rows: Sequence[Mapping]) -> list[dict]:
    """How far each method moved from the untrained model and what it kept: {method, kl, change, tasks}.

    kl: forward KL on neutral prompts, with its interval. change: mean over the offline suite's tasks (or,
    without one, over all) of the paired differences in accuracy. The tasks' items are different ones, so that
    half-widths add up in squares. Methods that lack one of the two are left out.
    """
    kls = {row["method"]: row for row in capability_means(rows) if row.get("task") == "kl"}
    changes = [row for row in main_changes(rows) if not is_loss(row["metric"])]
    offline = {str(row.get("task")) for row in rows if row.get("suite") == "offline"}
    changes = [row for row in changes if row["task"] in offline] or changes
    found = []
    for name in in_order(row["method"] for row in changes):
        parts = [row["difference"] for row in changes if row["method"] == name]
        if name not in kls:
            continue
        mean = sum(part["mean"] for part in parts) / len(parts)
        low, high = (
            math.sqrt(sum((part[end] - part["mean"]) ** 2 for part in parts)) / len(parts) for end in ("low", "high")
        )
        found.append(
            {
                "method": name,
                "kl": kls[name],
                "tasks": len(parts),
                "change": {"mean": mean, "low": mean - low, "high": mean + high},
            }
        )
    return found


def stages(rows: Sequence[Mapping]) -> dict[str, list[dict]]:
    """Rows of the continual adaptation by trainer, in the order of their stages: {trainer: rows}."""
    found: dict[str, dict] = {}
    for row in rows:
        if row.get("kind") == "continual" and isinstance(row.get("measures"), Mapping):
            found.setdefault(str(row.get("trainer", "policy")), {})[row.get("stage") or 0] = row
    return {name: [found[name][stage] for stage in sorted(found[name])] for name in in_order(found)}


def measures(rows: Sequence[Mapping]) -> list[str]:
    """Names of what the continual adaptation measured, in the order met, where one value at least is whole."""
    return list(
        dict.fromkeys(
            name
            for line in stages(rows).values()
            for row in line
            for name, value in row["measures"].items()
            if whole(value)
        )
    )
