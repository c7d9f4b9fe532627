"""Seconds of one GRPO step: stock TRL and this kit's trainer in turn, on the same model, prompts and
rollouts.

python benchmarks/grpo_step.py [--steps 3] [--prompts 8] [--group 8] [--tokens 16] [--rounds 2] [--json
out.json]

The real SmolLM2-135M on real clothing requests. Each run is a fresh process (ours, stock, ours, stock,
...); its first step warms up and is not counted. Both generate rollouts of their own, which is timed; then
both are given the rollouts of the first run for the update, so that rewards and gradients must be the same.
Stock: trl.GRPOTrainer as it comes, sdpa attention, adapter not merged, gradient checkpointing off (it would
only make it slower).
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "stock")
SIZES = ("steps", "prompts", "group", "tokens")
SAME = 1e-4  # largest relative difference of the gradients that counts as none


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--steps", type=int, default=3, help="counted steps of a run, after one that warms up")
    top.add_argument("--prompts", type=int, default=8, help="prompts of a step")
    top.add_argument("--group", type=int, default=8, help="rollouts of a prompt")
    top.add_argument("--tokens", type=int, default=16, help="tokens of a rollout at most")
    top.add_argument("--rounds", type=int, default=2, help="runs of each of the two")
    top.add_argument("--json", type=Path, help="file for the figures, the device, versions and the command")
    top.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a child's part of the work
    top.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return top


def main() -> int:
    arguments = parser().parse_args()
    if arguments.side:
        child(arguments)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(arguments.rounds):
            for side in SIDES:
                print(f"round {number + 1}, {side}: one step to warm up, {arguments.steps} more", flush=True)
                sizes = [f"--{name}={getattr(arguments, name)}" for name in SIZES]
                subprocess.run([sys.executable, __file__, *sizes, "--side", side, "--work", work], check=True)
                rows.append(json.loads((Path(work) / "row.json").read_text()))
                print(f"  {line(rows[-1])}", flush=True)
        difference = compare(Path(work))
    result = summary(arguments, rows, difference)
    print(report(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if difference <= SAME else 1


def child(arguments) -> None:
    """One run of one side: its times and memory into row.json, its first gradient into
    <side>.safetensors."""
    sys.path.insert(0, str(ROOT))
    import torch

    from recr1_lite import ledger
    from recr1_lite.policy.models import load_policy
    from recr1_lite.profiles import PROFILES
    from recr1_lite.search.bm25 import BM25Retriever
    from recr1_lite.tasks import load_task

    rollouts = arguments.work / "rollouts.json"
    given = json.loads(rollouts.read_text()) if rollouts.exists() else None
    task = load_task("clothing")
    profile = replace(
        PROFILES["cpu"],
        steps=arguments.steps + 1,
        prompts_per_step=arguments.prompts,
        group_size=arguments.group,
        max_completion_tokens=arguments.tokens,
        validate_every=arguments.steps + 1,
    )
    policy = shaken(load_policy(profile))
    done, made, seconds = one_run(
        arguments.side == "stock",
        policy,
        profile,
        task.train,
        task.prompt,
        BM25Retriever.build(task.items),
        task.k_train,
        given,
        arguments.work / f"{arguments.side}.safetensors",
    )
    if not given:
        rollouts.write_text(json.dumps(made))
    totals = [row["seconds"] for row in done.curve][1:]
    cuda = torch.cuda.is_available()
    (arguments.work / "row.json").write_text(
        json.dumps(
            {
                "side": arguments.side,
                "total": totals,
                "rollout": seconds[1:],
                "update": [total - part for total, part in zip(totals, seconds[1:], strict=True)],
                "longest": [max(map(len, batch)) for batch in made][1:],
                "reward": [row["reward"] for row in done.curve][1:],
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "peak_cuda_mb": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
                "device": ledger.device(),
                "threads": torch.get_num_threads(),
                "versions": ledger.versions(),
                "commit": ledger.commit(),
            }
        )
    )


def shaken(policy):
    """The policy with random numbers in the adapter's second half: a fresh one does nothing, and half of its gradient
    is 0."""
    import torch

    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
    return policy


def one_run(
    stock: bool, policy, profile, examples, prompt, retriever, k: int, given=None, gradient: Path | None = None
) -> tuple:
    """A training by stock TRL or by this kit's trainer: (Training, rollouts and seconds of each generation).

    given: rollouts to learn from in the place of its own. gradient: the file for the first one.
    """
    from safetensors.torch import save_file
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from recr1_lite.train import grpo

    made, seconds = [], []

    class FirstGradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if gradient and state.global_step == 0:
                save_file(
                    {
                        name: weight.grad.contiguous()
                        for name, weight in model.named_parameters()
                        if weight.requires_grad
                    },
                    gradient,
                )

    ours = grpo.PlainGRPOTrainer if policy.backend == "unsloth" else grpo.GroupedGRPOTrainer

    class Timed(GRPOTrainer if stock else ours):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(FirstGradient())

        def _generate_single_turn(self, *inputs, **others):
            start = time.perf_counter()
            made.append(super()._generate_single_turn(*inputs, **others)[0])
            seconds.append(time.perf_counter() - start)
            return given[len(made) - 1] if given else made[-1], None

    if stock:
        policy.model.get_base_model().set_attn_implementation("sdpa")
    with tempfile.TemporaryDirectory() as folder:
        done = grpo.train(
            policy,
            examples,
            retriever,
            prompt,
            profile,
            folder,
            k,
            progress=False,
            trainer_class=Timed,
            max_grad_norm=0,
        )
    return done, made, seconds


def compare(work: Path) -> float:
    """Norm of the difference of the two first gradients, relative to stock's."""
    from safetensors.torch import load_file

    ours, stock = (load_file(work / f"{side}.safetensors") for side in SIDES)
    apart = sum(((ours[name] - stock[name]).double() ** 2).sum().item() for name in stock)
    return (apart / sum((weight.double() ** 2).sum().item() for weight in stock.values())) ** 0.5


def summary(arguments, rows: list[dict], difference: float) -> dict:
    """All figures, and what they were measured on. Seconds are medians over the counted steps of all
    runs."""
    runs = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    median = {
        side: {
            part: statistics.median(value for row in runs[side] for value in row[part])
            for part in ("rollout", "update", "total")
        }
        for side in SIDES
    }
    return {
        "command": shlex.join(["python", "benchmarks/grpo_step.py", *sys.argv[1:]]),
        "sizes": {name: getattr(arguments, name) for name in (*SIZES, "rounds")},
        "seconds": median,
        "ratio": median["stock"]["total"] / median["ours"]["total"],
        "peak_rss_mb": {side: max(row["peak_rss_mb"] for row in runs[side]) for side in SIDES},
        "gradient_difference": difference,
        "runs": rows,
        **{name: rows[0][name] for name in ("device", "threads", "versions", "commit")},
    }


def line(row: dict) -> str:
    parts = [f"{part} {statistics.median(row[part]):.2f} s" for part in ("rollout", "update", "total")]
    return f"{', '.join(parts)} a step; longest rollout {max(row['longest'])}; peak {row['peak_rss_mb']} MB"


def report(result: dict) -> str:
    lines = [
        f"{side:>5}: rollout {part['rollout']:.2f} s + update {part['update']:.2f} s = "
        f"{part['total']:.2f} s a step, peak {result['peak_rss_mb'][side]} MB"
        for side, part in result["seconds"].items()
    ]
    apart = result["gradient_difference"]
    return "\n".join(
        [
            *lines,
            f"ratio stock / ours: {result['ratio']:.2f}",
            f"gradients on the same rollouts: {'the same' if apart <= SAME else 'NOT the same'}, "
            f"{apart:.1e} apart (relative)",
            f"on {result['device']}, {result['threads']} threads",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
