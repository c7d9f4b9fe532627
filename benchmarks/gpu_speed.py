"""Speed and memory of one GRPO step on Qwen2.5 shapes with random weights.

Sides: `ours` (this kit's trainer on unsloth), `transformers` (this kit's trainer on transformers + peft +
bitsandbytes), `stock` (trl.GRPOTrainer with its own defaults on a bitsandbytes model; of this kit it gets the prompts
alone). Every side gets the same weights, prompts, lengths, micro-batch and LoRA; the first step warms up and is not
counted. The cells that say most come first, because the time may end before the list does.
"""

import tempfile
import time
import zlib
from pathlib import Path

import gpu_models
from gpu_cells import GIB, Cell, Machine

from recr1_lite.common import RecR1Error

CAPS = (8, 12, 16, 24)  # GiB, as cards are sold
RESERVED = 0.5 * GIB  # of a card: the CUDA context and kernels, which PyTorch's allocator does not count
SIDES = ("ours", "stock", "transformers")
SIZES = dict(prompts_per_step=4, max_prompt_tokens=256, max_completion_tokens=512, load_in_4bit=True, validate_every=99)
DRY_SIZES = SIZES | dict(prompts_per_step=2, max_prompt_tokens=24, max_completion_tokens=8)


def cells(here: Machine) -> list[Cell]:
    """The 3B shape at group 8 and the caps under which its step runs, and what follows."""
    big, middle, small, tiny = gpu_models.SHAPES
    caps = [None, *[cap for cap in CAPS if cap * GIB < 1.1 * here.memory]]
    plan = [(big, 8, 8, cap, SIDES) for cap in caps]
    plan += [(big, 8, 2, cap, ["stock"]) for cap in caps]  # stock may shrink where unsloth may not
    plan += [(shape, 8, 8, None, SIDES) for shape in (middle, small)]
    plan += [(shape, 12, 12, None, SIDES) for shape in (big, middle, small)]
    if here.dry:
        plan = [(tiny, 4, 4, None, SIDES), (tiny, 4, 4, CAPS[0], ["ours"])]
    return [step_cell(here, side, *size) for *size, sides in plan for side in sides]


def step_cell(here: Machine, side: str, shape: str, group: int, micro: int, cap: int | None) -> Cell:
    """A cell of steps. Without a cap: one step to warm up and two that count; with one: a single step, does it fit?"""
    sizes = dict(group_size=group, micro_batch=micro, steps=1 if cap else 3) | (DRY_SIZES if here.dry else SIZES)
    settings = dict(side=side, cap=cap, model=shape, dtype=here.dtype, sizes=sizes)
    parts = ["speed", shape, f"g{group}", f"micro{micro}" * (micro < group), side, f"{cap}GB" if cap else ""]
    name, unsloth = "/".join(filter(None, parts)), side == "ours" and here.cuda
    needs = ("bitsandbytes", "unsloth") if unsloth else ("bitsandbytes",)
    return Cell(name, measure, settings, needs, backend="unsloth" if unsloth else "transformers", cuda=bool(cap))


class Clock:
    """Seconds of each step and rollout, and tokens of each rollout.

    A tick comes at the start of the training and after each step's log, where the loss has been read from the GPU.
    """

    def __init__(self) -> None:
        self.ticks, self.rollouts, self.lengths = list[float](), list[float](), list[list[int]]()

    def tick(self, *_) -> None:
        self.ticks.append(now())

    def timed(self, trainer_class: type) -> type:
        """The trainer with its rollouts timed and their lengths noted."""
        clock = self

        class Timed(trainer_class):
            def _generate_single_turn(self, *inputs, **others):
                start = now()
                answer = super()._generate_single_turn(*inputs, **others)
                clock.rollouts.append(now() - start)
                clock.lengths.append([len(row) for row in answer[0]])
                return answer

        return Timed

    def figures(self, wanted: int) -> dict:
        """Means of the counted steps, and tokens per second over all of them. Raises RecR1Error where there is none."""
        steps = [after - before for before, after in zip(self.ticks, self.ticks[1:])]
        counted = steps[1:] if wanted > 1 else steps  # one step under a memory cap says nothing about speed
        if not counted:
            raise RecR1Error(f"no step was counted: the first took {sum(steps):.0f} s; give --minutes more")
        first = len(steps) - len(counted)
        rollout = sum(self.rollouts[first : len(steps)]) / len(counted)
        every, step = sum(self.lengths[first : len(steps)], []), sum(counted) / len(counted)
        row = {"counted_steps": len(counted), "step_seconds": step, "tokens": sum(every)}
        row |= {"rollout_seconds": rollout, "update_seconds": step - rollout, "warm_up_seconds": steps[0]}
        row |= {"lengths": {"mean": sum(every) / len(every), "shortest": min(every), "longest": max(every)}}
        return row | {"tokens_per_second": sum(every) / sum(counted)}


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(settings: dict, work: Path) -> dict:
    """The row of a cell. Raises what the side raises; too little memory becomes "does not fit" in `gpu_cells`."""
    import torch

    profile, clock, name = gpu_models.profile_of("gpu24", settings, work), Clock(), settings["side"]
    if settings["cap"]:
        limit_memory(settings["cap"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            name = (stock if name == "stock" else ours)(profile, Path(folder), clock)
        except KeyboardInterrupt:  # the minutes are over: what was counted is the result
            pass
    cuda = torch.cuda.is_available()
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (None, None)
    return clock.figures(profile.steps) | {"backend": name} | dict(zip(("peak_allocated", "peak_reserved"), peaks))


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


def ours(profile, folder: Path, clock: Clock) -> str:
    """Train with this kit; the backend that it chose."""
    from recr1_lite.policy.models import load_policy
    from recr1_lite.train import grpo
    from recr1_lite.train.loop import Run
    from recr1_lite.train.rewards import Scorer

    policy, run = load_policy(profile), Run(folder, progress=False, watch=clock.tick)
    plain = grpo.PlainGRPOTrainer if policy.backend == "unsloth" else grpo.GroupedGRPOTrainer
    data = gpu_models.examples(policy.tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    scorer = Scorer(gpu_models.retriever(), data, gpu_models.PROMPT, 10)
    grpo.train(policy, data, scorer, profile, run, clock.timed(plain))
    return policy.backend


def stock(profile, folder: Path, clock: Clock) -> str:
    """Train as a user of stock TRL does."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Ticks(TrainerCallback):
        def on_train_begin(self, *_, **__):
            clock.tick()

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in (logs or {}):
                clock.tick()

    cuda, dtype = torch.cuda.is_available(), getattr(torch, profile.dtype)
    nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    options = dict(dtype=dtype, local_files_only=True, device_map="cuda" if cuda else "cpu")
    options |= dict(quantization_config=BitsAndBytesConfig(load_in_4bit=True, **nf4))
    model = AutoModelForCausalLM.from_pretrained(profile.model, **options)
    tokenizer = AutoTokenizer.from_pretrained(profile.model, local_files_only=True, padding_side="left")
    rank, rollouts = profile.lora_rank, profile.prompts_per_step * profile.group_size
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=profile.steps,
        num_generations=profile.group_size,
        max_completion_length=profile.max_completion_tokens,
        per_device_train_batch_size=profile.micro_batch,
        gradient_accumulation_steps=rollouts // profile.micro_batch,
        use_cpu=not cuda,
        bf16=cuda and profile.dtype == "bfloat16",
        fp16=cuda and profile.dtype == "float16",
        **dict(logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True),
    )
    rows = gpu_models.examples(tokenizer, profile.prompts_per_step * profile.steps, profile.max_prompt_tokens)
    data = Dataset.from_dict({"prompt": [gpu_models.PROMPT.render(tokenizer, text) for text in rows["request"]]})
    given = dict(model=model, processing_class=tokenizer, peft_config=lora, callbacks=[Ticks()])
    clock.timed(GRPOTrainer)(args=config, train_dataset=data, reward_funcs=paid, **given).train()
    return "trl"


def paid(completions, **_) -> list[float]:
    return [zlib.crc32(text.encode()) % 9 / 9 for text in completions]
