"""The closed loop on the real 135M model: GRPO, SFT and rejection SFT at one budget, sealed test, capability.

It is `comparison.compare_methods` with a profile derived from `cpu`; a cell's row holds the ledger rows that it made.
At the end of the minutes the process sends itself a Ctrl-C: the kit stops after the running step, keeps everything,
and goes on from there in the next call.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import gpu_models
from gpu_cells import Cell, Machine

METHODS = ("GRPO", "SFT", "rejection SFT")
SECONDS_TO_STOP = 30.0  # for the running step, a validation and the checkpoint
LARGE = 20e9  # bytes of a card that takes the whole step in one backward pass
REAL_SIZES = dict(steps=300, prompts_per_step=32, group_size=12, max_completion_tokens=5, n_val=200, n_test=400)
REAL_SIZES |= dict(batch_size=200)
DRY_SIZES = dict(steps=2, prompts_per_step=2, group_size=4, max_completion_tokens=4, n_val=4, n_test=4, batch_size=8)
DRY_SIZES |= dict(sft_batch=4, best_of=2, validate_every=1, n_capability=1)
UNSLOTH = dict(needs=("torch", "transformers", "peft", "trl", "unsloth"), backend="unsloth", cuda=True)


def cells(here: Machine) -> list[Cell]:
    """float32 on transformers is the run that counts; a shorter one in 16 bits shows that unsloth learns too."""
    sizes = DRY_SIZES if here.dry else REAL_SIZES | dict(micro_batch=None if here.memory > LARGE else 96)
    fewer = dict(steps=2, micro_batch=8) if here.dry else dict(steps=100, micro_batch=96)
    model = gpu_models.TINY if here.dry else gpu_models.REAL
    main = dict(kind="methods", run="loop", model=model, methods=METHODS, sizes=sizes | dict(dtype="float32"))
    short = main | dict(run="loop-unsloth", methods=("GRPO",), sizes=sizes | fewer | dict(dtype=here.dtype))
    return [
        *([gpu_models.weights_cell("loop", model, "float32")] if here.dry else []),
        Cell("loop/methods", main),
        Cell("loop/capability", main | dict(kind="capability"), after="loop/methods"),
        Cell("loop/unsloth", short, **UNSLOTH),
    ]


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell; its state is "unfinished" where the time ended first."""
    if settings["kind"] == "weights":
        return gpu_models.make(settings["shape"], settings["dtype"], work)
    if trouble := gpu_models.cached():
        return {"state": "not run", "why": trouble}
    from recr1_lite.common import RecR1Error
    from recr1_lite.ledger import Ledger
    from recr1_lite.profiles import PROFILES
    from recr1_lite.recipes.comparison import check_capability, compare_methods
    from recr1_lite.report.rows import select

    model = gpu_models.model_source(settings["model"], "float32", work)
    profile = replace(PROFILES["cpu"], name="benchmark", model=model, **settings["sizes"])
    out, ledger = work / settings["run"], Ledger(work / f"{settings['run']}.jsonl").bind(command="benchmarks/gpu.py")
    capability = settings["kind"] == "capability"
    with stopping_at(stop_at - SECONDS_TO_STOP) as stopped:
        try:
            if capability:
                check_capability(profile, out, list(settings["methods"]), ledger=ledger)
            else:
                compare_methods(profile, out, ledger=ledger, methods=settings["methods"])
        except (KeyboardInterrupt, RecR1Error) as error:
            if not stopped and isinstance(error, RecR1Error):
                raise
            why = "the minutes were used up" if capability else progress(out, profile)
            return {"state": "unfinished", "goes_on": not capability, "why": why}
    rows = [row for row in select(ledger)[1] if row["kind"].startswith("capability") == capability]
    return {"state": "done", "profile": asdict(profile) | {"model": settings["model"]}, "rows": rows}


@contextmanager
def stopping_at(moment: float) -> Iterator[list[bool]]:
    """A Ctrl-C to this process at `moment` (time.time()); yields a list that is not empty from then on."""
    asked: list[bool] = []

    def ask() -> None:
        asked.append(True)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell that starts a job in the background has it ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(max(0.1, moment - time.time()), ask)
    timer.daemon = True
    timer.start()
    try:
        yield asked
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def progress(out: Path, profile) -> str:
    """Where a stopped run is."""
    from recr1_lite.train.loop import last_checkpoint

    last = {folder.name: last_checkpoint(folder) for folder in sorted(out.glob("*")) if folder.is_dir()}
    places = [f"{name} at step {point.name.rpartition('-')[2]}" for name, point in last.items() if point]
    place = ", ".join(places) or "before the first checkpoint"
    return f"the minutes were used up ({place}; GRPO takes {profile.steps} steps)"
