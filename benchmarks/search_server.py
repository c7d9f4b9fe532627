"""One search engine for many workers: the engine in this process against `search-server` with 1, 4 and 16 clients.

python benchmarks/search_server.py [--sizes 271 100000] [--clients 1 4 16] [--batches 1 64] [--seconds 3] [--k 100]
[--out build/search_server.json]

271 items are the clothing task, other numbers are generated texts (benchmarks/retrieval_engines.py). The server is a
process of its own, and so is each client, a JSONRetriever that sends one batch after the other. Queries are 5 to 10
words. queries/s is of all clients together; ms is the median of one request. Building counts in no figure.
"""

import argparse
import random
import socket
import time
from pathlib import Path
from statistics import median

import pandas as pd
import retrieval_engines as corpus
from bench import Book, Child, made

from recr1_lite import ledger
from recr1_lite.common import RecR1Error, run_script
from recr1_lite.deploy.scale import SearchService
from recr1_lite.deploy.serve import serving
from recr1_lite.report.page import markdown_table
from recr1_lite.search import BM25Retriever, JSONRetriever
from recr1_lite.tasks import load_task

HEADS = ["items", "queries in a request", "who asks", "queries/s", "ms of a request", "of the engine here"]
DRAWN = 4096  # different queries


def main() -> int:
    options = parser().parse_args()
    if min(*options.sizes, *options.clients, *options.batches, options.k, options.seconds) < 1:
        raise RecR1Error("all numbers must be 1 or more")
    book = Book(options.out)
    try:
        for items in options.sizes:
            measure(options, book, items)
    finally:
        Child.end_all()
    print("", table(list(book.rows.values())), made(book.content), sep="\n\n")
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--sizes", type=int, nargs="+", default=[271, 100_000], help="items of a catalogue")
    top.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="processes that ask")
    top.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="queries in a request")
    top.add_argument("--seconds", type=float, default=3, help="of each cell")
    top.add_argument("--k", type=int, default=100, help="hits per query")
    top.add_argument("--out", type=Path, default=Path("build/search_server.json"), help="the rows")
    return top


def catalogue(items: int) -> tuple[BM25Retriever, list[str]]:
    """An engine, and queries for it."""
    if items == 271:
        task, rng = load_task("clothing"), random.Random(0)
        asked = [request.split() for request in task.train["request"]]
        drawn = [rng.sample(words, rng.randint(5, 10)) for words in rng.choices(asked, k=DRAWN)]
        return BM25Retriever.build(task.items), [" ".join(words) for words in drawn]
    words, starts = corpus.tokens(items, 0)
    texts = [corpus.as_text(words[start:end]) for start, end in zip(starts, starts[1:])]
    frame = pd.DataFrame({"item_id": [str(item) for item in range(items)], "text": texts})
    queries = corpus.draw_queries(words, starts, DRAWN, corpus.SHORT, 0)
    return BM25Retriever.build(frame), [corpus.as_text(query) for query in queries]


def measure(options, book: Book, items: int) -> None:
    """The rows of one catalogue."""
    engine, queries = catalogue(items)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server, url = Child(hold, engine, port), f"http://127.0.0.1:{port}/search"
    for batch in options.batches:
        for clients in (0, *options.clients):  # 0: the engine in this process
            given = queries, options.k, batch, options.seconds
            if clients:
                asking = [Child(asked, JSONRetriever(url), at, *given) for at in range(clients)]
                times = [seconds for child in asking for seconds in child.value(options.seconds + 60)]
            else:
                times = asked(engine, 0, *given)
            row = {"items": items, "batch": batch, "clients": clients, "k": options.k, "device": ledger.device()}
            rate = len(times) * batch / options.seconds
            book.put(f"{items}/{batch}/{clients}", row | {"queries_per_s": rate, "ms": 1000 * median(times)})
    server.end()


def hold(engine, port: int) -> None:
    """In a process of its own: the server."""
    with serving(SearchService(engine).app(), port):
        time.sleep(3600)


def asked(engine, first: int, queries: list[str], k: int, batch: int, seconds: float) -> list[float]:
    """The seconds of each request, batch after batch for `seconds`."""
    engine.search(queries[:batch], k)  # the connection is made
    times, at, end = [], 37 * first, time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        engine.search([queries[(at + place) % len(queries)] for place in range(batch)], k)
        times.append(time.perf_counter() - began)
        at += batch
    return times


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    here, cells = {(row["items"], row["batch"]): row["queries_per_s"] for row in rows if not row["clients"]}, []
    for row in rows:
        who = f"{row['clients']} through the server" if row["clients"] else "the engine in its own process"
        share = f"{row['queries_per_s'] / here[row['items'], row['batch']]:.0%}"
        numbers = f"{row['items']:,}|{row['batch']}|{who}|{row['queries_per_s']:,.0f}|{row['ms']:.2f}|{share}"
        cells.append(numbers.split("|"))
    return "\n".join(markdown_table(HEADS, cells))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
