"""TRL's own rollouts and update on the kit's task, prompts and reward: for weights in shards (FSDP) and for vLLM.

    accelerate launch --config_file benchmarks/accelerate/fsdp2.yaml benchmarks/accelerate/stock.py --profile gpu24
    accelerate launch --config_file benchmarks/accelerate/ddp2.yaml benchmarks/accelerate/stock.py \\
        --trl benchmarks/accelerate/vllm_colocate.yaml

It trains and saves the adapter in OUT/last; `python -m recr1_lite evaluate --adapter OUT/last` scores it. There is no
validation on the way, no best adapter and no ledger row, and no credit for a word: the preset `words` becomes `modern`.
--dry-run builds TRL's configuration and prints it.
"""

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import yaml
from datasets import Dataset
from trl import GRPOConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recr1_lite.common import RecR1Error, run_script  # noqa: E402
from recr1_lite.policy.models import load_policy  # noqa: E402
from recr1_lite.profiles import get_profile  # noqa: E402
from recr1_lite.search import build_retriever  # noqa: E402
from recr1_lite.tasks import load_task, read_options  # noqa: E402
from recr1_lite.train.grpo import BY_WORD, PlainGRPOTrainer, configure  # noqa: E402
from recr1_lite.train.loop import Run, draw_order  # noqa: E402
from recr1_lite.train.rewards import Scorer, reward_functions  # noqa: E402


def main() -> int:
    return run_script(work)


def work() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile")
    parser.add_argument("--task", default="clothing")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the task")
    parser.add_argument("--retriever", default="bm25", help="or the address of a search server, for all processes")
    parser.add_argument("--steps", type=int, help="default: the profile's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trl", type=Path, help="YAML file of more fields of TRL's GRPOConfig")
    parser.add_argument("--out", type=Path, default=Path("runs/stock"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    profile = get_profile(given.profile)
    preset = "modern" if profile.preset in BY_WORD else profile.preset
    profile = replace(profile, steps=given.steps or profile.steps, preset=preset)
    config = configure(profile, Run(given.out, seed=given.seed), **(trl_fields(given.trl) if given.trl else {}))
    if given.dry_run:
        print(json.dumps(config.to_dict(), indent=1, default=str))
        return
    task, policy = load_task(given.task, **read_options(given.task, given.option)), load_policy(profile, given.seed)
    retriever = build_retriever(given.retriever, task.items)
    scorer = Scorer(retriever, task.train, task.prompt, task.k_train)
    rows = task.train.iloc[draw_order(len(task.train), profile.steps * profile.prompts_per_step, given.seed)]
    prompts = [task.prompt.render(policy.tokenizer, request) for request in rows["request"]]
    trainer = PlainGRPOTrainer(
        model=policy.model,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "example_id": rows["example_id"].tolist()}),
        processing_class=policy.tokenizer,
        reward_funcs=reward_functions(profile.recipe, scorer, policy.end_ids),
    )
    trainer.train()
    trainer.save_model(str(given.out / "last"))


def trl_fields(path: Path) -> dict:
    """The fields in a YAML file. Raises RecR1Error for one that the installed TRL does not know."""
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    if unknown := told.keys() - {field.name for field in fields(GRPOConfig)}:
        raise RecR1Error(f"{path} has {min(unknown)!r}, which the installed TRL does not know; look up its new name")
    return told


if __name__ == "__main__":
    sys.exit(main())
