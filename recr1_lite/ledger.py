"""The ledger: one JSON line a result, whole or absent. The report is made from it alone."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from recr1_lite.common import RecR1Error, runs_folder

PACKAGES = ("torch", "transformers", "trl", "peft", "bm25s")


class Ledger:
    """A file of JSON lines. `path`: default `ledger.jsonl` in `files.runs_folder()`."""

    def __init__(self, path: str | os.PathLike | None = None, marks: Mapping | None = None) -> None:
        self.path = Path(path if path else runs_folder() / "ledger.jsonl").expanduser()
        self.marks = dict(marks or {})

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    def bind(self, **marks) -> Ledger:
        """The same file, whose new rows carry `marks` (run, profile, seed, command) where they lack them."""
        return Ledger(self.path, self.marks | marks)

    def append(self, row: Mapping) -> dict:
        """Add `row` with time (UTC), versions, commit and device, where it lacks them; return what was written.

        NaN and infinity are written as null. Raises RecR1Error where the row has no `kind`, holds what JSON
        cannot, or cannot be written; the ledger is then as it was.
        """
        if not row.get("kind"):
            raise RecR1Error("a ledger row needs a kind; add one such as 'eval' or 'train'")
        full = _plain({"time": datetime.now(UTC).isoformat(timespec="seconds"), **row})
        full = full | {key: value for key, value in _plain(self.marks).items() if key not in full}
        for key, value in (("versions", versions), ("commit", commit), ("device", device)):
            full.setdefault(key, value())
        line = json.dumps(full, allow_nan=False).encode("ascii") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                _append_line(self.path, line)
        except (OSError, NotImplementedError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise RecR1Error(
                f"the ledger {self.path} cannot be written ({reason}); mend its permissions, free space on "
                "its disk, or set RECR1_RUNS to a folder that can be written"
            ) from problem
        return full

    def rows(self, kind: str | None = None) -> list[dict]:
        """All rows, oldest first, or those of one kind; a damaged line is left out with a warning."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise RecR1Error(
                f"the ledger {self.path} cannot be read ({problem.strerror}); mend its permissions or set "
                "RECR1_RUNS to another folder"
            ) from problem
        return [row for row in _parse(lines, self.path) if kind is None or row["kind"] == kind]


def _append_line(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size:  # end the torn line of a writer that was killed, so that it does not take this row with it
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) != b"\n":
                line = b"\n" + line
        try:
            if os.write(handle, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _parse(lines: list[bytes], path: Path) -> Iterator[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "kind" in row:
            yield row
        else:
            warnings.warn(f"line {number} of {path} is no ledger row and was left out", stacklevel=3)


def _plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy values, named tuples, paths and sets turned, NaN and infinity to None."""
    if value is None or isinstance(value, (str, bool, int)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise RecR1Error(
        f"a ledger row holds plain data, and {value!r} is a {type(value).__name__}; turn it into text or numbers"
    )


@functools.cache
def versions() -> dict[str, str | None]:
    """Version of Python and of the packages that shape a result; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that this code is in, "-dirty" added for local changes; None outside one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # another project's repository around an installed copy says nothing about this code
        if git("rev-parse", "--show-prefix") != f"{folder.name}/":
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def device() -> str:
    """Name of the accelerator if torch is loaded and has one, else of the CPU and the cores it may use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _cpu()


@functools.cache
def _cpu() -> str:
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} ({cores} cores)"
