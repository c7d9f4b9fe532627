"""A report as one HTML page that needs no network: figures inside it, tables that scroll on a narrow screen."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from matplotlib.figure import Figure

from recr1_lite import plots
from recr1_lite.inspector import PAGE_CSS, Inspection
from recr1_lite.report_rows import Bullets, Fold, Grid, Section


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
