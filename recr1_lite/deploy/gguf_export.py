"""A byte-level BPE tokenizer as a GGUF file holds it, written and read back: tokens, merges, special ids.

A GGUF names its way of splitting text (`tokenizer.ggml.pre`) instead of holding it. Those known here are in
SPLITS. Which one a tokenizer has is found by what it does to PROBES, not by how its file spells it.
"""

# MERGED: """A model folder of Llama or Qwen2 kind written as one GGUF file, as llama.cpp reads it.
# MERGED:
# MERGED: The other direction of `gguf.py`: the same names, the same order of rows. Weights go through memory in slices,
# MERGED: so a 3B model takes the size of its largest matrix, not twice its own.
# MERGED: """

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from math import prod
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from recr1_lite.assets.gguf import KINDS, expected, gguf_names, interleave
from recr1_lite.common import RecR1Error, bar

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type

MARKS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # in a GGUF: in transformers
INSTEAD = "give the model away as adapter or merged folder"
# Qwen2's own pattern: as GPT-2's, but digits one by one, any letter case, line ends kept together
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PROBES = (
    "It's 2024, IT'S 12.5% off! we'll",
    "a\n\nb \n c\r\n  d\t\te   ",
    "x=$foo_bar;//y\n\n",
    " lead  two 3",
    "cafe\u0301 \u00e9 \u4e2d\u6587\u5b57 \u0663\u00bd \u2167",
    "(a)-b ...\n \U0001f600\u200d!",
    "don'T\u00a0x\u3000y",
)


def _words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)


SPLITS = {  # name: (normaliser, splitting)
    "smollm": lambda: (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _words()])),
    "qwen2": lambda: (
        normalizers.NFC(),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
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
    odd = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges") if model.get(key)
    ]
    if model["type"] != "BPE" or odd:
        what = " with ".join([model["type"], *odd])
        raise RecR1Error(f"a GGUF of this kit holds a byte-level BPE tokenizer, and this one is {what}; {INSTEAD}")
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _split_of(backend),
        **_vocabulary(tokenizer, model["vocab"], whole["added_tokens"], size),
    }
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    fields["tokenizer.ggml.merges"] = merges
    for kind, name in MARKS.items():
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            fields[f"tokenizer.ggml.{kind}_token_id"] = number
    alone = tokenizer("a", add_special_tokens=False).input_ids
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    added = tokenizer("a").input_ids
    if added not in (alone, start + alone):
        raise RecR1Error(
            "the tokenizer puts other tokens around a text than its start token, which a GGUF "
            f"file does not say; {INSTEAD}"
        )
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
        raise RecR1Error(
            f"its tokenizer is {what}, and this kit reads byte-level BPE (gpt2) split by one of "
            f"{', '.join(SPLITS)}; take the model as a safetensors folder"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    ids = {name: fields.get(f"tokenizer.ggml.{kind}_token_id") for kind, name in MARKS.items()}
    if ids["pad"] in (None, ids["eos"]) and ids["unk"] not in (None, ids["eos"]):
        ids["pad"] = ids["unk"]
    names = {f"{name}_token": tokens[number] for name, number in ids.items() if number is not None}
    unknown = names.get("unk_token")
    numbers = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    backend = Tokenizer(
        BPE(numbers, merges, unk_token=unknown, fuse_unk=unknown is not None, byte_fallback=unknown is not None)
    )
    normalizer, backend.pre_tokenizer = SPLITS[split]()
    backend.normalizer = normalizer or normalizers.Sequence([])
    backend.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    for number, token in enumerate(tokens):
        if types[number] in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=types[number] == CONTROL)])
    started = fields.get("tokenizer.ggml.add_bos_token")
    backend.post_processor = _start(names.get("bos_token"), ids["bos"], started)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        **names,
    )


def _split_of(backend: Tokenizer) -> str:
    for name, make in SPLITS.items():
        normalizer, split = make()
        if all(
            _pieces(backend.normalizer, backend.pre_tokenizer, text) == _pieces(normalizer, split, text)
            for text in PROBES
        ):
            return name
    raise RecR1Error(
        f"the tokenizer splits text in none of the ways known here ({', '.join(SPLITS)}), so "
        f"llama.cpp would read it otherwise; {INSTEAD}"
    )


def _pieces(normalizer, split, text: str) -> list[str]:
    text = normalizer.normalize_str(text) if normalizer else text
    return [piece for piece, _ in split.pre_tokenize_str(text)] if split else [text]


def _vocabulary(tokenizer, vocabulary: dict[str, int], added: list[dict], size: int) -> dict[str, list]:
    """Tokens and their types by number; numbers that only the embeddings have are filled up, as unused."""
    names = {number: (token, NORMAL) for token, number in vocabulary.items()}
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise RecR1Error(
                f"the token {token['content']!r} swallows the blanks around it, which a GGUF "
                f"file does not say; {INSTEAD}"
            )
        names[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    if max(names) >= size:
        raise RecR1Error(
            f"the tokenizer has a token of number {max(names)} and the model only {size} "
            "embeddings; take the tokenizer that belongs to the model"
        )
    rows = [names.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return {
        "tokenizer.ggml.tokens": [token for token, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
    }


def _start(token: str | None, number: int | None, wanted: object) -> processors.PostProcessor:
    if not wanted or token is None:
        return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, number)]
    )


TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # general.file_type of each
SLICE = 1 << 24  # weights converted at a time


def export_gguf(folder: str | Path, path: str | Path, kind: str = "f16", name: str = "", licence: str = "") -> Path:
    """Write the model in `folder` to the file `path`, whole or not at all.

    kind: how matrices are stored, f32, f16, bf16 or q8_0 (8 bits and a scale for every 32 weights); vectors
    such as norms and biases stay f32. name and licence: general.name and general.license. Raises RecR1Error
    for another kind of model, scaled positions, a tokenizer that such a file cannot hold, weights missing,
    and weights too large for f16.
    """
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    folder, path = Path(folder), Path(path)
    if kind not in TYPES:
        raise RecR1Error(f"there is no GGUF type {kind!r} here; choose one of {', '.join(TYPES)}")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    fields = _sizes(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fields |= describe(tokenizer, config.vocab_size)
    fields |= {"general.name": name or folder.name, "general.file_type": TYPES[kind]}
    fields |= {"general.license": licence} if licence else {}
    fields |= {"general.quantization_version": 2} if kind == "q8_0" else {}

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    writer = GGUFWriter(None, config.model_type)
    try:
        for key, value in fields.items():
            _add(writer, key, value)
        _write(writer, Path(temporary), folder, config, kind)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        writer.close()
        Path(temporary).unlink(missing_ok=True)
    return path


def _sizes(config) -> dict[str, object]:
    """The fields that say what kind of model it is and how large."""
    kind = config.model_type
    if kind not in KINDS:
        raise RecR1Error(
            f"a {kind} model cannot be written as GGUF by this kit, only {' and '.join(KINDS)}; "
            "use llama.cpp's convert_hf_to_gguf.py on the merged folder"
        )
    rope, sliding = config.rope_parameters, getattr(config, "use_sliding_window", False)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rope.get("rope_type", "default") != "default" or config.hidden_act != "silu" or sliding:
        raise RecR1Error(
            "the model scales its positions, cuts its window or has another activation than "
            "silu, which is not written here; use llama.cpp's convert_hf_to_gguf.py on the "
            "merged folder"
        )
    return {
        "general.type": "model",
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": width,
        f"{kind}.attention.value_length": width,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.rope.dimension_count": width,
        f"{kind}.rope.freq_base": float(rope["rope_theta"]),
        f"{kind}.vocab_size": config.vocab_size,
    }


def _add(writer, key: str, value: object) -> None:
    kinds = (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    )  # in this order: a bool is an int
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


def _write(writer, path: Path, folder: Path, config, kind: str) -> None:
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    shapes, names = expected(config), gguf_names(config)
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        for name, shape in shapes.items():
            if name not in files or tuple(files[name].get_slice(name).get_shape()) != shape:
                raise RecR1Error(
                    f"the weight {name!r} is missing in {folder.name}, or its shape is not what "
                    "config.json says; save the model again"
                )
            stored = _type(shape, kind)
            packed = stored.name in ("BF16", "Q8_0")
            bytes_shape = quant_shape_to_byte_shape(shape, stored) if packed else shape
            numbers = np.dtype({"F32": "f4", "F16": "f2"}.get(stored.name, "u1"))
            size = prod(bytes_shape) * numbers.itemsize
            writer.add_tensor_info(names[name], bytes_shape, numbers, size, stored)
        writer.open_output_file(path)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(map(prod, shapes.values()))
        with bar(total=total, desc=f"gguf {kind}", unit="weight", unit_scale=True) as shown:
            for name, shape in shapes.items():
                writer.write_tensor_data(_converted(files[name], name, shape, config, _type(shape, kind)))
                shown.update(prod(shape))


def _open_weights(folder: Path, stack: ExitStack) -> dict[str, object]:
    """The open safetensors file of every weight in `folder`."""
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = [path for path in paths if path.name in named]
    files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
    return {name: file for file in files for name in file.keys()}


def _type(shape: tuple[int, ...], kind: str):
    """How a weight of this shape is stored: vectors in f32; rows of no whole blocks of 32 not in q8_0."""
    from gguf import GGMLQuantizationType as Type

    if len(shape) == 1:
        return Type.F32
    return Type.F16 if kind == "q8_0" and shape[-1] % 32 else Type[kind.upper()]


def _converted(file, name: str, shape: tuple[int, ...], config, stored):
    """A weight as GGUF stores it, an array of numbers or bytes, made from slices of whole rows."""
    import numpy as np
    import torch
    from gguf import quantize

    turned = "q_proj" in name or "k_proj" in name  # whole: rows change places
    rows = shape[0] if turned else max(1, SLICE // prod(shape[1:]))
    weight, out = file.get_slice(name), None
    for start in range(0, shape[0], rows):
        part = weight[start : start + rows].to(torch.float32).numpy()
        if not np.isfinite(part).all() or (stored.name in ("F16", "Q8_0") and np.abs(part).max() > 65504):
            raise RecR1Error(
                f"the weight {name!r} holds numbers that {stored.name.lower()} cannot; take f32 "
                "or bf16, or an earlier checkpoint where they are no numbers at all"
            )
        part = quantize(np.ascontiguousarray(interleave(part, name, config)), stored)
        if out is None:
            out = np.empty((shape[0], *part.shape[1:]), part.dtype)
        out[start : start + rows] = part
    return out
