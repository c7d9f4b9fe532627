"""The report of a run, made from the ledger alone: an HTML page that needs no network, or Markdown, of the same
sections.
Every figure in it stands beside its n, its interval, and the command, profile, device and seed that made it.
"""

import base64
import re
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from pandas import DataFrame

from recr1_lite.common import RecR1Error, atomic_write
from recr1_lite.report import sections as parts
from recr1_lite.report.figures import as_bytes
from recr1_lite.report.findings import claims
from recr1_lite.report.inspector import Inspection, template
from recr1_lite.report.rows import facts, select, tables
from recr1_lite.report.sections import Fold, Section


def write_report(ledger, path: str | Path, run: str | None = None) -> Path:
    """Write the report of a run (default: the ledger's last), whole or not at all: HTML, or Markdown for .md.

    Markdown has its figures in a folder beside it, written before the page. Raises RecR1Error when the ledger holds no
    results, or none of that run, for another suffix, and when `path` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm", ".md"):
        raise RecR1Error(f"a report is HTML or Markdown; name it .html or .md, not {path.name!r}")
    name, rows = select(ledger, run)
    title, made = f"Rec-R1 lite: {name}" if name else "Rec-R1 lite", sections(ledger, rows)
    if path.suffix.lower() != ".md":
        page = template("page.html.j2").render(title=title, facts=facts(rows), sections=made, kind=kind, svg=svg)
        return atomic_write(path, page)
    folder, figures = path.with_name(f"{path.stem}_figures"), list[Figure]()
    lines = [f"# {plain(title)}", "", *(f"- {key}: {plain(value)}" for key, value in facts(rows)), ""]
    for section in made:
        lines += [f"## {plain(section.title)}", ""] if section.title else []
        lines += [line for part in section.parts for line in markdown(part, folder.name, figures)]
    for place, figure in enumerate(figures, start=1):
        atomic_write(folder / f"{place:02}.png", as_bytes(figure, "png"))
    return atomic_write(path, "\n".join(lines))


def sections(ledger, rows: list[dict]) -> list[Section]:
    """All sections of a report on the rows of one run, in order; those without rows are left out."""
    made = [parts.findings(tables(rows)), *map(parts.methods, tables(rows))]
    made += [section for make in parts.CONTEST if (section := make(rows))]
    made += [parts.headroom(row, rows) for row in rows if row["kind"] == "headroom"]
    made += [parts.training(row, rows) for row in rows if row["kind"] == "train"]
    for row in [row for row in rows if row["kind"] == "inspect"][-1:]:
        seen = Inspection.from_rows(row["rows"])
        made.append(Section(f"What changed: {seen.head['before']} → {seen.head['after']}", [seen]))
    return [
        *made,
        parts.time_and_tokens(rows),
        parts.seal(ledger, rows),
        Section("What may not be claimed", [claims(ledger, rows)]),
    ]


def report_markdown(ledger, run: str | None = None) -> str:
    """The methods tables of a run as Markdown, with what made them and what they do not show: a report's core."""
    name, rows = select(ledger, run)
    lines = [f"**{name or 'results'}**: " + "; ".join(f"{key} {value}" for key, value in facts(rows)), ""]
    for table in tables(rows):
        lines += [f"{table.name}, task {table.task}:", "", *markdown_table(table.head(), table.body()), ""]
    not_shown = [f"- {claim}" for claim in claims(ledger, rows)]
    return "\n".join([*lines, "What may not be claimed:", "", *not_shown]) + "\n"


def kind(part) -> str:
    """What a part of a section is, for the template: str, list, dataframe, fold, figure or inspection."""
    return "figure" if isinstance(part, Figure) else type(part).__name__.lower()


def svg(figure: Figure) -> str:
    return base64.b64encode(as_bytes(figure, "svg")).decode()


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no emphasis, no code, on one line."""
    return re.sub(r"([*`\\])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def markdown_table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A Markdown table, one line per row; text that would end a cell is escaped."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *body)]
    return [f"| {' | '.join(row)} |" for row in cells]


def markdown(part, folder: str, figures: list[Figure]) -> list[str]:
    """The lines of one part; a figure is put into `figures` and named by its place there."""
    if isinstance(part, DataFrame):
        return [*markdown_table([*map(plain, part.columns)], [[*map(plain, row)] for row in part.to_numpy()]), ""]
    if isinstance(part, list):
        return [*(f"- {plain(item)}" for item in part), ""]
    if isinstance(part, Fold):
        inside = [line for inner in part.parts for line in markdown(inner, folder, figures)]
        return [f"<details><summary>{plain(part.summary)}</summary>", "", *inside, "</details>", ""]
    if isinstance(part, Figure):
        figures.append(part)
        alt = re.sub(r"([\[\]])", r"\\\1", plain(part.get_suptitle()))
        return [f"![{alt}]({folder}/{len(figures):02}.png)", ""]
    if isinstance(part, Inspection):  # the cards with the hits are in the HTML page alone
        head = ["request", *(f"rewrite, {name}" for name in part.head["names"]), f"change of {part.head['metric']}"]
        queries = [[example["request"], *(stage["query"] for stage in example["stages"])] for example in part.examples]
        body = [[*map(plain, row), f"{e['change']:+.3f}"] for row, e in zip(queries, part.examples, strict=True)]
        count = "{gains} requests gained, {losses} lost, {ties} tied.".format(**part.head)
        table = markdown_table([*map(plain, head)], body)
        return [f"{count} {part.rule} Their hits are in the HTML report.", "", *table, ""]
    return [plain(part), ""]
