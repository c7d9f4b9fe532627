"""Loading, saving and merging a policy, on a tiny random model."""

import json
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import (
    PROMPT,
    differences,
    examples,
    left_padded,
    perturb,
    requests,
    save_tiny,
    tiny_policy,
    tiny_profile,
    toy_retriever,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recr1_lite.common import RecR1Error
from recr1_lite.deploy.serve import local_server
from recr1_lite.policy import models
from recr1_lite.policy.backend import Backend
from recr1_lite.policy.models import Policy, load_policy, save_adapter, save_merged, scale_adapter, token_logps
from recr1_lite.policy.rewriters import EndpointRewriter, ModelRewriter
from recr1_lite.policy.rollouts import MergedCopy, generate_grouped
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train.grpo import train
from recr1_lite.train.loop import Run
from recr1_lite.train.rewards import Scorer


def pairs(policy: Policy) -> list[tuple[str, str]]:
    ends = ["w3 w4 <|im_end|>", "w110", "w7 w8 w9 w10 w11 w12", "w1 <|im_end|>"]
    return [(PROMPT.render(policy.tokenizer, request), end) for request, end in zip(requests(4), ends)]


def lora(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in policy.model.named_parameters() if "lora_" in name}


def same(one: Policy, other: Policy) -> bool:
    """Whether their adapters hold the same values."""
    return all(torch.equal(weight, lora(other)[name]) for name, weight in lora(one).items())


def cannot_be_loaded(message: str, profile, **options) -> None:
    """It is refused in one sentence, which matches."""
    with pytest.raises(RecR1Error, match=message) as caught:
        load_policy(profile, **options)
    assert "\n" not in str(caught.value)


def test_a_fresh_policy(tiny_folder):
    profile = tiny_profile(tiny_folder)
    policy, bare = load_policy(profile), load_policy(profile, trainable=False)
    assert policy.backend == "transformers" and policy.name == str(tiny_folder)
    assert len(lora(policy)) == 2 * 7 * 2, "A and B for 7 linear layers in 2 blocks, none for the head"
    trainable = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert trainable == set(lora(policy)) and not policy.model.training
    assert all((weight == 0).all() == ("lora_B" in name) for name, weight in lora(policy).items())
    assert not isinstance(bare.model, PeftModel)
    assert torch.allclose(token_logps(policy, pairs(policy)), token_logps(bare, pairs(bare)), atol=1e-6)
    one, again, other = (load_policy(profile, seed) for seed in (3, 3, 4))
    assert same(one, again)
    assert not any(torch.equal(lora(one)[name], lora(other)[name]) for name in lora(one) if "lora_A" in name)


def test_pad_is_not_the_end_token(tmp_path):
    """Many tokenizers pad with their end token; then a masked end is never learned."""
    tokenizer = load_policy(tiny_profile(renamed(save_tiny(tmp_path / "model"), pad_token="<|im_end|>"))).tokenizer
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 3
    assert tokenizer.padding_side == "left"
    with pytest.raises(RecR1Error, match="no special token to pad with"):
        lone = dict(pad_token_id=3, eos_token_id=3, all_special_tokens=["x"], all_special_ids=[3])
        models._ready(types.SimpleNamespace(tokenizer=types.SimpleNamespace(**lone), end_ids=[3]))


def renamed(folder: Path, **tokens: str) -> Path:
    """The folder with other special tokens in its tokenizer's settings."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tokens))
    return folder


def test_every_end_token_ends_an_answer_and_stays_in_a_merged_model(tmp_path):
    """The template closes a turn with one, the generation settings name another, the tokenizer a third."""
    folder, (ids, mask) = save_tiny(tmp_path / "model"), left_padded()
    said = generate_grouped(tiny_policy(folder).model, ids, mask, 12, [3], 0, temperature=0)
    often = next(token for token, _ in Counter(said.flatten().tolist()).most_common() if token > 3)
    ends = [3, 2, often, 61]
    GenerationConfig(eos_token_id=[often, 61], pad_token_id=0).save_pretrained(folder)
    policy = tiny_policy(renamed(folder, eos_token="<|im_start|>"))
    assert policy.end_ids == ends, "the template's first: it is the one to teach"
    ours = generate_grouped(policy.model, ids, mask, 12, policy.end_ids, 0, temperature=0)
    plain = policy.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert torch.equal(ours, plain[:, ids.size(1) :]) and (ours == often).any()
    answers = ModelRewriter(policy, Prompt("json", "find {request}"), "tiny", 12).complete(requests())
    assert all((answer.outcome == "truncated") == (answer.tokens == 12) for answer in answers)
    assert any(answer.outcome == "no_answer" for answer in answers), "one of them ended"
    merged = load_policy(tiny_profile(save_merged(policy, tmp_path / "merged")), trainable=False)
    assert set(merged.model.generation_config.eos_token_id) == set(ends) and merged.end_ids == ends
    with local_server(merged) as url:
        asker = EndpointRewriter(PROMPT, "tiny", url, max_tokens=12)
        reasons = {asker.chat(PROMPT.messages(request)).truncated for request in requests()}
    assert False in reasons, "one of them ended"


def test_token_logps_are_those_of_the_completion_alone(tiny_folder):
    policy = tiny_policy(tiny_folder)
    logps = token_logps(policy, pairs(policy))
    assert logps.shape == (4, 6)
    for row, (prompt, end) in enumerate(pairs(policy)):
        ids = policy.tokenizer(f"{prompt}{end}", return_tensors="pt", add_special_tokens=False).input_ids
        length = len(end.split())
        plain = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1], -1)
        expected = plain[torch.arange(ids.size(1) - 1), ids[0, 1:]][-length:]
        assert (logps[row, :length] - expected).abs().max() < 1e-5
        assert (logps[row, length:] == 0).all()


def test_save_and_load_an_adapter(tiny_folder, tmp_path, monkeypatch):
    profile, policy = tiny_profile(tiny_folder), tiny_policy(tiny_folder)
    policy.name = "smollm2-135m-instruct"
    folder = save_adapter(policy, tmp_path / "runs" / "adapter")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = (folder / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == policy.name and str(tiny_folder) not in config
    for trainable in (True, False):
        loaded = load_policy(profile, seed=9, adapter=folder, trainable=trainable)
        assert same(policy, loaded)
        assert all(weight.requires_grad == trainable for weight in lora(loaded).values())
    perturb(policy, 0.3, seed=8)
    save_adapter(policy, folder)  # in the place of the one before

    def full_disk(work, **_):
        (Path(work) / "adapter_config.json").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RecR1Error, match="cannot be written .No space left"):
        patch.setattr(policy.model, "save_pretrained", full_disk)
        save_adapter(policy, folder)
    assert same(policy, load_policy(profile, adapter=folder)), "a failed save leaves what was there"
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"], "nothing temporary stays"


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_a_scaled_adapter_lies_between_the_untrained_model_and_its_own(tiny_folder, tmp_path, factor):
    ids = torch.tensor([[5, 6, 7]])
    whole, scaled = tiny_policy(tiny_folder), tiny_policy(tiny_folder)
    scale_adapter(scaled, factor)
    again = load_policy(tiny_profile(tiny_folder), adapter=save_adapter(scaled, tmp_path / "adapter"), trainable=False)
    with torch.no_grad():
        name, module = next((n, m) for n, m in whole.model.named_modules() if hasattr(m, "lora_B"))
        delta = module.get_delta_weight("default")
        assert torch.allclose(dict(scaled.model.named_modules())[name].get_delta_weight("default"), factor * delta)
        assert torch.allclose(scaled.model(ids).logits, again.model(ids).logits, atol=1e-6)
        merged = MergedCopy.of(scaled.model).refresh()
        assert torch.allclose(merged(ids).logits, scaled.model(ids).logits, atol=1e-5)
        with whole.model.disable_adapter():
            assert torch.allclose(whole.model(ids).logits, scaled.model(ids).logits, atol=1e-6) == (factor == 0)


# 16-bit weights round more
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.3)])
def test_merged_adapter_and_reloaded_model_say_the_same(tiny_folder, tmp_path, network, monkeypatch, dtype, tolerance):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    profile, policy = tiny_profile(tiny_folder, dtype=dtype), tiny_policy(tiny_folder, scale=0.3, dtype=dtype)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    reloaded, merged = differences(policy, profile, pairs(policy), tmp_path)
    assert reloaded == 0 and merged < tolerance
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.named_parameters())
    folder, untrained = tmp_path / "merged", load_policy(profile, trainable=False)
    assert not (folder / "adapter_config.json").exists() and (folder / "tokenizer.json").exists()
    assert (token_logps(untrained, pairs(untrained)) - token_logps(policy, pairs(policy))).abs().max() > 0.1
    loaded = load_policy(replace(profile, model=str(folder)), trainable=False)
    copy = load_policy(replace(profile, model=str(save_merged(loaded, tmp_path / "copy"))), trainable=False)
    assert torch.equal(token_logps(copy, pairs(copy)), token_logps(loaded, pairs(loaded))), "it has no adapter"
    assert network == []


@pytest.mark.parametrize(
    "model, message",
    [
        ("smollm3", "there is no model 'smollm3'; name one of smollm2-135m-instruct"),
        ("all-minilm-l6-v2", "is an encoder for dense retrieval and writes nothing"),
        ("nobody/nothing", "the model 'nobody/nothing' cannot be loaded"),
        ("/no/such/folder", "the model '/no/such/folder' cannot be loaded"),
    ],
)
def test_an_unknown_model(network, monkeypatch, model, message):
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    cannot_be_loaded(message, tiny_profile(model))


DAMAGE = [("model.safetensors", b"\x00\x01"), ("model.safetensors", b""), ("tokenizer.json", b"{")]


@pytest.mark.parametrize("file, content", [*DAMAGE, ("config.json", b"{"), ("config.json", b'{"model_type": "lama"}')])
def test_a_damaged_model(tmp_path, network, file, content):
    folder = save_tiny(tmp_path / "model")
    (folder / file).write_bytes(content)
    cannot_be_loaded("cannot be loaded", tiny_profile(folder))
    assert network == []


def test_adapters_that_do_not_fit(tiny_folder, tmp_path):
    profile, folder = tiny_profile(tiny_folder), save_adapter(tiny_policy(tiny_folder), tmp_path / "adapter")
    wide = tiny_profile(save_tiny(tmp_path / "wide", hidden_size=64))
    cannot_be_loaded("there is no adapter in .*nowhere", profile, adapter=tmp_path / "nowhere")
    cannot_be_loaded("the adapter .* for the model .* cannot be loaded .*size mismatch", wide, adapter=folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\x00\x01")
    cannot_be_loaded("the adapter .* cannot be loaded", profile, adapter=folder)


def test_four_bits_on_a_cpu(tmp_path):
    """NF4 weights, a LoRA adapter in training on them: forward, backward, one whole step of GRPO."""
    folder = save_tiny(tmp_path / "model", hidden_size=64, intermediate_size=128)  # NF4 comes in blocks of 64
    profile = tiny_profile(folder, load_in_4bit=True, steps=1, learning_rate=1e-6)
    policy = load_policy(profile)
    assert policy.model.is_loaded_in_4bit
    packed = policy.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert packed.dtype == torch.uint8 and packed.numel() == 128 * 64 // 2

    # a float32 model with the weights that the 4 bits stand for has the same gradients, after generating too
    exact = load_policy(tiny_profile(folder))
    modules = zip(policy.model.named_modules(), exact.model.named_modules(), strict=True)
    for (name, packed), (_, plain) in modules:
        if name.endswith("base_layer"):
            plain.weight.data = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    ids, mask = left_padded(2)
    rollouts, gradients = [], []
    for each in (policy, exact):
        perturb(each, 0.1)
        rollouts.append(generate_grouped(each.model.eval(), ids, mask, 5, [3], 0, temperature=0))
        labels = ids.masked_fill(mask == 0, -100)
        each.model.train()(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in lora(each).values()]))
    assert torch.equal(*rollouts)
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()

    before = {name: weight.detach().clone() for name, weight in lora(policy).items()}
    scorer, run = Scorer(toy_retriever(), examples(4), PROMPT, 10), Run(tmp_path / "run", progress=False)
    done = train(policy, examples(4), scorer, profile, run, lr_scheduler_type="constant", warmup_steps=0)
    assert len(done.curve) == 1 and not policy.model.training
    # TRL would round the adapter to bfloat16, in which a small learning rate moves next to nothing
    moved = [(weight - before[name]).abs() for name, weight in lora(policy).items()]
    assert all(change.dtype == torch.float32 and 0 < change.max() < 2e-6 for change in moved)
    with pytest.raises(RecR1Error, match="4-bit model cannot be merged"):
        save_merged(policy, tmp_path / "merged")


def test_four_bits_without_bitsandbytes(tiny_folder, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    cannot_be_loaded("pip install bitsandbytes", tiny_profile(tiny_folder, load_in_4bit=True))


def test_unsloth_loads_what_the_profile_says(tiny_folder, monkeypatch, tmp_path, capsys):
    """What stands in for unsloth makes ordinary models; asked of it is what its source documents."""
    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(name, **options):
            asked.update(options, name=name)
            return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

        @staticmethod
        def get_peft_model(model, r, lora_alpha, target_modules, **options):
            asked["lora"] = options | {"r": r, "lora_alpha": lora_alpha}
            return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules))

        @staticmethod
        def for_inference(model):
            asked["inference"] = True
            return model.eval()

    def on_unsloth(*chosen):
        monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
        monkeypatch.setattr(models, "choose", lambda profile, wanted: Backend("unsloth", *chosen))

    on_unsloth("float16", True, ("no bfloat16",))
    profile = tiny_profile(tiny_folder, lora_rank=8, dtype="bfloat16", load_in_4bit=True, gradient_checkpointing=True)
    policy = load_policy(profile, seed=4)
    assert (policy.backend, policy.name, asked["name"]) == ("unsloth", str(tiny_folder), str(tiny_folder))
    assert asked["dtype"] == torch.float16 and asked["load_in_4bit"] and asked["fast_inference"]
    assert asked["max_seq_length"] == profile.max_prompt_tokens + profile.max_completion_tokens
    assert asked["max_lora_rank"] == 8 and "inference" not in asked
    lora_options = dict(r=8, lora_alpha=16, lora_dropout=0, random_state=4, use_gradient_checkpointing="unsloth")
    assert asked["lora"] == lora_options
    assert "no bfloat16" in capsys.readouterr().err
    load_policy(profile, seed=4)
    assert "no bfloat16" not in capsys.readouterr().err, "a reason is said once"

    monkeypatch.undo()
    trained = perturb(load_policy(tiny_profile(tiny_folder, lora_rank=8)))
    adapter = save_adapter(trained, tmp_path / "adapter")
    on_unsloth("float32", False, ())
    again = load_policy(tiny_profile(tiny_folder, lora_rank=2), adapter=adapter, trainable=False)
    assert asked["inference"] and asked["lora"]["r"] == 8, "the rank is the saved adapter's"
    assert asked["lora"]["use_gradient_checkpointing"] is False
    assert (token_logps(again, pairs(again)) - token_logps(trained, pairs(trained))).abs().max() < 1e-5
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, adapter / "adapter_model.safetensors")
    cannot_be_loaded(
        "does not fit the model .1 weights missing, 0 too many", tiny_profile(tiny_folder), adapter=adapter
    )
