"""`Task`: a catalogue, requests with graded relevant items, a sealed test split, its data card; what rows must be."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import random
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from numbers import Real
from typing import NoReturn, Self

import pandas as pd
from bm25s.stopwords import STOPWORDS_EN
from pandas.api.types import is_object_dtype

from recr1_lite.common import RecR1Error, is_indexed, whole, words
from recr1_lite.ledger import Ledger
from recr1_lite.tasks.prompts import Prompt

ITEM_COLUMNS = ["item_id", "title", "text"]
EXAMPLE_COLUMNS = ["example_id", "request", "relevant"]
SPLITS = ("train", "val", "test")
METRICS = ("ndcg@100", "ndcg@10", "recall@10", "mrr")
SAMPLE = 10_000  # items and requests that a data card looks at, so that it takes seconds at any size
SHOWN = 5  # relevant items of the data card's sample
TRAINERS: list[object] = []  # one mark per trainer that runs in this process, in whatever thread; see `sealed`


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """While inside, no task of this process opens its test split; a trainer trains inside."""
    mark = object()
    TRAINERS.append(mark)
    try:
        yield
    finally:
        TRAINERS.remove(mark)


class _Seal:
    """Holds the test split in a slot, which vars(), repr() and asdict() do not show."""

    __slots__ = ("_marked", "_test")
    _marked: bool  # whether `testing` has told the ledger
    _test: pd.DataFrame


class KnownIds(str):
    """The ids of a catalogue, in `attrs` of each split: what is searched for it is checked against them. As text it is
    the catalogue's name, because pandas copies attrs with each frame and writes them as JSON."""

    ids: frozenset[str]

    def __deepcopy__(self, memo) -> Self:
        return self


def ids_of(examples: pd.DataFrame) -> frozenset[str] | None:
    """The ids of the catalogue that a task's examples belong to; None where the frame is of no task."""
    return getattr(examples.attrs.get("catalogue"), "ids", None)


@dataclass(eq=False)
class Task(_Seal):
    """What is searched, what is asked, and what counts as relevant.

    `items`: DataFrame of ITEM_COLUMNS (all str). `train`, `val`, and `test`, which is sealed: DataFrames of
    EXAMPLE_COLUMNS; `relevant` is a dict of item_id -> gain > 0. A split may have lists of item ids: `exclude`, which
    an example's ranking leaves out, and `history`, oldest first. `k_train`, `k_eval`: cut-offs of the ranking. `about`:
    source, licence, notes; validation adds `splits`, its counts, and the number of texts without a word to index.
    `few_shot`: a prompt with examples, a baseline. `rule`: what somebody who knows the shop could write down without a
    model, from a request to a rewrite ("": nothing to say) and the thought behind it. Raises RecR1Error for a cut-off
    below 1, and as `validate`."""

    name: str
    items: pd.DataFrame
    train: pd.DataFrame
    val: pd.DataFrame
    test: InitVar[pd.DataFrame]
    prompt: Prompt
    k_train: int = 1000
    k_eval: int = 100
    metrics: tuple[str, ...] = METRICS
    about: dict = field(default_factory=dict)
    few_shot: Prompt | None = None
    rule: Callable[[str], tuple[str, str]] | None = None

    def __post_init__(self, test: pd.DataFrame) -> None:
        for cutoff in ("k_train", "k_eval"):
            if not is_count(k := getattr(self, cutoff)):
                raise RecR1Error(f"task {self.name!r} has {cutoff}={k!r}; take a whole number from 1 on")
        frames = (frame.reset_index(drop=True) for frame in (self.items, self.train, self.val, test))
        self.items, self.train, self.val, self._test = map(_whole, frames)
        self._marked = False
        splits = self._splits()
        self.about = {**self.about, "splits": validate(self.items, splits, self.name)}
        requests = sum(_wordless(frame["request"]) for frame in splits.values())
        if (items := _wordless(self.items["text"])) or requests:
            self.about["without a word to index"] = f"{items} items and {requests} requests"
        catalogue = KnownIds(self.name)
        catalogue.ids = frozenset(self.items["item_id"])
        for frame in splits.values():
            frame.attrs["catalogue"] = catalogue

    def __getattr__(self, name: str) -> NoReturn:  # reached only for what is not there
        hint = "; the test split is sealed, open it with unseal_test(reason)" if name == "test" else ""
        raise AttributeError(f"'Task' object has no attribute {name!r}{hint}")

    def __getstate__(self) -> dict:
        """What copies and pickles hold: everything but the test split."""
        return dict(vars(self))

    def unseal_test(self, reason: str = "", ledger: Ledger | None = None) -> pd.DataFrame:
        """The test split, in the columns of `val`. A row of kind "unseal" goes to the ledger first.

        Raises RecR1Error while a trainer runs, where the ledger cannot be written (the split then stays closed), and
        for a copied or unpickled task, which has no test split."""
        test = self._opened()
        if not self._marked:
            mark = {"task": self.name, "split": "test", "n": len(test), "reason": reason}
            (Ledger() if ledger is None else ledger).append({"kind": "unseal", **mark})
        return test.copy()

    @contextlib.contextmanager
    def testing(self, reason: str, ledger: Ledger | None = None) -> Iterator[None]:
        """One opening of the test split, with one row, however many methods are scored on it inside."""
        self.unseal_test(reason, ledger)
        self._marked = True
        try:
            yield
        finally:
            self._marked = False

    @property
    def fingerprint(self) -> dict:
        """What the task is made of, in digests that differ where the data do; of the sealed test nothing else."""
        known = {"k_train": self.k_train, "k_eval": self.k_eval, "metrics": list(self.metrics)}
        return known | {name: digest(frame) for name, frame in {"items": self.items, **self._splits()}.items()}

    def check_prompts(self, tokenizer, limit: int, *prompts: Prompt) -> None:
        """Raises RecR1Error where a prompt of any split is longer than `limit` tokens. Of the sealed test nothing but
        this number comes out, so that it leaves no row."""
        for (split, frame), prompt in itertools.product(self._splits().items(), prompts):
            texts = [prompt.render(tokenizer, request) for request in frame["request"].unique()]
            if (longest := max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))) > limit:
                told = f"a prompt has {longest} tokens and the limit is {limit} (the longest of the {split} split)"
                advice = "shorten the request or the few-shot examples, or raise max_prompt_tokens in the profile"
                raise RecR1Error(f"{told}; {advice}")

    def _splits(self) -> dict[str, pd.DataFrame]:
        held = {"train": self.train, "val": self.val, "test": getattr(self, "_test", None)}
        return {split: frame for split, frame in held.items() if frame is not None}  # a copy has no test

    def map_splits(self, change: Callable[[str, pd.DataFrame], pd.DataFrame], **fields) -> Self:
        """A new task whose splits are change(split's name, its rows), and with `fields` in place of this one's.

        The test split is changed behind the seal and sealed again: `change` must be the same for every row and keep
        none. Raises RecR1Error where `unseal_test` does, and for a result that does not pass `validate`."""
        self._opened()
        splits = {split: change(split, frame.copy()) for split, frame in self._splits().items()}
        return replace(self, **splits, **fields)

    def subsample(
        self, n_val: int | None = None, n_test: int | None = None, n_train: int | None = None, seed: int = 0
    ) -> Self:
        """The same task with at most so many examples per split (None: all), drawn with `seed`; the catalogue stays
        whole, so that scores stay comparable. Raises RecR1Error for a number below 1."""
        sizes = {"train": n_train, "val": n_val, "test": n_test}

        def draw(split: str, frame: pd.DataFrame) -> pd.DataFrame:
            if (n := sizes[split]) is None:
                return frame
            if not is_count(n):
                raise RecR1Error(f"a split of {n!r} examples is none; ask for 1 or more")
            return frame.sample(min(n, len(frame)), random_state=seed).sort_index()

        return self.map_splits(draw)

    def describe(self) -> str:
        """Data card as plain text; of the test split it shows only counts."""
        seen, of_seen = _sample(pd.concat([self.train, self.val]))
        items, of_items = _sample(self.items)
        shared, chance = _shared_words(seen, self.items)
        lines = [
            f"Task {self.name}",
            f"catalogue: {len(self.items)} items, {_spread(items['text'])} words of text each{of_items}",
            f"requests: {_spread(seen['request'])} words each (train and val{of_seen})",
            f"overlap: of a request's different words {shared:.0%} stand in the text of its relevant item, "
            f"{chance:.0%} in that of a random one",
        ]
        for split, n in self.about["splits"].items():
            cold = "" if split == "train" else f", {n['cold_items']} of them cold (no train example about them)"
            lines.append(
                f"{split}: {n['examples']} examples about {n['items']} different items{cold}; {n['unreachable']} of "
                f"{n['targets']} targets are not in the catalogue"
            )
        first = self.train.iloc[0]
        wanted = {item: first["relevant"][item] for item in most_relevant(first["relevant"])[:SHOWN]}
        more = len(first["relevant"]) - len(wanted)
        told = f"{first['example_id']} asks {first['request']!r}, relevant {wanted}"
        lines += [
            f"cut-offs: k_train {self.k_train}, k_eval {self.k_eval}; metrics: {', '.join(self.metrics)}",
            *(f"{key}: {value}" for key, value in self.about.items() if key != "splits"),
            f"sample: {told}{f' and {more} more' * (more > 0)}",
        ]
        wrap = textwrap.TextWrapper(96, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(map(wrap.fill, lines))

    def _opened(self) -> pd.DataFrame:
        if TRAINERS:
            why = "stays sealed while a trainer runs; follow the training on val"
            raise RecR1Error(f"the test split of task {self.name!r} {why}")
        if (test := getattr(self, "_test", None)) is None:
            raise RecR1Error(f"this copy of task {self.name!r} holds no test split; load the task with load_task")
        return test


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The table without halves of surrogate pairs, which only columns of objects can hold."""
    mixed = [column for column in frame if is_object_dtype(frame[column])]
    return frame.assign(**{column: pd.Series(map(whole, frame[column]), frame.index, dtype=object) for column in mixed})


def _wordless(texts: pd.Series) -> int:
    """How many of the texts hold no word that an index keeps. The first words of nearly all tell."""

    def silent(text: str) -> bool:
        return not any(is_indexed(word) and word not in STOPWORDS_EN for word in words(text))

    return sum(silent(text[:100]) and silent(text) for text in texts)


def _sample(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """At most SAMPLE rows, always the same ones, and what the data card says of it."""
    small = len(frame) <= SAMPLE
    return (frame, "") if small else (frame.sample(SAMPLE, random_state=0), f", of a sample of {SAMPLE}")


def digest(frame: pd.DataFrame) -> str:
    """A short digest of a table's columns and rows, their order included."""
    found = hashlib.sha256(json.dumps(list(frame.columns)).encode())
    for row in frame.itertuples(index=False, name=None):
        found.update(json.dumps(row, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


def _spread(texts: pd.Series) -> str:
    counts = pd.Series([len(text.split()) for text in texts])
    return f"{counts.median():.0f} (median; {counts.min()} to {counts.max()})"


def _shared_words(examples: pd.DataFrame, items: pd.DataFrame) -> tuple[float, float]:
    """Mean share of a request's different words in the text of its relevant items, and of a random one."""
    best = {item for relevant in examples["relevant"] for item in most_relevant(relevant)}
    wanted = items[items["item_id"].isin(best)]
    texts = dict(zip(wanted["item_id"], wanted["text"]))
    of_text = functools.lru_cache(1000)(lambda text: {*words(text)})
    rng, shared, chance = random.Random(0), 0.0, 0.0
    for request, relevant in zip(examples["request"], examples["relevant"], strict=True):
        asked = {*words(request)} or {""}
        there = set().union(*(of_text(texts[item]) for item in most_relevant(relevant) if item in texts))
        shared += len(asked & there) / len(asked)
        chance += len(asked & of_text(rng.choice(items["text"].array))) / len(asked)
    return shared / len(examples), chance / len(examples)


def validate(items: pd.DataFrame, splits: Mapping[str, pd.DataFrame], task: str) -> dict[str, dict[str, int]]:
    """Counts per split of a sound task: examples, items, targets, unreachable, cold_items.

    A target that the catalogue lacks is unreachable. Items are counted where they are the most relevant of an example;
    a cold one is so in no example of train. Raises RecR1Error that names the first offending row (from 1): a column
    missing, no row, an id twice, what should be text and is not, a request in two splits, a gain that is not a positive
    finite number, no relevant item, ids to exclude not in the catalogue or relevant, a split without a reachable one.
    """
    check_texts(items, ITEM_COLUMNS, ITEM_COLUMNS, f"task {task!r}, catalogue")
    catalogue = set(items["item_id"])
    for split, frame in splits.items():
        where = f"task {task!r}, {split} split"
        check_texts(frame, EXAMPLE_COLUMNS, EXAMPLE_COLUMNS[:2], where)
        for row in frame.to_dict("records"):
            _check_example(row, catalogue, f"{where}, example {row['example_id']!r}")
    _check_apart(splits, task)

    seen: set[str] = set()  # the items of train, which comes first
    counts = {}
    for split, frame in splits.items():
        targets = [item for relevant in frame["relevant"] for item in relevant]
        lost = sum(target not in catalogue for target in targets)
        if lost == len(targets):
            example, item = frame["example_id"].iloc[0], items["item_id"].iloc[0]
            wants = f"example {example!r} wants {targets[0]!r}, the ids there look like {item!r}"
            raise RecR1Error(f"task {task!r}, {split} split: no relevant item is in the catalogue ({wants})")
        different = {item for relevant in frame["relevant"] for item in most_relevant(relevant)}
        counts[split] = dict(examples=len(frame), items=len(different), targets=len(targets), unreachable=lost)
        seen = seen or different
        counts[split]["cold_items"] = len(different & catalogue - seen)
    return counts


def check_texts(frame: pd.DataFrame, wanted: Sequence[str], texts: Sequence[str], where: str) -> None:
    """Raises RecR1Error without a `wanted` column, a row, or text in `texts`, and for a value of `texts[0]` twice."""
    for column in wanted:
        if column not in frame:
            raise RecR1Error(no_column(column, frame.columns, where))
    if frame.empty:
        raise RecR1Error(f"{where} is empty; give it at least one row")
    rows: dict[str, int] = {}
    for row, cells in enumerate(frame[list(texts)].itertuples(index=False, name=None), start=1):
        for column, value in zip(texts, cells):
            if not isinstance(value, str) or not value.strip():
                row_name = f"row {row}" if column == texts[0] else f"row {row} ({cells[0]!r})"
                raise RecR1Error(f"{where}, {row_name}: {column} is {shown(value)}; write text there")
        if (first := rows.setdefault(cells[0], row)) != row:
            raise RecR1Error(f"{where}: {texts[0]} {cells[0]!r} stands in rows {first} and {row}; keep one")


def _check_example(row: dict, catalogue: set[str], where: str) -> None:
    relevant = row["relevant"]
    if not isinstance(relevant, dict) or not relevant:
        raise RecR1Error(f"{where}: relevant is {relevant!r}; write {{item_id: gain}}, one item at least")
    for item, gain in relevant.items():
        if not isinstance(item, str):
            raise RecR1Error(f"{where}: the relevant item {item!r} is no text; ids are text")
        if isinstance(gain, bool) or not isinstance(gain, Real) or not math.isfinite(gain) or gain <= 0:
            raise RecR1Error(f"{where}: item {item!r} has gain {gain!r}; make it a positive finite number")
    for column in ("history", "exclude"):
        if not isinstance(ids := row.get(column, []), (list, tuple)):
            raise RecR1Error(f"{where}: {column} is {shown(ids)}; write a list of item ids, [] for none")
        for item in ids:
            if item not in catalogue:
                raise RecR1Error(f"{where}: {column} holds {item!r}, which is not in the catalogue; add the item")
            if column == "exclude" and item in relevant:
                raise RecR1Error(f"{where} excludes its own relevant item {item!r}; keep it in one of the two")


def _check_apart(splits: Mapping[str, pd.DataFrame], task: str) -> None:
    """No example_id in two splits, and no request (as `alike` has it) but of a `history`, which two users may share."""
    first_of: dict[tuple[str, str], tuple[str, str]] = {}
    for split, frame in splits.items():
        requests = {} if "history" in frame else {"request": alike(frame["request"])}
        for key, values in {"example_id": frame["example_id"], **requests}.items():
            for example, value, cell in zip(frame["example_id"], values, frame[key], strict=True):
                other, first = first_of.setdefault((key, value), (split, example))
                if other != split:
                    places = f"the {other} split (example {first!r}) and in the {split} split (example {example!r})"
                    same = f"task {task!r}: {key} {shown(cell.strip())} stands in {places}"
                    raise RecR1Error(f"{same}{', as a retriever sees it' * (key == 'request')}; keep one of the two")


def alike(requests: pd.Series) -> pd.Series:
    """For each request a key that it shares with those of the same words, in whatever order, case and punctuation."""
    keys = [" ".join(sorted(words(request))) or request.strip() for request in requests]
    return pd.Series(keys, requests.index, dtype=str)


def no_column(name: str, there: Iterable, where: str) -> str:
    """The sentence for a column that is not there."""
    return f"{where} has no column {name!r} (it has {', '.join(map(str, there)) or 'none'}); rename or add it"


def most_relevant(relevant: Mapping[str, float]) -> list[str]:
    """The items of the highest gain; of graded relevance in the manner of ESCI the exact ones."""
    best = max(relevant.values(), default=0.0)
    return [item for item, gain in relevant.items() if gain == best]


def is_empty(value: object) -> bool:
    """None, pandas' NA, NaN, or a text without letters."""
    nothing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return nothing or (isinstance(value, str) and not value.strip())


def shown(value: object, limit: int = 60) -> str:
    """A cell as a message shows it: `empty` for what holds nothing, long text cut."""
    text = "empty" if is_empty(value) else repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
