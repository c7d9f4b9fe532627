"""Search engines side by side on one generated catalogue: build, memory, index size, queries/s and recall.

python benchmarks/retrieval.py [--sizes 1000 10000 100000 1000000] [--engines bm25s kit ...] [--queries 50]
[--k 1000] [--limit-s 600] [--out build/retrieval.json] [--again]

Each cell (engine x size) is a process of its own, so that one that runs out of time takes no other along. Its row is in
--out as soon as it is known; a row with the same settings, version and device is not measured again without --again.
Making the catalogue and judging the hits count in no figure. Memory is the growth of the peak resident size over build
and searches, without the texts; mapped files count where they are read. Queries/s is the median of repeated searches of
up to --queries queries of 5 to 10 words (n of them, fewer where they are slow), tokenising included. A step's share
takes the searches of one GRPO step of the `cpu` profile, all rollouts and raw requests, and the median step of the
`cpu` trainings in --ledger.
tantivy and rank_bm25 are needed here only: pip install tantivy==0.27.0 rank_bm25==0.2.2
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import retrieval_engines as corpus
from bench import ROOT, Book, Child

from recr1_lite import ledger
from recr1_lite.common import RecR1Error, run_script
from recr1_lite.profiles import PROFILES
from recr1_lite.report.page import markdown_table

PIP = "pip install tantivy==0.27.0 rank_bm25==0.2.2"
AT_LEAST, REPEATS = 3, 15  # queries, repeats of a search
MB = 2**20
HEADS = ["items", "engine", "build, s", "memory, MB", "index, MB", "queries/s (n)", "x bm25s", "recall@10"]
SHARES = ["items", "engine", "rewrites of 5 to 10 words", "messages of 22 words (40 with stopwords)"]


def main() -> int:
    options = parser().parse_args()
    if min(*options.sizes, options.queries) < 1 or options.k < 10 or options.limit_s <= 0:
        raise RecR1Error("sizes and queries must be 1 or more, k 10 or more, and the limit above 0")
    for name in [name for name in options.engines if not corpus.version(name)]:
        print(f"{name} is left out, as it is not installed: {PIP}")
        options.engines.remove(name)
    book, wanted = Book(options.out), []
    for items in options.sizes:
        with tempfile.TemporaryDirectory() as work:
            for engine in options.engines:
                one_row(options, book, items, engine, Path(work))
                wanted.append(book.rows[f"{items}/{engine}"])
    print("", table(wanted, options.k), shares(wanted, step_seconds(options.ledger)), sep="\n\n")
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="catalogues")
    top.add_argument("--engines", nargs="+", choices=corpus.ENGINES, default=list(corpus.ENGINES), help="default: all")
    top.add_argument("--queries", type=int, default=50, help="queries of a cell at most")
    top.add_argument("--k", type=int, default=1000, help="hits per query")
    top.add_argument("--limit-s", type=float, default=600, help="seconds of a cell, judging included")
    top.add_argument("--seed", type=int, default=0, help="of the catalogue and the queries")
    top.add_argument("--out", type=Path, default=Path("build/retrieval.json"), help="the rows")
    top.add_argument("--ledger", type=Path, default=ROOT / "data" / "runs" / "ledger.jsonl", help="trainings")
    top.add_argument("--again", action="store_true", help="measure rows that are there already as well")
    return top


def one_row(options, book: Book, items: int, engine: str, work: Path) -> None:
    """The row of a cell into the book, unless the same settings are there, finished or stopped by no lower a limit."""
    settings = {name: getattr(options, name) for name in ("queries", "k", "seed")}
    settings |= {"items": items, "engine": engine, "version": corpus.version(engine), "device": ledger.device()}
    name, old = f"{items}/{engine}", book.rows.get(f"{items}/{engine}", {})
    if settings.items() <= old.items() and not options.again:
        if old["trouble"] is None or old["limit_s"] >= options.limit_s:
            print(f"{items:,} items, {engine}: measured before", flush=True)
            return
    if not (work / "texts.txt").exists():
        print(f"{items:,} items: making the catalogue", flush=True)
        corpus.write(work, items, options.seed)
    print(f"{items:,} items, {engine}: measuring", flush=True)
    child = Child(measure, settings | {"limit_s": options.limit_s}, work, method="spawn")
    row, trouble, _ = child.result(options.limit_s)
    book.put(name, settings | (row or {}) | {"limit_s": options.limit_s, "trouble": trouble or None})


def measure(settings: dict, work: Path) -> dict:
    """The figures of one cell."""
    number, seed, budget = settings["queries"], settings["seed"], settings["limit_s"] / 10
    k, words = min(settings["k"], settings["items"]), corpus.read(work)
    drawn = [corpus.draw_queries(*words, number, size, seed) for size in (corpus.SHORT, corpus.LONG)]
    del words
    short, long = ([corpus.as_text(query) for query in queries] for queries in drawn)
    texts, make, folder = corpus.texts(work), corpus.ENGINES[settings["engine"]][1], work / settings["engine"]
    make(texts[:100], folder / "warm")  # imports and first calls are no part of a build
    before, start = peak(), time.perf_counter()
    search, save = make(texts, folder / "index")
    row = {"build_s": time.perf_counter() - start}
    hits, row["queries_s"], row["n_queries"] = rate(search, short, k, budget)
    _, row["long_queries_s"], row["n_long"] = rate(search, long, k, budget)
    row["memory_mb"] = (peak() - before) / MB
    if save:
        save(folder / "index")
        row["index_mb"] = sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file()) / MB
    reference = corpus.Reference(*corpus.read(work), drawn[0][: row["n_queries"]])
    ids = [np.asarray(ranking, dtype=np.int64) for ranking in hits]
    recalls = [reference.recall(query, ranking, (10, settings["k"])) for query, ranking in zip(drawn[0], ids)]
    row["recall_10"], row["recall_k"] = np.mean(recalls, axis=0).tolist()
    return row


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
    """The rows in Markdown, queries/s also relative to bm25s on one thread."""
    base, body = {row["items"]: row.get("queries_s") for row in rows if row["engine"] == "bm25s"}, []
    for row in rows:
        other, own = base.get(row["items"]), row.get("queries_s")
        speed = f"{own:,.3g} ({row['n_queries']})" if own else row["trouble"]
        figures = [number(row.get(name)) for name in ("build_s", "memory_mb", "index_mb")]
        recalls = [f"{row[name]:.4f}" if name in row else "-" for name in ("recall_10", "recall_k")]
        ratio = f"{own / other:.2g}" if own and other else "-"
        body.append([f"{row['items']:,}", corpus.ENGINES[row["engine"]][0], *figures, speed, ratio, *recalls])
    return "\n".join(markdown_table([*HEADS, f"recall@{k}"], body))


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def shares(rows: list[dict], step: float | None) -> str:
    """Search seconds of a step's queries over the seconds of a step with that catalogue, in Markdown."""
    if step is None:
        return "The ledger has no training of the cpu profile, so a step's share is unknown; pass --ledger."
    prompts, group = PROFILES["cpu"].prompts_per_step, PROFILES["cpu"].group_size
    searches, body = prompts * group + prompts, []
    for row in rows:
        seconds = [searches / row[name] if name in row else None for name in ("queries_s", "long_queries_s")]
        told = [f"{took:.2g} s, {took / (took + step):.1%}" if took else row["trouble"] for took in seconds]
        body.append([f"{row['items']:,}", corpus.ENGINES[row["engine"]][0], *told])
    said = (
        f"A GRPO step took {step:.2f} s (median) with a small catalogue. Its {searches} searches ({prompts} x {group} "
    )
    said += f"rollouts, {prompts} raw requests, all different), and their share:"
    return "\n".join([said, "", *markdown_table(SHARES, body)])


if __name__ == "__main__":
    try:
        sys.exit(run_script(main))
    finally:
        Child.end_all()
