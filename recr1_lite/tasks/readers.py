"""Large files read row by row: JSON lines and CSV, plain or gzipped, and chosen columns of a Parquet file.

What `tables.read_table` reads whole is small enough to check whole; a catalogue of a million items is not.
Each row comes with its number in the file, for messages; every failure names the file and the row.
"""

# MERGED: """A table as the user has it, a DataFrame or a CSV, JSONL or Parquet file, each cell left as it stands."""
# MERGED: """What one cell of a user's table holds: an id, a list of ids, relevant items with their gains."""
# MERGED: """Catalogues of the Amazon tasks, from their published files to `item_id`, `title`, `text`."""

from __future__ import annotations

import csv
import gzip
import html
import json
import math
import numbers
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.common import RecR1Error
from recr1_lite.tasks.base import shown

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
        raise RecR1Error(f"{what}: {path} cannot be read ({problem.strerror}); mend its permissions") from problem
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
        raise RecR1Error(f"{path.name}, line {reader.line_num} is no CSV ({problem}); check the quotes") from problem
    finally:
        csv.field_size_limit(limit)


def parquet_rows(source: Path | pd.DataFrame, name: str, columns: Mapping[str, type]) -> Iterator[pd.DataFrame]:
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
            batches = file.iter_batches(BATCH, columns=[column for column in columns if column in schema.names])
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
        raise RecR1Error(f"{place} has no {key!r} (it has {', '.join(map(str, row)) or 'none'}); rename or add it")
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
            f"{path.name} cannot be read after line {number} ({reason}); mend its permissions, or copy it again"
        ) from problem


def _check_type(found: pa.DataType, kind: type, what: str) -> None:
    if pa.types.is_dictionary(found):
        found = found.value_type
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if not (pa.types.is_null(found) or (is_text if kind is str else pa.types.is_integer(found))):
        wanted = "text" if kind is str else "whole numbers"
        raise RecR1Error(f"{what} holds {found}, not {wanted}; save it with its own type")


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


def read_relevant(value: Any, gain: Any, place: str) -> dict[str, float]:
    """`{item_id: gain}` of one cell: an id, or a list of ids or an object of gains, perhaps as JSON text."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise RecR1Error(
                f"{place}: relevant starts like JSON and is not ({problem}); check the quotes"
            ) from problem
    if isinstance(value, dict):
        if not _missing(gain):
            raise RecR1Error(f"{place} has gains in relevant and in gain; keep one of the two")
        judged = {item: own for item, own in value.items() if own is not None}  # Parquet fills up with None
        found = {read_id(item, f"{place}: relevant"): _gain(own, place) for item, own in judged.items()}
    else:
        ids = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        shared = 1.0 if _missing(gain) else _gain(gain, place)
        found = {read_id(item, f"{place}: relevant"): shared for item in ids}
    if not found:
        raise RecR1Error(f"{place}: relevant is empty; name at least one item, or leave the row out")
    return found


def read_ids(value: Any, place: str) -> list[str]:
    """The ids of one cell: a list, perhaps as JSON text; an empty cell holds none."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as problem:
            raise RecR1Error(f'{place} is no JSON list ({problem}); write such as ["a", "b"]') from problem
    if _missing(value) or (isinstance(value, float) and math.isnan(value)):
        return []
    if not isinstance(value, (list, tuple)):
        raise RecR1Error(f"{place} is {shown(value)}; write a JSON list of item ids")
    return [read_id(item, f"{place}: an id") for item in value]


def read_id(value: Any, place: str) -> str:
    """An id as text. A number with decimals is refused: 7.0 is how a damaged "7" or "007" looks."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)):
        return str(value)
    raise RecR1Error(f"{place} is {shown(value)}; an id is text or a whole number")


def _gain(value: Any, place: str) -> float:
    try:
        gain = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        gain = math.nan
    if not math.isfinite(gain) or gain <= 0:
        raise RecR1Error(f"{place}: the gain {value!r} is not a positive finite number; mend it or leave the item out")
    return gain


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, str) and not value.strip())


COLUMNS = ["item_id", "title", "text", "category"]
TITLE_WORDS = 25  # of a text whose title is not marked
JSON_LINES = (".jsonl", ".jsonl.gz")
_TAG = re.compile(r"<[^<>]*>")


def plain(text: str) -> str:
    """The text without HTML tags and entities, its white space single."""
    return " ".join(_TAG.sub(" ", html.unescape(text)).split())


def records(source: pd.DataFrame | str | os.PathLike, what: str) -> tuple[Iterable[tuple[int, dict]], str]:
    """The numbered rows of a DataFrame, of JSON lines (one at a time) or of a CSV or Parquet table; its name.

    Raises RecR1Error as `read_table` does, for JSON lines as they are read.
    """
    if isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(JSON_LINES):
        path = checked_path(Path(source), what, JSON_LINES)
        return json_lines(path), path.name
    table, name = read_table(source, what)
    return enumerate(table.to_dict("records"), start=1), name


def items_of(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str) -> tuple[pd.DataFrame, int]:
    """Items (COLUMNS) of rows with item_id (or item), metadata and category, as in BLaIR and Amazon-C4.

    metadata: title and description in one text, the title closed by a full stop; so `title` is its start up
    to the first ". ". Rows may have title and text instead of metadata, and then need no category. An item
    whose text is empty is left out; how many comes second. Raises RecR1Error that names the row: a text
    that is none, an id twice, no row at all.
    """
    kept, lines, line, empty = [], {}, 0, 0
    for line, row in rows:
        place = f"{name}, row {line}"
        own_id = text_of(row, "item" if "item" in row and "item_id" not in row else "item_id", place)
        if (first := lines.setdefault(own_id, line)) != line:
            raise RecR1Error(f"{name}: item_id {own_id!r} stands in rows {first} and {line}; keep one")
        if "metadata" in row or "text" not in row:
            text, category = (text_of(row, key, place, empty=True) for key in ("metadata", "category"))
            title = first_sentence(text)
        else:
            title, text = text_of(row, "title", place, empty=True), text_of(row, "text", place, empty=True)
            category = text_of(row, "category", place, empty=True) if "category" in row else ""
        if title and text:
            kept.append((own_id, title, text, category))
        else:
            empty += 1
    if not kept:
        raise RecR1Error(f"{name} has no item with a text; give it at least one")
    return pd.DataFrame(kept, columns=COLUMNS), empty


def first_sentence(text: str) -> str:
    """The text up to its first ". ", and at most TITLE_WORDS words."""
    return " ".join(text.split(". ")[0].split()[:TITLE_WORDS])


def known_category(category: str, found: Collection[str], name: str, aliases: Mapping[str, str] = {}) -> str:
    """The category as the file writes it. Raises RecR1Error with those that there are."""
    for way in (category, aliases.get(category, category)):
        if way in found:
            return way
    there = sorted(filter(None, found))
    raise RecR1Error(
        f"{name} has no category {category!r}; choose 'all' or one of {', '.join(there[:40]) or '(none is named)'}"
    )


def thin(items: pd.DataFrame, keep: Collection[str], max_items: int | None, seed: int) -> tuple[pd.DataFrame, str]:
    """At most `max_items` items: all of `keep`, the rest drawn with `seed`, in their order; and a note on it.

    Scores on a thinned catalogue are higher than on the whole: fewer items compete. Raises RecR1Error where
    `keep` alone is more than `max_items`.
    """
    needed = items["item_id"].isin(set(keep)).to_numpy(copy=True)
    if max_items is None:
        max_items = len(items)
    if isinstance(max_items, bool) or not isinstance(max_items, int) or max_items < max(needed.sum(), 1):
        raise RecR1Error(
            f"max_items={max_items!r} is no number from the {needed.sum()} items on that the examples need; "
            "raise it, or take fewer examples"
        )
    if max_items >= len(items):
        return items, f"whole: {len(items)} items"
    others = np.flatnonzero(~needed)
    drawn = np.random.RandomState(seed).permutation(others)[: max_items - needed.sum()]
    needed[drawn] = True
    note = f"thinned to {max_items} of {len(items)} items, those of the examples kept, the rest drawn with seed {seed}"
    return items[needed].reset_index(drop=True), note
