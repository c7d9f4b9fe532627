"""Cells of benchmarks/gpu.py: what one is, the JSON file of their rows, and running one in a process of its own."""

import contextlib
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from recr1_lite import ledger
from recr1_lite.common import RecR1Error, atomic_write

FINAL = ("done", "does not fit", "failed")  # measured; "not run" and "unfinished" are looked at again
GB, GIB = 1e9, 2**30  # sizes are told in the one; a card of 12 GB has 12 of the other
GRACE = 45.0  # seconds after the end of its time in which a process may still hand in what it has
ROOT = Path(__file__).resolve().parents[1]
PROBE = """import json, torch
card = torch.cuda.get_device_properties(0)
print(json.dumps({"name": card.name, "memory": card.total_memory, "capability": [card.major, card.minor]}))"""
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1"}


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

    @property
    def log(self) -> str:
        return f"logs/{self.name.replace('/', '-')}.log"


def machine(dry: bool) -> Machine:
    """What is here. A child looks at the GPU, so that this process never holds memory on it."""
    import torch

    if not torch.cuda.is_available():
        return Machine(dry, False, ledger.device())
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    if probe.returncode:
        words = " ".join(probe.stderr.split())[-200:]
        raise RecR1Error(f"the GPU cannot be used ({words}); run `python -m recr1_lite doctor`")
    card = json.loads(probe.stdout.splitlines()[-1])
    return Machine(dry, True, card["name"], card["memory"], tuple(card["capability"]), smi("driver_version"))


def smi(query: str) -> str | None:
    """One line of nvidia-smi; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def missing(names: Iterable[str]) -> str | None:
    """The first of these packages that is not installed."""
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def command() -> str:
    return shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])


class Book:
    """The JSON file: what it was measured on, and a row per cell. Written whole after each cell."""

    def __init__(self, path: Path, here: Machine, work: Path, fresh: Iterable[str] = ()):
        self.path, self.work, self.content = path, work, read(path) if path.exists() else {"cells": {}}
        for name in [name for name in self.rows if name.partition("/")[0] in fresh]:
            del self.rows[name]
        head = {"dry_run": here.dry, "device": here.name}
        for key, value in head.items():
            if self.rows and self.content.get(key, value) != value:
                measured = f"{path} was measured with {key} {self.content[key]!r} and this is {value!r}"
                raise RecR1Error(f"{measured}; give another --out, or --fresh")
        card = {"driver": here.driver, "memory": here.memory, "capability": list(here.capability)}
        self.content |= head | card | {"versions": ledger.versions(), "commit": ledger.commit(), "command": command()}

    @property
    def rows(self) -> dict[str, dict]:
        return self.content["cells"]

    def finished(self, cell: Cell, retry: bool = False) -> bool:
        """Whether the cell was measured with these settings, to an end, and what it made is there."""
        row = self.rows.get(cell.name)
        if row is None or row["state"] not in FINAL or (retry and row["state"] == "failed"):
            return False
        same = row["settings"] == json.loads(json.dumps(cell.settings))
        return same and (row["state"] != "done" or not cell.artifact or (self.work / cell.artifact).is_dir())

    def put(self, cell: Cell, row: dict, seconds: float = 0.0) -> dict:
        """Write the row of a cell. Raises RecR1Error where the file cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        origin = {"seconds": round(seconds, 1), "time": now, "command": command(), "commit": ledger.commit()}
        self.rows[cell.name] = {"state": "done", **row, "settings": cell.settings, **origin}
        text = json.dumps(self.content | {"updated": now}, indent=1)
        for folder, name in ((self.work, "WORK"), (ROOT, "."), (Path.home(), "~")):  # no path of this machine
            text = text.replace(json.dumps(str(folder))[1:-1], name)
        self.content = json.loads(text)
        atomic_write(self.path, text + "\n")
        return self.rows[cell.name]


def read(path: Path) -> dict:
    """The content of a results file. Raises RecR1Error for anything else."""
    try:
        content = json.loads(path.read_text())
        if all(row["state"] and "settings" in row for row in content["cells"].values()):
            return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise RecR1Error(f"{path} holds no results of benchmarks/gpu.py; name another file")


def run_part(book: Book, module: str, here: Machine, minutes: float, retry: bool = False) -> bool:
    """Measure the cells of a part that are not finished; whether all are now. The rows go to the book one by one."""
    source, ran = importlib.import_module(module), False
    stop_at = time.time() + 60 * minutes - min(GRACE, 6 * minutes)
    for cell in source.cells(here):
        if book.finished(cell, retry):
            print(f"{cell.name}: measured before", flush=True)
            continue
        row, started = without_running(book, source, cell, here), time.time()
        if row is None:
            if ran and stop_at - time.time() < cell.seconds:  # the first one always gets its chance
                print(f"the {minutes:g} minutes are used up before {cell.name}", flush=True)
                return False
            print(f"{cell.name}: about {cell.seconds:.0f} s", flush=True)
            row = run_cell(book.work, cell, here, stop_at, module)
            if row["state"] == "unfinished" and not ran and not row.get("goes_on"):  # it had all the time there is
                row |= {"state": "failed", "why": f"{row['why']}; give --minutes more than {minutes:g}"}
            ran = True
        row = book.put(cell, row, time.time() - started)
        why = f" ({row['why']})" if "why" in row else ""
        print(f"{cell.name}: {row['state']}{why}, {row['seconds']:.0f} s", flush=True)
        if row["state"] == "unfinished":
            return False
    return True


def without_running(book: Book, source, cell: Cell, here: Machine) -> dict | None:
    """The row of a cell that cannot run here, or need not; None for one that is to be run."""
    if cell.cuda and not here.cuda:
        return {"state": "not run", "why": "needs CUDA"}
    if name := missing(cell.needs):
        return {"state": "not run", "why": f"{name} is not installed"}
    if cell.after and book.rows.get(cell.after, {}).get("state") != "done":
        return {"state": "not run", "why": f"{cell.after} is not done"}
    return source.implied(cell, book.rows, here) if hasattr(source, "implied") else None


def run_cell(work: Path, cell: Cell, here: Machine, stop_at: float, module: str) -> dict:
    """The row that a process of its own makes of a cell. A dry run on a CPU stays in this process, to be quick."""
    order = {"module": module, "settings": cell.settings, "stop_at": stop_at, "work": str(work)}
    log = work / cell.log
    log.parent.mkdir(parents=True, exist_ok=True)
    with environment(cell), tempfile.TemporaryDirectory(dir=work, prefix="cell-") as folder, log.open("w") as words:
        if here.dry and not here.cuda and cell.part != "environment":
            with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
                return attempt(order)
        atomic_write(Path(folder) / "order.json", json.dumps(order))
        ended, answer = wait(folder, work, words, stop_at), Path(folder) / "row.json"
        if answer.exists():
            return json.loads(answer.read_text())
    if ended is None:
        return {"state": "unfinished", "why": "the process was stopped at the end of the minutes"}
    return {"state": "failed", "why": f"the process ended with status {ended}; its last words are in WORK/{cell.log}"}


def wait(folder: str, work: Path, words, stop_at: float) -> int | None:
    """Start the process of a cell and wait for it; its exit status, or None where its time ended."""
    script = [sys.executable, str(Path(__file__).with_name("gpu.py")), "--child", folder]
    # in the work folder: unsloth writes the trainers that it compiles into the folder where it runs
    process = subprocess.Popen(script, cwd=work, stdout=words, stderr=subprocess.STDOUT)
    try:
        return process.wait(timeout=max(0.0, stop_at + GRACE - time.time()))
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a loop ends its step and keeps everything
            process.wait(timeout=60)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def environment(cell: Cell) -> Iterator[None]:
    """What a cell's process meets in its environment: no telemetry, its backend, and no network for the speed part."""
    before = dict(os.environ)
    os.environ |= QUIET | ({"HF_HUB_OFFLINE": "1"} if cell.part == "speed" else {})  # the others may fetch the model
    os.environ.pop("RECR1_BACKEND", None)
    if cell.backend:
        os.environ["RECR1_BACKEND"] = cell.backend
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def child(folder: Path) -> None:
    """A cell in this process: its order is in the folder, and its row goes there."""
    row = attempt(json.loads((folder / "order.json").read_text()))
    atomic_write(folder / "row.json", json.dumps(row))


def attempt(order: dict) -> dict:
    """The row of a cell, or what went wrong, as a row."""
    try:
        source = importlib.import_module(order["module"])
        return {"state": "done"} | source.measure(order["settings"], Path(order["work"]), order["stop_at"])
    except Exception as error:
        traceback.print_exc()
        return failure(error)


def failure(error: Exception) -> dict:
    """A row for what went wrong: too little memory is a result, a missing package is not."""
    words = " ".join(str(error).split())[:400] or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in words.lower():
        return {"state": "does not fit", "why": words[:200]}
    if isinstance(error, ModuleNotFoundError):
        return {"state": "not run", "why": f"{error.name} is not installed"}
    if isinstance(error, RecR1Error):
        return {"state": "failed", "why": words}
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {"state": "failed", "why": f"{type(error).__name__}: {words} at {Path(last.filename).name}:{last.lineno}"}


def forget(work: Path, parts: list[str]) -> None:
    """Take away what an earlier run of these parts left to go on from."""
    for path in [path for part in parts if part in ("loop", "correctness") for path in work.glob(f"{part}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
