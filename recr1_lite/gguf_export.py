"""A model folder of Llama or Qwen2 kind written as one GGUF file, as llama.cpp reads it.

The other direction of `gguf.py`: the same names, the same order of rows. Weights go through memory in slices,
so a 3B model takes the size of its largest matrix, not twice its own.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from math import prod
from pathlib import Path

from recr1_lite.errors import RecR1Error
from recr1_lite.gguf import KINDS, expected, gguf_names, interleave
from recr1_lite.progress import bar

TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}  # general.file_type of each
SLICE = 1 << 24  # weights converted at a time


def export_gguf(folder: str | Path, path: str | Path, kind: str = "f16", name: str = "",
                licence: str = "") -> Path:
    """Write the model in `folder` to the file `path`, whole or not at all.

    kind: how matrices are stored, f32, f16, bf16 or q8_0 (8 bits and a scale for every 32 weights); vectors
    such as norms and biases stay f32. name and licence: general.name and general.license. Raises RecR1Error
    for another kind of model, scaled positions, a tokenizer that such a file cannot hold, weights missing,
    and weights too large for f16.
    """
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    from recr1_lite import gguf_tokenizer

    folder, path = Path(folder), Path(path)
    if kind not in TYPES:
        raise RecR1Error(f"there is no GGUF type {kind!r} here; choose one of {', '.join(TYPES)}")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    fields = _sizes(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fields |= gguf_tokenizer.describe(tokenizer, config.vocab_size)
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
        raise RecR1Error(f"a {kind} model cannot be written as GGUF by this kit, only {' and '.join(KINDS)}; "
                         "use llama.cpp's convert_hf_to_gguf.py on the merged folder")
    rope, sliding = config.rope_parameters, getattr(config, "use_sliding_window", False)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rope.get("rope_type", "default") != "default" or config.hidden_act != "silu" or sliding:
        raise RecR1Error("the model scales its positions, cuts its window or has another activation than "
                         "silu, which is not written here; use llama.cpp's convert_hf_to_gguf.py on the "
                         "merged folder")
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
    kinds = ((bool, writer.add_bool), (int, writer.add_uint32), (float, writer.add_float32),
             (str, writer.add_string), (list, writer.add_array))  # in this order: a bool is an int
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


def _write(writer, path: Path, folder: Path, config, kind: str) -> None:
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    shapes, names = expected(config), gguf_names(config)
    with ExitStack() as stack:
        files = _open_weights(folder, stack)
        for name, shape in shapes.items():
            if name not in files or tuple(files[name].get_slice(name).get_shape()) != shape:
                raise RecR1Error(f"the weight {name!r} is missing in {folder.name}, or its shape is not what "
                                 "config.json says; save the model again")
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
        part = weight[start: start + rows].to(torch.float32).numpy()
        if not np.isfinite(part).all() or (stored.name in ("F16", "Q8_0") and np.abs(part).max() > 65504):
            raise RecR1Error(f"the weight {name!r} holds numbers that {stored.name.lower()} cannot; take f32 "
                             "or bf16, or an earlier checkpoint where they are no numbers at all")
        part = quantize(np.ascontiguousarray(interleave(part, name, config)), stored)
        if out is None:
            out = np.empty((shape[0], *part.shape[1:]), part.dtype)
        out[start: start + rows] = part
    return out
