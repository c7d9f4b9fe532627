"""The closed loop with the real model on the real data, under `smoke`: a few steps, every artefact."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy, parity
from recr1_lite.policy.rewriters import as_rewriter
from recr1_lite.profiles import PROFILES
from recr1_lite.recipes.demo import demo
from recr1_lite.tasks import load_task
from recr1_lite.tasks.clothing import FEW_SHOT

SMOKE = PROFILES["smoke"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "smoke"
    ledger = Ledger(out.parent / "ledger.jsonl")
    return out, ledger, demo(SMOKE, out, seed=3, ledger=ledger, few_shot=FEW_SHOT, command="the test")


def test_methods_are_scored_on_the_sealed_test(run):
    out, ledger, results = run
    assert [result.name for result in results] == ["raw request", "zero-shot", "few-shot", "GRPO"]
    assert all(len(result.rows) == SMOKE.n_test and result.split == "test" for result in results)
    assert len({tuple(result.rows["example_id"]) for result in results}) == 1
    assert len(ledger.rows("unseal")) == len(results)
    kinds = [row["kind"] for row in ledger.rows()]
    assert kinds.index("unseal") > kinds.index("train") and "train" not in kinds[kinds.index("unseal") :]
    assert [row["split"] for row in ledger.rows("eval")] == ["val"] * 3 + ["test"] * 4


def test_training_left_its_curve_and_moved_the_adapter(run):
    out, ledger, _ = run
    (row,) = ledger.rows("train")
    assert [step["step"] for step in row["curve"]] == list(range(1, SMOKE.steps + 1))
    assert [point["step"] for point in row["val"]] == list(range(SMOKE.steps + 1))
    for key in ("reward", "gain", "zero_advantage_share", "entropy", "distinct", "completion_length", "seconds"):
        assert key in row["curve"][-1], key
    assert json.loads((out / "grpo" / "training.json").read_text())["stopped"] == "finished"
    fresh, last = load_policy(SMOKE, seed=3), load_policy(SMOKE, adapter=out / "grpo" / "last")
    a, b = (dict(policy.model.named_parameters()) for policy in (fresh, last))
    moved = [name for name in a if "lora" in name and not torch.equal(a[name], b[name])]
    still = [name for name in a if "lora" not in name and not torch.equal(a[name], b[name])]
    assert moved and not still


def test_report_holds_the_table_the_curve_and_the_inspector(run):
    out, ledger, results = run
    page = (out / "report.html").read_text()
    for text in ("GRPO", "few-shot", "What may not be claimed", "data:image/svg", results[0].rows["request"][0][:20]):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page
    for kind in ("headroom", "compare", "inspect"):
        assert ledger.rows(kind), kind


def test_a_used_folder_is_refused_before_anything_is_overwritten(run):
    out, ledger, _ = run
    before = (out / "grpo" / "training.json").read_bytes()
    with pytest.raises(RecR1Error, match="resume"):
        demo(SMOKE, out, seed=3, ledger=ledger)
    assert (out / "grpo" / "training.json").read_bytes() == before


def test_adapter_merged_and_reloaded_say_the_same(run):
    out, _, _ = run
    policy = load_policy(SMOKE, adapter=out / "grpo" / "last", trainable=False)
    task = load_task("clothing")
    pairs = [(task.prompt.render(policy.tokenizer, request), " dress.") for request in task.val["request"][:3]]
    assert set(parity(policy, SMOKE, pairs)) == {"merged", "reloaded"}


def test_few_shot_and_zero_shot_differ_in_the_prompt_alone(run):
    policy = load_policy(SMOKE, trainable=False)
    zero = as_rewriter(policy, replace(FEW_SHOT, examples=()), SMOKE, "zero")
    few = as_rewriter(policy, FEW_SHOT, SMOKE, "few")
    request = "I wore this dress to a wedding and it was lovely."
    assert zero.complete([request])[0].query.startswith(request)
    assert zero.complete([request])[0].completion != few.complete([request])[0].completion


def test_a_sequential_task_brings_its_baselines(tiny_folder, tmp_path):
    import pandas as pd
    from tiny import tiny_profile

    items = pd.DataFrame(
        {
            "item_id": list("abcdef"),
            "title": [f"w{at}" for at in range(6)],
            "text": [f"w{at} w{at + 6}" for at in range(6)],
        }
    )
    circle, rows = "abcdef" * 2, []
    for at in range(60):
        start, length, split = at % 6, 1 + at % 3, "val" if at % 5 == 0 else "test" if at % 5 == 1 else "train"
        rows.append((list(circle[start : start + length]), circle[start + length], split))
    histories = pd.DataFrame(rows, columns=["history", "relevant", "split"])
    task = load_task("custom", items=items, requests=histories, metrics=("ndcg@5", "mrr"))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    results = demo(tiny_profile(tiny_folder, steps=2, n_val=6, n_test=6), tmp_path / "run", ledger=ledger, task=task)
    names = [
        "raw request",
        "zero-shot",
        "last title",
        "popularity",
        "item-kNN",
        "matrix factorisation",
        "SASRec",
        "GRPO",
    ]
    assert [result.name for result in results] == names
    scores = {result.name: result.summary["ndcg@5"].mean for result in results}
    assert (
        scores["SASRec"] > scores["popularity"] and scores["raw request"] == 0
    )  # titles share no word with what is next
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_prompt_too_long_is_said_before_the_work(tiny_folder, tmp_path):
    from tiny import tiny_profile

    with pytest.raises(RecR1Error, match="a prompt has .* tokens and the limit is 20"):
        demo(tiny_profile(tiny_folder, max_prompt_tokens=20), tmp_path / "run", ledger=Ledger(tmp_path / "l.jsonl"))
    assert not Ledger(tmp_path / "l.jsonl").rows()
