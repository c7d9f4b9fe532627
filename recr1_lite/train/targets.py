"""Where the targets of SFT come from: a model's best of n, a file of pairs, or a server.

Each target is a row of a file of JSON lines that only grows: example_id, request, rewrite, thought, and what it
cost. A run that was stopped or killed goes on from that file: what is in it is not asked for again.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import set_seed

from recr1_lite.common import RecR1Error, bar, writing
from recr1_lite.ledger import append_line
from recr1_lite.policy.rewriters import EndpointRewriter, ModelRewriter, Rewriter
from recr1_lite.tasks.prompts import Rewrite, split_thoughts
from recr1_lite.tasks.readers import read_rows
from recr1_lite.train.loop import alone

CHUNK = 8  # examples whose rollouts are drawn together, from one seed
FREE = {"samples": 0, "tokens": 0, "seconds": 0.0, "money": 0.0}  # what a row cost that was not asked for


@dataclass(frozen=True)
class Cost:
    """What a method took: completions sampled, tokens generated and trained on, seconds, money at a stated price."""

    samples: int = 0
    tokens_generated: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0
    money: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, key) + getattr(other, key) for key in self.__dataclass_fields__))

    @classmethod
    def of(cls, targets: pd.DataFrame) -> "Cost":
        """The cost of the rows of a targets file."""
        samples, tokens, seconds, money = (targets[name].sum().item() for name in FREE)
        return cls(samples, tokens, 0, seconds, money)


@dataclass(frozen=True)
class Budget:
    """Where to stop asking a server: money in the currency of the prices per million tokens; None: nowhere."""

    money: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def price(self, prompt_tokens: int, tokens: int) -> float:
        return (prompt_tokens * self.input_price + tokens * self.output_price) / 1_000_000


class TargetFile:
    """A file of JSON lines, its settings first. One process at a time; a torn last line is cut off.

    Raises RecR1Error where the file was made with other settings, is damaged in the middle, or is being written."""

    def __init__(self, path: str | os.PathLike, settings: Mapping):
        self.path, self.settings = Path(path), json.loads(json.dumps(dict(settings)))
        self.rows: dict[str, dict] = {}
        self._guard, self._held = threading.Lock(), ExitStack()

    def __enter__(self) -> "TargetFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(alone(Path(f"{self.path}.lock"), f"{self.path} is being written by another run"))
            self._read()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def keep(self, row: Mapping) -> None:
        """Write a row to the disk before anything else happens; an example that is there already is left alone."""
        with self._guard:
            if row["example_id"] not in self.rows:
                self._write(row)
                self.rows[row["example_id"]] = dict(row)

    def _write(self, row: Mapping) -> None:
        with writing(self.path):
            append_line(self.path, json.dumps(row).encode("ascii") + b"\n")

    def _read(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the row that was being written when the run was killed
            os.truncate(self.path, len(whole))
        if not whole:
            self._write({"settings": self.settings})
        was = self.settings
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                if number == 1:
                    was = dict(row["settings"])
                else:
                    self.rows[str(row["example_id"])] = row
            except (ValueError, KeyError, TypeError):
                wrong = f"line {number} of {self.path} is no row of a targets file"
                raise RecR1Error(f"{wrong}; mend or remove it") from None
        if names := sorted(name for name in was | self.settings if was.get(name) != self.settings.get(name)):
            made = f"{self.path} was made with other settings ({', '.join(names)})"
            raise RecR1Error(f"{made}; give another file, or the settings it was made with")


def collect(path, examples: pd.DataFrame, settings: Mapping, ask: Callable[[TargetFile], None]) -> pd.DataFrame:
    """The targets of `examples`, in their order, from the file at `path`; `ask` keeps there what it lacks."""
    with TargetFile(path, settings) as file:
        ask(file)
        found = [file.rows[example] for example in examples["example_id"] if example in file.rows]
    if not found:
        raise RecR1Error(f"no target was made for {len(examples)} examples; raise the budget")
    return pd.DataFrame(found)


def best_of_n(
    rewriter: ModelRewriter, examples, path, n=8, choose="vote", temperature=1.0, scorer=None, seed=0, progress=True
) -> pd.DataFrame:
    """The best of n sampled rewrites for each example, kept in the file at `path` as they are made.

    choose: `vote` takes the query with the words that most of the n agree on and needs no labels, so that this is a
    teacher like any other; `reward` takes the highest nDCG of `scorer` (rejection sampling). Columns: example_id,
    request, rewrite, thought "", score and mean_score (nDCG of the chosen one and of all n; None without scorer),
    raw_score, samples, tokens, seconds, money. The n rollouts of an example depend on the seed and its place alone: a
    run that was killed ends as it would have without. RecR1Error: another choice, `reward` without a scorer."""
    if choose not in ("vote", "reward") or (choose == "reward" and scorer is None) or n < 1:
        raise RecR1Error(f"choose={choose!r}, n={n}: take `vote`, or `reward` with a scorer, and n from 1 on")
    settings = {"model": rewriter.policy.name, "name": rewriter.name, "prompt": repr(rewriter.prompt), "n": n}
    settings |= {"choose": choose, "temperature": temperature, "max_new_tokens": rewriter.max_new_tokens, "seed": seed}
    named = rewriter.policy.model.named_parameters()
    moved = [weight for name, weight in named if "lora_B" in name and weight.any()]
    content = b"".join(weight.detach().float().cpu().numpy().tobytes() for weight in moved)
    adapter = hashlib.sha256(content).hexdigest()[:16] if moved else None  # None: it changes nothing yet
    settings |= {"scorer": scorer and scorer.about, "adapter": adapter}
    settings |= {"thinking": rewriter.prompt.thinking or None}
    sampler = rewriter.at(temperature)

    def ask(file: TargetFile) -> None:
        with bar(total=len(examples), desc=f"best of {n}", unit="request", progress=progress) as shown:
            for number, at in enumerate(range(0, len(examples), CHUNK)):
                chunk = examples.iloc[at : at + CHUNK]
                if not set(chunk["example_id"]) <= file.rows.keys():
                    for row in _sample(sampler, chunk, n, choose, scorer, 1000 * seed + number):
                        file.keep(row)
                shown.update(len(chunk))

    return collect(path, examples, settings, ask)


def _sample(sampler: ModelRewriter, chunk: pd.DataFrame, n: int, choose: str, scorer, seed: int) -> list[dict]:
    start = time.perf_counter()
    set_seed(seed)
    repeated = chunk.loc[chunk.index.repeat(n)]
    answers = sampler.complete(repeated["request"].tolist())
    scored = scorer.score(repeated["example_id"].tolist(), [a.completion for a in answers]) if scorer else []
    seconds, rows = (time.perf_counter() - start) / len(chunk), []
    for at, example in zip(range(0, len(answers), n), chunk.itertuples()):
        group, scores = answers[at : at + n], [row.ndcg for row in scored[at : at + n]]
        queries = [sampler.prompt.read(answer.completion).query for answer in group]
        best = int(np.argmax(scores)) if choose == "reward" else vote(queries)
        row = {"example_id": str(example.example_id), "request": example.request, "rewrite": queries[best]}
        row |= {"thought": "", "score": None, "mean_score": None, "raw_score": None, "samples": n}
        if scores:
            row |= {"score": scores[best], "mean_score": float(np.mean(scores)), "raw_score": scored[at].raw_ndcg}
        rows.append(row | {"tokens": sum(a.tokens for a in group), "seconds": seconds, "money": 0.0})
    return rows


def vote(queries: Sequence[str]) -> int:
    """The place of the query whose words most of the queries hold, on average over its words; the first of equals.

    The mode of the samples, as self-consistency (arXiv 2203.11171) takes it, for answers that are bags of words."""
    bags = [set(query.lower().replace(".", " ").replace(",", " ").split()) for query in queries]
    count = Counter(word for bag in bags for word in bag)
    support = [sum(count[word] for word in bag) / len(bag) if bag else 0.0 for bag in bags]
    return int(np.argmax(support))


class VoteRewriter(Rewriter):
    """The teacher of `best_of_n(..., choose="vote")` as a rewriter, to be scored like every other one."""

    batch_size = CHUNK

    def __init__(self, rewriter: ModelRewriter, n=8, temperature=1.0, seed=0, name="teacher"):
        self.sampler, self.n, self.seed, self.name = rewriter.at(temperature), n, seed, name

    def complete(self, requests: Sequence[str]) -> list[Rewrite]:
        set_seed(self.seed)
        answers = self.sampler.complete([request for request in requests for _ in range(self.n)])
        chosen, prompt = [], self.sampler.prompt
        for place, request in enumerate(requests):
            group = answers[place * self.n : (place + 1) * self.n]
            best = group[vote([prompt.read(answer.completion).query for answer in group])]
            query = prompt.sent(request, prompt.read(best.completion).query)
            chosen.append(replace(best, query=query, tokens=sum(answer.tokens for answer in group)))
        return chosen


def read_pairs(path: str | os.PathLike, examples: pd.DataFrame) -> pd.DataFrame:
    """Targets from a CSV, JSONL or Parquet file of `request` (or `example_id`), `rewrite`, and perhaps `thought`.

    Only requests of `examples` are taken, so that a file cannot bring in the validation or the test. Raises
    RecR1Error for a missing column, an empty rewrite, a request with two rewrites, or a file that fits no example."""
    name, rows = read_rows(path, "the pairs")
    pairs: dict[str, tuple[str, str]] = {}
    key = ""
    for row in rows:
        key = "example_id" if "example_id" in row else "request"
        asked = row.id(key) if key == "example_id" else row.text(key)
        if asked in pairs:
            raise RecR1Error(f"{row.place}: {name} has two rewrites for {asked!r}; keep one of them")
        pairs[asked] = row.text("rewrite"), row.text("thought", empty=True) if "thought" in row else ""
    fits = examples[["example_id", "request"]][(asked := examples[key].str.strip()).isin(pairs)]
    if fits.empty:
        raise RecR1Error(f"no {key} of {name} is one of the {len(examples)} training examples; check that they match")
    rewrites, thoughts = zip(*(pairs[key] for key in asked[fits.index]))
    return fits.reset_index(drop=True).assign(rewrite=rewrites, thought=thoughts, **FREE)


def from_endpoint(
    rewriter: EndpointRewriter, examples: pd.DataFrame, path, budget: Budget | None = None
) -> pd.DataFrame:
    """One answer of a server for each example, each kept when it arrives; equal requests are sent once.

    Stops before the budget could be passed, with a sentence that says how far it came; Ctrl-C lets the answers that
    are under way arrive and keeps them. A run that was killed asks again only for what was under way just then. An
    answer that did not parse has the rewrite "": it is paid for and kept; leave it out of what is trained on."""
    budget, fields = budget or Budget(), rewriter.fields
    money = math.inf if budget.money is None else budget.money
    settings = {"url": rewriter.url, "prompt": repr(rewriter.prompt), **fields}
    settings |= {"thinking": rewriter.prompt.thinking or None}
    most = int(fields.get("max_tokens") or fields.get("max_completion_tokens") or 4096) * int(fields.get("n") or 1)
    longest = max(len(str(rewriter.prompt.messages(request)).encode()) for request in examples["request"]) * 2 // 3 + 1
    worst = budget.price(longest, most)
    asking = examples.groupby("request", sort=False)["example_id"].agg(list)

    def keep(file: TargetFile, request: str, row: Mapping) -> None:
        """The answer for each example that asks this; the first one that has none yet carries what it cost."""
        for example in asking[request]:
            file.keep({**row, "example_id": str(example)})
            row = {**row, **FREE}

    def ask_one(file: TargetFile, request: str) -> float:
        start, (answer, parsed) = time.perf_counter(), rewriter.answer(request)
        if money < math.inf and None in (answer.prompt_tokens, answer.tokens):
            rewriter.tell(f"{rewriter.url} does not say what it used; what it leaves out is booked at the worst")
        thought = " ".join((answer.thought or "".join(split_thoughts(answer.text)[1])).split())
        row: dict = {"request": request, "rewrite": parsed.query, "thought": thought, "samples": 1}
        row |= {"outcome": str(parsed.outcome), "score": None, "mean_score": None, "raw_score": None}
        row |= {"tokens": answer.tokens or 0, "seconds": (time.perf_counter() - start) / rewriter.workers}
        read = longest if answer.prompt_tokens is None else answer.prompt_tokens
        row |= {"money": budget.price(read, most if answer.tokens is None else answer.tokens)}
        keep(file, request, row)
        return row["money"]

    def ask(file: TargetFile) -> None:
        known = {row["request"]: row | FREE for row in file.rows.values()}
        for request in asking.index.intersection(list(known), sort=False):
            keep(file, request, known[request])
        spent = sum(row["money"] for row in file.rows.values())
        todo = [request for request in asking.index if request not in known]
        running: set[Future] = set()
        pool = ThreadPoolExecutor(rewriter.workers)

        def may_ask() -> bool:
            return len(running) < rewriter.workers and spent + worst * (len(running) + 1) <= money

        try:
            with bar(total=len(todo), desc=rewriter.name, unit="request") as shown:
                while todo or running:
                    while todo and may_ask():
                        running.add(pool.submit(ask_one, file, todo.pop(0)))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    spent += sum(job.result() for job in done)
                    shown.update(len(done))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # what was sent is paid for: its answer is kept
        if todo:
            print(f"the budget is used up: {len(todo)} requests are not asked yet; raise it and run again to go on")

    return collect(path, examples, settings, ask)
