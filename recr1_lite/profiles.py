"""Every size and budget of a run in one place: `smoke`, `cpu`, `t4`, `gpu24`, `paper`."""

import os
from dataclasses import dataclass
from typing import Any

from recr1_lite.common import RecR1Error


@dataclass(frozen=True)
class Profile:
    """Sizes and budgets of one run. Times are in seconds, lengths in tokens, counts in examples."""

    name: str
    about: str
    model: str = "smollm2-135m-instruct"  # an asset of this kit, a Hub name, or a local folder
    dtype: str = "float32"
    load_in_4bit: bool = False
    lora_rank: int = 16
    # GRPO: a step is prompts_per_step groups of group_size rollouts
    preset: str = "modern"
    recipe: str = "ndcg"
    steps: int = 30
    prompts_per_step: int = 12
    group_size: int = 10
    micro_batch: int | None = None  # rollouts in one backward pass at most; None: the whole step
    rollout_batch: int | None = None  # rollouts written together; None: the whole step
    gradient_checkpointing: bool = False  # keep one activation per layer, compute the others again
    fast_inference: bool = False  # rollouts from vLLM, where it and unsloth are there
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 6
    learning_rate: float = 4e-4
    # SFT, and the sampling of its targets
    sft_learning_rate: float = 4e-4
    sft_batch: int = 8
    sft_epochs: float = 1.0
    best_of: int = 8  # rollouts per example that a target is chosen from
    # evaluation
    validate_every: int = 10
    n_val: int = 100  # of the validation requests, scored before and while training
    n_test: int = 400
    n_headroom: int = 48
    n_capability: int | None = None  # items per task of the capability checks; None: all
    batch_size: int = 50
    report_to: str = "none"  # a tracker that transformers knows: tensorboard, wandb, trackio


_GPU: dict[str, Any] = dict(model="Qwen/Qwen2.5-1.5B-Instruct", load_in_4bit=True, gradient_checkpointing=True)
_GPU |= dict(prompts_per_step=8, group_size=8, micro_batch=16, steps=300, max_completion_tokens=128)
_GPU |= dict(learning_rate=2e-5, sft_learning_rate=2e-4, sft_batch=16, validate_every=50, batch_size=64)
_GPU24 = _GPU | dict(model="Qwen/Qwen2.5-3B-Instruct", dtype="bfloat16", micro_batch=32)
# as the paper: model, 32 x 12, 512 tokens, KL 1e-3, reward. For one card: LoRA on 4 bits, rollouts in four batches, a
# group in a backward pass. The paper's learning rate of 1e-6 is for all weights: an adapter does not move at it
# (trl#2872), and TRL's replication of "LoRA without regret" takes ten times the full rate, so 1e-5 here; t4 and gpu24
# take twice that for their fewer steps
_PAPER = _GPU24 | dict(preset="paper", recipe="paper", prompts_per_step=32, group_size=12, micro_batch=12)
_PAPER |= dict(rollout_batch=96, steps=1000, max_completion_tokens=512, learning_rate=1e-5)
_SMOKE: dict[str, Any] = dict(steps=2, prompts_per_step=2, group_size=4, validate_every=1, n_val=8, n_test=8)
_SMOKE |= dict(n_headroom=4, n_capability=4, batch_size=8, sft_batch=4, best_of=2)

# Three tokens name a kind of garment ("pair of jeans"); what a longer rewrite adds is chatter that costs nDCG, and a
# short rollout is so cheap beside its prompt that the groups can be large. Three groups in a backward pass: less memory
_CPU: dict[str, Any] = dict(preset="words", group_size=20, max_completion_tokens=3, learning_rate=2e-4, micro_batch=60)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", "proves in a minute or two that everything runs; learns nothing", **_SMOKE),
        Profile("cpu", "the real loop on a plain CPU, with a 135M model", **_CPU),
        Profile("t4", "15 GB card without bfloat16 (not yet measured)", dtype="float16", **_GPU),
        Profile("gpu24", "24 GB card (not yet measured)", **_GPU24),
        Profile("paper", "the paper's settings on one 24 GB card (not yet measured)", **_PAPER),
    )
}


def detect() -> str:
    """Name of the profile that fits this machine: by CUDA memory, else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "gpu24" if torch.cuda.get_device_properties(0).total_memory > 20e9 else "t4"


def get_profile(name: str | None = None) -> Profile:
    """The profile called `name`, or RECR1_PROFILE, or the one `detect` picks. Raises RecR1Error for another."""
    name = name or os.environ.get("RECR1_PROFILE") or detect()
    if name not in PROFILES:
        raise RecR1Error(f"there is no profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
