"""Everything is a rewriter: the raw request, a prompted model and a trained adapter differ in nothing else."""

import copy
from collections.abc import Callable, Sequence

import torch

from recr1_lite.common import RecR1Error, whole
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rollouts import MergedCopy, generate_grouped, until_end
from recr1_lite.profiles import Profile
from recr1_lite.tasks.prompts import Prompt, Rewrite


class Rewriter:
    """A name and `complete`; a subclass writes `complete`, and `rewrite` gives the queries alone."""

    name = "rewriter"
    batch_size = 64

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        raise NotImplementedError

    def rewrite(self, requests: Sequence[str]) -> list[str]:
        return [answer.query for answer in self.complete(requests)]


class RawRewriter(Rewriter):
    """The request itself: the baseline that every rewriter has to beat."""

    name = "raw request"

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        return [Rewrite(whole(request), "", "ok", 0) for request in requests]


class RuleRewriter(Rewriter):
    """A plain function from a request to its rewrite ("": nothing to say) and the thought behind it, as a rewriter.

    Where it is silent, the request is sent.
    """

    def __init__(self, rule: Callable[[str], tuple[str, str]], prompt: Prompt, name: str = "rule"):
        self.rule, self.prompt, self.name = rule, prompt, name

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        pairs = [(request, self.rule(request)[0]) for request in requests]
        sent = self.prompt.sent
        return [Rewrite(sent(r, a), a, "ok", 0) if a else Rewrite(whole(r), "", "empty", 0) for r, a in pairs]


class ModelRewriter(Rewriter):
    """A model asked with a prompt: greedy by default, sampled when temperature > 0.

    `merged` (a MergedCopy of the policy) makes generation faster; without it one is made where the weights allow.
    """

    def __init__(
        self,
        policy: Policy,
        prompt: Prompt,
        name: str,
        max_new_tokens: int,
        batch_size: int = 50,
        temperature: float = 0.0,
        max_prompt_tokens: int = 512,
        merged: MergedCopy | None = None,
    ):
        self.policy, self.prompt, self.name, self.batch_size = policy, prompt, name, batch_size
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.max_prompt_tokens = max_prompt_tokens
        self.merged = merged or MergedCopy.of(policy.model)

    def at(self, temperature: float) -> "ModelRewriter":
        """The same rewriter at another temperature."""
        other = copy.copy(self)
        other.temperature = temperature
        return other

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        """One Rewrite per request, in order. Raises RecR1Error when a prompt is longer than `max_prompt_tokens`."""
        if not requests:
            return []
        tokenizer, prompt = self.policy.tokenizer, self.prompt
        texts = [prompt.render(tokenizer, request) for request in requests]
        ids, mask = encode(tokenizer, texts, self.max_prompt_tokens, self.policy.model.device)
        training = self.policy.model.training
        model = self.merged.refresh() if self.merged else self.policy.model.eval()
        sizes = self.max_new_tokens, self.policy.end_ids, tokenizer.pad_token_id, self.temperature
        tokens = generate_grouped(model, ids, mask, *sizes)
        self.policy.model.train(training)
        answers = []
        for request, row in zip(requests, tokens.tolist(), strict=True):
            said, ended = until_end(row, self.policy.end_ids)
            text = tokenizer.decode(said, skip_special_tokens=True)
            parsed = prompt.read(text, truncated=not ended)
            query = prompt.sent(request, parsed.query)
            answers.append(Rewrite(query, text, str(parsed.outcome), len(said)))
        return answers


def encode(tokenizer, texts: Sequence[str], limit: int, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask (B, L) of rendered prompts. Raises RecR1Error when one is longer than `limit` tokens."""
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    if batch.input_ids.size(1) > limit:
        raise RecR1Error(
            f"a prompt has {batch.input_ids.size(1)} tokens and the limit is {limit}; shorten the request or the "
            "few-shot examples, or raise max_prompt_tokens in the profile"
        )
    return batch.input_ids.to(device), batch.attention_mask.to(device)


def as_rewriter(
    policy: Policy,
    prompt: Prompt,
    profile: Profile,
    name: str,
    merged: MergedCopy | None = None,
    temperature: float = 0.0,
) -> ModelRewriter:
    """The policy as a rewriter with the profile's sizes; greedy at temperature 0."""
    sizes = profile.max_completion_tokens, profile.batch_size
    return ModelRewriter(policy, prompt, name, *sizes, temperature, profile.max_prompt_tokens, merged)
