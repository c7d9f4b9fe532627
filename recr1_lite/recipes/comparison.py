"""Every method at one budget: GRPO sets the seconds and the sampled completions that the others may take.

raw request, zero-shot and the teachers train nothing; the SFT variants learn a teacher's pairs, rejection SFT the
model's own best of n; SFT then GRPO goes on from SFT's adapter for as many steps as the rest of the seconds should hold.
Each is validated on the same requests, and each one's best adapter is scored once on the sealed test
(arXiv 2503.24289, section 4 and Theorem 1).
"""

# MERGED: """Search, then another task: what each stage leaves of the first task and of everything else.
# MERGED:
# MERGED: Rec-R1 (arXiv 2503.24289) is offered as a foundation for continual task-specific adaptation without catastrophic
# MERGED: forgetting. Here one adapter is trained on a first task, then on a second, by GRPO and by SFT in as many seconds, and
# MERGED: after each stage scored on both tasks' validation requests and on the offline capability suite.
# MERGED: """

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate import capability
from recr1_lite.evaluate.evaluation import EvalResult, compare, evaluate, methods_table
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import Policy, load_policy
from recr1_lite.policy.rewriters import RawRewriter, Rewrite, Rewriter, as_rewriter
from recr1_lite.profiles import Profile
from recr1_lite.recipes.demo import say
from recr1_lite.report.page import report_markdown, write_report
from recr1_lite.search.base import Retriever
from recr1_lite.search.bm25 import BM25Retriever
from recr1_lite.search.metrics import Interval
from recr1_lite.tasks import Task, load_task
from recr1_lite.tasks.prompts import Prompt, compose
from recr1_lite.train import grpo, sft
from recr1_lite.train.loop import Training
from recr1_lite.train.rewards import Scorer
from recr1_lite.train.targets import Cost, VoteRewriter, best_of_n

GRPO, REJECTION, WARM, VOTED = "GRPO", "rejection SFT", "SFT then GRPO", "SFT (LM teacher)"
METHODS = (GRPO, *sft.VARIANTS, REJECTION, WARM, VOTED)
TEACHER, LM_TEACHER = "teacher", "LM teacher"
VOTE_TEMPERATURE = 0.7
Teacher = Callable[[str], tuple[str, str]]  # request -> rewrite ("": no answer), thought


class TeacherRewriter(Rewriter):
    """A teacher that is a plain function, scored like every other rewriter; where it has no answer, the request."""

    name = TEACHER

    def __init__(self, teach: Teacher, prompt: Prompt):
        self.teach, self.prompt = teach, prompt

    def complete(self, requests) -> list[Rewrite]:
        answers = [self.teach(request)[0] for request in requests]
        return [
            Rewrite(
                compose(request, answer, self.prompt.mode, self.prompt.weight), answer, "ok" if answer else "empty", 0
            )
            for request, answer in zip(requests, answers, strict=True)
        ]


@dataclass
class Arena:
    """What all methods share: the task, its retriever, the profile, where things go, and the budget once it is set."""

    task: Task
    retriever: Retriever
    profile: Profile
    teach: Teacher
    out: Path
    seed: int = 0
    ledger: Ledger | None = None
    command: str = ""
    seconds: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        self.ledger = self.ledger or Ledger()
        self.samples = self.profile.steps * self.profile.prompts_per_step * self.profile.group_size
        count = max(1, self.samples // self.profile.best_of)
        self.examples = self.task.train.sample(min(count, len(self.task.train)), random_state=self.seed)

    def folder(self, method: str) -> Path:
        return self.out / slug(method)

    def prompt(self, method: str) -> Prompt:
        return sft.variant(self.task.prompt, method) if method in sft.VARIANTS else self.task.prompt

    def rewriter(self, policy: Policy, method: str, merged=None):
        prompt = self.prompt(method)
        return as_rewriter(policy, prompt, sft.with_room(self.profile, prompt), method, merged)

    def validate(self, policy: Policy, method: str) -> Callable:
        def score(merged):
            now = self.rewriter(policy, method, merged)
            return evaluate(now, self.task, self.retriever, "val", progress=False).summary[self.task.metrics[0]]

        return score

    def done(self, method: str) -> dict | None:
        """The ledger's row of a method that was trained to its end in this run; None otherwise."""
        rows = [row for row in self.ledger.rows("train") if row.get("run") == self.out.name and row["method"] == method]
        whole = rows and rows[-1]["stopped"] == "finished" and (self.folder(method) / "best").is_dir()
        return rows[-1] if whole else None


def slug(method: str) -> str:
    """A method's name as the name of its folder."""
    return re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")


def compare_methods(
    profile: Profile,
    out: str | Path,
    seed: int = 0,
    ledger: Ledger | None = None,
    task: Task | None = None,
    teach: Teacher | None = None,
    command: str = "",
    methods=METHODS,
    progress: bool = True,
) -> list[EvalResult]:
    """Train every method of `methods` at one budget, then score all on the sealed test; returns the results.

    Everything goes into the folder `out` and the ledger; called again with the same `out` it goes on where it was
    stopped: what is trained is not trained again. teach: default the clothing task's rule. Raises RecR1Error for an
    unknown method, or a run that stopped before a method was trained to its end.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or GRPO not in methods:
        raise RecR1Error(
            f"methods={list(methods)}; take {GRPO!r}, which sets the budget, and any of {', '.join(METHODS)}"
        )
    from recr1_lite.tasks.clothing import name_garments

    task = (task or load_task("clothing")).subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    arena = Arena(
        task,
        BM25Retriever.build(task.items),
        profile,
        teach or name_garments,
        Path(out),
        seed,
        ledger,
        command,
        progress=progress,
    )
    for method in [method for method in METHODS if method in methods]:
        row = arena.done(method)
        if row is None:
            say(method)
            row = train_method(arena, method)
            gc.collect()  # a trainer and its policy refer to each other; the next pair comes
        if row["stopped"] != "finished":
            raise RecR1Error(f"{method} was stopped; run the same command again to go on")
        if method == GRPO:
            arena.seconds = row["cost"]["seconds"]
    results = test(arena, [method for method in METHODS if method in methods])
    print(report_markdown(arena.ledger, arena.out.name))
    print(f"look at {write_report(arena.ledger, arena.out / 'report.html', arena.out.name)}")
    return results


def train_method(arena: Arena, method: str) -> dict:
    """Train one method inside the budget; returns its ledger row."""
    profile, task, seed = arena.profile, arena.task, arena.seed
    options = dict(seed=seed, resume=True, progress=arena.progress)
    if method in (GRPO, WARM):
        spent, start, steps = Cost(), None, profile.steps
        if method == WARM:
            warm = arena.done("SFT") or train_method(arena, "SFT")
            spent, start = Cost(**warm["cost"]), arena.folder("SFT") / "best"
            steps = max(1, int(steps * (1 - spent.seconds / arena.seconds)))
        policy = load_policy(profile, seed, adapter=start)
        done = grpo.train(
            policy,
            task.train,
            arena.retriever,
            task.prompt,
            replace(profile, steps=steps),
            arena.folder(method),
            task.k_train,
            arena.validate(policy, method),
            **options,
        )
        return record(arena, method, done, spent, profile.prompts_per_step * profile.group_size)
    targets, spent = make_targets(arena, method)
    prompt, policy = arena.prompt(method), load_policy(profile, seed)
    left = None if arena.seconds is None else arena.seconds - spent.seconds
    done = sft.train(
        policy,
        targets,
        prompt,
        profile,
        arena.folder(method),
        arena.validate(policy, method),
        max_seconds=left,
        **options,
    )
    answers = [sft.answer_text(prompt, *pair) for pair in zip(targets["rewrite"], targets["thought"])]
    length = sum(map(len, policy.tokenizer(answers)["input_ids"])) / len(answers) + 1
    return record(arena, method, done, spent, 0, int(length * min(profile.sft_batch, len(targets))))


def make_targets(arena: Arena, method: str) -> tuple[pd.DataFrame, Cost]:
    """The targets that a method of SFT learns, and what they cost. Rejection SFT keeps those that beat the request."""
    profile, task, examples = arena.profile, arena.task, arena.examples
    if method in sft.VARIANTS:
        pairs = [arena.teach(request) for request in examples["request"]]
        table = examples[["example_id", "request"]].assign(rewrite=[a for a, _ in pairs], thought=[b for _, b in pairs])
        return table[table["rewrite"] != ""], Cost()
    untrained = as_rewriter(load_policy(profile, trainable=False), task.prompt, profile, "untrained")
    if method == VOTED:
        found = best_of_n(
            untrained,
            examples,
            arena.out / "vote.jsonl",
            profile.best_of,
            "vote",
            VOTE_TEMPERATURE,
            seed=arena.seed,
            progress=arena.progress,
        )
        return found[found["rewrite"] != ""], Cost.of(found)
    scorer = Scorer(arena.retriever, examples, task.prompt, task.k_train)
    found = best_of_n(
        untrained,
        examples,
        arena.out / "rejection.jsonl",
        profile.best_of,
        "reward",
        1.0,
        scorer,
        arena.seed,
        arena.progress,
    )
    better = found[(found["rewrite"] != "") & (found["score"] > found["raw_score"])]
    return (better if len(better) else found[found["rewrite"] != ""]), Cost.of(found)


def record(arena: Arena, method: str, done: Training, spent: Cost, samples: int, trained: int = 0) -> dict:
    """Write a method's "train" row. samples: rollouts a step of GRPO; trained: answer tokens a step of SFT."""
    seconds, tokens, at = spent.seconds, 0, {0: spent.seconds}
    for row in done.curve:
        seconds += row["seconds"]
        tokens += round(row["completion_length"] * samples) if samples else trained
        at[row["step"]] = seconds
    total = spent + Cost(len(done.curve) * samples, tokens if samples else 0, tokens, seconds - spent.seconds)
    val = [
        {**point, "seconds": round(at[point["step"]], 1), "samples": spent.samples + point["step"] * samples}
        for point in done.val
    ]
    metric, raw = arena.task.metrics[0], RawRewriter()
    base = evaluate(raw, arena.task, arena.retriever, "val", progress=False).summary[metric]
    cost = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(total).items()}
    return arena.ledger.append(
        {
            "kind": "train",
            "run": arena.out.name,
            "method": method,
            "task": arena.task.name,
            "config": asdict(arena.profile),
            "curve": done.curve,
            "val": val,
            "best_step": done.best_step,
            "seconds": round(total.seconds, 1),
            "stopped": done.stopped,
            "metric": metric,
            "cost": cost,
            "budget": {"seconds": arena.seconds or total.seconds, "samples": arena.samples},
            "baselines": {raw.name: base._asdict()},
            "profile": arena.profile.name,
            "seed": arena.seed,
            "command": arena.command,
        }
    )


def test(arena: Arena, methods) -> list[EvalResult]:
    """Every method and every teacher on the sealed test, with paired differences to the raw request and the teacher."""
    say(f"sealed test: {arena.profile.n_test} requests that nothing has seen so far")
    profile, task, mark = (
        arena.profile,
        arena.task,
        dict(ledger=arena.ledger, profile=arena.profile.name, seed=arena.seed, run=arena.out.name),
    )
    untrained = load_policy(profile, trainable=False)
    plain = as_rewriter(untrained, task.prompt, profile, "zero-shot")
    rewriters: list[Rewriter | str] = [RawRewriter(), plain, TeacherRewriter(arena.teach, task.prompt)]
    if VOTED in methods:
        rewriters.append(
            VoteRewriter(
                as_rewriter(untrained, task.prompt, profile, LM_TEACHER),
                profile.best_of,
                VOTE_TEMPERATURE,
                arena.seed,
                LM_TEACHER,
            )
        )
    results = []
    for method in [*rewriters, *methods]:
        if isinstance(method, str):
            policy = load_policy(profile, arena.seed, adapter=arena.folder(method) / "best", trainable=False)
            method = arena.rewriter(policy, method)
        results.append(evaluate(method, task, arena.retriever, "test", progress=arena.progress, **mark))
        print(f"{results[-1].name}: {results[-1].summary[task.metrics[0]]}", flush=True)
    methods_table(results, ["raw request", TEACHER, GRPO], ledger=arena.ledger, run=arena.out.name)
    by_name = {result.name: result for result in results}
    if VOTED in by_name:  # its own teacher is another one
        compare(by_name[VOTED], by_name[LM_TEACHER], ledger=arena.ledger, run=arena.out.name)
    return results


def check_capability(
    profile: Profile, out: str | Path, methods, seed: int = 0, ledger: Ledger | None = None
) -> list[capability.CapabilityResult]:
    """The untrained model and the best adapters of a comparison in the folder `out` on the offline suite."""
    out, ledger, results = Path(out), ledger or Ledger(), []
    for method in [None, *methods]:
        name = method or "untrained"
        say(f"capability: {name}")
        adapter = out / slug(method) / "best" if method else None
        policy = load_policy(profile, seed, adapter=adapter, trainable=False)
        results.append(
            capability.check(
                policy,
                limit=profile.n_capability,
                name=name,
                seed=seed,
                ledger=ledger,
                run=out.name,
                profile=profile.name,
            )
        )
    print(capability.capability_table(results, ledger, out.name).to_string(index=False))
    return results


TRAINERS = ("GRPO", "SFT")
ACCURACY, KL = ("all", "accuracy"), ("kl", "nats")


class Bench:
    """Scores a policy on the tasks' val splits and on the capability suite, each against the untrained model."""

    def __init__(self, tasks: list[Task], profile: Profile, seed: int = 0):
        self.tasks, self.profile, self.seed = tasks, profile, seed
        self.retrievers = [BM25Retriever.build(task.items) for task in tasks]
        self.base: tuple[list[EvalResult], capability.CapabilityResult] | None = None

    def measure(
        self, policy: Policy, name: str = "", ledger=None, run: str = ""
    ) -> tuple[dict[str, Interval], dict[str, Interval]]:
        """Means by measure, and differences to the untrained model, which has to be measured first (none then).

        With a name and a ledger the capability suite leaves its own rows there too.
        """
        scored = [
            evaluate(as_rewriter(policy, task.prompt, self.profile, task.name), task, retriever, "val", progress=False)
            for task, retriever in zip(self.tasks, self.retrievers, strict=True)
        ]
        book = ledger if name else None
        checked = capability.check(
            policy,
            limit=self.profile.n_capability,
            name=name,
            seed=self.seed,
            ledger=book,
            run=run,
            profile=self.profile.name,
        )
        means = {result.name: result.summary[result.metric] for result in scored}
        means |= {"capability": checked.summary[ACCURACY]}
        if KL in checked.summary:
            means["kl"] = checked.summary[KL]
        if self.base is None:
            self.base = scored, checked
            return means, {}
        differences = {now.name: compare(now, before) for now, before in zip(scored, self.base[0], strict=True)}
        differences["capability"] = capability.compare(checked, self.base[1], book, run)[ACCURACY]
        return means, differences


def continual(
    first: Mapping[str, Path],
    tasks: list[Task],
    teach: Teacher,
    profile: Profile,
    out: str | Path,
    seed: int = 0,
    ledger: Ledger | None = None,
    command: str = "",
) -> list[dict]:
    """Train the adapters `first` (a folder each of TRAINERS, trained on tasks[0]) on tasks[1]; measure every stage.

    teach: the second task's teacher, for SFT, whose training takes as many seconds as GRPO's. Returns the "continual"
    rows that go to the ledger. Raises RecR1Error for a trainer without an adapter.
    """
    missing = [trainer for trainer in TRAINERS if trainer not in first]
    if missing:
        raise RecR1Error(f"there is no adapter of {missing[0]} after the first task; train it with `compare` first")
    out, ledger, rows, seconds = Path(out), ledger or Ledger(), [], None
    bench, names = Bench(tasks, profile, seed), ["untrained", *(f"after {task.name}" for task in tasks)]

    def row(trainer: str, stage: int, found, took: float) -> None:
        means, differences = ({key: value._asdict() for key, value in part.items()} for part in found)
        rows.append(
            ledger.append(
                {
                    "kind": "continual",
                    "run": out.name,
                    "trainer": trainer,
                    "stage": stage,
                    "name": names[stage],
                    "measures": means,
                    "differences": differences,
                    "seconds": round(took, 1),
                    "profile": profile.name,
                    "seed": seed,
                    "command": command,
                }
            )
        )
        print(
            f"{trainer} {names[stage]}: " + "  ".join(f"{key} {value}" for key, value in found[0].items()), flush=True
        )

    say("untrained")
    untrained = bench.measure(load_policy(profile, seed), "untrained", ledger, out.name)
    for trainer in TRAINERS:
        row(trainer, 0, untrained, 0.0)
        say(f"{trainer}: {names[1]}")
        policy = load_policy(profile, seed, adapter=first[trainer])
        row(trainer, 1, bench.measure(policy, trainer, ledger, out.name), 0.0)
        say(f"{trainer}: {tasks[1].name}")
        start = time.perf_counter()
        folder = out / f"continual-{trainer.lower()}"
        if trainer == "GRPO":
            done = grpo.train(
                policy,
                tasks[1].train,
                bench.retrievers[1],
                tasks[1].prompt,
                profile,
                folder,
                tasks[1].k_train,
                seed=seed,
                resume=True,
            )
            seconds = sum(step["seconds"] for step in done.curve)
        else:
            table = tasks[1].train
            pairs = [teach(request) for request in table["request"]]
            targets = table[["example_id", "request"]].assign(
                rewrite=[a for a, _ in pairs], thought=[b for _, b in pairs]
            )
            done = sft.train(
                policy,
                targets[targets["rewrite"] != ""],
                tasks[1].prompt,
                profile,
                folder,
                seed=seed,
                resume=True,
                max_seconds=seconds,
                epochs=profile.sft_epochs,
            )
        took = time.perf_counter() - start
        del policy
        gc.collect()
        trained = load_policy(profile, seed, adapter=done.folder / "last")
        row(trainer, 2, bench.measure(trained), took)
    return rows
