"""What unsloth's models want done differently: loading, sampling, log-probabilities.

Written from the source of unsloth 2026.10.7; CUDA only, and not yet run on a GPU by the authors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from recr1_lite.common import RecR1Error
from recr1_lite.profiles import Profile

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VLLM_SHARE = 0.5  # of the GPU's memory, for vLLM's weights and cache


def is_unsloth(model) -> bool:
    """unsloth gives its models a method of this name."""
    return hasattr(model, "for_inference")


def load(
    profile: Profile, source: str, seed: int, adapter: str | Path | None, trainable: bool, vllm: bool = False
) -> tuple:
    """(model, tokenizer) of a model folder or Hub name, with a fresh or a saved adapter, or bare.

    The adapter's weights go into a LoRA made here, because unsloth would look for the base model by the name that is
    written in the adapter, which need not be a path. Raises RecR1Error where the two do not fit.
    """
    from unsloth import FastLanguageModel

    _logits_again()
    model, tokenizer = FastLanguageModel.from_pretrained(
        source,
        max_seq_length=profile.max_prompt_tokens + profile.max_completion_tokens,
        load_in_4bit=profile.load_in_4bit,
        dtype=getattr(torch, profile.dtype),
        random_state=seed,
        fast_inference=vllm,
        max_lora_rank=profile.lora_rank,
        gpu_memory_utilization=VLLM_SHARE,
    )
    if adapter is None and not trainable:
        return FastLanguageModel.for_inference(model), tokenizer
    lora = dict(r=profile.lora_rank, lora_alpha=2 * profile.lora_rank, target_modules=LINEAR)
    if adapter is not None:
        saved = json.loads((Path(adapter) / "adapter_config.json").read_text())
        lora = {name: saved[name] for name in lora}
    model = FastLanguageModel.get_peft_model(
        model,
        **lora,
        lora_dropout=0,
        random_state=seed,
        use_gradient_checkpointing="unsloth" if profile.gradient_checkpointing else False,
    )
    if adapter is not None:
        fill(model, adapter)
    return model if trainable else FastLanguageModel.for_inference(model), tokenizer


def fill(model, adapter: str | Path) -> None:
    """Put the weights saved in the folder `adapter` into the model's LoRA; all of them or RecR1Error."""
    from peft import load_peft_weights, set_peft_model_state_dict

    left: Any = set_peft_model_state_dict(model, load_peft_weights(str(adapter), device="cpu"))
    lacking = [name for name in left.missing_keys if "lora_" in name]
    if lacking or left.unexpected_keys:
        raise RecR1Error(
            f"the adapter {str(adapter)!r} does not fit the model ({len(lacking)} weights missing, "
            f"{len(left.unexpected_keys)} too many); name the model that it was trained on"
        )


@torch.no_grad()
def generate(
    model,
    prompt_ids,
    prompt_mask,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """Completions (B, T) of left-padded prompts (B, L) by the model's own `generate`; pad tokens after the end.

    That switches checkpointing off, and back on only for a model in training mode, which one that is being validated is
    not; so it is switched back on here.
    """
    _logits_again()
    modes = (getattr(module, "gradient_checkpointing", False) for module in model.modules())
    checkpointing = next(filter(None, modes), False)
    sampling = (
        dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0) if temperature else dict(do_sample=False)
    )
    tokens = model.generate(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        **sampling,
    )[:, prompt_ids.size(1) :]
    if checkpointing:
        model.for_training(use_gradient_checkpointing=checkpointing)
    ended = tokens == eos_id
    return tokens.masked_fill(ended.cumsum(1) - ended.int() > 0, pad_id)


def row_logps(
    model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities (B, T) of completion tokens, 0 at padding: row by row without padding, so that no mask of
    unsloth's training kernels matters. For checks; its trainer has its own, faster way."""
    _logits_again()
    values = torch.zeros(completion_ids.shape, device=completion_ids.device)
    for row in range(len(prompt_ids)):
        prompt = prompt_ids[row][prompt_mask[row].bool()]
        end = completion_ids[row][completion_mask[row].bool()]
        if not len(end):
            continue
        logits = model(input_ids=torch.cat([prompt, end])[None], logits_to_keep=len(end) + 1, use_cache=False).logits
        logps = (logits[0, -len(end) - 1 : -1].float() / temperature).log_softmax(-1)
        values[row, : len(end)] = logps.gather(-1, end[:, None])[:, 0]
    return values


def _logits_again() -> None:
    """Its GRPO leaves a switch on by which forward passes give hidden states in the place of logits."""
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"
