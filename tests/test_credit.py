"""Word-level credit: the same gradient in expectation, nothing for a word that no retriever sees."""

import itertools

import pandas as pd
import pytest
import torch
from tiny import tiny_profile, toy_retriever, toy_task

from recr1_lite.common import RecR1Error
from recr1_lite.policy.models import load_policy
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train import grpo
from recr1_lite.train.loop import Run
from recr1_lite.train.rewards import Scorer, still_to_come, word_credit, word_starts

WORDS, STEPS, GROUP = 3, 2, 2


def gradient(policy: torch.Tensor, advantages, group) -> torch.Tensor:
    """Of the sum over tokens of advantage x log-probability, times the probability of the group itself."""
    chance, loss = 1.0, torch.zeros(())
    for row, given in zip(group, advantages):
        for at, token in enumerate(row):
            state = policy[0, 0] if at == 0 else policy[1, row[0]]
            log = torch.log_softmax(state, -1)[token]
            chance, loss = chance * log.exp().item(), loss + given[at] * log
    return chance * torch.autograd.grad(loss, policy)[0]


def test_the_gradient_is_that_of_plain_grpo_in_expectation():
    """Summed over every possible group of a toy policy of two tokens, one of three each."""
    torch.manual_seed(0)
    policy, paid = torch.randn(2, WORDS, WORDS, requires_grad=True), torch.randn(1 + WORDS + WORDS**2)

    def value(row):  # of the empty text, of one word, of two
        return paid[0] if not row else paid[1 + row[0]] if len(row) == 1 else paid[1 + WORDS + WORDS * row[0] + row[1]]

    sums = {"plain": torch.zeros_like(policy), "words": torch.zeros_like(policy)}
    different = 0
    for group in itertools.product(itertools.product(range(WORDS), repeat=STEPS), repeat=GROUP):
        values = torch.tensor([[value(row[:end]) for end in range(STEPS + 1)] for row in group])
        by_word = still_to_come(values, torch.ones(GROUP, STEPS), GROUP)
        plain = (values[:, -1] - values[:, -1].mean())[:, None].expand(GROUP, STEPS)
        different += not torch.allclose(by_word, plain)
        sums["plain"] += gradient(policy, plain, group)
        sums["words"] += gradient(policy, by_word, group)
    assert different > 20 and sums["plain"].norm() > 0.01
    torch.testing.assert_close(sums["words"], sums["plain"], atol=1e-5, rtol=1e-4)


class Letters:
    """A tokenizer whose ids are pieces of text."""

    pieces = ["", " dre", "ss", " of", " red", " blue", "."]

    def decode(self, row, skip_special_tokens=True):
        return "".join(self.pieces[number] for number in row)


@pytest.mark.parametrize(
    ("row", "starts"),
    [
        ([4, 1, 2, 0], ["", " red", " red", " red dress", " red dress"]),
        ([1, 2, 6, 2], ["", "", " dress", " dress.", " dress.ss"]),
        ([], [""]),
    ],
)
def test_a_token_is_paid_from_the_start_of_its_word(row, starts):
    assert word_starts(Letters(), row) == starts


def test_a_word_that_no_index_holds_earns_nothing_itself():
    items = pd.DataFrame({"item_id": ["1", "2"], "title": ["a", "b"], "text": ["red dress", "blue coat of wool"]})
    examples = pd.DataFrame({"example_id": ["e"], "request": ["something"], "relevant": [{"1": 1.0}]})
    scorer = Scorer(BM25Retriever.build(items), examples, Prompt("compact", "{request}"), 10)
    ids = torch.tensor([[3, 1, 2, 0], [3, 5, 0, 0]])  # "of dress" and "of blue"
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = word_credit(scorer, "ndcg", Letters(), 2, ["e", "e"], ids, mask)
    assert found[0, 0] == found[0, 1] == found[0, 2] > 0  # "of" takes nothing from the word after it
    assert found[0, 3] == 0  # nothing is still to come: the end of the answer
    assert found[1, 1] == -found[0, 1]
    assert found[1, 3] == 0  # no token there


def test_a_run_with_credit_gives_each_token_its_own_advantage(tiny_folder, tmp_path, monkeypatch):
    seen, task = [], toy_task()
    compute = grpo.GroupedGRPOTrainer._compute_loss

    def watched(self, model, inputs):
        seen.append(inputs["advantages"])
        return compute(self, model, inputs)

    monkeypatch.setattr(grpo.GroupedGRPOTrainer, "_compute_loss", watched)
    scorer = Scorer(toy_retriever(), task.train, task.prompt, task.k_train)
    profile = tiny_profile(tiny_folder, preset="words", steps=3, group_size=8)
    done = grpo.train(load_policy(profile, 1), task.train, scorer, profile, Run(tmp_path / "run", progress=False))
    assert len(done.curve) == 3 and all(one.shape[:1] == (16,) and one.dim() == 2 for one in seen)
    assert any((one != one[:, :1]).any() for one in seen)
    with pytest.raises(RecR1Error, match="take the preset modern"):
        grpo.train(load_policy(profile), task.train, scorer, profile, Run(tmp_path / "no"), scale_rewards="group")
