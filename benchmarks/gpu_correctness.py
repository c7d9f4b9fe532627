"""Whether the GPU path computes the right thing: backends, 4-bit and gradients against each other on the same weights.

Each model goes through four questions, a process each; what one leaves for the next lies in the work folder.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gpu_models
import grpo_step
from gpu_cells import Cell, Machine
from gpu_models import REAL, TINY, weights_cell

BASE = ("torch", "transformers", "peft", "trl")
DRY_SIZES = dict(n=4, prompt_tokens=24, tokens=4, prompts=2, group=4)
REAL_SIZES = dict(n=64, prompt_tokens=64, tokens=16, prompts=8, group=8)
UNSLOTH = dict(backend="unsloth", needs=(*BASE, "unsloth"), cuda=True)


def cells(here: Machine) -> list[Cell]:
    """The tiny shape first: it says within a minute whether anything works at all."""
    low, dtypes = here.dtype, dict.fromkeys(["float32", here.dtype])
    listed = [weights_cell("correctness", TINY, dtype) for dtype in dtypes]

    def add(what: str, kind: str, model: str, dtype: str, side: str = "", **others) -> None:
        backend = others.get("backend", "transformers")
        settings = dict(kind=kind, model=model, dtype=dtype, backend=backend, **(DRY_SIZES if here.dry else REAL_SIZES))
        listed.append(Cell(f"correctness/{what}/{model}/{dtype}{side}", settings, 90, **others))

    for model in [TINY] if here.dry else [TINY, REAL]:
        add("log-probabilities", "logps", model, low, "/transformers")
        add("log-probabilities", "logps", model, low, "/unsloth", after=listed[-1].name, **UNSLOTH)
        add("4-bit", "four_bit", model, low, needs=(*BASE, "bitsandbytes"))
        for dtype in dtypes:
            add("gradient", "gradient", model, dtype, "/transformers")
        add("gradient", "gradient", model, low, "/unsloth", after=listed[-1].name, **UNSLOTH)
    return listed


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell."""
    if settings["kind"] == "weights":
        return gpu_models.make(settings["shape"], settings["dtype"], work)
    if settings["model"] == REAL and (trouble := gpu_models.cached()):
        return {"state": "not run", "why": trouble}
    return {"logps": logps, "four_bit": four_bit, "gradient": gradient}[settings["kind"]](settings, work)


def profile_of(settings: dict, work: Path):
    from recr1_lite.profiles import PROFILES

    return replace(
        PROFILES["cpu"],
        name="benchmark",
        model=gpu_models.model_source(settings["model"], settings["dtype"], work),
        dtype=settings["dtype"],
        max_completion_tokens=settings["tokens"],
        prompts_per_step=settings["prompts"],
        group_size=settings["group"],
        steps=1,
        validate_every=1,
    )


def world(settings: dict, tokenizer) -> tuple:
    """(examples, prompt, retriever, k): the clothing task for the real model, made words for the tiny one."""
    if settings["model"] != REAL:
        data = gpu_models.examples(tokenizer, 2 * max(settings["n"], settings["prompts"]), settings["prompt_tokens"])
        return data, gpu_models.PROMPT, gpu_models.retriever(), 10
    from recr1_lite.search.bm25 import BM25Retriever
    from recr1_lite.tasks import load_task

    task = load_task("clothing")
    return task.train, task.prompt, BM25Retriever.build(task.items), task.k_train


def left_behind(settings: dict, work: Path) -> Path:
    return work / "correctness" / f"{settings['model']}-{settings['kind']}-{settings['dtype']}"


def shaken_policy(settings: dict, work: Path):
    """The profile's model with an adapter that does something; transformers makes and saves it, unsloth loads it."""
    from recr1_lite.policy.models import load_policy, save_adapter

    folder, profile = left_behind(settings, work) / "adapter", profile_of(settings, work)
    if settings["backend"] != "transformers":
        return load_policy(profile, adapter=folder), profile
    policy = grpo_step.shaken(load_policy(profile))
    save_adapter(policy, folder)
    return policy, profile


def logps(settings: dict, work: Path) -> dict:
    """Log-probabilities of n completions under one backend; for unsloth also how far they are from transformers'."""
    from safetensors.torch import load_file, save_file

    from recr1_lite.policy.models import token_logps

    policy, _ = shaken_policy(settings, work)
    data, prompt, _, _ = world(settings, policy.tokenizer)
    asked, n = data["request"].tolist()[: 2 * settings["n"]], settings["n"]
    # the completion is words of another request: any text will do
    answers = [" " + " ".join(text.split()[: settings["tokens"]]) for text in reversed(asked[-n:])]
    pairs = [(prompt.render(policy.tokenizer, text), answer) for text, answer in zip(asked, answers)]
    values, folder = token_logps(policy, pairs).float().cpu(), left_behind(settings, work)
    save_file({"logps": values.contiguous()}, folder / f"{settings['backend']}.safetensors")
    row = {"n": n, "tokens": int((values != 0).sum()), "backend": policy.backend}
    row["mean_logp"] = float(values[values != 0].mean())
    if settings["backend"] == "unsloth":
        row |= apart(values, load_file(folder / "transformers.safetensors")["logps"])
    return row


def apart(values, others) -> dict:
    """Largest and mean distance of two tables of log-probabilities, in nats per token; padding is 0 in both."""
    difference, real = (values - others).abs(), (values != 0) | (others != 0)
    return {"max_nats": float(difference.max()), "mean_nats": float(difference[real].mean())}


def four_bit(settings: dict, work: Path) -> dict:
    """What NF4 costs on the bare model: nats per token on 16 bits' answers, and greedy rewrites that stay."""
    from recr1_lite.policy.models import load_policy, token_logps
    from recr1_lite.policy.rewriters import ModelRewriter

    profile, values, answers = profile_of(settings, work), [], []
    for four in (False, True):
        policy = load_policy(replace(profile, load_in_4bit=four), trainable=False)
        data, prompt, _, _ = world(settings, policy.tokenizer)
        asked = data["request"].tolist()[: settings["n"]]
        rewriter = ModelRewriter(policy, prompt, "greedy", settings["tokens"], batch_size=32)
        answers.append([answer.completion for answer in rewriter.complete(asked)])
        texts = [prompt.render(policy.tokenizer, request) for request in asked]
        pairs = [(text, answer or " none") for text, answer in zip(texts, answers[0], strict=True)]
        values.append(token_logps(policy, pairs).float().cpu())
        del policy, rewriter
    same = sum(a == b for a, b in zip(*answers, strict=True))
    return apart(*values) | {"n": settings["n"], "tokens": int((values[0] != 0).sum()), "same_rewrites": same}


def gradient(settings: dict, work: Path) -> dict:
    """First gradient of this kit's GRPO step against stock TRL's on the same adapter and rollouts.

    relative: norm of the difference over stock's norm. Transformers' process makes the rollouts and stock's
    gradient; unsloth's is held against the same.
    """
    folder = left_behind(settings, work)
    ours, stock, rollouts = folder / "ours.safetensors", folder / "stock.safetensors", folder / "rollouts.json"
    if settings["backend"] == "transformers":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = one_gradient(settings, work, False, ours)
        rollouts.write_text(json.dumps(made))
        one_gradient(settings, work, True, stock, made)
    else:
        one_gradient(settings, work, False, ours, json.loads(rollouts.read_text()))
    return {"relative": grpo_step.compare(folder), "rollouts": len(json.loads(rollouts.read_text())[0])}


def one_gradient(settings: dict, work: Path, stock: bool, file: Path, given: list | None = None) -> list:
    policy, profile = shaken_policy(settings, work)
    _, made, _ = grpo_step.one_run(stock, policy, profile, world(settings, policy.tokenizer), given, file)
    return made
