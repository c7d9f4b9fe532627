"""The report of a run, made from the ledger alone: one HTML file that needs no network, or a Markdown table.

Every figure in it stands beside its n, its interval, and the command, profile, device and seed that made it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from recr1_lite import plots
from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import metric_label, show
from recr1_lite.files import atomic_write
from recr1_lite.inspector import PAGE_CSS, Inspection

RESULTS = ("eval", "compare", "train", "headroom", "inspect")
SPLITS = {"test": "Sealed test", "val": "Validation", "train": "Training examples"}


@dataclass(frozen=True)
class Table:
    """Methods on one split of one task: a headline metric for each, the first one as the baseline."""

    task: str
    split: str
    metric: str
    evals: list[dict]
    baselines: list[str]
    differences: dict[tuple[str, str], dict]

    def head(self) -> list[str]:
        versus = [f"vs {name}" for name in self.baselines]
        return ["method", "n", f"{metric_label(self.metric)} [95%]", *versus, "tokens", "seconds"]

    def body(self) -> list[list[str]]:
        return [
            [row["method"], str(row["n"]), show(row["metrics"][self.metric]),
             *(self._difference(row["method"], name) for name in self.baselines),
             f"{row.get('tokens') or 0:,}", f"{row.get('seconds') or 0:.1f}"]
            for row in self.evals
        ]

    def _difference(self, method: str, baseline: str) -> str:
        found = self.differences.get((method, baseline))
        return show(found, sign=True) if found else ""


def write_report(ledger, path: str | Path, run: str | None = None) -> Path:
    """Write the report of a run (default: the ledger's last) as one HTML file, whole or not at all.

    Raises RecR1Error when the ledger holds no results, or none of that run, and OSError when `path` cannot be
    written.
    """
    name, rows = _run(ledger, run)
    parts = [_heading(name, rows), _findings(_tables(rows)), *(_table_html(table) for table in _tables(rows))]
    parts += [_headroom(row, rows) for row in rows if row["kind"] == "headroom"]
    parts += [_training(row, rows) for row in rows if row["kind"] == "train"]
    inspections = [row for row in rows if row["kind"] == "inspect"]
    if inspections:
        found = Inspection.from_rows(inspections[-1]["rows"])
        title = f"What changed: {found.head['before']} → {found.head['after']}"
        parts.append(f"<h2>{escape(title)}</h2>{found._repr_html_()}")
    parts += [_cost(rows), _seal(ledger), f"<h2>What may not be claimed</h2>{_list(claims(ledger, rows))}"]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(f'recr1_lite: {name}')}</title><style>{PAGE_CSS}{_CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )
    return atomic_write(path, page)


def report_markdown(ledger, run: str | None = None) -> str:
    """The methods tables of a run as Markdown, with what made them and what they do not show."""
    name, rows = _run(ledger, run)
    lines = [f"**{name or 'results'}**: " + "; ".join(f"{key} {value}" for key, value in _facts(rows)), ""]
    for table in _tables(rows):
        lines += [f"{SPLITS.get(table.split, table.split)}, task {table.task}:", ""]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
                  for cells in (table.head(), ["---"] * len(table.head()), *table.body())]
        lines.append("")
    not_shown = [f"- {claim}" for claim in claims(ledger, rows)]
    return "\n".join([*lines, "What may not be claimed:", "", *not_shown]) + "\n"


def claims(ledger, rows: list[dict]) -> list[str]:
    """What these rows do not show, worked out from them."""
    tables, found = _tables(rows), []
    if not any(table.split == "test" for table in tables):
        found.append("Nothing here is a test result: the test split was not evaluated in this run.")
    for table in tables[:1]:
        for (a, b), row in table.differences.items():
            if row["low"] <= 0 <= row["high"]:
                found.append(f"That {a} differs from {b} on {table.split}: the paired interval of the "
                             f"difference, {show(row, sign=True)}, includes 0 (n = {row['n']}).")
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
    if len(seeds) <= 1:
        seed = seeds[0] if seeds else "not noted"
        found.append(f"That another seed gives the same: this run has one seed ({seed}), and the intervals "
                     "cover the choice of requests, not of seeds.")
    if any(row["kind"] == "train" for row in rows):
        found.append("That a policy's validation figure is unbiased: validation picked its checkpoint.")
    opened = len(ledger.rows("unseal"))
    if opened > 1:
        found.append(f"That the test was seen once: this ledger's runs opened it {opened} times.")
    return [*found, "That these are the paper's numbers: data, model and budget are this kit's, while the "
            "paper (arXiv 2503.24289) trains 3B models on two A100s."]


def _run(ledger, run: str | None) -> tuple[str, list[dict]]:
    rows = [row for row in ledger.rows() if row.get("kind") in RESULTS]
    if not rows:
        raise RecR1Error(
            f"the ledger {getattr(ledger, 'path', '')} has no results to report; run `make demo`, or "
            "`python -m recr1_lite demo`, which makes some"
        )
    names = list(dict.fromkeys(row.get("run") or "" for row in rows))
    name = next((row["run"] for row in reversed(rows) if row.get("run")), "") if run is None else run
    if name not in names:
        known = ", ".join(filter(None, names)) or "only rows without a run's name"
        raise RecR1Error(f"the ledger has no run {run!r}; it has {known}")
    rows = [row for row in rows if (row.get("run") or "") == name]
    last = {row.get("method"): row for row in rows if row["kind"] == "train"}  # a resumed run tells it all again
    return name, [row for row in rows if row["kind"] != "train" or row is last[row.get("method")]]


def _tables(rows: list[dict]) -> list[Table]:
    """One table a task and split, test first; of a method that was evaluated again, the last."""
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        if row["kind"] == "eval" and row.get("metrics"):
            groups.setdefault((row.get("task", ""), row["split"]), {})[row["method"]] = row
    tables = []
    order = list(SPLITS)
    for (task, split), evals in sorted(groups.items(), key=lambda group: order.index(group[0][1])):
        metric = next(iter(next(iter(evals.values()))["metrics"]))
        pairs = {(row["a"], row["b"]): row["difference"] for row in rows if row["kind"] == "compare"
                 and (row.get("task", ""), row["split"], row["metric"]) == (task, split, metric)}
        shown = [row for row in evals.values() if metric in row["metrics"]]
        bases = {b for _, b in pairs}
        baselines = [name for name in evals if name in bases] + sorted(bases - set(evals))
        tables.append(Table(task, split, metric, shown, baselines, pairs))
    return tables


def _metric(rows: list[dict]) -> str:
    return next((table.metric for table in _tables(rows)), "ndcg@100")


def _baselines(rows: list[dict], n: int | None) -> dict[str, dict]:
    """Untrained methods on validation, where they were measured on as many requests as the figure shows."""
    trained = {row.get("method") for row in rows if row["kind"] == "train"}
    return {row["method"]: row["metrics"][table.metric] for table in _tables(rows) if table.split == "val"
            for row in table.evals if row["method"] not in trained and row["n"] == n}


def _facts(rows: list[dict]) -> list[tuple[str, str]]:
    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key) not in (None, "")))

    versions = dict(item for row in rows for item in (row.get("versions") or {}).items() if item[1])
    times = sorted(row["time"] for row in rows if row.get("time"))
    facts = [("command", values("command")), ("task", values("task")), ("profile", values("profile")),
             ("device", values("device")), ("seed", values("seed")), ("commit", values("commit")),
             ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
             ("time", " to ".join(dict.fromkeys([times[0], times[-1]])) if times else "")]
    return [(key, value or "not noted") for key, value in facts]


def _heading(name: str, rows: list[dict]) -> str:
    facts = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in _facts(rows))
    return f"<h1>{escape(f'Rec-R1 lite: {name}' if name else 'Rec-R1 lite')}</h1><dl>{facts}</dl>"


def _findings(tables: list[Table]) -> str:
    """Each paired difference of the first table in words, the last method's first."""
    if not tables:
        return "<p>No method has been evaluated in this run.</p>"
    table, said = tables[0], []
    for (a, b), row in reversed(table.differences.items()):
        verdict = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "not shown to differ from"
        metric = metric_label(table.metric)
        said.append(f"{a} is {verdict} {b}: {show(row, sign=True)} {metric}, n = {row['n']}.")
    return _list(said)


def _table_html(table: Table) -> str:
    title = f"{SPLITS.get(table.split, table.split)}: {table.task}"
    spots = [{"method": row["method"], **row["metrics"][table.metric]} for row in table.evals]
    metrics = list(dict.fromkeys(name for row in table.evals for name in row["metrics"]))
    more = []
    for row in table.evals:
        values = [show(row["metrics"][name]) if name in row["metrics"] else "" for name in metrics]
        counts = ", ".join(f"{kind} {count}" for kind, count in (row.get("outcomes") or {}).items())
        more.append([row["method"], *values, counts])
    note = "“vs” columns: mean difference, paired on the same requests. Brackets: 95% bootstrap intervals."
    return (
        f"<h2>{escape(title)}</h2>{_grid(table.head(), table.body())}<p>{note}</p>"
        f"{_figure(plots.methods(spots, table.baselines[0] if table.baselines else None, table.metric))}"
        f"<details><summary>All metrics and parse outcomes</summary>"
        f"{_grid(['method', *map(metric_label, metrics), 'parse outcomes'], more)}</details>"
    )


def _headroom(row: Mapping, rows: list[dict]) -> str:
    base = row.get("baselines") or _baselines(rows, row.get("n"))
    figure = plots.headroom(row, base, row.get("metric") or _metric(rows))
    return f"<h2>Headroom before training</h2>{_figure(figure)}"


def _training(row: Mapping, rows: list[dict]) -> str:
    curve, val = row.get("curve") or [], row.get("val") or []
    metric = row.get("metric") or _metric(rows)
    base = {**(row.get("baselines") or {}), **_baselines(rows, val[-1].get("n") if val else None)}
    settings = [[str(key), str(value)] for key, value in (row.get("config") or {}).items()]
    stopped = f" ({row['stopped']})" if row.get("stopped") else ""
    return (
        f"<h2>Training: {escape(str(row.get('method', 'policy')))}</h2>"
        f"<p>{len(curve)} steps in {row.get('seconds') or 0:.0f} s{escape(stopped)}.</p>"
        f"{_figure(plots.learning_curve(curve, val, base, metric))}"
        f"<details><summary>What each step logged</summary>{_figure(plots.components(curve))}</details>"
        f"<details><summary>Settings</summary>{_grid(['setting', 'value'], settings)}</details>"
    )


def _cost(rows: list[dict]) -> str:
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
    return f"<h2>Time and tokens</h2>{_grid(['what', 'size', 'tokens generated', 'seconds'], lines)}"


def _seal(ledger) -> str:
    opened = ledger.rows("unseal")
    lines = [[str(row.get(key, "")) for key in ("time", "task", "reason")] for row in opened]
    table = f"<details><summary>When and why</summary>{_grid(['time', 'task', 'reason'], lines)}</details>"
    times = "once" if len(opened) == 1 else f"{len(opened)} times"
    said = f"The test split was opened {times} in this ledger."
    return f"<h2>The seal</h2><p>{said}</p>{table if opened else ''}"


def _grid(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


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
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em}dt{opacity:.75}
dd{margin:0;overflow-wrap:anywhere}
h2{font-size:1.15em;margin:1.6em 0 .4em}details{margin:.6em 0}summary{cursor:pointer}
"""
