"""Two tasks, one after the other: every stage is measured against the untrained model, SFT in GRPO's seconds."""

from __future__ import annotations

import pytest
from test_comparison import teach, toy_task
from tiny import perturb, tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import capability
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.recipes import comparison as continual
from recr1_lite.search.metrics import mean_interval


class Checked:
    """Stands in for the capability suite, whose words the tiny tokenizer does not know."""

    def __init__(self, level: float, kl: float | None):
        self.summary = {("all", "accuracy"): mean_interval([level] * 4)}
        self.summary |= {} if kl is None else {("kl", "nats"): mean_interval([kl] * 4)}
        self.level = level


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch):
    named = []
    levels = iter([(0.5, 0.0), (0.4, 0.1), (0.3, 0.2), (0.45, 0.3), (0.2, 0.4)])
    monkeypatch.setattr(
        capability, "check", lambda policy, **options: named.append(options["name"]) or Checked(*next(levels))
    )
    monkeypatch.setattr(
        capability, "compare", lambda a, b, *where: {("all", "accuracy"): mean_interval([a.level - b.level])}
    )
    profile = tiny_profile(tiny_folder, steps=2, sft_learning_rate=1e-2, max_prompt_tokens=200)
    first = {}
    for number, trainer in enumerate(continual.TRAINERS):
        policy = perturb(load_policy(profile), 0.05, number)
        first[trainer] = save_adapter(policy, tmp_path / trainer)
    tasks = [toy_task(), toy_task()]
    tasks[1].name = "second"
    ledger = Ledger(tmp_path / "ledger.jsonl")
    return (
        dict(first=first, tasks=tasks, teach=teach, profile=profile, out=tmp_path / "out", ledger=ledger),
        ledger,
        named,
    )


def test_every_stage_is_measured(run):
    options, ledger, named = run
    rows = continual.continual(**options)
    assert rows == ledger.rows("continual")
    assert [(row["trainer"], row["stage"], row["name"]) for row in rows] == [
        (trainer, stage, name)
        for trainer in continual.TRAINERS
        for stage, name in enumerate(("untrained", "after toy", "after second"))
    ]
    assert all(set(row["measures"]) == {"toy", "second", "capability", "kl"} for row in rows)
    assert [row["measures"]["capability"]["mean"] for row in rows] == [0.5, 0.4, 0.3, 0.5, 0.45, 0.2]
    assert [row["differences"].get("capability", {}).get("mean") for row in rows] == pytest.approx(
        [None, -0.1, -0.2, None, -0.05, -0.3]
    )
    assert set(rows[1]["differences"]) == {"toy", "second", "capability"}
    assert rows[2]["seconds"] > 0 and not ledger.rows("unseal")
    assert rows[0]["measures"] == rows[3]["measures"]
    assert named == ["untrained", "GRPO", "", "SFT", ""]  # the first three leave capability rows of their own


def test_an_adapter_must_be_there_for_each_trainer(run):
    options, *_ = run
    with pytest.raises(RecR1Error, match="no adapter of SFT"):
        continual.continual(**options | {"first": {"GRPO": options["first"]["GRPO"]}})
