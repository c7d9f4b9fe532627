"""What computes here, and in which number format: unsloth on a CUDA GPU, transformers + peft everywhere else.

unsloth patches trl, transformers and peft when it is imported, so it has to come before them: the package does that
as its first act where there is a GPU for it. A machine without unsloth pays nothing. What its models want done
differently is here too, written from the source of unsloth 2026.10.7; not yet run on a GPU by the authors.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from recr1_lite.assets.fetch import cache_folder
from recr1_lite.common import RecR1Error
from recr1_lite.profiles import Profile

BFLOAT16_SINCE = (8, 0)  # compute capability: Ampere. A T4 (7.5) has none
UNSLOTH_SINCE = (7, 0)  # Volta
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VLLM_SHARE = 0.5  # of the GPU's memory, for vLLM's weights and cache


class Machine(NamedTuple):
    """The accelerator that a run would use. memory: bytes; both 0 without CUDA."""

    cuda: bool
    name: str = "CPU"
    memory: int = 0
    capability: tuple[int, int] = (0, 0)


class Backend(NamedTuple):
    """What a run gets. reasons: a sentence for each thing that was asked for and is not given."""

    name: str  # "unsloth" or "transformers"
    dtype: str
    vllm: bool
    reasons: tuple[str, ...]


def machine() -> Machine:
    """The first CUDA device that this process sees, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return Machine(False)
    card = torch.cuda.get_device_properties(0)
    return Machine(True, card.name, card.total_memory, (card.major, card.minor))


def choose(profile: Profile, wanted: str | None = None) -> Backend:
    """Backend and dtype for a profile on this machine.

    wanted: "unsloth" or "transformers", default RECR1_BACKEND, default the faster one that works. Raises RecR1Error for
    another name, and where unsloth is insisted on and cannot be used."""
    wanted, dtype = wanted or os.environ.get("RECR1_BACKEND", ""), profile.dtype
    if wanted not in ("", "unsloth", "transformers"):
        raise RecR1Error(f"there is no backend {wanted!r}; set RECR1_BACKEND to unsloth or transformers, or unset it")
    found, missing, reasons = machine(), unsloth_missing(), []
    if found.cuda and dtype == "bfloat16" and found.capability < BFLOAT16_SINCE:
        dtype = "float16"
        reasons.append(f"{found.name} (capability {'.'.join(map(str, found.capability))}) has no bfloat16: float16")
    against = {
        "unsloth needs a CUDA GPU and there is none": not found.cuda,
        "it trains in 16 bits and the profile wants float32": dtype == "float32",
        f"{found.name} is older than capability 7.0": found.capability < UNSLOTH_SINCE,
        missing: missing,
    }
    why = next((reason for reason, holds in against.items() if holds), "")
    if wanted == "unsloth" and why:
        raise RecR1Error(f"unsloth cannot be used: {why}; mend that or unset RECR1_BACKEND")
    if why and found.cuda and not wanted:
        reasons.append(f"transformers + peft instead of unsloth: {why}")
    name = "transformers" if why or wanted == "transformers" else "unsloth"
    no_vllm = "" if importlib.util.find_spec("vllm") else "it is not installed"
    vllm = profile.fast_inference and name == "unsloth" and not no_vllm
    if profile.fast_inference and not vllm:
        why = no_vllm or "it is used through unsloth only" if found.cuda else "vLLM needs a CUDA GPU"
        reasons.append(f"rollouts without vLLM: {why}")
    return Backend(name, dtype, vllm, tuple(reasons))


@functools.cache
def unsloth_missing() -> str:
    """Import unsloth at the first call, where it can be. Why it is not used, or "" where it is; never raises."""
    if os.environ.get("RECR1_BACKEND") == "transformers":
        return "RECR1_BACKEND=transformers was set when the kit was imported"
    if importlib.util.find_spec("unsloth") is None:
        return "it is not installed (pip install -r requirements-gpu.txt)"
    here = machine()
    if not here.cuda or here.capability < UNSLOTH_SINCE:
        return "it needs a CUDA GPU of capability 7.0 or newer"
    # it would tell its makers of this machine, and write the trainers that it makes into the working folder
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled"))
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # whatever it is, the run goes on without
        return f"its import fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return ""


def is_unsloth(model) -> bool:
    """unsloth gives its models a method of this name."""
    return hasattr(model, "for_inference")


def load_unsloth(profile: Profile, source: str, seed: int, adapter: str | Path | None, trainable: bool, vllm: bool):
    """(model, tokenizer) of a model folder or Hub name, with a fresh or a saved adapter, or bare.

    The adapter's weights go into a LoRA made here, because unsloth would look for the base model by the name that is
    written in the adapter, which need not be a path. Raises RecR1Error where the two do not fit."""
    import torch
    from peft import load_peft_weights, set_peft_model_state_dict
    from unsloth import FastLanguageModel

    _logits_again()
    length = profile.max_prompt_tokens + profile.max_completion_tokens
    weights = dict(dtype=getattr(torch, profile.dtype), load_in_4bit=profile.load_in_4bit, max_seq_length=length)
    writing = dict(fast_inference=vllm, max_lora_rank=profile.lora_rank, gpu_memory_utilization=VLLM_SHARE)
    model, tokenizer = FastLanguageModel.from_pretrained(source, random_state=seed, **weights, **writing)
    lora = dict(r=profile.lora_rank, lora_alpha=2 * profile.lora_rank, target_modules=LINEAR)
    if adapter is not None:
        saved = json.loads((Path(adapter) / "adapter_config.json").read_text())
        lora = {name: saved[name] for name in lora}
    if adapter is not None or trainable:
        checkpointing = "unsloth" if profile.gradient_checkpointing else False
        others = dict(lora_dropout=0, random_state=seed, use_gradient_checkpointing=checkpointing)
        model = FastLanguageModel.get_peft_model(model, **lora, **others)
    if adapter is not None:
        left: Any = set_peft_model_state_dict(model, load_peft_weights(str(adapter), device="cpu"))
        lacking = [name for name in left.missing_keys if "lora_" in name]
        if lacking or left.unexpected_keys:
            counts = f"{len(lacking)} weights missing, {len(left.unexpected_keys)} too many"
            advice = "name the model that it was trained on"
            raise RecR1Error(f"the adapter {str(adapter)!r} does not fit the model ({counts}); {advice}")
    return model if trainable else FastLanguageModel.for_inference(model), tokenizer


def unsloth_generate(model, prompt_ids, prompt_mask, max_new_tokens, ends, pad_id, temperature=1.0, top_p=1.0):
    """Completions (B, T) of left-padded prompts (B, L) by the model's own `generate`; pad tokens after the end. That
    switches checkpointing off, and on again only for a model in training mode; for one in validation it is done here.
    """
    _logits_again()
    modes = (getattr(module, "gradient_checkpointing", False) for module in model.modules())
    checkpointing = next(filter(None, modes), False)
    sampling = dict(temperature=temperature, top_p=top_p, top_k=0) if temperature else {}
    ending = dict(max_new_tokens=max_new_tokens, eos_token_id=list(ends), pad_token_id=pad_id)
    how = dict(do_sample=bool(temperature), **sampling, **ending)
    tokens = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask, **how)
    if checkpointing:
        model.for_training(use_gradient_checkpointing=checkpointing)
    return tokens[:, prompt_ids.size(1) :]


def unsloth_logps(model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature: float = 1.0):
    """Log-probabilities (B, T) of completion tokens, 0 at padding: row by row without padding, so that no mask of
    unsloth's training kernels matters. For checks; its trainer has its own, faster way."""
    import torch

    _logits_again()
    values = torch.zeros(completion_ids.shape, device=completion_ids.device)
    for row in range(len(prompt_ids)):
        prompt = prompt_ids[row][prompt_mask[row].bool()]
        end = completion_ids[row][completion_mask[row].bool()]
        logits = model(input_ids=torch.cat([prompt, end])[None], logits_to_keep=len(end) + 1, use_cache=False).logits
        logps = (logits[0, -len(end) - 1 : -1].float() / temperature).log_softmax(-1)
        values[row, : len(end)] = logps.gather(-1, end[:, None])[:, 0]
    return values


def _logits_again() -> None:
    """Its GRPO leaves a switch on by which forward passes give hidden states in the place of logits."""
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
