"""Does the kit keep its word when it is killed, when the disk is full, when two write at once, when nonsense comes in?

python benchmarks/faults.py [--only PART ...] [--runs 20] [--seed 0] [--out build/faults.json] [--fresh]
python benchmarks/faults.py --table [--out FILE]     the results as Markdown, ready for a README; nothing is run

For Linux; it needs no network and no root, and leaves nothing behind. Each part's result is in --out when it ends; a
part that is there, with the same seed and --runs, is not run again. --runs 20 is the whole campaign; a smaller number
takes as much less of every part. Exit status: 0 no fault, 1 at least one: the first example of each kind is in --out.
"""

import argparse
import importlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
# one thread: the same sums in every process, and a process with no other threads may be forked
SETTINGS = {"OMP_NUM_THREADS": "1", "RECR1_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= SETTINGS if __name__ == "__main__" else {}

from faults_child import Child, Skipped, Tally  # noqa: E402

from recr1_lite import ledger  # noqa: E402
from recr1_lite.common import atomic_write  # noqa: E402
from recr1_lite.report.page import markdown_table  # noqa: E402

ALL = 20  # --runs of the whole campaign, for which these are the counts
KILL = ("faults_files.kill", ALL, "kill -9 at random moments")
PARTS = {
    **{f"kill {name}": KILL for name in ("GRPO", "SFT", "best of n", "demo", "export")},
    "parser": ("faults_input.parser", 1_000_000, "mutated completions, each read in all styles"),
    "environment": ("faults_input.environment", 10_000, "random queries to BM25 on the clothing catalogue"),
    "disk": ("faults_files.disk", 55, "writes of eleven kinds to a disk that gets full"),
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
    known = json.loads(options.out.read_text()) if options.out.exists() else {"parts": {}}
    if options.table:
        print(table(known))
        return 0
    work = Path(tempfile.mkdtemp(prefix="recr1-faults-"))
    try:
        for name in options.only:
            count = max(1, PARTS[name][1] * options.runs // ALL)
            row = known["parts"].get(name, {})
            if not options.fresh and (row.get("asked"), row.get("seed")) == (count, options.seed):
                print(f"{name}: done before, {row['faults']} faults", flush=True)
                continue
            known["parts"][name] = row = one(name, count, options.seed, work)
            place = {"device": ledger.device(), "versions": ledger.versions(), "commit": ledger.commit()}
            known |= place | {"command": shlex.join(["python", "benchmarks/faults.py", *sys.argv[1:]])}
            text = json.dumps(known, indent=1, ensure_ascii=False)
            for path, short in ((work, "WORK"), (ROOT, "."), (Path.home(), "~")):  # no path of this machine
                text = text.replace(str(path), short)
            atomic_write(options.out, text.encode("utf-8", "backslashreplace") + b"\n")
            known = json.loads(options.out.read_text())
            told = f"skipped: {row['skipped']}" if row["skipped"] else f"{row['tried']:,} tried, {row['faults']} faults"
            print(f"{name}: {told}, {row['seconds']} s", flush=True)
    except KeyboardInterrupt:
        print("\nstopped; the parts that ended are kept: call again to go on", file=sys.stderr)
        return 130
    finally:
        Child.end_all()
        shutil.rmtree(work, ignore_errors=True)
    print("", table(known), sep="\n")
    return int(any(known["parts"][name]["faults"] for name in options.only))


def one(name: str, count: int, seed: int, work: Path) -> dict:
    """The row of a part; what breaks the part itself is a fault too."""
    start, tally, skipped = time.perf_counter(), Tally(), ""
    folder = work / name.replace(" ", "-")
    folder.mkdir()
    try:
        module, _, function = PARTS[name][0].partition(".")
        part = getattr(importlib.import_module(module), function)  # loaded on demand: training takes seconds to load
        part(tally, count, seed, folder, *[name.removeprefix("kill ")] * (function == "kill"))
    except Skipped as reason:
        skipped = str(reason)
    except Exception as error:
        tally.add(name, f"the part ended with {type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row = {"asked": count, "seed": seed, "tried": tally.tried, "faults": tally.faults, "first": tally.first}
    return row | {"note": tally.note, "skipped": skipped, "seconds": round(time.perf_counter() - start)}


def table(known: dict) -> str:
    """The results in Markdown, with what they were made on."""
    body = []
    for name, row in ((name, known["parts"][name]) for name in PARTS if name in known["parts"]):
        first = "; ".join(f"{kind}: {fault[:160]}" for kind, fault in row["first"].items())
        told = f"skipped: {row['skipped']}" if row["skipped"] else first or "none"
        what = ", ".join(filter(None, [PARTS[name][2], row["note"]]))
        body.append([name, what, f"{row['tried']:,}", str(row["faults"]), told, str(row["seconds"])])
    versions = ", ".join(f"{package} {version}" for package, version in known.get("versions", {}).items())
    made = f"`{known.get('command')}` on {known.get('device')}; {versions}; commit {known.get('commit')}"
    return "\n".join([*markdown_table(HEAD, body), "", made])


if __name__ == "__main__":
    sys.exit(main())
