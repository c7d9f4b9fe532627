"""What the machine is: device, driver, versions, the kit's choice of backend, the doctor's lines."""

import importlib.metadata
import os
from pathlib import Path

from gpu_cells import Cell, Machine, smi

PACKAGES = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton", "vllm", "xformers", "accelerate", "datasets", "numpy")


def cells(here: Machine) -> list[Cell]:
    settings = {"device": here.name, "dtype": here.dtype}
    return [Cell("environment/machine", settings, 30, ("torch", "transformers"), backend="")]


def measure(settings: dict, work: Path, stop_at: float) -> dict:
    """The row of the machine. A library that does not import is a finding, not an error."""
    import torch

    from recr1_lite import doctor, ledger
    from recr1_lite.common import RecR1Error
    from recr1_lite.policy import backend
    from recr1_lite.profiles import PROFILES

    lines: list[str] = []
    doctor.print_doctor(lines.append)
    verdicts = {}
    for name in ("t4", "gpu24", "paper"):
        try:
            verdicts[name] = backend.choose(PROFILES[name])._asdict()
        except RecR1Error as error:
            verdicts[name] = {"error": str(error)}
    row = {
        "nvidia_smi": smi("name,memory.total,memory.used"),
        "torch_cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "doctor": lines,
        "backend": verdicts,
        "versions": ledger.versions() | {name: version(name) for name in PACKAGES},
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        row |= {"memory": card.total_memory, "capability": [card.major, card.minor]}
        row["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    return row


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
