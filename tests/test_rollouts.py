"""Grouped rollouts and scores against plain transformers, on left-padded prompts of unequal length."""

from __future__ import annotations

import os

import pytest
import torch
from scipy.stats import chisquare
from tiny import left_padded, perturb, save_tiny, tiny_model, tiny_policy, tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.policy import rollouts
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rollouts import MergedCopy, completion_logps, generate_grouped, sample

END, PAD = 3, 0


@pytest.fixture
def policy(tiny_folder):
    return tiny_policy(tiny_folder)


def completions(rows: int, length: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random right-padded completions of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 120, (rows, length), generator=generator)
    ends = torch.randint(1, length + 1, (rows, 1), generator=generator)
    ends[0] = length
    mask = (torch.arange(length) < ends).long()
    return ids.masked_fill(mask == 0, PAD), mask


def plain_logps(model, prompt_ids, prompt_mask, ids, mask, temperature):
    """What a textbook forward pass over prompt + completion gives."""
    both = torch.cat([prompt_ids, ids], 1), torch.cat([prompt_mask, mask], 1)
    logits = model(input_ids=both[0], attention_mask=both[1]).logits
    logps = torch.log_softmax(logits[:, prompt_ids.size(1) - 1 : -1] / temperature, -1)
    return logps.gather(-1, ids[..., None]).squeeze(-1), -(logps.exp() * logps).sum(-1)


def gradient(model, loss) -> torch.Tensor:
    """The gradient of all trainable weights as one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])


@pytest.mark.parametrize("seed", range(3))
def test_greedy_rollouts_equal_generate(policy, seed):
    ids, mask = left_padded(seed=seed)
    assert len(set(mask.sum(1).tolist())) > 3, "prompts of unequal length, or the test shows nothing"
    ours = generate_grouped(policy.model, ids, mask, 8, [END], PAD, temperature=0)
    policy.model.get_base_model().set_attn_implementation("sdpa")
    how = dict(max_new_tokens=8, do_sample=False, eos_token_id=END, pad_token_id=PAD)
    plain = policy.model.generate(input_ids=ids, attention_mask=mask, **how)[:, ids.size(1) :]
    assert (plain == END).any() and not (plain == END).any(1).all(), "some end, some do not"
    assert torch.equal(ours, plain)


def test_rollouts_stop_when_all_have_ended(policy):
    torch.manual_seed(0)
    tokens = generate_grouped(policy.model, *left_padded(2), 200, [END], PAD)
    lengths = [row.index(END) + 1 for row in tokens.tolist()]
    assert tokens.size(1) == max(lengths) < 200
    assert min(lengths) < max(lengths)
    assert all(set(row[length:]) <= {PAD} for row, length in zip(tokens.tolist(), lengths))


def test_sampled_rollouts_of_a_group_differ_and_have_the_likely_tokens(policy):
    torch.manual_seed(0)
    ids, mask = left_padded(1, repeat=4000)
    first = generate_grouped(policy.model, ids, mask, 1, [END], PAD, temperature=0.7)[:, 0]
    logits = policy.model(input_ids=ids[:1], attention_mask=mask[:1]).logits[0, -1]
    expected = torch.softmax(logits.detach() / 0.7, -1)
    likely = expected > 5 / 4000
    observed = torch.bincount(first, minlength=len(expected))[likely].double()
    expected = expected[likely].double()
    assert chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logps_and_their_gradient_through_the_shared_cache_equal_the_plain_forward(policy, temperature):
    prompts, (ids, mask) = left_padded(), completions(12)
    weights = torch.randn(12, 1, generator=torch.Generator().manual_seed(3)) * mask  # an advantage a row
    ours, entropies = completion_logps(policy.model, *prompts, ids, mask, temperature, entropy=True)
    our_gradient = gradient(policy.model, (ours * weights).sum())
    policy.model.get_base_model().set_attn_implementation("eager")
    plain, plain_entropies = plain_logps(policy.model, *prompts, ids, mask, temperature)
    assert ((ours - plain) * mask).abs().max() < 1e-5
    assert ((entropies - plain_entropies) * mask).abs().max() < 1e-4 and not entropies.requires_grad
    assert completion_logps(policy.model, *prompts, ids, mask)[1] is None
    plain_gradient = gradient(policy.model, (plain * weights).sum())
    assert plain_gradient.norm() > 1e-2
    assert (our_gradient - plain_gradient).norm() < 1e-4 * plain_gradient.norm()


def test_logps_of_one_token_and_of_prompts_with_needless_padding(policy):
    (prompt_ids, prompt_mask), (ids, mask) = left_padded(), completions(12, length=1)
    wide = torch.nn.functional.pad(prompt_ids, (3, 0)), torch.nn.functional.pad(prompt_mask, (3, 0))
    plain, _ = plain_logps(policy.model, prompt_ids, prompt_mask, ids, mask, 1.0)
    assert (completion_logps(policy.model, *wide, ids, mask)[0] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_logits_in_parts_are_the_same_logits(tmp_path, monkeypatch, kind, checkpointing):
    """Above LARGE_LOGITS the head runs on a few tokens at a time; values, entropies and gradients stay."""
    policy = perturb(load_policy(tiny_profile(save_tiny(tmp_path / kind, kind=kind))))
    prompts, (ids, mask) = left_padded(), completions(12)
    weights = torch.randn(12, 1, generator=torch.Generator().manual_seed(3)) * mask
    found = []
    for large, part in [(2**40, 1), (0, 3 * policy.model.config.vocab_size), (0, 1)]:
        monkeypatch.setattr(rollouts, "LARGE_LOGITS", large)
        monkeypatch.setattr(rollouts, "PART", part)
        monkeypatch.setattr(rollouts, "PREFIX_SAVES", large)  # in parts with the common prefix shared, whole without
        if checkpointing and not large:
            policy.model.train()
            policy.model.gradient_checkpointing_enable()
            policy.model.enable_input_require_grads()
        logps, entropies = completion_logps(policy.model, *prompts, ids, mask, 0.7, entropy=True)
        found.append((logps.detach() * mask, entropies * mask, gradient(policy.model, (logps * weights).sum())))
        assert not entropies.requires_grad
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one - two).norm() <= 1e-5 * one.norm()
    assert found[0][2].norm() > 1e-2


def test_logits_in_parts_leave_other_heads_alone(policy, monkeypatch):
    """A head with something after it (Gemma caps its logits) keeps its own forward pass."""
    monkeypatch.setattr(rollouts, "LARGE_LOGITS", 0)
    monkeypatch.setattr(rollouts, "_logps_in_parts", lambda *_: pytest.fail("the head was run by itself"))
    monkeypatch.setattr(policy.model.config, "model_type", "gemma2")
    assert completion_logps(policy.model, *left_padded(), *completions(12))[0].shape == (12, 5)


def test_unsloth_models_are_asked_in_their_own_way(policy, monkeypatch):
    """What stands in for unsloth is transformers' own generate and forward: the answers must be the same."""
    ids, mask = left_padded()
    ends, end_mask = completions(12)
    greedy = generate_grouped(policy.model, ids, mask, 8, [END], PAD, temperature=0)
    logps, _ = completion_logps(policy.model, ids, mask, ends, end_mask, 0.7)
    monkeypatch.setattr(policy.model, "for_inference", lambda: None, raising=False)
    monkeypatch.setenv("UNSLOTH_RETURN_HIDDEN_STATES", "1")
    assert MergedCopy.of(policy.model) is MergedCopy.of(policy.model.get_base_model()) is None
    assert torch.equal(generate_grouped(policy.model, ids, mask, 8, [END], PAD, temperature=0), greedy)
    assert os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] == "0", "else its forward gives no logits"
    sampled = generate_grouped(policy.model, ids, mask, 30, [END], PAD, temperature=1.0, top_p=0.9)
    ended = (sampled == END).cumsum(1) - (sampled == END).int() > 0
    assert ended.any() and (sampled[ended] == PAD).all()
    rows, entropies = completion_logps(policy.model, ids, mask, ends, end_mask, 0.7)
    assert ((rows - logps) * end_mask).abs().max() < 1e-5 and (rows[end_mask == 0] == 0).all() and entropies is None


def test_a_validation_leaves_unsloths_checkpointing_on(policy, monkeypatch):
    """Its generate switches checkpointing off; without it, the next backward pass would not fit."""
    model, asked = policy.model, []
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    plain = model.generate

    def generate(**inputs):
        for layer in layers:
            layer.gradient_checkpointing = False
        return plain(**inputs)

    others = dict(for_inference=None, for_training=lambda use_gradient_checkpointing: asked.append(1))
    for name, instead in dict(generate=generate, **others).items():
        monkeypatch.setattr(model, name, instead, raising=False)
    generate_grouped(model.eval(), *left_padded(), 3, [END], PAD)
    assert layers and asked == [1]
    generate_grouped(model.eval(), *left_padded(), 3, [END], PAD)
    assert asked == [1], "a model without checkpointing stays without"


def test_prompts_that_differ_only_in_their_mask_are_two_prompts(policy):
    """A tokenizer may pad with a token that prompts hold as well."""
    prompt_ids, prompt_mask = torch.tensor([[2, 7, 8], [2, 7, 8]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    ids, mask = torch.tensor([[9, 10], [9, 10]]), torch.ones(2, 2, dtype=torch.long)
    plain, _ = plain_logps(policy.model, prompt_ids, prompt_mask, ids, mask, 1.0)
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    assert (completion_logps(policy.model, prompt_ids, prompt_mask, ids, mask)[0] - plain).abs().max() < 1e-5


@pytest.mark.parametrize("heads", [1, 2, 4], ids=["one key head", "grouped", "one key head a query head"])
def test_grouped_attention_equals_stock(heads):
    model = tiny_model(num_key_value_heads=heads)
    ids, mask = left_padded()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = {}
    for name in ("grouped", "sdpa", "eager"):
        model.set_attn_implementation(name)
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
        longer = torch.cat([mask, torch.ones(len(ids), 2, dtype=torch.long)], 1)
        positions_after = positions[:, -1:] + torch.tensor([1, 2])
        given = dict(attention_mask=longer, past_key_values=out.past_key_values, position_ids=positions_after)
        more = model(input_ids=ids[:, -2:], **given)
        logits[name] = torch.cat([out.logits[mask.bool()], more.logits.flatten(0, 1)])
    assert all((logits["grouped"] - logits[other]).abs().max() < 1e-5 for other in ("sdpa", "eager"))


BEGIN = list(range(10, 30))
PROMPTS = {  # ids of the prompts, and what all of them begin with
    "unequal lengths": ([[*BEGIN, 40, 41, 42, 43, 44], [*BEGIN, 50], [*BEGIN, 60, 61, 62]], 20),
    "padding longer than the prefix": ([[5, *range(50, 80)], [5, 6, 7]], 1),
    "nothing in common": ([[7, *BEGIN], [8, *BEGIN, 9]], 0),
    "one begins another": ([[*BEGIN], [*BEGIN, 50, 51, 52, 53]], 19),
    "a single prompt": ([BEGIN], 0),
    "groups": ([[*BEGIN, 50], [*BEGIN, 40, 41], [*BEGIN, 50], [*BEGIN, 40, 41], [*BEGIN, 50]], 20),
}


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of those prompts, left-padded."""
    widest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (widest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in rows])


def with_prefix_pass(monkeypatch, model, prompts, saves: int):
    """(greedy rollouts, log-probabilities, entropies, gradient, shapes of what was run to score) when a prefix that
    saves that many tokens is shared."""
    monkeypatch.setattr(rollouts, "PREFIX_SAVES", saves)
    tokens = generate_grouped(model, *prompts, 8, [END], PAD, temperature=0)
    (ids, mask), shapes = completions(len(prompts[0])), []
    watch = model.get_input_embeddings().register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    logps, entropies = completion_logps(model, *prompts, ids, mask, 0.7, entropy=True)
    watch.remove()
    weights = torch.randn(len(ids), 1, generator=torch.Generator().manual_seed(3)) * mask
    return tokens, logps.detach() * mask, entropies * mask, gradient(model, (logps * weights).sum()), shapes


@pytest.mark.parametrize("name", PROMPTS)
def test_a_common_prefix_is_run_once_and_changes_nothing(policy, monkeypatch, name):
    rows, shared = PROMPTS[name]
    prompts, distinct = padded(rows), len(set(map(tuple, rows)))
    tokens, *plain, shapes = with_prefix_pass(monkeypatch, policy.model, prompts, 10**9)
    ours, *found, passes = with_prefix_pass(monkeypatch, policy.model, prompts, 1)
    width = prompts[0].size(1)
    assert shapes == [(distinct, width), (len(rows), 4)]
    assert passes == [(1, shared)] * (shared > 0) + [(distinct, width - shared), (len(rows), 4)]
    assert torch.equal(ours, tokens)
    assert all((one - two).abs().max() < 1e-5 * max(1, two.abs().max()) for one, two in zip(found, plain))
    assert plain[2].norm() > 1e-2


def test_a_prefix_that_saves_little_is_not_shared(policy, monkeypatch):
    for rows, saves in ((3, 40), (2, 20)):
        prompts = padded(PROMPTS["unequal lengths"][0][:rows])
        for limit, passes in ((saves, 3), (saves + 1, 2)):
            assert len(with_prefix_pass(monkeypatch, policy.model, prompts, limit)[-1]) == passes


def test_a_model_with_a_window_shares_no_prefix(tmp_path, monkeypatch):
    """Its window is of columns: padding in the middle would push tokens out of it, and nothing would fail."""
    window = dict(use_sliding_window=True, sliding_window=6, max_window_layers=0)
    model = tiny_policy(save_tiny(tmp_path / "model", kind="qwen2", **window)).model
    prompts, (ids, mask) = padded(PROMPTS["unequal lengths"][0]), completions(3)
    monkeypatch.setattr(rollouts, "PREFIX_SAVES", 1)
    plain, _ = plain_logps(model, *prompts, ids, mask, 1.0)
    assert ((completion_logps(model, *prompts, ids, mask)[0] - plain) * mask).abs().max() < 1e-5


def test_a_diverged_model_is_named(policy):
    ids, mask = left_padded(2)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RecR1Error, match="NaN.*lower learning rate"):
        generate_grouped(policy.model, ids, mask, 2, [END], PAD)


LOGITS = torch.tensor([2.0, -30.0, 1.0, 0.0, 1.5, -1.0])


def test_top_p_keeps_the_smallest_nucleus_and_its_proportions():
    probabilities = torch.softmax(LOGITS, -1)  # .47 .28 .17 .06 .02 in the order 0 4 2 3 5
    torch.manual_seed(0)
    drawn = sample(LOGITS.expand(20_000, -1), 1.0, top_p=0.6)
    assert set(drawn.tolist()) == {0, 4}
    share = (probabilities[0] / (probabilities[0] + probabilities[4])).item()
    assert abs((drawn == 0).double().mean().item() - share) < 0.015
    assert set(sample(LOGITS.expand(2000, -1), 1.0, top_p=0.01).tolist()) == {0}


def test_no_draw_picks_a_token_of_probability_zero(monkeypatch):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for draw, token in [(0.0, 3), (0.5, 1), (1 - 2**-24, 1)]:
        monkeypatch.setattr(torch, "rand", lambda *_, draw=draw, **__: torch.tensor([[draw]]))
        assert sample(logits).item() == token
        assert sample(logits, top_p=0.9).item() in (1, 3)


def test_merged_copy_follows_the_adapter_without_drift_and_leaves_the_base_alone(policy):
    ids, mask = left_padded()
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    state = torch.get_rng_state()  # a resumed run makes its copy at another moment than the uninterrupted one
    merged = MergedCopy(policy.model)
    first = {name: weight.clone() for name, weight in merged.refresh().named_parameters()}
    assert torch.equal(torch.get_rng_state(), state), "they must not part there"
    for seed in range(2, 40):
        perturb(policy, 0.3, seed)
        merged.refresh()
    expected = policy.model(input_ids=ids, attention_mask=mask).logits
    difference = merged.refresh()(input_ids=ids, attention_mask=mask).logits - expected
    assert difference[mask.bool()].abs().max() < 1e-4
    with policy.model.disable_adapter():
        assert (policy.model(input_ids=ids).logits - expected).abs().max() > 0.1, "the adapter does something"
    perturb(policy, 0.1, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.named_parameters())
    assert all(torch.equal(weight, first[name]) for name, weight in merged.refresh().named_parameters())


def test_merged_copy_shares_what_has_no_adapter(policy):
    merged = MergedCopy(policy.model).model
    base = dict(policy.model.get_base_model().named_parameters())
    weights = merged.named_parameters()
    own = [name for name, weight in weights if name not in base or weight.data_ptr() != base[name].data_ptr()]
    assert len(own) == 2 * 7 and all("proj" in name for name in own)
    assert merged.lm_head.weight is merged.get_input_embeddings().weight is base["model.embed_tokens.weight"]
    assert not any(weight.requires_grad for weight in merged.parameters())


def test_merged_copy_of_sixteen_bit_weights_and_of_biases(tmp_path):
    folder = save_tiny(tmp_path / "model", attention_bias=True)
    policy = tiny_policy(folder, dtype="bfloat16")
    ids, mask = left_padded(2)
    logits = MergedCopy(policy.model).refresh()(input_ids=ids, attention_mask=mask).logits
    assert logits.dtype == torch.bfloat16
    expected = policy.model(input_ids=ids, attention_mask=mask).logits
    assert (logits - expected)[mask.bool()].float().abs().mean() < 0.05
