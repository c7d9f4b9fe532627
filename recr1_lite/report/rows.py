"""What a report needs of the ledger, as plain data: the rows of one run, tables of methods, curves, costs, changes.

Nothing else in the package reads ledger rows to show them; figures and pages get what stands here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import NO_MODEL, EvalResult, compare, metric_label, show
from recr1_lite.search.metrics import Interval, holm

RESULTS = ("eval", "compare", "train", "headroom", "inspect", "capability", "capability_compare", "continual")
# two rows with the same of these are one
IDENTITY = ("kind", "method", "task", "split", "suite", "metric", "a", "b", "trainer", "stage", "seed")
SPLITS = {"test": "Sealed test", "val": "Validation", "train": "Training examples"}
UNTRAINED = ["untrained", "raw request", "zero-shot", "few-shot", "teacher", "LM teacher"]
ORDER = [*UNTRAINED, "SFT", "SFT + JSON", "SFT + reasoning", "SFT + reasoning + JSON", "SFT (LM teacher)"]
ORDER += ["rejection SFT", "GRPO", "SFT then GRPO"]
TEACHER_NAMES = ("teacher", "LM teacher")
TEACHERS = {"SFT (LM teacher)": "LM teacher"}  # whom a method is held against; all others: "teacher"
COSTS = ("samples", "tokens_generated", "tokens_trained", "seconds", "money")
CHANGE = ("task", "metric", "n", "difference")
LOSSES = ("nats", "bits", "perplexity", "loss")  # in the name of a metric of which more is worse

# The authors' figures, from no run of this kit. The intervals are ours (`mean_interval` of their 103 stored values,
# seed 0), and so is `once`: the mean when a target that is listed twice counts once.
_KEYS = ("method", "mean", "low", "high", "once", "n")
_PUBLISHED = [
    ("raw query", 12.44, 8.47, 16.41, 13.27, 103),
    ("GPT-4o, prompted", 26.06, 21.29, 30.88, 27.38, 103),
    ("Rec-R1 (GRPO)", 32.22, 27.38, 37.16, 33.51, 103),
]
FIGURES: list[dict] = [dict(zip(_KEYS, row)) for row in _PUBLISHED]
Rows = Sequence[Mapping]  # of a ledger, of a training's curve, or of means with their intervals


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
        return SPLITS[self.split]

    def frame(self) -> pd.DataFrame:
        """The table as texts, a line per method."""
        lines = []
        for row in self.evals:
            line = {"method": row["method"], "n": str(row["n"])}
            line[f"{metric_label(self.metric)} [95%]"] = shown(row["metrics"][self.metric])
            line |= {f"vs {b}": shown(self.differences.get((row["method"], b)), True) for b in self.baselines}
            lines.append(line | {"tokens": f"{row.get('tokens') or 0:,}", "seconds": f"{row.get('seconds') or 0:.1f}"})
        return pd.DataFrame(lines)

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


def corrected(differences: Sequence[Mapping]) -> list[dict]:
    """The differences of one table, each with `shown`: whether it differs from 0 where all are claimed together."""
    family = [Interval(row["mean"], row["low"], row["high"], row.get("n", 0)) for row in differences]
    return [{**row, "shown": shown} for row, shown in zip(differences, holm(family), strict=True)]


def verdict(difference: Mapping) -> str:
    """Whether a paired difference is "above", "below" or "not shown to differ" from 0, `corrected` if it has been."""
    apart = difference.get("shown", not difference["low"] <= 0 <= difference["high"])
    return ("above" if difference["mean"] > 0 else "below") if apart else "not shown to differ"


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


def of_kind(rows: Iterable[Mapping], kind: str) -> list:
    return [row for row in rows if row.get("kind") == kind]


def select(ledger, run: str | None = None) -> tuple[str, list[dict]]:
    """Name and result rows of a run, by its id or name (default: the last; of several of a name the last). What a
    resumed run told twice counts once, the last time; differences are worked out again (`paired_again`).
    Raises RecR1Error when the ledger holds no results, or none of that run."""
    rows = [row for row in ledger.rows() if row["kind"] in RESULTS]
    if not rows:
        where = f"the ledger {ledger.path} has no results to report"
        raise RecR1Error(f"{where}; run `make demo`, or `python -m recr1_lite demo`, which makes some")
    named = [row for row in rows if (run_of(row) if run is None else run in (row.get("run_id"), row.get("run")))]
    if not named and run is not None:
        known = ", ".join(dict.fromkeys(row["run"] for row in rows if row.get("run")))
        raise RecR1Error(f"the ledger has no run {run!r}; it has {known or 'only rows without a name of their run'}")
    chosen = named[-1] if named else {}
    rows = [row for row in rows if run_of(row) == run_of(chosen)]
    keys = [tuple(str(row.get(key)) for key in IDENTITY) for row in rows]
    last = {key: place for place, key in enumerate(keys)}
    return chosen.get("run") or "", paired_again(_by_seed([rows[place] for place in sorted(last.values())]))


def _by_seed(rows: list[dict]) -> list[dict]:
    """The rows; the trainings of a method with several seeds named "METHOD, seed N", as their evaluations are."""
    times, named = Counter(row["method"] for row in of_kind(rows, "train")), []
    for row in rows:
        several = row["kind"] == "train" and times[row["method"]] > 1
        named.append(row | {"method": f"{row['method']}, seed {row['seed']}"} if several else row)
    return named


def paired_again(rows: Sequence[dict]) -> list[dict]:
    """The rows, with every paired difference worked out from the per-example values of the two evaluations.

    It stays as noted where one of them has no values, as in earlier versions. `doubt`: a sentence on values that cannot
    be used, and on a noted difference that is not theirs."""

    def key(row: Mapping, method: str) -> tuple:
        return run_of(row), row.get("task"), row.get("split"), row.get(method)

    evals, made = {key(row, "method"): row for row in of_kind(rows, "eval") if row.get("values")}, []
    for row in rows:
        a, b = evals.get(key(row, "a")), evals.get(key(row, "b"))
        if row["kind"] == "compare" and a and b:
            noted, what = row.get("difference") or {}, f"{row['a']} minus {row['b']} on {row['split']}"
            try:
                pair = EvalResult.from_row(a), EvalResult.from_row(b)
                found = compare(*pair, row["metric"], seed=row.get("seed") or 0)._asdict()
            except RecR1Error as problem:
                made.append(row | {"doubt": f"{what} is told as it was noted, for {problem}."})
                continue
            # with the same seed the ends are the same, but for another version of NumPy or SciPy
            slack = {"mean": 1e-5, **dict.fromkeys(("low", "high"), 1e-5 + (found["high"] - found["low"]) / 10)}
            if whole(noted) and any(abs(noted[end] - found[end]) > most for end, most in slack.items()):
                values = f"the values of its examples give {show(found, True)}, which is told here"
                row = row | {"doubt": f"{what} was noted as {show(noted, True)}, and {values}."}
            row = row | {"difference": found}
        made.append(row)
    return made


def tables(rows: Rows) -> list[Table]:
    """One table per task and split, test first."""
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in of_kind(rows, "eval"):
        groups.setdefault((row["task"], row["split"]), {})[row["method"]] = row
    made, order = [], list(SPLITS)
    for (task, split), evals in sorted(groups.items(), key=lambda group: order.index(group[0][1])):
        metric = next(iter(next(iter(evals.values()))["metrics"]))
        wanted = {"task": task, "split": split, "metric": metric}.items()
        compared = [row for row in of_kind(rows, "compare") if wanted <= row.items() and whole(row.get("difference"))]
        last = {(row["a"], row["b"]): row["difference"] for row in compared}
        pairs = dict(zip(last, corrected([*last.values()]), strict=True))
        measured = [row for row in evals.values() if metric in row["metrics"]]
        bases = {b for _, b in pairs}
        baselines = [name for name in evals if name in bases] + sorted(bases - set(evals))
        made.append(Table(task, split, metric, measured, baselines, pairs))
    return made


def main_table(rows: Rows) -> Table | None:
    """The table of most methods on the sealed test, or where nothing was tested, on the first split there is."""
    return max(tables(rows), key=lambda table: (table.split == "test", len(table.evals)), default=None)


def main_spots(rows: Rows) -> dict[str, dict]:
    """The whole means of `main_table` by method."""
    table = main_table(rows)
    return {spot["method"]: spot for spot in table.spots()} if table else {}


def untrained(rows: Rows, n: int | None) -> dict[str, dict]:
    """Methods without a training, measured on `n` validation requests: {method: interval}; of the ceiling the best."""
    trained, main = {row["method"] for row in of_kind(rows, "train")}, main_table(rows)
    here = [table for table in tables(rows) if main and (table.split, table.task) == ("val", main.task)]
    spots = [spot for table in here for spot in table.spots() if spot["n"] == n and spot["method"] not in trained]
    reachable = sorted((spot["mean"], spot["method"]) for spot in spots if spot["method"].startswith(NO_MODEL))
    others = {name for _, name in reachable[:-1]}
    return {spot["method"]: spot for spot in spots if spot["method"] not in others}


def facts(rows: Rows) -> list[tuple[str, str]]:
    """What made the rows: command, task, profile, device, seed, commit, versions, time; what is doubtful in them."""

    def values(key: str) -> str:
        told = [row for row in rows if not (key == "task" and row["kind"].startswith("capability"))]
        return ", ".join(dict.fromkeys(str(row[key]) for row in told if row.get(key) not in (None, "")))

    versions = dict(item for row in rows for item in (row.get("versions") or {}).items() if item[1])
    times = sorted(row["time"] for row in rows if row.get("time"))
    known = {key: values(key) for key in ("command", "task", "profile", "device", "seed", "commit")}
    known["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    known["time"] = " to ".join(dict.fromkeys([*times[:1], *times[-1:]]))
    doubts = " ".join(row["doubt"] for row in rows if row.get("doubt"))
    return [(key, value or "not noted") for key, value in known.items()] + [("doubtful", doubts)] * bool(doubts)


def tasks_table(ledger, run: str | None = None) -> pd.DataFrame:
    """Every method on the sealed test of every run in the ledger, or of one: task, retriever of the run, method, n,
    the run's first metric with its 95% interval, and the paired difference to the raw request."""
    rows = [row for row in ledger.rows() if row.get("split") == "test" and run in (None, row.get("run"))]
    tested = of_kind(rows, "eval")
    compared = [row for row in of_kind(paired_again(rows), "compare") if row["b"] == "raw request"]
    gains = {(run_of(row), row["a"], row["metric"]): row["difference"] for row in compared}
    engines = {run_of(row): row["retriever"].removesuffix("Retriever") for row in tested if row["retriever"]}
    lines = []
    for row in tested:
        metric = next(iter(row["metrics"]))
        line = {"task": row["task"], "retriever": engines.get(run_of(row), ""), "method": row["method"], "n": row["n"]}
        line |= {"metric": metric_label(metric), "mean [95%]": show(row["metrics"][metric])}
        lines.append(line | {"vs raw request": shown(gains.get((run_of(row), row["method"], metric)), sign=True)})
    return pd.DataFrame(lines)


def curves(rows: Rows, by: str = "seconds") -> dict[str, list[dict]]:
    """Validation points of each trained method that say how much of the budget was used: {method: points}.

    by: "seconds" or "samples". Points come sorted by it. A point without it, or without a whole interval, is left
    out, and so is a method of which no point remains."""
    made = {}
    for row in of_kind(rows, "train"):
        points = [point for point in row["val"] if whole(point) and number(point.get(by)) is not None]
        made[row["method"]] = sorted(points, key=lambda point: (point[by], point["step"]))
    return {name: made[name] for name in in_order(made) if made[name]}


def common(rows: Rows, by: str = "seconds") -> float | None:
    """The budget that no method of `curves` may exceed; None where there are no curves.

    The stated one, else the most that all methods which use any of it have reached."""
    ends = [points[-1][by] for points in curves(rows, by).values()]
    stated = [value for row in of_kind(rows, "train") if (value := number((row.get("budget") or {}).get(by)))]
    return float(min(stated or [end for end in ends if end] or ends)) if ends else None


def at_budget(rows: Rows, by: str = "seconds", budget: float | None = None) -> list[dict]:
    """Each method's best validation point within `budget` (default: the common one), as the test takes the best.

    {method, step, seconds, samples, mean, low, high, n}: a method may use less than the budget. A point up to 5% over
    counts too, since no step is cut in two. Step 0 does not count: a method that has not begun by then is left out."""
    most = 1.05 * ((common(rows, by) or 0.0) if budget is None else budget)
    lines = {name: [p for p in points if p[by] <= most and p["step"]] for name, points in curves(rows, by).items()}
    return [{"method": name, **max(points, key=lambda p: p["mean"])} for name, points in lines.items() if points]


def baselines(rows: Rows) -> dict[str, dict]:
    """Methods without a training that the trainings were validated against: {method: interval}."""
    pairs = [pair for row in of_kind(rows, "train") for pair in (row.get("baselines") or {}).items()]
    return {name: value for name, value in pairs if whole(value)}


def costs(rows: Rows) -> list[dict]:
    """{method, samples, tokens_generated, tokens_trained, seconds, money} of each training that has a cost.

    A figure that was not noted, or is no number, is None."""
    cost = {row["method"]: row["cost"] for row in of_kind(rows, "train") if row.get("cost")}
    return [{"method": name, **{key: number(cost[name].get(key)) for key in COSTS}} for name in in_order(cost)]


def capability_changes(rows: Rows) -> list[dict]:
    """Whole paired differences to the untrained model: {method, task, metric, n, difference} each."""
    compared = [row for row in of_kind(rows, "capability_compare") if row["b"] == "untrained"]
    last = {(row["a"], row["task"], row["metric"]): row for row in compared if whole(row["difference"])}
    family = zip(last.values(), corrected([row["difference"] for row in last.values()]), strict=True)
    return _by_method([{"method": row["a"], **{key: row[key] for key in CHANGE}, "difference": d} for row, d in family])


def main_changes(rows: Rows) -> list[dict]:
    """The rows of `capability_changes` with one metric per task: accuracy, else the strictest, else the first."""
    changes, best = capability_changes(rows), dict[str, str]()
    for row in changes:
        if row["task"] not in best or row["metric"] in ("accuracy", "prompt_level_strict_acc"):
            best[row["task"]] = row["metric"]
    return [row for row in changes if row["metric"] == best[row["task"]]]


def worse(change: Mapping) -> str:
    """For a row of `capability_changes`: "lost", "gained", or "" where none is shown."""
    side = verdict(change["difference"])
    if side == "not shown to differ":
        return ""
    return "lost" if (side == "below") != is_loss(change["metric"]) else "gained"


def capability_means(rows: Rows) -> list[dict]:
    """Each whole capability row, the untrained model's first: {method, suite, task, metric, n, mean, low, high}."""
    return _by_method([row for row in of_kind(rows, "capability") if whole(row)])


def _by_method(rows: list[dict]) -> list[dict]:
    order = in_order(row["method"] for row in rows)
    return sorted(rows, key=lambda row: order.index(row["method"]))


def retention(rows: Rows) -> list[dict]:
    """How far each method moved from the untrained model and what it kept: {method, kl, change, tasks}.

    kl: forward KL on neutral prompts, with its interval. change: mean over the offline suite's tasks (or, without
    one, over all) of the paired differences in accuracy. The tasks' items are different ones, so half-widths add up
    in squares. Methods that lack one of the two are left out."""
    kls = {row["method"]: row for row in capability_means(rows) if row["task"] == "kl"}
    changes = [row for row in main_changes(rows) if not is_loss(row["metric"])]
    offline = {row.get("task") for row in rows if row.get("suite") == "offline"}
    changes = [row for row in changes if row["task"] in offline] or changes
    kept = []
    for name in in_order(row["method"] for row in changes if row["method"] in kls):
        parts = [row["difference"] for row in changes if row["method"] == name]
        mean, n = sum(part["mean"] for part in parts) / len(parts), len(parts)
        down, up = (math.hypot(*(part[end] - part["mean"] for part in parts)) / n for end in ("low", "high"))
        change = {"mean": mean, "low": mean - down, "high": mean + up}
        kept.append({"method": name, "kl": kls[name], "tasks": n, "change": change})
    return kept


def stages(rows: Rows) -> dict[str, list[Mapping]]:
    """Rows of the continual adaptation by trainer, in the order of their stages: {trainer: rows}."""
    last = {(row["trainer"], row["stage"]): row for row in of_kind(rows, "continual")}
    return {name: [last[key] for key in sorted(last) if key[0] == name] for name in in_order(name for name, _ in last)}


def measures(rows: Rows) -> list[str]:
    """Names of what the continual adaptation measured, in the order met, where one value at least is whole."""
    every = [pair for line in stages(rows).values() for row in line for pair in row["measures"].items()]
    return list(dict.fromkeys(name for name, value in every if whole(value)))
