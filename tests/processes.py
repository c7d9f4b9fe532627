"""What test_processes.py lets `accelerate launch` run in two processes, and runs in one itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from test_grpo import run
from tiny import tiny_profile, toy_retriever, toy_task

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy
from recr1_lite.train import sft
from recr1_lite.train.grpo import GroupedGRPOTrainer, train_task
from recr1_lite.train.loop import Run

RANK = int(os.environ.get("RANK", 0))
CASES: dict[str, dict] = {
    "modern": {},
    "paper": {"preset": "paper"},
    "words": {"preset": "words"},
    "micro": {"micro_batch": 4, "preset": "paper"},
    "checkpointed": {"gradient_checkpointing": True},
}


def watched(rollouts: bool) -> type[GroupedGRPOTrainer]:
    """The kit's trainer, and the examples and completions that this process had. rollouts: given ones, which follow
    from the prompt and the place in the group alone."""

    class Watched(GroupedGRPOTrainer):
        examples: list[str] = []
        completions: list[list[int]] = []

        def _write_rollouts(self, prompt_ids, *others):
            written = super()._write_rollouts(prompt_ids, *others)
            if rollouts:
                written = [given(ids, at % self.num_generations) for at, ids in enumerate(prompt_ids)], None
            self.completions.extend(written[0])
            return written

        def _generate_and_score_completions(self, inputs):
            self.examples.extend(row["example_id"] for row in inputs)
            return super()._generate_and_score_completions(inputs)

    return Watched


def given(prompt: list[int], place: int) -> list[int]:
    """A completion of 1 to 5 tokens; half of them end."""
    draw = torch.Generator().manual_seed(1000 * sum(prompt) + place)
    length = int(torch.randint(1, 6, (), generator=draw))
    return [*torch.randint(4, 124, (length,), generator=draw).tolist()[: length - place % 2], *[3] * (place % 2)]


def equal_runs(model: Path, out: Path) -> None:
    """Every case, with given rollouts."""
    for name, changes in CASES.items():
        trainer = watched(rollouts=True)
        profile = tiny_profile(model, steps=6, prompts_per_step=4, **changes)
        done = run(profile, out / name, n=12, trainer_class=trainer)
        told = {"examples": trainer.examples, "curve": done.curve}
        (out / f"{name}-{RANK}.json").write_text(json.dumps(told))


def whole_run(out: Path, model: Path, name: str, steps: int, resume: bool) -> None:
    """A run with its ledger, and the completions that this process sampled."""
    trainer, profile = watched(rollouts=False), tiny_profile(model, steps=steps)
    told: dict = dict(ledger=Ledger(out / "ledger.jsonl"), options={"trainer_class": trainer}, resume=resume)
    train_task(load_policy(profile), toy_task(), toy_retriever(), profile, out / name, **told)
    (out / f"{name}-{RANK}.json").write_text(json.dumps(trainer.completions))


def whole_runs(model: Path, out: Path) -> None:
    """Four steps at once, and two and two; a step that two processes cannot share, and SFT."""
    for name, steps, resume in (("whole", 4, False), ("parts", 2, False), ("parts", 4, True)):
        whole_run(out, model, name, steps, resume)
    refused = []
    odd = tiny_profile(model, prompts_per_step=3)
    targets = toy_task().train.assign(rewrite="w1")
    for work in (
        lambda: run(odd, out / "odd"),
        lambda: sft.train(load_policy(odd), targets, toy_task().prompt, odd, Run(out / "sft")),
    ):
        try:
            work()
        except RecR1Error as error:
            refused.append(str(error))
    (out / f"refused-{RANK}.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    for work in (whole_runs, equal_runs):
        work(Path(sys.argv[1]), Path(sys.argv[2]))
