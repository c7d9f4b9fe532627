"""The closed loop on the real 135M model: GRPO, SFT and rejection SFT at one budget, sealed test, capability.

It is `comparison.compare_methods` with a profile derived from `cpu`; a cell's row holds the ledger rows that it made.
At the end of the minutes the process gets a Ctrl-C: the kit stops after the running step, keeps everything, and goes on
from there in the next call.
"""

from dataclasses import asdict
from pathlib import Path

from gpu_cells import Cell, Machine
from gpu_models import REAL, TINY, profile_of

METHODS = ["GRPO", "SFT", "rejection SFT"]
LARGE = 20e9  # bytes of a card that takes the whole step in one backward pass
REAL_SIZES = dict(steps=300, prompts_per_step=32, group_size=12, max_completion_tokens=3, n_val=200, n_test=400)
REAL_SIZES |= dict(batch_size=200)
DRY_SIZES = dict(steps=2, prompts_per_step=2, group_size=4, max_completion_tokens=4, n_val=4, n_test=4, batch_size=8)
DRY_SIZES |= dict(sft_batch=4, best_of=2, validate_every=1, n_capability=1)


def cells(here: Machine) -> list[Cell]:
    """float32 on transformers is the run that counts; a shorter one in 16 bits shows that unsloth learns too."""
    sizes = DRY_SIZES if here.dry else REAL_SIZES | dict(micro_batch=None if here.memory > LARGE else 96)
    model = TINY if here.dry else REAL
    main = dict(run="methods", model=model, dtype="float32", methods=METHODS, sizes=sizes)
    fewer = dict(steps=2, micro_batch=8) if here.dry else dict(steps=100, micro_batch=96)
    short = dict(run="unsloth", model=model, dtype=here.dtype, methods=["GRPO"], sizes=sizes | fewer)
    return [
        Cell("loop/methods", methods, main, resumes=True),
        Cell("loop/capability", capability, main, after="loop/methods"),
        Cell("loop/unsloth", methods, short, ("unsloth",), backend="unsloth", cuda=True, resumes=True),
    ]


def methods(settings: dict, work: Path) -> dict:
    from recr1_lite.recipes.comparison import compare_methods

    profile, out, ledger = world(settings, work)
    compare_methods(profile, out, ledger=ledger, methods=settings["methods"])
    return told(settings, profile, ledger, ("train", "eval", "compare"))


def capability(settings: dict, work: Path) -> dict:
    from recr1_lite.recipes.comparison import check_capability

    profile, out, ledger = world(settings, work)
    check_capability(profile, out, settings["methods"], ledger=ledger)
    return told(settings, profile, ledger, ("capability", "capability_compare"))


def world(settings: dict, work: Path) -> tuple:
    from recr1_lite.ledger import Ledger

    ledger = Ledger(work / "loop" / f"{settings['run']}.jsonl").bind(command="benchmarks/gpu.py")
    return profile_of("cpu", settings, work), work / "loop" / settings["run"], ledger


def told(settings: dict, profile, ledger, kinds: tuple[str, ...]) -> dict:
    from recr1_lite.report.rows import select

    rows = [row for row in select(ledger)[1] if row["kind"] in kinds]
    return {"profile": asdict(profile) | {"model": settings["model"]}, "rows": rows}
