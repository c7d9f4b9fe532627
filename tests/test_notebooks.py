"""The notebooks: they keep the rules, run anywhere from top to bottom, and notice a result broken on purpose."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.notebook_rules import problems, stamp
from recr1_lite.notebooks import FOLDER, NotebookFailed, execute, find, main, name_of

COLAB = "https://colab.research.google.com/github"
BADGE = f"[![Open in Colab](https://x.org/b.svg)]({COLAB}/OWNER/kit/blob/main/notebooks/01_toy.ipynb)"
INSTALL = 'import sys\n\nREPO = "OWNER/kit"\nif "google.colab" in sys.modules:\n    assert "OWNER" not in REPO'
CODE = [
    INSTALL,
    "PROFILE = None\nSEED = 0",
    "import os\n\nassert SEED == 0",
    "total = 1 + 1\nassert total == 2\ntotal",
    "print(os.environ['RECR1_PROFILE'])\nassert total < 3",
]


def toy(folder: Path, code=CODE, name: str = "01_toy") -> Path:
    """A small notebook that keeps every rule, except that it was not executed yet."""
    cells = [new_markdown_cell(f"# 01 · Toy\n\n{BADGE.replace('01_toy', name)}"), new_markdown_cell("## Exercises")]
    for source in code:
        cells += [new_markdown_cell("What comes now."), new_code_cell(source), new_markdown_cell("What it showed.")]
        if "PROFILE = " in source:
            cells[-2].metadata["tags"] = ["parameters"]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def edit(path: Path, change) -> Path:
    """The notebook with `change(book)` made to it."""
    book = nbformat.read(path, 4)
    change(book)
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """The toy after `run`, in a folder of its own; read only."""
    folder = tmp_path_factory.mktemp("executed")
    path = toy(folder)
    assert main(["run"], folder / "notebooks") == 0
    return path


@pytest.fixture
def mine(executed, tmp_path) -> Path:
    """A copy of the executed toy to break."""
    path = tmp_path / "notebooks" / executed.name
    path.parent.mkdir()
    return Path(shutil.copy(executed, path))


def test_run_writes_back_an_executed_clean_notebook(executed):
    book = nbformat.read(executed, 4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert code[3].outputs[0].data["text/plain"] == "2" and code[4].outputs[0].text == "cpu\n"
    assert problems(executed) == []
    assert sorted(book.metadata) == ["kernelspec", "language_info"]
    assert book.metadata.language_info == {"name": "python"}
    assert code[1].metadata == {"tags": ["parameters"]}


def test_a_second_run_changes_no_byte(mine):
    before = mine.read_bytes()
    assert main(["run", "01"], mine.parent) == 0
    assert mine.read_bytes() == before


def test_run_cleans_widgets_times_and_blank_streams(tmp_path):
    widget = "{'application/vnd.jupyter.widget-view+json': {'model_id': 'x'},\n     'text/plain': 'bar'}"
    path = toy(
        tmp_path,
        [
            *CODE,
            "import sys\n\nfor i in range(3):\n    print(i)\n    print('e', file=sys.stderr)",
            f"from IPython.display import display\n\ndisplay({widget}, raw=True)",
            "print()",
        ],
    )

    def soil(book):
        book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
        for cell in book.cells:
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}

    ids = [cell.id for cell in nbformat.read(edit(path, soil), 4).cells]
    assert main(["run"], path.parent) == 0
    book = nbformat.read(path, 4)
    *_, streams, bar, blank = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = {(output.name, output.text) for output in streams.outputs}
    assert shown == {("stdout", "0\n1\n2\n"), ("stderr", "e\n" * 3)} and len(streams.outputs) == 2
    assert bar.outputs == blank.outputs == [] and problems(path) == []
    assert [cell.id for cell in book.cells] == ids
    assert "widget" not in path.read_text().replace("jupyter.widget-view", "") and "2026" not in path.read_text()


def test_a_failing_cell_stops_the_run_and_leaves_the_file(tmp_path, capsys):
    paths = [toy(tmp_path, [*CODE, "x = 1\n\n\nassert x == 2, 'x is not two'"], name) for name in ("01_toy", "02_toy")]
    before = [path.read_bytes() for path in paths]
    assert main(["run"], paths[0].parent) == 1
    said = capsys.readouterr()
    assert "01_toy.ipynb, code cell 6 of 6 failed" in said.err and "    x = 1\n" in said.err
    assert said.err.endswith("AssertionError: x is not two\n") and "\x1b" not in said.err
    assert "02_toy" not in said.out + said.err and "ok" not in said.out
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["01_toy.ipynb", "02_toy.ipynb", "notebooks"]


def test_a_tag_does_not_excuse_an_error(tmp_path):
    path = toy(tmp_path, [*CODE, "1 / 0"])
    edit(path, lambda book: book.cells[-2].metadata.update(tags=["raises-exception"]))
    with pytest.raises(NotebookFailed) as failed:
        execute(path)
    assert failed.value.error == "ZeroDivisionError" and failed.value.source == "1 / 0"


def test_a_kernel_that_dies_is_said_so(tmp_path, capsys):
    path = toy(tmp_path, [*CODE, "os._exit(1)"])
    assert main(["run"], path.parent) == 1
    assert "code cell 6 of 6" in (said := capsys.readouterr().err) and "Kernel died" in said and "GB in use" in said


def test_other_profiles_never_replace_the_outputs(mine, tmp_path, capsys):
    before = mine.read_bytes()
    assert main(["run", "--profile", "smoke"], mine.parent) == 0
    assert mine.read_bytes() == before and "keep the outputs" in capsys.readouterr().out
    assert main(["run", "--profile", "smoke", "--out", str(tmp_path / "copies")], mine.parent) == 0
    assert mine.read_bytes() == before and "smoke" in (tmp_path / "copies" / mine.name).read_text()


def test_kernel_is_this_python_with_this_package_where_it_is_told(tmp_path, monkeypatch):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = toy(tmp_path, ["import os, sys, recr1_lite", "print([sys.executable, recr1_lite.__file__, os.getcwd()])"])
    done = execute(path, cwd=tmp_path, env={"RECR1_RUNS": "here"})
    package = str(FOLDER.parent / "recr1_lite" / "__init__.py")
    assert done.book.cells[6].outputs[0].text == f"{[sys.executable, package, str(tmp_path)]}\n"


def test_peak_is_that_of_the_kernel_and_its_children(tmp_path):
    child = "subprocess.run([sys.executable, '-c', 'import time; x = bytearray(b\"1\") * 2**29; time.sleep(1.5)'])"
    small, large = (execute(toy(tmp_path, [f"import subprocess, sys\n{line}"])) for line in ("1", child))
    assert 0.4e9 < large.peak - small.peak < 1e9 and large.seconds > 1.5


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_kills_the_kernel_and_leaves_the_file(tmp_path):
    path = toy(tmp_path, ["import os, time", "open('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"])
    before = path.read_bytes()
    code = "import pathlib, sys; from recr1_lite.notebooks import main; main(['run'], pathlib.Path(sys.argv[1]))"
    code = code.replace("main([", "sys.exit(main([") + ")"
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(path.parent)],
        cwd=FOLDER.parent,
        stderr=subprocess.PIPE,
        text=True,  # a shell's background jobs ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    pid = path.parent / "pid"
    while not (pid.exists() and pid.read_text()):
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "stopped" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert path.read_bytes() == before


def test_names_pick_and_order(tmp_path, capsys):
    for name in ("10_b", "02_a", "solutions/02_a", ".ipynb_checkpoints/02_a"):
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    names = lambda *a, **b: [name_of(path, tmp_path) for path in find(*a, **b, folder=tmp_path)]  # noqa: E731
    assert names() == ["02_a", "10_b", "solutions/02_a"] and names(solutions=False) == ["02_a", "10_b"]
    assert names(["solutions/02"]) == names(["notebooks/solutions/02_a.ipynb"]) == ["solutions/02_a"]
    assert names(["10", "02"]) == ["02_a", "10_b"]
    assert main(["run", "07"], tmp_path) == 2
    assert "'07'" in (said := capsys.readouterr().err) and "02_a, 10_b" in said and len(said.splitlines()) == 1


def test_stamp_changes_the_repository_alone(mine, capsys):
    readme = mine.parents[1] / "README.md"
    readme.write_text(f"{BADGE}\nOWNER/kit stays here")
    before = mine.read_text()
    for argument, changed in [("ann/recr1", 2), ("REPO=ann/recr1", 0), ("Bob-2/kit.v1_x", 2), ("OWNER/kit", 2)]:
        assert main(["badges", argument], mine.parent) == 0
        assert capsys.readouterr().out == f"{changed} of 2 files changed\n"
        if argument == "Bob-2/kit.v1_x":
            assert "OWNER/kit" not in mine.read_text().replace("OWNER/kit stays", "")
            assert 'REPO = \\"Bob-2/kit.v1_x\\"' in mine.read_text() and problems(mine) == []
            assert readme.read_text() == f"{BADGE}\nOWNER/kit stays here".replace("OWNER/kit/", "Bob-2/kit.v1_x/")
    assert mine.read_text() == before


NO_REPOSITORY = [
    "",
    "kit",
    "a/b/c",
    "https://github.com/a/b",
    "a/b.git",
    "a b/c",
    "a/b\n",
    "-a/b",
    "a/..",
    "a--b/c",
    "a/b\\1",
    "a/",
    "/b",
    "ä/b",
    'a/"b',
]


@pytest.mark.parametrize("name", NO_REPOSITORY)
def test_a_bad_repository_is_refused_and_nothing_changes(mine, capsys, name):
    before = mine.read_bytes()
    assert main(["badges", "--", name], mine.parent) == 2
    said = capsys.readouterr().err
    assert "owner/name" in said and len(said.splitlines()) == 1 and mine.read_bytes() == before
    with pytest.raises(RecR1Error):
        stamp(name, [mine])


def code_cell(book, number: int):
    return [cell for cell in book.cells if cell.cell_type == "code"][number - 1]


def planted(number: int, **data):
    """A change that lets code cell `number` show `data`."""
    return lambda book: code_cell(book, number).outputs.append(new_output("display_data", data))


def source(number: int, text: str):
    return lambda book: code_cell(book, number).update(source=text)


def prose(text: str, place: int = -1):
    return lambda book: book.cells[place].update(source=text)


def stream(text: str):
    return lambda book: code_cell(book, 4).outputs.append(new_output("stream", text=text))


LINKS = "[here](01_toy.ipynb) [there](https://x.org/y) [mail](mailto:a@b.org) [up](#top) [folder](../notebooks)"
ERROR = new_output("error", ename="ValueError", evalue="", traceback=[])
PLANTED = {  # what is wrong -> (the change, words of the only sentence about it)
    "little prose": (lambda book: book.update(cells=[c for c in book.cells if "showed" not in c.source]), "7 prose"),
    "long cells": (source(5, "x = 1\n" * 19 + "assert True\nassert 1"), "at most 21"),
    "long in the median": (lambda book: [source(n, "assert 1\n" * 11)(book) for n in (3, 4, 5)], "11 lines"),
    "a wide line": (source(5, f"assert 'é{'x' * 70}'  #"), "76 columns: assert"),
    "a badge of another notebook": (prose(BADGE.replace("01_toy", "02_toy"), 0), "no badge"),
    "a badge of another repository": (prose(BADGE.replace("OWNER", "ann"), 0), "make badges"),
    "a placeholder": (prose(f"{BADGE} | 2 cores | TIME | MEM |", 0), "says TIME"),
    "no install cell": (source(1, "import sys"), "install"),
    "no parameters": (lambda book: code_cell(book, 2).metadata.update(tags=[]), "parameters"),
    "two of them": (lambda book: code_cell(book, 3).metadata.update(tags=["parameters"]), "parameters"),
    "parameters without a seed": (source(2, "PROFILE = None"), "SEED"),
    "not executed": (lambda book: code_cell(book, 3).update(execution_count=None), "executed"),
    "executed out of order": (lambda book: code_cell(book, 3).update(execution_count=7), "executed"),
    "an error": (lambda book: code_cell(book, 3).outputs.append(ERROR), "error (ValueError)"),
    "a widget": (planted(3, **{"application/vnd.jupyter.widget-view+json": {}}), "widget"),
    "widget state": (lambda book: book.metadata.update(widgets={}), "widgets"),
    "times of execution": (lambda book: code_cell(book, 3).metadata.update(execution={"a": "b"}), "times of execution"),
    "a large file": (planted(3, **{"image/png": "A" * 1_000_000}), "1.0 MB"),
    "a path in an output": (stream("saved in /home/ann/runs"), "/home/ann"),
    "a path in a table": (planted(3, **{"text/html": "<td>/tmp/x</td>"}), "/tmp/x"),
    "a path in the code": (source(3, "assert SEED == 0  # C:\\Users\\ann"), "Users"),
    "this checkout": (prose(f"See {FOLDER.parent}."), "somebody's machine"),
    "no exercises": (prose("# Exercises", 1), "Exercises"),
    "a dead link": (prose(f"[next](02_next.ipynb#top) {LINKS}"), "02_next.ipynb"),
    "a dead picture": (prose('<img src="loop.png">'), "loop.png"),
    "few asserts": (source(4, "total = 2"), "2 asserts"),
    "a wall of text": (stream("line\n" * 60), "61 lines"),
    "a wall of a table": (planted(4, **{"text/html": "<tr>\n" * 60, "text/plain": "x"}), "61 lines"),
    "no notebook": (lambda book: book.cells[0].update(cell_type="poem"), "valid notebook"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_each_planted_problem_is_found_and_only_it(mine, what):
    change, words = PLANTED[what]
    book = nbformat.read(mine, 4)
    change(book)
    mine.write_text(nbformat.writes(book) if what != "no notebook" else json.dumps(book))
    (problem,) = problems(mine)
    assert words in problem and len(problem.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        stream("line\n" * 59),
        stream("see ./tmp/x, a.b/home/x and ~/runs"),
        prose(LINKS),
        planted(3, **{"image/png": "/tmp/" * 9}),
        planted(3, **{"text/html": "<tr>" * 60}),
    ],
)
def test_what_is_allowed(mine, change):
    assert problems(edit(mine, change)) == []


def test_solutions_need_no_exercises(mine):
    path = mine.parent / "solutions" / mine.name
    path.parent.mkdir()
    shutil.copy(mine, path)
    edit(path, prose(BADGE.replace("01_toy", "solutions/01_toy"), 0))
    edit(path, prose("Answers", 1))
    assert problems(path) == []


def test_check_lists_all_problems(mine, capsys):
    assert main(["check"], mine.parent) == 0 and capsys.readouterr().out == "0 problems in 1 notebooks\n"
    edit(mine, prose("[next](02_next.ipynb)"))
    assert main(["check", "01"], mine.parent) == 1
    assert capsys.readouterr().out == "01_toy: the link to 02_next.ipynb leads nowhere\n1 problems in 1 notebooks\n"


NOTEBOOKS = find()
NAMES = [name_of(path) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_rules(path):
    assert problems(path) == []


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, str]:
    """What the kernels are told: runs in a folder of the tests, no network; the cache is filled before."""
    for name in assets.ASSETS:
        assets.fetch(name)
    for name in assets.MODELS:
        assets.model_folder(name)
    return {"RECR1_RUNS": str(tmp_path_factory.mktemp("runs")), "RECR1_OFFLINE": "1"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_under_smoke_in_any_folder(path, elsewhere, tmp_path):
    execute(path, "smoke", tmp_path, elsewhere)
    assert not list(tmp_path.iterdir())  # what it writes belongs under RECR1_RUNS


SWALLOW = """
search = BM25Retriever.search
BM25Retriever.search = lambda self, queries, k: search(self, [q.partition(" ")[2] for q in queries], k)
"""
LEAK = """
from recr1_lite.tasks import clothing
items = clothing._items
clothing._items = lambda kept: items(reviews[reviews["garment"].isin(kept["garment"])])
reviews = clothing.read_reviews()
"""


def installed(source: str, gpu: bool, monkeypatch) -> list[str]:
    """The shell commands of an install cell as Colab would run it."""
    commands, path = [], list(sys.path)
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell, "system", lambda line: commands.append(shell.var_expand(line)))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    try:
        shell.run_cell(source).raise_error()
    finally:
        sys.path[:] = path
    return commands


def test_install_cells_are_one_and_keep_colabs_torch(monkeypatch):
    cells = {
        cell.source
        for path in NOTEBOOKS
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code" and "google.colab" in cell.source
    }
    assert len(cells) == 1
    source = cells.pop().replace("OWNER/recr1_lite", "me/kit")
    for gpu in (False, True):
        clone, keep, pip = installed(source, gpu, monkeypatch)
        assert clone.endswith("https://github.com/me/kit kit") and "-c torch.txt" in pip
        assert keep == f"echo torch=={torch.__version__} > torch.txt"
        assert ("-r kit/requirements-gpu.txt" in pip) == gpu and "-r kit/requirements.txt" in pip
    monkeypatch.delitem(sys.modules, "google.colab")
    assert InteractiveShell.instance().run_cell(source).success, "elsewhere it does nothing"


SABOTAGE = {  # what is broken -> (notebook, code run after its imports, words of the cell that must notice)
    "the rewrite is sent once, not four times": (
        "00_start_here",
        """
from recr1_lite import rewriters
rewriters.compose = lambda request, query, mode, weight: f"{request} {query}"
""",
        "answer.query.count(words)",
    ),
    "nDCG of the request for every query": (
        "00_start_here",
        """
from recr1_lite.search.base import BM25Retriever
search = BM25Retriever.search
BM25Retriever.search = lambda self, queries, k: search(self, [queries[0]] * len(queries), k)
""",
        "min(advantages)",
    ),
    "messages stay in the index": ("01_data", LEAK, "not any(found)"),
    "nDCG one rank too late": (
        "02_retriever_and_reward",
        """
ndcg = metrics.ndcg
metrics.ndcg = lambda ids, relevant, k, **other: ndcg(["", *ids], relevant, k + 1, **other)
""",
        "== dcg / ideal",
    ),
    "BM25 swallows a query's first word": ("02_retriever_and_reward", SWALLOW, "abs(score - by_hand[item])"),
    "evaluate loses the first hit": (
        "03_prompting_baselines",
        """
from recr1_lite import evaluation
compute = evaluation.compute
evaluation.compute = lambda name, ranking, relevant: compute(name, ranking[1:], relevant)
""",
        "by_hand == raw.rows",
    ),
    "a request may end its own turn": (
        "03_prompting_baselines",
        """
from recr1_lite import prompts
prompts.break_special_tokens = lambda tokenizer, text: text
""",
        "plain.count",
    ),
    "right and wrong turned round": (
        "07_general_capability",
        """
from lm_eval.api.task import ConfigurableTask
process = ConfigurableTask.process_results
ConfigurableTask.process_results = lambda self, doc, results: {
    name: 1 - value for name, value in process(self, doc, results).items()}
""",
        'bool(sample["acc"])',
    ),
    "the loss is on the prompt too": (
        "04_sft_baselines",
        """
from recr1_lite import sft
tokenised = sft.tokenised
sft.tokenised = lambda *arguments: tokenised(*arguments[:4], "all")
""",
        'row["labels"] == labels',
    ),
    "a reward that is the same for all": ("05_grpo", "ndcg = lambda ids, relevant, k: 0.5", "end.reward"),
    "seen films stay in the ranking": (
        "06_sequential_recommendation",
        """
from recr1_lite import evaluation
evaluation._excluded = lambda examples: [set()] * len(examples)
""",
        "> kept.summary[metric].mean",
    ),
    "an answer that names no candidate is paid": (
        "06b_reranking",
        """
from recr1_lite import rerank
rerank._outcome = lambda answer, candidates: answer.outcome
""",
        'table["reward"].round(6)',
    ),
    "a verdict that does not look at the interval": (
        "08_report",
        """
budget.verdict = lambda row: "above" if row["mean"] > 0 else "below"
""",
        'claimed["low"] > 0',
    ),
    "the scales of 4-bit blocks cost nothing": (
        "09_take_it_with_you",
        """
memory_counts.nf4 = lambda count: count // 2
""",
        "abs(by_hand - four)",
    ),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_result_broken_on_purpose_is_noticed(what, elsewhere, tmp_path):
    name, snippet, words = SABOTAGE[what]
    path = Path(shutil.copy(FOLDER / f"{name}.ipynb", tmp_path))

    def break_it(book):
        imports = next(at for at, cell in enumerate(book.cells) if "get_profile(PROFILE)" in cell.source)
        book.cells.insert(imports + 1, new_code_cell(snippet))

    with pytest.raises(NotebookFailed) as failed:
        execute(edit(path, break_it), "smoke", tmp_path, elsewhere)
    assert failed.value.error == "AssertionError" and words in failed.value.source, str(failed.value)
    assert re.findall(r"^(Cell In|File )", failed.value.trace, re.M)[-1] == "Cell In"  # its own assert, not the kit's


def test_every_notebook_is_sabotaged():
    assert {name for name in NAMES if "/" not in name} <= {name for name, *_ in SABOTAGE.values()}


def test_the_package_is_there_in_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import recr1_lite; print(recr1_lite.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(FOLDER.parent / "recr1_lite" / "__init__.py"), "make setup, or pip install -e ."
