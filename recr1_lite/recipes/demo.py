"""One request before any training (`side_by_side`), and the closed loop: data -> baselines -> headroom -> what needs
no LLM -> GRPO -> sealed test -> report."""

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from recr1_lite.common import RecR1Error, bar, check_place
from recr1_lite.evaluate import ceiling
from recr1_lite.evaluate.evaluation import EvalResult, compare, evaluate, evaluate_recommender, methods_table
from recr1_lite.evaluate.recommenders import baselines, last_title
from recr1_lite.ledger import Ledger, begin
from recr1_lite.policy.models import Policy, load_policy
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.profiles import Profile
from recr1_lite.report.inspector import inspect_rewrites
from recr1_lite.report.page import report_markdown, write_report
from recr1_lite.search import build_retriever
from recr1_lite.search.base import Retriever, check_engine, described, search_all
from recr1_lite.search.metrics import Interval, mean_interval
from recr1_lite.tasks import load_task
from recr1_lite.tasks.base import Task, ids_of
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train.grpo import PRESETS, train_task
from recr1_lite.train.loop import Run, disk_needed, last_checkpoint, made_by
from recr1_lite.train.rewards import Scorer

ADAPTERS = Path(__file__).parents[2] / "data" / "adapters"
ROLLOUTS = 8  # rollouts per request in the headroom check
PAGE = 2**24  # bytes that a report may take


def shipped_adapter(task: str) -> Path:
    """The folder of the adapter that was trained for this task's default form. Raises RecR1Error where none is."""
    if not (folder := ADAPTERS / task).is_dir():
        known = ", ".join(sorted(path.name for path in ADAPTERS.glob("*/"))) or "none"
        raise RecR1Error(f"no adapter for the task {task!r} is in {ADAPTERS} (there: {known}); give one with --adapter")
    return folder


def side_by_side(
    request: str, task: Task, retriever: Retriever, profile: Profile, adapter: str | Path | None = None, k: int = 5
) -> pd.DataFrame:
    """The request through the raw, the untrained and the trained rewriter: one row each of `rewriter`, `query` (as it
    was sent) and `hits` (titles, best first). adapter: default the shipped one. Raises RecR1Error for a blank request.
    """
    if not request.strip():
        raise RecR1Error("the request is blank; write what you are looking for, such as 'a warm coat for the winter'")
    rewriters: list = [RawRewriter()]
    for name, folder in {"untrained model": None, "trained with GRPO": adapter or shipped_adapter(task.name)}.items():
        policy = load_policy(profile, adapter=folder, trainable=False)
        rewriters.append(as_rewriter(policy, task.prompt, profile, name))
    titles = dict(zip(task.items["item_id"], task.items["title"]))
    queries = [rewriter.rewrite([request])[0] for rewriter in rewriters]
    found = search_all(retriever, queries, k, ids_of(task.train))
    shown = [[titles[item] for item in hits.ids] for hits in found]
    return pd.DataFrame({"rewriter": [rewriter.name for rewriter in rewriters], "query": queries, "hits": shown})


def as_text(looks: pd.DataFrame) -> str:
    """The table for a terminal: what was sent, then the hits under each other."""
    lines = []
    for look in looks.itertuples():
        lines += ["", f"== {look.rewriter}: {look.query or '(nothing)'}"]
        lines += [f"  {rank}. {title}" for rank, title in enumerate(look.hits, start=1)] or ["  no hit"]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def start(
    kind: str, run: Run, policy: Policy, profile: Profile, prompts: Sequence[Prompt], ledger: Ledger | None, count: int
) -> Ledger:
    """Check what the recipe `kind` needs until its end, note what makes it in the run's folder, and give the ledger
    with its marks. prompts: all that are asked; count: trainings.
    Raises RecR1Error as `ledger.begin`, for a prompt of any split that is too long, for too little room on the disk,
    and for a folder or a ledger that cannot be written."""
    out, book, steps = run.folder, ledger or Ledger(), profile.steps if kind == "demo" and run.resume else None
    newest, task = [last_checkpoint(folder, steps) for folder in out.glob("*/")], cast(Task, run.task)
    task.check_prompts(policy.tokenizer, profile.max_prompt_tokens, *prompts)
    check_place(out, (count - sum(map(bool, newest))) * disk_needed(policy) + disk_needed(policy, True) + PAGE)
    check_place(out / "report.html", file=True)
    book.check()
    told = made_by(kind, policy, profile, task.prompt, run.seed, task, **run.made)
    marks = {"run": out.name, "run_id": begin(out, told, run.resume, any(newest))}
    return book.bind(**marks, profile=profile.name, seed=run.seed)


def close(book: Ledger, out: Path) -> None:
    """Write and print the report of the run that the ledger is bound to."""
    page = write_report(book, out / "report.html", book.marks["run_id"])
    print(report_markdown(book, book.marks["run_id"]))
    print(f"look at {page}")


def demo(
    profile: Profile, out, seed=0, resume=False, ledger=None, task: Task | None = None, retriever="bm25"
) -> list[EvalResult]:
    """Run the loop of `profile` on a task (default: clothing) and write everything into the folder `out`.

    retriever: the engine of training and test, or a name for `search.build_retriever`. Leaves `out/report.html`, the
    adapters under `out/grpo`, and rows in the ledger. Returns the results on the sealed test, raw request first, GRPO
    last. Raises RecR1Error as `start`: what the end of the run needs is checked before the long work."""
    out, started = Path(out), time.perf_counter()
    say("data")
    task = (task or load_task("clothing")).subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    print(task.describe())
    engine = build_retriever(retriever, task.items) if isinstance(retriever, str) else retriever
    check_engine(engine, task.items)
    policy = load_policy(profile, seed=seed)
    prompts = [prompt for prompt in (task.prompt, task.few_shot) if prompt]
    made = {"few_shot": task.few_shot and asdict(task.few_shot), "retriever": described(engine)}
    book = start("demo", Run(out, None, seed, resume, task=task, made=made), policy, profile, prompts, ledger, 1)

    say(f"baselines on {len(task.val)} validation requests")
    rivals = baselines(task) if "history" in task.train else []  # recommenders without a language model

    def untrained(split: str, policy: Policy) -> list[EvalResult]:
        """The methods that need no training, on a split: raw request first."""
        rewriters: list = [RawRewriter(), as_rewriter(policy, task.prompt, profile, "zero-shot")]
        if task.few_shot is not None:
            rewriters.append(as_rewriter(policy, task.few_shot, profile, "few-shot", rewriters[1].merged))
        rewriters += [last_title] if rivals else []
        results = [evaluate(rewriter, task, engine, split, book, seed) for rewriter in rewriters]
        return results + [evaluate_recommender(rival, task, split, book, seed) for rival in rivals]

    raw, *others = untrained("val", policy)
    print(methods_table([raw, *others], [raw.name]).to_string(index=False))

    say(f"headroom: {ROLLOUTS} rollouts for each of {profile.n_headroom} training requests")
    _, best = headroom(policy, task, engine, profile, ledger=book)

    say("ceiling: what can be had without an LLM, learned from the training requests")
    methods = ceiling.fit(task, engine, seed)
    free = ceiling.score(methods, task, "val", book, seed)
    print(methods_table([raw, *free], [raw.name], ledger=book).to_string(index=False))
    if not any(compare(result, raw).low > 0 for result in free):
        print("without an LLM nothing is shown to help here: no paired difference to the raw request lies above 0")
    means = [result.summary[raw.metric].mean for result in free]
    reachable = [methods[int(np.argmax(means))]] if methods else []  # the best of it, which the test shows beside GRPO
    print(f"best of {ROLLOUTS} above: {best}; chosen with the answers in view, it is partly luck of the draw")

    say(f"GRPO: {profile.steps} steps of {profile.prompts_per_step} prompts x {profile.group_size} rollouts")
    done = train_task(policy, task, engine, profile, out / "grpo", seed, book, True, resume=resume)
    print(f"best on val at step {done.best_step}; its adapter is in {done.adapter}")
    del policy
    gc.collect()  # the trainer and its policy refer to each other; two more models come

    say(f"sealed test: {profile.n_test} requests that no choice here has used")
    with task.testing("every method of the run", book):
        results = untrained("test", load_policy(profile, trainable=False))
        free = ceiling.score(reachable, task, "test", book, seed)
        policy = load_policy(profile, seed, adapter=done.adapter, trainable=False)
        trained = evaluate(as_rewriter(policy, task.prompt, profile, "GRPO"), task, engine, "test", book, seed)
        results += [*free, trained]
    methods_table(results, [raw.name, "zero-shot", *(result.name for result in free)], ledger=book)
    rows = inspect_rewrites(results[0], trained, task.items).to_rows()
    book.append({"kind": "inspect", "before": raw.name, "after": trained.name, "rows": rows})
    close(book, out)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    return results


def headroom(
    policy: Policy, task: Task, retriever: Retriever, profile: Profile, ledger: Ledger | None = None
) -> tuple[Interval, Interval]:
    """Mean and best of ROLLOUTS sampled rewrites on training requests, at the temperature of training, as nDCG at
    k_eval: what picking the best would win is the room that GRPO has."""
    began = time.perf_counter()
    examples = task.train.sample(min(profile.n_headroom, len(task.train)), random_state=0)
    temperature: Any = PRESETS[profile.preset]["temperature"]
    sampler = as_rewriter(policy, task.prompt, profile, "rollouts", temperature=temperature)
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
        row = {"kind": "headroom", "task": task.name, "n": len(examples), "rollouts": ROLLOUTS}
        ledger.append(row | {"mean": mean, "best": best, "seconds": time.perf_counter() - began})
    return mean, best
