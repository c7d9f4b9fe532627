"""Models of published shapes with random weights, their tokenizer, and prompts of an exact length: no download."""

import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from gpu_cells import Cell

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.search.base import CallableRetriever
from recr1_lite.tasks.prompts import Prompt

REAL, TINY = "smollm2-135m-instruct", "tiny"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
SIZES += ("intermediate_size", "vocab_size")
SHAPES = {  # of Qwen2's kind; the tiny one of a width that every kernel takes
    "qwen2.5-3b": (2048, 36, 16, 2, 128, 11_008, 151_936),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 128, 8960, 151_936),
    "qwen2.5-0.5b": (896, 24, 14, 2, 64, 4864, 151_936),
    TINY: (128, 2, 2, 1, 64, 256, 512),
}
PROMPT = Prompt(style="compact", instruction="find {request}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [first + second for first in "bcdfghjklmnprstvwz" for second in "aeiou"]
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }} {{ turn.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def model_source(name: str, dtype: str, work: Path) -> str:
    """What `profile.model` is for a model of the benchmark: the real one's name, or the folder of a made one."""
    return name if name == REAL else str(work / "models" / f"{name}-{dtype}")


def weights_cell(part: str, model: str, dtype: str, seconds: float = 60.0) -> Cell:
    """Making a model with random weights."""
    settings = dict(kind="weights", shape=model, dtype=dtype)
    return Cell(f"{part}/weights/{model}-{dtype}", settings, seconds, artifact=f"models/{model}-{dtype}")


def cached() -> str:
    """Why the real model and the clothing data cannot be had; "" where they are in the cache, now if not before."""
    try:
        assets.fetch("clothing-reviews")
        assets.model_folder(REAL)
    except RecR1Error as error:
        return f"the 135M model or the clothing data are not in the cache and cannot be fetched ({error})"
    return ""


def make(name: str, dtype: str, work: Path) -> dict:
    """Write a model of this shape with random weights (seed 0), and a tokenizer, to its folder: whole or not at all.

    The weights are drawn on the GPU where there is one. Returns their bytes and number.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    target, sizes = Path(model_source(name, dtype, work)), dict(zip(SIZES, SHAPES[name], strict=True))
    tokenizer = tokenizer_for(sizes["vocab_size"])
    ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    config = Qwen2Config(**sizes, **ends, tie_word_embeddings=True, max_position_embeddings=32_768)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(part, max_shard_size="1GB")
        tokenizer.save_pretrained(part)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return {"bytes": size, "parameters": sum(weight.numel() for weight in model.parameters()), "sizes": sizes}


def tokenizer_for(vocab: int):
    """A byte-level tokenizer as Qwen2's, of `vocab` tokens: WORDS are one token each, and every id is some text.

    Made here, so that nothing is downloaded; of Qwen2's kind, because transformers reads it by the model's kind.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [tuple(word) for word in WORDS] + [("Ġ", word) for word in WORDS]
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    if len(names) > vocab:
        raise RecR1Error(f"a vocabulary of {vocab} tokens is too small for the benchmark; take {len(names)} or more")
    names += [f"Ġx{number}" for number in range(vocab - len(names))]
    plain = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    special = dict(pad_token=SPECIAL[0], unk_token=SPECIAL[0], eos_token=SPECIAL[-1])
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=TEMPLATE, **special)


def requests(tokenizer, n: int, tokens: int, seed: int = 0) -> list[str]:
    """n random requests whose rendered prompts (PROMPT, the tokenizer's chat template) have `tokens` tokens each."""
    generator = np.random.default_rng(seed)

    def length(count: int) -> int:
        text = PROMPT.render(tokenizer, " ".join(WORDS[:1] * count))
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    count = tokens - (length(1) - 1)
    if count < 1 or length(count) != tokens:
        raise RecR1Error(f"a prompt of {tokens} tokens cannot be made with this tokenizer; take {length(1)} or more")
    return [" ".join(generator.choice(WORDS, count)) for _ in range(n)]


def examples(tokenizer, n: int, tokens: int) -> pd.DataFrame:
    """Examples as a task has them, of prompts with `tokens` tokens."""
    names = [f"e{row}" for row in range(n)]
    return pd.DataFrame(
        {"example_id": names, "request": requests(tokenizer, n, tokens), "relevant": [{"gold": 1.0}] * n}
    )


def targets(tokenizer, profile) -> pd.DataFrame:
    """Answers of max_completion_tokens tokens, the end token counted, to prompts of max_prompt_tokens tokens."""
    data = examples(tokenizer, profile.sft_batch * profile.steps, profile.max_prompt_tokens)
    text = " ".join(WORDS[at % len(WORDS)] for at in range(profile.max_completion_tokens - 1))
    return data[["example_id", "request"]].assign(rewrite=text, thought="")


def retriever() -> CallableRetriever:
    """Puts `gold` on a rank from 1 to 9 that depends on the query alone, so that rollouts are paid differently."""

    def search(queries: list[str], k: int) -> list[list[str]]:
        places = [zlib.crc32(query.encode()) % 9 for query in queries]
        return [([f"i{at}" for at in range(place)] + ["gold"])[:k] for place in places]

    return CallableRetriever(search)
