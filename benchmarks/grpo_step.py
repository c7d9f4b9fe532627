"""Seconds of one GRPO step: stock TRL and this kit's trainer in turn, on the same model, prompts and rollouts.

python benchmarks/grpo_step.py [--steps 3] [--prompts 8] [--group 8] [--tokens 16] [--rounds 2] [--json out.json]
python benchmarks/grpo_step.py --micro 8           # rollouts in one backward pass, of both sides
python benchmarks/grpo_step.py --prompts 12 --group 20 --tokens 3 --micro 24     # the sizes of the profile cpu
python benchmarks/grpo_step.py --growth            # this kit's step alone, at the profile's sizes and growing ones

The real SmolLM2-135M on real clothing requests. Each run is a fresh process (ours, stock, ours, stock, ...); its first
step warms up and is not counted. Both generate rollouts of their own, which is timed; then both are given the rollouts
of the first run for the update, so that rewards and gradients must be the same.
Stock: trl.GRPOTrainer as it comes, sdpa attention, adapter not merged, gradient checkpointing off (it would only make
it slower).
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import Child, command

from recr1_lite.common import RecR1Error, atomic_write, run_script

SIDES = ("ours", "stock")
SIZES = {
    "steps": (3, "counted steps of a run, after one that warms up"),
    "prompts": (8, "prompts of a step"),
    "group": (8, "rollouts of a prompt"),
    "tokens": (16, "tokens of a rollout at most"),
    "rounds": (2, "runs of each of the two"),
    "micro": (0, "rollouts in one backward pass; 0: the whole step"),
}
# prompts, group, tokens, rollouts in one backward pass
GROWTH = [(12, 20, 3, 240), *((8, group, 16, 8 * group) for group in (4, 8, 16, 32))]
GROWTH += [(2, 8, tokens, 8) for tokens in (8, 32, 128, 512)]
PARTS = ("rollout", "update", "total")
SAME = 1e-4  # largest relative difference of the gradients that counts as none


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, words) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=words)
    parser.add_argument("--json", type=Path, help="file for the figures, the device, versions and the command")
    parser.add_argument("--growth", action="store_true", help="a table of how a step of this kit grows")
    options = parser.parse_args()
    if options.growth:
        return growth(options.json)
    sizes, rows = {name: getattr(options, name) for name in SIZES}, []
    with tempfile.TemporaryDirectory() as work:
        for side in SIDES * options.rounds:
            print(f"{side}: one step to warm up, {options.steps} more", flush=True)
            row, error, _ = Child(measure, side, sizes, Path(work), method="spawn").result(86_400)
            if error:
                raise RecR1Error(f"the run of {side} ended with {error}; mend that, or take less")
            rows.append(row)
            print("  " + ", ".join(f"{part} {median(row[part]):.2f} s" for part in PARTS), flush=True)
        difference = compare(Path(work))
    result = summary(sizes, rows, difference)
    print(report(result))
    if options.json:
        atomic_write(options.json, json.dumps(result, indent=1) + "\n")
    return 0 if difference <= SAME else 1


def growth(file: Path | None) -> int:
    """One step per size after one that warms up, each size in a process of its own."""
    print(
        "| prompts x group, tokens | rollout, s | update, s | step, s | peak, MB |\n|---|---|---|---|---|", flush=True
    )
    made = []
    for prompts, group, tokens, micro in GROWTH:
        sizes = {"steps": 1, "prompts": prompts, "group": group, "tokens": tokens, "micro": micro}
        with tempfile.TemporaryDirectory() as work:
            row, error, _ = Child(measure, "ours", sizes, Path(work), method="spawn").result(86_400)
        if error:
            raise RecR1Error(f"the step of {prompts} x {group}, {tokens} tokens ended with {error}; mend that")
        cells = [f"{median(row[part]):.1f}" for part in PARTS] + [f"{row['peak_rss_mb']:,}"]
        print(f"| {prompts} x {group}, {tokens} | {' | '.join(cells)} |", flush=True)
        made.append({"sizes": sizes, **row})
    if file:
        atomic_write(file, json.dumps({"command": command(), "runs": made}, indent=1) + "\n")
    return 0


def measure(side: str, sizes: dict, work: Path) -> dict:
    """One run of one side: its times and memory; its first gradient goes into <side>.safetensors."""
    import torch

    from recr1_lite import ledger
    from recr1_lite.policy.models import load_policy
    from recr1_lite.profiles import PROFILES
    from recr1_lite.search.engines import BM25Retriever
    from recr1_lite.tasks import load_task

    rollouts = work / "rollouts.json"
    given = json.loads(rollouts.read_text()) if rollouts.exists() else None
    task, steps = load_task("clothing"), sizes["steps"] + 1
    shape = dict(prompts_per_step=sizes["prompts"], group_size=sizes["group"], max_completion_tokens=sizes["tokens"])
    shape |= dict(micro_batch=sizes["micro"] or None)
    profile = replace(PROFILES["cpu"], preset="modern", steps=steps, validate_every=steps, **shape)
    world = task.train, task.prompt, BM25Retriever.build(task.items), task.k_train
    done, made, seconds = one_run(
        side, shaken(load_policy(profile)), profile, world, given, work / f"{side}.safetensors"
    )
    rollouts.write_text(json.dumps(given or made))
    totals = [row["seconds"] for row in done.curve][1:]
    return {
        "side": side,
        "total": totals,
        "rollout": seconds[1:],
        "update": [total - part for total, part in zip(totals, seconds[1:], strict=True)],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
        "device": ledger.device(),
        "versions": ledger.versions(),
        "commit": ledger.commit(),
    }


def shaken(policy):
    """The policy with random numbers in the adapter's second half: a fresh one does nothing, half its gradient is 0."""
    import torch

    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
    return policy


def one_run(side: str, policy, profile, world: tuple, given: list | None, gradient: Path) -> tuple:
    """A training by stock TRL or by this kit's trainer: (Training, rollouts and seconds of each generation).

    world: (examples, prompt, retriever, k). given: rollouts to learn from in the place of its own. gradient: the file
    for the first one.
    """
    from safetensors.torch import save_file
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from recr1_lite.train import grpo
    from recr1_lite.train.loop import Run
    from recr1_lite.train.rewards import Scorer

    made, seconds = [], []

    class FirstGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 0:
                trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
                save_file({name: weight.grad.contiguous() for name, weight in trained.items()}, gradient)

    ours = grpo.PlainGRPOTrainer if policy.backend == "unsloth" else grpo.GroupedGRPOTrainer

    class Timed(GRPOTrainer if side == "stock" else ours):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(FirstGradient())

        def _generate_single_turn(self, *inputs, **others):
            start = time.perf_counter()
            made.append(super()._generate_single_turn(*inputs, **others)[0])
            seconds.append(time.perf_counter() - start)
            return given[len(made) - 1] if given else made[-1], None

    if side == "stock":
        policy.model.get_base_model().set_attn_implementation("sdpa")
    examples, prompt, retriever, k = world
    scorer = Scorer(retriever, examples, prompt, k)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), progress=False)
        done = grpo.train(policy, examples, scorer, profile, run, Timed, max_grad_norm=0)
    return done, made, seconds


def compare(work: Path) -> float:
    """Norm of the difference of the two first gradients, relative to stock's."""
    from safetensors.torch import load_file

    ours, stock = (load_file(work / f"{side}.safetensors") for side in SIDES)
    apart = sum(((ours[name] - stock[name]).double() ** 2).sum().item() for name in stock)
    return (apart / sum((weight.double() ** 2).sum().item() for weight in stock.values())) ** 0.5


def summary(sizes: dict, rows: list[dict], difference: float) -> dict:
    """All figures, and what they were measured on. Seconds are medians over the counted steps of all runs."""
    runs = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    seconds = {
        side: {part: median(value for row in runs[side] for value in row[part]) for part in PARTS} for side in SIDES
    }
    return {
        "command": command(),
        "sizes": sizes,
        "seconds": seconds,
        "ratio": seconds["stock"]["total"] / seconds["ours"]["total"],
        "peak_rss_mb": {side: max(row["peak_rss_mb"] for row in runs[side]) for side in SIDES},
        "gradient_difference": difference,
        "runs": rows,
        **{name: rows[0][name] for name in ("device", "threads", "versions", "commit")},
    }


def report(result: dict) -> str:
    lines = [
        f"{side:>5}: rollout {part['rollout']:.2f} s + update {part['update']:.2f} s = "
        f"{part['total']:.2f} s per step, peak {result['peak_rss_mb'][side]} MB"
        for side, part in result["seconds"].items()
    ]
    apart = result["gradient_difference"]
    verdict = "the same" if apart <= SAME else "NOT the same"
    lines += [f"ratio stock / ours: {result['ratio']:.2f}"]
    lines += [f"gradients on the same rollouts: {verdict}, {apart:.1e} apart (relative)"]
    return "\n".join([*lines, f"on {result['device']}, {result['threads']} threads"])


if __name__ == "__main__":
    try:
        sys.exit(run_script(main))
    finally:
        Child.end_all()
