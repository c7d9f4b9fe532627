"""A tiny world for the tests: tokenizer, random Llama with grouped-query attention, catalogue, requests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from recr1_lite.policy.models import Policy, load_policy, save_adapter, save_merged, token_logps
from recr1_lite.profiles import PROFILES, Profile
from recr1_lite.search.base import CallableRetriever
from recr1_lite.tasks.base import ITEM_COLUMNS, Task
from recr1_lite.tasks.prompts import Prompt

SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
WORDS = ["user", "assistant", "system", "find", *(f"w{number}" for number in range(120))]
GOOD = set(WORDS[-16:])  # a query with one of these finds its item; no request holds one
TEMPLATE = (
    "{% for turn in messages %}"
    "<|im_start|> {{ turn.role }} {{ turn.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
PROMPT = Prompt(style="compact", instruction="find {request}")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; the pad token is not the end token."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def tiny_model(seed: int = 0, kind: str = "llama", **config) -> PreTrainedModel:
    """2 layers, 4 query heads on 2 key heads, weights large enough that positions matter and that it may end."""
    torch.manual_seed(seed)
    configuration, model_class = KINDS[kind]
    sizes = dict(vocab_size=len(SPECIAL + WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2)
    sizes |= dict(tie_word_embeddings=True, pad_token_id=0, eos_token_id=3, bos_token_id=None)
    model = model_class(configuration(**(sizes | config))).eval()
    model.get_input_embeddings().weight.data[3] *= 2.5
    return model


def save_tiny(folder: Path, seed: int = 0, **config) -> Path:
    tiny_model(seed, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_profile(folder: Path, **changes) -> Profile:
    sizes = dict(model=str(folder), lora_rank=4, steps=4, prompts_per_step=2, group_size=4, max_completion_tokens=5)
    sizes |= dict(learning_rate=1e-2, validate_every=2, max_prompt_tokens=64)
    return replace(PROFILES["smoke"], **(sizes | changes))


def perturb(policy: Policy, scale: float = 0.1, seed: int = 1) -> Policy:
    """Give the adapter's second half, which starts at 0, random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B.default" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return policy


def tiny_policy(folder: Path, scale: float = 0.1, seed: int = 0, **changes) -> Policy:
    """A policy whose adapter does something."""
    return perturb(load_policy(tiny_profile(folder, **changes), seed), scale)


def requests(n: int = 6) -> list[str]:
    """Requests of unequal length."""
    return [" ".join(f"w{(7 * row + word) % 120}" for word in range(1 + row % 5)) for row in range(n)]


def examples(n: int = 6) -> pd.DataFrame:
    return pd.DataFrame(
        {"example_id": [f"e{row}" for row in range(n)], "request": requests(n), "relevant": [{"gold": 1.0}] * n}
    )


def toy_task() -> Task:
    """40, 8 and 8 requests of one to four words that none of GOOD is; the item `gold` answers them all."""

    def rows(split: str, start: int, n: int) -> pd.DataFrame:
        requests = [" ".join([f"w{start + i}"] * (1 + i % 4)) for i in range(n)]
        names = [f"{split}{i}" for i in range(n)]
        return pd.DataFrame({"example_id": names, "request": requests, "relevant": [{"gold": 1.0}] * n})

    texts = [("gold", "Gold", " ".join(sorted(GOOD))), ("lead", "Lead", "w0 w1 w2 w3")]
    splits = rows("train", 0, 40), rows("val", 40, 8), rows("test", 60, 8)
    return Task("toy", pd.DataFrame(texts, columns=ITEM_COLUMNS), *splits, PROMPT, 10, 10, ("ndcg@10",))


def toy_retriever() -> CallableRetriever:
    """Finds the item `gold` for a query that holds a word of GOOD, the more of them the higher."""

    def search(queries: list[str], k: int) -> list[list[str]]:
        hits = [sum(word in GOOD for word in query.split()) for query in queries]
        return [(["gold", "lead"] if hit > 1 else ["lead", "gold"])[:k] if hit else [] for hit in hits]

    return CallableRetriever(search)


def left_padded(n: int = 6, repeat: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt ids and mask (n * repeat, L): unequal lengths, each prompt `repeat` times, in shuffled order."""
    tokenizer = tiny_tokenizer()
    texts = [PROMPT.render(tokenizer, request) for request in requests(n)] * repeat
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    batch = tokenizer([texts[at] for at in order], padding=True, padding_side="left", return_tensors="pt")
    return batch.input_ids, batch.attention_mask


def differences(policy: Policy, profile: Profile, pairs, work: Path) -> list[float]:
    """Largest difference in nats per token from the same adapter reloaded, and from the model that it is merged into.

    pairs: (rendered prompt, completion)."""
    merged = replace(profile, model=str(save_merged(policy, work / "merged")))
    again = load_policy(profile, adapter=save_adapter(policy, work / "adapter"), trainable=False)
    here, others = token_logps(policy, pairs), (again, load_policy(merged, trainable=False))
    return [float((token_logps(other, pairs) - here).abs().max()) for other in others]
