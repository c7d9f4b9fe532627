"""A table as the user has it, a DataFrame or a CSV, JSONL or Parquet file, each cell left as it stands."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.streams import checked_path, csv_cells, json_lines


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
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    path = checked_path(source, what, tuple(readers))
    return readers[path.suffix.lower()](path), path.name


def _csv(path: Path) -> pd.DataFrame:
    header, *rows = [cells for _, cells in csv_cells(path)] or [[]]
    return pd.DataFrame(rows, columns=header, dtype=object)


def _jsonl(path: Path) -> pd.DataFrame:
    rows = [row for _, row in json_lines(path)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(column) for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=columns, dtype=object)


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as problem:  # pyarrow's errors share no base class of their own
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecR1Error(
            f"{path.name} cannot be read as Parquet ({first_line[:200].rstrip('.')}); it may be cut "
            "short, so copy or save it again"
        ) from problem
