"""Leave with the model: adapter, merged 16-bit folder and GGUF in one folder, each loaded back and compared.

What is compared is base + adapter, unmerged, with every exported form: the greedy rewrites of n requests, and
the log-probabilities of the tokens that base + adapter wrote.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from recr1_lite import models
from recr1_lite.errors import RecR1Error
from recr1_lite.gguf import convert
from recr1_lite.gguf_export import TYPES, export_gguf
from recr1_lite.ledger import versions
from recr1_lite.models import Policy, load_policy, save_adapter, save_merged
from recr1_lite.profiles import Profile
from recr1_lite.progress import bar
from recr1_lite.prompts import Prompt, compose
from recr1_lite.rewriters import encode
from recr1_lite.rollouts import completion_logps, generate_grouped
from recr1_lite.wheels import sha256_of

FORMATS = ("adapter", "merged", "gguf")
DTYPES = ("float32", "float16", "bfloat16")
# How far a form may be from base + adapter, by its coarsest number format: (share of requests with another
# rewrite, nats a token). Greedy decoding flips where two words are almost as likely: float32 alone cannot.
TOLERANCE = {"float32": (0.0, 1e-3), "float16": (0.05, 0.05), "bfloat16": (0.2, 0.3), "q8_0": (0.2, 0.5)}
_COARSE = list(TOLERANCE)
_STORED = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}
_FOUR_BITS = ("trained on 4-bit weights and merged into the 16- or 32-bit ones, so the rewrites are compared "
              "with base + adapter in that format, not with the 4-bit model")


def export(profile: Profile, adapter: str | Path, out: str | Path, prompt: Prompt, requests: Sequence[str],
           formats: Sequence[str] = FORMATS, dtype: str = "float16", gguf_type: str = "f16",
           card: Callable[[dict], str] | None = None, progress: bool = True) -> dict:
    """Write what `formats` names to the folder `out`, whole or not at all; returns what export.json says.

    adapter: folder of a trained adapter of the profile's model. The base is loaded in the profile's 16- or
    32-bit format, never in 4 bits, merged in it and stored as `dtype`; the GGUF is made from the merged
    folder, its matrices as `gguf_type`. prompt, requests: what is asked for the check. card: gives README.md
    from what export.json will say. `out` becomes adapter/, merged/, model-<type>.gguf, README.md,
    export.json. Raises RecR1Error for unknown formats, for an `out` that holds anything else or cannot be
    written, and for a form beyond TOLERANCE.
    """
    _check(formats, dtype, gguf_type, requests)
    out, plain = Path(out), profile.but(load_in_4bit=False, fast_inference=False)
    _check_place(out)
    told = {"base_model": Path(profile.model).name if Path(profile.model).exists() else profile.model,
            "trained_in_4bit": profile.load_in_4bit, "notes": [_FOUR_BITS] if profile.load_in_4bit else [],
            "profile": profile.name, "computed_in": profile.dtype, "dtype": dtype, "gguf_type": gguf_type,
            "prompt": asdict(prompt), "max_prompt_tokens": profile.max_prompt_tokens,
            "max_completion_tokens": profile.max_completion_tokens, "versions": versions(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "checks": {}}

    def look(name: str, model: str, folder: str | Path | None, said=None, then=None) -> dict[str, list]:
        """Load one form, measure it, and let it go before the next one comes; `then` may use it up."""
        policy = load_policy(plain.but(model=model), adapter=folder, trainable=False, backend="transformers")
        found = measure(policy, prompt, requests, profile, name, said, progress)
        if then:
            then(policy)
        del policy
        gc.collect()
        return found

    def write(work: Path) -> None:
        forms = {"adapter": (profile.model, work / "adapter", "float32"),
                 "merged": (str(work / "merged"), None, dtype),
                 "gguf": (str(work / "back"), None, max(_STORED[gguf_type], dtype, key=_COARSE.index))}
        here = look("base + adapter", profile.model, adapter,
                    then=lambda policy: _save(policy, work, told["base_model"], formats, dtype))
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
        told["files"] = {file.relative_to(work).as_posix(): {
            "bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
        (work / "export.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if card:
            (work / "README.md").write_text(card(told), encoding="utf-8")

    try:
        models.place_folder(out, write)
    except OSError as problem:
        raise RecR1Error(f"{out} cannot be written ({problem.strerror or problem}) and nothing was kept; "
                         "free some space or give another folder with --out") from problem
    return told


def measure(policy: Policy, prompt: Prompt, requests: Sequence[str], profile: Profile,
            label: str = "rewrites", said: Sequence[list[int]] | None = None,
            progress: bool = True) -> dict[str, list]:
    """Of each request: prompt (ids), tokens (greedy, ids), rewrite (the query sent), logps (nats, of the
    tokens `said`; default: its own)."""
    tokenizer, found = policy.tokenizer, {"prompt": [], "tokens": [], "rewrite": [], "logps": []}
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    with bar(total=len(requests), desc=label, unit="request", progress=progress) as shown, torch.no_grad():
        for start in range(0, len(requests), profile.batch_size):
            batch = list(requests[start: start + profile.batch_size])
            ids, mask = encode(tokenizer, [prompt.render(tokenizer, request) for request in batch],
                               profile.max_prompt_tokens, policy.model.device)
            out = generate_grouped(policy.model.eval(), ids, mask, profile.max_completion_tokens, end, pad, 0)
            rows = [row[: row.index(end) + 1] if end in row else row for row in out.tolist()]
            known = rows if said is None else said[start: start + len(batch)]
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
    same = {key: sum(one == other for one, other in zip(here[key], there[key]))
            for key in ("prompt", "rewrite")}
    pairs = zip(here["logps"], there["logps"])
    gaps = [abs(one - other) for left, right in pairs for one, other in zip(left, right)]
    worst = float("nan") if any(map(math.isnan, gaps)) else max(gaps)
    allowed = math.ceil(share * n)
    if same["prompt"] < n or n - same["rewrite"] > allowed or not worst <= nats:
        raise RecR1Error(
            f"the exported {name} is not the trained model: same prompt tokens for {same['prompt']}, same "
            f"rewrites for {same['rewrite']} of {n} requests, up to {worst:.2g} nats a token apart (allowed "
            f"in {coarsest}: {allowed} other rewrites, {nats} nats); nothing was written, take finer numbers")
    return {"same_tokens": same["prompt"], "same_rewrites": same["rewrite"], "n": n, "max_nats": worst,
            "mean_nats": sum(gaps) / len(gaps), "coarsest": coarsest, "allowed_other_rewrites": allowed,
            "allowed_nats": nats}


def lines(told: dict) -> list[str]:
    """What was checked, a line each, for the terminal."""
    checks = [f"{name}: same rewrites on {check['same_rewrites']}/{check['n']} requests, at most "
              f"{check['max_nats']:.2g} nats a token from base + adapter ({check['coarsest']})"
              for name, check in told["checks"].items()]
    return checks + [f"note: {note}" for note in told["notes"]]


def run(arguments, profile: Profile, task) -> None:
    """The command `export`: see recr1_lite/arguments.py. The check's requests are validation requests."""
    from recr1_lite import model_card

    if not arguments.adapter or arguments.n < 1:
        raise RecR1Error("export needs --adapter, the folder of a trained adapter, and --n of 1 or more")
    gathered = model_card.gather(arguments.adapter, arguments.ledger, arguments.run, arguments.method)
    out = Path(arguments.out or Path(arguments.adapter).parent / "export")
    told = export(profile, arguments.adapter, out, task.prompt, list(task.val["request"][: arguments.n]),
                  tuple(arguments.formats.split(",")), arguments.dtype, arguments.gguf_type,
                  lambda told: model_card.card(told, gathered, task.name, task.about))
    print(*lines(told), f"it is in {out}", sep="\n")
    if arguments.push:
        print(f"it is at {model_card.push(out, arguments.push, private=not arguments.public)}")


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
    for name, words in (("config.json", {"torch_dtype": str(config.dtype).removeprefix("torch."), **turning}),
                        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast",
                                                   "model_input_names": ["input_ids", "attention_mask"]})):
        known = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "config.json" or known.get("tokenizer_class") == "TokenizersBackend":
            (folder / name).write_text(json.dumps(known | words, indent=2) + "\n", encoding="utf-8")


def _check(formats: Sequence[str], dtype: str, gguf_type: str, requests: Sequence[str]) -> None:
    for given, known, what in ((formats, FORMATS, "format"), ([dtype], DTYPES, "dtype"),
                               ([gguf_type], TYPES, "GGUF type")):
        if wrong := [name for name in given if name not in known]:
            raise RecR1Error(f"there is no {what} {wrong[0]!r} to export to; choose from {', '.join(known)}")
    if not formats or not requests:
        raise RecR1Error(f"an export needs one format at least ({', '.join(FORMATS)}) and one request to "
                         "check it on")


def _check_place(out: Path) -> None:
    """Only an earlier export is replaced, and only one that nothing was added to."""
    if out.is_file():
        raise RecR1Error(f"{out} is a file; give another folder with --out")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = {"adapter", "merged", "README.md", "export.json", *(f"model-{kind}.gguf" for kind in TYPES)}
    if there and ("export.json" not in there or there - ours):
        raise RecR1Error(f"{out} holds {sorted(there - ours or there)[0]!r}, which is no export of this kit; "
                         "give another folder with --out")
