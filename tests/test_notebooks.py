"""The notebooks: they keep the rules, run anywhere from top to bottom, and notice a result broken on purpose."""

import json
import pkgutil
import shutil
import subprocess
import sys
import types
from pathlib import Path

import matplotlib
import nbformat
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import COLAB, problems
from run_notebooks import FOLDER, execute, find, main, name_of

from recr1_lite import assets
from recr1_lite.deploy.export import converter
from recr1_lite.tasks import clothing

BADGE = f"[![Open in Colab](https://x.org/b.svg)]({COLAB}OWNER/kit/blob/main/notebooks/01_toy.ipynb)"
INSTALL = 'import sys\n\nREPO = "OWNER/kit"\nif "google.colab" in sys.modules:\n    assert "OWNER" not in REPO'
CODE = [
    INSTALL,
    "PROFILE = None\nSEED = 0",
    "import os\n\nassert SEED == 0",
    "total = 1 + 1\nassert total == 2\ntotal",
    "print(os.environ['RECR1_PROFILE'])\nassert total < 3",
]
NOTEBOOKS = find()


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


def code_of(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def edit(path: Path, change) -> Path:
    """The notebook with `change(book)` made to it."""
    book = nbformat.read(path, 4)
    change(book)
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """The toy after a run, in a folder of its own; read only."""
    path = toy(tmp_path_factory.mktemp("executed"))
    assert main([], path.parent) is None
    return path


@pytest.fixture
def mine(executed, tmp_path) -> Path:
    """A copy of the executed toy to break."""
    path = tmp_path / "notebooks" / executed.name
    path.parent.mkdir()
    return Path(shutil.copy(executed, path))


def test_run_writes_back_an_executed_clean_notebook(tmp_path):
    streams = "import sys\n\nfor i in range(3):\n    print(i)\n    print('e', file=sys.stderr)"
    bar = "display({'application/vnd.jupyter.widget-view+json': {}}, raw=True)"
    path = toy(tmp_path, [*CODE, streams, f"from IPython.display import display\n\n{bar}", "print()"])

    def soil(book):
        book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
        for cell in book.cells:
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}

    ids = [cell.id for cell in nbformat.read(edit(path, soil), 4).cells]
    assert main(["01"], path.parent) is None and problems(path) == []
    before, book = path.read_bytes(), nbformat.read(path, 4)
    code = code_of(book)
    assert code[3].outputs[0].data["text/plain"] == "2" and code[4].outputs[0].text == "cpu\n"
    assert {(out.name, out.text) for out in code[5].outputs} == {("stdout", "0\n1\n2\n"), ("stderr", "e\n" * 3)}
    assert len(code[5].outputs) == 2 and code[6].outputs == code[7].outputs == []
    assert code[1].metadata == {"tags": ["parameters"]} and book.metadata.language_info == {"name": "python"}
    assert [cell.id for cell in book.cells] == ids and b"2026" not in before
    assert main([], path.parent) is None and path.read_bytes() == before, "a second run changes no byte"
    assert main(["--profile", "smoke"], path.parent) is None and path.read_bytes() == before, "only cpu is kept"


@pytest.mark.parametrize(
    "last, words", [("x = 1\n\nassert x == 2, 'x is not two'", "x is not two"), ("os._exit(1)", "Kernel died")]
)
def test_a_failing_cell_stops_the_run_and_leaves_the_file(tmp_path, capsys, last, words):
    paths = [toy(tmp_path, [*CODE, last], name) for name in ("01_toy", "02_toy")]
    edit(paths[0], lambda book: book.cells[-2].metadata.update(tags=["raises-exception"]))  # excuses nothing
    before = [path.read_bytes() for path in paths]
    said = main([], paths[0].parent)
    assert words in said and "01_toy failed" in said and "\x1b" not in said and "02_toy" not in said
    assert [path.read_bytes() for path in paths] == before and "toy |" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["01_toy.ipynb", "02_toy.ipynb", "notebooks"]


def test_the_kernel_is_this_python_with_this_package_where_it_is_told(tmp_path):
    told = "print([sys.executable, recr1_lite.__file__, os.getcwd(), os.environ['RECR1_RUNS']])"
    path = toy(tmp_path, [f"import os, sys, recr1_lite\nx = bytearray(b'1') * 2**29\n{told}"])
    book, peak = execute(path, "smoke", tmp_path, RECR1_RUNS="here")
    package = str(FOLDER.parent / "recr1_lite" / "__init__.py")
    assert book.cells[3].outputs[0].text == f"{[sys.executable, package, str(tmp_path), 'here']}\n"
    assert 0.5 < peak < 1.5


def test_names_pick_and_order(tmp_path):
    for name in ("10_b", "02_a", "solutions/02_a", ".ipynb_checkpoints/02_a"):
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    picked = {(): "02_a 10_b solutions/02_a", ("10", "02"): "02_a 10_b", ("solutions/02",): "solutions/02_a"}
    for words, names in picked.items():
        assert [name_of(path, tmp_path) for path in find(list(words), tmp_path)] == names.split()
    assert "'07'; there are 02_a, 10_b" in main(["07"], tmp_path)


def test_stamp_changes_the_repository_alone(mine, capsys):
    readme = mine.parents[1] / "README.md"
    readme.write_text(f"{BADGE}\nOWNER/kit stays here")
    before = mine.read_text()
    for repository, changed in [("Bob-2/kit.v1_x", 2), ("Bob-2/kit.v1_x", 0)]:
        assert main(["--badges", repository], mine.parent) is None
        assert capsys.readouterr().out == f"{changed} of 2 files changed\n"
    assert "OWNER/kit" not in mine.read_text() and problems(mine) == []
    assert 'REPO = \\"Bob-2/kit.v1_x\\"' in mine.read_text()
    assert readme.read_text() == f"{BADGE}\nOWNER/kit stays here".replace("OWNER/kit/", "Bob-2/kit.v1_x/")
    assert main(["--badges", "OWNER/kit"], mine.parent) is None and mine.read_text() == before


NO_REPOSITORY = [
    "",
    "kit",
    "a/b/c",
    "/b",
    "-a/b",
    "a/..",
    "a b/c",
    "a/b\n",
    "a/b\\1",
    "a/b.git",
    "https://github.com/a/b",
]


@pytest.mark.parametrize("name", NO_REPOSITORY)
def test_a_bad_repository_is_refused_and_nothing_changes(mine, name):
    before = mine.read_bytes()
    assert "owner/name" in main([f"--badges={name}"], mine.parent) and mine.read_bytes() == before


def code_cell(book, number: int):
    return code_of(book)[number - 1]


def planted(number: int, **data):
    """A change that lets code cell `number` show `data`."""
    return lambda book: code_cell(book, number).outputs.append(new_output("display_data", data))


def drawn(number: int, png: str):
    """A change that lets code cell `number` show a picture with an alt text."""
    shown = new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": "It rises."}})
    return lambda book: code_cell(book, number).outputs.append(shown)


def source(number: int, text: str):
    return lambda book: code_cell(book, number).update(source=text)


def prose(text: str, place: int = -1):
    return lambda book: book.cells[place].update(source=text)


def stream(text: str):
    return lambda book: code_cell(book, 4).outputs.append(new_output("stream", text=text))


LINKS = "[here](01_toy.ipynb) [there](https://x.org/y) [mail](mailto:a@b.org) [up](#top) [folder](../notebooks)"
ERROR = new_output("error", ename="ValueError", evalue="", traceback=[])
SCRATCH = "/".join(["", "tmp", ""])  # put together here, so that it is no path of a machine in this file either
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
    "a large file": (planted(3, **{"text/html": "A" * 1_000_000}), "1.0 MB"),
    "a picture that says nothing": (planted(3, **{"image/png": "A"}), "without an alt text"),
    "a number from nowhere": (prose("GRPO gained +0.137, not 0.5."), "number +0.137 is in no code"),
    "a path in an output": (stream("saved in /home/ann/runs"), "/home/ann"),
    "a path in a table": (planted(3, **{"text/html": f"<td>{SCRATCH}x</td>"}), f"{SCRATCH}x"),
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
def test_each_planted_problem_is_told_and_only_it(mine, what):
    change, words = PLANTED[what]
    book = nbformat.read(mine, 4)
    change(book)
    mine.write_text(nbformat.writes(book) if what != "no notebook" else json.dumps(book))
    (problem,) = problems(mine)
    assert words in problem and len(problem.splitlines()) == 1


ALLOWED = [stream("line\n" * 59), stream(f"see .{SCRATCH}x, a.b/home/x and ~/runs"), prose(LINKS)]
ALLOWED += [
    drawn(3, SCRATCH * 9),
    prose("2.0 is twice 1.00.\n\n`python -m x`: 3.9\n\n[Here](#a): 9.87."),
    planted(3, **{"text/html": "<tr>" * 60}),
]


@pytest.mark.parametrize("change", ALLOWED)
def test_what_is_allowed(mine, change):
    assert problems(edit(mine, change)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_rules(path):
    assert problems(path) == []


@pytest.fixture(scope="module")
def cache() -> None:
    """Everything that a notebook reads, so that it needs no network."""
    for name in assets.ASSETS:
        assets.fetch(name)
    for name in assets.MODELS:
        assets.model_folder(name)
    converter()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_runs_under_smoke_in_any_folder(path, cache, tmp_path_factory, tmp_path):
    execute(path, "smoke", tmp_path, RECR1_RUNS=str(tmp_path_factory.mktemp("runs")), RECR1_OFFLINE="1")
    assert not list(tmp_path.iterdir())  # what it writes belongs under RECR1_RUNS


def test_install_cells_are_one_and_keep_colabs_torch(monkeypatch):
    """As Colab would run it, but for the shell commands."""
    code = [cell.source for path in NOTEBOOKS for cell in code_of(nbformat.read(path, 4))]
    (source,) = {source for source in code if "google.colab" in source}
    source, commands, shell = source.replace("OWNER/recr1_lite", "me/kit"), [], InteractiveShell.instance()
    assert shell.run_cell(source).success and not commands, "elsewhere it does nothing"
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(shell, "system", lambda line: commands.append(shell.var_expand(line)))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        commands.clear()
        shell.run_cell(source).raise_error()
        clone, keep, gone, pip = commands
        assert gone.startswith("pip uninstall -q -y torchao")
        assert clone.endswith("https://github.com/me/kit kit") and "-c torch.txt" in pip
        assert keep == f"echo torch=={torch.__version__} > torch.txt"
        assert ("-r kit/requirements-gpu.txt" in pip) == gpu and '-e "kit[api,server]"' in pip


def messages_stay(items):
    reviews = clothing.read_reviews()
    return lambda kept: items(reviews[reviews["garment"].isin(kept["garment"])])


def first_word_lost(search):
    return lambda self, queries, k: search(self, [query.partition(" ")[2] for query in queries], k)


def doubled(find_kl):
    """forward_kl, twice as large."""
    return lambda *given, **named: [2 * value for value in find_kl(*given, **named)]


# (notebook, what is replaced, by what, words of the cell that must notice)
SABOTAGE = [
    # the rewrite is sent once, not four times
    ("00", "tasks.prompts.compose", lambda _: lambda request, query, *_: f"{request} {query}", "query.count(words)"),
    # nDCG of the request for every query
    ("00", "search.engines.BM25Retriever.search", lambda f: lambda s, q, k: f(s, q[:1] * len(q), k), "min(advantages)"),
    # messages stay in the index
    ("01", "tasks.clothing._items", messages_stay, "not any(found)"),
    # nDCG one rank too late
    ("02a", "search.metrics.ndcg", lambda f: lambda ids, wanted, k: f(["", *ids], wanted, k + 1), "== dcg / ideal"),
    # BM25 swallows a query's first word
    ("02a", "search.engines.BM25Retriever.search", first_word_lost, "abs(score - by_hand[item])"),
    ("02c", "search.engines.BM25Retriever.search", first_word_lost, 'checks["passed"].all()'),
    # every rollout is paid twice
    ("02b", "train.rewards.reward", lambda f: lambda *given: 2 * f(*given), "reward == by_hand"),
    # evaluate loses the first hit
    ("03", "evaluate.evaluation.compute", lambda f: lambda name, ids, wanted: f(name, ids[1:], wanted), "== raw.rows"),
    # a request may end its own turn
    ("03", "tasks.prompts.break_special_tokens", lambda _: lambda tokenizer, text: text, "plain.count"),
    # every distance is twice as large
    ("07", "evaluate.capability.forward_kl", doubled, "abs(by_hand - by_kit)"),
    # the loss is on the prompt too
    ("04a", "train.sft.tokenised", lambda f: lambda *given: f(*given[:4], "all"), 'row["labels"] == labels'),
    # the vote always takes the first rollout
    ("04b", "train.targets.vote", lambda _: lambda queries: 0, "vote(toy) == "),
    # a reward that is the same for all
    ("05", "search.ndcg", lambda _: lambda ids, relevant, k: 0.5, "0.8 < end.reward"),
    # seen films stay in the ranking
    ("06_", "evaluate.evaluation.excluded", lambda _: lambda examples: [set()] * len(examples), "> kept.summary"),
    # an answer that names no candidate is paid
    ("06b", "recipes.rerank._outcome", lambda _: lambda answer, candidates: answer.outcome, 'table["reward"][3]'),
    # nothing is corrected
    ("08", "search.metrics.holm", lambda _: lambda gaps: [True] * len(gaps), "metrics.holm([lead[name]"),
    # the scales of 4-bit blocks cost nothing
    ("09", "train.memory.nf4", lambda _: lambda count: count // 2, "abs(by_hand - four)"),
]


@pytest.mark.parametrize("number, target, broken, words", SABOTAGE)
def test_a_result_broken_on_purpose_is_noticed(number, target, broken, words, cache, tmp_path, monkeypatch):
    """The cells run in this process, and only as far as the one that must notice: its own assert, not the kit's."""
    monkeypatch.chdir(tmp_path)
    for key, value in {"RECR1_RUNS": str(tmp_path), "RECR1_OFFLINE": "1", "RECR1_PROFILE": "smoke"}.items():
        monkeypatch.setenv(key, value)
    target = f"recr1_lite.{target}"
    monkeypatch.setattr(target, broken(pkgutil.resolve_name(target)))
    code = code_of(nbformat.read(find([number])[0], 4))
    last = next(at for at, cell in enumerate(code) if words in cell.source)
    namespace = {"__name__": "__main__", "display": display}
    with matplotlib.rc_context({"backend": "agg"}), pd.option_context("display.precision", 6), torch.random.fork_rng():
        for cell in code[1:last]:  # without the install cell
            exec(compile(cell.source, "cell", "exec"), namespace)
        with pytest.raises(AssertionError) as noticed:
            exec(compile(code[last].source, "cell", "exec"), namespace)
    assert noticed.traceback[-1].frame.code.raw.co_filename == "cell"


def test_every_notebook_is_sabotaged():
    assert {path for path in NOTEBOOKS if path.parent == FOLDER} == {find([number])[0] for number, *_ in SABOTAGE}


def test_the_package_is_there_in_any_folder(tmp_path):
    command = [sys.executable, "-I", "-c", "import recr1_lite.tasks"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0, "make setup, or pip install -e ."
