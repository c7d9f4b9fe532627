"""The command line: help a newcomer can follow, and one sentence for everything a user can get wrong."""

import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from recr1_lite.__main__ import COMMANDS, Command, main, parser
from recr1_lite.common import RecR1Error

ITEMS = "item_id,title,text\na,Red dress,a red dress of silk\nb,Blue jeans,blue jeans of denim\nc,Coat,a warm coat\n"
REQUESTS = "request,relevant\n" + "".join(f"message number {i} about a dress,a\n" for i in range(12))


def run(capsys, *words: str) -> tuple[int, str]:
    code = main(list(words))
    return code, capsys.readouterr().err.strip()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("RECR1_RUNS", str(tmp_path / "runs"))
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "requests.csv").write_text(REQUESTS)
    return tmp_path


def raw(files, items: str = "items.csv") -> list[str]:
    """`evaluate --raw` on the custom task of these files."""
    places = ["--items", str(files / items), "--requests", str(files / "requests.csv")]
    return ["evaluate", "--raw", "--profile", "smoke", "--task", "custom", *places]


def rows(files) -> list[dict]:
    return [json.loads(line) for line in (files / "runs" / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert re.search(rf"^ +{name}\s", parser().format_help(), re.M)
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and "default" in capsys.readouterr().out or name in ("doctor", "prepare")


def test_help_loads_no_torch():
    """The package's first import looks for unsloth; where a GPU could use it, torch is loaded all the same."""
    code = "import sys, recr1_lite.__main__ as m; m.parser().format_help(); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "RECR1_BACKEND": "transformers"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_evaluate_raw_on_a_custom_task(files, capsys):
    assert main(raw(files)) == 0 and "ndcg@100" in capsys.readouterr().out
    assert [row["kind"] for row in rows(files)] == ["eval"] and rows(files)[0]["metrics"]["ndcg@100"]["mean"] == 1.0
    assert main([*raw(files), "--split", "test"]) == 0
    assert [row["kind"] for row in rows(files)] == ["eval", "unseal", "eval"]
    assert all(row["command"].startswith("python -m recr1_lite ") and row["device"] for row in rows(files))


def test_an_engine_by_address_and_options_of_a_task(files, capsys):
    from servers import search_server

    from recr1_lite.search.base import CallableRetriever

    asked: list[str] = []
    with search_server(
        CallableRetriever(lambda queries, k: asked.extend(queries) or [["b", "a"]] * len(queries))
    ) as url:
        options = ["--retriever", url, "--option", "k_eval=1", "--option", "name=mine"]
        code, said = run(capsys, *raw(files), *options)
    assert code == 0 and asked, said
    (row,) = rows(files)
    assert (row["task"], row["retriever"]) == ("mine", "JSONRetriever")
    assert row["metrics"]["mrr"]["mean"] == 0.5  # the server's order


@pytest.mark.parametrize(
    "words, said",
    [
        (("--retriever", "splade"), "no retriever 'splade'"),
        (("--option", "k_eval"), "no NAME=VALUE"),
        (("--option", "speed=1"), "no option 'speed'"),
    ],
)
def test_an_engine_or_option_that_is_none(files, capsys, words, said):
    code, sentence = run(capsys, *raw(files), *words)
    assert code == 2 and said in sentence and "\n" not in sentence


BAD = {  # what is wrong -> (file to change, its new content or None to delete it, a word of the sentence)
    "missing items": ("items.csv", None, "items.csv"),
    "missing requests": ("requests.csv", None, "requests.csv"),
    "empty file": ("items.csv", b"", "empty"),
    "no such column": ("items.csv", b"id,title,text\na,b,c\n", "item_id"),
    "duplicate id": ("items.csv", b"item_id,title,text\na,b,c\na,d,e\n", "'a'"),
    "empty text": ("items.csv", b"item_id,title,text\na,b,c\nb,d,\n", "text"),
    "wrong encoding": ("items.csv", "item_id,title,text\na,caf\xe9,x\n".encode("latin-1"), "UTF-8"),
    "target not there": ("requests.csv", REQUESTS.replace(",a\n", ",nobody\n", 1).encode(), "nobody"),
    "empty request": ("requests.csv", (REQUESTS + ",a\n").encode(), "request"),
    "gain not a number": ("requests.csv", (REQUESTS + '"x y","{""a"": NaN}"\n').encode(), "gain"),
    "too few requests": ("requests.csv", b"request,relevant\nhello there,a\n", "split"),
    "request in two splits": ("requests.csv", b"request,relevant,split\nx y,a,train\nx y,a,val\nz w,a,test\n", "x y"),
    "unknown split": ("requests.csv", b"request,relevant,split\nx y,a,dev\n", "dev"),
    "binary file": ("items.csv", b"\x00\xff\xfe\x00", "items.csv"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_one_sentence(files, capsys, what):
    name, content, word = BAD[what]
    (files / name).unlink() if content is None else (files / name).write_bytes(content)
    before = sorted(path.name for path in files.iterdir())
    code, said = run(capsys, *raw(files))
    assert code == 2 and said.startswith("recr1_lite: ") and len(said.splitlines()) == 1, said
    assert word in said and "Traceback" not in said
    assert sorted(path.name for path in files.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["evaluate", "--raw", "--profile", "huge"], "huge"),
        (["evaluate", "--raw", "--task", "chess"], "chess"),
        (["evaluate", "--raw", "--task", "custom"], "--items"),
        (
            ["evaluate", "--task", "custom", "--items", "{items}", "--requests", "{requests}", "--adapter", "nowhere"],
            "nowhere",
        ),
        (["train", "--steps", "0"], "--steps 0"),
        (["capability", "--limit", "0"], "--limit 0"),
        (["capability", "--max-tokens", "-1"], "--max-tokens -1"),
        (["export", "--adapter", "x", "--n", "0"], "--n 0"),
        (["serve", "--k", "0"], "--k 0"),
        (["report"], "make demo"),
    ],
)
def test_bad_arguments_are_one_sentence(files, capsys, arguments, word):
    places = {"{items}": str(files / "items.csv"), "{requests}": str(files / "requests.csv")}
    code, said = run(capsys, *[places.get(argument, argument) for argument in arguments])
    assert code == 2 and len(said.splitlines()) == 1 and word in said, said


@pytest.mark.parametrize("error, status", [(BrokenPipeError(), 141), (KeyboardInterrupt(), 130), (RecR1Error("no"), 2)])
def test_exit_codes(monkeypatch, capfd, error, status):
    def fail(_):
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", Command(fail, ()))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["doctor"]) == status and "Traceback" not in capfd.readouterr().err


def test_profile_from_the_environment(files, capsys, monkeypatch):
    monkeypatch.setenv("RECR1_PROFILE", "nonsense")
    code, said = run(capsys, "evaluate", "--raw")
    assert code == 2 and "nonsense" in said and "cpu" in said


def test_parquet_that_is_cut_short(files, capsys):
    path = files / "items.parquet"
    pd.DataFrame({"item_id": ["a"], "title": ["b"], "text": ["c"]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    code, said = run(capsys, *raw(files, "items.parquet"))
    assert code == 2 and len(said.splitlines()) == 1 and "items.parquet" in said


ENDS = [
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (ModuleNotFoundError("no", name="torch"), 2, "the package torch is missing; run `pip install"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "too little memory"),
    (RecursionError("maximum depth"), 2, "nested too deeply"),
    (OverflowError("int too large"), 2, "too large a number"),
    (KeyError("x"), 1, "a fault of the kit itself (KeyError in test_cli.py:"),
]


@pytest.mark.parametrize("error, status, said", ENDS, ids=[type(end[0]).__name__ for end in ENDS])
def test_whatever_ends_a_command_is_one_sentence(monkeypatch, capfd, error, status, said):
    def fail(_):
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", Command(fail, ()))
    assert main(["doctor"]) == status
    told = capfd.readouterr().err
    assert said in told and len(told.splitlines()) == 1


def test_a_closed_or_full_output_ends_without_a_traceback():
    code = "import sys; from recr1_lite.common import run_script; sys.exit(run_script(lambda: print('x' * 10**6)))"
    for shell, status in (("| head -c 9", 141), (">&-", 0), ("2>&- >&-", 0), ("> /dev/full", 2)):
        words = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {shell}', sys.executable, code]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == status and not re.search("Traceback|Exception ignored", done.stderr), shell


@pytest.mark.parametrize(
    "options, said",
    [
        (["items=a.csv"], "items is given twice"),
        (["k_eval=²"], "give a whole number"),
        (["val=1e400"], "give a number"),
        (["k_eval=1_0", "val=.2", "seed=007", "name=2024"], ""),
    ],
)
def test_options_are_read_as_their_loader_wants_them(files, capsys, options, said):
    code, sentence = run(capsys, *raw(files), *(part for option in options for part in ("--option", option)))
    assert (code == 2 and said in sentence) if said else (code == 0 and rows(files)[0]["task"] == "2024")
