"""Rows of CSV, JSON, JSONL and Parquet files and of DataFrames, what their cells hold, and catalogues made of them."""

import codecs
import csv
import gzip
import html
import io
import json
import numbers
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.assets.fetch import hub_file
from recr1_lite.common import RecR1Error, whole
from recr1_lite.tasks.base import ITEM_COLUMNS, is_empty, no_column, shown

Table: TypeAlias = pd.DataFrame | str | os.PathLike
ENDINGS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".json", ".parquet")
CELL_LIMIT = 100_000_000  # characters; the csv module's own limit is shorter than a long item text
BATCH = 65_536  # rows of a Parquet file in memory at once
TITLE_WORDS = 25  # of a text whose title is not marked
WITHOUT_TEXT = "items without text left out"


class Row(dict[str, Any]):
    """Column -> cell; RecR1Error for a column that is not there. `place` names the row in messages: in a DataFrame or a
    Parquet file from 1, without the header ("items, row 3"); in a text file by its line ("items.csv, line 4")."""

    def __init__(self, place: str, cells: Iterable) -> None:
        super().__init__(cells)
        self.place = place

    def __missing__(self, column: str) -> NoReturn:
        raise RecR1Error(no_column(column, self, self.place))

    def text(self, column: str, empty: bool = False) -> str:
        """The text in a column, stripped; "" for an empty cell where `empty` allows it. Raises RecR1Error."""
        value = self[column]
        if isinstance(value, str) and value.strip():
            return value.strip()
        if empty and is_empty(value):
            return ""
        raise RecR1Error(f"{self.place}: {column} is {shown(value)}; write text there")

    def written(self, column: str) -> str:
        """The text in a column as it is, with its spaces. Raises RecR1Error where it has no letter."""
        self.text(column)
        return self[column]

    def id(self, column: str) -> str:
        """An id as text. Raises RecR1Error where it is no text and no whole number."""
        return read_id(self[column], f"{self.place}: {column}")

    def ids(self, column: str) -> list[str]:
        """The ids of a cell: a list, perhaps as JSON text; an empty cell holds none. Raises RecR1Error."""
        value = unpacked(self[column], place := f"{self.place}: {column}")
        if not isinstance(value, list) and not is_empty(value):
            raise RecR1Error(f'{place} is {shown(value)}; write a JSON list of item ids, such as ["a", "b"]')
        return [read_id(item, f"{place}: an id") for item in value or []]


Rows: TypeAlias = Iterator[Row]


def read_rows(source: Table, what: str, columns: Collection[str] = ()) -> tuple[str, Rows]:
    """A name for messages, and the rows, read as they are asked for; `what` they are ("items") names a DataFrame.

    CSV cells are text as written: the id "007" and the title "NA" stay so. `columns`: no others are read of a Parquet
    file. Raises RecR1Error, partly while rows are read: no such file, an unknown ending, a damaged file, no UTF-8, a
    line with other columns, no row."""
    if isinstance(source, pd.DataFrame):
        _check_header(source.columns, what)
        numbered = enumerate(map(whole, source.itertuples(index=False, name=None)), start=1)
        return what, _some((Row(f"{what}, row {at}", zip(source.columns, cells)) for at, cells in numbered), what)
    if not isinstance(source, (str, os.PathLike)):
        raise RecR1Error(f"{what} is a {type(source).__name__}; give a path or a DataFrame")
    path = Path(source).expanduser()
    if not path.is_file():
        raise RecR1Error(f"{what}: there is no file {path}; check the path (it starts from {Path.cwd()})")
    if not path.name.lower().endswith(ENDINGS):
        raise RecR1Error(f"{what}: {path.name} has not one of the endings {', '.join(ENDINGS)}; save it as one of them")
    ending, name = path.name.lower().removesuffix(".gz").rpartition(".")[2], path.name
    if ending == "parquet":
        return name, _some(_parquet(path, name, columns), name)
    read = {"csv": csv_rows, "jsonl": jsonl_rows, "json": _json}[ending]
    return name, _some(read(path, name), name)


def _some(rows: Rows, name: str) -> Rows:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise RecR1Error(f"{name} is empty or has no row below its header; give it at least one")


def _check_header(columns: Iterable, where: str) -> None:
    for column, count in Counter(columns).items():
        if count > 1:
            raise RecR1Error(f"{where} has two columns {column!r}; rename one")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text, plain or gzipped, in UTF-8 or by its mark UTF-16, with their ends of any kind."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # type: ignore[union-attr]
            encoding = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
            for number, line in enumerate(io.TextIOWrapper(file, *encoding, newline=""), start=1):
                if not line.isascii():
                    line.encode("utf-8")
                yield number, line
    except UnicodeEncodeError as problem:
        bad = f"byte {ord(problem.object[problem.start]) - 0xDC00:#x}"
        raise RecR1Error(f"{path.name}, line {number} is not UTF-8 ({bad}); save the file again as UTF-8") from problem
    except (OSError, EOFError, zlib.error) as problem:
        reason = f"{path.name} cannot be read after line {number} ({getattr(problem, 'strerror', None) or problem})"
        raise RecR1Error(f"{reason}; mend its permissions, or copy it again") from problem


def _loads(text: str, place: str) -> Any:
    try:
        return whole(json.loads(text))
    except (ValueError, RecursionError) as problem:
        raise RecR1Error(f"{place} is no JSON ({problem}); mend it, or copy a file that was cut short") from problem


def jsonl_rows(path: Path, name: str) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            cells = _loads(line, place := f"{name}, line {number}")
            if not isinstance(cells, dict):
                raise RecR1Error(f"{place} is no JSON object; write one in each line")
            yield Row(place, cells)


def csv_cells(path: Path, name: str, **dialect: Any) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file that are not blank, with their places; `dialect` as csv.reader takes it."""
    limit = csv.field_size_limit(CELL_LIMIT)
    reader = csv.reader((line for _, line in _lines(path)), **{"strict": True, **dialect})
    try:
        yield from ((f"{name}, line {reader.line_num}", cells) for cells in reader if any(map(str.strip, cells)))
    except csv.Error as problem:
        raise RecR1Error(f"{name}, line {reader.line_num} is no CSV ({problem}); check the quotes") from problem
    finally:
        csv.field_size_limit(limit)


def csv_rows(path: Path, name: str) -> Rows:
    """The rows of a CSV file whose first one is the header. Empty columns at its end, as sheets have, are none."""
    header: list[str] = []
    for place, cells in csv_cells(path, name):
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not header:
            header = [column.strip() for column in cells]
            _check_header(header, name)
        elif len(cells) != len(header):
            counts = f"{len(cells)} cells and the header {len(header)}"
            raise RecR1Error(f"{place} has {counts}; check the quotes, or copy the file again if it is cut short")
        else:
            yield Row(place, zip(header, cells))


def _json(path: Path, name: str) -> Rows:
    entries = _loads("".join(line for _, line in _lines(path)), name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecR1Error(f"{name} holds no list of JSON objects; write [{{...}}, {{...}}]")
    yield from (Row(f"{name}, entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _parquet(path: Path, name: str, columns: Collection[str]) -> Rows:
    try:
        file, before = pq.ParquetFile(path), 0
        wanted = [column for column in file.schema_arrow.names if not columns or column in columns]
        for batch in file.iter_batches(BATCH, columns=wanted):
            yield from (Row(f"{name}, row {before + at}", cells) for at, cells in enumerate(batch.to_pylist(), start=1))
            before += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        told = f"{name} cannot be read as Parquet ({' '.join(str(problem).split())[:200]})"
        raise RecR1Error(f"{told}; it may be cut short, copy it again") from problem


def read_id(value: Any, place: str) -> str:
    """An id as text, whatever a file's type made of it: " 7 ", 7 and 7.0 (whole numbers beside empty cells) are "7"."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, (bool, np.bool_)):
        number: Any = value
        if isinstance(number, numbers.Integral) or (abs(number) < 2**53 and number == int(number)):
            return str(int(number))
    raise RecR1Error(f"{place} is {shown(value)}; an id is text or a whole number")


def unpacked(value: Any, place: str) -> Any:
    """A list or object out of JSON text or of Parquet; other cells as they are."""
    if isinstance(value, (np.ndarray, tuple)):
        return whole(list(value))
    return _loads(value, place) if isinstance(value, str) and value.strip()[:1] in ("[", "{") else value


# A tag has a name of HTML, or one with a colon (Word writes <o:p>), attributes with values: "a < b and c > d" is none.
_NAMES = """a abbr address article aside b big blockquote body br button caption center cite code col colgroup dd del
details dfn div dl dt em embed fieldset figcaption figure font footer form h[1-6] head header hr html i iframe img
input ins kbd label legend li link main map mark meta nav noscript object ol option p param picture pre q s samp script
section select small source span strike strong style sub summary sup svg table tbody td textarea tfoot th thead title
tr tt u ul var video wbr""".split()
_TAG = re.compile(
    r"<!--.*?-->|<!doctype[^<>]*>|<(script|style)\b[^<>]*>.*?</\1\s*>"
    rf"|</?(?:{'|'.join(_NAMES)}|[a-z]\w*:\w+)"
    r"""(?:\s+[\w:.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+))*\s*/?>""",
    re.IGNORECASE | re.DOTALL,
)


def plain(text: str) -> str:
    """The text without HTML tags and entities, its white space single. What was escaped twice is taken out twice."""
    for _ in range(3):
        text, before = html.unescape(_TAG.sub(" ", text)), text
        if text == before:
            break
    return " ".join(text.split())


class HubFiles(list[str]):
    """Where the files are from that a task took from the Hub; as text, for `about`, each repo with its commit once."""

    def instead_of(self, source: Any, repo: str, file: str, local: str, revision: str | None = None) -> Any:
        """`source`, or where that is None the path of the Hub's file."""
        if source is None:
            source, place = hub_file(repo, file, local, revision)
            self.append(place)
        return source

    def __str__(self) -> str:
        return f"Hugging Face Hub, {', '.join(dict.fromkeys(self))}" if self else "local files"


def catalogue(found: Iterable[tuple], notes: Counter[str], lacks: str, empty: str = WITHOUT_TEXT) -> pd.DataFrame:
    """The items that are found: of each its row, the column of its id, its title, its text, and "" or its category.

    An exact copy of one is left out and counted in `notes`, and so is one without a title or a text. Raises RecR1Error
    where an earlier row says something else of it, and `lacks` where no item is left."""
    items: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    for row, column, *texts in found:
        item = row.id(column)
        if (first := places.setdefault(item, row.place)) == row.place:
            items[item] = (item, *texts)
            notes[empty] += not (texts[0] and texts[1])
        elif items[item] == (item, *texts):
            notes["items that stand there twice, left out once"] += 1
        else:
            there = first.rpartition(", ")[2]
            raise RecR1Error(f"{row.place}: {column} {item!r} stands in {there} too, with another text; keep one")
    if not (kept := [item for item in items.values() if item[1] and item[2]]):
        raise RecR1Error(lacks)
    return pd.DataFrame(kept, columns=[*ITEM_COLUMNS, "category"])


def read_items(source: Table, notes: Counter[str]) -> tuple[pd.DataFrame, str]:
    """A catalogue (`item_id`, `title`, `text`, `category`) as BLaIR and Amazon-C4 have it, and its name.

    Rows have item_id (or item), category, and metadata: title, full stop and description in one text. Rows may have
    title and text instead, and then need no category."""
    name, rows = read_rows(source, "items")

    def found() -> Iterator[tuple]:
        for row in rows:
            column = "item" if "item" in row and "item_id" not in row else "item_id"
            category = row.text("category", empty=True) if "category" in row or "text" not in row else ""
            if "metadata" in row or "text" not in row:
                text = row.text("metadata", empty=True)
                yield row, column, " ".join(text.split(". ")[0].split()[:TITLE_WORDS]), text, category
            else:
                yield row, column, row.text("title", empty=True), row.text("text", empty=True), category

    return catalogue(found(), notes, f"{name} has no item with a text; give it at least one"), name


def known_category(category: str, items: pd.DataFrame, name: str, aliases: Mapping[str, str] = {}) -> str:
    """The category as the items have it. Raises RecR1Error with those that there are."""
    known = sorted(set(items["category"]) - {""})
    for way in (category, aliases.get(category, category)):
        if way in known:
            return way
    others = f" or one of {', '.join(known[:40])}" if known else ", for it has none"
    raise RecR1Error(f"{name} has no category {category!r}; choose 'all'{others}")
