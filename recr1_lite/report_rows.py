"""Ledger rows as a report needs them: those of one run, as tables of methods, and what made them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from recr1_lite.budget import whole
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import metric_label, show
from recr1_lite.inspector import Inspection
from recr1_lite.ledger import Ledger

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
            [row["method"], str(row["n"]), shown(row["metrics"][self.metric]),
             *(shown(self.differences.get((row["method"], name)), True) for name in self.baselines),
             f"{row.get('tokens') or 0:,}", f"{row.get('seconds') or 0:.1f}"]
            for row in self.evals
        ]

    def spots(self) -> list[dict]:
        """{method, mean, low, high, n} of each method whose interval is whole, in the table's order."""
        return [{"method": row["method"], **row["metrics"][self.metric]} for row in self.evals
                if whole(row["metrics"][self.metric])]


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
        pairs = {(row["a"], row["b"]): row["difference"] for row in rows if row["kind"] == "compare"
                 and (row.get("task", ""), row["split"], row["metric"]) == (task, split, metric)
                 and whole(row.get("difference"))}
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
    return {row["method"]: row["metrics"][table.metric] for table in tables(rows)
            if table.split == split and table.task == main.task for row in table.evals
            if row["method"] not in trained and row["n"] == n and whole(row["metrics"][table.metric])}


def facts(rows: list[dict]) -> list[tuple[str, str]]:
    """What made the rows: command, task, profile, device, seed, commit, versions, time."""
    def values(key: str) -> str:
        told = [row for row in rows if not (key == "task" and row["kind"].startswith("capability"))]
        return ", ".join(dict.fromkeys(str(row[key]) for row in told if row.get(key) not in (None, "")))

    versions = dict(item for row in rows for item in (row.get("versions") or {}).items() if item[1])
    times = sorted(row["time"] for row in rows if row.get("time"))
    found = [("command", values("command")), ("task", values("task")), ("profile", values("profile")),
             ("device", values("device")), ("seed", values("seed")), ("commit", values("commit")),
             ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
             ("time", " to ".join(dict.fromkeys([times[0], times[-1]])) if times else "")]
    return [(key, value or "not noted") for key, value in found]


def tasks_table(ledger: Ledger, run: str | None = None) -> pd.DataFrame:
    """Every method on the sealed test of every run in the ledger, or of one: task, retriever of the run, method, n,
    the run's first metric with its 95% interval, and the paired difference to the raw request."""
    rows = []
    gains = {(row["run"], row["a"], row["metric"]): row["difference"] for row in ledger.rows("compare")
             if row["b"] == "raw request" and row["split"] == "test"}
    tested = [row for row in ledger.rows("eval") if row["split"] == "test" and run in (None, row["run"])]
    engines = {row["run"]: row["retriever"].removesuffix("Retriever") for row in tested if row["retriever"]}
    for row in tested:
        metric = next(iter(row["metrics"]))
        gain = gains.get((row["run"], row["method"], metric))
        rows.append({"task": row["task"], "retriever": engines.get(row["run"], ""), "method": row["method"],
                     "n": row["n"], "metric": metric_label(metric), "mean [95%]": show(row["metrics"][metric]),
                     "vs raw request": show(gain, sign=True) if gain else ""})
    return pd.DataFrame(rows)
