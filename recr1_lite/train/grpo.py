"""GRPO on TRL's GRPOTrainer: what is changed, and a run from beginning to end.

Against stock TRL 1.12.0 (same loss, same gradients: tests compare them on the same rollouts):
- rollouts come from a merged copy of the policy, and each prompt is run once for its whole group;
- the update runs each prompt once for its group too, with gradients through the shared cache, and a micro-batch holds
  whole groups where it can;
- prompts are rendered by this kit (chat template + assistant prefix) and passed as text;
- the order of the prompts is drawn here for the whole run, so that a resumed run finds its place in it;
- an answer ends in any of the model's end tokens (stock knows the tokenizer's alone);
- the share of groups without advantage is counted by group (stock counts it over the batch when that is what
  it scales by), and the log also says how many rollouts of a group differ;
- a checkpoint of a policy with a KL reference brings back the policy (stock loads the reference alone);
- the KL to the untrained model is measured every few steps where the loss has no KL term;
- no telemetry, no model card;
- of several processes (`accelerate launch`) each has whole groups.

Against the paper (arXiv 2503.24289, section 3; its code trains on verl): LoRA instead of full weights.

Presets. `paper`: GRPO as DeepSeekMath (arXiv 2402.03300) has it - advantages divided by the group's standard deviation,
each completion's loss averaged over its own tokens, KL 1e-3, temperature 0.6, top_p 0.95. `modern`: no KL and a higher
upper clip (DAPO, arXiv 2503.14476), no length bias in the loss (Dr. GRPO, arXiv 2503.20783), advantages divided by the
batch's standard deviation (arXiv 2508.08221), temperature 1. `words`: `modern` with a credit for each word of a
rollout (`word_credit`); for the style `compact`, where a beginning of the answer is an answer. `keep`: `words`, KL 0.1.
A KL term is multiplied by the ratio of new to old probability, or its gradient is not the KL's (arXiv 2512.02556).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import evaluate
from recr1_lite.ledger import Ledger, record_of
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter, encode
from recr1_lite.policy.rollouts import MergedCopy, completion_logps, end_ids, generate_grouped, until_end
from recr1_lite.profiles import Profile
from recr1_lite.search.base import Retriever, check_engine
from recr1_lite.search.metrics import Interval
from recr1_lite.tasks.base import Task, digest
from recr1_lite.train.loop import KitTrainer, Monitor, Run, Training, draw_order, run_trainer, settings
from recr1_lite.train.rewards import Scorer, reward_functions, word_credit

PRESETS = {
    "paper": dict(loss_type="grpo", scale_rewards="group", beta=1e-3, temperature=0.6, top_p=0.95),
    "modern": dict(loss_type="dr_grpo", scale_rewards="batch", beta=0.0, epsilon_high=0.28, temperature=1.0, top_p=1.0),
}
PRESETS["words"] = PRESETS["modern"]
PRESETS["keep"] = PRESETS["words"] | {"beta": 0.1}
BY_WORD = ("words", "keep")  # with an advantage for each word
KL_EVERY = 5  # steps between two measurements of the KL to the untrained model, where the loss has no KL term

# Settings of stock TRL that the grouped rollouts and scores do not have: with one of them nothing would fail.
UNSUPPORTED: dict = dict(top_k=0, min_p=None, repetition_penalty=1.0, generation_kwargs=None, entropy_coef=0.0)
UNSUPPORTED |= dict(use_vllm=False, use_transformers_continuous_batching=False, use_liger_kernel=False)
UNSUPPORTED |= dict(use_adaptive_entropy=False)


class PlainGRPOTrainer(KitTrainer, GRPOTrainer):
    """GRPOTrainer, or what unsloth made of it, with this kit's prompts, counts by group, and resume.

    rollout_batch: rollouts written together, whole groups; None: the whole step. credit: example ids, completion ids
    and mask -> advantages of the tokens; None: all tokens of a rollout have one."""

    def __init__(self, *args, rollout_batch: int | None = None, credit: Callable | None = None, **others):
        super().__init__(*args, **others)
        self.rollout_batch, self.credit = rollout_batch, credit
        self.ends = end_ids(self.accelerator.unwrap_model(self.model), self.processing_class)
        if not self.use_vllm:  # TRL's own generation knows the tokenizer's alone
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.ends
        if self.mask_truncated_completions and len(self.ends) > 1:
            several = f"knows one end token and this model has {len(self.ends)}"
            raise RecR1Error(f"mask_truncated_completions {several}, so it would mask whole answers; leave it out")

    def _tokenize_prompts(self, prompts):
        # the chat template has already put the start token in
        return self.processing_class(text=list(prompts), add_special_tokens=False)["input_ids"], None, {}

    def _generate_single_turn(self, prompt_ids, *others):
        size = len(prompt_ids) if self.use_vllm else self.rollout_batch or len(prompt_ids)
        parts = [self._write_rollouts(prompt_ids[at : at + size], *others) for at in range(0, len(prompt_ids), size)]
        written = [until_end(row, self.ends) for rows, _ in parts for row in rows]
        completions = [row for row, _ in written]
        group = self.num_generations
        groups = [{tuple(row) for row in completions[at : at + group]} for at in range(0, len(completions), group)]
        self._note("distinct", sum(map(len, groups)) / len(completions))
        self._note("cut", sum(not ended for _, ended in written) / len(written))
        return completions, None if parts[0][1] is None else [row for _, rows in parts for row in rows]

    def _write_rollouts(self, prompt_ids, *others):
        """Completions (lists of ids) of some prompts, and their log-probabilities or None."""
        return super()._generate_single_turn(prompt_ids, *others)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.credit:
            examples = [row["example_id"] for row in inputs]
            output["advantages"] = self.credit(examples, output["completion_ids"], output["completion_mask"])
        return output

    def _calculate_rewards(self, *inputs):
        parts = super()._calculate_rewards(*inputs)
        groups = (parts * self.reward_weights.to(parts.device)).nansum(1).view(-1, self.num_generations)
        self._note("zero_advantage", (groups.amax(1) - groups.amin(1) < 1e-6).float().mean().item())
        return parts

    def _note(self, name: str, value: float) -> None:
        values = gather_object([value])  # of all processes
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        self._metrics[mode][name].append(sum(values) / len(values))

    def log(self, logs, *others):
        if self.beta == 0:
            self._metrics["train"].pop("kl", None)  # unsloth logs a 0 that nobody measured
        for metrics in self._metrics.values():
            if (cut := metrics.pop("cut", None)) and len(self.ends) > 1:  # TRL's share knows one end token
                metrics["completions/clipped_ratio"] = cut
        super().log(logs, *others)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # beside the KL reference in its subfolder, Trainer passes over the policy's own adapter
        (model or self.model).load_adapter(resume_from_checkpoint, "default", is_trainable=True)


class GroupedGRPOTrainer(PlainGRPOTrainer):
    """PlainGRPOTrainer whose rollouts and update run each prompt once for its group."""

    def __init__(self, model, args: GRPOConfig, **others):
        for setting, only in UNSUPPORTED.items():
            if (given := getattr(args, setting)) != only:
                advice = f"leave it at {only!r}, or use trl.GRPOTrainer"
                raise RecR1Error(f"{setting}={given!r} is not in the grouped trainer; {advice}")
        super().__init__(model=model, args=args, **others)
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            sharded = "weights in shards (FSDP, ZeRO-3) are not in the grouped trainer, which merges whole ones"
            raise RecR1Error(f"{sharded}; take DDP or ZeRO-2, or use trl.GRPOTrainer")

    def _write_rollouts(self, prompt_ids, *others):
        tokenizer, model = self.processing_class, self.accelerator.unwrap_model(self.model)
        batch = tokenizer.pad({"input_ids": prompt_ids}, padding_side="left", return_tensors="pt").to(model.device)
        training, writer = model.training, self.merged.refresh() if self.merged else model.eval()
        sizes = self.max_completion_length, self.ends, tokenizer.pad_token_id, self.temperature, self.top_p
        tokens = generate_grouped(writer, batch.input_ids, batch.attention_mask, *sizes)
        model.train(training)
        return [until_end(row, self.ends)[0] for row in tokens.tolist()], None

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        return output | {"place": torch.arange(len(output["completion_ids"]))}

    def _prepare_inputs(self, generation_batch):
        """Micro-batches of whole groups. TRL deals the rollouts of a step out at random, and then nearly every prompt
        stands in every micro-batch and is run in each; the gradient of a step is their sum in any order."""
        before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
        count, dealt = self.args.steps_per_generation, self._buffered_inputs
        several = 1 < count == self.args.gradient_accumulation_steps  # more would be several updates, dealt on purpose
        if dealt is before or not several or not self.model.training:
            return inputs
        order = torch.cat([part["place"] for part in dealt]).argsort()
        whole = {
            key: torch.cat([part[key] for part in dealt])[order] if value is not None and value.ndim else value
            for key, value in dealt[0].items()
        }
        self._buffered_inputs = split_tensor_dict(whole, count)
        return self._buffered_inputs[self._step % count]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **_
    ):
        own, size = self.accelerator.unwrap_model(model), batch_size or len(input_ids)
        rows = list(zip(input_ids.split(size), attention_mask.split(size)))

        def work():
            return [self._logps(own, ids, mask, logits_to_keep, compute_entropy) for ids, mask in rows]

        parts = work() if own is model else through(model, own, work, input_ids)
        values = torch.cat([part for part, _ in parts])
        if compute_entropy and self.beta == 0 and self.state.global_step % KL_EVERY == 0:
            self._note_kl(own, input_ids, attention_mask, logits_to_keep, values.detach())
        return values, torch.cat([entropy for _, entropy in parts]) if compute_entropy else None, None

    def _logps(self, model, ids, mask, keep: int, entropy: bool = False):
        """Log-probabilities and entropies of rows whose last `keep` tokens are the completion."""
        first = int(mask.any(0).long().argmax())  # where the longest prompt of these rows begins
        prompt, completion = (ids[:, first:-keep], mask[:, first:-keep]), (ids[:, -keep:], mask[:, -keep:])
        return completion_logps(model, *prompt, *completion, self.temperature, entropy)

    @torch.no_grad()
    def _note_kl(self, model, ids, mask, keep: int, values) -> None:
        """Log how far the policy is from the untrained model (Schulman's k3); stock does so with a KL term only."""
        with model.disable_adapter():
            difference = self._logps(model, ids, mask, keep)[0] - values
        kl, counted = difference.exp() - difference - 1, mask[:, -keep:]
        self._note("kl_to_untrained", ((kl * counted).sum() / counted.sum()).item())


def through(wrapper, model, work: Callable, *inputs):
    """What `work` gives, done as the forward pass of the wrapper that averages the gradients of several processes: of
    one pass, and `work` has several through the model."""
    forward = model.forward

    def once(*_):
        model.forward = forward
        return work()

    model.forward = once
    return wrapper(*inputs)


def train(
    policy: Policy, examples: pd.DataFrame, scorer: Scorer, profile: Profile, run: Run, trainer_class=None, **overrides
) -> Training:
    """Train the policy's adapter with the ranking metric as reward; keep the adapter that `run.validate` likes best.

    examples: DataFrame of example_id, request, relevant. scorer: pays the completions (a re-ranker brings its own); its
    prompt is the one that is asked. overrides: fields of TRL's GRPOConfig. Ctrl-C stops after the running step and
    keeps everything. Raises RecR1Error for an unknown preset, sizes that do not fit, no examples, too long a prompt,
    and as `Run.begin`; RetrieverError with the query when a search fails."""
    prompt, tokenizer = scorer.prompt, policy.tokenizer
    if not len(examples):
        raise RecR1Error("there are no examples to train on; pass task.train")
    set_seed(run.seed)
    config = configure(profile, run, policy.backend, **overrides)
    if profile.preset in BY_WORD and (policy.backend == "unsloth" or config.scale_rewards != "batch"):
        advice = "take the preset modern"
        raise RecR1Error(f"the preset {profile.preset} is for transformers and scale_rewards='batch' alone; {advice}")
    if policy.backend == "unsloth" and config.world_size > 1:
        raise RecR1Error(f"unsloth trains in one process, not in {config.world_size}; set RECR1_BACKEND=transformers")
    rows = examples.iloc[draw_order(len(examples), config.max_steps * profile.prompts_per_step, run.seed)]
    texts = {request: prompt.render(tokenizer, request) for request in rows["request"].unique()}
    encode(tokenizer, list(texts.values()), profile.max_prompt_tokens)
    prompts = [texts[request] for request in rows["request"]]
    dataset = Dataset.from_dict({"prompt": prompts, "example_id": rows["example_id"].tolist()})
    kind = trainer_class or (PlainGRPOTrainer if policy.backend == "unsloth" else GroupedGRPOTrainer)
    pay = reward_functions(profile.recipe, scorer, policy.end_ids)
    parts: dict = dict(train_dataset=dataset, processing_class=tokenizer, reward_funcs=pay)
    if issubclass(kind, PlainGRPOTrainer):  # not TRL's own, which a benchmark or a test may ask for
        credit = partial(word_credit, scorer, profile.recipe, tokenizer, profile.group_size)
        parts |= dict(rollout_batch=profile.rollout_batch, credit=credit if profile.preset in BY_WORD else None)
    known = {"examples": digest(examples), "scorer": scorer.about, "options": overrides}
    known |= {"processes": config.world_size} if config.world_size > 1 else {}  # each draws its own numbers
    checkpoint = run.begin("GRPO", policy, profile, prompt, config, **known)
    trainer = kind(model=policy.model, args=config, **parts)
    try:
        return run_trainer(trainer, Monitor(trainer, policy, profile, run), checkpoint)
    finally:
        if "ref" in policy.model.peft_config:  # TRL's copy of the adapter, the reference of the KL term
            policy.model.delete_adapter("ref")
        policy.model.eval()


def configure(profile: Profile, run: Run, backend: str = "transformers", **overrides) -> GRPOConfig:
    """TRL's configuration of a run: the profile's sizes, its preset, then `overrides`."""
    if profile.preset not in PRESETS:
        raise RecR1Error(f"there is no GRPO preset {profile.preset!r}; choose one of {', '.join(PRESETS)}")
    if not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # not cpu:1, from which torch loads nothing
    processes, group = PartialState(cpu=not torch.cuda.is_available()).num_processes, profile.group_size
    rollouts = profile.prompts_per_step // processes * group  # of each process
    parts = [size for size in range(1, min(profile.micro_batch or rollouts, rollouts) + 1) if rollouts % size == 0]
    if group < 2 or not parts or profile.prompts_per_step % processes:
        step = f"a step of {profile.prompts_per_step} prompts x {group} rollouts, {profile.micro_batch} at once,"
        advice = "take groups of 2 or more, a micro_batch of 1 or more, and as many prompts for each process"
        raise RecR1Error(f"{step} is not possible in {processes} processes; {advice}")
    micro = max([size for size in parts if size % group == 0] or parts)  # of whole groups, where one fits
    # unsloth would change the size of the step by itself
    whole = {"rollout_batch": profile.rollout_batch, "unsloth's micro_batch": micro if backend == "unsloth" else None}
    for name, size in whole.items():
        if size and size % group:
            raise RecR1Error(f"{name}={size} is no multiple of group_size={group}: it takes whole groups; change one")
    sizes = dict(max_steps=profile.steps, num_generations=group, per_device_train_batch_size=micro)
    sizes |= dict(gradient_accumulation_steps=rollouts // micro, max_completion_length=profile.max_completion_tokens)
    fixed: dict = dict(learning_rate=profile.learning_rate, top_k=0, remove_unused_columns=False)
    fixed["use_bias_correction_kl"] = True
    return GRPOConfig(**(settings(profile, run) | sizes | fixed | PRESETS[profile.preset] | overrides))


def train_task(
    policy: Policy,
    task: Task,
    retriever: Retriever,
    profile: Profile,
    folder: str | Path,
    seed: int = 0,
    ledger: Ledger | None = None,
    checked: bool = False,
    options: Mapping | None = None,
    **run,
) -> Training:
    """GRPO on the task's training requests; val picks the best adapter. A "train" row goes to the ledger.

    checked: the engine has passed `check_engine`. options: fields of TRL's GRPOConfig. run: resume, progress and watch
    of `Run`. A ledger that is bound to the run of this folder gets the run's id."""

    def validate(merged: MergedCopy | None) -> Interval:
        return on_val(as_rewriter(policy, task.prompt, profile, "policy", merged))

    def on_val(rewriter) -> Interval:
        result = evaluate(rewriter, task, retriever, "val", progress=False)
        return result.summary[result.metric]

    if not checked:
        check_engine(retriever, task.items)
    book, place = ledger or Ledger(), Run(Path(folder), validate, seed, task=task, **run)
    book.check()
    raw, scorer = on_val(RawRewriter()), Scorer(retriever, task.train, task.prompt, task.k_train)
    done = train(policy, task.train, scorer, profile, place, **(options or {}))
    row: dict = {"kind": "train", "method": "GRPO", "task": task.name, "config": asdict(profile), "curve": done.curve}
    row |= {"val": done.val, "best_step": done.best_step, "seconds": round(done.seconds, 1), "stopped": done.stopped}
    row |= {"metric": task.metrics[0], "baselines": {RawRewriter.name: raw._asdict()}}
    row |= {"run_id": record_of(folder)["id"]} if book.marks["run"] == place.folder.name else {}
    book.append(row | {"profile": profile.name, "seed": seed})
    return done
