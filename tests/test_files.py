"""Where runs go, and folders that are still free."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from recr1_lite.common import RecR1Error, atomic_write, free_folder, place_folder


def test_free_folder_counts_on(tmp_path):
    first = tmp_path / "demo-shop-cpu-seed0"
    for number in ("", "-2", "-3"):
        assert free_folder(first).name == f"demo-shop-cpu-seed0{number}"
        free_folder(first).mkdir()
        assert free_folder(first, last=True).name == f"demo-shop-cpu-seed0{number}"
    assert free_folder(tmp_path / "none", last=True) == tmp_path / "none"


def test_atomic_write_leaves_nothing_when_it_fails(tmp_path):
    target = tmp_path / "page.html"
    atomic_write(target, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(target, "\ud800")
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_is_swapped_in_whole_or_the_old_one_stays(tmp_path, monkeypatch):
    folder, rename = tmp_path / "adapter", Path.rename

    def write(text: str):
        return lambda work: (work / "weights").write_text(text)

    def second_fails(self, target):
        if self.suffix != ".old" and target == folder:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    place_folder(folder, write("old"))
    with monkeypatch.context() as patch, pytest.raises(RecR1Error, match="adapter cannot be written .No space"):
        patch.setattr(Path, "rename", second_fails)
        place_folder(folder, write("new"))
    assert (folder / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [folder]
    place_folder(folder, write("new"))
    assert (folder / "weights").read_text() == "new" and list(tmp_path.iterdir()) == [folder]


KILLED = """
import os, sys
from pathlib import Path
from recr1_lite import common
rename = Path.rename
def deadly(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
if sys.argv[2] == "rename":
    Path.rename = deadly  # the old folder is out of its place, the new one not yet in it
os.replace = lambda *_: os.kill(os.getpid(), 9)
def write(work):
    (work / "weights").write_text("new")
    sys.argv[2] == "write" and os.kill(os.getpid(), 9)
path = Path(sys.argv[1])
common.place_folder(path, write) if sys.argv[2] != "file" else common.atomic_write(path / "weights", "new")
"""


@pytest.mark.parametrize("moment", ["write", "rename", "file"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, moment):
    folder = place_folder(tmp_path / "adapter", lambda work: (work / "weights").write_text("old"))
    foreign = tmp_path / f".adapter~{platform.node()}~{os.getpid()}~busy"  # of a process that lives
    foreign.mkdir()
    for _ in range(3):
        dead = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], cwd=Path(__file__).parents[1])
        assert dead.returncode == -9
    assert sum(1 for path in tmp_path.rglob("*") if "~" in path.name and path != foreign) <= 2
    if moment != "rename":
        assert (folder / "weights").read_text() == "old"
    with pytest.raises(ZeroDivisionError):  # and what was there is there again, whatever comes of the write
        place_folder(folder, lambda work: 1 / 0)
    assert (folder / "weights").read_text() == "old" and foreign.is_dir()
    atomic_write(folder / "weights", "newer")
    assert not [path for path in tmp_path.rglob("*") if "~" in path.name and path != foreign]
