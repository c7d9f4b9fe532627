"""doctor on broken machines, made by settings and stand-ins; it must say what to do and never raise."""

import os
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from recr1_lite import assets, doctor
from recr1_lite.common import RecR1Error
from recr1_lite.policy import backend


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """A machine with no settings and an empty cache."""
    routes = ("PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")
    for name in ("RECR1_OFFLINE", "HF_HUB_OFFLINE", "RECR1_PROFILE", *routes):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RECR1_CACHE", str(tmp_path / "cache"))


def warm(folder):
    """A list in every model's folder, and every other asset in its size."""
    for name in assets.MODELS:
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "files.json").write_text("{}")
    (folder / "files").mkdir()
    for name in {*assets.ASSETS} - {*assets.MODELS}:
        path = folder / "files" / assets.ASSETS[name].file_name
        path.touch()
        os.truncate(path, assets.ASSETS[name].size)


def test_one_line_a_check_and_advice_with_every_trouble():
    lines = []
    doctor.print_doctor(lines.append)
    checks = doctor.check()
    names = "python packages device bf16 memory disk cache network profile unsloth"
    assert [item.name for item in checks] == names.split()
    assert len(lines) == len(checks) + 1 and not any("\n" in line for line in lines)
    assert all(item.advice for item in checks if item.ok == "warn")
    assert not any(item.advice for item in checks if item.ok == "ok")


@pytest.mark.parametrize(
    "ok, status, verdict",
    [("ok", 0, "ready"), ("warn", 0, "ready, but read the advice on toy"), ("fail", 1, "not ready: mend toy first")],
)
def test_only_a_failure_gives_status_1(monkeypatch, ok, status, verdict):
    item = doctor.Check("toy", ok, "found", "" if ok == "ok" else "do it")
    monkeypatch.setattr(doctor, "check", lambda: [item])
    lines = []
    assert doctor.print_doctor(lines.append) == status
    assert lines[-1] == verdict and lines[0].endswith("found" if ok == "ok" else "found; do it")


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    for name, problem in (
        ("memory", PermissionError("no entry")),
        ("profile", RecR1Error("there is no profile 'huge'; choose one of smoke, cpu")),
        ("bf16", ModuleNotFoundError("No module named 'jax'", name="jax")),
    ):
        monkeypatch.setattr(doctor, name, Mock(side_effect=problem, __name__=name))
    found = {item.name: item for item in doctor.check()}
    assert found["memory"].ok == "warn" and "PermissionError: no entry" in found["memory"].found
    assert found["profile"].ok == "fail" and "'huge'" in found["profile"].found
    assert found["bf16"].ok == "fail" and "jax" in found["bf16"].found


def test_pins_that_hold_on_this_machine_are_read(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "--extra-index-url https://example.org/simple\n# a comment\n\npandas>=1\n"
        'numpy==1.0  # pinned\nwinonly==1 ; sys_platform == "nowhere"\n'
    )
    assert [str(requirement) for requirement in doctor.requirements(tmp_path)] == ["pandas>=1", "numpy==1.0"]
    assert doctor.requirements(tmp_path / "no checkout") != []  # those of the installed package


def test_an_old_python_fails(monkeypatch):
    assert doctor.python().ok == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert doctor.python().ok == "fail" and "3.11" in doctor.python().advice


@pytest.mark.parametrize(
    "pins, ok, found",
    [
        (["numpy>=1", "pandas>=1"], "ok", "all 2 as tested"),
        (["numpy==0.1"], "warn", "not as tested: numpy"),
        (["numpy>=1", "no-such-package-anywhere==1"], "fail", "missing: no-such-package-anywhere"),
        ([], "warn", "no list"),
    ],
)
def test_packages_are_held_against_the_pins(monkeypatch, pins, ok, found):
    monkeypatch.setattr(doctor, "requirements", lambda: [Requirement(pin) for pin in pins])
    item = doctor.packages()
    assert item.ok == ok and found in item.found and ("requirements.txt" in item.advice) == (ok != "ok")


def test_a_cold_cache_warns_and_offline_too_fails(monkeypatch, tmp_path):
    assert doctor.cache().ok == "warn" and "recr1_lite prepare" in doctor.cache().advice
    monkeypatch.setenv("RECR1_OFFLINE", "1")
    assert doctor.cache().ok == "fail" and "RECR1_OFFLINE" in doctor.network().found
    warm(tmp_path / "cache")
    assert doctor.cache().ok == "ok"
    next((tmp_path / "cache" / "files").iterdir()).write_bytes(b"cut short")
    assert doctor.cache().ok == "fail"


def test_disk_is_asked_for_more_when_the_cache_is_cold(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    assert doctor.disk().ok == "fail" and "RECR1_CACHE" in doctor.disk().advice
    warm(tmp_path / "cache")
    assert doctor.disk().ok == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5e9))
    assert doctor.disk().ok == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor.disk().ok == "warn" and "not writable" in doctor.disk().found


@pytest.mark.parametrize("free, ok", [(1e9, "fail"), (3e9, "warn"), (9e9, "ok")])
def test_memory_has_two_limits(monkeypatch, free, ok):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    monkeypatch.setattr(doctor, "_container_room", lambda: free)
    assert doctor.memory().ok == ok


def test_network_names_settings_but_never_their_values(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@index.example/simple")
    item = doctor.network()
    assert "PIP_INDEX_URL" in item.found and "secret" not in " ".join(item)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.network().ok == "fail" and "ensurepip" in doctor.network().advice


@pytest.mark.parametrize(
    "installed, cuda, missing, ok, told",
    [
        (True, False, "", "warn", "uninstall"),
        (True, True, "", "ok", ""),
        (True, True, "its import fails (ImportError: triton)", "warn", "ImportError: triton"),
        (False, True, "it is not installed", "warn", "requirements-gpu.txt"),
    ],
)
def test_unsloth_belongs_on_cuda_only(monkeypatch, installed, cuda, missing, ok, told):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(backend, "unsloth_missing", lambda: missing)
    item = doctor.unsloth()
    assert item.ok == ok and told in item.found + item.advice
