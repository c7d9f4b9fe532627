"""What training on one task did to everything else: four small sets, perplexity, KL to the base, real benchmarks.

lm-evaluation-harness asks and scores (`harness.py`); here are the intervals, the paired differences before and
after, and forward KL, the measure that arXiv 2509.04259 ("RL's Razor") found forgetting to follow.
"""

import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import harness
from recr1_lite.evaluate.evaluation import show
from recr1_lite.ledger import packed, unpacked
from recr1_lite.policy.models import Policy
from recr1_lite.policy.rewriters import encode
from recr1_lite.policy.rollouts import MergedCopy, generate_grouped
from recr1_lite.search.metrics import Interval, mean_interval, paired_interval
from recr1_lite.tasks.prompts import chat_text

TOGETHER = 10  # prompts that the base continues at once
CHANCE = {"recr1_knowledge": 0.25, "recr1_reading": 0.25, "mmlu": 0.25}


@dataclass
class CapabilityResult:
    """Scores of one model. scores: one row per item (task, metric, item, value); samples: what the harness logged;
    seconds: of each task; seed: of the draw and the bootstrap."""

    name: str
    suite: str
    scores: pd.DataFrame
    samples: dict[str, list[dict]]
    seconds: dict[str, float]
    seed: int
    notes: list[str]

    @property
    def values(self) -> dict[tuple[str, str], pd.Series]:
        """(task, metric) -> value of each item, by item. First, where several have it, the "accuracy" of task "all"."""
        groups = self.scores.set_index("item").groupby(["task", "metric"], sort=False)["value"]
        found = {pair: values.astype(float) for pair, values in groups}
        right = [values for (_, metric), values in found.items() if metric == "accuracy"]
        return ({("all", "accuracy"): pd.concat(right)} if len(right) > 1 else {}) | found

    @property
    def summary(self) -> dict[tuple[str, str], Interval]:
        """(task, metric) -> mean of the items, 95% interval; items of one template or passage are drawn together."""
        each = self.values.items()
        return {pair: mean_interval(one, seed=self.seed, clusters=[*map(cluster_of, one.index)]) for pair, one in each}

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping]) -> "CapabilityResult":
        """The result that the "capability" rows of one check tell of, without its samples. Raises RecR1Error where the
        values are missing or damaged, or where there are no rows."""
        parts: list[pd.DataFrame] = []
        seconds: dict[str, float] = {}
        for row in (rows := list(rows)):
            seconds[row["task"]] = row["seconds"]
            try:
                told = unpacked(row["values"])
                if not len(told["item"]) == len(told["value"]) == row["n"]:
                    raise ValueError("not its values")
            except (KeyError, ValueError) as bad:
                which = f"the ledger's values of {row['method']} on {row['task']}"
                raise RecR1Error(f"{which} are missing or damaged; check it again") from bad
            parts.append(pd.DataFrame({"task": row["task"], "metric": row["metric"], **told}))
        if not rows:
            raise RecR1Error("there are no capability rows to read; run `python -m recr1_lite capability` first")
        first = rows[0]
        return cls(first["method"], first["suite"], pd.concat(parts), {}, seconds, first["seed"], [])

    def table(self) -> pd.DataFrame:
        """One row per measure: task, metric, n, mean with its 95% interval, chance where there is one, seconds."""
        lines = []
        for (task, metric), mean in self.summary.items():
            chance = CHANCE.get(task.split("_")[0] if self.suite == "mmlu" else task, "")
            seconds = round(self.seconds.get(task, sum(self.seconds.values())), 1)
            line = {"task": task, "metric": metric, "n": mean.n, "mean [95%]": show(mean)}
            lines.append(line | {"chance": chance, "seconds": seconds})
        return pd.DataFrame(lines)


def check(
    policy: Policy, suite="offline", limit=None, name="untrained", seed=0, ledger=None, batch_size=50, **more
) -> CapabilityResult:
    """Ask a model everything in a suite: `offline`, `ifeval`, `gsm8k`, `mmlu` or `humaneval`.

    policy: a Policy with or without an adapter. limit: items per task (mmlu: per subject), drawn with `seed`, the same
    ones for every model. more: data_dir, max_gen_toks, execute_code of `harness.load_tasks`, which says what is raised.
    Appends a "capability" row per measure to the ledger, with the value of each item, but for "all"."""
    if limit is not None and limit < 1:
        raise RecR1Error(f"a limit of {limit} items is no check; give 1 or more, or None for all")
    merged = MergedCopy.of(policy.model)
    model = merged.refresh() if merged else policy.model
    samples: dict[str, list[dict]] = {}
    seconds: dict[str, float] = {}
    rows, notes = [], []
    for task in harness.load_tasks(suite, **more):
        start = time.perf_counter()
        samples |= harness.run_tasks(model, policy.tokenizer, [task], limit, seed, batch_size)
        rows += _scores(task.task_name, samples[task.task_name])
        seconds[task.task_name] = time.perf_counter() - start
    if suite == "humaneval" and not more.get("execute_code"):
        notes.append("the generated programs were not executed; ask for it by name (execute_code=True, --execute-code)")
    if suite == "offline" and hasattr(policy.model, "disable_adapter"):
        start = time.perf_counter()
        values = forward_kl(policy, neutral_prompts(policy.tokenizer)[:limit], seed=seed)
        rows += [{"task": "kl", "metric": "nats", "item": f"prompt-{n:02}", "value": v} for n, v in enumerate(values)]
        seconds["kl"] = time.perf_counter() - start
    result = CapabilityResult(name, suite, pd.DataFrame(rows), samples, seconds, seed, notes)
    for (asked, metric), mean in result.summary.items() if ledger is not None else ():
        if asked != "all":  # the mean of the items that the others have
            row = {"kind": "capability", "method": name, "suite": suite, "task": asked, "metric": metric}
            row |= {**mean._asdict(), "seconds": seconds[asked], "seed": seed, "limit": limit}
            each = result.values[asked, metric].round(6)
            ledger.append(row | {"values": packed({"item": list(each.index), "value": each.tolist()})})
    return result


def compare(after: CapabilityResult, before: CapabilityResult, ledger=None) -> dict[tuple[str, str], Interval]:
    """(task, metric) -> mean of after minus before on the same items, with its paired 95% interval, clustered as in
    `CapabilityResult.summary`. KL has no before and is left out. Appends a "capability_compare" row each to the ledger.
    Raises RecR1Error where the two were not asked the same items."""
    differences, known = {}, before.values
    for (task, metric), values in after.values.items():
        if task == "kl":
            continue
        others = known.get((task, metric), values[:0])
        if set(values.index) != set(others.index):
            who = f"{after.name} and {before.name} were not asked the same items of {task}"
            raise RecR1Error(f"{who} ({len(values)} and {len(others)}); check both with one limit and one seed")
        groups = [*map(cluster_of, values.index)]
        differences[task, metric] = paired_interval(values, others[values.index], seed=after.seed, clusters=groups)
        if ledger is not None and task != "all":
            row: dict = {"kind": "capability_compare", "a": after.name, "b": before.name, "suite": after.suite}
            row |= {"task": task, "metric": metric, "n": len(values), "seed": after.seed}
            ledger.append(row | {"difference": differences[task, metric]._asdict()})
    return differences


def capability_table(results: Sequence[CapabilityResult], ledger=None) -> pd.DataFrame:
    """One row per measure, one column per model, and the paired difference of each to the first."""
    first, *others = results
    means = {result.name: result.summary for result in results}
    shown = {first.name: {pair: show(mean) for pair, mean in means[first.name].items()}}
    for other in others:
        shown[other.name] = {pair: show(mean) for pair, mean in means[other.name].items()}
        differences = compare(other, first, ledger)
        shown[f"{other.name} - {first.name}"] = {pair: show(gap, sign=True) for pair, gap in differences.items()}
    rows = []
    for task, metric in dict.fromkeys(itertools.chain(*means.values())):
        n = next(found[task, metric].n for found in means.values() if (task, metric) in found)
        texts = {name: column.get((task, metric), "") for name, column in shown.items()}
        rows.append({"task": task.removeprefix("recr1_"), "metric": metric, "n": n} | texts)
    return pd.DataFrame(rows)


def cluster_of(item: str) -> str:
    """What an item shares with others: of the kit's `instruction-01-2` and `reading-01-2` the 01; of others nothing."""
    return re.sub(r"((?:instruction|reading)-\d+)-\d+$", r"\1", item)


def neutral_prompts(tokenizer) -> list[str]:
    """Forty everyday prompts of this kit, through the model's chat template."""
    lines = (harness.kit_folder() / "prompts.txt").read_text(encoding="utf-8").splitlines()
    return [chat_text(tokenizer, [{"role": "user", "content": line}]) for line in lines]


Drawn = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]  # of `continuations`


@torch.no_grad()
def continuations(policy: Policy, prompts, seed: int = 0, tokens: int = 32) -> Drawn:
    """What the base says after each rendered prompt, for `forward_kl`: per batch the prompts' ids and mask (B, L), the
    ids sampled at temperature 1 (B, T), and which of them stand before its end (B, T). Raises RecR1Error for a policy
    that has no adapter to switch off."""
    if not hasattr(policy.model, "disable_adapter"):
        raise RecR1Error("KL to the base needs the base model; pass a policy with an adapter on it")
    drawn, pad = [], policy.tokenizer.pad_token_id
    with torch.random.fork_rng(), policy.model.disable_adapter():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), TOGETHER):
            ids, mask = encode(policy.tokenizer, prompts[start : start + TOGETHER], 4096, policy.model.device)
            ends = generate_grouped(policy.model, ids, mask, tokens, policy.end_ids, pad)
            ended = torch.isin(ends, torch.tensor(policy.end_ids, device=ends.device)).long()
            drawn.append((ids, mask, ends, ended.cumsum(1) - ended == 0))
    return drawn


@torch.no_grad()
def forward_kl(
    policy: Policy, prompts: Sequence[str], seed: int = 0, tokens: int = 32, drawn: Drawn | None = None
) -> list[float]:
    """KL(base || policy) in nats per token, one value per rendered prompt; the base is the policy without its adapter.

    The base continues each prompt (sampled at temperature 1, `tokens` long), and at each token of that the two
    whole next-token distributions are compared: the forward KL of arXiv 2509.04259, which takes it on the new
    task's prompts; give those, or neutral ones. drawn: of `continuations`, for several policies on one base."""
    model, training, values = policy.model, policy.model.training, []
    model.eval()
    for ids, mask, ends, kept in continuations(policy, prompts, seed, tokens) if drawn is None else drawn:
        with model.disable_adapter():
            before = _next_tokens(model, ids, mask, ends, kept)
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
        item = f"{task}/{sample['doc'].get('id', sample['doc_id'])}"
        for metric in sample["metrics"]:
            value = sample[metric]
            value = sum(value) / len(value) if isinstance(value, list) else float(value)
            plain = metric in ("acc", "exact_match") and sample["filter"] in ("none", "first_number")
            label = "accuracy" if plain else metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
            rows.append({"task": task, "metric": label, "item": item, "value": value})
    return rows
