"""The report of a run, made from the ledger alone: HTML that needs no network, or Markdown, of the same sections.

Every figure in it stands beside its n, its interval, and the command, profile, device and seed that made it.
Rows become tables in `report_rows.py`; the sections of a comparison are in `report_contest.py`, what may not be
claimed in `report_claims.py`, the two writers in `report_html.py` and `report_markdown.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recr1_lite import plots
from recr1_lite.budget import number, verdict, whole
from recr1_lite.curves import PANELS
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import metric_label, show
from recr1_lite.files import atomic_write
from recr1_lite.inspector import Inspection
from recr1_lite.report_claims import claims
from recr1_lite.report_contest import contest
from recr1_lite.report_html import html_page
from recr1_lite.report_markdown import table as markdown_table
from recr1_lite.report_markdown import write_markdown
from recr1_lite.report_rows import (
    SPLITS, Bullets, Fold, Grid, Section, Table, facts, headline, select, shown, tables, untrained,
)

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
        lines += [f"{SPLITS.get(table.split, table.split)}, task {table.task}:", "",
                  *markdown_table(table.head(), table.body()), ""]
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
    return [*found, _cost(rows), _seal(ledger),
            Section("What may not be claimed", [Bullets(claims(ledger, rows))])]


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
    return Section("", [Bullets([text for pair, text in said.items() if "GRPO" in pair]),
                        Fold(f"All {len(said)} paired differences in words", [every])])


def _table(table: Table) -> Section:
    metrics = list(dict.fromkeys(name for row in table.evals for name in row["metrics"]))
    more = []
    for row in table.evals:
        values = [shown(row["metrics"].get(name)) for name in metrics]
        counts = ", ".join(f"{kind} {count}" for kind, count in (row.get("outcomes") or {}).items())
        more.append([row["method"], *values, counts])
    note = "“vs” columns: mean difference, paired on the same requests. Brackets: 95% bootstrap intervals."
    base, spots = table.baselines[0] if table.baselines else None, table.spots()
    return Section(f"{SPLITS.get(table.split, table.split)}: {table.task}", [
        Grid(table.head(), table.body()), note,
        *([plots.methods(spots, base, table.metric)] if spots else []),
        Fold("All metrics and parse outcomes",
             [Grid(["method", *map(metric_label, metrics), "parse outcomes"], more)])])


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
    return Section(f"Training: {row.get('method', 'policy')}", [
        f"{len(curve)} steps in {row.get('seconds') or 0:.0f} s{stopped}.{learned}",
        plots.learning_curve(curve, [point for point in val if whole(point)], base, metric),
        *([] if curve and not _logged(curve) else [Fold("What each step logged", [plots.components(curve)])]),
        Fold("Settings", [Grid(["setting", "value"], settings)])])


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
