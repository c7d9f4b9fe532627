"""GRPO in two processes of this machine (gloo), as `accelerate launch` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import CASES, equal_runs
from test_grpo import adapter

from recr1_lite.ledger import Ledger

# what a step logs over its rollouts, not as a mean of micro-batches' means
SAME = ("reward", "reward_std", "distinct", "zero_advantage_share", "completion_length", "truncated_share", "outcome/ok")

HERE = Path(__file__).parent
CPU2 = HERE.parent / "benchmarks" / "accelerate" / "cpu2.yaml"


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_folder) -> Path:
    """The folder that two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    paths = os.pathsep.join(map(str, (HERE.parent, HERE)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CPU2)]
    command += [str(HERE / "processes.py"), str(tiny_folder), str(out)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "said.txt").write_text(done.stdout)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_folder) -> Path:
    """The folder that one process wrote."""
    out = tmp_path_factory.mktemp("one")
    equal_runs(tiny_folder, out)
    return out


def read(path: Path):
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does_from_the_same_rollouts(one, two, case):
    """Sampled rollouts differ, because each process draws its own numbers; so both are given the same ones."""
    alone, (first, second) = read(one / f"{case}-0.json"), [read(two / f"{case}-{rank}.json") for rank in range(2)]
    size = 8  # of a step of 4 prompts x 4 rollouts each process has half
    dealt = [first["examples"][at : at + size] + second["examples"][at : at + size] for at in range(0, 6 * size, size)]
    assert sum(dealt, []) == alone["examples"], "the order of the data"
    assert len(first["curve"]) == 6
    for ours, theirs, wanted in zip(first["curve"], second["curve"], alone["curve"], strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
        assert [ours[name] for name in SAME] == pytest.approx([wanted[name] for name in SAME], abs=1e-4)
    left, right = adapter(one / case / "last"), adapter(two / case / "last")
    apart = max(float((left[name] - right[name]).abs().max()) for name in left)
    assert left.keys() == right.keys() and apart < 1e-4, "a hundredth of what a step may change: the learning rate is 1e-2"
    assert max(float(weight.abs().max()) for name, weight in left.items() if "lora_B" in name) > 1e-2


@pytest.mark.slow
def test_two_processes_write_once_draw_their_own_rollouts_and_go_on(two):
    rows = Ledger(two / "ledger.jsonl").rows()
    assert [row["kind"] for row in rows] == ["train"] * 3 and [len(row["curve"]) for row in rows] == [4, 2, 4]
    assert rows[0]["val"] == rows[2]["val"]
    drawn = [read(two / f"whole-{rank}.json") for rank in range(2)]
    assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 4 * 4
    names = {path.name for path in (two / "whole").iterdir()}
    assert names == {"run.json", "training.json", "best", "last", "checkpoint-2", "checkpoint-4", ".lock"}
    left, right = adapter(two / "whole" / "last"), adapter(two / "parts" / "last")
    assert all(torch.equal(left[name], right[name]) for name in left)
    said = (two / "said.txt").read_text()
    assert said.count("step    4/4") == 2, "a line for each step of two runs, from one of the processes"
    for rank in range(2):
        odd, sft = read(two / f"refused-{rank}.json")
        assert "3 prompts x 4 rollouts" in odd and "not possible in 2 processes; take" in odd
        assert sft == "SFT runs in one process and 2 were launched; start it as one"
