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


def check_place(path: str | Path, needed: int = 0, file: bool = False) -> None:
    """Raises RecR1Error where the folder (or with `file` the file) `path` can be neither made nor written, or where its
    disk has fewer than `needed` free bytes. Leaves nothing behind."""
    path = Path(path).expanduser()
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        if path.exists() and path.is_dir() == file:
            raise OSError(0, f"it is a {'folder' if file else 'file'}")
        with path.open("ab") if path.is_file() else tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as problem:
        advice = "give another place, or mend its permissions"
        raise RecR1Error(f"{path} cannot be written ({problem.strerror}); {advice}") from problem
    if free < needed:
        room = f"{path} will take up to {needed:,} bytes and its disk has {free:,} free"
        raise RecR1Error(f"{room}; free some space, or give another place")


def runs_folder() -> Path:
    """Where runs and the ledger go: RECR1_RUNS, else `runs` in this checkout, else `runs` in the working folder.

    In a checkout it is the same folder wherever a notebook or a command is started.
    """
    checkout = Path(__file__).resolve().parents[1]
    elsewhere = (checkout / "pyproject.toml").is_file() and checkout != Path.cwd()
    return Path(os.environ.get("RECR1_RUNS") or (checkout / "runs" if elsewhere else "runs")).expanduser()


def free_folder(folder: str | Path, last: bool = False) -> Path:
    """`folder` if nothing is there yet, else the first free one of folder-2, folder-3, ...; `last`: the one before."""

    def numbered(number: int) -> Path:
        return Path(folder).with_name(f"{Path(folder).name}-{number}" if number > 1 else Path(folder).name)

    free = next(number for number in itertools.count(1) if not numbered(number).exists())
    return numbered(max(1, free - last))


def bar(*args, progress: bool = True, **options) -> tqdm:
    """A tqdm bar on a terminal and under a notebook's cell, that is wiped at the end; nothing in a log file."""
    watched = sys.stderr is not None and sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*args, leave=False, delay=1, disable=not (progress and watched), **options)


def slug(name: str) -> str:
    """A name as the name of a folder: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
