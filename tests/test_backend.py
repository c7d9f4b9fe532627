"""Which library and which number format a run gets: every case of a machine, without one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recr1_lite.common import RecR1Error
from recr1_lite.policy import backend
from recr1_lite.policy.backend import Machine, choose
from recr1_lite.profiles import PROFILES, detect

CPU = Machine(False)
T4 = Machine(True, "Tesla T4", 15_800_000_000, (7, 5))
ADA = Machine(True, "RTX 4090", 25_300_000_000, (8, 9))
PASCAL = Machine(True, "GTX 1080", 8_500_000_000, (6, 1))
BOTH = {"unsloth": "", "vllm": True}
NONE = {"unsloth": "it is not installed", "vllm": False}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def on(monkeypatch):
    """A machine, what keeps unsloth from it and whether vLLM is installed -> `choose` there, without a wish."""
    monkeypatch.delenv("RECR1_BACKEND", raising=False)

    def chooser(found: Machine, missing: dict):
        monkeypatch.setattr(backend, "machine", lambda: found)
        monkeypatch.setattr(backend, "unsloth_missing", lambda: missing["unsloth"])
        monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: missing["vllm"] or None)
        return choose

    return chooser


@pytest.mark.parametrize(
    "profile, found, missing, name, dtype, words",
    [
        ("t4", CPU, BOTH, "transformers", "float16", []),  # nothing that was asked for by name is missing
        ("t4", T4, BOTH, "unsloth", "float16", []),
        ("gpu24", T4, BOTH, "unsloth", "float16", ["Tesla T4 (capability 7.5) has no bfloat16: float16"]),
        ("gpu24", ADA, BOTH, "unsloth", "bfloat16", []),
        ("gpu24", ADA, NONE, "transformers", "bfloat16", ["instead of unsloth: it is not installed"]),
        ("gpu24", PASCAL, BOTH, "transformers", "float16", ["no bfloat16", "older than capability 7.0"]),
        ("cpu", ADA, BOTH, "transformers", "float32", ["it trains in 16 bits and the profile wants float32"]),
    ],
)
def test_backend_and_dtype(on, profile, found, missing, name, dtype, words):
    chosen = on(found, missing)(PROFILES[profile])
    assert (chosen.name, chosen.dtype, chosen.vllm) == (name, dtype, False)
    for word, reason in zip(words, chosen.reasons, strict=True):
        assert word in reason and "\n" not in reason


@pytest.mark.parametrize(
    "found, missing, vllm, words",
    [
        (ADA, BOTH, True, ""),
        (ADA, {"unsloth": "", "vllm": False}, False, "rollouts without vLLM: it is not installed"),
        (ADA, {"unsloth": "broken", "vllm": True}, False, "used through unsloth only"),
        (CPU, BOTH, False, "vLLM needs a CUDA GPU"),
    ],
)
def test_vllm_where_it_can_be(on, found, missing, vllm, words):
    chosen = on(found, missing)(replace(PROFILES["gpu24"], fast_inference=True))
    assert chosen.vllm == vllm and words in " ".join(chosen.reasons[-1:])


def test_a_wish_is_granted_or_refused(on, monkeypatch):
    profile = PROFILES["gpu24"]
    assert on(ADA, BOTH)(profile, "transformers") == ("transformers", "bfloat16", False, ())
    monkeypatch.setenv("RECR1_BACKEND", "transformers")
    assert choose(profile).name == "transformers"
    assert choose(profile, "unsloth").name == "unsloth", "the argument goes before the environment"
    monkeypatch.setenv("RECR1_BACKEND", "unsloth")
    with pytest.raises(RecR1Error, match="unsloth needs a CUDA GPU"):
        on(CPU, BOTH)(profile)
    with pytest.raises(RecR1Error, match="cannot be used: it is not installed; mend that"):
        on(ADA, NONE)(profile)
    monkeypatch.setenv("RECR1_BACKEND", "jax")
    with pytest.raises(RecR1Error, match="no backend 'jax'"):
        choose(profile)


def test_an_import_that_fails_is_one_line_and_no_end(tmp_path, monkeypatch):
    """unsloth installed beside another library's wrong version: the run goes on with transformers and says why."""
    look = backend.unsloth_missing.__wrapped__
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setattr(backend, "machine", lambda: T4)
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECR1_BACKEND", raising=False)
    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION"):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    assert look().startswith("it is not installed (pip install")
    (tmp_path / "unsloth.py").write_text("raise ImportError('no triton\\nhere')")
    monkeypatch.syspath_prepend(tmp_path)
    assert look() == "its import fails (ImportError: no triton here)"
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert Path(os.environ["UNSLOTH_COMPILE_LOCATION"]).parent == tmp_path / "cache"
    (tmp_path / "unsloth.py").write_text("PATCHED = True")
    assert look() == ""
    monkeypatch.setattr(backend, "machine", lambda: PASCAL)
    assert "capability 7.0" in look()
    monkeypatch.setenv("RECR1_BACKEND", "transformers")
    assert "RECR1_BACKEND=transformers" in look()


def python(code: str, **environment: str) -> str:
    """What a new Python prints that runs this code in the checkout."""
    how = dict(cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return subprocess.run([sys.executable, "-c", code], **how).stdout


def test_the_package_itself_is_light_without_unsloth():
    """A CPU pays nothing: `import recr1_lite` brings neither torch nor what unsloth would have to come before."""
    heavy = {"torch", "transformers", "trl", "peft", "unsloth"}
    assert python(f"import sys, recr1_lite; print({heavy} & set(sys.modules))") == "set()\n"


def test_unsloth_comes_before_what_it_patches(tmp_path):
    """With a GPU the package imports unsloth first of all, so that trl is patched when the kit asks for it."""
    (tmp_path / "unsloth.py").write_text(
        "import sys\nFIRST = not {'transformers', 'trl', 'peft'} & set(sys.modules)\n"
        "import torch\ntorch.cuda.is_available = lambda: False\n"  # no CUDA libraries for trl's own import
        "import trl\ntrl.GRPOTrainer = type('Patched', (trl.GRPOTrainer,), {})"
    )
    card = "type('', (), dict(name='x', total_memory=1, major=8, minor=0))"
    said = python(
        "import torch\n"
        f"torch.cuda.is_available, torch.cuda.get_device_properties = lambda: True, lambda *_: {card}\n"
        "import recr1_lite, unsloth\n"
        "from recr1_lite.train.grpo import PlainGRPOTrainer\n"
        "print(unsloth.FIRST, [base.__name__ for base in PlainGRPOTrainer.__mro__])",
        PYTHONPATH=str(tmp_path),
        RECR1_CACHE=str(tmp_path / "cache"),
    )
    assert said.startswith("True ") and "'Patched'" in said


@pytest.mark.parametrize("card, profile", [(T4, "t4"), (ADA, "gpu24")])
def test_detect_by_memory(monkeypatch, card, profile):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=card.memory))
    assert detect() == profile
