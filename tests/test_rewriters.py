"""Rewriters: order, what is sent, tokens counted, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import PROMPT, requests, tiny_policy, tiny_profile

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rewriters import ModelRewriter, RawRewriter
from recr1_lite.policy.rollouts import MergedCopy
from recr1_lite.tasks.prompts import Outcome, Prompt, Rewrite


@pytest.fixture
def policy(tiny_folder):
    return tiny_policy(tiny_folder)


def tokens_alone(policy, prompt: Prompt, request: str, limit: int) -> list[int]:
    """What plain `generate` gives for this request by itself, up to and with the end token."""
    text = prompt.render(policy.tokenizer, request)
    ids = policy.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    whole = policy.model.generate(**ids, max_new_tokens=limit, do_sample=False, eos_token_id=3, pad_token_id=0)
    return whole[0, ids.input_ids.size(1) :].tolist()


def test_the_raw_request():
    assert RawRewriter().complete(["a b", ""]) == [Rewrite("a b", "", "ok", 0), Rewrite("", "", "ok", 0)]
    assert RawRewriter().rewrite(["a b"]) == ["a b"] and RawRewriter().name == "raw request"


def test_each_answer_is_the_one_to_its_request_alone(policy):
    """Batched, padded, with a request that comes twice: the order and every token are as for one at a time."""
    asked = requests(12) + requests(3)
    answers = ModelRewriter(policy, PROMPT, "tiny", 8).complete(asked)
    lengths = set()
    for request, answer in zip(asked, answers, strict=True):
        expected = tokens_alone(policy, PROMPT, request, 8)
        text = policy.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.completion.split() == text.split()
        assert answer.tokens == len(expected), "the end token counts, padding does not"
        lengths.add((answer.tokens, expected[-1] == 3))
    assert (8, False) in lengths and any(ended and length < 8 for length, ended in lengths)


def test_a_cut_answer_is_truncated_and_a_failed_one_sends_nothing_or_the_request(policy):
    prompt = Prompt(style="paper", instruction="find {request}")
    asked = requests(12)
    cut = ModelRewriter(policy, prompt, "cut", 8).complete(asked)
    outcomes = {answer.tokens: answer.outcome for answer in cut}
    assert {answer.outcome for answer in cut} == {Outcome.truncated, Outcome.no_answer}, outcomes
    assert all(answer.tokens == 8 for answer in cut if answer.outcome == Outcome.truncated)
    assert all(answer.query == "" for answer in cut)
    expand = ModelRewriter(policy, replace(prompt, mode="expand"), "e", 8)
    assert expand.rewrite(asked) == asked


def test_too_long_a_prompt_names_the_numbers(policy):
    long = ModelRewriter(policy, PROMPT, "tiny", 4, max_prompt_tokens=20)
    assert long.complete([]) == []
    assert len(long.complete(["w1 " * 10])) == 1
    with pytest.raises(RecR1Error, match="a prompt has 36 tokens and the limit is 20"):
        long.complete(["w1", "w1 " * 30])


def test_merged_bare_and_plain_models_answer_alike(policy, tiny_folder):
    asked = requests(6)
    merged = MergedCopy(policy.model)
    fast = ModelRewriter(policy, PROMPT, "fast", 6, merged=merged)
    assert fast.merged is merged and fast.name == "fast"
    slow = ModelRewriter(policy, PROMPT, "slow", 6)
    slow.merged = None
    policy.model.train()
    assert fast.complete(asked) == slow.complete(asked)
    assert policy.model.training, "asked in the middle of a training, it leaves the mode as it was"
    bare = ModelRewriter(load_policy(tiny_profile(tiny_folder), trainable=False), PROMPT, "bare", 6)
    with policy.model.disable_adapter():
        assert bare.complete(asked) == slow.complete(asked)


def test_sampling_differs_and_follows_the_seed(policy):
    sampler = ModelRewriter(policy, PROMPT, "sampler", 6, temperature=1.0)
    torch.manual_seed(0)
    one, two = sampler.complete(requests(6)), sampler.complete(requests(6))
    torch.manual_seed(0)
    assert sampler.complete(requests(6)) == one != two
