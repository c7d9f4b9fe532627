"""ESCI, Amazon-C4 and Amazon Reviews from small files of the true form, from a stand-in of the Hub, and from broken
files: each ends in one sentence that names the place. What the readers say of any file is in test_tasks."""

import gzip
import json
import shutil
from functools import partial

import hub_files
import huggingface_hub
import pandas as pd
import pytest

from recr1_lite.assets.fetch import AMAZON_C4, AMAZON_REVIEWS, BLAIR, ESCI, REVISIONS
from recr1_lite.common import RecR1Error
from recr1_lite.tasks import load_task
from recr1_lite.tasks.amazon import CATALOGUE, SHARDS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def a_hub(tmp_path, monkeypatch):
    """Puts a file where hf_hub_download finds it, as a snapshot of COMMIT: a_hub(repo, file, source)."""
    served, asked = tmp_path / "served", []

    def download(repo_id, filename, repo_type, revision, cache_dir, local_files_only):
        asked.append((repo_id, filename, revision))
        assert repo_type == "dataset" and cache_dir == tmp_path / "cache" / "hub"
        commit = COMMIT if revision == "main" else revision
        place = cache_dir / f"datasets--{repo_id.replace('/', '--')}" / "snapshots" / commit / filename
        place.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(served / repo_id / filename, place))

    def put(repo, file, source):
        (served / repo / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, served / repo / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    put.asked = asked
    return put


def relevant(frame: pd.DataFrame) -> dict[str, dict]:
    return dict(zip(frame["request"], frame["relevant"]))


def loader(task: str, paths: dict, **sound):
    """load_task(task) with these options, and others of a test."""
    load = partial(load_task, task, **sound)
    load.paths = paths
    return load


@pytest.fixture
def esci(tmp_path):
    paths = hub_files.esci(tmp_path)
    return loader("esci", paths, items=paths["catalogue"], requests=paths["examples"], category="all", n_val=2)


def test_esci_small_us_exact(esci):
    task = esci()
    assert relevant(task.train) == {f"a {word}": {f"P{i}": 1.0} for i, word in list(enumerate(hub_files.WORDS))[2:6]}
    assert relevant(task.val) == {"a lamp": {"P0": 1.0}, "a chair": {"P1": 1.0}}
    assert set(relevant(task.unseal_test("here"))) == {f"a {word}" for word in hub_files.WORDS[6:]}
    assert task.items.iloc[0].tolist() == ["P0", "The lamp", "The lamp. Good lamp and more."]
    assert (task.k_train, task.k_eval, task.metrics[0]) == (1000, 100, "ndcg@100")
    assert task.about["source"].endswith("local files") and task.about["licence"].startswith("Apache-2.0")
    task = esci(items=esci.paths["products"])  # their own products: not the Spanish one, nor the one never judged
    assert len(task.items) == 10
    assert task.items.iloc[0].tolist() == ["P0", "The lamp", "The lamp Good lamp & more Acme red"]


def test_esci_graded_and_of_a_category(esci):
    task = esci(gains="graded")
    assert relevant(task.val)["a lamp"] == {"P0": 1.0, "P1": 0.1, "P2": 0.01}  # P3 is irrelevant
    assert task.about["gains"] == "E 1, S 0.1, C 0.01"
    examples = pd.read_parquet(esci.paths["examples"])  # one text is one query
    again = examples[examples["query"] == "a rug"].assign(query=" a\trug ", query_id=77, product_id="P9")
    examples = pd.concat([examples, again[again["esci_label"] != "I"]])
    assert relevant(esci(requests=examples).train)["a rug"] == {"P2": 1.0, "P9": 1.0}
    assert relevant(esci(requests=examples, gains="graded").train)["a rug"]["P9"] == 1.0  # E, S and C: its best
    task = esci(category="Video_Games")
    assert set(relevant(task.unseal_test("here"))) == {f"a {hub_files.WORDS[i]}" for i in (7, 9)}
    assert len(task.train) == 4 and len(task.items) == 10  # of all categories, as in the paper


def test_esci_counts_what_it_leaves_out(esci, tmp_path):
    catalogue = [json.loads(line) for line in esci.paths["catalogue"].read_text().splitlines()]
    catalogue[9]["metadata"] = ""
    hub_files.write_jsonl(tmp_path / "less.jsonl", catalogue[1:])
    examples = pd.read_parquet(esci.paths["examples"])
    examples.loc[examples["query"] == "a vase", "query"] = "a chair"  # a test query that is also in train
    examples.to_parquet(tmp_path / "same.parquet")
    task = esci(items=tmp_path / "less.jsonl", requests=tmp_path / "same.parquet")
    assert task.about["items without text left out"] == 1
    assert task.about["relevant products not in the catalogue, left out"] == 2
    assert task.about["queries without a relevant product there, left out"] == 2
    assert task.about["train queries that are also test queries, left out"] == 1
    assert [len(task.train), len(task.val)] == [2, 2]


def test_esci_queries_in_the_papers_form(esci, tmp_path):
    for split, queries in {"train": range(4), "test": range(4, 6)}.items():
        entries = [{"query": f"find {i}", "item_id": [f"P{i}", f"P{i}", "P9"]} for i in queries]
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
    files = {split: tmp_path / f"{split}.json" for split in ("train", "test")}
    task = esci(requests=files, n_val=1, category="Video_Games")
    assert relevant(task.val) == {"find 0": {"P0": 1.0, "P9": 1.0}} and len(task.train) == 3
    assert task.unseal_test("here")["example_id"].tolist() == ["test-0", "test-1"]
    for options, words in [
        ({"requests": files, "gains": "graded"}, "Exact products alone"),
        ({"items": esci.paths["products"]}, "products.parquet has no category 'Video_Games'; choose 'all'"),
    ]:
        with pytest.raises(RecR1Error, match=words):
            esci(category="Video_Games", **options)


def test_esci_from_the_hub(esci, tmp_path, a_hub):
    examples = pd.read_parquet(esci.paths["examples"])
    full = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
    joined = examples.assign(esci_label=examples["esci_label"].map(full), product_title="a title")
    for split, shards in SHARDS.items():
        own = joined[joined["split"] == split].drop(columns="split")
        for number, name in enumerate(shards):
            own.iloc[number :: len(shards)].to_parquet(tmp_path / "shard.parquet")
            a_hub(ESCI, name, tmp_path / "shard.parquet")
    a_hub(BLAIR, CATALOGUE, esci.paths["catalogue"])
    task, local = load_task("esci", category="Baby_Products", n_val=2), esci(category="Baby_Products")
    train, same = ({*one.train["request"], *one.val["request"]} for one in (task, local))
    assert len(task.train) == 4 and train == same and task.items.equals(local.items)
    assert relevant(task.unseal_test("here")) == relevant(local.unseal_test("here"))
    pinned, loose = f"{ESCI} @ {REVISIONS[ESCI]}", f"{BLAIR} @ {COMMIT}"
    assert task.about["source"].endswith(f"Hugging Face Hub, {pinned}, {loose}") and len(a_hub.asked) == 16


@pytest.fixture
def c4(tmp_path):
    paths = hub_files.c4(tmp_path)
    return loader("amazon_c4", paths, **paths)


def test_c4_as_the_paper_splits_it(c4, tmp_path):
    task = c4(n_val=3)
    test = task.unseal_test("here")
    assert test["example_id"].tolist() == [f"query-{n}" for n in range(0, 20, 2) if n != 2]  # Games; 2 is Baby
    assert test["request"].iloc[1] == 'I need, "really", number 4' and test["relevant"].iloc[1] == {"B4": 1.0}
    assert task.val["example_id"].tolist() == ["query-15", "query-17", "query-19"]  # the last, not of the paper's four
    assert task.train["example_id"].tolist() == [f"query-{n}" for n in range(1, 15, 2)]
    assert task.items.iloc[3].to_dict() == {"item_id": "B3", "title": "Item 3", "text": "Item 3. It is 3."}
    assert task.name == "amazon_c4-Games" and len(task.items) == 40
    rows = [(1, "a lamp", "B1"), (2, "a lamp ", "B3"), (3, "gone", "Z"), (4, "x", "B5"), (5, "y", "B7"), (6, "z", "B0")]
    task = c4(requests=hub_files.write_csv(tmp_path / "few.csv", ["qid", "query", "item_id"], rows), n_val=1)
    assert relevant(task.train)["a lamp"] == {"B1": 1.0, "B3": 1.0}
    assert task.about["queries without a relevant product there, left out"] == 1


def test_c4_splits_by_seed(c4):
    task = c4(category="Home", splits="seed", catalogue="category", seed=1)
    sizes = [len(task.train), len(task.val), len(task.unseal_test("here"))]
    assert sizes == [6, 2, 2] and len(task.items) == 30
    same, other = (c4(category="Home", splits="seed", seed=seed) for seed in (1, 2))
    assert same.train.equals(task.train) and not other.train.equals(task.train) and len(other.items) == 40
    assert len(c4(category="all", splits="seed").train) == 12


def test_c4_gzipped_and_from_the_hub(c4, tmp_path, a_hub):
    zipped, wanted = tmp_path / "items.jsonl.gz", c4(n_val=3)
    zipped.write_bytes(gzip.compress(c4.paths["items"].read_bytes()))
    assert c4(items=zipped, n_val=3).items.equals(wanted.items)
    a_hub(AMAZON_C4, "test.csv", c4.paths["requests"])
    a_hub(AMAZON_C4, "sampled_item_metadata_1M.jsonl", c4.paths["items"])
    task = load_task("amazon_c4", n_val=3, revision="v2")
    assert task.train.equals(wanted.train) and task.about["source"].endswith("McAuley-Lab/Amazon-C4 @ v2")


@pytest.fixture
def reviews(tmp_path):
    paths = hub_files.reviews(tmp_path)
    return loader("amazon_reviews", paths, requests=paths["folder"], items=paths["items"])


def test_reviews_transductive(reviews):
    task = reviews()
    assert task.train[["example_id", "request", "relevant", "exclude"]].values.tolist() == [
        ["train-3", "Soap 0 & oil", {"I1": 1.0}, ["I0"]],  # line 3 of the file; line 2 is a first purchase
        ["train-4", "Soap 2 & oil", {"I3": 1.0}, ["I2"]],  # I9 has no metadata
    ]
    test = task.unseal_test("here")
    assert test["example_id"].tolist() == ["test-2"] and test["history"].iloc[0] == ["I0", "I1", "I2"]
    assert test["request"].iloc[0] == "Soap 0 & oil; Soap 1 & oil; Soap 2 & oil"
    assert task.items["item_id"].tolist() == [f"I{n}" for n in range(7)]
    assert task.items["text"].iloc[0] == "Soap 0 & oil soft blue A soap ."
    assert (task.k_train, task.k_eval) == (5000, 50)
    assert task.about["items of histories without metadata, left out"] == 1


def test_reviews_settings_last_titles_and_catalogues(reviews, tmp_path):
    inductive = reviews(setting="inductive")
    assert inductive.unseal_test("here")["example_id"].tolist() == ["test-3"]  # the second of user n is bought again
    assert inductive.about["examples with an item bought again, left out"] == 1
    assert reviews(setting="all").unseal_test("here")["example_id"].tolist() == ["test-2", "test-3"]
    assert reviews(last=1).unseal_test("here")["request"].tolist() == ["Soap 2 & oil"]
    whole = reviews(catalogue="metadata")
    assert whole.items["item_id"].tolist() == [f"I{n}" for n in range(8)] and whole.train.equals(reviews().train)
    hub_files.write_csv(tmp_path / "All_Beauty.test.csv", hub_files.REVIEW_COLUMNS, [("a", "I3", 5, 5, "I0 I1")])
    with pytest.raises(RecR1Error, match="the test file has no user without a train example"):
        reviews(setting="inductive")


def test_reviews_gzipped_and_from_the_hub(reviews, tmp_path, a_hub):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for path in tmp_path.glob("All_Beauty.*.csv"):
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        a_hub(AMAZON_REVIEWS, f"benchmark/0core/last_out_w_his/{path.name}", path)
    a_hub(AMAZON_REVIEWS, "raw/meta_categories/meta_All_Beauty.jsonl", reviews.paths["items"])
    wanted = reviews().train
    assert reviews(requests=zipped).train.equals(wanted)
    task = load_task("amazon_reviews", cut="last_out")
    assert task.train.equals(wanted) and task.about["source"].endswith(REVISIONS[AMAZON_REVIEWS])


BAD_OPTIONS = [
    ("c4", {"splits": "x"}, "no splits='x'"),
    ("c4", {"category": "all"}, "take splits='seed'"),
    ("c4", {"catalogue": "category"}, "take splits='seed'"),
    ("c4", {"category": "Toys", "n_val": 2}, "no category 'Toys'; choose 'all' or one of Baby, Games, Home"),
    ("c4", {"n_val": 10}, "n_val=10 of the 10 requests"),
    ("c4", {"splits": "seed", "category": "Baby"}, "1 different requests, too few"),
    ("reviews", {"setting": "x"}, "no setting='x'"),
    ("reviews", {"category": "Toys"}, r"no file .*Toys\.train\.csv"),
    ("reviews", {"requests": "/none"}, "is no folder"),
]


@pytest.mark.parametrize("task, options, words", BAD_OPTIONS)
def test_bad_options(request, task, options, words):
    with pytest.raises(RecR1Error, match=words):
        request.getfixturevalue(task)(**options)


def table(change):
    """Damage to a Parquet file."""
    return lambda path: change(pd.read_parquet(path)).to_parquet(path)


def replaced(old: str, new: str):
    return lambda path: path.write_text(path.read_text().replace(old, new))


BROKEN = [  # task, file, how it is damaged, words of the message
    ("reviews", "meta_All_Beauty.jsonl", replaced('["soft", "blue"]', "[1]"), r"line 1: features is \[1\]; write text"),
    ("esci", "examples.parquet", table(lambda t: t.assign(product_id="Q" + t["product_id"])),
     r"no relevant item of the requests is in catalogue.jsonl \(first wanted: 'QP0', .* like 'P0'"),
    ("c4", "test.csv", replaced(",B", ",Z"), r"no relevant item of the requests is in items.jsonl"),
    ("reviews", "meta_All_Beauty.jsonl", replaced('"I', '"J'), r"has none of the items of the requests .*'I0'"),
    ("reviews", "All_Beauty.valid.csv", lambda path: path.write_text("user_id,parent_asin,history\na,I2,\n"),
     "no row with a history"),
    ("esci", "examples.parquet", table(lambda t: t[t["split"] == "train"]), "the requests have no test query"),
    ("esci", "examples.parquet", table(lambda t: t.assign(split=t["split"].replace("test", "dev"))),
     r"examples\.parquet, row 37: split is 'dev'; write train or test"),
    ("esci", "examples.parquet", table(lambda t: t.assign(product_locale="jp")), "no row with product_locale 'us'"),
    ("esci", "examples.parquet", table(lambda t: t.assign(esci_label=["E"] * 8 + ["X"] * (len(t) - 8))),
     r"examples\.parquet, row 9: esci_label is 'X'; write one of E, S, C, I"),
]  # fmt: skip


@pytest.mark.parametrize("task, name, damage, words", BROKEN)
def test_a_broken_file_is_one_sentence(request, tmp_path, task, name, damage, words):
    load = request.getfixturevalue(task)
    damage(tmp_path / name)
    with pytest.raises(RecR1Error, match=words) as caught:
        load(**({"n_val": 2} if task == "c4" else {}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ('[{"query": "x", "item_id": ["P1"]}, {"query": ', r"is no JSON .* cut short"),
        ("{}", r"holds no list of JSON objects"),
        ("[7]", r"holds no list of JSON objects"),
        ('[{"query": "x"}]', r"entry 1 has no column 'item_id'"),
        ('[{"query": "x", "item_id": "P1"}]', r"entry 1: item_id is 'P1'; write a JSON list"),
        ('[{"query": "x", "item_id": ["P1"]}, {"query": "x ", "item_id": ["P2"]}]', "query 'x' stands in entry 1"),
    ],
)
def test_broken_query_file_of_the_paper(esci, tmp_path, content, words):
    train = tmp_path / "train.json"
    train.write_text(content)
    with pytest.raises(RecR1Error, match=f"train.json.* {words}") as caught:
        esci(requests={"train": train, "test": train})
    assert "\n" not in str(caught.value)
    with pytest.raises(RecR1Error, match="name 'train' and 'test'"):
        esci(requests={"train": train})
