"""Shared fixtures: real data to check against, where a checkout has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data kept outside the project: RECR1_SHARED_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("RECR1_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder.name}; set RECR1_SHARED_DATA to check against it")
    return folder
