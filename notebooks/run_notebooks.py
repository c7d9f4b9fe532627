"""Run the notebooks from top to bottom and keep their outputs; stamp the repository's name into their badges.

python notebooks/run_notebooks.py [NAME ...]            such as 05 or solutions/02 (default: all)
python notebooks/run_notebooks.py --profile smoke       any other profile than cpu leaves the files as they are
python notebooks/run_notebooks.py --badges owner/name   for a fork, so that its badges open its own copy
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from recr1_lite.common import RecR1Error, atomic_write

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget"
BADGE = re.compile(rb"(colab\.research\.google\.com/github/)([^/\s]+/[^/\s]+)(/blob/)")
REPO_LINE = re.compile(rb'("REPO = \\")([^"\\]*)(\\")')
GITHUB = r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}/(?!\.{1,2}$)[A-Za-z0-9_.-]{1,100}(?<!\.git)"
QUIET = dict(force_raise_errors=True, record_timing=False, coalesce_streams=True, extra_arguments=["--log-level=ERROR"])
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # KB; bytes on a Mac


def find(names: list[str] | None = None, folder: Path = FOLDER) -> list[Path]:
    """The notebooks in order of number, then labs, solutions; `names` pick some. Raises RecR1Error for an unknown."""
    places = ("*.ipynb", "[a-z]*/*.ipynb", "[a-z]*/[a-z]*/*.ipynb")  # labs/solutions lie a folder deeper
    paths = [path for place in places for path in sorted(folder.glob(place))]
    known = {name_of(path, folder): path for path in paths}
    for name in names or []:
        if not any(one.startswith(name) for one in known):
            raise RecR1Error(f"no notebook begins with {name!r}; there are {', '.join(known) or 'none'}")
    return [path for name, path in known.items() if not names or name.startswith(tuple(names))]


def name_of(path: Path, folder: Path = FOLDER) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def execute(path: Path, profile: str, cwd: Path | None = None, **env: str) -> tuple[nbformat.NotebookNode, float]:
    """The executed, cleaned notebook and the peak memory of its kernel in GB; the file stays as it is.

    `cwd`: of the fresh kernel (default: the file's folder). Raises CellExecutionError or DeadKernelError of nbclient.
    """
    book = nbformat.read(path, 4)
    book.cells.append(nbformat.v4.new_code_cell(PEAK))
    client = NotebookClient(book, timeout=None, **QUIET)
    told = {"PYTHONPATH": str(FOLDER.parent), "RECR1_PROFILE": profile} | env
    code = [(index, cell) for index, cell in enumerate(book.cells) if cell.cell_type == "code"]
    with client.setup_kernel(cwd=str(cwd or path.parent), env=os.environ | told):
        try:
            for count, (index, cell) in enumerate(code, start=1):
                client.execute_cell(cell, index, execution_count=count)
        except BaseException:
            client.shutdown_kernel = "immediate"  # do not wait for the end of the cell
            raise
    peak = int(book.cells.pop().outputs[0].text) * (1 if sys.platform == "darwin" else 1024)
    return clean(book), peak / 1e9


def clean(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what changes from run to run or by machine, and widgets, which are blank without a kernel."""
    book.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in book.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            kept = [out for out in cell.outputs if not any(key.startswith(WIDGET) for key in out.get("data", ()))]
            cell.outputs = [out for out in kept if out.output_type != "stream" or out.text.strip()]
    return book


def run(paths: list[Path], profile: str, folder: Path = FOLDER) -> None:
    """Execute notebooks one after another; under `cpu` each is written back as soon as it ran whole."""
    print("| notebook | minutes | peak GB |\n|---|---|---|", flush=True)
    for path in paths:
        started = time.perf_counter()
        try:
            book, peak = execute(path, profile)
        except (CellExecutionError, DeadKernelError) as error:
            words = re.sub("\x1b.*?m", "", str(error))
            raise RecR1Error(f"{name_of(path, folder)} failed, its file is as it was: {words}") from None
        if profile == "cpu":
            atomic_write(path, nbformat.writes(book) + "\n")
        print(f"| {name_of(path, folder)} | {(time.perf_counter() - started) / 60:.1f} | {peak:.1f} |", flush=True)


def stamp(repository: str, paths: list[Path]) -> list[Path]:
    """Put `repository` ("owner/name") into badges and install cells, every other byte as it was; the changed files."""
    if not re.fullmatch(GITHUB, repository):
        raise RecR1Error(f"{repository!r} is no repository on GitHub; write owner/name, nothing around it")
    new = rb"\g<1>%s\g<3>" % repository.encode()
    before = {path: path.read_bytes() for path in paths}
    after = {path: BADGE.sub(new, REPO_LINE.sub(new, text)) for path, text in before.items()}
    return [atomic_write(path, text) for path, text in after.items() if text != before[path]]


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> str | None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("names", nargs="*", metavar="NAME")
    top.add_argument("--profile", default="cpu")
    top.add_argument("--badges", metavar="owner/name")
    options = top.parse_args(argv)
    try:
        paths = find(options.names, folder)
        if options.badges is not None:
            paths += filter(Path.is_file, [folder.parent / "README.md"])
            print(f"{len(stamp(options.badges, paths))} of {len(paths)} files changed")
        else:
            run(paths, options.profile, folder)
    except RecR1Error as error:
        return f"run_notebooks: {error}"
    except KeyboardInterrupt:
        return "run_notebooks: stopped; the notebooks that ran whole are written"


if __name__ == "__main__":
    sys.exit(main())
