"""What every room uses: the one exception, files written whole or not at all, one progress bar, words of a text."""

import functools
import glob
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import psutil
import regex
from tqdm import tqdm

# Scripts without spaces between words: Chinese, Japanese, and those of South-East Asia (Thai, Lao, Khmer, Burmese).
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Line_Break=Complex_Context}"
_WORDS = regex.compile(
    rf"(?V1)(?P<run>[[{_UNSPACED}]&&[\p{{L}}\p{{Nl}}\p{{Mn}}\p{{Mc}}]]+)"
    rf"|[[\p{{L}}\p{{N}}_]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{Mn}}\p{{Mc}}_]--[{_UNSPACED}]]*"
)
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, direction and order marks


GIVEN = {RecursionError: "nested too deeply", OverflowError: "too large a number", UnicodeError: "no whole text"}


class RecR1Error(ValueError):
    """What was wrong, where, and what to do next, in one sentence."""


def whole(value: Any) -> Any:
    """A text, or lists and dicts of texts, that fits into UTF-8: halves of a surrogate pair joined, a lone one "?".
    Halves come out of JSON and of programs that cut a text in the middle of an emoji."""
    if isinstance(value, str) and not value.isascii():
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return joined.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, (list, tuple)):
        return [whole(part) for part in value]
    return {whole(key): whole(part) for key, part in value.items()} if isinstance(value, dict) else value


def folded(text: str) -> str:
    """The text as a retriever of words sees it: NFKC, small letters, nothing invisible, one letter i."""
    # Turkish has an i with and one without a dot, and both have capitals that others read as I
    text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))


def words(text: str) -> list[str]:
    """Its words in order, folded: runs of letters, marks and digits; where a script has no spaces, pairs of letters."""
    if text.isascii():
        return re.findall(r"\w+", text.lower())
    pieces: list[str] = []
    for match in _WORDS.finditer(folded(text)):
        piece, pairs = match[0], range(len(match["run"] or "") - 1)
        pieces += [piece[at : at + 2] for at in pairs] or [piece]
    return pieces


def is_indexed(word: str) -> bool:
    """Two letters or digits at least, or one letter of a script without capitals, where it may be a whole word."""
    return len(word) > 1 or unicodedata.category(word) == "Lo"


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What keeps `path` from being written, a full disk or a closed folder, as a RecR1Error in one sentence."""
    try:
        yield
    except RecR1Error:
        raise
    except Exception as problem:
        own = "(os error" in str(problem) or "PytorchStreamWriter" in str(problem)  # safetensors' and torch's own words
        if not getattr(problem, "errno", None) and not own:
            raise
        reason = getattr(problem, "strerror", None) or problem
        advice = "free space on its disk, mend its permissions, or give another place"
        raise RecR1Error(f"{path} cannot be written ({reason}); what was whole there stays; {advice}") from problem


def temporary_for(path: Path) -> str:
    """How the names of this process's temporaries beside `path` begin; what a killed process left there is cleared."""
    mark = f".{path.name}~{platform.node()}~"  # of this machine: another one may share the disk
    for left in path.parent.glob(f"{glob.escape(mark)}*"):
        maker = left.name.removeprefix(mark).partition("~")[0]
        if not maker.isdigit() or psutil.pid_exists(int(maker)):
            continue
        if left.name.endswith(".old") and not path.exists():  # killed between the two renames of `swap_in`
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return f"{mark}{os.getpid()}~"


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write `content` to `path` through a temporary neighbour, so that no reader ever sees half a file. Raises
    RecR1Error (full disk, read-only folder) with nothing left behind."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_for(path))
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return path


def place_folder(folder: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `folder`, then swap it in. If either fails, what was there stays.
    Raises RecR1Error where the disk is full or the folder closed, and whatever `write` raises."""
    folder = Path(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_for(folder)))
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
    """Where runs and the ledger go: RECR1_RUNS, else `runs` in this checkout, else `runs` in the working folder."""
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


@functools.cache
def template(room: str, name: str, **options) -> jinja2.Template:
    """A template of a room; whatever is put into a page of HTML is escaped. options: of jinja2's Environment."""
    options |= {"autoescape": jinja2.select_autoescape(["html.j2", "style.j2"]), "undefined": jinja2.StrictUndefined}
    templates = jinja2.Environment(loader=jinja2.PackageLoader(f"recr1_lite.{room}"), **options)
    templates.filters |= {"cell": cell, "json": functools.partial(json.dumps, ensure_ascii=False)}
    return templates.get_template(name)


def cell(value: object) -> str:
    """A value as text that ends no cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def slug(name: str) -> str:
    """A name as the name of a folder: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_script(work: Callable[[], int | None]) -> int:
    """Do the work of a script and give its exit status; what ends it early is one sentence on stderr.

    2: a mistake that its user can mend; 130: Ctrl-C; 141: the reader of its output went away; 1: a fault of the kit,
    which RECR1_DEBUG=1 lets through. What the encoding of the output lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # a log file shows each line when said
    try:
        return work() or 0
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        status, sentence = 130, "stopped; what was written stays"
    except Exception as error:
        status, sentence = _ended_by(error)
        if status == 1 and os.environ.get("RECR1_DEBUG"):
            raise
    print(f"recr1_lite: {' '.join(sentence.split())}", file=sys.stderr)
    return status


def _ended_by(error: Exception) -> tuple[int, str]:
    """Exit status and sentence for what ended a script: 2 for what its user can mend."""
    if isinstance(error, RecR1Error):
        return 2, str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("recr1_lite"):
        return 2, f"the package {error.name} is missing; run `pip install -r requirements.txt`"
    if isinstance(error, OSError):
        place = error.filename or "this machine"
        return 2, f"{place}: {error.strerror or error}; mend that, or take less, and run the command again"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return 2, f"this machine: too little memory ({str(error)[:200] or 'all of it is taken'}); take smaller sizes"
    for kind, what in GIVEN.items():
        if isinstance(error, kind):
            return 2, f"something that was given is {what} ({fault(error)}); mend it"
    return 1, f"a fault of the kit itself ({fault(error)}); please report what RECR1_DEBUG=1 prints"


def fault(error: Exception) -> str:
    """An exception with its place, without this machine's folders."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:300]}"
