"""What a run of either trainer shares: its folder, its order, its settings, and going on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback

from recr1_lite.backend import choose
from recr1_lite.errors import RecR1Error
from recr1_lite.monitor import Monitor, Training, interruptible
from recr1_lite.profiles import Profile
from recr1_lite.rollouts import MergedCopy
from recr1_lite.tasks.base import sealed


class KitTrainer:
    """Goes before a trainer of TRL: the merged copy that rollouts and validation use, no telemetry, no model card.

    TRL makes the adapter of a 4-bit model bfloat16. Here it stays float32: a step of 1e-6 is lost in bfloat16's eight
    bits, and the scaler of float16 training (a T4) refuses it.
    """

    _merged: MergedCopy | None = None

    def __init__(self, model, *args, **others):
        exact = {name: weight.data.float() for name, weight in model.named_parameters() if weight.requires_grad}
        super().__init__(model, *args, **others)
        for name, weight in self.model.named_parameters():
            if name in exact:
                weight.data = exact[name]

    def merged(self) -> MergedCopy | None:
        if self._merged is None:
            self._merged = MergedCopy.of(self.accelerator.unwrap_model(self.model))
        return self._merged

    def _send_telemetry(self):
        pass

    def create_model_card(self, *args, **kwargs):
        pass


def settings(profile: Profile, folder: Path, seed: int) -> dict:
    """The fields of TRL's configurations that GRPO and SFT have alike. Raises RecR1Error for a tracker that is not
    there."""
    cuda, dtype, tracker = torch.cuda.is_available(), choose(profile, "transformers").dtype, profile.report_to
    if tracker not in ("none", "all") and importlib.util.find_spec(tracker) is None:
        raise RecR1Error(f"report_to={tracker!r} needs the package {tracker}; run `pip install {tracker}`, or take none")
    return dict(
        output_dir=str(folder), seed=seed, shuffle_dataset=False,
        # rates 0, 1/2, then 1: Adam has seen two gradients before it takes a whole step
        lr_scheduler_type="constant_with_warmup", warmup_steps=2, max_grad_norm=1.0, logging_steps=1,
        save_steps=profile.validate_every, save_total_limit=2, report_to=profile.report_to, disable_tqdm=True,
        use_cpu=not cuda, bf16=cuda and dtype == "bfloat16", fp16=cuda and dtype == "float16",
        gradient_checkpointing=profile.gradient_checkpointing, dataloader_pin_memory=cuda)


def begin(folder: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any. Raises RecR1Error for a folder in use without `resume`."""
    checkpoint = last_checkpoint(folder)
    if checkpoint and not resume:
        raise RecR1Error(f"{folder} already holds a run; go on with it (--resume) or give another folder (--out)")
    return checkpoint


def run(trainer, monitor: Monitor, checkpoint: Path | None) -> Training:
    """Train to the end or to Ctrl-C, the tests sealed, watched by `monitor`; the seconds are the whole run's."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(monitor)
    start = time.perf_counter() - (_seconds_so_far(monitor.folder) if checkpoint else 0.0)
    with sealed(), interruptible(monitor):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return monitor.close(time.perf_counter() - start)


def draw_order(examples: int, count: int, seed: int) -> list[int]:
    """`count` row numbers: all examples in random order, then all again in another. A longer draw starts
    alike."""
    generator, order = np.random.default_rng(seed), []
    while len(order) < count:
        order += generator.permutation(examples).tolist()
    return order[:count]


def _seconds_so_far(folder: Path) -> float:
    """What the stopped run took, as it said itself; 0 where it was killed before it could."""
    try:
        return float(json.loads((folder / "training.json").read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that was written to its end (trainer_state.json comes last), or None."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit() and _whole(path)]
    return max(found, key=lambda path: int(path.name[11:]), default=None)


def _whole(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text()), dict)
    except (OSError, ValueError):
        return False
