"""The estimator: every count against the real thing of a tiny model and arithmetic by hand, and what is printed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import save_tiny
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from recr1_lite import estimate, estimate_report, shapes, speed
from recr1_lite import memory_counts as counts
from recr1_lite.common import RecR1Error
from recr1_lite.memory_counts import Pass
from recr1_lite.policy import backend, rollouts
from recr1_lite.profiles import PROFILES
from recr1_lite.shapes import SHAPES, Shape
from recr1_lite.speed import Calibration
from recr1_lite.train import grpo

SMALL, LARGE = SHAPES["smollm2-135m-instruct"], SHAPES["Qwen/Qwen2.5-3B-Instruct"]
TINY = Shape("tiny", 96, 3, 6, 2, 16, 256, 64, True, False)
CPU = Calibration("a machine", "float32", False, 0.2, 0.1, 0.1, 10.0, 1e-3)
RANK = 8


def tiny(shape: Shape = TINY, dtype=torch.float32, attention: str = "sdpa", lora: bool = True):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shapes.config_of(shape), dtype=dtype, attn_implementation=attention)
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear")).train() if lora else model


def profile(**changes):
    return replace(
        PROFILES["cpu"],
        **(dict(prompts_per_step=4, group_size=8, max_prompt_tokens=100, max_completion_tokens=16) | changes),
    )


@pytest.mark.parametrize(
    "name, billions, by_hand",
    [
        # vocabulary x hidden + layers x (matrices + biases + norms) + last norm
        ("smollm2-135m-instruct", 0.135, 49152 * 576 + 30 * (576 * (576 * 2 + 192 * 2 + 3 * 1536) + 2 * 576) + 576),
        (
            "Qwen/Qwen2.5-0.5B-Instruct",
            0.49,
            151936 * 896 + 24 * (896 * (896 * 2 + 128 * 2 + 3 * 4864) + (896 + 256) + 2 * 896) + 896,
        ),
        (
            "Qwen/Qwen2.5-1.5B-Instruct",
            1.54,
            151936 * 1536 + 28 * (1536 * (1536 * 2 + 256 * 2 + 3 * 8960) + (1536 + 512) + 2 * 1536) + 1536,
        ),
        (
            "Qwen/Qwen2.5-3B-Instruct",
            3.09,
            151936 * 2048 + 36 * (2048 * (2048 * 2 + 256 * 2 + 3 * 11008) + (2048 + 512) + 2 * 2048) + 2048,
        ),
    ],
)
def test_parameters_are_those_of_the_published_model(name, billions, by_hand):
    shape = SHAPES[name]
    with torch.device("meta"):
        real = AutoModelForCausalLM.from_config(shapes.config_of(shape))
    assert shapes.parameters(shape) == by_hand == sum(weight.numel() for weight in real.parameters())
    assert shapes.parameters(shape) / 1e9 == pytest.approx(billions, abs=0.005)
    assert counts.weights(shape, "bfloat16") == 2 * by_hand


@pytest.mark.parametrize("tied, bias", [(True, False), (False, True)])
def test_adapter_gradients_and_moments_are_those_of_a_real_step(tied, bias):
    shape = Shape("tiny", 96, 2, 6, 2, 16, 256, 64, tied, bias)
    model = tiny(shape)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimiser.step()
    moments = [value for state in optimiser.state.values() for value in state.values() if value.dim()]
    assert shapes.adapter_weights(shape, RANK) == sum(weight.numel() for weight in trained)
    assert counts.adapter(shape, RANK) == size(trained) == size(weight.grad for weight in trained)
    assert counts.MOMENTS * counts.adapter(shape, RANK) == size(moments)
    base = sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in trained)
    assert shapes.parameters(shape) == base


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_merged_copy_is_that_of_the_trainer():
    copy = rollouts.MergedCopy(tiny())
    assert counts.merged_copy(TINY, "float32") == size(plain.weight for _, plain in copy.pairs)


@pytest.mark.parametrize("name, dtype", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_cache_is_that_of_the_key_heads(name, dtype):
    cache = DynamicCache()
    tiny(dtype=dtype, lora=False)(input_ids=torch.zeros(5, 7, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = size(tensor for kept in cache.layers for tensor in (kept.keys, kept.values))
    assert counts.kv_cache(TINY, rows=5, tokens=7, dtype=name) == held
    assert held == 2 * 3 * 5 * 7 * 2 * 16 * dtype.itemsize  # 2 of the 6 heads have keys


def test_cache_grows_in_steps_with_unsloth():
    one = counts.kv_cache(TINY, 4, 1, "float16")
    assert counts.rollout_cache(TINY, 4, 10, 511, "float16", "unsloth") == (10 + 512 + 1 + 10) * one
    assert counts.rollout_cache(TINY, 4, 10, 512, "float16", "unsloth") == (10 + 1024 + 1 + 10) * one


def test_four_bit_is_what_bitsandbytes_holds():
    nn = pytest.importorskip("bitsandbytes.nn")
    for outputs, inputs in ((96, 192), (130, 70)):
        weight = nn.Params4bit(
            torch.randn(outputs, inputs), requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to("cpu")
        state = weight.quant_state
        held = (weight.data, state.absmax, state.code, state.offset.reshape(1), state.state2.absmax, state.state2.code)
        assert counts.nf4(outputs * inputs) == size(held)


def test_four_bit_by_hand():
    weights = LARGE.layers * 2048 * (2 * 2048 + 2 * 256 + 3 * 11008)
    packed = weights / 2 + weights / 64 + weights / 64 / 256 * 4 + 36 * 7 * (16 + 256 + 1) * 4
    rest = 2 * (shapes.parameters(LARGE) - weights)
    assert counts.weights(LARGE, "bfloat16", four_bit=True) == pytest.approx(packed + rest, abs=36 * 7 * 8)
    assert counts.weights(LARGE, "bfloat16", four_bit=True) < 0.35 * counts.weights(LARGE, "bfloat16")


@pytest.mark.parametrize(
    "dtype, autocast, copies", [("float32", False, 0), ("bfloat16", True, 2), ("bfloat16", False, 4)]
)
@pytest.mark.parametrize("grouped", [False, True])
def test_activations_are_what_autograd_keeps(dtype, autocast, copies, grouped):
    """Bytes of one layer: those of a model of 3 layers less those of 2."""
    rows, prompt, completion = 4, 10, 6
    found = [kept(layers, getattr(torch, dtype), autocast, grouped, rows, prompt, completion) for layers in (2, 3)]
    whole = prompt + completion
    passes = [Pass(2, prompt, prompt), Pass(rows, completion - 1, whole - 1)] if grouped else [Pass(rows, whole, whole)]
    estimated = sum(counts.layer(TINY, run, RANK, dtype, grouped, copies) for run in passes)
    one = counts.adapter(TINY, RANK) // TINY.layers
    assert estimated + (one // 2 if autocast else 0) == found[1] - found[0]  # autocast keeps a 16-bit adapter


def kept(layers: int, dtype, autocast: bool, grouped: bool, rows: int, prompt: int, completion: int) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass, parameters not counted."""
    shape = Shape("tiny", 96, layers, 6, 2, 16, 256, 64, True, False)
    model = tiny(shape, dtype, "grouped" if grouped else "sdpa")
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    ids = torch.randint(3, 64, (rows, prompt + completion))
    mask = torch.ones_like(ids)
    ids[:, :prompt] = ids[:2, :prompt].repeat_interleave(rows // 2, 0)
    mask[: rows // 2, 0] = 0  # one prompt is shorter
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype) if autocast else nullcontext(),
    ):
        if grouped:
            rollouts.completion_logps(model, ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:])
        else:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storages.values())


def test_checkpointing_keeps_a_state_a_layer():
    plain, again = (
        estimate.memory(SMALL, profile(gradient_checkpointing=on), "stock").parts["update"]["activations"]
        for on in (False, True)
    )
    states = 30 * (32 * 116) * 576 * 4
    assert again == states + plain // 30


def test_logits_by_hand():
    def of(backend_name, dtype="bfloat16", trainer="grpo"):
        return counts.logits(LARGE, 12, 512, dtype, backend_name, trainer)

    vocabulary, tokens = 151_936, 12 * 512
    assert of("stock") == (tokens + 12) * vocabulary * (3 * 4 + 2)  # 13 GB: three float32 and the head's own
    assert of("stock", "float32") == (tokens + 12) * vocabulary * 3 * 4
    assert of("unsloth") == tokens * vocabulary * 2 + 128 * vocabulary * (3 * 4 + 2)
    assert of("transformers") == (2**25 // vocabulary) * vocabulary * (3 * 4 + 2)  # in parts
    assert of("stock", trainer="sft") == 256 * vocabulary * (3 * 4 + 2)
    assert counts.logits(SMALL, 8, 16, "float32", "transformers", "grpo") == 8 * 16 * 49_152 * 3 * 4  # small: at once


def test_constants_of_other_modules_are_theirs():
    assert (counts.LARGE_LOGITS, counts.PART) == (rollouts.LARGE_LOGITS, rollouts.PART)
    for name, preset in grpo.PRESETS.items():
        both = estimate.PAPER if name == "paper" else {"kl": False, "top_p": False}
        assert {"kl": preset["beta"] > 0, "top_p": preset["top_p"] < 1} == both


def test_a_kl_term_adds_a_second_adapter_and_sft_none():
    plain, paper = (estimate.memory(SMALL, profile(preset=preset), "stock").parts for preset in ("modern", "paper"))
    assert "KL reference" not in plain["update"]
    assert paper["update"]["KL reference"] == paper["rollout"]["KL reference"] == counts.adapter(SMALL, 16)
    sft = estimate.memory(SMALL, profile(preset="paper"), "stock", trainer="sft").parts
    assert list(sft) == ["update"] and "KL reference" not in sft["update"]


def test_the_peak_is_the_larger_phase_with_all_its_parts():
    found = estimate.memory(SMALL, profile(), "transformers")
    sums = {name: sum(parts.values()) for name, parts in found.parts.items()}
    assert found.peak == sums[found.phase] == max(sums.values())
    long = estimate.memory(LARGE, replace(PROFILES["paper"], rollout_batch=None), "transformers")
    assert (found.phase, long.phase) == ("update", "rollout")
    assert found.tensors == sum(
        size for name, size in found.parts["update"].items() if name not in ("process", "fragmentation")
    )
    frame = estimate.table(found)
    assert frame.loc["sum"].max() == pytest.approx(found.peak / 1e9)
    assert frame.loc["gradients", "rollout"] == 0


def test_rollout_batch_is_the_rollouts_written_together_but_not_stocks():
    paper = PROFILES["paper"]
    assert estimate.memory(LARGE, paper) == estimate.memory(LARGE, replace(paper, rollout_batch=None), at_once=96)
    assert estimate.memory(LARGE, paper, "stock") == estimate.memory(LARGE, replace(paper, rollout_batch=None), "stock")


@pytest.mark.parametrize("name", ["t4", "gpu24", "paper"])
@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
def test_gpu_profiles_fit_their_cards_by_count(name, backend):
    found = PROFILES[name]
    peak = estimate.memory(shapes.shape_of(found.model), found, backend).peak
    assert peak < (1 - estimate_report.MARGIN) * estimate_report.CARDS[name] * 1e9
    assert found.micro_batch % found.group_size == 0  # unsloth takes whole groups


def test_the_kits_trainer_runs_a_prompt_once_for_its_group():
    ours, stock = (
        estimate.memory(SMALL, profile(), name).parts["update"]["activations"] for name in ("transformers", "stock")
    )
    assert ours < 0.3 * stock  # 4 x 100 + 32 x 15 tokens against 32 x 116
    assert "merged copy" in estimate.memory(SMALL, profile(), "transformers").parts["rollout"]
    assert "merged copy" not in estimate.memory(SMALL, profile(load_in_4bit=True), "transformers").parts["rollout"]


@pytest.mark.parametrize(
    "name, settings, measured",
    [
        # (prompts, group, longest prompt, --tokens) and peak resident GB of benchmarks/grpo_step.py --steps 1 with
        # MALLOC_MMAP_THRESHOLD_=65536, without which glibc keeps more than is used
        ("transformers", (2, 4, 98, 8), 2.22),
        ("stock", (2, 4, 98, 8), 2.53),
        ("transformers", (4, 8, 105, 16), 3.54),
        ("transformers", (4, 4, 105, 16), 2.92),
        ("stock", (4, 4, 105, 16), 4.12),
    ],
)
def test_counts_against_measured_peaks(name, settings, measured):
    prompts, group, prompt, completion = settings
    sizes = profile(prompts_per_step=prompts, group_size=group, max_completion_tokens=completion)
    found = estimate.memory(SMALL, sizes, name, prompt_tokens=prompt)
    estimated = (found.tensors + found.parts["update"]["process"]) / 1e9
    assert abs(estimate.error(estimated, measured)) < 0.05


def test_error_is_a_share_of_what_was_measured():
    assert estimate.error(11.0, 10.0) == pytest.approx(0.1) and estimate.error(5.0, 10.0) == -0.5


def test_seconds_by_hand():
    work = counts.Work(rows=8, at_once=8, micro=8, group=4, prompt=10, completion=6)
    matrices, pairs = shapes.linear_weights(TINY), 4 * 3 * 96
    # one operation a second, and everything else for nothing
    fast = CPU._replace(layer_tflops=1e-12, training_tflops=1e-12, gbytes_per_s=1e30, seconds_per_layer=0.0)
    first = 2 * (2 * 10) * matrices + pairs * (2 * 10) * 10
    each = 2 * 8 * matrices + pairs * 8 * 13 + 2 * 8 * 64 * 96
    assert speed.rollout_seconds(TINY, work, fast, True, True, RANK) == pytest.approx(first + 6 * each)
    run, lora = Pass(8, 16, 16), shapes.adapter_weights(TINY, RANK)
    ahead = 2 * 128 * (matrices + lora) + pairs * 128 * 16
    back = 2 * 128 * (matrices + 2 * lora) + 2 * pairs * 128 * 16
    head = 2 * 2 * 48 * 64 * 96
    for again in (False, True):
        assert speed.update_seconds(TINY, [run], 48, 0, fast, RANK, again) == pytest.approx(
            ahead * (1 + again) + back + head
        )


def test_the_slowest_of_three_bounds_a_decoding_step():
    work = counts.Work(8, 8, 8, 4, 10, 100)

    def of(**changes):
        free = CPU._replace(layer_tflops=1e30, gbytes_per_s=1e30, seconds_per_layer=0.0)
        return speed.rollout_seconds(TINY, work, free._replace(**changes), True, True, RANK)

    assert of(seconds_per_layer=0.01) == pytest.approx(100 * 3 * 0.01)
    read = counts.weights(TINY, "float32") + counts.kv_cache(TINY, 8, 60, "float32")
    assert of(gbytes_per_s=1.0) == pytest.approx(100 * read / 1e9)
    both = of(seconds_per_layer=0.01, layer_tflops=1e-8)
    operations = 100 * (speed.decoder_operations(TINY, Pass(8, 1, 60), 0) + speed.head_operations(TINY, 8)) / 1e4
    first = speed.decoder_operations(TINY, Pass(2, 10, 10), 0) / 1e4
    assert both == pytest.approx(first + max(3.0, operations))
    assert of(seconds_per_layer=0.01, layer_tflops=1e-8, device="CPU") == pytest.approx(first + 3.0 + operations)
    both = of(seconds_per_layer=0.01, gbytes_per_s=1.0)
    assert both == pytest.approx(max(3.0, 100 * read / 1e9))  # the larger, not the sum


def test_a_step_is_rollout_and_update_and_a_run_is_all_steps():
    part = estimate.seconds(SMALL, profile(steps=7), CPU, "transformers")
    assert part["step"] == part["rollout"] + part["update"] and part["run"] == pytest.approx(7 * part["step"])
    stock = estimate.seconds(SMALL, profile(steps=7), CPU, "stock")
    assert stock["update"] > 2 * part["update"]
    assert set(estimate.seconds(SMALL, profile(), CPU, "stock", trainer="sft")) == {"rollout", "update", "step"}
    half = estimate.seconds(SMALL, profile(), CPU, "transformers", at_once=16)
    assert half["rollout"] > part["rollout"]  # two rounds of decoding, each reading all weights
    assert estimate.memory(SMALL, profile(), "transformers", at_once=16).parts["rollout"]["key-value cache"] < (
        0.51 * estimate.memory(SMALL, profile(), "transformers").parts["rollout"]["key-value cache"]
    )


def test_calibration_is_of_this_machine(monkeypatch, capsys):
    monkeypatch.setattr(speed, "MEASURE", 0.02)
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    before = torch.random.get_rng_state()
    found = estimate.calibrate()
    assert "calibrating on CPU" in capsys.readouterr().err
    assert found.measured and found.dtype == "float32" and "CPU" in found.device
    assert all(1e-4 < rate < 100 for rate in (found.tflops, found.layer_tflops, found.training_tflops))
    assert 0.1 < found.gbytes_per_s < 2000 and 0 <= found.seconds_per_layer < 1
    assert torch.equal(before, torch.random.get_rng_state())  # a calibration changes no run after it


def test_calibration_goes_through_the_4bit_layer(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(speed, "MEASURE", 0.02)
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    found = estimate.calibrate(four_bit=True, progress=False)
    assert found.four_bit and 1e-5 < found.training_tflops < 100


def arguments(**changes):
    return SimpleNamespace(
        **(
            dict(
                profile="t4",
                model=None,
                prompt_tokens=256,
                completion_tokens=None,
                group=None,
                backend=None,
                memory=None,
                calibrate=True,
            )
            | changes
        )
    )


def test_without_a_gpu_a_card_has_a_lower_bound_that_says_so(monkeypatch, capsys):
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    monkeypatch.setattr(estimate_report.estimate, "calibrate", lambda *_, **__: pytest.fail("nothing to calibrate"))
    assert estimate_report.run(arguments()) == 0
    said = capsys.readouterr().out
    assert "no GPU here: lower bound from the data sheet of NVIDIA T4, not measured" in said
    assert "of 15 GB: fits" in said and "at least" in said and "key-value cache" in said


def test_what_does_not_fit_says_what_to_shrink_first(monkeypatch, capsys):
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    assert estimate_report.run(arguments(profile="paper", memory=6.0, backend="stock")) == 1
    said = capsys.readouterr().out
    places = [
        said.index(word)
        for word in ("does not fit", "completions of 256", "group_size=6", "the model Qwen/Qwen2.5-1.5B-Instruct")
    ]
    assert places == sorted(places)
    assert "micro_batch=" not in said, "the rollouts are the larger phase, so it would save nothing"
    assert estimate_report.run(arguments(profile="paper", memory=6.0, backend="transformers")) == 1
    assert "micro_batch=6, not 12: saves" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["unsloth", "transformers", "stock"])
def test_every_saving_is_the_difference_it_makes(name):
    start = replace(PROFILES["paper"], load_in_4bit=False, gradient_checkpointing=False)
    before = estimate.memory(LARGE, start, name).peak / 1e9
    rows = {what.split("=")[0]: (saved, after) for what, saved, after in estimate_report.savings(LARGE, start, name)}
    assert all(saved == pytest.approx(before - after) for saved, after in rows.values())
    packed = estimate.memory(LARGE, replace(start, load_in_4bit=True), name).peak / 1e9
    assert rows["load_in_4bit"][1] == pytest.approx(packed)
    again = estimate.memory(LARGE, replace(start, gradient_checkpointing=True), name).peak / 1e9
    assert rows["gradient_checkpointing"][1] == pytest.approx(again)


@pytest.mark.parametrize("name", ["unsloth", "transformers"])
def test_every_step_down_can_be_trained(name, tmp_path):
    """Sizes that TRL, and with unsloth whole groups, would refuse are no advice."""
    for start in (PROFILES["paper"], PROFILES["gpu24"], PROFILES["cpu"], replace(PROFILES["t4"], micro_batch=8)):
        for what, _, changed, _ in estimate_report._smaller(LARGE, start, name, {}):
            if name == "transformers" or start.micro_batch:
                grpo.configure(replace(changed, dtype="float32"), tmp_path, 0, name)


def test_a_cpu_run_is_calibrated_here(monkeypatch, capsys):
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    monkeypatch.setattr(estimate_report.estimate, "calibrate", lambda *_, **__: CPU)
    assert estimate_report.run(arguments(profile="cpu", memory=64.0)) == 0
    said = capsys.readouterr().out
    assert "calibrated on a machine" in said and "at least" not in said and "transformers:" in said
    estimate_report.run(arguments(profile="cpu", memory=64.0, calibrate=False))
    assert "no time" in capsys.readouterr().out


def test_group_keeps_whole_groups_in_a_backward_pass():
    changed = estimate_report.with_group(replace(PROFILES["paper"], micro_batch=24), 8)
    assert (changed.group_size, changed.micro_batch) == (8, 16)
    assert estimate_report.with_group(PROFILES["cpu"], 4).micro_batch is None


def test_a_folder_is_a_shape(tmp_path):
    folder = save_tiny(tmp_path / "model")
    shape = shapes.shape_of(str(folder))
    real = AutoModelForCausalLM.from_pretrained(folder)
    assert shapes.parameters(shape) == sum(weight.numel() for weight in real.parameters())
    assert shapes.shape_of("smollm2-135m-instruct") is SMALL


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "name one of smollm2-135m-instruct"),
        ("{", "does not describe a model"),
        ('{"model_type": "qwen2"}', "does not describe a model"),
        (json.dumps({"model_type": "mamba"}), "of kind 'mamba'"),
        ("[]", "does not describe a model"),
    ],
)
def test_what_is_no_shape_says_what_to_give(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RecR1Error, match=message):
        shapes.shape_of(str(tmp_path))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: estimate.memory(SMALL, profile(), "jax"), "no backend 'jax'"),
        (lambda: estimate.memory(SMALL, profile(), "stock", trainer="dpo"), "trainer 'dpo'"),
        (lambda: estimate.memory(SMALL, profile(), "stock", prompt_tokens=0), "give 1 or more"),
        (lambda: estimate_report.run(arguments(memory=0.0)), "--memory 0.0 GB"),
        (lambda: estimate_report.run(arguments(group=1)), "--group 1"),
    ],
)
def test_wrong_sizes_are_refused_in_a_sentence(call, message):
    with pytest.raises(RecR1Error, match=message):
        call()
