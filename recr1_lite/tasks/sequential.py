"""Sequential recommendation on real data: what a user had last is the request, what came next is to find.

What a user had before the targets never stands in the ranking (`exclude`): nobody is shown again what they have seen.

MovieLens-100k, cut in order of time: of each user the last films are the targets in test, those before them in val,
those before these in train; with `ahead=1` this is leave-one-out. So every user is in every split, as in the
transductive setting of Rec-R1 (arXiv 2503.24289), each time with another request and other targets.

Amazon Reviews 2023 (Hou et al., arXiv 2403.03952): titles of the last purchases, and the one that came next, in the
data set's own splits ("0core": no item is filtered out by its number of reviews). Rec-R1 takes the ones cut by time
("timestamp"), trains on all users, and tests on users with a train example (transductive) and without one (inductive)
apart. As in the paper: items without metadata go out of the histories and examples without a history are left out; the
catalogue is what such examples hold; an item's text is title, features, categories and description. Otherwise: an item
bought again is no target. It was never run from the Hub, at its size, where the kit was written.
"""

import csv
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from recr1_lite.assets import ASSETS, fetch
from recr1_lite.assets.fetch import AMAZON_REVIEWS
from recr1_lite.common import RecR1Error
from recr1_lite.tasks import readers
from recr1_lite.tasks.base import EXAMPLE_COLUMNS, ITEM_COLUMNS, Task, is_count, is_empty, shown
from recr1_lite.tasks.prompts import Prompt, chosen

LAST_TITLES = 10  # titles in a request that is made of a history, as in arXiv 2503.24289
BETWEEN = "; "  # stands between them


def past(history: Sequence[str], titles: Mapping[str, str], last: int, place: str) -> dict:
    """`request` (the last `last` titles of a history, the latest last), `exclude` and `history` of an example."""
    if not is_count(last):
        raise RecR1Error(f"last={last!r} shows no item of a history; use a whole number from 1 on")
    if not history:
        raise RecR1Error(f"{place}: history is empty; name an item at least, or leave the row out")
    for item in history:
        if item not in titles:
            raise RecR1Error(f"{place}: history holds item {item!r}, which the catalogue lacks; add it or leave it out")
    request = BETWEEN.join(titles[item] for item in history[-last:])
    return {"request": request, "exclude": list(dict.fromkeys(history)), "history": list(history)}


def history_examples(
    rows: Iterable[tuple[str, Sequence[str], str | Sequence[str]]], titles: Mapping[str, str], last: int = LAST_TITLES
) -> tuple[pd.DataFrame, int]:
    """A split of a sequential task, and how many repeats were left out.

    rows: (example_id, history, target or list of them) with the ids of the items that the user had, oldest first;
    titles: item_id -> title. A target that the history holds is a repeat: excluded, it could not be found. Raises
    RecR1Error: a history without items, an item without title, `last` no whole number from 1 on."""
    examples, repeats = [], 0
    for example, history, target in rows:
        asked = past(history, titles, last, f"example {example!r}")
        targets = dict.fromkeys([target] if isinstance(target, str) else target, 1.0)
        relevant = {item: gain for item, gain in targets.items() if item not in asked["exclude"]}
        repeats += len(targets) - len(relevant)
        if relevant:
            examples.append({"example_id": example, "relevant": relevant, **asked})
    return pd.DataFrame(examples, columns=[*EXAMPLE_COLUMNS, "exclude", "history"]), repeats


# Of three wordings the only one that was answered with genres (60 training requests; benchmarks/README.md).
# An item's text is a few words, so genres find films; repeated, they outweigh the titles of films excluded.
FILMS_QUESTION = "I liked these films: {request}\n\nWhich genres are they?"
FILMS_PROMPT = Prompt("compact", FILMS_QUESTION, prefix="Genres:", mode="expand", weight=4)
AHEAD = 10  # films to find: which of them came first is mostly chance, since they share their second (see `read_films`)
PLACES = {"test": 1, "val": 2, "train": 3}  # the place of the targets from the end of what a user saw
WHEEL = ASSETS["movielens-ratings"].wheel
ARTICLE = r"^(.+?), (The|An?|L[ae]s?|Il|Das|De[rt]|Die)(?= \(|$)"


def load_movielens(last: int = LAST_TITLES, ahead: int = AHEAD) -> Task:
    """The MovieLens task: a request holds the titles of the last `last` films, the latest last; the next `ahead` films
    are relevant, 1 each. Raises RecR1Error as `build_films`, and where the data cannot be fetched."""
    return build_films(*read_films(fetch("movielens-ratings"), fetch("movielens-films")), last, ahead)


def name_genres(items: pd.DataFrame) -> Callable[[str], tuple[str, str]]:
    """A teacher for SFT that knows the catalogue: the two commonest genres of a request's films, and the thought."""
    genres = {title: text.rpartition(") ")[2].split() for title, text in zip(items["title"], items["text"])}
    return functools.partial(_commonest, genres)  # not a closure: a task can be pickled


def _commonest(genres: dict[str, list[str]], request: str) -> tuple[str, str]:
    seen = Counter(genre for title in request.split(BETWEEN) for genre in genres.get(title, ()))
    commonest = sorted(seen, key=lambda genre: (-seen[genre], genre))[:2]
    return " ".join(commonest), f"Most of them are {' and '.join(commonest)}." if commonest else ""


def read_films(ratings: Path, films: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`user`, `item` of all ratings, each user's in order of time, and the films: `item_id`, `title`, `text`.

    Both files are tables with tabs, as RecBole writes them. Ratings of one second (three in four share theirs with
    another of the same user) keep the order of the file, which is random; an order by id would put certain films last.
    """
    table = dict(sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False)
    seen, raw = pd.read_csv(ratings, **table), pd.read_csv(films, **table)
    seen = seen.iloc[seen["timestamp:float"].astype(float).argsort(kind="stable")]
    title = raw["movie_title:token_seq"].str.replace(ARTICLE, r"\2 \1", regex=True)  # "Birds, The": The Birds
    text = title + " (" + raw["release_year:token"] + ") " + raw["class:token_seq"]
    items = pd.DataFrame({"item_id": raw["item_id:token"], "title": title, "text": text})
    return pd.DataFrame({"user": seen["user_id:token"], "item": seen["item_id:token"]}), items


def build_films(seen: pd.DataFrame, items: pd.DataFrame, last: int = LAST_TITLES, ahead: int = AHEAD) -> Task:
    """Task from what `read_films` gives. A user without a film before three times `ahead` targets gives no example.
    Raises RecR1Error: `last` or `ahead` not a whole number from 1 on, no user with enough films."""
    if not is_count(ahead):
        raise RecR1Error(f"ahead={ahead!r} leaves no film to find; use a whole number from 1 on")
    titles, least = dict(zip(items["item_id"], items["title"])), 3 * ahead + 1
    users = seen.groupby("user", sort=False)["item"]
    past = {user: films.tolist() for user, films in users if len(films) >= least}
    if not past:
        raise RecR1Error(f"ahead={ahead} needs users with {least} films, and nobody has so many; take fewer")
    splits = {}
    for split, place in PLACES.items():
        at = -place * ahead
        rows = [(f"user-{user}-{split}", films[:at], films[at:][:ahead]) for user, films in past.items()]
        splits[split], _ = history_examples(rows, titles, last)
    about = {
        "source": f"MovieLens-100k (GroupLens; Harper & Konstan 2015), in the PyPI wheel {WHEEL}",
        "licence": "GroupLens terms: research use, cite it, never redistribute it; you fetch it yourself",
        "request": f"titles of the last {last} films that a user rated, the latest last",
        "relevant": f"the next {ahead} films that the user rated",
        "item text": "title, year and genres",
        "exclude": "every film that the user rated before those to find stays out of the ranking",
        "splits made": f"of each user the last {ahead} films are to find in test, those before in val, then train",
        "users": f"{len(past)} of {users.ngroups}; the others rated fewer than {least} films",
    }
    return Task("movielens", items, **splits, prompt=FILMS_PROMPT, rule=name_genres(items), about=about)


BOUGHT = "I bought these products, the latest last: {request}\n\n"
REVIEWS_PROMPT = Prompt("compact", f"{BOUGHT}What kind of product do I need next? Answer with keywords.", mode="expand")
FILES = {"train": "train", "val": "valid", "test": "test"}  # split -> its name in the data set
SETTINGS = {"transductive": "with a train example", "inductive": "without a train example", "all": "of both"}


def load_reviews(
    category: str = "All_Beauty",
    setting: str = "transductive",
    cut: str = "timestamp",
    catalogue: str = "examples",
    items: readers.Table | None = None,
    requests: str | os.PathLike | None = None,
    last: int = LAST_TITLES,
    revision: str | None = None,
) -> Task:
    """The Amazon Reviews task of a category, such as "All_Beauty", "Baby_Products" or "Video_Games".

    setting: which users val and test have, or "all". cut: the data set's "timestamp", or "last_out" (each user's last
    item is for test, the one before for val). last: titles in a request. catalogue: "examples" for the items that
    examples hold, "metadata" for all of the file. items: the metadata, rows of parent_asin, title and perhaps features,
    description, categories. requests: a folder with <category>.train.csv, .valid.csv and .test.csv (or .csv.gz), with
    user_id, parent_asin and history (ids with spaces between, oldest first). Both default to the files of the Hub (the
    metadata of the largest categories takes 12 GB), read line by line. revision: of that repo, instead of the pinned
    one. Raises RecR1Error that names the file and the line."""
    chosen(SETTINGS, setting=setting)
    chosen(("timestamp", "last_out"), cut=cut)
    chosen(("examples", "metadata"), catalogue=catalogue)
    hub, notes = readers.HubFiles(), Counter[str]()
    bought = {}
    for split, name in FILES.items():
        file = f"{category}.{name}.csv"
        source = None if requests is None else _local_file(requests, file)
        on_hub = f"benchmark/0core/{cut}_w_his/{file}"
        bought[split] = _purchases(hub.instead_of(source, AMAZON_REVIEWS, on_hub, "requests=", revision), split)
    items = hub.instead_of(items, AMAZON_REVIEWS, f"raw/meta_categories/meta_{category}.jsonl", "items=", revision)
    asked = {item for own in bought.values() for item in chain(own["target"], chain.from_iterable(own["history"]))}
    table = _metadata(items, asked, catalogue == "metadata", notes)
    titles, splits = dict(zip(table["item_id"], table["title"])), {}
    for split, own in bought.items():
        histories = own["history"]
        own["history"] = [[item for item in history if item in titles] for history in histories]
        gone = histories.map(len).sum() - own["history"].map(len).sum()
        notes["items of histories without metadata, left out"] += int(gone)
        bought[split] = own[own["history"].map(bool)]
        notes["examples without a history then, left out"] += len(own) - len(bought[split])
    for split, own in bought.items():
        if split != "train" and setting != "all":
            own = own[own["user"].isin(bought["train"]["user"]) == (setting == "transductive")]
            if own.empty:
                lacks = f"the {FILES[split]} file has no user {SETTINGS[setting]}"
                raise RecR1Error(f"{lacks}, so the {setting} {split} split is empty; take setting='all'")
        splits[split], repeats = history_examples(zip(own["example_id"], own["history"], own["target"]), titles, last)
        notes["examples with an item bought again, left out"] += repeats
    about: dict = {
        "source": f"Amazon Reviews 2023, {category}; {hub}",
        "licence": "its page states none; for research, cite arXiv 2403.03952",
        "setting": f"{setting}: val and test have users {SETTINGS[setting]}",
        "splits made": f"by the data set, {cut}",
        "request": f"titles of the last {last} items that a user bought, the latest last",
    }
    name, metrics = f"amazon_reviews-{category}-{setting}", ("ndcg@50", "ndcg@10", "recall@50", "recall@10", "mrr")
    about |= +notes
    return Task(name, table, **splits, prompt=REVIEWS_PROMPT, k_train=5000, k_eval=50, metrics=metrics, about=about)


def _local_file(folder: str | os.PathLike, name: str) -> Path:
    if not Path(folder).expanduser().is_dir():
        raise RecR1Error(f"requests: {folder} is no folder; name the folder of {name}")
    plain_file = Path(folder).expanduser() / name
    zipped = plain_file.with_name(f"{name}.gz")
    return zipped if zipped.exists() and not plain_file.exists() else plain_file


def _purchases(source: readers.Table, split: str) -> pd.DataFrame:
    """`example_id`, `user`, `history`, `target` of the rows with a history; a user's first purchase has none."""
    name, rows = readers.read_rows(source, f"requests[{FILES[split]!r}]")
    bought = []
    for row in rows:
        user, target, history = row.id("user_id"), row.id("parent_asin"), row["history"].split()
        if history:
            bought.append((f"{split}-{row.place.rpartition(' ')[2]}", user, history, target))
    if not bought:
        raise RecR1Error(f"{name} has no row with a history; give the {FILES[split]} file of a category that has some")
    return pd.DataFrame(bought, columns=["example_id", "user", "history", "target"])


def _metadata(source: readers.Table, asked: set[str], whole: bool, notes: Counter[str]) -> pd.DataFrame:
    """Items of the metadata, all or those that an example holds. Raises RecR1Error that names the row."""
    name, rows = readers.read_rows(source, "items")

    def found() -> Iterator[tuple]:
        for row in rows:
            if whole or row.id("parent_asin") in asked:
                title, texts = readers.plain(row.text("title", empty=True)), ("features", "categories", "description")
                parts = [_part(row.get(key), f"{row.place}: {key}") for key in texts]
                yield row, "parent_asin", title, " ".join(filter(None, [title, *parts])), ""

    ids = f"their ids look like {min(asked)!r}"
    lacks = f"{name} has none of the items of the requests ({ids}); give the metadata of the category"
    table = readers.catalogue(found(), notes, lacks, "items without a title, left out")
    if asked.isdisjoint(table["item_id"]):
        raise RecR1Error(lacks)
    return table[ITEM_COLUMNS]


def _part(value: object, place: str) -> str:
    """A text, or a list of texts, as one text; "" for nothing."""
    if isinstance(value, str) or is_empty(value):
        return readers.plain(value) if isinstance(value, str) else ""
    if not isinstance(value, (list, tuple, np.ndarray)) or not all(isinstance(part, str) for part in value):
        raise RecR1Error(f"{place} is {shown(value)}; write text or a list of texts there")
    return readers.plain(" ".join(value))
