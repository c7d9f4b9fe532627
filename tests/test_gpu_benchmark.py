"""benchmarks/gpu.py on a machine without a GPU: its dry run, its bookkeeping, its tables."""

import json
import time
from pathlib import Path

import gpu
import gpu_cells
import gpu_loop
import gpu_models
import gpu_speed
import gpu_tables
import pytest
import torch
from bench import Child
from gpu_cells import GIB, Cell

from recr1_lite.common import RecR1Error

CPU = gpu_cells.Machine(dry=True, cuda=False, name="a CPU")
CARD = gpu_cells.Machine(dry=False, cuda=True, name="a card", memory=24 * GIB, capability=(8, 9))
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the dry run takes another way")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> tuple[Path, int]:
    """One dry run of all parts for the whole file: (JSON file, status)."""
    out = tmp_path_factory.mktemp("gpu") / "dry.json"
    return out, gpu.main(["--dry-run", f"--out={out}"])


def test_the_dry_run_is_complete(dry_run):
    out, status = dry_run
    content = json.loads(out.read_text())
    assert status == 0 and content["dry_run"] is True and content["versions"]["trl"]
    planned = [cell for cells in gpu.PARTS.values() for cell in cells(CPU)]
    rows = content["cells"]
    assert list(rows) == [cell.name for cell in planned]
    for cell in planned:
        expected = ("not run", "needs CUDA") if cell.cuda else ("done", None)
        assert (rows[cell.name]["state"], rows[cell.name].get("why")) == expected, cell.name
    assert rows["environment/machine"]["backend"]["gpu24"]["name"] == "transformers"
    assert rows["correctness/gradient/tiny/float32/transformers"]["relative"] < 1e-4
    assert 0 < rows["correctness/4-bit/tiny/float32/transformers"]["max_nats"] < 1
    trained = {row["method"]: row for row in rows["loop/methods"]["rows"] if row["kind"] == "train"}
    tested = {row["method"] for row in rows["loop/methods"]["rows"] if row["kind"] == "eval" and row["split"] == "test"}
    assert set(trained) == set(gpu_loop.METHODS) <= tested and len(trained["GRPO"]["val"]) == 3
    assert {row.get("method", row.get("a")) for row in rows["loop/capability"]["rows"]} == {"untrained", *trained}
    for side in gpu_speed.SIDES:
        row = rows[f"speed/tiny/g4/{side}"]
        assert row["counted_steps"] == 2 and row["tokens"] == 2 * 2 * 4 * row["lengths"]["mean"]
        assert row["lengths"]["longest"] == 8 and row["rollout_seconds"] > 0 < row["update_seconds"]
        assert row["peak_allocated"] is None
    assert str(out.parent) not in out.read_text().replace(json.dumps(content["command"]), "")


def test_again_the_dry_run_measures_nothing(dry_run, capsys, monkeypatch):
    out, _ = dry_run
    before = json.loads(out.read_text())["cells"]
    monkeypatch.setattr(gpu, "run_cell", None)
    assert gpu.main(["--dry-run", f"--out={out}"]) == 0
    after, printed = json.loads(out.read_text())["cells"], capsys.readouterr().out
    done = [name for name, row in before.items() if row["state"] == "done"]
    assert all(after[name] == before[name] for name in done) and printed.count("measured before") == len(done)
    assert "the transformers backend stands in for `ours`" in printed and "all parts are finished" in printed
    assert gpu.main([f"--tables={out}"]) == 0
    tables = capsys.readouterr().out
    assert tables.strip() in printed
    words = ["DRY RUN", "/tiny/float32/transformers | NF4", "loop/methods, rejection SFT: ", "tiny/g4 | stock (trl)"]
    assert not [one for one in (*words, "needs CUDA") if one not in tables]


def fake(monkeypatch, cells):
    monkeypatch.setitem(gpu.PARTS, "loop", lambda here: cells)


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(monkeypatch, tmp_path):
    calls = []
    problems = {1: ValueError("a broken kernel"), 2: RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")}
    problems[3] = ModuleNotFoundError("No module named 'x'", name="x")

    def measure(settings, work):
        calls.append(settings["n"])
        if settings["n"] in problems:
            raise problems[settings["n"]]
        return {}

    cells = [Cell(f"loop/{n}", measure, {"n": n}) for n in range(5)]
    cells.append(Cell("loop/after", measure, {"n": 5}, after="loop/1"))
    cells.append(Cell("loop/needs", measure, {"n": 6}, needs=("no_such_package",)))
    fake(monkeypatch, cells)
    options = ["--dry-run", f"--out={tmp_path / 'a.json'}", "--parts=loop"]
    assert gpu.main(options) == 1
    rows = json.loads((tmp_path / "a.json").read_text())["cells"]
    states = ["done", "failed", "does not fit", "not run", "done", "not run", "not run"]
    assert [row["state"] for row in rows.values()] == states
    assert rows["loop/1"]["why"].startswith("ValueError in test_gpu_benchmark.py:")
    reasons = [rows[f"loop/{n}"]["why"] for n in (3, "after", "needs")]
    assert reasons == ["x is not installed", "loop/1 is not done", "no_such_package is not installed"]
    calls.clear()
    assert gpu.main(options) == 1 and calls == [3]
    assert gpu.main([*options, "--retry"]) == 1 and calls == [3, 1, 3]
    assert gpu.main([*options, "--fresh"]) == 1 and calls == [3, 1, 3, 0, 1, 2, 3, 4]


def test_the_minutes_end_at_a_cell(monkeypatch, tmp_path, capsys):
    def measure(settings, work):
        time.sleep(0.5)
        return {}

    fake(monkeypatch, [Cell(f"loop/{n}", measure, {"n": n}) for n in range(2)])
    out = tmp_path / "a.json"
    options = ["--dry-run", f"--out={out}", "--parts=loop", "--minutes=0.005"]  # 0.3 s
    assert gpu.main(options) == 3
    printed = capsys.readouterr().out
    assert "used up before loop/1" in printed and "call again: python benchmarks/gpu.py --dry-run --out" in printed
    assert list(json.loads(out.read_text())["cells"]) == ["loop/0"]
    assert gpu.main(options) == 0
    assert "loop/0: measured before" in capsys.readouterr().out


def slow(settings: dict, work: Path) -> dict:
    try:
        (work / "begun").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        return {"steps": 1}
    return {}


def test_what_takes_too_long_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_cells, "GRACE", 0.0)
    row = gpu_cells.run_cell(Cell("environment/slow", slow, {}), CPU, tmp_path, time.time() + 0.1)
    assert row == {"state": "unfinished", "why": "the minutes were used up"} and not Child.live


def test_a_process_may_hand_in_what_it_has(tmp_path):
    child = Child(gpu_cells.attempt, slow, {}, tmp_path, method="spawn", words=tmp_path / "words")
    while not (tmp_path / "begun").exists() and child.process.is_alive():
        time.sleep(0.05)
    child.interrupt()
    assert child.result() == ({"state": "done", "steps": 1}, "", True)


def test_the_clock_counts():
    clock = gpu_speed.Clock()
    clock.ticks, clock.rollouts, clock.lengths = [0.0, 9.0, 11.0, 15.0], [5.0, 1.0, 2.0], [[9] * 4, [5] * 4, [7] * 4]
    row = clock.figures(3)
    assert (row["tokens"], row["tokens_per_second"], row["step_seconds"]) == (48, 8.0, 3.0)
    assert (row["rollout_seconds"], row["update_seconds"], row["warm_up_seconds"]) == (1.5, 1.5, 9.0)
    assert row["lengths"] == {"mean": 6.0, "shortest": 5, "longest": 7}
    clock.ticks.pop()  # stopped in the third step, whose rollouts were written
    assert clock.figures(3)["tokens_per_second"] == 10.0
    with pytest.raises(RecR1Error, match="no step was counted: the first took 9 s; give --minutes more"):
        clock.ticks.pop()
        clock.figures(3)


def test_the_real_run_asks_the_most_telling_first():
    names = [cell.name for cell in gpu_speed.cells(CARD)]
    assert len(set(names)) == len(names) == 35
    assert names[:3] == [f"speed/qwen2.5-3b/g8/{side}" for side in ("ours", "stock", "transformers")]
    assert names[3] == "speed/qwen2.5-3b/g8/ours/8GB"
    assert "speed/qwen2.5-3b/g8/ours/24GB" in names
    assert not [cell for cell in gpu_speed.cells(CARD._replace(memory=15 * 10**9)) if cell.name.endswith("16GB")]
    for cell in gpu_speed.cells(CARD):
        if cell.settings["side"] == "ours":
            assert cell.backend == "unsloth" and cell.settings["sizes"]["micro_batch"] in (8, 12)
    for here in (CPU, CARD):
        before = set()
        for cell in [cell for cells in gpu.PARTS.values() for cell in cells(here)]:
            assert not cell.after or cell.after in before, cell.name
            assert json.loads(json.dumps(cell.settings)) == cell.settings, cell.name
            before.add(cell.name)


def test_a_cap_is_all_that_can_be_seen():
    told = gpu_speed.free_under(8, lambda device: (70 * GIB, 80 * GIB), lambda device: 2 * GIB)
    assert told() == (5.5 * GIB, 8 * GIB)
    assert gpu_speed.free_under(8, lambda device: (3 * GIB, 6 * GIB), lambda device: 0)() == (3 * GIB, 6 * GIB)
    assert gpu_speed.free_under(8, lambda device: (3 * GIB, 80 * GIB), lambda device: 9 * GIB)()[0] == 0


def test_tables_by_hand():
    def row(tokens, peak, cap=None, state="done"):
        figures = dict(tokens_per_second=tokens, rollout_seconds=2.0, update_seconds=1.0, backend="b")
        peaks = dict(peak_allocated=peak, peak_reserved=peak)
        return dict(state=state, settings={"cap": cap}, **figures, **peaks)

    cell = "speed/qwen2.5-3b/g8"
    rows = {
        f"{cell}/ours": row(300.0, 5e9),
        f"{cell}/ours/12GB": row(1.0, 5e9, 12),
        f"{cell}/stock": row(100.0, 12e9),
        f"{cell}/stock/12GB": row(1.0, None, 12, "does not fit"),
        f"{cell}/stock/16GB": row(1.0, 12e9, 16),
    }
    lines = gpu_tables.speed(rows)
    assert lines[2] == "| qwen2.5-3b/g8 | ours (b) | 300 | 3.00 | 2.0 + 1.0 | 5.0 (5.0) | 12 |"
    assert lines[3] == "| qwen2.5-3b/g8 | stock (b) | 100 | 1.00 | 2.0 + 1.0 | 12.0 (12.0) | 16 |"


def test_prompts_have_their_length():
    tokenizer = gpu_models.tokenizer_for(512)
    assert len(tokenizer) == 512
    for request in gpu_models.examples(tokenizer, 3, 40)["request"]:
        text = gpu_models.PROMPT.render(tokenizer, request)
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 40
    assert tokenizer.decode([511]).strip().startswith("x")  # every token that a random model writes is some text


def test_refusals(tmp_path, capsys):
    out, dry = tmp_path / "a.json", "--dry-run"
    assert gpu.main([f"--out={out}"]) == 2 and not out.exists()
    assert "there is no CUDA GPU here" in capsys.readouterr().err
    assert gpu.main([dry, f"--out={Path(gpu.__file__).parent / 'results' / 'dry.json'}"]) == 2
    assert gpu.main([dry, "--parts=speed,light"]) == 2
    out.write_text("{")
    assert gpu.main([dry, f"--out={out}"]) == 2 and out.read_text() == "{"
    assert "holds no results" in capsys.readouterr().err
    cells = {"speed/a": {"state": "done", "settings": {}}}
    out.write_text(json.dumps({"dry_run": True, "device": "another", "cells": cells}))
    assert gpu.main([dry, f"--out={out}", "--parts=speed"]) == 2
    assert "was measured with device 'another'" in capsys.readouterr().err
