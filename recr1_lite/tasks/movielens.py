"""Sequential recommendation on real data: the films a user saw last are the request, the next is to find.

MovieLens-100k, leave-one-out in order of time: of each user the last film is the target in test, the one
before it in val, the one before that in train. So every user is in every split, as in the paper's
transductive setting, each time with another request and another target. What a user saw before the target
never stands in the ranking (`exclude`): nobody is shown again what they have seen.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import LAST_TITLES, Task, check_last, history_examples
from recr1_lite.tasks.prompts import Prompt

# Of three wordings the only one that was answered with genres (60 training requests; benchmarks/README.md).
# An item's text is a few words, so genres find films; repeated, they outweigh the titles of films excluded.
PROMPT = Prompt(
    style="compact",
    instruction="I liked these films: {request}\n\nWhich genres are they?",
    prefix="Genres:",
    mode="expand",
    weight=4,
)
SPLITS = {"test": 1, "val": 2, "train": 3}  # the target's place from the end of what a user saw
WHEEL = assets.ASSETS["movielens-ratings"].wheel
RATING_COLUMNS = ("user_id:token", "item_id:token", "timestamp:float")
FILM_COLUMNS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
_ARTICLE = re.compile(r"^(.+?), (The|An?|L[ae]s?|Il|Das|De[rt]|Die)(?= \(|$)")


def load(last: int = LAST_TITLES) -> Task:
    """The MovieLens task: a request holds the titles of the last `last` films, the latest last.

    Raises RecR1Error: `last` not a whole number from 1 on, or the data cannot be fetched.
    """
    check_last(last)
    return build(*read(assets.fetch("movielens-ratings"), assets.fetch("movielens-films")), last)


def name_genres(items: pd.DataFrame, count: int = 2) -> Callable[[str], tuple[str, str]]:
    """A teacher for SFT that knows the catalogue: the commonest genres of a request's films, and the thought."""
    genres = {
        title: text.rpartition(") ")[2].split() for title, text in zip(items["title"], items["text"], strict=True)
    }

    def teach(request: str) -> tuple[str, str]:
        seen = Counter(genre for title in request.split("; ") for genre in genres.get(title, ()))
        found = [genre for genre, _ in sorted(seen.items(), key=lambda pair: (-pair[1], pair[0]))[:count]]
        return " ".join(found), f"Most of them are {' and '.join(found)}." if found else ""

    return teach


def read(ratings: Path, films: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`user`, `item` of all ratings, each user's in order of time, and the films: `item_id`, `title`, `text`.

    Both files are tables with tabs, as RecBole writes them. Ratings of one second (three in four share theirs
    with another of the same user) keep the order of the file, which is random; an order by id would put
    certain films last. Raises RecR1Error that names the file and its first bad line.
    """
    seen = _table(ratings, RATING_COLUMNS)
    time = pd.to_numeric(seen["timestamp:float"], errors="coerce")
    if time.isna().any():
        bad = time.index[time.isna()][0]
        raise RecR1Error(
            f"{ratings.name}, line {bad + 2}: the timestamp {seen['timestamp:float'][bad]!r} is no number; "
            "fetch the file again"
        )
    seen = seen.assign(time=time).sort_values("time", kind="stable")
    raw = _table(films, FILM_COLUMNS)
    own, title, year, genres = (raw[column] for column in FILM_COLUMNS)
    title = title.map(lambda text: _ARTICLE.sub(r"\2 \1", text))  # "Birds, The": The Birds
    items = pd.DataFrame({"item_id": own, "title": title, "text": title + " (" + year + ") " + genres})
    known = seen["item_id:token"].isin(set(own))
    if not known.all():
        stranger = seen["item_id:token"][~known].iloc[0]
        raise RecR1Error(
            f"{ratings.name} has ratings of film {stranger!r}, which {films.name} lacks; use those of {WHEEL}"
        )
    return pd.DataFrame({"user": seen["user_id:token"], "item": seen["item_id:token"]}), items


def build(seen: pd.DataFrame, items: pd.DataFrame, last: int = LAST_TITLES) -> Task:
    """Task from what `read` gives. A user who saw fewer than four films gives no example."""
    titles = dict(zip(items["item_id"], items["title"]))
    rows: dict[str, list] = {split: [] for split in SPLITS}
    for user, films in seen.groupby("user", sort=False)["item"]:
        films = films.tolist()
        for split, place in SPLITS.items() if len(films) > max(SPLITS.values()) else ():
            rows[split].append((f"user-{user}-{split}", films[:-place], films[-place]))
    splits = {split: history_examples(own, titles, last)[0] for split, own in rows.items()}
    return Task(
        name="movielens",
        items=items,
        **splits,
        prompt=PROMPT,
        k_train=1000,
        k_eval=100,
        metrics=("ndcg@100", "ndcg@10", "recall@10", "mrr"),
        about={
            "source": f"MovieLens-100k (GroupLens; Harper & Konstan 2015), in the PyPI wheel {WHEEL}",
            "licence": "GroupLens terms: research use, cite it, never redistribute it; you fetch it yourself",
            "request": f"titles of the last {last} films that a user rated, the latest last",
            "item text": "title, year and genres",
            "exclude": "every film that the user rated before the target stays out of the ranking",
            "splits made": "each user's last film is the target in test, the one before in val, then train",
        },
    )


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A file of fields between tabs, every cell as text. Raises RecR1Error that names the first bad line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RecR1Error(f"{path.name} cannot be read ({problem}); fetch it again") from problem
    rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = rows[0] if rows else []
    if missing := [column for column in columns if column not in header]:
        raise RecR1Error(f"{path.name} has no column {missing[0]!r}; it is not the file of {WHEEL}")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header) or not all(row):
            raise RecR1Error(
                f"{path.name}, line {line} lacks a text in one of the {len(header)} columns; fetch it again"
            )
    return pd.DataFrame(rows[1:], columns=header)
