"""Search engines side by side on one generated catalogue: build, memory, index size, queries/s and recall.

python benchmarks/retrieval.py [--sizes 1000 10000 100000 1000000] [--engines bm25s kit ...] [--queries 50]
[--k 1000] [--limit-s 600] [--out build/retrieval.json] [--again]

Each cell (engine x size) is a process of its own, so that one that runs out of time or memory takes no other
along. Its row is in --out as soon as it is known; a row with the same settings, version and device is not
measured again without --again. Making the catalogue and judging the hits count in no figure. Memory is the
growth of the peak resident size over build and searches, without the texts; mapped files count where they are
read. Queries/s is the median of repeated searches of up to --queries queries of 5 to 10 words (n of them,
fewer where they are slow), tokenising included. A step's share takes the searches of one GRPO step of the
`cpu` profile, all rollouts and raw requests, and the median step of the `cpu` trainings in --ledger.
tantivy and rank_bm25 are needed here only: pip install tantivy==0.27.0 rank_bm25==0.2.2
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import retrieval_corpus as corpus
from retrieval_engines import ENGINES, PIP, missing, version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from retrieval_tables import notes, shares, step_seconds, table  # noqa: E402

from recr1_lite import ledger  # noqa: E402
from recr1_lite.common import atomic_write  # noqa: E402

AT_LEAST, REPEATS = 3, 15  # queries, repeats of a search
FIRST_LINE, LINES = 5, 30  # seconds until a line of progress, and between two
MB = 2**20
NO_MEMORY = ("MemoryError", "memory allocation", "Cannot allocate memory", "failed to map segment")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="catalogues")
    top.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all")
    top.add_argument("--queries", type=int, default=50, help="queries of a cell at most")
    top.add_argument("--k", type=int, default=1000, help="hits a query")
    top.add_argument("--limit-s", type=float, default=600, help="seconds of a cell: reading, build, searches")
    top.add_argument("--limit-gb", type=float, default=12, help="memory that a cell may allocate")
    top.add_argument("--seed", type=int, default=0, help="of the catalogue and the queries")
    top.add_argument("--out", type=Path, default=Path("build/retrieval.json"), help="the rows")
    top.add_argument("--ledger", type=Path, default=ROOT / "data" / "runs" / "ledger.jsonl", help="trainings")
    top.add_argument("--again", action="store_true", help="measure rows that are there already as well")
    top.add_argument("--part", choices=("catalogue", "cell", "judge"), help=argparse.SUPPRESS)  # a child's
    top.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return top


def main() -> int:
    arguments = parser().parse_args()
    if min(*arguments.sizes, arguments.queries) < 1 or arguments.k < 10 or arguments.limit_s <= 0:
        sys.exit("sizes and queries must be 1 or more, k 10 or more, and the limit above 0")
    if arguments.part:
        {"catalogue": make_catalogue, "cell": measure, "judge": judge}[arguments.part](arguments)
        return 0
    for engine in [engine for engine in arguments.engines if missing(engine)]:
        print(f"{engine} is left out, as it is not installed: pip install {PIP.get(engine, 'bm25s')}")
        arguments.engines.remove(engine)
    if not arguments.engines:
        sys.exit("none of the engines asked for is installed, so there is nothing to measure")
    rows = known(arguments.out)
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    for items in arguments.sizes:
        with tempfile.TemporaryDirectory() as work:
            for engine in arguments.engines:
                one_row(arguments, rows, items, engine, Path(work), run)
    wanted = [rows[f"{items}/{engine}"] for items in arguments.sizes for engine in arguments.engines]
    share = shares(wanted, step_seconds(arguments.ledger))
    print("", table(wanted, arguments.k), notes(wanted), share, sep="\n\n")
    return 0


def known(out: Path) -> dict:
    """The rows measured before."""
    try:
        return json.loads(out.read_text())["rows"] if out.exists() else {}
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{out} holds no rows of this benchmark; name another file with --out")


def one_row(arguments, rows: dict, items: int, engine: str, work: Path, run: str) -> None:
    """The row of a cell into `rows` and the file, unless it is there."""
    settings = {
        "items": items,
        "engine": engine,
        "version": version(engine),
        "device": ledger.device(),
        **{name: getattr(arguments, name) for name in ("queries", "k", "seed")},
    }
    name = f"{items}/{engine}"
    if not arguments.again and whole(rows.get(name), settings, arguments):
        print(f"{items:,} items, {engine}: measured before", flush=True)
        return
    if not (work / "texts.txt").exists():
        print(f"{items:,} items: making the catalogue", flush=True)
        if trouble := child(arguments, "catalogue", items, engine, work, None):
            sys.exit(f"the catalogue of {items:,} items could not be made ({trouble}); leave that size out")
    print(f"{items:,} items, {engine}", flush=True)
    (work / "row.json").unlink(missing_ok=True)
    trouble = child(arguments, "cell", items, engine, work, arguments.limit_s)
    row = json.loads((work / "row.json").read_text()) if (work / "row.json").exists() else {}
    if "n_queries" in row:
        trouble = child(arguments, "judge", items, engine, work, None) or trouble
        row = json.loads((work / "row.json").read_text())
    rows[name] = {
        **settings,
        **row,
        "trouble": trouble,
        "limit_s": arguments.limit_s,
        "limit_gb": arguments.limit_gb,
        "run": run,
        "commit": ledger.commit(),
    }
    command = shlex.join(["python", "benchmarks/retrieval.py", *sys.argv[1:]])
    atomic_write(arguments.out, json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def whole(row: dict | None, settings: dict, arguments) -> bool:
    """Whether `row` answers what is asked: the same settings, and finished or stopped by no lower a limit."""
    if row is None or any(row.get(name) != value for name, value in settings.items()):
        return False
    limits = row["limit_s"] >= arguments.limit_s and row["limit_gb"] >= arguments.limit_gb
    return row["trouble"] is None or limits


def child(arguments, part: str, items: int, engine: str, work: Path, limit: float | None) -> str | None:
    """Run one part in a process of its own; None, or in words why it did not finish."""
    same = [
        f"--{name.replace('_', '-')}={getattr(arguments, name)}"
        for name in ("queries", "k", "seed", "limit_s", "limit_gb")
    ]
    command = [sys.executable, __file__, "--part", part, "--sizes", str(items), "--engines", engine, *same]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen([*command, "--work", str(work)], stderr=errors)
        try:
            if not finished(process, part, limit):
                return f"over the limit of {limit:g} s"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    if process.returncode == 0:
        return None
    if any(sign in last for sign in NO_MEMORY):
        return f"over {arguments.limit_gb:g} GB"
    return f"died ({process.returncode}): {last}"


def finished(process: subprocess.Popen, part: str, limit: float | None) -> bool:
    """Wait with a line of progress now and then; False once the limit is over."""
    start, line = time.perf_counter(), FIRST_LINE
    while limit is None or time.perf_counter() - start < limit:
        until = line if limit is None else min(line, limit)
        try:
            process.wait(max(0, until - (time.perf_counter() - start)))
            return True
        except subprocess.TimeoutExpired:
            seconds = f"{time.perf_counter() - start:.0f} s"
            print(f"  {part}: {seconds}" + (f" of {limit:g} s" if limit else ""), flush=True)
            line += LINES
    return False


def make_catalogue(arguments) -> None:
    corpus.write(arguments.work, arguments.sizes[0], arguments.seed)


def asked(arguments, size: tuple[int, int]) -> list[list[int]]:
    return corpus.draw_queries(*corpus.read(arguments.work), arguments.queries, size, arguments.seed)


def measure(arguments) -> None:
    """One cell: row.json after the build and again after the searches, the hits into hits.npz."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.limit_gb * 2**30),) * 2)
    work, k = arguments.work, min(arguments.k, arguments.sizes[0])
    short, long = ([corpus.as_text(query) for query in asked(arguments, size)] for size in (corpus.SHORT, corpus.LONG))
    texts = corpus.texts(work)
    make = ENGINES[arguments.engines[0]]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        folder = Path(folder)
        make(texts[:100], folder / "warm")  # imports and first calls are no part of a build
        before = peak()
        start, cpu = time.perf_counter(), time.process_time()
        engine = make(texts, folder / "index")
        row = {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - cpu}
        row["build_mb"] = (peak() - before) / MB
        atomic_write(work / "row.json", json.dumps(row))
        budget = arguments.limit_s / 10
        hits, row["queries_s"], row["n_queries"] = rate(engine.search, short, k, budget)
        _, row["long_queries_s"], row["n_long"] = rate(engine.search, long, k, budget)
        row["memory_mb"] = (peak() - before) / MB
        if engine.save:
            engine.save(folder / "index")
            row["index_mb"] = size_of(folder / "index") / MB
    np.savez(work / "hits.npz", *[np.asarray(ids, dtype=np.int64) for ids in hits])
    atomic_write(work / "row.json", json.dumps(row))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rate(search, queries: list[str], k: int, budget: float) -> tuple[list, float, int]:
    """Hits, queries/s, and how many queries: as many as three searches of them take `budget` seconds."""
    start = time.perf_counter()
    search(queries[:AT_LEAST], k)  # warms up, and tells how many there is time for
    each = (time.perf_counter() - start) / min(AT_LEAST, len(queries))
    queries = queries[: max(AT_LEAST, int(budget / 3 / each))]
    times = []
    while len(times) < REPEATS and (not times or sum(times) + times[-1] < budget / 2):
        start = time.perf_counter()
        hits = search(queries, k)
        times.append(time.perf_counter() - start)
    return hits, len(queries) / statistics.median(times), len(queries)


def judge(arguments) -> None:
    """The mean recall of the hits of hits.npz at 10 and at k into row.json."""
    row = json.loads((arguments.work / "row.json").read_text())
    queries = asked(arguments, corpus.SHORT)[: row["n_queries"]]
    reference = corpus.Reference(*corpus.read(arguments.work), queries)
    with np.load(arguments.work / "hits.npz") as hits:
        found = [reference.recall(query, hits[f"arr_{at}"], (10, arguments.k)) for at, query in enumerate(queries)]
    row["recall_10"], row["recall_k"] = np.mean(found, axis=0).tolist()
    atomic_write(arguments.work / "row.json", json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())
