"""SFT on TRL's SFTTrainer: the baseline that learns from somebody's rewrites instead of from the ranking metric.

The four variants of the paper (arXiv 2503.24289) are one prompt in four styles (`prompts.restyled`): keywords, JSON,
reasoning + keywords, reasoning + JSON. What differs from TRL's defaults:
- prompt and answer are tokenised apart and joined, as the model meets them when it generates: the prompt ends in the
  assistant prefix, the answer in the end token;
- the loss is on the answer only; `loss_on="all"` takes the prompt in too, as the official code does;
- full batches in an order drawn for the whole run, so that a resumed run finds its place in it;
- validation with the ranking metric, the best adapter kept, a limit in seconds, a stop when val does not improve.
"""

import math
import time
from dataclasses import replace

import pandas as pd
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rewriters import encode
from recr1_lite.profiles import Profile
from recr1_lite.tasks.base import digest
from recr1_lite.tasks.prompts import Prompt, format_answer, restyled
from recr1_lite.train import loop
from recr1_lite.train.loop import KitTrainer, Monitor, Run, Training, draw_order, run_trainer, settings

VARIANTS = {"SFT": "compact", "SFT + JSON": "json", "SFT + reasoning": "think", "SFT + reasoning + JSON": "paper"}
ROOM = {"compact": 0, "json": 6, "think": 40, "paper": 46}  # tokens that a style writes beside the keywords
PATIENCE = 4  # validations without a new best, after which a run stops
COLUMNS = ("request", "rewrite", "thought")  # of targets, as far as they are learned
IGNORED = -100  # the label of a token without loss


class KitSFTTrainer(KitTrainer, SFTTrainer):
    """SFTTrainer with the merged copy for validation."""


class SFTMonitor(Monitor):
    """The watch over an SFT run, which ends at `max_seconds` of training or when val has stopped improving."""

    def __init__(self, *args, max_seconds: float | None, patience: int | None):
        super().__init__(*args)
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        self.patience = patience or math.inf

    def on_train_begin(self, args, state, control, **others):
        # TRL counts tokens from 0 when a run goes on; the log of the checkpoint knows how many there were
        self.trainer._total_train_tokens = max([row.get("num_tokens", 0) for row in state.log_history], default=0)
        super().on_train_begin(args, state, control, **others)

    def tell(self, row: dict, state, left: float) -> None:
        log, last = state.log_history[-1], state.max_steps
        row |= {"loss": round(log["loss"], 4), "token_accuracy": round(log.get("mean_token_accuracy", 0.0), 4)}
        if self.run.progress and (row["step"] % 5 == 0 or row["step"] == last):
            learned = f"loss {row['loss']:.3f}  token accuracy {row['token_accuracy']:.0%}"
            took = f"{row['seconds']:.1f} s  left {left / 60:.1f} min"
            print(f"step {row['step']:>4}/{last}  {learned}  {took}", flush=True)

    def on_step_end(self, args, state, control, **others):
        spent = sum(row["seconds"] for row in loop.steps(state)) + time.perf_counter() - self.step_start
        self.ended |= spent >= self.max_seconds
        super().on_step_end(args, state, control, **others)
        control.should_training_stop |= self.ended

    def on_log(self, args, state, control, **others):
        super().on_log(args, state, control, **others)
        worse = [point for point in loop.points(state) if point["step"] > (loop.best_step(state) or 0)]
        self.ended |= len(worse) >= self.patience
        control.should_training_stop |= self.ended

    def due(self, state) -> bool:
        return super().due(state) or self.ended


def variant(prompt: Prompt, method: str) -> Prompt:
    """The prompt of one of the VARIANTS: the same question, the answer in that method's style."""
    if method not in VARIANTS:
        raise RecR1Error(f"there is no SFT variant {method!r}; choose one of {', '.join(VARIANTS)}")
    return prompt if method == "SFT" else restyled(prompt, VARIANTS[method])


def with_room(profile: Profile, prompt: Prompt) -> Profile:
    """The profile with as many more tokens to write as the prompt's style needs."""
    return replace(profile, max_completion_tokens=profile.max_completion_tokens + ROOM[prompt.style])


def answer_text(prompt: Prompt, rewrite: str, thought: str = "") -> str:
    """What the model should write after the prompt's prefix for `prompt.read` to find `rewrite`."""
    if prompt.style == "compact":
        return rewrite if not prompt.prefix or prompt.prefix[-1].isspace() else f" {rewrite}"
    return format_answer(rewrite, prompt.style, thought).removeprefix(prompt.prefix)


def tokenised(policy: Policy, targets: pd.DataFrame, prompt: Prompt, limit: int, loss_on: str = "answer") -> Dataset:
    """Rows of input_ids and labels (IGNORED where there is no loss): rendered prompt, answer, end token.

    targets: DataFrame of request, rewrite, perhaps thought. Raises RecR1Error for a prompt longer than `limit`
    tokens, an unknown `loss_on`, or a rewrite that the prompt's own parser would not find in the answer."""
    if loss_on not in ("answer", "all"):
        raise RecR1Error(f"loss_on={loss_on!r}; take `answer`, or `all` for the prompt too")
    tokenizer, rows, thoughts = policy.tokenizer, [], targets.get("thought", [""] * len(targets))
    texts = [prompt.render(tokenizer, request) for request in targets["request"]]
    encode(tokenizer, texts, limit)
    for text, rewrite, thought in zip(texts, targets["rewrite"], thoughts, strict=True):
        answer = answer_text(prompt, rewrite, thought)
        if prompt.read(answer).query != " ".join(rewrite.split()):
            advice = "clean it, or take another style"
            raise RecR1Error(f"the rewrite {rewrite!r} cannot be read back from {answer!r}; {advice}")
        start = tokenizer(text, add_special_tokens=False)["input_ids"]
        end = tokenizer(answer, add_special_tokens=False)["input_ids"] + policy.end_ids[:1]
        labels = [IGNORED] * len(start) if loss_on == "answer" else list(start)
        rows.append({"input_ids": start + end, "labels": labels + end})
    return Dataset.from_list(rows)


def train(
    policy: Policy,
    targets: pd.DataFrame,
    prompt: Prompt,
    profile: Profile,
    run: Run,
    loss_on: str = "answer",
    epochs: float | None = None,
    max_seconds: float | None = None,
    patience: int | None = PATIENCE,
    **overrides,
) -> Training:
    """Train the policy's adapter on targets; keep the adapter that `run.validate` likes best.

    targets: DataFrame of request, rewrite, perhaps thought (for the styles with reasoning). epochs: default the
    profile's. max_seconds: of training, validation not counted. overrides: fields of TRL's SFTConfig. A row of `curve`
    has step, loss, token_accuracy, grad_norm, seconds. The rest is as in `grpo.train`. Raises RecR1Error for no
    targets, a target that cannot be written in the prompt's style, too long a prompt, and as `Run.begin`."""
    if not len(targets):
        raise RecR1Error("there are no targets to train on; make some with targets.best_of_n or targets.read_pairs")
    set_seed(run.seed)
    data = tokenised(policy, targets, prompt, profile.max_prompt_tokens, loss_on)
    size = min(profile.sft_batch, len(data))
    count = max(1, round((epochs or profile.sft_epochs) * len(data) / size))
    sizes = dict(max_steps=count, per_device_train_batch_size=size, max_length=None, packing=False)
    fixed: dict = dict(learning_rate=profile.sft_learning_rate, train_sampling_strategy="sequential")
    config = SFTConfig(**(settings(profile, run) | sizes | fixed | overrides))
    if config.world_size > 1:
        raise RecR1Error(f"SFT runs in one process and {config.world_size} were launched; start it as one")
    rows = data.select(draw_order(len(data), count * size, run.seed))
    told: dict = {"targets": digest(targets[[name for name in COLUMNS if name in targets]]), "loss_on": loss_on}
    told |= {"patience": patience, "options": overrides}
    checkpoint = run.begin("SFT", policy, profile, prompt, config, **told)
    trainer = KitSFTTrainer(model=policy.model, args=config, processing_class=policy.tokenizer, train_dataset=rows)
    monitor = SFTMonitor(trainer, policy, profile, run, max_seconds=max_seconds, patience=patience)
    try:
        return run_trainer(trainer, monitor, checkpoint)
    finally:
        policy.model.eval()
