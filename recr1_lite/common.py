"""What every room uses: the one exception, files and folders written whole or not at all, the one progress bar."""

import glob
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class RecR1Error(ValueError):
    """What was wrong, where, and what to do next, in one sentence."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What keeps `path` from being written, a full disk or a closed folder, as a RecR1Error in one sentence."""
    try:
        yield
    except RecR1Error:
        raise
    except Exception as problem:
        if not isinstance(problem, OSError) and "(os error" not in str(problem):  # safetensors has a class of its own
            raise
        reason = getattr(problem, "strerror", None) or problem
        advice = "free space on its disk, mend its permissions, or give another place"
        raise RecR1Error(f"{path} cannot be written ({reason}) and nothing was kept of it; {advice}") from problem


def temporary_for(path: Path) -> str:
    """How the names of this process's temporaries beside `path` begin; what a killed process left there is cleared."""
    mark = f".{path.name}~"
    for left in path.parent.glob(f"{glob.escape(mark)}*"):
        maker = left.name.removeprefix(mark).partition("~")[0]
        if not maker.isdigit() or runs(int(maker)):
            continue
        if left.name.endswith(".old") and not path.exists():  # killed between the two renames of `swap_in`
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return f"{mark}{os.getpid()}~"


def runs(process: int) -> bool:
    """Whether there is such a process, as far as can be told."""
    try:
        if os.name == "posix":  # elsewhere this would end it
            os.kill(process, 0)
    except OSError as problem:
        return not isinstance(problem, ProcessLookupError)
    return True


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` through a temporary neighbour, so that no reader ever sees half a file.

    Raises RecR1Error (full disk, read-only folder) with nothing left behind.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_for(path))
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


def place_folder(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `folder`, then swap it in. If either fails, what was there stays.

    Raises RecR1Error where the disk is full or the folder closed, and whatever `write` raises.
    """
    folder = Path(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_for(folder)))
        try:
            write(work)
            work.chmod(0o755)
            swap_in(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def swap_in(made: Path, folder: Path) -> None:
    """Put the folder `made` in the place of `folder`. If that fails, the old folder is back in its place."""
    old = made.with_name(f"{made.name}.old")
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def runs_folder() -> Path:
    """Where runs and the ledger go: RECR1_RUNS, else `runs` in this checkout, else `runs` in the working folder.

    In a checkout it is the same folder wherever a notebook or a command is started.
    """
    checkout = Path(__file__).resolve().parents[1]
    elsewhere = (checkout / "pyproject.toml").is_file() and checkout != Path.cwd()
    return Path(os.environ.get("RECR1_RUNS") or (checkout / "runs" if elsewhere else "runs")).expanduser()


def free_folder(folder: str | Path) -> Path:
    """`folder` if nothing is there yet, else the first free one of folder-2, folder-3, ..."""
    folder = Path(folder)
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], names) if not path.exists())


def bar(*args, progress: bool = True, **options) -> tqdm:
    """A tqdm bar on a terminal and under a notebook's cell, that is wiped at the end; nothing in a log file."""
    watched = sys.stderr is not None and sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*args, leave=False, delay=1, disable=not (progress and watched), **options)


def slug(name: str) -> str:
    """A name as the name of a folder: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
