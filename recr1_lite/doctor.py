"""Is this machine ready? One line per check, and what to do where it is not. Contacts no other machine."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from recr1_lite import assets
from recr1_lite.common import RecR1Error
from recr1_lite.policy import backend
from recr1_lite.profiles import get_profile

GB = 1e9
MIN_PYTHON = (3, 11)
INSTALL = "run `pip install -r requirements.txt`"


class Check(NamedTuple):
    """What one check says. ok: "ok", "warn" (works, or partly) or "fail" (nothing will run). advice: "" when ok."""

    name: str
    ok: str
    found: str
    advice: str = ""


def check() -> list[Check]:
    """Every check in turn; one that breaks is reported as a trouble of its own, never as an exception."""
    checks = []
    for look in (python, packages, device, bf16, memory, disk, cache, network, profile, unsloth):
        try:
            checks.append(look())
        except RecR1Error as error:
            checks.append(Check(look.__name__, "fail", str(error)))
        except ModuleNotFoundError as error:
            checks.append(Check(look.__name__, "fail", f"the package {error.name} is missing", INSTALL))
        except Exception as error:
            problem = f"the check itself failed ({type(error).__name__}: {error})"
            checks.append(Check(look.__name__, "warn", problem, "report it with this line"))
    return checks


def print_doctor(write: Callable[[str], object] = print) -> int:
    """Print a line per check and a verdict; 1 if any check failed, else 0, for use as the exit status."""
    checks = check()
    for item in checks:
        advice = f"; {item.advice}" if item.advice else ""
        write(f"{item.ok:<5}{item.name:<10}{' '.join((item.found + advice).split())}")
    failed, warned = (", ".join(item.name for item in checks if item.ok == ok) for ok in ("fail", "warn"))
    ready = "ready" + (f", but read the advice on {warned}" if warned else "")
    write(f"not ready: mend {failed} first" if failed else ready)
    return 1 if failed else 0


def python() -> Check:
    version = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        return Check("python", "fail", version, "make the environment with Python 3.11 or later")
    return Check("python", "ok", f"{version} (tested on 3.11)")


def packages() -> Check:
    """Installed versions against the pins of requirements.txt, else the package's own requirements."""
    wanted, missing, other = requirements(), [], []
    if not wanted:
        return Check("packages", "warn", "no list of tested versions here", INSTALL)
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                other.append(f"{requirement.name} {version} (tested {requirement.specifier})")
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
    if troubles := missing or other:
        more = f" and {len(troubles) - 4} more" if len(troubles) > 4 else ""
        ok, what = ("fail", "missing") if missing else ("warn", "not as tested")
        return Check("packages", ok, f"{what}: {', '.join(troubles[:4])}{more}", INSTALL)
    return Check("packages", "ok", f"all {len(wanted)} as tested")


def requirements(folder: Path = Path(__file__).parents[1]) -> list:
    """The packaging Requirements that hold on this machine: of a checkout, else of the installed package."""
    from packaging.requirements import Requirement

    try:
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        names = {name.name for name in importlib.metadata.distributions()}
        lines = (importlib.metadata.requires("recr1_lite") or []) if "recr1_lite" in names else []
    lines = [line.partition(" #")[0] for line in lines if line.strip() and line[0] not in "#-"]  # no option of pip
    wanted = [Requirement(line) for line in lines]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def device() -> Check:
    """What computes: CUDA, MPS, or the CPU's cores."""
    try:
        import torch
    except Exception as error:
        return Check("device", "fail", f"torch does not load ({type(error).__name__}: {error})", INSTALL)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Check("device", "ok", f"CUDA: {card.name}, {card.total_memory / GB:.0f} GB, and {cores} CPU cores")
    if torch.backends.mps.is_available():
        return Check("device", "ok", f"MPS (Apple GPU), and {cores} CPU cores")
    if shutil.which("nvidia-smi"):
        said = f"an NVIDIA driver is here, but torch {torch.__version__} sees no GPU"
        return Check("device", "warn", said, "install a CUDA build of torch to use it")
    return Check("device", "ok", f"CPU, {cores} core{'s' * (cores > 1)}, torch {torch.__version__}")


def bf16() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("bf16", "ok", "not used: float32 is the faster one on a CPU")
    native = torch.cuda.get_device_capability(0) >= (8, 0)
    return Check("bf16", "ok", "native" if native else "not native on this GPU: float16 is used")


def memory() -> Check:
    """Free memory, within a container's limit where there is one."""
    import psutil

    free = min(psutil.virtual_memory().available, _container_room())
    said = f"{free / GB:.1f} GB free"
    for limit, ok, instead in ((2, "fail", ""), (4, "warn", ", or set RECR1_PROFILE=smoke")):  # GB: smoke, cpu
        if free < limit * GB:
            return Check("memory", ok, said, f"close programs until {limit} GB are free{instead}")
    return Check("memory", "ok", said)


def disk() -> Check:
    """Free disk at the cache, and whether it can be written."""
    folder = assets.cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    need = sum([*(asset.space for asset in assets.ASSETS.values()), *assets.MODELS.values()]) if _cold() else 0
    said, move = f"{free / GB:.1f} GB free at the cache {folder}", "or set RECR1_CACHE to a folder on a larger disk"
    if free < need:
        return Check("disk", "fail", said, f"free {need / GB:.1f} GB, {move}")
    if not os.access(place, os.W_OK):
        advice = "set RECR1_CACHE to a folder that can be written"
        return Check("disk", "fail" if need else "warn", f"{said}, not writable", advice)
    if free < 2 * GB:
        return Check("disk", "warn", said, f"runs keep checkpoints: free 2 GB, {move}")
    return Check("disk", "ok", said)


def cache() -> Check:
    """Whether model and data are there already."""
    missing = _cold()
    if not missing:
        return Check("cache", "ok", "warm: model and data are here, no network needed")
    said = f"cold: {', '.join(missing)} not fetched yet"
    if assets.offline():
        advice = "unset RECR1_OFFLINE and HF_HUB_OFFLINE once, and run `python -m recr1_lite prepare`"
        return Check("cache", "fail", f"{said}, and offline is set", advice)
    return Check("cache", "warn", said, "run `python -m recr1_lite prepare` (or let the demo do it)")


def network() -> Check:
    """The settings that decide about the network; nothing is contacted."""
    forbidden = " and ".join(name for name in ("RECR1_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name))
    known = ("PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT")
    routes = ", ".join(name for name in known if os.environ.get(name))  # names only: an address can hold a password
    said = (f"{forbidden} set" if forbidden else "allowed") + (f", through {routes}" if routes else "")
    if importlib.util.find_spec("pip") is None:
        advice = "run `python -m ensurepip`: assets come as wheels"
        return Check("network", "fail" if _cold() else "warn", f"{said}, but pip is missing", advice)
    return Check("network", "ok", f"{said}; not tried")


def profile() -> Check:
    """The profile that a run without further words takes."""
    why = "RECR1_PROFILE" if os.environ.get("RECR1_PROFILE") else "detected"
    return Check("profile", "ok", f"{get_profile().name} ({why})")


def unsloth() -> Check:
    """unsloth belongs on CUDA machines only."""
    import torch

    here, cuda = importlib.util.find_spec("unsloth") is not None, torch.cuda.is_available()
    if here and not cuda:
        advice = "run `pip uninstall unsloth torchvision`: here it stops, and can break transformers"
        return Check("unsloth", "warn", "present without an accelerator", advice)
    if cuda and (why := backend.unsloth_missing()):
        what = "mend that" if here else "run `pip install -r requirements-gpu.txt`"
        return Check("unsloth", "warn", f"transformers and peft are used: {why}", f"{what} for faster training")
    return Check("unsloth", "ok", "used" if here else "absent, not needed without CUDA")


def _cold() -> list[str]:
    """Names of the assets that are not whole in the cache."""
    folder = assets.cache_folder()

    def whole(name: str) -> bool:
        if name in assets.MODELS:
            return (folder / "models" / name / "files.json").is_file()
        path = folder / "files" / assets.ASSETS[name].file_name
        return path.is_file() and path.stat().st_size == assets.ASSETS[name].size

    return [name for name in {**assets.ASSETS, **assets.MODELS} if not whole(name)]


def _container_room() -> float:
    """Bytes left under the memory limit of this container (cgroup 2), or infinity."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return float(limit) - float(used)
    except (OSError, ValueError):  # no container, or the word "max": no limit
        return float("inf")
