"""Where runs go, and folders that are still free."""

from pathlib import Path

import pytest

from recr1_lite.common import atomic_write, free_folder, place_folder


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
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "rename", second_fails)
        place_folder(folder, write("new"))
    assert (folder / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [folder]
    place_folder(folder, write("new"))
    assert (folder / "weights").read_text() == "new" and list(tmp_path.iterdir()) == [folder]
