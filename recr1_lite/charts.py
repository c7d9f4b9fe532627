"""Three plain charts in the kit's style for whatever a notebook has just measured: bars, lines, histogram.

Each takes the finding as its title: say what the data say, with the numbers. `plots.py` has the figures of a
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recr1_lite.errors import RecR1Error
from recr1_lite.style import (
    BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, Picture, legend_below, styled, title,
)

COLORS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED]
MARKERS = "osD^vP"
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]


@styled
def bars(values: Mapping, finding: str, axis: str, stacked: bool = False, baseline: tuple | None = None,
         form: str = "{:.2f}") -> Figure:
    """Horizontal bars. values: name -> number or Interval, or name -> {series -> number or Interval}.

    An Interval gets its 95% whisker. stacked: series end to end, for shares of a whole. baseline: (name,
    number), drawn as a line. axis: what is measured, with its unit. form: of the numbers at the bars.
    """
    rows = {name: value if isinstance(value, Mapping) else {"": value} for name, value in values.items()}
    series = list(dict.fromkeys(key for row in rows.values() for key in row))
    longest = max(sum(abs(_mean(cell)) for cell in row.values()) for row in rows.values())
    height = 0.8 if stacked else 0.8 / len(series)
    figure = Picture(figsize=(6.2, 1.5 + 0.36 * len(rows) * (1 if stacked else max(1, 0.75 * len(series)))),
                     layout="constrained")
    plot = figure.subplots()
    left = np.zeros(len(rows))
    for number, key in enumerate(series):
        color = COLORS[number % len(COLORS)]
        cells = [row.get(key, 0.0) for row in rows.values()]
        means = np.array([_mean(cell) for cell in cells], float)
        places = np.arange(len(rows)) + (0 if stacked else (number - (len(series) - 1) / 2) * height)
        reach = [(cell.mean - cell.low, cell.high - cell.mean) if hasattr(cell, "low") else (0, 0)
                 for cell in cells]
        plot.barh(places, means, height * 0.92, left=left if stacked else 0, color=color, alpha=0.85,
                  label=fill(str(key), 40), xerr=np.array(reach).T if np.any(reach) else None,
                  error_kw={"ecolor": BLACK, "capsize": 3})
        for place, start, mean, (down, up) in zip(places, left, means, reach, strict=True):
            if stacked and abs(mean) < 0.07 * longest:
                continue  # no room for a number
            at, shift, side = (mean + up, 4, "left") if mean >= 0 else (mean - down, -4, "right")
            if stacked:
                at, shift, side = start + mean / 2, 0, "center"
            plot.annotate(form.format(mean), (at, place), (shift, 0), textcoords="offset points", ha=side,
                          va="center_baseline", fontsize=9.5,
                          color="white" if stacked and color == BLUE else BLACK)
        if stacked:
            left = left + means
    if baseline:
        label = fill(f"{baseline[0]} {form.format(baseline[1])}", 40)
        plot.axvline(baseline[1], color=BLACK, ls="--", lw=1, label=label)
    plot.set_yticks(range(len(rows)), [fill(str(name), 26) for name in rows])
    plot.set_ylim(len(rows) - 0.4, -0.6)
    plot.grid(axis="y", visible=False)
    plot.margins(x=0 if stacked else 0.14)
    plot.set_xlabel(axis)
    legend_below(figure)
    title(figure, finding)
    return figure


@styled
def lines(x: Sequence[float], series: Mapping[str, Sequence], finding: str, x_axis: str, y_axis: str,
          baseline: tuple | None = None, log_x: bool = False) -> Figure:
    """Lines over x, each with its own marker or dashes.

    series: name -> one number or Interval (drawn as a band) a point. baseline: (name,
    number or Interval). Axes carry their units.
    """
    figure = Picture(figsize=(6.2, 3.6 + 0.12 * max(0, len(series) - 3)), layout="constrained")
    plot = figure.subplots()
    for number, (name, values) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        means = [_mean(value) for value in values]
        few = len(means) <= 20  # else dashes tell the lines apart
        plot.plot(x, means, color=color, marker=MARKERS[number % len(MARKERS)] if few else "",
                  ls="-" if few else DASHES[number % len(DASHES)], label=fill(str(name), 40))
        if all(hasattr(value, "low") for value in values):
            plot.fill_between(x, [value.low for value in values], [value.high for value in values],
                              color=color, alpha=0.15, lw=0)
    if baseline:
        name, value = baseline
        plot.axhline(_mean(value), color=BLACK, ls="--", lw=1, label=fill(name, 40))
        if hasattr(value, "low"):
            plot.axhspan(value.low, value.high, color=BLACK, alpha=0.07, lw=0)
    if log_x:
        plot.set_xscale("log")
        if len(x) <= 10:
            plot.set_xticks(list(x), [f"{value:g}" for value in x])
            plot.minorticks_off()
    elif all(isinstance(value, Integral) for value in x):
        plot.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    plot.set(xlabel=x_axis, ylabel=y_axis)
    legend_below(figure)
    title(figure, finding)
    return figure


@styled
def histogram(groups: Mapping[str, Sequence[float]], finding: str, axis: str, bins: int = 20) -> Figure:
    """Distributions side by side: share of each group in a bin, its mean as a line. groups: name -> values.

    Raises RecR1Error for a group that is empty or holds NaN.
    """
    figure = Picture(figsize=(6.2, 3.3), layout="constrained")
    plot = figure.subplots()
    everything = np.concatenate([np.asarray(values, float) for values in groups.values()])
    edges = np.histogram_bin_edges(everything[np.isfinite(everything)], bins)
    for number, (name, values) in enumerate(groups.items()):
        color, values = COLORS[number % len(COLORS)], np.asarray(values, float)
        if not len(values) or not np.isfinite(values).all():
            raise RecR1Error(f"the group {name!r} is empty or holds what is no number; drop that first")
        plot.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=color, alpha=0.35)
        plot.axvline(values.mean(), color=color, ls=["--", "-.", ":"][number % 3], lw=2,
                     label=fill(f"{name}, mean {values.mean():.2f}", 40))
    plot.set(xlabel=axis, ylabel="share")
    legend_below(figure)
    title(figure, finding)
    return figure


def _mean(value) -> float:
    return float(value.mean if hasattr(value, "low") else value)  # a NumPy number has a method of that name
