"""The figures that compare: methods, budgets, teachers, what was forgotten. Each title says what the data say.

A baseline is a line; every mean has its 95% interval. The figures of one run are in `curves.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from recr1_lite.evaluate.evaluation import metric_label
from recr1_lite.report import figures as style
from recr1_lite.report import findings
from recr1_lite.report import rows as book
from recr1_lite.report.figures import BLACK, BLUE, GREY, ORANGE, Rows, canvas, dot, fill, name_rows, note, reach, styled
from recr1_lite.report.rows import FIGURES, SETTING

BY = {"seconds": "seconds of training, sampling included", "samples": "completions sampled from a model"}
BY["tokens"] = "tokens generated and trained on"


def task_name(task: str) -> str:
    """A task's name as it stands in print: "recr1_arithmetic" as "arithmetic"."""
    return task.removeprefix("recr1_").replace("_", " ")


@styled
def methods(rows: Rows, baseline: str | None = None, metric: str = "ndcg@100") -> Figure:
    """Methods as dots with their 95% intervals; the baseline (default: the first row) as a line with a band.

    rows: dicts {method, mean, low, high, n}.
    """
    figure, axis = canvas(1.5 + 0.42 * len(rows))
    base = next((row for row in rows if row["method"] == baseline), rows[0])
    axis.axvspan(base["low"], base["high"], color=BLACK, alpha=0.08, lw=0)
    axis.axvline(base["mean"], color=BLACK, ls="--", lw=1)
    for place, row in enumerate(rows):
        dot(axis, row, place, BLACK if row is base else BLUE)
    name_rows(axis, [fill(row["method"], 24) for row in rows], 0.5, 0.7)
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval, n = {base.get('n', '?')}")
    best = max(rows, key=lambda row: row["mean"])
    versus, gap = f"{base['method']} ({base['mean']:.3f})", best["mean"] - base["mean"]
    win = f"{best['method']} ({best['mean']:.3f}) is highest: {gap:+.3f} over {versus}"
    style.title(figure, win if best is not base else f"No method is above {versus}")
    return figure


@styled
def race(rows: Rows, by: str = "seconds", baselines: Mapping = {}, metric: str = "ndcg@100") -> Figure:
    """Validation against what was spent, all trained methods together; a bar: 95% interval of the best point.

    rows: the ledger's, of which "train" rows with points {mean, low, high, n, seconds, samples} are drawn. by:
    "seconds" or "samples". baselines: name -> Interval, {mean, low, high} or a number, on the same requests.
    """
    curves, limit, at = book.curves(rows, by), book.common(rows, by), book.at_budget(rows, by)
    best = {row["method"]: row for row in at}
    figure, axis = canvas(3.8 + 0.13 * (len(curves) + len(baselines)), dpi=90)
    style.draw_baselines(axis, baselines, band=False)
    for place, (name, points) in enumerate(curves.items()):
        color, marker = style.look(name, place)
        point = best.get(name)
        label = fill(name, 30, f"{point['mean']:.3f}" if point else "")
        spent, means = [p[by] for p in points], [p["mean"] for p in points]
        axis.plot(spent, means, color=color, marker=marker, label=label)
        if point:
            axis.errorbar(point[by], point["mean"], yerr=reach(point), color=color, capsize=3, alpha=0.7)
    if limit:
        axis.axvline(limit, color=GREY, ls=(0, (1, 2)), lw=1.2)
        spot: dict = dict(ha="right", va="baseline", bbox=style.BACKED, xycoords=("data", "axes fraction"))
        note(axis, "same budget", (limit, 0.01), (-4, 0), fontsize=9.5, color=GREY, **spot)
    count = next((f", n = {points[-1]['n']}" for points in curves.values() if points[-1].get("n")), "")
    axis.set(xlabel=BY[by], ylabel=f"val {metric_label(metric)}{count}")
    style.legend_below(figure)
    style.title(figure, findings.race_finding(at, limit, by, metric_label(metric)))
    return figure


@styled
def cost_quality(rows: Rows, baselines: Mapping = {}, metric: str = "ndcg@100", split: str = "test") -> Figure:
    """What each method scored, with its 95% interval, over what its training took: seconds, and tokens.

    rows: dicts {method, mean, low, high, n, seconds, tokens}; seconds or tokens may be None. baselines as in `race`.
    Points that would hide each other are moved apart by up to a few hundredths of the axis.
    """
    panels = [by for by in ("seconds", "tokens") if any(row.get(by) for row in rows)] or ["seconds"]
    figure = style.Picture(figsize=(6.8, 3.6 + 0.13 * (len(rows) + len(baselines))), layout="constrained", dpi=90)
    axes: list = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axis, by in zip(axes, panels, strict=True):
        style.draw_baselines(axis, baselines, band=False)
        costs = [row.get(by) or 0.0 for row in rows]
        used = [cost for cost in costs if cost]
        log = bool(used) and max(used) > 8 * min(used)
        axis.set_xscale("log" if log else "linear")
        axis.margins(x=0.12)
        for place, (row, cost) in enumerate(zip(rows, _apart(costs, log), strict=True)):
            if costs[place]:
                _marked(axis, row["method"], place, cost, row, label=fill(row["method"], 30, f"{row['mean']:.3f}"))
        if not log:
            axis.set_xlim(0, 1.15 * max(used, default=1))
        axis.set_xlabel(fill(BY[by], 26))
        if log:
            axis.xaxis.set_minor_locator(LogLocator(subs=[3]))
        for write in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            write(lambda value, place: f"{value / 1000:g}k" if value >= 1e4 else f"{value:g}")
    count = next((f", n = {row['n']}" for row in rows if row.get("n")), "")
    axes[0].set_ylabel(f"{split} {metric_label(metric)}{count}")
    style.legend_below(figure)
    style.title(figure, findings.cost_finding(rows, metric_label(metric)))
    return figure


@styled
def bound(rows: Rows, differences: Mapping[str, Mapping], teachers: Rows, metric: str = "ndcg@100") -> Figure:
    """Teachers as lines, methods as dots with 95% intervals: can imitation pass what it imitates?

    rows and teachers: dicts {method, mean, low, high, n}. differences: method -> paired difference to its teacher
    (`rows.TEACHERS`) {mean, low, high}; the title speaks of these, never of two intervals that overlap or do not.
    Source of the bound: Theorem 1 of arXiv 2503.24289.
    """
    figure, axis = canvas(2.1 + 0.42 * len(rows), dpi=90)
    style.draw_baselines(axis, {teacher["method"]: teacher for teacher in teachers}, vertical=True)
    for place, row in enumerate(rows):
        dot(axis, row, place, *((ORANGE, "s", BLACK) if book.is_sft(row["method"]) else (BLUE, "o", BLUE)))
    axis.plot([], [], "s", color=ORANGE, label="imitates its teacher")
    axis.plot([], [], "o", color=BLUE, label="learns from the reward")
    name_rows(axis, [fill(row["method"], 24) for row in rows], 0.4, 0.8)
    count = next((row["n"] for row in teachers if row.get("n")), "?")
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval, n = {count}")
    style.legend_below(figure)
    style.title(figure, findings.bound_finding(rows, differences))
    return figure


@styled
def published(ours: Rows, metric: str = "ndcg@100", setting: str = "this run") -> Figure:
    """The authors' figures beside a run's own, each on an axis of its own: they share no data and no model.

    ours: dicts {method, mean, low, high, n}, raw request first.
    """
    figure = style.Picture(figsize=(6.8, 1.6 + 0.42 * max(len(ours), len(FIGURES))), layout="constrained", dpi=90)
    theirs: list[dict] = [row | {key: row[key] / 100 for key in ("mean", "low", "high")} for row in FIGURES]
    here = f"{fill(setting, 34)}:\n{metric_label(metric)},\nn = {ours[0].get('n', '?') if ours else 0}"
    there = "PUBLISHED, not run here:\n" + SETTING.replace(" x 100, ", ",\n")
    hatched: dict = dict(color=GREY, hatch="//", edgecolor="white")
    left, right = figure.subplots(1, 2)
    for axis, rows, name, drawn in ((left, theirs, there, hatched), (right, list(ours), here, dict(color=BLUE))):
        axis.barh(range(len(rows)), [row["mean"] for row in rows], 0.6, alpha=0.35, **drawn)
        for place, row in enumerate(rows):
            axis.errorbar(row["mean"], place, xerr=reach(row), fmt="none", ecolor=drawn["color"], capsize=3)
            note(axis, f"{row['mean']:.3f}", (row["high"], place), (4, 0), fontsize=9.5)
        name_rows(axis, [fill(row["method"], 13) for row in rows], 0.4, 0.6)
        axis.set_xlim(0, 1.25 * max([row["high"] for row in rows], default=1))
        axis.set_title(name, fontsize=10, weight="bold" if rows is theirs else "normal")
    gain = theirs[-1]["mean"] - theirs[0]["mean"]
    own = f"; here {ours[-1]['method']} {ours[-1]['mean'] - ours[0]['mean']:+.3f}" if len(ours) > 1 else ""
    told = f"Published gain over the raw query {gain:+.3f}{own}: other data, model and size, so the two are no race"
    style.title(figure, told, 62)
    return figure


@styled
def forgetting(rows: Rows) -> Figure:
    """Paired difference to the untrained model with its 95% interval: one panel per task, one row per method.

    rows: the ledger's; of them `rows.main_changes` are drawn, one metric per task. Full dots: the interval leaves 0
    out.
    """
    changes = book.main_changes(rows)
    methods = list(dict.fromkeys(row["method"] for row in changes))
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in changes))
    height = 0.95 + 0.3 * max(1, len(methods))
    figure, axes = _grid(len(tasks), 3, lambda columns, lines: (1.1 + 1.95 * columns, 0.9 + lines * height), True)
    for axis, (task, metric) in zip(axes, tasks, strict=False):
        axis.axvline(0, color=BLACK, ls="--", lw=1)
        here = [row for row in changes if (row["task"], row["metric"]) == (task, metric)]
        for row in here:
            place = methods.index(row["method"])
            color, marker = style.look(row["method"], place)
            fill_in, at = color if book.worse(row) else "white", row["difference"]
            axis.errorbar(at["mean"], place, xerr=reach(at), fmt=marker, color=color, capsize=3, mfc=fill_in)
        harm = "(right is worse)" if book.is_loss(metric) else ""
        axis.set_title(fill(f"{task_name(task)},", 24, f"n = {here[-1]['n']}"), fontsize=9.5)
        axis.set_xlabel(fill(metric.replace("_", " "), 24, harm), fontsize=9.5)
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.tick_params(labelsize=9)
    if changes:
        name_rows(axes[0], [fill(name, 14) for name in methods], 0.5, 0.5)
        figure.supxlabel("filled: the 95% interval leaves 0 out", fontsize=9, color=GREY)
    style.title(figure, findings.forgetting_finding(changes, methods), 60)
    return figure


@styled
def kl_retention(rows: Rows) -> Figure:
    """How far each method moved from the untrained model, in forward KL, and what it kept of its accuracy.

    rows: the ledger's; of them `rows.retention` is drawn, with 95% intervals both ways. The untrained model is the
    cross at (0, 0).
    """
    kept = book.retention(rows)
    figure, axis = canvas(3.6, dpi=90)
    axis.axhline(0, color=BLACK, ls="--", lw=1)
    axis.plot(0, 0, "+", color=BLACK, ms=11, mew=1.6, label="untrained")
    for place, row in enumerate(kept):
        kl = row["kl"]
        _marked(axis, row["method"], place, kl["mean"], row["change"], label=fill(row["method"], 30), xerr=reach(kl))
    tasks = kept[0]["tasks"] if kept else 0
    count = f", n = {kept[0]['kl'].get('n')}" if kept and kept[0]["kl"].get("n") else ""
    axis.set_xlabel(f"forward KL from the untrained model, nats per token{count}")
    axis.set_ylabel(f"change of accuracy,\nmean of {tasks} task{'s' * (tasks != 1)}")
    style.legend_below(figure)
    style.title(figure, findings.retention_finding(kept))
    return figure


@styled
def continual(rows: Rows) -> Figure:
    """Stages of adaptation to one task after another: one panel per measure, one line per trainer, 95% intervals.

    rows: the ledger's, of which those of kind "continual" are drawn.
    """
    stages, names = book.stages(rows), book.measures(rows)
    figure, axes = _grid(len(names), 2, lambda columns, lines: (0.6 + 3.1 * columns, 1.4 + 2.35 * lines), False)
    told = {row.get("stage", 0): str(row.get("name", row.get("stage", ""))) for line in stages.values() for row in line}
    for axis, name in zip(axes, names, strict=False):
        count = None
        for place, (trainer, line) in enumerate(stages.items()):
            whole = [row for row in line if book.whole(row["measures"].get(name))]
            points = [(row.get("stage", 0), row["measures"][name]) for row in whole]
            shift = 0.06 * (place - (len(stages) - 1) / 2)  # so that no interval hides another
            color, marker = style.look(trainer, place)
            if points:
                count = count or points[0][1].get("n")
                at, means = [stage + shift for stage, _ in points], [value["mean"] for _, value in points]
                reaches = np.hstack([reach(value) for _, value in points])
                axis.errorbar(at, means, yerr=reaches, color=color, marker=marker, capsize=3, label=fill(trainer, 30))
        axis.set_xticks(list(told), [fill(text, 11) for text in told.values()], fontsize=9)
        axis.set_xlim(min(told) - 0.3, max(told) + 0.3)
        unit = " (nats, 0 is the start)" if name == "kl" else ""
        axis.set_title(fill(f"{name}{unit}" + "," * bool(count), 30, f"n = {count}" * bool(count)), fontsize=10)
    if names:
        style.legend_below(figure)
    style.title(figure, findings.continual_finding(rows), 60)
    return figure


def _marked(axis, method: str, place: int, x: float, row: Mapping, **more) -> None:
    color, marker = style.look(method, place)
    axis.errorbar(x, row["mean"], yerr=reach(row), fmt=marker, color=color, capsize=3, **more)


def _grid(count: int, most: int, size, sharey: bool):
    """A figure with `count` panels, at most `most` in a row; panels beyond are hidden."""
    columns = min(most, count) or 1
    lines = -(-count // columns) or 1
    figure = style.Picture(figsize=size(columns, lines), layout="constrained", dpi=90)
    axes = figure.subplots(lines, columns, sharey=sharey, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _apart(costs: Sequence[float], log: bool) -> np.ndarray:
    """Places on a cost axis at which no two points hide each other, in the order given; zeros stay."""
    values = np.log10(np.maximum(costs, 1e-9)) if log else np.array(costs, float)
    used = [place for place in np.argsort(values, kind="stable") if costs[place]]
    if used:
        least = 0.016 * (values[used[-1]] - (values[used[0]] if log else 0))
        for number, place in enumerate(used[::-1]):  # from the right: nobody seems to exceed the budget
            if number:
                values[place] = min(values[place], values[used[-number]] - least)
    return 10**values if log else values
