"""Seconds of a training step: operations and bytes counted, divided by what a short measurement finds.

A step is bound by three things: matrix products (TFLOP/s), reading and writing memory (GB/s), and in decoding, where a
step handles one token a row, the time it takes to start each layer. Against eight counted steps of SmolLM2-135M on two
busy CPU cores the estimate was a fifth to two fifths too low: read it as a size, not as a promise.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import NamedTuple

from recr1_lite import memory_counts as counts
from recr1_lite.memory_counts import Pass, Work
from recr1_lite.shapes import Shape, adapter_weights, config_of, linear_weights

# (card, TFLOP/s of 16-bit matrix products summed in float32, GB/s): as the makers are quoted; their own sheets were not at
# hand, and the RTX 3090's 71 is half of its published 142, which sums in 16 bits
DATA_SHEETS = {
    "t4": ("NVIDIA T4", 65.0, 320.0),
    "gpu24": ("NVIDIA RTX 3090", 71.0, 936.0),
    "paper": ("NVIDIA RTX 3090", 71.0, 936.0),
}
MOVES = 4  # assumed: logits and their gradient are written once and read once more than `counts.logits` holds copies
MEASURE = 1.5  # seconds of each measurement
RANK = 16  # of the adapter in a measured layer


class Calibration(NamedTuple):
    """What a device does. tflops: 1e12 operations a second in a large matrix product; layer_tflops: in a decoder layer,
    forward; training_tflops: forward and backward with LoRA; seconds_per_layer: to start the kernels of one layer.
    measured: False for figures from a data sheet, with which every time is a lower bound."""

    device: str
    dtype: str
    four_bit: bool
    tflops: float
    layer_tflops: float
    training_tflops: float
    gbytes_per_s: float
    seconds_per_layer: float
    measured: bool = True


def data_sheet(profile: str, dtype: str, four_bit: bool) -> Calibration | None:
    """The published peaks of the card that a profile is for; None where it is for no one card."""
    if profile not in DATA_SHEETS:
        return None
    card, tflops, gbytes = DATA_SHEETS[profile]
    return Calibration(card, dtype, four_bit, tflops, tflops, tflops, gbytes, 0.0, measured=False)


def calibrate(dtype: str | None = None, four_bit: bool = False, progress: bool = True) -> Calibration:
    """Measure this machine's device for a few seconds. dtype: default float32 on a CPU, else the GPU's 16-bit one."""
    import torch

    from recr1_lite.policy.backend import machine

    found = machine()
    device = "cuda" if found.cuda else "cpu"
    dtype = dtype or ("float32" if not found.cuda else "bfloat16" if found.capability >= (8, 0) else "float16")
    name = found.name if found.cuda else f"CPU ({torch.get_num_threads()} threads)"
    if progress:
        print(f"calibrating on {name}: matrix products, a layer, memory; some seconds", file=sys.stderr, flush=True)
    with torch.random.fork_rng():
        number = getattr(torch, dtype)
        rates = [_layer_tflops(device, number, four_bit, training) for training in (False, True)]
        return Calibration(
            name,
            dtype,
            four_bit,
            _tflops(device, number, four_bit),
            *rates,
            _gbytes(device),
            _layer_seconds(device, number, four_bit),
        )


def _tflops(device: str, dtype, four_bit: bool) -> float:
    """Of a matrix product as wide as an MLP's, through bitsandbytes' 4-bit layer if asked for."""
    import torch

    rows, inputs, outputs = (4096, 2048, 8192) if device == "cuda" else (512, 1024, 2048)
    matrix = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    matrix = (_packed(matrix) if four_bit else matrix).to(device)
    states = torch.randn(rows, inputs, device=device, dtype=dtype)
    with torch.no_grad():
        return 2 * rows * inputs * outputs / _seconds(lambda: matrix(states), device) / 1e12


def _packed(matrix):
    """bitsandbytes' 4-bit layer of the same weights, packed when it is moved to its device."""
    from bitsandbytes.nn import Linear4bit

    packed = Linear4bit(
        matrix.in_features, matrix.out_features, bias=False, compute_dtype=matrix.weight.dtype, quant_type="nf4"
    )
    packed.load_state_dict(matrix.state_dict())
    return packed


def _layer_tflops(device: str, dtype, four_bit: bool, training: bool) -> float:
    """Of decoder layers as wide as a small model's: products, norms, attention, LoRA, and all that goes between."""
    import torch

    shape, rows, length = (
        (Shape("layers", 2048, 2, 16, 2, 128, 8192, 64, True, False), 8, 512)
        if device == "cuda"
        else (Shape("layers", 576, 2, 9, 3, 64, 1536, 64, True, False), 4, 96)
    )
    model, lora = _model(shape, device, dtype, four_bit, training or four_bit), adapter_weights(shape, RANK)
    ids, run = torch.zeros(rows, length, dtype=torch.long, device=device), Pass(rows, length, length)
    halved = torch.autocast(device, dtype=dtype, enabled=device == "cuda" and dtype != torch.float32)

    def work():
        with halved, torch.set_grad_enabled(training):
            states = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        if training:
            states.float().sum().backward()

    operations = (
        training_operations(shape, [run], 0, RANK, False)
        if training
        else decoder_operations(shape, run, lora if four_bit else 0)
    )
    return operations / _seconds(work, device) / 1e12


def _model(shape: Shape, device: str, dtype, four_bit: bool, lora: bool):
    """A random model, with an adapter and with 4-bit matrices if asked for."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear"))
    if four_bit:
        for module in list(model.modules()):
            if hasattr(module, "base_layer"):
                module.base_layer = _packed(module.base_layer)
    return model.to(device).eval()


def _gbytes(device: str) -> float:
    """Of copying a tensor larger than any cache: read once, written once."""
    import torch

    source = torch.zeros((256 if device == "cuda" else 32) * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device) / 1e9


def _layer_seconds(device: str, dtype, four_bit: bool) -> float:
    """Of a decoder layer so small that only starting it takes time; with LoRA where a 4-bit model cannot be merged."""
    import torch

    found, token = {}, torch.zeros(1, 1, dtype=torch.long, device=device)
    for layers in (2, 8):
        model = _model(Shape("tiny", 64, layers, 4, 2, 16, 64, 64, True, False), device, dtype, four_bit, four_bit)
        with torch.no_grad():
            found[layers] = _seconds(lambda: model(input_ids=token, use_cache=True), device)
    return max(found[8] - found[2], 0.0) / 6


def _seconds(work, device: str) -> float:
    """Median seconds of a call, over MEASURE seconds after two calls that warm up."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once(), once()
    taken, end = [once()], time.perf_counter() + MEASURE
    while time.perf_counter() < end:
        taken.append(once())
    return statistics.median(taken)


def rollout_seconds(shape: Shape, work: Work, found: Calibration, grouped: bool, merged: bool, rank: int) -> float:
    """Of `at_once` rollouts that all run to the limit: prompts at once, then a token a row at a time. Each of those
    steps reads all weights and the cache, and starts all layers."""
    lora = 0 if merged else adapter_weights(shape, rank)
    prompts = -(-work.at_once // work.group) if grouped else work.at_once
    first = decoder_operations(shape, Pass(prompts, work.prompt, work.prompt), lora)
    middle = Pass(work.at_once, 1, work.prompt + work.completion // 2)
    each = decoder_operations(shape, middle, lora) + head_operations(shape, work.at_once)
    read = (
        counts.weights(shape, found.dtype, found.four_bit)
        + counts.FLOAT32 * lora
        + counts.kv_cache(shape, work.at_once, middle.width, found.dtype)
    )
    start, compute = shape.layers * found.seconds_per_layer, each / found.layer_tflops / 1e12
    # a GPU computes while the next kernel is started, a CPU does one after the other
    step = max(read / found.gbytes_per_s / 1e9, start + compute if "CPU" in found.device else max(start, compute))
    return first / found.layer_tflops / 1e12 + work.completion * step


def update_seconds(
    shape: Shape, passes: list[Pass], scored: int, logits: int, found: Calibration, rank: int, again: bool
) -> float:
    """Forward and backward over all passes. scored: tokens that get logits. logits: bytes of them with their copies.
    again: the forward pass is run a second time (gradient checkpointing)."""
    moved = MOVES * logits if found.measured else 0  # nothing assumed in a lower bound
    operations = training_operations(shape, passes, scored, rank, again)
    return operations / found.training_tflops / 1e12 + moved / found.gbytes_per_s / 1e9


def training_operations(shape: Shape, passes: list[Pass], scored: int, rank: int, again: bool) -> int:
    """The base is frozen: its backward pass costs one forward pass (the gradient of the states), LoRA's costs two (of
    its weights too), attention's costs two."""
    lora = adapter_weights(shape, rank)
    ahead = sum(decoder_operations(shape, run, lora) for run in passes)
    back = sum(decoder_operations(shape, run, 2 * lora) + attention_operations(shape, run) for run in passes)
    return ahead * (2 if again else 1) + back + 2 * head_operations(shape, scored)


def decoder_operations(shape: Shape, run: Pass, lora: int) -> int:
    """Of a forward pass: two for each weight and token, and the attention's."""
    return 2 * run.tokens * (linear_weights(shape) + lora) + attention_operations(shape, run)


def attention_operations(shape: Shape, run: Pass) -> int:
    """Queries on keys, then weights on values: two products for each pair of tokens in every layer."""
    return 4 * shape.layers * run.tokens * run.width * shape.query


def head_operations(shape: Shape, tokens: int) -> int:
    return 2 * tokens * shape.vocab * shape.hidden
