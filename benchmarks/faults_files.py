"""Kills, full disks and crowds for benchmarks/faults.py: what was there stays, what is new is whole or absent."""

import ctypes
import importlib
import json
import os
import random
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gpu_models
import pandas as pd
import safetensors
from bench import Child, Skipped, Tally

from recr1_lite.common import RecR1Error, atomic_write, place_folder
from recr1_lite.deploy.export import export
from recr1_lite.ledger import Ledger
from recr1_lite.policy import Policy, as_rewriter, load_policy, save_adapter
from recr1_lite.profiles import PROFILES, Profile
from recr1_lite.recipes.demo import demo
from recr1_lite.report import select
from recr1_lite.search import BM25Retriever
from recr1_lite.tasks import Task, load_task
from recr1_lite.train import Run, TargetFile, best_of_n, sft, train_task

fetch = importlib.import_module("recr1_lite.assets.fetch")  # the package has a function of this name
SIZES = dict(lora_rank=4, steps=8, prompts_per_step=2, group_size=4, validate_every=2, max_completion_tokens=6)
SIZES |= dict(learning_rate=1e-2, sft_learning_rate=1e-2, sft_epochs=4, n_val=6, n_test=6, n_headroom=4, batch_size=8)
TIMES = re.compile("seconds|time|id|run_id|versions|commit|total_flos|train_.*|step_time|.*_per_second|command")


def world(work: Path, **changes) -> tuple[Profile, Task]:
    """A profile of a tiny random model, which is made in `work` once, and a task that it can learn on."""
    model = work / "models" / f"{gpu_models.TINY}-float32"
    if not model.is_dir():
        Child(gpu_models.model_source, gpu_models.TINY, "float32", work).value()
    rng = random.Random(0)
    texts = [rng.sample(gpu_models.WORDS, 12) for _ in range(24)]
    items = pd.DataFrame({"item_id": [f"i{at}" for at in range(24)], "text": [" ".join(text) for text in texts]})
    items["title"] = items["text"].str[:5]
    asked = [f"{text[2]} {text[3]} w{at}" for at, text in enumerate(texts)]
    splits = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    requests = pd.DataFrame({"request": asked, "relevant": items["item_id"], "split": splits})
    made = dict(items=items, requests=requests, prompt=gpu_models.PROMPT, metrics=("ndcg@10", "mrr"))
    return replace(PROFILES["smoke"], model=str(model), **(SIZES | changes)), load_task("custom", **made)


# what is killed: each goes on in `folder` where it was stopped


def run_grpo(folder: Path, work: Path, watch=None, **changes) -> None:
    profile, task = world(work, **changes)
    policy, engine, run = load_policy(profile, 1), BM25Retriever.build(task.items), folder / "run"
    book = Ledger(folder / "ledger.jsonl").bind(run="run")
    train_task(policy, task, engine, profile, run, 1, book, resume=True, progress=False, watch=watch)


def run_sft(folder: Path, work: Path) -> None:
    profile, task = world(work)
    targets = task.train.assign(rewrite=task.train["request"].str.split().str[0])
    run = Run(folder / "run", seed=1, resume=True, progress=False)
    sft.train(load_policy(profile, 1), targets, task.prompt, profile, run)


def run_targets(folder: Path, work: Path) -> None:
    profile, task = world(work)
    sampler = as_rewriter(load_policy(profile, 1), task.prompt, profile, "tiny")
    examples = pd.concat([task.train.assign(example_id=task.train["example_id"] + f"-{at}") for at in range(20)])
    best_of_n(sampler, examples.reset_index(drop=True), folder / "targets.jsonl", 8, seed=1, progress=False)


def run_demo(folder: Path, work: Path) -> None:
    profile, task = world(work, steps=4)
    demo(profile, folder / "run", 1, resume=True, ledger=Ledger(folder / "ledger.jsonl"), task=task)


def run_export(folder: Path, work: Path, version: int = 1) -> None:
    profile, task = world(work)
    adapter = work / f"adapter-{version}"
    if not adapter.is_dir():
        save_adapter(policy_of(profile, version), adapter)
    requests, forms = list(task.val["request"]), ("adapter", "merged")
    export(profile, adapter, folder / "export", task.prompt, requests, forms, "float32")


def policy_of(profile: Profile, version: int) -> Policy:
    policy = load_policy(profile, seed=1)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.01 * (1 + version)
    return policy


RUNS = {"GRPO": run_grpo, "SFT": run_sft, "best of n": run_targets, "demo": run_demo, "export": run_export}


def kill(tally: Tally, count: int, seed: int, work: Path, name: str) -> None:
    """kill -9 at `count` moments, drawn over the time of an uninterrupted run; each run goes on until it ends."""

    def start(number: int) -> Path:
        """A new folder; for an export with an older one in it, which is to be replaced."""
        (folder := work / f"runs-{number}").mkdir()
        if name == "export":
            Child(run_export, folder, work, 0).value()
        return folder

    rng, base, kills, ended = random.Random(f"{name}/{seed}"), start(0), 0, 0
    world(work)
    begin = time.perf_counter()
    Child(RUNS[name], base, work).value()
    seconds = time.perf_counter() - begin
    cut, since = start(1), 0
    while kills < count or since:
        child, moment = Child(RUNS[name], cut, work), rng.uniform(0, seconds)
        if kills < count and child.kill_after(moment):
            kills, since = kills + 1, since + 1
            tally.add(f"after a kill {moment / seconds:.0%} into the run", half_written(cut))
            continue
        ended += 1
        tally.add(f"a run that was killed {since} times", child.result()[1] or differences(base, cut, since))
        shutil.rmtree(cut)
        cut, since = start(1 + ended), 0
        if ended > 10 * count:  # it ends before it can be killed
            raise RuntimeError(f"{kills} kills in {ended} runs of {seconds:.1f} s")
    tally.note = f"{kills} kills, {ended} runs to the end, {seconds:.1f} s uninterrupted"


# what is right


def files_of(folder: Path) -> dict[str, Path]:
    """The files that a reader sees, no lock and nothing hidden; an index has a random name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    names = [re.sub(r"index-\w+", "index", path.relative_to(folder).as_posix()) for path in paths]
    return {name: path for name, path in zip(names, paths) if not re.search(r"(^|/)\.", name)}


def content(path: Path, torn: bool = False):
    """What is in a file, but for what differs from run to run; None where that is not looked at.

    torn: a last line may be half-written. Raises ValueError where more is.
    """
    data = path.read_bytes()
    if path.name == "ledger.jsonl" and not torn:
        return plain(select(Ledger(path))[1])
    if path.suffix in (".json", ".jsonl"):
        lines = data.splitlines(keepends=True) if path.suffix == ".jsonl" else [data]
        whole = [line for line in lines if line.endswith(b"\n") or path.suffix == ".json" or not torn]
        return [plain(json.loads(re.sub(rb"index-\w+", b"index", line))) for line in whole]
    if path.suffix == ".safetensors":
        try:
            safetensors.deserialize(data)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from None
    elif path.suffix == ".html" and not data.rstrip().endswith(b"</html>"):
        raise ValueError("no end")
    return data if path.suffix in (".safetensors", ".txt") else None


def plain(value):
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if not TIMES.fullmatch(key)}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def half_written(folder: Path) -> str:
    """The first file that is neither absent nor whole; a checkpoint is judged by going on from it."""
    for name, path in files_of(folder).items():
        try:
            content(path, torn=True) if "checkpoint-" not in name else None
        except ValueError:
            return f"{name} is half-written"
    told = folder / "export" / "export.json"
    if (folder / "export").exists() or (folder / ".export.old").exists():
        for name, file in json.loads(told.read_text())["files"].items() if told.exists() else [("export.json", {})]:
            if not file or fetch.sha256_of(told.parent / name) != file["sha256"]:
                return f"export/{name} is not what export.json says, or is missing"
    return ""


def differences(base: Path, cut: Path, kills: int = 0) -> str:
    """What the folder of a killed run has that an uninterrupted one has not, and the other way round."""
    here, there = files_of(base), files_of(cut)
    if here.keys() != there.keys():
        return f"missing: {sorted(here.keys() - there.keys())[:3]}, too many: {sorted(there.keys() - here.keys())[:3]}"
    for name, path in here.items():
        try:
            if content(path) != content(there[name]):
                return f"{name} differs from that of an uninterrupted run"
        except ValueError:
            return f"{name} holds a damaged line"
    hidden = [path for path in cut.rglob(".*") if path.suffix != ".lock"]
    hidden = [path for path in hidden if not (base / path.relative_to(cut)).exists()]
    left = [path.name for path in hidden if path.is_dir()] or [path.name for path in hidden][kills:]
    return half_written(cut) or (f"left behind: {left[:3]} and {len(left)} in all" if left else "")


# a full disk


def write_ledger(folder: Path, work: Path, version: int) -> None:
    for at in range(3):
        Ledger(folder / "ledger.jsonl").append({"kind": "eval", "at": [version, at], "text": "x" * 9000})


def write_targets(folder: Path, work: Path, version: int) -> None:
    with TargetFile(folder / "targets.jsonl", {"by": "faults"}) as file:
        for at in range(6 * version + 6):
            file.keep({"example_id": f"e{at}", "text": "y" * 3000})


def write_wheel(folder: Path, work: Path, version: int) -> None:
    """A wheel's folder into the cache; the download is a copy, and counted, so that no network is needed."""
    os.environ["RECR1_CACHE"] = str(folder)
    wheel, target = work / f"faults-{version}.whl", folder / f"model-{version}"
    if not wheel.exists():
        made = work / f"{os.getpid()}.whl"
        with zipfile.ZipFile(made, "w") as zipped:
            [zipped.writestr(zipfile.ZipInfo(f"model/part-{at}"), bytes(40_000)) for at in range(4)]
        made.replace(wheel)

    def copy(wanted, place: Path) -> Path:
        with (work / "downloads").open("a") as log:
            log.write(".")
        return Path(shutil.copy(wheel, place))

    fetch._download, fetch.need_space = copy, lambda *_: None  # the disk is found to be full while it is written
    wanted = fetch.Asset("faults", "1", fetch.sha256_of(wheel), wheel.stat().st_size, "model/", 160_000)
    fetch.fetch_folder(wanted, target)


def write_folder(folder: Path, work: Path, version: int) -> None:
    def two_files(made: Path) -> None:
        for name in "ab":
            (made / name).write_bytes(bytes([version]) * 30_000)

    place_folder(folder / "two", two_files)


def write_index(folder: Path, work: Path, version: int) -> None:
    BM25Retriever.build(world(work)[1].items[version:]).save(folder / "bm25")


WRITES: dict[str, Callable[[Path, Path, int], object]] = {  # (folder, work, version 0 or 1)
    "ledger": write_ledger,
    "target file": write_targets,
    "one file": lambda folder, work, version: atomic_write(folder / "file.txt", str(version) * 50_000),
    "one folder": write_folder,
    "adapter": lambda folder, work, version: save_adapter(policy_of(world(work)[0], version), folder / "adapter"),
    "BM25 index": write_index,
    "checkpoint": lambda folder, work, version: run_grpo(folder, work, steps=4 + 4 * version),
    "export": run_export,
    "cache": write_wheel,
}


def disk(tally: Tally, count: int, seed: int, work: Path) -> None:
    rng, kinds = random.Random(f"disk/{seed}"), list(WRITES)
    if error := Child(small_disk, work).result()[1]:
        raise Skipped(error)
    for number, kind in enumerate(kinds[:count] + rng.choices(kinds, k=max(0, count - len(kinds)))):
        told, error, _ = Child(disk_trial, kind, rng.random(), work, work / f"disk-{number}").result()
        tally.add(kind, error or told)


def disk_trial(kind: str, share: float, work: Path, folder: Path) -> str:
    """Write, fill the disk but for a share of what that took, write again, make room, write again."""
    write, base = WRITES[kind], folder.with_name(f"{folder.name}-base")
    for place in (base, folder):
        place.mkdir()
    for version in (0, 1):
        write(base, work, version)
    small_disk(folder)
    write(folder, work, 0)
    old, error, filler = bytes_of(folder), None, folder / ".filler"
    room = int(share * max(map(len, old.values())))
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))
    try:
        write(folder, work, 1)
    except Exception as problem:
        error = problem
    kept, torn = bytes_of(folder), half_written(folder)
    filler.unlink()
    if error is None and share < 0.01:
        return "no error on a full disk"
    if error is not None:
        if not isinstance(error, RecR1Error) or "\n" in str(error):
            return f"no sentence but {type(error).__name__}: {error}"
        if kind.startswith(("target", "ledger")):  # rows before the full one stay; the next start cuts a torn one off
            kept = {name: data[: len(old[name])] for name, data in kept.items()}
        changed = [name for name in {**old, **kept} if old.get(name) != kept.get(name)]
        if kind != "checkpoint" and changed or torn:
            return f"after the error these are not as they were: {changed[:3]} {torn}"
    write(folder, work, 1)
    return differences(base, folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files_of(folder).items()}


def small_disk(folder: Path) -> None:
    """Mount a file system of 24 MB there, seen by this process alone and gone with it. Raises OSError."""
    libc, ids = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    mounts, user, private = 0x00020000, 0x10000000, (1 << 18) | (1 << 14)
    if libc.unshare(mounts | (user if ids[0] else 0)) == 0:
        if ids[0]:
            Path("/proc/self/setgroups").write_text("deny")
            for name, own in zip(("uid_map", "gid_map"), ids):
                Path(f"/proc/self/{name}").write_text(f"0 {own} 1")
        libc.mount(b"none", b"/", None, private, None)
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=24m") == 0:
            return
    raise OSError(ctypes.get_errno(), "no file system can be mounted here")


# several at once


def together(tally: Tally, count: int, seed: int, work: Path) -> None:
    crowds = {"ledger": crowd_ledger, "target file": crowd_targets, "cache": crowd_cache, "run folder": crowd_run}
    world(work)
    for number in range(count):
        name, many = list(crowds)[number % 4], (2, 4)[number // 4 % 2]
        (folder := work / f"crowd-{number}").mkdir()
        tally.add(f"{name}, {many} processes", crowds[name](folder, work, many))


def crowd(act: Callable[[int], object], many: int, told: str = "") -> str:
    """What the first of so many processes raised that is not one sentence with `told` in it, "" for nothing."""
    answers = [child.result() for child in [Child(act, number) for number in range(many)]]
    bad = [error for _, error, sentence in answers if error and not (told and sentence and told in error)]
    return bad[0] if bad else ""


def crowd_lines(file: Path, keep: Callable[[dict], object], many: int) -> str:
    """Twenty rows of each process into one file; who is told that another one writes tries again."""

    def write(number: int) -> None:
        left = 20
        while left:
            try:
                keep({"kind": "eval", "example_id": f"{number}-{left}", "text": "x" * 5000})
                left -= 1
            except RecR1Error as error:
                if "another run" not in str(error):
                    raise
                time.sleep(0.002 * (1 + number))

    wrong = crowd(write, many)
    found = sorted(row["example_id"] for row in map(json.loads, file.open()) if "example_id" in row)
    whole = found == sorted(f"{number}-{1 + at}" for number in range(many) for at in range(20))
    return wrong or ("" if whole else f"{len(found)} rows of {20 * many}")


def crowd_ledger(folder: Path, work: Path, many: int) -> str:
    return crowd_lines(folder / "ledger.jsonl", lambda row: Ledger(folder / "ledger.jsonl").append(row), many)


def crowd_targets(folder: Path, work: Path, many: int) -> str:
    def keep(row: dict) -> None:
        with TargetFile(folder / "targets.jsonl", {"by": "faults"}) as file:
            file.keep(row)

    return crowd_lines(folder / "targets.jsonl", keep, many)


def crowd_cache(folder: Path, work: Path, many: int) -> str:
    (work / "downloads").write_text("")
    wrong = crowd(lambda number: write_wheel(folder, work, 0), many)
    loads, whole = len((work / "downloads").read_text()), fetch.is_whole(folder / "model-0")
    return wrong or ("" if whole and loads == 1 else f"{loads} downloads, whole: {whole}")


def crowd_run(folder: Path, work: Path, many: int) -> str:
    """On one run folder only one trains at a time: the others are told, or wait."""

    def train(number: int) -> None:
        def watch(curve, val):
            with (folder / "steps").open("a") as log:
                log.write(str(number))

        run_grpo(folder, work, watch=watch)

    wrong = crowd(train, many, told=str(folder))
    steps = (folder / "steps").read_text()
    turns = len(re.findall(r"(.)\1*", steps))
    mixed = f"{turns} turns of {many} processes in the steps of one run ({steps[:40]})" if turns > many else ""
    return wrong or mixed
