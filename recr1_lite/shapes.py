"""The sizes of a model that everything else follows from, for the published models and for a config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from recr1_lite.common import RecR1Error

FAMILIES = {"qwen2": True, "llama": False}  # model_type -> is there a bias on the query, key and value projections


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of Llama or Qwen2 kind: widths in numbers, vocab in tokens.

    tied: the head is the embedding. attention_bias: query, key and value projections have a bias.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    attention_bias: bool

    @property
    def query(self) -> int:
        """Width of the queries of all heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values, of all key heads together."""
        return self.kv_heads * self.head_dim


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m-instruct", 576, 30, 9, 3, 64, 1536, 49_152, True, False),
        Shape("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 64, 4864, 151_936, True, True),
        Shape("Qwen/Qwen2.5-1.5B-Instruct", 1536, 28, 12, 2, 128, 8960, 151_936, True, True),
        Shape("Qwen/Qwen2.5-3B-Instruct", 2048, 36, 16, 2, 128, 11_008, 151_936, True, True),
    )
}


def linears(shape: Shape) -> dict[str, tuple[int, int]]:
    """The seven matrices of a decoder layer: name -> (inputs, outputs)."""
    hidden, wide = shape.hidden, shape.intermediate
    return {
        "q_proj": (hidden, shape.query),
        "k_proj": (hidden, shape.keys),
        "v_proj": (hidden, shape.keys),
        "o_proj": (shape.query, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }


def linear_weights(shape: Shape) -> int:
    """Weights of the matrices of all layers: what 4-bit packs, what LoRA adapts, what a token is multiplied with."""
    return shape.layers * sum(inputs * outputs for inputs, outputs in linears(shape).values())


def other_weights(shape: Shape) -> int:
    """Embedding, head where it is its own, norms and biases: what stays 16-bit when the rest is 4-bit."""
    tables = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    norms = (2 * shape.layers + 1) * shape.hidden
    biases = shape.layers * (shape.query + 2 * shape.keys) * shape.attention_bias
    return tables + norms + biases


def parameters(shape: Shape) -> int:
    """All weights of the model, a tied head counted once."""
    return linear_weights(shape) + other_weights(shape)


def adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of a LoRA adapter on all seven matrices: rank x (inputs + outputs) each."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in linears(shape).values())


def shape_of(model: str) -> Shape:
    """The shape of a model in SHAPES, or of a local folder with a config.json.

    Raises RecR1Error for another name, a folder without config.json, or a model of another kind.
    """
    if model in SHAPES:
        return SHAPES[model]
    path = Path(model) / "config.json"
    if not path.is_file():
        raise RecR1Error(
            f"the sizes of {model!r} are not known; name one of {', '.join(SHAPES)}, or a local folder "
            "with a config.json"
        )
    try:
        return _from_config(json.loads(path.read_text()), model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecR1Error(
            f"{path} does not describe a model ({type(error).__name__}: {error}); give a folder that "
            "save_pretrained wrote"
        ) from None


def _from_config(config: dict, name: str) -> Shape:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise RecR1Error(
            f"{name!r} is a model of kind {kind!r}, which the estimator cannot count; give one of kind "
            f"{' or '.join(FAMILIES)}"
        )
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return Shape(
        name,
        hidden,
        int(config["num_hidden_layers"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or hidden // heads),
        int(config["intermediate_size"]),
        int(config["vocab_size"]),
        bool(config.get("tie_word_embeddings", False)),
        FAMILIES[kind] or bool(config.get("attention_bias", False)),
    )


def config_of(shape: Shape):
    """The transformers configuration (Qwen2Config or LlamaConfig) of which a random model can be made."""
    from transformers import LlamaConfig, Qwen2Config

    sizes = dict(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
    )
    return Qwen2Config(**sizes) if shape.attention_bias else LlamaConfig(**sizes)
