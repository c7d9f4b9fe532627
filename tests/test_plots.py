"""The figures: titles that say what the data say, every baseline drawn, the same bytes each time, any data."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_rows import CURVE, VAL, finding, spot

from recr1_lite.report import comparisons as plots
from recr1_lite.report import curves, figures
from recr1_lite.report.curves import _ends
from recr1_lite.search.metrics import Interval

BASE = {"raw request": 0.23, "zero-shot": Interval(0.31, 0.28, 0.34, 50), "oracle": spot(0.5)}
RAW = {"raw request": spot(0.23)}
FLAT = [{"step": step, "reward": step % 2} for step in range(1, 41)]
FALLING = [{"step": 0, **spot(0.3)}, {"step": 9, **spot(0.2)}]
METHODS = [{"method": "raw", **spot(0.3)}, {"method": "GRPO", **spot(0.2)}]
WORDS = pd.DataFrame({"word": ["skirt", "top", "the"], "before": [0.0, 0.2, 0.5], "after": [0.4, 0.3, 0.1]})
RISING = [{"step": step, "reward": 0.1 * step + 0.01 * (step % 2)} for step in range(1, 8)]
TITLES = [
    (
        lambda: curves.learning_curve(CURVE, VAL[::-1], BASE),
        "Val nDCG@100 0.240 → 0.320 in 40 steps; the last interval lies above raw request (0.230); "
        "around zero-shot (0.310); below oracle (0.500)",
    ),
    (lambda: curves.learning_curve([], FALLING), "Val nDCG@100 0.300 → 0.200 in 9 steps (highest 0.300 at 0)"),
    (lambda: curves.learning_curve(CURVE), "Reward rose: 0.220 → 0.282 in 40 steps"),
    (lambda: curves.learning_curve(FLAT), "Reward stayed within its noise: 0.500 → 0.500 in 40 steps"),
    (lambda: curves.components(CURVE), "In 40 steps: reward rose, nDCG rose, entropy fell"),
    (lambda: curves.components(RISING), "In 7 steps: reward rose"),
    (lambda: plots.methods(METHODS), "No method is above raw (0.300)"),
    (lambda: plots.methods(METHODS, "GRPO"), "raw (0.300) is highest: +0.100 over GRPO (0.200)"),
    (
        lambda: curves.headroom({"n": 50, "rollouts": 8, "mean": spot(0.24), "best": spot(0.4)}, BASE),
        "Choosing the best of 8 rollouts would win +0.160 over their mean",
    ),
    (lambda: curves.dashboard([], [], RAW, steps=50), "Step 0/50: nothing measured yet"),
    (
        lambda: curves.dashboard(CURVE[:2], VAL[:1], RAW, steps=50),
        "Step 2/50: reward 0.212 → 0.224 (too few steps to tell), val 0.240",
    ),
    (lambda: curves.dashboard(CURVE, VAL, RAW), "Step 40: reward 0.220 → 0.282, val 0.240 → 0.320"),
    (lambda: curves.dashboard(FLAT), "Step 40: reward 0.500 → 0.500 (within noise)"),
    (lambda: curves.word_shift(WORDS), "Rewrites with “skirt”: 0% → 40%, with “the”: 50% → 10%"),
    (lambda: curves.word_shift(WORDS.head(2)), "Rewrites with “skirt”: 0% → 40%"),
    (lambda: curves.word_shift(WORDS.head(0)), "The rewrites use their words as before"),
]


@pytest.mark.parametrize(("draw", "told"), TITLES, ids=[told[:30] for _, told in TITLES])
def test_titles_say_what_the_data_say(draw, told):
    assert finding(draw()) == told


def test_missing_keys_are_not_drawn_and_baselines_are():
    names = [axis.get_title("left").split("\n")[0] for axis in curves.components(CURVE).axes if axis.has_data()]
    assert names == ["reward", "format", "nDCG", "groups without signal", "entropy", "completion length"]
    alone = [{"step": step, "reward": 0.1 * step, "rewards/ndcg/mean": 0.1 * step} for step in range(5)]
    assert len(curves.components(alone).axes) == 1, "a single part is the reward itself"
    (axis,) = curves.learning_curve([], VAL, RAW).axes
    assert axis.get_xlabel() == "training step" and axis.get_ylabel() == "val nDCG@100"
    top = curves.dashboard(CURVE[:3], VAL[:1], RAW, steps=50).axes[0]
    assert top.get_xlim()[1] > 50
    for drawn in (axis, top):
        assert any(list(line.get_ydata()) == [0.23, 0.23] for line in drawn.lines)
        assert len(drawn.patches) == 1, "the band of the baseline"


@pytest.mark.parametrize(
    "draw",
    [figures.loop_picture, lambda: curves.components([]), lambda: plots.methods(METHODS[:1]), lambda: TITLES[13][0]()],
)
def test_every_figure_renders_the_same_bytes_twice_whatever_the_reader_has_set(draw):
    plain = figures.as_bytes(draw())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert figures.as_bytes(draw()) == plain
    data, told = draw()._repr_png_()
    assert data.startswith(b"\x89PNG") and told["alt"] == figures.alt_text(draw())


def test_the_alt_text_says_what_the_figure_says():
    drawn = figures.lines([1, 2], {"mean": [0.1, 0.2], "best": [0.3, 0.4]}, "It   rises", "step", "nDCG")
    assert figures.alt_text(drawn) == "It rises. step. nDCG. mean, best"


def test_figures_need_no_display_and_leave_settings_alone():
    code = (
        "import matplotlib, sys; before = matplotlib.rcParams.copy()\n"
        "from recr1_lite.report import figures; figures.as_bytes(figures.loop_picture())\n"
        "assert matplotlib.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], env=bare)


def panels(figure):
    """Position and first line of the name of each axis."""
    return [(axis.get_position().bounds, axis.get_title("left").split("\n")[0]) for axis in figure.axes]


def test_the_live_view_keeps_every_panel_in_its_place_from_before_the_first_step():
    more = {"gain": 0.01, "distinct": 0.9, "seconds": 12.0}
    full = [row | more | {"kl": 0.001 * row["step"] if row["step"] % 5 == 1 else None} for row in CURVE]
    seen = [panels(curves.dashboard(full[:n], VAL[: 1 + n // 40], {"raw": 0.2}, steps=40)) for n in (1, 2, 7, 40)]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert [name for _, name in seen[0][1:4]] == ["reward", "format", "nDCG"]
    alone = [{key: value for key, value in row.items() if "/" not in key} for row in full]
    before = curves.dashboard([], VAL[:1], steps=40)
    assert panels(before) == panels(curves.dashboard(alone, VAL[:1], steps=40)) and len(before.axes) == 9
    assert all("not measured yet" in axis.get_title("left") for axis in before.axes[1:])


def test_noise_alone_seldom_moves():
    rng = np.random.default_rng(0)
    # 6 steps of noise alone: a 95% t interval speaks up about once in 20, a normal one twice as often
    assert 20 < sum(bool(_ends(rng.normal(size=6))[2]) for _ in range(1000)) < 70


NASTY: dict = {"reward": 0.0, "gain": float("nan"), "entropy": float("inf"), "kl": None, "distinct": "none"}
NASTY |= {"zero_advantage_share": np.float32(1.0), "completion_length": np.int64(0), "seconds": 1e6}


@pytest.mark.parametrize("steps", [0, 2, 300])
@pytest.mark.filterwarnings("error")
def test_nasty_data_are_drawn_without_a_warning(steps):
    curve, val = [{"step": step, **NASTY} for step in range(1, steps + 1)], [{"step": 0, **spot(0.0, 0.0)}]
    base = {"a name " * 12: 0.0, **{f"baseline {n}": spot(0.1 * n) for n in range(8)}}
    whole = curves.dashboard(curve, val, base, steps=300), curves.components(curve)
    for figure in (*whole, curves.learning_curve(curve, val, base)):
        assert figures.as_bytes(figure, "png", 50).startswith(b"\x89PNG")
        width, height = figure.get_size_inches()
        assert width <= 9 and height <= 12


def test_nothing_of_the_live_view_is_cut_off():
    long = {"a rather long name of a baseline " * 2: spot(0.23), "raw": spot(0.2)}
    figure = curves.dashboard([{**row, "gain": -0.025 * row["step"]} for row in CURVE], VAL, long, steps=40)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, box


NAMES = ["socks $3_ or $4_", "Ca$$h", "a_b^c\\d {x}", "_hidden", "灯", "\U0001f600", "x" * 3000, "two\nlines", ""]
NAMES += ["half \ud83d", "bell \x07", "<script>"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_whatever_they_hold(name):
    rows, base = [{"method": name, **spot(0.3)}, *METHODS], {name: spot(0.2)}
    made = [plots.methods(rows), curves.learning_curve(CURVE, VAL, base), curves.dashboard(CURVE, VAL, base)]
    made += [figures.bars({name: 1.0, "b": 2.0}, name, "sold", baseline=(name, 1.0))]
    made += [figures.lines(list(range(1, 13)), {name: [0.1] * 12}, name, "k", "nDCG", log_x=True)]
    for figure in made:
        ElementTree.fromstring(figures.as_bytes(figure))  # a whole SVG
    (label,) = made[-1].axes[0].get_legend_handles_labels()[1]
    assert label.strip() and (len(name) > 60 or not name.isprintable() or not name or label.strip() == name)


def test_the_live_view_draws_the_first_the_validations_and_the_last(monkeypatch):
    shown, clock = Mock(), Mock(return_value=0.0)
    monkeypatch.setattr(curves.time, "monotonic", clock)
    monkeypatch.setattr(curves, "display", shown)
    live, update = curves.LiveCurves(4, {"raw request": 0.2}, every=15), shown.return_value.update
    rows = [{"step": step, "reward": 0.1 * step, "seconds": 1.0} for step in range(1, 5)]
    start, later = [{"step": 0, **spot(0.2)}], [{"step": step, **spot(0.2)} for step in (0, 3)]
    live([], start)
    live(rows[:1], start)
    assert shown.call_count == 1 and not update.called, "a second later there is nothing worth a drawing"
    clock.return_value = 20.0
    for drawn, (steps, val) in enumerate([(2, start), (3, later), (4, later)], start=1):  # time, a validation, the end
        live(rows[:steps], val)
        assert update.call_count == drawn
    assert shown.call_count == 1 and update.call_args[0][0]._repr_png_()[0].startswith(b"\x89PNG")
