"""The one look of every figure, and the plain ones: the loop as a picture, bars, lines, a histogram.

The colours are Okabe & Ito's, which people with any colour vision can tell apart. A figure's title is its finding.
"""

import functools
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from recr1_lite.common import RecR1Error

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#666666"
BACKED: dict = {"facecolor": "white", "alpha": 0.8, "pad": 0.5, "lw": 0}  # so that no line crosses a number
LINES = [(BLACK, "--"), (ORANGE, "-."), (GREEN, ":"), (PURPLE, (0, (5, 1, 1, 1, 1, 1))), (RED, (0, (1, 1)))]
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
COLORS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED]
MARKERS = "osD^vP"
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
STYLE: dict = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 10, "figure.dpi": 110}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
STYLE |= {"axes.titlelocation": "left", "legend.frameon": False, "svg.hashsalt": "recr1_lite"}
STYLE |= {"text.parse_math": False}  # a dollar sign is a dollar sign
FONTS = ("Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "PingFang", "Hiragino Sans", "Noto Emoji")
BACKEND = {key for key in matplotlib.rcParamsDefault if key.startswith("backend")}
WHOLE = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in BACKEND} | STYLE


Rows = Sequence[Mapping]  # of a ledger, of a training's curve, or of means with their intervals


class Picture(Figure):
    """A Figure that shows itself in a notebook even where nobody imported pyplot."""

    def _repr_png_(self) -> bytes:
        return as_bytes(self, "png", dpi=round(self.dpi))


@contextmanager
def _style() -> Iterator[None]:
    """The style, with such of this machine's fonts as have letters that matplotlib's own lacks; no word on the rest."""
    more = sorted({font.name for font in fontManager.ttflist if font.name.startswith(FONTS)})
    with matplotlib.rc_context(WHOLE | {"font.family": ["sans-serif", *more]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def styled(draw):
    """Draw inside the style, and leave the reader's own settings and backend alone. What it is given may hold any
    text: control characters and halves of surrogate pairs, which no font and no file takes, become a mark."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with _style():
            return draw(*map(_drawable, args), **{key: _drawable(value) for key, value in kwargs.items()})

    return wrapper


def _drawable(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {_drawable(key): _drawable(inner) for key, inner in value.items()}
    return [*map(_drawable, value)] if type(value) in (list, tuple) else value


def as_bytes(figure: Figure, form: str = "svg", dpi: int = 150) -> bytes:
    """The figure as a file's content: "svg" (text as outlines, so no font is needed) or "png"."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def fill(name: object, width: int, after: str = "", most: int = 60) -> str:
    """A name of at most `most` letters in lines of `width`, with `after` behind it.

    A legend leaves out a label that is empty or begins with "_", so neither is.
    """
    text = " ".join(_drawable(str(name)).split()) or "(no name)"
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return " " * text.startswith("_") + "\n".join(wrap(f"{text} {after}", width, break_on_hyphens=False))


def canvas(height: float, width: float = 6.2, dpi: int = 110) -> tuple:
    """A figure of this size in inches, and its one axis."""
    figure = Picture(figsize=(width, height), layout="constrained", dpi=dpi)
    return figure, figure.subplots()


def title(figure: Figure, finding: str, width: int = 56) -> None:
    """The finding, in bold above the whole figure, at most `width` characters a line."""
    text = fill(finding, width, most=6 * width)
    figure.suptitle(text, x=0.01, ha="left", fontsize=12.5, weight="bold")
    if figure.get_layout_engine():  # room for a long one
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, text.count("\n") - 1))


def span(last: float) -> tuple[float, float]:
    """Ends of a time axis from 0 to `last`, with room for the points that stand at its ends."""
    last = max(1, last)
    return -0.03 * last, 1.04 * last


def widen(axis, least: float) -> None:
    """Give a value axis at least the height `least`, so that no trifle fills it."""
    low, high = axis.get_ylim()
    if high - low < least:
        axis.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def legend_below(figure: Figure) -> None:
    """The legend below the axes, in as many columns as its longest name leaves room for; none of no names."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if labels:
        figure.set_figheight(figure.get_figheight() + 0.2 * max(label.count("\n") for label in labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(3, 74 // (longest + 7))))


def note(axis, text: str, at: tuple, shift: tuple, ha="left", va="center_baseline", **look) -> None:
    """Text beside a point of the data, `shift` points away."""
    axis.annotate(text, at, shift, textcoords="offset points", ha=ha, va=va, **look)


def draw_baselines(axis, baselines: Mapping, vertical: bool = False, band: bool = True) -> None:
    """A line, and a band of its interval, for each of {name: Interval, {mean, low, high} or a number}."""
    line, area = (axis.axvline, axis.axvspan) if vertical else (axis.axhline, axis.axhspan)
    for (name, value), (color, style) in zip(baselines.items(), LINES * 3):
        base = interval(value)
        if band:
            area(base["low"], base["high"], color=color, alpha=0.08, lw=0)
        line(base["mean"], color=color, ls=style, lw=1.6, label=fill(name, 26, f"{base['mean']:.3f}"))


def look(method: str, place: int = 0) -> tuple[str, str]:
    """Colour and marker of a method."""
    return LOOK.get(method) or OTHERS[place % len(OTHERS)]


def reach(row: Mapping) -> np.ndarray:
    """How far the interval reaches below and above the mean, shape (2, 1), as errorbar takes it."""
    return np.array([[max(0.0, row["mean"] - row["low"])], [max(0.0, row["high"] - row["mean"])]])


def interval(value) -> dict:
    if isinstance(value, (int, float)):
        return {"mean": value, "low": value, "high": value}
    return dict(value) if isinstance(value, Mapping) else value._asdict()


def dot(axis, row: Mapping, place: int, color: str, marker: str = "o", ink: str = "") -> None:
    """A mean with its number above it and its interval, on row `place`."""
    axis.errorbar(row["mean"], place, xerr=reach(row), fmt=marker, color=color, capsize=3)
    look: dict = dict(ha="center", va="baseline", color=ink or color, bbox=BACKED)
    note(axis, f"{row['mean']:.3f}", (row["mean"], place), (0, 7), **look)


def name_rows(axis, names: Sequence[str], below: float, above: float) -> None:
    """Rows from the top down, each with its name."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(1, len(names)) - below, -above)
    axis.grid(axis="y", visible=False)


@styled
def loop_picture() -> Figure:
    """The closed loop: request, LLM, rewrite, fixed retriever, ranking, nDCG, reward, GRPO, the LLM again."""
    figure, axis = canvas(4.3, 8.2)
    axis.set(xlim=(-0.05, 8.15), ylim=(0.1, 3.85))
    axis.set_axis_off()
    boxes = [
        (0, 2.3, "1 request", "“so soft and warm,\nI wear it to work\nwith jeans …”", "#F2F2F2"),
        (1, 2.3, "2 LLM", "the policy:\nthe only part\nthat learns", "#CFE5F4"),
        (2, 2.3, "3 rewrite", "“sweater, wool,\nwarm, office”", "#F2F2F2"),
        (3, 2.3, "4 retriever", "BM25: fixed,\na black box", "#DDDDDD"),
        (3, 0.25, "5 ranking", "1. jacket\n2. sweater ★\n3. knit top", "#F2F2F2"),
        (2, 0.25, "6 nDCG", "where is the\nrelevant item ★ ?\nhere 0.63", "#FBE9C6"),
        (1, 0.25, "7 reward", "one number for\neach rewrite\nof the group", "#FBE9C6"),
        (0, 0.25, "8 GRPO", "better than its\ngroup's mean?\nMore of that.", "#CFE5F4"),
    ]
    for column, y, name, text, color in boxes:
        x = column * 2.1
        axis.add_patch(FancyBboxPatch((x, y), 1.75, 1.45, "round,pad=0.04", facecolor=color, edgecolor=BLACK))
        axis.text(x + 0.875, y + 1.2, name, ha="center", va="center", weight="bold", fontsize=12)
        axis.text(x + 0.875, y + 0.52, text, ha="center", va="center", fontsize=10.5)

    def arrow(start, end, color=BLACK):
        look = dict(arrowstyle="-|>", mutation_scale=18, lw=2, color=color, shrinkA=0, shrinkB=0)
        axis.add_patch(FancyArrowPatch(start, end, **look))

    for column in range(3):
        arrow((column * 2.1 + 1.81, 3.02), (column * 2.1 + 2.04, 3.02))
        arrow((column * 2.1 + 2.06, 0.97), (column * 2.1 + 1.83, 0.97))
    arrow((7.175, 2.24), (7.175, 1.78))
    arrow((1.3, 1.78), (2.75, 2.22), BLUE)
    axis.text(2.95, 2.0, "gradient to the LLM's adapter", color=BLUE, va="center", fontsize=10.5)
    title(figure, "The search engine's own metric teaches the LLM to write its queries", 80)
    return figure


@styled
def bars(values: Mapping, finding: str, axis: str, stacked=False, baseline: tuple = (), form="{:.2f}") -> Figure:
    """Horizontal bars. values: name -> number or Interval, or name -> {series -> number or Interval}.

    An Interval gets its 95% whisker. stacked: series end to end, for shares of a whole. baseline: (name, number), drawn
    as a line. axis: what is measured, with its unit. form: of the numbers at the bars.
    """
    rows = {name: value if isinstance(value, Mapping) else {None: value} for name, value in values.items()}
    series = list(dict.fromkeys(key for row in rows.values() for key in row))
    longest = max(sum(abs(_mean(cell)) for cell in row.values()) for row in rows.values())
    lanes = 1 if stacked else max(1, 0.75 * len(series))
    height = 0.8 if stacked else 0.8 / len(series)
    (figure, plot), left = canvas(1.5 + 0.36 * len(rows) * lanes), np.zeros(len(rows))
    for number, key in enumerate(series):
        color = COLORS[number % len(COLORS)]
        cells = [row.get(key, 0.0) for row in rows.values()]
        means = np.array([_mean(cell) for cell in cells], float)
        places: np.ndarray = np.arange(len(rows)) + (0 if stacked else (number - (len(series) - 1) / 2) * height)
        ends = [(cell.mean - cell.low, cell.high - cell.mean) if hasattr(cell, "low") else (0, 0) for cell in cells]
        look: dict = dict(left=left if stacked else 0, color=color, alpha=0.85)
        look["label"] = "" if key is None else fill(key, 40)
        whiskers: dict = dict(xerr=np.array(ends).T if np.any(ends) else None, error_kw={"ecolor": BLACK, "capsize": 3})
        plot.barh(places, means, height * 0.92, **look, **whiskers)
        for place, start, mean, (down, up) in zip(places, left, means, ends, strict=True):
            if not stacked:
                at, shift, side = (mean + up, 4, "left") if mean >= 0 else (mean - down, -4, "right")
                note(plot, form.format(mean), (at, place), (shift, 0), ha=side, fontsize=9.5, color=BLACK)
            elif abs(mean) >= 0.07 * longest:  # else there is no room for a number
                ink = "white" if color == BLUE else BLACK
                note(plot, form.format(mean), (start + mean / 2, place), (0, 0), ha="center", fontsize=9.5, color=ink)
        left = left + means if stacked else left
    if baseline:
        label = fill(baseline[0], 40, form.format(baseline[1]))
        plot.axvline(baseline[1], color=BLACK, ls="--", lw=1, label=label)
    name_rows(plot, [fill(name, 26) for name in rows], 0.4, 0.6)
    plot.margins(x=0 if stacked else 0.14)
    plot.set_xlabel(axis)
    legend_below(figure)
    title(figure, finding)
    return figure


@styled
def lines(x, series: Mapping, finding: str, x_axis: str, y_axis: str, baseline: tuple = (), log_x=False) -> Figure:
    """Lines over x, each with its own marker or dashes.

    series: name -> one number or Interval (drawn as a band) per point. baseline: (name, number or Interval). Axes carry
    their units. log_x: a logarithmic x axis.
    """
    figure, plot = canvas(3.6 + 0.12 * max(0, len(series) - 3))
    for number, (name, values) in enumerate(series.items()):
        color, few = COLORS[number % len(COLORS)], len(values) <= 20  # of many points dashes tell the lines apart
        look = dict(marker=MARKERS[number % len(MARKERS)]) if few else dict(ls=DASHES[number % len(DASHES)])
        plot.plot(x, [_mean(value) for value in values], color=color, label=fill(name, 40), **look)
        if all(hasattr(value, "low") for value in values):
            lows, highs = [value.low for value in values], [value.high for value in values]
            plot.fill_between(x, lows, highs, color=color, alpha=0.15, lw=0)
    if baseline:
        name, value = baseline
        plot.axhline(_mean(value), color=BLACK, ls="--", lw=1, label=fill(name, 40))
        if hasattr(value, "low"):
            plot.axhspan(value.low, value.high, color=BLACK, alpha=0.07, lw=0)
    if log_x:
        plot.set_xscale("log")
        plot.xaxis.set_major_formatter("{x:g}")  # matplotlib's own writes powers as a formula
        plot.xaxis.set_minor_formatter("")
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
    figure, plot = canvas(3.3)
    everything = np.concatenate([np.asarray(values, float) for values in groups.values()])
    edges = np.histogram_bin_edges(everything[np.isfinite(everything)], bins)
    for number, (name, given) in enumerate(groups.items()):
        color, values = COLORS[number % len(COLORS)], np.asarray(given, float)
        if not len(values) or not np.isfinite(values).all():
            raise RecR1Error(f"the group {name!r} is empty or holds what is no number; drop that first")
        label, dash = fill(f"{name},", 40, f"mean {values.mean():.2f}"), ["--", "-.", ":"][number % 3]
        plot.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=color, alpha=0.35)
        plot.axvline(values.mean(), color=color, ls=dash, lw=2, label=label)
    plot.set(xlabel=axis, ylabel="share")
    legend_below(figure)
    title(figure, finding)
    return figure


def _mean(value) -> float:
    return float(value.mean if hasattr(value, "low") else value)  # a NumPy number has a method of that name
