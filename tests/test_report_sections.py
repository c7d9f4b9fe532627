"""The comparison's part of the report: budgets, bound, forgetting, adaptation, published figures, claims."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

from recr1_lite.__main__ import main
from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.report import comparisons as plots
from recr1_lite.report import page
from recr1_lite.report import rows as budget
from recr1_lite.report import rows as published
from recr1_lite.report.findings import claims
from recr1_lite.report.page import report_markdown, sections, write_report
from recr1_lite.report.rows import select
from recr1_lite.search.metrics import mean_interval

TEST = {
    "raw request": 0.26,
    "zero-shot": 0.27,
    "teacher": 0.30,
    "LM teacher": 0.24,
    "SFT": 0.29,
    "SFT + JSON": 0.25,
    "SFT (LM teacher)": 0.26,
    "rejection SFT": 0.31,
    "GRPO": 0.33,
}
PAIRED = [
    ("SFT", "teacher", -0.01, 0.02),
    ("SFT + JSON", "teacher", -0.05, 0.02),
    ("GRPO", "teacher", 0.03, 0.02),
    ("rejection SFT", "teacher", 0.01, 0.02),
    ("GRPO", "raw request", 0.07, 0.02),
    ("SFT (LM teacher)", "LM teacher", 0.02, 0.01),
]
SPENT = {
    "SFT": (0, 60.0),
    "SFT + JSON": (0, 90.0),
    "SFT (LM teacher)": (4000, 600.0),
    "rejection SFT": (6000, 610.0),
    "GRPO": (6000, 600.0),
}


def spot(mean, half=0.03, n=400):
    return {"mean": mean, "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def train_row(method, samples, seconds, last, **more):
    points = [
        {"step": 0, "seconds": 0.0, "samples": 0, **spot(0.25, n=100)},
        {"step": 25, "seconds": seconds / 2, "samples": samples // 2, **spot((0.25 + last) / 2, n=100)},
        {"step": 50, "seconds": seconds, "samples": samples, **spot(last, n=100)},
    ]
    return {
        "kind": "train",
        "task": "toy",
        "method": method,
        "metric": "ndcg@100",
        "val": points,
        "seconds": seconds,
        "curve": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}],
        "stopped": "finished",
        "seed": 0,
        "config": {"model": "smollm2-135m-instruct"},
        "budget": {"seconds": 600.0, "samples": 6000},
        "baselines": {"raw request": spot(0.24, n=100)},
        "cost": {
            "samples": samples,
            "tokens_generated": 5 * samples,
            "tokens_trained": 9000,
            "seconds": seconds,
            "money": 0.0,
        },
        **more,
    }


def capability_rows(drop):
    yield {
        "kind": "capability",
        "method": "untrained",
        "suite": "offline",
        "task": "recr1_arithmetic",
        "metric": "accuracy",
        **spot(0.5, 0.08, 120),
    }
    for method, (lost, kl) in drop.items():
        yield {
            "kind": "capability",
            "method": method,
            "suite": "offline",
            "task": "kl",
            "metric": "nats",
            **spot(kl, 0.02, 40),
        }
        for task in ("recr1_arithmetic", "recr1_reading"):
            yield {
                "kind": "capability_compare",
                "a": method,
                "b": "untrained",
                "suite": "offline",
                "task": task,
                "metric": "accuracy",
                "n": 120,
                "difference": spot(lost, 0.03, 120),
            }
        yield {
            "kind": "capability_compare",
            "a": method,
            "b": "untrained",
            "suite": "offline",
            "task": "recr1_perplexity",
            "metric": "nats",
            "n": 60,
            "difference": spot(kl, 0.01, 60),
        }


def continual_rows():
    for trainer, means in {"GRPO": (0.26, 0.33, 0.32), "SFT": (0.26, 0.29, 0.2)}.items():
        for stage, (name, mean) in enumerate(zip(("untrained", "after clothing", "after movielens"), means)):
            yield {
                "kind": "continual",
                "trainer": trainer,
                "stage": stage,
                "name": name,
                "seconds": 300.0,
                "measures": {"clothing": spot(mean), "movielens": spot(0.1), "capability": spot(mean + 0.2)},
            }


@pytest.fixture
def rows():
    """Everything a comparison leaves, as the ledger would hold it."""
    found = [
        {
            "kind": "eval",
            "task": "toy",
            "method": method,
            "split": "test",
            "metrics": {"ndcg@100": spot(mean)},
            "n": 400,
            "tokens": 0 if method in ("raw request", "teacher") else 1990,
            "seconds": 9.0,
            "seed": 0,
        }
        for method, mean in TEST.items()
    ]
    found += [
        {
            "kind": "compare",
            "task": "toy",
            "split": "test",
            "metric": "ndcg@100",
            "a": a,
            "b": b,
            "difference": spot(mean, half),
        }
        for a, b, mean, half in PAIRED
    ]
    found += [train_row(method, *spent, TEST[method]) for method, spent in SPENT.items()]
    return [*found, *capability_rows({"SFT": (-0.06, 0.4), "GRPO": (-0.01, 0.1)}), *continual_rows()]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Rows -> (ledger, HTML, Markdown); figures are not rendered, their titles stand in the text."""
    monkeypatch.setattr(page, "as_bytes", lambda figure, form: b"")
    drawn = {}

    def once(ledger, rows):  # the two writers share what was drawn
        key = json.dumps(rows)
        if key not in drawn:
            drawn[key] = sections(ledger, rows)
        return drawn[key]

    monkeypatch.setattr(page, "sections", once)

    def make(rows):
        path = tmp_path / "ledger.jsonl"
        path.write_text("".join(json.dumps({"run": "r1", **row}) + "\n" for row in rows))
        ledger = Ledger(path)
        page = write_report(ledger, tmp_path / "out.html").read_text(encoding="utf-8")
        return ledger, page, write_report(ledger, tmp_path / "out.md").read_text(encoding="utf-8")

    return make


def titles(ledger):
    return [section.title for section in sections(ledger, select(ledger)[1])]


COMPARISON = [
    "What training cost",
    "The same budget",
    "Cost against quality",
    "Can SFT pass its teacher?",
    "What was forgotten",
    "One task after another",
    "Published figures beside ours",
]


def test_html_and_markdown_say_the_same(rows, write, tmp_path):
    ledger, page, text = write(rows)
    assert [title for title in titles(ledger) if title in COMPARISON] == COMPARISON
    assert re.findall("<h2>(.*?)</h2>", page) == re.findall("^## (.*)$", text, re.M)
    alts = re.findall('alt="(.*?)"', page)
    assert len(alts) > 10 and [html.unescape(alt) for alt in alts] == [
        html.unescape(alt.replace("\\", "")) for alt in re.findall(r"^!\[(.*)\]\(", text, re.M)
    ]
    for name in re.findall(r"\]\((out_figures/\d+\.png)\)", text):
        assert (tmp_path / name).is_file()
    cells = re.findall("<td>(.*?)</td>", page)
    assert len(cells) > 200 and all(cell.replace("&lt;", "<") in text.replace("&lt;", "<") for cell in cells)


def test_costs_stand_beside_the_score(rows, write):
    _, _, text = write(rows)
    assert "| GRPO | 0.330 [0.300, 0.360] | 6,000 | 30,000 | 9,000 | 600.0 | 0 | finished |" in text
    assert "Money: nothing was paid." in text
    paid = [
        row | {"cost": row["cost"] | {"money": 1.5, "seconds": None}}
        if row.get("method") == "GRPO" and row["kind"] == "train"
        else row
        for row in rows
    ]
    _, _, text = write(paid)
    assert "| 9,000 | not noted | 1.50 | finished |" in text and "prices of the run's settings" in text


def test_the_same_budget_in_seconds_and_in_samples(rows):
    assert budget.common(rows) == 600 and budget.common(rows, "samples") == 6000
    at = {row["method"]: row for row in budget.at_budget(rows, "samples")}
    assert at["SFT"]["mean"] == TEST["SFT"], "a rule samples nothing: its last point fits any number of samples"
    assert at["GRPO"]["samples"] == 6000
    half = {row["method"]: row for row in budget.at_budget(rows, "seconds", 300)}
    assert half["GRPO"]["seconds"] == 300 and half["SFT"]["seconds"] == 60
    assert half["rejection SFT"]["seconds"] == 305, "5% over is one step"
    assert "rejection SFT" not in {row["method"] for row in budget.at_budget(rows, "seconds", 250)}
    free = [{key: value for key, value in row.items() if key != "budget"} for row in rows]
    assert budget.common(free) == 60 and budget.common(free, "samples") == 4000


def finding(figure):
    return " ".join(figure.get_suptitle().split())


def test_the_title_of_the_race_both_ways(rows):
    assert finding(plots.race(rows)) == (
        "Within 600 s, GRPO is highest: val nDCG@100 0.330 against rejection SFT's "
        "0.310; the intervals overlap: not shown to differ"
    )
    apart = [row for row in rows if row.get("method") not in ("rejection SFT", "SFT", "SFT (LM teacher)")]
    assert finding(plots.race(apart)).endswith("against SFT + JSON's 0.250; the intervals lie apart")
    alone = [row for row in rows if row.get("method") == "GRPO"]
    assert finding(plots.race(alone)) == "Within 600 s: GRPO reaches val nDCG@100 0.330"
    assert finding(plots.race([])) == "No validation point with its seconds has been logged yet"


def test_the_bound_speaks_of_paired_differences_only(rows, write):
    _, page, text = write(rows)
    assert "1 of 3 SFT variants shown above the teacher: SFT (LM teacher) (+0.020)" in text
    assert "rejection SFT not shown to differ (+0.010), GRPO above (+0.030)" in text
    assert "| SFT (LM teacher) | LM teacher | +0.020 [+0.010, +0.030] | above |" in text
    down = [row | {"difference": spot(-0.05, 0.01)} if row.get("b") == "teacher" else row for row in rows]
    _, page, text = write(down)
    assert "GRPO below (-0.050)" in text and "| GRPO | teacher | -0.050 [-0.060, -0.040] | below |" in text
    bare = [row for row in rows if row["kind"] != "compare"]
    assert "No method was paired with its teacher" in write(bare)[2]


def test_forgetting_and_retention(rows, write):
    _, _, text = write(rows)
    assert "Measures with a loss shown against the untrained model: SFT 3 of 3, GRPO 1 of 3" in text, "perplexity rose"
    assert "| GRPO | arithmetic | accuracy | 120 | -0.010 [-0.040, +0.020] | not shown |" in text
    kept = {row["method"]: row for row in budget.retention(rows)}
    assert kept["SFT"]["change"]["mean"] == pytest.approx(-0.06) and kept["SFT"]["tasks"] == 2
    assert kept["SFT"]["change"]["high"] == pytest.approx(-0.06 + 0.03 / 2**0.5), "independent items: squares add up"
    assert "SFT moved 0.40 nats, accuracy -0.060; GRPO moved 0.10 nats, accuracy -0.010, not shown" in text


def test_one_metric_a_task_is_drawn():
    rows = [
        {
            "kind": "capability_compare",
            "a": "SFT",
            "b": "untrained",
            "task": "recr1_instructions",
            "n": 80,
            "metric": metric,
            "difference": spot(-0.1, 0.05),
        }
        for metric in ("inst_level_loose_acc", "prompt_level_strict_acc")
    ]
    assert [row["metric"] for row in budget.main_changes(rows)] == ["prompt_level_strict_acc"]
    assert len(budget.capability_changes(rows)) == 2


def test_stages_of_adaptation(rows, write):
    _, _, text = write(rows)
    assert (
        "| SFT | after movielens | 0.200 [0.170, 0.230] | 0.100 [0.070, 0.130] | 0.400 [0.370, 0.430] | 300 |" in text
    )
    told = finding(plots.continual(rows))
    assert told == (
        "After movielens: SFT clothing 0.290 → 0.200, capability 0.460 → 0.400*; GRPO clothing 0.330 → "
        "0.320*, capability 0.460 → 0.520* (*: not shown to differ)"
    )
    paired = [
        row | {"differences": {"capability": spot(-0.06, 0.02)}} if row.get("trainer") == "SFT" else row for row in rows
    ]
    assert "capability 0.460 → 0.400; GRPO" in finding(plots.continual(paired)), "the paired difference decides"
    assert finding(plots.continual(rows[:5])).startswith("Fewer than three stages")


def test_published_figures_are_marked(rows, write):
    _, page, text = write(rows)
    assert "PUBLISHED nDCG@100" in text and "linjc16/Rec-R1, commit 4f3ac37" in text
    assert "| Rec-R1 (GRPO) | 0.3222 | [0.274, 0.372] | 0.3351 | GRPO 0.330 [0.300, 0.360] |" in text
    assert "Published gain over the raw query +0.198; here GRPO +0.070" in text


def test_published_figures_are_those_of_the_authors_files(shared_data):
    names = ("esci__ori_query", "esci__query_metric_results-gpt-4o", "esci__query_metric_results-rec-r1")
    for name, row in zip(names, published.FIGURES, strict=True):
        stored = json.loads((shared_data / "rec_r1" / "golden_metrics" / f"{name}.json").read_text()).values()
        found = mean_interval([100 * entry["ndcg@100"] for entry in stored])
        assert np.round(found, 2).tolist() == [row["mean"], row["low"], row["high"], row["n"]]


def test_claims_follow_from_the_rows(rows, write):
    ledger, _, text = write(rows)
    said = " ".join(claims(ledger, select(ledger)[1]))
    for expected in (
        "a larger budget than 600 seconds or 6,000 samples",
        "this run has one seed (0)",
        "a model of 135M parameters, through a LoRA adapter",
        "teacher (a rule without a model)",
        "LM teacher (a local model), and not from GPT-4o",
        "the widest interval reaches 0.030 to each side",
        "GRPO forgets less than SFT because of the method alone",
        "clothing then movielens",
        "That SFT differs from teacher on test",
    ):
        assert expected in said, expected
    assert "of 6 intervals" not in said
    many = rows + [
        row | {"b": f"{row['b']} {number}"} for row in rows if row["kind"] == "compare" for number in range(3)
    ]
    ledger, _, _ = write(many)
    said = " ".join(claims(ledger, select(ledger)[1]))
    assert "of 24 intervals at 95%, about 1 would leave 0 out by chance alone" in said


def test_old_rows_have_none_of_it(rows, write):
    old = [row for row in rows if row["kind"] in ("eval", "compare") and row.get("method") not in TEST]
    old += [
        {
            "kind": "eval",
            "task": "toy",
            "method": "raw request",
            "split": "test",
            "n": 9,
            "metrics": {"ndcg@100": spot(0.2)},
        },
        {"kind": "train", "method": "GRPO", "curve": [], "val": [{"step": 0, **spot(0.2)}]},
    ]
    ledger, page, _ = write([row for row in old if row["kind"] != "compare"])
    assert not set(titles(ledger)) & set(COMPARISON)
    assert "135M" not in page and "GPT-4o" not in page


@pytest.mark.parametrize(
    "gone", ["eval", "train", "compare", "capability", "capability_compare", "continual", "cost", "val", "GRPO only"]
)
def test_a_missing_part_leaves_a_report(rows, write, gone):
    if gone == "GRPO only":
        kept = [row for row in rows if row.get("method", "GRPO") in ("GRPO", "raw request")]
    else:
        kept = [{key: value for key, value in row.items() if key != gone} for row in rows if row["kind"] != gone]
    ledger, page, text = write(kept)
    assert "What may not be claimed" in page and "What may not be claimed" in text
    missing = {
        "eval": "Can SFT pass",
        "capability_compare": "KL",
        "continual": "One task after another",
        "cost": "What training cost",
        "val": "The same budget",
        "GRPO only": "The same budget",
    }.get(gone)
    assert not any(title.startswith(missing or "none such") for title in titles(ledger))


def test_what_is_no_number_is_said_to_be_missing(rows, write):
    null = {"mean": None, "low": None, "high": None, "n": 0}
    broken = []
    for row in rows:
        row = dict(row)
        if row["kind"] == "eval" and row["method"] == "SFT":
            row["metrics"] = {"ndcg@100": null}
        if row["kind"] == "train" and row["method"] == "SFT":
            row |= {"val": [{"step": 0, **null}], "cost": {"samples": None, "seconds": float("nan")}}
        if row["kind"] in ("capability_compare", "continual") and row.get("a", row.get("trainer")) == "SFT":
            row |= {"difference": null, "measures": {"clothing": null}}
        broken.append(row)
    _, page, text = write(broken)
    assert "| SFT | 400 | not measured |" in text and "| SFT | not measured | not noted | not noted |" in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page).lower().replace("finance", "")
    assert "| SFT | untrained | not measured |" in text
    nothing = [row | {"metrics": {"ndcg@100": null}} if row["kind"] == "eval" else row for row in rows]
    assert "not measured" in write(nothing)[2]


def test_names_are_escaped(rows, write):
    nasty = json.loads(json.dumps(rows).replace('"SFT + JSON"', json.dumps("<script>a|b*c*</script>")))
    _, page, text = write(nasty)
    assert "<script>" not in page and "&lt;script&gt;a|b*c*" in page
    assert "<script>" not in text and r"&lt;script>a\|b\*c\*&lt;/script>" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| &lt;script") and " | 400 | " in line]
    assert line.replace("\\|", "").count("|") == text.split("| method |")[1].split("\n")[0].count("|") + 2


def test_the_command_writes_both_or_the_one_that_is_named(rows, write, tmp_path, capsys):
    ledger, _, _ = write(rows)
    out = tmp_path / "there" / "mine"
    assert main(["report", "--ledger", str(ledger.path), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine.html", "mine.md", "mine_figures"]
    assert "mine.html and" in capsys.readouterr().out
    assert main(["report", "--ledger", str(ledger.path), "--out", str(tmp_path / "one.html")]) == 0
    assert not (tmp_path / "one.md").exists()
    assert main(["report", "--ledger", str(ledger.path), "--out", str(tmp_path / "report.pdf")]) == 2
    assert "name it .html or .md" in capsys.readouterr().err
    with pytest.raises(RecR1Error, match="report.pdf"):
        write_report(ledger, tmp_path / "report.pdf")
    assert report_markdown(ledger).count("| GRPO |") == 1, "the printed one stays short"


def test_figures_of_a_comparison_render(rows):
    spots = [{"method": method, **spot(TEST[method])} for method in SPENT]
    spent = [row | {"seconds": SPENT[row["method"]][1], "tokens": 100} for row in spots]
    differences = {a: spot(mean, half) for a, b, mean, half in PAIRED if b == "teacher"}
    teacher = {"method": "teacher", **spot(TEST["teacher"])}
    for figure in (
        plots.race(rows, "samples", {"raw request": 0.2}),
        plots.cost_quality(spent, {"raw": spot(0.2)}),
        plots.bound(spots, differences, [teacher]),
        plots.forgetting(rows),
        plots.kl_retention(rows),
        plots.continual(rows),
        plots.published(spots),
        plots.race([]),
        plots.forgetting([]),
        plots.kl_retention([]),
        plots.continual([]),
    ):
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert finding(plots.cost_quality(spent)) == (
        "GRPO is highest, nDCG@100 0.330 in 600 s; the quickest, SFT, 0.290 in 60 s (intervals overlap)"
    )


def test_the_table_of_tasks(tmp_path):
    from recr1_lite.ledger import Ledger
    from recr1_lite.report.rows import tasks_table

    ledger, interval = Ledger(tmp_path / "ledger.jsonl"), {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 9}
    for run, method, split, engine in (
        ("one", "raw request", "test", "BM25Retriever"),
        ("one", "item-kNN", "test", ""),
        ("one", "item-kNN", "val", ""),
        ("two", "GRPO", "test", "DenseRetriever"),
    ):
        ledger.append(
            {
                "kind": "eval",
                "run": run,
                "task": "toy",
                "method": method,
                "split": split,
                "n": 9,
                "retriever": engine,
                "metrics": {"ndcg@100": interval},
            }
        )
    ledger.append(
        {
            "kind": "compare",
            "run": "one",
            "task": "toy",
            "split": "test",
            "metric": "ndcg@100",
            "a": "item-kNN",
            "b": "raw request",
            "difference": interval,
        }
    )
    table = tasks_table(ledger)
    assert table["method"].tolist() == ["raw request", "item-kNN", "GRPO"]
    assert table["retriever"].tolist() == ["BM25", "BM25", "Dense"]
    assert table["vs raw request"].tolist() == ["", "+0.250 [+0.200, +0.300]", ""]
    assert tasks_table(ledger, "two")["method"].tolist() == ["GRPO"]
