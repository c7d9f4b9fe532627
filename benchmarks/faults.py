"""Does the kit keep its word when it is killed, when the disk is full, when two write at once, when nonsense comes in?

python benchmarks/faults.py [--only PART ...] [--runs 20] [--seed 0] [--out build/faults.json] [--fresh]
python benchmarks/faults.py --table [--out FILE]     the results as Markdown, ready for a README; nothing is run

For Linux; it needs no network and no root, and leaves nothing behind. Each part's result is in --out when it ends; a
part that is there, with the same seed and --runs, is not run again. --runs 20 is the whole campaign; a smaller number
takes as much less of every part. Exit status: 0 no fault, 1 at least one: the first example of each kind is in --out.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

# one thread: the same sums in every process, and a process with no other threads may be forked
SETTINGS = {"OMP_NUM_THREADS": "1", "RECR1_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= SETTINGS if __name__ == "__main__" else {}

from bench import Book, Child, Skipped, Tally, made  # noqa: E402

from recr1_lite.common import run_script  # noqa: E402
from recr1_lite.report.page import markdown_table  # noqa: E402

ALL = 20  # --runs of the whole campaign, for which these are the counts
KILL = ("faults_files.kill", ALL, "kill -9 at random moments")
PARTS = {
    **{f"kill {name}": KILL for name in ("GRPO", "SFT", "best of n", "demo", "export")},
    "parser": ("faults_input.parser", 1_000_000, "mutated completions, each read in all styles"),
    "environment": ("faults_input.environment", 10_000, "rules of a bag of words on the clothing catalogue"),
    "disk": ("faults_files.disk", 55, "writes of nine kinds to a disk that gets full"),
    "together": ("faults_files.together", 40, "rounds of 2 or 4 processes on one file or folder"),
    "serve": ("faults_serve.serve", 1_000, "HTTP requests, 50 at once, and Ctrl-C twice"),
}
HEAD = ["part", "what", "n", "faults", "first of each kind", "seconds"]


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    top.add_argument("--runs", type=int, default=ALL, help=f"kills of each part; the rest shrinks with it ({ALL})")
    top.add_argument("--seed", type=int, default=0, help="of all that is random but the clock (0)")
    top.add_argument("--out", type=Path, default=Path("build/faults.json"), help="the results (build/faults.json)")
    top.add_argument("--fresh", action="store_true", help="run parts again that are in --out")
    top.add_argument("--table", action="store_true", help="print the results as Markdown, run nothing")
    options = top.parse_args(argv)
    if options.runs < 1:
        top.error(f"--runs {options.runs} tries nothing; give 1 or more")
    book = Book(options.out, "parts")
    if not options.table:
        run(options, book)
    print("", table(book.content), sep="\n")
    return int(not options.table and any(book.rows[name]["faults"] for name in options.only))


def run(options: argparse.Namespace, book: Book) -> None:
    """The parts that are asked for into the book, but for those that are there."""
    for name in options.only:
        asked = {"asked": max(1, PARTS[name][1] * options.runs // ALL), "seed": options.seed}
        if not options.fresh and asked.items() <= book.rows.get(name, {}).items():
            print(f"{name}: done before, {book.rows[name]['faults']} faults", flush=True)
            continue
        work = Path(tempfile.mkdtemp(prefix="recr1-faults-"))
        try:
            row = asked | one(name, asked["asked"], options.seed, work)
        finally:
            Child.end_all()
            shutil.rmtree(work, ignore_errors=True)
        book.put(name, row, (work, "WORK"))
        told = f"skipped: {row['skipped']}" if row["skipped"] else f"{row['tried']:,} tried, {row['faults']} faults"
        print(f"{name}: {told}, {row['seconds']} s", flush=True)


def one(name: str, count: int, seed: int, work: Path) -> dict:
    """What came of a part; what breaks the part itself is a fault too."""
    start, tally, skipped = time.perf_counter(), Tally(), ""
    try:
        module, _, function = PARTS[name][0].partition(".")
        part = getattr(importlib.import_module(module), function)  # loaded on demand: training takes seconds to load
        part(tally, count, seed, work, *[name.removeprefix("kill ")] * (function == "kill"))
    except Skipped as reason:
        skipped = str(reason)
    except Exception as error:
        tally.add(name, f"the part ended with {type(error).__name__}: {error}")
    return asdict(tally) | {"skipped": skipped, "seconds": round(time.perf_counter() - start)}


def table(known: dict) -> str:
    """The results in Markdown, with what they were made on."""
    body = []
    for name, row in ((name, known["parts"][name]) for name in PARTS if name in known["parts"]):
        first = "; ".join(f"{kind}: {fault[:160]}" for kind, fault in row["first"].items())
        told = f"skipped: {row['skipped']}" if row["skipped"] else first or "none"
        what = ", ".join(filter(None, [PARTS[name][2], row["note"]]))
        body.append([name, what, f"{row['tried']:,}", str(row["faults"]), told, str(row["seconds"])])
    return "\n".join([*markdown_table(HEAD, body), "", made(known)])


if __name__ == "__main__":
    sys.exit(run_script(main))
