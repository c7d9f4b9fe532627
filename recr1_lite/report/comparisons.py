"""Figures whose titles say what the data say, with a baseline as a line and a band for every interval.

Each function returns a matplotlib Figure that needs no display and is not pyplot's, so that a notebook shows
it once, as the value of a cell. The figures of a training run are in `curves.py`, those of a comparison in
`budget_plots.py` and `forgetting_plots.py`, the loop's in `picture.py`.
"""

# MERGED: """The figures of a comparison at one budget: learning curves, cost against quality, the teacher's bound."""
# MERGED: """The figures of what training cost elsewhere: lost capability, KL against retention, continual adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recr1_lite.evaluate.evaluation import metric_label
from recr1_lite.report import rows as budget
from recr1_lite.report.curves import components, dashboard, learning_curve
from recr1_lite.report.figures import (
    BACKED,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Picture,
    as_bytes,
    draw_baselines,
    interval,
    legend_below,
    loop_picture,
    reach,
    styled,
    title,
)
from recr1_lite.report.rows import FIGURES, SETTING

__all__ = [
    "as_bytes",
    "bound",
    "components",
    "continual",
    "cost_quality",
    "dashboard",
    "forgetting",
    "headroom",
    "kl_retention",
    "learning_curve",
    "loop_picture",
    "methods",
    "published",
    "race",
    "word_shift",
]


@styled
def methods(rows: Sequence[Mapping], baseline: str | None = None, metric: str = "ndcg@100") -> Figure:
    """Methods as dots with their 95% intervals; the baseline (default: the first row) as a line with a band.

    rows: dicts {method, mean, low, high, n}.
    """
    figure = Picture(figsize=(6.2, 1.5 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    names = [row["method"] for row in rows]
    base = next((row for row in rows if row["method"] == baseline), rows[0])
    axis.axvspan(base["low"], base["high"], color=BLACK, alpha=0.08, lw=0)
    axis.axvline(base["mean"], color=BLACK, ls="--", lw=1)
    for place, row in enumerate(rows):
        color = BLACK if row is base else BLUE
        _dot(axis, row, place, color)
    axis.set_yticks(range(len(rows)), [fill(name, 24) for name in names])
    axis.set_ylim(len(rows) - 0.5, -0.7)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval, n = {base.get('n', '?')}")
    best = max(rows, key=lambda row: row["mean"])
    versus, gap = f"{base['method']} ({base['mean']:.3f})", best["mean"] - base["mean"]
    win = f"{best['method']} ({best['mean']:.3f}) is highest: {gap:+.3f} over {versus}"
    title(figure, win if best is not base else f"No method is above {versus}")
    return figure


@styled
def headroom(row: Mapping, baselines: Mapping | None = None, metric: str = "ndcg@100") -> Figure:
    """What picking the best of several rollouts would win over their mean: the room that training can go for.

    row: {n, rollouts, mean: {mean, low, high}, best: {mean, low, high}}. baselines as in learning_curve.
    """
    figure = Picture(figsize=(6.2, 2.5 + 0.16 * len(baselines or ())), layout="constrained")
    axis = figure.subplots()
    mean, best, count = interval(row["mean"]), interval(row["best"]), row.get("rollouts", "n")
    draw_baselines(axis, {name: interval(value) for name, value in (baselines or {}).items()}, vertical=True)
    _dot(axis, mean, 0, BLUE)
    _dot(axis, best, 1, GREEN)
    axis.set_yticks([0, 1], [f"mean of {count}", f"best of {count}"])
    axis.set_ylim(1.5, -0.7)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{metric_label(metric)}, n = {row.get('n', '?')} requests x {count} rollouts")
    legend_below(figure)
    gap = best["mean"] - mean["mean"]
    title(figure, f"Choosing the best of {count} rollouts would win {gap:+.3f} over their mean")
    return figure


@styled
def word_shift(frame: pd.DataFrame, before: str = "before", after: str = "after") -> Figure:
    """Dumbbells: for each word the share of rewrites that hold it, before (ring) and after (dot).

    frame: word, before, after, as `reading.word_shares` gives it, drawn in its order.
    """
    figure = Picture(figsize=(6.2, 1.6 + 0.3 * max(1, len(frame))), layout="constrained")
    axis = figure.subplots()
    places, rose = range(len(frame)), (frame["after"] > frame["before"]).tolist()
    colors = [BLUE if up else RED for up in rose]
    axis.hlines(places, frame["before"], frame["after"], colors=colors, lw=3, alpha=0.45)
    axis.scatter(frame["before"], places, s=42, facecolors="white", edgecolors=colors, lw=1.6, zorder=3)
    axis.scatter(frame["after"], places, s=42, color=colors, zorder=3)
    for place, row, up in zip(places, frame.itertuples(), rose):
        shift, side = (7, "left") if up else (-7, "right")
        axis.annotate(
            f"{row.after:.0%}",
            (row.after, place),
            (shift, 0),
            textcoords="offset points",
            ha=side,
            va="center_baseline",
            fontsize=9.5,
        )
    axis.set_yticks(places, [word if len(word) <= 24 else f"{word[:23]}…" for word in frame["word"]])
    axis.set_ylim(max(1, len(frame)) - 0.4, -0.6)
    top = frame[["before", "after"]].to_numpy(float).max(initial=0.0) or 1.0
    axis.set_xlim(-0.14 * top, 1.14 * top)  # room for the numbers
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= min(1.001, 1.14 * top)])
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y", visible=False)
    count = f"{frame.attrs['n']} " if "n" in frame.attrs else ""
    axis.set_xlabel(f"share of the {count}rewrites that hold the word")
    for style, name in (({"markerfacecolor": "white"}, before), ({}, after)):
        axis.plot([], [], "o", color=GREY, label=name, **style)
    legend_below(figure)
    ends = [
        *frame[frame["after"] > frame["before"]].head(1).itertuples(),
        *frame[frame["after"] < frame["before"]].tail(1).itertuples(),
    ]
    told = ", ".join(f"with “{row.word}”: {row.before:.0%} → {row.after:.0%}" for row in ends)
    title(figure, f"Rewrites {told}" if told else "The rewrites use their words as before")
    return figure


def _dot(axis, row: Mapping, place: int, color: str) -> None:
    axis.errorbar(row["mean"], place, xerr=reach(row), fmt="o", color=color, capsize=3)
    axis.annotate(
        f"{row['mean']:.3f}",
        (row["mean"], place),
        (0, 7),
        textcoords="offset points",
        ha="center",
        color=color,
        bbox=BACKED,
    )


LOOK = {  # of each method, the same in every figure
    "GRPO": (BLUE, "o"),
    "SFT": (ORANGE, "s"),
    "SFT + JSON": (SKY, "D"),
    "SFT + reasoning": (RED, "^"),
    "SFT + reasoning + JSON": (PURPLE, "v"),
    "rejection SFT": (GREEN, "P"),
    "SFT then GRPO": (GREY, "X"),
    "SFT (LM teacher)": (BLACK, "*"),
}
OTHERS = [(PURPLE, "<"), (GREEN, ">"), (RED, "p"), (SKY, "h"), (ORANGE, "*"), (BLUE, "d")]
BY = {
    "seconds": "seconds of training, sampling included",
    "samples": "completions sampled from a model",
    "tokens": "tokens generated and trained on",
}
UNIT = {"seconds": "s", "samples": "samples", "tokens": "tokens"}
DASHES = ["--", ":", "-.", (0, (5, 1, 1, 1))]


def look(method: str, place: int = 0) -> tuple[str, str]:
    """Colour and marker of a method."""
    return LOOK.get(method) or OTHERS[place % len(OTHERS)]


@styled
def race(
    rows: Sequence[Mapping], by: str = "seconds", baselines: Mapping | None = None, metric: str = "ndcg@100"
) -> Figure:
    """Validation against what was spent, all trained methods together; a bar: 95% interval of the best point.

    rows: the ledger's, of which "train" rows with points {mean, low, high, n, seconds, samples} are drawn. by:
    "seconds" or "samples". baselines: name -> Interval, {mean, low, high} or a number, on the same requests.
    """
    curves, limit, found = budget.curves(rows, by), budget.common(rows, by), budget.at_budget(rows, by)
    best = {row["method"]: row for row in found}
    figure = Picture(figsize=(6.2, 3.8 + 0.13 * (len(curves) + len(baselines or ()))), layout="constrained", dpi=90)
    axis = figure.subplots()
    for (name, value), dash in zip((baselines or {}).items(), DASHES * 3):
        mean = interval(value)["mean"]
        axis.axhline(mean, color=BLACK, ls=dash, lw=1.1, label=fill(f"{name} {mean:.3f}", 30))
    for place, (name, points) in enumerate(curves.items()):
        color, marker = look(name, place)
        point = best.get(name)
        axis.plot(
            [point[by] for point in points],
            [point["mean"] for point in points],
            color=color,
            marker=marker,
            label=fill(f"{name} {point['mean']:.3f}" if point else name, 30),
        )
        if point:
            axis.errorbar(point[by], point["mean"], yerr=reach(point), color=color, capsize=3, alpha=0.7)
    if limit:
        axis.axvline(limit, color=GREY, ls=(0, (1, 2)), lw=1.2)
        axis.annotate(
            "same budget",
            (limit, 0.01),
            (-4, 0),
            ("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            color=GREY,
            bbox=BACKED,
        )
    count = next((f", n = {points[-1]['n']}" for points in curves.values() if points[-1].get("n")), "")
    axis.set(xlabel=BY[by], ylabel=f"val {metric_label(metric)}{count}")
    _legend(figure, axis)
    title(figure, _race_finding(found, limit, by, metric_label(metric)))
    return figure


@styled
def cost_quality(
    rows: Sequence[Mapping], baselines: Mapping | None = None, metric: str = "ndcg@100", split: str = "test"
) -> Figure:
    """What each method scored, with its 95% interval, over what its training took: seconds, and tokens.

    rows: dicts {method, mean, low, high, n, seconds, tokens}; seconds or tokens may be None. baselines as in
    `race`. Points that would hide each other are moved apart by up to a few hundredths of the axis.
    """
    panels = [by for by in ("seconds", "tokens") if any(row.get(by) for row in rows)] or ["seconds"]
    figure = Picture(figsize=(6.8, 3.6 + 0.13 * (len(rows) + len(baselines or ()))), layout="constrained", dpi=90)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, by in zip(axes, panels):
        for (name, value), dash in zip((baselines or {}).items(), DASHES * 3):
            mean = interval(value)["mean"]
            axis.axhline(mean, color=BLACK, ls=dash, lw=1.1, label=fill(f"{name} {mean:.3f}", 30))
        costs = [row.get(by) or 0.0 for row in rows]
        used = [cost for cost in costs if cost]
        if used and max(used) > 8 * min(used):
            axis.set_xscale("log")
        for place, (row, cost) in enumerate(zip(rows, _apart(costs, axis.get_xscale() == "log"))):
            if costs[place]:
                color, marker = look(row["method"], place)
                axis.errorbar(
                    cost,
                    row["mean"],
                    yerr=reach(row),
                    fmt=marker,
                    color=color,
                    capsize=3,
                    label=fill(f"{row['method']} {row['mean']:.3f}", 30),
                )
        axis.margins(x=0.12)
        if axis.get_xscale() == "linear":
            axis.set_xlim(0, 1.15 * max(used, default=1))
        axis.set_xlabel(fill(BY[by], 26))
        axis.xaxis.set_major_formatter(lambda value, place: f"{value / 1000:g}k" if value >= 1e4 else f"{value:g}")
    count = next((f", n = {row['n']}" for row in rows if row.get("n")), "")
    axes[0].set_ylabel(f"{split} {metric_label(metric)}{count}")
    _legend(figure, axes[0])
    title(figure, _cost_finding(rows, metric_label(metric)))
    return figure


@styled
def bound(
    rows: Sequence[Mapping], differences: Mapping[str, Mapping], teachers: Sequence[Mapping], metric: str = "ndcg@100"
) -> Figure:
    """Teachers as lines, methods as dots with 95% intervals: can imitation pass what it imitates?

    rows and teachers: dicts {method, mean, low, high, n}. differences: method -> paired difference to its
    teacher (`budget.TEACHERS`) {mean, low, high}; the title speaks of these, never of two intervals that overlap
    or do not. Source of the bound: Theorem 1 of arXiv 2503.24289.
    """
    figure = Picture(figsize=(6.2, 2.1 + 0.42 * len(rows)), layout="constrained", dpi=90)
    axis = figure.subplots()
    for teacher, dash in zip(teachers, DASHES):
        axis.axvspan(teacher["low"], teacher["high"], color=BLACK, alpha=0.06, lw=0)
        axis.axvline(teacher["mean"], color=BLACK, ls=dash, lw=1.2, label=f"{teacher['method']} {teacher['mean']:.3f}")
    for place, row in enumerate(rows):
        color, marker = (ORANGE, "s") if budget.is_sft(row["method"]) else (BLUE, "o")
        axis.errorbar(row["mean"], place, xerr=reach(row), fmt=marker, color=color, capsize=3)
        axis.annotate(
            f"{row['mean']:.3f}",
            (row["mean"], place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=BLACK if color == ORANGE else color,
            bbox=BACKED,
        )
    for label, color, marker in (("imitates its teacher", ORANGE, "s"), ("learns from the reward", BLUE, "o")):
        axis.plot([], [], marker, color=color, label=label)
    axis.set_yticks(range(len(rows)), [fill(row["method"], 24) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.grid(axis="y", visible=False)
    count = next((row["n"] for row in teachers if row.get("n")), "?")
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval, n = {count}")
    _legend(figure, axis, 2)
    title(figure, _bound_finding(rows, differences))
    return figure


@styled
def published(ours: Sequence[Mapping], metric: str = "ndcg@100", setting: str = "this run") -> Figure:
    """The authors' figures beside a run's own, each on an axis of its own: they share no data and no model.

    ours: dicts {method, mean, low, high, n}, raw request first.
    """
    figure = Picture(figsize=(6.8, 1.6 + 0.42 * max(len(ours), len(FIGURES))), layout="constrained", dpi=90)
    theirs = [row | {key: row[key] / 100 for key in ("mean", "low", "high")} for row in FIGURES]
    sides = (
        (theirs, "PUBLISHED, not run here:\n" + SETTING.replace(" x 100, ", ",\n"), GREY),
        (list(ours), f"{setting}:\n{metric_label(metric)},\nn = {ours[0].get('n', '?') if ours else 0}", BLUE),
    )
    for axis, (rows, name, color) in zip(figure.subplots(1, 2), sides):
        places = range(len(rows))
        axis.barh(
            places,
            [row["mean"] for row in rows],
            0.6,
            color=color,
            alpha=0.35,
            hatch="//" * (color == GREY),
            edgecolor="white" if color == GREY else "none",
        )
        axis.errorbar(
            [row["mean"] for row in rows],
            places,
            fmt="none",
            ecolor=color,
            capsize=3,
            xerr=np.hstack([reach(row) for row in rows]) if rows else None,
        )
        for place, row in zip(places, rows):
            axis.annotate(
                f"{row['mean']:.3f}",
                (row["high"], place),
                (4, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=9.5,
            )
        axis.set_yticks(places, [fill(row["method"], 13) for row in rows])
        axis.set_ylim(max(1, len(rows)) - 0.4, -0.6)
        axis.set_xlim(0, 1.25 * max([row["high"] for row in rows], default=1))
        axis.grid(axis="y", visible=False)
        axis.set_title(name, fontsize=10, weight="bold" if color == GREY else "normal")
    gain = theirs[-1]["mean"] - theirs[0]["mean"]
    here = f"; here {ours[-1]['method']} {ours[-1]['mean'] - ours[0]['mean']:+.3f}" if len(ours) > 1 else ""
    title(
        figure,
        f"Published gain over the raw query {gain:+.3f}{here}: other data, model and size, so the two are no race",
        62,
    )
    return figure


def _legend(figure: Figure, axis, columns: int = 2) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9.5)


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


def _race_finding(rows: Sequence[Mapping], limit: float | None, by: str, label: str) -> str:
    if not rows:
        return f"No validation point with its {by} has been logged yet"
    best, *others = sorted(rows, key=lambda row: -row["mean"])
    told = f"Within {limit:,.0f} {UNIT[by]}, {best['method']} is highest: val {label} {best['mean']:.3f}"
    if not others:
        return told.replace(", ", ": ", 1).replace(" is highest: val", " reaches val", 1)
    second = others[0]
    fact = "the intervals overlap: not shown to differ" if budget.overlap(best, second) else "the intervals lie apart"
    return f"{told} against {second['method']}'s {second['mean']:.3f}; {fact}"


def _cost_finding(rows: Sequence[Mapping], label: str) -> str:
    if not rows:
        return "No trained method has both a score and a cost"
    best = max(rows, key=lambda row: row["mean"])
    told = f"{best['method']} is highest, {label} {best['mean']:.3f}" + _spent(best)
    cheap = min((row for row in rows if row.get("seconds")), key=lambda row: row["seconds"], default=best)
    if cheap is best:
        return told + (", and the cheapest" if len(rows) > 1 else "")
    fact = "intervals overlap" if budget.overlap(best, cheap) else "intervals apart"
    return f"{told}; the quickest, {cheap['method']}, {cheap['mean']:.3f}{_spent(cheap)} ({fact})"


def _spent(row: Mapping) -> str:
    return f" in {row['seconds']:,.0f} s" if row.get("seconds") else ""


def _bound_finding(rows: Sequence[Mapping], differences: Mapping[str, Mapping]) -> str:
    known = [row["method"] for row in rows if row["method"] in differences]
    if not known:
        return "No method was paired with its teacher; the dots alone show no difference"
    sft = [name for name in known if budget.is_sft(name)]
    above = [
        f"{name} ({differences[name]['mean']:+.3f})" for name in sft if budget.verdict(differences[name]) == "above"
    ]
    told = (
        [
            f"{len(above)} of {len(sft)} SFT variants shown above the teacher"
            + (f": {', '.join(above)}" if above else "")
        ]
        if sft
        else []
    )
    free = [
        f"{name} {budget.verdict(differences[name])} ({differences[name]['mean']:+.3f})"
        for name in known
        if not budget.is_sft(name)
    ]
    return "; ".join(told + ([", ".join(free) + ("" if told else " the teacher")] if free else []))


SIDE = 2.35  # inches of a panel


@styled
def forgetting(rows: Sequence[Mapping]) -> Figure:
    """Paired difference to the untrained model with its 95% interval: a panel a task, a row a method.

    rows: the ledger's; of them `budget.main_changes` are drawn, one metric a task. Full dots: the interval
    leaves 0 out.
    """
    changes = budget.main_changes(rows)
    methods = list(dict.fromkeys(row["method"] for row in changes))
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in changes))
    columns = min(3, len(tasks)) or 1
    lines = -(-len(tasks) // columns) or 1
    figure = Picture(
        figsize=(1.1 + 1.95 * columns, 0.9 + lines * (0.95 + 0.3 * max(1, len(methods)))), layout="constrained", dpi=90
    )
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    for axis, (task, metric) in zip(axes, tasks):
        axis.axvline(0, color=BLACK, ls="--", lw=1)
        count = None
        for row in changes:
            if (row["task"], row["metric"]) == (task, metric):
                place, count = methods.index(row["method"]), row["n"]
                color, marker = look(row["method"], place)
                axis.errorbar(
                    row["difference"]["mean"],
                    place,
                    xerr=reach(row["difference"]),
                    fmt=marker,
                    color=color,
                    capsize=3,
                    mfc=color if budget.worse(row) else "white",
                )
        harm = " (right is worse)" if budget.is_loss(metric) else ""
        axis.set_title(f"{task_name(task)}, n = {count}", fontsize=9.5)
        axis.set_xlabel(f"{metric.replace('_', ' ')}{harm}", fontsize=9.5)
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.tick_params(labelsize=9)
    if changes:
        axes[0].set_yticks(range(len(methods)), [fill(name, 14) for name in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
        figure.supxlabel("filled: the 95% interval leaves 0 out", fontsize=9, color=GREY)
    title(figure, _forgetting_finding(changes, methods, len(tasks)), 60)
    return figure


@styled
def kl_retention(rows: Sequence[Mapping]) -> Figure:
    """How far each method moved from the untrained model, in forward KL, and what it kept of its accuracy.

    rows: the ledger's; of them `budget.retention` is drawn, with 95% intervals both ways. The untrained model
    is the cross at (0, 0).
    """
    found = budget.retention(rows)
    figure = Picture(figsize=(6.2, 3.6), layout="constrained", dpi=90)
    axis = figure.subplots()
    axis.axhline(0, color=BLACK, ls="--", lw=1)
    axis.plot(0, 0, "+", color=BLACK, ms=11, mew=1.6, label="untrained")
    for place, row in enumerate(found):
        color, marker = look(row["method"], place)
        axis.errorbar(
            row["kl"]["mean"],
            row["change"]["mean"],
            xerr=reach(row["kl"]),
            yerr=reach(row["change"]),
            fmt=marker,
            color=color,
            capsize=3,
            label=row["method"],
        )
    tasks = found[0]["tasks"] if found else 0
    count = f", n = {found[0]['kl'].get('n')}" if found and found[0]["kl"].get("n") else ""
    axis.set(
        xlabel=f"forward KL from the untrained model, nats a token{count}",
        ylabel=f"change of accuracy,\nmean of {tasks} task{'s' * (tasks != 1)}",
    )
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9.5)
    title(figure, _retention_finding(found))
    return figure


@styled
def continual(rows: Sequence[Mapping]) -> Figure:
    """Stages of adaptation to one task after another: a panel a measure, a line a trainer, 95% intervals.

    rows: the ledger's, of which those of kind "continual" are drawn.
    """
    stages, names = budget.stages(rows), budget.measures(rows)
    columns = min(2, len(names)) or 1
    lines = -(-len(names) // columns) or 1
    figure = Picture(figsize=(0.6 + 3.1 * columns, 1.4 + SIDE * lines), layout="constrained", dpi=90)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names):
        for place, (trainer, line) in enumerate(stages.items()):
            points = [row for row in line if budget.whole(row["measures"].get(name))]
            if points:
                values = [row["measures"][name] for row in points]
                shift = 0.06 * (place - (len(stages) - 1) / 2)  # so that no interval hides another
                color, marker = look(trainer, place)
                axis.errorbar(
                    [row.get("stage", 0) + shift for row in points],
                    [value["mean"] for value in values],
                    color=color,
                    marker=marker,
                    yerr=np.hstack([reach(value) for value in values]),
                    capsize=3,
                    label=trainer,
                )
        told = {
            row.get("stage", 0): str(row.get("name", row.get("stage", ""))) for line in stages.values() for row in line
        }
        axis.set_xticks(list(told), [fill(text, 11) for text in told.values()], fontsize=9)
        axis.set_xlim(min(told) - 0.3, max(told) + 0.3)
        count = next(
            (
                row["measures"][name].get("n")
                for line in stages.values()
                for row in line
                if budget.whole(row["measures"].get(name))
            ),
            None,
        )
        unit = " (nats, 0 is the start)" if name == "kl" else ""
        axis.set_title(f"{name}{unit}" + (f", n = {count}" if count else ""), fontsize=10)
    if names:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    title(figure, continual_finding(rows), 60)
    return figure


def task_name(task: str) -> str:
    """A task's name as it stands in print: "recr1_arithmetic" as "arithmetic"."""
    return task.removeprefix("recr1_").replace("_", " ")


def continual_finding(rows: Sequence[Mapping]) -> str:
    """What the last stage did to the first task since the stage before, and to capability since the start.

    A paired difference to the untrained model is used where the row has one; else whether the two intervals
    overlap.
    """
    told, last = [], ""
    for trainer, line in budget.stages(rows).items():
        moved = []
        for name, start in [(name, -2) for name in budget.measures(rows)[:1]] + [("capability", 0)]:
            if len(line) < 3:
                continue
            before, after = (row["measures"].get(name) for row in (line[start], line[-1]))
            if budget.whole(before) and budget.whole(after):
                paired = (line[-1].get("differences") or {}).get(name) if start == 0 else None
                doubt = (
                    budget.verdict(paired) == "not shown to differ"
                    if budget.whole(paired)
                    else budget.overlap(before, after)
                )
                moved.append(f"{name} {before['mean']:.3f} → {after['mean']:.3f}{'*' * doubt}")
        if moved:
            told.append(f"{trainer} {', '.join(moved)}")
            last = last or str(line[-1].get("name", "the last stage"))
    if not told:
        return "Fewer than three stages: nothing to tell of what an earlier one kept"
    star = " (*: not shown to differ)" if any("*" in text for text in told) else ""
    return f"{last[:1].upper()}{last[1:]}: {'; '.join(told)}{star}"


def _forgetting_finding(changes: Sequence[Mapping], methods: Sequence[str], tasks: int) -> str:
    if not changes:
        return "No method was compared with the untrained model on a capability task"
    told = []
    for name in methods:
        mine = [row for row in changes if row["method"] == name]
        lost = [row for row in mine if budget.worse(row) == "lost"]
        gained = sum(budget.worse(row) == "gained" for row in mine)
        told.append(f"{name} {len(lost)} of {len(mine)}" + (f" (gain on {gained})" if gained else ""))
    return f"Measures with a loss shown against the untrained model: {', '.join(told)}"


def _retention_finding(found: Sequence[Mapping]) -> str:
    if not found:
        return "No method has both its KL and its capability measured"
    far, near = max(found, key=lambda row: row["kl"]["mean"]), min(found, key=lambda row: row["kl"]["mean"])

    def told(row: Mapping) -> str:
        open_end = budget.verdict(row["change"]) == "not shown to differ"
        return f"{row['method']} moved {row['kl']['mean']:.2f} nats, accuracy {row['change']['mean']:+.3f}" + (
            ", not shown to differ from 0" if open_end else ""
        )

    return told(far) if far is near else f"{told(far)}; {told(near)}"
