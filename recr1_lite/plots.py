"""Figures whose titles say what the data say, with a baseline as a line and a band for every interval.

Each function returns a matplotlib Figure that needs no display and is not pyplot's, so that a notebook shows
it once, as the value of a cell. The figures of a training run are in `curves.py`, those of a comparison in
`budget_plots.py` and `forgetting_plots.py`, the loop's in `picture.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from recr1_lite.budget_plots import bound, cost_quality, published, race
from recr1_lite.curves import components, dashboard, learning_curve
from recr1_lite.evaluation import metric_label
from recr1_lite.forgetting_plots import continual, forgetting, kl_retention
from recr1_lite.picture import loop_picture
from recr1_lite.style import (
    BACKED, BLACK, BLUE, GREEN, GREY, RED, Picture, as_bytes, draw_baselines, interval, legend_below, reach,
    styled, title,
)

__all__ = ["as_bytes", "bound", "components", "continual", "cost_quality", "dashboard", "forgetting", "headroom",
           "kl_retention", "learning_curve", "loop_picture", "methods", "published", "race", "word_shift"]


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
        axis.annotate(f"{row.after:.0%}", (row.after, place), (shift, 0), textcoords="offset points",
                      ha=side, va="center_baseline", fontsize=9.5)
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
    ends = [*frame[frame["after"] > frame["before"]].head(1).itertuples(),
            *frame[frame["after"] < frame["before"]].tail(1).itertuples()]
    told = ", ".join(f"with “{row.word}”: {row.before:.0%} → {row.after:.0%}" for row in ends)
    title(figure, f"Rewrites {told}" if told else "The rewrites use their words as before")
    return figure


def _dot(axis, row: Mapping, place: int, color: str) -> None:
    axis.errorbar(row["mean"], place, xerr=reach(row), fmt="o", color=color, capsize=3)
    axis.annotate(f"{row['mean']:.3f}", (row["mean"], place), (0, 7), textcoords="offset points", ha="center",
                  color=color, bbox=BACKED)
