"""Where runs go, and folders that are still free."""

from __future__ import annotations

import pytest

from recr1_lite.common import atomic_write, free_folder


def test_free_folder_counts_on(tmp_path):
    first = tmp_path / "demo-cpu-seed0"
    assert free_folder(first) == first
    first.mkdir()
    assert free_folder(first).name == "demo-cpu-seed0-2"
    (tmp_path / "demo-cpu-seed0-2").mkdir()
    assert free_folder(first).name == "demo-cpu-seed0-3"


def test_atomic_write_leaves_nothing_when_it_fails(tmp_path):
    target = tmp_path / "page.html"
    atomic_write(target, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(target, "\ud800")
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]
