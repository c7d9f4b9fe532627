"""Every method at one budget: GRPO sets the seconds and the sampled completions that the others may take.

raw request, zero-shot and the teachers train nothing; the SFT variants learn a teacher's pairs, rejection SFT the
model's own best of n; SFT then GRPO goes on from SFT's adapter for as many steps as the rest of the seconds should
hold. Each is validated on the same requests, and each one's best adapter is scored once on the sealed test (arXiv
2503.24289, section 4 and Theorem 1). `continual` then trains on a second task, and says what each stage leaves of the
first and of everything else: the paper offers Rec-R1 for continual adaptation without catastrophic forgetting.
"""

import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd

from recr1_lite.assets.fetch import sha256_of
from recr1_lite.common import RecR1Error, slug
from recr1_lite.evaluate import capability
from recr1_lite.evaluate.evaluation import EvalResult, compare, evaluate, methods_table
from recr1_lite.ledger import Ledger, begin, record_of
from recr1_lite.policy.models import Policy, load_policy
from recr1_lite.policy.rewriters import RawRewriter, Rewriter, RuleRewriter, as_rewriter
from recr1_lite.policy.rollouts import MergedCopy
from recr1_lite.profiles import Profile
from recr1_lite.recipes.demo import close, say, start
from recr1_lite.report.rows import run_of
from recr1_lite.search.base import Retriever, check_engine, described
from recr1_lite.search.engines import BM25Retriever
from recr1_lite.search.metrics import Interval
from recr1_lite.tasks import load_task
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train import grpo, sft
from recr1_lite.train.loop import Run, Training
from recr1_lite.train.rewards import Scorer
from recr1_lite.train.targets import Cost, VoteRewriter, best_of_n

GRPO, REJECTION, WARM, VOTED = "GRPO", "rejection SFT", "SFT then GRPO", "SFT (LM teacher)"
METHODS = (GRPO, *sft.VARIANTS, REJECTION, WARM, VOTED)
TEACHER, LM_TEACHER = "teacher", "LM teacher"
VOTE_TEMPERATURE = 0.7
TRAINERS = ("GRPO", "SFT")  # of the continual adaptation
WEIGHTS = "adapter_model.safetensors"  # of an adapter's folder
ACCURACY, KL = ("all", "accuracy"), ("kl", "nats")
Teacher = Callable[[str], tuple[str, str]]  # request -> rewrite ("": no answer), thought


def taught(examples: pd.DataFrame, teach: Teacher) -> pd.DataFrame:
    """A teacher's targets for the examples that it has an answer for: example_id, request, rewrite, thought."""
    pairs = pd.DataFrame([teach(request) for request in examples["request"]], columns=["rewrite", "thought"])
    table = examples[["example_id", "request"]].join(pairs.set_index(examples.index))
    return table[table["rewrite"] != ""]


def asked(task: Task, method: str) -> Prompt:
    """The prompt of a method."""
    return sft.variant(task.prompt, method) if method in sft.VARIANTS else task.prompt


@dataclass
class Arena:
    """What all methods share: the task, its retriever, the profile, where things go, and the budget."""

    task: Task
    retriever: Retriever
    profile: Profile
    teach: Teacher
    out: Path
    seed: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    progress: bool = True

    def __post_init__(self) -> None:
        self.samples = self.profile.steps * self.profile.prompts_per_step * self.profile.group_size
        count = max(1, self.samples // self.profile.best_of)
        self.examples = self.task.train.sample(min(count, len(self.task.train)), random_state=self.seed)

    @property
    def seconds(self) -> float | None:
        """What GRPO took, which is what the others may take; None until it is trained."""
        row = self.done(GRPO)
        return row["cost"]["seconds"] if row else None

    def folder(self, method: str) -> Path:
        return self.out / slug(method)

    def rewriter(self, policy: Policy, method: str, merged: MergedCopy | None = None) -> Rewriter:
        prompt = asked(self.task, method)
        return as_rewriter(policy, prompt, sft.with_room(self.profile, prompt), method, merged)

    def on_val(self, rewriter: Rewriter) -> Interval:
        """The task's first metric on val, without a row in the ledger."""
        return evaluate(rewriter, self.task, self.retriever, "val", progress=False).summary[self.task.metrics[0]]

    def run(self, policy: Policy, method: str, **made) -> Run:
        """Where the training of a method goes; it goes on where it was stopped. made: as `Run` has it."""

        def validate(merged: MergedCopy | None) -> Interval:
            return self.on_val(self.rewriter(policy, method, merged))

        return Run(self.folder(method), validate, self.seed, True, self.progress, task=self.task, made=made)

    def done(self, method: str) -> dict | None:
        """The ledger's row of a method that was trained to its end in this run; None otherwise."""
        wanted = (run_of(self.ledger.marks), method)
        rows = [row for row in self.ledger.rows("train") if (run_of(row), row["method"]) == wanted]
        whole = rows and rows[-1]["stopped"] == "finished" and (self.folder(method) / "best").is_dir()
        return rows[-1] if whole else None


def compare_methods(
    profile: Profile, out, seed=0, ledger=None, task: Task | None = None, teach=None, methods=METHODS, progress=True
) -> list[EvalResult]:
    """Train every method of `methods` at one budget, then score all on the sealed test; returns the results.

    Everything goes into the folder `out` and the ledger; called again with the same `out` it goes on where it was
    stopped: what is trained is not trained again. teach: default the task's own rule. Raises RecR1Error for a task
    without one, an unknown method, a run that stopped before a method was trained to its end, and as `demo.start`."""
    if GRPO not in methods or not set(methods) <= set(METHODS):
        advice = f"take {GRPO!r}, which sets the budget, and any of {', '.join(METHODS)}"
        raise RecR1Error(f"methods={list(methods)}; {advice}")
    out, methods = Path(out), [method for method in METHODS if method in methods]
    task = task or load_task("clothing")
    if (teach := teach or task.rule) is None:
        raise RecR1Error(f"the task {task.name} has no rule to be the teacher of SFT; give one with teach=")
    task = task.subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    engine = BM25Retriever.build(task.items)
    check_engine(engine, task.items)
    policy = load_policy(profile, seed)
    made = {"retriever": described(engine), "teacher": getattr(teach, "__qualname__", type(teach).__name__)}
    made |= {"steps": profile.steps, "sft_epochs": profile.sft_epochs}
    prompts, run = {asked(task, method) for method in methods}, Run(out, None, seed, True, task=task, made=made)
    book = start("compare", run, policy, profile, list(prompts), ledger, len(methods) + 1)
    del policy
    arena = Arena(task, engine, profile, teach, out, seed, book, progress)
    for method in methods:
        row = arena.done(method)
        if row is None:
            say(method)
            row = train_method(arena, method)
            gc.collect()  # a trainer and its policy refer to each other; the next pair comes
        if row["stopped"] != "finished":
            raise RecR1Error(f"{method} was stopped; run the same command again to go on")
    results = test(arena, methods)
    close(book, out)
    return results


def train_method(arena: Arena, method: str) -> dict:
    """Train one method inside the budget; returns its ledger row."""
    profile, task = arena.profile, arena.task
    if method not in (GRPO, WARM):
        targets, spent = make_targets(arena, method)
        prompt, policy = asked(task, method), load_policy(profile, arena.seed)
        left = arena.seconds and arena.seconds - spent.seconds
        done = sft.train(policy, targets, prompt, profile, arena.run(policy, method), max_seconds=left)
        answers = [sft.answer_text(prompt, *pair) for pair in zip(targets["rewrite"], targets["thought"], strict=True)]
        length = sum(map(len, policy.tokenizer(answers)["input_ids"])) / len(answers) + 1
        return record(arena, method, done, spent, 0, int(length * min(profile.sft_batch, len(targets))))
    spent, adapter, made = Cost(), None, {}
    if method == WARM:
        warm = arena.done("SFT") or train_method(arena, "SFT")
        spent, adapter = Cost(**warm["cost"]), arena.folder("SFT") / "best"
        made = {"adapter": sha256_of(adapter / WEIGHTS)}
        share = 1 - spent.seconds / (arena.seconds or spent.seconds)
        profile = replace(profile, steps=max(1, int(profile.steps * share)))
    policy = load_policy(profile, arena.seed, adapter=adapter)
    scorer = Scorer(arena.retriever, task.train, task.prompt, task.k_train)
    done = grpo.train(policy, task.train, scorer, profile, arena.run(policy, method, **made))
    return record(arena, method, done, spent, profile.prompts_per_step * profile.group_size)


def make_targets(arena: Arena, method: str) -> tuple[pd.DataFrame, Cost]:
    """The targets that a method of SFT learns, and what they cost. Rejection SFT keeps those that beat the request."""
    profile, task, examples = arena.profile, arena.task, arena.examples
    if method in sft.VARIANTS:
        return taught(examples, arena.teach), Cost()
    untrained = as_rewriter(load_policy(profile, trainable=False), task.prompt, profile, "untrained")
    options: dict = dict(choose="vote", temperature=VOTE_TEMPERATURE)
    if method == REJECTION:
        scorer = Scorer(arena.retriever, examples, task.prompt, task.k_train)
        options = dict(choose="reward", temperature=1.0, scorer=scorer)
    options |= dict(n=profile.best_of, seed=arena.seed, progress=arena.progress)
    path = arena.out / ("rejection.jsonl" if method == REJECTION else "vote.jsonl")
    chosen = best_of_n(untrained, examples, path, **options)
    some = chosen[chosen["rewrite"] != ""]
    better = some[some["score"] > some["raw_score"]] if method == REJECTION else some
    return (better if len(better) else some), Cost.of(chosen)


def record(arena: Arena, method: str, done: Training, spent: Cost, samples: int, trained: int = 0) -> dict:
    """Write a method's "train" row. samples: rollouts per step of GRPO; trained: answer tokens per step of SFT."""
    tokens = sum(round(row["completion_length"] * samples) if samples else trained for row in done.curve)
    took = list(itertools.accumulate((row["seconds"] for row in done.curve), initial=spent.seconds))
    at = dict(zip([0, *(row["step"] for row in done.curve)], took, strict=True))
    learned = Cost(len(done.curve) * samples, tokens if samples else 0, tokens, took[-1] - spent.seconds)
    cost = {key: round(value, 4) for key, value in asdict(spent + learned).items()}
    val = []
    for point in done.val:
        used = {"seconds": round(at[point["step"]], 1), "samples": spent.samples + point["step"] * samples}
        val.append(point | used)
    row: dict = {"kind": "train", "method": method, "task": arena.task.name, "config": asdict(arena.profile)}
    row |= {"curve": done.curve, "val": val, "best_step": done.best_step, "seconds": round(took[-1], 1)}
    row |= {"stopped": done.stopped, "metric": arena.task.metrics[0], "cost": cost}
    row |= {"budget": {"seconds": arena.seconds or took[-1], "samples": arena.samples}}
    return arena.ledger.append(row | {"baselines": {RawRewriter.name: arena.on_val(RawRewriter())}})


def test(arena: Arena, methods: Sequence[str]) -> list[EvalResult]:
    """Every method and every teacher on the sealed test, with paired differences to the raw request and the teacher."""
    say(f"sealed test: {arena.profile.n_test} requests that no choice here has used")
    profile, prompt = arena.profile, arena.task.prompt
    untrained = load_policy(profile, trainable=False)
    rewriters: list[Rewriter | str] = [RawRewriter(), as_rewriter(untrained, prompt, profile, "zero-shot")]
    rewriters.append(RuleRewriter(arena.teach, prompt, TEACHER))
    if VOTED in methods:
        voter = as_rewriter(untrained, prompt, profile, LM_TEACHER)
        rewriters.append(VoteRewriter(voter, profile.best_of, VOTE_TEMPERATURE, arena.seed, LM_TEACHER))
    results: dict[str, EvalResult] = {}
    with arena.task.testing("every method of the run", arena.ledger):
        for method in [*rewriters, *methods]:
            if isinstance(method, str):
                policy = load_policy(profile, arena.seed, adapter=arena.folder(method) / "best", trainable=False)
                method = arena.rewriter(policy, method)
            result = evaluate(method, arena.task, arena.retriever, "test", arena.ledger, arena.seed, arena.progress)
            print(f"{result.name}: {result.summary[result.metric]}", flush=True)
            results[result.name] = result
    methods_table(list(results.values()), ["raw request", TEACHER, GRPO], ledger=arena.ledger)
    if VOTED in results:  # its own teacher is another one
        compare(results[VOTED], results[LM_TEACHER], ledger=arena.ledger)
    return list(results.values())


def check_capability(profile: Profile, out, methods: Sequence[str], seed=0, ledger: Ledger | None = None) -> None:
    """The untrained model and the best adapters of a comparison in the folder `out` on the offline suite."""
    out, results = Path(out), []
    book = (ledger or Ledger()).bind(run=out.name, run_id=record_of(out).get("id"), profile=profile.name)
    for method in ["untrained", *methods]:
        say(f"capability: {method}")
        adapter = out / slug(method) / "best" if method in METHODS else None
        policy = load_policy(profile, seed, adapter=adapter, trainable=False)
        results.append(capability.check(policy, limit=profile.n_capability, name=method, seed=seed, ledger=book))
    print(capability.capability_table(results, book).to_string(index=False))


def continual(
    first: Mapping[str, Path], tasks: list[Task], teach: Teacher, profile: Profile, out, seed=0, ledger=None
) -> list[dict]:
    """Train the adapters `first` (a folder for each of TRAINERS, trained on tasks[0]) on tasks[1]; measure every stage.

    teach: the second task's teacher, for SFT, whose training takes as many seconds as GRPO's. Returns the "continual"
    rows that go to the ledger: means on the tasks' val splits and the capability suite, and differences to the
    untrained model. Raises RecR1Error for a trainer without an adapter."""
    if missing := [trainer for trainer in TRAINERS if trainer not in first]:
        raise RecR1Error(f"there is no adapter of {missing[0]} after the first task; train it with `compare` first")
    out, task = Path(out), tasks[1]
    say("untrained")
    known = record_of(out).get("id") or begin(out, {"by": "continual", "task": task.name, "seed": seed}, True, False)
    book = (ledger or Ledger()).bind(run=out.name, run_id=known, profile=profile.name, seed=seed)
    engines = [BM25Retriever.build(task.items) for task in tasks]
    rows: list[dict] = []

    def measured(policy: Policy, name: str = "") -> tuple[list[EvalResult], capability.CapabilityResult]:
        """Results on val, and of the capability suite, which with a name leaves rows of its own in the ledger."""
        scored = []
        for task, engine in zip(tasks, engines, strict=True):
            rewriter = as_rewriter(policy, task.prompt, profile, task.name)
            scored.append(evaluate(rewriter, task, engine, "val", progress=False))
        options: dict = dict(limit=profile.n_capability, name=name, seed=seed)
        return scored, capability.check(policy, **options, ledger=book if name else None)

    base = measured(load_policy(profile, seed), "untrained")

    def note(trainer: str, stage: int, policy: Policy | None = None, name: str = "", seconds: float = 0.0) -> None:
        """The row of a stage; without a policy it is that of the untrained model."""
        scored, checked = measured(policy, name) if policy else base
        means = {result.name: result.summary[result.metric] for result in scored}
        means["capability"] = checked.summary[ACCURACY]
        means |= {"kl": checked.summary[KL]} if KL in checked.summary else {}
        gains: dict[str, Interval] = {}
        if policy:
            gains = {now.name: compare(now, before) for now, before in zip(scored, base[0], strict=True)}
            gains["capability"] = capability.compare(checked, base[1], book if name else None)[ACCURACY]
        row = {"kind": "continual", "trainer": trainer, "stage": stage, "seconds": round(seconds, 1)}
        row |= {"name": f"after {tasks[stage - 1].name}" if stage else "untrained"}
        rows.append(book.append(row | {"measures": means, "differences": gains}))
        print(f"{trainer} {row['name']}: {'  '.join(f'{key} {mean}' for key, mean in means.items())}", flush=True)

    seconds = 0.0
    for trainer in TRAINERS:
        note(trainer, 0)
        say(f"{trainer}: after {tasks[0].name}")
        policy = load_policy(profile, seed, adapter=first[trainer])
        note(trainer, 1, policy, trainer)
        say(f"{trainer}: {task.name}")
        began, made = time.perf_counter(), {"adapter": sha256_of(Path(first[trainer]) / WEIGHTS)}
        run = Run(out / f"continual-{trainer.lower()}", None, seed, resume=True, task=task, made=made)
        if trainer == "GRPO":
            scorer = Scorer(engines[1], task.train, task.prompt, task.k_train)
            done = grpo.train(policy, task.train, scorer, profile, run)
            seconds = sum(step["seconds"] for step in done.curve)
        else:
            done = sft.train(policy, taught(task.train, teach), task.prompt, profile, run, max_seconds=seconds)
        took = time.perf_counter() - began
        del policy
        gc.collect()
        note(trainer, 2, load_policy(profile, seed, adapter=done.folder / "last"), seconds=took)
    return rows
