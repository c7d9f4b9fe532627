"""The JSON file of benchmarks/gpu.py as Markdown, ready for the README. Aims stand beside what was measured; none is
asserted."""

from __future__ import annotations

from gpu_book import GB

AIM_RATIO, AIM_MEMORY = 2.0, 8.0  # stock's tokens a second; GB for the 3B shape at group 8
AIM_CELL = "speed/qwen2.5-3b/grpo/g8"


def report(content: dict) -> str:
    """Every table for which there is a row."""
    rows = content["cells"]
    parts = [
        head(content),
        environment(rows.get("environment/machine")),
        correctness(rows),
        loop(rows),
        capability(rows),
        speed(rows),
        aims(rows),
        left_out(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def head(content: dict) -> str:
    """Device, driver, versions, commit, command."""
    versions = ", ".join(f"{name} {version}" for name, version in (content.get("versions") or {}).items() if version)
    memory = f", {content['memory'] / GB:.0f} GB" if content.get("memory") else ""
    driver = f", driver {content['driver']}" if content.get("driver") else ""
    dry = content.get("dry_run") and "DRY RUN: tiny sizes; no figure below says anything about a GPU"
    stand_in = "" if content.get("memory") else "; on a CPU the transformers backend stands in for `ours` on unsloth"
    dry = f"{dry}{stand_in}\n\n" if dry else ""
    return (
        f"{dry}`{content.get('command')}` on {content.get('device')}{memory}{driver}; {versions}; commit "
        f"{content.get('commit')}; {content.get('updated', 'nothing measured')}"
    )


def environment(row: dict | None) -> str:
    if not row or row["state"] != "done":
        return ""
    extra = ", ".join(
        f"{name} {version or 'not installed'}"
        for name, version in row["versions"].items()
        if name in ("unsloth", "bitsandbytes", "triton", "vllm", "xformers")
    )
    lines = [f"CUDA {row['torch_cuda']}, bf16 {row.get('bf16', 'not looked at: no CUDA')}; {extra}"]
    for name, found in row["backend"].items():
        said = found.get("error") or "; ".join([f"{found['name']}, {found['dtype']}", *found["reasons"]])
        lines.append(f"- profile `{name}`: {said}")
    return "\n".join(lines)


def correctness(rows: dict) -> str:
    """One line a comparison: what was held against what, and how far apart they are."""
    lines = []
    for name, row in rows.items():
        if row["state"] != "done" or not name.startswith("correctness/"):
            continue
        what = name.removeprefix("correctness/")
        if "relative" in row:
            lines.append(f"| {what} | this kit's step against stock TRL | {row['relative']:.1e} of its norm |")
        elif "same_rewrites" in row:
            lines.append(
                f"| {what} | NF4 against 16 bits | {nats(row)}; {row['same_rewrites']} of {row['n']} greedy "
                "rewrites the same |"
            )
        elif "max_nats" in row:
            lines.append(f"| {what} | unsloth against transformers | {nats(row)} |")
    return table("| correctness | compared | apart |", lines)


def nats(row: dict) -> str:
    """How far log-probabilities are apart."""
    return f"at most {row['max_nats']:.2g}, on average {row['mean_nats']:.2g} nats a token (n = {row['n']})"


def loop(rows: dict) -> str:
    """Val curve and sealed test of each method."""
    lines = []
    for name in ("loop/methods", "loop/unsloth"):
        row = rows.get(name) or {}
        run = name.removeprefix("loop/")
        for method, found in row.get("methods", {}).items():
            best = max(found["val"], key=lambda point: point["mean"]) if found["val"] else None
            curve = f"{interval(found['val'][0])} to {interval(best)} at step {best['step']}" if best else "-"
            test = row.get("test", {}).get(method)
            gain = row.get("differences", {}).get(f"{method} - raw request")
            lines.append(
                f"| {run}: {method} | {found['steps']} | {found['seconds']:.0f} | {curve} | "
                f"{interval(test)} | {interval(gain, '+')} |"
            )
        for method, test in row.get("test", {}).items():
            if method not in row["methods"]:
                lines.append(
                    f"| {run}: {method} | - | - | - | {interval(test)} | "
                    f"{interval(row['differences'].get(f'{method} - raw request'), '+')} |"
                )
    return table("| loop | steps | seconds | validation nDCG@100 | sealed test | against the raw request |", lines)


def capability(rows: dict) -> str:
    """What training changed elsewhere."""
    row = rows.get("loop/capability") or {}
    lines = [f"| {name} | {interval(change, '+')} |" for name, change in row.get("changes", {}).items()]
    return table("| capability, after minus before | difference |", lines)


def interval(found: dict | None, sign: str = "") -> str:
    return f"{found['mean']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]" if found else "-"


def speed(rows: dict) -> str:
    """A line a side of each shape, trainer and group."""
    lines = []
    for name, row in rows.items():
        if name.startswith("speed/") and row["settings"].get("kind") == "steps" and not row["settings"]["cap"]:
            lines.append(speed_line(name, row, rows))
    return table(
        "| step | side (backend) | tokens/s | x stock | rollout + update, s | peak allocated (reserved), GB | "
        "estimated, GB | smallest card, GB |",
        lines,
    )


def speed_line(name: str, row: dict, rows: dict) -> str:
    what, _, side = name.removeprefix("speed/").rpartition("/")
    if row["state"] != "done":
        words = f"{row['state']}: {row.get('why', '')[:80]}"
        return f"| {what} | {side} | {words} | - | - | - | - | {smallest(name, rows)} |"
    base = stock(name, rows)
    ratio = f"{row['tokens_per_second'] / base['tokens_per_second']:.2f}" if base else "-"
    return (
        f"| {what} | {side} ({row['backend']}) | {row['tokens_per_second']:.0f} | {ratio} | "
        f"{row['rollout_seconds']:.1f} + {row['update_seconds']:.1f} | {peak(row)} | {guess(row)} | "
        f"{smallest(name, rows)} |"
    )


def stock(name: str, rows: dict) -> dict | None:
    """The measured row of stock TRL at the sizes of a cell."""
    parts = [part for part in name.split("/")[:-1] if not part.startswith("micro")]
    row = rows.get("/".join([*parts, "stock"]))
    return row if row and row["state"] == "done" else None


def peak(row: dict) -> str:
    if not row["peak_allocated"]:
        return "not measured: no CUDA"
    return f"{row['peak_allocated'] / GB:.1f} ({row['peak_reserved'] / GB:.1f})"


def guess(row: dict) -> str:
    """The estimator's tensors at the peak, and its error where there is a measured one."""
    if not row["estimate"]:
        return "-"
    counted = row["estimate"]["tensors"]
    text = f"{counted / GB:.1f}"
    error = counted / row["peak_allocated"] - 1 if row["peak_allocated"] else None
    return text if error is None else f"{text} ({error:+.0%})"


def smallest(name: str, rows: dict) -> str:
    """The smallest memory cap under which the step ran."""
    capped = {row["settings"]["cap"]: row["state"] for other, row in rows.items() if other.startswith(name + "/")}
    fits = [cap for cap, state in capped.items() if state == "done"]
    failed = [cap for cap, state in capped.items() if state == "does not fit"]
    return str(min(fits)) if fits else f"more than {max(failed)}" if failed else "-"


def aims(rows: dict) -> str:
    """The issue's two aims beside what was measured."""
    ours, base = rows.get(f"{AIM_CELL}/ours"), rows.get(f"{AIM_CELL}/stock")
    if not ours or ours["state"] != "done" or not ours["peak_allocated"]:
        return "aims: not yet measured (Qwen2.5-3B shape, group 8: twice stock TRL's tokens/s, within 8 GB)"
    ratio = (
        f"{ours['tokens_per_second'] / base['tokens_per_second']:.2f} x"
        if base and base["state"] == "done"
        else ("stock has no figure")
    )
    return (
        f"aim: {AIM_RATIO:g} x stock TRL's tokens/s for the Qwen2.5-3B shape at group 8; measured: {ratio}. "
        f"Aim: within {AIM_MEMORY:g} GB; measured peak: {ours['peak_allocated'] / GB:.1f} GB allocated, "
        f"{ours['peak_reserved'] / GB:.1f} GB reserved."
    )


def left_out(rows: dict) -> str:
    """Cells without a figure, in words."""
    lines = [
        f"- {name}: {row['state']}: {row.get('why', '')}"
        for name, row in rows.items()
        if row["state"] in ("not run", "failed", "unfinished")
    ]
    return "\n".join(["without a figure:", *lines]) if lines else ""


def table(heading: str, lines: list[str]) -> str:
    return "\n".join([heading, "|" + "---|" * (heading.count("|") - 1), *lines]) if lines else ""
