"""recr1_lite: Rec-R1 (arXiv 2503.24289) on one consumer GPU, or on a plain CPU."""

import logging
import os
import warnings

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# On a CPU bitsandbytes warns at import that an optional 4-bit kernel from the Hub is missing; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# bars are text here on purpose: a notebook keeps no widget
warnings.filterwarnings("ignore", message="IProgress not found")

# before anything imports transformers, peft or trl, which unsloth patches; without unsloth this is one look-up
from recr1_lite.policy.backend import unsloth_missing  # noqa: E402

unsloth_missing()
