"""The comparison's part of the report: budgets, bound, forgetting, adaptation, claims."""

import html
import json
import re

import numpy as np
import pytest
from report_rows import TRAIN, compare_row, eval_row, finding, spot

from recr1_lite.__main__ import main
from recr1_lite.common import RecR1Error
from recr1_lite.ledger import Ledger
from recr1_lite.report import comparisons as plots
from recr1_lite.report import page
from recr1_lite.report import rows as book
from recr1_lite.report.page import claims, report_markdown, sections, write_report
from recr1_lite.report.rows import FIGURES, select, tasks_table
from recr1_lite.search.metrics import mean_interval

TEST = {"raw request": 0.26, "zero-shot": 0.27, "teacher": 0.30, "LM teacher": 0.24, "SFT": 0.29, "SFT + JSON": 0.25}
TEST |= {"SFT (LM teacher)": 0.26, "rejection SFT": 0.31, "GRPO": 0.33}
PAIRED = [
    ("SFT", "teacher", -0.01, 0.02),
    ("SFT + JSON", "teacher", -0.05, 0.02),
    ("GRPO", "teacher", 0.03, 0.02),
    ("rejection SFT", "teacher", 0.01, 0.02),
    ("GRPO", "raw request", 0.07, 0.02),
    ("SFT (LM teacher)", "LM teacher", 0.02, 0.01),
]
SPENT = {"SFT": (0, 60.0), "SFT + JSON": (0, 90.0), "SFT (LM teacher)": (4000, 600.0)}
SPENT |= {"rejection SFT": (6000, 610.0), "GRPO": (6000, 600.0)}
RULES = ("raw request", "teacher")  # these need no model
NULL = {"mean": None, "low": None, "high": None, "n": 0}


def train_row(method, samples, seconds, last):
    means = {0: 0.25, 25: (0.25 + last) / 2, 50: last}
    val = [{"step": n, "seconds": seconds * n / 50, "samples": samples * n // 50} for n in means]
    val = [point | spot(mean, n=100) for point, mean in zip(val, means.values())]
    cost = {"samples": samples, "tokens_generated": 5 * samples, "tokens_trained": 9000, "seconds": seconds}
    row = TRAIN | {"method": method, "val": val, "seconds": seconds, "seed": 0}
    row |= {"curve": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]}
    row |= {"budget": {"seconds": 600.0, "samples": 6000}, "baselines": {"raw request": spot(0.24, n=100)}}
    return row | {"cost": cost | {"money": 0.0}}


def capability_rows(method, lost, kl):
    suite, pair = {"suite": "offline"}, {"kind": "capability_compare", "a": method, "b": "untrained"}
    yield {"kind": "capability", "method": method, "task": "kl", "metric": "nats", **suite, **spot(kl, 0.02, 40)}
    for task in ("recr1_arithmetic", "recr1_reading"):
        yield pair | suite | {"task": task, "metric": "accuracy", "n": 120, "difference": spot(lost, 0.03, 120)}
    yield pair | suite | {"task": "recr1_perplexity", "metric": "nats", "n": 60, "difference": spot(kl, 0.01, 60)}


def continual_rows(trainer, *means):
    for stage, (name, mean) in enumerate(zip(("untrained", "after clothing", "after movielens"), means)):
        row = {"kind": "continual", "trainer": trainer, "stage": stage, "name": name, "seconds": 300.0}
        yield row | {"measures": {"clothing": spot(mean), "movielens": spot(0.1), "capability": spot(mean + 0.2)}}


@pytest.fixture
def rows():
    """Everything a comparison leaves, as the ledger would hold it."""
    start = {"kind": "capability", "method": "untrained", "suite": "offline", "task": "recr1_arithmetic"}
    return [
        *(eval_row(method, mean, tokens=1990 * (method not in RULES)) for method, mean in TEST.items()),
        *(compare_row(*pair) for pair in PAIRED),
        *(train_row(method, *spent, TEST[method]) for method, spent in SPENT.items()),
        start | {"metric": "accuracy", **spot(0.5, 0.08, 120)},
        *capability_rows("SFT", -0.06, 0.4),
        *capability_rows("GRPO", -0.01, 0.1),
        *continual_rows("GRPO", 0.26, 0.33, 0.32),
        *continual_rows("SFT", 0.26, 0.29, 0.2),
    ]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Rows -> (ledger, HTML, Markdown); figures are not rendered, their titles stand in the text."""
    monkeypatch.setattr(page, "as_bytes", lambda figure, form: b"")

    def make(rows):
        path = tmp_path / "ledger.jsonl"
        path.write_text("".join(json.dumps({"run": "r1", **row}) + "\n" for row in rows))
        ledger = Ledger(path)
        made = sections(ledger, select(ledger)[1])
        monkeypatch.setattr(page, "sections", lambda ledger, rows: made)  # the two writers share what was drawn
        whole, text = (write_report(ledger, tmp_path / name).read_text(encoding="utf-8") for name in ("o.html", "o.md"))
        return ledger, whole, text

    return make


def titles(text):
    return re.findall("^## (.*)$", text, re.M)


COMPARISON = ["What training cost", "The same budget", "Cost against quality", "Can SFT pass its teacher?"]
COMPARISON += ["What was forgotten", "One task after another"]


def test_html_and_markdown_say_the_same(rows, write, tmp_path):
    _, page, text = write(rows)
    assert [title for title in titles(text) if title in COMPARISON] == COMPARISON
    assert re.findall("<h2>(.*?)</h2>", page) == titles(text)
    alts = [html.unescape(alt) for alt in re.findall('alt="(.*?)"', page)]
    written = [html.unescape(alt.replace("\\", "")) for alt in re.findall(r"^!\[(.*)\]\(", text, re.M)]
    assert len(alts) > 10 and alts == written
    assert all((tmp_path / name).is_file() for name in re.findall(r"\]\((o_figures/\d+\.png)\)", text))
    cells = re.findall("<td>(.*?)</td>", page)
    assert len(cells) > 200 and all(cell.replace("&lt;", "<") in text.replace("&lt;", "<") for cell in cells)
    for told in (
        "| GRPO | 0.330 [0.300, 0.360] | 6,000 | 30,000 | 9,000 | 600.0 | 0 | finished |",
        "Money: nothing was paid.",
        "1 of 3 SFT variants shown above the teacher: SFT (LM teacher) (+0.020)",
        "rejection SFT not shown to differ (+0.010), GRPO above (+0.030)",
        "| SFT (LM teacher) | LM teacher | +0.020 [+0.010, +0.030] | above |",
        "Measures with a loss shown against the untrained model: SFT 3 of 3, GRPO 1 of 3",  # perplexity rose
        "| GRPO | arithmetic | accuracy | 120 | -0.010 [-0.040, +0.020] | not shown |",
        "SFT moved 0.40 nats, accuracy -0.060; GRPO moved 0.10 nats, accuracy -0.010, not shown",
        "| SFT | after movielens | 0.200 [0.170, 0.230] | 0.100 [0.070, 0.130] | 0.400 [0.370, 0.430] | 300 |",
    ):
        assert told in text, told
    train = TRAIN | {"curve": [], "val": [{"step": 0, **spot(0.2)}], "config": {}}
    _, page, text = write([eval_row("raw request", 0.2), train])  # rows of a demo
    assert not set(titles(text)) & set(COMPARISON) and "135M" not in page and "GPT-4o" not in page
    changed = [row | {"difference": spot(-0.05, 0.01)} if row.get("b") == "teacher" else row for row in rows]
    spent = next(row for row in changed if row["kind"] == "train" and row["method"] == "GRPO")
    spent["cost"] |= {"money": 1.5, "seconds": None}
    text = write(changed)[2]
    assert "| 9,000 | not noted | 1.50 | finished |" in text and "prices of the run's settings" in text
    assert "GRPO below (-0.050)" in text and "| GRPO | teacher | -0.050 [-0.060, -0.040] | below |" in text
    assert "No method was paired with its teacher" in write([row for row in rows if row["kind"] != "compare"])[2]


def test_the_same_budget_in_seconds_and_in_samples(rows):
    assert book.common(rows) == 600 and book.common(rows, "samples") == 6000
    at = {row["method"]: row for row in book.at_budget(rows, "samples")}
    assert at["SFT"]["mean"] == TEST["SFT"], "a rule samples nothing: its last point fits any number of samples"
    assert at["GRPO"]["samples"] == 6000
    half = {row["method"]: row for row in book.at_budget(rows, "seconds", 300)}
    assert half["GRPO"]["seconds"] == 300 and half["SFT"]["seconds"] == 60
    assert half["rejection SFT"]["seconds"] == 305, "5% over is one step"
    assert "rejection SFT" not in {row["method"] for row in book.at_budget(rows, "seconds", 250)}
    free = [{key: value for key, value in row.items() if key != "budget"} for row in rows]
    assert book.common(free) == 60 and book.common(free, "samples") == 4000


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


def test_retention_the_metric_that_is_drawn_and_stages_of_adaptation(rows):
    kept = {row["method"]: row for row in book.retention(rows)}
    assert kept["SFT"]["change"]["mean"] == pytest.approx(-0.06) and kept["SFT"]["tasks"] == 2
    assert kept["SFT"]["change"]["high"] == pytest.approx(-0.06 + 0.03 / 2**0.5), "independent items: squares add up"
    one = next(row for row in rows if row["kind"] == "capability_compare")
    two = [one | {"metric": metric} for metric in ("inst_level_loose_acc", "prompt_level_strict_acc")]
    assert [row["metric"] for row in book.main_changes(two)] == ["prompt_level_strict_acc"]
    assert len(book.capability_changes(two)) == 2
    assert finding(plots.continual(rows)) == (
        "After movielens: SFT clothing 0.290 → 0.200, capability 0.460 → 0.400*; GRPO clothing 0.330 → "
        "0.320*, capability 0.460 → 0.520* (*: not shown to differ)"
    )
    known = {"differences": {"capability": spot(-0.06, 0.02)}}
    paired = [row | known if row.get("trainer") == "SFT" else row for row in rows]
    assert "capability 0.460 → 0.400; GRPO" in finding(plots.continual(paired)), "the paired difference decides"
    assert finding(plots.continual(rows[:5])).startswith("Fewer than three stages")


def test_published_figures_are_those_of_the_authors_files(shared_data):
    names = ("esci__ori_query", "esci__query_metric_results-gpt-4o", "esci__query_metric_results-rec-r1")
    for name, row in zip(names, FIGURES, strict=True):
        stored = json.loads((shared_data / "rec_r1" / "golden_metrics" / f"{name}.json").read_text()).values()
        ours = mean_interval([100 * entry["ndcg@100"] for entry in stored])
        assert np.round(ours, 2).tolist() == [row["mean"], row["low"], row["high"], row["n"]]


def test_claims_follow_from_the_rows(rows, write):
    ledger = write(rows)[0]
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
    tight = [compare_row("SFT", f"base {n}", 0.02, 0.018) for n in range(40)]  # each would be shown alone
    said = " ".join(claims(ledger, rows + tight))
    assert f"With Holm's correction for the {len(PAIRED) + 40} differences of the table none of these is shown" in said
    alone = tight[0]["difference"]
    assert book.verdict(alone) == book.verdict(book.corrected([alone])[0]) == "above"
    assert book.verdict(book.corrected([alone] * 4)[0]) == "not shown to differ"


MISSING = {"eval": "Can SFT pass", "train": "Training", "compare": None, "capability": None, "GRPO only": "The same"}
MISSING |= {"capability_compare": "KL", "continual": "One task", "cost": "What training cost"}


@pytest.mark.parametrize(("gone", "section"), MISSING.items())
def test_a_missing_part_leaves_a_report(rows, write, gone, section):
    kept = [{key: value for key, value in row.items() if key != gone} for row in rows if row["kind"] != gone]
    if gone == "GRPO only":
        kept = [row for row in rows if row.get("method", "GRPO") in ("GRPO", "raw request")]
    _, page, text = write(kept)
    assert "What may not be claimed" in page and "What may not be claimed" in text
    assert not section or not any(title.startswith(section) for title in titles(text))


def test_what_is_no_number_is_said_to_be_missing(rows, write):
    gone = {"eval": {"metrics": {"ndcg@100": NULL}}}
    gone["train"] = {"val": [{"step": 0, **NULL}], "cost": {"samples": None, "seconds": float("nan")}}
    gone["capability_compare"] = gone["continual"] = {"difference": NULL, "measures": {"clothing": NULL}}
    names = ("method", "trainer", "a")
    sft = [row for row in rows if "SFT" in map(row.get, names) and row["kind"] in gone]
    _, page, text = write([row | gone[row["kind"]] if row in sft else row for row in rows])
    assert "| SFT | 50 | not measured |" in text and "| SFT | not measured | not noted | not noted |" in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page).lower().replace("finance", "")
    assert "| SFT | untrained | not measured |" in text
    nothing = [row | {"metrics": {"ndcg@100": NULL}} if row["kind"] == "eval" else row for row in rows]
    assert "not measured" in write(nothing)[2]


def test_names_are_escaped(rows, write):
    nasty = json.loads(json.dumps(rows).replace('"SFT + JSON"', json.dumps("<script>a|b*c*</script>")))
    _, page, text = write(nasty)
    assert "<script>" not in page + text and "&lt;script&gt;a|b*c*" in page
    assert r"&lt;script>a\|b\*c\*&lt;/script>" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| &lt;script") and " | 50 | " in line]
    assert line.replace("\\|", "").count("|") == text.split("| method |")[1].split("\n")[0].count("|") + 2


def test_the_command_writes_both_or_the_one_that_is_named(rows, write, tmp_path, capsys):
    ledger, out = write(rows)[0], tmp_path / "there" / "mine"
    command = ["report", "--ledger", str(ledger.path), "--out"]
    assert main([*command, str(out)]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine.html", "mine.md", "mine_figures"]
    assert "mine.html and" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "one.html")]) == 0
    assert not (tmp_path / "one.md").exists()
    assert main([*command, str(tmp_path / "report.pdf")]) == 2
    assert "name it .html or .md" in capsys.readouterr().err
    with pytest.raises(RecR1Error, match="report.pdf"):
        write_report(ledger, tmp_path / "report.pdf")
    assert report_markdown(ledger).count("| GRPO |") == 1, "the printed one stays short"


def test_figures_of_a_comparison_render(rows):
    spots = [{"method": method, **spot(TEST[method])} for method in SPENT]
    spent = [row | {"seconds": SPENT[row["method"]][1], "tokens": 100} for row in spots]
    differences = {a: spot(mean, half) for a, b, mean, half in PAIRED if b == "teacher"}
    quality = plots.cost_quality(spent, {"raw": spot(0.2)})
    made = [quality, plots.bound(spots, differences, [{"method": "teacher", **spot(0.3)}])]
    made += [plots.race(rows, "samples", {"raw request": 0.2})]
    made += [draw(some) for draw in (plots.forgetting, plots.kl_retention, plots.continual) for some in (rows, [])]
    parts = [(spot(gain), spot(-gain)) for gain in (0.2, 0.1)]
    gains = [{"method": "GRPO", "gain": gain, "loss": loss} for gain, loss in parts]
    made += [plots.pareto(gains)]
    assert list(made[-1].axes[0].lines[0].get_xdata()) == [0, 0.2, 0.1], "from the untrained model on"
    assert all(figure._repr_png_()[0].startswith(b"\x89PNG") for figure in made)
    assert finding(quality) == (
        "GRPO is highest, nDCG@100 0.330 in 600 s; the quickest, SFT, 0.290 in 60 s (intervals overlap)"
    )


def test_the_table_of_tasks(tmp_path):
    ledger, own = Ledger(tmp_path / "ledger.jsonl"), {"run": "one", "retriever": ""}
    ledger.path.write_text(json.dumps({"kind": "unseal", "split": "test"}) + "\n")  # of an earlier version
    ledger.append(eval_row("raw request", 0.25, run="one", retriever="BM25Retriever"))
    for split in ("test", "val"):
        ledger.append(eval_row("item-kNN", 0.25, split=split, **own))
    ledger.append(eval_row("GRPO", 0.25, run="two", retriever="DenseRetriever"))
    ledger.append(compare_row("item-kNN", "raw request", 0.25, 0.05, run="one"))
    table = tasks_table(ledger)
    assert table["method"].tolist() == ["raw request", "item-kNN", "GRPO"]
    assert table["retriever"].tolist() == ["BM25", "BM25", "Dense"]
    assert table["vs raw request"].tolist() == ["", "+0.250 [+0.200, +0.300]", ""]
    assert tasks_table(ledger, "two")["method"].tolist() == ["GRPO"]
