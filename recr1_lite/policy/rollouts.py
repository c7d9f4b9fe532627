"""Run each prompt once for its whole group: rollouts and log-probabilities on a shared prompt cache.

A GRPO group is G completions of one prompt. Stock code runs the prompt G times to generate and G times more
to score. Here the prompt is run once, its key-value cache is copied to the G rows, and only the completions
run on it. What all prompts of a batch begin with (the system turn, few-shot examples) is run once for all of them.
Gradients flow through the cache, so the update is the same one (tests compare loss and gradients with stock TRL's).
"""

import copy
import os
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from recr1_lite.common import RecR1Error
from recr1_lite.policy.backend import is_unsloth, unsloth_generate, unsloth_logps

LARGE_LOGITS = 512 * 2**20  # bytes of float32 logits above which they are made in parts
PART = 2**25  # logits of one part
PREFIX_SAVES = 64  # prompt tokens that sharing their common prefix must save, or its own pass costs more
PLAIN_HEADS = {"llama", "qwen2", "qwen3", "mistral"}  # logits are head(states), nothing after it


def grouped_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Grouped-query attention that copies no key or value: query heads of one key head become query rows.

    Stock attention on a CPU repeats keys and values for every query head and rebuilds the mask in every layer, which
    costs as much as the matrix products. Shapes: query (B, H, T, D), key and value (B, K, L, D), out (B, T, H, D)."""
    rows, heads, length, width = query.shape
    keys = key.size(1)
    if keys == heads or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    grouped, mask = query.reshape(rows, keys, -1, width), attention_mask.repeat(1, 1, heads // keys, 1)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None


# the name by which load_policy asks for it; transformers keeps such functions in a table
AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", eager_mask)


def end_ids(model, tokenizer) -> list[int]:
    """Ids of all tokens that end an answer, the one that the chat template closes a turn with first.

    The others are the tokenizer's own, those of the model's generation settings, and the special ones of its config."""
    marks = tokenizer.added_tokens_decoder
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "answer"}]
    try:
        after = tokenizer.apply_chat_template(chat, tokenize=False).rpartition("answer")[2].lstrip()
    except Exception:  # no template, or one that refuses this chat in its own way
        after = ""
    closing = [(len(str(mark)), number) for number, mark in marks.items() if after.startswith(str(mark))]
    found = [max(closing)[1] if closing else None, tokenizer.eos_token_id]
    for settings, known in ((getattr(model, "generation_config", None), None), (model.config, marks)):
        given = getattr(settings, "eos_token_id", None)
        given = given if isinstance(given, (list, tuple)) else [given]
        found += [number for number in given if known is None or number in known]
    return [int(number) for number in dict.fromkeys(found) if number is not None]


def until_end(row: list[int], ends: Collection[int]) -> tuple[list[int], bool]:
    """A row of ids up to and with its first end token, and whether it has one: without, the token limit cut it."""
    at = next((place for place, token in enumerate(row) if token in ends), None)
    return (row, False) if at is None else (row[: at + 1], True)


def common_prefix(model, prompt_ids, prompt_mask) -> int:
    """How many of the tokens that all left-padded prompts (U, L) begin with to run once; every prompt keeps its last.
    0 where that saves little, and for a model with a sliding window, which would count the padding in the middle."""
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    length = min(len(os.path.commonprefix(rows)), *(len(row) - 1 for row in rows))
    windowed = getattr(model.config.get_text_config(), "sliding_window", None)
    return 0 if windowed or length * (len(rows) - 1) < PREFIX_SAVES else length


def shared_prefill(model, prompt_ids, prompt_mask, states=False) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    """Forward each distinct left-padded prompt of (B, L) once, and the tokens that all of them begin with only once.

    Returns the cache of all B rows, the mask (B, L) of its columns, the logits (U, 1, V) after the last token of each
    distinct prompt, or its hidden states (U, 1, H), and the row -> distinct prompt index (B,).
    The columns of a row are the common prefix, padding, the rest. `position_ids` come from the mask: the default
    0..L-1 would put every shorter prompt at the wrong positions, and nothing would fail."""
    distinct, inverse = torch.unique(prompt_ids.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)
    first = torch.zeros(len(distinct), dtype=torch.long, device=prompt_ids.device)
    first[inverse] = torch.arange(len(prompt_ids), device=prompt_ids.device)
    ids, mask = prompt_ids[first], prompt_mask[first]
    shared, cache = common_prefix(model, ids, mask), DynamicCache()
    given: dict[str, Any] = dict(past_key_values=cache, use_cache=True, logits_to_keep=1)
    if shared:
        _forward(model, states, input_ids=ids[:1, mask[0].bool()][:, :shared], **given)
        cache.batch_repeat_interleave(len(ids))
        mask = mask.roll(shared, 1)  # its ones go before the padding; the rest of a prompt stays where it is
    given |= dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, shared:])
    last = _forward(model, states, input_ids=ids[:, shared:], **given)
    cache.batch_select_indices(inverse)
    return cache, mask[inverse], last[:, -1:], inverse


def sample(logits, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """One token per row from softmax(logits / temperature), cut to its top_p nucleus; temperature 0: greedy.

    Inverse-CDF: one uniform number a row. (`torch.multinomial` draws one exponential for each of the 49,152
    words, a sixth of a CPU rollout.) Shapes (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True)
        probabilities[(probabilities.cumsum(-1) - probabilities) >= top_p] = 0
    cumulative = probabilities.cumsum(-1)
    # above 0 and up to 1, so that no token of probability 0 is ever drawn
    draw = 1 - torch.rand(len(logits), 1, device=logits.device)
    token = torch.searchsorted(cumulative, draw * cumulative[:, -1:])
    return (order.gather(-1, token) if top_p < 1 else token).squeeze(-1)


@torch.no_grad()
def generate_grouped(
    model, prompt_ids, prompt_mask, max_new_tokens: int, ends: Collection[int], pad_id: int, temperature=1.0, top_p=1.0
) -> torch.Tensor:
    """Completions (B, T) of left-padded prompts (B, L), identical rows sharing one prompt pass.

    After the first of the `ends` in a row come pad tokens; T is the longest completion's length. Raises RecR1Error
    where the logits are no numbers."""
    if is_unsloth(model):
        return unsloth_generate(model, prompt_ids, prompt_mask, max_new_tokens, ends, pad_id, temperature, top_p)
    stops = torch.tensor(list(ends), device=prompt_ids.device)
    with _autocast(model):
        cache, mask, last, inverse = shared_prefill(model, prompt_ids, prompt_mask)
        if last.isnan().any():
            advice = "take a lower learning rate or a dtype with more range, and go on from an earlier checkpoint"
            raise RecR1Error(f"the model's logits are no numbers (NaN): the training has diverged; {advice}")
        logits, position = last[inverse][:, -1], prompt_mask.sum(1, keepdim=True)
        finished = torch.zeros(len(prompt_ids), dtype=torch.bool, device=prompt_ids.device)
        tokens = []
        for step in range(max_new_tokens):
            token = sample(logits, temperature, top_p).masked_fill(finished, pad_id)
            tokens.append(token)
            finished = finished | torch.isin(token, stops)
            if finished.all() or step + 1 == max_new_tokens:
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            given = dict(input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=cache)
            logits = model(**given, use_cache=True).logits[:, -1]
            position = position + 1
        return torch.stack(tokens, dim=1)


def completion_logps(
    model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature: float = 1.0, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (B, T) of completion tokens under softmax(logits / temperature), with gradients,
    and the entropies (B, T) of those distributions, without, if asked for. Prompts (B, L) left-padded,
    completions right.

    A model in training with gradient checkpointing runs the prompt once a row, because a layer that is computed
    again cannot fill a shared cache twice."""
    if is_unsloth(model):
        return unsloth_logps(model, prompt_ids, prompt_mask, completion_ids, completion_mask, temperature), None
    start = int(prompt_mask.any(0).int().argmax())  # columns that are padding in every row
    given = model, prompt_ids[:, start:], prompt_mask[:, start:], completion_ids, completion_mask
    again = model.training and getattr(model, "is_gradient_checkpointing", False)
    large = completion_ids.numel() * model.config.vocab_size * 4 > LARGE_LOGITS
    states = large and model.config.model_type in PLAIN_HEADS
    out = (_every_prompt if again else _shared_prompts)(*given, states)
    if states:
        return _logps_in_parts(out, model.get_output_embeddings(), completion_ids, temperature, entropy)
    return _logps(out, completion_ids, temperature, entropy)


def _logps(logits, ids, temperature: float, entropy: bool):
    logits = logits / temperature
    with torch.no_grad():
        entropies = entropy_from_logits(logits) if entropy else None
    return selective_log_softmax(logits, ids), entropies


def _logps_in_parts(states, head, ids, temperature: float, entropy: bool):
    """The same from the last hidden states (B, T, H): logits of PART tokens at a time, and again in the backward
    pass, so that (B, T, V) never exists. Logits and softmax in float32."""

    def part(some, wanted):
        return _logps(head(some).float(), wanted, temperature, entropy)

    rows = max(1, PART // head.out_features)
    pieces = zip(states.flatten(0, 1).split(rows), ids.flatten().split(rows))
    parts = [checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in pieces]
    values, entropies = zip(*parts, strict=True)
    return torch.cat(values).view(ids.shape), torch.cat(entropies).view(ids.shape) if entropy else None


def _shared_prompts(model, prompt_ids, prompt_mask, completion_ids, completion_mask, states: bool):
    """Logits (B, T, V), or hidden states (B, T, H), that predict the completion tokens; each distinct prompt run
    once."""
    cache, mask, last, inverse = shared_prefill(model, prompt_ids, prompt_mask, states)
    if completion_ids.size(1) == 1:
        return last[inverse]
    inputs, mask = completion_ids[:, :-1], torch.cat([mask, completion_mask[:, :-1]], dim=1)
    positions = prompt_mask.sum(1, keepdim=True) + torch.arange(inputs.size(1), device=inputs.device)
    given: dict[str, Any] = dict(attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return torch.cat([last[inverse], _forward(model, states, input_ids=inputs, **given)], dim=1)


def _every_prompt(model, prompt_ids, prompt_mask, completion_ids, completion_mask, states: bool):
    """The same with whole rows and no cache."""
    ids, mask = torch.cat([prompt_ids, completion_ids], dim=1), torch.cat([prompt_mask, completion_mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given: dict[str, Any] = dict(attention_mask=mask, position_ids=positions, use_cache=False)
    return _forward(model, states, input_ids=ids, **given)[:, -completion_ids.size(1) - 1 : -1]


def _autocast(model):
    """Of a 16-bit model, so that its float32 adapter is multiplied in 16 bits too; nothing for float32."""
    half = isinstance(model, PeftModel) and model.dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(model.device.type, model.dtype) if half else nullcontext()


def _forward(model, states: bool, **inputs) -> torch.Tensor:
    """Logits or last hidden states: of the model, or of the decoder below its head."""
    if not states:
        return model(**inputs).logits
    inputs.pop("logits_to_keep", None)
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with _autocast(model):  # the trainer's own is around the whole model, not around its decoder
        return whole.model(**inputs).last_hidden_state


class MergedCopy:
    """The base model with the adapter folded into its weights, refreshed before each round of rollouts.

    It generates faster than base + adapter. It is rewritten from the untouched base each time, so no rounding error
    builds up (merging and un-merging in place would drift). Costs one copy of the adapted layers' weights."""

    def __init__(self, policy: PeftModel):
        base: Any = policy.get_base_model()
        memo: dict[int, Any] = {id(kept): kept for kept in (*base.parameters(), *base.buffers())}
        adapted: list[Any] = [module for module in base.modules() if isinstance(module, LoraLinear)]
        self.pairs = [(module, self._plain(module.base_layer)) for module in adapted]
        memo |= {id(module): plain for module, plain in self.pairs}
        self.model = copy.deepcopy(base, memo).eval()

    @staticmethod
    def _plain(own) -> torch.nn.Linear:
        # on the meta device: initialising real weights would draw random numbers, and a resumed run, which makes its
        # copy at another moment, would part from the uninterrupted one
        plain = torch.nn.Linear(own.in_features, own.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(torch.empty_like(own.weight), requires_grad=False)
        plain.bias = own.bias
        return plain

    @classmethod
    def of(cls, model) -> "MergedCopy | None":
        """A merged copy of a LoRA policy of transformers whose base weights are not quantised; else None."""
        if not isinstance(model, PeftModel) or getattr(model, "is_loaded_in_4bit", False) or is_unsloth(model):
            return None
        return cls(model)

    @torch.no_grad()
    def refresh(self) -> PreTrainedModel:
        """The plain model with the adapter's present weights folded in; valid until the adapter changes."""
        for lora, plain in self.pairs:
            (name,) = lora.active_adapters
            base, left, right = lora.base_layer.weight, lora.lora_B[name].weight, lora.lora_A[name].weight
            torch.addmm(base, left.to(base.dtype), right.to(base.dtype), alpha=lora.scaling[name], out=plain.weight)
        return self.model
