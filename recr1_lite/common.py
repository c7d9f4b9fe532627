"""What every room uses: the one exception, files and folders written whole or not at all, the one progress bar."""

import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm


class RecR1Error(ValueError):
    """What was wrong, where, and what to do next, in one sentence."""


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` through a temporary neighbour, so that no reader ever sees half a file.

    Raises OSError (full disk, read-only folder) with nothing left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
    """Let `write` fill a temporary neighbour of `folder`, then swap it in. If either fails, what was there stays."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
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
