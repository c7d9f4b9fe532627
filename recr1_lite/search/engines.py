"""The engines: BM25, the default; dense retrieval; and two engines in one by reciprocal rank fusion.

BM25 is bm25s with Lucene's formula, exact and ordered the same way every time. A dense retriever compares meanings: it
needs no word in common, ranks the whole catalogue for any query, and minds the order of a query's words a little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import bm25s
import numpy as np
import pandas as pd

from recr1_lite import assets
from recr1_lite.common import RecR1Error, bar, place_folder
from recr1_lite.search import base
from recr1_lite.search.base import Hits, Retriever, bag_of_words, best, search_all
from recr1_lite.search.metrics import checked_cutoff

METHODS = ("lucene", "robertson", "atire")  # bm25l and bm25+ score documents without any word of the query
MODEL = "all-minilm-l6-v2"
RRF_K, DEPTH = 60, 1000  # of Cormack et al. 2009; hits of each engine that are fused
BATCH = 64  # items that are embedded at once
BLOCK = 32  # queries that are multiplied at once
Encoder = Callable[[list[str]], np.ndarray]  # n texts -> (n, dimensions)


class BM25Retriever:
    """BM25 over the `text` column of a catalogue.

    score(q, d) = sum over the words of q, repeats included, of
        idf * tf / (tf + k1 * (1 - b + b * |d| / avgdl)),  idf = ln(1 + (N - df + 0.5) / (df + 0.5)) > 0.
    Source: "Lucene (accurate)" in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020; by bm25s (arXiv 2407.03618).
    """

    def __init__(self, index: bm25s.BM25, ids: Sequence[str], stopwords, stemmer: str | None):
        self.index, self.ids, self.stopwords, self.stemmer = index, list(ids), stopwords, stemmer

    @property
    def about(self) -> dict:
        """The settings and the index's fingerprint, as a file that was made with this engine notes them."""
        index = {"k1": self.index.k1, "b": self.index.b, "method": self.index.method}
        words = {"stopwords": self.stopwords, "stemmer": self.stemmer}
        scores, vocabulary = self.index.scores, sorted(self.index.vocab_dict)
        content = "\n".join(vocabulary).encode() + scores["data"].tobytes() + scores["indices"].tobytes()
        return index | words | {"index": base.fingerprint(self.ids, content)}

    @classmethod
    def build(
        cls, items: pd.DataFrame, k1=1.2, b=0.75, method="lucene", stopwords="en", stemmer="english"
    ) -> BM25Retriever:
        """Index the columns `item_id` and `text` of `items`; stopwords, stemmer: as `bag_of_words` has them. RecR1Error
        as `checked_catalogue`, `bag_of_words`, and: no word in any text, k1 below 0, b outside 0 to 1, another method.
        """
        return next(cls.each(items, [(k1, b)], method, stopwords, stemmer))

    @classmethod
    def each(
        cls, items: pd.DataFrame, settings: Iterable[tuple[float, float]], method: str, stopwords, stemmer: str | None
    ) -> Iterator[BM25Retriever]:
        """As `build`, an engine for each (k1, b) of `settings`, made when it is asked for; the texts are read once."""
        if method not in METHODS:
            raise RecR1Error(f"there is no BM25 method {method!r} here; choose one of {', '.join(METHODS)}")
        ids, texts = base.checked_catalogue(items)
        stopwords = stopwords if stopwords is None or isinstance(stopwords, str) else sorted(stopwords)
        documents = bag_of_words(texts, stopwords, stemmer)
        # Sorted: these numbers fix the order in which scores add up, and a set's order differs by process.
        vocabulary = {word: number for number, word in enumerate(sorted(set().union(*documents)))}
        if not vocabulary:
            raise RecR1Error("no text of the catalogue holds a word to index; check the text column")
        numbers = [[vocabulary[word] for word in words] for words in documents]
        for k1, b in settings:
            if not (k1 >= 0 and 0 <= b <= 1):
                raise RecR1Error(f"BM25 needs k1 >= 0 and b from 0 to 1 (usual: 1.2, 0.75), not {k1!r} and {b!r}")
            index = bm25s.BM25(k1=k1, b=b, method=method)
            index.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
            yield cls(index, ids, stopwords, stemmer)

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits per query with a score above 0, best first; equal scores in the catalogue's order.

        A query without a known word has no hits. A repeated word counts again each time. Raises RecR1Error for a bad
        `k`, RetrieverError for a query that is not text."""
        k, queries = checked_cutoff(k), base.checked_queries(queries)
        results = []
        for words in bag_of_words(queries, self.stopwords, self.stemmer):
            # Sorted, so that two orders of the same words add up to the very same float.
            numbers = sorted(self.index.get_tokens_ids(words))
            scores = self.index.get_scores_from_ids(numbers) if numbers else np.empty(0)
            rows = best(scores, k, np.flatnonzero(scores > 0))
            results.append(Hits([self.ids[row] for row in rows], scores[rows].tolist()))
        return results

    def save(self, folder: str | Path) -> Path:
        """Write the index into `folder`, whole or not at all. Raises RecR1Error where that cannot be written."""
        about = json.dumps(dict(stopwords=self.stopwords, stemmer=self.stemmer, ids=self.ids))

        def write(work: Path) -> None:
            self.index.save(work / "index", show_progress=False)
            (work / "retriever.json").write_text(about, encoding="utf-8")

        return place_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> BM25Retriever:
        """Read what `save` wrote; with `mmap` the arrays stay on disk and processes share them. RecR1Error for none."""
        try:
            head = json.loads((Path(folder) / "retriever.json").read_text(encoding="utf-8"))
            index = bm25s.BM25.load(Path(folder) / "index", mmap=mmap, show_progress=False)
            if index.scores["num_docs"] != len(head["ids"]):
                raise ValueError(f"{index.scores['num_docs']} documents but {len(head['ids'])} ids")
            for name in ("data", "indices", "indptr"):  # plain views of the pages; memmap slices are slow
                index.scores[name] = index.scores[name].view(np.ndarray)
            return cls(index, head["ids"], head["stopwords"], head["stemmer"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            advice = "make it again with BM25Retriever.build(items).save(folder)"
            raise RecR1Error(f"there is no whole BM25 index at {folder} ({error}); {advice}") from None


class DenseRetriever:
    """Cosine of sentence embeddings, every item compared with every query (Sentence-BERT, arXiv 1908.10084)."""

    def __init__(self, encode: Encoder, vectors: np.ndarray, ids: Sequence[str], backend: str, about: dict):
        self.encode, self.vectors, self.ids, self.about = encode, vectors, list(ids), about
        self.index = _faiss().IndexFlatIP(vectors.shape[1]) if backend == "faiss" else None
        if self.index is not None:
            self.index.add(vectors)

    @classmethod
    def build(cls, items: pd.DataFrame, model: str | Encoder = MODEL, backend: str = "exact") -> DenseRetriever:
        """Embed the columns `item_id` and `text` of `items`.

        model: an asset of this kit, a local folder or a Hub name for sentence-transformers, which cuts a text at the
        model's own limit (MiniLM: 256 tokens); or a function from n texts to an array (n, dimensions). backend:
        "exact" (NumPy), or "faiss" (the same answers but for the order of ties, faster on large catalogues; needs
        faiss-cpu). Raises RecR1Error as `checked_catalogue`, and for an unknown backend, faiss not installed, a model
        that cannot be loaded."""
        if backend not in ("exact", "faiss"):
            raise RecR1Error(f"there is no backend {backend!r}; choose exact or faiss")
        if backend == "faiss":
            _faiss()  # before the long work
        ids, texts = base.checked_catalogue(items)
        encode = model if callable(model) else load_encoder(model)
        # each text once: in another batch its vector would differ by a rounding, and equal items must tie
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(place)
        starts = bar(range(0, len(distinct), BATCH), desc="embedding items", unit="batch")
        vectors = np.concatenate([_embed(encode, distinct[at : at + BATCH]) for at in starts])
        name = model if isinstance(model, str) else getattr(model, "__qualname__", type(model).__name__)
        about = {"model": name, "catalogue": base.fingerprint(ids, "\n".join(texts).encode())}
        return cls(encode, vectors[[place[text] for text in texts]], ids, backend, about)

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """The `k` items nearest to each query, best first, scores from -1 to 1; equal ones in the catalogue's order. A
        blank query has no hits. Raises RecR1Error for a bad `k`, RetrieverError for a query that is not text."""
        k = checked_cutoff(k)
        return base.once(queries, lambda asked: self._nearest(asked, k))

    def _nearest(self, queries: list[str], k: int) -> list[Hits]:
        vectors = _embed(self.encode, queries)
        if self.index is not None:
            found: Iterable = zip(*self.index.search(vectors, min(k, len(self.ids))))
        else:
            everything = np.arange(len(self.ids))
            products = (scores for block in _blocks(vectors) for scores in block @ self.vectors.T)
            # the rows that fill up the last block are left over
            ranked = ((scores, best(scores, k, everything)) for _, scores in zip(queries, products))
            found = ((scores[rows], rows) for scores, rows in ranked)
        return [Hits([self.ids[row] for row in rows], scores.astype(float).tolist()) for scores, rows in found]


class HybridRetriever:
    """Several engines in one by reciprocal rank fusion: an item scores the sum of 1 / (60 + its rank) over the engines,
    whose own scores do not matter. Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", SIGIR 2009."""

    def __init__(self, retrievers: Sequence[Retriever]):
        if len(retrievers) < 2:
            raise RecR1Error(f"a fusion of {len(retrievers)} retrievers fuses nothing; give two or more")
        self.retrievers = list(retrievers)
        self.about = {"engines": list(map(base.described, retrievers)), "constant": RRF_K, "depth": DEPTH}

    def search(self, queries: Sequence[str], k: int) -> list[Hits]:
        """At most `k` hits per query, best first, of the best 1,000 (or `k`) of each engine; of equal scores the one
        that an earlier engine ranks higher comes first. Errors of the engines pass through."""
        k = checked_cutoff(k)
        answers = [search_all(retriever, queries, max(k, DEPTH)) for retriever in self.retrievers]
        fused = []
        for lists in zip(*answers, strict=True):
            scores: dict[str, float] = {}
            for hits in lists:
                for rank, item in enumerate(hits.ids, start=1):
                    scores[item] = scores.get(item, 0.0) + 1 / (RRF_K + rank)
            ranked = sorted(scores, key=scores.__getitem__, reverse=True)[:k]
            fused.append(Hits(ranked, [scores[item] for item in ranked]))
        return fused


def load_encoder(model: str = MODEL) -> Encoder:
    """A sentence-transformers model as a function from texts to unit vectors. Raises RecR1Error if it won't load."""
    folder = str(assets.model_folder(model)) if model in assets.MODELS else model
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(folder, local_files_only=assets.offline())
    except (OSError, ValueError) as problem:
        reason = f"cannot be loaded ({str(problem).splitlines()[0][:200]})"
        advice = f"name a folder, a Hub model of sentence-transformers, or {MODEL!r}"
        raise RecR1Error(f"the encoder {model!r} {reason}; {advice}") from problem

    def encode(texts: list[str]) -> np.ndarray:
        return encoder.encode(texts, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)

    return encode


def _embed(encode: Encoder, texts: list[str]) -> np.ndarray:
    """Unit vectors of the texts, (n, dimensions), float32."""
    vectors = np.asarray(encode(texts), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        gave = f"an array {vectors.shape} for {len(texts)} texts, or numbers that are not finite"
        raise RecR1Error(f"the encoder gave {gave}; it must give one finite vector per text")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """BLOCK rows at a time, the last filled up with zeros: BLAS rounds one row's product otherwise than many rows',
    and then a query alone would rank near ties, and equal items, in another order than in a batch."""
    for at in range(0, len(vectors), BLOCK):
        block = np.zeros((BLOCK, vectors.shape[1]), vectors.dtype)
        block[: len(vectors) - at] = vectors[at : at + BLOCK]
        yield block


def _faiss():
    try:
        import faiss
    except ImportError as problem:
        raise RecR1Error("the backend faiss is not installed; pip install faiss-cpu, or take exact") from problem
    return faiss
