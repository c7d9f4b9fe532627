"""What computes here, and in which number format: unsloth on a CUDA GPU, transformers + peft everywhere else.

unsloth patches trl, transformers and peft when it is imported, so it has to come before them: the package does that
as its first act where there is a GPU for it. A machine without unsloth pays nothing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import NamedTuple

from recr1_lite.common import RecR1Error
from recr1_lite.profiles import Profile

BFLOAT16_SINCE = (8, 0)  # compute capability: Ampere. A T4 (7.5) has none
UNSLOTH_SINCE = (7, 0)  # Volta

_missing = {"unsloth": "it was not looked for"}  # why it is not used; "" once it is imported


class Machine(NamedTuple):
    """The accelerator that a run would use. memory: bytes; both 0 without CUDA."""

    cuda: bool
    name: str = "CPU"
    memory: int = 0
    capability: tuple[int, int] = (0, 0)


class Backend(NamedTuple):
    """What a run gets. reasons: a sentence for each thing that was asked for and is not given."""

    name: str  # "unsloth" or "transformers"
    dtype: str
    vllm: bool
    reasons: tuple[str, ...]


def machine() -> Machine:
    """The first CUDA device that this process sees, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return Machine(False)
    card = torch.cuda.get_device_properties(0)
    return Machine(True, card.name, card.total_memory, (card.major, card.minor))


def choose(
    profile: Profile, wanted: str | None = None, found: Machine | None = None, missing: Mapping[str, str] | None = None
) -> Backend:
    """Backend and dtype for a profile on the machine `found` (default: this one).

    wanted: "unsloth" or "transformers", default RECR1_BACKEND, default the faster one that works. missing: why
    "unsloth" and "vllm" cannot be used, "" where they can; default: as they are here. Raises RecR1Error for another
    name, and where unsloth is insisted on and cannot be used.
    """
    wanted = wanted or os.environ.get("RECR1_BACKEND", "")
    if wanted not in ("", "unsloth", "transformers"):
        raise RecR1Error(f"there is no backend {wanted!r}; set RECR1_BACKEND to unsloth or transformers, or unset it")
    found, missing, reasons = found or machine(), missing or _look_around(), []
    if not found.cuda:
        if wanted == "unsloth":
            raise RecR1Error("unsloth needs a CUDA GPU and there is none; unset RECR1_BACKEND")
        if profile.fast_inference:
            reasons.append("vLLM needs a CUDA GPU: rollouts come from the kit's own generation")
        return Backend("transformers", profile.dtype, False, tuple(reasons))
    dtype = profile.dtype
    if dtype == "bfloat16" and found.capability < BFLOAT16_SINCE:
        dtype = "float16"
        reasons.append(f"{found.name} (capability {'.'.join(map(str, found.capability))}) has no bfloat16: float16")
    why = "" if wanted == "transformers" else _against_unsloth(dtype, found, missing["unsloth"])
    if why and wanted == "unsloth":
        raise RecR1Error(f"unsloth cannot be used: {why}; mend that or unset RECR1_BACKEND")
    if why:
        reasons.append(f"transformers + peft instead of unsloth: {why}")
    name = "transformers" if why or wanted == "transformers" else "unsloth"
    vllm = profile.fast_inference and name == "unsloth" and not missing["vllm"]
    if profile.fast_inference and not vllm:
        why = missing["vllm"] or "it is used through unsloth only"
        reasons.append(f"rollouts without vLLM: {why}")
    return Backend(name, dtype, vllm, tuple(reasons))


def import_unsloth() -> None:
    """Import unsloth where CUDA is there and RECR1_BACKEND does not forbid it; a failure is kept, never raised."""
    _missing["unsloth"] = _try_unsloth()


def unsloth_missing() -> str:
    """Why this process does not use unsloth; "" where it does."""
    return _missing["unsloth"]


def _try_unsloth() -> str:
    """Why unsloth is not used; "" when it is imported."""
    if os.environ.get("RECR1_BACKEND") == "transformers":
        return "RECR1_BACKEND=transformers was set when the kit was imported"
    if importlib.util.find_spec("unsloth") is None:
        return "it is not installed (pip install -r requirements-gpu.txt)"
    found = machine()
    if not found.cuda or found.capability < UNSLOTH_SINCE:
        return "it needs a CUDA GPU of capability 7.0 or newer"
    from recr1_lite.assets.fetch import cache_folder

    # it would tell its makers of this machine, and write the trainers that it makes into the working folder
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder() / "unsloth_compiled"))
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # whatever it is, the run goes on without
        words = " ".join(str(error).split())[:200]
        return f"its import fails ({type(error).__name__}: {words})"
    return ""


def _against_unsloth(dtype: str, found: Machine, missing: str) -> str:
    if dtype == "float32":
        return "it trains in 16 bits and the profile wants float32"
    if found.capability < UNSLOTH_SINCE:
        return f"{found.name} is older than capability 7.0"
    return missing


def _look_around() -> dict[str, str]:
    vllm = "" if importlib.util.find_spec("vllm") else "it is not installed"
    return _missing | {"vllm": vllm}
