"""The MovieLens task on a hand-made mini ml-100k in the same format, and on the real one; and `exclude`."""

import math
import pickle
from types import SimpleNamespace

import pandas as pd
import pytest

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import evaluate
from recr1_lite.ledger import Ledger
from recr1_lite.report.inspector import inspect_rewrites
from recr1_lite.search.base import CallableRetriever
from recr1_lite.tasks import Task, load_task
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.tasks.sequential import build_films, name_genres, read_films
from recr1_lite.train.rewards import Scorer

FILMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + "".join(
    f"{number}\t{title}\t{1990 + number}\tDrama War\n"
    for number, title in enumerate('One|Two, The|Trê|Four (Vier, Die)|Five|Six|"7|Eight'.split("|"), 1)
)
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
RATINGS = [  # user, film, time: out of order in the file
    *[("a", film, time) for film, time in ((5, 50), (1, 10), (3, 30), (2, 20), (6, 60), (4, 40))],
    ("once", 1, 5),  # one film
    *[("few", film, film) for film in (1, 2, 3)],  # one too few
    *[("tie", film, 7) for film in (8, 2, 6, 1)],  # all in one second: the file's order
    *[("ten", film, f"{time}.0") for time, film in enumerate((8, 7, 6, 5, 4, 3, 2, 1), 100)],
]


def written(folder, ratings=RATINGS, films=FILMS):
    rows = "".join(f"{user}\t{film}\t3\t{time}\n" for user, film, time in ratings)
    (folder / "x.inter").write_text(HEADER + rows, encoding="utf-8")
    (folder / "x.item").write_text(films, encoding="utf-8")
    return folder / "x.inter", folder / "x.item"


@pytest.fixture
def mini(tmp_path, monkeypatch) -> Task:
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    return build_films(*read_films(*written(tmp_path)), last=4, ahead=1)


def row(frame: pd.DataFrame, user: str) -> dict:
    return frame.set_index("example_id").loc[f"user-{user}-train"].to_dict()


def test_leave_one_out_in_order_of_time(mini):
    test = mini.unseal_test("here").set_index("example_id")
    last = test.loc["user-a-test"]  # films 1 to 6 in order of time; the last four of the history, latest last
    assert last["request"] == "The Two; Trê; Four (Vier, Die); Five"
    assert last["relevant"] == {"6": 1.0} and last["exclude"] == ["1", "2", "3", "4", "5"]
    val = mini.val.set_index("example_id").loc["user-a-val"]
    assert (val["relevant"], val["exclude"]) == ({"5": 1.0}, ["1", "2", "3", "4"])
    assert row(mini.train, "a")["request"] == "One; The Two; Trê"  # a history shorter than it may be
    assert row(mini.train, "a")["relevant"] == {"4": 1.0}
    ten = test.loc["user-ten-test"]
    assert ten["request"] == "Five; Four (Vier, Die); Trê; The Two" and len(ten["exclude"]) == 7


def test_several_films_ahead_in_order_of_time(tmp_path, monkeypatch):
    """Of the films 8 to 1, two each for test, val and train; the others saw six and fewer, and give no example."""
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    task = build_films(*read_films(*written(tmp_path)), last=2, ahead=2)
    rows = [frame.drop(columns="exclude").values.tolist() for frame in (task.train, task.val, task.unseal_test("here"))]
    assert rows == [
        [["user-ten-train", 'Eight; "7', {"6": 1.0, "5": 1.0}, ["8", "7"]]],
        [["user-ten-val", "Six; Five", {"4": 1.0, "3": 1.0}, ["8", "7", "6", "5"]]],
        [["user-ten-test", "Four (Vier, Die); Trê", {"2": 1.0, "1": 1.0}, ["8", "7", "6", "5", "4", "3"]]],
    ]
    assert task.val["exclude"].tolist() == task.val["history"].tolist()
    assert "users: 1 of 5; the others rated fewer than 7 films" in task.describe()


def test_ties_keep_the_order_of_the_file(mini):
    assert row(mini.train, "tie") == {"request": "Eight", "relevant": {"2": 1.0}, "exclude": ["8"], "history": ["8"]}
    assert mini.val.set_index("example_id").loc["user-tie-val", "relevant"] == {"6": 1.0}


def test_users_with_too_few_films_give_none(mini):
    users = {name.split("-")[1] for name in mini.train["example_id"]}
    assert users == {"a", "tie", "ten"} and len(mini.val) == 3
    assert mini.items["text"].tolist()[1] == "The Two (1992) Drama War"
    assert mini.items["title"].tolist()[6] == '"7'  # a quote is a letter like any other
    card = mini.describe().replace("\n  ", " ")
    assert "never redistribute" in card and "exclude: every film" in card


def test_options(tmp_path):
    files = read_films(*written(tmp_path))
    for options, words in (
        (dict(last=0, ahead=1), "last=0 shows no item"),
        (dict(ahead=0), "ahead=0 leaves no film to find"),
        (dict(ahead=3), "ahead=3 needs users with 10 films, and nobody has so many; take fewer"),
    ):
        with pytest.raises(RecR1Error, match=words):
            build_films(*files, **options)


# exclude, in evaluate, Scorer, inspector and validate; the ranking is always a, b, c, d, e

ORDER = CallableRetriever(lambda queries, k: [list("abcde")[:k] for _ in queries])
ITEMS = pd.DataFrame([(i, i.upper(), f"text {i}") for i in "abcde"], columns=["item_id", "title", "text"])


def examples(*rows, split="val") -> pd.DataFrame:
    named = [(f"{split}{n}", f"{split} {n}", *row) for n, row in enumerate(rows)]
    return pd.DataFrame(named, columns=["example_id", "request", "relevant", "exclude"])


def task(*rows, k: int = 2) -> Task:
    others = {split: examples(({"a": 1.0}, []), split=split) for split in ("train", "test")}
    sizes = {"k_train": k, "k_eval": k, "metrics": (f"ndcg@{k}", "mrr")}
    return Task("toy", ITEMS, val=examples(*rows), prompt=PROMPT, **others, **sizes)


PROMPT = Prompt(style="compact", instruction="{request}")
ROWS = [
    ({"c": 1.0}, []), ({"c": 1.0}, ["a"]), ({"c": 1.0}, ["b", "a"]), ({"e": 2.0, "d": 1.0}, ["a", "b", "c"]),
]  # fmt: skip
BY_HAND = [0.0, 1 / math.log2(3), 1.0, (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))]


def same(requests):
    return list(requests)


def test_evaluate_and_scorer_rank_what_is_left():
    """The search goes deeper, so that what moves up fills the first k places: d and e reach the top 2."""
    own = task(*ROWS)
    result = evaluate(same, own, ORDER, progress=False)
    assert result.rows["ndcg@2"].tolist() == pytest.approx(BY_HAND)
    assert result.rows["mrr"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert result.rows["top"].tolist() == [["a", "b"], ["b", "c"], ["c", "d"], ["d", "e"]]
    assert result.rows["ranks"].tolist() == [{"c": None}, {"c": 2}, {"c": 1}, {"e": 2}]  # of the best
    scored = Scorer(ORDER, own.val, PROMPT, 2).score(list(own.val["example_id"]), ["words"] * 4)
    assert [one.ndcg for one in scored] == [one.raw_ndcg for one in scored] == pytest.approx(BY_HAND)


def test_no_column_and_empty_lists_change_nothing():
    own = task(*[(relevant, []) for relevant, _ in ROWS])
    bare = SimpleNamespace(name="toy", val=own.val.drop(columns="exclude"), k_eval=2, metrics=own.metrics)
    one, other = (evaluate(same, which, ORDER, progress=False) for which in (own, bare))
    assert one.rows.equals(other.rows) and one.rows["ndcg@2"].sum() == 0
    asked = []
    deep = CallableRetriever(lambda queries, k: [asked.append(k) or list("abcde")[:k] for _ in queries])
    Scorer(deep, bare.val, PROMPT, 2).score(["val0"], ["words"])
    assert set(asked) == {2}


def test_inspector_shows_what_is_left():
    result = evaluate(same, task(*ROWS), ORDER, progress=False)
    shown = inspect_rewrites(result, result, ITEMS, n=4).examples
    for example in shown:
        gone = ROWS[int(example["example_id"][3:])][1]
        assert not {hit["id"] for stage in example["stages"] for hit in stage["top"]} & set(gone)


@pytest.mark.parametrize(
    "exclude, words",
    [
        (["a", "z"], "val split, example 'val0': exclude holds 'z', which is not in the catalogue"),
        (["c"], "val split, example 'val0' excludes its own relevant item 'c'"),
        ("ab", "example 'val0': exclude is 'ab'; write a list of item ids"),
        (None, "exclude is empty; write a list"),
    ],
)
def test_unsound_exclude(exclude, words):
    with pytest.raises(RecR1Error, match=words) as error:
        task(({"c": 1.0}, exclude))
    assert "\n" not in str(error.value)


# the real data


@pytest.fixture(scope="module")
def movielens() -> Task:
    try:
        assets.fetch("movielens-ratings"), assets.fetch("movielens-films")
    except RecR1Error as problem:
        if assets.offline():
            pytest.skip(str(problem))
        raise
    return load_task("movielens")


def test_counts_of_the_real_data(movielens, tmp_path):
    seen, items = read_films(assets.fetch("movielens-ratings"), assets.fetch("movielens-films"))
    assert (len(seen), seen["user"].nunique(), len(items)) == (100_000, 943, 1682)
    test = movielens.unseal_test("test", Ledger(tmp_path / "ledger.jsonl"))
    assert len(movielens.train) == len(movielens.val) == len(test) == 730
    films = seen.groupby("user")["item"].apply(list)
    splits = (frame.to_dict("records") for frame in (movielens.train, movielens.val, test))
    for train, val, own in zip(*splits, strict=True):
        assert [*own["history"], *own["relevant"]] == films[own["example_id"].split("-")[1]]  # nothing is lost
        assert [*val["history"], *val["relevant"]] == own["history"]
        assert [*train["history"], *train["relevant"]] == val["history"]  # what recommenders learn: no target after it
        assert {len(row["relevant"]) for row in (train, val, own)} == {10}


def test_leave_one_out_stays_the_same():
    """Items and splits as they were when results were first measured on them."""
    parts = load_task("movielens", ahead=1).fingerprint
    digests = ["c55a8b2f21664dc5", "b93792790ebbd55e", "6ac78c526502af8e", "068e0392c9a39161"]
    assert [parts[name] for name in ("items", "train", "val", "test")] == digests


def test_the_teacher_names_the_commonest_genres(mini):
    assert pickle.loads(pickle.dumps(mini)).rule("One; Trê") == mini.rule("One; Trê") != ("", "")
    texts = ["A (1990) Drama Comedy", "B (1991) Drama", "C (1992) War Comedy Drama"]
    teach = name_genres(pd.DataFrame({"title": list("ABC"), "text": texts}))
    assert teach("A; B; C") == ("Drama Comedy", "Most of them are Drama and Comedy.")
    assert teach("C")[0] == "Comedy Drama"  # equals in the order of the alphabet
    assert teach("unknown") == ("", "")
