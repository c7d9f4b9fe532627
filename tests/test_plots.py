"""The figures: titles that say what the data say, every baseline drawn, the same bytes each time, any data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from recr1_lite import plots
from recr1_lite.metrics import Interval

CURVE = [{"step": step, "reward": 0.2 + 0.002 * step + 0.01 * (step % 3), "zero_advantage_share": 0.3,
          "completion_length": 12.0, "entropy": 1.5 - 0.01 * step, "kl": None,
          "rewards/ndcg/mean": 0.1 + 0.002 * step, "rewards/format/mean": 0.1, "rewards/format/std": 0.3}
         for step in range(1, 41)]
VAL = [{"step": 0, "mean": 0.24, "low": 0.2, "high": 0.28, "n": 50},
       {"step": 40, "mean": 0.32, "low": 0.29, "high": 0.36, "n": 50}]


def spot(mean, half=0.03, n=50):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def finding(figure):
    return " ".join(figure.get_suptitle().split())


def test_titles_say_what_the_data_say():
    base = {"raw request": 0.23, "zero-shot": Interval(0.31, 0.28, 0.34, 50), "oracle": spot(0.5)}
    assert finding(plots.learning_curve(CURVE, VAL, base)) == (
        "Val nDCG@100 0.240 → 0.320 in 40 steps; the last interval lies above raw request (0.230); "
        "around zero-shot (0.310); below oracle (0.500)"
    )
    assert finding(plots.learning_curve(CURVE, VAL[::-1])).endswith("in 40 steps"), "points are sorted"
    falling = [{"step": 0, **spot(0.3)}, {"step": 9, **spot(0.2)}]
    assert "0.300 → 0.200 in 9 steps (highest 0.300 at 0)" in finding(plots.learning_curve([], falling))
    assert finding(plots.learning_curve(CURVE)).startswith("Reward rose")
    flat = [{"step": step, "reward": step % 2} for step in range(40)]
    assert finding(plots.learning_curve(flat)).startswith("Reward stayed within its noise")
    assert finding(plots.components(CURVE)) == "In 40 steps: reward rose, nDCG rose, entropy fell"
    rows = [{"method": "raw", **spot(0.3)}, {"method": "GRPO", **spot(0.2)}]
    assert finding(plots.methods(rows)) == "No method is above raw (0.300)"
    assert finding(plots.methods(rows, "GRPO")) == "raw (0.300) is highest: +0.100 over GRPO (0.200)"
    room = {"n": 50, "rollouts": 8, "mean": spot(0.24), "best": spot(0.4)}
    assert "best of 8 rollouts would win +0.160" in finding(plots.headroom(room, base))


def test_missing_keys_are_not_drawn_and_baselines_are():
    drawn = [axis for axis in plots.components(CURVE).axes if axis.has_data()]
    assert [axis.texts[-1].get_text().split("\n")[0] for axis in drawn] == [
        "reward", "format", "nDCG", "groups without signal", "entropy", "completion length",
    ]
    alone = [{"step": step, "reward": 0.1 * step, "rewards/ndcg/mean": 0.1 * step} for step in range(5)]
    assert len(plots.components(alone).axes) == 1, "a single part is the reward itself"
    (axis,) = plots.learning_curve([], VAL, {"raw request": spot(0.23)}).axes
    assert any(list(line.get_ydata()) == [0.23, 0.23] for line in axis.lines)
    assert len(axis.patches) == 1, "the band of the baseline"
    assert axis.get_xlabel() == "training step" and axis.get_ylabel() == "val nDCG@100"


@pytest.mark.parametrize("figure", [
    plots.loop_picture, lambda: plots.components([]), lambda: plots.learning_curve([]),
    lambda: plots.methods([{"method": "only", **spot(0.1)}]), lambda: plots.components([{"reward": 0.5}]),
])
def test_every_figure_renders_the_same_bytes_twice(figure):
    assert plots.as_bytes(figure()) == plots.as_bytes(figure())
    assert figure()._repr_png_().startswith(b"\x89PNG")


def test_figures_need_no_display_and_leave_settings_alone():
    code = (
        "import matplotlib, sys; before = matplotlib.rcParams.copy()\n"
        "from recr1_lite import plots; plots.as_bytes(plots.loop_picture())\n"
        "assert matplotlib.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=bare)


def test_a_readers_own_style_does_not_leak_in():
    plain = plots.as_bytes(plots.methods([{"method": "only", **spot(0.1)}]))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.as_bytes(plots.methods([{"method": "only", **spot(0.1)}])) == plain
