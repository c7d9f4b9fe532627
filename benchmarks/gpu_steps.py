"""One cell of the speed part, in a process of its own: seconds and peak memory of GRPO or SFT steps of one side.

Sides: `ours` (this kit's trainer on unsloth), `transformers` (this kit's trainer on transformers + peft +
bitsandbytes), `stock` (trl.GRPOTrainer or trl.SFTTrainer as they come, on a bitsandbytes model). Every side gets the
same weights, prompts, lengths, micro-batch and LoRA; the first step warms up and is not counted.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gpu_models
import gpu_stock
from gpu_book import GIB

RESERVED = 0.5 * GIB  # of a card: the CUDA context and kernels, which PyTorch's allocator does not count


class Enough(Exception):
    """The time of the cell is used up; what was counted so far is the result."""


class Clock:
    """Seconds of each step and rollout, tokens of each rollout, and a stop at `stop_at` once a step was counted.

    A tick comes at the start of the training and after each step's log, where the loss has been read from the GPU.
    """

    def __init__(self, stop_at: float):
        self.stop_at, self.ticks, self.rollouts, self.lengths = stop_at, [], [], []

    def tick(self, *_) -> None:
        self.ticks.append(now())
        if len(self.ticks) > 2 and time.time() + self.steps[-1] > self.stop_at:
            raise Enough

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.ticks, self.ticks[1:])]

    def timed(self, trainer_class):
        """The trainer with its rollouts timed and their lengths noted."""
        clock = self

        class Timed(trainer_class):
            def _generate_single_turn(self, *inputs, **others):
                start = now()
                found = super()._generate_single_turn(*inputs, **others)
                clock.rollouts.append(now() - start)
                clock.lengths.append([len(row) for row in found[0]])
                return found

        return Timed


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell. Raises what the side raises; too little memory becomes "does not fit" in `gpu_book`."""
    import torch

    cuda, clock = torch.cuda.is_available(), Clock(stop_at)
    if settings.get("cap"):
        limit_memory(settings["cap"])
    profile = profile_of(settings, work)
    sides = {"ours": (our_grpo, our_sft), "stock": (gpu_stock.grpo, gpu_stock.sft)}
    grpo, sft = sides["stock" if settings["side"] == "stock" else "ours"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            backend = (grpo if settings["trainer"] == "grpo" else sft)(profile, Path(folder), clock)
        except Enough:
            backend = settings["side"]
    return figures(settings, clock) | {
        "backend": backend,
        "estimate": estimated(settings),
        "peak_allocated": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved": torch.cuda.max_memory_reserved() if cuda else None,
    }


def limit_memory(cap: float) -> None:
    """Let PyTorch have no more than a card of `cap` GiB would leave it, and let nobody see more free memory.

    unsloth sizes its batches by what torch.cuda.mem_get_info calls free; on a larger card it would take too large ones.
    """
    import torch

    total, allowed = torch.cuda.get_device_properties(0).total_memory, cap * GIB - RESERVED
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    torch.cuda.mem_get_info = free_under(cap, torch.cuda.mem_get_info, torch.cuda.memory_reserved)


def free_under(cap: float, ask, reserved):
    """What `ask` (torch.cuda.mem_get_info) would say on a card of `cap` GiB; reserved(device): held by this process."""

    def told(device=None) -> tuple[int, int]:
        free, total = ask(device)
        return max(0, min(free, int(cap * GIB - RESERVED) - reserved(device))), min(total, int(cap * GIB))

    return told


def profile_of(settings: dict, work: Path | None = None):
    """The kit's profile of a cell; with `work`, its model is the folder there."""
    from recr1_lite.profiles import PROFILES

    name, steps = settings["shape"], settings["steps"]
    model = gpu_models.model_source(name, settings["dtype"], work) if work else name
    return replace(
        PROFILES["gpu24"],
        name="benchmark",
        model=model,
        dtype=settings["dtype"],
        load_in_4bit=settings["four_bit"],
        prompts_per_step=settings["prompts"],
        group_size=settings["group"],
        micro_batch=settings["micro"],
        steps=steps,
        max_prompt_tokens=settings["prompt_tokens"],
        max_completion_tokens=settings["completion_tokens"],
        sft_batch=settings["micro"],
        validate_every=10 * steps,
    )


def estimated(settings: dict) -> dict | None:
    """What the kit's estimator says of a GRPO cell; None for SFT, which it does not count.

    peak: bytes that a card needs, in `phase`; tensors: those of them that max_memory_allocated counts.
    """
    from recr1_lite.train.memory import training_memory

    if settings["trainer"] != "grpo":
        return None
    backend, profile = {"ours": "unsloth"}.get(settings["side"], settings["side"]), profile_of(settings)
    needed = training_memory(profile, backend, gpu_models.shape(settings["shape"]))
    tensors = [sum(parts.values()) - parts["process"] - parts["fragmentation"] for parts in needed.parts.values()]
    return {"peak": needed.peak, "tensors": max(tensors), "phase": needed.phase}


def figures(settings: dict, clock: Clock) -> dict:
    """Medians of the counted steps, and tokens a second over all of them."""
    counted, first = clock.steps[1:], clock.steps[:1]
    if not counted and settings["steps"] > 1:
        why = f"no step was counted: the first took {sum(first):.0f} s; give --minutes more"
        return {"state": "failed", "why": why}
    counted = counted or first  # a cell under a memory cap has one step, which says nothing about speed
    if settings["trainer"] == "grpo":
        kept = clock.lengths[-len(counted) :]
        tokens = sum(map(sum, kept))
        rollout = sum(clock.rollouts[-len(counted) :]) / len(counted)
        lengths = {
            "mean": tokens / sum(map(len, kept)),
            "shortest": min(map(min, kept)),
            "longest": max(map(max, kept)),
        }
    else:
        tokens, rollout = len(counted) * settings["micro"] * settings["completion_tokens"], 0.0
        lengths = {key: settings["completion_tokens"] for key in ("mean", "shortest", "longest")}
    step = sum(counted) / len(counted)
    return {
        "state": "done",
        "counted_steps": len(counted),
        "warm_up_seconds": sum(first),
        "step_seconds": step,
        "rollout_seconds": rollout,
        "update_seconds": step - rollout,
        "tokens": tokens,
        "tokens_per_second": tokens / sum(counted),
        "lengths": lengths,
    }


def our_grpo(profile, folder: Path, clock: Clock) -> str:
    from recr1_lite.policy.models import load_policy
    from recr1_lite.train import grpo

    policy = load_policy(profile)
    plain = policy.backend == "unsloth"
    trainer = clock.timed(grpo.PlainGRPOTrainer if plain else grpo.GroupedGRPOTrainer)
    data = gpu_models.examples(policy.tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    grpo.train(
        policy,
        data,
        gpu_models.retriever(),
        gpu_models.PROMPT,
        profile,
        folder,
        10,
        progress=False,
        watch=clock.tick,
        trainer_class=trainer,
    )
    return policy.backend


def our_sft(profile, folder: Path, clock: Clock) -> str:
    from recr1_lite.policy.models import load_policy
    from recr1_lite.train import sft

    policy = load_policy(profile)
    sft.train(
        policy,
        gpu_models.targets(policy.tokenizer, profile),
        gpu_models.PROMPT,
        profile,
        folder,
        progress=False,
        watch=clock.tick,
        epochs=1.0,
    )
    return policy.backend
