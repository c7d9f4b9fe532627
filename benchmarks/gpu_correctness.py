"""What the machine is, and whether its GPU path computes the right thing: gradients and 4-bit on the same weights.

Gradients of unsloth and of transformers are held against the same of stock TRL, on the same adapter and rollouts, which
lie in the work folder.
"""

import json
import shutil
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import gpu_models
import grpo_step
from gpu_cells import Cell, Machine
from gpu_models import REAL, TINY, profile_of

PACKAGES = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton", "vllm", "xformers", "accelerate", "datasets", "numpy")


def environment_cells(here: Machine) -> list[Cell]:
    return [Cell("environment/machine", environment, {"device": here.name, "dtype": here.dtype}, backend="")]


def environment(settings: dict, work: Path) -> dict:
    """Driver, versions, the kit's choice of backend, the doctor's lines. What does not import is a finding."""
    from recr1_lite.doctor import print_doctor
    from recr1_lite.policy import backend
    from recr1_lite.profiles import PROFILES

    lines: list[str] = []
    print_doctor(lines.append)
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    smi = (
        subprocess.run(asked, capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else "no nvidia-smi"
    )
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    versions = {name: installed.get(name) for name in PACKAGES}
    chosen = {name: backend.choose(PROFILES[name])._asdict() for name in ("t4", "gpu24", "paper")}
    return {"doctor": lines, "backend": chosen, "versions": versions, "nvidia_smi": smi.strip()}


def cells(here: Machine) -> list[Cell]:
    """The tiny shape first: it says within a minute whether anything works at all."""
    listed: list[Cell] = []
    sizes = dict(max_completion_tokens=16, prompts_per_step=8, group_size=8, steps=1, validate_every=1)
    sizes |= dict(max_completion_tokens=4, prompts_per_step=2, group_size=4) if here.dry else {}

    def add(measure, model: str, dtype: str, side: str, **others) -> None:
        what = "4-bit" if measure is four_bits else "gradient"
        settings = dict(model=model, dtype=dtype, side=side, n=4 if here.dry else 64, sizes=sizes)
        listed.append(Cell(f"correctness/{what}/{model}/{dtype}/{side}", measure, settings, **others))

    for model in [TINY] if here.dry else [TINY, REAL]:
        add(four_bits, model, here.dtype, "transformers", needs=("bitsandbytes",))
        for dtype in dict.fromkeys(["float32", here.dtype]):
            add(gradient, model, dtype, "transformers")
        unsloth = dict(after=listed[-1].name, backend="unsloth", needs=("unsloth",), cuda=True)
        add(gradient, model, here.dtype, "unsloth", **unsloth)
    return listed


def world(settings: dict, tokenizer) -> tuple:
    """(examples, prompt, retriever, k): the clothing task for the real model, made words for the tiny one."""
    if settings["model"] != REAL:
        return gpu_models.examples(tokenizer, settings["n"], 24), gpu_models.PROMPT, gpu_models.retriever(), 10
    from recr1_lite.search.engines import BM25Retriever
    from recr1_lite.tasks import load_task

    task = load_task("clothing")
    return task.train, task.prompt, BM25Retriever.build(task.items), task.k_train


def four_bits(settings: dict, work: Path) -> dict:
    """What NF4 costs on the bare model: nats per token on 16 bits' answers, and greedy rewrites that stay."""
    from recr1_lite.policy.models import load_policy, token_logps
    from recr1_lite.policy.rewriters import ModelRewriter

    profile, values, answers = profile_of("cpu", settings, work), [], []
    for four in (False, True):
        policy = load_policy(replace(profile, load_in_4bit=four), trainable=False)
        data, prompt, _, _ = world(settings, policy.tokenizer)
        asked = data["request"].tolist()[: settings["n"]]
        rewriter = ModelRewriter(policy, prompt, "greedy", profile.max_completion_tokens, batch_size=32)
        answers.append([answer.completion for answer in rewriter.complete(asked)])
        texts = [prompt.render(policy.tokenizer, request) for request in asked]
        pairs = [(text, answer or " none") for text, answer in zip(texts, answers[0], strict=True)]
        values.append(token_logps(policy, pairs).float().cpu())
        del policy, rewriter
    same = sum(a == b for a, b in zip(*answers, strict=True))
    difference, real = (values[0] - values[1]).abs(), (values[0] != 0) | (values[1] != 0)  # padding is 0
    nats = {"max_nats": float(difference.max()), "mean_nats": float(difference[real].mean())}
    return nats | {"n": settings["n"], "same_rewrites": same}


def gradient(settings: dict, work: Path) -> dict:
    """First gradient of this kit's GRPO step against stock TRL's on the same adapter and rollouts.

    relative: norm of the difference over stock's norm. Transformers' process makes the rollouts and stock's
    gradient; unsloth's is held against the same.
    """
    from recr1_lite.policy.models import load_policy, save_adapter

    folder = work / "correctness" / f"{settings['model']}-{settings['dtype']}"
    rollouts, profile = folder / "rollouts.json", profile_of("cpu", settings, work)
    first = settings["side"] == "transformers"
    if first:
        shutil.rmtree(folder, ignore_errors=True)
    for side in ("ours", "stock") if first else ("ours",):
        saved = folder / "adapter" if (folder / "adapter").exists() else None
        policy = load_policy(profile, adapter=saved)
        if not saved:  # a fresh adapter does nothing
            save_adapter(grpo_step.shaken(policy), folder / "adapter")
        given = json.loads(rollouts.read_text()) if rollouts.exists() else None
        file = folder / f"{side}.safetensors"
        _, made, _ = grpo_step.one_run(side, policy, profile, world(settings, policy.tokenizer), given, file)
        rollouts.write_text(json.dumps(given or made))
    return {"relative": grpo_step.compare(folder), "rollouts": len(json.loads(rollouts.read_text())[0])}
