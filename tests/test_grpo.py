"""GRPO: equal to stock TRL in loss, gradient and greedy rollouts; resumable, interruptible, and it learns."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPT, examples, perturb, save_tiny, tiny_policy, tiny_profile, toy_retriever, toy_task
from transformers import GenerationConfig, TrainerCallback
from trl import GRPOTrainer

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import record_of
from recr1_lite.policy import rollouts
from recr1_lite.policy.backend import Machine
from recr1_lite.policy.models import Policy, load_policy
from recr1_lite.policy.rollouts import completion_logps
from recr1_lite.search.base import CallableRetriever, RetrieverError
from recr1_lite.search.metrics import Interval
from recr1_lite.train.grpo import GroupedGRPOTrainer, PlainGRPOTrainer, configure, train
from recr1_lite.train.loop import Run, check_adapter, draw_order, last_checkpoint, settings, suspicions
from recr1_lite.train.rewards import Scorer


def run(profile, folder, retriever=None, n: int = 6, policy: Policy | None = None, prompt=PROMPT, **options):
    """Train a fresh policy, or this one, on n examples; options: of Run, of `train` and of TRL's configuration."""
    names = {field.name for field in fields(Run)} & options.keys()
    place = Run(Path(folder), **({"progress": False} | {name: options.pop(name) for name in names}))
    scorer = Scorer(retriever or toy_retriever(), examples(n), prompt, 10)
    fixed = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    policy = policy or load_policy(profile, place.seed)
    return train(policy, examples(n), scorer, profile, place, **(fixed | options))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.allclose(left[key], right[key], rtol=0, atol=1e-6) for key in left)


def scripted(*means: float):
    """A validation that gives these means, and how often it was asked."""
    left, asked = list(means), []

    def validate(merged) -> Interval:
        asked.append(merged)
        return Interval(left.pop(0), 0.0, 1.0, 8)

    return validate, asked


# the same numbers as stock TRL


def watched(trainer_class, completions=None, scale: float = 0.0):
    """The trainer with given completions (or its own), a policy moved off the reference, and its numbers kept."""

    class Watched(trainer_class):
        losses, gradients, rollouts = [], [], []

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            perturb(Policy(self.model, None, ""), scale)  # after TRL made its copy, the reference
            self.add_callback(Keep())

        def _generate_single_turn(self, prompt_ids, *others):
            if completions is not None:
                return completions[: len(prompt_ids)], None
            rollouts, logps = super()._generate_single_turn(prompt_ids, *others)
            self.rollouts.extend(rollouts)
            return rollouts, logps

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            Watched.gradients.append(
                torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])
            )

    return Watched


def random_completions(rows: int) -> list[list[int]]:
    """Of 1 to 5 tokens, half of them ended."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 6, (rows,)).tolist()
    written = [torch.randint(4, 124, (length,)).tolist() for length in lengths]
    return [row if at % 2 else [*row[:-1], 3] for at, row in enumerate(written)]


@pytest.mark.parametrize(
    "preset, settings",
    [
        ("paper", {"beta": 0.3}),
        ("modern", {}),
        ("modern", {"micro_batch": 4, "beta": 0.3}),
        ("paper", {"micro_batch": 4}),
        # the second step is off-policy: old log-probabilities, ratios, clipping
        ("modern", {"num_iterations": 2, "learning_rate": 5e-2}),
    ],
    ids=str,
)
def test_loss_and_gradient_equal_stock(tiny_folder, tmp_path, preset, settings):
    settings = dict(settings)
    profile = tiny_profile(
        tiny_folder, preset=preset, steps=2, prompts_per_step=3, micro_batch=settings.pop("micro_batch", None)
    )
    # rewards that differ within a group, whatever the words
    retriever = CallableRetriever(lambda queries, k: [["x", "y", "z"][: len(q) % 4] + ["gold"] for q in queries])
    seen = []
    for name, trainer_class, attention in [("ours", GroupedGRPOTrainer, "grouped"), ("stock", GRPOTrainer, "eager")]:
        policy = load_policy(profile, seed=0)
        policy.model.get_base_model().set_attn_implementation(attention)
        trainer = watched(trainer_class, random_completions(12), scale=0.2)
        options = dict(policy=policy, trainer_class=trainer, max_grad_norm=0) | settings
        done = run(profile, tmp_path / name, retriever, **options)
        seen.append((trainer, done))
    (ours, done), (stock, other) = seen
    assert len(ours.losses) == len(stock.losses) >= 2
    steps = np.array(ours.losses).reshape(2, -1), np.array(stock.losses).reshape(2, -1)
    if profile.micro_batch:  # the same rollouts, dealt out otherwise
        steps = tuple(step.sum(1) for step in steps)
    assert steps[0] == pytest.approx(steps[1], rel=1e-4, abs=1e-6)
    for mine, theirs in zip(ours.gradients, stock.gradients, strict=True):
        assert theirs.norm() > 1e-3
        assert (mine - theirs).norm() < 1e-4 * theirs.norm()
    near = 0.1 if profile.micro_batch else 1e-3  # what is logged is the mean of the micro-batches' means
    for key in ("reward", "clip_ratio", "completion_length", "truncated_share"):
        assert [row.get(key) for row in done.curve] == pytest.approx([row.get(key) for row in other.curve], abs=1e-4)
    assert [row["entropy"] for row in done.curve] == pytest.approx([row["entropy"] for row in other.curve], rel=near)
    if "beta" in settings:
        assert done.curve[0]["kl"] == pytest.approx(other.curve[0]["kl"], rel=near)
        assert done.curve[0]["kl"] > 0.01
    if "num_iterations" in settings:
        assert done.curve[1]["clip_ratio"] > 0
    assert 0 < done.curve[0]["truncated_share"] < 1


def test_a_micro_batch_holds_whole_groups_as_long_as_their_prompts(tiny_folder, tmp_path):
    """TRL deals rollouts out at random; then each micro-batch would run nearly every prompt of the step."""
    seen: list[tuple] = []

    class Watched(GroupedGRPOTrainer):
        def _logps(self, model, ids, mask, keep, *others):
            prompts = {tuple(row[hold.bool()]) for row, hold in zip(ids[:, :-keep].numpy(), mask[:, :-keep])}
            seen.append((len(ids), len(prompts)))
            return super()._logps(model, ids, mask, keep, *others)

    profile = tiny_profile(tiny_folder, preset="paper", steps=2, prompts_per_step=4, micro_batch=8)
    run(profile, tmp_path / "kept", trainer_class=Watched)
    assert set(seen) == {(8, 2)} and len(seen) >= 4
    lengths = []
    original = completion_logps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "recr1_lite.train.grpo.completion_logps", lambda *a: lengths.append(a[2].any(0).all()) or original(*a)
        )
        run(profile, tmp_path / "again")
    assert lengths and all(lengths), "no column of prompts is padding alone"
    one, two = (adapter(tmp_path / name / "last") for name in ("kept", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_gradient_checkpointing_and_parts_change_memory_alone(tiny_folder, tmp_path, monkeypatch, preset):
    """The same adapter after three steps, whether layers and logits are kept or computed again."""
    usual = tiny_profile(tiny_folder, preset=preset, steps=3, micro_batch=4)
    run(usual, tmp_path / "kept")
    monkeypatch.setattr("recr1_lite.policy.rollouts.LARGE_LOGITS", 0)
    monkeypatch.setattr("recr1_lite.policy.rollouts.PART", 500)
    calls = []
    whole = rollouts._every_prompt
    monkeypatch.setattr("recr1_lite.policy.rollouts._every_prompt", lambda *args: calls.append(1) or whole(*args))
    profile = replace(usual, gradient_checkpointing=True)
    run(profile, tmp_path / "again")
    assert calls, "no layer was computed again"
    one, two = (adapter(tmp_path / name / "last") for name in ("kept", "again"))
    start = dict(load_policy(profile).model.named_parameters())
    assert all((one[key] - two[key]).abs().max() < 2e-5 for key in one)
    assert max((one[key] - start[key.replace(".weight", ".default.weight")]).abs().max() for key in one) > 1e-3


def test_the_plain_trainer_is_stock_with_the_kits_counts_and_resume(tiny_folder, tmp_path):
    """What runs under unsloth, here on stock TRL: counts by group, and a killed run that goes on to the same end."""
    profile = tiny_profile(tiny_folder, preset="paper", steps=4, validate_every=2)
    done = run(profile, tmp_path / "whole", trainer_class=PlainGRPOTrainer)
    assert all(0 < row["distinct"] <= 1 and 0 <= row["zero_advantage_share"] <= 1 for row in done.curve)

    class Killed(PlainGRPOTrainer):
        def training_step(self, *args, **others):
            if self.state.global_step == 3:
                raise OSError("power cut")
            return super().training_step(*args, **others)

    with pytest.raises(OSError, match="power cut"):
        run(profile, tmp_path / "cut", trainer_class=Killed)
    run(profile, tmp_path / "cut", trainer_class=PlainGRPOTrainer, resume=True)
    assert same(adapter(tmp_path / "cut" / "last"), adapter(tmp_path / "whole" / "last"))


@pytest.mark.parametrize("trainer_class", [GroupedGRPOTrainer, PlainGRPOTrainer])
def test_rollouts_in_batches(tiny_folder, tmp_path, trainer_class):
    """Memory of the rollouts is that of a batch; every prompt gets its rollouts, in their order."""
    written = []

    class Seen(trainer_class):
        def _write_rollouts(self, prompt_ids, *others):
            found = super()._write_rollouts(prompt_ids, *others)
            written.append((prompt_ids, found[0]))
            return found

        def _generate_single_turn(self, prompt_ids, *others):
            found, logps = super()._generate_single_turn(prompt_ids, *others)
            assert [ids for batch, _ in written for ids in batch] == prompt_ids
            assert [row for _, rows in written for row in rows] == found and logps is None
            return found, logps

    profile = tiny_profile(tiny_folder, steps=1, prompts_per_step=3, rollout_batch=4)
    done = run(profile, tmp_path / "run", trainer_class=Seen)
    assert [len(rows) for _, rows in written] == [4, 4, 4] and done.curve[0]["distinct"] > 0


@pytest.mark.parametrize("trainer_class", [GroupedGRPOTrainer, PlainGRPOTrainer])
def test_a_completion_ends_in_any_end_token(tmp_path, trainer_class):
    ends, written = [3, *range(40, 80)], []
    folder = save_tiny(tmp_path / "model")
    GenerationConfig(eos_token_id=ends, pad_token_id=0).save_pretrained(folder)

    class Seen(trainer_class):
        def _generate_single_turn(self, prompt_ids, *others):
            found = super()._generate_single_turn(prompt_ids, *others)
            written.extend(found[0])
            return found

    profile = tiny_profile(folder, steps=1)
    done = run(profile, tmp_path / "run", policy=tiny_policy(folder), trainer_class=Seen)
    assert not any(token in ends for row in written for token in row[:-1])
    cut = [row[-1] not in ends for row in written]
    assert any(row[-1] in ends[1:] for row in written) and all(len(row) == 5 for row, c in zip(written, cut) if c)
    assert done.curve[0]["truncated_share"] == pytest.approx(sum(cut) / len(cut), abs=1e-4)
    with pytest.raises(RecR1Error, match="mask_truncated_completions knows one end token and this model has 41"):
        run(profile, tmp_path / "masked", mask_truncated_completions=True)


def test_an_unsloth_policy_gets_the_plain_trainer(tiny_folder, tmp_path, monkeypatch):
    policy, used = tiny_policy(tiny_folder), []

    class Seen(PlainGRPOTrainer):
        def __init__(self, *args, **others):
            used.append(others["args"].per_device_train_batch_size)
            super().__init__(*args, **others)

    monkeypatch.setattr("recr1_lite.train.grpo.PlainGRPOTrainer", Seen)
    policy.backend = "unsloth"
    run(tiny_profile(tiny_folder, steps=1, micro_batch=4), tmp_path / "whole", policy=policy)
    assert used == [4]


def test_the_configuration(tiny_folder, tmp_path, monkeypatch):
    """report_to goes to transformers as it is; none is the default, and none is needed."""
    profile = tiny_profile(tiny_folder, micro_batch=4, preset="paper", prompts_per_step=4)
    config = configure(profile, Run(tmp_path, seed=7), beta=0.5)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 4)
    assert (config.beta, config.temperature, config.scale_rewards, config.seed) == (0.5, 0.6, "group", 7)
    for most, size in {1: 1, 3: 2, 7: 4, 8: 8, 15: 8, 16: 16, 99: 16, None: 16}.items():  # whole groups, where one fits
        few = configure(replace(profile, micro_batch=most), Run(tmp_path))
        assert (few.per_device_train_batch_size, few.gradient_accumulation_steps) == (size, 16 // size)
    assert config.save_steps == 2 and config.report_to == []
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "trackio" or find(name))
    assert configure(replace(profile, report_to="trackio"), Run(tmp_path)).report_to == ["trackio"]
    for change, backend, message in (
        (dict(report_to="nosuchtracker"), "", "report_to='nosuchtracker' needs the package nosuchtracker"),
        (dict(preset="moden"), "", "no GRPO preset 'moden'; choose one of paper, modern"),
        (dict(group_size=1), "", "groups of 2 or more"),
        (dict(micro_batch=-1), "", "micro_batch of 1 or more"),
        (dict(rollout_batch=6), "", "rollout_batch=6 is no multiple of group_size=4"),
        (dict(micro_batch=2), "unsloth", "micro_batch=2 is no multiple of group_size=4: it takes whole groups"),
    ):
        with pytest.raises(RecR1Error, match=message):
            configure(replace(profile, **change), Run(tmp_path), backend)


@pytest.mark.parametrize(
    "asked, capability, flags",
    [
        ("bfloat16", (8, 9), (True, False)),
        ("bfloat16", (7, 5), (False, True)),
        ("float16", (8, 9), (False, True)),
        ("float32", (8, 9), (False, False)),
    ],
)
def test_mixed_precision_by_capability(tiny_folder, tmp_path, monkeypatch, asked, capability, flags):
    monkeypatch.setattr("recr1_lite.policy.backend.machine", lambda: Machine(True, "card", 1, capability))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = settings(tiny_profile(tiny_folder, dtype=asked), Run(tmp_path))
    assert (found["bf16"], found["fp16"]) == flags and not found["use_cpu"]


def test_greedy_rollouts_equal_stock(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, steps=1, prompts_per_step=6, max_completion_tokens=8)
    rollouts = []
    for name, trainer_class in [("ours", GroupedGRPOTrainer), ("stock", GRPOTrainer)]:
        trainer = watched(trainer_class, scale=0.2)
        done = run(profile, tmp_path / name, trainer_class=trainer, temperature=1e-4)
        assert done.curve[0].get("distinct", 0.25) == 0.25, "greedy, a group of four is one text"
        rollouts.append(trainer.rollouts)
    assert rollouts[0] == rollouts[1]
    lengths = {len(row) for row in rollouts[0]}
    assert len(rollouts[0]) == 24 and len(lengths) > 1 and max(lengths) == 8


def exact_kl(policy: Policy) -> float:
    """KL of the policy from the model without its adapter, whole vocabulary, in nats a token on fixed contexts."""
    torch.manual_seed(0)
    ids = torch.randint(4, 124, (16, 12))
    with torch.no_grad():
        here = torch.log_softmax(policy.model(input_ids=ids).logits, -1)
        with policy.model.disable_adapter():
            there = torch.log_softmax(policy.model(input_ids=ids).logits, -1)
    return (here.exp() * (here - there)).sum(-1).mean().item()


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_the_kl_term_alone_lowers_the_kl(tiny_folder, tmp_path, preset):
    """The official code has the wrong sign there: its term drives the policy away from the reference."""
    profile = tiny_profile(tiny_folder, preset=preset, steps=1, prompts_per_step=6, group_size=16)
    nothing = CallableRetriever(lambda queries, k: [[] for _ in queries])  # no reward, so no advantage
    after = {}
    for beta in (1.0, -1.0):
        policy, trainer = load_policy(profile), watched(GroupedGRPOTrainer, scale=0.3)
        before, place = exact_kl(perturb(load_policy(profile), 0.3)), tmp_path / str(beta)
        options = dict(optim="sgd", learning_rate=0.05, max_grad_norm=0, temperature=1.0, top_p=1.0)
        done = run(profile, place, nothing, policy=policy, trainer_class=trainer, beta=beta, **options)
        assert done.curve[0]["reward"] == 0 and done.curve[0]["zero_advantage_share"] == 1
        assert done.curve[0]["kl"] > 0.01
        after[beta] = exact_kl(policy)
    assert after[1.0] < before < after[-1.0]


# a run


def test_it_learns_and_says_so_in_lines(tiny_folder, tmp_path, capfd, network):
    profile = tiny_profile(
        tiny_folder, steps=25, prompts_per_step=4, group_size=8, learning_rate=2e-2, validate_every=25
    )
    validate, asked = scripted(0.1, 0.9)
    done = run(profile, tmp_path / "run", validate=validate, progress=True)
    rewards = [row["reward"] for row in done.curve]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    assert done.curve[-1]["ndcg"] == pytest.approx(rewards[-1], abs=1e-4)
    assert [row["step"] for row in done.curve] == list(range(1, 26))
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(lines) == 25 + 2 and all(line.startswith(("step", "val ")) for line in lines), out
    assert "left" in lines[1] and "zero-advantage" in lines[1]
    assert "best so far" in lines[-1]
    assert all(line.startswith("  note: over 80% of the groups") for line in err.splitlines()), err
    assert network == []


def test_trl_logs_each_component_and_sums_them(tiny_folder, tmp_path):
    (row,) = run(tiny_profile(tiny_folder, steps=1, recipe="length_penalised"), tmp_path / "run").curve
    assert row["reward"] == pytest.approx(row["rewards/ndcg/mean"] + row["rewards/length/mean"], abs=1e-4)
    assert sum(value for name, value in row.items() if name.startswith("outcome/")) == pytest.approx(1)


def test_the_best_adapter_is_the_best_validation_point(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, steps=6, learning_rate=5e-2)
    policy = load_policy(profile)
    weights = {}

    def validate(merged) -> Interval:
        named = policy.model.named_parameters()
        weights[len(weights) * 2] = [weight.clone() for name, weight in named if ".default." in name]
        return Interval([0.2, 0.5, 0.5, 0.4][len(weights) - 1], 0.0, 1.0, 8)

    done = run(profile, tmp_path / "run", policy=policy, validate=validate, seed=3)
    assert done.best_step == 2 and done.stopped == "finished"
    assert [(point["step"], point["mean"]) for point in done.val] == [(0, 0.2), (2, 0.5), (4, 0.5), (6, 0.4)]
    loaded = load_policy(profile, adapter=done.adapter).model
    found = [weight for name, weight in loaded.named_parameters() if ".default." in name]
    assert all(torch.equal(ours, kept) for ours, kept in zip(found, weights[2], strict=True))
    assert not all(torch.equal(ours, kept) for ours, kept in zip(found, weights[4], strict=True))
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["best_step"] == 2 and record["val"] == done.val and record["curve"] == done.curve
    assert record["profile"]["steps"] == 6 and str(tmp_path) not in json.dumps(record["folder"])


def test_without_validation_the_best_adapter_is_the_last(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder)
    done = run(profile, tmp_path / "run")
    assert (done.best_step, done.val) == (4, [])
    assert same(adapter(done.adapter), adapter(tmp_path / "run" / "last"))


def test_two_runs_with_one_policy_and_a_reference(tiny_folder, tmp_path):
    """As when a notebook's cell is run again; the second starts where the first ended, and so does its KL."""
    profile = tiny_profile(tiny_folder, preset="paper", steps=2)
    policy = load_policy(profile)
    run(profile, tmp_path / "one", policy=policy, learning_rate=5e-2)
    assert list(policy.model.peft_config) == ["default"]
    done = run(profile, tmp_path / "two", policy=policy)
    assert abs(done.curve[0]["kl"]) < 1e-6 and done.curve[1]["kl"] > 1e-6
    assert not list((tmp_path / "two" / "best").glob("ref*"))


def test_seeds(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, steps=2)
    one, again, other = (run(profile, tmp_path / str(at), seed=seed) for at, seed in enumerate((5, 5, 6)))
    assert same(adapter(one.adapter), adapter(again.adapter))
    assert not same(adapter(one.adapter), adapter(other.adapter))


def test_one_process_that_sees_several_cards_trains_on_one(tiny_folder, tmp_path, monkeypatch):
    """transformers would wrap the model in DataParallel."""

    def two_cards(*given, **options):
        config = configure(*given, **options)
        config._n_gpu = 2
        return config

    profile = tiny_profile(tiny_folder, steps=2)
    one = run(profile, tmp_path / "one")
    monkeypatch.setattr("recr1_lite.train.grpo.configure", two_cards)
    assert same(adapter(run(profile, tmp_path / "two").adapter), adapter(one.adapter))


def test_a_failing_retriever_stops_the_run_with_the_query(tiny_folder, tmp_path):
    seen = []

    def search(queries, k):
        seen.extend(queries)
        raise TimeoutError("the index is away")

    profile = tiny_profile(tiny_folder)
    with pytest.raises(RetrieverError, match="the index is away") as caught:
        run(profile, tmp_path / "run", CallableRetriever(search))
    assert any(repr(query) in str(caught.value) for query in seen if query)


def test_zero_advantage_is_counted_by_group_in_every_preset(tiny_folder, tmp_path):
    """Stock TRL counts it over the whole batch when the batch's deviation is what it scales by."""
    word, good = 20, 8 + 119
    completions = [[word, 3]] * 4 + [[word, 3], [good, 3]] * 2
    for preset in ("paper", "modern"):
        profile = tiny_profile(tiny_folder, preset=preset, steps=1)
        trainer = watched(GroupedGRPOTrainer, completions)
        done = run(profile, tmp_path / preset, trainer_class=trainer)
        assert done.curve[0]["reward"] == pytest.approx(0.25 * 0.63093, abs=1e-4)
        assert done.curve[0]["zero_advantage_share"] == 0.5


def test_the_kl_to_the_untrained_model_is_measured_without_a_kl_term(tiny_folder, tmp_path):
    policy = load_policy(tiny_profile(tiny_folder), seed=1)
    profile = replace(tiny_profile(tiny_folder), steps=6, preset="modern", learning_rate=1e-2)
    kl = {row["step"]: row["kl"] for row in run(profile, tmp_path / "run", policy=policy).curve if "kl" in row}
    assert kl.keys() == {1, 6} and abs(kl[1]) < 1e-6 < kl[6]


def test_the_sealed_test_stays_closed_while_a_trainer_runs(tiny_folder, tmp_path):
    task, profile = toy_task(), tiny_profile(tiny_folder)
    with pytest.raises(RecR1Error, match="sealed while a trainer runs"):
        run(profile, tmp_path / "run", validate=lambda merged: task.unseal_test())


# stop and go on

KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[3:]
import torch
from test_grpo import run, scripted
from tiny import tiny_profile
torch.set_num_threads({threads})
validate, asked = scripted(.1, .3, .2)
def deadly(merged):
    if len(asked) == 2:
        os.kill(os.getpid(), signal.SIGKILL)  # at step 4, validated but not yet saved
    return validate(merged)
profile = tiny_profile(sys.argv[1], preset="paper", steps=6, learning_rate=5e-2)
run(profile, sys.argv[2], n=3, validate=deadly, seed=1, beta=0.2)
"""


def test_resume_after_kill_equals_the_uninterrupted_run(tiny_folder, tmp_path):
    """With a KL reference, over several epochs of 3 examples."""
    profile = tiny_profile(tiny_folder, preset="paper", steps=6, learning_rate=5e-2)
    validate, _ = scripted(0.1, 0.3, 0.2, 0.25)
    options = dict(n=3, seed=1, beta=0.2)
    whole = run(profile, tmp_path / "whole", validate=validate, **options)

    here, code = Path(__file__).parent, KILLED.format(threads=torch.get_num_threads())
    places = [tiny_folder, tmp_path / "killed", here, here.parent]
    command = [sys.executable, "-c", code, *map(str, places)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert last_checkpoint(tmp_path / "killed").name == "checkpoint-2"

    validate, asked = scripted(0.2, 0.25)
    resumed = run(profile, tmp_path / "killed", validate=validate, resume=True, **options)
    assert len(asked) == 2, "steps 0 and 2 are in the checkpoint's log and not scored again"
    assert same(adapter(tmp_path / "killed" / "last"), adapter(tmp_path / "whole" / "last"))
    assert same(adapter(resumed.adapter), adapter(whole.adapter))
    assert resumed.val == whole.val and resumed.best_step == whole.best_step == 2
    for ours, theirs in zip(resumed.curve, whole.curve, strict=True):
        assert {**ours, "seconds": 0} == pytest.approx({**theirs, "seconds": 0}, abs=1e-4)


def test_ctrl_c_keeps_everything_and_resume_goes_on(tiny_folder, tmp_path, capfd):
    profile, seen = tiny_profile(tiny_folder, steps=5, learning_rate=5e-2, validate_every=2), []
    whole = run(profile, tmp_path / "whole", validate=scripted(0.1, 0.2, 0.3, 0.4)[0])

    def watch(curve, val):
        seen.append(([row["step"] for row in curve], [point["step"] for point in val]))
        if len(curve) == 2:
            signal.raise_signal(signal.SIGINT)  # pressed between two steps: the next one is still made

    handler, place = signal.getsignal(signal.SIGINT), tmp_path / "run"
    stopped = run(profile, place, validate=scripted(0.1, 0.2)[0], watch=watch)
    assert signal.getsignal(signal.SIGINT) is handler and "stopping after this step" in capfd.readouterr().err
    assert seen == [([], [0]), ([1], [0]), ([1, 2], [0, 2]), ([1, 2, 3], [0, 2])]
    assert stopped.stopped == json.loads((place / "training.json").read_text())["stopped"] == "interrupted"
    assert load_policy(profile, adapter=place / "last", trainable=False)
    assert stopped.best_step == 2 and stopped.adapter.is_dir()
    assert last_checkpoint(place).name == "checkpoint-3"

    seen.clear()
    resumed = run(profile, place, validate=scripted(0.3, 0.4)[0], watch=watch, resume=True)
    assert seen[0] == ([1, 2, 3], [0, 2]) and seen[-1] == ([1, 2, 3, 4, 5], [0, 2, 4, 5])
    assert resumed.curve[:3] == stopped.curve
    assert resumed.seconds > stopped.seconds > 0, "of the whole run, not of its second part"
    assert resumed.stopped == "finished" and resumed.best_step == 5
    assert same(adapter(resumed.adapter), adapter(whole.adapter))

    again = run(profile, place, validate=scripted()[0], resume=True)
    assert same(adapter(again.adapter), adapter(whole.adapter)) and again.curve == resumed.curve
    longer = run(replace(profile, steps=6), place, validate=scripted(0.1)[0], resume=True)
    assert [row["step"] for row in longer.curve] == [1, 2, 3, 4, 5, 6] and longer.best_step == 5


def test_a_second_ctrl_c_stops_at_once(tiny_folder, tmp_path):
    profile, calls = tiny_profile(tiny_folder), []

    def impatient(queries, k):
        calls.append(queries)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return [[] for _ in queries]

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(profile, tmp_path / "run", CallableRetriever(impatient))
    assert len(calls) == 1 and signal.getsignal(signal.SIGINT) is handler


def test_a_training_in_a_thread_ends_as_any_and_leaves_ctrl_c_alone(tiny_folder, tmp_path):
    profile, handler = tiny_profile(tiny_folder, steps=1, validate_every=1), signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        aside = pool.submit(run, profile, tmp_path / "aside", validate=scripted(0.1, 0.2)[0]).result()
    here = run(profile, tmp_path / "here", validate=scripted(0.1, 0.2)[0])
    assert aside.stopped == "finished" and signal.getsignal(signal.SIGINT) is handler
    assert same(adapter(aside.adapter), adapter(here.adapter))


def test_a_best_adapter_lost_between_checkpoint_and_copy_is_made_again(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, steps=2)
    done = run(profile, tmp_path / "run", validate=scripted(0.1, 0.2)[0])
    kept = adapter(done.adapter)
    (done.adapter / "adapter_model.safetensors").unlink()
    again = run(profile, tmp_path / "run", resume=True)
    assert same(adapter(again.adapter), kept)


def test_incomplete_checkpoints_are_ignored(tmp_path):
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "none") is None
    states = {"2": "{}", "10": "{}", "11": '{"global_step": 1', "12": None, "old": "{}"}
    for name, state in states.items():
        (tmp_path / f"checkpoint-{name}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{name}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


# what is refused


def test_only_the_run_that_was_stopped_goes_on(tiny_folder, tmp_path, capfd):
    profile, place = tiny_profile(tiny_folder, steps=2, validate_every=1), tmp_path / "run"
    run(profile, place)
    told = record_of(place)
    with pytest.raises(RecR1Error, match="already holds a run.*--resume"):
        run(profile, place)

    def again(n: int = 6, options=None, prompt=PROMPT, **changes):
        run(replace(profile, **changes), place, None, n, prompt=prompt, resume=True, **(options or {}))

    fields = dict(learning_rate=1e-5, group_size=2, recipe="paper", preset="paper", lora_rank=2, prompts_per_step=3)
    for name, value in (fields | dict(validate_every=2, max_completion_tokens=4)).items():
        was = re.escape(f"profile.{name} was {json.dumps(getattr(profile, name))} and is now {json.dumps(value)};")
        with pytest.raises(RecR1Error, match=was):
            again(**{name: value})
    other = save_tiny(tmp_path / "another" / tiny_folder.name, seed=1)  # of the same name, with other weights
    for changes, message in (
        (dict(n=5), "examples was "),
        (dict(prompt=replace(PROMPT, mode="expand")), 'prompt.mode was "rewrite" and is now "expand"'),
        (dict(model=str(other)), "model.weights was "),
        (dict(options={"beta": 0.2}), "options.beta was null and is now 0.2"),
        (dict(steps=1), "is at step 2, beyond the 1 steps asked for"),
        (dict(options={"lr_scheduler_type": "linear"}), "options.lr_scheduler_type was "),
    ):
        with pytest.raises(RecR1Error, match=message):
            again(**changes)
    memory = dict(micro_batch=4, batch_size=3, max_prompt_tokens=80, about="more memory")
    again(report_to="none", sft_batch=2, steps=3, **memory)
    assert record_of(place) == told and last_checkpoint(place).name == "checkpoint-3"

    task = toy_task()
    check_adapter(place / "best", profile, task)
    assert not capfd.readouterr().err, "examples without a task tell no task"
    task.prompt = replace(PROMPT, mode="expand")
    check_adapter(place / "best", profile, task)
    assert "is of a run whose prompt.mode was" in capfd.readouterr().err
    with pytest.raises(RecR1Error, match="is of a run whose model was .* give the profile"):
        check_adapter(place / "best", replace(profile, model="smollm2-135m-instruct"), task)
    (place / "run.json").unlink()
    with pytest.raises(RecR1Error, match="does not say what made it .run.json is missing"):
        again(steps=3)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"max_prompt_tokens": 5}, {}, "tokens and the limit is 5"),
        ({"recipe": "gold"}, {}, "no reward recipe 'gold'"),
        ({}, {"n": 0}, "no examples"),
        ({}, {"min_p": 0.1}, "min_p=0.1 is not in the grouped trainer"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(tiny_folder, tmp_path, change, options, message):
    with pytest.raises(RecR1Error, match=message):
        run(tiny_profile(tiny_folder, **change), tmp_path / "run", **options)
    assert not list(tmp_path.glob("run/*.json")) or "min_p" in options


def test_draw_order_takes_every_example_once_an_epoch_and_grows_at_its_end():
    order = draw_order(5, 12, seed=1)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5)) and len(order) == 12
    assert draw_order(5, 30, seed=1)[:12] == order and draw_order(5, 12, seed=2) != order


# the monitors' sentences

HEALTHY = {"zero_advantage_share": 0.3, "truncated_share": 0.2, "distinct": 0.9}
HEALTHY |= {"entropy": 3.0, "ndcg": 0.4, "completion_length": 5.0}


@pytest.mark.parametrize(
    "late, sentence",
    [
        ({}, None),
        ({"zero_advantage_share": 0.9}, "same, so they teach nothing"),
        ({"truncated_share": 0.95}, "run to the limit of 5 tokens"),
        ({"distinct": 0.2}, "stopped exploring"),
        ({"entropy": 0.05}, "the entropy is all but gone"),
        ({"entropy": 9.0}, "the text dissolves"),
        ({"ndcg": 0.1}, "under half of what it was"),
        ({"completion_length": 1.0}, "shrunk to nothing"),
    ],
)
def test_suspicions(tiny_folder, late, sentence):
    profile = tiny_profile(tiny_folder)
    curve = [HEALTHY] * 5 + [HEALTHY | late] * 5
    found = list(suspicions(curve, profile))
    assert (len(found) == 1 and sentence in found[0]) if sentence else found == []
    assert not list(suspicions(curve[:6], profile)), "one step is no trend"
    filled = [HEALTHY | {"truncated_share": 1.0}] * 10
    assert not list(suspicions(filled, profile)), "a limit always filled is no news"


def test_a_reward_without_signal_is_noted_once(tiny_folder, tmp_path, capfd):
    profile = tiny_profile(tiny_folder, steps=8, validate_every=8)
    nothing = CallableRetriever(lambda queries, k: [[] for _ in queries])
    run(profile, tmp_path / "run", nothing)
    assert capfd.readouterr().err.count("teach nothing") == 1
