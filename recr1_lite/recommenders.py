"""Baselines of sequential recommendation that no language model is part of: they read ids, not words.

Each learns from `task.train` alone, and ranks for an example by its `history`. A strong baseline is worth more than a
weak rival (Ferrari Dacrema et al., arXiv 1907.06902), so `choose` takes the best of a few settings on val.
`evaluation.evaluate_recommender` scores them; SASRec is in `sasrec.py`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, evaluate_recommender
from recr1_lite.progress import bar
from recr1_lite.tasks import Task, sequences


def last_title(requests: Sequence[str]) -> list[str]:
    """The latest title of each request, as a rewriter: what was bought last is the query."""
    return [request.rsplit(sequences.BETWEEN, 1)[-1] for request in requests]


last_title.name = "last title"


def train_sequences(train: pd.DataFrame) -> list[list[str]]:
    """What each row of a train split saw, its target at the end. Raises RecR1Error without a column `history`."""
    if "history" not in train:
        raise RecR1Error("these examples have no column 'history'; take a sequential task, such as movielens")
    return [[*history, *relevant] for history, relevant in zip(train["history"], train["relevant"], strict=True)]


class Recommender:
    """Ranks the catalogue for each history. A subclass writes `_scores`; what it knows nothing of (score 0) comes last,
    by popularity, and equally popular items in the catalogue's order."""

    name = "recommender"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame):
        seen = train_sequences(train)
        self.ids = items["item_id"].tolist()
        self.rows = {item: row for row, item in enumerate(self.ids)}
        counts = Counter(item for sequence in seen for item in set(sequence))
        self.popularity = np.array([counts[item] for item in self.ids], dtype=float)
        self._fit(seen)

    def _fit(self, seen: list[list[str]]) -> None:
        pass

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        """Scores (n, items) of what comes next for n histories; higher is likelier, 0 is unknown."""
        return np.zeros((len(histories), len(self.ids)))

    def recommend(self, examples: pd.DataFrame, k: int) -> list[list[str]]:
        """The `k` best item ids for the `history` of each row, best first."""
        scores = self._scores(examples["history"].tolist())
        ranked = [np.lexsort((-self.popularity, -own))[:k] for own in scores]  # stable: then the catalogue's order
        return [[self.ids[row] for row in rows] for rows in ranked]

    def matrix(self, histories: Iterable[Sequence[str]]) -> csr_matrix:
        """Users by items, 1 where the item is in the history; items outside the catalogue are passed over."""
        pairs = {(user, self.rows[item]) for user, own in enumerate(histories) for item in own if item in self.rows}
        users, columns = zip(*sorted(pairs)) if pairs else ((), ())
        shape = (len(histories), len(self.ids))
        return csr_matrix((np.ones(len(users), dtype=np.float32), (users, columns)), shape=shape)


class Popularity(Recommender):
    """The items that most training users had: the baseline that a rewriter of titles has to beat."""

    name = "popularity"


class ItemKNN(Recommender):
    """Items that the same users had: cosine of their columns, the nearest `neighbours` of each, summed over the last
    `recent` items of the history (None: all). Sarwar et al., WWW 2001; by the library implicit."""

    name = "item-kNN"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame, neighbours: int = 100, recent: int | None = None):
        self.neighbours, self.recent = neighbours, recent
        super().__init__(train, items)

    def _fit(self, seen: list[list[str]]) -> None:
        from implicit.nearest_neighbours import CosineRecommender

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the form that it turns its own matrix into
            model = CosineRecommender(K=self.neighbours + 1, num_threads=1)  # an item is its own nearest neighbour
            model.fit(self.matrix(seen), show_progress=False)
        self.similarity = model.similarity

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        recent = [history[-self.recent:] if self.recent else history for history in histories]
        return (self.matrix(recent) @ self.similarity).toarray()


class MatrixFactorisation(Recommender):
    """Implicit-feedback ALS; a history that training has not seen is folded in. Hu, Koren and Volinsky, ICDM 2008; by
    the library implicit. An item that no training user had keeps the factor 0, so it is ranked below the likely ones."""

    name = "matrix factorisation"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame, factors: int = 32, alpha: float = 1.0,
                 regularisation: float = 0.05, iterations: int = 15, seed: int = 0):
        self.settings = dict(factors=factors, alpha=alpha, regularization=regularisation, iterations=iterations,
                             random_state=seed)
        super().__init__(train, items)

    def _fit(self, seen: list[list[str]]) -> None:
        from implicit.als import AlternatingLeastSquares

        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of BLAS threads, which are one here
            self.model = AlternatingLeastSquares(num_threads=1, **self.settings)
            self.model.fit(self.matrix(seen), show_progress=False)

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        seen = self.matrix(histories)
        with threadpool_limits(1, "blas"):
            users = self.model.recalculate_user(np.arange(len(histories)), seen)
        return users @ self.model.item_factors.T


def choose(candidates: Iterable[Callable[[], Recommender]], task: Task, ledger=None,
           progress: bool = True) -> tuple[Recommender, EvalResult]:
    """The candidate with the highest first metric on val, and its result; the first one of equals."""
    best: tuple[Recommender, EvalResult] | None = None
    for make in bar(list(candidates), desc="settings on val", unit="setting", progress=progress):
        recommender = make()
        result = evaluate_recommender(recommender, task, "val")
        if best is None or result.summary[result.metric].mean > best[1].summary[result.metric].mean:
            best = recommender, result
    if best is None:
        raise RecR1Error("there are no candidates to choose from; give one or more")
    return best
