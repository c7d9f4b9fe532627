"""What a GRPO step needs: every count against the real thing of a tiny model, and what is printed."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.cache_utils import DynamicCache

from recr1_lite.__main__ import main
from recr1_lite.policy import backend, rollouts
from recr1_lite.profiles import PROFILES
from recr1_lite.train import grpo, memory
from recr1_lite.train.loop import Run
from recr1_lite.train.memory import SIZES, config_of, training_memory

SMALL, LARGE = config_of("smollm2-135m-instruct"), config_of("Qwen/Qwen2.5-3B-Instruct")
RANK = 8


def tiny(layers: int = 3, kind=LlamaConfig, **changes):
    sizes = dict(zip(SIZES, (96, 256, layers, 6, 2, 64)))
    return kind(**sizes, **({"tie_word_embeddings": True} | changes))


def model_of(config, dtype=torch.float32, attention: str = "sdpa", lora: bool = True):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear")).train() if lora else model


def profile(**changes):
    sizes = dict(prompts_per_step=4, group_size=8, max_prompt_tokens=100, max_completion_tokens=16)
    return replace(PROFILES["cpu"], **(sizes | changes))


def update(name: str, config=None, **changes) -> dict[str, int]:
    return training_memory(profile(**changes), name, config).parts["update"]


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name, billions", zip(memory.PUBLISHED, (0.135, 0.49, 1.54, 3.09)))
def test_parameters_are_those_of_the_published_model(name, billions):
    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert memory.parameters(config) == sum(weight.numel() for weight in model.parameters())
    assert memory.parameters(config) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("kind, tied", [(LlamaConfig, True), (Qwen2Config, False)])
def test_parameters_gradients_and_moments_are_those_of_a_real_step(kind, tied, tmp_path):
    tiny(kind=kind, tie_word_embeddings=tied).save_pretrained(tmp_path)
    config = config_of(str(tmp_path))  # a folder is counted
    model = model_of(config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimiser.step()
    moments = [value for state in optimiser.state.values() for value in state.values() if value.dim()]
    counted = update("transformers", config, lora_rank=RANK)
    assert counted["adapter"] == size(trained) and counted["gradients"] == size(weight.grad for weight in trained)
    assert counted["optimiser"] == size(moments)
    assert counted["weights"] == size(model.parameters()) - size(trained)
    assert counted["merged copy"] == size(plain.weight for _, plain in rollouts.MergedCopy(model).pairs)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_cache_is_that_of_the_key_heads(name):
    dtype, cache = getattr(torch, name), DynamicCache()
    model_of(tiny(), dtype, lora=False)(torch.zeros(32, 116, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = size(tensor for kept in cache.layers for tensor in (kept.keys, kept.values))
    counted = training_memory(profile(dtype=name), "transformers", tiny()).parts["rollout"]["key-value cache"]
    assert counted == held + held // (2 * 3)  # and one layer's keys once more, while they grow
    token = held // 116  # unsloth's grows by 512 tokens
    for new, room in ((511, 512), (512, 1024)):
        longer = training_memory(profile(dtype=name, max_completion_tokens=new), "unsloth", tiny()).parts["rollout"]
        assert longer["key-value cache"] == (100 + room + 1 + 100) * token


def test_four_bits_are_what_bitsandbytes_holds():
    nn = pytest.importorskip("bitsandbytes.nn")
    for outputs, inputs in ((96, 192), (130, 70)):
        weight = torch.randn(outputs, inputs)
        weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
        state = weight.quant_state
        held = (weight.data, state.absmax, state.code, state.offset.reshape(1), state.state2.absmax, state.state2.code)
        assert memory.nf4(outputs * inputs) == size(held)
    packed = memory.linear_weights(LARGE) * (1 / 2 + 1 / 64 + 4 / 64 / 256) + 36 * 7 * 273 * 4
    rest = 2 * (memory.parameters(LARGE) - memory.linear_weights(LARGE))
    assert memory.weights(LARGE, "bfloat16", four_bit=True) == pytest.approx(packed + rest, abs=36 * 7 * 8)


# the kit's own attention is for float32 on a CPU
@pytest.mark.parametrize("dtype, grouped", [("float32", False), ("float32", True), ("bfloat16", False)])
def test_activations_are_what_autograd_keeps(dtype, grouped):
    """Bytes of one layer: those of a model of 3 layers less those of 2."""
    runs = [(2, 10, 10), (4, 5, 15)] if grouped else [(4, 16, 16)]
    name, sizes = "transformers" if grouped else "stock", profile(dtype=dtype, lora_rank=RANK)
    counted = sum(memory.layer(tiny(), sizes, name, *run) for run in runs)
    adapter = update("stock", tiny(), dtype=dtype, lora_rank=RANK)["adapter"] // 3
    two, three = (kept(layers, getattr(torch, dtype), grouped) for layers in (2, 3))
    assert counted + (adapter // 2 if dtype == "bfloat16" else 0) == three - two  # autocast keeps a 16-bit adapter


def kept(layers: int, dtype, grouped: bool, rows: int = 4, prompt: int = 10, completion: int = 6) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass, parameters not counted."""
    model = model_of(tiny(layers), dtype, "grouped" if grouped else "sdpa")
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    ids = torch.randint(3, 64, (rows, prompt + completion))
    mask = torch.ones_like(ids)
    ids[:, :prompt] = ids[:2, :prompt].repeat_interleave(rows // 2, 0)
    mask[: rows // 2, 0] = 0  # one prompt is shorter
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        if grouped:
            rollouts.completion_logps(model, ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:])
        else:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storages.values())


def test_logits_and_checkpoints_by_hand():
    vocabulary, tokens = 151_936, 12 * 512
    for name, dtype, counted in (
        ("stock", "bfloat16", (tokens + 12) * vocabulary * (3 * 4 + 2)),  # 13 GB: three float32 and the head's own
        ("stock", "float32", (tokens + 12) * vocabulary * 3 * 4),
        ("unsloth", "bfloat16", tokens * vocabulary * 2 + 128 * vocabulary * (3 * 4 + 2)),
        ("transformers", "bfloat16", (2**25 // vocabulary) * vocabulary * (3 * 4 + 2)),  # in parts
    ):
        assert memory.logits(vocabulary, dtype, name, 12, 512) == counted
    assert memory.logits(49_152, "float32", "transformers", 8, 16) == 8 * 16 * 49_152 * 3 * 4  # small: at once
    plain, again = (update("stock", gradient_checkpointing=on)["activations"] for on in (False, True))
    assert again == 30 * (32 * 116) * 576 * 4 + plain // 30  # one state of each layer


def test_the_peak_is_the_larger_phase_with_all_its_parts():
    needed, paper = training_memory(profile(), "transformers"), PROFILES["paper"]
    assert "KL reference" in training_memory(paper).parts["update"] and "KL reference" not in needed.parts["update"]
    sums = {name: sum(parts.values()) for name, parts in needed.parts.items()}
    assert needed.peak == sums[needed.phase] == max(sums.values()) and needed.phase == "update"
    assert needed.table().loc["sum"].max() == pytest.approx(needed.peak / 1e9)
    assert needed.table().loc["gradients", "rollout"] == 0
    whole = replace(paper, rollout_batch=None)
    assert training_memory(whole, "transformers").phase == "rollout"
    part, full = (training_memory(one).parts["rollout"]["key-value cache"] for one in (paper, whole))
    assert part * 4 == full
    assert training_memory(paper, "stock") == training_memory(whole, "stock")  # it writes a whole step at once
    for name, trainer in product(("t4", "gpu24", "paper"), ("unsloth", "transformers")):
        peak = training_memory(PROFILES[name], trainer).peak / memory.GB
        assert peak < (1 - memory.MARGIN) * memory.CARDS[name], (name, trainer)


# the peak resident GB of benchmarks/grpo_step.py --steps 1 with MALLOC_MMAP_THRESHOLD_=65536, without which glibc
# keeps more than is used
@pytest.mark.parametrize(
    "name, prompts, group, longest, tokens, measured",
    [
        ("transformers", 2, 4, 98, 8, 2.22),
        ("stock", 2, 4, 98, 8, 2.53),
        ("transformers", 4, 8, 105, 16, 3.54),
        ("transformers", 4, 4, 105, 16, 2.92),
        ("stock", 4, 4, 105, 16, 4.12),
    ],
)
def test_counts_against_measured_peaks(name, prompts, group, longest, tokens, measured):
    sizes = dict(prompts_per_step=prompts, group_size=group, max_prompt_tokens=longest, max_completion_tokens=tokens)
    parts = update(name, **sizes)
    assert (sum(parts.values()) - parts["fragmentation"]) / 1e9 == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", ["unsloth", "transformers"])
def test_every_step_down_can_be_trained(name, tmp_path):
    """Sizes that TRL, and with unsloth whole groups, would refuse are no advice."""
    for start in (PROFILES["paper"], PROFILES["gpu24"], PROFILES["cpu"], replace(PROFILES["t4"], micro_batch=8)):
        for what, changed in memory.smaller(start, name):
            field, _, value = what.partition(",")[0].partition("=")
            assert str(getattr(changed, field)) == value != str(getattr(start, field))
            if name == "transformers" or start.micro_batch:
                grpo.configure(replace(changed, dtype="float32"), Run(tmp_path), name)
    changed = memory.with_group(replace(PROFILES["paper"], micro_batch=24), 8)
    assert (changed.group_size, changed.micro_batch) == (8, 16)
    assert memory.with_group(replace(PROFILES["cpu"], micro_batch=None), 4).micro_batch is None


@pytest.fixture
def said(monkeypatch, capsys):
    """Words after `estimate` -> its status and all that it prints, on a machine without a GPU."""
    monkeypatch.setattr(backend, "machine", lambda: backend.Machine(False))
    return lambda *words: (main(["estimate", *words]), "".join(capsys.readouterr()))


def test_the_command(said):
    code, text = said("--profile", "t4", "--prompt-tokens", "256")
    assert code == 0 and "of 15 GB: fits" in text and "key-value cache" in text and "unsloth: 8 prompts of 256" in text
    code, text = said("--profile", "paper", "--memory", "6", "--backend", "stock")
    words = ("does not fit", "max_completion_tokens=256", "group_size=6", "model=Qwen/Qwen2.5-1.5B-Instruct")
    places = [text.index(word) for word in words]
    assert code == 1 and places == sorted(places)
    assert "micro_batch=" not in text, "the rollouts are the larger phase, so it would save nothing"
    code, text = said("--profile", "paper", "--memory", "6", "--backend", "transformers")
    then = replace(PROFILES["paper"], micro_batch=6)
    saved = (training_memory(PROFILES["paper"], "transformers").peak - training_memory(then, "transformers").peak) / 1e9
    assert f"micro_batch=6, not 12: saves {saved:.2f} GB" in text
    code, text = said("--profile", "cpu", "--memory", "64", "--group", "4")
    assert code == 0 and "transformers: 12 prompts of 512 tokens x 4 rollouts" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (("--model", "{folder}"), "not known"),
        (("--model", "{folder}/broken"), "not known"),
        (("--model", "{folder}/mamba"), "of kind 'mamba' is not counted"),
        (("--prompt-tokens", "0"), "is out of range; give 1 to"),
        (("--memory", "0"), "--memory 0.0 GB"),
        (("--group", "1"), "--group 1"),
    ],
)
def test_wrong_sizes_are_refused_in_a_sentence(said, tmp_path, words, message):
    for name, content in (("broken", "{"), ("mamba", json.dumps({"model_type": "mamba"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    code, text = said("--profile", "t4", *(word.replace("{folder}", str(tmp_path)) for word in words))
    assert code == 2 and message in text and len(text.strip().splitlines()) == 1
