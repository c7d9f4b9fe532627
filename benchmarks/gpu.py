"""Verify and measure the GPU path on this machine, without a network: one command, as often as it asks for.

python benchmarks/gpu.py --out benchmarks/results/gpu.json [--parts environment,correctness,loop,speed] [--minutes 8]

Four parts, made of small cells; each cell is a process of its own, and its row is in the JSON file as soon as it is
measured. A part stops before its minutes are over; called again with the same --out, what is measured is skipped and
the rest goes on. Exit status: 0 all measured, 1 some cells failed, 2 nothing could be done, 3 call again.
--dry-run takes tiny models and a few steps through the same code on whatever is here.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
if __name__ == "__main__" and "--child" not in sys.argv:
    # this process only counts what the others measure; unsloth would take memory on the GPU here too
    os.environ["RECR1_BACKEND"] = "transformers"

import gpu_cells  # noqa: E402
import gpu_tables  # noqa: E402

from recr1_lite.common import RecR1Error, runs_folder  # noqa: E402

MODULES = {name: f"gpu_{name}" for name in ("environment", "correctness", "loop", "speed")}
DONE, FAILED, REFUSED, AGAIN, STOPPED = 0, 1, 2, 3, 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--out", type=Path, help="the JSON file (default: build/gpu.json; a dry run: a temporary folder)")
    top.add_argument("--parts", default=",".join(MODULES), help="which, between commas (default: all)")
    top.add_argument("--minutes", type=float, default=8.0, help="of each part in this call (default: 8)")
    top.add_argument("--work", type=Path, help="folder for models and checkpoints, up to 11 GB (default: in runs)")
    top.add_argument("--dry-run", action="store_true", help="tiny sizes on whatever device is here")
    top.add_argument("--fresh", action="store_true", help="measure the parts anew, whatever --out holds of them")
    top.add_argument("--retry", action="store_true", help="measure cells that failed again")
    top.add_argument("--tables", type=Path, metavar="JSON", help="print the tables of a finished file, measure nothing")
    top.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # one cell: the folder of its order
    return top


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        return run(options)
    except RecR1Error as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept: call again with the same --out to go on", file=sys.stderr)
        return STOPPED


def run(options: argparse.Namespace) -> int:
    if options.child:
        gpu_cells.child(options.child)
        return DONE
    if options.tables:
        print(gpu_tables.report(gpu_cells.read(options.tables)))
        return DONE
    parts = [name.strip() for name in options.parts.split(",") if name.strip()]
    if not parts or set(parts) - set(MODULES) or options.minutes <= 0:
        given = f"--parts {options.parts} --minutes {options.minutes:g}"
        raise RecR1Error(f"{given}: take some of {', '.join(MODULES)}, and more than 0 minutes")
    out, work = places(options)
    here = gpu_cells.machine(options.dry_run)
    if not here.cuda and not here.dry:
        trial = "`python benchmarks/gpu.py --dry-run` takes the same code through tiny sizes"
        raise RecR1Error(f"there is no CUDA GPU here, so there is nothing to measure; {trial}")
    book = gpu_cells.Book(out, here, work, parts if options.fresh else ())
    if options.fresh:
        gpu_cells.forget(work, parts)
    print(f"{here.name}; results in {out}", flush=True)
    left = [part for part in parts if not gpu_cells.run_part(book, MODULES[part], here, options.minutes, options.retry)]
    print("", gpu_tables.report(book.content), sep="\n")
    if left:
        again = ["--dry-run"] * here.dry + ["--out", str(out), "--work", str(work), "--parts", ",".join(left)]
        print(f"\nnot finished: {', '.join(left)}; call again: python benchmarks/gpu.py {' '.join(again)}")
        return AGAIN
    failed = [name for name, row in book.rows.items() if row["state"] == "failed" and name.partition("/")[0] in parts]
    print(f"\n{len(failed)} cells failed: {', '.join(failed)}" if failed else "\nall parts are finished", flush=True)
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


if __name__ == "__main__":
    started = time.perf_counter()
    status = main()
    if "--child" not in sys.argv and status in (DONE, FAILED, AGAIN):
        print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    sys.exit(status)
