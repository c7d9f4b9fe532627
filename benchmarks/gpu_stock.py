"""Stock TRL as its user has it: trl.GRPOTrainer and trl.SFTTrainer with their own defaults, on a bitsandbytes model
with peft. Of this kit it gets the prompts alone."""

from __future__ import annotations

import zlib
from pathlib import Path

import gpu_models


def load(profile):
    """A model as a user of stock TRL loads it, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype, options = getattr(torch, profile.dtype), {}
    if profile.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        profile.model,
        dtype=dtype,
        local_files_only=True,
        device_map="cuda" if torch.cuda.is_available() else "cpu",
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(profile.model, local_files_only=True, padding_side="left")
    return model, tokenizer


def settings(profile, folder: Path) -> dict:
    import torch

    cuda = torch.cuda.is_available()
    return dict(
        output_dir=str(folder),
        max_steps=profile.steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
        bf16=cuda and profile.dtype == "bfloat16",
        fp16=cuda and profile.dtype == "float16",
    )


def lora(profile):
    from peft import LoraConfig

    return LoraConfig(
        r=profile.lora_rank, lora_alpha=2 * profile.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def ticking(clock):
    from transformers import TrainerCallback

    class Ticks(TrainerCallback):
        def on_train_begin(self, *_, **__):
            clock.tick()

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in (logs or {}):
                clock.tick()

    return Ticks()


def grpo(profile, folder: Path, clock) -> str:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load(profile)
    data = gpu_models.examples(tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    texts = [gpu_models.PROMPT.render(tokenizer, request) for request in data["request"]]
    config = GRPOConfig(
        **settings(profile, folder),
        num_generations=profile.group_size,
        per_device_train_batch_size=profile.micro_batch,
        max_completion_length=profile.max_completion_tokens,
        gradient_accumulation_steps=profile.prompts_per_step * profile.group_size // profile.micro_batch,
    )

    def paid(completions, **_):
        return [zlib.crc32(text.encode()) % 9 / 9 for text in completions]

    clock.timed(GRPOTrainer)(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        reward_funcs=paid,
        processing_class=tokenizer,
        peft_config=lora(profile),
        callbacks=[ticking(clock)],
    ).train()
    return "trl"


def sft(profile, folder: Path, clock) -> str:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(profile)
    rows = gpu_models.targets(tokenizer, profile)
    data = Dataset.from_dict(
        {
            "prompt": [gpu_models.PROMPT.render(tokenizer, text) for text in rows["request"]],
            "completion": rows["rewrite"].tolist(),
        }
    )
    config = SFTConfig(**settings(profile, folder), per_device_train_batch_size=profile.sft_batch, max_length=None)
    SFTTrainer(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora(profile),
        callbacks=[ticking(clock)],
    ).train()
    return "trl"
