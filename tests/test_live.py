"""The live figure: drawn when something is new, one display for a whole run, nothing but the rows read."""

from unittest.mock import Mock

from report_rows import spot

from recr1_lite.report import curves as live


def test_it_draws_the_first_the_validations_and_the_last(monkeypatch):
    shown, clock = Mock(), Mock(return_value=0.0)
    monkeypatch.setattr(live.time, "monotonic", clock)
    monkeypatch.setattr(live, "display", shown)
    curves, update = live.LiveCurves(4, {"raw request": 0.2}, every=15), shown.return_value.update
    rows = [{"step": step, "reward": 0.1 * step, "seconds": 1.0} for step in range(1, 5)]
    start, later = [{"step": 0, **spot(0.2)}], [{"step": step, **spot(0.2)} for step in (0, 3)]
    curves([], start)
    curves(rows[:1], start)
    assert shown.call_count == 1 and not update.called, "a second later there is nothing worth a drawing"
    clock.return_value = 20.0
    for drawn, (steps, val) in enumerate([(2, start), (3, later), (4, later)], start=1):  # time, a validation, the end
        curves(rows[:steps], val)
        assert update.call_count == drawn
    assert shown.call_count == 1 and update.call_args[0][0]._repr_png_().startswith(b"\x89PNG")
