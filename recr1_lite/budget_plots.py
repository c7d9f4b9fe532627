"""The figures of a comparison at one budget: learning curves, cost against quality, the teacher's bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from recr1_lite import budget
from recr1_lite.evaluation import metric_label
from recr1_lite.published import FIGURES, SETTING
from recr1_lite.style import (
    BACKED, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Picture, interval, reach, styled, title,
)

LOOK = {  # of each method, the same in every figure
    "GRPO": (BLUE, "o"), "SFT": (ORANGE, "s"), "SFT + JSON": (SKY, "D"), "SFT + reasoning": (RED, "^"),
    "SFT + reasoning + JSON": (PURPLE, "v"), "rejection SFT": (GREEN, "P"), "SFT then GRPO": (GREY, "X"),
    "SFT (LM teacher)": (BLACK, "*"),
}
OTHERS = [(PURPLE, "<"), (GREEN, ">"), (RED, "p"), (SKY, "h"), (ORANGE, "*"), (BLUE, "d")]
BY = {"seconds": "seconds of training, sampling included", "samples": "completions sampled from a model",
      "tokens": "tokens generated and trained on"}
UNIT = {"seconds": "s", "samples": "samples", "tokens": "tokens"}
DASHES = ["--", ":", "-.", (0, (5, 1, 1, 1))]


def look(method: str, place: int = 0) -> tuple[str, str]:
    """Colour and marker of a method."""
    return LOOK.get(method) or OTHERS[place % len(OTHERS)]


@styled
def race(rows: Sequence[Mapping], by: str = "seconds", baselines: Mapping | None = None,
         metric: str = "ndcg@100") -> Figure:
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
        axis.plot([point[by] for point in points], [point["mean"] for point in points], color=color,
                  marker=marker, label=fill(f"{name} {point['mean']:.3f}" if point else name, 30))
        if point:
            axis.errorbar(point[by], point["mean"], yerr=reach(point), color=color, capsize=3, alpha=0.7)
    if limit:
        axis.axvline(limit, color=GREY, ls=(0, (1, 2)), lw=1.2)
        axis.annotate("same budget", (limit, 0.01), (-4, 0), ("data", "axes fraction"),
                      textcoords="offset points", ha="right", fontsize=9.5, color=GREY, bbox=BACKED)
    count = next((f", n = {points[-1]['n']}" for points in curves.values() if points[-1].get("n")), "")
    axis.set(xlabel=BY[by], ylabel=f"val {metric_label(metric)}{count}")
    _legend(figure, axis)
    title(figure, _race_finding(found, limit, by, metric_label(metric)))
    return figure


@styled
def cost_quality(rows: Sequence[Mapping], baselines: Mapping | None = None, metric: str = "ndcg@100",
                 split: str = "test") -> Figure:
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
                axis.errorbar(cost, row["mean"], yerr=reach(row), fmt=marker, color=color, capsize=3,
                              label=fill(f"{row['method']} {row['mean']:.3f}", 30))
        axis.margins(x=0.12)
        if axis.get_xscale() == "linear":
            axis.set_xlim(0, 1.15 * max(used, default=1))
        axis.set_xlabel(fill(BY[by], 26))
        axis.xaxis.set_major_formatter(
            lambda value, place: f"{value / 1000:g}k" if value >= 1e4 else f"{value:g}")
    count = next((f", n = {row['n']}" for row in rows if row.get("n")), "")
    axes[0].set_ylabel(f"{split} {metric_label(metric)}{count}")
    _legend(figure, axes[0])
    title(figure, _cost_finding(rows, metric_label(metric)))
    return figure


@styled
def bound(rows: Sequence[Mapping], differences: Mapping[str, Mapping], teachers: Sequence[Mapping],
          metric: str = "ndcg@100") -> Figure:
    """Teachers as lines, methods as dots with 95% intervals: can imitation pass what it imitates?

    rows and teachers: dicts {method, mean, low, high, n}. differences: method -> paired difference to its
    teacher (`budget.TEACHERS`) {mean, low, high}; the title speaks of these, never of two intervals that overlap
    or do not. Source of the bound: Theorem 1 of arXiv 2503.24289.
    """
    figure = Picture(figsize=(6.2, 2.1 + 0.42 * len(rows)), layout="constrained", dpi=90)
    axis = figure.subplots()
    for teacher, dash in zip(teachers, DASHES):
        axis.axvspan(teacher["low"], teacher["high"], color=BLACK, alpha=0.06, lw=0)
        axis.axvline(teacher["mean"], color=BLACK, ls=dash, lw=1.2,
                     label=f"{teacher['method']} {teacher['mean']:.3f}")
    for place, row in enumerate(rows):
        color, marker = (ORANGE, "s") if budget.is_sft(row["method"]) else (BLUE, "o")
        axis.errorbar(row["mean"], place, xerr=reach(row), fmt=marker, color=color, capsize=3)
        axis.annotate(f"{row['mean']:.3f}", (row["mean"], place), (0, 7), textcoords="offset points",
                      ha="center", color=BLACK if color == ORANGE else color, bbox=BACKED)
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
    sides = ((theirs, "PUBLISHED, not run here:\n" + SETTING.replace(" x 100, ", ",\n"), GREY),
             (list(ours), f"{setting}:\n{metric_label(metric)},\n"
                          f"n = {ours[0].get('n', '?') if ours else 0}", BLUE))
    for axis, (rows, name, color) in zip(figure.subplots(1, 2), sides):
        places = range(len(rows))
        axis.barh(places, [row["mean"] for row in rows], 0.6, color=color, alpha=0.35,
                  hatch="//" * (color == GREY), edgecolor="white" if color == GREY else "none")
        axis.errorbar([row["mean"] for row in rows], places, fmt="none", ecolor=color, capsize=3,
                      xerr=np.hstack([reach(row) for row in rows]) if rows else None)
        for place, row in zip(places, rows):
            axis.annotate(f"{row['mean']:.3f}", (row["high"], place), (4, 0), textcoords="offset points",
                          va="center_baseline", fontsize=9.5)
        axis.set_yticks(places, [fill(row["method"], 13) for row in rows])
        axis.set_ylim(max(1, len(rows)) - 0.4, -0.6)
        axis.set_xlim(0, 1.25 * max([row["high"] for row in rows], default=1))
        axis.grid(axis="y", visible=False)
        axis.set_title(name, fontsize=10, weight="bold" if color == GREY else "normal")
    gain = theirs[-1]["mean"] - theirs[0]["mean"]
    here = f"; here {ours[-1]['method']} {ours[-1]['mean'] - ours[0]['mean']:+.3f}" if len(ours) > 1 else ""
    title(figure, f"Published gain over the raw query {gain:+.3f}{here}: other data, model and size, so the "
                  "two are no race", 62)
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
    fact = ("the intervals overlap: not shown to differ" if budget.overlap(best, second)
            else "the intervals lie apart")
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
    above = [f"{name} ({differences[name]['mean']:+.3f})" for name in sft
             if budget.verdict(differences[name]) == "above"]
    told = [f"{len(above)} of {len(sft)} SFT variants shown above the teacher"
            + (f": {', '.join(above)}" if above else "")] if sft else []
    free = [f"{name} {budget.verdict(differences[name])} ({differences[name]['mean']:+.3f})"
            for name in known if not budget.is_sft(name)]
    return "; ".join(told + ([", ".join(free) + ("" if told else " the teacher")] if free else []))
