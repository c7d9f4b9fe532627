"""The report: made from ledger rows alone, saying what those rows say and no more."""

from __future__ import annotations

import re

import pytest

from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.report import page as report_page
from recr1_lite.report.page import report_markdown, write_report

CURVE = [
    {
        "step": step,
        "reward": 0.2 + 0.002 * step + 0.01 * (step % 3),
        "zero_advantage_share": 0.3,
        "completion_length": 12.0,
        "entropy": 1.5 - 0.01 * step,
        "kl": None,
        "rewards/ndcg/mean": 0.1 + 0.002 * step,
        "rewards/format/mean": 0.1,
        "rewards/format/std": 0.3,
    }
    for step in range(1, 41)
]
VAL = [
    {"step": 0, "mean": 0.24, "low": 0.2, "high": 0.28, "n": 50},
    {"step": 40, "mean": 0.32, "low": 0.29, "high": 0.36, "n": 50},
]


def spot(mean, half=0.03, n=50):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def eval_row(method, mean, split="test", **more):
    return {
        "kind": "eval",
        "task": "toy",
        "method": method,
        "split": split,
        "n": 50,
        "tokens": 1234,
        "metrics": {"ndcg@100": spot(mean), "mrr": spot(mean / 2)},
        "outcomes": {"ok": 49, "truncated": 1},
        "seconds": 2.5,
        "profile": "smoke",
        "seed": 0,
        "run": "r1",
        **more,
    }


def compare_row(a, b, mean, half, run="r1"):
    return {
        "kind": "compare",
        "task": "toy",
        "split": "test",
        "metric": "ndcg@100",
        "a": a,
        "b": b,
        "difference": spot(mean, half),
        "run": run,
    }


@pytest.fixture
def ledger(tmp_path):
    """Two runs; the last one, r2, has the rows of a whole demo."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(eval_row("old method", 0.111, run="r1"))
    for method, mean in (("raw request", 0.23), ("zero-shot", 0.25), ("GRPO", 0.3)):
        ledger.append(eval_row(method, mean, "val", run="r2"))
    for method, mean in (("raw request", 0.231), ("zero-shot", 0.252), ("GRPO <b>", 0.3)):
        ledger.append({"kind": "unseal", "task": "toy", "reason": f"evaluate {method}"})
        ledger.append(eval_row(method, mean, run="r2"))
    ledger.append(compare_row("zero-shot", "raw request", 0.021, 0.03, "r2"))
    ledger.append(compare_row("GRPO <b>", "raw request", 0.069, 0.02, "r2"))
    ledger.append({"kind": "headroom", "run": "r2", "n": 50, "rollouts": 8, "mean": spot(0.24), "best": spot(0.4)})
    ledger.append(
        {
            "kind": "train",
            "run": "r2",
            "method": "GRPO",
            "config": {"learning_rate": 2e-4},
            "curve": CURVE,
            "val": VAL,
            "seconds": 912.3,
            "stopped": "interrupted",
            "command": "python -m recr1_lite demo",
        }
    )
    side = {"query": "warm wool", "completion": "", "outcome": "ok", "value": 0.5, "top": []}
    head = {
        "before": "zero-shot",
        "after": "GRPO <b>",
        "split": "test",
        "metric": "ndcg@100",
        "n": 1,
        "gains": 1,
        "losses": 0,
        "ties": 0,
        "mean_before": 0.1,
        "mean_after": 0.5,
        "changes": [0.4],
        "shown": [0],
    }
    example = {
        "example_id": "e1",
        "request": "something warm",
        "change": 0.4,
        "before": side,
        "after": side,
        "relevant": [{"id": "i1", "title": "Sweater", "text": "", "before": 41, "after": 2}],
    }
    ledger.append({"kind": "inspect", "run": "r2", "rows": [head, example]})
    return ledger


def visible(page):
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S).split())


def test_the_page_holds_the_last_run_and_stands_alone(ledger, tmp_path):
    page = write_report(ledger, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    text = visible(page)
    for expected in (
        "python -m recr1_lite demo",
        "smoke",
        "0.300 [0.270, 0.330]",
        "+0.069 [+0.049, +0.089]",
        "GRPO &lt;b&gt; is above raw request",
        "truncated 1",
        "zero-shot is not shown to differ from raw request",
        "40 steps in 912 s (interrupted).",
        "The test split was opened 3 times",
        "rank&nbsp;41",
        "rank&nbsp;2&nbsp; ▲39",
        "learning_rate",
        "this run has one seed (0)",
    ):
        assert expected in text, expected
    assert "old method" not in text
    assert page.count("data:image/svg+xml;base64,") == 5
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import|<script|<b>[^<]*</h', page)


def test_a_run_can_be_named_and_an_unknown_one_is_refused(ledger, tmp_path):
    page = write_report(ledger, tmp_path / "report.html", run="r1").read_text(encoding="utf-8")
    assert "old method" in page and "zero-shot is" not in page
    with pytest.raises(RecR1Error, match="no run 'r9'; it has r1, r2"):
        write_report(ledger, tmp_path / "other.html", run="r9")
    assert not (tmp_path / "other.html").exists()


def test_an_empty_ledger_names_the_command_that_fills_it(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for make in (lambda: write_report(ledger, tmp_path / "report.html"), lambda: report_markdown(ledger)):
        with pytest.raises(RecR1Error, match="make demo.*python -m recr1_lite demo"):
            make()
    assert not (tmp_path / "report.html").exists()


def test_markdown_has_one_row_a_method_and_the_claims(ledger):
    text = report_markdown(ledger)
    rows = [line for line in text.splitlines() if line.startswith("| GRPO <b>")]
    assert rows == ["| GRPO <b> | 50 | 0.300 [0.270, 0.330] | +0.069 [+0.049, +0.089] | 1,234 | 2.5 |"]
    assert text.index("Sealed test") < text.index("Validation")
    assert "That zero-shot differs from raw request on test" in text
    assert "That GRPO <b> differs" not in text, "a shown difference is no missing claim"


def test_baselines_are_drawn_only_where_they_were_measured_on_as_many_requests(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "as_bytes", lambda figure, form: b"")  # the titles tell enough
    drawn = write_report(ledger, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the last interval lies above raw request (0.230), zero-shot (0.250)" in drawn
    fewer = [{**point, "n": 20} for point in VAL]
    ledger.append({"kind": "train", "run": "r3", "method": "GRPO", "curve": CURVE, "val": fewer})
    ledger.append(eval_row("raw request", 0.23, "val", run="r3"))
    page = write_report(ledger, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "in 40 steps" in page and "the last interval" not in page
    ledger.append(
        {
            "kind": "train",
            "run": "r4",
            "method": "GRPO",
            "curve": CURVE,
            "val": fewer,
            "baselines": {"raw request": spot(0.3, n=20)},
        }
    )
    page = write_report(ledger, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the last interval lies around raw request (0.300)" in page


def test_a_method_evaluated_twice_shows_its_last_row(ledger):
    ledger.append(eval_row("raw request", 0.5, run="r2"))
    assert "| raw request | 50 | 0.500 [0.470, 0.530] |" in report_markdown(ledger)


def test_a_run_that_was_stopped_and_resumed_is_told_once(ledger, tmp_path):
    train = {
        "kind": "train",
        "run": "stopped",
        "method": "GRPO",
        "metric": "ndcg@100",
        "val": [],
        "curve": [{"step": 1, "reward": 0.1}],
    }
    ledger.append(train | {"stopped": "interrupted", "seconds": 5.0})
    ledger.append(train | {"stopped": "finished", "seconds": 9.0})
    page = write_report(ledger, tmp_path / "report.html", "stopped").read_text()
    assert page.count("<h2>Training: GRPO</h2>") == 1
    assert "(finished)" in page and "(interrupted)" not in page


def test_without_a_test_row_the_report_says_so(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"kind": "train", "run": "r1", "method": "GRPO", "curve": [], "val": []})
    page = write_report(ledger, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No method has been evaluated" in page and "Nothing here is a test result" in page
    assert "No step has been logged yet" in page


def test_what_a_resumed_run_told_twice_counts_once(ledger, tmp_path):
    room = {
        "kind": "headroom",
        "run": "r5",
        "n": 4,
        "rollouts": 8,
        "mean": spot(0.2),
        "best": spot(0.4),
        "seconds": 5.0,
    }
    for _ in range(2):
        ledger.append(eval_row("raw request", 0.23, "val", run="r5"))
        ledger.append(room)
    text = write_report(ledger, tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("## Headroom before training") == 1 and "| all together |  |  | 7.5 |" in text
