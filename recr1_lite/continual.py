"""Search, then another task: what each stage leaves of the first task and of everything else.

Rec-R1 (arXiv 2503.24289) is offered as a foundation for continual task-specific adaptation without catastrophic
forgetting. Here one adapter is trained on a first task, then on a second, by GRPO and by SFT in as many seconds, and
after each stage scored on both tasks' validation requests and on the offline capability suite.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from pathlib import Path

from recr1_lite import capability, grpo, sft
from recr1_lite.comparison import Teacher
from recr1_lite.demo import rewriter, say
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import EvalResult, compare, evaluate
from recr1_lite.ledger import Ledger
from recr1_lite.metrics import Interval
from recr1_lite.models import Policy, load_policy
from recr1_lite.profiles import Profile
from recr1_lite.retrievers import BM25Retriever
from recr1_lite.tasks import Task

TRAINERS = ("GRPO", "SFT")
ACCURACY, KL = ("all", "accuracy"), ("kl", "nats")


class Bench:
    """Scores a policy on the tasks' val splits and on the capability suite, each against the untrained model."""

    def __init__(self, tasks: list[Task], profile: Profile, seed: int = 0):
        self.tasks, self.profile, self.seed = tasks, profile, seed
        self.retrievers = [BM25Retriever.build(task.items) for task in tasks]
        self.base: tuple[list[EvalResult], capability.CapabilityResult] | None = None

    def measure(self, policy: Policy, name: str = "", ledger=None,
                run: str = "") -> tuple[dict[str, Interval], dict[str, Interval]]:
        """Means by measure, and differences to the untrained model, which has to be measured first (none then).

        With a name and a ledger the capability suite leaves its own rows there too.
        """
        scored = [evaluate(rewriter(policy, task.prompt, self.profile, task.name), task, retriever, "val", progress=False)
                  for task, retriever in zip(self.tasks, self.retrievers, strict=True)]
        book = ledger if name else None
        checked = capability.check(policy, limit=self.profile.n_capability, name=name, seed=self.seed, ledger=book,
                                   run=run, profile=self.profile.name)
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


def continual(first: Mapping[str, Path], tasks: list[Task], teach: Teacher, profile: Profile, out: str | Path,
              seed: int = 0, ledger: Ledger | None = None, command: str = "") -> list[dict]:
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
        rows.append(ledger.append({
            "kind": "continual", "run": out.name, "trainer": trainer, "stage": stage, "name": names[stage],
            "measures": means, "differences": differences, "seconds": round(took, 1), "profile": profile.name,
            "seed": seed, "command": command}))
        print(f"{trainer} {names[stage]}: " + "  ".join(f"{key} {value}" for key, value in found[0].items()), flush=True)

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
            done = grpo.train(policy, tasks[1].train, bench.retrievers[1], tasks[1].prompt, profile, folder,
                              tasks[1].k_train, seed=seed, resume=True)
            seconds = sum(step["seconds"] for step in done.curve)
        else:
            table = tasks[1].train
            pairs = [teach(request) for request in table["request"]]
            targets = table[["example_id", "request"]].assign(rewrite=[a for a, _ in pairs], thought=[b for _, b in pairs])
            done = sft.train(policy, targets[targets["rewrite"] != ""], tasks[1].prompt, profile, folder, seed=seed,
                             resume=True, max_seconds=seconds, epochs=profile.sft_epochs)
        took = time.perf_counter() - start
        del policy
        gc.collect()
        trained = load_policy(profile, seed, adapter=done.folder / "last")
        row(trainer, 2, bench.measure(trained), took)
    return rows
