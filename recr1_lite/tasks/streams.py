"""Large files read row by row: JSON lines and CSV, plain or gzipped, and chosen columns of a Parquet file.

What `tables.read_table` reads whole is small enough to check whole; a catalogue of a million items is not.
Each row comes with its number in the file, for messages; every failure names the file and the row.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.errors import RecR1Error
from recr1_lite.tasks.checks import shown

CELL_LIMIT = 100_000_000  # characters; the csv module's own limit is shorter than a long item text
BATCH = 65_536  # rows of a Parquet file in memory at once


def checked_path(source: str | Path, what: str, endings: Sequence[str]) -> Path:
    """The file, if it is one with one of the endings and holds something. Raises RecR1Error."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise RecR1Error(f"{what}: {path} is a folder; name the file in it")
    if not path.exists():
        raise RecR1Error(f"{what}: there is no file {path}; check the path (it starts from {Path.cwd()})")
    if not path.name.lower().endswith(tuple(endings)):
        raise RecR1Error(
            f"{what}: {path.name} has not one of the endings {', '.join(endings)}; save it as one of these"
        )
    try:
        with path.open("rb") as file:
            blank = not file.read(4096).strip() and not file.read(1)
    except OSError as problem:
        raise RecR1Error(
            f"{what}: {path} cannot be read ({problem.strerror}); mend its permissions"
        ) from problem
    if blank:
        raise RecR1Error(f"{what}: {path.name} is empty; give it at least one row")
    return path


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line, object) of each line that is not blank. Raises RecR1Error for a line that is no JSON object."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise RecR1Error(
                f"{path.name}, line {number} is no JSON ({problem}); write one object in each line, or "
                "copy the file again if it is cut short"
            ) from problem
        if not isinstance(row, dict):
            raise RecR1Error(f"{path.name}, line {number} is no JSON object; write one in each line")
        yield number, row


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: text}) of each row. Raises RecR1Error: a column missing, another number of cells."""
    rows = csv_cells(path)
    header = next(rows, (1, []))[1]
    need(header, columns, path.name)
    for line, row in rows:
        yield line, dict(zip(header, row))


def csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the header and of each row. Raises RecR1Error: no CSV, a row with more or fewer cells."""
    limit = csv.field_size_limit(CELL_LIMIT)
    reader, width = csv.reader((line for _, line in _lines(path)), strict=True), None
    try:
        for row in reader:
            if width is None:
                row, width = [name.strip() for name in row], len(row)
            if row and len(row) != width:
                raise RecR1Error(
                    f"{path.name}, line {reader.line_num} has {len(row)} cells and the header {width}; put quotes "
                    "around a cell that holds a comma, or copy the file again if it is cut short"
                )
            if row:
                yield reader.line_num, row
    except csv.Error as problem:
        raise RecR1Error(
            f"{path.name}, line {reader.line_num} is no CSV ({problem}); check the quotes"
        ) from problem
    finally:
        csv.field_size_limit(limit)


def parquet_rows(
    source: Path | pd.DataFrame, name: str, columns: Mapping[str, type]
) -> Iterator[pd.DataFrame]:
    """These columns of a Parquet file or a DataFrame, a batch at a time; the index is the row, from 1.

    columns: column -> str or int. Raises RecR1Error: a damaged file, a column missing or of another type.
    """
    try:
        if isinstance(source, pd.DataFrame):
            kept = source[[column for column in columns if column in source]].reset_index(drop=True)
            table = pa.Table.from_pandas(kept, preserve_index=False)
            schema, batches = table.schema, table.to_batches(BATCH)
        else:
            file = pq.ParquetFile(source)
            schema = file.schema_arrow
            batches = file.iter_batches(
                BATCH, columns=[column for column in columns if column in schema.names]
            )
        need(schema.names, tuple(columns), name)
        for column, kind in columns.items():
            _check_type(schema.field(column).type, kind, f"{name}: the column {column!r}")
        start = 1
        for batch in batches:
            frame = batch.to_pandas()
            yield frame.set_axis(range(start, start + len(frame)))
            start += len(frame)
    except (pa.ArrowException, OSError) as problem:
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecR1Error(
            f"{name} cannot be read as a table ({first_line[:200].rstrip('.')}); it may be cut short or "
            "mix types in a column, so copy or save it again"
        ) from problem


def need(found: Sequence[str], wanted: Sequence[str], name: str) -> None:
    """Raises RecR1Error for the first column that is missing."""
    if missing := [column for column in wanted if column not in found]:
        have = ", ".join(map(str, found)) or "none"
        raise RecR1Error(f"{name} has no column {missing[0]!r} (it has {have}); rename or add it")


def text_of(row: Mapping, key: str, place: str, empty: bool = False) -> str:
    """The text in a row, stripped; "" for an empty cell where `empty` allows it. Raises RecR1Error."""
    if key not in row:
        raise RecR1Error(
            f"{place} has no {key!r} (it has {', '.join(map(str, row)) or 'none'}); rename or add it"
        )
    value = row[key]
    if isinstance(value, str) and (empty or value.strip()):
        return value.strip()
    if empty and shown(value) == "empty":
        return ""
    raise RecR1Error(f"{place}: {key} is {shown(value)}; write text there")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text in UTF-8, with their ends."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as problem:
        raise RecR1Error(
            f"{path.name}, line {number} is not UTF-8 (byte {problem.object[problem.start]:#x}); save "
            "the file again with the encoding UTF-8"
        ) from problem
    except (OSError, EOFError, zlib.error) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RecR1Error(
            f"{path.name} cannot be read after line {number} ({reason}); mend its permissions, or "
            "copy it again"
        ) from problem


def _check_type(found: pa.DataType, kind: type, what: str) -> None:
    if pa.types.is_dictionary(found):
        found = found.value_type
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if not (pa.types.is_null(found) or (is_text if kind is str else pa.types.is_integer(found))):
        wanted = "text" if kind is str else "whole numbers"
        raise RecR1Error(f"{what} holds {found}, not {wanted}; save it with its own type")
