"""Cells of benchmarks/gpu.py: what one is, and how its row is made, in a process of its own and inside the minutes."""

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from bench import Child

from recr1_lite import ledger
from recr1_lite.common import RecR1Error, fault
from recr1_lite.policy import backend

FINAL = ("done", "does not fit", "failed")  # measured; "not run" and "unfinished" are looked at again
GB, GIB = 1e9, 2**30  # sizes are told in the one; a card of 12 GB has 12 of the other
GRACE = 45.0  # seconds from the Ctrl-C at the end of the minutes, in which a process may hand in what it has
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1"}


class Machine(NamedTuple):
    """Where the cells run. memory: bytes; 0 without CUDA. dry: tiny sizes, and nothing that needs CUDA on a CPU."""

    dry: bool
    cuda: bool
    name: str
    memory: int = 0
    capability: tuple[int, int] = (0, 0)

    @property
    def dtype(self) -> str:
        """16 bits as the GPU has them; float32 on a CPU."""
        return "float32" if not self.cuda else "bfloat16" if self.capability >= (8, 0) else "float16"


class Cell(NamedTuple):
    """One measurement: measure(settings, work folder) gives its row.

    name: part/what. settings: plain data, all that it depends on. needs: packages. after: the cell that has to be done
    first. backend: for RECR1_BACKEND. cuda: cannot run without. resumes: stopped, it goes on in the next call.
    """

    name: str
    measure: Callable[[dict, Path], dict]
    settings: dict
    needs: tuple[str, ...] = ()
    after: str = ""
    backend: str = "transformers"
    cuda: bool = False
    resumes: bool = False

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]


def machine(dry: bool) -> Machine:
    """What is here. A child looks at the GPU, so that this process never holds memory on it."""
    import torch

    if not torch.cuda.is_available():
        return Machine(dry, False, ledger.device())
    found, error, _ = Child(backend.machine, method="spawn").result()
    if error:
        raise RecR1Error(f"the GPU cannot be used ({error}); run `python -m recr1_lite doctor`")
    return Machine(dry, *found)


def why_not(cell: Cell, rows: dict[str, dict], here: Machine) -> str:
    """Why a cell cannot run, "" where it can."""
    missing = [name for name in cell.needs if find_spec(name) is None]
    if cell.cuda and not here.cuda:
        return "needs CUDA"
    if missing:
        return f"{missing[0]} is not installed"
    return f"{cell.after} is not done" if cell.after and rows.get(cell.after, {}).get("state") != "done" else ""


def run_cell(cell: Cell, here: Machine, work: Path, stop_at: float) -> dict:
    """The row that a process of its own makes of a cell. A dry run on a CPU stays in this process, to be quick."""
    log = work / "logs" / f"{cell.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    order = (cell.measure, cell.settings, work)
    # the speed part needs no network; unsloth writes the trainers that it compiles into the folder where it runs
    setting = QUIET | {"RECR1_BACKEND": cell.backend} | ({"HF_HUB_OFFLINE": "1"} if cell.part == "speed" else {})
    with patch.dict(os.environ, setting), contextlib.chdir(work):
        if here.dry and not here.cuda and cell.part != "environment":
            with log.open("w") as words, contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
                return attempt(*order)
        child, late = Child(attempt, *order, method="spawn", words=log), False
    try:
        late = not child.answer.poll(max(0.0, stop_at - time.time()))
        if late:
            child.interrupt()
    except KeyboardInterrupt:
        child.interrupt()  # a loop ends its step and keeps everything
        child.result(60)
        raise
    row, error, _ = child.result(GRACE)
    if late and (row is None or row["state"] == "failed"):
        return {"state": "unfinished", "why": "the minutes were used up"}
    return row or {"state": "failed", "why": f"{error}; its last words are in WORK/logs/{log.name}"}


def attempt(measure: Callable, settings: dict, work: Path) -> dict:
    """The row of a cell, or what went wrong, as a row: too little memory is a result, a missing package is not."""
    try:
        return {"state": "done"} | measure(settings, work)
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())[:400]
        if type(error).__name__ == "OutOfMemoryError" or "out of memory" in words.lower():
            return {"state": "does not fit", "why": words[:200]}
        if isinstance(error, ModuleNotFoundError):
            return {"state": "not run", "why": f"{error.name} is not installed"}
        return {"state": "failed", "why": words if isinstance(error, RecR1Error) else fault(error)}


def finished(cell: Cell, row: dict[str, Any] | None, retry: bool) -> bool:
    """Whether `row` is what the cell asks for, measured to an end."""
    again = retry and row is not None and row["state"] == "failed"
    return row is not None and row["settings"] == cell.settings and row["state"] in FINAL and not again
