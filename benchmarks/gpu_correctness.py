"""Whether the GPU path computes the right thing: backends, 4-bit and gradients against each other on the same weights.

Each model goes through four questions, a process each; what one leaves for the next lies in the work folder.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gpu_models
from gpu_book import Cell, Machine

TINY, REAL = gpu_models.TINY, gpu_models.REAL
BNB = ("torch", "transformers", "peft", "trl", "bitsandbytes")
SIZES = {
    True: dict(n=4, prompt_tokens=24, tokens=4, prompts=2, group=4),  # dry run
    False: dict(n=64, prompt_tokens=64, tokens=16, prompts=8, group=8),
}


def cells(here: Machine) -> list[Cell]:
    """The tiny shape first: it says within a minute whether anything works at all."""
    found, sizes = [], SIZES[here.dry]
    for model in [TINY] if here.dry else [TINY, REAL]:
        dtypes = dict.fromkeys(["float32", here.dtype])
        for dtype in dtypes if model == TINY else ["float32"]:
            found += [] if model == REAL else [weights_cell("correctness", model, dtype, here)]

        def cell(what: str, kind: str, dtype: str, model=model, **others) -> Cell:
            side = f"/{others['backend']}" if kind in ("logps", "gradient") and "backend" in others else ""
            settings = dict(kind=kind, model=model, dtype=dtype, backend=others.get("backend", "transformers"), **sizes)
            return Cell(f"correctness/{what}/{model}/{dtype}{side}", settings, 90, **others)

        unsloth = dict(backend="unsloth", needs=(*BNB[:4], "unsloth"), cuda=True)
        low = here.dtype
        found.append(cell("log-probabilities", "logps", low, backend="transformers"))
        found.append(cell("log-probabilities", "logps", low, after=found[-1].name, **unsloth))
        found.append(cell("4-bit", "four_bit", low, needs=BNB))
        for dtype in dtypes:
            found.append(cell("gradient", "gradient", dtype, backend="transformers"))
        found.append(cell("gradient", "gradient", low, after=found[-1].name, **unsloth))
    return found


def weights_cell(part: str, model: str, dtype: str, here: Machine, seconds: float = 60.0) -> Cell:
    """Making a model with random weights."""
    folder = gpu_models.folder_name(model, dtype)
    return Cell(
        f"{part}/weights/{folder}", dict(kind="weights", shape=model, dtype=dtype), seconds, artifact=f"models/{folder}"
    )


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell."""
    if settings["kind"] == "weights":
        return gpu_models.make(settings["shape"], settings["dtype"], work)
    if settings["model"] == REAL and (trouble := gpu_models.cached()):
        return {"state": "not run", "why": trouble}
    return {"logps": logps, "four_bit": four_bit, "gradient": gradient}[settings["kind"]](settings, work)


def profile_of(settings: dict, work: Path, **changes):
    from recr1_lite.profiles import PROFILES

    model = gpu_models.model_source(settings["model"], settings["dtype"], work)
    return replace(
        PROFILES["cpu"],
        **(
            dict(
                name="benchmark",
                model=model,
                dtype=settings["dtype"],
                max_completion_tokens=settings["tokens"],
                steps=1,
                prompts_per_step=settings["prompts"],
                group_size=settings["group"],
                validate_every=1,
            )
            | changes
        ),
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


def pairs(settings: dict, policy) -> list[tuple[str, str]]:
    """n rendered prompts, each with a completion of words from another request: any text will do."""
    data, prompt, _, _ = world(settings, policy.tokenizer)
    asked = data["request"].tolist()[: 2 * settings["n"]]
    return [
        (prompt.render(policy.tokenizer, asked[at]), " " + " ".join(asked[-at - 1].split()[: settings["tokens"]]))
        for at in range(settings["n"])
    ]


def adapter_folder(settings: dict, work: Path) -> Path:
    return work / "correctness" / f"{settings['model']}-{settings['kind']}-{settings['dtype']}"


def shaken_policy(settings: dict, work: Path):
    """The profile's model with an adapter that does something; transformers makes and saves it, unsloth loads it."""
    import grpo_step

    from recr1_lite.policy.models import load_policy, save_adapter

    folder, profile = adapter_folder(settings, work) / "adapter", profile_of(settings, work)
    if settings["backend"] == "transformers":
        policy = grpo_step.shaken(load_policy(profile))
        save_adapter(policy, folder)
        return policy, profile
    return load_policy(profile, adapter=folder), profile


def logps(settings: dict, work: Path) -> dict:
    """Log-probabilities of n completions under one backend; for unsloth also how far they are from transformers'."""
    from safetensors.torch import load_file, save_file

    from recr1_lite.policy.models import token_logps

    policy, _ = shaken_policy(settings, work)
    values = token_logps(policy, pairs(settings, policy)).float().cpu()
    folder = adapter_folder(settings, work)
    save_file({"logps": values.contiguous()}, folder / f"{settings['backend']}.safetensors")
    row = {
        "n": settings["n"],
        "tokens": int((values != 0).sum()),
        "mean_logp": float(values[values != 0].mean()),
        "backend": policy.backend,
    }
    if settings["backend"] == "unsloth":
        row |= apart(values, load_file(folder / "transformers.safetensors")["logps"])
    return row


def apart(values, others) -> dict:
    """Largest and mean distance of two tables of log-probabilities, in nats a token; padding is 0 in both."""
    difference, real = (values - others).abs(), (values != 0) | (others != 0)
    return {"max_nats": float(difference.max()), "mean_nats": float(difference[real].mean())}


def four_bit(settings: dict, work: Path) -> dict:
    """What NF4 costs on the bare model: nats a token on what 16 bits answer, and greedy rewrites that stay the same."""
    from recr1_lite.policy.models import load_policy, token_logps
    from recr1_lite.policy.rewriters import ModelRewriter

    profile, values, answers = profile_of(settings, work), [], []
    for four in (False, True):
        policy = load_policy(replace(profile, load_in_4bit=four), trainable=False)
        data, prompt, _, _ = world(settings, policy.tokenizer)
        asked = data["request"].tolist()[: settings["n"]]
        rewriter = ModelRewriter(policy, prompt, "greedy", settings["tokens"], batch_size=32)
        answers.append([answer.completion for answer in rewriter.complete(asked)])
        text = [
            (prompt.render(policy.tokenizer, request), answer or " none")
            for request, answer in zip(asked, answers[0], strict=True)
        ]
        values.append(token_logps(policy, text).float().cpu())
        del policy, rewriter
    same = sum(a == b for a, b in zip(*answers, strict=True))
    return apart(*values) | {"n": settings["n"], "tokens": int((values[0] != 0).sum()), "same_rewrites": same}


def gradient(settings: dict, work: Path) -> dict:
    """First gradient of this kit's GRPO step against stock TRL's on the same adapter and rollouts.

    relative: norm of the difference over stock's norm. Transformers' process makes the rollouts and stock's
    gradient; unsloth's is held against the same.
    """
    import grpo_step

    folder = adapter_folder(settings, work)
    if settings["backend"] == "transformers":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ours = one_gradient(settings, work, False, folder / "ours.safetensors", None)
        (folder / "rollouts.json").write_text(json.dumps(ours))
        one_gradient(settings, work, True, folder / "stock.safetensors", ours)
        return {"relative": grpo_step.compare(folder), "rollouts": len(ours[0])}
    one_gradient(settings, work, False, folder / "ours.safetensors", json.loads((folder / "rollouts.json").read_text()))
    return {"relative": grpo_step.compare(folder)}


def one_gradient(settings: dict, work: Path, stock: bool, file: Path, given) -> list:
    import grpo_step

    policy, profile = shaken_policy(settings, work)
    data, prompt, engine, k = world(settings, policy.tokenizer)
    _, made, _ = grpo_step.one_run(stock, policy, profile, data, prompt, engine, k, given, file)
    return made
