"""Sequential recommendation on real data: the films a user saw last are the request, the next ones are to find.

MovieLens-100k, cut in order of time: of each user the last films are the targets in test, those before them in val,
those before these in train; with `ahead=1` this is leave-one-out. So every user is in every split, as in the paper's
transductive setting, each time with another request and other targets. What a user saw before the targets never stands
in the ranking (`exclude`): nobody is shown again what they have seen.
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
from recr1_lite.tasks.splits import BETWEEN, LAST_TITLES, history_examples, is_count

# Of three wordings the only one that was answered with genres (60 training requests; benchmarks/README.md).
# An item's text is a few words, so genres find films; repeated, they outweigh the titles of films excluded.
PROMPT = Prompt(
    style="compact",
    instruction="I liked these films: {request}\n\nWhich genres are they?",
    prefix="Genres:",
    mode="expand",
    weight=4,
)
AHEAD = 10  # films to find: which of them came first is mostly chance, since they share their second (see `read`)
PLACES = {"test": 1, "val": 2, "train": 3}  # the place of the targets from the end of what a user saw
WHEEL = ASSETS["movielens-ratings"].wheel
RATING_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
FILM_COLUMNS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
ARTICLE = r"^(.+?), (The|An?|L[ae]s?|Il|Das|De[rt]|Die)(?= \(|$)"


def load(last: int = LAST_TITLES, ahead: int = AHEAD) -> Task:
    """The MovieLens task: a request holds the titles of the last `last` films, the latest last; the next `ahead` films
    are relevant, 1 each.

    Raises RecR1Error: `last` or `ahead` not a whole number from 1 on, no user with enough films, or the data cannot be
    fetched.
    """
    return build(*read(fetch("movielens-ratings"), fetch("movielens-films")), last, ahead)


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


def build(seen: pd.DataFrame, items: pd.DataFrame, last: int = LAST_TITLES, ahead: int = AHEAD) -> Task:
    """Task from what `read` gives. A user without a film before three times `ahead` targets gives no example."""
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
            "relevant": f"the next {ahead} films that the user rated",
            "item text": "title, year and genres",
            "exclude": "every film that the user rated before those to find stays out of the ranking",
            "splits made": f"of each user the last {ahead} films are to find in test, those before in val, then train",
            "users": f"{len(past)} of {users.ngroups}; the others rated fewer than {least} films",
        },
    )
