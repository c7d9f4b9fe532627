"""One request, three rewriters, and the adapter that comes with the kit."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_policy, tiny_profile, toy_retriever, toy_task

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import save_adapter
from recr1_lite.policy.rewriters import as_rewriter
from recr1_lite.profiles import PROFILES
from recr1_lite.recipes.demo import as_text, shipped_adapter, side_by_side


def test_each_rewriter_with_what_the_engine_finds(tiny_folder, tmp_path):
    policy, profile, task = tiny_policy(tiny_folder, scale=0.5), tiny_profile(tiny_folder), toy_task()
    save_adapter(policy, tmp_path / "adapter")
    looks = side_by_side("w110 w3", task, toy_retriever(), profile, tmp_path / "adapter", k=1)
    assert looks["rewriter"].tolist() == ["raw request", "untrained model", "trained with GRPO"]
    assert looks["query"].tolist()[::2] == [
        "w110 w3",
        *as_rewriter(policy, task.prompt, profile, "").rewrite(["w110 w3"]),
    ]
    assert looks["query"][1] != looks["query"][2]
    assert looks["hits"][0] == ["Lead"]  # the engine of the toy wants two good words for Gold
    assert "== raw request: w110 w3\n  1. Lead" in as_text(looks)


def test_what_cannot_be_looked_at(tiny_folder):
    with pytest.raises(RecR1Error, match="the request is blank"):
        side_by_side("  ", toy_task(), toy_retriever(), tiny_profile(tiny_folder))
    with pytest.raises(RecR1Error, match=r"no adapter for the task 'toy' .*give one with --adapter"):
        shipped_adapter("toy")


def test_the_shipped_adapter_is_small_and_has_its_card():
    folder = shipped_adapter("clothing")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20 * 2**20
    weights = load_file(folder / "adapter_model.safetensors")
    ranks = {weight.shape[0] for name, weight in weights.items() if "lora_A" in name}
    assert ranks == {PROFILES["cpu"].lora_rank}
    assert all(weight.dtype == torch.float16 and weight.isfinite().all() for weight in weights.values())
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)  # trained: they begin at 0
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Apache-2.0", "CC0", "Sealed test", "validation"))
