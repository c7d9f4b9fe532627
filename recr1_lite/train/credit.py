"""Credit word by word: what a reward function could say of a rollout's parts, told to the tokens that earned it.

GRPO gives all tokens of a rollout one advantage, its reward less the mean of its group. The retriever is cheap, so it
can also be asked for every beginning of a rollout, cut between two words. A token's advantage is then the reward that
is still to come where its word begins, less the mean of its group at that position (0 where a rollout has ended): what
came before a token is not its doing. In expectation the gradient is that of plain GRPO, because the part that is left
out is a constant to the token's own choice (Sutton & Barto, 2nd ed., section 13.4); only its variance is smaller.
"""

from collections.abc import Callable, Sequence

import torch

from recr1_lite.train.rewards import Scorer, reward

Credit = Callable[[Sequence[str], torch.Tensor, torch.Tensor], torch.Tensor]


def word_starts(tokenizer, row: Sequence[int]) -> list[str]:
    """For each token of a rollout the text before the word that it belongs to, and last the whole text."""
    texts = [tokenizer.decode(row[:end], skip_special_tokens=True) for end in range(len(row) + 1)]
    starts: list[str] = []
    for before, after in zip(texts, texts[1:]):
        inside = before[-1:].isalnum() and after[len(before) :][:1].isalnum()
        starts.append(starts[-1] if inside else before)
    return [*starts, texts[-1]]


def still_to_come(values: torch.Tensor, mask: torch.Tensor, group: int) -> torch.Tensor:
    """Advantages (B, T) from values (B, T + 1): the reward of each text of `word_starts`, the whole one's last.

    mask (B, T): 1 where a rollout has a token. Rows of one group stand together.
    """
    to_come = (values[:, -1:] - values[:, :-1]) * mask
    means = to_come.view(-1, group, mask.size(1)).mean(1).repeat_interleave(group, 0)
    return (to_come - means) * mask


def word_credit(scorer: Scorer, recipe: str, tokenizer, group: int) -> Credit:
    """Advantages (B, T) of rollouts: of their example ids, completion ids and mask (B, T), padded on the right.

    Divided by the standard deviation of the batch's rewards, as in the preset `modern`.
    """

    def credit(example_ids: Sequence[str], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = [row[:size] for row, size in zip(ids.tolist(), mask.sum(1).tolist())]
        texts = [word_starts(tokenizer, row) for row in rows]
        pairs = dict.fromkeys((example, text) for example, some in zip(example_ids, texts) for text in some)
        scored = scorer.score([example for example, _ in pairs], [text for _, text in pairs])
        paid = {pair: reward(recipe, row) for pair, row in zip(pairs, scored)}
        width = mask.size(1) + 1
        padded = [[*some, *some[-1:] * (width - len(some))] for some in texts]
        values = torch.tensor(
            [[paid[example, text] for text in some] for example, some in zip(example_ids, padded)], device=mask.device
        )
        return still_to_come(values, mask, group) / (values[:, -1].std() + 1e-4)

    return credit
