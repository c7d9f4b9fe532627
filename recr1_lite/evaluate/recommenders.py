"""Baselines of sequential recommendation that no language model is part of: they read ids, not words.

Each learns from `task.train` alone, and ranks for an example by its `history`. A strong baseline is worth more than a
weak rival (Ferrari Dacrema et al., arXiv 1907.06902), so `choose` takes the best of a few settings on val.
`evaluation.evaluate_recommender` scores them.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from threadpoolctl import threadpool_limits
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from recr1_lite.common import RecR1Error, bar
from recr1_lite.evaluate.evaluation import evaluate_recommender
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.sequential import BETWEEN

PAD, IGNORED = 0, -100  # SASRec's token of no item; its label of a place without loss
PATIENCE = 5  # epochs without a lower loss on val


def last_title(requests: Sequence[str]) -> list[str]:
    """The latest title of each request, as a rewriter: what was bought last is the query."""
    return [request.rsplit(BETWEEN, 1)[-1] for request in requests]


last_title.name = "last title"  # type: ignore[attr-defined]  # as tables show it


def train_sequences(train: pd.DataFrame) -> list[list[str]]:
    """What each row of a train split saw, its targets at the end. Raises RecR1Error without a column `history`."""
    if "history" not in train:
        raise RecR1Error("these examples have no column 'history'; take a sequential task, such as movielens")
    return [[*history, *relevant] for history, relevant in zip(train["history"], train["relevant"], strict=True)]


class Popularity:
    """The items that most training users had: the baseline that a rewriter of titles has to beat.

    The base of the others: each ranks by its `_scores`, and what it knows nothing of (score 0) comes last, by
    popularity. Equally popular items stand in the catalogue's order."""

    name = "popularity"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame):
        self.ids = items["item_id"].tolist()
        # histories -> users by items, 1 where the item is in the history; items outside the catalogue are passed over
        self.matrix = CountVectorizer(vocabulary=self.ids, analyzer=list, binary=True, dtype=np.float32).transform
        self.had = self.matrix(train_sequences(train))
        self.popularity = self.had.sum(axis=0).A1

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        """Scores (n, items) of what comes next for n histories; higher is likelier, 0 is unknown."""
        return np.zeros((len(histories), len(self.ids)))

    def recommend(self, examples: pd.DataFrame, k: int) -> list[list[str]]:
        """The `k` best item ids for the `history` of each row, best first."""
        scores = self._scores(examples["history"].tolist())
        ranked = [np.lexsort((-self.popularity, -row))[:k] for row in scores]  # stable: then the catalogue's order
        return [[self.ids[row] for row in rows] for rows in ranked]


class ItemKNN(Popularity):
    """Items that the same users had: cosine of their columns, the nearest `neighbours` of each, summed over the last
    `recent` items of the history (None: all). Sarwar et al., WWW 2001; by the library implicit."""

    name = "item-kNN"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame, neighbours: int = 100, recent: int | None = None):
        from implicit.nearest_neighbours import CosineRecommender

        super().__init__(train, items)
        self.recent = recent
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the form that it turns its own matrix into
            model = CosineRecommender(K=neighbours + 1, num_threads=1)  # an item is its own nearest neighbour
            model.fit(self.had, show_progress=False)
        self.similarity = model.similarity

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        recent = [history[-self.recent :] if self.recent else history for history in histories]
        return (self.matrix(recent) @ self.similarity).toarray()


class MatrixFactorisation(Popularity):
    """Implicit-feedback ALS; a history that training has not seen is folded in. Hu, Koren and Volinsky, ICDM 2008; by
    the library implicit. An item that no training user had keeps the factor 0, so it comes below the likely ones."""

    name = "matrix factorisation"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame, factors: int = 32, alpha: float = 1.0):
        from implicit.als import AlternatingLeastSquares

        super().__init__(train, items)
        settings: dict = dict(regularization=0.05, iterations=15, random_state=0, num_threads=1)
        with threadpool_limits(1, "blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of BLAS threads, which are one here
            self.model = AlternatingLeastSquares(factors=factors, alpha=alpha, **settings)
            self.model.fit(self.had, show_progress=False)

    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        with threadpool_limits(1, "blas"):
            users = self.model.recalculate_user(np.arange(len(histories)), self.matrix(histories))
        return users @ self.model.item_factors.T


class SASRec(Popularity):
    """A small causal transformer over item ids that ranks by the probability of the next item.

    Kang and McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), from parts of transformers: GPT-2 with the
    items as its vocabulary, trained by Trainer. The loss is the cross-entropy over all items instead of one sampled
    negative, which makes it the strong form of this baseline (Klenitskiy and Vasilev, RecSys 2023, arXiv 2309.07602).
    val: its examples stop the training when their loss has not fallen for PATIENCE epochs. length: items of a history
    that are read; a longer one is trained on in pieces. epochs: at most. sizes: of GPT2Config. `losses`: per epoch."""

    name = "SASRec"

    def __init__(
        self, train, items, val: pd.DataFrame, epochs=100, length=50, learning_rate=2e-3, progress=True, **sizes
    ):
        super().__init__(train, items)
        set_seed(0)
        self.length, self.tokens = length, {item: token for token, item in enumerate(self.ids, start=1)}
        shape: dict = dict(n_embd=64, n_layer=2, n_head=2, n_positions=length + 1, vocab_size=len(self.ids) + 1)
        shape |= dict(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3, bos_token_id=PAD, eos_token_id=PAD)
        self.model = GPT2LMHeadModel(GPT2Config(use_cache=False, **(shape | sizes)))
        self.model.loss_type = "ForCausalLM"  # GPT-2 names none, and transformers warns before it takes this one
        pieces = [piece for had in train_sequences(train) for piece in _pieces(self._tokens(had), length)]
        data: dict = {"train_dataset": [(piece, 1) for piece in pieces], "eval_dataset": self._ahead(val)}
        options: dict = dict(num_train_epochs=epochs, learning_rate=learning_rate, weight_decay=0.01, seed=0)
        options |= dict(per_device_train_batch_size=64, per_device_eval_batch_size=256, eval_strategy="epoch")
        options |= dict(save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True)
        shown = bar(total=epochs, desc="SASRec", unit="epoch", progress=progress)
        with tempfile.TemporaryDirectory() as folder, shown:  # Trainer makes its folder though nothing is saved
            arguments = TrainingArguments(folder, use_cpu=not torch.cuda.is_available(), **options)
            trainer = Trainer(self.model, arguments, data_collator=_collate, callbacks=[best := _Best(shown)], **data)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self.model.load_state_dict(best.weights)
        self.model.eval()
        self.losses = best.losses

    def _ahead(self, val: pd.DataFrame) -> list[tuple[list[int], int]]:
        """Of each val example its last tokens, and the place of the first target: their loss alone counts."""
        rows = zip(train_sequences(val), val["relevant"], strict=True)
        known = [(self._tokens(had)[-self.length - 1 :], len(self._tokens(list(wanted)))) for had, wanted in rows]
        return [(tokens, max(1, len(tokens) - max(1, n))) for tokens, n in known]

    def _tokens(self, items: list[str]) -> list[int]:
        return [self.tokens[item] for item in items if item in self.tokens]

    @torch.no_grad()
    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        known, scores = [self._tokens(had)[-self.length :] or [PAD] for had in histories], []
        for at in range(0, len(known), 256):
            batch, device = known[at : at + 256], self.model.device
            ids, mask = _padded(batch)
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            ends = torch.tensor([len(tokens) - 1 for tokens in batch])
            scores.append(logits[torch.arange(len(batch)), ends, 1:].softmax(-1).float().cpu().numpy())
        return np.concatenate(scores)


class _Best(TrainerCallback):
    """Keeps the weights with the lowest loss on val, and stops after PATIENCE epochs without a lower one."""

    def __init__(self, shown):
        self.shown, self.losses, self.weights = shown, list[float](), dict[str, torch.Tensor]()

    def on_evaluate(self, args, state, control, metrics, model, **others):
        self.losses.append(metrics["eval_loss"])
        worse = len(self.losses) - 1 - int(np.argmin(self.losses))
        if worse == 0:
            self.weights = copy.deepcopy(model.state_dict())
        control.should_training_stop |= worse >= PATIENCE
        self.shown.update()


def _pieces(tokens: list[int], length: int) -> list[list[int]]:
    """Pieces of at most length + 1 tokens, from the end; each begins with the token that the one before it ends in."""
    return [tokens[max(0, end - length - 1) : end] for end in range(len(tokens), 1, -length)]


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask (n, longest)."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


def _collate(batch: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """A batch of (tokens, first place that counts): the model predicts each token from those before it."""
    ids, mask = _padded([tokens for tokens, _ in batch])
    first = torch.tensor([[place] for _, place in batch])
    counts = (torch.arange(ids.size(1)) >= first) & mask.bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~counts, IGNORED)}


def choose(candidates: Sequence[Callable[[], Popularity]], task: Task) -> Popularity:
    """The candidate with the highest first metric on val; the first one of equals."""
    made = (make() for make in bar(candidates, desc="settings on val", unit="setting"))
    return max(made, key=lambda one: evaluate_recommender(one, task).summary[task.metrics[0]].mean)


def baselines(task: Task) -> list[Popularity]:
    """Popularity, item-kNN, matrix factorisation and SASRec on a sequential task, each in its best setting on val."""
    data = task.train, task.items
    nearest = [partial(ItemKNN, *data, n, recent) for recent in (None, 10, 3) for n in (20, 100, 500)]
    factors = [partial(MatrixFactorisation, *data, n, alpha) for n in (16, 32, 64) for alpha in (1.0, 10.0)]
    return [Popularity(*data), choose(nearest, task), choose(factors, task), SASRec(*data, task.val)]
