"""The rows of benchmarks/retrieval.py as Markdown, and the reward's share of a GRPO step."""

from __future__ import annotations

import statistics
from pathlib import Path

from retrieval_engines import LABELS, NOTES

from recr1_lite import ledger
from recr1_lite.profiles import PROFILES

BUSY = 0.9  # share of a core below which a build on one thread was held up by other work


def step_seconds(path: Path) -> float | None:
    """Median seconds of a GRPO step over the `cpu` trainings of a ledger; None where it has none."""
    curves = [row["curve"] for row in ledger.Ledger(path).rows("train") if row.get("profile") == "cpu"]
    seconds = [point["seconds"] for curve in curves for point in curve if "seconds" in point]
    return statistics.median(seconds) if seconds else None


def table(rows: list[dict], k: int) -> str:
    """The rows in Markdown, queries/s also relative to bm25s on one thread, * if that is of another run."""
    base = {row["items"]: row for row in rows if row["engine"] == "bm25s" and "queries_s" in row}
    heads = [
        "items",
        "engine",
        "build, s",
        "memory, MB",
        "index, MB",
        "queries/s (n)",
        "x bm25s",
        "recall@10",
        f"recall@{k}",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        other = base.get(row["items"])
        star = "*" if other and other["run"] != row["run"] else ""
        ratio = f"{row['queries_s'] / other['queries_s']:.2g}{star}" if other and "queries_s" in row else "-"
        speed = f"{row['queries_s']:,.3g} ({row['n_queries']})" if "queries_s" in row else row["trouble"]
        figures = [number(row.get(name)) for name in ("build_s", "memory_mb", "index_mb")]
        recalls = [f"{row[name]:.4f}" if name in row else "-" for name in ("recall_10", "recall_k")]
        cells = [f"{row['items']:,}", LABELS[row["engine"]], *figures, speed, ratio, *recalls]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def notes(rows: list[dict]) -> str:
    """What the table leaves open: why a recall is not 1, the device, whether other work was in the way."""
    engines = dict.fromkeys(row["engine"] for row in rows)
    lines = [
        "Recall is against exhaustive float64 scores by Lucene's formula, ties as found; why not 1:",
        *[f"- {LABELS[engine]}: {NOTES[engine]}" for engine in engines],
        f"Device: {rows[0]['device']}. tantivy builds with all cores. *: relative to another run's.",
    ]
    alone = [row for row in rows if row["engine"] != "tantivy" and "build_s" in row]
    had = sum(row["build_cpu_s"] for row in alone) / max(sum(row["build_s"] for row in alone), 1e-9)
    if alone and had < BUSY:
        lines.append(f"The machine was busy: the builds got {had:.0%} of a core, so the times are too long.")
    return "\n".join(lines)


def shares(rows: list[dict], step: float | None) -> str:
    """Search seconds of a step's queries over the seconds of a step with that catalogue, in Markdown."""
    if step is None:
        return "The ledger has no training of the cpu profile, so a step's share is unknown; pass --ledger."
    prompts, group = PROFILES["cpu"].prompts_per_step, PROFILES["cpu"].group_size
    searches = prompts * group + prompts
    lines = [
        f"A GRPO step took {step:.2f} s (median) with a small catalogue. Its {searches} searches "
        f"({prompts} x {group} rollouts, {prompts} raw requests, all different), and their share:",
        "",
        "| items | engine | rewrites of 5 to 10 words | messages of 22 words (40 with stopwords) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for name in ("queries_s", "long_queries_s"):
            seconds = searches / row[name] if name in row else None
            cells.append(f"{seconds:.2g} s, {seconds / (seconds + step):.1%}" if seconds else row["trouble"])
        lines.append(f"| {row['items']:,} | {LABELS[row['engine']]} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
