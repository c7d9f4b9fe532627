"""What a report needs of the ledger, as plain data: the rows of one run, tables of methods, curves, costs, changes.

Nothing else in the package reads ledger rows to show them; figures and sections get what stands here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import NO_MODEL, metric_label, show

RESULTS = ("eval", "compare", "train", "headroom", "inspect", "capability", "capability_compare", "continual")
SPLITS = {"test": "Sealed test", "val": "Validation", "train": "Training examples"}
UNTRAINED = ["raw request", "zero-shot", "few-shot", "teacher", "LM teacher"]
ORDER = [*UNTRAINED, "SFT", "SFT + JSON", "SFT + reasoning", "SFT + reasoning + JSON", "SFT (LM teacher)"]
ORDER += ["rejection SFT", "GRPO", "SFT then GRPO"]
TEACHERS = {"SFT (LM teacher)": "LM teacher"}  # whom a method is held against; all others: "teacher"
COSTS = ("samples", "tokens_generated", "tokens_trained", "seconds", "money")
LOSSES = ("nats", "bits", "perplexity", "loss")  # in the name of a metric of which more is worse

# The authors' figures, from no run of this kit. The intervals are ours (`mean_interval` of their 103 stored values,
# seed 0), and so is `once`: the mean when a target that is listed twice counts once.
PAPER = "arXiv 2503.24289"
SETTING = "ESCI Video Games, nDCG@100 x 100, n = 103"
SOURCE = (
    "result files of the authors' repository linjc16/Rec-R1, commit 4f3ac37 (Apache-2.0), for the paper "
    "arXiv 2503.24289: mean of the stored nDCG@100 of each of 103 ESCI Video Games queries, times 100"
)
_KEYS = ("method", "mean", "low", "high", "once", "n", "ours")
_PUBLISHED = [
    ("raw query", 12.44, 8.47, 16.41, 13.27, 103, ["raw request"]),
    ("GPT-4o, prompted", 26.06, 21.29, 30.88, 27.38, 103, ["zero-shot", "LM teacher"]),
    ("Rec-R1 (GRPO)", 32.22, 27.38, 37.16, 33.51, 103, ["GRPO"]),
]
FIGURES: list[dict] = [dict(zip(_KEYS, row)) for row in _PUBLISHED]


@dataclass(frozen=True)
class Table:
    """Methods on one split of one task: the headline metric of each, and paired differences to the baselines."""

    task: str
    split: str
    metric: str
    evals: list[dict]
    baselines: list[str]
    differences: dict[tuple[str, str], dict]

    @property
    def name(self) -> str:
        return SPLITS.get(self.split, self.split)

    def head(self) -> list[str]:
        versus = [f"vs {name}" for name in self.baselines]
        return ["method", "n", f"{metric_label(self.metric)} [95%]", *versus, "tokens", "seconds"]

    def body(self) -> list[list[str]]:
        lines = []
        for row in self.evals:
            versus = [shown(self.differences.get((row["method"], name)), True) for name in self.baselines]
            cost = [f"{row.get('tokens') or 0:,}", f"{row.get('seconds') or 0:.1f}"]
            lines.append([row["method"], str(row["n"]), shown(row["metrics"][self.metric]), *versus, *cost])
        return lines

    def spots(self) -> list[dict]:
        """{method, mean, low, high, n} of each method whose interval is whole, in the table's order."""
        spots = [{"method": row["method"], **row["metrics"][self.metric]} for row in self.evals]
        return [spot for spot in spots if whole(spot)]


def number(value) -> float | None:
    """The value as a float where it is a finite number, else None (null, NaN, text, missing)."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def whole(interval) -> bool:
    """Whether it is {mean, low, high} with three finite numbers."""
    keys = ("mean", "low", "high")
    return isinstance(interval, Mapping) and all(number(interval.get(key)) is not None for key in keys)


def shown(interval, sign: bool = False) -> str:
    """An interval as text; "" where there is none, "not measured" where a figure in it is null or NaN."""
    return "" if interval is None else show(interval, sign) if whole(interval) else "not measured"


def verdict(difference: Mapping) -> str:
    """Whether a paired difference is "above", "below" or "not shown to differ" from 0, by its interval."""
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


def is_loss(metric: str) -> bool:
    """Whether more of this metric is worse."""
    return any(name in metric for name in LOSSES)


def run_of(row: Mapping) -> str:
    """What tells the run of a row from others: its id, in rows of earlier versions its name."""
    return row.get("run_id") or row.get("run") or ""


def select(ledger, run: str | None = None) -> tuple[str, list[dict]]:
    """Name and result rows of a run, by its id or name (default: the last; of several of a name the last). What a
    resumed run told twice counts once, the last time.
    Raises RecR1Error when the ledger holds no results, or none of that run."""
    rows = [row for row in ledger.rows() if row.get("kind") in RESULTS]
    if not rows:
        where = f"the ledger {getattr(ledger, 'path', '')} has no results to report"
        raise RecR1Error(f"{where}; run `make demo`, or `python -m recr1_lite demo`, which makes some")
    named = [row for row in rows if (run_of(row) if run is None else run in (row.get("run_id"), row.get("run") or ""))]
    if not named and run is not None:
        names = list(dict.fromkeys(row.get("run") or "" for row in rows))
        known = ", ".join(filter(None, names)) or "only rows without a run's name"
        raise RecR1Error(f"the ledger has no run {run!r}; it has {known}")
    chosen = named[-1] if named else {}
    rows = [row for row in rows if run_of(row) == run_of(chosen)]
    last = {_identity(row): row for row in rows}
    return chosen.get("run") or "", [row for row in rows if row is last[_identity(row)]]


def _identity(row: Mapping) -> tuple:
    """What a row is about: two rows of one run with the same identity are one thing told twice."""
    keys: tuple[str, ...] = ("kind", "method", "task", "split", "suite", "metric", "a", "b", "trainer", "stage")
    if row["kind"] in ("train", "headroom", "inspect"):
        keys = ("kind", "method", "task")
    return tuple(str(row.get(key)) for key in keys)


def tables(rows: Sequence[dict]) -> list[Table]:
    """One table per task and split, test first."""
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["kind"] == "eval" and row.get("metrics"):
            groups.setdefault((row.get("task", ""), row["split"]), {})[row["method"]] = row
    made, order = [], list(SPLITS)
    for (task, split), evals in sorted(groups.items(), key=lambda group: order.index(group[0][1])):
        metric = next(iter(next(iter(evals.values()))["metrics"]))
        wanted = ("compare", task, split, metric)
        compared = [r for r in rows if (r["kind"], r.get("task", ""), r.get("split"), r.get("metric")) == wanted]
        pairs = {(row["a"], row["b"]): row["difference"] for row in compared if whole(row.get("difference"))}
        measured = [row for row in evals.values() if metric in row["metrics"]]
        bases = {b for _, b in pairs}
        baselines = [name for name in evals if name in bases] + sorted(bases - set(evals))
        made.append(Table(task, split, metric, measured, baselines, pairs))
    return made


def headline(rows: Sequence[dict]) -> str:
    """The metric of the first table."""
    return next((table.metric for table in tables(rows)), "ndcg@100")


def main_table(rows: Sequence[dict]) -> Table | None:
    """The table of most methods on the sealed test, or where nothing was tested, on the first split there is."""
    return max(tables(rows), key=lambda table: (table.split == "test", len(table.evals)), default=None)


def main_spots(rows: Sequence[dict]) -> dict[str, dict]:
    """The whole means of `main_table` by method."""
    table = main_table(rows)
    return {spot["method"]: spot for spot in table.spots()} if table else {}


def untrained(rows: Sequence[dict], n: int | None, split: str = "val") -> dict[str, dict]:
    """Methods without a training, on a split, where they were measured on `n` requests: {method: interval}. Of those
    of the ceiling the best alone."""
    trained, main = {row.get("method") for row in _trainings(rows)}, main_table(rows)
    here = [table for table in tables(rows) if main and (table.split, table.task) == (split, main.task)]
    spots = [(row, row["metrics"][table.metric]) for table in here for row in table.evals]
    kept = [(row["method"], value) for row, value in spots if row["n"] == n and whole(value)]
    reachable = [(value["mean"], name) for name, value in kept if name.startswith(NO_MODEL)]
    others = {name for _, name in sorted(reachable)[:-1]}
    return {name: value for name, value in kept if name not in trained | others}


def without_model(table: Table) -> dict | None:
    """The best method of a table that no language model is part of, other than the raw request, if there is one."""
    free = [row["method"] for row in table.evals if row.get("tokens") == 0 and row["method"] != "raw request"]
    return max((spot for spot in table.spots() if spot["method"] in free), key=lambda spot: spot["mean"], default=None)


def facts(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """What made the rows: command, task, profile, device, seed, commit, versions, time."""

    def values(key: str) -> str:
        told = [row for row in rows if not (key == "task" and row["kind"].startswith("capability"))]
        return ", ".join(dict.fromkeys(str(row[key]) for row in told if row.get(key) not in (None, "")))

    versions = dict(item for row in rows for item in (row.get("versions") or {}).items() if item[1])
    times = sorted(row["time"] for row in rows if row.get("time"))
    known = [(key, values(key)) for key in ("command", "task", "profile", "device", "seed", "commit")]
    known.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    known.append(("time", " to ".join(dict.fromkeys([times[0], times[-1]])) if times else ""))
    return [(key, value or "not noted") for key, value in known]


def tasks_table(ledger, run: str | None = None) -> pd.DataFrame:
    """Every method on the sealed test of every run in the ledger, or of one: task, retriever of the run, method, n,
    the run's first metric with its 95% interval, and the paired difference to the raw request."""
    compared = [row for row in ledger.rows("compare") if row["b"] == "raw request" and row["split"] == "test"]
    gains = {(run_of(row), row["a"], row["metric"]): row["difference"] for row in compared}
    tested = [row for row in ledger.rows("eval") if row["split"] == "test" and run in (None, row["run"])]
    engines = {run_of(row): row["retriever"].removesuffix("Retriever") for row in tested if row["retriever"]}
    lines = []
    for row in tested:
        metric = next(iter(row["metrics"]))
        gain = gains.get((run_of(row), row["method"], metric))
        line = {"task": row["task"], "retriever": engines.get(run_of(row), ""), "method": row["method"], "n": row["n"]}
        line |= {"metric": metric_label(metric), "mean [95%]": show(row["metrics"][metric])}
        lines.append(line | {"vs raw request": show(gain, sign=True) if gain else ""})
    return pd.DataFrame(lines)


def _trainings(rows: Iterable[Mapping]) -> list[Mapping]:
    return [row for row in rows if row.get("kind") == "train"]


def curves(rows: Sequence[Mapping], by: str = "seconds") -> dict[str, list[dict]]:
    """Validation points of each trained method that say how much of the budget was used: {method: points}.

    by: "seconds" or "samples". Points come sorted by it. A point without it, or without a whole interval, is left
    out, and so is a method of which no point remains."""
    made = {}
    for row in _trainings(rows):
        points = [point for point in row.get("val") or [] if whole(point) and number(point.get(by)) is not None]
        if points:
            points.sort(key=lambda point: (point[by], point.get("step") or 0))
            made[str(row.get("method", "policy"))] = points
    return {name: made[name] for name in in_order(made)}


def common(rows: Sequence[Mapping], by: str = "seconds") -> float | None:
    """The budget that no method of `curves` may exceed; None where there are no curves.

    The stated one, else the most that all methods which use any of it have reached."""
    ends = [points[-1][by] for points in curves(rows, by).values()]
    budgets = [row["budget"] for row in _trainings(rows) if isinstance(row.get("budget"), Mapping)]
    stated = [value for budget in budgets if (value := number(budget.get(by)))]
    return float(min(stated or [end for end in ends if end] or ends)) if ends else None


def at_budget(rows: Sequence[Mapping], by: str = "seconds", budget: float | None = None) -> list[dict]:
    """Each method's best validation point within `budget` (default: the common one), as the test takes the best.

    {method, step, seconds, samples, mean, low, high, n}: a method may use less than the budget. A point up to 5% over
    counts too, since no step is cut in two. Step 0 does not count: a method that has not begun by then is left out."""
    budget = (common(rows, by) or 0.0) if budget is None else budget
    lines = {name: [p for p in points if p[by] <= 1.05 * budget] for name, points in curves(rows, by).items()}
    begun = {name: [point for point in points if point.get("step") != 0] for name, points in lines.items()}
    return [{"method": name, **max(points, key=lambda p: p["mean"])} for name, points in begun.items() if points]


def baselines(rows: Sequence[Mapping]) -> dict[str, dict]:
    """Methods without a training that the trainings were validated against: {method: interval}."""
    pairs = [pair for row in _trainings(rows) for pair in (row.get("baselines") or {}).items()]
    return {name: value for name, value in pairs if whole(value)}


def costs(rows: Sequence[Mapping]) -> list[dict]:
    """{method, samples, tokens_generated, tokens_trained, seconds, money} of each training that has a cost.

    A figure that was not noted, or is no number, is None."""
    noted = [row for row in _trainings(rows) if isinstance(row.get("cost"), Mapping) and row["cost"]]
    cost = {str(row.get("method", "policy")): row["cost"] for row in noted}
    return [{"method": name, **{key: number(cost[name].get(key)) for key in COSTS}} for name in in_order(cost)]


def capability_changes(rows: Sequence[Mapping]) -> list[dict]:
    """Paired differences to the untrained model, one per method and task: {method, task, metric, n, difference}.

    Only whole ones, the last of each; KL is no difference of a score and is left out."""
    last = {}
    compared = [row for row in rows if row.get("kind") == "capability_compare" and row.get("b") == "untrained"]
    for row in (row for row in compared if row.get("task") != "kl" and whole(row.get("difference"))):
        change = {"method": str(row.get("a", "policy")), "task": str(row.get("task", ""))}
        change["metric"] = str(row.get("metric", ""))
        last[tuple(change.values())] = change | {"n": row.get("n"), "difference": row["difference"]}
    order = in_order(key[0] for key in last)
    return sorted(last.values(), key=lambda row: order.index(row["method"]))


def main_changes(rows: Sequence[Mapping]) -> list[dict]:
    """The rows of `capability_changes` with one metric per task: accuracy, else the strictest, else the first."""
    changes, best = capability_changes(rows), {}
    for row in changes:
        if row["task"] not in best or row["metric"] in ("accuracy", "prompt_level_strict_acc"):
            best[row["task"]] = row["metric"]
    return [row for row in changes if row["metric"] == best[row["task"]]]


def worse(change: Mapping) -> str:
    """For a row of `capability_changes`: "lost", "gained", or "" where the interval holds 0."""
    side = verdict(change["difference"])
    if side == "not shown to differ":
        return ""
    return "lost" if (side == "below") != is_loss(change["metric"]) else "gained"


def capability_means(rows: Sequence[Mapping]) -> list[dict]:
    """Last whole capability row of each method and task: {method, suite, task, metric, n, mean, low, high}."""
    measured = [row for row in rows if row.get("kind") == "capability" and whole(row)]
    last = {tuple(str(row.get(key)) for key in ("method", "suite", "task", "metric")): dict(row) for row in measured}
    order = ["untrained", *in_order(key[0] for key in last)]
    return sorted(last.values(), key=lambda row: order.index(str(row["method"])))


def retention(rows: Sequence[Mapping]) -> list[dict]:
    """How far each method moved from the untrained model and what it kept: {method, kl, change, tasks}.

    kl: forward KL on neutral prompts, with its interval. change: mean over the offline suite's tasks (or, without
    one, over all) of the paired differences in accuracy. The tasks' items are different ones, so half-widths add up
    in squares. Methods that lack one of the two are left out."""
    kls = {row["method"]: row for row in capability_means(rows) if row.get("task") == "kl"}
    changes = [row for row in main_changes(rows) if not is_loss(row["metric"])]
    offline = {str(row.get("task")) for row in rows if row.get("suite") == "offline"}
    changes = [row for row in changes if row["task"] in offline] or changes
    kept = []
    for name in in_order(row["method"] for row in changes if row["method"] in kls):
        parts = [row["difference"] for row in changes if row["method"] == name]
        mean, n = sum(part["mean"] for part in parts) / len(parts), len(parts)
        down, up = (math.hypot(*(part[end] - part["mean"] for part in parts)) / n for end in ("low", "high"))
        change = {"mean": mean, "low": mean - down, "high": mean + up}
        kept.append({"method": name, "kl": kls[name], "tasks": n, "change": change})
    return kept


def stages(rows: Sequence[Mapping]) -> dict[str, list[dict]]:
    """Rows of the continual adaptation by trainer, in the order of their stages: {trainer: rows}."""
    lines: dict[str, dict] = {}
    for row in rows:
        if row.get("kind") == "continual" and isinstance(row.get("measures"), Mapping):
            lines.setdefault(str(row.get("trainer", "policy")), {})[row.get("stage") or 0] = row
    return {name: [lines[name][stage] for stage in sorted(lines[name])] for name in in_order(lines)}


def measures(rows: Sequence[Mapping]) -> list[str]:
    """Names of what the continual adaptation measured, in the order met, where one value at least is whole."""
    every = [pair for line in stages(rows).values() for row in line for pair in row["measures"].items()]
    return list(dict.fromkeys(name for name, value in every if whole(value)))
