"""SFT: what it is trained on, the loss on the answer, variants, limits, resume; it learns what it is shown."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPT, requests, tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import read_json
from recr1_lite.policy.models import load_policy, token_logps
from recr1_lite.policy.rewriters import as_rewriter
from recr1_lite.search.metrics import Interval
from recr1_lite.tasks import base
from recr1_lite.tasks.prompts import Prompt, restyled
from recr1_lite.train import sft
from recr1_lite.train.loop import Run, last_checkpoint

FIXED = {"lr_scheduler_type": "constant", "warmup_steps": 0}


def targets(n: int = 6, word: str = "w110") -> pd.DataFrame:
    return pd.DataFrame({"request": requests(n), "rewrite": [word] * n, "thought": ["w9 w8"] * n})


def run(folder, out, table=None, profile=None, place=None, **options):
    """The policy after SFT of `table` in the folder `out`, and what train returned; place: options of Run."""
    profile = profile or tiny_profile(folder, sft_learning_rate=1e-2, sft_epochs=4)
    policy, where = load_policy(profile), Run(Path(out), progress=False, **(place or {}))
    table = targets() if table is None else table
    return policy, sft.train(policy, table, PROMPT, profile, where, **(dict(patience=None) | FIXED | options))


def test_a_row_is_prompt_answer_and_end_token(tiny_folder):
    policy = load_policy(tiny_profile(tiny_folder))
    (row,) = sft.tokenised(policy, targets(1), PROMPT, 64)
    words = policy.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == "<|im_start|> user find w0 <|im_end|> <|im_start|> assistant w110 <|im_end|>".split()
    assert row["labels"] == [-100] * 7 + row["input_ids"][7:]
    (row,) = sft.tokenised(policy, targets(1), PROMPT, 64, loss_on="all")
    assert row["labels"] == row["input_ids"]


@pytest.mark.parametrize(
    "style, answer",
    [
        ("compact", "red dress"),
        ("json", 'red dress"}'),
        ("think", "so</think>\n<answer>red dress</answer>"),
        ("paper", 'so</think>\n<answer>{"query": "red dress"}</answer>'),
    ],
)
def test_an_answer_continues_its_prefix_and_reads_back(style, answer):
    prompt = restyled(Prompt("compact", "what? {request}", mode="expand", weight=4), style)
    assert sft.answer_text(prompt, "red dress", "so") == answer
    assert prompt.read(answer) == ("ok", "red dress")
    assert prompt.mode == "expand" and prompt.weight == 4 and prompt.instruction.startswith("what? {request}")
    assert restyled(prompt, style) is prompt
    if style == "compact":  # after words of the prefix it starts with a space
        begun = [replace(prompt, prefix=prefix) for prefix in ("They bought a", "They bought a ")]
        assert [sft.answer_text(one, "dress") for one in begun] == [" dress", "dress"]


def test_variants_are_the_four_styles():
    prompt = Prompt("compact", "{request}", prefix="a")
    assert [sft.variant(prompt, name).style for name in sft.VARIANTS] == ["compact", "json", "think", "paper"]
    assert sft.variant(prompt, "SFT") is prompt
    with pytest.raises(RecR1Error, match="no SFT variant"):
        sft.variant(prompt, "DPO")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": targets(0)}, "no targets"),
        ({"loss_on": "prompt"}, "loss_on='prompt'"),
        ({"targets": targets().assign(rewrite="answer: w1")}, "cannot be read back"),
        ({"profile": {"max_prompt_tokens": 8}}, "limit is 8"),
    ],
)
def test_bad_input_leaves_no_folder(tiny_folder, tmp_path, change, message):
    profile = tiny_profile(tiny_folder, **change.pop("profile", {}))
    table = change.pop("targets", targets())
    with pytest.raises(RecR1Error, match=message):
        sft.train(load_policy(profile), table, PROMPT, profile, Run(tmp_path / "run"), **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss_on, batch", [("answer", 6), ("all", 6), ("answer", 1)])
def test_the_loss_is_the_mean_over_the_answers_tokens(tiny_folder, tmp_path, loss_on, batch):
    """Of rows of unequal lengths, padded in a batch or one by one: against each row alone, and its gradient."""
    profile = tiny_profile(tiny_folder, sft_batch=batch)
    policy = load_policy(profile)
    data = sft.tokenised(policy, targets(), PROMPT, 64, loss_on)
    values, count = 0.0, 0
    for row in data:
        logps = policy.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(row["labels"][1:])
        chosen = labels != -100
        values -= logps[chosen, labels[chosen]].sum()
        count += int(chosen.sum())
    (values / count).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in policy.model.parameters() if weight.requires_grad])
    more = {} if batch == 6 else {"gradient_accumulation_steps": 6, "max_steps": 1}
    _, done = run(tiny_folder, tmp_path, profile=profile, loss_on=loss_on, epochs=1, **more)
    assert count == (12 if loss_on == "answer" else sum(len(row["input_ids"]) - 1 for row in data))
    (step,) = done.curve
    assert step["loss"] == pytest.approx(values.item() / count, abs=2e-4)
    assert step["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-3) and step["grad_norm"] > 1e-4


def test_it_learns_what_it_is_shown_and_saves_it(tiny_folder, tmp_path, network):
    profile = tiny_profile(tiny_folder, sft_learning_rate=3e-2, sft_epochs=20)
    fresh = load_policy(profile)
    pairs = [(PROMPT.render(fresh.tokenizer, request), "w110 <|im_end|>") for request in requests()]
    policy, done = run(tiny_folder, tmp_path, profile=profile)
    assert done.curve[-1]["loss"] < 0.2 * done.curve[0]["loss"] and done.stopped == "finished"
    assert token_logps(policy, pairs).mean() > token_logps(fresh, pairs).mean() + 1
    loaded = load_policy(profile, adapter=done.adapter, trainable=False)
    answers = as_rewriter(loaded, PROMPT, profile, "SFT").complete(requests())
    assert [answer.completion for answer in answers] == ["w110"] * 6 and {a.tokens for a in answers} == {2}
    with pytest.raises(RecR1Error, match="already holds a run"):
        run(tiny_folder, tmp_path)
    assert network == [] and not (tmp_path / "README.md").exists()


def test_a_resumed_run_is_the_uninterrupted_one(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, sft_epochs=8, sft_batch=2)
    _, whole = run(tiny_folder, tmp_path / "whole", profile=profile)
    run(tiny_folder, tmp_path / "parts", profile=replace(profile, sft_epochs=4))
    _, parts = run(tiny_folder, tmp_path / "parts", profile=profile, place={"resume": True})
    one, two = (load_file(done.folder / "last" / "adapter_model.safetensors") for done in (whole, parts))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    curves = [[row | {"seconds": 0} for row in done.curve] for done in (whole, parts)]
    assert curves[0] == curves[1]
    logs = [read_json(last_checkpoint(done.folder) / "trainer_state.json")["log_history"] for done in (whole, parts)]
    assert len(logs[0]) == 24 and [row["num_tokens"] for row in logs[0]] == [row["num_tokens"] for row in logs[1]]


def test_val_picks_the_adapter_and_ends_the_run(tiny_folder, tmp_path):
    means, sealed = iter([0.1, 0.2, 0.4, 0.3, 0.3, 0.9, 0.9, 0.9]), set()

    def validate(_) -> Interval:
        sealed.add(len(base.TRAINERS))
        return Interval(next(means), 0.0, 1.0, 8)

    profile = tiny_profile(tiny_folder, sft_epochs=40, validate_every=2)
    _, done = run(tiny_folder, tmp_path, profile=profile, patience=2, place={"validate": validate})
    assert done.best_step == 4 and [point["step"] for point in done.val][:5] == [0, 2, 4, 6, 8]
    assert done.curve[-1]["step"] <= 10 and done.stopped == "finished"
    assert sealed == {1} and not base.TRAINERS, "the test split is sealed while it trains, and open again"


def test_the_limit_in_seconds_ends_the_run_with_a_validation(tiny_folder, tmp_path):
    profile = tiny_profile(tiny_folder, sft_epochs=4000, validate_every=1000)
    place = {"validate": lambda _: Interval(0.5, 0.0, 1.0, 8)}
    _, done = run(tiny_folder, tmp_path, profile=profile, max_seconds=1.0, place=place)
    spent = sum(row["seconds"] for row in done.curve)
    assert 1.0 <= spent < 3.0 and done.stopped == "finished"
    assert [point["step"] for point in done.val] == [0, done.curve[-1]["step"]]
