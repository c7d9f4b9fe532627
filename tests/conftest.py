"""Shared fixtures: real data to check against, where a checkout has it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data kept outside the project: RECR1_SHARED_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("RECR1_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder.name}; set RECR1_SHARED_DATA to check against it")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny random model and its tokenizer, saved as transformers saves them."""
    from tiny import save_tiny  # torch and all that: only for the tests that need it

    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real model's folder; made at first where the cache is cold, skipped where it is and offline is set."""
    from recr1_lite import assets
    from recr1_lite.common import RecR1Error

    try:
        return assets.model_folder()
    except RecR1Error as problem:
        if assets.offline():
            pytest.skip(str(problem))
        raise


@pytest.fixture
def network(monkeypatch) -> list[str]:
    """The hosts that somebody tried to reach since the test began; none is reached."""
    tried: list[str] = []

    def refuse(host, *_, **__):
        tried.append(str(host))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried
