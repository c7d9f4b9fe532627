"""The figures: titles that say what the data say, every baseline drawn, the same bytes each time, any data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recr1_lite.report import comparisons as plots
from recr1_lite.report import curves, figures
from recr1_lite.report.curves import _ends
from recr1_lite.search.metrics import Interval

CURVE = [
    {
        "step": step,
        "reward": 0.2 + 0.002 * step + 0.01 * (step % 3),
        "zero_advantage_share": 0.3,
        "completion_length": 12.0,
        "entropy": 1.5 - 0.01 * step,
        "kl": None,
        "rewards/ndcg/mean": 0.1 + 0.002 * step,
        "rewards/format/mean": 0.1,
        "rewards/format/std": 0.3,
    }
    for step in range(1, 41)
]
VAL = [
    {"step": 0, "mean": 0.24, "low": 0.2, "high": 0.28, "n": 50},
    {"step": 40, "mean": 0.32, "low": 0.29, "high": 0.36, "n": 50},
]


def spot(mean, half=0.03, n=50):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def finding(figure):
    return " ".join(figure.get_suptitle().split())


def test_titles_say_what_the_data_say():
    base = {"raw request": 0.23, "zero-shot": Interval(0.31, 0.28, 0.34, 50), "oracle": spot(0.5)}
    assert finding(curves.learning_curve(CURVE, VAL, base)) == (
        "Val nDCG@100 0.240 → 0.320 in 40 steps; the last interval lies above raw request (0.230); "
        "around zero-shot (0.310); below oracle (0.500)"
    )
    assert finding(curves.learning_curve(CURVE, VAL[::-1])).endswith("in 40 steps"), "points are sorted"
    falling = [{"step": 0, **spot(0.3)}, {"step": 9, **spot(0.2)}]
    assert "0.300 → 0.200 in 9 steps (highest 0.300 at 0)" in finding(curves.learning_curve([], falling))
    assert finding(curves.learning_curve(CURVE)).startswith("Reward rose")
    flat = [{"step": step, "reward": step % 2} for step in range(40)]
    assert finding(curves.learning_curve(flat)).startswith("Reward stayed within its noise")
    assert finding(curves.components(CURVE)) == "In 40 steps: reward rose, nDCG rose, entropy fell"
    rows = [{"method": "raw", **spot(0.3)}, {"method": "GRPO", **spot(0.2)}]
    assert finding(plots.methods(rows)) == "No method is above raw (0.300)"
    assert finding(plots.methods(rows, "GRPO")) == "raw (0.300) is highest: +0.100 over GRPO (0.200)"
    room = {"n": 50, "rollouts": 8, "mean": spot(0.24), "best": spot(0.4)}
    assert "best of 8 rollouts would win +0.160" in finding(curves.headroom(room, base))


def test_missing_keys_are_not_drawn_and_baselines_are():
    drawn = [axis for axis in curves.components(CURVE).axes if axis.has_data()]
    assert [axis.texts[-1].get_text().split("\n")[0] for axis in drawn] == [
        "reward",
        "format",
        "nDCG",
        "groups without signal",
        "entropy",
        "completion length",
    ]
    alone = [{"step": step, "reward": 0.1 * step, "rewards/ndcg/mean": 0.1 * step} for step in range(5)]
    assert len(curves.components(alone).axes) == 1, "a single part is the reward itself"
    (axis,) = curves.learning_curve([], VAL, {"raw request": spot(0.23)}).axes
    assert any(list(line.get_ydata()) == [0.23, 0.23] for line in axis.lines)
    assert len(axis.patches) == 1, "the band of the baseline"
    assert axis.get_xlabel() == "training step" and axis.get_ylabel() == "val nDCG@100"


@pytest.mark.parametrize(
    "figure",
    [
        figures.loop_picture,
        lambda: curves.components([]),
        lambda: curves.learning_curve([]),
        lambda: plots.methods([{"method": "only", **spot(0.1)}]),
        lambda: curves.components([{"reward": 0.5}]),
    ],
)
def test_every_figure_renders_the_same_bytes_twice(figure):
    assert figures.as_bytes(figure()) == figures.as_bytes(figure())
    assert figure()._repr_png_().startswith(b"\x89PNG")


def test_figures_need_no_display_and_leave_settings_alone():
    code = (
        "import matplotlib, sys; before = matplotlib.rcParams.copy()\n"
        "from recr1_lite.report import figures; figures.as_bytes(figures.loop_picture())\n"
        "assert matplotlib.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=bare)


def test_a_readers_own_style_does_not_leak_in():
    plain = figures.as_bytes(plots.methods([{"method": "only", **spot(0.1)}]))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert figures.as_bytes(plots.methods([{"method": "only", **spot(0.1)}])) == plain


def panels(figure):
    """Position and first line of the name of each axis."""
    return [(axis.get_position().bounds, axis.texts[-1].get_text().split("\n")[0]) for axis in figure.axes]


def test_the_live_view_keeps_every_panel_in_its_place_from_before_the_first_step():
    full = [
        {
            **row,
            "kl": 0.001 * row["step"] if row["step"] % 5 == 1 else None,
            "gain": 0.01,
            "distinct": 0.9,
            "seconds": 12.0,
        }
        for row in CURVE
    ]
    seen = [panels(curves.dashboard(full[:n], VAL[: 1 + n // 40], {"raw": 0.2}, steps=40)) for n in (1, 2, 7, 40)]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert [name for _, name in seen[0][1:4]] == ["reward", "format", "nDCG"]
    alone = [{key: value for key, value in row.items() if "/" not in key} for row in full]
    before = curves.dashboard([], VAL[:1], steps=40)
    assert panels(before) == panels(curves.dashboard(alone, VAL[:1], steps=40)) and len(before.axes) == 9
    assert all("not measured yet" in axis.texts[-1].get_text() for axis in before.axes[1:])


def test_the_live_view_says_where_it_stands():
    base = {"raw request": spot(0.23)}
    assert finding(curves.dashboard([], [], base, steps=50)) == "Step 0/50: nothing measured yet"
    assert finding(curves.dashboard([], VAL[:1], base, steps=50)) == "Step 0/50: val 0.240"
    early = finding(curves.dashboard(CURVE[:2], VAL[:1], base, steps=50))
    assert early == "Step 2/50: reward 0.212 → 0.224 (too few steps to tell), val 0.240"
    assert finding(curves.dashboard(CURVE, VAL, base)) == "Step 40: reward 0.220 → 0.282, val 0.240 → 0.320"
    flat = [{"step": step, "reward": step % 2} for step in range(1, 41)]
    assert "(within noise)" in finding(curves.dashboard(flat))
    top = curves.dashboard(CURVE[:3], VAL[:1], base, steps=50).axes[0]
    assert top.get_xlim()[1] > 50 and any(list(line.get_ydata()) == [0.23, 0.23] for line in top.lines)
    assert len(top.patches) == 1, "the band of the baseline"


def test_a_step_without_noise_moves_and_a_noisy_one_does_not():
    rising = [{"step": step, "reward": 0.1 * step + 0.01 * (step % 2)} for step in range(1, 8)]
    assert finding(curves.components(rising)) == "In 7 steps: reward rose"
    rng = np.random.default_rng(0)
    # 6 steps of noise alone: a 95% t interval speaks up about once in 20, a normal one twice as often
    assert 20 < sum(bool(_ends(rng.normal(size=6))[2]) for _ in range(1000)) < 70


NASTY = [
    {
        "step": step,
        "reward": 0.0,
        "gain": float("nan"),
        "entropy": float("inf"),
        "kl": None,
        "distinct": "none",
        "zero_advantage_share": np.float32(1.0),
        "completion_length": np.int64(0),
        "seconds": 1e6,
    }
    for step in range(1, 301)
]


@pytest.mark.parametrize("curve", [[], NASTY[:2], NASTY])
@pytest.mark.filterwarnings("error")
def test_nasty_data_are_drawn_without_a_warning(curve):
    val = [{"step": 0, "mean": 0.0, "low": 0.0, "high": 0.0}]
    base = {"a name " * 12: 0.0, **{f"baseline {n}": spot(0.1 * n) for n in range(8)}}
    for figure in (
        curves.dashboard(curve, val, base, steps=300),
        curves.components(curve),
        curves.learning_curve(curve, val, base),
    ):
        assert figures.as_bytes(figure, "png", 50).startswith(b"\x89PNG")
        height, width = figure.get_size_inches()[::-1]
        assert width <= 9 and height <= 12


def test_nothing_of_the_live_view_is_cut_off():
    long = {"a rather long name of a baseline " * 2: spot(0.23), "raw": spot(0.2)}
    figure = curves.dashboard([{**row, "gain": -0.025 * row["step"]} for row in CURVE], VAL, long, steps=40)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, box


def test_word_shift_names_the_largest_rise_and_fall():
    frame = pd.DataFrame({"word": ["skirt", "top", "the"], "before": [0.0, 0.2, 0.5], "after": [0.4, 0.3, 0.1]})
    figure = curves.word_shift(frame)
    assert finding(figure) == "Rewrites with “skirt”: 0% → 40%, with “the”: 50% → 10%"
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["skirt", "top", "the"]
    assert finding(curves.word_shift(frame.head(2))) == "Rewrites with “skirt”: 0% → 40%"
    assert finding(curves.word_shift(frame.head(0))) == "The rewrites use their words as before"
    assert curves.word_shift(frame.head(0))._repr_png_() and figure._repr_png_()
