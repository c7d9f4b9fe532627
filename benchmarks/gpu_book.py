"""The results of benchmarks/gpu.py: cells, and the JSON file that holds what was measured, cell by cell."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from recr1_lite import ledger
from recr1_lite.common import RecR1Error, atomic_write

FINAL = ("done", "does not fit", "failed")  # measured; "not run" and "unfinished" are looked at again
GB, GIB = 1e9, 2**30  # sizes are told in the one; a card of 12 GB has 12 of the other
PROBE = """import json, torch
card = torch.cuda.get_device_properties(0)
print(json.dumps({"name": card.name, "memory": card.total_memory, "capability": [card.major, card.minor]}))"""


class Machine(NamedTuple):
    """Where the cells run. memory: bytes; 0 without CUDA. dry: tiny sizes, and nothing that needs CUDA on a CPU."""

    dry: bool
    cuda: bool
    name: str
    memory: int = 0
    capability: tuple[int, int] = (0, 0)
    driver: str | None = None

    @property
    def dtype(self) -> str:
        """16 bits as the GPU has them; float32 on a CPU."""
        return "float32" if not self.cuda else "bfloat16" if self.capability >= (8, 0) else "float16"


class Cell(NamedTuple):
    """One measurement, made by a process of its own.

    name: part/what. settings: plain data, all that the measurement depends on. seconds: a guess. needs: packages.
    after: the cell that has to be done first. backend: for RECR1_BACKEND, "" leaves it unset. cuda: cannot run without.
    artifact: a folder in the work folder that has to be there for the cell to count as finished.
    """

    name: str
    settings: dict
    seconds: float = 60.0
    needs: tuple[str, ...] = ("torch", "transformers", "peft", "trl")
    after: str = ""
    backend: str = "transformers"
    cuda: bool = False
    artifact: str = ""

    @property
    def part(self) -> str:
        return self.name.partition("/")[0]


def machine(dry: bool) -> Machine:
    """What is here. A child looks at the GPU, so that this process never holds memory on it."""
    import torch

    if not torch.cuda.is_available():
        return Machine(dry, False, ledger.device())
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    if found.returncode:
        words = " ".join(found.stderr.split())[-200:]
        raise RecR1Error(f"the GPU cannot be used ({words}); run `python -m recr1_lite doctor`")
    card = json.loads(found.stdout.splitlines()[-1])
    return Machine(dry, True, card["name"], card["memory"], tuple(card["capability"]), smi("driver_version"))


def smi(query: str) -> str | None:
    """One line of nvidia-smi; None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def missing(names) -> str | None:
    """The first of these packages that is not installed."""
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def command() -> str:
    return shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])


class Book:
    """The JSON file: what it was measured on, and a row a cell. Written whole after each cell."""

    def __init__(self, path: Path, here: Machine, work: Path, fresh: tuple[str, ...] = ()):
        self.path, self.work, self.content = path, work, read(path) if path.exists() else {"cells": {}}
        rows = self.content["cells"]
        for name in [name for name in rows if name.partition("/")[0] in fresh]:
            del rows[name]
        head = {"dry_run": here.dry, "device": here.name}
        for key, value in head.items():
            if rows and self.content.get(key, value) != value:
                raise RecR1Error(
                    f"{path} was measured with {key} {self.content[key]!r} and this is {value!r}; give "
                    "another --out, or --fresh"
                )
        self.content |= head | {
            "driver": here.driver,
            "memory": here.memory,
            "capability": list(here.capability),
            "versions": ledger.versions(),
            "commit": ledger.commit(),
            "command": command(),
        }

    def row(self, name: str) -> dict | None:
        return self.content["cells"].get(name)

    @property
    def rows(self) -> dict[str, dict]:
        return self.content["cells"]

    def finished(self, cell: Cell, retry: bool = False) -> bool:
        """Whether the cell was measured with these settings, to an end, and what it made is there."""
        row = self.row(cell.name)
        if row is None or row["state"] not in FINAL or (retry and row["state"] == "failed"):
            return False
        same = row["settings"] == json.loads(json.dumps(cell.settings))
        return same and (row["state"] != "done" or not cell.artifact or (self.work / cell.artifact).is_dir())

    def put(self, cell: Cell, row: Mapping, seconds: float = 0.0) -> dict:
        """Write the row of a cell. Raises RecR1Error where the file cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows[cell.name] = {
            "state": "done",
            **row,
            "settings": cell.settings,
            "seconds": round(seconds, 1),
            "time": now,
            "command": command(),
            "commit": ledger.commit(),
        }
        self.content = self.without_paths(self.content | {"updated": now})
        try:
            atomic_write(self.path, json.dumps(self.content, indent=1) + "\n")
        except OSError as problem:
            raise RecR1Error(f"{self.path} cannot be written ({problem.strerror}); give another --out") from problem
        return self.rows[cell.name]

    def without_paths(self, content: dict) -> dict:
        """The same with this machine's folders called by what they are."""
        text = json.dumps(content)
        for folder, name in ((self.work, "WORK"), (Path(__file__).resolve().parents[1], "."), (Path.home(), "~")):
            text = text.replace(json.dumps(str(folder))[1:-1], name)
        return json.loads(text)


def read(path: Path) -> dict:
    """The content of a results file. Raises RecR1Error for anything else."""
    try:
        found = json.loads(path.read_text())
        if all(row["state"] and "settings" in row for row in found["cells"].values()):
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise RecR1Error(f"{path} holds no results of benchmarks/gpu.py; name another file")


def failure(error: BaseException) -> dict:
    """A row for what went wrong: too little memory is a result, a missing package is not."""
    words = " ".join(str(error).split())[:400] or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in words.lower():
        return {"state": "does not fit", "why": words[:200]}
    if isinstance(error, ModuleNotFoundError):
        return {"state": "not run", "why": f"{error.name} is not installed"}
    if isinstance(error, RecR1Error):
        return {"state": "failed", "why": words}
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
    return {"state": "failed", "why": f"{type(error).__name__}: {words}{where}"}
