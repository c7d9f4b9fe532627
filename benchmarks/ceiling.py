"""What methods without a language model reach that learn from a task's training requests: a tuned engine, the
task's rule, learned words, a classifier. Validation requests only; the test stays sealed. A minute or so on BM25.

    python benchmarks/ceiling.py clothing
    python benchmarks/ceiling.py movielens ahead=1        # with options of the task's loader
"""

import sys

from recr1_lite.common import run_script
from recr1_lite.evaluate.ceiling import ceiling
from recr1_lite.evaluate.evaluation import methods_table
from recr1_lite.report.page import markdown_table
from recr1_lite.search import build_retriever
from recr1_lite.tasks import load_task, read_options


def main() -> None:
    name, *given = sys.argv[1:] or ["clothing"]
    task = load_task(name, **read_options(name, given))
    found = methods_table(ceiling(task, build_retriever("bm25", task.items)), ["raw request"])
    found = found.drop(columns=["tokens", "seconds"])
    print("\n".join(markdown_table(list(found.columns), found.astype(str).values.tolist())))


if __name__ == "__main__":
    sys.exit(run_script(main))
