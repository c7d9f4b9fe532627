"""SASRec: a small causal transformer over item ids, as a baseline of sequential recommendation.

Kang and McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), from parts of transformers: GPT-2 with the
items as its vocabulary, trained by Trainer. The loss is the cross-entropy over all items instead of one sampled
negative, which makes it the strong form of this baseline (Klenitskiy and Vasilev, RecSys 2023, arXiv 2309.07602).
"""

from __future__ import annotations

import copy
import tempfile

import numpy as np
import pandas as pd
import torch
from transformers import (
    GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed,
)

from recr1_lite.progress import bar
from recr1_lite.recommenders import Recommender, train_sequences

PAD, IGNORED = 0, -100  # the token of no item; the label of a place without loss


class SASRec(Recommender):
    """Ranks by the probability of the next item. val: its examples stop the training when their loss no longer falls.

    length: items of a history that are read; a longer training sequence is cut into pieces. epochs: at most so many.
    """

    name = "SASRec"

    def __init__(self, train: pd.DataFrame, items: pd.DataFrame, val: pd.DataFrame, dimensions: int = 64,
                 layers: int = 2, heads: int = 2, dropout: float = 0.3, length: int = 50, epochs: int = 100,
                 patience: int = 5, learning_rate: float = 2e-3, batch_size: int = 64, seed: int = 0,
                 progress: bool = True):
        self.val, self.length, self.batch_size, self.progress = val, length, batch_size, progress
        self.shape = dict(n_embd=dimensions, n_layer=layers, n_head=heads, resid_pdrop=dropout, embd_pdrop=dropout,
                          attn_pdrop=dropout, n_positions=length + 1)
        self.epochs, self.patience, self.learning_rate, self.seed = epochs, patience, learning_rate, seed
        super().__init__(train, items)

    def _fit(self, seen: list[list[str]]) -> None:
        set_seed(self.seed)
        config = GPT2Config(vocab_size=len(self.ids) + 1, bos_token_id=PAD, eos_token_id=PAD, use_cache=False,
                            **self.shape)
        self.model = GPT2LMHeadModel(config)
        self.model.loss_type = "ForCausalLM"  # GPT-2 names none, and transformers warns before it takes this one
        pieces = [piece for own in seen for piece in _pieces(self._tokens(own), self.length)]
        ahead = [self._tokens(own)[-self.length - 1:] for own in train_sequences(self.val)]
        self.best = _Best(self.model, self.patience)
        # Trainer makes its folder though nothing is saved
        with tempfile.TemporaryDirectory() as folder, bar(
                total=self.epochs, desc="SASRec", unit="epoch", progress=self.progress) as self.best.shown:
            arguments = TrainingArguments(
                folder, num_train_epochs=self.epochs, learning_rate=self.learning_rate, weight_decay=0.01,
                per_device_train_batch_size=self.batch_size, per_device_eval_batch_size=256, seed=self.seed,
                eval_strategy="epoch", save_strategy="no", logging_strategy="no", report_to="none",
                disable_tqdm=True, use_cpu=not torch.cuda.is_available())
            trainer = Trainer(
                self.model, arguments, data_collator=_collate, train_dataset=[(own, 1) for own in pieces],
                eval_dataset=[(own, len(own) - 1) for own in ahead], callbacks=[self.best])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        self.model.load_state_dict(self.best.weights)
        self.model.eval()

    def _tokens(self, items: list[str]) -> list[int]:
        return [self.rows[item] + 1 for item in items if item in self.rows]

    @torch.no_grad()
    def _scores(self, histories: list[list[str]]) -> np.ndarray:
        known, scores = [self._tokens(own)[-self.length:] or [PAD] for own in histories], []
        for at in range(0, len(known), 256):
            batch = known[at:at + 256]
            ids, mask = _padded(batch)
            logits = self.model(input_ids=ids.to(self.model.device), attention_mask=mask.to(self.model.device)).logits
            ends = torch.tensor([len(own) - 1 for own in batch])
            scores.append(logits[torch.arange(len(batch)), ends, 1:].softmax(-1).float().cpu().numpy())
        return np.concatenate(scores)


class _Best(TrainerCallback):
    """Keeps the weights with the lowest loss on val, and stops after `patience` epochs without a lower one."""

    def __init__(self, model, patience: int):
        self.model, self.patience, self.losses, self.weights, self.shown = model, patience, [], {}, None

    def on_evaluate(self, args, state, control, metrics, **others):
        self.losses.append(metrics["eval_loss"])
        lowest = int(np.argmin(self.losses))
        if lowest == len(self.losses) - 1:
            self.weights = copy.deepcopy(self.model.state_dict())
        if len(self.losses) - 1 - lowest >= self.patience:
            control.should_training_stop = True
        self.shown.update()


def _pieces(tokens: list[int], length: int) -> list[list[int]]:
    """Pieces of at most length + 1 tokens, from the end; each begins with the token that the one before it ends in."""
    ends = range(len(tokens), 1, -length)
    return [tokens[max(0, end - length - 1):end] for end in ends]


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask (n, longest)."""
    rows = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return ids, (ids != PAD).long()


def _collate(batch: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    """A batch of (tokens, first place that counts): the model predicts each token from those before it."""
    ids, mask = _padded([tokens for tokens, _ in batch])
    first = torch.tensor([[place] for _, place in batch])
    counts = (torch.arange(ids.size(1)) >= first) & mask.bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~counts, IGNORED)}
