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

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import retrieval_corpus as corpus
from retrieval_engines import ENGINES, PIP, missing, version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recr1_lite import ledger  # noqa: E402
from recr1_lite.common import atomic_write  # noqa: E402
from recr1_lite.profiles import PROFILES  # noqa: E402

AT_LEAST, REPEATS = 3, 15  # queries, repeats of a search
MB = 2**20
NO_MEMORY = ("MemoryError", "memory allocation", "Cannot allocate memory", "failed to map segment")
BUSY = 0.9  # share of a core below which a build on one thread was held up by other work
HEADS = ("items", "engine", "build, s", "memory, MB", "index, MB", "queries/s (n)", "x bm25s", "recall@10")
SHARES = "| items | engine | rewrites of 5 to 10 words | messages of 22 words (40 with stopwords) |\n|---|---|---|---|"


def main() -> int:
    options = parser().parse_args()
    if min(*options.sizes, options.queries) < 1 or options.k < 10 or options.limit_s <= 0:
        sys.exit("sizes and queries must be 1 or more, k 10 or more, and the limit above 0")
    if options.work:
        measure(options)
        return 0
    for engine in [engine for engine in options.engines if missing(engine)]:
        print(f"{engine} is left out, as it is not installed: pip install {PIP.get(engine, 'bm25s')}")
        options.engines.remove(engine)
    if not options.engines:
        sys.exit("none of the engines asked for is installed, so there is nothing to measure")
    rows, run = known(options.out), time.strftime("%Y-%m-%d %H:%M:%S")
    for items in options.sizes:
        with tempfile.TemporaryDirectory() as work:
            for engine in options.engines:
                one_row(options, rows, items, engine, Path(work), run)
    wanted = [rows[f"{items}/{engine}"] for items in options.sizes for engine in options.engines]
    share = shares(wanted, step_seconds(options.ledger))
    print("", table(wanted, options.k), notes(wanted), share, sep="\n\n")
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="catalogues")
    top.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all")
    top.add_argument("--queries", type=int, default=50, help="queries of a cell at most")
    top.add_argument("--k", type=int, default=1000, help="hits per query")
    top.add_argument("--limit-s", type=float, default=600, help="seconds of a cell, judging included")
    top.add_argument("--limit-gb", type=float, default=12, help="memory that a cell may allocate")
    top.add_argument("--seed", type=int, default=0, help="of the catalogue and the queries")
    top.add_argument("--out", type=Path, default=Path("build/retrieval.json"), help="the rows")
    top.add_argument("--ledger", type=Path, default=ROOT / "data" / "runs" / "ledger.jsonl", help="trainings")
    top.add_argument("--again", action="store_true", help="measure rows that are there already as well")
    top.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a child's folder: it measures one cell
    return top


def known(out: Path) -> dict:
    """The rows measured before."""
    try:
        return json.loads(out.read_text())["rows"] if out.exists() else {}
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{out} holds no rows of this benchmark; name another file with --out")


def one_row(options, rows: dict, items: int, engine: str, work: Path, run: str) -> None:
    """The row of a cell into `rows` and the file, unless it is there."""
    settings = {name: getattr(options, name) for name in ("queries", "k", "seed")}
    settings |= {"items": items, "engine": engine, "version": version(engine), "device": ledger.device()}
    name, file = f"{items}/{engine}", work / "row.json"
    if not options.again and whole(rows.get(name), settings, options):
        print(f"{items:,} items, {engine}: measured before", flush=True)
        return
    if not (work / "texts.txt").exists():
        print(f"{items:,} items: making the catalogue", flush=True)
        corpus.write(work, items, options.seed)
    print(f"{items:,} items, {engine}", flush=True)
    file.unlink(missing_ok=True)
    trouble = child(options, items, engine, work)
    row = json.loads(file.read_text()) if file.exists() else {}
    limits = {"trouble": trouble, "limit_s": options.limit_s, "limit_gb": options.limit_gb}
    rows[name] = settings | row | limits | {"run": run, "commit": ledger.commit()}
    command = shlex.join(["python", "benchmarks/retrieval.py", *sys.argv[1:]])
    atomic_write(options.out, json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def whole(row: dict | None, settings: dict, options) -> bool:
    """Whether `row` answers what is asked: the same settings, and finished or stopped by no lower a limit."""
    if row is None or any(row.get(name) != value for name, value in settings.items()):
        return False
    limits = row["limit_s"] >= options.limit_s and row["limit_gb"] >= options.limit_gb
    return row["trouble"] is None or limits


def child(options, items: int, engine: str, work: Path) -> str | None:
    """Measure one cell in a process of its own; None, or in words why it did not finish."""
    passed = ("queries", "k", "seed", "limit_s", "limit_gb")
    same = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in passed]
    command = [sys.executable, __file__, "--sizes", str(items), "--engines", engine, *same, "--work", str(work)]
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", timeout=options.limit_s)
    except subprocess.TimeoutExpired:
        return f"over the limit of {options.limit_s:g} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    out_of_memory = any(sign in last for sign in NO_MEMORY)
    return f"over {options.limit_gb:g} GB" if out_of_memory else f"died ({done.returncode}): {last}"


def measure(options) -> None:
    """One cell: row.json after the build, again after the searches, and again with the recall."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.limit_gb * 2**30),) * 2)
    work, k, budget = options.work, min(options.k, options.sizes[0]), options.limit_s / 10
    words = corpus.read(work)
    drawn = [corpus.draw_queries(*words, options.queries, size, options.seed) for size in (corpus.SHORT, corpus.LONG)]
    del words
    short, long = ([corpus.as_text(query) for query in queries] for queries in drawn)
    texts, make = corpus.texts(work), ENGINES[options.engines[0]].make
    with tempfile.TemporaryDirectory(dir=work) as folder:
        folder = Path(folder)
        make(texts[:100], folder / "warm")  # imports and first calls are no part of a build
        before, start, cpu = peak(), time.perf_counter(), time.process_time()
        engine = make(texts, folder / "index")
        row = {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - cpu}
        row["build_mb"] = (peak() - before) / MB
        atomic_write(work / "row.json", json.dumps(row))
        hits, row["queries_s"], row["n_queries"] = rate(engine.search, short, k, budget)
        _, row["long_queries_s"], row["n_long"] = rate(engine.search, long, k, budget)
        row["memory_mb"] = (peak() - before) / MB
        if engine.save:
            engine.save(folder / "index")
            row["index_mb"] = size_of(folder / "index") / MB
    atomic_write(work / "row.json", json.dumps(row))
    reference = corpus.Reference(*corpus.read(work), drawn[0][: row["n_queries"]])
    ids = [np.asarray(ranking, dtype=np.int64) for ranking in hits]
    recalls = [reference.recall(query, ranking, (10, options.k)) for query, ranking in zip(drawn[0], ids)]
    row["recall_10"], row["recall_k"] = np.mean(recalls, axis=0).tolist()
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
    return hits, len(queries) / median(times), len(queries)


def step_seconds(path: Path) -> float | None:
    """Median seconds of a GRPO step over the `cpu` trainings of a ledger; None where it has none."""
    curves = [row["curve"] for row in ledger.Ledger(path).rows("train") if row.get("profile") == "cpu"]
    seconds = [point["seconds"] for curve in curves for point in curve if "seconds" in point]
    return median(seconds) if seconds else None


def table(rows: list[dict], k: int) -> str:
    """The rows in Markdown, queries/s also relative to bm25s on one thread, * if that is of another run."""
    base = {row["items"]: row for row in rows if row["engine"] == "bm25s" and "queries_s" in row}
    heads = [*HEADS, f"recall@{k}"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        other = base.get(row["items"])
        star = "*" if other and other["run"] != row["run"] else ""
        ratio = f"{row['queries_s'] / other['queries_s']:.2g}{star}" if other and "queries_s" in row else "-"
        speed = f"{row['queries_s']:,.3g} ({row['n_queries']})" if "queries_s" in row else row["trouble"]
        figures = [number(row.get(name)) for name in ("build_s", "memory_mb", "index_mb")]
        recalls = [f"{row[name]:.4f}" if name in row else "-" for name in ("recall_10", "recall_k")]
        cells = [f"{row['items']:,}", ENGINES[row["engine"]].label, *figures, speed, ratio, *recalls]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def notes(rows: list[dict]) -> str:
    """What the table leaves open: why a recall is not 1, the device, whether other work was in the way."""
    engines = dict.fromkeys(row["engine"] for row in rows)
    lines = [
        "Recall is against exhaustive float64 scores by Lucene's formula, ties as found; why not 1:",
        *[f"- {ENGINES[engine].label}: {ENGINES[engine].note}" for engine in engines],
        f"Device: {rows[0]['device']}. tantivy builds with all cores. *: relative to another run's.",
    ]
    alone = [row for row in rows if row["engine"] != "tantivy" and "build_s" in row]
    had = sum(row["build_cpu_s"] for row in alone) / max(sum(row["build_s"] for row in alone), 1e-9)
    if alone and had < BUSY:
        lines.append(f"The machine was busy: the builds got {had:.0%} of a core, so the times are too long.")
    return "\n".join(lines)


def shares(rows: list[dict], step: float | None) -> str:
    """Search seconds of a step's queries over the seconds of a step with that catalogue, in Markdown."""
    if step is None:
        return "The ledger has no training of the cpu profile, so a step's share is unknown; pass --ledger."
    prompts, group = PROFILES["cpu"].prompts_per_step, PROFILES["cpu"].group_size
    searches = prompts * group + prompts
    lines = [
        f"A GRPO step took {step:.2f} s (median) with a small catalogue. Its {searches} searches "
        f"({prompts} x {group} rollouts, {prompts} raw requests, all different), and their share:",
        "",
        SHARES,
    ]
    for row in rows:
        cells = []
        for name in ("queries_s", "long_queries_s"):
            seconds = searches / row[name] if name in row else None
            cells.append(f"{seconds:.2g} s, {seconds / (seconds + step):.1%}" if seconds else row["trouble"])
        lines.append(f"| {row['items']:,} | {ENGINES[row['engine']].label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
