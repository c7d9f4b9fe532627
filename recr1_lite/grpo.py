"""GRPO on TRL's GRPOTrainer: what is changed, and the loop around it.

Against stock TRL 1.12.0 (same loss, same gradients: tests compare them on the same rollouts):
- rollouts come from a merged copy of the policy, and each prompt is run once for its whole group;
- the update runs each prompt once for its group too, with gradients through the shared cache;
- prompts are rendered by this kit (chat template + assistant prefix) and passed as text.
Against the paper (arXiv 2503.24289, section 3; its code trains on verl): LoRA instead of full weights, one device.

Presets. `paper`: GRPO as DeepSeekMath (arXiv 2402.03300) has it - advantages divided by the group's standard
deviation, each completion's loss averaged over its own tokens, KL 1e-3, temperature 0.6, top_p 0.95. `modern`: no KL
and a higher upper clip (DAPO, arXiv 2503.14476), no length bias in the loss (Dr. GRPO, arXiv 2503.20783), advantages
divided by the batch's standard deviation (arXiv 2508.08221), temperature 1.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from recr1_lite.errors import RecR1Error
from recr1_lite.files import atomic_write
from recr1_lite.metrics import Interval
from recr1_lite.models import Policy, save_adapter
from recr1_lite.profiles import Profile
from recr1_lite.prompts import Prompt
from recr1_lite.rewards import Scorer, reward_functions
from recr1_lite.rewriters import encode
from recr1_lite.rollouts import MergedCopy, completion_logps, generate_grouped
from recr1_lite.tasks.base import sealed

PRESETS = {
    "paper": dict(loss_type="grpo", scale_rewards="group", beta=1e-3, temperature=0.6, top_p=0.95),
    "modern": dict(loss_type="dr_grpo", scale_rewards="batch", beta=0.0, epsilon_high=0.28, temperature=1.0,
                   top_p=1.0),
}


class GroupedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts and update run each prompt once for its group."""

    _merged: MergedCopy | None = None

    def merged(self) -> MergedCopy | None:
        if self._merged is None:
            self._merged = MergedCopy.of(self.accelerator.unwrap_model(self.model))
        return self._merged

    def _tokenize_prompts(self, prompts):
        # the chat template has already put the start token in
        return self.processing_class(text=list(prompts), add_special_tokens=False)["input_ids"], None, {}

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
        tokenizer, model = self.processing_class, self.accelerator.unwrap_model(self.model)
        batch = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(model.device)
        merged, training = self.merged(), model.training
        tokens = generate_grouped(merged.refresh() if merged else model.eval(), batch.input_ids, batch.attention_mask,
                                  self.max_completion_length, tokenizer.eos_token_id, tokenizer.pad_token_id,
                                  self.temperature, self.top_p)
        model.train(training)
        kept = ((tokens == tokenizer.eos_token_id).cumsum(1) - (tokens == tokenizer.eos_token_id).int()) == 0
        completions = [row[keep].tolist() for row, keep in zip(tokens.cpu(), kept.cpu(), strict=True)]
        groups = [completions[i:i + self.num_generations] for i in range(0, len(completions), self.num_generations)]
        self._metrics["train" if training else "eval"]["distinct"].append(
            sum(len({tuple(row) for row in group}) / len(group) for group in groups) / len(groups))
        return completions, None

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
                                           compute_entropy=False, **_):
        size, values, entropies = batch_size or len(input_ids), [], []
        for at in range(0, len(input_ids), size):
            ids, mask = input_ids[at:at + size], attention_mask[at:at + size]
            logps, entropy = completion_logps(model, ids[:, :-logits_to_keep], mask[:, :-logits_to_keep],
                                              ids[:, -logits_to_keep:], mask[:, -logits_to_keep:], self.temperature)
            values.append(logps)
            entropies.append(entropy)
        return torch.cat(values), torch.cat(entropies) if compute_entropy else None, None


@dataclass
class Training:
    """What a run leaves: one dict a step (`curve`), one a validation (`val`), the best step, and why it stopped."""

    curve: list[dict]
    val: list[dict]
    best_step: int
    seconds: float
    stopped: str  # "finished" or "interrupted"
    folder: Path

    @property
    def adapter(self) -> Path:
        """The adapter that scored best on val."""
        return self.folder / "best"


def train(policy: Policy, train_examples: pd.DataFrame, retriever, prompt: Prompt, profile: Profile,
          folder: str | Path, k: int, validate: Callable[[MergedCopy | None], Interval] | None = None, seed: int = 0,
          resume: bool = False, progress: bool = True, trainer_class=None, **overrides) -> Training:
    """Train the policy's adapter with the ranking metric as reward; keep the adapter that `validate` likes best.

    train_examples: DataFrame of example_id, request, relevant. k: cut-off of the reward's nDCG. validate: gets the
    merged copy of the policy and returns an Interval; called before the first step, every `profile.validate_every`
    steps and after the last. folder: gets `checkpoint-N`, `best`, `last` and `training.json`. resume: go on from the
    newest whole checkpoint there. overrides: fields of TRL's GRPOConfig. Ctrl-C stops after the running step and
    keeps everything. Raises RecR1Error for an unknown preset, too long a prompt, or a folder already in use.
    """
    folder, end = Path(folder), policy.tokenizer.eos_token_id
    checkpoint = last_checkpoint(folder) if resume else None
    if not resume and last_checkpoint(folder):
        raise RecR1Error(f"{folder} already holds a run; go on with it (--resume) or give another folder (--out)")
    set_seed(seed)
    dataset = Dataset.from_dict({
        "prompt": [prompt.render(policy.tokenizer, request) for request in train_examples["request"]],
        "example_id": list(train_examples["example_id"])})
    encode(policy.tokenizer, dataset["prompt"], profile.max_prompt_tokens)
    grouped = policy.backend == "transformers"
    trainer = (trainer_class or (GroupedGRPOTrainer if grouped else GRPOTrainer))(
        model=policy.model, args=configure(profile, folder, seed, **overrides), train_dataset=dataset,
        processing_class=policy.tokenizer,
        reward_funcs=reward_functions(profile.recipe, Scorer(retriever, train_examples, prompt, k), {end}))
    monitor = Monitor(trainer, policy, folder, profile, validate, progress)
    trainer.add_callback(monitor)
    start = time.perf_counter()
    with sealed(), interruptible(monitor):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return monitor.close(time.perf_counter() - start)


def configure(profile: Profile, folder: Path, seed: int, **overrides) -> GRPOConfig:
    """TRL's configuration of a run: the profile's sizes, its preset, then `overrides`."""
    if profile.preset not in PRESETS:
        raise RecR1Error(f"there is no GRPO preset {profile.preset!r}; choose one of {', '.join(PRESETS)}")
    rollouts = profile.prompts_per_step * profile.group_size
    micro = profile.micro_batch or rollouts
    settings = dict(
        output_dir=str(folder), seed=seed, max_steps=profile.steps, num_generations=profile.group_size,
        per_device_train_batch_size=micro, gradient_accumulation_steps=rollouts // micro,
        max_completion_length=profile.max_completion_tokens, learning_rate=profile.learning_rate,
        lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_grad_norm=1.0, top_k=0,
        logging_steps=1, save_steps=profile.validate_every, save_total_limit=2, report_to="none", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), bf16=profile.dtype == "bfloat16" and torch.cuda.is_available(),
        fp16=profile.dtype == "float16" and torch.cuda.is_available(), gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available(), remove_unused_columns=False)
    return GRPOConfig(**(settings | PRESETS[profile.preset] | overrides))


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last), or None."""
    found = [path for path in Path(folder).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


class Monitor(TrainerCallback):
    """Validates, keeps the best adapter, prints one line a step, and says when something looks wrong.

    Everything it knows is in the trainer's log history, so a resumed run has it all.
    """

    def __init__(self, trainer, policy: Policy, folder: Path, profile: Profile, validate, progress: bool):
        self.trainer, self.policy, self.folder, self.profile = trainer, policy, folder, profile
        self.validate, self.progress, self.stop_asked, self.said = validate, progress, False, set()
        self.started = self.step_start = time.perf_counter()
        self.first_step = 0

    def on_train_begin(self, args, state, control, **_):
        self.started, self.first_step = time.perf_counter(), state.global_step
        if state.global_step == 0:
            self.score(state)

    def on_step_begin(self, args, state, control, **_):
        self.step_start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        self.seconds = time.perf_counter() - self.step_start
        control.should_training_stop |= self.stop_asked
        control.should_save |= self.stop_asked

    def on_log(self, args, state, control, logs=None, **_):
        if "reward" not in (logs or {}):
            return
        row = step_row(state.log_history[-1]) | {"seconds": round(self.seconds, 2)}
        state.log_history[-1]["recr1"] = row
        left = (time.perf_counter() - self.started) / (state.global_step - self.first_step) * (
            state.max_steps - state.global_step)
        if self.progress:
            print(f"step {row['step']:>4}/{state.max_steps}  reward {row['reward']:.3f}  gain {row['gain']:+.3f}  "
                  f"zero-advantage {row['zero_advantage_share']:.0%}  length {row['completion_length']:.1f}  "
                  f"entropy {row['entropy']:.2f}  {row['seconds']:.1f} s  left {left / 60:.1f} min", flush=True)
        for warning in suspicions([r["recr1"] for r in state.log_history if "recr1" in r], self.profile):
            if warning not in self.said:
                self.said.add(warning)
                print(f"  note: {warning}", file=sys.stderr, flush=True)
        if state.global_step % self.profile.validate_every == 0 or state.global_step == state.max_steps:
            self.score(state)

    def score(self, state) -> None:
        if self.validate is None:
            return
        interval = self.validate(getattr(self.trainer, "merged", lambda: None)())
        best = max((point["mean"] for point in points(state)), default=-math.inf)
        state.log_history.append({"step": state.global_step, "val": interval._asdict()})
        if interval.mean > best:
            save_adapter(self.policy, self.folder / "best")
        if self.progress:
            print(f"val  {state.global_step:>4}  {interval}{'  best so far' if interval.mean > best else ''}",
                  flush=True)

    def close(self, seconds: float) -> Training:
        state = self.trainer.state
        save_adapter(self.policy, self.folder / "last")
        val = points(state)
        best = max(val, key=lambda point: point["mean"])["step"] if val else state.global_step
        if not val:
            save_adapter(self.policy, self.folder / "best")
        done = Training([row["recr1"] for row in state.log_history if "recr1" in row], val, best, seconds,
                        "interrupted" if self.stop_asked else "finished", self.folder)
        atomic_write(self.folder / "training.json", json.dumps(
            asdict(done) | {"folder": self.folder.name, "profile": asdict(self.profile)}, indent=1))
        return done


def points(state) -> list[dict]:
    """Validation points of a trainer's state: dicts of step, mean, low, high, n."""
    return [{"step": row["step"], **row["val"]} for row in state.log_history if "val" in row]


def step_row(log: dict) -> dict:
    """One step of TRL's log under this kit's names; rewards and gains are nDCG units, lengths tokens."""
    names = {"reward": "reward", "reward_std": "reward_std", "frac_reward_zero_std": "zero_advantage_share",
             "completions/mean_length": "completion_length", "completions/clipped_ratio": "truncated_share",
             "clip_ratio/region_mean": "clip_ratio", "entropy": "entropy", "kl": "kl", "distinct": "distinct",
             "ndcg": "ndcg", "raw_ndcg": "raw_ndcg", "gain": "gain", "grad_norm": "grad_norm"}
    row = {"step": log["step"], **{ours: log[theirs] for theirs, ours in names.items() if theirs in log}}
    parts = {key: value for key, value in log.items() if key.startswith(("rewards/", "outcome/"))}
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in (row | parts).items()}


def suspicions(curve: list[dict], profile: Profile, window: int = 5) -> list[str]:
    """Sentences on what looks wrong in the last `window` steps: no signal, length at the limit, no diversity."""
    recent = curve[-window:]
    if len(recent) < window:
        return []

    def mean(key: str) -> float:
        return sum(row.get(key, math.nan) for row in recent) / window

    found = []
    if mean("zero_advantage_share") > 0.8:
        found.append("over 80% of the groups pay all their rollouts the same, so they teach nothing; raise the "
                     "temperature or the group size, or look at the reward")
    if mean("truncated_share") > 0.9 and curve[0].get("truncated_share", 1.0) < 0.5:
        found.append("completions now run to the token limit; look at some of them, and raise the limit or use the "
                     "length_penalised recipe")
    if mean("distinct") < 0.3:
        found.append("rollouts of one group are mostly the same text; the policy has stopped exploring: lower the "
                     "learning rate or raise the temperature")
    return found


@contextmanager
def interruptible(monitor: Monitor):
    """First Ctrl-C: stop after this step and keep everything; second: stop now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number, frame):
        if monitor.stop_asked:
            raise KeyboardInterrupt
        monitor.stop_asked = True
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
