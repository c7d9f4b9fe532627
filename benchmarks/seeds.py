"""GRPO with several seeds on the clothing task, then every rival beside it, once on the sealed test.

    python benchmarks/seeds.py --train     # one adapter per seed under build/seeds; goes on where it was stopped
    python benchmarks/seeds.py --test      # opens the test once, for all seeds and all rivals
    python benchmarks/seeds.py             # the table again, from the ledger alone

The headline is the mean over seeds. Its interval resamples the seeds and the garments: requests about one garment stand
together. Differences are paired on the requests.
"""

import argparse
import gc
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from bench import command

from recr1_lite.common import RecR1Error, run_script
from recr1_lite.evaluate.ceiling import Method, fit, score
from recr1_lite.evaluate.evaluation import EvalResult, evaluate, show
from recr1_lite.ledger import Ledger, read_json
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.profiles import get_profile
from recr1_lite.report.page import markdown_table
from recr1_lite.search import build_retriever
from recr1_lite.search.metrics import Interval, next_run_interval
from recr1_lite.tasks import load_task
from recr1_lite.train.grpo import train_task

RESAMPLES = 2000
SEED = "GRPO, seed {}"


def over_seeds(values: np.ndarray, clusters: list[str]) -> Interval:
    """Mean of values (seeds, requests) with its 95% interval: seeds and clusters are resampled, each whole."""
    names = sorted(set(clusters))
    member = np.array([[label == name for label in clusters] for name in names], dtype=float)
    sums, counts, random = values @ member.T, member.sum(1), np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        seeds, drawn = random.integers(len(values), size=len(values)), random.integers(len(names), size=len(names))
        means.append(sums[np.ix_(seeds, drawn)].sum() / counts[drawn].sum() / len(values))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), values.shape[1])


def train(out: Path, profile, seeds: int) -> None:
    """One adapter per seed, in `out`/seed-N."""
    task = load_task("clothing").subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    engine = build_retriever("bm25", task.items)
    book = Ledger(out / "ledger.jsonl").bind(run="seeds", command=command())
    for seed in range(seeds):
        if (read_json(out / f"seed-{seed}" / "training.json") or {}).get("stopped") == "finished":
            continue
        print(f"\n== seed {seed}", flush=True)
        policy = load_policy(profile, seed)
        train_task(policy, task, engine, profile, out / f"seed-{seed}", seed, book, resume=True)
        del policy
        gc.collect()  # a trainer and its policy refer to each other


def test(out: Path, profile, seeds: int) -> None:
    """Every rival and every seed on the sealed test, in one opening."""
    task = load_task("clothing").subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    engine = build_retriever("bm25", task.items)
    book = Ledger(out / "ledger.jsonl").bind(run="seeds", profile=profile.name, command=command())
    untrained, fitted = load_policy(profile, trainable=False), fit(task, engine)
    rivals = [Method(RawRewriter(), engine), *fitted]
    rivals.append(Method(as_rewriter(untrained, task.prompt, profile, "zero-shot"), engine))
    rivals.append(Method(as_rewriter(untrained, task.few_shot, profile, "few-shot"), engine))
    with task.testing("every seed and every rival", book):
        score(rivals, task, "test", book)
        for seed in range(seeds):
            policy = load_policy(profile, seed, adapter=out / f"seed-{seed}" / "best", trainable=False)
            trained = as_rewriter(policy, task.prompt, profile, SEED.format(seed))
            evaluate(trained, task, engine, "test", book, seed)


def trainings(ledger: Ledger) -> list[str]:
    """A line per seed: its best and its last validation, and its minutes."""
    lines = []
    for row in ledger.rows("train"):
        best, last = max(row["val"], key=lambda point: point["mean"]), row["val"][-1]
        told = f"best on val {best['mean']:.3f} at step {best['step']}, at the end {last['mean']:.3f}"
        lines.append(f"seed {row['seed']}: {told}; {row['seconds'] / 60:.1f} minutes")
    return lines


def tested(ledger: Ledger) -> tuple[list[EvalResult], list[EvalResult]]:
    """What the seeds and what the rivals scored on the test, the requests in one order."""
    read = [EvalResult.from_row(row) for row in ledger.rows("eval") if row["split"] == "test"]
    found = {one.name: replace(one, rows=one.rows.sort_values("example_id", ignore_index=True)) for one in read}
    if len({tuple(result.rows["example_id"]) for result in found.values()}) != 1:
        raise RecR1Error(f"{ledger.path} holds no test results, or some on other requests; run --train, then --test")
    ours = {name for name in found if name.startswith(SEED[:-2])}
    return [found[name] for name in found if name in ours], [found[name] for name in found if name not in ours]


def gains(ledger: Ledger) -> str:
    """Each seed's gain over the raw request, and where one more run is expected."""
    runs, rivals = tested(ledger)
    raw, metric = next(rival for rival in rivals if rival.name == RawRewriter.name), runs[0].metric
    means = [float((run.rows[metric] - raw.rows[metric]).mean()) for run in runs]
    told = ", ".join(f"{mean:+.3f}" for mean in means)
    return f"gain over the raw request by seed: {told}; one more run: {show(next_run_interval(means), sign=True)}"


def table(ledger: Ledger) -> pd.DataFrame:
    """One row per method: n, its metrics with intervals, and GRPO (mean of the seeds) minus it, on the first metric."""
    runs, rivals = tested(ledger)
    garments = list(runs[0].rows["cluster"])
    values = {metric: np.array([run.rows[metric] for run in runs]) for metric in runs[0].summary}
    lines = []
    for rival in rivals:
        line = {"method": rival.name, "n": len(rival.rows)} | {name: show(i) for name, i in rival.summary.items()}
        less = values[rival.metric] - rival.rows[rival.metric].to_numpy()
        lines.append(line | {"GRPO minus it": show(over_seeds(less, garments), sign=True)})
    line = {"method": f"GRPO, mean of {len(runs)} seeds", "n": len(garments)}
    line |= {metric: show(over_seeds(scores, garments)) for metric, scores in values.items()}
    return pd.DataFrame([*lines, line | {"GRPO minus it": ""}])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("build/seeds"), help="folder of adapters and ledger")
    options.add_argument("--ledger", type=Path, help="ledger of the table (default: the one in --out)")
    options.add_argument("--profile", default="cpu")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--train", action="store_true")
    options.add_argument("--test", action="store_true")
    given = options.parse_args()
    profile = get_profile(given.profile)
    if given.train:
        train(given.out, profile, given.seeds)
    if given.test:
        test(given.out, profile, given.seeds)
    if not given.train or given.test:
        ledger = Ledger(given.ledger or given.out / "ledger.jsonl")
        found = table(ledger)
        print(*trainings(ledger), gains(ledger), "", sep="\n")
        print("\n".join(markdown_table(list(found.columns), found.astype(str).values.tolist())))


if __name__ == "__main__":
    sys.exit(run_script(main))
