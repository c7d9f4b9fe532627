"""The curves of a run, redrawn in a notebook while it trains."""

from __future__ import annotations

import time
from collections.abc import Mapping

from IPython.display import display

from recr1_lite import plots


class LiveCurves:
    """Give it to a trainer as `watch`: one figure under the cell, drawn anew as the steps come in.

    steps: of the whole run, for the axis. baselines: name -> Interval or number, measured on the validation
    examples. every: seconds between two drawings at least (drawing costs a fraction of one); the first
    and the last step, and each validation, are always drawn. It reads the rows only, so a resumed run draws
    its whole past.
    """

    def __init__(self, steps: int, baselines: Mapping | None = None, metric: str = "ndcg@100", every: float = 15.0):
        self.steps, self.baselines, self.metric, self.every = steps, dict(baselines or {}), metric, every
        self.handle, self.drawn, self.validations = None, float("-inf"), -1

    def __call__(self, curve: list[dict], val: list[dict]) -> None:
        last = bool(curve) and curve[-1]["step"] >= self.steps
        if time.monotonic() - self.drawn < self.every and len(val) == self.validations and not last:
            return
        picture = plots.dashboard(curve, val, self.baselines, self.metric, self.steps)
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.drawn, self.validations = time.monotonic(), len(val)
