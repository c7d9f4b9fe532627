"""The report of a run, made from the ledger alone: HTML that needs no network, or Markdown, of the same sections.

Every figure in it stands beside its n, its interval, and the command, profile, device and seed that made it.
Rows become tables in `report_rows.py`; the sections of a comparison are in `report_contest.py`, what may not be
claimed in `report_claims.py`, the two writers in `report_html.py` and `report_markdown.py`.
"""

# MERGED: """A report as one HTML page that needs no network: figures inside it, tables that scroll on a narrow screen."""
# MERGED: """A report as Markdown: the sections of the HTML page, with its figures as PNG files in a folder beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from recr1_lite.common import RecR1Error, atomic_write
from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import comparisons as plots
from recr1_lite.report.curves import PANELS
from recr1_lite.report.inspector import PAGE_CSS, Inspection
from recr1_lite.report.rows import (
    SPLITS,
    Bullets,
    Fold,
    Grid,
    Section,
    Table,
    facts,
    headline,
    number,
    select,
    shown,
    tables,
    untrained,
    verdict,
    whole,
)
from recr1_lite.report.sections import claims, contest

__all__ = ["claims", "report_markdown", "sections", "write_report"]


def write_report(ledger, path: str | Path, run: str | None = None) -> Path:
    """Write the report of a run (default: the ledger's last), whole or not at all: HTML, or Markdown for .md.

    Markdown has its figures in a folder beside it. Raises RecR1Error when the ledger holds no results, or none
    of that run, or for another suffix, and OSError when `path` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm", ".md"):
        raise RecR1Error(f"a report is HTML or Markdown; name it .html or .md, not {path.name!r}")
    name, rows = select(ledger, run)
    found = sections(ledger, rows)
    if path.suffix.lower() == ".md":
        return write_markdown(path, name, facts(rows), found)
    return atomic_write(path, html_page(name, facts(rows), found))


def report_markdown(ledger, run: str | None = None) -> str:
    """The methods tables of a run as Markdown, with what made them and what they do not show: a report's core."""
    name, rows = select(ledger, run)
    lines = [f"**{name or 'results'}**: " + "; ".join(f"{key} {value}" for key, value in facts(rows)), ""]
    for table in tables(rows):
        lines += [
            f"{SPLITS.get(table.split, table.split)}, task {table.task}:",
            "",
            *markdown_table(table.head(), table.body()),
            "",
        ]
    not_shown = [f"- {claim}" for claim in claims(ledger, rows)]
    return "\n".join([*lines, "What may not be claimed:", "", *not_shown]) + "\n"


def sections(ledger, rows: list[dict]) -> list[Section]:
    """All sections of a report on the rows of one run, in order; those without rows are left out."""
    found = [_findings(tables(rows)), *map(_table, tables(rows)), *contest(rows)]
    found += [_headroom(row, rows) for row in rows if row["kind"] == "headroom"]
    found += [_training(row, rows) for row in rows if row["kind"] == "train"]
    inspections = [row for row in rows if row["kind"] == "inspect"]
    if inspections:
        seen = Inspection.from_rows(inspections[-1]["rows"])
        found.append(Section(f"What changed: {seen.head['before']} → {seen.head['after']}", [seen]))
    return [*found, _cost(rows), _seal(ledger), Section("What may not be claimed", [Bullets(claims(ledger, rows))])]


def _findings(found: list[Table]) -> Section:
    """Each paired difference of the first table in words, the last method's first; of very many, GRPO's."""
    if not found:
        return Section("", ["No method has been evaluated in this run."])
    table, metric = found[0], metric_label(found[0].metric)
    said = {}
    for (a, b), row in reversed(table.differences.items()):
        word = verdict(row) + (" from" if verdict(row).startswith("not") else "")
        said[a, b] = f"{a} is {word} {b}: {show(row, sign=True)} {metric}, n = {row.get('n', '?')}."
    every = Bullets(list(said.values()))
    if len(said) <= 12:
        return Section("", [every])
    return Section(
        "",
        [
            Bullets([text for pair, text in said.items() if "GRPO" in pair]),
            Fold(f"All {len(said)} paired differences in words", [every]),
        ],
    )


def _table(table: Table) -> Section:
    metrics = list(dict.fromkeys(name for row in table.evals for name in row["metrics"]))
    more = []
    for row in table.evals:
        values = [shown(row["metrics"].get(name)) for name in metrics]
        counts = ", ".join(f"{kind} {count}" for kind, count in (row.get("outcomes") or {}).items())
        more.append([row["method"], *values, counts])
    note = "“vs” columns: mean difference, paired on the same requests. Brackets: 95% bootstrap intervals."
    base, spots = table.baselines[0] if table.baselines else None, table.spots()
    return Section(
        f"{SPLITS.get(table.split, table.split)}: {table.task}",
        [
            Grid(table.head(), table.body()),
            note,
            *([plots.methods(spots, base, table.metric)] if spots else []),
            Fold(
                "All metrics and parse outcomes",
                [Grid(["method", *map(metric_label, metrics), "parse outcomes"], more)],
            ),
        ],
    )


def _headroom(row: Mapping, rows: list[dict]) -> Section:
    base = row.get("baselines") or untrained(rows, row.get("n"))
    metric = row.get("metric") or headline(rows)
    return Section("Headroom before training", [plots.headroom(row, base, metric)])


def _training(row: Mapping, rows: list[dict]) -> Section:
    curve, val = row.get("curve") or [], row.get("val") or []
    metric = row.get("metric") or headline(rows)
    base = {**(row.get("baselines") or {}), **untrained(rows, val[-1].get("n") if val else None)}
    settings = [[str(key), str(value)] for key, value in (row.get("config") or {}).items()]
    stopped = f" ({row['stopped']})" if row.get("stopped") else ""
    losses = [loss for step in curve if (loss := number(step.get("loss"))) is not None]
    learned = f" Loss a token: {losses[0]:.3f} → {losses[-1]:.3f}." if losses and not _logged(curve) else ""
    return Section(
        f"Training: {row.get('method', 'policy')}",
        [
            f"{len(curve)} steps in {row.get('seconds') or 0:.0f} s{stopped}.{learned}",
            plots.learning_curve(curve, [point for point in val if whole(point)], base, metric),
            *([] if curve and not _logged(curve) else [Fold("What each step logged", [plots.components(curve)])]),
            Fold("Settings", [Grid(["setting", "value"], settings)]),
        ],
    )


def _logged(curve: list[dict]) -> bool:
    """Whether a step holds something that `plots.components` draws."""
    return any(key in step for step in curve for key, *_ in PANELS)


def _cost(rows: list[dict]) -> Section:
    lines, total = [], 0.0
    for row in rows:
        if row["kind"] == "eval":
            what, count = f"{row['method']} on {row['split']}", f"{row.get('n', '')} requests"
        elif row["kind"] in ("train", "headroom"):
            what = f"training {row.get('method', '')}" if row["kind"] == "train" else "headroom check"
            count = f"{len(row['curve'])} steps" if row.get("curve") else f"{row.get('n', '')} requests"
        else:
            continue
        total += row.get("seconds") or 0
        tokens = f"{row['tokens']:,}" if row.get("tokens") is not None else ""
        lines.append([what, count, tokens, f"{row['seconds']:.1f}" if row.get("seconds") is not None else ""])
    lines.append(["all together", "", "", f"{total:.1f}"])
    return Section("Time and tokens", [Grid(["what", "size", "tokens generated", "seconds"], lines)])


def _seal(ledger) -> Section:
    opened = ledger.rows("unseal")
    lines = [[str(row.get(key, "")) for key in ("time", "task", "reason")] for row in opened]
    times = "once" if len(opened) == 1 else f"{len(opened)} times"
    fold = Fold("When and why", [Grid(["time", "task", "reason"], lines)])
    said = f"The test split was opened {times} in this ledger."
    return Section("The seal", [said, *([fold] if opened else [])])


def html_page(name: str, facts: list[tuple[str, str]], sections: Iterable[Section]) -> str:
    """The whole page of a run."""
    about = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    heading = f"<h1>{escape(f'Rec-R1 lite: {name}' if name else 'Rec-R1 lite')}</h1><dl>{about}</dl>"
    body = "".join(map(_section, sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(f'recr1_lite: {name}')}</title><style>{PAGE_CSS}{_CSS}</style></head>"
        f"<body><main>{heading}{body}</main></body></html>"
    )


def _section(section: Section) -> str:
    head = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    return head + "".join(map(_part, section.parts))


def _part(part) -> str:
    if isinstance(part, Grid):
        return _grid(part.head, part.body)
    if isinstance(part, Bullets):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in part.items)}</ul>"
    if isinstance(part, Fold):
        return f"<details><summary>{escape(part.summary)}</summary>{''.join(map(_part, part.parts))}</details>"
    if isinstance(part, Figure):
        return _figure(part)
    return part._repr_html_() if isinstance(part, Inspection) else f"<p>{escape(part)}</p>"


def _grid(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _figure(figure: Figure) -> str:
    alt = escape(" ".join(figure.get_suptitle().split()))
    data = base64.b64encode(plots.as_bytes(figure, "svg")).decode()
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'


_CSS = """
img{max-width:100%;height:auto;background:#fff;border-radius:6px;margin:.5em 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5em 0}
th,td{text-align:left;vertical-align:top;padding:.3em .7em .3em 0;
 border-bottom:1px solid rgba(128,128,128,.4)}
th{font-weight:600}th:first-child{min-width:6.5em}main{max-width:980px}td:not(:first-child,:last-child){white-space:nowrap}
td:last-child{min-width:5em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em}dt{opacity:.75}
dd{margin:0;overflow-wrap:anywhere}
h2{font-size:1.15em;margin:1.6em 0 .4em}details{margin:.6em 0}summary{cursor:pointer}
"""


def write_markdown(path: Path, name: str, facts: list[tuple[str, str]], sections: Iterable[Section]) -> Path:
    """Write the figures into `<stem>_figures`, then the page: who sees the page sees all of its figures.

    Raises OSError when something cannot be written; the page is then as it was.
    """
    folder = path.with_name(f"{path.stem}_figures")
    lines = [
        f"# {plain(f'Rec-R1 lite: {name}' if name else 'Rec-R1 lite')}",
        "",
        *(f"- {key}: {plain(value)}" for key, value in facts),
        "",
    ]
    figures: list[Figure] = []
    for section in sections:
        lines += [f"## {plain(section.title)}", ""] if section.title else []
        for part in section.parts:
            lines += _part_report_markdown(part, folder.name, figures)
    for at, figure in enumerate(figures, start=1):
        atomic_write(folder / f"{at:02}.png", plots.as_bytes(figure, "png"))
    return atomic_write(path, "\n".join(lines))


def markdown_table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A Markdown table, a line a row; text that would end a cell is escaped."""
    return [
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *body)
    ]


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no emphasis, no code, on one line."""
    return re.sub(r"([*`\\])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def _part_report_markdown(part, folder: str, figures: list[Figure]) -> list[str]:
    if isinstance(part, Grid):
        body = [[plain(cell) for cell in row] for row in part.body]
        return [*markdown_table([plain(cell) for cell in part.head], body), ""]
    if isinstance(part, Bullets):
        return [*(f"- {plain(item)}" for item in part.items), ""]
    if isinstance(part, Fold):
        inside = [line for inner in part.parts for line in _part_report_markdown(inner, folder, figures)]
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
    body = [
        [
            plain(example["request"]),
            *(plain(stage["query"]) for stage in example["stages"]),
            f"{example['change']:+.3f}",
        ]
        for example in found.examples
    ]
    count = "{gains} requests gained, {losses} lost, {ties} tied.".format(**found.head)
    said = f"{count} {found.rule} Their hits are in the HTML report."
    return [said, "", *markdown_table([plain(cell) for cell in head], body), ""]
