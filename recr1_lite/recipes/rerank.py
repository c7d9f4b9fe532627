"""Re-ranking: the LLM puts the first few hits of the fixed retriever in order; that order's nDCG is the reward.

The third task of Rec-R1's TMLR version (arXiv 2503.24289): nothing is searched again, so the model can win only what
lies in the order of the candidates it is shown. `named` alone decides what an answer says; candidates that it does not
name keep the order in which they were shown, after those it does. An answer that names none changes nothing and is paid
nothing. Shown in the retriever's own order, a policy can learn to say "A" to everybody, a known way out (GR2, arXiv
2606.31984): `shuffle` shows the candidates in a random order, where a letter alone is worth nothing.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import excluded, one_each
from recr1_lite.policy.rewriters import ModelRewriter
from recr1_lite.search.base import Retriever, search_all
from recr1_lite.search.metrics import without
from recr1_lite.tasks import Task
from recr1_lite.tasks.prompts import Outcome, Prompt, Rewrite
from recr1_lite.train.rewards import Scored, Scorer

# The prefix was chosen on 12 training requests of clothing: with it SmolLM2-135M named a letter in all greedy answers
# and in 78% of the rollouts; with "Best first:" it rather named a garment (58% and 28%).
QUESTION = "{request}\n\nWhich of these fits best? Answer with the letters, the best one first."
PROMPT = Prompt("compact", QUESTION, prefix="The best one is letter")


def named(answer: str, count: int) -> list[int]:
    """The places, 0 to count - 1, of the candidates that an answer such as "C, A" names by letter: once each, in its
    order. A letter counts when it stands alone and is upper case."""
    letters = string.ascii_uppercase[:count]
    return list(dict.fromkeys(letters.index(one) for one in re.findall(r"\b[A-Z]\b", answer) if one in letters))


def order(answer: str, count: int) -> list[int]:
    """All places, 0 to count - 1: those that the answer names, then the others in their own order."""
    return list(dict.fromkeys([*named(answer, count), *range(count)]))


def with_candidates(
    examples: pd.DataFrame, retriever: Retriever, items: pd.DataFrame, count=5, words=12, shuffle: int | None = None
) -> pd.DataFrame:
    """`examples` with a column `retrieved`, the first `count` ids that the retriever finds for the request, a column
    `candidates`, the same in the order in which they are shown, and their titles and first `words` words, lettered,
    under the request. shuffle: the seed of a random order for each request; None: the retriever's.
    A row for which the retriever finds fewer than two is left out. Raises RecR1Error for a count outside 2 to 26
    and for a hit that is not in `items`."""
    if not 2 <= count <= len(string.ascii_uppercase):
        raise RecR1Error(f"{count} candidates cannot be put in order by letters; take 2 to 26")
    gone, about = excluded(examples), items.set_index("item_id")
    depth = count + max(map(len, gone), default=0)
    hits = search_all(retriever, examples["request"].tolist(), depth, set(about.index))
    found = [without(ids, own, count) for (ids, _), own in zip(hits, gone, strict=True)]
    random, asked = np.random.default_rng(shuffle), []
    shown = found if shuffle is None else [random.permutation(np.array(ids, dtype=object)).tolist() for ids in found]
    for request, ids in zip(examples["request"], shown):
        lines = [request]
        for letter, item in zip(string.ascii_uppercase, ids):
            title, text = about.at[item, "title"].split(), about.at[item, "text"].split()
            rest = text[len(title) :] if text[: len(title)] == title else text  # a title is not said twice
            lines.append(" ".join([f"{letter}.", *title, *rest[:words]]))
        asked.append("\n".join(lines))
    return examples.assign(request=asked, candidates=shown, retrieved=found).loc[[len(ids) > 1 for ids in found]]


def rerank_task(
    task: Task, retriever: Retriever, count=5, words=12, prompt: Prompt = PROMPT, shuffle: int | None = None
) -> Task:
    """The task of ordering the first `count` hits of each request of `task`.

    Of the training examples those are kept that have a relevant item among the candidates: in the others every
    order earns 0. val and the sealed test keep theirs, so that scores stay those of the retriever's whole work. Raises
    RecR1Error as `with_candidates` does, and for a prompt in `expand` mode."""
    if prompt.mode != "rewrite":  # the query would hold the request's own letters
        raise RecR1Error(f"an answer in {prompt.mode} mode is no order of candidates; give a prompt in mode 'rewrite'")

    def change(split: str, frame: pd.DataFrame) -> pd.DataFrame:
        asked = with_candidates(frame, retriever, task.items, count, words, shuffle)
        pairs = zip(asked["candidates"], asked["relevant"])
        reachable = [not relevant.keys().isdisjoint(ids) for ids, relevant in pairs]
        return asked.loc[reachable] if split == "train" else asked

    sizes = {"k_train": count, "k_eval": count, "metrics": (f"ndcg@{count}", "mrr", "recall@1")}
    return task.map_splits(change, name=f"{task.name}-rerank", prompt=prompt, **sizes)


class RerankScorer(Scorer):
    """Pays the order that a completion gives to its example's own candidates; `raw_ndcg` is the order shown.

    An answer that names no candidate is a `no_answer`: as silence does, it earns 0, not what the retriever earned."""

    def __init__(self, examples: pd.DataFrame, prompt: Prompt, k: int):
        super().__init__(None, examples.drop(columns="exclude", errors="ignore"), prompt, k)
        self.candidates = dict(zip(examples["example_id"], _candidates(examples)))

    def score(
        self, example_ids: Sequence[str], completions: Sequence[str], truncated: Sequence[bool] | None = None
    ) -> list[Scored]:
        pairs = zip(example_ids, super().score(example_ids, completions, truncated))
        return [row._replace(outcome=_outcome(row, self.candidates[example])) for example, row in pairs]

    def rank(self, example_ids: Sequence[str], queries: Sequence[str | None]) -> list[list[str]]:
        asked = zip(example_ids, queries, strict=True)
        return [_ranked(self.candidates[example], answer or "") for example, answer in asked]


class Reranker:
    """A model, asked with the task's prompt, as a recommender: it gives the candidates in its order.

    `answers`: what it said at the last call, for the result's rows."""

    def __init__(self, rewriter: ModelRewriter):
        self.rewriter, self.name = rewriter, rewriter.name
        self.answers: list[Rewrite] = []

    def recommend(self, examples: pd.DataFrame, k: int) -> list[list[str]]:
        requests, size = examples["request"].tolist(), self.rewriter.batch_size
        said = [one for at in range(0, len(requests), size) for one in self.rewriter.complete(requests[at : at + size])]
        pairs = list(zip(_candidates(examples), one_each(said, requests, self.name)))
        self.answers = [replace(one, outcome=str(_outcome(one, ids))) for ids, one in pairs]
        return [_ranked(ids, one.query)[:k] for ids, one in pairs]


def retriever_order(examples: pd.DataFrame, k: int) -> list[list[str]]:
    """The baseline: the candidates as the retriever ranks them."""
    return [ids[:k] for ids in _candidates(examples, "retrieved")]


retriever_order.name = "retriever's order"  # type: ignore[attr-defined]  # as tables show it


def oracle(task: Task, split: str = "val"):
    """The ceiling: relevant candidates first, the others in the order shown. For `evaluate_recommender`, val."""
    gains: dict = dict(zip(getattr(task, split)["example_id"], getattr(task, split)["relevant"]))

    def best_first(examples: pd.DataFrame, k: int) -> list[list[str]]:
        pairs = zip(examples["example_id"], _candidates(examples))
        return [sorted(ids, key=lambda item: -gains[example].get(item, 0.0))[:k] for example, ids in pairs]

    best_first.name = "oracle"  # type: ignore[attr-defined]
    return best_first


def _candidates(examples: pd.DataFrame, column: str = "candidates") -> list[list[str]]:
    if column not in examples:
        raise RecR1Error(f"the examples have no column {column!r}; take those of a rerank_task")
    return examples[column].tolist()


def _outcome(answer: Scored | Rewrite, candidates: list[str]) -> Outcome:
    silent = answer.outcome == Outcome.ok and not named(answer.query, len(candidates))
    return Outcome.no_answer if silent else Outcome(answer.outcome)


def _ranked(candidates: list[str], answer: str) -> list[str]:
    return [candidates[place] for place in order(answer, len(candidates))]
