"""Speed and memory of one step on Qwen2.5 shapes with random weights: seconds and peak memory of GRPO or SFT steps.

Sides: `ours` (this kit's trainer on unsloth), `transformers` (this kit's trainer on transformers + peft +
bitsandbytes), `stock` (trl.GRPOTrainer or trl.SFTTrainer with their own defaults on a bitsandbytes model; of this kit
it gets the prompts alone). Every side gets the same weights, prompts, lengths, micro-batch and LoRA; the first step
warms up and is not counted. The cells that say most come first, because the time may end before the list does.
"""

import tempfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import gpu_models
from gpu_cells import GIB, Cell, Machine

CAPS = (8, 12, 16, 24)  # GiB, as cards are sold
RESERVED = 0.5 * GIB  # of a card: the CUDA context and kernels, which PyTorch's allocator does not count
SIDES = ("ours", "stock", "transformers")
BASE = ("torch", "transformers", "peft", "trl", "bitsandbytes")
REAL_SIZES = dict(prompts=4, prompt_tokens=256, completion_tokens=512, four_bit=True)
DRY_SIZES = dict(prompts=2, prompt_tokens=24, completion_tokens=8, four_bit=True)
SMALLER = 2  # rollouts of stock's micro-batch in the cells that ask how far it can shrink


def cells(here: Machine) -> list[Cell]:
    """Weights just before they are needed; then the 3B shape at group 8, its caps, its SFT, and what follows."""
    big, middle, small, tiny = gpu_models.SHAPES
    if here.dry:
        plan = [(tiny, "grpo", 4, None, None, SIDES), (tiny, "sft", 4, None, None, SIDES[:2])]
        plan += [(tiny, "grpo", 4, CAPS[0], None, SIDES[:1])]
    else:
        uncapped, sft = [(big, "grpo", 8)], [(shape, "sft", 8) for shape in (big, middle, small)]
        second = [(middle, "grpo", 8), (small, "grpo", 8)]
        third = [(shape, "grpo", 12) for shape in (big, middle, small)]
        plan = [(*size, cap, None, SIDES) for size in uncapped for cap in (None, *CAPS)]
        plan += [(*size, None, None, SIDES) for size in [sft[0], *second]]
        plan += [(big, "grpo", 8, cap, SMALLER, ("stock",)) for cap in (None, *CAPS)]
        plan += [(*size, None, None, SIDES) for size in [*third, *sft[1:]]]
        plan += [(*size, cap, None, SIDES) for size in [*second, *third, *sft] for cap in CAPS]
    listed: list[Cell] = []
    for shape, trainer, group, cap, micro, sides in plan:
        if not any(cell.settings["shape"] == shape for cell in listed):
            listed.append(gpu_models.weights_cell("speed", shape, here.dtype, 90))
        listed += [step_cell(here, shape, trainer, side, group, cap, micro) for side in sides]
    return listed


def step_cell(here: Machine, shape: str, trainer: str, side: str, group: int, cap: int | None, micro: int | None):
    """A cell of steps. Without a cap: one step to warm up and two that count; with one: a single step, does it fit?"""
    settings = dict(kind="steps", shape=shape, trainer=trainer, side=side, group=group, micro=micro or group, cap=cap)
    settings |= dict(steps=1 if cap else 3, dtype=here.dtype, **(DRY_SIZES if here.dry else REAL_SIZES))
    size = f"{'g' if trainer == 'grpo' else 'b'}{group}"  # a group of rollouts, a batch of targets
    parts = ["speed", shape, trainer, size, f"micro{micro}" if micro else "", side, f"{cap}GB" if cap else ""]
    unsloth = side == "ours" and not (here.dry and not here.cuda)
    needs = (*BASE, "unsloth") if unsloth else BASE
    backend = "unsloth" if unsloth else "transformers"
    return Cell("/".join(filter(None, parts)), settings, guess(settings), needs, backend=backend, cuda=bool(cap))


def guess(settings: dict) -> float:
    """Seconds that a cell may take: only to see whether it still has a place in this call."""
    size = float(settings["shape"].partition("-")[2].removesuffix("b") or 0.1)
    step = 25 + 15 * size if settings["trainer"] == "grpo" else 5 + 2 * size
    compiling = 60 if settings["side"] == "ours" else 0  # unsloth's kernels, in the first step
    return 30 + 5 * size + compiling + settings["steps"] * step


def implied(cell: Cell, rows: dict[str, dict], here: Machine) -> dict | None:
    """The row of a capped cell that need not run: a smaller cap was enough, or the card itself is smaller."""
    cap = cell.settings.get("cap")
    if not cap or not here.cuda:
        return None
    if cap * GIB > 1.1 * here.memory:
        return {"state": "not run", "why": f"the card has {here.memory / GIB:.0f} GB"}
    for smaller in [other for other in CAPS if other < cap]:
        row = rows.get(f"{cell.name.rpartition('/')[0]}/{smaller}GB", {})
        if row.get("state") == "done":
            peaks = {key: row[key] for key in ("peak_allocated", "peak_reserved")}
            return {"state": "done", "implied": True, "why": f"it fits in {smaller} GB"} | peaks
    return None


class Enough(Exception):
    """The time of the cell is used up; what was counted so far is the result."""


class Clock:
    """Seconds of each step and rollout, tokens of each rollout, and a stop at `stop_at` once a step was counted.

    A tick comes at the start of the training and after each step's log, where the loss has been read from the GPU.
    """

    def __init__(self, stop_at: float):
        self.stop_at = stop_at
        self.ticks: list[float] = []
        self.rollouts: list[float] = []
        self.lengths: list[list[int]] = []

    def tick(self, *_) -> None:
        self.ticks.append(now())
        if len(self.ticks) > 2 and time.time() + self.steps[-1] > self.stop_at:
            raise Enough

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.ticks, self.ticks[1:])]

    def timed(self, trainer_class: type) -> type:
        """The trainer with its rollouts timed and their lengths noted."""
        clock = self

        class Timed(trainer_class):  # type: ignore[misc, valid-type]
            def _generate_single_turn(self, *inputs, **others):
                start = now()
                answer = super()._generate_single_turn(*inputs, **others)
                clock.rollouts.append(now() - start)
                clock.lengths.append([len(row) for row in answer[0]])
                return answer

        return Timed

    def figures(self, settings: dict) -> dict:
        """Means of the counted steps, and tokens per second over all of them."""
        counted, first = self.steps[1:], self.steps[:1]
        if not counted and settings["steps"] > 1:
            why = f"no step was counted: the first took {sum(first):.0f} s; give --minutes more"
            return {"state": "failed", "why": why}
        counted = counted or first  # a cell under a memory cap has one step, which says nothing about speed
        lengths = [[settings["completion_tokens"]] * settings["micro"]] * len(counted)
        rollout = 0.0
        if settings["trainer"] == "grpo":
            lengths, rollout = self.lengths[-len(counted) :], sum(self.rollouts[-len(counted) :]) / len(counted)
        every, step = sum(lengths, []), sum(counted) / len(counted)
        return {
            "state": "done",
            "counted_steps": len(counted),
            "warm_up_seconds": sum(first),
            "step_seconds": step,
            "rollout_seconds": rollout,
            "update_seconds": step - rollout,
            "tokens": sum(every),
            "tokens_per_second": sum(every) / sum(counted),
            "lengths": {"mean": sum(every) / len(every), "shortest": min(every), "longest": max(every)},
        }


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of a cell. Raises what the side raises; too little memory becomes "does not fit" in `gpu_cells`."""
    if settings["kind"] == "weights":
        return gpu_models.make(settings["shape"], settings["dtype"], work)
    import torch

    cuda, clock, backend = torch.cuda.is_available(), Clock(stop_at), settings["side"]
    if settings["cap"]:
        limit_memory(settings["cap"])
    side = stock if backend == "stock" else ours
    with tempfile.TemporaryDirectory() as folder:
        try:
            backend = side(settings["trainer"], profile_of(settings, work), Path(folder), clock)
        except Enough:
            pass
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (None, None)
    memory = dict(zip(("peak_allocated", "peak_reserved"), peaks))
    return clock.figures(settings) | {"backend": backend} | memory


def limit_memory(cap: float) -> None:
    """Let PyTorch have no more than a card of `cap` GiB would leave it, and let nobody see more free memory.

    unsloth sizes its batches by what torch.cuda.mem_get_info calls free; on a larger card it would take too large ones.
    """
    import torch

    total, allowed = torch.cuda.get_device_properties(0).total_memory, cap * GIB - RESERVED
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    torch.cuda.mem_get_info = free_under(cap, torch.cuda.mem_get_info, torch.cuda.memory_reserved)


def free_under(cap: float, ask, reserved):
    """What `ask` (torch.cuda.mem_get_info) would say on a card of `cap` GiB; reserved(device): held by this process."""

    def told(device=None) -> tuple[int, int]:
        free, total = ask(device)
        return max(0, min(free, int(cap * GIB - RESERVED) - reserved(device))), min(total, int(cap * GIB))

    return told


def profile_of(settings: dict, work: Path):
    from recr1_lite.profiles import PROFILES

    return replace(
        PROFILES["gpu24"],
        name="benchmark",
        model=gpu_models.model_source(settings["shape"], settings["dtype"], work),
        dtype=settings["dtype"],
        load_in_4bit=settings["four_bit"],
        prompts_per_step=settings["prompts"],
        group_size=settings["group"],
        micro_batch=settings["micro"],
        steps=settings["steps"],
        max_prompt_tokens=settings["prompt_tokens"],
        max_completion_tokens=settings["completion_tokens"],
        sft_batch=settings["micro"],
        validate_every=10 * settings["steps"],
    )


def ours(trainer: str, profile, folder: Path, clock: Clock) -> str:
    """Train with this kit; the backend that it chose."""
    from recr1_lite.policy.models import load_policy
    from recr1_lite.train import grpo, sft
    from recr1_lite.train.loop import Run
    from recr1_lite.train.rewards import Scorer

    policy, prompt, run = load_policy(profile), gpu_models.PROMPT, Run(folder, progress=False, watch=clock.tick)
    if trainer == "sft":
        targets = gpu_models.targets(policy.tokenizer, profile)
        sft.train(policy, targets, prompt, profile, run, epochs=1.0)
        return policy.backend
    plain = grpo.PlainGRPOTrainer if policy.backend == "unsloth" else grpo.GroupedGRPOTrainer
    data = gpu_models.examples(policy.tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    grpo.train(policy, data, Scorer(gpu_models.retriever(), data, prompt, 10), profile, run, clock.timed(plain))
    return policy.backend


def stock(trainer: str, profile, folder: Path, clock: Clock) -> str:
    """Train as a user of stock TRL does."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    class Ticks(TrainerCallback):
        def on_train_begin(self, *_, **__):
            clock.tick()

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in (logs or {}):
                clock.tick()

    cuda, dtype = torch.cuda.is_available(), getattr(torch, profile.dtype)
    nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    options = dict(dtype=dtype, local_files_only=True, device_map="cuda" if cuda else "cpu")
    options |= dict(quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4)) if profile.load_in_4bit else {}
    model = AutoModelForCausalLM.from_pretrained(profile.model, **options)
    tokenizer = AutoTokenizer.from_pretrained(profile.model, local_files_only=True, padding_side="left")
    rank, logs = profile.lora_rank, dict(logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = dict(output_dir=str(folder), max_steps=profile.steps, use_cpu=not cuda, **logs)
    shared |= dict(bf16=cuda and profile.dtype == "bfloat16", fp16=cuda and profile.dtype == "float16")
    given = dict(model=model, processing_class=tokenizer, peft_config=lora, callbacks=[Ticks()])
    if trainer == "sft":
        rows = gpu_models.targets(tokenizer, profile)
        data = {"prompt": rendered(tokenizer, rows), "completion": rows["rewrite"].tolist()}
        config = SFTConfig(**shared, per_device_train_batch_size=profile.sft_batch, max_length=None)
        SFTTrainer(args=config, train_dataset=Dataset.from_dict(data), **given).train()
        return "trl"
    rows = gpu_models.examples(tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    config = GRPOConfig(
        **shared,
        num_generations=profile.group_size,
        per_device_train_batch_size=profile.micro_batch,
        max_completion_length=profile.max_completion_tokens,
        gradient_accumulation_steps=profile.prompts_per_step * profile.group_size // profile.micro_batch,
    )
    data = Dataset.from_dict({"prompt": rendered(tokenizer, rows)})
    clock.timed(GRPOTrainer)(args=config, train_dataset=data, reward_funcs=paid, **given).train()
    return "trl"


def rendered(tokenizer, rows) -> list[str]:
    return [gpu_models.PROMPT.render(tokenizer, request) for request in rows["request"]]


def paid(completions, **_) -> list[float]:
    return [zlib.crc32(text.encode()) % 9 / 9 for text in completions]
