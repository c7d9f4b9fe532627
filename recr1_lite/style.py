"""The one look of every figure: Okabe & Ito's colours, which people with any colour vision can tell apart."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#666666"
BACKED = {"facecolor": "white", "alpha": 0.8, "pad": 0.5, "lw": 0}  # so that no line crosses a number
LINES = [(BLACK, "--"), (ORANGE, "-."), (GREEN, ":"), (PURPLE, (0, (5, 1, 1, 1, 1, 1))), (RED, (0, (1, 1)))]
STYLE = {
    "font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 10, "figure.dpi": 110,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlelocation": "left", "legend.frameon": False, "svg.hashsalt": "recr1_lite",
}
BACKEND = {key for key in matplotlib.rcParamsDefault if key.startswith("backend")}
WHOLE = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in BACKEND} | STYLE


class Picture(Figure):
    """A Figure that shows itself in a notebook even where nobody imported pyplot."""

    def _repr_png_(self) -> bytes:
        return as_bytes(self, "png", dpi=round(self.dpi))


def styled(draw):
    """Draw inside the style, and leave the reader's own settings and backend alone."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(WHOLE):
            return draw(*args, **kwargs)

    return wrapper


def as_bytes(figure: Figure, form: str = "svg", dpi: int = 150) -> bytes:
    """The figure as a file's content: "svg" (text as outlines, so no font is needed) or "png"."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(WHOLE):
        figure.savefig(buffer, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def title(figure: Figure, finding: str, width: int = 56) -> None:
    """The finding, in bold above the whole figure, at most `width` characters a line."""
    figure.suptitle(fill(finding, width, break_on_hyphens=False), x=0.01, ha="left", fontsize=12.5,
                    weight="bold")


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
    (axis,) = figure.axes
    handles, labels = axis.get_legend_handles_labels()
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(3, 74 // (longest + 7))))


def draw_baselines(axis, baselines: Mapping, vertical: bool = False) -> None:
    line, band = (axis.axvline, axis.axvspan) if vertical else (axis.axhline, axis.axhspan)
    for (name, base), (color, style) in zip(baselines.items(), LINES * 3):
        band(base["low"], base["high"], color=color, alpha=0.08, lw=0)
        line(base["mean"], color=color, ls=style, lw=1.6, label=fill(f"{name} {base['mean']:.3f}", 26))


def reach(row: Mapping) -> np.ndarray:
    """How far the interval reaches below and above the mean, shape (2, 1), as errorbar takes it."""
    return np.array([[max(0.0, row["mean"] - row["low"])], [max(0.0, row["high"] - row["mean"])]])


def interval(value) -> dict:
    if isinstance(value, (int, float)):
        return {"mean": value, "low": value, "high": value}
    return dict(value) if isinstance(value, Mapping) else value._asdict()
