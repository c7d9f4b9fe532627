"""Does a policy that was trained for one retriever serve another one? Each adapter's rewrites, each engine's rankings.

    python benchmarks/transfer.py --adapter BM25=runs/.../grpo/best --adapter dense=runs/.../grpo/last

The rewrites of the clothing task's sealed test are made once for each adapter and searched by BM25, by the dense
retriever and by both fused; the untrained model and the raw request stand beside them. Rows go to the ledger
--out, a table is printed: nDCG@100 with its 95% interval, and the paired difference to the raw request of that engine.
"""

import argparse
import sys
from pathlib import Path

import bench  # noqa: F401  # this checkout's package

from recr1_lite.common import RecR1Error, run_script
from recr1_lite.evaluate.evaluation import compare, evaluate, show
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import load_policy
from recr1_lite.policy.rewriters import RawRewriter, Rewriter, as_rewriter
from recr1_lite.profiles import get_profile
from recr1_lite.search import RETRIEVERS, build_retriever
from recr1_lite.tasks import load_task
from recr1_lite.tasks.prompts import Rewrite


class Replay(Rewriter):
    """What a rewriter answered once, for as many engines as wanted: an answer does not depend on the engine."""

    def __init__(self, name: str, asked: Rewriter):
        self.name, self.asked, self.batch_size = name, asked, asked.batch_size
        self.answers: dict[str, Rewrite] = {}

    def complete(self, requests) -> list[Rewrite]:
        new = [request for request in requests if request not in self.answers]
        self.answers |= dict(zip(new, self.asked.complete(new), strict=True))
        return [self.answers[request] for request in requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="as often as needed")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--out", type=Path, default=Path("runs/transfer.jsonl"))
    options = parser.parse_args()
    profile, ledger = get_profile(options.profile), Ledger(options.out)
    task = load_task("clothing", relevance="exact").subsample(n_val=profile.n_val, n_test=profile.n_test, seed=0)
    methods: list[Rewriter] = [RawRewriter()]
    for entry in ["untrained=", *options.adapter]:
        name, sign, folder = entry.partition("=")
        if not sign:
            raise RecR1Error(f"--adapter {entry} is no NAME=FOLDER; write such as BM25=runs/demo/grpo/best")
        policy = load_policy(profile, adapter=folder or None, trainable=False)
        rewriter = as_rewriter(policy, task.prompt, profile, name)
        methods.append(Replay(f"GRPO on {name}" if folder else name, rewriter))
    print(f"| searched by | {' | '.join(method.name for method in methods)} |\n|{'---|' * (len(methods) + 1)}")
    for engine in RETRIEVERS:
        retriever, run = build_retriever(engine, task.items), f"transfer-{engine}-{profile.name}"
        book = ledger.bind(run=run, profile=profile.name)
        raw, *others = [evaluate(method, task, retriever, options.split, book) for method in methods]
        metric = task.metrics[0]
        gains = [show(compare(other, raw, metric, book), sign=True) for other in others]
        cells = [f"{show(other.summary[metric])} ({gain})" for other, gain in zip(others, gains)]
        print(f"| {engine} | {' | '.join([show(raw.summary[metric]), *cells])} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_script(main))
