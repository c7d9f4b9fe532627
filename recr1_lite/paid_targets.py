"""Targets of SFT from any OpenAI-compatible server: resumable, inside a budget, no request sent twice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

import pandas as pd

from recr1_lite.endpoint import EndpointRewriter
from recr1_lite.progress import bar
from recr1_lite.targets import TargetFile, collect

MILLION = 1_000_000


@dataclass(frozen=True)
class Budget:
    """Where to stop asking a server: money in the currency of the prices (per million tokens), or requests."""

    money: float | None = None
    requests: int | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def price(self, prompt_tokens: int, tokens: int) -> float:
        return (prompt_tokens * self.input_price + tokens * self.output_price) / MILLION


def from_endpoint(rewriter: EndpointRewriter, examples: pd.DataFrame, path, budget: Budget | None = None,
                  progress: bool = True) -> pd.DataFrame:
    """One answer of a server for each example, each kept when it arrives; equal requests are sent once.

    Stops before the budget could be passed, with a sentence that says how far it came; Ctrl-C lets the answers that
    are under way arrive and keeps them. A run that was killed asks again only for what was under way just then. An answer
    that did not parse has the rewrite "": it is paid for and kept; leave it out of what is trained on.
    """
    budget = budget or Budget()
    settings = {"url": rewriter.url, "prompt": repr(rewriter.prompt), **rewriter.fields}
    worst = budget.price(2 * max(len(str(rewriter.prompt.messages(r))) for r in examples["request"]) // 3 + 1,
                         rewriter.fields.get("max_tokens") or rewriter.fields.get("max_completion_tokens") or 4096)

    def ask(examples: pd.DataFrame, file: TargetFile) -> None:
        known = {row["request"]: row for row in file.rows.values()}
        todo: dict[str, list[str]] = {}
        for example in examples.itertuples():
            if example.example_id not in file.rows:
                todo.setdefault(example.request, []).append(str(example.example_id))
        spent = sum(row["money"] for row in file.rows.values())
        asked = sum(row["samples"] for row in file.rows.values())
        for request in [request for request in todo if request in known]:
            _keep_all(file, todo.pop(request), known[request], shared=True)
        allowed = len(todo)
        if budget.requests is not None:
            allowed = min(allowed, max(0, budget.requests - asked))
        queue, running = list(todo)[:allowed], {}
        pool = ThreadPoolExecutor(rewriter.workers)

        def one(request: str) -> dict:
            start = time.perf_counter()
            answer, parsed = rewriter.answer(request)
            money = budget.price(answer.prompt_tokens, answer.tokens)
            row = {"request": request, "rewrite": parsed.query, "thought": thought_of(answer.text), "score": None,
                   "mean_score": None, "raw_score": None, "samples": 1, "tokens": answer.tokens,
                   "seconds": (time.perf_counter() - start) / rewriter.workers, "money": money}
            _keep_all(file, todo[request], row)
            return row

        try:
            with bar(total=len(queue), desc=rewriter.name, unit="request", progress=progress) as shown:
                while queue or running:
                    while queue and len(running) < rewriter.workers and (
                            budget.money is None or spent + worst * (len(running) + 1) <= budget.money):
                        request = queue.pop(0)
                        running[pool.submit(one, request)] = request
                    if not running:
                        break
                    for job in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[job]
                        spent += job.result()["money"]
                        shown.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # what was sent is paid for: its answer is kept
        left = len(queue) + len(todo) - allowed
        if left:
            print(f"the budget is used up: {left} requests are not asked yet; raise it and run again to go on")

    return collect(path, examples, settings, ask)


def _keep_all(file: TargetFile, example_ids: Sequence[str], row: Mapping, shared: bool = False) -> None:
    """Keep an answer for each example that asked this; only the first one carries what it cost."""
    for place, example in enumerate(example_ids):
        free = {"samples": 0, "tokens": 0, "seconds": 0.0, "money": 0.0} if place or shared else {}
        file.keep({**row, "example_id": example, **free})


def thought_of(text: str) -> str:
    """What stands between <think> and </think>, on one line; "" without."""
    start, end = text.find("<think>"), text.find("</think>")
    return " ".join(text[max(start, -7) + 7 if start >= 0 else 0:end].split()) if end > start else ""
