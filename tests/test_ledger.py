import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from recr1_lite import ledger as module
from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.search.metrics import Interval

Colour = StrEnum("Colour", ["red"])


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "runs" / "ledger.jsonl")


def test_rows_come_back_with_their_facts_unless_they_name_them(ledger):
    assert ledger.rows() == []
    written = ledger.append({"kind": "eval", "task": "clothing", "n": 3})
    ledger.append({"kind": "unseal", "reason": "é\u2028", "device": "borrowed", "commit": "abc", "time": "then"})
    (unseal,) = ledger.rows("unseal")
    assert ledger.rows() == [written, unseal] and unseal["reason"] == "é\u2028"
    assert (unseal["device"], unseal["commit"], unseal["time"]) == ("borrowed", "abc", "then")
    assert set(written["versions"]) == {"python", "torch", "transformers", "trl", "peft", "bm25s"}
    assert written["device"] and re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", written["time"])
    assert "commit" in written


def test_bound_marks_go_where_a_row_lacks_them(ledger):
    bound = ledger.bind(run="r1", profile="smoke").bind(profile="cpu", seed=3)
    rows = [bound.append({"kind": "compare", "seed": 0}), ledger.append({"kind": "compare"})]
    assert ledger.rows() == rows == bound.rows()
    assert [(row["run"], row["profile"], row.get("seed")) for row in rows] == [("r1", "cpu", 0), ("", "", None)]


def test_plain_json_only(ledger):
    row = {
        "kind": "eval",
        "numbers": [float("nan"), np.float32("inf"), np.int64(3), np.float64(0.5), np.array([1.0, np.nan])],
        "interval": Interval(0.5, 0.25, float("inf"), 3),
        "words": [Path("a/b"), Colour.red, {"b", "a"}, {1: (True, None)}],
    }
    ledger.append(row)
    plain = json.loads(ledger.path.read_text(), parse_constant=pytest.fail)
    assert plain["numbers"] == [None, None, 3, 0.5, [1.0, None]]
    assert plain["interval"] == {"mean": 0.5, "low": 0.25, "high": None, "n": 3}
    assert plain["words"] == [os.path.join("a", "b"), "red", ["a", "b"], {"1": [True, None]}]


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
    with pytest.raises(RecR1Error, match="cannot be written .No space left on device.; mend .*RECR1_RUNS"):
        ledger.append({"kind": "eval", "n": 2})
    assert ledger.path.read_bytes() == before
    with pytest.raises(RecR1Error, match="cannot be written"):
        Ledger(ledger.path / "ledger.jsonl").append({"kind": "eval"})


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
    code = tmp_path / "recr1_lite" / "ledger.py"
    code.parent.mkdir()
    code.write_text("")
    monkeypatch.setattr(module, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    commit = module.commit.__wrapped__

    def git(*arguments):
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    git("init")
    assert commit() is None
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{12}", commit())
    code.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", commit())
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "recr1_lite" / "ledger.py"))
    (tmp_path / "site-packages" / "recr1_lite").mkdir(parents=True)
    assert commit() is None  # inside someone else's repository
