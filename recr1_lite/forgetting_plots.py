"""The figures of what training cost elsewhere: lost capability, KL against retention, continual adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recr1_lite import budget
from recr1_lite.budget_plots import look
from recr1_lite.style import BLACK, GREY, Picture, reach, styled, title

SIDE = 2.35  # inches of a panel


@styled
def forgetting(rows: Sequence[Mapping]) -> Figure:
    """Paired difference to the untrained model with its 95% interval: a panel a task, a row a method.

    rows: the ledger's; of them `budget.main_changes` are drawn, one metric a task. Full dots: the interval
    leaves 0 out.
    """
    changes = budget.main_changes(rows)
    methods = list(dict.fromkeys(row["method"] for row in changes))
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in changes))
    columns = min(3, len(tasks)) or 1
    lines = -(-len(tasks) // columns) or 1
    figure = Picture(figsize=(1.1 + 1.95 * columns, 0.9 + lines * (0.95 + 0.3 * max(1, len(methods)))),
                     layout="constrained", dpi=90)
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[len(tasks):]:
        axis.set_visible(False)
    for axis, (task, metric) in zip(axes, tasks):
        axis.axvline(0, color=BLACK, ls="--", lw=1)
        count = None
        for row in changes:
            if (row["task"], row["metric"]) == (task, metric):
                place, count = methods.index(row["method"]), row["n"]
                color, marker = look(row["method"], place)
                axis.errorbar(row["difference"]["mean"], place, xerr=reach(row["difference"]), fmt=marker,
                              color=color, capsize=3, mfc=color if budget.worse(row) else "white")
        harm = " (right is worse)" if budget.is_loss(metric) else ""
        axis.set_title(f"{task_name(task)}, n = {count}", fontsize=9.5)
        axis.set_xlabel(f"{metric.replace('_', ' ')}{harm}", fontsize=9.5)
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.tick_params(labelsize=9)
    if changes:
        axes[0].set_yticks(range(len(methods)), [fill(name, 14) for name in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
        figure.supxlabel("filled: the 95% interval leaves 0 out", fontsize=9, color=GREY)
    title(figure, _forgetting_finding(changes, methods, len(tasks)), 60)
    return figure


@styled
def kl_retention(rows: Sequence[Mapping]) -> Figure:
    """How far each method moved from the untrained model, in forward KL, and what it kept of its accuracy.

    rows: the ledger's; of them `budget.retention` is drawn, with 95% intervals both ways. The untrained model
    is the cross at (0, 0).
    """
    found = budget.retention(rows)
    figure = Picture(figsize=(6.2, 3.6), layout="constrained", dpi=90)
    axis = figure.subplots()
    axis.axhline(0, color=BLACK, ls="--", lw=1)
    axis.plot(0, 0, "+", color=BLACK, ms=11, mew=1.6, label="untrained")
    for place, row in enumerate(found):
        color, marker = look(row["method"], place)
        axis.errorbar(row["kl"]["mean"], row["change"]["mean"], xerr=reach(row["kl"]),
                      yerr=reach(row["change"]), fmt=marker, color=color, capsize=3, label=row["method"])
    tasks = found[0]["tasks"] if found else 0
    count = f", n = {found[0]['kl'].get('n')}" if found and found[0]["kl"].get("n") else ""
    axis.set(xlabel=f"forward KL from the untrained model, nats a token{count}",
             ylabel=f"change of accuracy,\nmean of {tasks} task{'s' * (tasks != 1)}")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9.5)
    title(figure, _retention_finding(found))
    return figure


@styled
def continual(rows: Sequence[Mapping]) -> Figure:
    """Stages of adaptation to one task after another: a panel a measure, a line a trainer, 95% intervals.

    rows: the ledger's, of which those of kind "continual" are drawn.
    """
    stages, names = budget.stages(rows), budget.measures(rows)
    columns = min(2, len(names)) or 1
    lines = -(-len(names) // columns) or 1
    figure = Picture(figsize=(0.6 + 3.1 * columns, 1.4 + SIDE * lines), layout="constrained", dpi=90)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(names):]:
        axis.set_visible(False)
    for axis, name in zip(axes, names):
        for place, (trainer, line) in enumerate(stages.items()):
            points = [row for row in line if budget.whole(row["measures"].get(name))]
            if points:
                values = [row["measures"][name] for row in points]
                shift = 0.06 * (place - (len(stages) - 1) / 2)  # so that no interval hides another
                color, marker = look(trainer, place)
                axis.errorbar([row.get("stage", 0) + shift for row in points],
                              [value["mean"] for value in values], color=color, marker=marker,
                              yerr=np.hstack([reach(value) for value in values]), capsize=3, label=trainer)
        told = {row.get("stage", 0): str(row.get("name", row.get("stage", ""))) for line in stages.values()
                for row in line}
        axis.set_xticks(list(told), [fill(text, 11) for text in told.values()], fontsize=9)
        axis.set_xlim(min(told) - 0.3, max(told) + 0.3)
        count = next((row["measures"][name].get("n") for line in stages.values() for row in line
                      if budget.whole(row["measures"].get(name))), None)
        unit = " (nats, 0 is the start)" if name == "kl" else ""
        axis.set_title(f"{name}{unit}" + (f", n = {count}" if count else ""), fontsize=10)
    if names:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    title(figure, continual_finding(rows), 60)
    return figure


def task_name(task: str) -> str:
    """A task's name as it stands in print: "recr1_arithmetic" as "arithmetic"."""
    return task.removeprefix("recr1_").replace("_", " ")


def continual_finding(rows: Sequence[Mapping]) -> str:
    """What the last stage did to the first task since the stage before, and to capability since the start.

    A paired difference to the untrained model is used where the row has one; else whether the two intervals
    overlap.
    """
    told, last = [], ""
    for trainer, line in budget.stages(rows).items():
        moved = []
        for name, start in [(name, -2) for name in budget.measures(rows)[:1]] + [("capability", 0)]:
            if len(line) < 3:
                continue
            before, after = (row["measures"].get(name) for row in (line[start], line[-1]))
            if budget.whole(before) and budget.whole(after):
                paired = (line[-1].get("differences") or {}).get(name) if start == 0 else None
                doubt = (budget.verdict(paired) == "not shown to differ" if budget.whole(paired)
                         else budget.overlap(before, after))
                moved.append(f"{name} {before['mean']:.3f} → {after['mean']:.3f}{'*' * doubt}")
        if moved:
            told.append(f"{trainer} {', '.join(moved)}")
            last = last or str(line[-1].get("name", "the last stage"))
    if not told:
        return "Fewer than three stages: nothing to tell of what an earlier one kept"
    star = " (*: not shown to differ)" if any("*" in text for text in told) else ""
    return f"{last[:1].upper()}{last[1:]}: {'; '.join(told)}{star}"


def _forgetting_finding(changes: Sequence[Mapping], methods: Sequence[str], tasks: int) -> str:
    if not changes:
        return "No method was compared with the untrained model on a capability task"
    told = []
    for name in methods:
        mine = [row for row in changes if row["method"] == name]
        lost = [row for row in mine if budget.worse(row) == "lost"]
        gained = sum(budget.worse(row) == "gained" for row in mine)
        told.append(f"{name} {len(lost)} of {len(mine)}" + (f" (gain on {gained})" if gained else ""))
    return f"Measures with a loss shown against the untrained model: {', '.join(told)}"


def _retention_finding(found: Sequence[Mapping]) -> str:
    if not found:
        return "No method has both its KL and its capability measured"
    far, near = max(found, key=lambda row: row["kl"]["mean"]), min(found, key=lambda row: row["kl"]["mean"])

    def told(row: Mapping) -> str:
        open_end = budget.verdict(row["change"]) == "not shown to differ"
        return (f"{row['method']} moved {row['kl']['mean']:.2f} nats, accuracy {row['change']['mean']:+.3f}"
                + (", not shown to differ from 0" if open_end else ""))

    return told(far) if far is near else f"{told(far)}; {told(near)}"
