"""Broken files given to the loaders: each ends in one sentence that names the place, and leaves nothing."""

from __future__ import annotations

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
    for name in ("cache", "cwd", "data"):
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
    for task, options in sound.items():
        load_task(task, **options)  # sound as they are

    def run(task: str, **options):
        return load_task(task, **sound[task] | options)

    run.data = data
    return run


def files_under(folder: Path) -> set[tuple[str, int, int]]:
    found = (path for path in folder.rglob("*"))
    return {(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()}


def cut(source: Path, keep: float = 0.6) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * keep)])


def parquet(path: Path, change) -> None:
    change(pd.read_parquet(path)).to_parquet(path)


def lines(path: Path, change) -> None:
    path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")


def jsonl(path: Path, number: int, **changed) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[number - 1] = {key: value for key, value in (rows[number - 1] | changed).items() if value is not ...}
    hub_files.write_jsonl(path, rows)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = {  # what is broken: (task, file, how, words of the message, options)
    "truncated parquet": (
        "esci",
        "examples.parquet",
        cut,
        r"examples\.parquet cannot be read as a table .* cut short",
        {},
    ),
    "truncated products": (
        "esci",
        "products.parquet",
        cut,
        r"products\.parquet cannot be read .* cut short",
        {"items": "products.parquet"},
    ),
    "truncated jsonl line": (
        "esci",
        "catalogue.jsonl",
        lambda p: cut(p, 0.97),
        r"catalogue\.jsonl, line 10 is no JSON .* cut short",
        {},
    ),
    "truncated gzip": (
        "amazon_c4",
        "items.jsonl.gz",
        cut,
        r"items\.jsonl\.gz cannot be read after line \d+ .*end-of-stream",
        {"items": "items.jsonl.gz"},
    ),
    "no gzip": (
        "amazon_c4",
        "items.jsonl.gz",
        lambda p: p.write_bytes(b"plain"),
        r"items\.jsonl\.gz cannot be read after line 0",
        {"items": "items.jsonl.gz"},
    ),
    "missing column": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.drop(columns="esci_label")),
        r"examples\.parquet has no column 'esci_label' \(it has .*query",
        {},
    ),
    "missing key": (
        "amazon_c4",
        "items.jsonl",
        lambda p: jsonl(p, 4, metadata=...),
        r"items\.jsonl, row 4 has no 'metadata'",
        {},
    ),
    "text where numbers belong": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.assign(small_version=t["small_version"].astype(str))),
        r"examples\.parquet: the column 'small_version' holds (large_)?string, not whole numbers",
        {},
    ),
    "numbers where text belongs": (
        "esci",
        "products.parquet",
        lambda p: parquet(p, lambda t: t.assign(product_id=range(len(t)))),
        r"products\.parquet: the column 'product_id' holds int64, not text",
        {"items": "products.parquet"},
    ),
    "number as a title": (
        "amazon_reviews",
        "meta_All_Beauty.jsonl",
        lambda p: jsonl(p, 3, title=7),
        r"meta_All_Beauty\.jsonl, row 3: title is 7; write text",
        {},
    ),
    "numbers as features": (
        "amazon_reviews",
        "meta_All_Beauty.jsonl",
        lambda p: jsonl(p, 3, features=[1, 2]),
        r"meta_All_Beauty\.jsonl, row 3: features is \[1, 2\]; write text",
        {},
    ),
    "esci ids that do not join": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.assign(product_id="Q" + t["product_id"])),
        r"no relevant product of the requests is among the items \(first wanted: 'QP0', .* like 'P0'",
        {},
    ),
    "c4 ids that do not join": (
        "amazon_c4",
        "test.csv",
        lambda p: lines(p, lambda own: [line.replace(",B", ",Z") for line in own]),
        r"test\.csv has no request whose item is among the items \(first wanted: 'Z0'",
        {},
    ),
    "reviews ids that do not join": (
        "amazon_reviews",
        "meta_All_Beauty.jsonl",
        lambda p: lines(p, lambda own: [s.replace('"I', '"J') for s in own]),
        r"meta_All_Beauty\.jsonl has none of the items of the requests .*'J7'.*'I0'",
        {},
    ),
    "empty split": (
        "amazon_reviews",
        "All_Beauty.test.csv",
        lambda p: lines(p, lambda own: own[:1]),
        r"All_Beauty\.test\.csv has a header and no rows",
        {},
    ),
    "split without a history": (
        "amazon_reviews",
        "All_Beauty.valid.csv",
        lambda p: lines(p, lambda own: [*own[:1], "a,I2,5.0,4,\n"]),
        r"All_Beauty\.valid\.csv has no row with a history",
        {},
    ),
    "no test split": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t[t["split"] == "train"]),
        r"the requests have no test query",
        {},
    ),
    "split that is none": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.assign(split=t["split"].replace("test", "dev"))),
        r"examples\.parquet, row 37: split is 'dev'; write train or test",
        {},
    ),
    "other locale alone": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.assign(product_locale="jp")),
        r"the requests have no row with product_locale 'us' and small_version 1",
        {},
    ),
    "csv that is not UTF-8": (
        "amazon_reviews",
        "All_Beauty.train.csv",
        lambda p: p.write_bytes(p.read_bytes().replace(b"b,I3", "bé,I3".encode("latin-1"))),
        r"All_Beauty\.train\.csv, line 4 is not UTF-8 \(byte 0xe9\)",
        {},
    ),
    "jsonl that is not UTF-8": (
        "amazon_c4",
        "items.jsonl",
        lambda p: p.write_bytes(p.read_bytes().replace(b"Item 2", b"Item \xff")),
        r"items\.jsonl, line 3 is not UTF-8 \(byte 0xff\)",
        {},
    ),
    "empty file": (
        "amazon_c4",
        "test.csv",
        lambda p: p.write_bytes(b""),
        r"test\.csv is empty; give it at least one row",
        {},
    ),
    "empty stream": (
        "amazon_reviews",
        "All_Beauty.train.csv",
        lambda p: p.write_bytes(b""),
        r"All_Beauty\.train\.csv is empty",
        {},
    ),
    "blank jsonl": ("esci", "catalogue.jsonl", lambda p: p.write_text("\n\n"), r"catalogue\.jsonl is empty", {}),
    "folder instead of a file": (
        "esci",
        "examples.parquet",
        folder_instead,
        r"requests: .*examples\.parquet is a folder; name the file",
        {},
    ),
    "another number of cells": (
        "amazon_reviews",
        "All_Beauty.train.csv",
        lambda p: lines(p, lambda own: [*own[:3], "b,I3,4.0\n", *own[4:]]),
        r"All_Beauty\.train\.csv, line 4 has 3 cells and the header 5",
        {},
    ),
    "csv with an open quote": (
        "amazon_reviews",
        "All_Beauty.train.csv",
        lambda p: lines(p, lambda own: [*own, '"b,I3,4.0,1,I0\n']),
        r"All_Beauty\.train\.csv, line 6 is no CSV",
        {},
    ),
    "duplicate item ids": (
        "amazon_c4",
        "items.jsonl",
        lambda p: jsonl(p, 6, item_id="B1"),
        r"items\.jsonl: item_id 'B1' stands in rows 2 and 6; keep one",
        {},
    ),
    "duplicate products": (
        "esci",
        "products.parquet",
        lambda p: parquet(p, lambda t: pd.concat([t, t[:1]])),
        r"products\.parquet: product_id 'P0' stands in rows 1 and 13",
        {"items": "products.parquet"},
    ),
    "unknown category": (
        "esci",
        "catalogue.jsonl",
        lambda p: None,
        r"catalogue\.jsonl has no category 'Toys'; choose 'all' or one of Baby_Products, Video_Games",
        {"category": "Toys"},
    ),
    "unknown label": (
        "esci",
        "examples.parquet",
        lambda p: parquet(p, lambda t: t.assign(esci_label=["E"] * 8 + ["X"] * (len(t) - 8))),
        r"examples\.parquet, row 9: esci_label is 'X'; write one of E, S, C, I",
        {},
    ),
    "empty query": (
        "amazon_c4",
        "test.csv",
        lambda p: lines(p, lambda own: [own[0], '0,"  ",B0,U0,5,x\n', *own[3:]]),
        r"test\.csv, row 1: query is empty",
        {},
    ),
    "list instead of an object": (
        "esci",
        "catalogue.jsonl",
        lambda p: lines(p, lambda own: [own[0], "[1, 2]\n", *own[2:]]),
        r"catalogue\.jsonl, line 2 is no JSON object",
        {},
    ),
    "unknown ending": (
        "amazon_c4",
        "items.txt",
        lambda p: p.write_text("x"),
        r"items\.txt has not one of the endings",
        {"items": "items.txt"},
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_file(load, tmp_path, what):
    task, name, damage, words, options = BROKEN[what]
    path = load.data / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    damage(path)
    options = {key: load.data / value if key == "items" else value for key, value in options.items()}
    before = files_under(tmp_path)
    with pytest.raises(RecR1Error, match=words) as caught:
        load(task, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600 and not said.endswith(".")
    assert files_under(tmp_path) == before and os.listdir(tmp_path / "cwd") == []


@pytest.mark.parametrize(
    ("history", "words"),
    [(7, "history is 7; write text"), (["I0"], r"history is \['I0'\]"), (float("nan"), "no row with a history")],
)
def test_history_that_is_no_text(load, history, words):
    frames = {split: pd.read_csv(load.data / f"All_Beauty.{split}.csv") for split in ("train", "valid", "test")}
    frames["train"] = pd.DataFrame({"user_id": ["a"], "parent_asin": ["I1"], "history": [history]})
    with pytest.raises(RecR1Error, match=words) as caught:
        load("amazon_reviews", requests=frames)
    assert str(caught.value).startswith("requests['train']")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"query": "x", "item_id": ["P1"]}, {"query": ', r"train\.json is no JSON .* cut short"),
        ("{}", r"train\.json holds no list of queries"),
        ('[{"query": "x"}]', r"train\.json, entry 1 has no column 'item_id'"),
        ('[{"query": "x", "item_id": "P1"}]', r"train\.json, entry 1: item_id is 'P1'; write a list"),
        ('[{"query": "x", "item_id": [1]}]', r"train\.json, entry 1: item_id is 1; write text"),
        ('[{"query": " ", "item_id": ["P1"]}]', r"train\.json, entry 1: query is empty"),
        ('[{"query": "x", "item_id": ["P1"]}, {"query": "x ", "item_id": ["P2"]}]', r"'x' is entry 1 and 2"),
        (b"\xff", r"train\.json is not UTF-8"),
        ("[7]", r"train\.json, entry 1 is no JSON object"),
    ],
)
def test_broken_query_file_of_the_paper(load, content, words):
    train = load.data / "train.json"
    train.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecR1Error, match=words) as caught:
        load("esci", requests={"train": train, "test": train})
    assert "\n" not in str(caught.value)
    with pytest.raises(RecR1Error, match="name 'train' and 'test'"):
        load("esci", requests={"train": train})
