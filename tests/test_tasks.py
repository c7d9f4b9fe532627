"""`Task`, its seal and its validation; load_task; the clothing task; your own tables."""

import copy
import dataclasses
import gzip
import hashlib
import json
import pickle
import threading
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hub_files import write_jsonl

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import evaluate
from recr1_lite.ledger import Ledger
from recr1_lite.search import build_retriever
from recr1_lite.tasks import Task, load_task, sealed
from recr1_lite.tasks.clothing import SUBSTITUTE
from recr1_lite.tasks.prompts import Prompt, compose
from recr1_lite.tasks.readers import plain, read_rows

SECRET = "the sealed question"
ITEM_COLUMNS = ["item_id", "title", "text"]
ITEMS = pd.DataFrame([("1", "Lamp", "a green desk lamp"), ("2", "Chair", "an oak chair")], columns=ITEM_COLUMNS)


def frame(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["example_id", "request", "relevant"])


def toy(**changed) -> Task:
    sound = {
        "name": "toy",
        "items": ITEMS,
        "train": frame(("t1", "light for my desk", {"1": 1.0}), ("t2", "light for my desk", {"1": 2, "9": 1.0})),
        "val": frame(("v1", "something to sit on", {"2": 1.0})),
        "test": frame(("s1", SECRET, {"2": 1.0}), ("s2", "a second one", {"1": 1.0})),
        "prompt": Prompt(style="compact", instruction="{request}"),
        "k_train": 100,
        "about": {"licence": "none"},
    }
    return Task(**sound | changed)


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    return Ledger()


def test_counts_and_data_card():
    splits = toy().about["splits"]
    # items: the most relevant ones, so not "9" beside a "1" of gain 2
    assert splits["train"] == {"examples": 2, "items": 1, "targets": 3, "unreachable": 1, "cold_items": 0}
    assert splits["val"] == {"examples": 1, "items": 1, "targets": 1, "unreachable": 0, "cold_items": 1}
    card = toy().describe()
    for words in ("2 items", "1 of 3 targets are not in the catalogue", "licence: none", "1 of them cold"):
        assert words in card
    assert "t1 asks 'light for my desk', relevant {'1': 1.0}" in card


def test_test_split_is_nowhere_to_be_seen(ledger):
    task = toy()
    shown = [repr(task), str(vars(task)), str(dataclasses.asdict(task)), task.describe(), str(dir(task))]
    assert not any(SECRET in text for text in shown)
    assert SECRET.encode() not in pickle.dumps(task)
    assert not hasattr(task, "test")
    with pytest.raises(AttributeError, match="sealed"):
        task.test  # noqa: B018
    for other in (copy.copy(task), copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert other.val.equals(task.val)
        for way in (other.unseal_test, other.subsample):
            with pytest.raises(RecR1Error, match="holds no test split"):
                way()


def test_unsealing_leaves_its_mark_first(ledger, tmp_path):
    task = toy()
    test = task.unseal_test("final table")
    assert test["request"].tolist() == [SECRET, "a second one"]
    test.loc[0, "request"] = "changed"
    assert task.unseal_test("again", ledger)["request"][0] == SECRET
    marks = [(row["task"], row["n"], row["reason"]) for row in ledger.rows("unseal")]
    assert marks == [("toy", 2, "final table"), ("toy", 2, "again")]
    (tmp_path / "file").write_text("")
    with pytest.raises(RecR1Error, match="ledger .* cannot be written"):
        task.unseal_test("", Ledger(tmp_path / "file" / "ledger.jsonl"))


def test_sealed_while_a_trainer_runs_in_any_thread(ledger):
    task, inside, over = toy(), threading.Event(), threading.Event()

    def train() -> None:
        with pytest.raises(KeyError), sealed():
            inside.set()
            over.wait(10)
            raise KeyError  # a trainer that fails opens the lock again

    thread = threading.Thread(target=train)
    thread.start()
    assert inside.wait(10)
    with sealed():
        pass  # another one ends, the first still runs
    for way in (task.unseal_test, lambda: task.map_splits(lambda split, rows: rows)):
        with pytest.raises(RecR1Error, match="stays sealed while a trainer runs"):
            way()
    over.set()
    thread.join()
    assert ledger.rows() == [] and len(task.unseal_test()) == 2


def test_map_splits_changes_behind_the_seal(ledger):
    task, asked = toy(), []

    def louder(split: str, rows: pd.DataFrame) -> pd.DataFrame:
        asked.append(split)
        rows["request"] += "!"
        return rows

    loud = task.map_splits(louder, name="loud", k_eval=3)
    assert (loud.name, loud.k_eval, loud.k_train, asked) == ("loud", 3, 100, ["train", "val", "test"])
    assert loud.val["request"].tolist() == ["something to sit on!"] and ledger.rows() == []
    assert SECRET not in str(vars(loud)) and SECRET.encode() not in pickle.dumps(loud)
    assert loud.unseal_test()["request"][0] == SECRET + "!" and task.unseal_test()["request"][0] == SECRET
    with pytest.raises(RecR1Error, match="test split is empty"):
        task.map_splits(lambda split, rows: rows[:0] if split == "test" else rows)
    small = task.subsample(n_train=1, n_test=1, n_val=5)
    assert (len(small.train), len(small.val), len(small.items), len(small.unseal_test())) == (1, 1, 2, 1)
    assert small.about["splits"]["train"]["examples"] == 1 and small.about["licence"] == "none"
    assert small.train.equals(task.subsample(n_train=1).train)
    assert len({task.subsample(n_train=1, seed=seed).train["example_id"][0] for seed in range(9)}) > 1
    with pytest.raises(RecR1Error, match="ask for 1 or more"):
        task.subsample(n_val=0)


UNSOUND = [
    ({"items": ITEMS.drop(columns="text")}, "catalogue has no column 'text' .it has item_id, title"),
    ({"items": ITEMS.assign(item_id="7")}, "item_id '7' stands in rows 1 and 2"),
    ({"items": ITEMS.assign(text=["a lamp", " "])}, r"catalogue, row 2 \('2'\): text is empty"),
    ({"items": ITEMS.assign(title=[None, "Chair"])}, r"catalogue, row 1 \('1'\): title is empty"),
    ({"items": ITEMS.assign(item_id=[1, 2])}, "row 1: item_id is 1; write text"),
    ({"items": ITEMS[:0]}, "catalogue is empty"),
    ({"test": frame()}, "test split is empty"),
    ({"k_train": 0}, "k_train=0; take a whole number"),
    ({"k_eval": "ten"}, "k_eval='ten'; take"),
]
UNSOUND_VAL = [
    ([("v1", "", {"1": 1.0})], r"val split, row 1 \('v1'\): request is empty"),
    ([("v1", "a", {"1": 1.0}), ("v1", "b", {"1": 1.0})], "example_id 'v1' stands in rows 1"),
    ([("t2", "a", {"1": 1.0})], "example_id 't2' stands in the train split"),
    ([("v1", "light for my desk ", {"1": 1.0})], "'light for my desk' stands in the train split"),
    ([("v1", "a", {})], "example 'v1': relevant is {}"),
    ([("v1", "a", ["1"])], "relevant is .'1'.; write {item_id: gain}"),
    ([("v1", "a", {1: 1.0})], "relevant item 1 is no text"),
    ([("v1", "a", {"1": -1.0})], "item '1' has gain -1.0; make it a positive finite"),
    *(([("v1", "a", {"1": gain})], f"has gain {gain!r}") for gain in (float("nan"), "much", True)),
    ([("v1", "a", {"001": 1.0})], "wants '001', the ids there look like '1'"),
]


@pytest.mark.parametrize("changed, words", UNSOUND + [({"val": frame(*rows)}, words) for rows, words in UNSOUND_VAL])
def test_unsound_parts(changed, words):
    with pytest.raises(RecR1Error, match=words) as error:
        toy(**changed)
    assert "\n" not in str(error.value) and str(error.value).startswith("task 'toy'")


# clothing reviews: items, train, val and test of the exact form as they were when results were first measured on them

DIGESTS = ["8005baa1596c", "76a6d8820ed1", "9c1f899fe93f", "adc0f1ef4afe"]


@pytest.fixture(scope="module")
def clothing() -> Task:
    try:
        assets.fetch("clothing-reviews")
    except RecR1Error as problem:
        if assets.offline():
            pytest.skip(str(problem))
        raise
    return load_task("clothing")


@pytest.fixture(scope="module")
def exact(clothing) -> Task:
    return load_task("clothing", relevance="exact")


def test_clothing_stays_the_same(exact, ledger):
    splits = (exact.train, exact.val, exact.unseal_test())
    frames = [exact.items, *(rows[["example_id", "request", "relevant"]] for rows in splits)]
    assert [len(rows) for rows in frames] == [271, 1355, 400, 600]
    texts = [json.dumps(rows.to_dict("records"), sort_keys=True) for rows in frames]
    assert [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts] == DIGESTS
    cold = {split: counts["cold_items"] for split, counts in exact.about["splits"].items()}
    assert cold == {"train": 0, "val": 6, "test": 9}
    assert (exact.prompt.mode, exact.prompt.weight, exact.prompt.distinct) == ("expand", 4, False)
    again = pickle.loads(pickle.dumps(exact))
    assert again.rule("A dress, and a red Dress.") == ("dress", "The message names: dress.")
    assert again.few_shot == exact.few_shot is not None


def test_clothing_is_graded(clothing, exact, ledger):
    """The exact garment 1, its class SUBSTITUTE, nothing else; all but the relevance is that of the exact form."""
    kinds = dict(zip(clothing.items["item_id"], clothing.items["title"].str.partition(" #")[0]))
    splits = [(one.train, one.val, one.unseal_test()) for one in (clothing, exact)]
    for graded, one in zip(*splits, strict=True):
        assert graded.drop(columns="relevant").equals(one.drop(columns="relevant"))
        for relevant, (garment,) in zip(graded["relevant"], one["relevant"], strict=True):
            substitutes = {item for item, kind in kinds.items() if kind == kinds[garment]} - {garment}
            assert relevant == dict.fromkeys(substitutes, SUBSTITUTE) | {garment: 1.0}
    counts = [[(row["items"], row["cold_items"]) for row in one.about["splits"].values()] for one in (clothing, exact)]
    assert counts[0] == counts[1]  # those of the exact garments
    assert (clothing.prompt.mode, clothing.prompt.weight, clothing.prompt.distinct) == ("rewrite", 1, True)


def test_exact_metrics_of_the_graded_form_are_the_metrics_of_the_exact_one(clothing, exact):
    engine = build_retriever("bm25", clothing.items)
    graded, one = (evaluate(list, task, engine, progress=False).rows for task in (clothing, exact))
    assert graded["exact-ndcg@100"].tolist() == one["ndcg@100"].tolist()
    assert graded["exact-mrr"].tolist() == one["mrr"].tolist() and graded["ranks"].tolist() == one["ranks"].tolist()
    assert (graded["ndcg@100"] != one["ndcg@100"]).any()


def test_clothing_with_another_seed(clothing, ledger):
    """No review stands in two places; garments with many reviews do not fill one split."""
    short = load_task("clothing", words=20, seed=1, relevance="exact")
    examples = pd.concat([short.train, short.val, short.unseal_test()])
    assert set(short.val["example_id"]) != set(clothing.val["example_id"])
    assert not examples["request"].str.lower().duplicated().any()
    assert examples["request"].str.split().str.len().between(10, 20).all()
    everything = "\n".join(clothing.items["text"])
    assert not [request for request in clothing.val["request"] if request in everything]
    words = short.items.set_index("item_id")["text"].str.split().str.len()
    long = [rows["relevant"].map(lambda own: words[next(iter(own))] > 5000).mean() for rows in (short.val, short.train)]
    assert long[0] == pytest.approx(long[1], abs=0.06)


CATALOGUE = [("007", "Lamp", "a green desk lamp"), ("8", "NA", "null"), ("9", "Chair", "an oak chair, \u2028 old")]
FRAME = pd.DataFrame(CATALOGUE, columns=ITEM_COLUMNS)


@pytest.fixture
def files(tmp_path):
    """Writes items and requests and loads them: `files(requests, **options)`."""

    def load(requests=None, **options):
        FRAME.to_csv(tmp_path / "items.csv", index=False)
        path = write_jsonl(tmp_path / "requests.jsonl", ten() if requests is None else requests)
        return load_task("custom", items=tmp_path / "items.csv", requests=path, **options)

    return load


def ten(**last) -> list[dict]:
    rows = [{"request": f"wish {i}", "relevant": "007"} for i in range(10)]
    rows[-1] |= last
    return rows


def test_custom_from_files(files, ledger):
    task = files()
    assert [tuple(row) for row in task.items.itertuples(index=False)] == CATALOGUE
    assert (len(task.train), len(task.val), len(task.unseal_test())) == (6, 2, 2)
    assert task.train["relevant"][0] == {"007": 1.0} and task.name == "custom"
    assert "items.csv, requests.jsonl" in task.describe()
    assert set(files(seed=1).val["request"]) != set(task.val["request"])
    twice = files([{"request": f"wish {i % 5}", "relevant": "007"} for i in range(20)], val=0.2, test=0.2)
    assert (len(twice.train), len(twice.val)) == (12, 4)  # equal requests share a split
    other = files(name="shop", prompt="Find {request}", k_eval=5, licence="mine")
    assert (other.name, other.prompt.instruction, other.k_eval) == ("shop", "Find {request}", 5)


@pytest.mark.parametrize(
    "row, relevant",
    [
        ({"relevant": 8}, {"8": 1.0}),
        ({"relevant": ["8", "9", "9"]}, {"8": 1.0, "9": 1.0}),
        ({"relevant": '["8", 9]'}, {"8": 1.0, "9": 1.0}),
        ({"relevant": {"8": 3, "9": 0.5, "007": None}}, {"8": 3.0, "9": 0.5}),
        ({"relevant": '{"8": 3}'}, {"8": 3.0}),
        ({"relevant": " 8 ", "gain": "2.5"}, {"8": 2.5}),
        ({"relevant": ["8", "9"], "gain": 2}, {"8": 2.0, "9": 2.0}),
        ({"relevant": "8", "gain": None}, {"8": 1.0}),
    ],
)
def test_ways_to_say_what_is_relevant(files, row, relevant):
    task = files([*ten(), {"request": "mine", **row}], val=0.1, test=0.1)
    assert pd.concat([task.train, task.val]).set_index("request")["relevant"]["mine"] == relevant


def test_split_column_and_rows_of_one_example(files):
    rows = [
        {"example_id": "a", "split": "train", "request": "one", "relevant": "007", "gain": 3},
        {"example_id": "a", "split": "train", "request": "one", "relevant": "8"},
        {"example_id": "b", "split": "train", "request": "one", "relevant": "9"},
        {"example_id": "c", "split": "val", "request": "two", "relevant": "9"},
        {"example_id": 4, "split": "test", "request": "three", "relevant": "9"},
    ]
    task = files(rows)
    assert task.train.to_dict("records") == [
        {"example_id": "a", "request": "one", "relevant": {"007": 3.0, "8": 1.0}},
        {"example_id": "b", "request": "one", "relevant": {"9": 1.0}},
    ]
    assert task.val["request"].tolist() == ["two"]


def test_parquet_and_frames(tmp_path):
    items, requests = tmp_path / "items.parquet", tmp_path / "requests.parquet"
    pd.concat([FRAME, FRAME[:1]]).to_parquet(items)  # an exact copy of an item is left out
    for relevant in ([{"8": 2.0} if i % 2 else {"007": 1.0} for i in range(10)], [["8", "9"]] * 10, [8] * 10):
        rows = pd.DataFrame(ten()).assign(relevant=relevant)
        rows.to_parquet(requests)
        read, given = (load_task("custom", items=a, requests=b) for a, b in ((items, requests), (FRAME, rows)))
        assert read.train.equals(given.train) and read.items.equals(given.items)
    assert read.val["relevant"][0] == {"8": 1.0} and read.about["items that stand there twice, left out once"] == 1
    rows.assign(split=["train"] * 3 + ["dev"] * 7).to_parquet(requests)
    with pytest.raises(RecR1Error, match="^requests.parquet, row 4: split is 'dev'; write one of train, val, test"):
        load_task("custom", items=FRAME, requests=requests)


def test_unreachable_targets(files):
    with pytest.raises(RecR1Error, match="example 'row-10' wants item '7', which items.csv lacks .*'007'"):
        files(ten(relevant=["007", "7"]))
    task = files(ten(relevant=["007", "7"]), unreachable="count")
    assert sum(counts["unreachable"] for counts in task.about["splits"].values()) == 1


@pytest.mark.parametrize(
    "rows, words",
    [
        (ten(request="  "), "requests.jsonl, line 10: request is empty"),
        (ten(relevant=None), "line 10: relevant is empty; an id"),
        (ten(relevant=[]), "line 10: relevant is empty; name at least one"),
        (ten(relevant=7.5), "line 10: relevant is 7.5; an id is text or a whole number"),
        (ten(relevant="['8']"), "line 10: relevant is no JSON .*; mend it"),
        (ten(relevant={"8": float("nan")}), "line 10: the gain nan is not a finite number"),
        (ten(relevant={"8": 1}, gain=2), "line 10 has gains in relevant and in gain"),
        (ten(split="train"), "line 1: split is empty; write one of train, val, test"),
        ([row | {"example_id": "a"} for row in ten()], "line 2: example_id 'a' stands in an earlier row"),
        ([ten()[0] | {"example_id": "a", "gain": gain} for gain in (1, 2)], "line 2: item '007' has two gains"),
        (ten()[:2], "requests.jsonl has 2 different requests, too few"),
        ([{"query": "a", "relevant": "8"}], "line 1 has no column 'request' .it has query, relevant"),
    ],
)
def test_bad_requests(files, rows, words):
    with pytest.raises(RecR1Error, match=words) as error:
        files(rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("items.csv", None, r"items: there is no file .*items\.csv; check the path"),
        ("items.xlsx", b"x", "items.xlsx has not one of the endings .csv, .csv.gz, .jsonl, .jsonl.gz, .json, .parquet"),
        ("items.csv", b" \n", "items.csv is empty or has no row below its header; give it at least one"),
        ("items.csv", b"item_id,title,text,text\n1,a,b,c\n", "has two columns 'text'"),
        ("items.csv", "item_id,title,text\n1,café,b\n".encode("latin-1"), "items.csv, line 2 is not UTF-8 .byte 0xe9."),
        ("items.csv", b"item_id,title,text\n1,a,b,c\n", "line 2 has 4 cells and the header 3; check the quotes"),
        ("items.csv", b'item_id,title,text\n1,a,"b\n', "items.csv, line 2 is no CSV"),
        ("items.csv", b"item_id,title,text\n,a,b\n", "items.csv, line 2: item_id is empty"),
        (
            "items.csv",
            b'item_id,title,text\n8,"a\nb",c\n8,a,x\n',
            "line 4: item_id '8' stands in line 3 too, with another",
        ),
        ("items.csv.gz", gzip.compress(b"item_id,title,text\n" * 99)[:-9], "items.csv.gz cannot be read after line "),
        ("items.jsonl", b'{"item_id": 1, "title": "a", "text": "b"}\n{"item_id": \n', "line 2 is no JSON .* cut short"),
        ("items.jsonl", b"\xef\xbb\xbf[1]\n", "line 1 is no JSON object"),
        ("items.jsonl", b'{"item_id": 1.5, "title": "a", "text": "b"}\n', "line 1: item_id is 1.5; an id is text"),
        ("items.jsonl", b'{"item_id": 1, "title": "a", "text": NaN}\n', "items.jsonl, line 1: text is empty"),
        ("items.parquet", b"PAR1 and no more", "items.parquet cannot be read as Parquet .*; it may be cut short"),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecR1Error, match=words) as error:
        load_task("custom", items=path, requests=pd.DataFrame(ten()).assign(relevant="1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "task, options, words",
    [
        ("clothes", {}, "choose one of clothing, movielens, esci, amazon_c4, amazon_reviews, custom"),
        ("clothing", {"word": 3}, "task 'clothing' has no option 'word'; its options are words, seed, relevance"),
        ("clothing", {"words": 5}, "words=5 is too short"),
        ("custom", {"items": "i.csv"}, "task 'custom' needs requests=; its options are items, requests, val"),
        ("custom", {"items": 5, "requests": "r.csv"}, "items is a int; give a path or a DataFrame"),
        ("ours", {"val": 0.6, "test": 0.5}, "val=0.6 and test=0.5 are no shares"),
        ("ours", {"unreachable": "ignore"}, "no unreachable='ignore'; choose one of error, count"),
        ("ours", {"prompt": "no place"}, "request"),
    ],
)
def test_bad_options(files, task, options, words):
    with pytest.raises(RecR1Error, match=words):
        files(**options) if task == "ours" else load_task(task, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_cells_stay_as_written(tmp_path, encoding, end):
    path = tmp_path / "table.csv"
    lines = ["id,text,,", '007,"a ""b"", é', 'd",,', ",,,", "", "1e5,NA,", ""]  # empty columns and rows, as of a sheet
    path.write_bytes(end.join(lines).encode(encoding))
    name, rows = read_rows(path, "items")
    read = [(row.place, dict(row)) for row in rows]
    assert read == [
        ("table.csv, line 3", {"id": "007", "text": f'a "b", é{end}d'}),
        ("table.csv, line 6", {"id": "1e5", "text": "NA"}),
    ]


@pytest.mark.parametrize("value", [7, 7.0, " 7 ", np.int64(7), np.float32(7), Decimal(7)])
def test_ids_are_text_whatever_the_type(files, value):
    items = pd.DataFrame([(value, "Lamp", "lamp"), ("007", "Rug", "rug")], columns=ITEM_COLUMNS)
    rows = [{"example_id": float(n), "request": f"wish {n}", "relevant": [value, "007"]} for n in range(9)]
    task = load_task("custom", items=items, requests=pd.DataFrame(rows))
    assert task.items["item_id"].tolist() == ["7", "007"] and set(task.train["example_id"]) < set("012345678")
    assert task.train["relevant"][0] == {"7": 1.0, "007": 1.0}
    seen = pd.DataFrame({"relevant": ["007"] * 3, "split": ["train", "val", "test"], "history": [[value]] * 3})
    assert load_task("custom", items=items, requests=seen).val["exclude"][0] == ["7"]


def test_rows_judged_not_relevant(files):
    """As a qrels file has them: with a gain of 0 or below."""
    rows = [{"example_id": r["request"], **r, "relevant": item, "gain": gain} for r in ten()
            for item, gain in (("007", 2), ("8", 0), ("9", -1))]  # fmt: skip
    task = files([*rows, rows[0], {"example_id": "none", "request": "nothing", "relevant": "8", "gain": 0}])
    assert all(relevant == {"007": 2.0} for relevant in task.train["relevant"])
    assert task.about["judged items with a gain of 0 or below, left out"] == 21
    assert task.about["examples without a relevant item then, left out"] == 1
    with pytest.raises(RecR1Error, match="every relevant item has a gain of 0 or below"):
        files([row | {"relevant": {"8": 0}} for row in ten()])


ALIKE = ["red  DRESS", "Dress, red!", "ｒｅｄ dress", "red dr\u00adess\u200b", "  red dress "]


@pytest.mark.parametrize("other", ALIKE)
def test_requests_that_a_retriever_cannot_tell_apart(files, ledger, other):
    with pytest.raises(RecR1Error, match="request .* stands in the train split .*, as a retriever sees it"):
        toy(train=frame(("t", "red dress", {"1": 1})), val=frame(("v", other, {"1": 1})))
    task = files([*ten(), *ten(request=other), *({"request": request, "relevant": "8"} for request in ALIKE)])
    splits = [set(rows["request"]) & {*ALIKE} for rows in (task.train, task.val, task.unseal_test())]
    assert sorted(map(len, splits)) == [0, 0, len(ALIKE)]


def test_halves_of_surrogate_pairs(files, tmp_path, ledger):
    emoji, half = "\ud83d\ude00", "\ud83d"  # as two escapes of JSON, or cut between them
    rows = [row | {"relevant": ["007", half]} for row in ten(request=f"socks {half}")]
    table = [dict(zip(ITEM_COLUMNS, row)) for row in [(half, f"A {emoji}", f"b {half}"), *CATALOGUE]]
    items = write_jsonl(tmp_path / "i.jsonl", table)
    for given in (write_jsonl(tmp_path / "r.jsonl", rows), pd.DataFrame(rows, dtype=object)):
        task = load_task("custom", items=items, requests=given)
        assert task.items.iloc[0].tolist() == ["?", "A \U0001f600", "b ?"]
        assert task.train["relevant"][0] == {"007": 1.0, "?": 1.0} and task.describe().encode()
        asked = pd.concat([task.train, task.val, task.unseal_test()])["request"]
        assert "socks ?" in set(asked)
    by_hand = toy(train=pd.DataFrame({"example_id": ["t"], "request": [half], "relevant": [{"1": 1}]}, dtype=object))
    assert by_hand.train["request"].tolist() == ["?"]
    assert ledger.append({"kind": "note", "text": half})["text"] == "?"
    turns = by_hand.prompt.messages(half)
    assert turns[-1]["content"] == "?" and compose(half, "x", "expand") == "? x"


def test_texts_without_a_word_are_counted():
    task = toy(items=ITEMS.assign(text=["🙂 !", "an oak chair"]), val=frame(("v", "the of a", {"2": 1.0})))
    assert task.about["without a word to index"] == "1 items and 1 requests"
    assert "without a word to index: 1 items" in task.describe() and "word to index" not in toy().describe()


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("sizes < 6 and > 9, <medium>, <xl>, a<b and c>d", "sizes < 6 and > 9, <medium>, <xl>, a<b and c>d"),
        ("a <b and c> d, I <3 x -> y, <25dB >60Nm, <Oak Wood>", "a <b and c> d, I <3 x -> y, <25dB >60Nm, <Oak Wood>"),
        ("waist &lt;32 in; hips &gt;38 in", "waist <32 in; hips >38 in"),
        ("<P class=\"x y\">Red<br/>lamp</p><!-- a > b --> &amp; <a href='z'>more</a><o:p></o:p>", "Red lamp & more"),
        ("<style>p { color: red }</style>Tall <script type=x>1 < 2</script>lamp", "Tall lamp"),
        ("A &amp;amp; B &amp;lt;b&amp;gt;bold&amp;lt;/b&amp;gt; &amp;lt; 5", "A & B bold < 5"),
    ],
)
def test_tags_and_entities(text, wanted):
    assert plain(text) == wanted


def test_data_card_of_a_sample(monkeypatch):
    whole = toy().describe()
    monkeypatch.setattr("recr1_lite.tasks.base.SAMPLE", 2)
    card = toy().describe()
    assert "requests: 4 (median; 4 to 4) words each (train and val, of a sample of 2)" in card
    assert "words of text each\n" in card and "sample of" not in whole
