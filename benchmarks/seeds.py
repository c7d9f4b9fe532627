"""GRPO with several seeds on the clothing task, then every rival beside it, once on the sealed test.

    python benchmarks/seeds.py --train     # one adapter per seed under build/seeds; goes on where it was stopped
    python benchmarks/seeds.py --test      # opens the test once, for all seeds and all rivals
    python benchmarks/seeds.py             # the table again, from the ledger alone
    python benchmarks/seeds.py --train --set preset=keep     # the demo's recipe; the profile's own has no KL term
    python benchmarks/seeds.py --train --method "rejection SFT"                  # as many samples as GRPO takes

The headline is the mean over seeds. Its interval resamples the seeds and the garments: requests about one garment stand
together. Differences are paired on the requests.
"""

import argparse
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pandas as pd
from bench import command

from recr1_lite.common import RecR1Error, run_script
from recr1_lite.evaluate.ceiling import Method, fit, score
from recr1_lite.evaluate.evaluation import EvalResult, evaluate, show
from recr1_lite.ledger import Ledger, read_json
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.profiles import Profile, get_profile
from recr1_lite.recipes import comparison
from recr1_lite.recipes.comparison import Arena
from recr1_lite.report.page import markdown_table
from recr1_lite.search import build_retriever
from recr1_lite.search.metrics import holm, next_run_interval, runs_interval
from recr1_lite.tasks import load_task, value_of
from recr1_lite.train.grpo import train_task

GRPO = comparison.GRPO
SEED = "{}, seed {}"


def world(profile):
    """The task of the demo at the profile's sizes, and its engine."""
    task = load_task("clothing").subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    return task, build_retriever("bm25", task.items)


def folder(out: Path, method: str, seed: int) -> Path:
    return out / f"seed-{seed}" / ("" if method == GRPO else comparison.slug(method))


def train(out: Path, profile, method: str, seeds: list[int], options: dict) -> None:
    """One adapter per seed. Rejection SFT may draw as many samples as GRPO does, and takes the time that it takes."""
    task, engine = world(profile)
    for seed in seeds:
        place = folder(out, method, seed)
        if (read_json(place / "training.json") or {}).get("stopped") == "finished":
            continue
        print(f"\n== {method}, seed {seed}", flush=True)
        book = Ledger(out / "ledger.jsonl").bind(run="seeds", profile=profile.name, seed=seed, command=command())
        if method == GRPO:
            train_task(
                load_policy(profile, seed), task, engine, profile, place, seed, book, options=options, resume=True
            )
        else:
            (out / f"seed-{seed}").mkdir(parents=True, exist_ok=True)
            comparison.train_method(Arena(task, engine, profile, task.rule, out / f"seed-{seed}", seed, book), method)
        gc.collect()  # a trainer and its policy refer to each other


def test(out: Path, profile, method: str, seeds: list[int]) -> None:
    """Every seed on the sealed test, and every rival where the ledger has none, in one opening."""
    task, engine = world(profile)
    book, rivals = Ledger(out / "ledger.jsonl").bind(run="seeds", profile=profile.name, command=command()), []
    if not any(row["method"] == RawRewriter.name for row in book.rows("eval")):
        untrained = load_policy(profile, trainable=False)
        rivals = [Method(RawRewriter(), engine), *fit(task, engine)]
        for prompt, asked in ((task.prompt, "zero-shot"), (task.few_shot, "few-shot")):
            rivals.append(Method(as_rewriter(untrained, prompt, profile, asked), engine))
    with task.testing(f"{method}, {len(seeds)} seeds, {len(rivals)} rivals", book):
        score(rivals, task, "test", book)
        for seed in seeds:
            policy = load_policy(profile, seed, adapter=folder(out, method, seed) / "best", trainable=False)
            evaluate(
                as_rewriter(policy, task.prompt, profile, SEED.format(method, seed)), task, engine, "test", book, seed
            )


def trainings(ledger: Ledger) -> list[str]:
    """A line per training: its best and its last validation, and its minutes."""
    lines = []
    for row in ledger.rows("train"):
        best, last = max(row["val"], key=lambda point: point["mean"]), row["val"][-1]
        made = f"{row['method']}, {row['config']['preset']}, {last['step']} steps, seed {row['seed']}"
        told = f"best on val {best['mean']:.3f} at step {best['step']}, at the end {last['mean']:.3f}"
        lines.append(f"{made}: {told}; {row['seconds'] / 60:.1f} minutes")
    return lines


def tested(ledger: Ledger) -> dict[str, list[EvalResult]]:
    """What each method scored on the test, a result per seed, the requests in one order; GRPO last."""
    read = [EvalResult.from_row(row) for row in ledger.rows("eval") if row["split"] == "test"]
    found = {one.name: replace(one, rows=one.rows.sort_values("example_id", ignore_index=True)) for one in read}
    if len({tuple(result.rows["example_id"]) for result in found.values()}) != 1:
        raise RecR1Error(f"{ledger.path} holds no test results, or some on other requests; run --train, then --test")
    methods: dict[str, list[EvalResult]] = {}
    for name, result in found.items():
        methods.setdefault(name.rpartition(", seed ")[0] or name, []).append(result)
    return {name: methods[name] for name in sorted(methods, key=lambda name: name == GRPO)}


def scores(runs: list[EvalResult], metric: str) -> np.ndarray:
    """(seeds, requests)"""
    return np.array([run.rows[metric] for run in runs])


def gains(ledger: Ledger) -> str:
    """Each seed's gain over the raw request, and where one more run is expected."""
    methods = tested(ledger)
    (raw,), runs = methods[RawRewriter.name], methods[GRPO]
    means = (scores(runs, raw.metric) - scores([raw], raw.metric)).mean(1).tolist()
    told = ", ".join(f"{mean:+.3f}" for mean in means)
    more = show(next_run_interval(means), sign=True) if len(means) > 1 else "not to be told from one seed"
    return f"gain over the raw request by seed: {told}; one more run: {more}"


def table(ledger: Ledger) -> pd.DataFrame:
    """One row per method: n, its metrics with intervals, and GRPO (mean of the seeds) minus it, on the first metric.

    A "*" stands where Holm's correction for all of these differences shows one."""
    methods = tested(ledger)
    runs = methods[GRPO]
    garments, lines, family = list(runs[0].rows["cluster"]), [], {}
    for name, others in methods.items():
        line = {"method": name + f", mean of {len(others)} seeds" * (len(others) > 1), "n": len(garments)}
        for metric, interval in others[0].summary.items():
            line[metric] = show(runs_interval(scores(others, metric), garments) if len(others) > 1 else interval)
        lines.append(line)
        if name != GRPO:
            theirs = scores(others, others[0].metric)
            family[name] = runs_interval(scores(runs, runs[0].metric), garments, theirs)
    told = [show(one, sign=True) + " *" * sure for one, sure in zip(family.values(), holm([*family.values()]))]
    return pd.DataFrame(lines).assign(**{"GRPO minus it": [*told, ""]})


def setting(text: str) -> tuple[str, object]:
    """A field of a profile from NAME=VALUE, a number or a word."""
    name, _, value = text.partition("=")
    if (kind := get_type_hints(Profile).get(name)) in (None, bool):
        raise argparse.ArgumentTypeError(f"{name!r} is no number or word of a profile")
    return name, value_of(name, value, kind)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("build/seeds"), help="folder of adapters and ledger")
    options.add_argument("--ledger", type=Path, help="ledger of the table (default: the one in --out)")
    options.add_argument("--profile", default="cpu")
    options.add_argument("--set", type=setting, nargs="*", default=[], help="other settings of the profile: NAME=VALUE")
    options.add_argument("--decay", action="store_true", help="let GRPO's learning rate fall to 0 in a line")
    options.add_argument("--method", choices=(GRPO, comparison.REJECTION), default=GRPO)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    options.add_argument("--train", action="store_true")
    options.add_argument("--test", action="store_true")
    given = options.parse_args()
    profile = replace(get_profile(given.profile), **dict(given.set))
    if given.train:
        decay = dict(lr_scheduler_type="linear", warmup_steps=2) if given.decay else {}
        train(given.out, profile, given.method, given.seeds, decay)
    if given.test:
        test(given.out, profile, given.method, given.seeds)
    ledger = Ledger(given.ledger or given.out / "ledger.jsonl")
    print(*trainings(ledger), sep="\n")
    if not given.train or given.test:
        found = table(ledger)
        print(gains(ledger), "", *markdown_table(list(found.columns), found.astype(str).values.tolist()), sep="\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
