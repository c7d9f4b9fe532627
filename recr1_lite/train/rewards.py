"""Where a reward is paid: from a completion to a number.

    completion -> parse -> compose -> retriever -> nDCG at k_train -> components -> their sum is the reward

A component is a function of one `Scored`; a recipe is a few of them, and its reward is their sum. TRL gets each
component as a reward function, so each has its curve in the log. A miss, a completion that fails to parse and a broken
retriever are three things: a miss scores 0, a bad completion is counted by its outcome, a broken retriever stops all.

The preset `words` also tells each word what it earned (`word_credit`).
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate.utils import gather

from recr1_lite.common import RecR1Error
from recr1_lite.search.base import described, search_all
from recr1_lite.search.metrics import ndcg, without
from recr1_lite.tasks.base import ids_of
from recr1_lite.tasks.prompts import Outcome, Prompt

BAD_FORMAT, HIT_BONUS = -2.0, 0.1
FREE_WORDS, WORD_LIMIT, LENGTH_COST = 16, 64, 0.1


class Scored(NamedTuple):
    """One completion. query: as sent. ndcg: of it (in `expand` mode a failed parse sends the request alone); raw_ndcg:
    of the request itself; both 0 to 1 at the scorer's k. words: of the parsed rewrite, 0 unless ok."""

    outcome: Outcome
    query: str
    ndcg: float
    raw_ndcg: float
    words: int


Component = Callable[[Scored], float]


def _ndcg(row: Scored) -> float:
    """nDCG of an answer that parsed, else 0: silence must not earn what the request alone earns."""
    return row.ndcg if row.outcome == Outcome.ok else 0.0


def _length(row: Scored) -> float:
    """0 up to FREE_WORDS, then falling to -LENGTH_COST at WORD_LIMIT and beyond; the full cost without an answer."""
    over = (row.words - FREE_WORDS) / (WORD_LIMIT - FREE_WORDS) if row.outcome == Outcome.ok else 1.0
    return -LENGTH_COST * min(max(over, 0.0), 1.0)


# `paper`: Rec-R1 (arXiv 2503.24289) as its official code pays it: -2 for a bad format, 0.1 + nDCG for a hit,
# 0 for a miss. `gain_over_raw` subtracts what the request alone scores, a constant within a GRPO group:
# advantages normalised by group equal those of `ndcg`; the curve crosses 0 where rewriting starts to pay.
RECIPES: dict[str, dict[str, Component]] = {
    "paper": {
        "format": lambda row: 0.0 if row.outcome == Outcome.ok else BAD_FORMAT,
        "hit": lambda row: HIT_BONUS if _ndcg(row) > 0 else 0.0,
        "ndcg": _ndcg,
    },
    "ndcg": {"ndcg": _ndcg},
    "gain_over_raw": {"ndcg": _ndcg, "minus_raw": lambda row: -row.raw_ndcg},
    "length_penalised": {"ndcg": _ndcg, "length": _length},
}


def components(recipe: str) -> dict[str, Component]:
    """The components of a recipe by name. Raises RecR1Error, with the known ones, for another name."""
    if recipe not in RECIPES:
        raise RecR1Error(f"there is no reward recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def reward(recipe: str, row: Scored) -> float:
    """What `recipe` pays for one scored completion: the sum of its components."""
    return sum(component(row) for component in components(recipe).values())


class Scorer:
    """Scores completions with the fixed retriever, against the targets of their examples.

    examples: DataFrame of example_id, request, relevant ({item_id: gain}). Targets are keyed by example_id, so two
    users with the same words keep their own. A column `exclude` (ids) takes items out of an example's rankings, as in
    `evaluate`. k: cut-off of the nDCG, whose gains are `linear` or `exponential`. Raises RecR1Error for a missing
    column, an example_id that comes twice, a bad k or gain."""

    def __init__(self, retriever: Any, examples: pd.DataFrame, prompt: Prompt, k: int, gain: str = "linear"):
        for column in ("example_id", "request", "relevant"):
            if column not in examples.columns:
                raise RecR1Error(f"the examples have no column {column!r}; pass task.train or task.val")
        ids = examples["example_id"].tolist()
        if (twice := examples["example_id"].duplicated()).any():
            first = examples["example_id"][twice].iloc[0]
            raise RecR1Error(f"example_id {first!r} comes twice, so its target is unclear; keep one of them")
        ndcg([], {}, k, gain)  # a bad k or gain fails here, not in the first step of a run
        self.retriever, self.prompt, self.k, self.gain, self.known = retriever, prompt, int(k), gain, ids_of(examples)
        self.requests = dict(zip(ids, examples["request"]))
        self.relevant = dict(zip(ids, examples["relevant"]))
        self.exclude = {example: set(gone) for example, gone in zip(ids, examples.get("exclude", ()))}
        self.depth = self.k + max(map(len, self.exclude.values()), default=0)  # to fill k places all the same
        self._raw: dict[str, float] = {}  # nDCG of the request itself, searched once for each example

    @property
    def about(self) -> dict:
        """What tells one scorer from another in a file of targets: the engine, the mode and the cut-off."""
        told = {"retriever": described(self.retriever), "k": self.k, "gain": self.gain}
        return told | ({"distinct": True} if self.prompt.distinct else {})

    def score(
        self, example_ids: Sequence[str], completions: Sequence[str], truncated: Sequence[bool] | None = None
    ) -> list[Scored]:
        """One `Scored` per completion, in order.

        completions: what the model generated, without the prompt's prefix. truncated: which of them hit the token
        limit; None: not known. Raises RecR1Error for an unknown example_id or lists of different lengths,
        RetrieverError with the query when a search fails."""
        truncated = [False] * len(completions) if truncated is None else truncated
        if not len(example_ids) == len(completions) == len(truncated):
            given = f"{len(example_ids)} example ids, {len(completions)} completions, {len(truncated)} truncation flags"
            raise RecR1Error(f"{given}; pass one of each for every completion")
        if unknown := set(example_ids) - self.requests.keys():
            raise RecR1Error(f"example {min(unknown)!r} is unknown to the scorer; give it that example's row")
        parsed = [self.prompt.read(text, cut) for text, cut in zip(completions, truncated)]
        sent = [self.prompt.sent(self.requests[e], p.query) for e, p in zip(example_ids, parsed)]
        new = [example for example in dict.fromkeys(example_ids) if example not in self._raw]
        rankings = self.rank([*example_ids, *new], [*sent, *[None] * len(new)])
        for example, ids in zip(new, rankings[len(sent) :]):
            self._raw[example] = self._ndcg(example, ids)
        return [
            Scored(p.outcome, query, self._ndcg(example, ids), self._raw[example], len(p.query.split()))
            for example, p, query, ids in zip(example_ids, parsed, sent, rankings)
        ]

    def rank(self, example_ids: Sequence[str], queries: Sequence[str | None]) -> list[list[str]]:
        """One ranking, best first, for each query sent on behalf of an example; None stands for the request itself."""
        pairs = zip(example_ids, queries, strict=True)
        asked = [self.requests[example] if query is None else query for example, query in pairs]
        return [ids for ids, _ in search_all(self.retriever, asked, self.depth, self.known)]

    def _ndcg(self, example: str, ids: list[str]) -> float:
        left = without(ids, self.exclude.get(example, ()), self.k)
        return ndcg(left, self.relevant[example], self.k, self.gain)


def reward_functions(recipe: str, scorer: Scorer, end_ids: Collection[int] = ()) -> list[Callable[..., list[float]]]:
    """The recipe as reward functions for TRL's GRPOTrainer, one per component, weight 1 each (TRL's default).

    TRL logs each as `rewards/<component>/mean`; the dataset needs the column `example_id`. A whole batch is parsed and
    searched once for all components. The first function also logs `batch_summary`, and adds query and outcome to TRL's
    table of completions. end_ids: token ids that end an answer; a completion that does not end in one was cut by the
    token limit. Without them nothing is called truncated."""

    @functools.lru_cache(maxsize=1)
    def scored(example_ids: tuple, texts: tuple, cut: tuple) -> list[Scored]:
        return scorer.score(example_ids, texts, cut)

    def function(name: str, component: Component, logs: bool):
        def call(prompts, completions, completion_ids, example_id, log_metric=None, log_extra=None, **_):
            cut = [bool(end_ids) and (not len(ids) or int(ids[-1]) not in end_ids) for ids in completion_ids]
            rows = scored(tuple(example_id), tuple(completions), tuple(cut))
            if logs and log_metric and log_extra:
                for metric, value in batch_summary(rows).items():
                    log_metric(metric, value)
                log_extra("query", [row.query for row in rows])
                log_extra("outcome", [str(row.outcome) for row in rows])
            return [float(component(row)) for row in rows]

        call.__name__ = name  # the name under which TRL logs it
        return call

    return [function(name, part, logs=not at) for at, (name, part) in enumerate(components(recipe).items())]


def batch_summary(rows: Sequence[Scored]) -> dict[str, float]:
    """Means over a batch: the share of each outcome, words of the rewrite, nDCG sent, raw nDCG and the gain."""
    n = max(len(rows), 1)
    counts = Counter(row.outcome for row in rows)
    sent, raw = sum(row.ndcg for row in rows) / n, sum(row.raw_ndcg for row in rows) / n
    means = {"query_words": sum(row.words for row in rows) / n, "ndcg": sent, "raw_ndcg": raw, "gain": sent - raw}
    return {f"outcome/{outcome}": counts[outcome] / n for outcome in Outcome} | means


# Credit word by word. GRPO gives all tokens of a rollout one advantage, its reward less the mean of its group. The
# retriever is cheap, so it can also be asked for every beginning of a rollout, cut between two words. A token's
# advantage is then the reward that is still to come where its word begins, less the mean of its group at that position
# (0 where a rollout has ended): what came before a token is not its doing. In expectation the gradient is that of plain
# GRPO, because the part that is left out is a constant to the token's own choice (Sutton & Barto, 2nd ed., section
# 13.4); only its variance is smaller.


def word_starts(tokenizer, row: Sequence[int]) -> list[str]:
    """For each token of a rollout the text before the word that it belongs to, and last the whole text."""
    texts = [tokenizer.decode(row[:end], skip_special_tokens=True) for end in range(len(row) + 1)]
    starts: list[str] = []
    for before, after in zip(texts, texts[1:]):
        inside = before[-1:].isalnum() and after[len(before) :][:1].isalnum()
        starts.append(starts[-1] if inside else before)
    return [*starts, texts[-1]]


def still_to_come(values: torch.Tensor, mask: torch.Tensor, group: int) -> torch.Tensor:
    """Advantages (B, T) from values (B, T + 1): the reward of each text of `word_starts`, the whole one's last.

    mask (B, T): 1 where a rollout has a token. Rows of one group stand together."""
    to_come = (values[:, -1:] - values[:, :-1]) * mask
    means = to_come.view(-1, group, mask.size(1)).mean(1).repeat_interleave(group, 0)
    return (to_come - means) * mask


def word_credit(scorer: Scorer, recipe: str, tokenizer, group: int, example_ids, ids, mask) -> torch.Tensor:
    """Advantages (B, T) of the rollouts of some examples: completion ids and mask (B, T), padded on the right.

    Divided by the standard deviation of the batch's rewards, as in the preset `modern`."""
    rows = [row[:size] for row, size in zip(ids.tolist(), mask.sum(1).tolist())]
    texts = [word_starts(tokenizer, row) for row in rows]
    pairs = dict.fromkeys((example, text) for example, some in zip(example_ids, texts) for text in some)
    scored = scorer.score([example for example, _ in pairs], [text for _, text in pairs])
    paid = {pair: reward(recipe, row) for pair, row in zip(pairs, scored)}
    padded = [[*some, *some[-1:] * (mask.size(1) + 1 - len(some))] for some in texts]
    found = [[paid[example, text] for text in some] for example, some in zip(example_ids, padded)]
    values = torch.tensor(found, device=mask.device)
    return still_to_come(values, mask, group) / (gather(values[:, -1].contiguous()).std() + 1e-4)
