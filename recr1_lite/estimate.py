"""Will it fit, and how long will it take? What `python -m recr1_lite estimate` prints (estimate_report.py).

Memory is counted (memory_counts.py), time is counted and divided by a short measurement (speed.py). A GRPO step has two
phases, which never hold their memory at the same time: rollouts (the key-value cache) and the update (activations,
logits, gradients). The larger one is the peak. What is written as GB is 1e9 bytes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from recr1_lite import memory_counts as counts
from recr1_lite import speed
from recr1_lite.common import RecR1Error
from recr1_lite.memory_counts import ASSUMED, Pass, Work
from recr1_lite.profiles import Profile
from recr1_lite.shapes import Shape
from recr1_lite.speed import Calibration, calibrate

__all__ = ["Calibration", "Memory", "calibrate", "error", "memory", "seconds", "table"]

GB = 1e9
BACKENDS, TRAINERS = ("unsloth", "transformers", "stock"), ("grpo", "sft")
STANDING = ("weights", "merged copy", "adapter", "KL reference", "optimiser", "process")  # there in both phases
PAPER = {"kl": True, "top_p": True}  # of the preset `paper` in grpo.py; `modern` has neither


class Memory(NamedTuple):
    """parts: phase -> component -> bytes."""

    parts: dict[str, dict[str, int]]

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.parts, key=lambda name: sum(self.parts[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of that phase, with everything."""
        return sum(self.parts[self.phase].values())

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak, as torch.cuda.max_memory_allocated counts: no process, no gaps."""
        return max(
            sum(size for name, size in parts.items() if name not in ("process", "fragmentation"))
            for parts in self.parts.values()
        )


def memory(
    shape: Shape,
    profile: Profile,
    backend: str = "unsloth",
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    trainer: str = "grpo",
    at_once: int | None = None,
) -> Memory:
    """What a run needs on its device. Lengths default to the profile's limits, where an update is at its largest.

    backend: unsloth, transformers (this kit's trainer) or stock (trl's). at_once: rollouts written together, default
    all of a step. Raises RecR1Error for another backend or trainer, and for sizes below 1.
    """
    work = _work(profile, backend, prompt_tokens, completion_tokens, trainer, at_once)
    standing, kl = _standing(shape, profile, backend, trainer), profile.preset == "paper" and PAPER["kl"]
    if kl and trainer == "grpo":
        standing["KL reference"] = standing["adapter"]
    phases = {"update": _update(shape, profile, work, backend, trainer)}
    if trainer == "grpo":
        phases = {"rollout": _rollout(shape, profile, work, backend)} | phases
    share = ASSUMED["fragmentation, CUDA" if on_cuda(profile, backend) else "fragmentation, CPU"]
    return Memory(
        {name: standing | parts | {"fragmentation": int(share * sum(parts.values()))} for name, parts in phases.items()}
    )


def _work(
    profile: Profile, backend: str, prompt: int | None, completion: int | None, trainer: str, at_once: int | None
) -> Work:
    if backend not in BACKENDS or trainer not in TRAINERS:
        raise RecR1Error(
            f"there is no backend {backend!r} with a trainer {trainer!r}; take one of "
            f"{', '.join(BACKENDS)} and one of {', '.join(TRAINERS)}"
        )
    prompt = profile.max_prompt_tokens if prompt is None else prompt
    completion = profile.max_completion_tokens if completion is None else completion
    if min(prompt, completion, at_once or 1) < 1:
        raise RecR1Error(
            f"a prompt of {prompt} tokens, a completion of {completion} and {at_once} rollouts at once "
            "are no run; give 1 or more of each"
        )
    if trainer == "sft":
        return Work(profile.sft_batch, profile.sft_batch, profile.sft_batch, 1, prompt, completion)
    rows = profile.prompts_per_step * profile.group_size
    if at_once is None and backend != "stock":
        at_once = profile.rollout_batch
    return Work(
        rows, min(at_once or rows, rows), min(profile.micro_batch or rows, rows), profile.group_size, prompt, completion
    )


def on_cuda(profile: Profile, backend: str) -> bool:
    return backend == "unsloth" or profile.dtype != "float32" or profile.load_in_4bit


def _standing(shape: Shape, profile: Profile, backend: str, trainer: str) -> dict[str, int]:
    """What stays from the first step to the last."""
    lora = counts.adapter(shape, profile.lora_rank)
    parts = {
        "weights": counts.weights(shape, profile.dtype, profile.load_in_4bit),
        "adapter": lora,
        "optimiser": counts.MOMENTS * lora,
        "process": int(ASSUMED["context, CUDA" if on_cuda(profile, backend) else "process, CPU"]),
    }
    if backend == "transformers" and not profile.load_in_4bit:
        parts["merged copy"] = counts.merged_copy(shape, profile.dtype)
    return parts


def _rollout(shape: Shape, profile: Profile, work: Work, backend: str) -> dict[str, int]:
    """Rollouts that are written together."""
    prompts = math.ceil(work.at_once / work.group) if backend == "transformers" else work.at_once
    top_p = profile.preset == "paper" and PAPER["top_p"]
    cache = counts.rollout_cache(shape, work.at_once, work.prompt, work.completion, profile.dtype, backend)
    return {
        "key-value cache": cache,
        # the prompts are run before the first token is drawn
        "workspace": max(
            counts.forward(shape, prompts * work.prompt, profile.dtype), counts.draw(shape, work.at_once, top_p)
        ),
    }


def _update(shape: Shape, profile: Profile, work: Work, backend: str, trainer: str) -> dict[str, int]:
    """One backward pass over `micro` rows."""
    passes = _passes(work, _grouped(profile, backend, trainer))
    return {
        "gradients": counts.adapter(shape, profile.lora_rank),
        "activations": _activations(shape, profile, passes, work, backend, trainer),
        "logits": counts.logits(shape, work.micro, work.completion, profile.dtype, backend, trainer),
        "workspace": counts.backward(shape, max(run.tokens for run in passes), profile.dtype, profile.load_in_4bit),
    }


def _passes(work: Work, shared: bool) -> list[Pass]:
    """Runs of the decoder for one backward pass. shared: each prompt once for its group, then the completions on it."""
    whole = Pass(work.micro, work.prompt + work.completion, work.prompt + work.completion)
    if not shared:
        return [whole]
    prompts = math.ceil(work.micro / work.group)
    return [Pass(prompts, work.prompt, work.prompt), Pass(work.micro, work.completion - 1, whole.width - 1)]


def _grouped(profile: Profile, backend: str, trainer: str) -> bool:
    """Do prompts run once for their group? Not with checkpointing: a layer cannot fill a shared cache twice."""
    return backend == "transformers" and trainer == "grpo" and not profile.gradient_checkpointing


def _activations(shape: Shape, profile: Profile, passes: list[Pass], work: Work, backend: str, trainer: str) -> int:
    """Kept for the backward pass: everything, or one state a layer and the insides of one layer."""
    one = sum(_layer(shape, profile, run, work, backend) for run in passes)
    if not profile.gradient_checkpointing:
        return shape.layers * one
    # unsloth moves the states to the computer's memory, and has two of them on the card
    states = (2 if backend == "unsloth" else shape.layers) * passes[0].tokens * shape.hidden
    return one + states * counts.BYTES[profile.dtype]


def _layer(shape: Shape, profile: Profile, run: Pass, work: Work, backend: str) -> int:
    if backend == "unsloth":
        return counts.unsloth_layer(shape, run, profile.lora_rank, profile.dtype)
    sixteen = profile.dtype != "float32"  # under autocast peft copies the inputs of its matrices
    own_attention = backend == "transformers" and not on_cuda(profile, backend)
    return counts.layer(shape, run, profile.lora_rank, profile.dtype, own_attention, 2 if sixteen else 0)


def seconds(
    shape: Shape,
    profile: Profile,
    calibration: Calibration,
    backend: str = "unsloth",
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    trainer: str = "grpo",
    at_once: int | None = None,
) -> dict[str, float]:
    """Seconds of `rollout`, `update`, `step` and, for GRPO, `run` (profile.steps of them), rewards not counted."""
    work, ours = _work(profile, backend, prompt_tokens, completion_tokens, trainer, at_once), backend == "transformers"
    # unsloth too runs a prompt once for its group, by default; memory is counted as if it did not
    shared = trainer == "grpo" and (backend == "unsloth" or _grouped(profile, backend, trainer))
    passes, times = _passes(work, shared), math.ceil(work.rows / work.micro)
    logits = counts.logits(shape, work.micro, work.completion, profile.dtype, backend, trainer)
    update = times * speed.update_seconds(
        shape,
        passes,
        work.micro * work.completion,
        logits,
        calibration,
        profile.lora_rank,
        profile.gradient_checkpointing,
    )
    if trainer == "sft":
        return {"rollout": 0.0, "update": update, "step": update}
    rollout = math.ceil(work.rows / work.at_once) * speed.rollout_seconds(
        shape, work, calibration, ours, ours and not profile.load_in_4bit, profile.lora_rank
    )
    return {"rollout": rollout, "update": update, "step": rollout + update, "run": profile.steps * (rollout + update)}


def error(estimated: float, measured: float) -> float:
    """How far the estimate is off, as a share of what was measured: 0.1 is a tenth too much."""
    return (estimated - measured) / measured


def table(found: Memory):
    """DataFrame of GB: a row a component and one of the sum, a column a phase."""
    import pandas as pd

    frame = pd.DataFrame(found.parts).fillna(0.0) / GB
    order = [name for name in STANDING if name in frame.index]
    frame = frame.loc[order + [name for name in frame.index if name not in order]]
    frame.loc["sum"] = frame.sum()
    return frame
