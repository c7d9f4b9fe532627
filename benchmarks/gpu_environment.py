"""What the machine is: device, driver, versions, the kit's choice of backend, the doctor's lines."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from gpu_book import Cell, Machine, smi

PACKAGES = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton", "vllm", "xformers", "accelerate", "datasets", "numpy")


def cells(here: Machine) -> list[Cell]:
    return [
        Cell(
            "environment/machine", {"device": here.name, "dtype": here.dtype}, 30, ("torch", "transformers"), backend=""
        )
    ]


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of the machine. A library that does not import is a finding, not an error."""
    import torch

    from recr1_lite import doctor, ledger

    lines: list[str] = []
    doctor.print_doctor(lines.append)
    found = {
        "device": ledger.device(),
        "driver": smi("driver_version"),
        "nvidia_smi": smi("name,memory.total,memory.used"),
        "torch_cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "doctor": lines,
        "backend": verdicts(),
        "versions": ledger.versions() | {name: version(name) for name in PACKAGES},
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {
            "memory": card.total_memory,
            "capability": [card.major, card.minor],
            "processors": card.multi_processor_count,
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def verdicts() -> dict:
    """What `backend.choose` says for each GPU profile, with its reasons."""
    from recr1_lite.common import RecR1Error
    from recr1_lite.policy import backend
    from recr1_lite.profiles import PROFILES

    found = {}
    for name in ("t4", "gpu24", "paper"):
        try:
            found[name] = backend.choose(PROFILES[name])._asdict()
        except RecR1Error as error:
            found[name] = {"error": str(error)}
    return found


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
