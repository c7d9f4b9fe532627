"""The one progress bar: there while somebody may be watching, gone when the work is done."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(*args, progress: bool = True, **options) -> tqdm:
    """A tqdm bar on a terminal and under a notebook's cell, that is wiped at the end; nothing in a log file."""
    watched = sys.stderr is not None and sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*args, leave=False, delay=1, disable=not (progress and watched), **options)
