"""How much naming the garment can win: the raw message, an oracle that adds the right garment's class to it, and a
rule that repeats the garment words of the message, as somebody who knows the shop could write it.

python benchmarks/class_oracle.py           on BM25
python benchmarks/class_oracle.py dense     on another engine: dense or hybrid

No language model; some seconds on BM25, two minutes on the others. Validation requests only; the test stays sealed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recr1_lite.search import build_retriever
from recr1_lite.search.metrics import mean_interval, ndcg, paired_interval
from recr1_lite.tasks import load_task
from recr1_lite.tasks.clothing import GARMENTS


def with_rule(request: str) -> str:
    words = [word.strip(".,!?") for word in request.lower().split()]
    return " ".join([request, *[word for word in words if word in GARMENTS] * 4])


task = load_task("clothing", relevance="exact")
retriever = build_retriever(sys.argv[1] if len(sys.argv) > 1 else "bm25", task.items)
kinds = {item: title.rsplit(" #", 1)[0] for item, title in zip(task.items["item_id"], task.items["title"])}
answers = [kinds[next(iter(relevant))] for relevant in task.val["relevant"]]
rows = {"message": list(task.val["request"]), "class alone": answers}
for times in (1, 2, 4, 8):
    added = [request + f" {kind}" * times for request, kind in zip(task.val["request"], answers)]
    rows[f"message + class x {times}"] = added
rows["message + its garment words x 4"] = [with_rule(request) for request in task.val["request"]]
raw: list[float] = []
for name, queries in rows.items():
    hits = retriever.search(queries, task.k_eval)
    scores = [ndcg(ids, relevant, task.k_eval) for (ids, _), relevant in zip(hits, task.val["relevant"])]
    raw = raw or scores
    gain = paired_interval(scores, raw)
    print(f"{name:32} nDCG@{task.k_eval} {mean_interval(scores)}  minus message {gain}  n = {len(scores)}")
