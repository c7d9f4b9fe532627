"""The figures that compare: methods, budgets, teachers, what was forgotten. Each title says what the data say.

A baseline is a line; every mean has its 95% interval. The figures of one run are in `curves.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from recr1_lite.evaluate.evaluation import metric_label
from recr1_lite.report import figures as style
from recr1_lite.report import rows as book
from recr1_lite.report.figures import BLACK, BLUE, GREY, canvas, dot, fill, finish, name_rows, note, reach, styled
from recr1_lite.report.rows import Rows

BY = {"seconds": "seconds of training, sampling included", "samples": "completions sampled from a model"}
BY["tokens"] = "tokens generated and trained on"
UNIT = {"seconds": "s", "samples": "samples"}


def task_name(task: str) -> str:
    """A task's name as it stands in print: "recr1_arithmetic" as "arithmetic"."""
    return task.removeprefix("recr1_").replace("_", " ")


def count_of(rows: Rows) -> str:
    """ ", n = 50" as the first of the rows that says so has it, or nothing."""
    return next((f", n = {row['n']}" for row in rows if row.get("n")), "")


@styled
def methods(rows: Rows, baseline: str | None = None, metric: str = "ndcg@100") -> Figure:
    """Methods as dots with their 95% intervals; the baseline (default: the first row) as a line with a band. rows:
    dicts {method, mean, low, high, n}."""
    figure, axis = canvas(1.5 + 0.42 * len(rows))
    base = next((row for row in rows if row["method"] == baseline), rows[0])
    axis.axvspan(base["low"], base["high"], color=BLACK, alpha=0.08, lw=0)
    axis.axvline(base["mean"], color=BLACK, ls="--", lw=1)
    for place, row in enumerate(rows):
        dot(axis, row, place, BLACK if row is base else BLUE)
    name_rows(axis, [fill(row["method"], 24) for row in rows], 0.5, 0.7)
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval{count_of([base])}")
    best = max(rows, key=lambda row: row["mean"])
    versus, gap = f"{base['method']} ({base['mean']:.3f})", best["mean"] - base["mean"]
    win = f"{best['method']} ({best['mean']:.3f}) is highest: {gap:+.3f} over {versus}"
    style.title(figure, win if best is not base else f"No method is above {versus}")
    return figure


@styled
def race(rows: Rows, by: str = "seconds", baselines: Mapping = {}, metric: str = "ndcg@100") -> Figure:
    """Validation against what was spent, all trained methods together; a bar: 95% interval of the best point.

    rows: the ledger's, of which "train" rows with points {mean, low, high, n, seconds, samples} are drawn. by:
    "seconds" or "samples". baselines: name -> Interval, {mean, low, high} or a number, on the same requests."""
    curves, limit, at = book.curves(rows, by), book.common(rows, by), book.at_budget(rows, by)
    best = {row["method"]: row for row in at}
    figure, axis = canvas(3.8 + 0.13 * (len(curves) + len(baselines)))
    style.draw_baselines(axis, baselines, band=False)
    for place, (name, points) in enumerate(curves.items()):
        look, point = style.look(name, place), best.get(name)
        label = fill(name, 30, f"{point['mean']:.3f}" if point else "")
        axis.plot([p[by] for p in points], [p["mean"] for p in points], label=label, **look)
        if point:
            axis.errorbar(point[by], point["mean"], yerr=reach(point), color=look["color"], capsize=3, alpha=0.7)
    if limit:
        axis.axvline(limit, color=GREY, ls=(0, (1, 2)), lw=1.2)
        spot: dict = dict(ha="right", va="baseline", bbox=style.BACKED, xycoords=("data", "axes fraction"))
        note(axis, "same budget", (limit, 0.01), (-4, 0), fontsize=9.5, color=GREY, **spot)
    label = f"val {metric_label(metric)}"
    axis.set(xlabel=BY[by], ylabel=label + count_of([points[-1] for points in curves.values()]))
    ranked, told = sorted(at, key=lambda row: -row["mean"]), f"No validation point with its {by} has been logged yet"
    if len(ranked) == 1:
        told = f"Within {limit:,.0f} {UNIT[by]}: {ranked[0]['method']} reaches {label} {ranked[0]['mean']:.3f}"
    elif ranked:
        first, second, *_ = ranked
        told = f"Within {limit:,.0f} {UNIT[by]}, {first['method']} is highest: {label} {first['mean']:.3f} against "
        told += f"{second['method']}'s {second['mean']:.3f}; the intervals "
        told += "overlap: not shown to differ" if book.overlap(first, second) else "lie apart"
    return finish(figure, told)


@styled
def cost_quality(rows: Rows, baselines: Mapping = {}, metric: str = "ndcg@100", split: str = "test") -> Figure:
    """What each method scored, with its 95% interval, over what its training took: seconds, and tokens.

    rows: dicts {method, mean, low, high, n, seconds, tokens}, one at least; seconds or tokens may be None. baselines as
    in `race`. Points that would hide each other are moved apart by up to a few hundredths of the axis."""
    panels = [by for by in ("seconds", "tokens") if any(row.get(by) for row in rows)] or ["seconds"]
    height = 3.6 + 0.13 * (len(rows) + len(baselines))
    figure, axes = canvas(height, 6.8, columns=len(panels), sharey=True, squeeze=False)
    for axis, by in zip(axes[0], panels, strict=True):
        style.draw_baselines(axis, baselines, band=False)
        costs = [row.get(by) or 0.0 for row in rows]
        used = [cost for cost in costs if cost]
        log = bool(used) and max(used) > 8 * min(used)
        axis.set_xscale("log" if log else "linear")
        axis.margins(x=0.12)
        for place, (row, cost) in enumerate(zip(rows, _apart(costs, log), strict=True)):
            if costs[place]:
                look = style.look(row["method"], place) | {"label": fill(row["method"], 30, f"{row['mean']:.3f}")}
                axis.errorbar(cost, row["mean"], yerr=reach(row), ls="none", capsize=3, **look)
        if log:
            axis.xaxis.set_minor_locator(LogLocator(subs=[3]))
        else:
            axis.set_xlim(0, 1.15 * max(used, default=1))
        axis.set_xlabel(fill(BY[by], 26))
        for write in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            write(lambda value, place: f"{value / 1000:g}k" if value >= 1e4 else f"{value:g}")
    axes[0, 0].set_ylabel(f"{split} {metric_label(metric)}{count_of(rows)}")

    def told(row: Mapping) -> str:
        return f"{row['mean']:.3f}" + (f" in {row['seconds']:,.0f} s" if row.get("seconds") else "")

    best = max(rows, key=lambda row: row["mean"])
    cheap = min((row for row in rows if row.get("seconds")), key=lambda row: row["seconds"], default=best)
    finding = f"{best['method']} is highest, {metric_label(metric)} {told(best)}"
    if cheap is not best:
        fact = "intervals overlap" if book.overlap(best, cheap) else "intervals apart"
        finding += f"; the quickest, {cheap['method']}, {told(cheap)} ({fact})"
    elif len(rows) > 1:
        finding += ", and the cheapest"
    return finish(figure, finding)


@styled
def bound(rows: Rows, differences: Mapping[str, Mapping], teachers: Rows, metric: str = "ndcg@100") -> Figure:
    """Teachers as lines, methods as dots with 95% intervals: can imitation pass what it imitates?

    rows and teachers: dicts {method, mean, low, high, n}. differences: method -> paired difference to its teacher
    (`rows.TEACHERS`) {mean, low, high}; the title speaks of these, never of two intervals that overlap or do not.
    Source of the bound: Theorem 1 of arXiv 2503.24289."""
    figure, axis = canvas(2.1 + 0.42 * len(rows))
    style.draw_baselines(axis, {teacher["method"]: teacher for teacher in teachers}, vertical=True)
    for place, row in enumerate(rows):
        dot(axis, row, place, *((style.ORANGE, "s", BLACK) if book.is_sft(row["method"]) else (BLUE, "o", BLUE)))
    axis.plot([], [], "s", color=style.ORANGE, label="imitates its teacher")
    axis.plot([], [], "o", color=BLUE, label="learns from the reward")
    name_rows(axis, [fill(row["method"], 24) for row in rows], 0.4, 0.8)
    axis.set_xlabel(f"{metric_label(metric)}, mean with 95% interval{count_of(teachers)}")
    known = {row["method"]: differences[row["method"]] for row in rows if row["method"] in differences}
    imitate = {name: row for name, row in known.items() if book.is_sft(name)}
    above = [f"{name} ({row['mean']:+.3f})" for name, row in imitate.items() if book.verdict(row) == "above"]
    free = [f"{name} {book.verdict(row)} ({row['mean']:+.3f})" for name, row in known.items() if name not in imitate]
    told = ["No method was paired with its teacher; the dots alone show no difference"] * (not known)
    if imitate:
        who = f": {', '.join(above)}" if above else ""
        told.append(f"{len(above)} of {len(imitate)} SFT variants shown above the teacher{who}")
    if free:
        told.append(", ".join(free) + ("" if imitate else " the teacher"))
    return finish(figure, "; ".join(told))


@styled
def forgetting(rows: Rows) -> Figure:
    """Paired difference to the untrained model with its 95% interval: one panel per task, one row per method. rows: the
    ledger's; of them `rows.main_changes` are drawn, one metric per task. Full dots: the interval leaves 0 out."""
    changes = book.main_changes(rows)
    methods = list(dict.fromkeys(row["method"] for row in changes))
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in changes))
    figure, axes = _grid(len(tasks), 3, (1.1, 1.95), (0.9, 0.95 + 0.3 * len(methods)), sharey=True)
    for axis, (task, metric) in zip(axes, tasks):
        axis.axvline(0, color=BLACK, ls="--", lw=1)
        here = [row for row in changes if row["task"] == task]
        for row in here:
            place, at = methods.index(row["method"]), row["difference"]
            look = style.look(row["method"], place) | ({} if book.worse(row) else {"mfc": "white"})
            axis.errorbar(at["mean"], place, xerr=reach(at), ls="none", capsize=3, **look)
        harm = "(right is worse)" if book.is_loss(metric) else ""
        axis.set_title(fill(f"{task_name(task)},", 24, f"n = {here[-1]['n']}"), fontsize=9.5)
        axis.set_xlabel(fill(metric.replace("_", " "), 24, harm), fontsize=9.5)
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.tick_params(labelsize=9)
    told = []
    for name in methods:
        sides = [book.worse(row) for row in changes if row["method"] == name]
        gained = f" (gain on {sides.count('gained')})" if "gained" in sides else ""
        told.append(f"{name} {sides.count('lost')} of {len(sides)}{gained}")
    finding = f"Measures with a loss shown against the untrained model: {', '.join(told)}"
    if changes:
        name_rows(axes[0], [fill(name, 14) for name in methods], 0.5, 0.5)
        figure.supxlabel("filled: the 95% interval leaves 0 out", fontsize=9, color=GREY)
    style.title(figure, finding if told else "No method was compared with the untrained model on a capability task", 60)
    return figure


@styled
def kl_retention(rows: Rows) -> Figure:
    """How far each method moved from the untrained model (the cross), in forward KL, and what it kept of its accuracy.
    rows: the ledger's; of them `rows.retention` is drawn, with 95% intervals both ways."""
    kept, told = book.retention(rows), []
    figure, axis = canvas(3.6)
    axis.axhline(0, color=BLACK, ls="--", lw=1)
    axis.plot(0, 0, "+", color=BLACK, ms=11, mew=1.6, label="untrained")
    for place, row in enumerate(kept):
        kl, change = row["kl"], row["change"]
        look = style.look(row["method"], place) | {"label": fill(row["method"], 30)}
        axis.errorbar(kl["mean"], change["mean"], reach(change), reach(kl), ls="none", capsize=3, **look)
        doubt = ", not shown to differ from 0" if book.verdict(change).startswith("not") else ""
        told.append((kl["mean"], f"{row['method']} moved {kl['mean']:.2f} nats, accuracy {change['mean']:+.3f}{doubt}"))
    tasks = kept[0]["tasks"] if kept else 0
    axis.set_xlabel(f"forward KL from the untrained model, nats per token{count_of([row['kl'] for row in kept])}")
    axis.set_ylabel(f"change of accuracy,\nmean of {tasks} task{'s' * (tasks != 1)}")
    ends = dict.fromkeys([max(told)[1], min(told)[1]] if told else [])
    return finish(figure, "; ".join(ends) or "No method has both its KL and its capability measured")


@styled
def pareto(rows: Rows) -> Figure:
    """What a method gained on the task against what it cost elsewhere: a line per method through its rows in order.

    rows: {"method", "gain", "loss"}, both an Interval of the difference to the untrained model. Higher and further to
    the right is better; a line that runs above another keeps more at the same gain."""
    figure, axis = canvas(4.4, 7.0)
    for place, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        points = [(style.interval(row["gain"]), style.interval(row["loss"])) for row in rows if row["method"] == method]
        gains, losses = zip(*points)
        look = dict(color=style.COLORS[place % 6], marker=style.MARKERS[place % 6], ms=4)
        xs, ys = [0.0, *(one["mean"] for one in gains)], [0.0, *(one["mean"] for one in losses)]
        axis.plot(xs, ys, label=fill(method, 26), **look)
        axis.errorbar(xs[-1], ys[-1], yerr=reach(losses[-1]), xerr=reach(gains[-1]), capsize=3, alpha=0.6, **look)
    axis.axhline(0, color=BLACK, lw=0.8)
    axis.set(xlabel="gain on the task, nDCG@100", ylabel="questions answered rightly, difference")
    return finish(figure, "What each method gained, and what it cost elsewhere (95% at the last point)")


@styled
def continual(rows: Rows) -> Figure:
    """Stages of adaptation to one task after another: one panel per measure, one line per trainer, 95% intervals. rows:
    the ledger's, of which those of kind "continual" are drawn."""
    stages, names = book.stages(rows), book.measures(rows)
    figure, axes = _grid(len(names), 2, (0.6, 3.1), (1.4, 2.35))
    ticks = {row["stage"]: row["name"] for line in stages.values() for row in line}
    for axis, name in zip(axes, names):
        drawn: list[Mapping] = []
        for place, (trainer, line) in enumerate(stages.items()):
            points = {row["stage"]: row["measures"][name] for row in line if book.whole(row["measures"].get(name))}
            shift = 0.06 * (place - (len(stages) - 1) / 2)  # so that no interval hides another
            if points:
                at, means = [stage + shift for stage in points], [point["mean"] for point in points.values()]
                label, look = fill(trainer, 30), style.look(trainer, place)
                axis.errorbar(at, means, yerr=reach(*points.values()), capsize=3, label=label, **look)
            drawn += points.values()
        axis.set_xticks(list(ticks), [fill(text, 11) for text in ticks.values()], fontsize=9)
        axis.set_xlim(min(ticks) - 0.3, max(ticks) + 0.3)
        unit = " (nats, 0 is the start)" if name == "kl" else ""
        axis.set_title(fill(f"{name}{unit},", 30, count_of(drawn)[2:]), fontsize=10)
    return finish(figure, _kept(stages, names), 60)


def _kept(stages: Mapping[str, Rows], names: Sequence[str]) -> str:
    """What the last stage did to the first task since the stage before, and to capability since the start: by a paired
    difference to the untrained model where the row has one, else by whether the two intervals overlap."""
    told, last = [], ""
    for trainer, line in stages.items():
        if len(line) < 3:
            continue
        moves, paired = [], (line[-1].get("differences") or {}).get("capability") or {}
        for name, start in (*((name, -2) for name in names[:1]), ("capability", 0)):
            before, after = line[start]["measures"].get(name), line[-1]["measures"].get(name)
            if book.whole(before) and book.whole(after):
                by_pair = name == "capability" and book.whole(paired)
                same = book.verdict(paired).startswith("not") if by_pair else book.overlap(before, after)
                moves.append(f"{name} {before['mean']:.3f} → {after['mean']:.3f}{'*' * same}")
        if moves:
            told.append(f"{trainer} {', '.join(moves)}")
            last = last or line[-1]["name"]
    if not told:
        return "Fewer than three stages: nothing to tell of what an earlier one kept"
    star = " (*: not shown to differ)" if "*" in "".join(told) else ""
    return f"{last[:1].upper()}{last[1:]}: {'; '.join(told)}{star}"


def _grid(count: int, most: int, width: tuple, height: tuple, **shared) -> tuple:
    """A figure with `count` panels, at most `most` in a row. width and height: of the margins and of a panel."""
    columns = min(most, count) or 1
    lines = -(-count // columns) or 1
    size = height[0] + lines * height[1], width[0] + columns * width[1]
    figure, axes = canvas(*size, lines, columns, squeeze=False, **shared)
    for axis in axes.ravel()[count:]:
        axis.set_visible(False)
    return figure, axes.ravel()


def _apart(costs: Sequence[float], log: bool) -> np.ndarray:
    """Places on a cost axis at which no two points hide each other, in the order given; zeros stay."""
    values = np.log10(np.maximum(costs, 1e-9)) if log else np.array(costs, float)
    used = [place for place in np.argsort(values, kind="stable")[::-1] if costs[place]]
    least = 0.016 * (values[used[0]] - (values[used[-1]] if log else 0)) if used else 0
    for right, left in pairwise(used):  # from the right: nobody seems to exceed the budget
        values[left] = min(values[left], values[right] - least)
    return 10**values if log else values
