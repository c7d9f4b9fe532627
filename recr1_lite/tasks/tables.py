"""A table as the user has it, a DataFrame or a CSV, JSONL or Parquet file, each cell left as it stands."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pandas as pd

from recr1_lite.errors import RecR1Error

CELL_LIMIT = 100_000_000  # characters; the csv module's own limit is shorter than a long item text


def read_table(source: pd.DataFrame | str | os.PathLike, what: str) -> tuple[pd.DataFrame, str]:
    """The table and a name for it in messages; `what` it holds ("items") is the name of a DataFrame.

    CSV cells are text as written: the id "007" and the title "NA" stay so. Raises RecR1Error: no such file,
    a folder, an unknown ending, an empty or damaged file, text that is not UTF-8, a line with other
    columns.
    """
    if isinstance(source, pd.DataFrame):
        return source.reset_index(drop=True), what
    if not isinstance(source, (str, os.PathLike)):
        raise RecR1Error(f"{what} is a {type(source).__name__}; give a path or a DataFrame")
    path = Path(source).expanduser()
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.is_dir():
        raise RecR1Error(f"{what}: {path} is a folder; name the file in it")
    if not path.exists():
        raise RecR1Error(f"{what}: there is no file {path}; check the path (it starts from {Path.cwd()})")
    if path.suffix.lower() not in readers:
        raise RecR1Error(
            f"{what}: {path.name} has not one of the endings {', '.join(readers)}; save it as one of these"
        )
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise RecR1Error(
            f"{what}: {path} cannot be read ({problem.strerror}); mend its permissions"
        ) from problem
    if not data.strip():
        raise RecR1Error(f"{what}: {path.name} is empty; give it at least one row")
    return readers[path.suffix.lower()](path, data), path.name


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise RecR1Error(
            f"{path.name}, line {line} is not UTF-8 (byte {data[problem.start]:#x}); save the file again "
            "with the encoding UTF-8"
        ) from problem


def _csv(path: Path, data: bytes) -> pd.DataFrame:
    limit = csv.field_size_limit(CELL_LIMIT)
    reader = csv.reader(io.StringIO(_text(path, data), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise RecR1Error(
                    f"{path.name}, line {reader.line_num} has {len(row)} cells and the header "
                    f"{len(header)}; put quotes around a cell that holds a comma"
                )
            if row:
                rows.append(row)
    except csv.Error as problem:
        raise RecR1Error(
            f"{path.name}, line {reader.line_num} is no CSV ({problem}); check the quotes"
        ) from problem
    finally:
        csv.field_size_limit(limit)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _jsonl(path: Path, data: bytes) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_text(path, data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise RecR1Error(
                f"{path.name}, line {number} is no JSON ({problem}); write one object in each line"
            ) from problem
        if not isinstance(row, dict):
            raise RecR1Error(f"{path.name}, line {number} is no JSON object; write one in each line")
        rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pd.DataFrame(
        [[row.get(column) for column in columns] for row in rows], columns=columns, dtype=object
    )


def _parquet(path: Path, data: bytes) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(data))
    except Exception as problem:  # pyarrow's errors share no base class of their own
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecR1Error(
            f"{path.name} cannot be read as Parquet ({first_line[:200].rstrip('.')}); it may be cut "
            "short, so copy or save it again"
        ) from problem
