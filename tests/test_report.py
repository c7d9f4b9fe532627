"""The report: made from ledger rows alone, saying what those rows say and no more."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_rows import TRAIN, VAL, compare_row, eval_row, spot

from recr1_lite.common import RecR1Error
from recr1_lite.evaluate.evaluation import EvalResult, compare, show
from recr1_lite.ledger import Ledger
from recr1_lite.report import page as report_page
from recr1_lite.report.page import report_markdown, write_report
from recr1_lite.report.rows import main_table, select, tasks_table
from recr1_lite.search.metrics import mean_interval


@pytest.fixture
def ledger(tmp_path):
    """Two runs; the last one, r2, has the rows of a whole demo."""
    old = Ledger(tmp_path / "ledger.jsonl")
    old.append(eval_row("old method", 0.111, run="r1"))
    ledger, more = old.bind(run="r2", profile="smoke"), {"outcomes": {"ok": 49, "truncated": 1}}
    for method, mean in (("raw request", 0.23), ("zero-shot", 0.25), ("GRPO", 0.3)):
        ledger.append(eval_row(method, mean, "val"))
    for method, mean in (("raw request", 0.231), ("zero-shot", 0.252), ("GRPO <b>", 0.3)):
        old.append({"kind": "unseal", "task": "toy", "reason": f"evaluate {method}"})
        ledger.append(eval_row(method, mean, **more))
    ledger.append(compare_row("zero-shot", "raw request", 0.021, 0.03))
    ledger.append(compare_row("GRPO <b>", "raw request", 0.069, 0.02))
    ledger.append({"kind": "headroom", "n": 50, "rollouts": 8, "mean": spot(0.24), "best": spot(0.4)})
    end = {"seconds": 912.3, "stopped": "interrupted", "command": "python -m recr1_lite demo"}
    ledger.append(TRAIN | end | {"config": {"learning_rate": 2e-4}})
    committed = Ledger(Path(__file__).parents[1] / "data" / "runs" / "ledger.jsonl")  # before inspections had stages
    ledger.append({"kind": "inspect", "rows": committed.rows("inspect")[0]["rows"]})
    return old


@pytest.fixture
def write(ledger, tmp_path):
    """Writes the report of a run as `name` and reads it."""
    return lambda run=None, name="report.html": write_report(ledger, tmp_path / name, run).read_text(encoding="utf-8")


def test_the_page_holds_the_last_run_and_stands_alone(ledger, write):
    page = write(name="deep/report.html")
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())
    for expected in (
        "python -m recr1_lite demo",
        "smoke",
        "0.300 [0.270, 0.330]",
        "+0.069 [+0.049, +0.089]",
        "GRPO &lt;b&gt; is above raw request",
        "truncated 1",
        "zero-shot is not shown to differ from raw request",
        "That zero-shot differs from raw request on test",
        "40 steps in 912 s (interrupted).",
        "The test split was opened 3 times in this ledger, in 1 run; never in this one.",
        "What changed: ",
        "first hits, ",
        "learning_rate",
        "this run has one seed (0)",
    ):
        assert expected in text, expected
    assert "old method" not in text and "That GRPO &lt;b&gt; differs" not in text, "a shown difference is no claim"
    assert text.index("Sealed test") < text.index("Validation")
    assert "| GRPO <b> | 50 | 0.300 [0.270, 0.330] | +0.069 [+0.049, +0.089] | 1,234 | 2.5 |" in report_markdown(ledger)
    assert page.count("data:image/svg+xml;base64,") == 5
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import|<script|<b>[^<]*</h', page)


def test_a_run_can_be_named_and_an_unknown_one_is_refused(write, tmp_path):
    page = write("r1")
    assert "old method" in page and "zero-shot is" not in page
    with pytest.raises(RecR1Error, match="no run 'r9'; it has r1, r2"):
        write("r9", "other.html")
    assert not (tmp_path / "other.html").exists()


def test_an_empty_ledger_names_the_command_that_fills_it(tmp_path):
    with pytest.raises(RecR1Error, match="make demo.*python -m recr1_lite demo"):
        write_report(Ledger(tmp_path / "ledger.jsonl"), tmp_path / "report.md")
    assert not [*tmp_path.iterdir()]


def test_baselines_are_drawn_only_where_they_were_measured_on_as_many_requests(ledger, write, monkeypatch):
    monkeypatch.setattr(report_page, "as_bytes", lambda figure, form: b"")  # the titles tell enough
    assert "the last interval lies above raw request (0.230), zero-shot (0.250)" in write()
    fewer = TRAIN | {"val": [{**point, "n": 20} for point in VAL]}
    ledger.append(fewer | {"run": "r3"})
    ledger.append(eval_row("raw request", 0.23, "val", run="r3"))
    page = write()
    assert "in 40 steps" in page and "the last interval" not in page
    ledger.append(fewer | {"run": "r4", "baselines": {"raw request": spot(0.3, n=20)}})
    assert "the last interval lies around raw request (0.300)" in write()


def test_what_a_resumed_run_told_twice_counts_once_the_last_time(ledger, write):
    room = {"kind": "headroom", "run": "r5", "n": 4, "rollouts": 8, "mean": spot(0.2), "best": spot(0.4)}
    for mean, stopped in ((0.23, "interrupted"), (0.5, "finished")):
        ledger.append(eval_row("raw request", mean, "val", run="r5"))
        ledger.append(room | {"seconds": 5.0})
        ledger.append(TRAIN | {"run": "r5", "stopped": stopped, "seconds": 9.0, "val": []})
    text = write(name="report.md")
    for once in ("## Headroom before training", "## Training: GRPO", "| raw request on val |", "| headroom check |"):
        assert text.count(once) == 1, once
    assert "| all together |  |  | 16.5 |" in text and "(finished)" in text and "(interrupted)" not in text
    assert "| raw request | 50 | 0.500 [0.470, 0.530] |" in report_markdown(ledger)
    ledger.append(room | {"task": "another"})
    assert write(name="report.md").count("## Headroom before training") == 2, "of another task it is another thing"


def test_trainings_of_one_method_with_other_seeds_stand_apart(ledger, write):
    for seed in (0, 1, 1):  # the last one was resumed
        ledger.append(TRAIN | {"run": "r6", "seed": seed})
        ledger.append(eval_row(f"GRPO, seed {seed}", 0.2 + seed / 10, run="r6", seed=seed))
    trained = [row["method"] for row in select(ledger)[1] if row["kind"] == "train"]
    assert trained == ["GRPO, seed 0", "GRPO, seed 1"]
    assert "## Training: GRPO, seed 1" in write(name="report.md")


def test_two_runs_of_one_name_stay_apart(ledger, write):
    for run_id, mean in (("a1", 0.13), ("b2", 0.21)):
        book = ledger.bind(run="mine", run_id=run_id)
        book.append({"kind": "unseal", "task": "toy", "reason": "every method"})
        book.append(eval_row("raw request", mean))
    assert "0.210 [" in write("mine") and "0.130 [" not in write("mine") and "0.130 [" in write("a1")
    assert "opened 5 times in this ledger, in 3 runs; once in this one" in " ".join(write("b2").split())


@pytest.fixture
def measured(tmp_path):
    """A ledger with two evaluations that hold their examples' values, and the two results."""
    ledger, rng = Ledger(tmp_path / "measured.jsonl").bind(run="m1"), np.random.default_rng(1)
    results, values = [], rng.random(60)
    for name in ("raw request", "GRPO"):
        frame = pd.DataFrame({"example_id": [f"t{n}" for n in range(60)], "ndcg@100": values, "tokens": 3})
        frame = frame.assign(outcome="ok", cluster=[f"g{n // 3}" for n in range(60)])
        summary = {"ndcg@100": mean_interval(values, clusters=frame["cluster"])}
        results.append(EvalResult(name, "test", frame, summary, 1.0, "toy", "BM25Retriever"))
        ledger.append(results[-1].ledger_row())
        values = values + rng.normal(0.05, 0.1, 60)
    return ledger, results


def noted(ledger, difference):
    ledger.append(compare_row("GRPO", "raw request", 0, 0, difference=difference))


def told(ledger):
    """The difference that a report tells, and what it doubts."""
    rows, text = select(ledger)[1], report_markdown(ledger)
    (difference,) = main_table(rows).differences.values()
    assert difference.pop("shown") == (not difference["low"] <= 0 <= difference["high"]), (
        "one alone needs no correction"
    )
    assert show(difference, sign=True) in text
    return difference, " ".join(row["doubt"] for row in rows if row.get("doubt") and row["doubt"] in text)


def test_differences_are_worked_out_again_from_the_values_of_the_examples(measured, write, tmp_path):
    ledger, (raw, grpo) = measured
    fresh = compare(grpo, raw, ledger=ledger)
    again, doubt = told(ledger)
    assert again == pytest.approx(fresh._asdict(), abs=1e-6) and doubt == ""
    width = fresh.high - fresh.low
    noted(ledger, fresh._replace(low=fresh.low + 0.02 * width)._asdict())  # as another version of SciPy draws it
    assert told(ledger) == (again, "")
    for wrong in (fresh._replace(mean=fresh.mean + 1e-4), fresh._replace(low=fresh.low + width / 5)):
        noted(ledger, wrong._asdict())
        difference, doubt = told(ledger)
        assert difference == again
        assert doubt == (
            f"GRPO minus raw request on test was noted as {show(wrong, True)}, and the values of its examples give "
            f"{show(again, True)}, which is told here."
        )
        for name in ("page.html", "page.md"):
            assert doubt in write_report(ledger, tmp_path / name).read_text(encoding="utf-8")
    assert tasks_table(ledger)["vs raw request"].tolist() == ["", show(again, True)]
    noted(ledger, {"mean": None, "low": None, "high": None, "n": 60})
    assert told(ledger) == (again, ""), "what was not noted is worked out"


def test_without_values_that_can_be_paired_the_difference_stays_as_noted(measured):
    ledger, (raw, grpo) = measured
    row = grpo.ledger_row()
    noted(ledger, spot(0.5))
    ledger.append({key: value for key, value in row.items() if key != "values"})  # as in earlier versions
    assert told(ledger) == (spot(0.5), "")
    ledger.append(row | {"values": row["values"][:-9]})
    difference, doubt = told(ledger)
    assert difference == spot(0.5) and doubt.startswith("GRPO minus raw request on test is told as it was noted, for ")
    assert "values of GRPO on test are damaged" in doubt and doubt.count(".") == 1
    others = EvalResult("GRPO", "test", grpo.rows.assign(example_id=grpo.rows["example_id"] + "x"), grpo.summary)
    ledger.append(others.ledger_row() | {"task": "toy"})
    difference, doubt = told(ledger)
    assert difference == spot(0.5) and "were not scored on the same examples (120 are in one only" in doubt


def test_without_a_test_row_the_report_says_so(ledger, write):
    ledger.append(TRAIN | {"run": "r6", "curve": [], "val": []})
    page = write()
    for expected in ("No method has been evaluated", "Nothing here is a test result", "No step has been logged yet"):
        assert expected in page
