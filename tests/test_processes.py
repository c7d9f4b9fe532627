"""GRPO in two processes of this machine (gloo), as `accelerate launch` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from processes import CASES, equal_runs, whole_run
from test_grpo import adapter

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger

# what a step logs over its rollouts, not as a mean of micro-batches' means
SAME = "reward reward_std distinct zero_advantage_share completion_length truncated_share outcome/ok".split()

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
    assert left.keys() == right.keys() and apart < 1e-4, "a hundredth of the learning rate, which a step may change"
    assert max(float(weight.abs().max()) for name, weight in left.items() if "lora_B" in name) > 1e-2


@pytest.mark.slow
def test_two_processes_write_once_draw_their_own_rollouts_and_go_on(two, tiny_folder):
    rows = Ledger(two / "ledger.jsonl").rows()
    assert [row["kind"] for row in rows] == ["train"] * 3 and [len(row["curve"]) for row in rows] == [4, 2, 4]
    assert rows[0]["val"] == rows[2]["val"]
    drawn = [read(two / f"whole-{rank}.json") for rank in range(2)]
    assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 4 * 4
    names = {path.name for path in (two / "whole").iterdir()}
    assert names == {"run.json", "training.json", "best", "last", "checkpoint-2", "checkpoint-4", ".lock"}
    left, right = adapter(two / "whole" / "last"), adapter(two / "parts" / "last")
    assert all(torch.equal(left[name], right[name]) for name in left)
    with pytest.raises(RecR1Error, match="whose processes was 2 and is now null"):
        whole_run(two, tiny_folder, "parts", 4, resume=True)
    said = (two / "said.txt").read_text()
    assert said.count("step    4/4") == 2, "a line for each step of two runs, from one of the processes"
    for rank in range(2):
        odd, sft = read(two / f"refused-{rank}.json")
        assert "3 prompts x 4 rollouts" in odd and "not possible in 2 processes; take" in odd
        assert sft == "SFT runs in one process and 2 were launched; start it as one"


CONFIGS = sorted(path for path in CPU2.parent.glob("*.yaml") if "vllm" not in path.name)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_file(file):
    parser = launch.launch_command_parser()
    known = vars(parser.parse_args(["script.py"]))
    config = load_config_from_file(str(file))  # raises for an unknown key
    kinds = {"ddp2": "MULTI_GPU", "zero2": "DEEPSPEED", "fsdp2": "FSDP", "cpu2": "MULTI_GPU"}
    assert (config.distributed_type, config.num_processes) == (kinds[file.stem], 2)
    nested = [*config.deepspeed_config, *config.fsdp_config]  # whose keys accelerate takes as they are
    assert not set(nested) - known.keys() and bool(nested) == (file.stem in ("zero2", "fsdp2"))
    given, *_ = launch._validate_launch_command(parser.parse_args(["--config_file", str(file), "script.py"]))
    prepare = prepare_deepspeed_cmd_env if given.use_deepspeed else prepare_multi_gpu_env
    given.deepspeed_fields_from_accelerate_config = ""
    environment = prepare(given)[1] if given.use_deepspeed else prepare(given)
    assert given.nproc_per_node == "2"
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == ("2" if file.stem == "zero2" else None)
    assert environment.get("FSDP_VERSION") == ("2" if file.stem == "fsdp2" else None)


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_trl_knows_every_field_for_vllm(mode, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(CPU2.parent)
    import stock

    command = ["stock.py", "--dry-run", "--profile", "smoke", "--trl"]
    monkeypatch.setattr("sys.argv", [*command, str(CPU2.parent / f"vllm_{mode}.yaml")])
    assert stock.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["use_vllm"], said["vllm_mode"]) == (True, mode) and said["num_generations"] == 4
    (tmp_path / "old.yaml").write_text("vllm_modus: server\n")
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "old.yaml")])
    assert stock.main() == 2 and "has 'vllm_modus', which the installed TRL does not know" in capsys.readouterr().err
