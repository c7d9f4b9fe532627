"""Whatever is typed, the command line ends with an exit status and at most one sentence, never with a traceback."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recr1_lite.__main__ import COMMANDS, main

ODD = ["", "0", "-1", "²", "1e400", "nan", "9" * 30, "\udcff", "a=b", "val=²", "seed=-1", "k_eval=0", "metrics="]
ODD += ["/", ".", "custom", "movielens", "smoke", "paper", "val", "test", "http://127.0.0.1:9", "dense"]
ODD += ["adapter,gguf", "灯", "\0", "{x}"]
FLAGS = sorted({flag for command in COMMANDS.values() for flag, *_ in command.options if flag.startswith("-")})
WORDS = st.sampled_from(ODD) | st.text(max_size=8)
LINES = st.tuples(st.sampled_from([*COMMANDS, "nothing"]), st.lists(st.sampled_from(FLAGS) | WORDS, max_size=7))


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No network, an empty cache, runs elsewhere: what would train or download stops at once, for real."""
    (tmp_path / "items.csv").write_text("item_id,title,text\na,Red,red dress\nb,Blue,blue jeans\n")
    (tmp_path / "requests.csv").write_text("request,relevant\n" + "".join(f"dress {i} red,a\n" for i in range(9)))
    for name, value in {"CACHE": tmp_path / "cache", "RUNS": tmp_path / "runs", "OFFLINE": "1"}.items():
        monkeypatch.setenv(f"RECR1_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=LINES, custom=st.booleans())
def test_any_command_line_is_answered(empty, capsys, line, custom):
    name, words = line
    if custom and name in ("evaluate", "inspect", "export", "demo", "train"):
        words = [*"--profile smoke --task custom --items items.csv --requests requests.csv".split(), *words]
    try:
        status = main([name, *words])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    said = capsys.readouterr().err
    assert status in (0, 2) or (name, status) == ("doctor", 1), said
    assert "Traceback" not in said and "a fault of the kit" not in said
