"""Rows of CSV, JSON, JSONL and Parquet files and of DataFrames, what their cells hold, and catalogues made of them."""

import codecs
import csv
import functools
import gzip
import html
import io
import json
import math
import numbers
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recr1_lite.assets.fetch import HubFile, hub_file, named
from recr1_lite.common import RecR1Error, whole
from recr1_lite.tasks.splits import ITEM_COLUMNS, is_count, is_empty, no_column, shown

Table: TypeAlias = pd.DataFrame | str | os.PathLike
ENDINGS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".json", ".parquet")
CELL_LIMIT = 100_000_000  # characters; the csv module's own limit is shorter than a long item text
BATCH = 65_536  # rows of a Parquet file in memory at once
TITLE_WORDS = 25  # of a text whose title is not marked
WITHOUT_TEXT = "items without text left out"


class Row(dict[str, Any]):
    """Column -> cell. `place` names the row in messages.

    Rows of a DataFrame or a Parquet file count from 1, without the header ("items, row 3"); of a text file the line is
    named ("items.csv, line 4").
    """

    def __init__(self, place: str, cells: Iterable) -> None:
        super().__init__(cells)
        self.place = place

    def cell(self, column: str) -> Any:
        """What the row has in a column. Raises RecR1Error where it has no such column."""
        if column not in self:
            raise RecR1Error(no_column(column, self, self.place))
        return self[column]

    def text(self, column: str, empty: bool = False) -> str:
        """The text in a column, stripped; "" for an empty cell where `empty` allows it. Raises RecR1Error."""
        value = self.cell(column)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if empty and is_empty(value):
            return ""
        raise RecR1Error(f"{self.place}: {column} is {shown(value)}; write text there")

    def id(self, column: str) -> str:
        """An id as text. Raises RecR1Error where it is no text and no whole number."""
        return _read_id(self.cell(column), f"{self.place}: {column}")

    def ids(self, column: str) -> list[str]:
        """The ids of a cell: a list, perhaps as JSON text; an empty cell holds none. Raises RecR1Error."""
        value = _unpacked(self.cell(column), place := f"{self.place}: {column}")
        if not isinstance(value, list) and not is_empty(value):
            raise RecR1Error(f'{place} is {shown(value)}; write a JSON list of item ids, such as ["a", "b"]')
        return [_read_id(item, f"{place}: an id") for item in value or []]

    def relevant(self) -> dict[str, float]:
        """`{item_id: gain}`. The cell `relevant` is an id, a list of ids or an object of gains, perhaps as JSON text;
        `gain` is that of all its ids, 1 where it is empty or absent. A gain of 0 or below says that somebody judged the
        item not to be relevant. Raises RecR1Error."""
        value, gain = _unpacked(self.cell("relevant"), place := f"{self.place}: relevant"), self.get("gain")
        no_gain = is_empty(gain) and not isinstance(gain, float)  # NaN is a gain that went wrong
        if isinstance(value, dict) and not no_gain:
            raise RecR1Error(f"{self.place} has gains in relevant and in gain; keep one of the two")
        if not isinstance(value, dict):
            ids = value if isinstance(value, list) else [value]
            value = {_read_id(item, place): 1.0 if no_gain else gain for item in ids}
        judged = {item: gain for item, gain in value.items() if gain is not None}  # Parquet fills up with None
        if not judged:
            raise RecR1Error(f"{place} is empty; name at least one item, or leave the row out")
        return {_read_id(item, place): _gain(gain, self.place) for item, gain in judged.items()}


Rows: TypeAlias = Iterator[Row]


def read_rows(source: Table, what: str, columns: Collection[str] = ()) -> tuple[str, Rows]:
    """A name for messages, and the rows, read as they are asked for; `what` they are ("items") names a DataFrame.

    CSV cells are text as written: the id "007" and the title "NA" stay so. `columns`: no others are read of a Parquet
    file. Raises RecR1Error, partly while rows are read: no such file, a folder, an unknown ending, an empty or damaged
    file, no UTF-8, a line with other columns, no row.
    """
    if isinstance(source, pd.DataFrame):
        _check_header(source.columns, what)
        numbered = enumerate(map(whole, source.itertuples(index=False, name=None)), start=1)
        return what, _some((Row(f"{what}, row {at}", zip(source.columns, cells)) for at, cells in numbered), what)
    if not isinstance(source, (str, os.PathLike)):
        raise RecR1Error(f"{what} is a {type(source).__name__}; give a path or a DataFrame")
    path = _checked_path(source, what)
    readers: dict[str, Callable[[Path, str], Rows]] = {"csv": csv_rows, "jsonl": jsonl_rows, "json": _json}
    readers["parquet"] = functools.partial(_parquet, columns=columns)
    read = readers[path.name.lower().removesuffix(".gz").rpartition(".")[2]]
    return path.name, _some(read(path, path.name), path.name)


def _some(rows: Rows, name: str) -> Rows:
    row = None
    for row in rows:
        yield row
    if row is None:
        raise RecR1Error(f"{name} has a header and no rows; add some")


def _check_header(columns: Iterable, where: str) -> None:
    for column, count in Counter(columns).items():
        if count > 1:
            raise RecR1Error(f"{where} has two columns {column!r}; rename one")


def _checked_path(source: str | os.PathLike, what: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        raise RecR1Error(f"{what}: {path} is a folder; name the file in it")
    if not path.exists():
        raise RecR1Error(f"{what}: there is no file {path}; check the path (it starts from {Path.cwd()})")
    if not path.name.lower().endswith(ENDINGS):
        raise RecR1Error(f"{what}: {path.name} has not one of the endings {', '.join(ENDINGS)}; save it as one of them")
    try:
        with path.open("rb") as file:
            blank = not file.read(4096).strip() and not file.read(1)
    except OSError as problem:
        raise RecR1Error(f"{what}: {path} cannot be read ({problem.strerror}); mend its permissions") from problem
    if blank:
        raise RecR1Error(f"{what}: {path.name} is empty; give it at least one row")
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text, plain or gzipped, in UTF-8 or by its mark UTF-16, with their ends of any kind."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            encoding = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
            text = io.TextIOWrapper(file, *encoding, newline="")
            for number, line in enumerate(text, start=1):
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


def csv_rows(path: Path, name: str, **dialect: Any) -> Rows:
    """The rows of a CSV file whose first one is the header. Empty columns at its end, as sheets have, are none."""
    header: list[str] = []
    for place, cells in csv_cells(path, name, **dialect):
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
        first_line = (str(problem).splitlines() or [type(problem).__name__])[0][:200].rstrip(".")
        told = f"{name} cannot be read as Parquet ({first_line})"
        raise RecR1Error(f"{told}; it may be cut short, copy it again") from problem


def _read_id(value: Any, place: str) -> str:
    """An id as text, whatever a file's type made of it: " 7 ", 7 and 7.0 (whole numbers beside empty cells) are "7"."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, (bool, np.bool_)):
        number: Any = value
        if isinstance(number, numbers.Integral) or (abs(number) < 2**53 and number == int(number)):
            return str(int(number))
    raise RecR1Error(f"{place} is {shown(value)}; an id is text or a whole number")


def _unpacked(value: Any, place: str) -> Any:
    """A list or object out of JSON text or of Parquet; other cells as they are."""
    if isinstance(value, (np.ndarray, tuple)):
        return whole(list(value))
    return _loads(value, place) if isinstance(value, str) and value.strip()[:1] in ("[", "{") else value


def _gain(value: Any, place: str) -> float:
    try:
        gain = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        gain = math.nan
    if not math.isfinite(gain):
        raise RecR1Error(f"{place}: the gain {value!r} is not a finite number; mend it or leave the item out")
    return gain


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


class HubFiles(list[HubFile]):
    """The files of the Hub that a task took instead of local ones; as text where they are from, for `about`."""

    def instead_of(self, source: Any, repo: str, file: str, local: str, revision: str | None = None) -> Any:
        """`source`, or where that is None the path of the Hub's file."""
        if source is None:
            self.append(hub_file(repo, file, local, revision))
        return self[-1].path if source is None else source

    def __str__(self) -> str:
        return named(self) if self else "local files"


class Catalogue:
    """Items as they are read; an exact copy of one is left out and counted, and so is one without a title or a text."""

    def __init__(self, notes: Counter[str], columns: Sequence[str] = ITEM_COLUMNS, empty: str = WITHOUT_TEXT) -> None:
        self.notes, self.columns, self.empty = notes, columns, empty
        self.rows: dict[str, tuple[str, ...]] = {}
        self.places: dict[str, str] = {}

    def add(self, row: Row, column: str, *texts: str) -> str:
        """Take the item whose id is in `column`, with its title, its text and perhaps more. Raises RecR1Error where an
        earlier row says something else of it."""
        item = row.id(column)
        if (first := self.places.setdefault(item, row.place)) == row.place:
            self.rows[item] = texts
            self.notes[self.empty] += not (texts[0] and texts[1])
        elif self.rows[item] == texts:
            self.notes["items that stand there twice, left out once"] += 1
        else:
            there = first.rpartition(", ")[2]
            raise RecR1Error(f"{row.place}: {column} {item!r} stands in {there} too, with another text; keep one")
        return item

    def table(self, lacks: str) -> pd.DataFrame:
        """The items. Raises RecR1Error, `lacks`, where there is none."""
        if not (kept := [(item, *texts) for item, texts in self.rows.items() if texts[0] and texts[1]]):
            raise RecR1Error(lacks)
        return pd.DataFrame(kept, columns=list(self.columns))


def read_items(source: Table, notes: Counter[str]) -> tuple[pd.DataFrame, str]:
    """A catalogue (`item_id`, `title`, `text`, `category`) as BLaIR and Amazon-C4 have it, and its name.

    Rows have item_id (or item), category, and metadata: title, full stop and description in one text. Rows may have
    title and text instead, and then need no category. An item whose text is empty is left out and counted in `notes`.
    """
    catalogue = Catalogue(notes, [*ITEM_COLUMNS, "category"])
    name, rows = read_rows(source, "items")
    for row in rows:
        category = row.text("category", empty=True) if "category" in row or "text" not in row else ""
        if "metadata" in row or "text" not in row:
            text = row.text("metadata", empty=True)
            title = " ".join(text.split(". ")[0].split()[:TITLE_WORDS])
        else:
            title, text = row.text("title", empty=True), row.text("text", empty=True)
        catalogue.add(row, "item" if "item" in row and "item_id" not in row else "item_id", title, text, category)
    return catalogue.table(f"{name} has no item with a text; give it at least one"), name


def known_category(category: str, items: pd.DataFrame, name: str, aliases: Mapping[str, str] = {}) -> str:
    """The category as the items have it. Raises RecR1Error with those that there are."""
    known = sorted(set(items["category"]) - {""})
    for way in (category, aliases.get(category, category)):
        if way in known:
            return way
    raise RecR1Error(f"{name} has no category {category!r}; choose 'all' or one of {', '.join(known[:40])}")


def thin(items: pd.DataFrame, splits: Mapping, max_items: int | None, seed: int) -> tuple[pd.DataFrame, str]:
    """At most `max_items` items: all that the examples hold, the rest drawn with `seed`, in their order; a note on it.

    Scores on a thinned catalogue are higher: fewer items compete. Raises RecR1Error where the examples hold more.
    """
    columns = [frame[key] for frame in splits.values() for key in ("relevant", "exclude") if key in frame]
    needed = items["item_id"].isin({item for column in columns for ids in column for item in ids}).to_numpy(copy=True)
    least = max(needed.sum(), 1)
    if max_items is not None and not is_count(max_items, least):
        raise RecR1Error(f"max_items={max_items!r} is no number from the {least} items on that the examples need")
    if max_items is None or max_items >= len(items):
        return items, f"whole: {len(items)} items"
    note = f"thinned to {max_items} of {len(items)} items, those of the examples kept, the rest drawn with seed {seed}"
    others = np.flatnonzero(~needed)
    needed[np.random.RandomState(seed).permutation(others)[: max_items - needed.sum()]] = True
    return items[needed].reset_index(drop=True), note
