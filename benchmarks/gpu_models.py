"""Models of published shapes with random weights, their tokenizer, and prompts of an exact length: no download."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from recr1_lite import assets
from recr1_lite.common import RecR1Error, place_folder
from recr1_lite.profiles import PROFILES, Profile
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


def profile_of(base: str, settings: dict, work: Path) -> Profile:
    """The profile `base` with a cell's model, dtype and sizes, and the preset that every trainer has."""
    model = model_source(settings["model"], settings["dtype"], work)
    fixed = dict(name="benchmark", preset="modern", model=model, dtype=settings["dtype"])
    return replace(PROFILES[base], **fixed, **settings["sizes"])


def model_source(name: str, dtype: str, work: Path) -> str:
    """What `profile.model` is for a model of the benchmark: the real one's name, or the folder of one made here.

    Raises RecR1Error where the real one, or the clothing data, are not in the cache and cannot be fetched.
    """
    if name == REAL:
        assets.fetch("clothing-reviews")
        assets.model_folder(REAL)
        return name
    folder = work / "models" / f"{name}-{dtype}"
    if not folder.is_dir():
        place_folder(folder, lambda made: write_model(name, dtype, made))
    return str(folder)


def write_model(name: str, dtype: str, folder: Path) -> None:
    """A model of this shape with random weights (seed 0), and a tokenizer. On the CPU: no GPU's peak counts it."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    sizes = dict(zip(SIZES, SHAPES[name], strict=True))
    tokenizer = tokenizer_for(sizes["vocab_size"])
    ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    config = Qwen2Config(**sizes, **ends, tie_word_embeddings=True, max_position_embeddings=32_768)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)


def tokenizer_for(vocab: int):
    """A byte-level tokenizer as Qwen2's, of `vocab` tokens: WORDS are one token each, and every id is some text.

    Made here, so that nothing is downloaded; of Qwen2's kind, because transformers reads it by the model's kind.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [tuple(word) for word in WORDS] + [("Ġ", word) for word in WORDS]
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    names += [f"Ġx{number}" for number in range(vocab - len(names))]
    plain = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    special = dict(pad_token=SPECIAL[0], unk_token=SPECIAL[0], eos_token=SPECIAL[-1])
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=TEMPLATE, **special)


def examples(tokenizer, n: int, tokens: int) -> pd.DataFrame:
    """n examples as a task has them, random words (seed 0) whose rendered prompts have `tokens` tokens each."""
    generator = np.random.default_rng(0)

    def length(count: int) -> int:
        text = PROMPT.render(tokenizer, " ".join(WORDS[:1] * count))
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    count = tokens - (length(1) - 1)
    if count < 1 or length(count) != tokens:
        raise RecR1Error(f"a prompt of {tokens} tokens cannot be made with this tokenizer; take {length(1)} or more")
    requests = [" ".join(generator.choice(WORDS, count)) for _ in range(n)]
    names = [f"e{row}" for row in range(n)]
    return pd.DataFrame({"example_id": names, "request": requests, "relevant": [{"gold": 1.0}] * n})


def retriever() -> CallableRetriever:
    """Puts `gold` on a rank from 1 to 9 that depends on the query alone, so that rollouts are paid differently."""

    def search(queries: list[str], k: int) -> list[list[str]]:
        places = [zlib.crc32(query.encode()) % 9 for query in queries]
        return [([f"i{at}" for at in range(place)] + ["gold"])[:k] for place in places]

    return CallableRetriever(search)
