"""What methods without a language model reach that learn from a task's training requests: a tuned engine, the
task's rule, learned words, a classifier. Validation requests only; the test stays sealed. A minute or so on BM25.

    python benchmarks/ceiling.py clothing
    python benchmarks/ceiling.py movielens ahead=1        # with options of the task's loader
    python benchmarks/ceiling.py msrd --data FOLDER       # msrd or office, of FOLDER (see tasks.py)
    python benchmarks/ceiling.py clothing --ledger FILE   # keep the rows too

Where no method here gains anything over the raw request, rewriting is not shown to help.
"""

import argparse
import sys
from pathlib import Path

from bench import command
from tasks import CEILING

from recr1_lite.common import run_script
from recr1_lite.evaluate.ceiling import ceiling
from recr1_lite.evaluate.evaluation import compare, evaluate_recommender, methods_table, show
from recr1_lite.evaluate.recommenders import baselines
from recr1_lite.ledger import Ledger
from recr1_lite.report.page import markdown_table
from recr1_lite.search import build_retriever
from recr1_lite.tasks import load_task, read_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="clothing")
    parser.add_argument("option", nargs="*", help="NAME=VALUE of the task's loader")
    parser.add_argument("--data", type=Path, help="folder of msrd/ and amazon_office/")
    parser.add_argument("--ledger", type=Path, help="file for the rows (default: none)")
    given = parser.parse_args()
    if given.data and given.task in CEILING:
        task = CEILING[given.task](given.data)
    else:
        task = load_task(given.task, **read_options(given.task, given.option))
    book = Ledger(given.ledger).bind(run=f"ceiling-{task.name}", command=command()) if given.ledger else None
    raw, *others = ceiling(task, build_retriever("bm25", task.items), ledger=book)
    recommenders = baselines(task) if "history" in task.train else []
    rivals = [evaluate_recommender(one, task, "val", book) for one in recommenders]
    found = methods_table([raw, *others, *rivals], [raw.name], ledger=book).drop(columns=["tokens", "seconds"])
    print("\n".join(markdown_table(list(found.columns), found.astype(str).values.tolist())))
    gain, best = max((compare(other, raw), other.name) for other in others)
    print(f"\nthe most that a query gains without an LLM: {best}, {show(gain, sign=True)} to the raw request")
    if gain.low <= 0:
        print("so rewriting is not shown to help here")


if __name__ == "__main__":
    sys.exit(run_script(main))
