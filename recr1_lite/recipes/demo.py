"""The closed loop from beginning to end: data -> baselines -> headroom -> GRPO -> sealed test -> report."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np

from recr1_lite.common import RecR1Error, bar
from recr1_lite.evaluate.evaluation import EvalResult, evaluate, evaluate_recommender, methods_table
from recr1_lite.evaluate.recommenders import baselines, last_title
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import Policy, load_policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter, encode
from recr1_lite.profiles import Profile
from recr1_lite.report.inspector import inspect_rewrites
from recr1_lite.report.page import report_markdown, write_report
from recr1_lite.search import build_retriever
from recr1_lite.search.base import Retriever
from recr1_lite.search.metrics import Interval, mean_interval
from recr1_lite.tasks import Task, load_task
from recr1_lite.train import grpo
from recr1_lite.train.grpo import train_task
from recr1_lite.train.loop import last_checkpoint
from recr1_lite.train.rewards import Scorer

ROLLOUTS = 8  # rollouts a request in the headroom check


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def demo(
    profile: Profile,
    out: str | Path,
    seed: int = 0,
    resume: bool = False,
    ledger: Ledger | None = None,
    task: Task | None = None,
    few_shot=None,
    command: str = "",
    retriever: str | Retriever = "bm25",
) -> list[EvalResult]:
    """Run the loop of `profile` on a task (default: clothing) and write everything into the folder `out`.

    retriever: the fixed engine of training and test, or a name for `engines.build_retriever`.

    Leaves `out/report.html`, the adapters under `out/grpo`, and rows in the ledger. Returns the results on the
    sealed test, raw request first, GRPO last.
    """
    out, ledger = Path(out), ledger or Ledger()
    if not resume and last_checkpoint(out / "grpo"):
        raise RecR1Error(f"{out} already holds a run; go on with it (--resume) or give another folder (--out)")
    run = out.name
    mark = dict(ledger=ledger, profile=profile.name, seed=seed, run=run)
    started = time.perf_counter()

    say("data")
    task = (task or load_task("clothing")).subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    print(task.describe())
    engine = build_retriever(retriever, task.items) if isinstance(retriever, str) else retriever

    say(f"baselines on {len(task.val)} validation requests")
    policy = load_policy(profile, seed=seed)
    prompts = [task.prompt.render(policy.tokenizer, request) for request in task.train["request"]]
    encode(policy.tokenizer, prompts, profile.max_prompt_tokens)  # too long a prompt is said before the long work
    zero_shot = as_rewriter(policy, task.prompt, profile, "zero-shot")
    methods = [RawRewriter(), zero_shot]
    if few_shot is not None:
        methods.append(as_rewriter(policy, few_shot, profile, "few-shot", zero_shot.merged))
    rivals = baselines(task) if "history" in task.train else []  # sequential recommendation without a language model
    val = [evaluate(method, task, engine, "val", **mark) for method in [*methods, *([last_title] if rivals else [])]]
    val += [evaluate_recommender(rival, task, "val", **mark) for rival in rivals]
    print(methods_table(val, ["raw request"]).to_string(index=False))

    say(f"headroom: {ROLLOUTS} rollouts for each of {profile.n_headroom} training requests")
    headroom(policy, task, engine, profile, zero_shot.merged, ledger, run)

    say(f"GRPO: {profile.steps} steps of {profile.prompts_per_step} prompts x {profile.group_size} rollouts")
    done = train_task(
        policy, task, engine, profile, out / "grpo", seed, resume, ledger=ledger, run=run, command=command
    )
    print(f"best on val at step {done.best_step}; its adapter is in {done.adapter}")
    del policy, zero_shot, methods
    gc.collect()  # the trainer and its policy refer to each other; two more models come

    say(f"sealed test: {profile.n_test} requests that nothing has seen so far")
    trained = as_rewriter(
        load_policy(profile, seed, adapter=done.adapter, trainable=False), task.prompt, profile, "GRPO"
    )
    untrained = load_policy(profile, trainable=False)
    tested = [RawRewriter(), as_rewriter(untrained, task.prompt, profile, "zero-shot")]
    if few_shot is not None:
        tested.append(as_rewriter(untrained, few_shot, profile, "few-shot"))
    if rivals:
        tested.append(last_title)
    results = [evaluate(method, task, engine, "test", **mark) for method in tested]
    results += [evaluate_recommender(rival, task, "test", **mark) for rival in rivals]
    results.append(evaluate(trained, task, engine, "test", **mark))
    methods_table(results, ["raw request", "zero-shot"], ledger=ledger, run=run)
    inspection = inspect_rewrites(results[0], results[-1], task.items)
    ledger.append(
        {
            "kind": "inspect",
            "run": run,
            "before": results[0].name,
            "after": results[-1].name,
            "rows": inspection.to_rows(),
        }
    )
    page = write_report(ledger, out / "report.html", run)
    print(report_markdown(ledger, run))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; look at {page}")
    return results


def headroom(
    policy: Policy, task: Task, retriever: Retriever, profile: Profile, merged=None, ledger=None, run: str = ""
) -> tuple[Interval, Interval]:
    """Mean and best of ROLLOUTS sampled rewrites on training requests, at the temperature of training, as nDCG at
    k_eval: what picking the best would win is the room that GRPO has."""
    start = time.perf_counter()
    examples = task.train.sample(min(profile.n_headroom, len(task.train)), random_state=0)
    sampler = as_rewriter(policy, task.prompt, profile, "rollouts", merged)
    sampler.temperature = grpo.PRESETS[profile.preset]["temperature"]
    scorer = Scorer(retriever, examples, task.prompt, task.k_eval)
    values = np.zeros((len(examples), ROLLOUTS))
    for at in bar(range(0, len(examples), 8), desc="headroom", unit="batch"):
        batch = examples.iloc[at : at + 8].loc[lambda frame: frame.index.repeat(ROLLOUTS)]
        answers = sampler.complete(batch["request"].tolist())
        scored = scorer.score(batch["example_id"].tolist(), [answer.completion for answer in answers])
        values[at : at + 8] = np.reshape([row.ndcg for row in scored], (-1, ROLLOUTS))
    mean, best = mean_interval(values.mean(1)), mean_interval(values.max(1))
    print(f"mean of {ROLLOUTS}: {mean}   best of {ROLLOUTS}: {best}   nDCG@{task.k_eval}")
    if ledger is not None:
        ledger.append(
            {
                "kind": "headroom",
                "run": run,
                "task": task.name,
                "n": len(examples),
                "rollouts": ROLLOUTS,
                "mean": mean._asdict(),
                "best": best._asdict(),
                "seconds": time.perf_counter() - start,
                "profile": profile.name,
            }
        )
    return mean, best
