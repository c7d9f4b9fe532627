"""The JSON file of benchmarks/gpu.py as Markdown, ready for the README. Aims stand beside what was measured; none is
asserted."""

from gpu_cells import GB

from recr1_lite.report.page import markdown_table
from recr1_lite.report.rows import main_changes, shown, tables

AIM_RATIO, AIM_MEMORY = 2.0, 8.0  # stock's tokens a second; GB for the 3B shape at group 8
AIM_CELL = "speed/qwen2.5-3b/grpo/g8"
SPEED_HEAD = "| step | side (backend) | tokens/s | x stock | rollout + update, s | peak allocated (reserved), GB | "
SPEED_HEAD += "smallest card, GB |"


def report(content: dict) -> str:
    """Every table for which there is a row."""
    rows = content["cells"]
    parts = [head(content), environment(rows.get("environment/machine")), correctness(rows), loop(rows)]
    parts += [speed(rows), aims(rows), left_out(rows)]
    return "\n\n".join(part for part in parts if part)


def done(row: dict | None) -> bool:
    return bool(row) and row["state"] == "done"


def head(content: dict) -> str:
    """Device, driver, versions, commit, command."""
    versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items() if version)
    memory = f", {content['memory'] / GB:.0f} GB" if content.get("memory") else ""
    driver = f", driver {content['driver']}" if content.get("driver") else ""
    dry = "DRY RUN: tiny sizes; no figure below says anything about a GPU" if content.get("dry_run") else ""
    if dry:
        stand_in = "" if memory else "; on a CPU the transformers backend stands in for `ours` on unsloth"
        dry += f"{stand_in}\n\n"
    where = f"`{content.get('command')}` on {content.get('device')}{memory}{driver}; {versions}"
    return f"{dry}{where}; commit {content.get('commit')}; {content.get('updated', 'nothing measured')}"


def environment(row: dict | None) -> str:
    if not done(row):
        return ""
    told = ("unsloth", "bitsandbytes", "triton", "vllm", "xformers")
    extra = ", ".join(f"{name} {row['versions'].get(name) or 'not installed'}" for name in told)
    lines = [f"CUDA {row['torch_cuda']}, bf16 {row.get('bf16', 'not looked at: no CUDA')}; {extra}"]
    for name, choice in row["backend"].items():
        said = choice.get("error") or "; ".join([f"{choice['name']}, {choice['dtype']}", *choice["reasons"]])
        lines.append(f"- profile `{name}`: {said}")
    return "\n".join(lines)


def correctness(rows: dict) -> str:
    """One line per comparison: what was held against what, and how far apart they are."""
    lines = []
    for name, row in rows.items():
        if not done(row) or not name.startswith("correctness/"):
            continue
        what = name.removeprefix("correctness/")
        if "relative" in row:
            lines.append(f"| {what} | this kit's step against stock TRL | {row['relative']:.1e} of its norm |")
        elif "max_nats" in row:
            nats = f"at most {row['max_nats']:.2g}, on average {row['mean_nats']:.2g} nats per token (n = {row['n']})"
            same = row.get("same_rewrites")
            sides = "unsloth against transformers" if same is None else "NF4 against 16 bits"
            nats += "" if same is None else f"; {same} of {row['n']} greedy rewrites the same"
            lines.append(f"| {what} | {sides} | {nats} |")
    return table("| correctness | compared | apart |", lines)


def loop(rows: dict) -> str:
    """What was trained, the scores of each method on validation and sealed test, and what changed elsewhere."""
    lines = []
    for name in ("loop/methods", "loop/unsloth", "loop/capability"):
        made = rows.get(name, {}).get("rows", [])
        for row in [row for row in made if row["kind"] == "train"]:
            spent = f"{len(row['curve'])} steps, {row['seconds']:.0f} s, best on validation at step {row['best_step']}"
            lines.append(f"- {name}, {row['method']}: {spent}: {shown(max(row['val'], key=lambda at: at['mean']))}")
        for scores in tables(made):
            lines += ["", f"{name}, {scores.name}:", "", *markdown_table(scores.head(), scores.body())]
        changes = [[row["method"], row["task"], shown(row["difference"], True)] for row in main_changes(made)]
        lines += ["", *markdown_table(["method", "capability", "minus untrained"], changes)] if changes else []
    return "\n".join(lines)


def speed(rows: dict) -> str:
    """A line per side of each shape, trainer and group."""
    named = [(name, row) for name, row in rows.items() if name.startswith("speed/")]
    steps = [
        (name, row) for name, row in named if row["settings"].get("kind") == "steps" and not row["settings"]["cap"]
    ]
    return table(SPEED_HEAD, [speed_line(name, row, rows) for name, row in steps])


def speed_line(name: str, row: dict, rows: dict) -> str:
    what, _, side = name.removeprefix("speed/").rpartition("/")
    if not done(row):
        return f"| {what} | {side} | {row['state']}: {row.get('why', '')[:80]} | - | - | - | {smallest(name, rows)} |"
    parts = [part for part in name.split("/")[:-1] if not part.startswith("micro")]
    base = rows.get("/".join([*parts, "stock"]))
    ratio = f"{row['tokens_per_second'] / base['tokens_per_second']:.2f}" if done(base) else "-"
    seconds, peak = f"{row['rollout_seconds']:.1f} + {row['update_seconds']:.1f}", "not measured: no CUDA"
    if row["peak_allocated"]:
        peak = f"{row['peak_allocated'] / GB:.1f} ({row['peak_reserved'] / GB:.1f})"
    cells = [what, f"{side} ({row['backend']})", f"{row['tokens_per_second']:.0f}", ratio, seconds, peak]
    return f"| {' | '.join([*cells, smallest(name, rows)])} |"


def smallest(name: str, rows: dict) -> str:
    """The smallest memory cap under which the step ran."""
    capped = {row["settings"]["cap"]: row["state"] for other, row in rows.items() if other.startswith(name + "/")}
    fits = [cap for cap, state in capped.items() if state == "done"]
    failed = [cap for cap, state in capped.items() if state == "does not fit"]
    return str(min(fits)) if fits else f"more than {max(failed)}" if failed else "-"


def aims(rows: dict) -> str:
    """The two aims beside what was measured."""
    ours, base = rows.get(f"{AIM_CELL}/ours"), rows.get(f"{AIM_CELL}/stock")
    if not done(ours) or not ours["peak_allocated"]:
        return "aims: not yet measured (Qwen2.5-3B shape, group 8: twice stock TRL's tokens/s, within 8 GB)"
    ratio = "stock has no figure"
    if done(base):
        ratio = f"{ours['tokens_per_second'] / base['tokens_per_second']:.2f} x"
    peaks = f"{ours['peak_allocated'] / GB:.1f} GB allocated, {ours['peak_reserved'] / GB:.1f} GB reserved"
    aim = f"aim: {AIM_RATIO:g} x stock TRL's tokens/s for the Qwen2.5-3B shape at group 8"
    return f"{aim}; measured: {ratio}. Aim: within {AIM_MEMORY:g} GB; measured peak: {peaks}."


def left_out(rows: dict) -> str:
    """Cells without a figure, in words."""
    without = [(name, row) for name, row in rows.items() if row["state"] in ("not run", "failed", "unfinished")]
    lines = [f"- {name}: {row['state']}: {row.get('why', '')}" for name, row in without]
    return "\n".join(["without a figure:", *lines]) if lines else ""


def table(heading: str, lines: list[str]) -> str:
    return "\n".join([heading, "|" + "---|" * (heading.count("|") - 1), *lines]) if lines else ""
