"""The sections of a report, each there only where the rows of a run have what it shows."""

from dataclasses import dataclass
from typing import TypeAlias

from matplotlib.figure import Figure
from pandas import DataFrame

from recr1_lite.evaluate.evaluation import metric_label, show
from recr1_lite.report import comparisons as plots
from recr1_lite.report import curves
from recr1_lite.report import rows as book
from recr1_lite.report.comparisons import task_name
from recr1_lite.report.inspector import Inspection
from recr1_lite.report.rows import FIGURES, PAPER, SETTING, SOURCE, Table, main_spots, main_table, shown, untrained


@dataclass(frozen=True)
class Fold:
    """Parts that a reader opens when wanted."""

    summary: str
    parts: list


# a list is shown as bullets, a frame as a table
Part: TypeAlias = str | list[str] | DataFrame | Fold | Figure | Inspection


@dataclass(frozen=True)
class Section:
    """A heading ("": none) with its parts in order."""

    title: str
    parts: list[Part]


def findings(made: list[Table]) -> Section:
    """Each paired difference of the first table in words, the last method's first; of very many, GRPO's."""
    if not made:
        return Section("", ["No method has been evaluated in this run."])
    label, said = metric_label(made[0].metric), {}
    for (a, b), row in reversed(made[0].differences.items()):
        word = book.verdict(row) + (" from" if book.verdict(row).startswith("not") else "")
        said[a, b] = f"{a} is {word} {b}: {show(row, sign=True)} {label}, n = {row.get('n', '?')}."
    every = list(said.values())
    if len(said) <= 12:
        return Section("", [every])
    first = [text for pair, text in said.items() if "GRPO" in pair]
    return Section("", [first, Fold(f"All {len(said)} paired differences in words", [every])])


def methods(table: Table) -> Section:
    """Every method on one split of one task."""
    metrics = list(dict.fromkeys(name for row in table.evals for name in row["metrics"]))
    more = []
    for row in table.evals:
        counts = ", ".join(f"{kind} {count}" for kind, count in (row.get("outcomes") or {}).items())
        more.append([row["method"], *(shown(row["metrics"].get(name)) for name in metrics), counts])
    note = "“vs” columns: mean difference, paired on the same requests. Brackets: 95% bootstrap intervals."
    base, spots = table.baselines[0] if table.baselines else None, table.spots()
    picture = [plots.methods(spots, base, table.metric)] if spots else []
    every = DataFrame(more, columns=["method", *map(metric_label, metrics), "parse outcomes"])
    fold = Fold("All metrics and parse outcomes", [every])
    return Section(f"{table.name}: {table.task}", [DataFrame(table.body(), columns=table.head()), note, *picture, fold])


def headroom(row: dict, rows: list[dict]) -> Section:
    """The best of several rollouts beside their mean."""
    base = row.get("baselines") or untrained(rows, row.get("n"))
    picture = curves.headroom(row, base, row.get("metric") or book.headline(rows))
    luck = "The best is chosen with the answers in view: part of it is luck of the draw, which no policy can learn."
    return Section("Headroom before training", [picture, luck])


def training(row: dict, rows: list[dict]) -> Section:
    """Learning curve, what each step logged, settings."""
    curve, val = row.get("curve") or [], row.get("val") or []
    base = {**(row.get("baselines") or {}), **untrained(rows, val[-1].get("n") if val else None)}
    settings = [[str(key), str(value)] for key, value in (row.get("config") or {}).items()]
    drawn = any(panel.key in step for step in curve for panel in curves.PANELS)
    losses = [loss for step in curve if (loss := book.number(step.get("loss"))) is not None]
    learned = f" Loss per token: {losses[0]:.3f} → {losses[-1]:.3f}." if losses and not drawn else ""
    stopped = f" ({row['stopped']})" if row.get("stopped") else ""
    points = [point for point in val if book.whole(point)]
    parts: list[Part] = [
        f"{len(curve)} steps in {row.get('seconds') or 0:.0f} s{stopped}.{learned}",
        curves.learning_curve(curve, points, base, row.get("metric") or book.headline(rows)),
    ]
    parts += [Fold("What each step logged", [curves.components(curve)])] if drawn or not curve else []
    name = row.get("method", "policy")
    return Section(f"Training: {name}", [*parts, Fold("Settings", [DataFrame(settings, columns=["setting", "value"])])])


def time_and_tokens(rows: list[dict]) -> Section:
    """What each evaluation and each training took."""
    lines, total = [], 0.0
    for row in (row for row in rows if row["kind"] in ("eval", "train", "headroom")):
        what = f"training {row.get('method', '')}" if row["kind"] == "train" else "headroom check"
        what = f"{row['method']} on {row['split']}" if row["kind"] == "eval" else what
        size = f"{len(row['curve'])} steps" if row.get("curve") else f"{row.get('n', '')} requests"
        seconds, tokens = row.get("seconds"), row.get("tokens")
        total += seconds or 0
        tokens_text = "" if tokens is None else f"{tokens:,}"
        lines.append([what, size, tokens_text, "" if seconds is None else f"{seconds:.1f}"])
    lines.append(["all together", "", "", f"{total:.1f}"])
    return Section("Time and tokens", [DataFrame(lines, columns=["what", "size", "tokens generated", "seconds"])])


def seal(ledger, rows: list[dict]) -> Section:
    """How often the test split was opened, in how many runs, and how often in the run of `rows`."""
    opened, head = ledger.rows("unseal"), ["time", "task", "run", "reason"]
    runs, here = [book.run_of(row) for row in opened], {book.run_of(row) for row in rows}
    fold = Fold("When and why", [DataFrame([[str(row.get(key, "")) for key in head] for row in opened], columns=head)])
    counts = len(runs), sum(run in here for run in runs)
    every, own = (("never", "once")[count] if count < 2 else f"{count} times" for count in counts)
    of = f", in {len(set(runs))} run{'s' * (len(set(runs)) > 1)}; {own} in this one" if runs else ""
    return Section("The seal", [f"The test split was opened {every} in this ledger{of}.", *[fold] * bool(opened)])


def costs(rows: list[dict]) -> Section | None:
    """What each training took, beside what it reached."""
    spent = book.costs(rows)
    if not spent:
        return None
    table, scores = main_table(rows), {name: show(spot) for name, spot in main_spots(rows).items()}
    head = [f"{table.split} {metric_label(table.metric)} [95%]"] if table else []
    head = ["method", *head, *(name.replace("_", " ") for name in book.COSTS), "stopped"]
    stopped = {row.get("method"): row.get("stopped") or "" for row in rows if row["kind"] == "train"}
    body = []
    for row in spent:
        name = row["method"]
        score = [scores.get(name, "not measured")] if table else []
        body.append([name, *score, *(_amount(key, row[key]) for key in book.COSTS), str(stopped.get(name, ""))])
    paid = "at the prices of the run's settings" if any(row["money"] for row in spent) else "nothing was paid"
    note = "Of training alone: samples and tokens of a teacher count as the method's own, validation does not."
    return Section("What training cost", [DataFrame(body, columns=head), f"{note} Money: {paid}."])


def race(rows: list[dict]) -> Section | None:
    """Learning curves together, against seconds and against samples, with the scores at the common budget."""
    if len(book.curves(rows)) < 2 and len(book.curves(rows, "samples")) < 2:
        return None
    parts: list[Part] = [
        "Validation of every trained method within the same budget, in seconds and in samples; a method may use less, "
        "and one that only imitates a rule samples nothing. The tables give each method's best checkpoint within the "
        "budget, the one that is tested; unlike the test table, they pair nothing."
    ]
    trainings = [row for row in rows if row["kind"] == "train"]
    metric = next((row["metric"] for row in trainings if row.get("metric")), "ndcg@100")
    for by in ("seconds", "samples"):
        lines, at = book.curves(rows, by), book.at_budget(rows, by)
        if len(lines) > 1:
            base = book.baselines(rows) | untrained(rows, next(iter(lines.values()))[-1].get("n"))
            body = [[row["method"], f"{row[by]:,.0f}", show(row), str(row.get("n", ""))] for row in at]
            head = ["method", by, f"val {metric_label(metric)} [95%]", "n"]
            parts += [plots.race(rows, by, base, metric), DataFrame(body, columns=head)]
            missing = [name for name in lines if name not in {row["method"] for row in at}]
            parts += [f"Without a checkpoint within these {by}: {', '.join(missing)}."] if missing else []
    return Section("The same budget", parts)


def cost_quality(rows: list[dict]) -> Section | None:
    """The headline metric with its interval over the seconds and the tokens of the training."""
    table, spent = main_table(rows), {row["method"]: row for row in book.costs(rows)}
    every = table.spots() if table else []
    spots = [spot | _spent(spent[spot["method"]]) for spot in every if spot["method"] in spent]
    if table is None or not any(spot["seconds"] or spot["tokens"] for spot in spots):
        return None
    base = {s["method"]: s for s in every if s["method"] not in spent and s.get("n") == spots[0].get("n")}
    return Section("Cost against quality", [plots.cost_quality(spots, base, table.metric, table.split)])


def bound(rows: list[dict]) -> Section | None:
    """Teachers, SFT variants, rejection SFT and GRPO on one plot, with the differences paired with the teacher."""
    table, spots = main_table(rows), main_spots(rows)
    trained = [name for name in book.ORDER if name in spots and name not in book.UNTRAINED]
    teachers = [spots[name] for name in ("teacher", "LM teacher") if name in spots]
    if table is None or not teachers or not trained:
        return None
    pairs = {name: (name, book.TEACHERS.get(name, "teacher")) for name in trained}
    versus = {name: table.differences[pair] for name, pair in pairs.items() if pair in table.differences}
    verdicts = {name: book.verdict(row) for name, row in versus.items()}
    body = [[*pairs[name], shown(versus.get(name), True), verdicts.get(name, "not compared")] for name in trained]
    text = (
        f"The paper ({PAPER}) argues that SFT on a policy's outputs is bounded by that policy. Rejection SFT learns "
        "from the model's own outputs chosen by reward, and GRPO from the reward, so the bound does not hold for them."
    )
    picture = plots.bound([spots[name] for name in trained], versus, teachers, table.metric)
    head = ["method", "held against", f"{metric_label(table.metric)}, paired difference [95%]", "verdict"]
    return Section("Can SFT pass its teacher?", [text, picture, DataFrame(body, columns=head)])


def forgetting(rows: list[dict]) -> Section | None:
    """Capability against the untrained model, and forward KL against retention."""
    changes, means = book.capability_changes(rows), book.capability_means(rows)
    if not changes and not means:
        return None
    parts: list[Part] = [] if changes else ["No method was compared with the untrained model."]
    if changes:
        body = []
        for row in changes:
            told = [show(row["difference"], sign=True), book.worse(row) or "not shown"]
            body.append([row["method"], task_name(row["task"]), row["metric"], str(row["n"] or ""), *told])
        head = ["method", "task", "metric", "n", "minus untrained, paired [95%]", "verdict"]
        parts += [plots.forgetting(rows), DataFrame(body, columns=head)]
    parts += [plots.kl_retention(rows)] if book.retention(rows) else []
    keys = [[str(row["method"]), task_name(str(row.get("task", ""))), str(row.get("metric", ""))] for row in means]
    scores = [[*key, str(row.get("n") or ""), show(row)] for key, row in zip(keys, means, strict=True)]
    head = ["method", "task", "metric", "n", "mean [95%]"]
    parts += [Fold("All capability scores", [DataFrame(scores, columns=head)])] if scores else []
    return Section("What was forgotten", parts)


def continual(rows: list[dict]) -> Section | None:
    """Stages x measures for each trainer."""
    names, body = book.measures(rows), []
    if not names:
        return None
    for trainer, line in book.stages(rows).items():
        for row in line:
            seconds = "" if book.number(row.get("seconds")) is None else f"{row['seconds']:,.0f}"
            values = [shown(row["measures"].get(name)) for name in names]
            body.append([trainer, str(row.get("name", row.get("stage", ""))), *values, seconds])
    grid = DataFrame(body, columns=["trainer", "stage", *names, "seconds"])
    return Section("One task after another", [plots.continual(rows), grid])


def published(rows: list[dict]) -> Section | None:
    """The authors' figures beside a comparison's own, marked as published."""
    table, spots = main_table(rows), main_spots(rows)
    ours = [spots[name] for row in FIGURES for name in row["ours"] if name in spots]
    if table is None or not book.costs(rows) or len(ours) < 2:
        return None
    body = []
    for row in FIGURES:
        here = "; ".join(f"{name} {show(spots[name])}" for name in row["ours"] if name in spots)
        ends = f"[{row['low'] / 100:.3f}, {row['high'] / 100:.3f}]"
        body.append([row["method"], f"{row['mean'] / 100:.4f}", ends, f"{row['once'] / 100:.4f}", here])
    head = ["published method", "PUBLISHED nDCG@100", "its 95%, worked out here", "each target once"]
    head.append(f"here: {table.task}, {table.split}, n = {ours[0].get('n', '?')}")
    text = (
        f"Published figures are those of {SETTING.replace(' x 100', '')}; source: {SOURCE}, divided by 100 here. The "
        "authors' files list some targets twice, and their nDCG counts them twice; the fourth column counts each once. "
        "Neither data, model nor retriever is ours, so no row of this table is a comparison."
    )
    picture = plots.published(ours, table.metric, f"this run, {table.task} {table.split}")
    return Section("Published figures beside ours", [text, picture, DataFrame(body, columns=head)])


CONTEST = (costs, race, cost_quality, bound, forgetting, continual, published)


def _spent(cost: dict) -> dict:
    tokens = [cost[key] for key in ("tokens_generated", "tokens_trained") if cost[key] is not None]
    return {"seconds": cost["seconds"], "tokens": sum(tokens) if tokens else None}


def _amount(key: str, value: float | None) -> str:
    digits = 2 if key == "money" and value else 1 if key == "seconds" else 0
    return "not noted" if value is None else f"{value:,.{digits}f}"
