"""How much naming the garment can win: the raw message, and an oracle that adds the right garment's class to it.

python benchmarks/class_oracle.py

No model, some seconds. Validation requests only; the test stays sealed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recr1_lite.metrics import mean_interval, ndcg
from recr1_lite.retrievers import BM25Retriever
from recr1_lite.tasks import load_task

task = load_task("clothing")
retriever = BM25Retriever.build(task.items)
kinds = {item: title.rsplit(" #", 1)[0] for item, title in zip(task.items["item_id"], task.items["title"])}
answers = [kinds[next(iter(relevant))] for relevant in task.val["relevant"]]
rows = {"message": list(task.val["request"]), "class alone": answers}
for times in (1, 2, 4, 8):
    rows[f"message + class x {times}"] = [f"{request}{f' {kind}' * times}"
                                          for request, kind in zip(task.val["request"], answers)]
for name, queries in rows.items():
    hits = retriever.search(queries, task.k_eval)
    scores = [ndcg(ids, relevant, task.k_eval) for (ids, _), relevant in zip(hits, task.val["relevant"])]
    print(f"{name:20} nDCG@{task.k_eval} {mean_interval(scores)}  n = {len(scores)}")
