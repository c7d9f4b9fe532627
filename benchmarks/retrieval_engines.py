"""What benchmarks/retrieval.py searches: a catalogue drawn by seed, exhaustive scores to judge by, and the engines.

Words follow the Zipf-Mandelbrot law p(r) ~ 1 / (r + OFFSET) over VOCABULARY words: OFFSET stands for the words that a
list of stopwords takes out. Lengths are log-normal, MEDIAN words in the middle. A share REPEAT of a text's words
repeats an earlier one of it (clothing task: 14% of a text's first 50 stems do). No text means anything: the figures are
about speed, memory and agreement, never about relevance.

An engine is made of texts and a folder, tokenising included, without stopwords and stemmer. It gives two functions:
search(queries, k) takes texts and gives for each the places of its hits in the catalogue, best first; save(folder)
writes its index, None where it has no form on disk.
"""

import os
from importlib import metadata
from pathlib import Path

import numpy as np

VOCABULARY, OFFSET, REPEAT = 200_000, 33, 0.12
MEDIAN, SPREAD, LONGEST = 48, 0.4, 400  # words of a text; the standard deviation of their logarithm
SHORT, LONG = (5, 10), (22, 22)  # words of a query: a rewrite, and what stopwords leave of a 40-word message
K1, B = 1.2, 0.75
CLOSE = 1e-6  # relative: what float32 loses over the words of a query counts as a tie


def tokens(items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers of all texts in a row (int32), and where each text starts (items + 1, int64)."""
    rng = np.random.default_rng([seed, items])
    lengths = np.exp(rng.normal(np.log(MEDIAN), SPREAD, items)).round()
    lengths = lengths.clip(LONG[1], LONGEST).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    drawn = rng.random(starts[-1], dtype=np.float32)
    words = (OFFSET * (1 + VOCABULARY / OFFSET) ** drawn - OFFSET).astype(np.int32)
    repeats = np.flatnonzero(rng.random(starts[-1], dtype=np.float32) < REPEAT)
    first = np.repeat(starts[:-1], lengths)[repeats]  # where the text of each repeated word starts
    words[repeats] = words[first + (rng.random(len(repeats)) * (repeats - first)).astype(np.int64)]
    return words.clip(0, VOCABULARY - 1), starts


def draw_queries(words: np.ndarray, starts: np.ndarray, number: int, size: tuple[int, int], seed: int):
    """A list of `number` lists of word numbers, each `size[0]` to `size[1]` places of one random text."""
    rng = np.random.default_rng([seed, len(starts), *size])
    chosen = rng.integers(0, len(starts) - 1, number)
    counts = rng.integers(size[0], size[1] + 1, number)
    return [
        rng.choice(words[starts[text] : starts[text + 1]], count, replace=False).tolist()
        for text, count in zip(chosen, counts)
    ]


def as_text(numbers) -> str:
    """Word numbers as a text that every engine here splits into the same words."""
    return " ".join(f"w{number}" for number in numbers)


def write(folder: Path, items: int, seed: int) -> None:
    """The catalogue into `folder`: tokens.npy, starts.npy, and texts.txt with one text a line."""
    words, starts = tokens(items, seed)
    np.save(folder / "tokens.npy", words)
    np.save(folder / "starts.npy", starts)
    with (folder / "texts.txt").open("w", encoding="ascii") as file:
        for start, end in zip(starts, starts[1:]):
            file.write(as_text(words[start:end].tolist()) + "\n")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and starts that `write` left in `folder`."""
    return np.load(folder / "tokens.npy"), np.load(folder / "starts.npy")


def texts(folder: Path) -> list[str]:
    """The texts that `write` left in `folder`, read line by line so that no second copy is ever held."""
    with (folder / "texts.txt").open(encoding="ascii") as file:
        return [line.rstrip("\n") for line in file]


class Reference:
    """Exhaustive BM25 in plain NumPy and float64: every text is scored, none is skipped.

    A word of the query, each time it is in it, adds idf * tf / (tf + k1 * (1 - b + b * |d| / avgdl)), with idf =
    ln(1 + (N - df + 0.5) / (df + 0.5)): "Lucene (accurate)" in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020.
    Only the words of `queries` are kept.
    """

    def __init__(self, words: np.ndarray, starts: np.ndarray, queries: list[list[int]]):
        lengths = np.diff(starts)
        self.items = len(lengths)
        self.saturation = K1 * (1 - B + B * lengths / lengths.mean())
        asked = np.zeros(VOCABULARY, bool)
        asked[[word for query in queries for word in query]] = True
        kept = np.flatnonzero(asked[words])
        kept = kept[np.argsort(words[kept], kind="stable")]
        self.words = words[kept]
        self.documents = np.searchsorted(starts, kept, side="right") - 1

    def scores(self, query: list[int]) -> np.ndarray:
        """The score of every text, float64, shape (items,)."""
        total = np.zeros(self.items)
        for word in query:
            begin, end = np.searchsorted(self.words, [word, word + 1])
            counts = np.bincount(self.documents[begin:end], minlength=self.items)
            df = np.count_nonzero(counts)
            total += np.log1p((self.items - df + 0.5) / (df + 0.5)) * counts / (counts + self.saturation)
        return total

    def recall(self, query: list[int], ids: np.ndarray, cutoffs) -> list[float]:
        """Share of the best k texts among the first k of `ids`, for each k of `cutoffs`.

        A text that scores what the k-th best scores counts as found, whichever of the tied ones it is. Where
        fewer than k texts hold a word of the query, all those are asked for.
        """
        scores, shares = self.scores(query), []
        for k in cutoffs:
            wanted = min(k, np.count_nonzero(scores))
            least = np.partition(scores, self.items - wanted)[self.items - wanted] * (1 - CLOSE)
            found = np.unique(ids[:k])
            shares.append(min(np.count_nonzero(scores[found] >= least), wanted) / wanted)
        return shares


def bm25s_engine(texts: list[str], folder: Path):
    """bm25s as its README uses it, on NumPy and one thread."""
    import bm25s

    def split(texts: list[str], ids: bool):
        return bm25s.tokenize(texts, stopwords=None, stemmer=None, return_ids=ids, show_progress=False)

    def search(queries: list[str], k: int):
        options = dict(n_threads=0, backend_selection="numpy", show_progress=False)
        return index.retrieve(split(queries, ids=False), k=k, **options).documents

    index = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    index.index(split(texts, ids=True), show_progress=False)
    return search, lambda folder: index.save(folder, show_progress=False)


def kit_engine(texts: list[str], folder: Path):
    """`recr1_lite.search.engines.BM25Retriever`, what the reward calls: ids as text, ties in one order."""
    import pandas as pd

    from recr1_lite.search.engines import BM25Retriever

    items = pd.DataFrame({"item_id": [str(place) for place in range(len(texts))], "text": texts})
    retriever = BM25Retriever.build(items, k1=K1, b=B, stopwords=None, stemmer=None)
    return lambda queries, k: [hits.ids for hits in retriever.search(queries, k)], retriever.save


def tantivy_engine(texts: list[str], folder: Path):
    """tantivy: an index on disk, written by all cores, searched by one; the words of a query joined by OR."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("place", fast=True)
    builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    schema = builder.build()
    folder.mkdir(parents=True, exist_ok=True)
    index = tantivy.Index(schema, path=str(folder))
    writer = index.writer(heap_size=128_000_000, num_threads=min(os.cpu_count() or 1, 8))
    for place, text in enumerate(texts):
        document = tantivy.Document()
        document.add_unsigned("place", place)
        document.add_text("text", text)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher, should = index.searcher(), tantivy.Occur.Should

    def one(words: list[str], k: int) -> list[int]:
        parts = [(should, tantivy.Query.term_query(schema, "text", word, "freq")) for word in words]
        hits = searcher.search(tantivy.Query.boolean_query(parts), k, count=False).hits
        return searcher.fast_field_values("place", [address for _, address in hits])

    return lambda queries, k: [one(query.split(), k) for query in queries], lambda folder: None  # it is on disk


def rank_bm25_engine(texts: list[str], folder: Path):
    """rank_bm25's BM25Okapi, plain Python: every text is looked up for every word of a query."""
    from rank_bm25 import BM25Okapi

    places, index = range(len(texts)), BM25Okapi([text.split() for text in texts], k1=K1, b=B)
    return lambda queries, k: [index.get_top_n(query.split(), places, k) for query in queries], None


def version(name: str) -> str:
    """What is measured, package and version; "" where it is not installed."""
    package = "bm25s" if name == "kit" else name
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


ENGINES = {  # label, how it is made
    "bm25s": ("bm25s, 1 thread", bm25s_engine),
    "kit": ("this kit's BM25Retriever", kit_engine),
    "tantivy": ("tantivy, 1 thread", tantivy_engine),
    "rank_bm25": ("rank_bm25", rank_bm25_engine),
}
