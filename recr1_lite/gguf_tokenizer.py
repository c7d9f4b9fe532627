"""A byte-level BPE tokenizer as a GGUF file holds it, written and read back: tokens, merges, special ids.

A GGUF names its way of splitting text (`tokenizer.ggml.pre`) instead of holding it. Those known here are in
SPLITS. Which one a tokenizer has is found by what it does to PROBES, not by how its file spells it.
"""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from recr1_lite.errors import RecR1Error

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
KINDS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # in a GGUF: in transformers
INSTEAD = "give the model away as adapter or merged folder"
# Qwen2's own pattern: as GPT-2's, but digits one by one, any letter case, line ends kept together
_QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
PROBES = ("It's 2024, IT'S 12.5% off! we'll", "a\n\nb \n c\r\n  d\t\te   ", "x=$foo_bar;//y\n\n",
          " lead  two 3", "cafe\u0301 \u00e9 \u4e2d\u6587\u5b57 \u0663\u00bd \u2167",
          "(a)-b ...\n \U0001f600\u200d!",
          "don'T\u00a0x\u3000y")


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)


SPLITS = {  # name: (normaliser, splitting)
    "smollm": lambda: (None, pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), _words()])),
    "qwen2": lambda: (normalizers.NFC(), pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])),
    "gpt-2": lambda: (None, _words()),
}


def describe(tokenizer, size: int) -> dict[str, object]:
    """The fields `tokenizer.*` of a GGUF file for this tokenizer and a model of `size` embeddings.

    Raises RecR1Error for a tokenizer that such a file cannot hold: no byte-level BPE, another splitting,
    tokens that swallow the blanks around them, more tokens than embeddings.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend else {"model": {"type": type(tokenizer).__name__}}
    model = whole["model"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
           if model.get(key)]
    if model["type"] != "BPE" or odd:
        what = " with ".join([model["type"], *odd])
        raise RecR1Error(f"a GGUF of this kit holds a byte-level BPE tokenizer, and this one is {what}; "
                         f"{INSTEAD}")
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _split_of(backend),
              **_vocabulary(tokenizer, model["vocab"], whole["added_tokens"], size)}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    fields["tokenizer.ggml.merges"] = merges
    for kind, name in KINDS.items():
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            fields[f"tokenizer.ggml.{kind}_token_id"] = number
    alone = tokenizer("a", add_special_tokens=False).input_ids
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    added = tokenizer("a").input_ids
    if added not in (alone, start + alone):
        raise RecR1Error("the tokenizer puts other tokens around a text than its start token, which a GGUF "
                         f"file does not say; {INSTEAD}")
    fields |= {"tokenizer.ggml.add_bos_token": added != alone, "tokenizer.ggml.add_space_prefix": False}
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return fields | ({"tokenizer.chat_template": template} if template else {})


def read(fields: dict[str, object], length: int) -> PreTrainedTokenizerFast:
    """The tokenizer in the fields of a GGUF file; `length`: the model's positions. Padding goes to the left.

    A pad token that is the end token too is replaced by the unknown token, where there is one: a masked end
    would never be learned. Raises RecR1Error for a kind of tokenizer or a splitting that is not known here.
    """
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLITS:
        what = f"of kind {kind!r}" if kind != "gpt2" else f"split by {split!r}"
        raise RecR1Error(f"its tokenizer is {what}, and this kit reads byte-level BPE (gpt2) split by one of "
                         f"{', '.join(SPLITS)}; take the model as a safetensors folder")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    ids = {name: fields.get(f"tokenizer.ggml.{kind}_token_id") for kind, name in KINDS.items()}
    if ids["pad"] in (None, ids["eos"]) and ids["unk"] not in (None, ids["eos"]):
        ids["pad"] = ids["unk"]
    names = {f"{name}_token": tokens[number] for name, number in ids.items() if number is not None}
    unknown = names.get("unk_token")
    numbers = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    backend = Tokenizer(BPE(numbers, merges, unk_token=unknown, fuse_unk=unknown is not None,
                            byte_fallback=unknown is not None))
    normalizer, backend.pre_tokenizer = SPLITS[split]()
    backend.normalizer = normalizer or normalizers.Sequence([])
    backend.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    for number, token in enumerate(tokens):
        if types[number] in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=types[number] == CONTROL)])
    started = fields.get("tokenizer.ggml.add_bos_token")
    backend.post_processor = _start(names.get("bos_token"), ids["bos"], started)
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", model_max_length=length,
                                   clean_up_tokenization_spaces=False,
                                   chat_template=fields.get("tokenizer.chat_template"), **names)


def _split_of(backend: Tokenizer) -> str:
    for name, make in SPLITS.items():
        normalizer, split = make()
        if all(_pieces(backend.normalizer, backend.pre_tokenizer, text) == _pieces(normalizer, split, text)
               for text in PROBES):
            return name
    raise RecR1Error(f"the tokenizer splits text in none of the ways known here ({', '.join(SPLITS)}), so "
                     f"llama.cpp would read it otherwise; {INSTEAD}")


def _pieces(normalizer, split, text: str) -> list[str]:
    text = normalizer.normalize_str(text) if normalizer else text
    return [piece for piece, _ in split.pre_tokenize_str(text)] if split else [text]


def _vocabulary(tokenizer, vocabulary: dict[str, int], added: list[dict], size: int) -> dict[str, list]:
    """Tokens and their types by number; numbers that only the embeddings have are filled up, as unused."""
    names = {number: (token, NORMAL) for token, number in vocabulary.items()}
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise RecR1Error(f"the token {token['content']!r} swallows the blanks around it, which a GGUF "
                             f"file does not say; {INSTEAD}")
        names[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    if max(names) >= size:
        raise RecR1Error(f"the tokenizer has a token of number {max(names)} and the model only {size} "
                         "embeddings; take the tokenizer that belongs to the model")
    rows = [names.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return {"tokenizer.ggml.tokens": [token for token, _ in rows],
            "tokenizer.ggml.token_type": [kind for _, kind in rows]}


def _start(token: str | None, number: int | None, wanted: object) -> processors.PostProcessor:
    if not wanted or token is None:
        return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return processors.TemplateProcessing(single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"],
                                         special_tokens=[(token, number)])
