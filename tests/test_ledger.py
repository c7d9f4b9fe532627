from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from recr1_lite import ledger as module
from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger


class Colour(StrEnum):
    red = "red"


class Mean(NamedTuple):
    mean: float
    n: int


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "runs" / "ledger.jsonl")


def test_rows_come_back_with_their_facts(ledger):
    assert ledger.rows() == []
    written = ledger.append({"kind": "eval", "task": "clothing", "n": 3})
    ledger.append({"kind": "unseal", "reason": "é\u2028"})
    assert ledger.rows("eval") == [written]
    assert [row["kind"] for row in ledger.rows()] == ["eval", "unseal"]
    assert ledger.rows("unseal")[0]["reason"] == "é\u2028"
    assert set(written["versions"]) == {"python", "torch", "transformers", "trl", "peft", "bm25s"}
    assert written["device"] and re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", written["time"])
    assert "commit" in written


def test_a_row_may_name_its_own_facts(ledger):
    row = ledger.append({"kind": "train", "device": "borrowed", "commit": "abc", "time": "then"})
    assert (row["device"], row["commit"], row["time"]) == ("borrowed", "abc", "then")


def test_plain_json_only(ledger):
    row = {
        "kind": "eval",
        "nan": float("nan"),
        "numpy": np.float32("inf"),
        "list": [np.int64(3), float("-inf"), np.float64(0.5)],
        "array": np.array([1.0, np.nan]),
        "mean": Mean(0.5, 3),
        "path": Path("a/b"),
        "enum": Colour.red,
        "set": {"b", "a"},
        "nested": {1: (True, None)},
    }
    ledger.append(row)

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(ledger.path.read_text(), parse_constant=refuse)
    assert found["nan"] is None and found["numpy"] is None and found["list"] == [3, None, 0.5]
    assert found["array"] == [1.0, None] and found["mean"] == {"mean": 0.5, "n": 3}
    assert found["path"] == os.path.join("a", "b") and found["enum"] == "red" and found["set"] == ["a", "b"]
    assert found["nested"] == {"1": [True, None]}


@pytest.mark.parametrize("row", [{"task": "x"}, {"kind": ""}, {"kind": "eval", "model": object()}])
def test_rows_that_are_refused(ledger, row):
    with pytest.raises(RecR1Error):
        ledger.append(row)
    assert not ledger.path.exists()


def test_damaged_lines_are_named_and_left_out(ledger):
    ledger.append({"kind": "eval", "n": 1})
    with ledger.path.open("ab") as file:
        file.write(b"[1, 2]\n\xff\xfe\n\n" + b'{"kind": "eval", "n": 2, "tor')  # its writer was killed
    ledger.append({"kind": "eval", "n": 3})
    with pytest.warns(UserWarning) as told:
        assert [row["n"] for row in ledger.rows()] == [1, 3]
    assert [re.match(r"line (\d)", str(warning.message))[1] for warning in told] == ["2", "3", "5"]


def test_failed_write_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    ledger.append({"kind": "eval", "n": 1})
    before = ledger.path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
    with pytest.raises(RecR1Error, match="No space left on device.*RECR1_RUNS"):
        ledger.append({"kind": "eval", "n": 2})
    assert ledger.path.read_bytes() == before


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecR1Error, match="cannot be written.*; mend its permissions"):
        Ledger(tmp_path / "file" / "ledger.jsonl").append({"kind": "eval"})
    with pytest.raises(RecR1Error, match="cannot be read"):
        Ledger(tmp_path).rows()


def test_many_writers(ledger):
    program = (
        "import sys; from recr1_lite.ledger import Ledger\n"
        "row = {'kind': 'eval', 'who': sys.argv[2], 'pad': 'x' * 9000}\n"
        "for i in range(20): Ledger(sys.argv[1]).append(row | {'i': i})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, ledger.path, str(who)]) for who in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    rows = ledger.rows()
    assert len(rows) == 60
    for who in "012":
        assert [row["i"] for row in rows if row["who"] == who] == list(range(20))


def test_default_path(monkeypatch, tmp_path):
    checkout = Path(__file__).parents[1].resolve()
    monkeypatch.delenv("RECR1_RUNS", raising=False)
    monkeypatch.chdir(checkout)
    assert Ledger().path == Path("runs/ledger.jsonl")
    monkeypatch.chdir(tmp_path)  # a notebook starts in its own folder, and writes into the same ledger
    assert Ledger().path == checkout / "runs/ledger.jsonl"
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path))
    assert Ledger().path == tmp_path / "ledger.jsonl"


def test_commit(tmp_path, monkeypatch):
    package = tmp_path / "recr1_lite"
    package.mkdir()
    code = package / "ledger.py"
    code.write_text("")
    monkeypatch.setattr(module, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    commit = module.commit.__wrapped__

    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    assert commit() is None
    git("init")
    assert commit() is None
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{12}", commit())
    code.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", commit())

    installed = tmp_path / "site-packages" / "recr1_lite"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(installed / "ledger.py"))
    assert commit() is None  # inside someone else's repository
