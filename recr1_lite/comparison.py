"""Every method at one budget: GRPO sets the seconds and the sampled completions that the others may take.

raw request, zero-shot and the teachers train nothing; the SFT variants learn a teacher's pairs, rejection SFT the
model's own best of n; SFT then GRPO goes on from SFT's adapter for as many steps as the rest of the seconds should hold.
Each is validated on the same requests, and each one's best adapter is scored once on the sealed test
(arXiv 2503.24289, section 4 and Theorem 1).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from recr1_lite import capability, grpo, sft
from recr1_lite.demo import rewriter, say
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, compare, evaluate, methods_table
from recr1_lite.ledger import Ledger
from recr1_lite.models import Policy, load_policy
from recr1_lite.monitor import Training
from recr1_lite.profiles import Profile
from recr1_lite.prompts import Prompt, compose
from recr1_lite.report import report_markdown, write_report
from recr1_lite.retrievers import BM25Retriever, Retriever
from recr1_lite.rewards import Scorer
from recr1_lite.rewriters import RawRewriter, Rewrite, Rewriter
from recr1_lite.targets import Cost, VoteRewriter, best_of_n
from recr1_lite.tasks import Task, load_task

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
        return [Rewrite(compose(request, answer, self.prompt.mode, self.prompt.weight), answer,
                        "ok" if answer else "empty", 0) for request, answer in zip(requests, answers, strict=True)]


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
        return rewriter(policy, prompt, sft.with_room(self.profile, prompt), method, merged)

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


def compare_methods(profile: Profile, out: str | Path, seed: int = 0, ledger: Ledger | None = None,
                    task: Task | None = None, teach: Teacher | None = None, command: str = "",
                    methods=METHODS, progress: bool = True) -> list[EvalResult]:
    """Train every method of `methods` at one budget, then score all on the sealed test; returns the results.

    Everything goes into the folder `out` and the ledger; called again with the same `out` it goes on where it was
    stopped: what is trained is not trained again. teach: default the clothing task's rule. Raises RecR1Error for an
    unknown method, or a run that stopped before a method was trained to its end.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or GRPO not in methods:
        raise RecR1Error(f"methods={list(methods)}; take {GRPO!r}, which sets the budget, and any of {', '.join(METHODS)}")
    from recr1_lite.tasks.clothing import name_garments

    task = (task or load_task("clothing")).subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    arena = Arena(task, BM25Retriever.build(task.items), profile, teach or name_garments, Path(out), seed, ledger,
                  command, progress=progress)
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
        done = grpo.train(policy, task.train, arena.retriever, task.prompt, profile.but(steps=steps),
                          arena.folder(method), task.k_train, arena.validate(policy, method), **options)
        return record(arena, method, done, spent, profile.prompts_per_step * profile.group_size)
    targets, spent = make_targets(arena, method)
    prompt, policy = arena.prompt(method), load_policy(profile, seed)
    left = None if arena.seconds is None else arena.seconds - spent.seconds
    done = sft.train(policy, targets, prompt, profile, arena.folder(method), arena.validate(policy, method),
                     max_seconds=left, **options)
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
    untrained = rewriter(load_policy(profile, trainable=False), task.prompt, profile, "untrained")
    if method == VOTED:
        found = best_of_n(untrained, examples, arena.out / "vote.jsonl", profile.best_of, "vote", VOTE_TEMPERATURE,
                          seed=arena.seed, progress=arena.progress)
        return found[found["rewrite"] != ""], Cost.of(found)
    scorer = Scorer(arena.retriever, examples, task.prompt, task.k_train)
    found = best_of_n(untrained, examples, arena.out / "rejection.jsonl", profile.best_of, "reward", 1.0, scorer,
                      arena.seed, arena.progress)
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
    val = [{**point, "seconds": round(at[point["step"]], 1), "samples": spent.samples + point["step"] * samples}
           for point in done.val]
    metric, raw = arena.task.metrics[0], RawRewriter()
    base = evaluate(raw, arena.task, arena.retriever, "val", progress=False).summary[metric]
    cost = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(total).items()}
    return arena.ledger.append({
        "kind": "train", "run": arena.out.name, "method": method, "task": arena.task.name,
        "config": asdict(arena.profile), "curve": done.curve, "val": val, "best_step": done.best_step,
        "seconds": round(total.seconds, 1), "stopped": done.stopped, "metric": metric, "cost": cost,
        "budget": {"seconds": arena.seconds or total.seconds, "samples": arena.samples},
        "baselines": {raw.name: base._asdict()}, "profile": arena.profile.name, "seed": arena.seed,
        "command": arena.command})


def test(arena: Arena, methods) -> list[EvalResult]:
    """Every method and every teacher on the sealed test, with paired differences to the raw request and the teacher."""
    say(f"sealed test: {arena.profile.n_test} requests that nothing has seen so far")
    profile, task, mark = arena.profile, arena.task, dict(
        ledger=arena.ledger, profile=arena.profile.name, seed=arena.seed, run=arena.out.name)
    untrained = load_policy(profile, trainable=False)
    plain = rewriter(untrained, task.prompt, profile, "zero-shot")
    rewriters: list[Rewriter | str] = [RawRewriter(), plain, TeacherRewriter(arena.teach, task.prompt)]
    if VOTED in methods:
        rewriters.append(VoteRewriter(rewriter(untrained, task.prompt, profile, LM_TEACHER), profile.best_of,
                                      VOTE_TEMPERATURE, arena.seed, LM_TEACHER))
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


def check_capability(profile: Profile, out: str | Path, methods, seed: int = 0,
                     ledger: Ledger | None = None) -> list[capability.CapabilityResult]:
    """The untrained model and the best adapters of a comparison in the folder `out` on the offline suite."""
    out, ledger, results = Path(out), ledger or Ledger(), []
    for method in [None, *methods]:
        name = method or "untrained"
        say(f"capability: {name}")
        adapter = out / slug(method) / "best" if method else None
        policy = load_policy(profile, seed, adapter=adapter, trainable=False)
        results.append(capability.check(policy, limit=profile.n_capability, name=name, seed=seed, ledger=ledger,
                                        run=out.name, profile=profile.name))
    print(capability.capability_table(results, ledger, out.name).to_string(index=False))
    return results
