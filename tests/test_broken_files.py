"""Broken files given to the Hub tasks' loaders: each ends in one sentence that names the place, and leaves nothing.

What the readers say of any file (encoding, cut lines, headers) is in test_tasks.
"""

import gzip
import json
import os
from pathlib import Path

import hub_files
import pandas as pd
import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.tasks import load_task


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(task, items or requests=...): a loader on sound files but for those given."""
    for name in ("cwd", "data"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path / "cwd")
    data = tmp_path / "data"
    esci, c4, reviews = hub_files.esci(data), hub_files.c4(data), hub_files.reviews(data)
    sound = {
        "esci": {"items": esci["catalogue"], "requests": esci["examples"], "category": "all", "n_val": 2},
        "amazon_c4": {**c4, "n_val": 2},
        "amazon_reviews": {"requests": reviews["folder"], "items": reviews["items"]},
    }

    def run(task: str, **options):
        return load_task(task, **sound[task] | options)

    for task in sound:
        run(task)  # sound as they are
    run.data = data
    return run


def files_under(folder: Path) -> set[tuple[str, int, int]]:
    return {(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])


def table(change):
    """Damage to a Parquet file."""
    return lambda path: change(pd.read_parquet(path)).to_parquet(path)


def lines(change):
    """Damage to the lines of a text file."""
    return lambda path: path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def line(number: int, **changed):
    """Another value in a line of a JSONL file; ... takes the key out."""

    def damage(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[number - 1] = {key: value for key, value in (rows[number - 1] | changed).items() if value is not ...}
        hub_files.write_jsonl(path, rows)

    return damage


BROKEN = [  # task, file, how it is damaged, words of the message
    ("esci", "examples.parquet", cut, r"examples\.parquet cannot be read as Parquet .* cut short"),
    ("esci", "products.parquet", cut, r"products\.parquet cannot be read .* cut short"),
    ("amazon_c4", "items.jsonl.gz", cut, r"items\.jsonl\.gz cannot be read after line \d+ .*end-of-stream"),
    ("amazon_c4", "items.jsonl.gz", lambda p: p.write_bytes(b"plain"), r"jsonl\.gz cannot be read after line 0"),
    ("esci", "examples.parquet", table(lambda t: t.drop(columns="esci_label")), "row 1 has no column 'esci_label'"),
    ("amazon_c4", "items.jsonl", line(4, metadata=...), r"items\.jsonl, line 4 has no column 'metadata'"),
    ("esci", "products.parquet", table(lambda t: t.assign(product_id=0.5)), "row 1: product_id is 0.5; an id"),
    ("amazon_reviews", "meta_All_Beauty.jsonl", line(3, title=7), r"Beauty\.jsonl, line 3: title is 7; write text"),
    ("amazon_reviews", "meta_All_Beauty.jsonl", line(3, features=[1]), r"line 3: features is \[1\]; write text"),
    ("esci", "examples.parquet", table(lambda t: t.assign(product_id="Q" + t["product_id"])),
     r"no relevant product of the requests is among the items \(first wanted: 'QP0', .* like 'P0'"),
    ("amazon_c4", "test.csv", lines(lambda own: [line.replace(",B", ",Z") for line in own]),
     r"test\.csv has no request whose item is among the items \(first wanted: 'Z0'"),
    ("amazon_reviews", "meta_All_Beauty.jsonl", lines(lambda own: [line.replace('"I', '"J') for line in own]),
     r"meta_All_Beauty\.jsonl has none of the items of the requests .*'J7'.*'I0'"),
    ("amazon_reviews", "All_Beauty.test.csv", lines(lambda own: own[:1]), r"test\.csv has a header and no rows"),
    ("amazon_reviews", "All_Beauty.valid.csv", lines(lambda own: [own[0], "a,I2,5.0,4,\n"]), "no row with a history"),
    ("esci", "examples.parquet", table(lambda t: t[t["split"] == "train"]), "the requests have no test query"),
    ("esci", "examples.parquet", table(lambda t: t.assign(split=t["split"].replace("test", "dev"))),
     r"examples\.parquet, row 37: split is 'dev'; write train or test"),
    ("esci", "examples.parquet", table(lambda t: t.assign(product_locale="jp")), "no row with product_locale 'us'"),
    ("amazon_c4", "items.jsonl", line(6, item_id="B1"), r"items\.jsonl, line 6: item_id 'B1' stands in line 2 too"),
    ("esci", "products.parquet", table(lambda t: pd.concat([t, t[:1].assign(product_title="x")])),
     "row 13: product_id 'P0' stands in row 1 too"),
    ("esci", "examples.parquet", table(lambda t: t.assign(esci_label=["E"] * 8 + ["X"] * (len(t) - 8))),
     r"examples\.parquet, row 9: esci_label is 'X'; write one of E, S, C, I"),
    ("amazon_c4", "test.csv", lines(lambda own: [own[0], '0,"  ",B0,U0,5,x\n', *own[3:]]), "line 2: query is empty"),
]  # fmt: skip


@pytest.mark.parametrize("task, name, damage, words", BROKEN)
def test_broken_file(load, tmp_path, task, name, damage, words):
    path = load.data / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    damage(path)
    options = {"items": path} if name in ("products.parquet", "items.jsonl.gz") else {}
    before = files_under(tmp_path)
    with pytest.raises(RecR1Error, match=words) as caught:
        load(task, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600 and not said.endswith(".")
    assert files_under(tmp_path) == before and os.listdir(tmp_path / "cwd") == []


@pytest.mark.parametrize(
    ("history", "words"),
    [(7.5, "history is 7.5; an id is text"), (["I0"], r"history is \['I0'\]"), (float("nan"), "no row with a history")],
)
def test_history_that_is_no_text(load, history, words):
    frames = {split: pd.read_csv(load.data / f"All_Beauty.{split}.csv") for split in ("train", "valid", "test")}
    frames["train"] = pd.DataFrame({"user_id": ["a"], "parent_asin": ["I1"], "history": [history]})
    with pytest.raises(RecR1Error, match=words) as caught:
        load("amazon_reviews", requests=frames)
    assert str(caught.value).startswith("requests['train']")


@pytest.mark.parametrize(
    "content, words",
    [
        ('[{"query": "x", "item_id": ["P1"]}, {"query": ', r"is no JSON .* cut short"),
        ("{}", r"holds no list of JSON objects"),
        ("[7]", r"holds no list of JSON objects"),
        ('[{"query": "x"}]', r"entry 1 has no column 'item_id'"),
        ('[{"query": "x", "item_id": "P1"}]', r"entry 1: item_id is 'P1'; write a list"),
        ('[{"query": "x", "item_id": [true]}]', r"entry 1: item_id is True; an id is"),
        ('[{"query": " ", "item_id": ["P1"]}]', r"entry 1: query is empty"),
        ('[{"query": "x", "item_id": ["P1"]}, {"query": "x ", "item_id": ["P2"]}]', "query 'x' stands in entry 1"),
    ],
)
def test_broken_query_file_of_the_paper(load, content, words):
    train = load.data / "train.json"
    train.write_text(content)
    with pytest.raises(RecR1Error, match=f"train.json.* {words}") as caught:
        load("esci", requests={"train": train, "test": train})
    assert "\n" not in str(caught.value)
    with pytest.raises(RecR1Error, match="name 'train' and 'test'"):
        load("esci", requests={"train": train})
