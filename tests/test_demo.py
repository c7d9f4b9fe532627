"""The closed loop with the real model on the real data, under `smoke`: a few steps, every artefact. And one request
before any training, with the adapter that comes with the kit."""

import json
import types
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPT, tiny_policy, tiny_profile, toy_retriever, toy_task

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import NO_MODEL
from recr1_lite.ledger import Ledger, record_of
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.policy.rewriters import as_rewriter
from recr1_lite.profiles import PROFILES
from recr1_lite.recipes.demo import as_text, demo, shipped_adapter, side_by_side
from recr1_lite.tasks import load_task
from recr1_lite.tasks.base import ITEM_COLUMNS
from recr1_lite.tasks.clothing import FEW_SHOT, GRADED_METRICS

SMOKE = replace(PROFILES["smoke"], preset="words")  # as in the profile cpu


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "smoke"
    ledger = Ledger(out.parent / "ledger.jsonl")
    return out, ledger, demo(SMOKE, out, 3, ledger=ledger.bind(command="the test"))


def test_methods_are_scored_on_the_sealed_test(run):
    _, ledger, results = run
    *untrained, free, trained = [result.name for result in results]
    assert untrained == ["raw request", "zero-shot", "few-shot"] and free.startswith(NO_MODEL) and trained == "GRPO"
    assert all(len(result.rows) == SMOKE.n_test and result.split == "test" for result in results)
    assert {tuple(result.summary) for result in results} == {GRADED_METRICS}
    assert len({tuple(result.rows["example_id"]) for result in results}) == 1
    assert len(ledger.rows("unseal")) == 1, "opened once for all methods"
    kinds = [row["kind"] for row in ledger.rows()]
    assert kinds.index("unseal") > kinds.index("train") and "train" not in kinds[kinds.index("unseal") :]
    on_val, on_test = ([row for row in ledger.rows("eval") if row["split"] == split] for split in ("val", "test"))
    assert [row["method"] for row in on_test] == [*untrained, free, trained]
    fitted = {row["method"]: row["metrics"]["ndcg@100"]["mean"] for row in on_val if row["method"].startswith(NO_MODEL)}
    assert len(fitted) > 4 and free == max(fitted, key=fitted.get), "the best on val, and it alone, is tested"
    assert (trained, free) in {(row["a"], row["b"]) for row in ledger.rows("compare") if row["split"] == "test"}
    assert {(row["run"], row["profile"], row["command"]) for row in ledger.rows()} == {("smoke", "smoke", "the test")}
    assert {row["seed"] for row in ledger.rows() if row["kind"] != "compare"} == {3}


def test_training_left_its_curve(run):
    out, ledger, _ = run
    (row,) = ledger.rows("train")
    assert [step["step"] for step in row["curve"]] == list(range(1, SMOKE.steps + 1))
    assert [point["step"] for point in row["val"]] == list(range(SMOKE.steps + 1))
    assert json.loads((out / "grpo" / "training.json").read_text())["stopped"] == "finished"


def test_report_holds_the_table_the_curve_and_the_inspector(run):
    out, ledger, results = run
    page = (out / "report.html").read_text()
    assert f"That a gain over the raw request took a language model by itself: {results[-2].name} reaches" in page
    shown = "GRPO", "few-shot", results[-2].name, "What may not be claimed", "data:image/svg"
    assert all(text in page for text in (*shown, results[0].rows["request"][0][:20]))
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page
    assert all(ledger.rows(kind) for kind in ("headroom", "compare", "inspect"))


def test_a_used_folder_is_refused_before_anything_is_overwritten(run):
    out, ledger, _ = run
    before = (out / "grpo" / "training.json").read_bytes()
    with pytest.raises(RecR1Error, match="resume"):
        demo(SMOKE, out, seed=3, ledger=ledger)
    assert (out / "grpo" / "training.json").read_bytes() == before


def test_few_shot_and_zero_shot_differ_in_the_prompt_alone(run):
    policy, request = load_policy(SMOKE, trainable=False), "I wore this dress to a wedding and it was lovely."
    prompts = replace(FEW_SHOT, examples=()), FEW_SHOT
    zero, few = (as_rewriter(policy, prompt, SMOKE, "one").complete([request])[0] for prompt in prompts)
    assert zero.query and request not in zero.query and zero.completion != few.completion


def test_a_sequential_task_brings_its_baselines(tiny_folder, tmp_path):
    texts = [(letter, f"w{at}", f"w{at} w{at + 6}") for at, letter in enumerate("abcdef")]
    items = pd.DataFrame(texts, columns=ITEM_COLUMNS)
    circle, rows = "abcdef" * 2, []
    for at in range(60):
        start, length, split = at % 6, 1 + at % 3, "val" if at % 5 == 0 else "test" if at % 5 == 1 else "train"
        rows.append((list(circle[start : start + length]), circle[start + length], split))
    histories = pd.DataFrame(rows, columns=["history", "relevant", "split"])
    task = load_task("custom", items=items, requests=histories, metrics=("ndcg@5", "mrr"))
    profile, ledger = tiny_profile(tiny_folder, steps=2, n_val=6, n_test=6), Ledger(tmp_path / "ledger.jsonl")
    scores = {one.name: one.summary["ndcg@5"].mean for one in demo(profile, tmp_path / "run", ledger=ledger, task=task)}
    rivals = ["last title", "popularity", "item-kNN", "matrix factorisation", "SASRec"]
    *others, free, trained = scores
    assert others == ["raw request", "zero-shot", *rivals] and free.startswith(NO_MODEL) and trained == "GRPO"
    assert scores["SASRec"] > scores["popularity"] and scores["raw request"] == 0  # titles share no word with the next
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("where", ["train", "val", "test", "few-shot"])
def test_a_prompt_too_long_is_said_before_the_work(tiny_folder, tmp_path, where):
    def lengthen(split, rows):
        return rows.assign(request=[*rows["request"][:-1], "w7 " * 90]) if split == where else rows

    few_shot = replace(PROMPT, examples=(("w1 " * 90, "w2"),)) if where == "few-shot" else None
    ledger, task = Ledger(tmp_path / "l.jsonl"), toy_task().map_splits(lengthen, few_shot=few_shot)
    with pytest.raises(RecR1Error, match="a prompt has .* tokens and the limit is 64") as told:
        demo(tiny_profile(tiny_folder, n_val=8, n_test=8), tmp_path / "run", ledger=ledger, task=task)
    assert "w7" not in str(told.value) and not ledger.rows() and not (tmp_path / "run").exists()
    assert where == "few-shot" or f"the longest of the {where} split" in str(told.value)


@pytest.mark.parametrize("wrong", ["disk", "out", "report", "ledger"])
def test_what_the_end_needs_to_write_is_tried_before_the_work(tiny_folder, tmp_path, monkeypatch, wrong):
    out, ledger, message = tmp_path / "run", Ledger(tmp_path / "l.jsonl"), "cannot be written"
    if wrong == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=70_000))
        message = "will take up to [0-9,]+ bytes and its disk has 70,000 free; free some space"
    if wrong == "out":
        out.write_text("mine")
    if wrong == "report":
        (out / "report.html").mkdir(parents=True)
    if wrong == "ledger":
        ledger.path.mkdir()
    with pytest.raises(RecR1Error, match=message):
        demo(tiny_profile(tiny_folder, n_val=8, n_test=8), out, ledger=ledger, task=toy_task())
    assert not (out / "run.json").exists() and (wrong == "ledger" or not ledger.rows())


def test_resume_goes_on_with_the_same_task_data_and_engine(tiny_folder, tmp_path):
    """Another task may have the same name; the sealed test counts by its digest alone."""
    profile, ledger = tiny_profile(tiny_folder, steps=1, n_val=8, n_test=8, n_headroom=2), Ledger(tmp_path / "l.jsonl")
    options: dict = dict(profile=profile, out=tmp_path / "run", ledger=ledger, task=toy_task(), resume=True)
    demo(**options)
    told = (tmp_path / "run" / "run.json").read_text()
    assert "w60" not in told and record_of(tmp_path / "run")["id"] in {row["run_id"] for row in ledger.rows("train")}

    def other(split):
        return toy_task().map_splits(lambda name, rows: rows.assign(request=rows["request"] + " w9" * (name == split)))

    count = len(ledger.rows())
    for change, field in (
        *[(dict(task=other(split)), f"data.{split}") for split in ("train", "test")],
        (dict(task=toy_task().map_splits(lambda _, rows: rows, name="second")), "task"),
        (dict(retriever=toy_retriever()), "retriever.class"),
        (dict(task=toy_task().map_splits(lambda _, rows: rows, few_shot=PROMPT)), "few_shot"),
        (dict(seed=1), "seed"),
        (dict(profile=replace(profile, n_headroom=3)), "profile.n_headroom"),
    ):
        with pytest.raises(RecR1Error, match=f"whose {field} was .* and is now .*; go on with what it was"):
            demo(**options | change)
    assert len(ledger.rows()) == count and (tmp_path / "run" / "run.json").read_text() == told


def test_each_rewriter_with_what_the_engine_finds(tiny_folder, tmp_path):
    policy, profile, task = tiny_policy(tiny_folder, scale=0.5), tiny_profile(tiny_folder), toy_task()
    save_adapter(policy, tmp_path / "adapter")
    looks = side_by_side("w110 w3", task, toy_retriever(), profile, tmp_path / "adapter", k=1)
    assert looks["rewriter"].tolist() == ["raw request", "untrained model", "trained with GRPO"]
    trained = as_rewriter(policy, task.prompt, profile, "").rewrite(["w110 w3"])
    assert looks["query"].tolist()[::2] == ["w110 w3", *trained]
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
