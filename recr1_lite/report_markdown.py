"""A report as Markdown: the sections of the HTML page, with its figures as PNG files in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from recr1_lite import plots
from recr1_lite.files import atomic_write
from recr1_lite.inspector import Inspection
from recr1_lite.report_rows import Bullets, Fold, Grid, Section


def write_markdown(path: Path, name: str, facts: list[tuple[str, str]], sections: Iterable[Section]) -> Path:
    """Write the figures into `<stem>_figures`, then the page: who sees the page sees all of its figures.

    Raises OSError when something cannot be written; the page is then as it was.
    """
    folder = path.with_name(f"{path.stem}_figures")
    lines = [f"# {plain(f'Rec-R1 lite: {name}' if name else 'Rec-R1 lite')}", "",
             *(f"- {key}: {plain(value)}" for key, value in facts), ""]
    figures: list[Figure] = []
    for section in sections:
        lines += [f"## {plain(section.title)}", ""] if section.title else []
        for part in section.parts:
            lines += _part(part, folder.name, figures)
    for number, figure in enumerate(figures, start=1):
        atomic_write(folder / f"{number:02}.png", plots.as_bytes(figure, "png"))
    return atomic_write(path, "\n".join(lines))


def table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A Markdown table, a line a row; text that would end a cell is escaped."""
    return ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
            for cells in (head, ["---"] * len(head), *body)]


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no emphasis, no code, on one line."""
    return re.sub(r"([*`\\])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def _part(part, folder: str, figures: list[Figure]) -> list[str]:
    if isinstance(part, Grid):
        body = [[plain(cell) for cell in row] for row in part.body]
        return [*table([plain(cell) for cell in part.head], body), ""]
    if isinstance(part, Bullets):
        return [*(f"- {plain(item)}" for item in part.items), ""]
    if isinstance(part, Fold):
        inside = [line for inner in part.parts for line in _part(inner, folder, figures)]
        return [f"<details><summary>{plain(part.summary)}</summary>", "", *inside, "</details>", ""]
    if isinstance(part, Figure):
        figures.append(part)
        alt = re.sub(r"([\[\]])", r"\\\1", plain(part.get_suptitle()))
        return [f"![{alt}]({folder}/{len(figures):02}.png)", ""]
    if isinstance(part, Inspection):
        return _inspection(part)
    return [plain(part), ""]


def _inspection(found: Inspection) -> list[str]:
    """The shown requests as a table; the cards with the hits are in the HTML page alone."""
    head = ["request", *(f"rewrite, {name}" for name in found.head["names"]), f"change of {found.head['metric']}"]
    body = [[plain(example["request"]), *(plain(stage["query"]) for stage in example["stages"]),
             f"{example['change']:+.3f}"] for example in found.examples]
    count = "{gains} requests gained, {losses} lost, {ties} tied.".format(**found.head)
    said = f"{count} {found.rule} Their hits are in the HTML report."
    return [said, "", *table([plain(cell) for cell in head], body), ""]
