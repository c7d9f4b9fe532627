"""The one cache folder: where it is, whether the network may fill it, and how a file gets into it whole.

Whatever is put there is made in a workplace beside its place, under a lock, and moved when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from recr1_lite.errors import RecR1Error
from recr1_lite.wheels import MB, note

RESERVE = 50 * MB  # free space that is left alone


def cache_folder() -> Path:
    """RECR1_CACHE, else `recr1_lite` in XDG_CACHE_HOME or ~/.cache; it need not exist."""
    if chosen := os.environ.get("RECR1_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "recr1_lite"


def offline() -> bool:
    """True where RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    settings = (os.environ.get(name, "").lower() for name in ("RECR1_OFFLINE", "HF_HUB_OFFLINE"))
    return any(setting in {"1", "true", "yes", "on"} for setting in settings)


def need_network(path: Path) -> None:
    """Raise RecR1Error where `path` of the cache, which is missing or damaged, may not be fetched."""
    if offline():
        raise RecR1Error(
            f"{path.name} is {'damaged' if path.exists() else 'missing'} in the cache {cache_folder()} "
            "and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it and run `python -m recr1_lite "
            "prepare` once with a network, or set RECR1_CACHE to a folder that has it"
        )


def need_space(folder: Path, wanted: int) -> None:
    """Raise RecR1Error unless the disk of the existing `folder` has `wanted` bytes free, and some more."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE:
        raise RecR1Error(
            f"the disk of the cache {folder} has {free // MB} MB free and {(wanted + RESERVE) // MB} MB are "
            "needed; free some space, or set RECR1_CACHE to a folder on a larger disk"
        )


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time works on `name`; a failed write inside becomes a RecR1Error."""
    folder = cache_folder()
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            note(f"another process is preparing {name}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except (OSError, NotImplementedError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RecR1Error(
            f"the cache {folder} cannot be written ({reason}); mend its permissions, free space on its disk, "
            "or set RECR1_CACHE to a folder that can be written"
        ) from problem


@contextlib.contextmanager
def workplace(target: Path, space: int) -> Iterator[Path]:
    """An empty folder beside `target`, on a disk with `space` bytes free; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.work")
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    need_space(target.parent, space)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
