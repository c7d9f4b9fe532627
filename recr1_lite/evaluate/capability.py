"""What training on one task did to everything else: four small sets, perplexity, KL to the base, real benchmarks.

lm-evaluation-harness asks and scores (`harness.py`); here are the intervals, the paired differences before and
after, and forward KL, the measure that arXiv 2509.04259 ("RL's Razor") found forgetting to follow.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import harness
from recr1_lite.evaluate.evaluation import show
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rewriters import encode
from recr1_lite.policy.rollouts import MergedCopy, generate_grouped
from recr1_lite.search.metrics import Interval, mean_interval, paired_interval
from recr1_lite.tasks.prompts import chat_text

CHANCE = {"recr1_knowledge": 0.25, "recr1_reading": 0.25, "mmlu": 0.25}
KL_TOKENS = 32  # of each continuation of the base


@dataclass
class CapabilityResult:
    """Scores of one model. scores: one row per item (task, metric, item, value); samples: what the harness logged."""

    name: str
    suite: str
    scores: pd.DataFrame
    samples: dict[str, list[dict]]
    seconds: dict[str, float]
    seed: int = 0
    limit: int | None = None
    notes: list[str] = field(default_factory=list)

    def values(self, task: str, metric: str) -> pd.Series:
        """Value of each item, indexed by item. "all" is every item with this metric."""
        rows = self.scores[self.scores["metric"] == metric]
        rows = rows if task == "all" else rows[rows["task"] == task]
        if rows.empty:
            raise RecR1Error(f"{self.name} has no {metric} of {task!r}; it has {self.measures}")
        return pd.Series(rows["value"].to_numpy(float), rows["item"])

    @property
    def measures(self) -> list[tuple[str, str]]:
        """(task, metric) pairs, with ("all", metric) first where several tasks share the metric "accuracy"."""
        pairs = list(dict.fromkeys(zip(self.scores["task"], self.scores["metric"], strict=True)))
        several = sum(metric == "accuracy" for _, metric in pairs) > 1
        return [("all", "accuracy")] * several + pairs

    @property
    def summary(self) -> dict[tuple[str, str], Interval]:
        return {pair: mean_interval(self.values(*pair), seed=self.seed) for pair in self.measures}

    def table(self) -> pd.DataFrame:
        """One row per measure: task, metric, n, mean with its 95% interval, chance where there is one, seconds."""
        lines = []
        for (task, metric), mean in self.summary.items():
            chance = CHANCE.get(task.split("_")[0] if self.suite == "mmlu" else task, "")
            seconds = round(self.seconds.get(task, sum(self.seconds.values())), 1)
            line = {"task": task, "metric": metric, "n": mean.n, "mean [95%]": show(mean)}
            lines.append(line | {"chance": chance, "seconds": seconds})
        return pd.DataFrame(lines)

    def ledger_rows(self) -> list[dict]:
        """The "capability" rows; "all" has none, for it is the mean of the items that the others have."""
        about, rows = {"kind": "capability", "method": self.name, "suite": self.suite}, []
        for (task, metric), mean in self.summary.items():
            if task != "all":
                seconds = self.seconds.get(task, sum(self.seconds.values()))
                row = about | {"task": task, "metric": metric, **mean._asdict(), "seconds": seconds}
                rows.append(row | {"seed": self.seed, "limit": self.limit})
        return rows


def check(
    policy: Policy,
    suite: str = "offline",
    limit: int | None = None,
    name: str = "untrained",
    seed: int = 0,
    ledger=None,
    base=None,
    batch_size: int = 50,
    **of_suite,
) -> CapabilityResult:
    """Ask a model everything in a suite: `offline`, `ifeval`, `gsm8k`, `mmlu` or `humaneval`.

    policy: a Policy with or without an adapter. limit: items per task (mmlu: per subject), drawn with `seed`, the same
    ones for every model. base: the untrained model for the KL, where the policy is no adapter on it. of_suite:
    data_dir, max_gen_toks, execute_code of `harness.load_tasks`. Appends a "capability" row per measure to the ledger.
    Raises RecR1Error: see `harness.load_tasks`.
    """
    if limit is not None and limit < 1:
        raise RecR1Error(f"a limit of {limit} items is no check; give 1 or more, or None for all")
    merged = MergedCopy.of(policy.model)
    model = merged.refresh() if merged else policy.model
    samples: dict[str, list[dict]] = {}
    seconds: dict[str, float] = {}
    rows, notes = [], []
    for task in harness.load_tasks(suite, **of_suite):
        start = time.perf_counter()
        samples |= harness.run_tasks(model, policy.tokenizer, [task], limit, seed, batch_size)
        rows += _scores(task.task_name, samples[task.task_name])
        seconds[task.task_name] = time.perf_counter() - start
    if suite == "humaneval" and not of_suite.get("execute_code"):
        notes.append("the generated programs were not executed; ask for it by name (execute_code=True, --execute-code)")
    if suite == "offline" and (base is not None or merged or hasattr(policy.model, "disable_adapter")):
        start = time.perf_counter()
        values = forward_kl(policy, neutral_prompts(policy.tokenizer)[:limit], base, seed)
        rows += [{"task": "kl", "metric": "nats", "item": f"prompt-{n:02}", "value": v} for n, v in enumerate(values)]
        seconds["kl"] = time.perf_counter() - start
    result = CapabilityResult(name, suite, pd.DataFrame(rows), samples, seconds, seed, limit, notes)
    for row in result.ledger_rows() if ledger is not None else ():
        ledger.append(row)
    return result


def compare(after: CapabilityResult, before: CapabilityResult, ledger=None) -> dict[tuple[str, str], Interval]:
    """(task, metric) -> mean of after minus before on the same items, with its paired 95% interval.

    KL has no before and is left out. Appends a "capability_compare" row each to the ledger. Raises RecR1Error where the
    two were not asked the same items.
    """
    differences = {}
    for task, metric in after.measures:
        if task == "kl":
            continue
        a, b = after.values(task, metric), before.values(task, metric)
        if len(a) != len(b) or set(a.index) != set(b.index):
            who = f"{after.name} and {before.name} were not asked the same items of {task} ({len(a)} and {len(b)})"
            raise RecR1Error(f"{who}; check both with one limit and one seed")
        differences[task, metric] = paired_interval(a, b[a.index], seed=after.seed)
        if ledger is not None and task != "all":
            row: dict = {"kind": "capability_compare", "a": after.name, "b": before.name, "suite": after.suite}
            row |= {"task": task, "metric": metric, "n": len(a), "seed": after.seed}
            ledger.append(row | {"difference": differences[task, metric]._asdict()})
    return differences


def capability_table(results: Sequence[CapabilityResult], ledger=None) -> pd.DataFrame:
    """One row per measure, one column per model, and the paired difference of each to the first."""
    first, *others = results
    rows: dict[tuple[str, str], dict] = {}
    for (task, metric), mean in first.summary.items():
        if task != "kl":
            name = task.removeprefix("recr1_")
            rows[task, metric] = {"task": name, "metric": metric, "n": mean.n, first.name: show(mean)}
    drift: dict = {"task": "kl", "metric": "nats"}  # a distance from the untrained model, which has none
    for other in others:
        summary, differences = other.summary, compare(other, first, ledger)
        for pair, row in rows.items():
            row |= {other.name: show(summary[pair]), f"{other.name} - {first.name}": show(differences[pair], sign=True)}
        if kl := summary.get(("kl", "nats")):
            drift |= {"n": kl.n, other.name: show(kl)}
    if "n" in drift:
        rows["kl", "nats"] = drift
    return pd.DataFrame(list(rows.values())).fillna("")


def neutral_prompts(tokenizer) -> list[str]:
    """Forty everyday prompts of this kit, through the model's chat template."""
    lines = (harness.kit_folder() / "prompts.txt").read_text(encoding="utf-8").splitlines()
    chats = [[{"role": "user", "content": line}] for line in lines]
    return [chat_text(tokenizer, chat) for chat in chats]


@torch.no_grad()
def forward_kl(
    policy: Policy, prompts: Sequence[str], base=None, seed: int = 0, tokens: int = KL_TOKENS, batch_size: int = 10
) -> list[float]:
    """KL(base || policy) in nats per token, one value per rendered prompt; 0 for the base itself.

    The base continues each prompt (sampled at temperature 1, `tokens` long), and at each token of that the two
    whole next-token distributions are compared: the forward KL of arXiv 2509.04259, which takes it on the new
    task's prompts; give those, or neutral ones. base: default the policy without its adapter.
    """
    model, tokenizer, training = policy.model, policy.tokenizer, policy.model.training
    own = base is None and hasattr(model, "disable_adapter")
    if base is None and not own:
        raise RecR1Error("KL to the base needs the base model; pass base=, or a policy with an adapter on it")
    model.eval()
    values = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            ids, mask = encode(tokenizer, prompts[start : start + batch_size], 4096, model.device)
            with model.disable_adapter() if own else contextlib.nullcontext():
                reference = model if own else base
                ends = generate_grouped(reference, ids, mask, tokens, policy.end_ids, tokenizer.pad_token_id)
                ended = torch.isin(ends, torch.tensor(policy.end_ids, device=ends.device)).long()
                kept = ended.cumsum(1) - ended == 0
                before = _next_tokens(reference, ids, mask, ends, kept)
            after = _next_tokens(model, ids, mask, ends, kept)
            each = (before.exp() * (before - after)).sum(-1) * kept
            values += (each.sum(1) / kept.sum(1)).clamp(min=0).tolist()
    model.train(training)
    return values


def _next_tokens(model, ids, mask, ends, kept) -> torch.Tensor:
    """Log-probabilities (B, T, V) of the next token at each place of the continuations."""
    mask = torch.cat([mask, kept.long()], dim=1)
    inputs: dict = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    keep = ends.size(1) + 1
    out = model(input_ids=torch.cat([ids, ends], dim=1), logits_to_keep=keep, use_cache=False, **inputs)
    return out.logits[:, :-1].float().log_softmax(-1)


def _scores(task: str, samples: list[dict]) -> list[dict]:
    """One row per item and metric; a list of values, one per instruction of the item, becomes their mean."""
    rows = []
    for sample in samples:
        item = str(sample["doc"].get("id", sample["doc_id"]))
        for metric in sample["metrics"]:
            value = sample[metric]
            value = sum(value) / len(value) if isinstance(value, list) else float(value)
            plain = metric in ("acc", "exact_match") and sample["filter"] in ("none", "first_number")
            label = "accuracy" if plain else metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
            rows.append({"task": task, "metric": label, "item": f"{task}/{item}", "value": value})
    return rows
