"""What every committed notebook keeps to, checked without running it: python tests/notebook_rules.py [NAME ...]

Before the verdict: its words of prose, its lines of code, and the minutes that a learner needs for them.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from urllib.parse import unquote

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))

from run_notebooks import WIDGET, find, name_of  # noqa: E402

WORDS_A_MINUTE, LINES_A_MINUTE = 180, 10  # that a learner reads, runs not counted
LINES, LONGEST, COLUMNS = 10, 20, 76  # of a code cell: median, most, width
OUTPUT_LINES, SIZE = 60, 1_000_000  # text of one cell, bytes of the file
COLAB = "https://colab.research.google.com/github/"
HERE = [re.escape(str(path)) for path in (FOLDER.parent, Path(sys.prefix), Path.home()) if len(path.parts) > 2]
FOREIGN = [r"/(?:home|Users|root|tmp|work|private|var/folders)/", r"[A-Z]:\\+Users\\"]
MACHINE = re.compile(rf"(?<![\w.-])(?:{'|'.join(FOREIGN + HERE)})")


def problems(path: Path) -> list[str]:
    """What `path` (.../notebooks/NAME.ipynb, or a folder deeper) does against the rules, a sentence each."""
    try:
        book = nbformat.read(path, 4)
        nbformat.validate(book)
    except Exception as error:  # nbformat has no class of its own for all it raises
        return [f"it is no valid notebook ({str(error).splitlines()[0]})"]
    prose = [cell for cell in book.cells if cell.cell_type == "markdown"]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if not code or not prose:
        return ["it has no code or no prose"]
    name = path.as_posix().rpartition("/notebooks/")[2]
    return [
        *_opening(book, code, name),
        *_shape(prose, code, name),
        *_links(prose, path),
        *_figures(prose, code),
        *_outputs(code),
        *_leftovers(book, path),
    ]


def _opening(book, code: list, name: str) -> Iterator[str]:
    head = book.cells[0].source
    badge = re.search(re.escape(COLAB) + r"([^/\s]+/[^/\s]+)/blob/main/notebooks/([^\s)]+)", head)
    if not badge or badge[2] != name:
        yield f"the first cell has no badge that opens {COLAB}OWNER/NAME/blob/main/notebooks/{name}"
    if placeholder := re.search(r"\b(?:TIME|MEM)\b", head):
        yield f"the first cell still says {placeholder[0]} where a measured figure belongs"
    install = [cell for cell in code if "google.colab" in cell.source]
    repository = re.search(r'^REPO = "(.*)"$', install[0].source, re.M) if install else None
    if not repository:
        yield 'no install cell (one with `"google.colab" in sys.modules` and a line `REPO = "..."`)'
    elif badge and repository[1] != badge[1]:
        yield f"the badge opens {badge[1]} and the install cell fetches {repository[1]}; run `make badges`"
    settings = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(settings) != 1 or not re.search(r"^PROFILE = (.|\n)*^SEED = ", settings[0], re.M):
        yield "not exactly one code cell is tagged `parameters` and sets PROFILE and SEED"


def _shape(prose: list, code: list, name: str) -> Iterator[str]:
    if len(prose) < 1.5 * len(code):
        yield f"{len(prose)} prose cells for {len(code)} code cells, fewer than 1.5 to 1"
    own = [cell.source for cell in code if "google.colab" not in cell.source]  # all but the install cell
    lengths = [len(source.splitlines()) for source in own]
    if median(lengths) > LINES or max(lengths) > LONGEST:
        seen = f"{median(lengths):g} lines in the median and at most {max(lengths)}"
        yield f"code cells of {seen}; the rule is {LINES} and {LONGEST}"
    for number, cell in enumerate(code, start=1):
        for line in cell.source.splitlines():
            if len(line) > COLUMNS:
                yield f"code cell {number} has a line of more than {COLUMNS} columns: {line.strip()[:40]}..."
    if (asserts := len(re.findall(r"^\s*assert\b", "\n".join(own), re.M))) < 3:
        yield f"{asserts} asserts check what it says; 3 are the least"
    text = "\n".join(cell.source for cell in prose)
    if "solutions/" not in name and not re.search(r"^## Exercises", text, re.M):
        yield "there is no heading `## Exercises`"


def _links(prose: list, path: Path) -> Iterator[str]:
    for cell in prose:
        for link in re.findall(r"\]\(\s*<?([^)\s>]+)|(?:href|src)=[\"']([^\"']+)", cell.source):
            target = unquote("".join(link).partition("#")[0])
            if target and not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                yield f"the link to {target} leads nowhere"


DECIMAL = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.]|\.\d)")
SOURCE = re.compile(r"`[^`]*(?:python|make|recr1_lite|benchmarks/)[^`]*`|\]\(|^\||arXiv|section", re.M)


def _figures(prose: list, code: list) -> Iterator[str]:
    """Decimals in prose that no code and no output of the notebook holds, even rounded, in a paragraph without a source
    (a command, a link, a table of its own)."""
    held = [cell.source for cell in code] + [text for cell in code for text in _texts(cell.outputs)]
    numbers = [float(number) for text in held for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]
    for cell in prose:
        for paragraph in re.split(r"\n\s*\n", re.sub(r"```.*?```|\$[^$]*\$", "", cell.source, flags=re.S)):
            for told in () if SOURCE.search(paragraph) else DECIMAL.findall(paragraph):
                digits, value = len(told.partition(".")[2]), abs(float(told))
                if not any(abs(scale * one - value) <= 0.51 * 10**-digits for one in numbers for scale in (1, 100)):
                    yield f"the number {told} is in no code and no output: {' '.join(paragraph.split())[:60]!r}"


def _outputs(code: list) -> Iterator[str]:
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "its code cells were not executed once each from top to bottom; run `make notebooks`"
    for number, cell in enumerate(code, start=1):
        lines = 0
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"code cell {number} ended in an error ({output.ename})"
            if any(key.startswith(WIDGET) for key in data):
                yield f"code cell {number} shows a widget, which is blank without a kernel"
            if "image/png" in data and not output.get("metadata", {}).get("image/png", {}).get("alt"):
                yield f"code cell {number} has a picture without an alt text"
            html, text = data.get("text/html"), output.get("text", data.get("text/plain", ""))
            lines += html.count("<tr") if html else len(text.splitlines())
        if lines > OUTPUT_LINES:
            yield f"code cell {number} prints {lines} lines; more than {OUTPUT_LINES} are a wall"


def _leftovers(book, path: Path) -> Iterator[str]:
    if path.stat().st_size > SIZE:
        yield f"the file has {path.stat().st_size / 1e6:.1f} MB; 1 MB is the most"
    if extra := set(book.metadata) - {"kernelspec", "language_info"}:
        yield f"its metadata hold {', '.join(sorted(extra))}; `make notebooks` would drop that"
    if any("execution" in cell.metadata for cell in book.cells):
        yield "its cells hold times of execution; `make notebooks` would drop them"
    for text in _texts(book.cells):
        if found := MACHINE.search(text):
            yield f"a path of somebody's machine: {text[max(found.start() - 20, 0) : found.end() + 20]!r}"


def lesson(path: Path) -> tuple[int, int, int]:
    """Words of prose, lines of code without blank ones, and the minutes for both."""
    text = {"markdown": "", "code": "", "raw": ""}
    for cell in nbformat.read(path, 4).cells:
        text[cell.cell_type] += cell.source + "\n"
    words, lines = len(text["markdown"].split()), sum(bool(line.strip()) for line in text["code"].splitlines())
    return words, lines, round(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE)


def _texts(node) -> Iterator[str]:
    """Every text in the cells but pictures, whose base64 may spell anything."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("image/png", "image/jpeg") or isinstance(value, dict):  # a dict: with its alt text
                yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


if __name__ == "__main__":
    paths = find(sys.argv[1:])
    for path in paths:
        print("{:<40} {:>5} words {:>4} lines {:>3} minutes".format(name_of(path), *lesson(path)))
    broken = [f"{name_of(path)}: {problem}" for path in paths for problem in problems(path)]
    print(*broken, f"{len(broken)} problems in {len(paths)} notebooks", sep="\n")
    sys.exit(bool(broken))
