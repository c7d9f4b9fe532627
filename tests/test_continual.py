"""Two tasks, one after the other: every stage is measured against the untrained model, SFT in GRPO's seconds."""

import pytest
from test_comparison import teach
from tiny import perturb, tiny_profile, toy_task

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import capability
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy, save_adapter
from recr1_lite.recipes.comparison import ACCURACY, KL, TRAINERS, continual
from recr1_lite.search.metrics import mean_interval


class Checked:
    """Stands in for the capability suite, whose words the tiny tokenizer does not know."""

    def __init__(self, level: float, kl: float):
        self.level, self.summary = level, {ACCURACY: mean_interval([level] * 4), KL: mean_interval([kl] * 4)}


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch):
    """Options of `continual`, and the names under which the suite was asked."""
    named, levels = [], iter([(0.5, 0.0), (0.4, 0.1), (0.3, 0.2), (0.45, 0.3), (0.2, 0.4)])

    def check(policy, **options):
        named.append(options["name"])
        return Checked(*next(levels))

    monkeypatch.setattr(capability, "check", check)
    monkeypatch.setattr(capability, "compare", lambda a, b, _: {ACCURACY: mean_interval([a.level - b.level])})
    profile = tiny_profile(tiny_folder, steps=2, sft_learning_rate=1e-2, max_prompt_tokens=200)
    policies = {trainer: perturb(load_policy(profile), 0.05, number) for number, trainer in enumerate(TRAINERS)}
    first = {trainer: save_adapter(policy, tmp_path / trainer) for trainer, policy in policies.items()}
    tasks = [toy_task(), toy_task()]
    tasks[1].name = "second"
    ledger = Ledger(tmp_path / "ledger.jsonl").bind(command="test")
    options = dict(first=first, tasks=tasks, teach=teach, profile=profile, out=tmp_path / "out", ledger=ledger)
    return options, named


def test_every_stage_is_measured(run):
    options, named = run
    rows, ledger = continual(**options, seed=3), options["ledger"]
    assert rows == ledger.rows("continual")
    assert {(row["run"], row["seed"], row["command"]) for row in rows} == {("out", 3, "test")}
    stages = list(enumerate(("untrained", "after toy", "after second")))
    seen = [(row["trainer"], row["stage"], row["name"]) for row in rows]
    assert seen == [(trainer, *stage) for trainer in TRAINERS for stage in stages]
    assert all(set(row["measures"]) == {"toy", "second", "capability", "kl"} for row in rows)
    assert [row["measures"]["capability"]["mean"] for row in rows] == [0.5, 0.4, 0.3, 0.5, 0.45, 0.2]
    lost = [row["differences"].get("capability", {}).get("mean") for row in rows]
    assert lost == pytest.approx([None, -0.1, -0.2, None, -0.05, -0.3])
    assert set(rows[1]["differences"]) == {"toy", "second", "capability"}
    assert rows[2]["seconds"] > 0 and not ledger.rows("unseal")
    assert rows[0]["measures"] == rows[3]["measures"]
    assert named == ["untrained", "GRPO", "", "SFT", ""]  # the first three leave capability rows of their own


def test_an_adapter_must_be_there_for_each_trainer(run):
    options, _ = run
    with pytest.raises(RecR1Error, match="no adapter of SFT"):
        continual(**options | {"first": {"GRPO": options["first"]["GRPO"]}})
