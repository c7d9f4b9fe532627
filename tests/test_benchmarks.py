"""The benchmarks start, say what they do, and their summaries add up; the measurements themselves take minutes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import bench
import faults
import faults_files
import faults_input
import faults_serve
import grpo_step
import keep
import numpy as np
import pytest
import retrieval
import search_server
import seeds
import tasks
import torch
import transfer
from safetensors.torch import save_file

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import show
from recr1_lite.ledger import Ledger
from recr1_lite.report.page import markdown_table
from recr1_lite.search.metrics import runs_interval

HELP = [
    (faults, "--fresh"),
    (grpo_step, "--rounds"),
    (keep, "--measure"),
    (retrieval, "--limit-s"),
    (search_server, "--clients"),
    (seeds, "--train"),
    (tasks, "--data"),
    (transfer, "--adapter"),
]


@pytest.mark.parametrize("script, words", HELP)
def test_help(script, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script.__name__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    said = capsys.readouterr().out
    assert words in said and "--work" not in said


def test_summary():
    told = dict(peak_rss_mb=100, device="a machine", threads=2, versions={}, commit=None)
    rows = [
        dict(side=side, rollout=[slow], update=[2 * slow], total=[3 * slow], **told)
        for side, slow in [("ours", 1.0), ("stock", 3.0), ("ours", 1.0), ("stock", 2.0)]
    ]
    result = grpo_step.summary({}, rows, 1e-6)
    assert result["ratio"] == 7.5 / 3 and result["seconds"]["ours"]["update"] == 2
    assert "ratio stock / ours: 2.50" in grpo_step.report(result) and "the same" in grpo_step.report(result)
    assert "NOT the same" in grpo_step.report(grpo_step.summary({}, rows, 0.01))


def test_compare(tmp_path):
    save_file({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, tmp_path / "stock.safetensors")
    save_file({"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])}, tmp_path / "ours.safetensors")
    assert grpo_step.compare(tmp_path) == pytest.approx(0.1)


def run_retrieval(monkeypatch, out, *options):
    monkeypatch.setattr("sys.argv", ["retrieval.py", f"--out={out}", "--queries=20", *options])
    assert retrieval.main() == 0
    return json.loads(out.read_text())["rows"]


def test_retrieval_reference_by_hand():
    """Texts "0 0 1", "0", "2 2 2 2": scores by the formula, ties as found, a miss as a miss."""
    words, starts = np.array([0, 0, 1, 0, 2, 2, 2, 2]), np.array([0, 3, 4, 8])
    reference = retrieval.corpus.Reference(words, starts, [[0, 1], [2, 2]])
    mean = 8 / 3
    both, one = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    first = both * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / mean)) + one / (1 + 1.2 * (0.25 + 0.75 * 3 / mean))
    second = both / (1 + 1.2 * (0.25 + 0.75 / mean))
    assert reference.scores([0, 1]) == pytest.approx([first, second, 0])
    assert reference.scores([2, 2])[2] == pytest.approx(2 * one * 4 / (4 + 1.2 * (0.25 + 0.75 * 4 / mean)))
    assert reference.recall([0, 1], np.array([0, 2]), (1, 2)) == [1.0, 0.5]
    assert reference.recall([0, 1], np.array([0, 0]), (2, 9)) == [0.5, 0.5]
    tied = retrieval.corpus.Reference(np.zeros(4, int), np.arange(5), [[0]])
    assert tied.recall([0], np.array([3]), (1, 2)) == [1.0, 0.5]


def test_retrieval_catalogue(tmp_path):
    corpus = retrieval.corpus
    corpus.write(tmp_path, 300, seed=1)
    words, starts = corpus.read(tmp_path)
    texts = corpus.texts(tmp_path)
    assert texts == [corpus.as_text(words[a:b]) for a, b in zip(starts, starts[1:])] and len(texts) == 300
    assert (corpus.tokens(300, 1)[0] == words).all() and not np.array_equal(corpus.tokens(300, 2)[0], words)
    assert 40 <= np.median(np.diff(starts)) <= 60 and 0 <= words.min() and words.max() < corpus.VOCABULARY
    for query in corpus.draw_queries(words, starts, 20, corpus.SHORT, 0):
        assert 5 <= len(query) <= 10
        assert any(set(query) <= set(words[a:b].tolist()) for a, b in zip(starts, starts[1:]))


def test_retrieval_small(monkeypatch, tmp_path, capsys):
    out, sizes = tmp_path / "rows.json", ("--sizes", "200", "500")
    rows = run_retrieval(monkeypatch, out, *sizes)
    installed = [engine for engine in retrieval.corpus.ENGINES if retrieval.corpus.version(engine)]
    assert set(rows) == {f"{items}/{engine}" for items in (200, 500) for engine in installed}
    for row in rows.values():
        assert row["trouble"] is None and row["n_queries"] == 20, row
        assert row["recall_10"] > 0.8 and row["recall_k"] > 0.8
        if row["engine"] not in ("tantivy", "rank_bm25"):
            assert row["recall_10"] == row["recall_k"] == 1.0, row
    printed = capsys.readouterr().out
    assert "| 500 | this kit's BM25Retriever |" in printed and "Its 252 searches (12 x 20 rollouts" in printed

    before = out.read_bytes()
    run_retrieval(monkeypatch, out, *sizes)
    assert out.read_bytes() == before and capsys.readouterr().out.count("measured before") == len(rows)
    again = run_retrieval(monkeypatch, out, "--sizes", "200", "--engines", "kit", "--seed", "1")
    assert again["200/kit"]["seed"] == 1 and again["500/kit"] == rows["500/kit"]


def test_retrieval_over_a_limit(monkeypatch, tmp_path, capsys):
    out, cell = tmp_path / "rows.json", ("--sizes", "200", "--engines", "kit")
    row = run_retrieval(monkeypatch, out, *cell, "--limit-s", "0.01")["200/kit"]
    assert row["trouble"] == "no end in 0.01 s" and "queries_s" not in row
    assert "| no end in 0.01 s | - |" in capsys.readouterr().out
    row = run_retrieval(monkeypatch, out, *cell)["200/kit"]  # more is allowed: measured again
    assert row["trouble"] is None and row["recall_k"] == 1.0


def test_retrieval_without_an_engine(monkeypatch, tmp_path, capsys):
    known = retrieval.corpus.version
    monkeypatch.setattr(retrieval.corpus, "version", lambda name: "" if name == "tantivy" else known(name))
    out = tmp_path / "a.json"
    rows = run_retrieval(monkeypatch, out, "--sizes", "200", "--engines", "kit", "tantivy")
    assert list(rows) == ["200/kit"]
    printed = capsys.readouterr().out
    assert "tantivy is left out, as it is not installed: pip install tantivy==0.27.0" in printed
    out.write_text("{")
    with pytest.raises(RecR1Error, match="holds no results of this benchmark; give another file"):
        run_retrieval(monkeypatch, out, "--sizes", "200")


def test_retrieval_tables(tmp_path):
    row = {"items": 1000, "build_s": 1.0, "trouble": None}
    base = row | {"engine": "bm25s", "queries_s": 100.0, "n_queries": 50, "recall_10": 1.0, "recall_k": 1.0}
    kit = base | {"engine": "kit", "queries_s": 250.0}
    late = row | {"engine": "rank_bm25", "trouble": "over the limit of 9 s"}
    lines = retrieval.table([base, kit, late], 1000).splitlines()
    assert "| 250 (50) | 2.5 | 1.0000 | 1.0000 |" in lines[3]
    assert "| over the limit of 9 s | - | - | - |" in lines[4]
    assert "| 2.5 s, 20.1% |" in retrieval.shares([base | {"long_queries_s": 10.0}], 10.0)
    for profile, seconds in [("cpu", [9.0, 11.0]), ("smoke", [1.0, 1.0, 1.0]), ("cpu", [12.0])]:
        row = {"kind": "train", "profile": profile, "curve": [{"seconds": s} for s in seconds]}
        with (tmp_path / "ledger.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    assert retrieval.step_seconds(tmp_path / "ledger.jsonl") == 11.0
    assert retrieval.step_seconds(tmp_path / "none.jsonl") is None
    assert "pass --ledger" in retrieval.shares([base], None)


def test_faults_small_resumed_and_as_a_table(tmp_path, capsys):
    out = tmp_path / "faults.json"
    options = [f"--out={out}", "--runs=1", "--only", "kill best of n", "together"]
    command = [sys.executable, faults.__file__, *options]  # not here: a process that has threads must not be forked
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert not done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert {name: row["asked"] for name, row in parts.items()} == {"kill best of n": 1, "together": 2}
    assert parts["kill best of n"]["tried"] >= 2 and parts["together"]["tried"] == 2
    assert (done.returncode, [row["faults"] for row in parts.values()]) == (0, [0, 0]), parts
    assert faults.main(options) == 0 and "together: done before, 0 faults" in capsys.readouterr().out
    assert faults.main([*options, "--table"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown in done.stdout and "| kill -9 at random moments, 1 kills, " in shown


def test_faults_are_counted_and_shown(monkeypatch, tmp_path, capsys):
    def parser(tally, count, seed, work):
        tally.add("json")
        for style in ("json", "paper", "json"):
            tally.add(style, f"a think tag in {work / style}")

    def gone(tally, count, seed, work):
        raise faults.Skipped("no data")

    def broken(tally, count, seed, work):
        raise OSError("a bug")

    for name, part in {"parser": parser, "environment": gone, "disk": broken}.items():
        monkeypatch.setattr(faults_input, name, part, raising=False)
        monkeypatch.setitem(faults.PARTS, name, (f"faults_input.{name}", 20, "what"))
    out = tmp_path / "faults.json"
    assert faults.main([f"--out={out}", "--only", "parser", "environment", "disk"]) == 1
    shown = capsys.readouterr().out
    assert "| parser | what | 4 | 3 | json: a think tag in WORK/json; paper: a think tag" in shown
    assert "skipped: no data" in shown and "the part ended with OSError: a bug" in shown
    assert faults.main([f"--out={out}", "--only", "environment"]) == 0


def test_faults_knows_a_fault(tmp_path):
    """What the judges of the campaign must not let pass."""
    base, cut = tmp_path / "base", tmp_path / "cut"
    for folder in (base, cut):
        folder.mkdir()
        (folder / "targets.jsonl").write_text('{"example_id": "a", "seconds": 1}\n{"example_id": "b", "seconds": 2}\n')
    assert faults_files.differences(base, cut) == ""
    for text, fault in [('{"example_id": "a"}\n', "differs"), ('{"exa{"example_id": "a"}\n', "damaged line")]:
        (cut / "targets.jsonl").write_text(text)
        assert fault in faults_files.differences(base, cut)
    (cut / "more.json").write_text("{")
    assert (
        "more.json" in faults_files.differences(base, cut)
        and faults_files.half_written(cut) == "more.json is half-written"
    )
    (cut / "more.json").unlink()
    (cut / "targets.jsonl").write_bytes((base / "targets.jsonl").read_bytes())
    (cut / ".two~1~x").mkdir()
    assert "left behind: ['.two~1~x']" in faults_files.differences(base, cut, kills=5)
    answers = {
        b"HTTP/1.1 200 OK\r\n\r\n{}": "",
        b'HTTP/1.1 400 Bad\r\n\r\n{"error": {}}': "",
        b"HTTP/1.1 400 Bad\r\n\r\n{}": "neither result nor error",
        b"HTTP/1.1 500 Bad\r\n\r\nnot JSON": "no JSON",
        b'HTTP/1.1 500 Bad\r\n\r\n{"error": "in /secret"}': "/secret",
        b"": "no answer",
    }
    for came, fault in answers.items():
        found = faults_serve.judge("as it should be", b"POST /search", True, came, [b"/secret"])
        assert fault in found if fault else not found
    assert faults_input.misread("red dress", "compact", False) == ""


def test_the_texts_show_what_the_ledger_of_the_seeds_gives():
    """Each figure of the table of results, and what is said of the seeds; the README shows some of the rows."""
    ledger = Ledger(bench.ROOT / "data" / "runs" / "seeds-keep.jsonl")
    readme, results = ((bench.ROOT / name).read_text().replace("**", "") for name in ("README.md", "docs/results.md"))
    rows = seeds.table(ledger)[["method", "ndcg@100", "exact-ndcg@100", "GRPO minus it"]].values.tolist()
    for row in markdown_table(["", "", "", ""], rows)[2:]:
        assert row in results, row
    shown = [[method, score, gap] for method, score, _, gap in rows]
    assert sum(row in readme for row in markdown_table(["", "", ""], shown)[2:]) >= 6
    assert seeds.gains(ledger).partition("seed: ")[2].partition(";")[0] in results
    longer = seeds.table(Ledger(ledger.path.with_name("seeds-120-steps.jsonl")))
    told = longer[["method", "ndcg@100", "GRPO minus it"]].replace("GRPO", "GRPO, 120 steps, seed 0").values.tolist()
    assert sum(row in results for row in markdown_table(["", "", ""], told)[2:]) == 7
    opened = sum(len(Ledger(path).rows("unseal")) for path in ledger.path.parent.glob("seeds*.jsonl"))
    assert opened == 5 and "The test split was opened five times" in results
    before, told = Ledger(ledger.path.with_name("seeds.jsonl")), results.partition("## Without the KL term")[2]
    assert seeds.gains(before).partition("seed: ")[2].partition(";")[0] in told
    runs, others = (seeds.tested(one)[seeds.GRPO] for one in (ledger, before))
    values = [seeds.scores(some, "ndcg@100") for some in (runs, others)]
    assert f"without is {show(runs_interval(values[0], list(runs[0].rows['cluster']), values[1]), sign=True)}" in told


def test_what_is_kept_stands_as_the_ledger_gives_it():
    root = Path(__file__).parents[1]
    boot = keep.Bootstrap(keep.Points(Ledger(root / "data" / "runs" / "keep-points.jsonl")))
    told = (root / "docs" / "results.md").read_text(encoding="utf-8").partition("## What is kept")[2]
    ends = [row for row in boot.table() if row["scale"] in (0.5, 1)]
    for row in ends:
        assert f"| {row['scale']:g} | {show(row['gain'], sign=True)} | {show(row['loss'], sign=True)} |" in told, row
    readme = (root / "README.md").read_text(encoding="utf-8")
    whole = {row["method"]: row for row in ends if row["scale"] == 1 and row["point"] == "best"}
    assert all(show(whole[name]["loss"], sign=True) in readme for name in ("GRPO, KL 0.1", "SFT, rate 4e-4"))
    wanted, apart = boot.verdict("GRPO", "SFT, rate 4e-4", 0.9)
    assert len(ends) == 7 and f"{show(apart, sign=True)} more than SFT at a gain of {wanted:.3f}" in told
