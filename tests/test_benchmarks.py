"""The benchmark starts, says what it does, and its summary adds up; the measurement itself takes
minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def grpo_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import grpo_step

    return grpo_step


def test_help():
    done = subprocess.run([sys.executable, FOLDER / "grpo_step.py", "--help"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0 and "--steps" in done.stdout and "--side" not in done.stdout
    assert "stock TRL and this kit's trainer in turn" in done.stdout


def test_summary(grpo_step):
    rows = [{"side": side, "rollout": [slow], "update": [2 * slow], "total": [3 * slow],
             "peak_rss_mb": 100, "device": "a machine", "threads": 2, "versions": {}, "commit": None}
            for side, slow in [("ours", 1.0), ("stock", 3.0), ("ours", 1.0), ("stock", 2.0)]]
    sizes = SimpleNamespace(steps=2, prompts=2, group=2, tokens=4, rounds=2)
    result = grpo_step.summary(sizes, rows, 1e-6)
    assert result["ratio"] == 7.5 / 3 and result["seconds"]["ours"]["update"] == 2
    assert "ratio stock / ours: 2.50" in grpo_step.report(result) and "the same" in grpo_step.report(result)
    assert "NOT the same" in grpo_step.report(grpo_step.summary(sizes, rows, 0.01))


def test_compare(grpo_step, tmp_path):
    save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, tmp_path / "stock.safetensors")
    save_file({"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])}, tmp_path / "ours.safetensors")
    assert grpo_step.compare(tmp_path) == pytest.approx(0.1)
