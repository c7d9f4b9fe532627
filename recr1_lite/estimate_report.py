"""python -m recr1_lite estimate: phases and components in GB, fits or not, what to shrink first, seconds."""

from __future__ import annotations

import math
from dataclasses import replace

from recr1_lite import estimate
from recr1_lite.common import RecR1Error
from recr1_lite.estimate import GB
from recr1_lite.profiles import Profile, get_profile
from recr1_lite.shapes import SHAPES, Shape, parameters, shape_of
from recr1_lite.speed import data_sheet

CARDS = {"t4": 15.0, "gpu24": 24.0, "paper": 24.0}  # GB that a profile is made for
MARGIN = 0.10  # of a card, to be left free: what the allocator reserves and what nobody counted


def run(arguments) -> int:
    """Print the estimate; 1 where it does not fit, else 0. Fields: profile, model, prompt_tokens, completion_tokens,
    group, backend, memory (GB), calibrate (bool)."""
    profile = get_profile(arguments.profile)
    if arguments.model:
        profile = replace(profile, model=arguments.model)
    if arguments.group:
        profile = with_group(profile, arguments.group)
    shape, backend = shape_of(profile.model), arguments.backend or _backend(profile)
    lengths = dict(prompt_tokens=arguments.prompt_tokens, completion_tokens=arguments.completion_tokens)
    card = _card(profile, backend) if arguments.memory is None else arguments.memory
    if not card > 0:
        raise RecR1Error(f"--memory {card} GB is no card; give the GB of one")
    lines, fits = verdict(shape, profile, backend, card, lengths)
    print("\n".join([title(shape, profile, backend, lengths), "", *lines, ""]), flush=True)
    print("\n".join(times(shape, profile, backend, lengths, arguments.calibrate)))
    return 0 if fits else 1


def with_group(profile: Profile, group: int) -> Profile:
    """The profile with groups of another size, and about as many rollouts in a backward pass: whole groups.

    Raises RecR1Error for a group without a second rollout.
    """
    if group < 2:
        raise RecR1Error(f"--group {group} is no group; give 2 or more")
    groups = max(1, (profile.micro_batch or 0) // profile.group_size)
    while profile.prompts_per_step % groups:
        groups -= 1
    batch = profile.rollout_batch and max(1, profile.rollout_batch // profile.group_size) * group
    return replace(profile, group_size=group, micro_batch=profile.micro_batch and groups * group, rollout_batch=batch)


def title(shape: Shape, profile: Profile, backend: str, lengths: dict) -> str:
    """What is estimated, in one line."""
    prompt, completion = (
        lengths["prompt_tokens"] or profile.max_prompt_tokens,
        lengths["completion_tokens"] or profile.max_completion_tokens,
    )
    rows = profile.prompts_per_step * profile.group_size
    form = f"{'4-bit, ' if profile.load_in_4bit else ''}{profile.dtype}"
    return (
        f"{shape.name} ({parameters(shape) / 1e9:.2f}B), {form}, {backend}: "
        f"{profile.prompts_per_step} prompts of {prompt} tokens x {profile.group_size} rollouts of {completion}, "
        f"{min(profile.micro_batch or rows, rows)} in a backward pass"
        f"{', checkpointing' if profile.gradient_checkpointing else ''}"
    )


def verdict(shape: Shape, profile: Profile, backend: str, card: float, lengths: dict) -> tuple[list[str], bool]:
    """(lines: the table in GB, fits or not, and if not what to shrink; whether it fits a card of `card` GB)."""
    found = estimate.memory(shape, profile, backend, **lengths)
    left, lines = card - found.peak / GB, [estimate.table(found).to_string(float_format=lambda size: f"{size:.2f}")]
    peak = f"peak {found.peak / GB:.2f} GB, in the {found.phase} phase, of {card:.4g} GB"
    if left >= MARGIN * card:
        return [*lines, f"{peak}: fits, {left:.2f} GB to spare ({left / card:.0%})"], True
    short = f"{-left:.2f} GB too much" if left < 0 else f"only {left:.2f} GB to spare, less than {MARGIN:.0%}"
    lines += [f"{peak}: does not fit, {short}. Shrink, in this order:"]
    for what, saved, peak_then in savings(shape, profile, backend, **lengths):
        enough = "; fits then" if peak_then <= (1 - MARGIN) * card else ""
        lines.append(f"  {what}: saves {saved:.2f} GB{enough}")
    return lines, False


def times(shape: Shape, profile: Profile, backend: str, lengths: dict, measure: bool) -> list[str]:
    """Lines on the seconds of a step and of the run, and where they come from."""
    from recr1_lite.policy.backend import machine

    here = machine().cuda or not estimate.on_cuda(profile, backend)
    if here and not measure:
        return ["no time: it needs a calibration (--calibrate)"]
    found = (
        estimate.calibrate(profile.dtype, profile.load_in_4bit)
        if here
        else data_sheet(profile.name, profile.dtype, profile.load_in_4bit)
    )
    if found is None:
        return ["no GPU here, and no data sheet for this profile: no time"]
    part = estimate.seconds(shape, profile, found, backend, **lengths)
    source = (
        f"calibrated on {found.device}"
        if found.measured
        else f"no GPU here: lower bound from the data sheet of {found.device}, not measured"
    )
    least = "" if found.measured else "at least "
    return [
        f"{least}{part['rollout']:.1f} s of rollouts + {part['update']:.1f} s of update = {part['step']:.1f} s a "
        f"step, {least}{part['run'] / 60:.1f} min for {profile.steps} steps",
        f"{source}: {found.tflops:.3g} TFLOP/s in matrix products"
        + (
            f", {found.layer_tflops:.3g} in a layer, {found.training_tflops:.3g} in training it, "
            f"{1e6 * found.seconds_per_layer:.0f} us to start it"
            if found.measured
            else ""
        )
        + f", {found.gbytes_per_s:.3g} GB/s",
    ]


def _backend(profile: Profile) -> str:
    """What a run would take: here, or on the card that the profile is for."""
    from recr1_lite.policy.backend import choose, machine

    return choose(profile).name if machine().cuda or not estimate.on_cuda(profile, "") else "unsloth"


def _card(profile: Profile, backend: str) -> float:
    """GB of the profile's card; else of this machine's, or of its memory."""
    from recr1_lite.policy.backend import machine

    if profile.name in CARDS:
        return CARDS[profile.name]
    found = machine()
    if found.cuda or estimate.on_cuda(profile, backend):
        return found.memory / GB
    import psutil

    return psutil.virtual_memory().total / GB


def savings(shape: Shape, profile: Profile, backend: str, **lengths) -> list[tuple[str, float, float]]:
    """What to shrink, in this order: (what, GB that it saves by itself, GB of the peak then); nothing that saves none."""
    before, rows = estimate.memory(shape, profile, backend, **lengths).peak, []
    for what, other, changed, changes in _smaller(shape, profile, backend, lengths):
        after = estimate.memory(other, changed, backend, **(lengths | changes)).peak
        rows.append((what, (before - after) / GB, after / GB))
    return [row for row in rows if row[1] >= 0.01]


def _smaller(shape: Shape, profile: Profile, backend: str, lengths: dict):
    """(sentence, shape, profile, changed lengths) of every step down that there is."""
    tokens = lengths.get("completion_tokens") or profile.max_completion_tokens
    if tokens > 1:
        yield f"completions of {tokens // 2} tokens, not {tokens}", shape, profile, {"completion_tokens": tokens // 2}
    rows = profile.prompts_per_step * profile.group_size
    micro, unit = profile.micro_batch or rows, profile.group_size if backend == "unsloth" else 1
    less = next((size for size in range(micro // 2, 0, -1) if rows % size == 0 and size % unit == 0), None)
    if less:
        yield f"micro_batch={less}, not {micro}", shape, replace(profile, micro_batch=less), {}
    batch = min(profile.rollout_batch or rows, rows)
    if backend != "stock" and batch >= 2 * profile.group_size:
        smaller = max(1, batch // profile.group_size // 2) * profile.group_size
        yield f"rollout_batch={smaller}, not {batch}", shape, replace(profile, rollout_batch=smaller), {}
    if profile.prompts_per_step > 1:
        half = profile.prompts_per_step // 2
        fewer = replace(profile, prompts_per_step=half, micro_batch=math.gcd(half * profile.group_size, micro))
        yield f"prompts_per_step={half}, not {profile.prompts_per_step}", shape, fewer, {}
    if profile.group_size > 3:
        group = profile.group_size // 2
        batch = profile.rollout_batch and profile.rollout_batch // profile.group_size * group
        fewer = replace(
            profile, group_size=group, micro_batch=max(1, micro // profile.group_size) * group, rollout_batch=batch
        )
        yield f"group_size={group}, not {profile.group_size}", shape, fewer, {}
    if not profile.gradient_checkpointing:
        yield "gradient_checkpointing=True", shape, replace(profile, gradient_checkpointing=True), {}
    if not profile.load_in_4bit and estimate.on_cuda(profile, backend):
        yield "load_in_4bit=True", shape, replace(profile, load_in_4bit=True), {}
    below = [other for other in SHAPES.values() if parameters(other) < parameters(shape)]
    if below:
        other = max(below, key=parameters)
        yield f"the model {other.name}", other, profile, {}
