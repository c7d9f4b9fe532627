"""Running the cells of benchmarks/gpu.py: a process each, inside the minutes of the part, whatever one of them does."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_book import GB, Book, Cell, Machine, failure, missing

from recr1_lite.common import atomic_write, bar

GRACE = 45.0  # seconds after the end of its time in which a process may still hand in what it has
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "UNSLOTH_DISABLE_STATISTICS": "1",
}


def part(book: Book, module: str, here: Machine, minutes: float, retry: bool = False) -> bool:
    """Measure the cells of a part that are not finished; whether all are now. The rows go to the book one by one."""
    source, ran = importlib.import_module(module), False
    stop_at = time.time() + 60 * minutes - min(GRACE, 6 * minutes)
    for cell in source.cells(here):
        if book.finished(cell, retry):
            print(f"{cell.name}: measured before", flush=True)
            continue
        row = without_running(book, source, cell, here)
        if row is None:
            if ran and stop_at - time.time() < cell.seconds:  # the first one always gets its chance
                print(f"the {minutes:g} minutes are used up before {cell.name}", flush=True)
                return False
            started = time.time()
            row = run_cell(book.work, cell, here, stop_at, module)
            if row["state"] == "unfinished" and not ran and not row.get("goes_on"):  # it had all the time there is
                row |= {"state": "failed", "why": f"{row['why']}; give --minutes more than {minutes:g}"}
            ran, row = True, book.put(cell, row, time.time() - started)
        else:
            row = book.put(cell, row)
        print(f"{cell.name}: {line(row)}", flush=True)
        if row["state"] == "unfinished":
            return False
    return True


def without_running(book: Book, source, cell: Cell, here: Machine) -> dict | None:
    """The row of a cell that cannot run here, or need not; None for one that is to be run."""
    if cell.cuda and not here.cuda:
        return {"state": "not run", "why": "needs CUDA"}
    if name := missing(cell.needs):
        return {"state": "not run", "why": f"{name} is not installed"}
    if cell.after and (book.row(cell.after) or {}).get("state") != "done":
        return {"state": "not run", "why": f"{cell.after} is not done"}
    return source.implied(cell, book.rows, here) if hasattr(source, "implied") else None


def run_cell(work: Path, cell: Cell, here: Machine, stop_at: float, module: str) -> dict:
    """The row that a process of its own makes of a cell. A dry run on a CPU stays in this process, to be quick."""
    order = {"module": module, "settings": cell.settings, "stop_at": stop_at}
    if here.dry and not here.cuda and cell.part != "environment":
        log = log_of(cell, work)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            environment(cell),
            log.open("w") as words,
            contextlib.redirect_stdout(words),
            contextlib.redirect_stderr(words),
        ):
            return attempt(order, work)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="cell-") as folder:
        atomic_write(Path(folder) / "order.json", json.dumps(order | {"work": str(work)}))
        with environment(cell):
            ended = wait(cell, Path(folder), work, stop_at)
        answer = Path(folder) / "row.json"
        if answer.exists():
            return json.loads(answer.read_text())
    if ended is None:
        return {"state": "unfinished", "why": "the process was stopped at the end of the minutes"}
    why = f"the process ended with status {ended}; its last words are in WORK/logs/{log_of(cell, work).name}"
    return {"state": "failed", "why": why}


def wait(cell: Cell, folder: Path, work: Path, stop_at: float) -> int | None:
    """Start the process of a cell and wait for it; its exit status, or None where its time ended."""
    log = log_of(cell, work)
    log.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("gpu.py")
    with log.open("wb") as words:
        # in the work folder: unsloth writes the trainers that it compiles into the folder where it runs
        child_ = subprocess.Popen(
            [sys.executable, str(script), "--child", str(folder)], cwd=work, stdout=words, stderr=subprocess.STDOUT
        )
        try:
            with bar(total=round(cell.seconds), desc=cell.name, unit="s") as shown:
                while time.time() < stop_at + GRACE:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return child_.wait(timeout=1)
                    shown.update(1)
            return None
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a loop ends its step and keeps everything
                child_.wait(timeout=60)
            raise
        finally:
            if child_.poll() is None:
                child_.kill()
                child_.wait()


def log_of(cell: Cell, work: Path) -> Path:
    return work / "logs" / (cell.name.replace("/", "-") + ".log")


@contextlib.contextmanager
def environment(cell: Cell):
    """What a cell's process finds in its environment: no network, no telemetry, its backend."""
    wanted = QUIET | {"RECR1_BACKEND": cell.backend}
    if cell.part != "speed":
        wanted.pop("HF_HUB_OFFLINE")  # the kit's own model and data may be fetched
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if value})
    if not cell.backend:
        os.environ.pop("RECR1_BACKEND", None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def child(folder: Path) -> None:
    """A cell in this process: its order is in the folder, and its row goes there."""
    order = json.loads((folder / "order.json").read_text())
    atomic_write(folder / "row.json", json.dumps(attempt(order, Path(order["work"]))))


def attempt(order: dict, work: Path) -> dict:
    """The row of a cell, or what went wrong, as a row."""
    import traceback

    try:
        source = importlib.import_module(order["module"])
        return {"state": "done"} | source.measure(order["settings"], work, order["stop_at"])
    except Exception as error:
        traceback.print_exc()
        return failure(error)


def forget(work: Path, parts: list[str]) -> None:
    """Take away what an earlier run of these parts left to go on from."""
    if "loop" in parts:
        for path in work.glob("loop*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "correctness" in parts:
        shutil.rmtree(work / "correctness", ignore_errors=True)


def line(row: dict) -> str:
    """A row in a few words."""
    words = row["state"] if row["state"] != "not run" else f"not run: {row['why']}"
    if row["state"] in ("failed", "unfinished"):
        words += f" ({row['why']})"
    if "tokens_per_second" in row:
        words += f", {row['tokens_per_second']:.0f} tokens/s"
    if row.get("peak_allocated"):
        words += f", peak {row['peak_allocated'] / GB:.1f} GB"
    for key, form in (("relative", "gradients {:.1e} apart (relative)"), ("max_nats", "at most {:.2g} nats apart")):
        if key in row:
            words += ", " + form.format(row[key])
    return f"{words}, {row['seconds']:.0f} s"


def real_plan() -> str:
    """The cells that a real run on a GPU of 24 GB would measure, with the memory that the estimator gives them."""
    import gpu_speed

    example = Machine(False, True, "a GPU", 24 * 2**30, (8, 0))
    counts = [
        f"{len(importlib.import_module(f'gpu_{name}').cells(example))} of {name}"
        for name in ("environment", "correctness", "loop", "speed")
    ]
    return "\n".join(
        [
            f"a real run measures {', '.join(counts)}, as far as the card allows. Cells without a cap:",
            "",
            gpu_speed.plan(gpu_speed.cells(example)),
        ]
    )
