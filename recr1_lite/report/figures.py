"""The one look of every figure, and the plain ones: the loop as a picture, bars, lines, a histogram.

The colours are Okabe & Ito's, which people with any colour vision can tell apart. A figure's title is its finding.
"""

import functools
import io
import re
import sys
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
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from recr1_lite.common import RecR1Error
from recr1_lite.report.rows import ORDER, UNTRAINED

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#666666"
BACKED: dict = {"facecolor": "white", "alpha": 0.8, "pad": 0.5, "lw": 0}  # so that no line crosses a number
LINES = [(BLACK, "--"), (ORANGE, "-."), (GREEN, ":"), (PURPLE, (0, (5, 1, 1, 1, 1, 1))), (RED, (0, (1, 1)))]
COLOR_OF = (ORANGE, SKY, RED, PURPLE, BLACK, GREEN, BLUE, GREY)  # of each trained method, the same in every figure
LOOK = dict(zip(ORDER[len(UNTRAINED) :], zip(COLOR_OF, "sD^v*PoX")))
OTHERS = [(PURPLE, "<"), (GREEN, ">"), (RED, "p"), (SKY, "h"), (ORANGE, "*"), (BLUE, "d")]
COLORS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED]
MARKERS = "osD^vP"
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
STYLE: dict = {"font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 10, "figure.dpi": 100}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
STYLE |= {"axes.titlelocation": "left", "legend.frameon": False, "svg.hashsalt": "recr1_lite"}
STYLE |= {"text.parse_math": False}  # a dollar sign is a dollar sign
FONTS = ("Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "PingFang", "Hiragino Sans", "Noto Emoji")
BACKEND = {key for key in matplotlib.rcParamsDefault if key.startswith("backend")}
WHOLE = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in BACKEND} | STYLE


class Picture(Figure):
    """A Figure that shows itself in a notebook even where nobody imported pyplot, with a text for who cannot see it."""

    def _repr_png_(self) -> tuple[bytes, dict]:
        return as_bytes(self, "png", dpi=round(self.dpi)), {"alt": alt_text(self)}


if shell := "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
    # else pyplot, or a widget that loads it, makes IPython draw every Figure its own way, without the text
    shell.display_formatter.formatters["image/png"].for_type(Picture, Picture._repr_png_)


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


def alt_text(figure: Figure) -> str:
    """What a screen reader says of a figure: its finding, the titles and labels of its axes, the legends."""
    said = [figure.get_suptitle()]
    for axis in figure.axes:
        labels = [axis.get_title(loc="left") or axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        said += [*labels, ", ".join(axis.get_legend_handles_labels()[1])]
    return " ".join(". ".join(dict.fromkeys(filter(None, said))).split())


def fill(name: object, width: int, after: str = "", most: int = 60) -> str:
    """A name of at most `most` letters in lines of `width`, with `after` behind it. A legend leaves out a label that is
    empty or begins with "_", so neither is."""
    text = " ".join(_drawable(str(name)).split()) or "(no name)"
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return " " * text.startswith("_") + "\n".join(wrap(f"{text} {after}", width, break_on_hyphens=False))


def canvas(height: float, width: float = 6.2, lines: int = 1, columns: int = 1, **shared) -> tuple:
    """A figure of this size in inches, and its one axis, or with `squeeze=False` the array of its axes."""
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(lines, columns, **shared)


def title(figure: Figure, finding: str, width: int = 56) -> None:
    """The finding, in bold above the whole figure, at most `width` characters a line."""
    text = fill(finding, width, most=6 * width)
    figure.suptitle(text, x=0.01, ha="left", fontsize=12.5, weight="bold")
    if figure.get_layout_engine():  # room for a long one
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, text.count("\n") - 1))


def finish(figure: Figure, finding: str, width: int = 56) -> Figure:
    """The figure with its finding above, and below its legend, in as many columns as the names leave room for."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if labels:
        figure.set_figheight(figure.get_figheight() + 0.2 * max(label.count("\n") for label in labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(3, 74 // (longest + 7))))
    title(figure, finding, width)
    return figure


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


def look(method: str, place: int = 0) -> dict:
    """Colour and marker of a method, as `plot` and `errorbar` take them."""
    color, marker = LOOK.get(method) or OTHERS[place % len(OTHERS)]
    return {"color": color, "marker": marker}


def interval(value) -> dict:
    """{mean, low, high} of an Interval, of such a mapping or of a number, whose ends are itself."""
    if isinstance(value, Mapping):
        return dict(value)
    return value._asdict() if hasattr(value, "_asdict") else dict.fromkeys(("mean", "low", "high"), float(value))


def reach(*rows: Mapping) -> np.ndarray:
    """How far the intervals reach below and above their means, shape (2, rows), as errorbar takes it."""
    ends = [(row["mean"] - row["low"], row["high"] - row["mean"]) for row in rows]
    return np.maximum(0.0, np.array(ends, float).T)


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
    right = [((column * 2.1 + 1.81, 3.02), (column * 2.1 + 2.04, 3.02), BLACK) for column in range(3)]
    left = [((column * 2.1 + 2.06, 0.97), (column * 2.1 + 1.83, 0.97), BLACK) for column in range(3)]
    down, up = ((7.175, 2.24), (7.175, 1.78), BLACK), ((1.3, 1.78), (2.75, 2.22), BLUE)
    for start, end, color in (*right, *left, down, up):
        look = dict(arrowstyle="-|>", mutation_scale=18, lw=2, color=color, shrinkA=0, shrinkB=0)
        axis.annotate("", end, start, arrowprops=look)
    axis.text(2.95, 2.0, "gradient to the LLM's adapter", color=BLUE, va="center", fontsize=10.5)
    title(figure, "The search engine's own metric teaches the LLM to write its queries", 80)
    return figure


@styled
def bars(values: Mapping, finding: str, axis: str, stacked=False, baseline: tuple = (), form="{:.2f}") -> Figure:
    """Horizontal bars. values: name -> number or Interval, or name -> {series -> number or Interval}.

    An Interval gets its 95% whisker. stacked: series end to end, for shares of a whole. baseline: (name, number), drawn
    as a line. axis: what is measured, with its unit. form: of the numbers at the bars."""
    rows = {name: value if isinstance(value, Mapping) else {None: value} for name, value in values.items()}
    series = list(dict.fromkeys(key for row in rows.values() for key in row))
    longest = max(sum(abs(interval(cell)["mean"]) for cell in row.values()) for row in rows.values())
    lanes = 1 if stacked else len(series)
    height = 0.8 / lanes
    (figure, plot), left = canvas(1.5 + 0.36 * len(rows) * max(1, 0.75 * lanes)), np.zeros(len(rows))
    for number, key in enumerate(series):
        color = COLORS[number % len(COLORS)]
        cells = [interval(row.get(key, 0.0)) for row in rows.values()]
        means = np.array([cell["mean"] for cell in cells], float)
        places: np.ndarray = np.arange(len(rows)) + (0 if stacked else (number - (lanes - 1) / 2) * height)
        look: dict = dict(left=left, color=color, alpha=0.85, label="" if key is None else fill(key, 40))
        if reach(*cells).any():
            look |= dict(xerr=reach(*cells), error_kw={"ecolor": BLACK, "capsize": 3})
        drawn = plot.barh(places, means, height * 0.92, **look)
        if stacked:
            texts = [form.format(mean) if abs(mean) >= 0.07 * longest else "" for mean in means]  # else no room
            plot.bar_label(drawn, texts, label_type="center", fontsize=9.5, color="white" if color == BLUE else BLACK)
            left = left + means
        else:
            plot.bar_label(drawn, [form.format(mean) for mean in means], padding=4, fontsize=9.5)
    if baseline:
        label = fill(baseline[0], 40, form.format(baseline[1]))
        plot.axvline(baseline[1], color=BLACK, ls="--", lw=1, label=label)
    name_rows(plot, [fill(name, 26) for name in rows], 0.4, 0.6)
    plot.margins(x=0 if stacked else 0.2 if plot.get_xlim()[0] < 0 else 0.14)  # room for the numbers
    plot.set_xlabel(axis)
    return finish(figure, finding)


@styled
def lines(x, series: Mapping, finding: str, x_axis: str, y_axis: str, baseline: tuple = (), log_x=False) -> Figure:
    """Lines over x, each with its own marker or dashes. series: name -> one number or Interval (drawn as a band) per
    point. baseline: (name, number or Interval). Axes carry their units. log_x: a logarithmic x axis."""
    figure, plot = canvas(3.6 + 0.12 * max(0, len(series) - 3))
    for number, (name, values) in enumerate(series.items()):
        color, points = COLORS[number % len(COLORS)], [interval(value) for value in values]
        look: dict = dict(marker=MARKERS[number % len(MARKERS)])
        if len(points) > 20:  # of many points dashes tell the lines apart
            look = dict(ls=DASHES[number % len(DASHES)])
        means, lows, highs = ([point[key] for point in points] for key in ("mean", "low", "high"))
        plot.plot(x, means, color=color, label=fill(name, 40), **look)
        plot.fill_between(x, lows, highs, color=color, alpha=0.15, lw=0)
    if baseline:
        base = interval(baseline[1])
        plot.axhline(base["mean"], color=BLACK, ls="--", lw=1, label=fill(baseline[0], 40))
        plot.axhspan(base["low"], base["high"], color=BLACK, alpha=0.07, lw=0)
    if log_x:
        plot.set_xscale("log")
        plot.xaxis.set_major_formatter("{x:g}")  # matplotlib's own writes powers as a formula
        plot.xaxis.set_minor_formatter("")
        if len(x) <= 10:
            plot.set_xticks(list(x), [f"{value:g}" for value in x])
            plot.minorticks_off()
    elif all(isinstance(value, Integral) for value in x):
        plot.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]))
    plot.set(xlabel=x_axis, ylabel=fill(y_axis, 28, most=len(y_axis)))
    return finish(figure, finding)


@styled
def histogram(groups: Mapping[str, Sequence[float]], finding: str, axis: str, bins: int = 20) -> Figure:
    """Distributions side by side: share of each group in a bin, its mean as a line. groups: name -> values. Raises
    RecR1Error for a group that is empty or holds NaN."""
    figure, plot = canvas(3.3)
    kept = {name: np.asarray(values, float) for name, values in groups.items()}
    if bad := [name for name, values in kept.items() if not len(values) or not np.isfinite(values).all()]:
        raise RecR1Error(f"the group {bad[0]!r} is empty or holds what is no number; drop that first")
    edges = np.histogram_bin_edges(np.concatenate([*kept.values()]), bins)
    for number, (name, values) in enumerate(kept.items()):
        color, dash = COLORS[number % len(COLORS)], ["--", "-.", ":"][number % 3]
        label = fill(f"{name},", 40, f"mean {values.mean():.2f}")
        plot.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=color, alpha=0.35)
        plot.axvline(values.mean(), color=color, ls=dash, lw=2, label=label)
    plot.set(xlabel=axis, ylabel="share")
    return finish(figure, finding)
