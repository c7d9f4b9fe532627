"""Sequential recommendation on real data: the films a user saw last are the request, the next is to find.

MovieLens-100k, leave-one-out in order of time: of each user the last film is the target in test, the one
before it in val, the one before that in train. So every user is in every split, as in the paper's
transductive setting, each time with another request and another target. What a user saw before the target
never stands in the ranking (`exclude`): nobody is shown again what they have seen.
"""

import csv
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from recr1_lite.assets import ASSETS, fetch
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import Task
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.readers import csv_rows
from recr1_lite.tasks.splits import BETWEEN, LAST_TITLES, history_examples

# Of three wordings the only one that was answered with genres (60 training requests; benchmarks/README.md).
# An item's text is a few words, so genres find films; repeated, they outweigh the titles of films excluded.
PROMPT = Prompt(
    style="compact",
    instruction="I liked these films: {request}\n\nWhich genres are they?",
    prefix="Genres:",
    mode="expand",
    weight=4,
)
PLACES = {"test": 1, "val": 2, "train": 3}  # the target's place from the end of what a user saw
WHEEL = ASSETS["movielens-ratings"].wheel
RATING_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
FILM_COLUMNS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
ARTICLE = r"^(.+?), (The|An?|L[ae]s?|Il|Das|De[rt]|Die)(?= \(|$)"


def load(last: int = LAST_TITLES) -> Task:
    """The MovieLens task: a request holds the titles of the last `last` films, the latest last.

    Raises RecR1Error: `last` not a whole number from 1 on, or the data cannot be fetched.
    """
    return build(*read(fetch("movielens-ratings"), fetch("movielens-films")), last)


def name_genres(items: pd.DataFrame, count: int = 2) -> Callable[[str], tuple[str, str]]:
    """A teacher for SFT that knows the catalogue: the commonest genres of a request's films, and the thought."""
    genres = {title: text.rpartition(") ")[2].split() for title, text in zip(items["title"], items["text"])}

    return functools.partial(_commonest, genres, count)  # not a closure: a task can be pickled


def _commonest(genres: dict[str, list[str]], count: int, request: str) -> tuple[str, str]:
    seen = Counter(genre for title in request.split(BETWEEN) for genre in genres.get(title, ()))
    commonest = sorted(seen, key=lambda genre: (-seen[genre], genre))[:count]
    return " ".join(commonest), f"Most of them are {' and '.join(commonest)}." if commonest else ""


def read(ratings: Path, films: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`user`, `item` of all ratings, each user's in order of time, and the films: `item_id`, `title`, `text`.

    Both files are tables with tabs, as RecBole writes them. Ratings of one second (three in four share theirs with
    another of the same user) keep the order of the file, which is random; an order by id would put certain films last.
    Raises RecR1Error that names the file and its first bad line.
    """
    seen, raw = _table(ratings, RATING_COLUMNS), _table(films, FILM_COLUMNS)
    time = pd.to_numeric(seen["timestamp:float"], errors="coerce")
    if time.isna().any():
        place = time.index[time.isna()][0]
        wrong = f"the timestamp {seen['timestamp:float'][place]!r} is no number"
        raise RecR1Error(f"{place}: {wrong}; fetch the file again")
    seen = seen.iloc[time.argsort(kind="stable")]
    item, title, year, genres = (raw[column] for column in FILM_COLUMNS)
    title = title.str.replace(ARTICLE, r"\2 \1", regex=True)  # "Birds, The": The Birds
    items = pd.DataFrame({"item_id": item, "title": title, "text": title + " (" + year + ") " + genres})
    unknown = seen.loc[~seen["item_id:token"].isin(item), "item_id:token"]
    if len(unknown):
        name = f"{ratings.name} has ratings of film {unknown.iloc[0]!r}"
        raise RecR1Error(f"{name}, which {films.name} lacks; use those of {WHEEL}")
    return pd.DataFrame({"user": seen["user_id:token"], "item": seen["item_id:token"]}), items


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a file of fields between tabs, every cell as text; the index holds the places."""
    rows = list(csv_rows(path, path.name, delimiter="\t", quoting=csv.QUOTE_NONE))
    cells = [[row.text(column) for column in columns] for row in rows]
    return pd.DataFrame(cells, [row.place for row in rows], columns)


def build(seen: pd.DataFrame, items: pd.DataFrame, last: int = LAST_TITLES) -> Task:
    """Task from what `read` gives. A user who saw fewer than four films gives no example."""
    titles = dict(zip(items["item_id"], items["title"]))
    past = {user: films.tolist() for user, films in seen.groupby("user", sort=False)["item"] if len(films) > 3}
    splits = {}
    for split, place in PLACES.items():
        rows = [(f"user-{user}-{split}", films[:-place], films[-place]) for user, films in past.items()]
        splits[split], _ = history_examples(rows, titles, last)
    return Task(
        name="movielens",
        items=items,
        **splits,
        prompt=PROMPT,
        rule=name_genres(items),
        about={
            "source": f"MovieLens-100k (GroupLens; Harper & Konstan 2015), in the PyPI wheel {WHEEL}",
            "licence": "GroupLens terms: research use, cite it, never redistribute it; you fetch it yourself",
            "request": f"titles of the last {last} films that a user rated, the latest last",
            "item text": "title, year and genres",
            "exclude": "every film that the user rated before the target stays out of the ranking",
            "splits made": "each user's last film is the target in test, the one before in val, then train",
        },
    )
