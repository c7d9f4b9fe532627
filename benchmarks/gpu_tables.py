"""The JSON file of benchmarks/gpu.py as Markdown, ready for the README."""

from bench import made
from gpu_cells import GB

from recr1_lite.report.page import markdown_table
from recr1_lite.report.rows import main_changes, shown, tables

SPEED = ["step", "side (backend)", "tokens/s", "x stock", "rollout + update, s", "peak allocated (reserved), GB"]
SPEED += ["smallest card, GB"]


def report(content: dict) -> str:
    """Every table for which there is a row."""
    rows = content["cells"]
    done = {name: row for name, row in rows.items() if row["state"] == "done"}
    lines = [*head(content), "", *environment(done), "", *correctness(done), "", *loop(done), "", *speed(rows)]
    without = {name: row for name, row in rows.items() if row["state"] in ("not run", "failed", "unfinished")}
    lines += ["", "without a figure:"] if without else []
    return "\n".join([*lines, *[f"- {name}: {row['state']}: {row['why']}" for name, row in without.items()]])


def head(content: dict) -> list[str]:
    """Device, driver, versions, commit, command."""
    lines = [f"{made(content)}; {content.get('memory', 0) / GB:.0f} GB; {content.get('updated', 'nothing measured')}"]
    if content.get("dry_run"):
        lines.insert(0, "DRY RUN: tiny sizes; no figure below says anything about a GPU")
    if content.get("dry_run") and not content.get("memory"):
        lines.insert(1, "On a CPU the transformers backend stands in for `ours` on unsloth")
    return lines


def environment(done: dict) -> list[str]:
    if not (row := done.get("environment/machine")):
        return []
    lines = [f"{row['nvidia_smi']}; " + ", ".join(f"{name} {version}" for name, version in row["versions"].items())]
    for name, choice in row["backend"].items():
        lines.append(f"- profile `{name}`: " + "; ".join([choice["name"], choice["dtype"], *choice["reasons"]]))
    return lines


def correctness(done: dict) -> list[str]:
    """One line per comparison: what was held against what, and how far apart they are."""
    body = []
    for name, row in done.items():
        if "relative" in row:
            body.append([name, "this kit's step against stock TRL", f"{row['relative']:.1e} of its norm"])
        elif "max_nats" in row:
            nats = f"at most {row['max_nats']:.2g}, on average {row['mean_nats']:.2g} nats per token"
            same = f"{row['same_rewrites']} of {row['n']} greedy rewrites the same"
            body.append([name, "NF4 against 16 bits", f"{nats}; {same}"])
    return markdown_table(["correctness", "compared", "apart"], body) if body else []


def loop(done: dict) -> list[str]:
    """What was trained, the scores of each method on validation and sealed test, and what changed elsewhere."""
    lines = []
    for name, found in [(name, row["rows"]) for name, row in done.items() if "rows" in row]:
        for row in [row for row in found if row["kind"] == "train"]:
            spent = f"{len(row['curve'])} steps, {row['seconds']:.0f} s, best on validation at step {row['best_step']}"
            lines.append(f"- {name}, {row['method']}: {spent}: {shown(max(row['val'], key=lambda at: at['mean']))}")
        for scores in tables(found):
            lines += ["", f"{name}, {scores.name}:", "", *markdown_table([*scores.frame()], scores.frame().to_numpy())]
        changes = [[row["method"], row["task"], shown(row["difference"], True)] for row in main_changes(found)]
        lines += ["", *markdown_table(["method", "capability", "minus untrained"], changes)] if changes else []
    return lines


def speed(rows: dict) -> list[str]:
    """A line per side of each shape, trainer and group."""
    steps = {name: row for name, row in rows.items() if name.startswith("speed/") and not row["settings"]["cap"]}
    body = []
    for name, row in steps.items():
        what, _, side = name.removeprefix("speed/").rpartition("/")
        cells = [what, side, f"{row['state']}: {row.get('why', '')[:80]}", "-", "-", "-"]
        if row["state"] == "done":
            base = rows.get("/".join(part for part in name.split("/")[:-1] if not part.startswith("micro")) + "/stock")
            ratio = row["tokens_per_second"] / base["tokens_per_second"] if base and base["state"] == "done" else None
            seconds, peak = f"{row['rollout_seconds']:.1f} + {row['update_seconds']:.1f}", "not measured: no CUDA"
            if row["peak_allocated"]:
                peak = f"{row['peak_allocated'] / GB:.1f} ({row['peak_reserved'] / GB:.1f})"
            cells = [what, f"{side} ({row['backend']})", f"{row['tokens_per_second']:.0f}"]
            cells += [f"{ratio:.2f}" if ratio else "-", seconds, peak]
        body.append([*cells, smallest(name, rows)])
    return markdown_table(SPEED, body) if body else []


def smallest(name: str, rows: dict) -> str:
    """The smallest memory cap under which the step ran."""
    capped = {row["settings"]["cap"]: row["state"] for other, row in rows.items() if other.startswith(name + "/")}
    fits = [cap for cap, state in capped.items() if state == "done"]
    failed = [cap for cap, state in capped.items() if state == "does not fit"]
    return str(min(fits)) if fits else f"more than {max(failed)}" if failed else "-"
