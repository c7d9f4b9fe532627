"""The one look of every figure: Okabe & Ito's colours, which people with any colour vision can tell apart."""

from __future__ import annotations

import functools
import io
from textwrap import fill

import matplotlib
from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
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
        return as_bytes(self, "png", dpi=110)


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


def title(figure: Figure, finding: str, width: int = 58) -> None:
    """The finding, in bold above the whole figure, at most `width` characters a line."""
    figure.suptitle(fill(finding, width), x=0.01, ha="left", fontsize=12.5, weight="bold")
