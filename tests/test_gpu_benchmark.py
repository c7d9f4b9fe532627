"""benchmarks/gpu.py on a machine without a GPU: its dry run, its bookkeeping, its tables. What a GPU computes is for
one to say."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
import gpu  # noqa: E402
import gpu_book  # noqa: E402
import gpu_loop  # noqa: E402
import gpu_models  # noqa: E402
import gpu_run  # noqa: E402
import gpu_speed  # noqa: E402
import gpu_steps  # noqa: E402
import gpu_tables  # noqa: E402

CPU = gpu_book.Machine(dry=True, cuda=False, name="a CPU")
CARD = gpu_book.Machine(dry=False, cuda=True, name="a card", memory=24 * 2**30, capability=(8, 9))
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the dry run takes another way")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """One dry run of all parts for the whole file: (JSON file, status)."""
    out = tmp_path_factory.mktemp("gpu") / "dry.json"
    return out, gpu.main(["--dry-run", f"--out={out}"])


def test_the_dry_run_is_complete(dry_run):
    out, status = dry_run
    content = json.loads(out.read_text())
    assert status == 0 and content["dry_run"] is True and content["versions"]["trl"]
    planned = [cell for name in gpu.NAMES for cell in __import__(gpu.MODULES[name]).cells(CPU)]
    rows = content["cells"]
    assert list(rows) == [cell.name for cell in planned]
    for cell in planned:
        row = rows[cell.name]
        expected = ("not run", "needs CUDA") if cell.cuda else ("done", None)
        assert (row["state"], row.get("why")) == expected, cell.name
    assert rows["environment/machine"]["backend"]["gpu24"]["name"] == "transformers"
    assert rows["correctness/gradient/tiny/float32/transformers"]["relative"] < 1e-4
    assert 0 < rows["correctness/4-bit/tiny/float32"]["max_nats"] < 1
    assert set(rows["loop/methods"]["methods"]) == set(gpu_loop.METHODS) <= set(rows["loop/methods"]["test"])
    assert len(rows["loop/methods"]["methods"]["GRPO"]["val"]) == 3
    assert set(rows["loop/capability"]["capability"]) == {"untrained", *gpu_loop.METHODS}
    for side in gpu_speed.SIDES:
        row = rows[f"speed/tiny/grpo/g4/{side}"]
        assert row["counted_steps"] == 2 and row["tokens"] == 2 * 2 * 4 * row["lengths"]["mean"]
        assert row["lengths"]["longest"] == 8 and row["rollout_seconds"] > 0 < row["update_seconds"]
        assert row["estimate"]["peak"] > row["estimate"]["tensors"] > 0 and row["peak_allocated"] is None
    assert str(out.parent) not in json.dumps(rows["loop/methods"])


def test_again_the_dry_run_measures_nothing(dry_run, capsys, monkeypatch):
    out, _ = dry_run
    before = json.loads(out.read_text())["cells"]
    monkeypatch.setattr(gpu_run, "run_cell", None)
    assert gpu.main(["--dry-run", f"--out={out}"]) == 0
    after, printed = json.loads(out.read_text())["cells"], capsys.readouterr().out
    assert {name: row for name, row in after.items() if row["state"] == "done"} == {
        name: row for name, row in before.items() if row["state"] == "done"
    }
    assert printed.count("measured before") == sum(row["state"] == "done" for row in before.values())
    assert "the transformers backend stands in for `ours`" in printed
    assert "| speed/qwen2.5-3b/grpo/g8/ours | " in printed and "all parts are finished" in printed


def test_tables_come_from_the_file(dry_run, capsys):
    out, _ = dry_run
    assert gpu.main([f"--tables={out}"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == gpu_tables.report(json.loads(out.read_text()))
    for words in (
        "DRY RUN",
        "| 4-bit/tiny/float32 | NF4",
        "methods: rejection SFT",
        "tiny/grpo/g4 | stock (trl)",
        "needs CUDA",
        "not yet measured",
    ):
        assert words in printed


def fake(monkeypatch, cells, measure):
    monkeypatch.setitem(sys.modules, "gpu_fake", SimpleNamespace(cells=lambda here: cells, measure=measure))
    monkeypatch.setitem(gpu.MODULES, "speed", "gpu_fake")


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    calls = []

    def measure(settings, work, stop_at):
        calls.append(settings["n"])
        if settings["n"] == 1:
            raise ValueError("a broken kernel")
        if settings["n"] == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if settings["n"] == 3:
            raise ModuleNotFoundError("No module named 'x'", name="x")
        return {}

    cells = [gpu_book.Cell(f"speed/{n}", {"n": n}, 1) for n in range(5)]
    cells += [
        gpu_book.Cell("speed/after", {"n": 5}, 1, after="speed/1"),
        gpu_book.Cell("speed/needs", {"n": 6}, 1, needs=("no_such_package",)),
    ]
    fake(monkeypatch, cells, measure)
    options = ["--dry-run", f"--out={tmp_path / 'a.json'}", "--parts=speed"]
    assert gpu.main(options) == 1
    rows = json.loads((tmp_path / "a.json").read_text())["cells"]
    assert [row["state"] for row in rows.values()] == [
        "done",
        "failed",
        "does not fit",
        "not run",
        "done",
        "not run",
        "not run",
    ]
    assert rows["speed/1"]["why"].startswith("ValueError: a broken kernel at test_gpu_benchmark.py:")
    assert [rows[f"speed/{n}"]["why"] for n in (3, "after", "needs")] == [
        "x is not installed",
        "speed/1 is not done",
        "no_such_package is not installed",
    ]
    calls.clear()
    assert gpu.main(options) == 1 and calls == [3]
    assert gpu.main([*options, "--retry"]) == 1 and calls == [3, 1, 3]
    assert gpu.main([*options, "--fresh"]) == 1 and calls == [3, 1, 3, 0, 1, 2, 3, 4]


def test_the_minutes_end_at_a_cell(monkeypatch, tmp_path, capsys):
    def measure(settings, work, stop_at):
        time.sleep(0.5)
        return {"state": "unfinished", "why": "at step 3", "goes_on": True} if settings["n"] == 2 else {}

    cells = [gpu_book.Cell(f"speed/{n}", {"n": n}, 100) for n in range(2)]
    fake(monkeypatch, cells, measure)
    options = ["--dry-run", f"--out={tmp_path / 'a.json'}", "--parts=speed"]
    assert gpu.main([*options, "--minutes=0.05"]) == 3  # 3 s, and the second wants 100
    printed = capsys.readouterr().out
    assert "used up before speed/1" in printed and "call again: python benchmarks/gpu.py --dry-run --out" in printed
    assert list(json.loads((tmp_path / "a.json").read_text())["cells"]) == ["speed/0"]
    assert gpu.main([*options, "--minutes=0.05"]) == 0
    assert "speed/0: measured before" in capsys.readouterr().out
    fake(monkeypatch, [*cells, gpu_book.Cell("speed/2", {"n": 2}, 1)], measure)
    assert gpu.main(options) == 3
    assert json.loads((tmp_path / "a.json").read_text())["cells"]["speed/2"]["state"] == "unfinished"


def test_a_process_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_run, "GRACE", 0.0)
    cell = gpu_book.Cell("environment/machine", {})
    row = gpu_run.run_cell(tmp_path, cell, CPU, time.time() + 0.2, "gpu_environment")
    assert row["state"] == "unfinished" and not list(tmp_path.glob("cell-*"))


def test_the_loop_stops_when_its_time_is_over(tmp_path):
    cell = next(cell for cell in gpu_loop.cells(CPU) if cell.name == "loop/methods")
    gpu_models.make("tiny", "float32", tmp_path)
    row = gpu_loop.measure(cell.settings, tmp_path, time.time())
    assert row["state"] == "unfinished" and row["goes_on"] and "before the first checkpoint" in row["why"]


def test_the_clock_counts_and_stops():
    clock = gpu_steps.Clock(stop_at=time.time())
    clock.tick()
    clock.tick()  # the warm-up is never cut
    with pytest.raises(gpu_steps.Enough):
        clock.tick()
    clock.ticks, clock.rollouts, clock.lengths = [0.0, 9.0, 11.0, 15.0], [5.0, 1.0, 2.0], [[9] * 4, [5] * 4, [7] * 4]
    row = gpu_steps.figures({"trainer": "grpo", "steps": 3}, clock)
    assert (row["tokens"], row["tokens_per_second"], row["step_seconds"]) == (48, 8.0, 3.0)
    assert (row["rollout_seconds"], row["update_seconds"], row["warm_up_seconds"]) == (1.5, 1.5, 9.0)
    assert row["lengths"] == {"mean": 6.0, "shortest": 5, "longest": 7}


def test_the_real_run_asks_the_most_telling_first():
    cells = gpu_speed.cells(CARD)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert names[:5] == [
        "speed/weights/qwen2.5-3b-instruct-bfloat16",
        *(f"speed/qwen2.5-3b/grpo/g8/{side}" for side in ("ours", "stock", "transformers")),
        "speed/qwen2.5-3b/grpo/g8/ours/8GB",
    ]
    for cell in cells:
        if cell.settings["kind"] == "steps" and cell.settings["side"] == "ours":
            assert cell.backend == "unsloth" and cell.settings["micro"] % cell.settings["group"] == 0
    for name in gpu.NAMES:
        before = set()
        for cell in __import__(gpu.MODULES[name]).cells(CARD):
            assert not cell.after or cell.after in before, cell.name
            before.add(cell.name)
    capped = {cell.settings["cap"]: cell for cell in cells if cell.name.startswith("speed/qwen2.5-3b/grpo/g8/ours/")}
    rows = {capped[12].name: {"state": "done", "peak_allocated": 7, "peak_reserved": 8}}
    assert gpu_speed.implied(capped[16], rows, CARD)["peak_reserved"] == 8
    assert gpu_speed.implied(capped[16], {capped[12].name: {"state": "does not fit"}}, CARD) is None
    small = CARD._replace(memory=15 * 10**9)
    assert gpu_speed.implied(capped[24], {}, small)["why"] == "the card has 14 GB"


def test_a_cap_is_all_that_can_be_seen():
    gib = 2**30
    told = gpu_steps.free_under(8, lambda device: (70 * gib, 80 * gib), lambda device: 2 * gib)
    assert told() == (5.5 * gib, 8 * gib)
    assert gpu_steps.free_under(8, lambda device: (3 * gib, 6 * gib), lambda device: 0)() == (3 * gib, 6 * gib)
    assert gpu_steps.free_under(8, lambda device: (3 * gib, 80 * gib), lambda device: 9 * gib)()[0] == 0


def test_tables_by_hand():
    def row(tokens, peak, cap=None, state="done"):
        return {
            "state": state,
            "settings": {"kind": "steps", "cap": cap},
            "tokens_per_second": tokens,
            "backend": "b",
            "rollout_seconds": 2.0,
            "update_seconds": 1.0,
            "peak_allocated": peak,
            "peak_reserved": peak,
            "estimate": {"tensors": 6e9},
        }

    cell = gpu_tables.AIM_CELL
    rows = {
        f"{cell}/ours": row(300.0, 5e9),
        f"{cell}/ours/12GB": row(1.0, 5e9, 12),
        f"{cell}/stock": row(100.0, 12e9),
        f"{cell}/stock/12GB": row(1.0, None, 12, "does not fit"),
        f"{cell}/stock/16GB": row(1.0, 12e9, 16),
    }
    lines = gpu_tables.speed(rows).splitlines()
    assert lines[2] == "| qwen2.5-3b/grpo/g8 | ours (b) | 300 | 3.00 | 2.0 + 1.0 | 5.0 (5.0) | 6.0 (+20%) | 12 |"
    assert lines[3] == "| qwen2.5-3b/grpo/g8 | stock (b) | 100 | 1.00 | 2.0 + 1.0 | 12.0 (12.0) | 6.0 (-50%) | 16 |"
    assert "measured: 3.00 x" in gpu_tables.aims(rows) and "measured peak: 5.0 GB allocated" in gpu_tables.aims(rows)


def test_prompts_have_their_length(tmp_path):
    gpu_models.make("tiny", "float32", tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gpu_models.model_source("tiny", "float32", tmp_path))
    assert len(tokenizer) == gpu_models.TINY_SIZES[-1]
    for request in gpu_models.requests(tokenizer, 3, 40):
        text = gpu_models.PROMPT.render(tokenizer, request)
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 40
    assert tokenizer.decode([511]).strip().startswith("x")  # every token that a random model writes is some text


def test_refusals(tmp_path, capsys):
    out = tmp_path / "a.json"
    assert gpu.main([f"--out={out}"]) == 2 and not out.exists()
    assert "there is no CUDA GPU here" in capsys.readouterr().err
    assert gpu.main(["--dry-run", f"--out={FOLDER / 'results' / 'dry.json'}"]) == 2
    assert gpu.main(["--dry-run", "--parts=speed,light"]) == 2
    out.write_text("{")
    assert gpu.main(["--dry-run", f"--out={out}"]) == 2 and out.read_text() == "{"
    assert "holds no results" in capsys.readouterr().err
    cells = {"speed/a": {"state": "done", "settings": {}}}
    out.write_text(json.dumps({"dry_run": True, "device": "another", "cells": cells}))
    assert gpu.main(["--dry-run", f"--out={out}", "--parts=speed"]) == 2
    assert "was measured with device 'another'" in capsys.readouterr().err
