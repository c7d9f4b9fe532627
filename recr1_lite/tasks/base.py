"""The one validation that every task passes when it is made; each message names the first offending row."""

# MERGED: """`Task`: a catalogue, requests with graded relevant items, and a test split that is sealed."""

from __future__ import annotations

import contextlib
import math
import random
import re
import textwrap
import weakref
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, NoReturn

import pandas as pd

from recr1_lite.common import RecR1Error

ITEM_COLUMNS = ("item_id", "title", "text")
EXAMPLE_COLUMNS = ("example_id", "request", "relevant")


def validate(items: pd.DataFrame, splits: dict[str, pd.DataFrame], task: str) -> dict[str, dict]:
    """Counts of a sound task: `{"splits": {split: {examples, items, targets, unreachable, cold_items}}}`.

    `items` and each frame of `splits` ("train" and others) have the columns of `Task`; rows count from 1. A
    column `exclude` may hold ids of the catalogue that an example's ranking leaves out, never a target; a column
    `history` those that a user had, oldest first. A
    target that the catalogue lacks is counted as unreachable; a cold item is a target in the catalogue that
    is no target in train. Raises RecR1Error: a column missing, an empty catalogue or split, an id twice, a
    text that is empty or no text, a request in two splits, a gain that is not a positive finite number, an
    example without relevant item, an exclude that is no such list, a split whose targets are all unreachable.
    """
    where = f"task {task!r}, catalogue"
    _columns(items, ITEM_COLUMNS, where)
    _texts(items, ITEM_COLUMNS, where)
    _unique(items["item_id"], where)
    catalogue = set(items["item_id"])
    for split, frame in splits.items():
        where = f"task {task!r}, {split} split"
        _columns(frame, EXAMPLE_COLUMNS, where)
        _texts(frame, ("example_id", "request"), where)
        _unique(frame["example_id"], where)
        for example, relevant in zip(frame["example_id"], frame["relevant"], strict=True):
            _relevant(relevant, f"{where}, example {example!r}")
        if "history" in frame:
            for example, history in zip(frame["example_id"], frame["history"], strict=True):
                _ids(history, catalogue, f"{where}, example {example!r}", "history")
        if "exclude" in frame:
            for example, relevant, exclude in frame[["example_id", "relevant", "exclude"]].values:
                _exclude(exclude, relevant, catalogue, f"{where}, example {example!r}")
    _apart(splits, task)

    seen, counts = set(_targets(splits["train"])), {}
    for split, frame in splits.items():
        targets = _targets(frame)
        lost = sum(target not in catalogue for target in targets)
        if lost == len(targets):
            raise RecR1Error(
                f"task {task!r}, {split} split: no relevant item is in the catalogue (example "
                f"{frame['example_id'].iloc[0]!r} wants {targets[0]!r}, the ids there look like "
                f"{items['item_id'].iloc[0]!r}); write the ids alike in both"
            )
        counts[split] = {
            "examples": len(frame),
            "items": len(set(targets)),
            "targets": len(targets),
            "unreachable": lost,
            "cold_items": len(set(targets) & catalogue - seen),
        }
    return {"splits": counts}


def _columns(frame: pd.DataFrame, wanted: tuple[str, ...], where: str) -> None:
    if missing := [column for column in wanted if column not in frame.columns]:
        found = ", ".join(map(str, frame.columns)) or "none"
        raise RecR1Error(f"{where} has no column {missing[0]!r} (it has {found}); rename or add it")
    if not len(frame):
        raise RecR1Error(f"{where} is empty; give it at least one row")


def _texts(frame: pd.DataFrame, columns: tuple[str, ...], where: str) -> None:
    for column in columns:
        for row, (value, own_id) in enumerate(zip(frame[column], frame[columns[0]], strict=True), start=1):
            if not isinstance(value, str) or not value.strip():
                row_name = f"row {row}" if column == columns[0] else f"row {row} ({own_id!r})"
                raise RecR1Error(f"{where}, {row_name}: {column} is {shown(value)}; write text there")


def _unique(ids: pd.Series, where: str) -> None:
    rows: dict[str, int] = {}
    for row, own_id in enumerate(ids, start=1):
        if (first := rows.setdefault(own_id, row)) != row:
            raise RecR1Error(f"{where}: {ids.name} {own_id!r} stands in rows {first} and {row}; keep one")


def _relevant(relevant: dict[str, float], where: str) -> None:
    if not isinstance(relevant, dict) or not relevant:
        raise RecR1Error(f"{where}: relevant is {relevant!r}; write {{item_id: gain}}, one item at least")
    for item, gain in relevant.items():
        if not isinstance(item, str):
            raise RecR1Error(f"{where}: the relevant item {item!r} is no text; ids are text")
        if isinstance(gain, bool) or not isinstance(gain, Real) or not math.isfinite(gain) or gain <= 0:
            raise RecR1Error(f"{where}: item {item!r} has gain {gain!r}; make it a positive finite number")


def _ids(ids: list[str], catalogue: set[str], where: str, column: str) -> None:
    if not isinstance(ids, (list, tuple)):
        raise RecR1Error(f"{where}: {column} is {shown(ids)}; write a list of item ids, [] for none")
    for item in ids:
        if item not in catalogue:
            raise RecR1Error(f"{where}: {column} holds {item!r}, which is not in the catalogue; write the ids alike")


def _exclude(exclude: list[str], relevant: dict[str, float], catalogue: set[str], where: str) -> None:
    _ids(exclude, catalogue, where, "exclude")
    if own := [item for item in exclude if item in relevant]:
        raise RecR1Error(f"{where} excludes its own relevant item {own[0]!r}; keep it in one of the two")


def _apart(splits: dict[str, pd.DataFrame], task: str) -> None:
    """No example_id and no request (but for spaces at its ends) in two splits; with a `history` only no example_id:
    two users may have had the same things."""
    split_of: dict[tuple[str, str], tuple[str, str]] = {}
    for split, frame in splits.items():
        keys = ("example_id",) if "history" in frame else ("example_id", "request")
        for example, request in zip(frame["example_id"], frame["request"], strict=True):
            for key in zip(keys, (example, request.strip())):
                other, first = split_of.setdefault(key, (split, example))
                if other != split:
                    raise RecR1Error(
                        f"task {task!r}: {key[0]} {shown(key[1])} stands in the {other} split (example "
                        f"{first!r}) and in the {split} split (example {example!r}); keep one of the two"
                    )


def _targets(frame: pd.DataFrame) -> list[str]:
    return [item for relevant in frame["relevant"] for item in relevant]


def shown(value: object, limit: int = 60) -> str:
    """A cell as a message shows it: `empty` for what holds nothing, long text cut."""
    nothing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    if nothing or (isinstance(value, str) and not value.strip()):
        return "empty"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


if TYPE_CHECKING:
    from recr1_lite.ledger import Ledger
    from recr1_lite.tasks.prompts import Prompt

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
                f"the test split of task {self.name!r} stays sealed while a trainer runs; follow the training on val"
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
            raise RecR1Error(f"this copy of task {self.name!r} holds no test split; load the task with load_task")
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
