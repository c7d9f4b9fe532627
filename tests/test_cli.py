"""The command line: help a newcomer can follow, and one sentence for everything a user can get wrong."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import search_server

from recr1_lite.__main__ import COMMANDS, PRESETS, _profile, main, parser
from recr1_lite.common import RecR1Error
from recr1_lite.search.base import CallableRetriever
from recr1_lite.train import grpo

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


def custom(files) -> list[str]:
    """`evaluate` on the custom task of these files."""
    places = ["--items", str(files / "items.csv"), "--requests", str(files / "requests.csv")]
    return ["evaluate", "--profile", "smoke", "--task", "custom", *places]


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
    assert main([*custom(files), "--raw"]) == 0 and "ndcg@100" in capsys.readouterr().out
    assert [row["kind"] for row in rows(files)] == ["eval"] and rows(files)[0]["metrics"]["ndcg@100"]["mean"] == 1.0
    assert main([*custom(files), "--raw", "--split", "test"]) == 0
    assert [row["kind"] for row in rows(files)] == ["eval", "unseal", "eval"]
    assert all(row["command"].startswith("python -m recr1_lite") and row["device"] for row in rows(files))


def test_an_engine_by_address_and_options_of_a_task(files, capsys):
    asked: list[str] = []
    engine = CallableRetriever(lambda queries, k: asked.extend(queries) or [["b", "a"]] * len(queries))
    with search_server(engine) as url:
        options = ["k_eval=1_0", "val=.2", "seed=007", "name=2024"]  # as their loader wants them
        words = [part for option in options for part in ("--option", option)]
        code, said = run(capsys, *custom(files), "--raw", "--retriever", url, *words)
    assert code == 0 and asked, said
    (row,) = rows(files)
    assert (row["task"], row["retriever"]) == ("2024", "JSONRetriever")
    assert row["metrics"]["mrr"]["mean"] == 0.5  # the server's order


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("items.csv", None, "items.csv"),
        ("items.csv", b"\x00\xff\xfe\x00", "items.csv"),
        ("requests.csv", REQUESTS.replace(",a\n", ",nobody\n", 1).encode(), "nobody"),
        ("requests.csv", (REQUESTS + '"x y","{""a"": NaN}"\n').encode(), "gain"),
    ],
)
def test_bad_files_are_one_sentence_and_leave_nothing(files, capsys, name, content, word):
    (files / name).unlink() if content is None else (files / name).write_bytes(content)
    before = sorted(path.name for path in files.iterdir())
    code, said = run(capsys, *custom(files), "--raw")
    assert code == 2 and said.startswith("recr1_lite: ") and len(said.splitlines()) == 1, said
    assert word in said and "Traceback" not in said
    assert sorted(path.name for path in files.iterdir()) == before


@pytest.mark.parametrize(
    "arguments, word",
    [
        ("evaluate --raw --profile huge", "huge"),
        ("evaluate --raw --task chess", "chess"),
        ("evaluate --raw --task custom", "--items"),
        ("CUSTOM --adapter nowhere", "nowhere"),
        ("CUSTOM --raw --retriever splade", "no retriever 'splade'"),
        ("CUSTOM --raw --option k_eval", "no NAME=VALUE"),
        ("CUSTOM --raw --option speed=1", "no option 'speed'"),
        ("CUSTOM --raw --option items=a.csv", "items is given twice"),
        ("CUSTOM --raw --option k_eval=²", "give a whole number"),
        ("CUSTOM --raw --option val=1e400", "give a number"),
        ("train --steps 0", "--steps 0"),
        ("train --task chess", "chess"),
        ("capability --limit 0", "--limit 0"),
        ("capability --max-tokens -1", "--max-tokens -1"),
        ("export --adapter x --n 0", "--n 0"),
        ("serve --k 0", "--k 0"),
        ("report", "make demo"),
    ],
)
def test_bad_arguments_are_one_sentence(files, capsys, arguments, word):
    words = arguments.split()
    code, said = run(capsys, *(custom(files) if words[0] == "CUSTOM" else words[:1]), *words[1:])
    assert code == 2 and len(said.splitlines()) == 1 and word in said, said


def test_profile_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("RECR1_PROFILE", "nonsense")
    code, said = run(capsys, "evaluate", "--raw")
    assert code == 2 and "nonsense" in said and "cpu" in said


ENDS = [
    (BrokenPipeError(), 141, ""),
    (KeyboardInterrupt(), 130, ""),
    (RecR1Error("no"), 2, "no"),
    (OSError(28, "No space left on device"), 2, "No space left on device"),
    (ModuleNotFoundError("no", name="torch"), 2, "the package torch is missing; run `pip install"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, "too little memory"),
    (RecursionError("maximum depth"), 2, "nested too deeply"),
    (OverflowError("int too large"), 2, "too large a number"),
    (KeyError("x"), 1, "a fault of the kit itself (KeyError in test_cli.py:"),
]


@pytest.mark.parametrize("error, status, said", ENDS, ids=[type(end[0]).__name__ for end in ENDS])
def test_whatever_ends_a_command_is_at_most_one_sentence(monkeypatch, capfd, error, status, said):
    def fail(_):
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", (fail, ()))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main(["doctor"]) == status
    told = capfd.readouterr().err.strip()
    assert said in told and len(told.splitlines()) <= 1 and "Traceback" not in told


def test_a_closed_or_full_output_ends_without_a_traceback():
    code = "import sys; from recr1_lite.common import run_script; sys.exit(run_script(lambda: print('x' * 10**6)))"
    for shell, status in (("| head -c 9", 141), (">&-", 0), ("2>&- >&-", 0), ("> /dev/full", 2)):
        words = ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {shell}', sys.executable, code]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == status and not re.search("Traceback|Exception ignored", done.stderr), shell


ODD = ["", "0", "-1", "²", "1e400", "nan", "9" * 30, "\udcff", "a=b", "val=²", "seed=-1", "k_eval=0", "metrics="]
ODD += ["/", ".", "custom", "movielens", "smoke", "paper", "val", "test", "http://127.0.0.1:9", "dense"]
ODD += ["adapter,gguf", "灯", "\0", "{x}"]
FLAGS = sorted({flag for _, options in COMMANDS.values() for flag, *_ in options if flag.startswith("-")})
WORDS = st.sampled_from(ODD) | st.text(max_size=8)
LINES = st.tuples(st.sampled_from([*COMMANDS, "nothing"]), st.lists(st.sampled_from(FLAGS) | WORDS, max_size=7))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=LINES, own=st.booleans())
@example(line=("prepare", []), own=False)
@example(line=("train", []), own=True)
def test_whatever_is_typed_ends_with_a_status_and_at_most_a_sentence(files, monkeypatch, capsys, line, own):
    """No network, an empty cache, runs elsewhere: what would train or download stops at once, for real."""
    monkeypatch.setenv("RECR1_CACHE", str(files / "cache"))
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    monkeypatch.chdir(files)
    name, words = line
    if own and name in ("evaluate", "inspect", "export", "demo", "train"):
        words = [*custom(files)[1:], *words]
    try:
        status = main([name, *words])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    said = capsys.readouterr().err
    assert status in (0, 2) or (name in ("doctor", "estimate") and status == 1), said  # not ready; does not fit
    assert "Traceback" not in said and "a fault of the kit" not in said


def test_what_trains_keeps_what_it_can():
    """The recipe with the KL term where the profile has none, unless another preset is named."""
    read = parser().parse_args
    assert set(PRESETS) == set(grpo.PRESETS)
    assert [_profile(read([name, "--profile", "cpu"])).preset for name in ("demo", "train")] == ["keep", "keep"]
    assert _profile(read(["demo", "--profile", "cpu", "--preset", "words"])).preset == "words"
    assert _profile(read(["demo", "--profile", "smoke"])).preset == "modern"
    assert _profile(read(["evaluate", "--profile", "cpu"])).preset == "words"
