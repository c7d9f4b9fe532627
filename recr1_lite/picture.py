"""The loop as a picture; its stages carry the numbers that the notebooks and the comments use."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from recr1_lite.style import BLACK, BLUE, Picture, styled, title


@styled
def loop_picture() -> Figure:
    """The closed loop: request, LLM, rewrite, fixed retriever, ranking, nDCG, reward, GRPO, the LLM again."""
    figure = Picture(figsize=(8.2, 4.3), layout="constrained")
    axis = figure.subplots()
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
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, lw=2, color=color,
                                       shrinkA=0, shrinkB=0))

    for column in range(3):
        arrow((column * 2.1 + 1.81, 3.02), (column * 2.1 + 2.04, 3.02))
        arrow((column * 2.1 + 2.06, 0.97), (column * 2.1 + 1.83, 0.97))
    arrow((7.175, 2.24), (7.175, 1.78))
    arrow((1.3, 1.78), (2.75, 2.22), BLUE)
    axis.text(2.95, 2.0, "gradient to the LLM's adapter", color=BLUE, va="center", fontsize=10.5)
    title(figure, "The search engine's own metric teaches the LLM to write its queries", 80)
    return figure
