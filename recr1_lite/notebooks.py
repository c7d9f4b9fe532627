"""The notebooks: run them all, stamp the repository's name into them, check what needs no run.

    python -m recr1_lite.notebooks run [NAME ...] [--profile cpu] [--out FOLDER] [--no-solutions]
    python -m recr1_lite.notebooks badges owner/name
    python -m recr1_lite.notebooks check [NAME ...]

`run` executes and writes back what ran whole; the rules of `check` are in `notebook_rules.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recr1_lite.common import RecR1Error, atomic_write
from recr1_lite.notebook_rules import FOLDER, WIDGET, problems, stamp


class NotebookFailed(RuntimeError):
    """source: of the cell that failed; error: name of its exception; trace: its traceback, no colours."""

    def __init__(self, message: str, source: str, error: str, trace: str) -> None:
        super().__init__(message)
        self.source, self.error, self.trace = source, error, trace


class Run(NamedTuple):
    """An executed notebook (nbformat's), its wall time in seconds, its kernel's largest memory in bytes."""

    book: object
    seconds: float
    peak: int


def find(names: Sequence[str] = (), solutions: bool = True, folder: Path = FOLDER) -> list[Path]:
    """The notebooks of `folder` in order of number, then those of its subfolders; `names` ("05",
    "solutions/02", a path) pick some. Raises RecR1Error for a name that fits none."""
    paths = [*sorted(folder.glob("*.ipynb")), *sorted(folder.glob("[a-z]*/*.ipynb"))]
    known = {name_of(path, folder): path for path in paths if solutions or path.parent.name != "solutions"}
    wanted = tuple(name.removeprefix("notebooks/").removesuffix(".ipynb") for name in names)
    for name in wanted:
        if not any(one.startswith(name) for one in known):
            raise RecR1Error(f"no notebook begins with {name!r}; there are {', '.join(known) or 'none'}")
    return [path for name, path in known.items() if not wanted or name.startswith(wanted)]


def name_of(path: Path, folder: Path = FOLDER) -> str:
    """A notebook's name: "05_grpo", "solutions/05_grpo"."""
    return path.relative_to(folder).with_suffix("").as_posix()


def execute(
    path: Path,
    profile: str = "cpu",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    tell: Callable[[int, int], None] = lambda cell, of: None,
) -> Run:
    """Run a notebook from top to bottom in a fresh kernel of this very Python, with this very package.

    cwd: default the notebook's folder. env: added to this process's. tell: called as each code cell starts.
    No cell has a time limit. The file is not touched; what is returned is cleaned. Raises NotebookFailed at
    the first cell that fails.
    """
    import nbformat
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class ThisPython(KernelSpecManager):  # the user may have registered another one as "python3"
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    book = nbformat.read(path, 4)
    manager = AsyncKernelManager(kernel_spec_manager=ThisPython())
    client = NotebookClient(
        book,
        manager,
        timeout=None,
        startup_timeout=300,
        force_raise_errors=True,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    package = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": package, "RECR1_PROFILE": profile, **(env or {})}
    cells = [(index, cell) for index, cell in enumerate(book.cells) if cell.cell_type == "code"]
    started = time.perf_counter()
    kernel = client.setup_kernel(cwd=str(cwd or path.parent), env=env, cleanup_kc=True)
    with kernel, _peak_memory(manager) as peak:
        for number, (index, cell) in enumerate(cells, start=1):
            tell(number, len(cells))
            try:
                client.execute_cell(cell, index, execution_count=number)
            except BaseException as error:
                client.shutdown_kernel = "immediate"  # it must not finish its cell first
                if not isinstance(error, (CellExecutionError, DeadKernelError)):
                    raise
                place = f"{path.name}, code cell {number} of {len(cells)}"
                raise _failed(place, cell.source, error, peak[0]) from None
    clean(book)
    return Run(book, time.perf_counter() - started, peak[0])


def _failed(place: str, source: str, error: Exception, peak: int) -> NotebookFailed:
    trace = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rpartition("-" * 75)[2]  # the cell is shown above
    if not hasattr(error, "ename"):  # the kernel is gone, and nobody knows why
        trace += f" with {peak / 1e9:.1f} GB in use; is that all that this machine has?"
    first, last = source.splitlines()[:3], [line for line in trace.splitlines() if line.strip()][-8:]
    shown = [
        f"{place} failed. It begins",
        *(f"    {line}" for line in first),
        "and ended in",
        *(f"    {line}" for line in last),
    ]
    return NotebookFailed("\n".join(shown), source, getattr(error, "ename", type(error).__name__), trace)


@contextlib.contextmanager
def _peak_memory(manager) -> Iterator[list[int]]:
    """A list of one number: the largest resident memory of the kernel and its children so far, in bytes."""
    import psutil

    over, peak = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.Error):
                kernel = psutil.Process(manager.provisioner.pid)
                family = [kernel, *kernel.children(recursive=True)]
                peak[0] = max(peak[0], sum(process.memory_info().rss for process in family))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def clean(book) -> None:
    """Drop what changes from run to run or by machine, and widgets, which are blank without a kernel."""
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not any(key.startswith(WIDGET) for key in output.get("data", ()))
                and (output.output_type != "stream" or output.text.strip())
            ]


def run(paths: Sequence[Path], profile: str = "cpu", out: Path | None = None, folder: Path = FOLDER) -> None:
    """Execute notebooks one after another and write each back when it ran whole; with `out`, copies there.

    Only `cpu` may replace what is committed. Prints a line a notebook and a table at the end. Raises
    NotebookFailed at the first that fails; its file is then as it was.
    """
    import nbformat

    if out is None and profile != "cpu":
        print(f"profile {profile}: the files keep the outputs they have (--out FOLDER takes copies)")
    live, table = sys.stdout.isatty(), ["| notebook | minutes | peak GB |", "|---|---|---|"]
    whole = peak_of_all = 0

    for path in paths:
        name = name_of(path, folder)
        print(name, end="" if live else "\n", flush=True)

        def tell(cell: int, of: int) -> None:
            if live:
                print(f"\r{name}  cell {cell}/{of} ...", end="", flush=True)

        book, seconds, peak = execute(path, profile, tell=tell)
        if out or profile == "cpu":
            atomic_write((out or folder) / f"{name}.ipynb", nbformat.writes(book) + "\n")
        minutes, size = f"{seconds / 60:.1f}", f"{peak / 1e9:.1f}"
        print(f"{chr(13) * live}{name}  ok  {minutes} min  {size} GB peak", flush=True)
        table.append(f"| {name} | {minutes} | {size} |")
        whole, peak_of_all = whole + seconds, max(peak_of_all, peak)
    print("", *table, f"| all, profile {profile} | {whole / 60:.1f} | {peak_of_all / 1e9:.1f} |", sep="\n")


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> int:
    top = argparse.ArgumentParser(prog="python -m recr1_lite.notebooks", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("run", help="execute, and write back what ran whole")
    sub.add_argument("names", nargs="*", help="such as 05 or solutions/02 (default: all)")
    sub.add_argument("--profile", default="cpu", help="only cpu replaces the outputs in the files")
    sub.add_argument("--out", type=Path, help="folder for executed copies; the files stay as they are")
    sub.add_argument("--no-solutions", action="store_true")
    commands.add_parser("check", help="the rules that need no run").add_argument("names", nargs="*")
    sub = commands.add_parser("badges", help="stamp owner/name into badges and install cells")
    sub.add_argument("repository", metavar="owner/name")
    arguments = top.parse_args(argv)
    try:
        if arguments.command == "badges":
            paths = [*find(folder=folder), *filter(Path.is_file, [folder.parent / "README.md"])]
            changed = stamp(arguments.repository.removeprefix("REPO="), paths)
            print(f"{len(changed)} of {len(paths)} files changed")
        elif arguments.command == "check":
            paths = find(arguments.names, folder=folder)
            found = [f"{name_of(path, folder)}: {problem}" for path in paths for problem in problems(path)]
            print(*found, f"{len(found)} problems in {len(paths)} notebooks", sep="\n")
            return 1 if found else 0
        else:
            paths = find(arguments.names, not arguments.no_solutions, folder)
            if not paths:
                raise RecR1Error(f"there are no notebooks in {folder}")
            run(paths, arguments.profile, arguments.out, folder)
    except RecR1Error as error:
        print(f"recr1_lite: {error}", file=sys.stderr)
        return 2
    except NotebookFailed as error:
        print(f"\nrecr1_lite: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrecr1_lite: stopped; notebooks that ran whole are written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
