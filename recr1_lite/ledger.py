"""The ledger: one JSON line per result, whole or absent. The report is made from it alone. And the record of a run,
`run.json` in its folder: its id, which its ledger rows have too, and what made it."""

import base64
import contextlib
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import uuid
import warnings
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from recr1_lite.common import RecR1Error, atomic_write, check_place, runs_folder, whole

RECORD = "run.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "bm25s")
MOST = 2**24  # bytes of a row's per-example values, unpacked: some 200,000 examples


def main_process() -> bool:
    """Whether this process writes: it is the only one, or the first of those that `accelerate launch` started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


class Ledger:
    """A file of JSON lines, by default `ledger.jsonl` in `runs_folder()`. marks: what each row gets that lacks it."""

    def __init__(self, path: str | os.PathLike | None = None, **marks: Any) -> None:
        self.path = Path(path or runs_folder() / "ledger.jsonl").expanduser()
        self.marks = {"run": "", "profile": ""} | marks

    def bind(self, **marks: Any) -> "Ledger":
        """The same file as a ledger with these marks (run, run_id, profile, ...) too."""
        return Ledger(self.path, **self.marks | marks)

    def append(self, row: Mapping) -> dict:
        """Write `row`, with marks, time (UTC), versions, commit and device where it lacks them; return what it became.

        NaN and infinity become null. Raises RecR1Error where the row has no `kind`, holds what JSON cannot, or cannot
        be written. The ledger is then as it was."""
        if not row.get("kind"):
            raise RecR1Error("a ledger row needs a kind; add one such as 'eval' or 'train'")
        facts = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
        full = _plain(facts | {"commit": commit(), "device": device()} | self.marks | dict(row))
        line = json.dumps(full, allow_nan=False).encode("ascii") + b"\n"
        if not main_process():
            return full
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                append_line(self.path, line)
        except (OSError, NotImplementedError) as problem:
            told = f"the ledger {self.path} cannot be written ({getattr(problem, 'strerror', None) or problem})"
            advice = "mend its permissions, free space on its disk, or set RECR1_RUNS to another folder"
            raise RecR1Error(f"{told}; {advice}") from problem
        return full

    def check(self) -> None:
        """Raises RecR1Error where a row could not be written."""
        check_place(self.path, 2**16, file=True)

    def rows(self, kind: str | None = None) -> list[dict]:
        """All rows, oldest first, or those of one kind; a damaged line is left out with a warning."""
        lines, rows = self.path.read_bytes().splitlines() if self.path.exists() else [], []
        for number, line in enumerate(lines, start=1):
            row = _object(line)
            if row and "kind" in row:
                rows.append(row)
            elif line.strip():
                warnings.warn(f"line {number} of {self.path} is no ledger row and was left out", stacklevel=2)
        return [row for row in rows if kind in (None, row["kind"])]


def packed(columns: Mapping[str, list]) -> str:
    """Values of each example, as short text for a ledger row; "" where they are beyond MOST."""
    text = json.dumps(columns, separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(text, 9)).decode() if len(text) <= MOST else ""


def unpacked(text: str) -> dict[str, list]:
    """The columns that `packed` was given. Raises ValueError where they are damaged, torn or beyond MOST."""
    inflater = zlib.decompressobj()
    try:
        told = json.loads(inflater.decompress(base64.b64decode(text, validate=True), MOST))
    except (RecursionError, TypeError, ValueError, zlib.error) as bad:
        raise ValueError("damaged values") from bad
    if not inflater.eof or not isinstance(told, dict) or not all(isinstance(one, list) for one in told.values()):
        raise ValueError("torn values")
    return told


def begin(folder: str | os.PathLike, made: Mapping, resume: bool, used: bool) -> str:
    """Note in `folder` what makes a run, before its first step, or find it noted; returns the run's id.

    used: whether something is trained there already. Raises RecR1Error for a used folder without `resume`, and where it
    was made by something else, with the first field that differs."""
    folder, made, known = Path(folder), json.loads(json.dumps(made, default=str)), record_of(folder)
    advice = "give another folder (--out)"
    if used and not resume:
        raise RecR1Error(f"{folder} already holds a run; go on with it (--resume) or {advice}")
    if used and not known:
        lost = f"{folder} holds a run that does not say what made it ({RECORD} is missing)"
        raise RecR1Error(f"{lost}; its adapters can be used, but to train {advice}")
    change = difference(known.get("made"), made)
    if used and change:
        raise RecR1Error(f"{folder} holds a run {change}; go on with what it was, or {advice}")
    if not known or change or not resume:
        known = {"id": uuid.uuid4().hex[:12], "made": made, "versions": versions(), "commit": commit()}
        if main_process():
            atomic_write(folder / RECORD, json.dumps(known, indent=1))
    return known["id"]


def record_of(folder: str | os.PathLike) -> dict:
    """What `run.json` in a folder says: id, made, versions, commit; {} where there is none."""
    return read_json(Path(folder) / RECORD) or {}


def read_json(path: Path) -> dict | None:
    """What a JSON file says; None where it is missing or torn."""
    return _object(path.read_bytes()) if path.is_file() else None


def _object(text: bytes) -> dict | None:
    """A JSON object; None where the text is none."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def difference(old: Any, new: Any, name: str = "") -> str:
    """The first field of two nested records that differs, with both values: "whose seed was 0 and is now 1", or ""."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            if found := difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")):
                return found
        return ""
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    start = max(0, len(os.path.commonprefix(texts)) - 30)  # long texts may differ at their ends alone
    cut = [f"{'...' * (start > 0)}{text[start : start + 80]}{'...' * (len(text) > start + 80)}" for text in texts]
    return "" if len(set(texts)) == 1 else f"whose {name} was {cut[0]} and is now {cut[1]}"


def append_line(path: Path, line: bytes) -> None:
    """The line at the end of the file, whole and on the disk; else OSError, and the file is as it was."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size:  # end the torn line of a writer that was killed, so that it does not take this row with it
            os.lseek(handle, size - 1, os.SEEK_SET)
            line = line if os.read(handle, 1) == b"\n" else b"\n" + line
        try:
            if os.write(handle, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy values, named tuples, paths and sets turned, NaN and infinity to None."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, (str, os.PathLike)):
        return whole(str(value))  # an enum's member is one, too
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    raise RecR1Error(f"a ledger row holds plain data, not {value!r} ({type(value).__name__}); write text or numbers")


@functools.cache
def versions() -> dict[str, str | None]:
    """Version of Python and of the packages that shape a result; None for one that is not installed."""
    known: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that this code is in, "-dirty" added for local changes; None outside one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

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
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else _cpu()


@functools.cache
def _cpu() -> str:
    about = Path("/proc/cpuinfo")  # of Linux
    model = re.search(r"^model name\s*:(.*)", about.read_text() if about.is_file() else "", re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} ({cores} cores)"
