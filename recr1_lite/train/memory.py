"""Will it fit? What GRPO needs on its device, counted piece by piece in bytes. A step writes rollouts, then updates;
the larger of the two phases is the peak. GB are 1e9 bytes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
from transformers import AutoConfig

from recr1_lite.common import RecR1Error
from recr1_lite.policy import backend as hardware
from recr1_lite.policy.rollouts import LARGE_LOGITS, PART
from recr1_lite.profiles import Profile

GB, FLOAT32, BYTES = 1e9, 4, {"float32": 4, "bfloat16": 2, "float16": 2}
SIZES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
PUBLISHED = {  # the models that this kit names: kind, then SIZES; the head of each is its embedding
    "smollm2-135m-instruct": ("llama", 576, 1536, 30, 9, 3, 49_152),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 896, 4864, 24, 14, 2, 151_936),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, 151_936),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", 2048, 11_008, 36, 16, 2, 151_936),
}
CARDS, MARGIN = {"t4": 15.0, "gpu24": 24.0, "paper": 24.0}, 0.10  # GB of a profile's card; share of it to leave free


class Memory(NamedTuple):
    """parts: phase -> component -> bytes."""

    parts: dict[str, dict[str, int]]

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(self.parts, key=lambda name: sum(self.parts[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of that phase, with everything."""
        return sum(self.parts[self.phase].values())

    def table(self) -> pd.DataFrame:
        """GB: a row per component and one of the sum, a column per phase."""
        frame = pd.DataFrame(self.parts, index=list(self.parts["rollout"] | self.parts["update"])).fillna(0.0) / GB
        return pd.concat([frame, frame.sum().to_frame("sum").T])


def config_of(model: str):
    """The transformers configuration of a model in PUBLISHED or in a local folder. Raises RecR1Error for any other."""
    if model in PUBLISHED:
        kind, *sizes = PUBLISHED[model]
        return AutoConfig.for_model(kind, **dict(zip(SIZES, sizes)), tie_word_embeddings=True)
    try:
        config = AutoConfig.from_pretrained(Path(model), local_files_only=True)
        if config.model_type in ("llama", "qwen2"):
            return config
        reason = f"a model of kind {config.model_type!r} is not counted here"
    except Exception as error:  # transformers, huggingface_hub and json have no error in common
        reason = " ".join(str(error).split())[:200].rstrip(".")
    names = ", ".join(PUBLISHED)
    raise RecR1Error(f"the sizes of {model!r} are not known ({reason}); name one of {names}, or a saved model's folder")


def matrices(config) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's seven matrices: query, key, value, output, gate, up, down."""
    hidden, wide = config.hidden_size, config.intermediate_size
    width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    return [(hidden, query), (hidden, keys), (hidden, keys), (query, hidden), *[(hidden, wide)] * 2, (wide, hidden)]


def linear_weights(config) -> int:
    """Weights of those matrices in all layers: what 4 bits pack and what LoRA adapts."""
    return config.num_hidden_layers * sum(inputs * outputs for inputs, outputs in matrices(config))


def parameters(config) -> int:
    """All weights: the matrices, embedding (and head where it is not the same), norms and biases."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    query, keys = (outputs for _, outputs in matrices(config)[:2])
    tables = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    biases = layers * (query + 2 * keys) * (config.model_type == "qwen2" or getattr(config, "attention_bias", False))
    return linear_weights(config) + tables + (2 * layers + 1) * hidden + biases


def weights(config, dtype: str, four_bit: bool = False) -> int:
    """Bytes of the model: all weights in `dtype`, or its matrices in NF4 and the rest in `dtype`."""
    packed = config.num_hidden_layers * sum(nf4(inputs * outputs) for inputs, outputs in matrices(config))
    rest = parameters(config) - linear_weights(config) * four_bit
    return rest * BYTES[dtype] + packed * four_bit


def nf4(count: int) -> int:
    """Bytes of `count` weights as bitsandbytes packs a matrix: half a byte for each, one for the scale of each 64, a
    float32 for each 256 scales (double quantisation), and tables of 273 float32."""
    scales = math.ceil(count / 64)
    return math.ceil(count / 2) + scales + FLOAT32 * (math.ceil(scales / 256) + 273)


def training_memory(profile: Profile, backend: str = "unsloth", config=None) -> Memory:
    """What GRPO needs on its device when every prompt and completion is as long as the profile allows. backend:
    unsloth, transformers (this kit's trainer) or stock (TRL's). config: of the model, default the profile's."""
    prompt, new, group = profile.max_prompt_tokens, profile.max_completion_tokens, profile.group_size
    config, size, rows = config or config_of(profile.model), BYTES[profile.dtype], profile.prompts_per_step * group
    layers, hidden, wide = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    adapter = FLOAT32 * profile.lora_rank * layers * sum(map(sum, matrices(config)))
    ours, paper, cuda = backend == "transformers", profile.preset == "paper", _on_cuda(profile, backend)
    standing = {
        "weights": weights(config, profile.dtype, profile.load_in_4bit),
        # a second copy, with the adapter in it, writes the rollouts
        "merged copy": linear_weights(config) * size * (ours and not profile.load_in_4bit),
        "adapter": adapter,
        "KL reference": adapter * paper,  # the preset `modern` has no KL term
        "optimiser": 2 * adapter,  # AdamW's two moments
        # assumed for CUDA (context, kernels), measured on a CPU (Python, libraries, a task and its index)
        "process": 1_000_000_000 if cuda else 800_000_000,
    }
    # rollouts: keys and values of all layers, one layer's twice while they grow
    at_once = rows if backend == "stock" else min(profile.rollout_batch or rows, rows)
    keys = at_once * matrices(config)[1][1] * size  # of one token of each rollout in one layer
    cached = (prompt + new) * (2 * layers + 1)
    if backend == "unsloth":  # grows by 512 tokens; the prompts' keys are there twice when it is begun
        cached = (2 * prompt + 1 + 512 * math.ceil((new + 1) / 512)) * 2 * layers
    forward = (math.ceil(at_once / group) if ours else at_once) * prompt * 3 * (wide + hidden) * size
    drawing = (8 if paper else 4) * at_once * config.vocab_size * FLOAT32  # with top_p also sorted values and indices
    # update: one backward pass; the kit's trainer runs a prompt once for its group, but not with checkpointing
    micro, checkpointing = min(profile.micro_batch or rows, rows), profile.gradient_checkpointing
    runs = [(micro, prompt + new, prompt + new)]
    if ours and not checkpointing:
        runs = [(math.ceil(micro / group), prompt, prompt), (micro, new - 1, prompt + new - 1)]
    kept = sum(layer(config, profile, backend, *run) for run in runs)
    states = 2 if backend == "unsloth" else layers  # unsloth moves the others to the computer's memory
    checkpoints = states * micro * (prompt + new) * hidden * size
    backward = max(rows * length for rows, length, _ in runs) * (3 * wide + 2 * hidden)
    phases = {
        "rollout": {"key-value cache": cached * keys, "workspace": max(forward, drawing)},
        "update": {
            "gradients": adapter,
            "activations": kept + checkpoints if checkpointing else layers * kept,
            "logits": logits(config.vocab_size, profile.dtype, backend, micro, new),
            "workspace": (backward + hidden * wide * profile.load_in_4bit) * size,
        },
    }
    # gaps between tensors of unequal size: assumed for CUDA; of a CPU's freed memory 0.26 to 0.77 stay, measured
    share, standing = 0.10 if cuda else 0.5, {name: size for name, size in standing.items() if size}
    for parts in phases.values():
        parts["fragmentation"] = int(share * sum(parts.values()))
    return Memory({name: standing | parts for name, parts in phases.items()})


def _on_cuda(profile: Profile, backend: str) -> bool:
    return backend == "unsloth" or profile.dtype != "float32" or profile.load_in_4bit


def layer(config, profile: Profile, backend: str, rows: int, length: int, width: int) -> int:
    """Bytes that one layer keeps for the backward pass of `rows` x `length` tokens, each of which sees up to `width`.

    The base matrices are frozen and keep nothing; LoRA keeps the input of each."""
    hidden, wide = config.hidden_size, config.intermediate_size
    query, keys = (outputs for _, outputs in matrices(config)[:2])
    size, tokens, rank = BYTES[profile.dtype], rows * length, profile.lora_rank
    sums = rows * config.num_attention_heads * length * FLOAT32  # log of the softmax's denominator
    if backend == "unsloth":  # no copies of an input, no silu kept, no mask, keys not repeated
        return tokens * (4 * hidden + 2 * query + 2 * keys + 2 * wide + 7 * rank) * size + sums
    grouped = backend == "transformers" and not _on_cuda(profile, backend)  # the kit's attention; sdpa repeats keys
    repeats = config.num_attention_heads // config.num_key_value_heads if grouped else 1
    norms = tokens * 2 * (hidden + 1) * FLOAT32  # inputs and their 1 / root mean square, float32 always
    attention = 2 * tokens * query + 2 * rows * width * (keys if grouped else query)
    mask, mlp = rows * repeats * length * width, 3 * tokens * wide  # gate, its silu, up
    # under autocast peft copies every input; in float32 query, key and value share one, and gate and up
    inputs = 5 * hidden + query + wide if size == 2 else 2 * hidden + query * grouped + wide
    return norms + sums + (attention + mask + mlp + tokens * (inputs + 7 * rank)) * size


def logits(vocab: int, dtype: str, backend: str, rows: int, new: int) -> int:
    """Bytes of one backward pass: three float32 copies, measured, of each token's, and the head's own in 16 bits."""
    token = 3 * vocab * FLOAT32 + (vocab * 2 if dtype != "float32" else 0)
    if backend == "unsloth":  # all in 16 bits, and a quarter of a rollout's in float32
        return rows * new * vocab * BYTES[dtype] + math.ceil(new / 4) * token
    tokens = rows * (new + (backend == "stock"))
    in_parts = backend == "transformers" and tokens * vocab * FLOAT32 > LARGE_LOGITS
    return (max(1, PART // vocab) if in_parts else tokens) * token


def with_group(profile: Profile, group: int) -> Profile:
    """The profile with groups of another size, whole groups in a backward pass, about as many rollouts in it."""
    if group < 2:
        raise RecR1Error(f"--group {group} is no group; give 2 or more")
    groups = math.gcd(profile.prompts_per_step, max(1, (profile.micro_batch or 0) // profile.group_size))
    batch = profile.rollout_batch and max(1, profile.rollout_batch // profile.group_size) * group
    return replace(profile, group_size=group, micro_batch=profile.micro_batch and groups * group, rollout_batch=batch)


def smaller(profile: Profile, backend: str) -> Iterator[tuple[str, Profile]]:
    """(what changes, the profile then) of every step down that can be trained, in the order in which to try them."""
    models = [name for name in PUBLISHED if parameters(config_of(name)) < parameters(config_of(profile.model))]
    others: dict[str, Any] = {"gradient_checkpointing": True, "load_in_4bit": _on_cuda(profile, backend)}
    others["model"] = [profile.model, *models][-1]
    for name in ("max_completion_tokens", "micro_batch", "rollout_batch", "prompts_per_step", "group_size"):
        was = getattr(profile, name)
        most, least = (was or profile.prompts_per_step * profile.group_size) // 2, 2 if name == "group_size" else 1
        for less in range(most, least - 1, -1):
            change: dict[str, Any] = vars(with_group(profile, less)) if name == "group_size" else {name: less}
            then = replace(profile, **change)
            rows = then.prompts_per_step * then.group_size
            micro, unit = then.micro_batch or rows, then.group_size if backend == "unsloth" else 1
            if not (rows % micro or micro % unit or (then.rollout_batch or rows) % then.group_size):
                yield f"{name}={less}, not {was}", then
                break
    for name, other in others.items():
        if other != getattr(profile, name):
            yield f"{name}={other}, not {getattr(profile, name)}", replace(profile, **{name: other})


def print_estimate(profile: Profile, backend: str | None = None, card: float | None = None) -> int:
    """Print what training needs, whether it fits a card of `card` GB, and if not what to shrink; 0 if it fits, else 1.

    backend: default what a run would take. card: default the profile's, else this machine's."""
    here = hardware.machine()
    backend = backend or (hardware.choose(profile).name if here.cuda or not _on_cuda(profile, "") else "unsloth")
    total = here.memory if here.cuda or _on_cuda(profile, backend) else psutil.virtual_memory().total
    card = CARDS.get(profile.name, total / GB) if card is None else card
    if not card > 0:
        raise RecR1Error(f"--memory {card} GB is no card; give the GB of one")
    needed, micro = training_memory(profile, backend), profile.micro_batch or "all"
    again = ", checkpointing" * profile.gradient_checkpointing
    left, form = card - needed.peak / GB, "4-bit, " * profile.load_in_4bit + profile.dtype
    print(
        f"{profile.model} ({parameters(config_of(profile.model)) / 1e9:.2f}B), {form}, {backend}: "
        f"{profile.prompts_per_step} prompts of {profile.max_prompt_tokens} tokens x {profile.group_size} rollouts of "
        f"{profile.max_completion_tokens}, {micro} in a backward pass{again}"
        f"\n\n{needed.table().to_string(float_format='{:.2f}'.format)}"
    )
    verdict = f"peak {needed.peak / GB:.2f} GB, in the {needed.phase} phase, of {card:.4g} GB"
    if left >= MARGIN * card:
        print(f"{verdict}: fits, {left:.2f} GB to spare ({left / card:.0%})")
        return 0
    short = f"{-left:.2f} GB too much" if left < 0 else f"only {left:.2f} GB to spare, less than {MARGIN:.0%}"
    print(f"{verdict}: does not fit, {short}. Shrink, in this order:")
    for what, changed in smaller(profile, backend):
        saved = (needed.peak - training_memory(changed, backend).peak) / GB
        if saved >= 0.01:
            print(f"  {what}: saves {saved:.2f} GB{'; fits then' * (left + saved >= MARGIN * card)}")
    return 1
