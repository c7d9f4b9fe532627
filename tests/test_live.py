"""The live figure: drawn when something is new, one display for a whole run, nothing but the rows read."""

from __future__ import annotations

from recr1_lite.report import curves as live


class Handle:
    def __init__(self):
        self.pictures = []

    def update(self, picture):
        self.pictures.append(picture)


def test_it_draws_the_first_the_validations_and_the_last(monkeypatch):
    shown, clock = [], [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live, "display", lambda picture, display_id: shown.append(Handle()) or shown[-1])
    curves = live.LiveCurves(4, {"raw request": 0.2}, every=15)
    point = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 8}
    rows = [{"step": step, "reward": 0.1 * step, "seconds": 1.0} for step in range(1, 5)]
    curves([], [{"step": 0, **point}])
    assert len(shown) == 1 and not shown[0].pictures
    curves(rows[:1], [{"step": 0, **point}])
    assert not shown[0].pictures  # a second later there is nothing worth a drawing
    clock[0] = 20.0
    curves(rows[:2], [{"step": 0, **point}])
    assert len(shown[0].pictures) == 1
    curves(rows[:3], [{"step": 0, **point}, {"step": 3, **point}])  # a validation
    curves(rows, [{"step": 0, **point}, {"step": 3, **point}])  # the end
    assert len(shown) == 1 and len(shown[0].pictures) == 3
    assert shown[0].pictures[-1]._repr_png_().startswith(b"\x89PNG")
