"""Verify and measure the GPU path on this machine, without a network: one command, as often as it asks for.

python benchmarks/gpu.py --out benchmarks/results/gpu.json [--parts environment,correctness,loop,speed] [--minutes 8]

Four parts, made of small cells; each cell is a process of its own, and its row is in the JSON file as soon as it is
measured. A part stops when its minutes are over; called again with the same --out, what is measured is skipped and
the rest goes on. Exit status: 0 all measured, 1 some cells failed, 2 nothing could be done, 3 call again.
--dry-run takes tiny models and a few steps through the same code on whatever is here.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # this process only counts what others measure; unsloth would take memory on the GPU here
    os.environ["RECR1_BACKEND"] = "transformers"

import gpu_correctness  # noqa: E402
import gpu_loop  # noqa: E402
import gpu_speed  # noqa: E402
import gpu_tables  # noqa: E402
from bench import ROOT, Book, Child  # noqa: E402
from gpu_cells import GRACE, Machine, finished, machine, run_cell, why_not  # noqa: E402

from recr1_lite.common import RecR1Error, run_script, runs_folder  # noqa: E402

PARTS = {  # the cells of each part on a machine
    "environment": gpu_correctness.environment_cells,
    "correctness": gpu_correctness.cells,
    "loop": gpu_loop.cells,
    "speed": gpu_speed.cells,
}
DONE, FAILED, AGAIN = 0, 1, 3


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--out", type=Path, help="the JSON file (default: build/gpu.json; a dry run: a temporary folder)")
    top.add_argument("--parts", default=",".join(PARTS), help="which, between commas (default: all)")
    top.add_argument("--minutes", type=float, default=8.0, help="of each part in this call (default: 8)")
    top.add_argument("--work", type=Path, help="folder for models and checkpoints, up to 11 GB (default: in runs)")
    top.add_argument("--dry-run", action="store_true", help="tiny sizes on whatever device is here")
    top.add_argument("--fresh", action="store_true", help="measure the parts anew, whatever --out holds of them")
    top.add_argument("--retry", action="store_true", help="measure cells that failed again")
    top.add_argument("--tables", type=Path, metavar="JSON", help="print the tables of a finished file, measure nothing")
    return top


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return run_script(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    if options.tables:
        print(gpu_tables.report(Book(options.tables, "cells").content))
        return DONE
    parts = [name.strip() for name in options.parts.split(",") if name.strip()]
    if not parts or set(parts) - set(PARTS) or options.minutes <= 0:
        given = f"--parts {options.parts} --minutes {options.minutes:g}"
        raise RecR1Error(f"{given}: take some of {', '.join(PARTS)}, and more than 0 minutes")
    out, work = places(options)
    here = machine(options.dry_run)
    if not here.cuda and not here.dry:
        trial = "`python benchmarks/gpu.py --dry-run` takes the same code through tiny sizes"
        raise RecR1Error(f"there is no CUDA GPU here, so there is nothing to measure; {trial}")
    book = Book(out, "cells", dry_run=here.dry, device=here.name, memory=here.memory)
    for part in parts if options.fresh else ():
        shutil.rmtree(work / part, ignore_errors=True)
        book.content["cells"] = {name: row for name, row in book.rows.items() if not name.startswith(f"{part}/")}
    for key in ("dry_run", "device"):
        if book.rows and book.content.get(key) != book.facts[key]:
            was = f"{out} was measured with {key} {book.content.get(key)!r} and this is {book.facts[key]!r}"
            raise RecR1Error(f"{was}; give another --out, or --fresh")
    print(f"{here.name}; results in {out}", flush=True)
    left = [part for part in parts if not run_part(book, part, here, work, options)]
    print("", gpu_tables.report(book.content), sep="\n")
    if left:
        again = ["--dry-run"] * here.dry + ["--out", str(out), "--work", str(work), "--parts", ",".join(left)]
        print(f"\nnot finished: {', '.join(left)}; call again: python benchmarks/gpu.py {shlex.join(again)}")
        return AGAIN
    failed = [name for name, row in book.rows.items() if row["state"] == "failed" and name.partition("/")[0] in parts]
    print(f"\n{len(failed)} cells failed: {', '.join(failed)}" if failed else "\nall parts are finished")
    return FAILED if failed else DONE


def places(options: argparse.Namespace) -> tuple[Path, Path]:
    """The JSON file and the work folder. Raises RecR1Error for a dry run among the results."""
    if not options.dry_run:
        out = (options.out or Path("build/gpu.json")).resolve()
        return out, (options.work or runs_folder() / f"gpu-{out.stem}").resolve()
    out = (options.out or Path(tempfile.mkdtemp(prefix="recr1-gpu-")) / "gpu.json").resolve()
    if (ROOT / "benchmarks" / "results") in out.parents:
        raise RecR1Error("a dry run measures nothing, so it does not go to benchmarks/results; give another --out")
    return out, (options.work or out.with_name(out.stem + "-work")).resolve()


def run_part(book: Book, part: str, here: Machine, work: Path, options: argparse.Namespace) -> bool:
    """Measure the cells of a part that are not finished; whether all are now. The rows go to the book one by one."""
    first, stop_at = True, time.time() + 60 * options.minutes - min(GRACE, 6 * options.minutes)
    for cell in PARTS[part](here):
        if finished(cell, book.rows.get(cell.name), options.retry):
            print(f"{cell.name}: measured before", flush=True)
            continue
        reason, started = why_not(cell, book.rows, here), time.time()
        row = {"state": "not run", "why": reason}
        if not reason:
            if not first and started > stop_at:
                print(f"the {options.minutes:g} minutes are used up before {cell.name}", flush=True)
                return False
            row = run_cell(cell, here, work, stop_at)
            if row["state"] == "unfinished" and first and not cell.resumes:  # it had all the time there is
                row |= {"state": "failed", "why": f"{row['why']}; give --minutes more than {options.minutes:g}"}
            first = False
        row |= {"settings": cell.settings, "seconds": round(time.time() - started, 1)}
        book.put(cell.name, row, (work, "WORK"))
        print(f"{cell.name}: {row['state']}, {row['seconds']:.0f} s {row.get('why', '')}", flush=True)
        if row["state"] == "unfinished":
            return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        Child.end_all()
