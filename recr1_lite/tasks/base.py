"""`Task`: a catalogue, requests with graded relevant items, and a test split that is sealed."""

from __future__ import annotations

import contextlib
import random
import re
import textwrap
import weakref
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, NoReturn

import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.checks import validate

if TYPE_CHECKING:
    from recr1_lite.ledger import Ledger
    from recr1_lite.prompts import Prompt

# Kept apart from the task: its vars(), repr(), asdict(), copies and pickles have no test split to show.
_TESTS: weakref.WeakKeyDictionary[Task, pd.DataFrame] = weakref.WeakKeyDictionary()
_trainers_running = 0


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """While inside, no task of this process opens its test split; a trainer trains inside."""
    global _trainers_running
    _trainers_running += 1
    try:
        yield
    finally:
        _trainers_running -= 1


@dataclass(eq=False)
class Task:
    """What is searched, what is asked, and what counts as found.

    `items`: DataFrame of `item_id`, `title`, `text` (all str). `train`, `val`: DataFrames of `example_id`,
    `request` (str) and `relevant` (dict of item_id -> gain > 0); `test`, given once and then sealed,
    likewise. Targets are keyed by example, never by the request's text: two users may ask the same. A split
    may have a column `exclude`: a list of the item ids that an example's ranking must not hold.
    `k_train`, `k_eval`: cut-offs of the ranking in training and in evaluation. `about`: source, licence,
    notes; validation adds `splits`, its counts. Raises RecR1Error for data that do not pass `validate` and
    for a cut-off below 1.
    """

    name: str
    items: pd.DataFrame
    train: pd.DataFrame
    val: pd.DataFrame
    test: InitVar[pd.DataFrame]
    prompt: Prompt
    k_train: int
    k_eval: int
    metrics: tuple[str, ...]
    about: dict = field(default_factory=dict)

    def __post_init__(self, test: pd.DataFrame) -> None:
        for cutoff in ("k_train", "k_eval"):
            k = getattr(self, cutoff)
            if not isinstance(k, int) or k < 1:
                raise RecR1Error(f"task {self.name!r} has {cutoff}={k!r}; take a whole number from 1 on")
        self.items = self.items.reset_index(drop=True)
        self.train, self.val = self.train.reset_index(drop=True), self.val.reset_index(drop=True)
        test = test.reset_index(drop=True)
        counts = validate(self.items, {"train": self.train, "val": self.val, "test": test}, self.name)
        self.about = {**self.about, **counts}
        _TESTS[self] = test

    def unseal_test(self, reason: str = "", ledger: Ledger | None = None) -> pd.DataFrame:
        """The test split, in the columns of `val`. A row of kind "unseal" goes to the ledger first.

        `ledger`: default `Ledger()`. Raises RecR1Error while a trainer runs, where the ledger cannot be
        written (the split then stays closed), and for a copied or unpickled task, which has no test split.
        """
        if _trainers_running:
            raise RecR1Error(
                f"the test split of task {self.name!r} stays sealed while a trainer runs; "
                "follow the training on val"
            )
        test = self._sealed_test()
        if ledger is None:
            from recr1_lite.ledger import Ledger

            ledger = Ledger()
        mark = {"task": self.name, "split": "test", "n": len(test), "reason": reason}
        ledger.append({"kind": "unseal", **mark})
        return test.copy()

    def __getattr__(self, name: str) -> NoReturn:  # reached only for what is not there
        hint = "; the test split is sealed, open it with unseal_test(reason)" if name == "test" else ""
        raise AttributeError(f"'Task' object has no attribute {name!r}{hint}")

    def subsample(
        self, n_val: int | None = None, n_test: int | None = None, n_train: int | None = None, seed: int = 0
    ) -> Task:
        """The same task with at most so many examples a split (None: all), drawn with `seed`.

        The catalogue stays whole, so that scores stay comparable. Raises RecR1Error for a number below 1.
        """
        test = self._sealed_test()

        def draw(frame: pd.DataFrame, n: int | None) -> pd.DataFrame:
            if n is not None and n < 1:
                raise RecR1Error(f"task {self.name!r}: a split of {n} examples is none; ask for 1 or more")
            return frame if n is None else frame.sample(min(n, len(frame)), random_state=seed).sort_index()

        kept = {key: getattr(self, key) for key in ("prompt", "k_train", "k_eval", "metrics", "about")}
        train, val, test = draw(self.train, n_train), draw(self.val, n_val), draw(test, n_test)
        return Task(name=self.name, items=self.items, train=train, val=val, test=test, **kept)

    def describe(self) -> str:
        """Data card as plain text; of the test split it shows only counts."""
        seen = pd.concat([self.train, self.val])
        own, chance = _shared_words(seen, self.items)
        lines = [
            f"Task {self.name}",
            f"catalogue: {len(self.items)} items, {_spread(self.items['text'])} words of text each",
            f"requests: {_spread(seen['request'])} words each (train and val)",
            f"overlap: of a request's different words {own:.0%} stand in the text of its relevant item, "
            f"{chance:.0%} in that of a random one",
            *(_split_line(split, counts) for split, counts in self.about["splits"].items()),
            f"cut-offs: k_train {self.k_train}, k_eval {self.k_eval}; metrics: {', '.join(self.metrics)}",
            *(f"{key}: {value}" for key, value in self.about.items() if key != "splits"),
            "sample: {example_id} asks {request!r}, relevant {relevant}".format(**self.train.iloc[0]),
        ]
        wrap = textwrap.TextWrapper(96, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(map(wrap.fill, lines))

    def _sealed_test(self) -> pd.DataFrame:
        if self not in _TESTS:
            raise RecR1Error(
                f"this copy of task {self.name!r} holds no test split; load the task with load_task"
            )
        return _TESTS[self]


def _split_line(split: str, counts: dict[str, int]) -> str:
    line = f"{split}: {counts['examples']} examples about {counts['items']} different items"
    if split != "train":
        line += f", {counts['cold_items']} of them cold (no train example about them)"
    return line + f"; {counts['unreachable']} of {counts['targets']} targets are not in the catalogue"


def _spread(texts: pd.Series) -> str:
    words = texts.str.split().str.len()
    return f"{words.median():.0f} (median; {words.min()} to {words.max()})"


def _shared_words(examples: pd.DataFrame, items: pd.DataFrame) -> tuple[float, float]:
    """Mean share of a request's different words in the text of its relevant items, and of a random one."""
    words = {item: _words(text) for item, text in zip(items["item_id"], items["text"], strict=True)}
    draw, own, chance = random.Random(0), 0.0, 0.0
    for request, relevant in zip(examples["request"], examples["relevant"], strict=True):
        asked = _words(request) or {""}
        found = set().union(*(words.get(item, set()) for item in relevant))
        own += len(asked & found) / len(asked)
        chance += len(asked & words[draw.choice(items["item_id"])]) / len(asked)
    return own / len(examples), chance / len(examples)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
