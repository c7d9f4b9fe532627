"""Figures whose titles say what the data say, with a baseline as a line and a band for every interval.

Each function returns a matplotlib Figure that needs no display and is not pyplot's, so that a notebook shows
it once, as the value of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from recr1_lite.evaluation import metric_label
from recr1_lite.style import BLACK, BLUE, GREEN, LINES, SKY, Picture, as_bytes, styled, title

__all__ = ["as_bytes", "components", "headroom", "learning_curve", "loop_picture", "methods"]
PANELS = [  # key of a step, title, unit of the axis
    ("reward", "reward", "per completion"),
    ("gain", "gain over the request", "nDCG"),
    ("outcome/ok", "parsed completions", "share"),
    ("zero_advantage_share", "groups without signal", "share"),
    ("completion_length", "completion length", "tokens"),
    ("entropy", "entropy", "nats a token"),
    ("kl", "KL to the start", "nats a token"),
    ("distinct", "distinct rewrites", "share"),
    ("clip_ratio", "clipped", "share of tokens"),
    ("seconds", "time", "seconds a step"),
]


@styled
def learning_curve(curve: Sequence[Mapping], val_points: Sequence[Mapping] = (),
                   baselines: Mapping | None = None, metric: str = "ndcg@100") -> Figure:
    """Validation metric (points with 95% intervals, baselines as lines with bands) over reward a step.

    curve: dicts with step and reward. val_points: dicts {step, mean, low, high, n}. baselines: name ->
    Interval, {mean, low, high} or a number, measured on the same validation examples.
    """
    points = sorted(val_points, key=lambda point: point["step"])
    steps, rewards = _series(curve, "reward")
    baselines = {name: _interval(value) for name, value in (baselines or {}).items()}
    rows = [part for part, there in (("val", points or baselines), ("reward", len(steps))) if there]
    figure = Picture(figsize=(6.2, 2.2 + 2.0 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots(max(1, len(rows)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, part in zip(axes, rows):
        if part == "val":
            _baselines(axis, baselines)
            if points:
                at, means = [point["step"] for point in points], [point["mean"] for point in points]
                axis.errorbar(at, means, np.hstack([_reach(point) for point in points]), color=BLUE,
                              marker="o", capsize=3, label=f"policy, n = {points[-1].get('n', '?')}")
            axis.set_ylabel(f"val {metric_label(metric)}")
        else:
            axis.plot(steps, rewards, ".", color=SKY, alpha=0.7, label="reward of one step")
            _smooth(axis, steps, rewards, BLUE, "smoothed, 95% band")
            axis.axhline(_ends(rewards)[0], color="#666666", ls="--", lw=1, label="its start (first fifth)")
            axis.set_ylabel("train reward")
        axis.legend(loc="upper left", bbox_to_anchor=(0, 1.02), ncols=2, handlelength=2.4, columnspacing=1.2)
        axis.margins(y=0.4)  # room for the legend above the points
    axes[-1].set_xlabel("training step")
    title(figure, _curve_finding(points, steps, rewards, baselines, metric_label(metric)))
    return figure


@styled
def components(curve: Sequence[Mapping]) -> Figure:
    """Small multiples of what a step logs: reward and its parts, groups without signal, length, entropy, KL.

    Each panel: the steps as points, their running mean with its 95% band, and a dashed line at the mean of
    the first fifth. What a curve does not hold is not drawn.
    """
    parts = sorted({key for row in curve for key in row if key.startswith(("reward_", "rewards/"))})
    parts = [(key, _part_name(key), "per completion") for key in parts if not key.endswith("std")]
    parts = parts if len(parts) > 1 else []  # a single part is the reward itself
    panels = [(*panel, *_series(curve, panel[0])) for panel in [PANELS[0], *parts, *PANELS[1:]]]
    panels = [panel for panel in panels if len(panel[3])]
    columns = min(3, len(panels)) or 1
    height = -(-len(panels) // columns) or 1
    figure = Picture(figsize=(3.1 * columns, 0.9 + 2.1 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False, sharex=True)
    moved = []
    for axis, (_, name, unit, steps, values) in zip(axes.flat, panels):
        axis.plot(steps, values, ".", color=SKY, alpha=0.6, markersize=4)
        _smooth(axis, steps, values, BLUE)
        start, end, verdict = _ends(values)
        axis.axhline(start, color="#666666", ls="--", lw=1)
        axis.set_title(f"{name}\n{start:.3g} → {end:.3g}")
        axis.set_ylabel(unit)
        if verdict:
            moved.append(f"{name} {verdict}")
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for column in range(columns):
        last = max(row for row in range(height) if row * columns + column < max(1, len(panels)))
        axes[last, column].set_xlabel("step")
        axes[last, column].tick_params(labelbottom=True)
    told = ", ".join(moved[:4]) or "nothing moved beyond its noise"
    title(figure, f"In {len(curve)} steps: {told}", 25 * columns)
    return figure


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
    figure = Picture(figsize=(6.2, 2.7), layout="constrained")
    axis = figure.subplots()
    mean, best, count = _interval(row["mean"]), _interval(row["best"]), row.get("rollouts", "n")
    _baselines(axis, {name: _interval(value) for name, value in (baselines or {}).items()}, vertical=True)
    _dot(axis, mean, 0, BLUE)
    _dot(axis, best, 1, GREEN)
    axis.set_yticks([0, 1], [f"mean of {count}", f"best of {count}"])
    axis.set_ylim(1.5, -0.7)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{metric_label(metric)}, n = {row.get('n', '?')} requests x {count} rollouts")
    if baselines:
        figure.legend(loc="outside lower center", ncols=3)
    gap = best["mean"] - mean["mean"]
    title(figure, f"Choosing the best of {count} rollouts would win {gap:+.3f} over their mean")
    return figure


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


def _series(curve: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that hold a number under the key."""
    pairs = [(row.get("step", place), row[key]) for place, row in enumerate(curve, start=1)
             if isinstance(row.get(key), (int, float)) and np.isfinite(row[key])]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], float)


def _smooth(axis, steps: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Running mean over about a tenth of the steps, with a band of 1.96 standard errors of that mean."""
    half = max(2, len(values) // 20)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    mean = np.array([window.mean() for window in windows])
    error = np.array([1.96 * np.std(window) / max(1, len(window) - 1) ** 0.5 for window in windows])
    axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, lw=0)
    axis.plot(steps, mean, color=color, lw=2, label=label)


def _ends(values: np.ndarray) -> tuple[float, float, str]:
    """Mean of the first and of the last fifth, and "rose", "fell", or "" where they differ within noise."""
    fifth = max(1, len(values) // 5)
    first, last = values[:fifth], values[-fifth:]
    gap = last.mean() - first.mean()
    if fifth < 3:
        return first.mean(), last.mean(), ""
    noise = 1.96 * (first.var(ddof=1) / fifth + last.var(ddof=1) / fifth) ** 0.5
    return first.mean(), last.mean(), "" if abs(gap) <= noise else "rose" if gap > 0 else "fell"


def _curve_finding(points, steps, rewards, baselines, label) -> str:
    if not points:
        if not len(rewards):
            return "No step has been logged yet"
        start, end, verdict = _ends(rewards)
        return f"Reward {verdict or 'stayed within its noise'}: {start:.3f} → {end:.3f} in {len(steps)} steps"
    first, last = points[0], points[-1]
    text = f"Val {label} {first['mean']:.3f} → {last['mean']:.3f} in {last['step']} steps"
    sides = {"above": [], "around": [], "below": []}
    for name, base in baselines.items():
        side = "above" if last["low"] > base["mean"] else "below" if last["high"] < base["mean"] else "around"
        sides[side].append(f"{name} ({base['mean']:.3f})")
    highest = max(points, key=lambda point: point["mean"])
    if highest["mean"] > last["mean"]:
        text += f" (highest {highest['mean']:.3f} at {highest['step']})"
    told = [f"{side} {', '.join(names)}" for side, names in sides.items() if names]
    return text + (f"; the last interval lies {'; '.join(told)}" if told else "")


def _baselines(axis, baselines: Mapping, vertical: bool = False) -> None:
    line, band = (axis.axvline, axis.axvspan) if vertical else (axis.axhline, axis.axhspan)
    for (name, base), (color, style) in zip(baselines.items(), LINES * 3):
        band(base["low"], base["high"], color=color, alpha=0.08, lw=0)
        line(base["mean"], color=color, ls=style, lw=1.6, label=f"{name} {base['mean']:.3f}")


def _reach(row: Mapping) -> np.ndarray:
    """How far the interval reaches below and above the mean, shape (2, 1), as errorbar takes it."""
    return np.array([[max(0.0, row["mean"] - row["low"])], [max(0.0, row["high"] - row["mean"])]])


def _dot(axis, row: Mapping, place: int, color: str) -> None:
    axis.errorbar(row["mean"], place, xerr=_reach(row), fmt="o", color=color, capsize=3)
    axis.annotate(f"{row['mean']:.3f}", (row["mean"], place), (0, 7), textcoords="offset points", ha="center",
                  color=color, bbox={"facecolor": "white", "alpha": 0.8, "pad": 0.5, "lw": 0})


def _interval(value) -> dict:
    if isinstance(value, (int, float)):
        return {"mean": value, "low": value, "high": value}
    return dict(value) if isinstance(value, Mapping) else value._asdict()


def _part_name(key: str) -> str:
    name = key.removeprefix("rewards/").removeprefix("reward_").removesuffix("/mean")
    return metric_label(name.replace("_", " "))

