"""Leaving with the model: GGUF files written, read back and broken; exports with their checks, the card, the push."""

from __future__ import annotations

import json
import os
import shutil
import types
from dataclasses import replace
from pathlib import Path

import gguf as gguf_package
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_policy, tiny_profile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from recr1_lite.assets import fetch as model_folders
from recr1_lite.assets import gguf
from recr1_lite.assets.fetch import sha256_of
from recr1_lite.common import RecR1Error
from recr1_lite.deploy import export as exports
from recr1_lite.deploy import export as model_card
from recr1_lite.deploy import gguf_export
from recr1_lite.deploy import gguf_export as gguf_tokenizer
from recr1_lite.deploy.export import compare, export
from recr1_lite.deploy.gguf_export import export_gguf
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.tasks.prompts import Prompt

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOP = ["a warm winter coat with a hood", "it's 20% off, isn't it? 12 or 345!", "größe 38 – 裙子 👗\n\n  two", "don't"]
ASKED = [f"{text} {number}" for number, text in enumerate(SHOP * 3)]
QUESTION = Prompt(style="compact", instruction="{request}\nWhat is it?", prefix="A")
KINDS = {
    "llama": {},
    "llama-untied": dict(tie_word_embeddings=False),
    "llama-wide": dict(head_dim=16),
    "llama-biases": dict(attention_bias=True, mlp_bias=True),
    "qwen2": {},
    "qwen2-untied": dict(tie_word_embeddings=False),
}


def bpe(split: str, size: int = 330) -> PreTrainedTokenizerFast:
    """A real byte-level BPE tokenizer, learned from a few words, with a token that is added and not special."""
    normalizer, splitting = gguf_tokenizer.SPLITS[split]()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitting
    if normalizer:
        backend.normalizer = normalizer
    backend.train_from_iterator(
        SHOP * 4,
        trainers.BpeTrainer(
            vocab_size=size - 4,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ),
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<tool>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def random_model(folder: Path, kind: str, seed: int = 0, **more) -> Path:
    """A random model, biases and norms included, with more embeddings than tokens, as Qwen's have."""
    torch.manual_seed(seed)
    family = kind.partition("-")[0]
    config, build = (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Qwen2Config, Qwen2ForCausalLM)
    sizes = dict(
        vocab_size=336,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-5,
        eos_token_id=2,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = build(config(**(sizes | KINDS[kind] | more)))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    bpe("smollm" if family == "llama" else "qwen2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return random_model(tmp_path_factory.mktemp("kind") / "model", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return random_model(tmp_path_factory.mktemp("llama") / "model", "llama")


def back(file: Path, folder: Path) -> Path:
    folder.mkdir()
    gguf.convert(file, folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)("a warm coat", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=ids).logits


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


# GGUF there and back


def test_every_weight_comes_back(folder, tmp_path):
    file = export_gguf(folder, tmp_path / "model.gguf", "f32")
    again = back(file, tmp_path / "back")
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(folder), logits(again))
    assert (
        AutoTokenizer.from_pretrained(again).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        == "<|im_start|>user\nhi<|im_end|>\n"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_loader_of_transformers_reads_the_same_model(kind, tmp_path):
    """Somebody else's reader: the same names, the same order of rows."""
    folder = random_model(tmp_path / "model", kind)
    (tmp_path / "file").mkdir()
    export_gguf(folder, tmp_path / "file" / "m.gguf", "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "file", gguf_file="m.gguf", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)("a warm coat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (theirs(input_ids=ids).logits - logits(folder)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_file_field_by_field(kind, tmp_path):
    folder = random_model(tmp_path / "model", kind)
    reader = gguf_package.GGUFReader(export_gguf(folder, tmp_path / "m.gguf", "f16", "my model", "apache-2.0"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens = fields.pop("tokenizer.ggml.tokens")
    types, merges = fields.pop("tokenizer.ggml.token_type"), fields.pop("tokenizer.ggml.merges")
    sizes = {
        "block_count": 2,
        "context_length": 256,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 8,
        "vocab_size": 336,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "rope.freq_base": 5000.0,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5, rel=1e-6),
    }
    assert fields == {
        "GGUF.version": 3,
        "GGUF.tensor_count": len(reader.tensors),
        "GGUF.kv_count": len(fields),
        "general.architecture": kind,
        "general.type": "model",
        "general.name": "my model",
        "general.license": "apache-2.0",
        "general.file_type": 1,
        **{f"{kind}.{name}": value for name, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm" if kind == "llama" else "qwen2",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
        **({"tokenizer.ggml.unknown_token_id": 0} if kind == "qwen2" else {}),
    }  # the class Qwen2Tokenizer has one
    assert reader.fields["tokenizer.ggml.token_type"].types[1].name == "INT32"
    assert len(tokens) == len(types) == 336 and len(set(tokens)) == 336
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and types[:4] == [3, 3, 3, 1]
    known = len(bpe("smollm" if kind == "llama" else "qwen2"))
    assert tokens[known - 1 : known + 1] == ["<tool>", f"[PAD{known}]"] and types[known - 1 : known + 1] == [4, 5]
    assert all(pair.count(" ") == 1 for pair in merges) and len(merges) > 20

    weights = {tensor.name: tensor for tensor in reader.tensors}
    assert {tensor.tensor_type.name for tensor in weights.values() if len(tensor.shape) == 1} == {"F32"}
    assert {tensor.tensor_type.name for tensor in weights.values() if len(tensor.shape) == 2} == {"F16"}
    assert ("blk.1.attn_k.bias" in weights) == (kind == "qwen2") and "output.weight" not in weights
    plain = load_file(folder / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"].half().numpy()
    stored = weights["blk.1.attn_k.weight"].data
    order = [head * 8 + turn + half * 4 for head in range(2) for turn in range(4) for half in range(2)]
    assert np.array_equal(stored, plain[order] if kind == "llama" else plain)


@pytest.mark.parametrize("kind, error", [("f16", 2e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_coarser_types_round_matrices_and_keep_vectors(llama, tmp_path, kind, error):
    file = export_gguf(llama, tmp_path / "model.gguf", kind)
    before = load_file(llama / "model.safetensors")
    after = load_file(back(file, tmp_path / "back") / "model.safetensors")
    for name, weight in before.items():
        gap = (after[name] - weight).abs().max() / weight.abs().max()
        assert gap == 0 if weight.dim() == 1 else 0 < gap < error
    small = file.stat().st_size
    assert small < export_gguf(llama, tmp_path / "wide.gguf", "f32").stat().st_size


def test_rows_that_are_no_whole_blocks_stay_in_16_bits(tmp_path):
    folder = random_model(tmp_path / "model", "llama", hidden_size=48)
    reader = gguf_package.GGUFReader(export_gguf(folder, tmp_path / "m.gguf", "q8_0"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == "F16" and types["blk.0.ffn_down.weight"] == "Q8_0"
    assert (logits(back(tmp_path / "m.gguf", tmp_path / "back")) - logits(folder)).abs().max() < 0.5


def test_large_weights_go_through_in_slices(llama, tmp_path, monkeypatch):
    whole = export_gguf(llama, tmp_path / "whole.gguf", "q8_0").read_bytes()
    monkeypatch.setattr(gguf_export, "SLICE", 7 * 32)
    assert export_gguf(llama, tmp_path / "slices.gguf", "q8_0", "model").read_bytes() == whole


def test_weights_in_several_files(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 2
    one, many = export_gguf(llama, tmp_path / "one.gguf"), export_gguf(folder, tmp_path / "many.gguf")
    assert one.read_bytes() == many.read_bytes()


# the tokenizer


TOKENIZERS = {split: bpe(split) for split in gguf_tokenizer.SPLITS}
READ = {split: gguf_tokenizer.read(gguf_tokenizer.describe(one, 336), 256) for split, one in TOKENIZERS.items()}


@pytest.mark.parametrize("split", TOKENIZERS)
@settings(deadline=None, max_examples=150)
@given(text=st.text() | st.text("a 1\n'sS.é\u0301 <|tool_endxtimsar>"))
@example("IT'S 12,345\r\n\n  ½ Ⅷ <tool> <|im_end|> <|endoftext|>e\u0301")
def test_any_text_has_the_same_tokens(split, text):
    before, after = TOKENIZERS[split], READ[split]
    ids = before(text, add_special_tokens=False).input_ids
    assert after(text, add_special_tokens=False).input_ids == ids
    assert after.decode(ids) == before.decode(ids) and after.decode(ids, skip_special_tokens=True) == before.decode(
        ids, skip_special_tokens=True
    )


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    """The real model's tokenizer, and the same through the fields of a GGUF file."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    return tokenizer, gguf_tokenizer.read(gguf_tokenizer.describe(tokenizer, 49152), 8192)


@settings(deadline=None, max_examples=150)
@given(text=st.text() | st.text("ab 19\n'sS.é\u0301▁"))
def test_the_real_tokenizer_too(smollm2, text):
    before, after = smollm2
    ids = before(text).input_ids  # its vocabulary lacks some bytes, which become the unknown token
    assert after(text).input_ids == ids and after.decode(ids) == before.decode(ids)


def test_the_real_tokenizer_keeps_its_special_tokens(smollm2):
    before, after = smollm2
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template", "padding_side"):
        assert getattr(before, name) == getattr(after, name)
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()


def test_the_splitting_of_qwen2_is_its_own():
    """The same pieces as transformers' own Qwen2 tokenizer makes."""
    from transformers import Qwen2Tokenizer

    theirs, (normalizer, split) = Qwen2Tokenizer().backend_tokenizer, gguf_tokenizer.SPLITS["qwen2"]()
    for text in gguf_tokenizer.PROBES:
        assert theirs.pre_tokenizer.pre_tokenize_str(text) == split.pre_tokenize_str(text)
        assert theirs.normalizer.normalize_str(text) == normalizer.normalize_str(text)


def test_a_start_token_is_put_before_a_text_where_it_was(tmp_path):
    tokenizer = bpe("gpt-2")
    tokenizer.bos_token = "<|im_start|>"
    fields = gguf_tokenizer.describe(tokenizer, 336)
    assert fields["tokenizer.ggml.bos_token_id"] == 1 and fields["tokenizer.ggml.add_bos_token"] is False
    started = gguf_tokenizer.read(fields | {"tokenizer.ggml.add_bos_token": True}, 256)
    assert started("a").input_ids == [1, *tokenizer("a").input_ids]
    again = gguf_tokenizer.describe(started, 336)
    assert again["tokenizer.ggml.add_bos_token"] is True
    started.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b").input_ids == started("a b").input_ids


def test_a_pad_token_is_not_the_end_token():
    fields = gguf_tokenizer.describe(bpe("smollm"), 336)
    both = fields | {"tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
    assert gguf_tokenizer.read(both, 256).pad_token_id == 0


def odd_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    split, blanks, many = bpe("smollm"), bpe("smollm"), bpe("smollm")
    split.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    blanks.add_tokens([gguf_tokenizer.AddedToken("<x>", lstrip=True)])
    many.add_tokens([f"<{number}>" for number in range(20)])
    return {"none of the ways known here": split, "'<x>' swallows the blanks": blanks, "only 336 embeddings": many}


def test_a_tokenizer_that_a_file_cannot_hold():
    for message, tokenizer in odd_tokenizers().items():
        with pytest.raises(RecR1Error, match=message) as error:
            gguf_tokenizer.describe(tokenizer, 336)
        sentence(error)


# what cannot be written, what cannot be read


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type="mistral"), "a mistral model cannot be written"),
        (dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}), "scales its positions"),
        (dict(hidden_act="gelu"), "another activation than silu"),
        (dict(intermediate_size=128), "shape is not what config.json says"),
        (dict(num_hidden_layers=3), "is missing in model"),
    ],
)
def test_a_model_that_is_not_written(llama, tmp_path, change, message):
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RecR1Error, match=message) as error:
        export_gguf(folder, tmp_path / "out" / "m.gguf", "f16")
    sentence(error)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_word_tokenizer_and_an_unknown_type(tiny_folder, tmp_path):
    with pytest.raises(RecR1Error, match="byte-level BPE tokenizer, and this one is WordLevel"):
        export_gguf(tiny_folder, tmp_path / "m.gguf")
    with pytest.raises(RecR1Error, match="no GGUF type 'q4_k' here; choose one of f32, f16, bf16, q8_0"):
        export_gguf(tiny_folder, tmp_path / "m.gguf", "q4_k")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [7e4, float("nan")])
def test_numbers_that_16_bits_cannot_hold_leave_the_earlier_file(llama, tmp_path, number):
    folder = shutil.copytree(llama, tmp_path / "model")
    before = export_gguf(folder, tmp_path / "m.gguf").read_bytes()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecR1Error, match="up_proj.weight' holds numbers that f16 cannot"):
        export_gguf(folder, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "m.gguf"}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rewritten(file: Path, new: Path, drop: str = "", **changes) -> Path:
    """A copy of a GGUF file with other fields, or without one tensor."""
    reader = gguf_package.GGUFReader(file)
    kind = changes.get("general.architecture", "llama")
    writer = gguf_package.GGUFWriter(new, kind)
    fields = {name: field.contents() for name, field in reader.fields.items()} | changes
    for name, value in fields.items():
        if name != "general.architecture" and value is not None and not name.startswith("GGUF."):
            gguf_export._add(writer, name, value)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"general.architecture": "gemma2"}, "it is a gemma2 model, and this kit reads llama and qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of kind 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "its tokenizer is split by 'tekken'"),
        ({"llama.rope.scaling.type": "yarn"}, "scales or cuts its positions"),
        ({"llama.block_count": None}, "no whole GGUF file .*llama.block_count"),
        ({"llama.block_count": 1}, "holds a tensor 'blk.1"),
        ({"llama.feed_forward_length": 128}, "has another shape than its fields say"),
        ({"tokenizer.ggml.tokens": None}, "no whole GGUF file .*tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "no whole GGUF file"),
        ({"llama.attention.head_count": 0}, "no whole GGUF file"),
        ({"drop": "blk.1.ffn_up.weight"}, "no whole GGUF file .*blk.1.ffn_up.weight"),
    ],
)
def test_a_foreign_file_is_told_in_one_sentence_and_leaves_nothing(llama, cache, tmp_path, changes, message):
    file = rewritten(export_gguf(llama, tmp_path / "m.gguf", "f32"), tmp_path / "other.gguf", **changes)
    with pytest.raises(RecR1Error, match=message) as error:
        model_folders.folder_of(file)
    assert sentence(error).startswith("other.gguf")
    assert not (cache / "models").exists() or list((cache / "models").iterdir()) == []


def test_a_file_cut_short_anywhere(llama, cache, tmp_path):
    whole = export_gguf(llama, tmp_path / "m.gguf", "f16").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 10, 30, 100, 3000, 9000, len(whole) // 2, len(whole) - 40]:
        cut.write_bytes(whole[:size])
        with pytest.raises(RecR1Error, match="cut.gguf is no whole GGUF file") as error:
            model_folders.folder_of(cut)
        sentence(error)
    cut.write_bytes(whole[:40] + b"\xff" * 16 + whole[56:])  # a length of 2^64 - 1
    with pytest.raises(RecR1Error, match="cut.gguf is no whole GGUF file"):
        model_folders.folder_of(cut)
    with pytest.raises(RecR1Error, match="there is no file"):
        model_folders.folder_of(tmp_path / "none.gguf")
    assert not (cache / "models").exists() or list((cache / "models").iterdir()) == []


def test_the_cache_keeps_the_last_three_of_them_and_nothing_else_goes(llama, cache, tmp_path, monkeypatch):
    (cache / "models" / "gguf-mine").mkdir(parents=True)
    folders = []
    for number in range(5):
        folders.append(
            model_folders.folder_of(export_gguf(llama, tmp_path / f"{number}.gguf", "f32", name=f"model {number}"))
        )
        os.utime(folders[-1], (number, number))
    assert [folder.exists() for folder in folders] == [False, False, True, True, True]
    assert (cache / "models" / "gguf-mine").is_dir()


def test_a_file_becomes_a_folder_once(llama, cache, tmp_path, monkeypatch, capfd, network):
    file = export_gguf(llama, tmp_path / "m.gguf", "f32")
    folder = model_folders.folder_of(file)
    assert folder.parent == cache / "models" and "m.gguf" in (folder / "CONVERSION.md").read_text()
    assert "turning m.gguf into a float32 model folder" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
        assert model_folders.folder_of(shutil.move(file, tmp_path / "renamed.gguf")) == folder
    (folder / "config.json").unlink()
    assert model_folders.folder_of(tmp_path / "renamed.gguf") == folder and (folder / "config.json").is_file()
    policy = load_policy(tiny_profile(tmp_path / "renamed.gguf"), trainable=False)
    assert torch.equal(
        policy.model(torch.tensor([[5, 6]])).logits,
        AutoModelForCausalLM.from_pretrained(llama)(torch.tensor([[5, 6]])).logits,
    )
    assert network == [] and [path.name for path in folder.parent.iterdir()] == [folder.name]


# exports


def trained(folder: Path, where: Path, scale: float = 0.3, **changes):
    """A profile, and the folder of an adapter that does something."""
    profile = tiny_profile(folder, max_prompt_tokens=256, **changes)
    return profile, save_adapter(tiny_policy(folder, scale, max_prompt_tokens=256, **changes), where / "adapter")


@pytest.mark.parametrize("kind", ["llama", "qwen2-untied"])
def test_float32_says_the_same_everywhere(kind, tmp_path, network):
    profile, adapter = trained(random_model(tmp_path / "model", kind), tmp_path)
    told = export(profile, adapter, tmp_path / "out", QUESTION, ASKED, dtype="float32", gguf_type="f32")
    assert list(told["checks"]) == ["adapter", "merged", "gguf"]
    for check in told["checks"].values():
        assert check["same_rewrites"] == check["same_tokens"] == check["n"] == 12 and check["max_nats"] < 1e-4
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"adapter", "merged", "model-f32.gguf", "export.json"}
    assert json.loads((out / "export.json").read_text()) == json.loads(json.dumps(told))
    assert told["files"]["model-f32.gguf"]["sha256"] == sha256_of(out / "model-f32.gguf")
    assert not any(str(tmp_path) in file.read_text(errors="ignore") for file in out.rglob("*.json"))
    assert "attn_implementation" not in (out / "merged" / "config.json").read_text() and network == []
    before, after = (
        exports.measure(load_policy(profile, adapter=folder, trainable=False), QUESTION, ASKED, profile)
        for folder in (None, adapter)
    )
    assert before["rewrite"] != after["rewrite"], "else the comparison would show nothing"


def test_16_bits_and_8_bits_and_an_export_that_is_replaced(llama, tmp_path):
    profile, adapter = trained(llama, tmp_path, scale=0.05)
    out = tmp_path / "out"
    told = export(profile, adapter, out, QUESTION, ASKED)
    assert 0 < told["checks"]["gguf"]["max_nats"] < 0.05 and told["checks"]["merged"]["coarsest"] == "float16"
    assert next(iter(load_file(out / "merged" / "model.safetensors").values())).dtype == torch.float16
    told = export(replace(profile, load_in_4bit=True), adapter, out, QUESTION, ASKED, ("gguf",), gguf_type="q8_0")
    assert list(told["checks"]) == ["gguf"] and told["checks"]["gguf"]["coarsest"] == "q8_0"
    assert {path.name for path in out.iterdir()} == {"model-q8_0.gguf", "export.json"}
    assert "trained on 4-bit weights" in exports.lines(told)[-1] and told["trained_in_4bit"]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_a_form_that_says_something_else_is_not_kept(llama, tmp_path, monkeypatch):
    profile, adapter = trained(llama, tmp_path)
    real = exports.save_merged

    def other(policy, folder):
        policy.model.get_input_embeddings().weight.data[50:] += 0.05
        return real(policy, folder)

    monkeypatch.setattr(exports, "save_merged", other)
    with pytest.raises(RecR1Error, match="the exported merged is not the trained model: same prompt") as error:
        export(profile, adapter, tmp_path / "out", QUESTION, ASKED, dtype="float32")
    assert "nothing was written" in sentence(error) and "same prompt tokens for 12" in sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_is_beyond_the_tolerance():
    here = {"prompt": [[1]] * 10, "rewrite": ["a"] * 10, "logps": [[-1.0, -2.0]] * 10}
    flipped = here | {"rewrite": ["a"] * 9 + ["b"]}
    assert compare("x", here, flipped, "float16")["same_rewrites"] == 9
    for there, coarsest in (
        (flipped, "float32"),
        (here | {"prompt": [[1]] * 9 + [[2]]}, "q8_0"),
        (here | {"rewrite": ["b"] * 10}, "q8_0"),
        (here | {"logps": [[-1.0, -2.1]] * 10}, "float16"),
        (here | {"logps": [[-1.0, float("nan")]] * 10}, "q8_0"),
    ):
        with pytest.raises(RecR1Error, match="is not the trained model"):
            compare("x", here, there, coarsest)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(formats=("onnx",)), "no format 'onnx'"),
        (dict(dtype="int8"), "no dtype 'int8'"),
        (dict(gguf_type="q4_0"), "no GGUF type 'q4_0'"),
        (dict(formats=()), "needs one format at least"),
        (dict(requests=[]), "and one request"),
    ],
)
def test_what_an_export_does_not_know(tiny_folder, tmp_path, options, message):
    with pytest.raises(RecR1Error, match=message):
        export(tiny_profile(tiny_folder), tmp_path, tmp_path / "out", QUESTION, **({"requests": ASKED} | options))


def test_a_folder_of_somebody_else_is_not_replaced(tiny_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for _ in range(2):
        with pytest.raises(RecR1Error, match="holds 'thesis.tex', which is no export"):
            export(tiny_profile(tiny_folder), tmp_path, out, QUESTION, ASKED)
        (out / "export.json").write_text("{}")
    with pytest.raises(RecR1Error, match="is a file; give another folder"):
        export(tiny_profile(tiny_folder), tmp_path, out / "thesis.tex", QUESTION, ASKED)
    assert (out / "thesis.tex").read_text() == "years of work"


# the card and the push


def ledger(path: Path, tested: bool = True) -> Path:
    book = Ledger(path / "run" / "ledger.jsonl")
    interval = {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 40}
    for method in ("GRPO", "SFT"):
        book.append(
            {
                "kind": "train",
                "run": "run",
                "method": method,
                "task": "shop",
                "seed": 3,
                "seconds": 12.5,
                "config": {"steps": 50, "prompts_per_step": 8, "group_size": 4},
                "device": "a|b",
                "command": "python -m recr1_lite demo --out=/home/me/runs/x --items '/data/items.csv'",
            }
        )
    for method in ["GRPO", "raw request"] * tested:
        book.append(
            {
                "kind": "eval",
                "run": "run",
                "method": method,
                "task": "shop",
                "split": "test",
                "n": 40,
                "metrics": {"ndcg@10": interval},
                "retriever": "BM25Retriever",
            }
        )
    if tested:
        book.append(
            {
                "kind": "compare",
                "run": "run",
                "task": "shop",
                "split": "test",
                "metric": "ndcg@10",
                "a": "GRPO",
                "b": "raw request",
                "difference": interval | {"mean": 0.05},
            }
        )
        book.append(
            {
                "kind": "capability_compare",
                "run": "run",
                "a": "GRPO",
                "b": "untrained",
                "task": "sums",
                "metric": "accuracy",
                "n": 9,
                "difference": interval | {"mean": -0.25},
            }
        )
    return path / "run"


def told(**changes) -> dict:
    return {
        "base_model": "smollm2-135m-instruct",
        "notes": [],
        "prompt": vars(QUESTION),
        "max_completion_tokens": 5,
        "files": {"merged/config.json": {}, "model-f16.gguf": {}},
        "checks": {"gguf": {"coarsest": "float16", "same_rewrites": 99, "n": 100, "max_nats": 0.0123}},
    } | changes


def test_the_card_says_what_the_ledger_says(tmp_path):
    gathered = model_card.gather(ledger(tmp_path) / "grpo" / "best")
    assert (gathered["run"], gathered["method"]) == ("run", "GRPO")
    card = model_card.card(told(), gathered, "shop", {"source": "a shop", "licence": "CC0"})
    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and front["license"] == "apache-2.0"
    assert front["library_name"] == "transformers" and "gguf" in front["tags"]
    for line in (
        "| GRPO | 40 | 0.300 [0.200, 0.400] |  |",
        "| raw request | 40 | 0.300 [0.200, 0.400] | +0.050",
        "| sums | accuracy | 9 | untrained | -0.250",
        "| seed | 3 |",
        "| seconds | 12.5 |",
        "| device | a\\|b |",
        "| command | python -m recr1_lite demo --out=x --items 'items.csv' |",
        "| gguf | float16 | 99 of 100 | 0.012 |",
        "licence: CC0.",
        "llama-server -m model-f16.gguf",
    ):
        assert line in text
    assert str(tmp_path) not in card and "no sealed-test result" not in card
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_the_card_says_what_is_missing(tmp_path):
    gathered = model_card.gather(ledger(tmp_path, tested=False) / "sft")
    card = model_card.card(told(base_model="me/mine", files={"adapter/x": {}}, notes=["one"]), gathered, "shop", {})
    assert gathered["method"] == "SFT" and "There is no sealed-test result in the ledger" in card
    assert "license:" not in card and "see its own page" in card and "licence: not stated" in card
    assert 'library_name: "peft"' in card and "PeftModel.from_pretrained(model, 'adapter')" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    nothing = model_card.gather(tmp_path / "elsewhere" / "best", tmp_path / "none.jsonl")
    card = model_card.card(told(), nothing, "shop", {})
    assert "The ledger holds no training of this adapter." in card and "no sealed-test result" in card


def test_which_training_it_was(tmp_path):
    run = ledger(tmp_path)
    with pytest.raises(RecR1Error, match="the run run trained GRPO, SFT; say with --method which one best is"):
        model_card.gather(run / "best")
    assert model_card.gather(run / "best", method="SFT")["train"]["method"] == "SFT"
    with pytest.raises(RecR1Error, match="no training of the run 'other'; it has run"):
        model_card.gather(run / "best", run="other")
    with pytest.raises(RecR1Error, match="the run run trained no 'PPO'"):
        model_card.gather(run / "best", method="PPO")


class FakeHub:
    """Stands in for the Hub's client and keeps what it was asked."""

    asked: list = []
    fails: Exception | None = None

    def create_repo(self, repo, **options):
        self.asked.append(("create", repo, options))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, **options):
        if self.fails:
            raise self.fails
        self.asked.append(("upload", options["repo_id"], options))


@pytest.fixture
def hub(monkeypatch) -> type[FakeHub]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("RECR1_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "asked", [])
    return FakeHub


def test_a_push_makes_a_private_repo_and_uploads_the_folder(hub, tmp_path, monkeypatch):
    (tmp_path / "export.json").write_text("{}")
    assert model_card.push(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    (create, upload) = hub.asked
    assert create == ("create", "me/mine", {"repo_type": "model", "private": True, "exist_ok": True})
    assert upload[2]["folder_path"] == str(tmp_path) and upload[2]["repo_type"] == "model"
    model_card.push(tmp_path, "me/mine", private=False)
    assert hub.asked[2][2]["private"] is False
    refused = RuntimeError("403 Forbidden\nmore")
    refused.response = types.SimpleNamespace(status_code=403)
    monkeypatch.setattr(hub, "fails", refused)
    with pytest.raises(RecR1Error, match="me/mine could not be pushed .403 Forbidden.; log in with") as error:
        model_card.push(tmp_path, "me/mine")
    sentence(error)


def test_a_push_that_is_refused(hub, tmp_path, monkeypatch):
    with pytest.raises(RecR1Error, match="is no whole export"):
        model_card.push(tmp_path, "me/mine")
    (tmp_path / "export.json").write_text("{}")
    for name in ("mine", "me/mine/two", "./../me", "https://huggingface.co/me/mine", ""):
        with pytest.raises(RecR1Error, match="is no name of a Hub repo"):
            model_card.push(tmp_path, name)
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    with pytest.raises(RecR1Error, match="forbids the network"):
        model_card.push(tmp_path, "me/mine")
    assert hub.asked == []


def test_the_command(llama, tmp_path, capsys, hub):
    profile, adapter = trained(llama, ledger(tmp_path) / "grpo")
    task = types.SimpleNamespace(name="shop", about={"licence": "CC0"}, prompt=QUESTION, val={"request": ASKED})
    arguments = types.SimpleNamespace(
        adapter=str(adapter),
        out=None,
        ledger=None,
        run=None,
        method=None,
        n=4,
        dtype="float32",
        formats="merged,gguf",
        gguf_type="f32",
        push="me/mine",
        public=False,
    )
    exports.run(arguments, profile, task)
    out = adapter.parent / "export"
    assert "same rewrites on 4/4 requests" in capsys.readouterr().out and hub.asked[1][1] == "me/mine"
    assert "0.300 [0.200, 0.400]" in (out / "README.md").read_text()
    for name, value in (("n", 0), ("adapter", None)):
        setattr(arguments, name, value)
        with pytest.raises(RecR1Error, match="export needs --adapter"):
            exports.run(arguments, profile, task)


def test_a_full_disk_is_told_and_nothing_is_kept(llama, tmp_path, monkeypatch):
    profile, adapter = trained(llama, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "convert", full)
    with pytest.raises(
        RecR1Error, match="out cannot be written .No space left on device. and nothing was kept"
    ) as error:
        export(profile, adapter, tmp_path / "out", QUESTION, ASKED)
    sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_merged_folder_says_its_settings_in_the_older_words_too(llama, tmp_path):
    profile, adapter = trained(llama, tmp_path)
    export(profile, adapter, tmp_path / "out", QUESTION, ASKED, ("merged",))
    config = json.loads((tmp_path / "out" / "merged" / "config.json").read_text())
    assert config["rope_theta"] == 5000.0 and config["torch_dtype"] == "float16"
    words = json.loads((tmp_path / "out" / "merged" / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast" and "token_type_ids" not in words["model_input_names"]
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").config.rope_parameters["rope_theta"] == 5000.0
    )


# llama.cpp itself, where it is installed (pip install llama-cpp-python)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_the_same_model(kind, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = random_model(tmp_path / "model", kind)
    file = export_gguf(folder, tmp_path / "m.gguf", "f32")
    theirs = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    ours, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text in SHOP:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids
        theirs.reset()
        theirs.eval(ids)
        with torch.no_grad():
            logits = ours(input_ids=torch.tensor([ids])).logits[0].numpy()
        assert np.abs(theirs.scores[: len(ids)] - logits).max() < 0.05
