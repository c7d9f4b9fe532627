"""Speed and memory of one step on Qwen2.5 shapes with random weights: which cells, in which order, and what they imply.

The cells that say most come first, because the time on a GPU may end before the list does. What a cell does is in
`gpu_steps.py`.
"""

from __future__ import annotations

from pathlib import Path

import gpu_models
import gpu_steps
from gpu_book import GB, GIB, Cell, Machine
from gpu_correctness import weights_cell

CAPS = (8, 12, 16, 24)  # GiB, as cards are sold
SIDES = ("ours", "stock", "transformers")
BASE = ("torch", "transformers", "peft", "trl", "bitsandbytes")
REAL_SIZES = dict(prompts=4, prompt_tokens=256, completion_tokens=512, four_bit=True)
DRY_SIZES = dict(prompts=2, prompt_tokens=24, completion_tokens=8, four_bit=True)
SMALLER = 2  # rollouts of stock's micro-batch in the cells that ask how far it can shrink


def cells(here: Machine) -> list[Cell]:
    """Weights just before they are needed; then the 3B shape at group 8, its caps, its SFT, and what follows."""
    if here.dry:
        return [
            weights_cell("speed", gpu_models.TINY, here.dtype, here),
            *(step_cell(here, gpu_models.TINY, "grpo", side, 4) for side in SIDES),
            *(step_cell(here, gpu_models.TINY, "sft", side, 4) for side in ("ours", "stock")),
            step_cell(here, gpu_models.TINY, "grpo", "ours", 4, cap=CAPS[0]),
        ]
    big, middle, small = gpu_models.SPEED_SHAPES
    found = [step_cell(here, big, "grpo", side, 8) for side in SIDES]
    found += [step_cell(here, big, "grpo", side, 8, cap=cap) for cap in CAPS for side in SIDES]
    found += [step_cell(here, big, "sft", side, 8) for side in SIDES]
    found += [step_cell(here, shape, "grpo", side, 8) for shape in (middle, small) for side in SIDES]
    found += [step_cell(here, big, "grpo", "stock", 8, micro=SMALLER, cap=cap) for cap in (None, *CAPS)]
    found += [step_cell(here, shape, "grpo", side, 12) for shape in (big, middle, small) for side in SIDES]
    found += [step_cell(here, shape, "sft", side, 8) for shape in (middle, small) for side in SIDES]
    found += [
        step_cell(here, shape, "grpo", side, group, cap=cap)
        for shape, group in ((middle, 8), (small, 8), (big, 12), (middle, 12), (small, 12))
        for cap in CAPS
        for side in SIDES
    ]
    found += [
        step_cell(here, shape, "sft", side, 8, cap=cap)
        for shape in (big, middle, small)
        for cap in CAPS
        for side in SIDES
    ]
    done, ordered = set(), []
    for cell in found:
        if cell.settings["shape"] not in done:
            done.add(cell.settings["shape"])
            ordered.append(weights_cell("speed", cell.settings["shape"], here.dtype, here, 90))
        ordered.append(cell)
    return ordered


def step_cell(
    here: Machine, shape: str, trainer: str, side: str, group: int, cap: int | None = None, micro: int | None = None
) -> Cell:
    """A cell of steps. Without a cap: one step to warm up and two that count; with one: a single step, does it fit?"""
    settings = dict(
        kind="steps",
        shape=shape,
        trainer=trainer,
        side=side,
        group=group,
        micro=micro or group,
        cap=cap,
        steps=1 if cap else 3,
        dtype=here.dtype,
        **(DRY_SIZES if here.dry else REAL_SIZES),
    )
    short = shape.rpartition("/")[2].lower().removesuffix("-instruct")
    size = f"{'g' if trainer == 'grpo' else 'b'}{group}"  # a group of rollouts, a batch of targets
    name = f"speed/{short}/{trainer}/{size}" + (f"/micro{micro}" if micro else "") + f"/{side}"
    backend = "unsloth" if side == "ours" else "transformers"
    needs = (*BASE, "unsloth") if side == "ours" else BASE
    if here.dry and not here.cuda:
        backend, needs = "transformers", BASE
    return Cell(name + (f"/{cap}GB" if cap else ""), settings, guess(settings), needs, backend=backend, cuda=bool(cap))


def guess(settings: dict) -> float:
    """Seconds that a cell may take: only to see whether it still has a place in this call."""
    size = {"3B": 3.0, "1.5B": 1.5, "0.5B": 0.5}.get(settings["shape"].rpartition("Qwen2.5-")[2].partition("-")[0], 0.1)
    step = 25 + 15 * size if settings["trainer"] == "grpo" else 5 + 2 * size
    compiling = 60 if settings["side"] == "ours" else 0  # unsloth's kernels, in the first step
    return 30 + 5 * size + compiling + settings["steps"] * step


def implied(cell: Cell, rows: dict[str, dict], here: Machine) -> dict | None:
    """The row of a capped cell that need not run: a smaller cap was enough, or the card itself is smaller."""
    cap = cell.settings.get("cap")
    if not cap or not here.cuda:
        return None
    if cap * GIB > 1.1 * here.memory:
        return {"state": "not run", "why": f"the card has {here.memory / GIB:.0f} GB"}
    base = cell.name.rpartition("/")[0]
    for smaller in [other for other in CAPS if other < cap]:
        row = rows.get(f"{base}/{smaller}GB")
        if row and row["state"] == "done":
            return {
                "state": "done",
                "implied": True,
                "why": f"it fits in {smaller} GB",
                "peak_allocated": row["peak_allocated"],
                "peak_reserved": row["peak_reserved"],
            }
    return None


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell."""
    if settings["kind"] == "weights":
        return gpu_models.make(settings["shape"], settings["dtype"], work)
    return gpu_steps.measure(settings, work, stop_at)


def plan(cells_: list[Cell]) -> str:
    """The cells of a real run with the memory that the estimator gives each, as a table."""
    lines = ["| cell | estimated peak, GB | in |", "|---|---|---|"]
    for cell in cells_:
        if cell.settings["kind"] == "steps" and not cell.settings["cap"]:
            found = gpu_steps.estimated(cell.settings)
            guess_ = f"{found['peak'] / GB:.1f} | {found['phase']}" if found else "not known | -"
            lines.append(f"| {cell.name} | {guess_} |")
    return "\n".join(lines)
