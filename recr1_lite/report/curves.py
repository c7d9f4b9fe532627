"""The figures of one training run: its learning curve, what each step logs, both at once while it runs."""

import re
import time
from collections.abc import Mapping

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import stdtrit

from recr1_lite.evaluate.evaluation import metric_label
from recr1_lite.report import figures as style
from recr1_lite.report.figures import BACKED, BLUE, GREY, SKY, canvas, finish, name_rows, note, reach, styled, title
from recr1_lite.report.rows import Rows, number

PANELS: list[tuple] = [  # key of the logged steps, name, unit, where its axis ends at least (None: it follows the data)
    ("reward", "reward", "per rollout", None),
    ("gain", "gain over the request", "nDCG", None),
    ("zero_advantage_share", "groups without signal", "share", 1),
    ("distinct", "distinct rewrites", "share", 1),
    ("entropy", "entropy", "nats per token", 0.1),
    ("kl", "KL to the start", "nats per token", 0.01),
    ("completion_length", "completion length", "tokens", 1),
    ("seconds", "time", "seconds per step", 1),
    ("outcome/ok", "parsed completions", "share", 1),
    ("clip_ratio", "clipped", "share of tokens", 0.01),
]
LIVE = 8  # so many of them are in the live view, measured or not: its panels never move
LEAST = 0.1  # least height of a reward's axis: less is no change worth a picture
KEY = "over steps; points: steps · line: running mean, 95% band · dashes: mean of the first steps (gain: the request)"


@styled
def dashboard(curve: Rows, val: Rows = (), baselines: Mapping = {}, metric: str = "ndcg@100", steps: int = 0) -> Figure:
    """Validation above, what the steps log below, as it stands now: quick to draw, every panel in its place. Arguments
    as in `learning_curve`. steps: of the whole run, where every time axis ends (0: at the last so far)."""
    points = sorted(val, key=lambda point: point["step"])
    now = max(row["step"] for row in ({"step": 0}, *curve, *points))
    panels = [PANELS[0], *_parts(curve), *PANELS[1:LIVE]]
    figure, places = _grid(-(-len(panels) // 4), 4, 2.6)
    axis = figure.add_axes((0.06, 1 - 2.3 / figure.get_figheight(), 0.66, 1.6 / figure.get_figheight()))
    _validation(axis, points, baselines)
    count = f", n = {points[-1]['n']}" if points else ""
    axis.set_title(f"validation {metric_label(metric)}, mean with 95% interval{count}", x=-0.06, fontsize=9.5)
    axis.set_xlim(*_span(max(steps, now)))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), labelspacing=0.8, fontsize=9.5)
    axis.tick_params(labelsize=9)
    axis.locator_params(axis="y", nbins=5)
    for panel, place in zip(panels, places):
        _panel(figure.add_subplot(place), curve, panel, max(steps, now))
    rewards = _series(curve, "reward")[1]
    told = [f"reward {_moved(rewards)}"] if len(rewards) else []
    if points:
        told.append(f"val {points[0]['mean']:.3f}" + (f" → {points[-1]['mean']:.3f}" if points[1:] else ""))
    of = f"/{steps}" if steps else ""
    title(figure, f"Step {now}{of}: {', '.join(told) or 'nothing measured yet'}", 100)
    return figure


@styled
def components(curve: Rows) -> Figure:
    """Small multiples of what a step logs: reward and its parts, groups without signal, length, entropy, KL.

    Each panel: the steps as points, their running mean with its 95% band, and a dashed line at the mean of
    the first steps, in the gain at the request's own score. What a curve does not hold is not drawn."""
    panels = [panel for panel in [PANELS[0], *_parts(curve), *PANELS[1:]] if len(_series(curve, panel[0])[0])]
    figure, places = _grid(-(-len(panels) // 3) or 1, 3, 0.55)
    last = max((row["step"] for row in curve), default=0)
    moved = [_panel(figure.add_subplot(place), curve, panel, last) for panel, place in zip(panels, places)]
    told = ", ".join([text for text in moved if text][:4]) or "nothing moved beyond its noise"
    title(figure, f"In {len(curve)} steps: {told}" if curve else "No step has been logged yet", 66)
    return figure


@styled
def learning_curve(curve: Rows, val: Rows = (), baselines: Mapping = {}, metric: str = "ndcg@100") -> Figure:
    """Validation metric (points with 95% intervals, baselines as lines with bands) over reward per step.

    curve: dicts with step and reward. val: dicts {step, mean, low, high, n}. baselines: name ->
    Interval, {mean, low, high} or a number, measured on the same validation examples."""
    points = sorted(val, key=lambda point: point["step"])
    steps, rewards = _series(curve, "reward")
    parts = [part for part, there in (("val", points or baselines), ("reward", len(steps))) if there]
    count = max(1, len(parts))
    figure, axes = canvas(2.2 + 2.0 * count + 0.1 * len(baselines), lines=count, sharex=True, squeeze=False)
    for axis, part in zip(axes[:, 0], parts):
        if part == "val":
            _validation(axis, points, baselines, f"policy, n = {points[-1]['n']}" if points else "")
            axis.set_ylabel(f"val {metric_label(metric)}")
        else:
            axis.plot(steps, rewards, ".", color=SKY, alpha=0.7, label="reward of one step")
            _smooth(axis, steps, rewards, "running mean, 95% band")
            side = _side(rewards)
            axis.axhline(rewards[:side].mean(), color=GREY, ls="--", lw=1, label=f"mean of the first {side}")
            axis.set_ylabel("train reward")
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handlelength=2.4, columnspacing=1.2)
        _widen(axis)
    foot = axes[-1, 0]
    foot.set_xlabel("training step")
    foot.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    foot.set_xlim(*_span(max([0, *steps, *(point["step"] for point in points)])))
    title(figure, _curve_finding(points, rewards, baselines, metric_label(metric)))
    return figure


@styled
def headroom(row: Mapping, baselines: Mapping = {}, metric: str = "ndcg@100") -> Figure:
    """What picking the best of several rollouts would win over their mean: the room that training can go for. row: {n,
    rollouts, mean: {mean, low, high}, best: {mean, low, high}}. baselines as in `learning_curve`."""
    figure, axis = canvas(2.5 + 0.16 * len(baselines))
    mean, best, count = style.interval(row["mean"]), style.interval(row["best"]), row["rollouts"]
    style.draw_baselines(axis, baselines, vertical=True)
    style.dot(axis, mean, 0, BLUE)
    style.dot(axis, best, 1, style.GREEN)
    name_rows(axis, [f"mean of {count}", f"best of {count}"], 0.5, 0.7)
    axis.set_xlabel(f"{metric_label(metric)}, n = {row['n']} requests x {count} rollouts")
    gap = best["mean"] - mean["mean"]
    return finish(figure, f"Choosing the best of {count} rollouts would win {gap:+.3f} over their mean")


@styled
def word_shift(frame: pd.DataFrame, before: str = "before", after: str = "after") -> Figure:
    """Dumbbells: for each word the share of rewrites that hold it, before (ring) and after (dot). frame: word, before,
    after, as `inspector.word_shares` gives it, drawn in its order."""
    figure, axis = canvas(1.6 + 0.3 * max(1, len(frame)))
    places, rose = range(len(frame)), (frame["after"] > frame["before"]).tolist()
    colors = [BLUE if up else style.RED for up in rose]
    axis.hlines(places, frame["before"], frame["after"], colors=colors, lw=3, alpha=0.45)
    axis.scatter(frame["before"], places, s=42, facecolors="white", edgecolors=colors, lw=1.6, zorder=3)
    axis.scatter(frame["after"], places, s=42, color=colors, zorder=3)
    for place, value, up in zip(places, frame["after"], rose, strict=True):
        note(axis, f"{value:.0%}", (value, place), (7 if up else -7, 0), ha="left" if up else "right", fontsize=9.5)
    name_rows(axis, [style.fill(word, 24, most=24) for word in frame["word"]], 0.4, 0.6)
    top = frame[["before", "after"]].to_numpy(float).max(initial=0.0) or 1.0
    axis.set_xlim(-0.14 * top, 1.14 * top)  # room for the numbers
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    count = f"{frame.attrs['n']} " if "n" in frame.attrs else ""
    axis.set_xlabel(f"share of the {count}rewrites that hold the word")
    for name, look in ((before, {"mfc": "white"}), (after, {})):
        axis.plot([], [], "o", color=GREY, label=style.fill(name, 40), **look)
    ends = pd.concat([frame[rose].head(1), frame[frame["after"] < frame["before"]].tail(1)])
    told = ", ".join(f"with “{row.word}”: {row.before:.0%} → {row.after:.0%}" for row in ends.itertuples())
    return finish(figure, f"Rewrites {told}" if told else "The rewrites use their words as before")


def _parts(curve: Rows) -> list[tuple]:
    """A panel for each part of the reward; none where a single part is the reward."""
    keys = sorted({key for row in curve for key in row if key.startswith(("reward_", "rewards/"))})
    names = {key: re.sub("^(rewards/)?(reward_)?|/mean$", "", key) for key in keys if not key.endswith("std")}
    panels = [(key, metric_label(name.replace("_", " ")), "per rollout", None) for key, name in names.items()]
    return panels if len(panels) > 1 else []


def _grid(rows: int, columns: int, above: float) -> tuple:
    """A figure, and places for small panels that never move, row by row; `above`: inches over them."""
    key = style.fill(KEY, 29 * columns, most=len(KEY))
    below = 0.5 + 0.15 * key.count("\n")
    height = above + 1.75 * rows - 0.2 + below
    figure = style.Picture(figsize=(2.25 * columns, height), dpi=90)  # 4 columns, 810 pixels: as wide as a notebook
    figure.text(0.01, 0.06 / height, key, fontsize=8.5, color=GREY)
    room = {"bottom": below / height, "top": 1 - (above + 0.45) / height, "hspace": 0.75, "wspace": 0.42}
    grid = figure.add_gridspec(rows, columns, left=0.55 / figure.get_figwidth(), right=0.99, **room)
    return figure, [grid[row, column] for row in range(rows) for column in range(columns)]


def _panel(axis, curve: Rows, panel: tuple, last: int) -> str:
    """Draw what the steps hold under the panel's key, steps 0 to last; return how it moved: "reward rose", or ""."""
    (key, name, unit, top), (steps, values) = panel, _series(curve, panel[0])
    told, move = "not measured yet", ""
    if len(steps):
        axis.plot(steps, values, ".", color=SKY, alpha=0.8, markersize=5)
        _smooth(axis, steps, values)
        axis.axhline(0 if key == "gain" else values[: _side(values)].mean(), color=GREY, ls="--", lw=1)
        told, move = f"{_moved(values, False)} {unit}", _ends(values)[2]
    axis.set_title(f"{name}\n{told}", x=-0.26, fontsize=9.5)
    axis.set_xlim(*_span(last))
    if top is None:
        _widen(axis)
    else:
        axis.set_ylim(0, max(top, 1.1 * values.max(initial=0)) * 1.03)
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axis.tick_params(labelsize=8.5)
    return f"{name} {move}" if move and key != "seconds" else ""


def _validation(axis, points: Rows, baselines: Mapping, label: str = "policy") -> None:
    """Validation points with intervals over the baselines; the first, best and last with their numbers."""
    style.draw_baselines(axis, baselines)
    if points:
        at, means = [point["step"] for point in points], [point["mean"] for point in points]
        axis.errorbar(at, means, reach(*points), color=BLUE, marker="o", capsize=3, label=label)
        best, end = int(np.argmax(means)), len(points) - 1
        for place in {0, best, end}:
            left = place == end > 0  # there the axis ends
            close = place != best and abs(at[place] - at[best]) <= 0.25 * (at[end] - at[0])
            look: dict = dict(va="top" if close else "baseline", fontsize=9.5, weight="bold", bbox=BACKED, color=BLUE)
            shift = -5 if left else 5, -5 if close else 4  # two numbers beside each other: the lower one goes below
            note(axis, f"{means[place]:.3f}", (at[place], means[place]), shift, "right" if left else "left", **look)


def _span(last: float) -> tuple[float, float]:
    """Ends of a time axis from 0 to `last`, with room for the points that stand at its ends."""
    return -0.03 * max(1, last), 1.04 * max(1, last)


def _widen(axis) -> None:
    """Give a reward's axis at least the height LEAST, so that no trifle fills it."""
    low, high = axis.get_ylim()
    more = max(0.0, LEAST - (high - low)) / 2
    axis.set_ylim(low - more, high + more)


def _series(curve: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that hold a finite number under the key."""
    pairs = [(row["step"], value) for row in curve if (value := number(row.get(key))) is not None]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], float)


def _smooth(axis, steps: np.ndarray, values: np.ndarray, label: str | None = None) -> None:
    """Running mean over about a tenth of the steps, with a band of 1.96 standard errors of that mean."""
    half = max(1 if len(values) < 15 else 2, len(values) // 20)
    windows = pd.Series(values).rolling(2 * half + 1, center=True, min_periods=1)
    mean, error = windows.mean(), 1.96 * windows.std().fillna(0) / windows.count() ** 0.5
    axis.fill_between(steps, mean - error, mean + error, color=BLUE, alpha=0.18, lw=0)
    axis.plot(steps, mean, color=BLUE, lw=2, label=label)


def _side(values: np.ndarray) -> int:
    """How many values make the start and the end of a series: a fifth, or three, but never more than half."""
    return max(1, min(len(values) // 2, max(3, len(values) // 5)))


def _ends(values: np.ndarray) -> tuple[float, float, str]:
    """Mean of the start, mean of the end, and "rose", "fell" or "" (within noise, by a t interval)."""
    side = _side(values)
    first, last = values[:side], values[-side:]
    gap = last.mean() - first.mean()
    if side < 3:
        return first.mean(), last.mean(), ""
    noise = stdtrit(2 * side - 2, 0.975) * (first.var(ddof=1) / side + last.var(ddof=1) / side) ** 0.5
    return first.mean(), last.mean(), "" if abs(gap) <= noise else "rose" if gap > 0 else "fell"


def _moved(values: np.ndarray, verdict: bool = True) -> str:
    """ "0.256 → 0.310", with as many decimals as the size asks for, and what keeps it from being a move."""
    start, end, move = _ends(values)
    size = max(abs(start), abs(end))
    digits = 0 if size == 0 or size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    if len(values) == 1:
        return f"{end:.{digits}f}"
    doubt = "too few steps to tell" if _side(values) < 3 else "within noise"
    return f"{start:.{digits}f} → {end:.{digits}f}" + (f" ({doubt})" if verdict and not move else "")


def _curve_finding(points: Rows, rewards: np.ndarray, baselines: Mapping, label: str) -> str:
    if not points:
        if not len(rewards):
            return "No step has been logged yet"
        start, end, verdict = _ends(rewards)
        return f"Reward {verdict or 'stayed within its noise'}: {start:.3f} → {end:.3f} in {len(rewards)} steps"
    first, last = points[0], points[-1]
    text = f"Val {label} {first['mean']:.3f} → {last['mean']:.3f} in {last['step']} steps"
    if first is last:
        text = f"Val {label} {last['mean']:.3f} at step {last['step']}"
    highest = max(points, key=lambda point: point["mean"])
    if highest["mean"] > last["mean"]:
        text += f" (highest {highest['mean']:.3f} at {highest['step']})"
    sides: dict[str, list[str]] = {"above": [], "around": [], "below": []}
    for name, value in baselines.items():
        base = style.interval(value)["mean"]
        side = "above" if last["low"] > base else "below" if last["high"] < base else "around"
        sides[side].append(f"{name} ({base:.3f})")
    told = [f"{side} {', '.join(names)}" for side, names in sides.items() if names]
    return text + (f"; the last interval lies {'; '.join(told)}" if told else "")


class LiveCurves:
    """Give it to a trainer as `watch`: one figure under the cell, drawn anew as the steps come in.

    steps: of the whole run, for the axis. baselines: name -> Interval or number, measured on the validation examples.
    every: seconds between two drawings at least (drawing costs a fraction of one); the first and the last step, and
    each validation, are always drawn. A resumed run draws its whole past."""

    def __init__(self, steps: int, baselines: Mapping | None = None, metric: str = "ndcg@100", every: float = 15.0):
        self.steps, self.baselines, self.metric, self.every = steps, dict(baselines or {}), metric, every
        self.handle, self.drawn, self.validations = None, float("-inf"), -1

    def __call__(self, curve: list[dict], val: list[dict]) -> None:
        last = bool(curve) and curve[-1]["step"] >= self.steps
        if time.monotonic() - self.drawn < self.every and len(val) == self.validations and not last:
            return
        picture = dashboard(curve, val, self.baselines, self.metric, self.steps)
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.drawn, self.validations = time.monotonic(), len(val)
